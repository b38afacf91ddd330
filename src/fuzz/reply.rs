//! What is believed: a frame made from a flow's own numbers, some of them changed.

use crate::io::{PathId, RxFrame};
use crate::probe::Slot;
use crate::probe::receiver::{Post, Receiver};
use crate::probe::table::{Expect, Family, FlowKey, Past, Phase, Table};
use crate::time::Instant;
use crate::wire::icmp::emit_error;
use crate::wire::{Checksums, Flags, IpHeader, LinkHeader, LinkType, Options, Segment, SeqNumber};
use arbitrary::{Arbitrary, Unstructured};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A flow, and a frame by its distance from what the flow expects.
#[derive(Arbitrary, Debug)]
struct Case {
    v6: bool,
    phase: u8,
    snd_una: u32,
    fin_sent: bool,
    rcv_nxt: u32,
    used: u16,
    moved: u8,
    asked: bool,
    given: bool,
    /// Of ports and addresses: 0 is the flow's own.
    other_tuple: u8,
    frame: Frame,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Segment { flags: u8, seq: i32, ack: i32, len: u8, wnd: u16 },
    Error { icmp_type: u8, code: u8, seq: i32, quoted: u8 },
}

/// One frame to one flow: it is believed only if every number fits, judged by rules written down
/// a second time, and whatever it is, it is counted exactly once.
pub(super) fn reply(bytes: &[u8]) {
    let Ok(case) = Case::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let expect = expect(&case);
    let (local, peer) = tuple(case.v6);
    let family = if case.v6 { Family::V6 } else { Family::V4 };
    let table = Arc::new(Table::with_capacity(1, family, [1, 2]));
    assert!(table.insert(Slot(0), &FlowKey { local, peer }, &expect).is_ok());
    let post = Arc::new(Post::new(1, 1, 4));
    let mut receiver =
        Receiver::new(PathId(0), LinkType::Ip, table, HashSet::new(), Arc::clone(&post));

    let mut buf = [0; 1024];
    let Some(len) = write(&case, &expect, &mut buf) else { return };
    let frame =
        RxFrame { bytes: &buf[..len], at: Instant::from_nanos(1), checksums: Checksums::Verify };
    assert!(receiver.handle_frame(frame).is_ok());

    let counts = receiver.counts();
    let rejected: u64 = counts.rejected.iter().sum();
    assert_eq!((counts.frames, counts.matched + rejected), (1, 1));
    if counts.matched == 1 {
        assert!(post.pop(0).is_some());
        assert!(may_be_believed(&case, &expect), "{case:#?}\n{expect:#?}");
    }
}

fn expect(case: &Case) -> Expect {
    let phase = [Phase::SynSent, Phase::Open, Phase::Closed][usize::from(case.phase % 3)];
    let snd_una = SeqNumber(case.snd_una);
    let rcv_nxt = SeqNumber(case.rcv_nxt);
    Expect {
        phase,
        snd_una,
        snd_nxt: snd_una + u32::from(case.fin_sent),
        rcv_nxt,
        past: Past::between(rcv_nxt - u32::from(case.used), rcv_nxt),
        probe_ack: rcv_nxt - u32::from(case.moved),
        probe_outstanding: case.asked && phase != Phase::SynSent,
        given: case.given,
    }
}

fn tuple(v6: bool) -> (SocketAddr, SocketAddr) {
    let (local, peer): (IpAddr, IpAddr) = if v6 {
        let ip = |n| Ipv6Addr::from_bits(0xfd99_u128 << 112 | n);
        (ip(1).into(), ip(7).into())
    } else {
        (Ipv4Addr::new(10, 98, 0, 1).into(), Ipv4Addr::new(10, 99, 0, 7).into())
    };
    (SocketAddr::new(local, 61_000), SocketAddr::new(peer, 80))
}

/// The tuple that the frame names.
fn named(case: &Case) -> (SocketAddr, SocketAddr) {
    let (mut local, mut peer) = tuple(case.v6);
    match case.other_tuple % 8 {
        1 => local.set_port(61_001),
        2 => peer.set_port(81),
        3 => std::mem::swap(&mut local, &mut peer),
        4 => peer.set_ip(local.ip()),
        _ => {}
    }
    (local, peer)
}

fn write(case: &Case, expect: &Expect, buf: &mut [u8]) -> Option<usize> {
    let (local, peer) = named(case);
    let near = |base: SeqNumber, distance: i32| base + distance as u32;
    let payload = [0; 255];
    let segment = |from: SocketAddr, to: SocketAddr| Segment {
        ip: IpHeader { src: from.ip(), dst: to.ip(), ttl: 64, id: 0 },
        src_port: from.port(),
        dst_port: to.port(),
        seq: SeqNumber(0),
        ack: SeqNumber(0),
        flags: Flags::ACK,
        wnd: 0,
        options: Options::default(),
        payload: &[],
    };
    match case.frame {
        Frame::Segment { flags, seq, ack, len, wnd } => {
            let payload = &payload[..usize::from(len)];
            let (seq, ack) = (near(expect.rcv_nxt, seq), near(expect.snd_una, ack));
            let segment =
                Segment { seq, ack, flags: Flags(flags), wnd, payload, ..segment(peer, local) };
            segment.emit(&LinkHeader::Ip, buf).ok()
        }
        Frame::Error { icmp_type, code, seq, quoted } => {
            let seq = near(expect.snd_una - 1, seq);
            let mut quote = [0; 128];
            let probe = Segment { seq, ..segment(local, peer) };
            let len = probe.emit(&LinkHeader::Ip, &mut quote).ok()?;
            let quote = &quote[..len.min(usize::from(quoted))];
            let (_, router) = tuple(case.v6);
            let ip = IpHeader { src: router.ip(), dst: local.ip(), ttl: 63, id: 0 };
            emit_error(&ip, icmp_type, code, quote, &LinkHeader::Ip, buf).ok()
        }
    }
}

/// The rules of design.md, 9 to 11, on distances instead of numbers.
fn may_be_believed(case: &Case, expect: &Expect) -> bool {
    if !matches!(case.other_tuple % 8, 0 | 5..) {
        return false;
    }
    match case.frame {
        Frame::Error { seq, quoted, .. } => {
            let ports_and_seq = if case.v6 { 48 } else { 28 };
            let asked = expect.phase == Phase::SynSent || expect.probe_outstanding;
            seq == 0 && asked && quoted >= ports_and_seq && expect.phase != Phase::Closed
        }
        Frame::Segment { flags, seq, ack, .. } => {
            let [syn, rst, acks] = [0x02, 0x04, 0x10].map(|bit| flags & bit != 0);
            if expect.phase == Phase::SynSent {
                return acks && ack == 0 && (syn || rst);
            }
            if rst {
                let drawn = seq == -i32::from(case.moved) && expect.probe_outstanding;
                return drawn || (seq == 0 && expect.phase == Phase::Open);
            }
            let acceptable = acks && (ack == 0 || (ack == 1 && case.fin_sent));
            // The largest window that scaling allows, where the scale is not known.
            let window = match expect.given {
                true => -(1 << 30)..1 << 30,
                false => -i64::from(expect.past.octets())..65_535,
            };
            acceptable && if syn { seq == -1 } else { window.contains(&i64::from(seq)) }
        }
    }
}
