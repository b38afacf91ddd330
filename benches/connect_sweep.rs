//! The reference of the speed table: a plain, single-threaded, non-blocking connect()+epoll sweep.
//!
//! It asks every address of a prefix for one connection, closes it by RST, and says how long that
//! took. It sends no keepalive. What can be left out is left out, so that it is a fair bar:
//! no `getsockopt` on success (the event's flags tell), no `epoll_ctl` to remove (close does it).

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::Parser;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, setsockopt, socket, sockopt,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Connects to every address of a prefix and counts the outcomes.
#[derive(Parser)]
#[command(name = "connect-sweep")]
struct Args {
    /// Peers, as CIDR:PORT.
    target: Target,
    /// Connections under way at once; bounded by the limit of open files.
    #[arg(long, default_value_t = 10_000)]
    in_flight: usize,
    /// Seconds until a connection that does not complete is given up.
    #[arg(long, default_value_t = 15.0)]
    timeout: f64,
    /// Leave every completion to epoll. Otherwise each connection is asked once more right after
    /// its SYN, which is cheaper where the handshake is over by then, as on veth.
    #[arg(long)]
    plain: bool,
}

#[derive(Clone, Copy)]
struct Target {
    net: Ipv4Net,
    port: u16,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Target> {
        let (net, port) = text.rsplit_once(':').context("expected CIDR:PORT")?;
        let net = net.parse().or_else(|_| net.parse().map(|ip: Ipv4Addr| Ipv4Net::from(ip)))?;
        Ok(Target { net, port: port.parse().context("port")? })
    }
}

impl Target {
    /// Every address, network and broadcast address included.
    fn addresses(self) -> impl Iterator<Item = SockaddrIn> {
        let (first, last) = (u32::from(self.net.network()), u32::from(self.net.broadcast()));
        (first..=last).map(move |ip| SockaddrIn::from(SocketAddrV4::new(ip.into(), self.port)))
    }
}

#[derive(Default)]
struct Outcome {
    connected: u64,
    refused: u64,
    timed_out: u64,
    failed: u64,
}

impl Outcome {
    fn count(&mut self, answer: Result<(), Errno>) {
        match answer {
            Ok(()) => self.connected += 1,
            Err(Errno::ECONNREFUSED) => self.refused += 1,
            Err(Errno::ETIMEDOUT) => self.timed_out += 1,
            Err(_) => self.failed += 1,
        }
    }
}

struct Sweep {
    epoll: Epoll,
    plain: bool,
    pending: Vec<Option<OwnedFd>>,
    free: Vec<usize>,
    /// How often each slot was used: tells a deadline of an earlier use from the present one's.
    uses: Vec<u32>,
    /// In the order of expiry, since all wait equally long.
    deadlines: VecDeque<(Instant, usize, u32)>,
    outcome: Outcome,
}

// A reference that is not part of the program measures itself.
#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    // Standard streams and epoll.
    let most = usize::try_from(hard).unwrap_or(usize::MAX).saturating_sub(8);
    let in_flight = args.in_flight.min(most);
    if in_flight == 0 {
        bail!("--in-flight must be at least 1");
    }
    let timeout = Duration::try_from_secs_f64(args.timeout).context("--timeout")?;

    let start = now();
    let mut sweep = Sweep {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
        plain: args.plain,
        pending: (0..in_flight).map(|_| None).collect(),
        free: (0..in_flight).rev().collect(),
        uses: vec![0; in_flight],
        deadlines: VecDeque::with_capacity(in_flight),
        outcome: Outcome::default(),
    };
    sweep.run(args.target, timeout)?;
    let Outcome { connected, refused, timed_out, failed } = sweep.outcome;
    println!(
        "connected {connected} refused {refused} timed out {timed_out} failed {failed} in {:.3} s",
        start.elapsed().as_secs_f64()
    );
    Ok(ExitCode::from(u8::from(refused + timed_out + failed > 0)))
}

impl Sweep {
    fn run(&mut self, target: Target, timeout: Duration) -> Result<()> {
        let mut addresses = target.addresses();
        let mut events = vec![EpollEvent::empty(); 1024];
        loop {
            // One reading of the clock covers a batch: it is far finer than the timeout.
            let deadline = now() + timeout;
            for _ in 0..events.len() {
                let Some(&slot) = self.free.last() else { break };
                let Some(address) = addresses.next() else { break };
                if self.begin(slot, &address)? {
                    self.free.pop();
                    self.deadlines.push_back((deadline, slot, self.uses[slot]));
                }
            }
            let under_way = self.pending.len() - self.free.len();
            let all_begun = addresses.size_hint().1 == Some(0);
            if under_way == 0 && all_begun {
                return Ok(());
            }
            let may_begin = !self.free.is_empty() && !all_begun;
            let wait = if may_begin { EpollTimeout::ZERO } else { self.until_expiry() };
            let ready = match self.epoll.wait(&mut events, wait) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("epoll_wait"),
            };
            for event in &events[..ready] {
                self.complete(event.data() as usize, event.events())?;
            }
            self.expire(now());
        }
    }

    /// Starts a connection in `slot`; false if it is over already.
    fn begin(&mut self, slot: usize, address: &SockaddrIn) -> Result<bool> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None).context("socket")?;
        // close() then sends RST: no FIN_WAIT here, no CLOSE_WAIT over there.
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&fd, sockopt::Linger, &abort).context("SO_LINGER")?;
        let mut answer = connect(fd.as_raw_fd(), address);
        if answer == Err(Errno::EINPROGRESS) && !self.plain {
            answer = connect(fd.as_raw_fd(), address);
        }
        match answer {
            Err(Errno::EINPROGRESS | Errno::EALREADY) => {}
            over => {
                self.outcome.count(over);
                return Ok(false);
            }
        }
        let event = EpollEvent::new(EpollFlags::EPOLLOUT, slot as u64);
        self.epoll.add(&fd, event).context("epoll_ctl")?;
        self.pending[slot] = Some(fd);
        Ok(true)
    }

    fn complete(&mut self, slot: usize, flags: EpollFlags) -> Result<()> {
        let Some(fd) = self.pending[slot].take() else { return Ok(()) };
        let failed = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let error =
            if failed { getsockopt(&fd, sockopt::SocketError).context("SO_ERROR")? } else { 0 };
        self.outcome.count(if error == 0 { Ok(()) } else { Err(Errno::from_raw(error)) });
        self.release(slot);
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, slot, uses)) = self.deadlines.front() {
            let current = self.uses[slot] == uses;
            if current && deadline > now {
                break;
            }
            self.deadlines.pop_front();
            if current {
                self.pending[slot] = None;
                self.outcome.timed_out += 1;
                self.release(slot);
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.uses[slot] = self.uses[slot].wrapping_add(1);
        self.free.push(slot);
    }

    fn until_expiry(&self) -> EpollTimeout {
        let Some(&(deadline, ..)) = self.deadlines.front() else { return EpollTimeout::NONE };
        // Rounded up: waking early would spin.
        let millis = deadline.saturating_duration_since(now()).as_millis() + 1;
        EpollTimeout::try_from(millis.min(60_000)).unwrap_or(EpollTimeout::ZERO)
    }
}
