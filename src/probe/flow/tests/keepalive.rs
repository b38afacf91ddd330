//! Rules 1 to 6, 9, 10, 14: keepalives, their answers, and what the peer sends of itself.

use crate::probe::evidence::Seen;
use crate::probe::flow::Flow;
use crate::probe::matcher::{Rejection, Reply, ReplyKind, match_segment};
use crate::probe::plan::{Keepalive, Plan, ProbeBytes};
use crate::probe::script::{ACK, DATA, FIN, RST, SYN_ACK, Say, Script, plan, resting};
use crate::probe::table::{Family, FlowKey, Table};
use crate::probe::{Generation, Slot};
use crate::time::Instant;
use crate::wire::{Flags, IpHeader, Options, Segment, SeqNumber};
use std::net::SocketAddr;
use std::time::Duration;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The peer aborts of itself (tcp_send_active_reset): it knows our SND.NXT.
const ABORT: Say = Say { flags: 0x14, ack: 1, ..RST };

#[test]
fn empty_keepalives_then_one_octet_before_snd_una() {
    let mut script = Script::probing();
    script.at(15_019);
    script.sent(&[
        "10020 [.] 0 ack 1",
        "11020 [.] 0 ack 1",
        "12020 [.] 0 ack 1",
        "13020 [.] 0+1 ack 1",
        "14020 [.] 0+1 ack 1",
    ]);
    script.said(&[]);
    script.at(15_020);
    assert_eq!(script.said(&["down/silent"])[0].probes, 5);
    // Conntrack shortens the entry of a flow that repeats itself exactly.
    let windows = script.windows();
    assert!(windows[3..8].windows(2).all(|pair| pair[0] != pair[1]), "{windows:?}");
    assert!(windows.iter().all(|&window| window > 0));
}

#[test]
fn one_octet_throughout_but_never_into_a_zero_window() {
    let octets = Plan { probe_bytes: ProbeBytes::One, ..resting() };
    let mut script = Script::probing_under(octets);
    script.sent(&["10020 [.] 0+1 ack 1"]);

    let mut script = Script::new(octets);
    script.hear(SYN_ACK);
    script.hear(ACK);
    script.at(100);
    script.hear(Say { wnd: 0, ..ACK });
    // Sent before the window closed, overtaken by what says that it did.
    script.hear(Say { wnd: 1000, seq: 0, ..ACK });
    script.at(11_000);
    script.sent(&[
        "0 [S] 0",
        "0 [.] 1 ack 1",
        "0 [.] 0 ack 1",
        "100 [.] 1 ack 1",
        "10000 [.] 0 ack 1",
        "11000 [.] 0 ack 1",
    ]);
    script.hear(Say { wnd: 0, ..ACK });
    script.said(&["alive/zero-window"]);
}

/// Linux answers one empty keepalive per 500 ms; those with an octet are exempt.
#[test]
fn empty_keepalives_keep_their_distance() {
    let keepalive = Keepalive { idle: ms(1), interval: ms(100), count: 4 };
    let mut script = Script::confirmed(Plan { keepalive, ..plan() });
    script.at(2_000);
    // The confirming keepalive was sent at 10 ms and answered at 20.
    script.sent(&[
        "520 [.] 0 ack 1",
        "1020 [.] 0 ack 1",
        "1520 [.] 0+1 ack 1",
        "1620 [.] 0+1 ack 1",
        "1720 [R.] 1 ack 1",
        "1920 [R.] 1 ack 1",
    ]);
    script.said(&["down/silent"]);
}

#[test]
fn a_reset_that_answers_a_keepalive_means_rebooted() {
    let mut script = Script::probing();
    script.hear(Say { seq: 2, ..RST });
    script.hear(Say { seq: 0, ..RST });
    script.said(&[]);
    assert_eq!(script.rejected(Rejection::RstSeq), 2);
    script.hear(RST);
    script.said(&["rebooted/reset"]);
    script.sent(&["10020 [.] 0 ack 1"]);
    assert!(script.done);
}

#[test]
fn a_reset_with_a_foreign_ttl_points_at_the_path() {
    let mut script = Script::probing();
    script.hear(Say { ttl: 63, ..RST });
    script.said(&["unreachable/path-reset"]);
    // The peer behind it may still hold the connection.
    script.sent(&["10020 [.] 0 ack 1", "10020 [R.] 1 ack 1"]);
}

#[test]
fn a_reset_in_the_rest_is_the_peer_closing() {
    let mut script = Script::confirmed(resting());
    script.at(5_000);
    script.hear(RST);
    script.said(&["alive/closed-by-peer"]);
    script.sent(&[]);
    assert!(script.done);
}

/// The application aborts as soon as it has accepted: matched while the keepalive was outstanding,
/// heard after its answer.
#[test]
fn a_reset_behind_the_answer_is_the_peer_closing() {
    let mut script = Script::new(resting());
    script.hear(SYN_ACK);
    script.hear_together(&[ACK, RST]);
    script.said(&["alive/closed-by-peer"]);
}

/// Who has no connection takes SEG.SEQ from our SEG.ACK and sends no ACK (RFC 9293 §3.5.2), or
/// acknowledges the keepalive itself; only who has one knows SND.NXT.
#[test]
fn an_abort_while_a_keepalive_is_out_is_the_peer_closing() {
    let mut script = Script::probing();
    script.hear(ABORT);
    script.said(&["alive/closed-by-peer"]);

    let mut script = Script::probing();
    script.hear(Say { ack: 0, ..ABORT });
    script.said(&["rebooted/reset"]);
}

#[test]
fn the_peers_own_segments_are_acknowledged_in_the_rest() {
    let mut script = Script::confirmed(resting());
    script.at(1_000);
    script.hear(DATA);
    // A gap before it: what is missing is asked for.
    script.hear(Say { seq: 21, ..DATA });
    // Keepalives of its own, empty and with an octet.
    script.hear(Say { seq: 10, ..ACK });
    script.hear(Say { seq: 10, len: 1, ..DATA });
    // An acknowledgment wants no answer; numbers that are not ours get none.
    script.hear(Say { seq: 11, ..ACK });
    script.hear(Say { seq: 10, ack: 2, ..ACK });
    script.sent(&[
        "1000 [.] 1 ack 11",
        "1000 [.] 1 ack 11",
        "1000 [.] 1 ack 11",
        "1000 [.] 1 ack 11",
    ]);
    assert_eq!(script.rejected(Rejection::AckUnacceptable), 1);
    script.at(10_020);
    script.sent(&["10020 [.] 0 ack 11"]);
    script.hear(Say { seq: 11, ..RST });
    script.said(&["rebooted/reset"]);
}

#[test]
fn life_while_a_keepalive_is_out() {
    for (say, reason) in [
        (ACK, "alive/ack"),
        // The peer has sent something that we missed.
        (Say { seq: 50, ..ACK }, "alive/ack"),
        (Say { seq: 0, ..ACK }, "alive/ack"),
        (Say { wnd: 0, ..ACK }, "alive/zero-window"),
        (DATA, "alive/data"),
        // A FIN out of order is repeated; until then it is as good as data.
        (Say { seq: 50, ..FIN }, "alive/data"),
        (FIN, "alive/closed-by-peer"),
    ] {
        let mut script = Script::probing();
        script.hear(say);
        script.said(&[reason]);
    }
}

#[test]
fn a_fin_in_the_rest_is_answered_by_ours() {
    let mut script = Script::confirmed(resting());
    script.at(5_000);
    script.hear(Say { len: 5, ..FIN });
    script.said(&["alive/closed-by-peer"]);
    script.sent(&["5000 [F.] 1 ack 7"]);
    script.at(5_010);
    script.hear(Say { seq: 7, ack: 2, ..ACK });
    assert!(script.done);
}

/// Karn: no sample from a repeat, nor from what is not an answer.
#[test]
fn round_trip_times_come_from_answers_alone() {
    let mut script = Script::probing();
    script.at(10_050);
    script.hear(ACK);
    assert_eq!(script.said(&["alive/ack"])[0].rtt, Some(ms(30)));

    let handshake = Some(ms(10));
    for unasked in [DATA, FIN, Say { seq: 0, ..ACK }] {
        let mut script = Script::probing();
        script.at(10_900);
        script.hear(unasked);
        let verdicts = script.said_all();
        assert_eq!(verdicts[0].rtt, handshake, "{unasked:?}");
    }
    let mut script = Script::probing();
    script.at(11_030);
    script.hear(ACK);
    assert_eq!(script.said(&["alive/ack"])[0].rtt, handshake);
}

#[test]
fn evidence_counts_from_the_first_probe_and_is_bounded() {
    let mut script = Script::probing();
    script.at(11_520);
    script.hear(ACK);
    let verdict = &script.said(&["alive/ack"])[0];
    let seen: Vec<_> = verdict.evidence.iter().map(|seen| (seen.kind, seen.at)).collect();
    assert_eq!(seen, [(Seen::Ack, ms(1_500))]);
    assert_eq!(verdict.evidence[0].seg_seq, Some(SeqNumber(1)));
    assert_eq!(verdict.evidence[0].seg_ack, Some(SeqNumber(1)));

    // A flood while the connection rests, then the FIN: the first few, and what decided.
    let mut script = Script::confirmed(resting());
    script.at(1_000);
    (0..40).for_each(|_| script.hear(Say { seq: 0, ..ACK }));
    script.hear(FIN);
    let verdict = &script.said(&["alive/closed-by-peer"])[0];
    assert_eq!(verdict.evidence.len(), 8);
    assert_eq!(verdict.evidence.last().map(|seen| seen.kind), Some(Seen::Fin));
    assert_eq!(verdict.replies, 42);

    // Before the first keepalive there is nothing to count from.
    let mut script = Script::new(Plan { rate_pps: Some(1), ..plan() });
    script.at(500);
    script.hear(SYN_ACK);
    script.at(1_500);
    script.hear(DATA);
    assert_eq!(script.said(&["alive/data"])[0].evidence[0].at, ms(0));
}

/// Both ends of the number space: every comparison wraps.
#[test]
fn numbers_wrap() {
    let local = SocketAddr::from(([10, 0, 0, 1], 61000));
    let peer = SocketAddr::from(([10, 0, 0, 2], 80));
    let plan = resting();
    for iss in [u32::MAX - 2, u32::MAX - 1, u32::MAX, 0, 0x7fff_ffff] {
        for irs in [u32::MAX - 12, u32::MAX - 11, u32::MAX - 1, u32::MAX, 0, 0x7fff_ffff] {
            let (iss, irs) = (SeqNumber(iss), SeqNumber(irs));
            let table = Table::with_capacity(1, Family::V4, [1, 2]);
            let mut flow = Flow::new();
            flow.open(61000, iss);
            let generation =
                table.insert(Slot(0), &FlowKey { local, peer }, &flow.expect()).unwrap();
            let say = |flags: u8, seq: u32, ack: u32, len: usize| -> Result<Reply, Rejection> {
                let segment = Segment {
                    ip: IpHeader { src: peer.ip(), dst: local.ip(), ttl: 64, id: 0 },
                    src_port: 80,
                    dst_port: 61000,
                    seq: irs + seq,
                    ack: iss + ack,
                    flags: Flags(flags),
                    wnd: 100,
                    options: Options::default(),
                    payload: &[0; 10][..len],
                };
                match_segment(&table, &segment, Instant::ZERO)
            };
            let step = |flow: &mut Flow, reply: Result<Reply, Rejection>| {
                let reply = reply.unwrap();
                assert_eq!(reply.generation, generation);
                flow.handle(&reply, &plan);
                while flow.next_segment(Instant::ZERO, &plan).is_some() {}
                table.publish(Slot(0), &flow.expect());
                reply.kind
            };
            flow.next_segment(Instant::ZERO, &plan);
            assert_eq!(step(&mut flow, say(0x12, 0, 1, 0)), ReplyKind::SynAck);
            assert_eq!(step(&mut flow, say(0x10, 1, 1, 0)), ReplyKind::Ack);
            let next = irs + 11;
            assert_eq!(step(&mut flow, say(0x18, 1, 1, 10)), ReplyKind::Data { next });
            assert_eq!(flow.rcv_nxt, next);
            // Repeated, the peer's keepalive, beyond a gap.
            assert_eq!(step(&mut flow, say(0x18, 1, 1, 10)), ReplyKind::Data { next });
            assert_eq!(step(&mut flow, say(0x10, 10, 1, 1)), ReplyKind::Ack);
            assert_eq!(step(&mut flow, say(0x18, 12, 1, 5)), ReplyKind::Data { next });
            assert_eq!(say(0x10, 11, 0, 0), Err(Rejection::AckUnacceptable));
            assert_eq!(say(0x10, 11, 2, 0), Err(Rejection::AckUnacceptable));
            assert_eq!(say(0x04, 12, 0, 0), Err(Rejection::RstSeq));
            assert_eq!(step(&mut flow, say(0x11, 11, 1, 0)), ReplyKind::Fin { next: next + 1 });
            assert_eq!(flow.generation, Generation(0), "set by the owner alone");
        }
    }
}
