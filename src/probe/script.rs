//! A peer that a test speaks for: send this, expect that, expect nothing, at instants in
//! milliseconds. Both halves of the core run as they do in a sweep, on real frames.

use crate::io::{PathId, PathInfo, RxFrame};
use crate::probe::evidence::Verdict;
use crate::probe::given::Given;
use crate::probe::host::{Host, Reading, Wire};
use crate::probe::matcher::Rejection;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use crate::probe::receiver::{Heard, Post, Receiver};
use crate::probe::sender::{Poll, Readings, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::probe::{Slot, TargetId};
use crate::time::Instant;
use crate::wire::icmp::emit_error;
use crate::wire::{
    Checksums, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Packet, Segment, SeqNumber,
    parse,
};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
/// The peer's initial sequence number: its first octet wraps.
const IRS: SeqNumber = SeqNumber(u32::MAX);
/// The peer and us.
const ENDS: [IpAddr; 2] = [IpAddr::V4(PEER), IpAddr::V4(SOURCE)];
const START: Instant = Instant::from_nanos(1_000_000_000);

/// Timers go off up to this much late, which would blur the instants.
const WHEEL_TICK: Duration = Duration::from_nanos(1 << 17);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A segment from the peer; numbers are relative to the initial ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Say {
    pub(crate) flags: u8,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) len: usize,
    pub(crate) wnd: u16,
    pub(crate) ttl: u8,
}

const NOTHING: Say = Say { flags: 0, seq: 0, ack: 0, len: 0, wnd: 1000, ttl: 60 };
pub(crate) const SYN_ACK: Say = Say { flags: 0x12, seq: 0, ack: 1, ..NOTHING };
pub(crate) const ACK: Say = Say { flags: 0x10, seq: 1, ack: 1, ..NOTHING };
pub(crate) const DATA: Say = Say { flags: 0x18, seq: 1, ack: 1, len: 10, ..NOTHING };
pub(crate) const FIN: Say = Say { flags: 0x11, seq: 1, ack: 1, ..NOTHING };
/// What a host without the connection answers to an ACK.
pub(crate) const RST: Say = Say { flags: 0x04, seq: 1, ..NOTHING };
/// What a host answers to a SYN for a port where nothing listens.
pub(crate) const REFUSAL: Say = Say { flags: 0x14, seq: 1, ack: 1, ..NOTHING };

/// The plan of the tests: the default one.
pub(crate) fn plan() -> Plan {
    Plan {
        keepalive: Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: 5 },
        probe_bytes: ProbeBytes::Auto,
        connect_timeout: Duration::from_secs(15),
        close: Close::Rst,
        rate_pps: None,
        rate_per_prefix_pps: None,
        seed: 1,
    }
}

/// The default plan after a rest of 10 s.
pub(crate) fn resting() -> Plan {
    let keepalive = Keepalive { idle: Duration::from_secs(10), ..plan().keepalive };
    Plan { keepalive, ..plan() }
}

pub(crate) struct Script {
    pub(crate) sender: Sender,
    receiver: Receiver,
    table: Arc<Table>,
    post: Arc<Post>,
    pub(crate) now: Instant,
    /// The receivers have heard nothing that came later than this.
    pub(crate) heard_until: Instant,
    log: Vec<String>,
    verdicts: Vec<Verdict>,
    /// Every frame sent.
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) port: u16,
    iss: SeqNumber,
    /// The peer and us.
    pub(crate) ends: [IpAddr; 2],
    /// The options of what the peer says.
    pub(crate) options: Options,
    pub(crate) done: bool,
    /// What the kernel says of the connection, if it is one of its own.
    reading: Option<Reading>,
}

impl Script {
    /// Begins a sweep of one peer behind a link without MAC addresses.
    pub(crate) fn new(plan: Plan) -> Self {
        Script::over(plan, LinkType::Ip)
    }

    pub(crate) fn over(plan: Plan, link: LinkType) -> Self {
        Script::begin(plan, link, MacAddr([2, 0, 0, 0, 0, 1]), Vec::new(), ENDS)
    }

    /// Begins a sweep through an interface that has no MAC address.
    pub(crate) fn without_mac(plan: Plan) -> Self {
        Script::begin(plan, LinkType::Ip, MacAddr::default(), Vec::new(), ENDS)
    }

    /// Begins a sweep of one flow that was given with these numbers; relative to them SND.UNA and
    /// RCV.NXT are 1.
    pub(crate) fn given(plan: Plan, change: impl FnOnce(&mut Given)) -> Self {
        let mut given = Given {
            local: (SOURCE, 40_000).into(),
            peer: (PEER, 80).into(),
            snd_una: SeqNumber(1001),
            snd_nxt: SeqNumber(1001),
            rcv_nxt: IRS + 1,
            wnd: 502,
            clock: None,
            obstacle: None,
            host: None,
        };
        change(&mut given);
        Script::begin(plan, LinkType::Ip, MacAddr([2, 0, 0, 0, 0, 1]), vec![given], ENDS)
    }

    /// Begins a sweep of one connection of this host's kernel, as `change` says that it was read at
    /// first and then, when the sweep began. Relative to its numbers SND.UNA and RCV.NXT are 1, and the
    /// peer has sent 100 octets.
    pub(crate) fn host(plan: Plan, change: impl FnOnce(&mut Host)) -> Self {
        let reading = Reading {
            at: START,
            obstacle: None,
            is_closed_by_peer: false,
            has_numbers: true,
            snd_una: SeqNumber(1001),
            snd_nxt: SeqNumber(1001),
            rcv_nxt: IRS + 1,
            rcv_wup: IRS + 1,
            wnd: 502,
            is_peer_window_zero: false,
            bytes_received: 100,
            is_in_flight: false,
            retransmits: 0,
            clock: None,
            tos: 0,
            last_ack_at: Instant::ZERO,
            wire: Wire::Same,
            reset: None,
        };
        let mut host = Host::new(7, reading);
        change(&mut host);
        let mut script = Script::given(plan, |given| given.host = Some(host));
        script.reading = Some(Reading { at: START, ..host.latest });
        script
    }

    /// The kernel is read if that was asked for, and says what it said the last time, but for `change`.
    #[track_caller]
    pub(crate) fn read(&mut self, change: impl FnOnce(&mut Reading)) {
        let reading = self.reading.as_mut().expect("a connection of the kernel's");
        reading.at = self.now;
        change(reading);
        let reading = *reading;
        self.deliver(Some(reading));
    }

    /// The kernel is read if that was asked for, and owns the connection no more.
    #[track_caller]
    pub(crate) fn read_nothing(&mut self) {
        self.deliver(None);
    }

    #[track_caller]
    fn deliver(&mut self, found: Option<Reading>) {
        let wanted = self.sender.wants_reading().expect("somebody asks for a reading");
        let readings = Readings { begun: wanted.max(self.now), flows: vec![(Slot(0), found)] };
        self.sender.handle_readings(&readings, self.now);
        assert_eq!(self.sender.wants_reading(), None);
        self.listen();
    }

    /// Returns what the guard was asked for since the last time: to hold, or to let go.
    pub(crate) fn holds(&mut self) -> Vec<bool> {
        std::iter::from_fn(|| self.sender.poll_hold()).map(|request| request.hold).collect()
    }

    /// The guard was asked to hold, and does, or does not.
    #[track_caller]
    pub(crate) fn hold(&mut self, is_held: bool) {
        assert_eq!(self.holds(), [true]);
        self.sender.handle_hold(Slot(0), is_held, self.now);
        self.listen();
    }

    /// Begins a sweep of one IPv6 peer.
    pub(crate) fn v6(plan: Plan) -> Self {
        let ends = [PEER, SOURCE].map(|end| IpAddr::from(end.to_ipv6_compatible()));
        Script::begin(plan, LinkType::Ip, MacAddr([2, 0, 0, 0, 0, 1]), Vec::new(), ends)
    }

    fn begin(
        plan: Plan,
        link: LinkType,
        mac: MacAddr,
        given: Vec<Given>,
        [peer, source]: [IpAddr; 2],
    ) -> Self {
        let (port, iss) = match given.first() {
            Some(given) => (given.local.port(), given.snd_una - 1),
            None => (0, SeqNumber(0)),
        };
        let family = if peer.is_ipv4() { Family::V4 } else { Family::V6 };
        let path = PathInfo { id: PathId(0), interface: "test0".into(), link, mac, mtu: 1500 };
        let table = Arc::new(Table::with_capacity(1, family, [1, 2]));
        let post = Arc::new(Post::new(1, 1, 64));
        let next_hops = HashSet::from([peer]);
        let receiver = Receiver::new(PathId(0), link, table.clone(), next_hops, post.clone());
        let sender = Sender::new(Start {
            plan,
            targets: vec![Target { id: TargetId(0), peer: (peer, 80).into(), hop: Some(HopId(0)) }],
            given,
            first_slot: 0,
            hops: vec![Hop { path: PathId(0), next_hop: peer, source }],
            paths: vec![path],
            resolve: true,
            source_ports: 61000..=65534,
            table: table.clone(),
            now: START,
        })
        .unwrap();
        let mut script = Script {
            sender,
            receiver,
            table,
            post,
            now: START,
            heard_until: Instant::FAR_FUTURE,
            log: Vec::new(),
            verdicts: Vec::new(),
            frames: Vec::new(),
            port,
            iss,
            ends: [peer, source],
            options: Options::default(),
            done: false,
            reading: None,
        };
        script.at(0);
        script
    }

    /// From here on everything is heard on the loopback, which is the path `path`.
    pub(crate) fn on_loopback(&mut self, path: PathId) {
        let (table, post) = (self.table.clone(), self.post.clone());
        let receiver = Receiver::new(path, LinkType::Ip, table, HashSet::new(), post);
        self.receiver = receiver.on_loopback();
    }

    /// Everything leaves through the loopback.
    pub(crate) fn loop_back(&mut self, path: PathId) {
        self.on_loopback(path);
        let sender = std::mem::replace(&mut self.sender, Script::new(plan()).sender);
        self.sender = sender.with_loopback(vec![path]);
    }

    /// The peer says this by another interface than the loopback.
    pub(crate) fn hear_elsewhere(&mut self, say: Say) {
        let (table, post) = (self.table.clone(), self.post.clone());
        let receiver = Receiver::new(PathId(0), LinkType::Ip, table, HashSet::new(), post);
        let loopback = std::mem::replace(&mut self.receiver, receiver);
        self.hear(say);
        self.receiver = loopback;
    }

    /// A sweep whose peer has answered the SYN after 10 ms and the first keepalive at 20 ms.
    pub(crate) fn confirmed(plan: Plan) -> Self {
        let mut script = Script::new(plan);
        script.at(10);
        script.hear(SYN_ACK);
        script.at(20);
        script.hear(ACK);
        script.sent(&["0 [S] 0", "10 [.] 1 ack 1", "10 [.] 0 ack 1"]);
        script
    }

    /// As [`confirmed`](Self::confirmed), with the first keepalive of the plan just sent, at 10,020 ms.
    pub(crate) fn probing() -> Self {
        Script::probing_under(resting())
    }

    pub(crate) fn probing_under(plan: Plan) -> Self {
        let mut script = Script::confirmed(plan);
        script.at(10_019);
        script.sent(&[]);
        script.at(10_020);
        script
    }

    pub(crate) fn millis(&self) -> u128 {
        self.now.since(START).as_millis()
    }

    /// Lets time pass up to `millis`, doing everything when it is due.
    pub(crate) fn at(&mut self, millis: u64) {
        let end = START + Duration::from_millis(millis);
        loop {
            self.sender.advance(self.now + WHEEL_TICK, self.heard_until);
            let wake = self.transmit();
            while let Some(verdict) = self.sender.poll_verdict() {
                self.verdicts.push(verdict);
            }
            if self.now >= end {
                return;
            }
            let next = self.now + MILLISECOND;
            let whole = wake.since(START).as_millis().min(u128::from(u32::MAX)) as u64;
            self.now = next.max(START + Duration::from_millis(whole)).min(end);
        }
    }

    fn transmit(&mut self) -> Instant {
        loop {
            match self.sender.poll_transmit(self.now) {
                Poll::Pace(until) | Poll::Wait(until) => return until,
                Poll::Done => {
                    self.done = true;
                    return Instant::FAR_FUTURE;
                }
                Poll::Transmit(due) => {
                    let mut frame = vec![0; 256];
                    let len = self.sender.emit(&due, &mut frame).unwrap();
                    frame.truncate(len);
                    self.record(frame);
                }
            }
        }
    }

    fn record(&mut self, frame: Vec<u8>) {
        let link = if matches!(frame[0] >> 4, 4 | 6) { LinkType::Ip } else { LinkType::Ethernet };
        let line = match parse(&frame, link, Checksums::Verify).unwrap() {
            Packet::Tcp(segment) => {
                if segment.flags.contains(Flags::SYN) {
                    (self.iss, self.port) = (segment.seq, segment.src_port);
                }
                let seq = segment.seq.distance(self.iss);
                let octets = match segment.payload.len() {
                    0 => String::new(),
                    len => format!("+{len}"),
                };
                let ack = match segment.flags.contains(Flags::ACK) {
                    true => format!(" ack {}", segment.ack.distance(IRS)),
                    false => String::new(),
                };
                format!("{} {} {seq}{octets}{ack}", self.millis(), segment.flags)
            }
            _ => format!("{} arp", self.millis()),
        };
        self.log.push(line);
        self.frames.push(frame);
    }

    /// Says that exactly this was sent since the last time it was asked.
    #[track_caller]
    pub(crate) fn sent(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.log), expected);
    }

    /// Says that exactly these verdicts were given since the last time it was asked.
    #[track_caller]
    pub(crate) fn said(&mut self, expected: &[&str]) -> Vec<Verdict> {
        let verdicts = std::mem::take(&mut self.verdicts);
        let said: Vec<_> = verdicts
            .iter()
            .map(|verdict| {
                let correction = if verdict.correction { "correction " } else { "" };
                format!("{correction}{}/{}", verdict.state.name(), verdict.reason.name())
            })
            .collect();
        assert_eq!(said, expected, "{verdicts:#?}");
        verdicts
    }

    /// Returns the verdicts given since the last time it was asked.
    pub(crate) fn said_all(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.verdicts)
    }

    /// The peer says this, and the sender hears of it at once.
    pub(crate) fn hear(&mut self, say: Say) {
        self.hear_together(&[say]);
    }

    /// The peer says all this before the sender hears of any of it.
    pub(crate) fn hear_together(&mut self, says: &[Say]) {
        for say in says {
            self.receive(*say, self.port);
        }
        self.listen();
    }

    /// The peer says this to a port of ours; the sender does not hear of it yet.
    pub(crate) fn receive(&mut self, say: Say, port: u16) {
        let payload = vec![0x55; say.len];
        let segment = Segment {
            ip: IpHeader { src: self.ends[0], dst: self.ends[1], ttl: say.ttl, id: 0 },
            src_port: 80,
            dst_port: port,
            seq: IRS + say.seq,
            ack: self.iss + say.ack,
            flags: Flags(say.flags),
            wnd: say.wnd,
            options: self.options,
            payload: &payload,
        };
        let mut frame = vec![0; 256];
        let len = segment.emit(&LinkHeader::Ip, &mut frame).unwrap();
        self.receive_frame(&frame[..len]);
    }

    fn receive_frame(&mut self, bytes: &[u8]) {
        let frame = RxFrame { bytes, at: self.now, checksums: Checksums::Verify };
        self.receiver.handle_frame(frame).unwrap();
    }

    /// The sender hears of what was received.
    pub(crate) fn listen(&mut self) {
        while let Some(heard) = self.post.pop(0) {
            self.sender.handle_heard(heard, self.now);
        }
        let now = self.now.since(START).as_millis() as u64;
        self.at(now);
    }

    /// The next hop answers ARP.
    pub(crate) fn arp_reply(&mut self) {
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        let heard = Heard::Neighbour { path: PathId(0), ip: PEER.into(), mac };
        self.sender.handle_heard(heard, self.now);
        self.listen();
    }

    /// A router reports an error about the frame that was sent as number `index`.
    pub(crate) fn icmp(&mut self, icmp_type: u8, code: u8, index: usize) {
        let router = Ipv4Addr::new(10, 98, 0, 254);
        let [_, dst] = self.ends;
        let src = match dst {
            IpAddr::V4(_) => IpAddr::from(router),
            IpAddr::V6(_) => IpAddr::from(router.to_ipv6_compatible()),
        };
        let ip = IpHeader { src, dst, ttl: 63, id: 0 };
        let mut frame = vec![0; 256];
        let quoted = &self.frames[index];
        let len = emit_error(&ip, icmp_type, code, quoted, &LinkHeader::Ip, &mut frame).unwrap();
        self.receive_frame(&frame[..len]);
        self.listen();
    }

    /// The number of the frame that was sent last.
    pub(crate) fn last(&self) -> usize {
        self.frames.len() - 1
    }

    /// Frames counted under `rejection` by either half.
    pub(crate) fn rejected(&self, rejection: Rejection) -> u64 {
        self.receiver.counts().rejected[rejection as usize]
            + self.sender.rejected()[rejection as usize]
    }

    /// The windows of the frames sent, in order.
    pub(crate) fn windows(&self) -> Vec<u16> {
        let window = |frame: &Vec<u8>| u16::from_be_bytes([frame[34], frame[35]]);
        self.frames.iter().map(window).collect()
    }
}
