//! What was seen: the facts behind a verdict.
#![forbid(unsafe_code)]

use crate::probe::TargetId;
use crate::probe::classify::{Reason, State};
use crate::wire::{IcmpKind, SeqNumber};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// One thing that was seen of a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// What it was.
    pub kind: Seen,
    /// When, counted from the first of the probes that the verdict counts.
    pub at: Duration,
    /// TTL or hop limit of the frame, where there was one.
    pub ttl: Option<u8>,
    /// SEG.SEQ relative to the peer's initial sequence number (absolute while that is unknown). Of
    /// a flow that was given, RCV.NXT counts as 1.
    pub seg_seq: Option<SeqNumber>,
    /// SEG.ACK relative to our initial sequence number. Of a flow that was given, SND.UNA counts
    /// as 1.
    pub seg_ack: Option<SeqNumber>,
    /// Who sent it, where that is not the peer itself (the reporter of an ICMP error).
    pub from: Option<IpAddr>,
}

impl Sighting {
    /// Returns one that no frame brought, at no instant that matters.
    pub const fn unframed(kind: Seen) -> Sighting {
        Sighting { kind, at: Duration::ZERO, ttl: None, seg_seq: None, seg_ack: None, from: None }
    }
}

/// The kinds of things that can be seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Seen {
    /// SYN-ACK to our SYN.
    SynAck,
    /// An acceptable ACK.
    Ack,
    /// An acceptable ACK that advertises a zero window.
    ZeroWindow,
    /// Data from the peer.
    Data,
    /// FIN from the peer.
    Fin,
    /// RST to our SYN.
    RstToSyn,
    /// SYN-ACK to a SYN that asked whether the host of a silent connection is there.
    FreshSynAck,
    /// RST to such a SYN.
    FreshRst,
    /// RST that answers a probe.
    RstToProbe,
    /// RST that no probe of ours drew.
    Rst,
    /// An ICMP error that quotes a probe: kind, type, code.
    Icmp(IcmpKind, u8, u8),
    /// ARP or ND for the next hop went unanswered.
    NeighbourFailed,
    /// The kernel has no route, or one that says unreachable, prohibit or blackhole.
    NoRoute,
    /// Frames were lost on our own side while this flow waited.
    ObserverDrops,
    /// Our own threads were starved, the interface was down, or the clock stood still.
    ObserverFault,
    /// Frames that were due could not be sent.
    NotSent,
    /// The interface that this flow uses was down, without carrier, or gone.
    LinkDown,
    /// This host lost the address that this flow is from.
    AddressLost,
    /// The kernel's route to the peer is another one than when the sweep began.
    RouteChanged,
    /// The run was interrupted before a verdict.
    Interrupted,
    /// The flow was given with data in flight (SND.NXT beyond SND.UNA).
    DataInFlight,
    /// The flow was given, and is one of this host's kernel.
    KernelOwned,
    /// The flow was given with a local address that is not of this host.
    NotLocal,
    /// The target's name has no address.
    Unresolved,
    /// This host's kernel has data of the flow in flight; so many timeouts in a row.
    InFlight(u8),
    /// The kernel's socket is in a state in which there is nothing to keep alive: its name, as
    /// `tcp-time-wait`.
    TcpState(&'static str),
    /// The segments of the kernel's socket are signed (TCP-MD5, TCP-AO), and we have no key.
    Signed,
    /// The kernel's socket was there at first, and is no more.
    SocketGone,
    /// The kernel could not be asked again about its socket.
    NotRead,
    /// The guard could not be told to keep resets from the kernel's socket.
    NotHeld,
    /// This host may translate the connection's addresses in a way that is not known.
    TranslationUnknown,
    /// The kernel says that an acknowledgment came.
    KernelAck,
    /// The kernel says that data came.
    KernelData,
    /// The kernel says that a FIN came.
    KernelFin,
    /// The kernel was about to hand a RST that answers a probe to the socket, when it was held back.
    KernelRst,
}

impl Seen {
    /// Returns the name used in records: `syn-ack`, `ack`, `icmp-host`, …
    pub fn name(&self) -> &'static str {
        match self {
            Seen::SynAck => "syn-ack",
            Seen::Ack => "ack",
            Seen::ZeroWindow => "zero-window",
            Seen::Data => "data",
            Seen::Fin => "fin",
            Seen::RstToSyn => "rst-to-syn",
            Seen::FreshSynAck => "fresh-syn-ack",
            Seen::FreshRst => "fresh-rst",
            Seen::RstToProbe => "rst-to-probe",
            Seen::Rst => "rst",
            Seen::Icmp(kind, ..) => match kind {
                IcmpKind::Net => "icmp-net",
                IcmpKind::Host => "icmp-host",
                IcmpKind::Port => "icmp-port",
                IcmpKind::Admin => "icmp-admin",
                IcmpKind::TimeExceeded => "icmp-ttl",
                IcmpKind::TooBig => "icmp-too-big",
                IcmpKind::Other => "icmp-other",
            },
            Seen::NeighbourFailed => "neighbour-failed",
            Seen::NoRoute => "no-route",
            Seen::ObserverDrops => "observer-drops",
            Seen::ObserverFault => "observer-fault",
            Seen::NotSent => "not-sent",
            Seen::LinkDown => "link-down",
            Seen::AddressLost => "address-lost",
            Seen::RouteChanged => "route-changed",
            Seen::Interrupted => "interrupted",
            Seen::DataInFlight => "data-in-flight",
            Seen::KernelOwned => "kernel-owned",
            Seen::NotLocal => "not-local",
            Seen::Unresolved => "unresolved",
            Seen::InFlight(_) => "data-in-flight",
            Seen::TcpState(name) => name,
            Seen::Signed => "signed",
            Seen::SocketGone => "socket-gone",
            Seen::NotRead => "not-read",
            Seen::NotHeld => "not-held",
            Seen::TranslationUnknown => "translation-unknown",
            Seen::KernelAck => "kernel-ack",
            Seen::KernelData => "kernel-data",
            Seen::KernelFin => "kernel-fin",
            Seen::KernelRst => "kernel-rst",
        }
    }
}

/// Everything seen since the current question was asked, as [`classify`] weighs it.
///
/// The question is asked anew when a handshake is answered and when a rest ends: a banner that a
/// peer sent before its rest says nothing of whether it is still there after it.
///
/// [`classify`]: crate::probe::classify::classify
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// An acceptable ACK.
    pub ack: bool,
    /// An acceptable ACK with a zero window.
    pub zero_window: bool,
    /// Data from the peer.
    pub data: bool,
    /// FIN, or a RST that no probe of ours drew.
    pub closed: bool,
    /// RST to our SYN.
    pub refused: bool,
    /// RST that answers a probe of a confirmed connection.
    pub reset: bool,
    /// That RST had another TTL than the peer's own segments: a hint at a middlebox.
    pub foreign_ttl: bool,
    /// To its peer the connection may be another one: this host translates it otherwise than when it was
    /// listed, or the RST came to the socket in a way that nobody knows.
    pub remapped: bool,
    /// Distinct probes that drew an ICMP error.
    pub icmp_probes: u8,
    /// What the last of those errors said.
    pub icmp: Option<IcmpKind>,
    /// ARP or ND for the next hop went unanswered.
    pub neighbour_failed: bool,
    /// Distinct probes that our own kernel gave up for that reason. It asks three times only, and
    /// three answers can be lost: so once is not enough, unless silence lasts.
    pub neighbour_reports: u8,
    /// No route to the peer.
    pub no_route: bool,
    /// ACKs for some other connection came from our own 4-tuple, on every tuple that we tried; or
    /// ACKs beyond what the flow was given with: somebody has gone on with it since.
    pub taken: bool,
    /// The flow must not be probed.
    pub unprobeable: bool,
    /// The whole probe plan went by without an answer.
    pub exhausted: bool,
    /// Frames were lost on our own side, or our side was sick, while the plan ran.
    pub observer: bool,
}

/// What keepsweep says of one peer in one round.
#[derive(Clone, PartialEq, Debug)]
pub struct Verdict {
    /// Which target.
    pub target: TargetId,
    /// The peer; of the unspecified address if none is known.
    pub peer: SocketAddr,
    /// Our side of the flow; `None` if no flow was ever started (no route, neighbour failed), unless
    /// it was given.
    pub local: Option<SocketAddr>,
    /// Round, from 1.
    pub round: u32,
    /// The state.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// Keepalive probes sent in this round; SYNs, while the handshake has not been answered.
    pub probes: u16,
    /// Replies to them that were matched.
    pub replies: u16,
    /// Round-trip time of an unambiguous probe (Karn).
    pub rtt: Option<Duration>,
    /// What was seen, in order; the first few, if there was a flood.
    pub evidence: Vec<Sighting>,
    /// Whether this overturns a verdict already given in this round.
    pub correction: bool,
}

impl Verdict {
    /// Returns what is said of a target whose name has no address: it cannot be asked anything.
    pub fn unresolved(target: TargetId, port: u16) -> Verdict {
        Verdict {
            target,
            peer: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            local: None,
            round: 1,
            state: State::Undetermined,
            reason: Reason::Unprobeable,
            probes: 0,
            replies: 0,
            rtt: None,
            evidence: vec![Sighting::unframed(Seen::Unresolved)],
            correction: false,
        }
    }
}
