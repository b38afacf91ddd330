//! Reply → slot: which flow a frame belongs to, and whether it is to be believed.
//!
//! Validate before you classify: anyone can send us a segment. What does not fit a flow's exact
//! numbers is counted under its [`Rejection`] and goes no further.
//!
//! What a forger who does not see the path must guess, besides both addresses and ports (ours is one
//! of some 4,500 that a keyed hash draws), each guess a frame:
//!
//! | to feign | while | numbers | chance |
//! |---|---|---|---|
//! | SYN-ACK, refusal | SYN out | SEG.ACK = ISS + 1 | 2^−32 |
//! | RST to a probe | probe out | SEG.SEQ = its SEG.ACK | 2^−32 |
//! | RST of the peer's | none out, or with SEG.ACK = SND.NXT | SEG.SEQ = RCV.NXT | 2^−32 (2^−64) |
//! | ICMP error | probe out | quoted sequence = SND.UNA − 1, twice | 2^−32 |
//! | ACK, data, FIN | any time | SEG.ACK in [SND.UNA, SND.NXT], SEG.SEQ from the peer's SYN to RCV.NXT + window | 2^−48 |
//! | the same of a given flow | any time | SEG.SEQ up to 2^30 from RCV.NXT either way, since its window may be scaled | 2^−33 |
//!
//! SND.NXT − SND.UNA is 0, or 1 once our FIN is out. SEG.SEQ above RCV.NXT must be believed: the peer
//! may have sent what we missed. Below it stands only what the peer has already sent ([`Past`]). Who
//! sees the path can say anything, as with TCP itself (RFC 5961 §1); a RST's TTL may give him away.
//!
//! [`Past`]: crate::probe::table::Past
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use crate::probe::table::{Expect, FlowKey, Phase, Table, View};
use crate::probe::{Generation, Slot};
use crate::time::Instant;
use crate::wire::{Flags, IcmpError, IcmpKind, Segment, SeqNumber};
use std::net::{IpAddr, SocketAddr};

/// A reply that belongs to a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The flow's slot.
    pub slot: Slot,
    /// Which use of the slot: the owner drops the reply if it is over.
    pub generation: Generation,
    /// When the frame reached this machine.
    pub at: Instant,
    /// Its TTL or hop limit.
    pub ttl: u8,
    /// SEG.SEQ; of the quoted segment for ICMP.
    pub seg_seq: SeqNumber,
    /// SEG.ACK; 0 for ICMP.
    pub seg_ack: SeqNumber,
    /// SEG.WND as it stands in the header; only whether it is 0 matters, so its scale does not.
    pub wnd: u16,
    /// TSecr, if it has the timestamps option.
    pub tsecr: Option<u32>,
    /// What it is.
    pub kind: ReplyKind,
}

/// What a matched frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyKind {
    /// SYN-ACK that acknowledges our SYN.
    SynAck,
    /// Acceptable ACK without data.
    Ack,
    /// Data, in order up to `next` (RCV.NXT unchanged if a gap precedes it).
    Data {
        /// RCV.NXT after it.
        next: SeqNumber,
    },
    /// FIN, in order; of a given flow wherever it stands, since what was before it is the owner's.
    Fin {
        /// RCV.NXT after it.
        next: SeqNumber,
    },
    /// RST with SEG.ACK = ISS + 1, to our SYN (RFC 9293 §3.10.7.3).
    RstToSyn,
    /// RST with SEG.SEQ = the SEG.ACK of our outstanding probe (RFC 9293 §3.5.2).
    RstToProbe,
    /// RST with SEG.SEQ = RCV.NXT that no probe drew: none is outstanding, or the peer knows SND.NXT.
    Rst,
    /// ACK without SYN to our SYN, or one on a given flow that acknowledges what was not sent when
    /// it was given. Not believed, but it tells that the 4-tuple may be in other use at the peer.
    OldConnection,
    /// ICMP error that quotes an outstanding probe (RFC 5927 §4.1).
    Icmp {
        /// What it means.
        kind: IcmpKind,
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
        /// Who reports.
        from: IpAddr,
        /// What tells the quoted packet from its repeats: its IPv4 identification, or for IPv6 its
        /// window, if the quote goes so far.
        quoted_id: Option<u16>,
    },
}

impl ReplyKind {
    /// Says whether the peer itself sent this, in answer to something on this flow.
    pub(crate) const fn is_from_peer(self) -> bool {
        !matches!(self, ReplyKind::OldConnection | ReplyKind::Icmp { .. })
    }
}

/// Why a frame was not believed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Rejection {
    Malformed,
    Checksum,
    OtherProtocol,
    NoFlow,
    ClosedFlow,
    StaleGeneration,
    AckUnacceptable,
    SeqOutOfWindow,
    NoAck,
    Syn,
    RstSeq,
    RstAck,
    IcmpQuote,
    IcmpIrrelevant,
    ArpUnasked,
    NdUnasked,
}

impl Rejection {
    /// Every reason, in the order of its counters.
    pub const ALL: [Rejection; 16] = [
        Rejection::Malformed,
        Rejection::Checksum,
        Rejection::OtherProtocol,
        Rejection::NoFlow,
        Rejection::ClosedFlow,
        Rejection::StaleGeneration,
        Rejection::AckUnacceptable,
        Rejection::SeqOutOfWindow,
        Rejection::NoAck,
        Rejection::Syn,
        Rejection::RstSeq,
        Rejection::RstAck,
        Rejection::IcmpQuote,
        Rejection::IcmpIrrelevant,
        Rejection::ArpUnasked,
        Rejection::NdUnasked,
    ];

    /// Returns the name used in summaries.
    pub const fn name(self) -> &'static str {
        match self {
            Rejection::Malformed => "malformed",
            Rejection::Checksum => "checksum",
            Rejection::OtherProtocol => "other-protocol",
            Rejection::NoFlow => "no-flow",
            Rejection::ClosedFlow => "closed-flow",
            Rejection::StaleGeneration => "stale-generation",
            Rejection::AckUnacceptable => "ack-unacceptable",
            Rejection::SeqOutOfWindow => "seq-out-of-window",
            Rejection::NoAck => "no-ack",
            Rejection::Syn => "syn",
            Rejection::RstSeq => "rst-seq",
            Rejection::RstAck => "rst-ack",
            Rejection::IcmpQuote => "icmp-quote",
            Rejection::IcmpIrrelevant => "icmp-irrelevant",
            Rejection::ArpUnasked => "arp-unasked",
            Rejection::NdUnasked => "nd-unasked",
        }
    }
}

/// The window that we advertise (see [`crate::probe::craft`]), rounded up.
const OUR_WINDOW: u32 = 65_535;
/// The largest window that there can be (RFC 7323 §2.3): how far from RCV.NXT the peer of a given
/// flow may be, since its scale is not known, and nobody takes in what it sends.
const SCALED_WINDOW: u32 = 1 << 30;

/// What matching needs of a segment, once the frame is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gist {
    at: Instant,
    seq: SeqNumber,
    ack: SeqNumber,
    seg_len: u32,
    tsecr: Option<u32>,
    wnd: u16,
    flags: Flags,
    ttl: u8,
}

impl Gist {
    /// Takes it from `segment`, which reached this machine at `at`.
    #[inline]
    pub fn of(segment: &Segment<'_>, at: Instant) -> Self {
        Gist {
            at,
            seq: segment.seq,
            ack: segment.ack,
            seg_len: segment.seg_len(),
            tsecr: segment.options.timestamps.map(|timestamps| timestamps.tsecr),
            wnd: segment.wnd,
            flags: segment.flags,
            ttl: segment.ip.ttl,
        }
    }
}

/// Returns the 4-tuple of the flow that `segment`, from the peer, belongs to.
#[inline]
pub fn key_of(segment: &Segment<'_>) -> FlowKey {
    FlowKey {
        local: SocketAddr::new(segment.ip.dst, segment.dst_port),
        peer: SocketAddr::new(segment.ip.src, segment.src_port),
    }
}

/// Finds the flow that `segment` belongs to and says what it is.
///
/// # Errors
/// The [`Rejection`] under which to count it. An ACK without SYN to our SYN, or one that is ahead of
/// a given flow, is not an error but [`ReplyKind::OldConnection`]: it must not be believed, but it
/// must be acted on.
pub fn match_segment(
    table: &Table,
    segment: &Segment<'_>,
    at: Instant,
) -> Result<Reply, Rejection> {
    judge_segment(table.lookup(&key_of(segment)), &Gist::of(segment, at))
}

/// Says what a segment of a flow is, given what was found of the flow.
///
/// # Errors
/// As [`match_segment`].
pub fn judge_segment(view: Option<View>, segment: &Gist) -> Result<Reply, Rejection> {
    let view = view.ok_or(Rejection::NoFlow)?;
    let kind = match view.expect.phase {
        Phase::SynSent => judge_syn_sent(segment, &view.expect)?,
        Phase::Open => match judge_open(segment, &view.expect) {
            // Whoever owns the flow has gone on with it since: silence to us proves nothing.
            Err(Rejection::AckUnacceptable) if view.expect.given => ReplyKind::OldConnection,
            judged => judged?,
        },
        Phase::Closed if segment.flags.contains(Flags::RST) => {
            match judge_open(segment, &view.expect) {
                Ok(ReplyKind::RstToProbe) => ReplyKind::RstToProbe,
                _ => return Err(Rejection::ClosedFlow),
            }
        }
        Phase::Closed => judge_open(segment, &view.expect)?,
    };
    Ok(Reply {
        slot: view.slot,
        generation: view.generation,
        at: segment.at,
        ttl: segment.ttl,
        seg_seq: segment.seq,
        seg_ack: segment.ack,
        wnd: segment.wnd,
        tsecr: segment.tsecr,
        kind,
    })
}

/// RFC 9293 §3.10.7.3.
fn judge_syn_sent(segment: &Gist, expect: &Expect) -> Result<ReplyKind, Rejection> {
    let acks_syn = segment.flags.contains(Flags::ACK) && segment.ack == expect.snd_una;
    if segment.flags.contains(Flags::RST) {
        return if acks_syn { Ok(ReplyKind::RstToSyn) } else { Err(Rejection::RstAck) };
    }
    match (segment.flags.contains(Flags::SYN), acks_syn) {
        (true, true) => Ok(ReplyKind::SynAck),
        (true, false) if segment.flags.contains(Flags::ACK) => Err(Rejection::AckUnacceptable),
        (true, false) => Err(Rejection::Syn),
        // Whatever it acknowledges: a run with the same seed draws the same initial number.
        (false, _) if segment.flags.contains(Flags::ACK) => Ok(ReplyKind::OldConnection),
        (false, _) => Err(Rejection::NoAck),
    }
}

/// RFC 9293 §3.10.7.4, with RST by RFC 5961 §3.2.
fn judge_open(segment: &Gist, expect: &Expect) -> Result<ReplyKind, Rejection> {
    if segment.flags.contains(Flags::RST) {
        // Whoever has no connection takes SEG.SEQ from our SEG.ACK and sends no ACK, or one of the
        // keepalive (SND.UNA − 1): only whoever has the connection can acknowledge SND.NXT.
        let aborts = segment.flags.contains(Flags::ACK) && segment.ack == expect.snd_nxt;
        let drawn = expect.probe_outstanding && !aborts;
        // No probe acknowledges RCV.NXT, so that none has drawn it.
        let is_old_ack = expect.given && expect.probe_ack != expect.rcv_nxt;
        return if drawn && segment.seq == expect.probe_ack {
            Ok(ReplyKind::RstToProbe)
        } else if segment.seq == expect.rcv_nxt && (!drawn || is_old_ack) {
            Ok(ReplyKind::Rst)
        } else {
            Err(Rejection::RstSeq)
        };
    }
    if !segment.flags.contains(Flags::ACK) {
        return Err(if segment.flags.contains(Flags::SYN) {
            Rejection::Syn
        } else {
            Rejection::NoAck
        });
    }
    if segment.ack.is_before(expect.snd_una) || expect.snd_nxt.is_before(segment.ack) {
        return Err(Rejection::AckUnacceptable);
    }
    if segment.flags.contains(Flags::SYN) {
        let repeated = segment.seq + 1 == expect.rcv_nxt;
        return if repeated { Ok(ReplyKind::SynAck) } else { Err(Rejection::Syn) };
    }
    let past = expect.past.octets();
    let (behind, ahead) = match expect.given {
        true => (SCALED_WINDOW, SCALED_WINDOW),
        false => (past, OUR_WINDOW),
    };
    if !segment.seq.is_in_window(expect.rcv_nxt - behind, behind + ahead) {
        return Err(Rejection::SeqOutOfWindow);
    }
    if segment.seg_len == 0 {
        return Ok(ReplyKind::Ack);
    }
    let end = segment.seq + segment.seg_len;
    let in_order = !expect.rcv_nxt.is_before(segment.seq);
    let next = if in_order && expect.rcv_nxt.is_before(end) { end } else { expect.rcv_nxt };
    if segment.flags.contains(Flags::FIN) && (in_order || expect.given) {
        return Ok(ReplyKind::Fin { next });
    }
    // One octet below RCV.NXT is the peer's own keepalive: an ACK that wants one, no news.
    if next == expect.rcv_nxt && in_order && segment.seg_len <= 1 {
        return Ok(ReplyKind::Ack);
    }
    Ok(ReplyKind::Data { next })
}

/// Finds the flow whose probe an ICMP error quotes.
///
/// # Errors
/// The [`Rejection`] under which to count it.
pub fn match_icmp(table: &Table, error: &IcmpError, at: Instant) -> Result<Reply, Rejection> {
    let kind = error.kind();
    if kind == IcmpKind::TooBig || is_source_quench(error) {
        return Err(Rejection::IcmpIrrelevant);
    }
    let key = FlowKey { local: error.quoted.src, peer: error.quoted.dst };
    let view = table.lookup(&key).ok_or(Rejection::NoFlow)?;
    let outstanding = match view.expect.phase {
        Phase::SynSent => true,
        Phase::Open => view.expect.probe_outstanding,
        Phase::Closed => return Err(Rejection::ClosedFlow),
    };
    // SYN (ISS) and keepalive (SND.UNA − 1) carry the same number: nothing else of ours does.
    if !outstanding || error.quoted.seq != view.expect.snd_una - 1 {
        return Err(Rejection::IcmpQuote);
    }
    let (icmp_type, code, from) = (error.icmp_type, error.code, error.ip.src);
    let quoted_id = match error.quoted.src {
        SocketAddr::V4(_) => Some(error.quoted.ip_id),
        SocketAddr::V6(_) => error.quoted.wnd,
    };
    Ok(Reply {
        slot: view.slot,
        generation: view.generation,
        at,
        ttl: error.ip.ttl,
        seg_seq: error.quoted.seq,
        seg_ack: SeqNumber(0),
        wnd: 0,
        tsecr: None,
        kind: ReplyKind::Icmp { kind, icmp_type, code, from, quoted_id },
    })
}

/// Source quench says nothing of reachability and is to be ignored (RFC 6633).
fn is_source_quench(error: &IcmpError) -> bool {
    error.ip.src.is_ipv4() && error.icmp_type == 4
}
