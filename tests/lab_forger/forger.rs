//! The attacker of `scripts/lab`: sits on the router, sees what passes, and sends the prober what its
//! peers never said.
//!
//! | option | what the prober gets |
//! |---|---|
//! | `--forge N` | N forged replies, checksums right: every other one of a random tuple, the rest of a flow that was seen, with one number beside what would be believed or in the window and still wrong |
//! | `--flood` | instead of these, N data segments that are right in every number: peers that flood |
//! | `--astray` | nothing: the forgeries go to a MAC address of nobody's, to see what they cost the machine |
//! | `--hints` | among them ACKs to SYNs, which are not believed either but make keepsweep try another port |
//! | `--duplicate K` | every real reply K times more |
//! | `--delay MS` | a quarter of the real replies (SEG.SEQ divisible by four) up to MS later than the rest; `scripts/bench` and the tests have nft drop the originals |
//!
//! Ends when N are out (or, without `--forge`, when its standard input ends) and prints one JSON object:
//! how many of each kind.

#![forbid(unsafe_code)]

mod kinds;

use anyhow::{Context, Result, bail};
use clap::Parser;
use keepsweep::io::Transmit;
use keepsweep::io::packet::PacketTx;
use keepsweep::io::route::{Interface, interfaces};
use keepsweep::time::{Clock, Instant};
use keepsweep::wire::{
    Checksums, Flags, LinkHeader, LinkType, MacAddr, Packet, Segment, checksum, parse,
};
use kinds::{KINDS, Seen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Forges replies to a prober, from the router in front of it.
#[derive(Parser)]
#[command(name = "lab-forger")]
struct Args {
    /// The interface towards the prober.
    #[arg(long, default_value = "up0")]
    prober: String,
    /// The interface towards the peers.
    #[arg(long, default_value = "down0")]
    peers: String,
    /// Forged replies to send.
    #[arg(long)]
    forge: Option<u64>,
    /// Forged replies per second; as many as there is time for, if left out.
    #[arg(long)]
    rate: Option<u64>,
    /// Send data that is right in every number instead.
    #[arg(long, requires = "forge")]
    flood: bool,
    /// Address what is forged to nobody: the same work for this machine, and nothing for keepsweep.
    #[arg(long)]
    astray: bool,
    /// Forge ACKs to SYNs too.
    #[arg(long)]
    hints: bool,
    /// Copies of every real reply.
    #[arg(long, default_value_t = 0)]
    duplicate: u32,
    /// Hold back a quarter of the real replies, up to this many milliseconds.
    #[arg(long)]
    delay: Option<u64>,
}

/// Flows remembered to forge replies of: the last ones opened.
const MEMORY: usize = 1 << 17;
/// A MAC address that no interface of the lab has.
const NOBODY: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 1]);
/// Forged between two looks at what has come.
const TURN: u64 = 256;
/// Read before something is sent again.
const FRAMES_READ: usize = 4096;

fn main() -> Result<()> {
    let mut forger = Forger::open(Args::parse())?;
    println!("{{\"ready\":true}}");
    forger.run()?;
    forger.report();
    Ok(())
}

struct Forger {
    args: Args,
    clock: Clock,
    taps: OwnedFd,
    to_prober: Interface,
    from_peers: Interface,
    out: Outlet,
    /// Flows by our port and the peer, and where they stand in `seen`.
    known: HashMap<(u16, IpAddr, u16), usize>,
    seen: Vec<Seen>,
    next: usize,
    /// The prober's address on the link, from its latest frame.
    prober_mac: Option<MacAddr>,
    rng: fastrand::Rng,
    held: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    order: u64,
    forged: [u64; KINDS.len()],
    duplicated: u64,
    delayed: u64,
    /// Segments of the prober's and of the peers'.
    passed: [u64; 2],
}

impl Forger {
    fn open(args: Args) -> Result<Forger> {
        let all = interfaces()?;
        let find = |name: &str| {
            let found = all.iter().find(|interface| interface.name == name);
            found.cloned().with_context(|| format!("no interface {name}"))
        };
        let (to_prober, from_peers) = (find(&args.prober)?, find(&args.peers)?);
        // ETH_P_IP: what this host sends is shown only to taps of ETH_P_ALL.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let taps = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthIp)
            .context("open AF_PACKET socket")?;
        setsockopt(&taps, sockopt::RcvBufForce, &(256 << 20)).context("set SO_RCVBUFFORCE")?;
        let out = Outlet { tx: PacketTx::open(to_prober.index, &to_prober.name)?, sent: 0 };
        Ok(Forger {
            clock: Clock,
            taps,
            to_prober,
            from_peers,
            out,
            known: HashMap::new(),
            seen: Vec::new(),
            next: 0,
            prober_mac: None,
            rng: fastrand::Rng::with_seed(7),
            held: BinaryHeap::new(),
            order: 0,
            forged: [0; KINDS.len()],
            duplicated: 0,
            delayed: 0,
            passed: [0; 2],
            args,
        })
    }

    fn run(&mut self) -> Result<()> {
        let ended = end_of_input();
        let mut begun = None;
        let mut done = 0;
        loop {
            let idle = self.look()? == 0;
            self.release()?;
            let now = self.clock.now();
            match self.args.forge {
                // Nothing is forged before there is something to forge.
                Some(count) if !self.seen.is_empty() => {
                    let since = *begun.get_or_insert(now);
                    let allowed = self.args.rate.map_or(u64::MAX, |rate| {
                        (now.since(since).as_micros() as u64).saturating_mul(rate) / 1_000_000
                    });
                    let turn = TURN.min(count - done).min(allowed.saturating_sub(done));
                    for index in 0..turn {
                        self.forge_one(index)?;
                    }
                    done = self.forged.iter().sum();
                    self.out.flush()?;
                    if done == count {
                        return Ok(());
                    }
                    if turn == 0 && idle {
                        self.rest()?;
                    }
                }
                _ if idle => self.rest()?,
                _ => {}
            }
            if ended.load(Ordering::Acquire) && self.held.is_empty() {
                return self.out.flush();
            }
        }
    }

    /// Waits for the next frame, a millisecond at most.
    fn rest(&self) -> Result<()> {
        let mut fds = [PollFd::new(self.taps.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(1u8)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("poll"),
        }
    }

    /// Takes in what has passed; returns how many frames that were.
    fn look(&mut self) -> Result<usize> {
        let mut buf = [0; 2048];
        for count in 0..FRAMES_READ {
            let (len, from) = match recvfrom::<LinkAddr>(self.taps.as_raw_fd(), &mut buf) {
                Ok(received) => received,
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(count),
                Err(errno) => return Err(errno).context("receive from AF_PACKET socket"),
            };
            let ifindex = from.map_or(0, |from| from.ifindex()) as u32;
            let frame = &buf[..len];
            let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ethernet, Checksums::Trust)
            else {
                continue;
            };
            if ifindex == self.to_prober.index {
                self.passed[0] += 1;
                self.remember(&segment, frame);
            } else if ifindex == self.from_peers.index {
                self.passed[1] += 1;
                self.repeat(&segment, frame)?;
            }
        }
        Ok(FRAMES_READ)
    }

    fn remember(&mut self, segment: &Segment<'_>, frame: &[u8]) {
        // The end of a flow says nothing new; and after a SYN in vain it does not mean that the flow was
        // ever open, so that a RST with the right SEG.ACK would be a right one.
        if segment.flags.contains(Flags::RST) {
            return;
        }
        let Some(mac) = frame.get(6..12).and_then(|mac| mac.try_into().ok()) else { return };
        self.prober_mac = Some(MacAddr(mac));
        let key = (segment.src_port, segment.ip.dst, segment.dst_port);
        let is_syn = segment.flags.contains(Flags::SYN);
        let known = self.known.get(&key).copied();
        if !is_syn {
            if let Some(index) = known {
                self.seen[index].rcv_nxt = Some(segment.ack);
            }
            return;
        }
        let seen = Seen {
            mac: MacAddr(mac),
            prober: (segment.ip.src, segment.src_port),
            peer: (segment.ip.dst, segment.dst_port),
            snd_una: segment.seq + 1,
            rcv_nxt: None,
        };
        match known {
            // A repeated SYN; or a later sweep has drawn the same port again, and another number.
            Some(index) => self.seen[index] = seen,
            None if self.seen.len() < MEMORY => {
                self.known.insert(key, self.seen.len());
                self.seen.push(seen);
            }
            None => {
                let old = std::mem::replace(&mut self.seen[self.next], seen);
                self.known.remove(&(old.prober.1, old.peer.0, old.peer.1));
                self.known.insert(key, self.next);
                self.next = (self.next + 1) % MEMORY;
            }
        }
    }

    /// Duplicates a real reply, and sends it late if nft has dropped it.
    fn repeat(&mut self, segment: &Segment<'_>, frame: &[u8]) -> Result<()> {
        let Some(mac) = self.prober_mac else { return Ok(()) };
        let copy = forwarded(frame, self.to_prober.mac, mac);
        for _ in 0..self.args.duplicate {
            self.duplicated += 1;
            self.out.put(&copy)?;
        }
        if let Some(delay) = self.args.delay
            && segment.seq.0.is_multiple_of(4)
        {
            let late = Duration::from_micros(self.rng.u64(0..=delay * 1000));
            self.order += 1;
            self.held.push(Reverse((self.clock.now() + late, self.order, copy)));
        }
        Ok(())
    }

    /// Lets go of what has been held back long enough.
    fn release(&mut self) -> Result<()> {
        let now = self.clock.now();
        while let Some(Reverse((at, ..))) = self.held.peek()
            && *at <= now
            && let Some(Reverse((_, _, frame))) = self.held.pop()
        {
            self.delayed += 1;
            self.out.put(&frame)?;
        }
        self.out.flush()
    }

    fn forge_one(&mut self, index: u64) -> Result<()> {
        let seen = self.seen[self.rng.usize(0..self.seen.len())];
        let kind = if self.args.flood {
            kinds::FLOOD
        } else if index.is_multiple_of(2) {
            // Of a tuple that nobody ever used: another peer, and any of our ports.
            self.rng.usize(0..kinds::RANDOM)
        } else {
            let first = if self.args.hints { kinds::RANDOM } else { kinds::NO_HINT };
            self.rng.usize(first..kinds::FLOOD)
        };
        let dst = if self.args.astray { NOBODY } else { seen.mac };
        let link = LinkHeader::Ethernet { src: self.to_prober.mac, dst, vlan: None };
        if self.args.flood && seen.rcv_nxt.is_none() {
            return Ok(());
        }
        let mut buf = [0; 256];
        let len = kinds::forge(kind, &seen, &link, &mut self.rng, &mut buf)
            .with_context(|| format!("forge {}", KINDS[kind].0))?;
        self.forged[kind] += 1;
        self.out.put(&buf[..len])
    }

    fn report(&self) {
        let kinds: serde_json::Map<_, _> = KINDS
            .iter()
            .zip(self.forged)
            .map(|((name, _), count)| ((*name).to_owned(), count.into()))
            .collect();
        let report = serde_json::json!({
            "forged": self.forged.iter().sum::<u64>(),
            "by_kind": kinds,
            "duplicated": self.duplicated,
            "delayed": self.delayed,
            "sent": self.out.sent,
            "seen_of_prober": self.passed[0],
            "seen_of_peers": self.passed[1],
        });
        println!("{report}");
    }
}

/// Whoever started us has gone, or wants us to end.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    std::thread::spawn(move || {
        let mut octets = [0; 64];
        while matches!(std::io::stdin().read(&mut octets), Ok(1..)) {}
        flag.store(true, Ordering::Release);
    });
    ended
}

/// A frame as the router would have sent it on: other MAC addresses, one hop less.
fn forwarded(frame: &[u8], src: MacAddr, dst: MacAddr) -> Vec<u8> {
    let mut copy = frame.to_vec();
    if copy.len() < 34 {
        return copy;
    }
    copy[..6].copy_from_slice(&dst.0);
    copy[6..12].copy_from_slice(&src.0);
    copy[22] = copy[22].saturating_sub(1);
    copy[24..26].fill(0);
    let header = usize::from(copy[14] & 0xf) * 4;
    let sum = copy.get(14..14 + header).map_or(0, checksum::internet);
    copy[24..26].copy_from_slice(&sum.to_be_bytes());
    copy
}

/// The sending end, counted.
struct Outlet {
    tx: PacketTx,
    sent: u64,
}

impl Outlet {
    fn put(&mut self, frame: &[u8]) -> Result<()> {
        if self.tx.reserve().is_none() {
            self.flush()?;
        }
        let Some(room) = self.tx.reserve().and_then(|buf| buf.get_mut(..frame.len())) else {
            bail!("a frame of {} octets is too long to be forged", frame.len());
        };
        room.copy_from_slice(frame);
        self.tx.submit(frame.len());
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.sent += self.tx.flush().map_err(|unsent| unsent.error)? as u64;
        Ok(())
    }
}
