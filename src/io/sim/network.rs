//! The network itself: moves segments between the prober and the peers as time goes by.

use super::agenda::Agenda;
use super::config::{Behaviour, ConfigError, Event, Fault, Impairment, NetworkConfig, Phase};
use super::counters::{Connections, Counters};
use super::faults::{Path, Weather};
use super::link::Direction;
use super::peer::{Connection, Established, Next, TcpState, Turn, cookie, reset, syn_ack};
use super::segment::{Seg, Tuple};
use crate::io::RxFrame;
use crate::time::Instant;
use crate::wire::{
    self, Arp, ArpOp, Checksums, EmitError, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Nd,
    NdKind, Packet, SeqNumber, icmp, nd,
};
use ipnet::IpNet;
use pnet::packet::ethernet::EthernetPacket;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// TCP_RTO_MIN; the simulated peers add the link's round trip.
const RTO_MIN: Duration = Duration::from_millis(200);
/// Octets of a packet that a router quotes at most: what keeps the error within 576 (RFC 1812).
const QUOTE: usize = 548;
const FRAME: usize = 2048;
const ICMP_TTL: u8 = 64;

/// Returns the MAC address of a simulated host or router.
pub fn mac_of(host: IpAddr) -> MacAddr {
    match host {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            MacAddr([0x02, 0x04, a, b, c, d])
        }
        IpAddr::V6(ip) => {
            let [.., a, b, c, d] = ip.octets();
            MacAddr([0x02, 0x06, a, b, c, d])
        }
    }
}

/// A frame on its way.
pub(super) enum Flight {
    ToPeer(Seg),
    ToProber(Seg),
    // Boxed, being rare: every queued frame is as large as the largest kind.
    Report(Box<Report>),
    Solicitation(Asked),
    Advertisement(Asked),
}

/// Who asks for whose MAC address, by ARP or ND; the answer goes back to the same.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    host: IpAddr,
    by: IpAddr,
    by_mac: MacAddr,
}

/// An ICMP error.
#[derive(Clone)]
pub(super) struct Report {
    pub(super) quoted: Seg,
    pub(super) from: IpAddr,
    pub(super) icmp_type: u8,
    pub(super) code: u8,
    pub(super) short_quote: bool,
}

type ConnectionMap = HashMap<Tuple, Connection, BuildHasherDefault<DefaultHasher>>;

/// A simulated network with the prober's end of it in hand.
pub struct Network {
    pub(super) config: NetworkConfig,
    out: Direction,
    back: Direction,
    /// Draws initial sequence numbers and forgeries.
    pub(super) rng: fastrand::Rng,
    pub(super) connections: ConnectionMap,
    flights: Agenda<Flight>,
    timers: Agenda<Tuple>,
    /// Counts what was put on an agenda, so that ties have an order.
    order: u64,
    /// Index of the first event that has not happened yet.
    next_event: usize,
    /// The lasting faults, oldest first.
    pub(super) faults: Vec<(IpNet, Fault)>,
    /// When the routers' ICMP budget will be whole again.
    pub(super) icmp_busy_until: Instant,
    pub(super) counters: Counters,
    replies: Vec<Seg>,
    frame: Box<[u8; FRAME]>,
    quote: Box<[u8; FRAME]>,
}

impl Network {
    /// Builds the network; its time starts at [`Instant::ZERO`].
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration makes no sense.
    pub fn new(mut config: NetworkConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        config.events.sort_by_key(|event| event.at_ms);
        config.link.sort_by_key(|phase| phase.from_ms);
        let mut seeds = fastrand::Rng::with_seed(config.seed);
        Ok(Network {
            out: Direction::new(seeds.u64(..)),
            back: Direction::new(seeds.u64(..)),
            rng: fastrand::Rng::with_seed(seeds.u64(..)),
            config,
            connections: ConnectionMap::default(),
            flights: Agenda::new(),
            timers: Agenda::new(),
            order: 0,
            next_event: 0,
            faults: Vec::new(),
            icmp_busy_until: Instant::ZERO,
            counters: Counters::default(),
            replies: Vec::new(),
            frame: Box::new([0; FRAME]),
            quote: Box::new([0; FRAME]),
        })
    }

    /// Takes an Ethernet frame that the prober sends at `now`.
    pub fn transmit(&mut self, now: Instant, frame: &[u8]) {
        self.counters.sent += 1;
        let flight = match wire::parse(frame, LinkType::Ethernet, Checksums::Verify) {
            Ok(Packet::Tcp(segment)) => {
                let next_hop = mac_of(self.next_hop(segment.ip.dst));
                if !is_for(next_hop, frame) {
                    self.counters.misaddressed += 1;
                    return;
                }
                Flight::ToPeer(Seg::from_prober(&segment))
            }
            Ok(Packet::Arp(arp)) if arp.op == ArpOp::Request => Flight::Solicitation(Asked {
                host: arp.target_ip.into(),
                by: arp.sender_ip.into(),
                by_mac: arp.sender_mac,
            }),
            Ok(Packet::Nd(Nd { kind: NdKind::Solicitation, src, target, mac: Some(mac), dst })) => {
                // Nobody else's network card lets it in.
                if dst != nd::solicited_node(target) || !is_for(nd::multicast_mac(dst), frame) {
                    self.counters.misaddressed += 1;
                    return;
                }
                Flight::Solicitation(Asked { host: target.into(), by: src.into(), by_mac: mac })
            }
            Ok(_) => {
                self.counters.ignored += 1;
                return;
            }
            Err(_) => {
                self.counters.malformed += 1;
                return;
            }
        };
        let arrivals = self.out.send(&phase(&self.config.link, now).out);
        self.counters.lost_out += u64::from(arrivals[0].is_none());
        self.schedule(now, arrivals, flight);
    }

    /// Returns when the network next has something to do: no frame arrives before.
    ///
    /// It need not bring a frame: a peer may only have given up a connection.
    pub fn next_arrival(&self) -> Option<Instant> {
        let event = self.config.events.get(self.next_event..).and_then(|rest| {
            // Lasting faults bring no frame of themselves.
            rest.iter().find(|event| !event.what.is_lasting()).map(due)
        });
        let flight = self.flights.first().map(|(at, _)| at);
        let timer = self.timers.first().map(|(at, _)| at);
        [event, flight, timer].into_iter().flatten().min()
    }

    /// Lets time pass up to `now`, hands over the frames that arrive, in order, and returns how
    /// many they were.
    pub fn poll_receive(&mut self, now: Instant, sink: &mut dyn FnMut(RxFrame<'_>)) -> usize {
        let before = self.counters.received;
        loop {
            let flight = self.flights.first();
            let timer = self.timers.first();
            let at = [flight, timer].into_iter().flatten().min().map(|(at, _)| at);
            if let Some(event) = self.config.events.get(self.next_event)
                && due(event) <= at.unwrap_or(now).min(now)
            {
                let event = event.clone();
                self.next_event += 1;
                self.befall(&event);
                continue;
            }
            if at.is_none_or(|at| at > now) {
                break;
            }
            if timer.is_some_and(|timer| flight.is_none_or(|flight| timer < flight)) {
                if let Some(((at, _), tuple)) = self.timers.pop() {
                    self.on_timer(at, tuple);
                }
            } else if let Some(((at, _), flight)) = self.flights.pop() {
                self.on_arrival(at, flight, sink);
            }
        }
        self.forget_stale_timers();
        (self.counters.received - before) as usize
    }

    /// Returns what has happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts the connections that the peers hold.
    pub fn connections(&self) -> Connections {
        let mut count = Connections::default();
        for connection in self.connections.values() {
            *match connection.state {
                TcpState::SynRecv => &mut count.syn_recv,
                TcpState::Established => &mut count.established,
                TcpState::CloseWait => &mut count.close_wait,
                TcpState::LastAck => &mut count.last_ack,
                TcpState::FinWait1 => &mut count.fin_wait1,
                TcpState::FinWait2 => &mut count.fin_wait2,
                TcpState::Closing => &mut count.closing,
                TcpState::TimeWait => &mut count.time_wait,
            } += 1;
        }
        count
    }

    /// Returns where the peer's end of a connection stands, if it knows the connection.
    pub fn state(&self, peer: SocketAddr, prober: SocketAddr) -> Option<TcpState> {
        self.connections.get(&Tuple::new(peer, prober)).map(|connection| connection.state)
    }

    /// Gives a peer a connection without a handshake; says whether there is such a peer.
    pub fn establish(&mut self, flow: &Established) -> bool {
        let Some(index) = self.group_of(flow.peer.ip()) else { return false };
        let window = self.config.peers.get(usize::from(index)).map_or(0, |group| group.window);
        let connection = Connection::establish(flow, index, window);
        self.connections.insert(Tuple::new(flow.peer, flow.prober), connection);
        true
    }

    fn next_hop(&self, host: IpAddr) -> IpAddr {
        match self.config.on_link {
            Some(prefix) if prefix.contains(&host) => host,
            _ => self.config.gateway_for(host),
        }
    }

    fn group_of(&self, host: IpAddr) -> Option<u16> {
        let index = self.config.peers.iter().position(|group| group.prefix.contains(&host))?;
        u16::try_from(index).ok()
    }

    fn schedule(&mut self, now: Instant, arrivals: [Option<Duration>; 2], flight: Flight) {
        if let [Some(first), second] = arrivals {
            if let Some(second) = second {
                self.counters.duplicated += 1;
                self.put(now + second, flight.duplicate());
            }
            self.put(now + first, flight);
        }
    }

    fn put(&mut self, at: Instant, flight: Flight) {
        self.order += 1;
        self.flights.add(at, self.order, flight);
    }

    pub(super) fn send_back(&mut self, at: Instant, flight: Flight) {
        let arrivals = self.back.send(&phase(&self.config.link, at).back);
        self.counters.lost_back += u64::from(arrivals[0].is_none());
        self.schedule(at, arrivals, flight);
    }

    fn on_arrival(&mut self, at: Instant, flight: Flight, sink: &mut dyn FnMut(RxFrame<'_>)) {
        match flight {
            Flight::ToPeer(seg) => self.on_segment(at, &seg),
            Flight::Solicitation(asked) => self.on_solicitation(at, asked),
            _ => {
                // Every payload is bounded (ConfigError::Segment), so a frame always fits.
                if let Ok(len) = self.emit(&flight)
                    && let Some(bytes) = self.frame.get(..len)
                {
                    self.counters.received += 1;
                    sink(RxFrame { bytes, at, checksums: Checksums::Verify });
                }
            }
        }
    }

    fn emit(&mut self, flight: &Flight) -> Result<usize, EmitError> {
        let from = |host| LinkHeader::Ethernet {
            src: mac_of(host),
            dst: self.config.prober_mac,
            vlan: None,
        };
        match flight {
            Flight::ToProber(seg) => {
                seg.emit_from_peer(&from(self.next_hop(seg.tuple.peer)), &mut self.frame[..])
            }
            Flight::Report(report) => {
                let len = report.quoted.emit_as_forwarded(&mut self.quote[..])?;
                let header = if report.quoted.tuple.peer.is_ipv4() { 20 } else { 40 };
                let limit = if report.short_quote { header + 8 } else { QUOTE };
                let quoted = self.quote.get(..len.min(limit)).unwrap_or_default();
                let ip = IpHeader {
                    src: report.from,
                    dst: report.quoted.tuple.prober,
                    ttl: ICMP_TTL,
                    id: 0,
                };
                let link = from(self.next_hop(report.from));
                let frame = &mut self.frame[..];
                icmp::emit_error(&ip, report.icmp_type, report.code, quoted, &link, frame)
            }
            Flight::Advertisement(Asked { host, by, by_mac }) => {
                let (link, frame, mac) = (from(*host), &mut self.frame[..], mac_of(*host));
                match (*host, *by) {
                    (IpAddr::V4(sender_ip), IpAddr::V4(target_ip)) => {
                        let (op, target_mac) = (ArpOp::Reply, *by_mac);
                        Arp { op, sender_mac: mac, sender_ip, target_mac, target_ip }
                            .emit(&link, frame)
                    }
                    (IpAddr::V6(target), IpAddr::V6(dst)) => {
                        let router = target == self.config.gateway_v6;
                        let kind =
                            NdKind::Advertisement { router, solicited: true, overrides: true };
                        Nd { kind, src: target, dst, target, mac: Some(mac) }.emit(&link, frame)
                    }
                    _ => Err(EmitError::MixedFamilies),
                }
            }
            // What goes to a peer never leaves the simulation as bytes.
            Flight::ToPeer(_) | Flight::Solicitation(_) => Ok(0),
        }
    }

    fn on_solicitation(&mut self, at: Instant, asked: Asked) {
        let host = asked.host;
        let answers = if host == self.config.gateway_for(host) {
            self.weather(host).arp
        } else {
            let weather = self.weather(host);
            let group = self.group_of(host).and_then(|at| self.config.peers.get(usize::from(at)));
            self.next_hop(host) == host
                && group.is_some_and(|group| group.arp && group.behaviour != Behaviour::Down)
                && weather.arp
                && !weather.down
        };
        if !answers {
            self.counters.ignored += 1;
            return;
        }
        self.send_back(at, Flight::Advertisement(asked));
    }

    fn on_segment(&mut self, at: Instant, seg: &Seg) {
        let weather = self.weather(seg.tuple.peer);
        if let Some((how, copies)) = weather.forge {
            for copy in 0..copies {
                self.forge(at, seg, how, copy);
            }
        }
        match weather.path {
            Path::Drops { out: true, .. } => {
                self.counters.lost_out += 1;
                return;
            }
            Path::Reports { icmp_type, code, from, short_quote } => {
                self.report(at, seg, (icmp_type, code), from, short_quote);
                return;
            }
            Path::Loops { from } => {
                // RFC 792, RFC 4443 §3.3.
                let icmp_type = if seg.tuple.peer.is_ipv4() { 11 } else { 3 };
                self.report(at, seg, (icmp_type, 0), from, false);
                return;
            }
            Path::Resets { ttl } => {
                if !seg.has(Flags::RST) {
                    self.send_back(at, Flight::ToProber(reset(seg, ttl)));
                }
                return;
            }
            Path::Whole | Path::Drops { .. } => {}
        }
        if weather.down {
            self.counters.ignored += 1;
            return;
        }
        match self.turn(at, seg.tuple, |connection, turn| connection.on_segment(seg, turn)) {
            Some(Next::Keep | Next::Forget) => {}
            Some(Next::Listener | Next::Renew) | None => self.listen(at, seg, &weather),
        }
        self.flush(at, &weather);
    }

    fn on_timer(&mut self, at: Instant, tuple: Tuple) {
        if self.connections.get(&tuple).is_some_and(|connection| connection.timer == at) {
            self.turn(at, tuple, Connection::on_timer);
            let weather = self.weather(tuple.peer);
            self.flush(at, &weather);
        }
    }

    fn forget_stale_timers(&mut self) {
        while let Some(((at, _), tuple)) = self.timers.peek() {
            if self.connections.get(tuple).is_some_and(|connection| connection.timer == at) {
                return;
            }
            self.timers.pop();
        }
    }

    /// Lets a connection act, if the peer has it.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        tuple: Tuple,
        act: impl FnOnce(&mut Connection, &mut Turn<'_>) -> Next,
    ) -> Option<Next> {
        let connection = self.connections.get_mut(&tuple)?;
        let group = self.config.peers.get(usize::from(connection.group))?;
        let armed = connection.timer;
        let mut turn = Turn {
            now,
            tuple,
            group,
            rto: rto(phase(&self.config.link, now)),
            out: &mut self.replies,
            counters: &mut self.counters,
        };
        let next = act(connection, &mut turn);
        if matches!(next, Next::Forget | Next::Renew) {
            self.connections.remove(&tuple);
        } else if connection.timer != armed && connection.timer != Instant::FAR_FUTURE {
            self.order += 1;
            self.timers.add(connection.timer, self.order, tuple);
        }
        Some(next)
    }

    /// Lets the host answer a segment that belongs to no connection.
    fn listen(&mut self, now: Instant, seg: &Seg, weather: &Weather) {
        let Some(index) = self.group_of(seg.tuple.peer) else {
            self.counters.ignored += 1;
            return;
        };
        let Some(group) = self.config.peers.get(usize::from(index)) else { return };
        if matches!(group.behaviour, Behaviour::Down | Behaviour::Silent) {
            self.counters.ignored += 1;
            return;
        }
        if seg.has(Flags::RST) {
            return;
        }
        let port = seg.tuple.peer_port;
        let listens = weather.listening
            && group.behaviour != Behaviour::Closed
            && (group.ports.is_empty() || group.ports.contains(&port));
        if !listens {
            self.replies.push(reset(seg, group.ttl));
            return;
        }
        let mut turn = Turn {
            now,
            tuple: seg.tuple,
            group,
            rto: rto(phase(&self.config.link, now)),
            out: &mut self.replies,
            counters: &mut self.counters,
        };
        if seg.has(Flags::ACK) {
            if group.behaviour == Behaviour::SynCookies
                && !seg.has(Flags::SYN)
                && cookie(self.config.seed, &seg.tuple, seg.seq - 1) == seg.ack - 1
            {
                self.accept_cookie(now, seg);
            } else {
                turn.out.push(reset(seg, group.ttl));
            }
            return;
        }
        if !seg.has(Flags::SYN) || seg.has(Flags::FIN) {
            return;
        }
        match group.behaviour {
            Behaviour::SynCookies => {
                let iss = cookie(self.config.seed, &seg.tuple, seg.seq);
                turn.out.push(syn_ack(&turn, iss, seg.seq + 1, None));
            }
            Behaviour::ResetsAfterSynAck => {
                let iss = SeqNumber(self.rng.u32(..));
                turn.out.push(syn_ack(&turn, iss, seg.seq + 1, None));
                let flags = Flags::RST.union(Flags::ACK);
                let mut rst = Seg::from_peer(seg.tuple, flags, iss + 1, seg.seq + 1);
                rst.ttl = group.ttl;
                turn.out.push(rst);
            }
            _ => {
                let iss = SeqNumber(self.rng.u32(..));
                let connection = Connection::open(seg, index, iss, &mut turn);
                self.order += 1;
                self.timers.add(connection.timer, self.order, seg.tuple);
                self.connections.insert(seg.tuple, connection);
            }
        }
    }

    /// Sets up the connection that a valid cookie proves, and lets it take the segment.
    fn accept_cookie(&mut self, now: Instant, seg: &Seg) {
        let flow = Established {
            peer: SocketAddr::new(seg.tuple.peer, seg.tuple.peer_port),
            prober: SocketAddr::new(seg.tuple.prober, seg.tuple.prober_port),
            snd_una: seg.seq,
            rcv_nxt: seg.ack,
            tsval: None,
        };
        if self.establish(&flow) {
            self.turn(now, seg.tuple, |connection, turn| {
                connection.accept(turn);
                connection.on_segment(seg, turn)
            });
        }
    }

    /// Sends what peers have just answered.
    pub(super) fn flush(&mut self, at: Instant, weather: &Weather) {
        let mut replies = std::mem::take(&mut self.replies);
        for seg in replies.drain(..) {
            let repeats = self
                .group_of(seg.tuple.peer)
                .and_then(|index| self.config.peers.get(usize::from(index)))
                .map_or(0, |group| group.repeat_replies);
            for _ in 0..=repeats {
                if weather.drops_back() {
                    self.counters.lost_back += 1;
                } else {
                    self.send_back(at, Flight::ToProber(seg));
                }
            }
        }
        self.replies = replies;
    }
}

/// Says whether an Ethernet frame is addressed to `mac`.
fn is_for(mac: MacAddr, frame: &[u8]) -> bool {
    EthernetPacket::new(frame).is_some_and(|eth| eth.get_destination().octets() == mac.0)
}

pub(super) fn due(event: &Event) -> Instant {
    Instant::ZERO + Duration::from_millis(event.at_ms)
}

fn phase(phases: &[Phase], at: Instant) -> &Phase {
    static PERFECT: Phase = Phase { from_ms: 0, out: Impairment::NONE, back: Impairment::NONE };
    let begun = |phase: &&Phase| Instant::ZERO + Duration::from_millis(phase.from_ms) <= at;
    phases.iter().rev().find(begun).unwrap_or(&PERFECT)
}

fn rto(phase: &Phase) -> Duration {
    RTO_MIN + phase.out.usual_delay() + phase.back.usual_delay()
}

impl Flight {
    fn duplicate(&self) -> Flight {
        match self {
            Flight::ToPeer(seg) => Flight::ToPeer(*seg),
            Flight::ToProber(seg) => Flight::ToProber(*seg),
            Flight::Report(report) => Flight::Report(report.clone()),
            Flight::Solicitation(asked) => Flight::Solicitation(*asked),
            Flight::Advertisement(asked) => Flight::Advertisement(*asked),
        }
    }
}
