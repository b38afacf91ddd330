//! Every rejection, with the packet that is believed beside the one that differs in one number.

use super::*;
use crate::probe::table::{Family, Past};
use crate::wire::{IpHeader, Options, Quoted};
use std::net::{Ipv4Addr, Ipv6Addr};

/// SND.UNA = SND.NXT; the initial number is 0.
const UNA: SeqNumber = SeqNumber(1);
/// RCV.NXT: the peer's numbers have just wrapped.
const NXT: SeqNumber = SeqNumber(3);
const LOCAL: ([u8; 4], u16) = ([10, 98, 0, 1], 61000);
const PEER: ([u8; 4], u16) = ([10, 99, 0, 7], 80);

const OPEN: Expect = Expect {
    phase: Phase::Open,
    snd_una: UNA,
    snd_nxt: UNA,
    rcv_nxt: NXT,
    past: Past::UNKNOWN,
    probe_ack: NXT,
    probe_outstanding: true,
    given: false,
};
const SYN_SENT: Expect = Expect { phase: Phase::SynSent, probe_outstanding: false, ..OPEN };
const RESTING: Expect = Expect { probe_outstanding: false, ..OPEN };
const CLOSED: Expect = Expect { phase: Phase::Closed, probe_outstanding: false, ..OPEN };
/// Judged `down`: an answer to a probe may still come.
const ACCUSED: Expect = Expect { phase: Phase::Closed, ..OPEN };

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;

fn table(expect: &Expect) -> Table {
    let table = Table::with_capacity(1, Family::V4, [1, 2]);
    let key = FlowKey { local: LOCAL.into(), peer: PEER.into() };
    table.insert(Slot(0), &key, expect).unwrap();
    table
}

fn segment(flags: u8, seq: SeqNumber, ack: SeqNumber, payload: &[u8]) -> Segment<'_> {
    Segment {
        ip: IpHeader { src: PEER.0.into(), dst: LOCAL.0.into(), ttl: 64, id: 0 },
        src_port: PEER.1,
        dst_port: LOCAL.1,
        seq,
        ack,
        flags: Flags(flags),
        wnd: 100,
        options: Options::default(),
        payload,
    }
}

#[track_caller]
fn judged(
    expect: &Expect,
    flags: u8,
    seq: SeqNumber,
    ack: SeqNumber,
    len: usize,
) -> Result<ReplyKind, Rejection> {
    let segment = segment(flags, seq, ack, &[0; 64][..len]);
    let over_v4 = match_segment(&table(expect), &segment, Instant::ZERO).map(|reply| reply.kind);
    // The rules are TCP's: whatever holds over IPv4 holds over IPv6, in a table of both.
    let both = table_of_both(expect);
    let over_v6 = match_segment(&both, &in_v6(segment, v6), Instant::ZERO);
    assert_eq!(over_v6.map(|reply| (reply.slot, reply.kind)), over_v4.map(|kind| (Slot(1), kind)));
    let again = match_segment(&both, &segment, Instant::ZERO);
    assert_eq!(again.map(|reply| (reply.slot, reply.kind)), over_v4.map(|kind| (Slot(0), kind)));
    let mapped = in_v6(segment, |ip| ip.to_ipv6_mapped());
    assert_eq!(match_segment(&both, &mapped, Instant::ZERO), Err(Rejection::NoFlow));
    over_v4
}

fn v6(ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xfd << 120 | u128::from(ip.to_bits()))
}

fn with_each(ip: IpAddr, change: impl Fn(Ipv4Addr) -> Ipv6Addr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => change(ip).into(),
        IpAddr::V6(_) => ip,
    }
}

/// The same segment between other addresses.
fn in_v6(segment: Segment<'_>, change: impl Fn(Ipv4Addr) -> Ipv6Addr) -> Segment<'_> {
    let IpHeader { src, dst, ttl, .. } = segment.ip;
    let (src, dst) = (with_each(src, &change), with_each(dst, &change));
    Segment { ip: IpHeader { src, dst, ttl, id: 0 }, ..segment }
}

/// The flow of [`table`] in slot 0, and one between IPv6 addresses in slot 1.
fn table_of_both(expect: &Expect) -> Table {
    let table = Table::with_capacity(2, Family::V6, [1, 2]);
    let key = FlowKey { local: LOCAL.into(), peer: PEER.into() };
    table.insert(Slot(0), &key, expect).unwrap();
    let end = |(ip, port): ([u8; 4], u16)| (v6(ip.into()), port).into();
    table.insert(Slot(1), &FlowKey { local: end(LOCAL), peer: end(PEER) }, expect).unwrap();
    table
}

#[test]
fn answers_to_a_syn() {
    use Rejection as R;
    use ReplyKind as K;
    let zero = SeqNumber(0);
    for (flags, ack, expected) in [
        (SYN | ACK, UNA, Ok(K::SynAck)),
        (SYN | ACK, UNA + 1, Err(R::AckUnacceptable)),
        (SYN | ACK, UNA - 1, Err(R::AckUnacceptable)),
        (SYN, UNA, Err(R::Syn)),
        (RST | ACK, UNA, Ok(K::RstToSyn)),
        (RST | ACK, UNA + 1, Err(R::RstAck)),
        (RST | ACK, UNA - 1, Err(R::RstAck)),
        // A RST without ACK acknowledges nothing, whatever stands in the field.
        (RST, UNA, Err(R::RstAck)),
        (ACK, UNA + 7, Ok(K::OldConnection)),
        (ACK, UNA, Ok(K::OldConnection)),
        (FIN | ACK, UNA, Ok(K::OldConnection)),
        (FIN, UNA, Err(R::NoAck)),
        (0, UNA, Err(R::NoAck)),
    ] {
        assert_eq!(judged(&SYN_SENT, flags, zero, ack, 0), expected, "{flags:#x} ack {ack:?}");
    }
}

#[test]
fn segments_of_an_open_flow() {
    use Rejection as R;
    use ReplyKind as K;
    let oldest = NXT - 65_535;
    for (flags, seq, ack, len, expected) in [
        (ACK, NXT, UNA, 0, Ok(K::Ack)),
        (ACK, NXT, UNA + 1, 0, Err(R::AckUnacceptable)),
        (ACK, NXT, UNA - 1, 0, Err(R::AckUnacceptable)),
        (ACK, oldest, UNA, 0, Ok(K::Ack)),
        (ACK, oldest - 1, UNA, 0, Err(R::SeqOutOfWindow)),
        (ACK, NXT + 65_534, UNA, 0, Ok(K::Ack)),
        (ACK, NXT + 65_535, UNA, 0, Err(R::SeqOutOfWindow)),
        (0, NXT, UNA, 0, Err(R::NoAck)),
        (FIN, NXT, UNA, 0, Err(R::NoAck)),
        (SYN, NXT, UNA, 0, Err(R::Syn)),
        (SYN | ACK, NXT - 1, UNA, 0, Ok(K::SynAck)),
        (SYN | ACK, NXT, UNA, 0, Err(R::Syn)),
        (SYN | ACK, NXT - 1, UNA + 1, 0, Err(R::AckUnacceptable)),
        (ACK, NXT, UNA, 10, Ok(K::Data { next: NXT + 10 })),
        // Half of it is new; none of it; beyond a gap.
        (ACK, NXT - 5, UNA, 10, Ok(K::Data { next: NXT + 5 })),
        (ACK, NXT - 10, UNA, 10, Ok(K::Data { next: NXT })),
        (ACK, NXT + 1, UNA, 10, Ok(K::Data { next: NXT })),
        // The peer's keepalive, and one octet that is news.
        (ACK, NXT - 1, UNA, 1, Ok(K::Ack)),
        (ACK, NXT, UNA, 1, Ok(K::Data { next: NXT + 1 })),
        (FIN | ACK, NXT, UNA, 0, Ok(K::Fin { next: NXT + 1 })),
        (FIN | ACK, NXT - 5, UNA, 10, Ok(K::Fin { next: NXT + 6 })),
        (FIN | ACK, NXT + 1, UNA, 0, Ok(K::Data { next: NXT })),
    ] {
        for expect in [OPEN, RESTING, CLOSED, ACCUSED] {
            let got = judged(&expect, flags, seq, ack, len);
            assert_eq!(got, expected, "{flags:#x} seq {seq:?} ack {ack:?} +{len} {expect:?}");
        }
    }
}

/// Nothing starts below the SYN that began the connection, or below what the slot can say of it.
#[test]
fn nothing_starts_before_the_peers_syn() {
    use Rejection as R;
    use ReplyKind as K;
    // What the peer has used up, and how far below RCV.NXT a segment may then start.
    for (used, past) in [(1, 1), (2, 2), (3, 4), (1_400, 2_048), (40_000, 65_535)] {
        let past_of = Past::between(NXT - used, NXT);
        for expect in [OPEN, RESTING, CLOSED, ACCUSED] {
            let expect = Expect { past: past_of, ..expect };
            // Its keepalive, before it has been acknowledged anything, stands at its SYN.
            assert_eq!(judged(&expect, ACK, NXT - used, UNA, 0), Ok(K::Ack), "{used}");
            assert_eq!(judged(&expect, ACK, NXT - past, UNA, 0), Ok(K::Ack), "{used}");
            let below = NXT - past - 1;
            for (flags, len) in [(ACK, 0), (ACK, 1), (ACK, 10), (ACK | FIN, 0)] {
                let got = judged(&expect, flags, below, UNA, len);
                assert_eq!(got, Err(R::SeqOutOfWindow), "{used}: {flags:#x} +{len}");
            }
        }
    }
}

/// In a window and still wrong, far off, and on the other side of the sequence space.
#[test]
fn numbers_in_a_window_or_far_off() {
    use Rejection as R;
    for distance in [1, 2, 1_000, 32_768, 64_000, 65_534, 65_535, 1 << 30, 1 << 31, u32::MAX - 2] {
        for wrong in [UNA + distance, UNA - distance] {
            assert_eq!(judged(&OPEN, ACK, NXT, wrong, 0), Err(R::AckUnacceptable));
            assert_eq!(judged(&OPEN, ACK, NXT, wrong, 10), Err(R::AckUnacceptable));
            assert_eq!(judged(&OPEN, ACK | FIN, NXT, wrong, 0), Err(R::AckUnacceptable));
            assert_eq!(judged(&OPEN, SYN | ACK, NXT - 1, wrong, 0), Err(R::AckUnacceptable));
            assert_eq!(judged(&SYN_SENT, SYN | ACK, NXT, wrong, 0), Err(R::AckUnacceptable));
            assert_eq!(judged(&SYN_SENT, RST | ACK, SeqNumber(0), wrong, 0), Err(R::RstAck));
        }
        for wrong in [NXT + distance, NXT - distance] {
            // RFC 5961 §3.2 has a stack answer a RST in the window by a challenge; we just drop it.
            assert_eq!(judged(&OPEN, RST, wrong, UNA, 0), Err(R::RstSeq));
            assert_eq!(judged(&OPEN, RST | ACK, wrong, UNA - 1, 0), Err(R::RstSeq));
            assert_eq!(judged(&RESTING, RST, wrong, UNA, 0), Err(R::RstSeq));
            assert_eq!(judged(&ACCUSED, RST, wrong, UNA, 0), Err(R::ClosedFlow));
        }
    }
    for far in [65_535, 65_536, 1 << 30, 1 << 31, (1 << 31) + 1] {
        for len in [0, 10] {
            assert_eq!(judged(&OPEN, ACK, NXT + far, UNA, len), Err(R::SeqOutOfWindow), "{far}");
            assert_eq!(judged(&OPEN, ACK | FIN, NXT + far, UNA, len), Err(R::SeqOutOfWindow));
        }
    }
}

#[test]
fn our_fin_widens_what_may_be_acknowledged() {
    let finished = Expect { snd_nxt: UNA + 1, ..RESTING };
    assert_eq!(judged(&finished, ACK, NXT, UNA, 0), Ok(ReplyKind::Ack));
    assert_eq!(judged(&finished, ACK, NXT, UNA + 1, 0), Ok(ReplyKind::Ack));
    let beyond = judged(&finished, ACK, NXT, UNA + 2, 0);
    assert_eq!(beyond, Err(Rejection::AckUnacceptable));
}

#[test]
fn resets() {
    use Rejection as R;
    use ReplyKind as K;
    // Data came after the probe: what answers it is below RCV.NXT, what closes is at it.
    let moved = Expect { rcv_nxt: NXT + 10, ..OPEN };
    for (expect, flags, seq, ack, expected) in [
        (OPEN, RST, NXT, UNA, Ok(K::RstToProbe)),
        (OPEN, RST, NXT + 1, UNA, Err(R::RstSeq)),
        (OPEN, RST, NXT - 1, UNA, Err(R::RstSeq)),
        (moved, RST, NXT, UNA, Ok(K::RstToProbe)),
        (moved, RST, NXT + 10, UNA, Err(R::RstSeq)),
        // It acknowledges the keepalive; it acknowledges SND.NXT, as only the connection can.
        (OPEN, RST | ACK, NXT, UNA - 1, Ok(K::RstToProbe)),
        (OPEN, RST | ACK, NXT, UNA, Ok(K::Rst)),
        (OPEN, RST | ACK, NXT + 1, UNA, Err(R::RstSeq)),
        (moved, RST | ACK, NXT + 10, UNA, Ok(K::Rst)),
        (RESTING, RST, NXT, UNA, Ok(K::Rst)),
        (RESTING, RST | ACK, NXT, UNA, Ok(K::Rst)),
        (RESTING, RST, NXT + 1, UNA, Err(R::RstSeq)),
        (RESTING, RST, NXT - 1, UNA, Err(R::RstSeq)),
        (ACCUSED, RST, NXT, UNA, Ok(K::RstToProbe)),
        (ACCUSED, RST | ACK, NXT, UNA, Err(R::ClosedFlow)),
        (ACCUSED, RST, NXT + 1, UNA, Err(R::ClosedFlow)),
        (CLOSED, RST, NXT, UNA, Err(R::ClosedFlow)),
    ] {
        let got = judged(&expect, flags, seq, ack, 0);
        assert_eq!(got, expected, "{flags:#x} seq {seq:?} ack {ack:?} {expect:?}");
    }
}

#[test]
fn another_tuple_is_no_flow() {
    let right = segment(ACK, NXT, UNA, &[]);
    let both = table_of_both(&OPEN);
    let right_v6 = in_v6(right, v6);
    assert!(match_segment(&both, &right_v6, Instant::ZERO).is_ok());
    let (src, dst) = (right_v6.ip.src, right_v6.ip.dst);
    let other = v6([10, 99, 0, 8].into()).into();
    for (src, dst) in [(dst, src), (src, other), (other, dst)] {
        let segment = Segment { ip: IpHeader { src, dst, ..right_v6.ip }, ..right_v6 };
        assert_eq!(match_segment(&both, &segment, Instant::ZERO), Err(Rejection::NoFlow));
    }

    let table = table(&OPEN);
    assert!(match_segment(&table, &right, Instant::ZERO).is_ok());
    let mut wrong = [right; 4];
    wrong[0].src_port += 1;
    wrong[1].dst_port += 1;
    wrong[2].ip.src = [10, 99, 0, 8].into();
    wrong[3].ip.dst = [10, 98, 0, 2].into();
    for segment in wrong {
        assert_eq!(match_segment(&table, &segment, Instant::ZERO), Err(Rejection::NoFlow));
    }
}

fn error() -> IcmpError {
    IcmpError {
        ip: IpHeader { src: [10, 98, 0, 254].into(), dst: LOCAL.0.into(), ttl: 63, id: 0 },
        icmp_type: 3,
        code: 1,
        quoted: Quoted {
            src: LOCAL.into(),
            dst: PEER.into(),
            seq: UNA - 1,
            ack: None,
            wnd: Some(8),
            ip_id: 9,
        },
    }
}

#[test]
fn errors_quote_an_outstanding_probe() {
    use Rejection as R;
    let judged = |expect: &Expect, change: fn(&mut IcmpError)| {
        let mut error = error();
        change(&mut error);
        match_icmp(&table(expect), &error, Instant::ZERO).map(|reply| reply.kind)
    };
    let believed = ReplyKind::Icmp {
        kind: IcmpKind::Host,
        icmp_type: 3,
        code: 1,
        from: [10, 98, 0, 254].into(),
        quoted_id: Some(9),
    };
    for expect in [OPEN, SYN_SENT] {
        assert_eq!(judged(&expect, |_| {}), Ok(believed));
        assert_eq!(judged(&expect, |e| e.quoted.seq = UNA), Err(R::IcmpQuote));
        assert_eq!(judged(&expect, |e| e.quoted.seq = UNA - 2), Err(R::IcmpQuote));
    }
    assert_eq!(judged(&RESTING, |_| {}), Err(R::IcmpQuote));
    assert_eq!(judged(&CLOSED, |_| {}), Err(R::ClosedFlow));
    assert_eq!(judged(&ACCUSED, |_| {}), Err(R::ClosedFlow));
    let swapped = judged(&OPEN, |e| (e.quoted.src, e.quoted.dst) = (e.quoted.dst, e.quoted.src));
    assert_eq!(swapped, Err(R::NoFlow));
    assert_eq!(judged(&OPEN, |e| e.quoted.src = ([10, 98, 0, 1], 61001).into()), Err(R::NoFlow));
    assert_eq!(judged(&OPEN, |e| e.code = 4), Err(R::IcmpIrrelevant));
    assert_eq!(judged(&OPEN, |e| e.icmp_type = 4), Err(R::IcmpIrrelevant));
}

/// Its windows may be scaled and nobody takes in its data; its numbers may have aged.
#[test]
fn segments_of_a_given_flow() {
    use Rejection as R;
    use ReplyKind as K;
    const WINDOW: u32 = 1 << 30;
    let given = Expect { given: true, ..OPEN };
    for (flags, seq, ack, expected) in [
        (ACK, NXT, UNA, Ok(K::Ack)),
        (ACK, NXT + 65_535, UNA, Ok(K::Ack)),
        (ACK, NXT + (WINDOW - 1), UNA, Ok(K::Ack)),
        (ACK, NXT + WINDOW, UNA, Err(R::SeqOutOfWindow)),
        (ACK, NXT - WINDOW, UNA, Ok(K::Ack)),
        (ACK, NXT - (WINDOW + 1), UNA, Err(R::SeqOutOfWindow)),
        (FIN | ACK, NXT + 100_000, UNA, Ok(K::Fin { next: NXT })),
        (ACK, NXT, UNA + 1, Ok(K::OldConnection)),
        (ACK, NXT, UNA - 1, Ok(K::OldConnection)),
        (0, NXT, UNA, Err(R::NoAck)),
        (SYN, NXT, UNA, Err(R::Syn)),
        (RST, NXT, UNA, Ok(K::RstToProbe)),
        (RST, NXT + 1, UNA, Err(R::RstSeq)),
        (RST, NXT - 1, UNA, Err(R::RstSeq)),
    ] {
        let got = judged(&given, flags, seq, ack, 0);
        assert_eq!(got, expected, "{flags:#x} seq {seq:?} ack {ack:?}");
    }
    // After the verdict there is nothing to clear of suspicion.
    let judged_flow = Expect { phase: Phase::Closed, ..given };
    assert_eq!(judged(&judged_flow, ACK, NXT, UNA + 1, 0), Err(R::AckUnacceptable));
}

/// RFC 4443 §3: each type, in the same frame of mind as its IPv4 counterpart.
#[test]
fn icmpv6_errors_quote_an_outstanding_probe() {
    use Rejection as R;
    let end = |(ip, port): ([u8; 4], u16)| SocketAddr::from((v6(ip.into()), port));
    let router: IpAddr = "fe80::fe".parse().unwrap();
    let error = IcmpError {
        ip: IpHeader { src: router, dst: end(LOCAL).ip(), ttl: 63, id: 0 },
        icmp_type: 1,
        code: 0,
        quoted: Quoted {
            src: end(LOCAL),
            dst: end(PEER),
            seq: UNA - 1,
            ack: None,
            wnd: None,
            ip_id: 0,
        },
    };
    let judged = |expect: &Expect, error: &IcmpError| {
        match_icmp(&table_of_both(expect), error, Instant::ZERO).map(|reply| {
            assert_eq!(reply.slot, Slot(1));
            reply.kind
        })
    };
    for (icmp_type, code, kind) in [
        (1, 0, IcmpKind::Net),
        (1, 1, IcmpKind::Admin),
        (1, 3, IcmpKind::Host),
        (1, 4, IcmpKind::Port),
        (3, 0, IcmpKind::TimeExceeded),
        (4, 1, IcmpKind::Other),
    ] {
        let error = IcmpError { icmp_type, code, ..error };
        let believed = ReplyKind::Icmp { kind, icmp_type, code, from: router, quoted_id: None };
        assert_eq!(judged(&OPEN, &error), Ok(believed));
        assert_eq!(judged(&SYN_SENT, &error), Ok(believed));
        // The window takes the place of the identification.
        let quoted = Quoted { wnd: Some(7), ..error.quoted };
        let quoted_id = Some(7);
        let believed = ReplyKind::Icmp { kind, icmp_type, code, from: router, quoted_id };
        assert_eq!(judged(&OPEN, &IcmpError { quoted, ..error }), Ok(believed));
        assert_eq!(judged(&RESTING, &error), Err(R::IcmpQuote));
        assert_eq!(judged(&CLOSED, &error), Err(R::ClosedFlow));
        let quoted = Quoted { seq: UNA, ..error.quoted };
        assert_eq!(judged(&OPEN, &IcmpError { quoted, ..error }), Err(R::IcmpQuote));
        // IPv4-mapped addresses in a quote are no IPv4 flow of ours.
        let mapped = |(ip, port): ([u8; 4], u16)| {
            SocketAddr::from((Ipv4Addr::from(ip).to_ipv6_mapped(), port))
        };
        let quoted = Quoted { src: mapped(LOCAL), dst: mapped(PEER), ..error.quoted };
        assert_eq!(judged(&OPEN, &IcmpError { quoted, ..error }), Err(R::NoFlow));
    }
    let about = |change: fn(&mut Quoted)| {
        let mut error = error;
        change(&mut error.quoted);
        judged(&OPEN, &error)
    };
    assert_eq!(about(|quoted| quoted.seq = UNA - 2), Err(R::IcmpQuote));
    assert_eq!(about(|quoted| quoted.seq = UNA + 60_000), Err(R::IcmpQuote));
    assert_eq!(about(|quoted| quoted.src.set_port(61_001)), Err(R::NoFlow));
    assert_eq!(about(|quoted| quoted.dst.set_port(81)), Err(R::NoFlow));
    assert_eq!(about(|quoted| std::mem::swap(&mut quoted.src, &mut quoted.dst)), Err(R::NoFlow));
    // Packet too big says nothing of reachability.
    let too_big = IcmpError { icmp_type: 2, ..error };
    assert_eq!(judged(&OPEN, &too_big), Err(R::IcmpIrrelevant));
}
