//! The kinds of forged reply, and why keepsweep must not believe each.

use keepsweep::wire::icmp::emit_error;
use keepsweep::wire::{
    EmitError, Flags, IpHeader, LinkHeader, MacAddr, Options, Segment, SeqNumber,
};
use std::net::{IpAddr, Ipv4Addr};

/// What the forger knows of a flow whose segments it has seen: everything.
#[derive(Clone, Copy)]
pub struct Seen {
    pub mac: MacAddr,
    pub prober: (IpAddr, u16),
    pub peer: (IpAddr, u16),
    /// The one number that a reply may acknowledge.
    pub snd_una: SeqNumber,
    /// The peer's next, once it has answered the SYN.
    pub rcv_nxt: Option<SeqNumber>,
}

#[derive(Clone, Copy)]
enum Wrong {
    Tuple(u8),
    IcmpTuple,
    Ack { to_syn: u8, to_open: u8, len: usize },
    RstSeq(u8),
    Quote,
    QuotedPort,
    Nothing,
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;

/// Kinds of random tuples come first.
pub const RANDOM: usize = 5;
/// Behind them the one that keepsweep acts upon without believing it, and then the rest.
pub const NO_HINT: usize = RANDOM + 1;

/// Data that is right in every number, as a peer sends it: not forged with the others.
pub const FLOOD: usize = 14;

/// Name of each kind, and what is wrong with it. Where two flags stand, the first are for a flow whose
/// SYN has not been answered, the others for one that is open.
pub const KINDS: [(&str, WrongKind); 15] = [
    ("random-ack", WrongKind(Wrong::Tuple(ACK))),
    ("random-syn-ack", WrongKind(Wrong::Tuple(SYN | ACK))),
    ("random-rst", WrongKind(Wrong::Tuple(RST))),
    ("random-data", WrongKind(Wrong::Tuple(ACK | PSH))),
    ("random-icmp", WrongKind(Wrong::IcmpTuple)),
    ("ack-to-syn", WrongKind(Wrong::Ack { to_syn: ACK, to_open: ACK, len: 0 })),
    ("ack", WrongKind(Wrong::Ack { to_syn: SYN | ACK, to_open: ACK, len: 0 })),
    ("data", WrongKind(Wrong::Ack { to_syn: SYN | ACK, to_open: ACK | PSH, len: 32 })),
    ("fin", WrongKind(Wrong::Ack { to_syn: SYN | ACK, to_open: ACK | FIN, len: 0 })),
    ("syn-ack", WrongKind(Wrong::Ack { to_syn: SYN | ACK, to_open: SYN | ACK, len: 0 })),
    ("rst", WrongKind(Wrong::RstSeq(RST))),
    ("rst-ack", WrongKind(Wrong::RstSeq(RST | ACK))),
    ("icmp-seq", WrongKind(Wrong::Quote)),
    ("icmp-port", WrongKind(Wrong::QuotedPort)),
    ("flood", WrongKind(Wrong::Nothing)),
];

/// What is wrong with a kind.
#[derive(Clone, Copy)]
pub struct WrongKind(Wrong);

/// A distance that is off by one half of the time, and else anywhere in the largest window.
fn off(rng: &mut fastrand::Rng) -> u32 {
    if rng.bool() { 1 } else { rng.u32(2..60_000) }
}

/// Writes a forged reply of `kind` to what was seen.
pub fn forge(
    kind: usize,
    seen: &Seen,
    link: &LinkHeader,
    rng: &mut fastrand::Rng,
    buf: &mut [u8],
) -> Result<usize, EmitError> {
    let payload = [0x66; 32];
    let mut reply = Segment {
        ip: IpHeader { src: seen.peer.0, dst: seen.prober.0, ttl: 62, id: 0 },
        src_port: seen.peer.1,
        dst_port: seen.prober.1,
        seq: seen.rcv_nxt.unwrap_or(SeqNumber(rng.u32(..))),
        ack: seen.snd_una,
        flags: Flags(ACK),
        wnd: 500,
        options: Options::default(),
        payload: &[],
    };
    let is_open = seen.rcv_nxt.is_some();
    let beside = |right: SeqNumber, rng: &mut fastrand::Rng| {
        if rng.bool() { right + off(rng) } else { right - off(rng) }
    };
    match KINDS[kind].1.0 {
        Wrong::Tuple(flags) => {
            let (address, port) = stranger(rng);
            reply.ip.src = address;
            (reply.src_port, reply.dst_port) = (port, rng.u16(61_000..=65_534));
            (reply.seq, reply.ack) = (SeqNumber(rng.u32(..)), SeqNumber(rng.u32(..)));
            reply.flags = Flags(flags);
        }
        Wrong::Ack { to_syn, to_open, len } => {
            reply.ack = beside(seen.snd_una, rng);
            reply.flags = Flags(if is_open { to_open } else { to_syn });
            reply.payload = &payload[..if is_open { len } else { 0 }];
        }
        Wrong::RstSeq(flags) if is_open => {
            reply.flags = Flags(flags);
            reply.seq = beside(reply.seq, rng);
        }
        Wrong::RstSeq(_) => {
            reply.flags = Flags(RST | ACK);
            (reply.seq, reply.ack) = (SeqNumber(0), beside(seen.snd_una, rng));
        }
        Wrong::Nothing => {
            reply.flags = Flags(ACK | PSH);
            reply.payload = &payload;
        }
        Wrong::Quote | Wrong::QuotedPort | Wrong::IcmpTuple => {
            return forge_error(kind, seen, link, rng, buf);
        }
    }
    reply.emit(link, buf)
}

fn forge_error(
    kind: usize,
    seen: &Seen,
    link: &LinkHeader,
    rng: &mut fastrand::Rng,
    buf: &mut [u8],
) -> Result<usize, EmitError> {
    let mut quoted = Segment {
        ip: IpHeader { src: seen.prober.0, dst: seen.peer.0, ttl: 1, id: rng.u16(..) },
        src_port: seen.prober.1,
        dst_port: seen.peer.1,
        seq: seen.snd_una - 1,
        ack: seen.rcv_nxt.unwrap_or_default(),
        flags: Flags(if seen.rcv_nxt.is_some() { ACK } else { SYN }),
        wnd: 65_000,
        options: Options::default(),
        payload: &[],
    };
    match KINDS[kind].1.0 {
        Wrong::Quote if rng.bool() => quoted.seq = quoted.seq + off(rng),
        Wrong::Quote => quoted.seq = quoted.seq - off(rng),
        Wrong::QuotedPort => quoted.dst_port ^= 1 << rng.u16(0..16),
        _ => (quoted.ip.dst, quoted.dst_port) = stranger(rng),
    }
    let mut quote = [0; 128];
    let len = quoted.emit(&LinkHeader::Ip, &mut quote)?;
    let router = IpHeader {
        src: Ipv4Addr::new(10, 98, 0, 254).into(),
        dst: seen.prober.0,
        ttl: 64,
        id: rng.u16(..),
    };
    // Older routers quote eight octets of TCP.
    let len = if rng.bool() { len } else { 28 };
    emit_error(&router, 3, rng.u8(0..=1), &quote[..len], link, buf)
}

/// A peer that nobody asks, in TEST-NET-2 and -3.
fn stranger(rng: &mut fastrand::Rng) -> (IpAddr, u16) {
    let net = if rng.bool() { [198, 51, 100] } else { [203, 0, 113] };
    (Ipv4Addr::new(net[0], net[1], net[2], rng.u8(..)).into(), rng.u16(1..))
}
