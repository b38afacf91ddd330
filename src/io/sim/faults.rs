//! What befalls hosts and paths: faults that last, those that happen once, and forged replies.

use super::config::{Event, Fault, Forgery, PeerGroup};
use super::network::{Flight, Network, Report, due};
use super::peer::{Connection, Next, TcpState, Turn};
use super::segment::{Seg, Tuple};
use crate::time::Instant;
use crate::wire::{Flags, SeqNumber};
use std::net::IpAddr;
use std::time::Duration;

/// TTL of what an attacker forges: that of an ordinary Linux host.
const FORGED_TTL: u8 = 64;

/// What the lasting faults make of a host and of the path to it.
#[derive(Clone, Copy)]
pub(super) struct Weather {
    pub(super) path: Path,
    pub(super) down: bool,
    pub(super) listening: bool,
    pub(super) arp: bool,
    pub(super) forge: Option<(Forgery, u8)>,
}

#[derive(Clone, Copy)]
pub(super) enum Path {
    Whole,
    Drops { out: bool, back: bool },
    Reports { icmp_type: u8, code: u8, from: Option<IpAddr>, short_quote: bool },
    Loops { from: Option<IpAddr> },
    Resets { ttl: u8 },
}

impl Weather {
    const FAIR: Weather =
        Weather { path: Path::Whole, down: false, listening: true, arp: true, forge: None };

    pub(super) fn drops_back(&self) -> bool {
        matches!(self.path, Path::Drops { back: true, .. })
    }

    /// Adds a lasting fault.
    fn add(&mut self, fault: &Fault) {
        match *fault {
            Fault::Up => *self = Weather::FAIR,
            Fault::Down => self.down = true,
            Fault::Reboot { listening } => (self.down, self.listening) = (false, listening),
            Fault::PathDrop { out, back } => self.path = Path::Drops { out, back },
            Fault::Icmp { icmp_type, code, from, short_quote } => {
                self.path = Path::Reports { icmp_type, code, from, short_quote };
            }
            Fault::TtlExceeded { from } => self.path = Path::Loops { from },
            Fault::FirewallReset { ttl } => self.path = Path::Resets { ttl },
            Fault::ArpSilent => self.arp = false,
            Fault::Forge { how, copies } => self.forge = Some((how, copies)),
            Fault::ZeroWindow
            | Fault::OpenWindow
            | Fault::CloseFin
            | Fault::CloseRst
            | Fault::SendData { .. } => {}
        }
    }
}

impl Network {
    pub(super) fn weather(&self, host: IpAddr) -> Weather {
        let mut weather = Weather::FAIR;
        for (_, fault) in self.faults.iter().filter(|(prefix, _)| prefix.contains(&host)) {
            weather.add(fault);
        }
        weather
    }

    pub(super) fn report(
        &mut self,
        at: Instant,
        seg: &Seg,
        (icmp_type, code): (u8, u8),
        from: Option<IpAddr>,
        short_quote: bool,
    ) {
        if let Some(rate) = self.config.icmp_per_second {
            let busy_until = self.icmp_busy_until.max(at);
            let interval = Duration::from_secs(1).checked_div(rate).unwrap_or(Duration::MAX);
            if busy_until.since(at) + interval.min(Duration::from_secs(2)) > Duration::from_secs(1)
            {
                self.counters.icmp_limited += 1;
                return;
            }
            self.icmp_busy_until = busy_until + interval;
        }
        self.counters.icmp += 1;
        let from = from.unwrap_or(self.config.gateway_for(seg.tuple.peer));
        let report = Report { quoted: *seg, from, icmp_type, code, short_quote };
        self.send_back(at, Flight::Report(Box::new(report)));
    }

    fn random_seq(&mut self) -> SeqNumber {
        SeqNumber(self.rng.u32(..))
    }

    /// Forges one reply to `seg`: in turn RST, acknowledgment, RST with ACK, ICMP error.
    pub(super) fn forge(&mut self, at: Instant, seg: &Seg, how: Forgery, copy: u8) {
        let (beside_seq, beside_ack, quoted_seq) = match how {
            Forgery::Random => (self.random_seq(), self.random_seq(), self.random_seq()),
            // SEG.SEQ and SEG.SEQ + 1 are what the prober may rightly see acknowledged or quoted.
            Forgery::OffByOne if self.rng.bool() => (seg.ack - 1, seg.seq - 1, seg.seq + 2),
            Forgery::OffByOne => (seg.ack + 1, seg.seq + 2, seg.seq + 2),
        };
        self.counters.forged += 1;
        let is_syn = seg.has(Flags::SYN);
        let mut forged = match copy % 4 {
            0 => Seg::from_peer(seg.tuple, Flags::RST, beside_seq, SeqNumber(0)),
            1 if is_syn => {
                let flags = Flags::SYN.union(Flags::ACK);
                Seg::from_peer(seg.tuple, flags, self.random_seq(), beside_ack)
            }
            1 => Seg::from_peer(seg.tuple, Flags::ACK, seg.ack, beside_ack),
            2 if is_syn => {
                let flags = Flags::RST.union(Flags::ACK);
                Seg::from_peer(seg.tuple, flags, SeqNumber(0), beside_ack)
            }
            2 => {
                let flags = Flags::RST.union(Flags::ACK);
                Seg::from_peer(seg.tuple, flags, beside_seq, seg.seq + 1)
            }
            _ => {
                let quoted = Seg { seq: quoted_seq, ..*seg };
                let (icmp_type, code) = if seg.tuple.peer.is_ipv4() { (3, 1) } else { (1, 3) };
                let from = seg.tuple.peer;
                let report = Report { quoted, from, icmp_type, code, short_quote: false };
                self.send_back(at, Flight::Report(Box::new(report)));
                return;
            }
        };
        forged.ttl = FORGED_TTL;
        forged.wnd = seg.wnd;
        self.send_back(at, Flight::ToProber(forged));
    }

    pub(super) fn befall(&mut self, event: &Event) {
        let Event { prefix, what, .. } = event;
        match what {
            Fault::Down | Fault::Reboot { .. } => {
                self.connections.retain(|tuple, _| !prefix.contains(&tuple.peer));
            }
            Fault::Up => {
                self.faults.retain(|(faulty, _)| !prefix.contains(faulty));
            }
            _ => {}
        }
        if what.is_lasting() {
            self.faults.push((*prefix, *what));
            return;
        }
        let mut tuples: Vec<Tuple> =
            self.connections.keys().filter(|tuple| prefix.contains(&tuple.peer)).copied().collect();
        // The map's order is no order to rely on.
        tuples.sort_unstable();
        for tuple in tuples {
            self.turn(due(event), tuple, |connection, turn| apply(what, connection, turn));
            let weather = self.weather(tuple.peer);
            self.flush(due(event), &weather);
        }
    }
}

/// Lets an application do what a momentary fault says.
fn apply(what: &Fault, connection: &mut Connection, turn: &mut Turn<'_>) -> Next {
    if !matches!(connection.state, TcpState::Established | TcpState::CloseWait) {
        return Next::Keep;
    }
    match what {
        Fault::ZeroWindow => connection.set_window(0, turn),
        Fault::OpenWindow => connection.set_window(open_window(turn.group), turn),
        Fault::CloseFin => connection.close(turn),
        Fault::SendData { octets, segments } => {
            (0..*segments).for_each(|_| connection.send_data(*octets, turn));
        }
        Fault::CloseRst => {
            connection.abort(turn);
            return Next::Forget;
        }
        _ => {}
    }
    Next::Keep
}

/// A group that starts with a closed window opens it like any other host.
fn open_window(group: &PeerGroup) -> u16 {
    if group.window > 0 { group.window } else { 64_240 }
}
