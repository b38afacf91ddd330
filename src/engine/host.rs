//! The kernel's own connections: read at the start, and again as often as a verdict depends on it.
#![forbid(unsafe_code)]

use super::Control;
use super::watch::HostEvent;
use crate::io::conntrack::{self, Conntrack, Ends, Extent, Tracked, ends};
use crate::io::facts::{may_translate_untracked, rules_translate};
use crate::io::host::{Connection, HostError, Numbers, Reader, TcpState};
use crate::io::raw::Likeness;
use crate::io::shield::Shield;
use crate::probe::Slot;
use crate::probe::evidence::Seen;
use crate::probe::given::{Given, TimestampClock};
use crate::probe::host::{Host, Reading, Wire};
use crate::probe::sender::Readings;
use crate::probe::table::FlowKey;
use crate::time::{Clock, Instant};
use crossbeam::channel;
use crossbeam::sync::{Parker, Unparker};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Between the beginnings of two readings: so long at least, and so many times what the last one took.
const SPACING: Duration = Duration::from_millis(20);
const DUTY: u32 = 4;
/// How often a reading that fails is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How soon the reading thread notices that it is not wanted any more, if nobody wakes it.
const LONGEST_NAP: Duration = Duration::from_millis(100);

/// Returns a flow to probe from what was read of a connection: what the peer does after it is life.
///
/// The numbers of one that cannot be probed (TIME_WAIT and the like) are 0.
pub fn given(connection: &Connection) -> Given {
    let reading = reading(connection);
    let Reading { snd_una, snd_nxt, rcv_nxt, wnd, clock, obstacle, .. } = reading;
    Given {
        local: connection.local,
        peer: connection.peer,
        snd_una,
        snd_nxt,
        rcv_nxt,
        wnd,
        clock,
        obstacle,
        host: Some(Host::new(connection.cookie, reading)),
    }
}

/// Says in the core's terms what was read.
fn reading(connection: &Connection) -> Reading {
    let state = state_obstacle(connection.state);
    let Some(numbers) = &connection.numbers else {
        // FIN_WAIT2 of a socket that nobody holds any more is a small one too.
        return Reading {
            at: connection.at,
            obstacle: state.or(Some(Seen::TcpState("tcp-orphaned"))),
            is_closed_by_peer: is_closed_by_peer(connection.state),
            ..Reading::default()
        };
    };
    let Numbers { snd_una, snd_nxt, rcv_nxt, rcv_wup, rcv_wnd, .. } = *numbers;
    let signed = (numbers.is_signed == Some(true)).then_some(Seen::Signed);
    // What is left of the window that was last offered (tcp_receive_window, include/net/tcp.h).
    let left = (rcv_wup + rcv_wnd).distance(rcv_nxt).max(0) as u32;
    let wnd = u16::try_from(left >> numbers.rcv_wscale.min(14)).unwrap_or(u16::MAX);
    let clock = numbers.timestamps.map(|timestamps| TimestampClock {
        ts_recent: timestamps.ts_recent,
        ts_offset: timestamps.offset,
        in_microseconds: timestamps.in_microseconds,
    });
    Reading {
        at: connection.at,
        obstacle: state.or(signed),
        is_closed_by_peer: is_closed_by_peer(connection.state),
        has_numbers: true,
        snd_una,
        snd_nxt,
        rcv_nxt,
        rcv_wup,
        wnd,
        is_peer_window_zero: numbers.snd_wnd == 0,
        bytes_received: numbers.bytes_received,
        is_in_flight: numbers.packets_out > 0 || numbers.retransmits > 0 || snd_nxt != snd_una,
        retransmits: numbers.retransmits,
        clock,
        tos: numbers.tos & !3,
        last_ack_at: connection.at - numbers.since_ack_received,
        wire: Wire::Same,
        reset: None,
    }
}

/// Names a state in which the peer is not to be asked. A connection that one side has closed is still one.
fn state_obstacle(state: TcpState) -> Option<Seen> {
    Some(Seen::TcpState(match state {
        TcpState::Established | TcpState::CloseWait | TcpState::FinWait2 => return None,
        TcpState::SynSent => "tcp-syn-sent",
        TcpState::SynReceived => "tcp-syn-recv",
        TcpState::FinWait1 => "tcp-fin-wait-1",
        TcpState::TimeWait => "tcp-time-wait",
        TcpState::Closed => "tcp-close",
        TcpState::LastAck => "tcp-last-ack",
        TcpState::Listen => "tcp-listen",
        TcpState::Closing => "tcp-closing",
    }))
}

/// Says whether it takes the peer's FIN to come to this state (RFC 9293 §3.3.2, figure 5).
fn is_closed_by_peer(state: TcpState) -> bool {
    use TcpState::{CloseWait, Closing, LastAck, TimeWait};
    matches!(state, CloseWait | LastAck | Closing | TimeWait)
}

/// What reads the connections of the network namespace in which it is used.
#[derive(Debug)]
pub struct Kernel {
    reader: Reader,
    /// What reads connection tracking, where the kernel has it, and how much of it.
    conntrack: Option<Conntrack>,
    extent: Extent,
    /// Whether nothing but connection tracking has to be asked.
    is_known: bool,
    /// As it was before the guard was attached, whose programs have no names for who lacks CAP_SYS_ADMIN.
    may_translate_untracked: bool,
    shield: Option<Arc<Shield>>,
}

impl Kernel {
    /// Loads what reads them.
    pub fn open() -> Result<Kernel, HostError> {
        // Also if nothing is tracked yet: our own probes may be the first.
        let conntrack = conntrack::count().map(|_| Conntrack::open()).transpose()?;
        Ok(Kernel {
            reader: Reader::open()?,
            conntrack,
            extent: Extent::Translated,
            is_known: true,
            may_translate_untracked: may_translate_untracked(),
            shield: None,
        })
    }

    /// Has the shield tell what it has kept from sockets. Without one resets are held by the ends that
    /// packets have on the wire, and those must be known for certain.
    pub fn set_shield(&mut self, shield: Option<Arc<Shield>>) {
        if shield.is_none() {
            self.extent = Extent::All;
            self.is_known = !self.may_translate_untracked && !rules_translate().unwrap_or(true);
        }
        self.shield = shield;
    }

    /// Reads what the kernel owns of `flows`, and returns all of them with its numbers, and how the
    /// packets of its own are routed.
    pub fn examine(
        &mut self,
        flows: &[Given],
    ) -> Result<(Vec<Given>, Vec<Option<Likeness>>), HostError> {
        let wanted = flows.iter().enumerate();
        let wanted: HashMap<_, _> =
            wanted.map(|(index, flow)| (ends(flow.local, flow.peer), index)).collect();
        let mut found = flows.to_vec();
        // What an audit has read is gone unless it is found.
        for flow in found.iter_mut().filter(|flow| flow.host.is_some()) {
            flow.obstacle = Some(Seen::SocketGone);
        }
        let mut likeness = vec![None; flows.len()];
        self.reader.read(&mut |connection| {
            let Some(&index) = wanted.get(&ends(connection.local, connection.peer)) else {
                return;
            };
            let now = given(&connection);
            let known = flows[index].host;
            let (Some(latest), Some(numbers)) = (now.host, &connection.numbers) else {
                found[index] = Given { host: known.or(now.host), ..now };
                return;
            };
            // Another connection on the same 4-tuple is not the one that was listed.
            if known.is_some_and(|known| known.cookie != latest.cookie) {
                return;
            }
            let first = known.map_or(latest.first, |known| known.first);
            found[index] = Given { host: Some(Host { first, ..latest }), ..now };
            let Numbers { mark, bound_interface, .. } = *numbers;
            likeness[index] = Some(Likeness { mark, bound_interface });
        })?;
        let translation = self.translation(found.iter().map(|flow| (flow.local, flow.peer)));
        for Given { local, peer, host, .. } in &mut found {
            if let Some(host) = host {
                host.latest.wire = translation.wire(*local, *peer);
            }
        }
        Ok((found, likeness))
    }

    /// Reads the connections of `cookies`.
    fn read(&mut self, cookies: &HashMap<u64, Slot>) -> Result<Readings, HostError> {
        let mut flows: HashMap<Slot, (Ends, Reading)> = HashMap::with_capacity(cookies.len());
        let shield = &self.shield;
        let begun = self.reader.read(&mut |connection| {
            if let Some(&slot) = cookies.get(&connection.cookie) {
                let reset = shield.as_ref().and_then(|shield| shield.reset(connection.cookie));
                let reading = Reading { reset, ..reading(&connection) };
                flows.insert(slot, ((connection.local, connection.peer), reading));
            }
        })?;
        let translation = self.translation(flows.values().map(|(ends, _)| *ends));
        let flows = cookies.values().map(|&slot| {
            let found = flows.get(&slot).map(|&((local, peer), reading)| Reading {
                wire: translation.wire(local, peer),
                ..reading
            });
            (slot, found)
        });
        Ok(Readings { begun: begun.at, flows: flows.collect() })
    }

    /// Reads what this host's connection tracking makes of the packets between these ends.
    fn translation(&mut self, of: impl Iterator<Item = Ends>) -> Translation {
        let count = conntrack::count();
        let absent = match count {
            // The next packet makes an entry, and only then it shows how this host translates it. An
            // entry to which a reset has come before any other answer is gone at once.
            Some(_) if self.extent == Extent::All => Wire::Unknown,
            _ => Wire::Same,
        };
        let tracked = match count {
            _ if !self.is_known => None,
            None | Some(0) => Some(Tracked::new()),
            Some(_) => self.conntrack.as_mut().and_then(|conntrack| {
                let of: HashSet<Ends> = of.map(|(local, peer)| ends(local, peer)).collect();
                let read = conntrack.read(&Arc::new(of), self.extent);
                read.inspect_err(|error| tracing::info!(%error, "how it translates is not known"))
                    .ok()
            }),
        };
        Translation { tracked, absent }
    }
}

/// How this host translates connections, if that is known.
struct Translation {
    tracked: Option<Tracked>,
    /// What is to be thought of those that are not among them.
    absent: Wire,
}

impl Translation {
    fn wire(&self, local: SocketAddr, peer: SocketAddr) -> Wire {
        let socket = ends(local, peer);
        match self.tracked.as_ref().map(|tracked| tracked.get(&socket)) {
            None | Some(Some(None)) => Wire::Unknown,
            Some(None) => self.absent,
            Some(Some(Some(wire))) if *wire == socket => Wire::Same,
            Some(Some(&Some((local, peer)))) => Wire::Other(FlowKey { local, peer }),
        }
    }
}

/// What the senders ask of the thread that reads the kernel's connections.
#[derive(Debug)]
pub(super) struct Wanted {
    /// A reading is wanted that begins then or later (ns).
    since: AtomicU64,
    reader: Unparker,
}

impl Wanted {
    pub fn new(reader: Unparker) -> Self {
        Wanted { since: AtomicU64::new(0), reader }
    }

    /// Asks for a reading that begins at `since` or later.
    pub fn ask(&self, since: Instant) {
        // Relaxed: the number alone is what is told.
        if self.since.fetch_max(since.as_nanos(), Ordering::Relaxed) < since.as_nanos() {
            self.reader.unpark();
        }
    }

    /// Wakes the thread that reads, to see that it is not wanted any more.
    pub fn wake(&self) {
        self.reader.unpark();
    }
}

/// Reads the kernel's connections whenever a sender asks for it.
pub(super) struct KernelWatch<'a> {
    pub kernel: Kernel,
    /// The sockets that are asked about.
    pub cookies: HashMap<u64, Slot>,
    pub wanted: &'a Wanted,
    pub parker: Parker,
    pub finished: &'a AtomicBool,
    pub control: &'a Control,
    pub events: Vec<channel::Sender<Vec<HostEvent>>>,
    pub senders: &'a [Unparker],
}

impl KernelWatch<'_> {
    pub fn run(mut self) {
        let mut served = Instant::ZERO;
        let mut next = Instant::ZERO;
        let mut is_failing = false;
        while !self.finished.load(Ordering::Acquire) {
            let wanted = Instant::from_nanos(self.wanted.since.load(Ordering::Relaxed));
            if wanted <= served {
                self.parker.park_timeout(LONGEST_NAP);
                continue;
            }
            let now = Clock.now();
            let wait = next.max(wanted).since(now);
            if !wait.is_zero() {
                self.parker.park_timeout(wait.min(LONGEST_NAP));
                continue;
            }
            match self.kernel.read(&self.cookies) {
                Ok(readings) => {
                    is_failing = false;
                    served = readings.begun;
                    next = now + (Clock.now().since(now) * DUTY).max(SPACING);
                    self.tell(readings);
                }
                Err(error) => {
                    next = Clock.now() + RETRY;
                    if !std::mem::replace(&mut is_failing, true) {
                        self.control
                            .notices
                            .push(format!("{error}; while it lasts, nobody is said to be down"));
                    }
                }
            }
        }
    }

    fn tell(&self, readings: Readings) {
        let readings = Arc::new(readings);
        for (events, sender) in self.events.iter().zip(self.senders) {
            // Fails only if the sender has ended, and then nobody wants to know.
            let _ = events.send(vec![HostEvent::Read(Arc::clone(&readings))]);
            sender.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::host::SocketTimestamps;
    use crate::wire::SeqNumber;

    fn connection() -> Connection {
        Connection {
            at: Instant::from_nanos(10_000_000_000),
            local: "10.0.0.1:22".parse().expect("an address"),
            peer: "10.0.0.2:40000".parse().expect("an address"),
            v4_mapped: false,
            state: TcpState::Established,
            cookie: 7,
            netns: 1,
            inode: 2,
            uid: 0,
            numbers: Some(Numbers {
                snd_una: SeqNumber(100),
                snd_nxt: SeqNumber(100),
                write_seq: SeqNumber(100),
                rcv_nxt: SeqNumber(u32::MAX),
                rcv_wup: SeqNumber(u32::MAX - 1),
                rcv_wnd: 65_537,
                rcv_wscale: 7,
                snd_wnd: 1,
                bytes_received: 1_000,
                packets_out: 0,
                retrans_out: 0,
                retransmits: 0,
                probes_out: 3,
                timestamps: None,
                is_signed: Some(false),
                mark: 0,
                bound_interface: 0,
                tos: 0x2b,
                keepalive: None,
                since_data_sent: Duration::MAX,
                since_data_received: Duration::MAX,
                since_ack_received: Duration::from_secs(4),
            }),
        }
    }

    fn read(change: impl FnOnce(&mut Connection, &mut Numbers)) -> Reading {
        let mut connection = connection();
        let mut numbers = connection.numbers.take().expect("numbers");
        change(&mut connection, &mut numbers);
        connection.numbers = Some(numbers);
        reading(&connection)
    }

    #[test]
    fn windows_are_what_is_left_and_clocks_what_they_are() {
        let plain = read(|_, _| ());
        assert_eq!((plain.wnd, plain.tos, plain.is_in_flight), (512, 0x28, false));
        assert_eq!(plain.last_ack_at, Instant::from_nanos(6_000_000_000));
        assert_eq!(plain.obstacle, None, "the kernel's own probes are no data");
        let window = |rcv_wnd: u32, rcv_wscale: u8| {
            read(|_, numbers| (numbers.rcv_wnd, numbers.rcv_wscale) = (rcv_wnd, rcv_wscale)).wnd
        };
        assert_eq!([window(1, 0), window(0, 0), window(65_536, 0)], [0, 0, 65_535]);
        assert_eq!([window(u32::MAX >> 2, 0), window(1 << 30, 14)], [65_535, 65_535]);
        let timestamps = SocketTimestamps { ts_recent: 1, offset: 2, in_microseconds: true };
        let clock = read(|_, numbers| numbers.timestamps = Some(timestamps)).clock;
        let expected = TimestampClock { ts_recent: 1, ts_offset: 2, in_microseconds: true };
        assert_eq!(clock, Some(expected));
        // Longer ago than the clock has run.
        let never = read(|_, numbers| numbers.since_ack_received = Duration::MAX);
        assert_eq!(never.last_ack_at, Instant::ZERO);
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let signed = read(|_, numbers| numbers.is_signed = Some(true));
        assert_eq!(signed.obstacle, Some(Seen::Signed));
        for (state, obstacle) in [
            (TcpState::CloseWait, None),
            (TcpState::FinWait2, None),
            (TcpState::FinWait1, Some("tcp-fin-wait-1")),
            (TcpState::LastAck, Some("tcp-last-ack")),
        ] {
            let read = read(|connection, _| connection.state = state);
            assert_eq!(read.obstacle, obstacle.map(Seen::TcpState));
        }
        let small = |state| {
            let reading = reading(&Connection { state, numbers: None, ..connection() });
            (reading.obstacle, reading.is_closed_by_peer, reading.has_numbers)
        };
        let of = |name| Some(Seen::TcpState(name));
        assert_eq!(small(TcpState::TimeWait), (of("tcp-time-wait"), true, false));
        assert_eq!(small(TcpState::FinWait2), (of("tcp-orphaned"), false, false));
        type Change = fn(&mut Numbers);
        let in_flight: [Change; 3] = [
            |numbers| numbers.packets_out = 1,
            |numbers| numbers.retransmits = 1,
            |numbers| numbers.snd_nxt = numbers.snd_nxt + 1,
        ];
        for change in in_flight {
            assert!(read(|_, numbers| change(numbers)).is_in_flight);
        }
    }
}
