//! Flows that somebody else has opened: probes, and nothing else, ever.

use crate::io::{PathId, PathInfo};
use crate::probe::evidence::Seen;
use crate::probe::flow::{Flow, Stage};
use crate::probe::given::{Given, TimestampClock};
use crate::probe::matcher::Rejection;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Close, Plan, ProbeBytes};
use crate::probe::script::{ACK, DATA, FIN, RST, SYN_ACK, Say, Script, plan, resting};
use crate::probe::sender::{Interruption, Poll, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::probe::{Slot, TargetId};
use crate::time::Instant;
use crate::wire::{Checksums, LinkType, MacAddr, Packet, SeqNumber, Timestamps, parse};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

const PROBE: &str = "0 [.] 0 ack 1";

fn given() -> Script {
    Script::given(plan(), |_| ())
}

/// The timestamps of the frames sent, in order.
fn timestamps(script: &Script) -> Vec<Option<Timestamps>> {
    let of = |frame: &Vec<u8>| match parse(frame, LinkType::Ip, Checksums::Verify) {
        Ok(Packet::Tcp(segment)) => segment.options.timestamps,
        other => panic!("{other:?}"),
    };
    script.frames.iter().map(of).collect()
}

#[test]
fn a_keepalive_is_answered_and_nothing_follows() {
    let mut script = given();
    script.sent(&[PROBE]);
    script.at(3);
    script.hear(ACK);
    let verdict = &script.said(&["alive/ack"])[0];
    assert_eq!(verdict.local, Some(([10, 98, 0, 1], 40_000).into()));
    assert_eq!(verdict.rtt, Some(Duration::from_millis(3)));
    let sighting = verdict.evidence[0];
    assert_eq!((sighting.seg_seq, sighting.seg_ack), (Some(SeqNumber(1)), Some(SeqNumber(1))));
    assert!(script.done, "nothing is under way");
    script.at(60_000);
    script.sent(&[]);
}

#[test]
fn silence_takes_the_whole_plan_and_leaves_the_connection_alone() {
    for close in [Close::Rst, Close::Fin] {
        let mut script = Script::given(Plan { close, ..plan() }, |_| ());
        script.at(4_999);
        script.said(&[]);
        script.at(60_000);
        script.said(&["down/silent"]);
        script.sent(&[
            PROBE,
            "1000 [.] 0 ack 1",
            "2000 [.] 0 ack 1",
            "3000 [.] 0+1 ack 1",
            "4000 [.] 0+1 ack 1",
        ]);
        assert!(script.done);
    }
}

#[test]
fn windows_are_the_flows_own_and_vary() {
    for (wnd, expected) in [
        (502, [501, 500, 499, 498, 497]),
        (65_535, [65_534, 65_533, 65_532, 65_531, 65_530]),
        (3, [2, 1, 3, 2, 1]),
        (1, [1; 5]),
    ] {
        let mut script = Script::given(plan(), |given| given.wnd = wnd);
        script.at(5_000);
        assert_eq!(script.windows(), expected);
    }
}

#[test]
fn the_rest_comes_first() {
    let mut script = Script::given(resting(), |_| ());
    script.at(9_999);
    script.hear(ACK);
    script.hear(DATA);
    script.said(&[]);
    script.sent(&[]);
    script.at(10_000);
    // What came in the rest is the owner's to acknowledge.
    script.sent(&["10000 [.] 0 ack 1"]);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

#[test]
fn data_fin_and_keepalives_of_the_peers_are_life_and_get_no_answer() {
    for (say, said) in [
        (DATA, "alive/data"),
        (FIN, "alive/closed-by-peer"),
        (Say { seq: 0, ..ACK }, "alive/ack"),
        (Say { wnd: 0, ..ACK }, "alive/zero-window"),
        (Say { seq: 0, len: 1, ..ACK }, "alive/ack"),
        (SYN_ACK, "alive/ack"),
        (Say { flags: 0x14, ack: 1, ..RST }, "alive/closed-by-peer"),
    ] {
        let mut script = given();
        script.sent(&[PROBE]);
        script.hear(say);
        script.said(&[said]);
        script.hear(say);
        script.hear(DATA);
        script.at(60_000);
        script.sent(&[]);
        script.said(&[]);
        assert!(script.done);
    }
}

/// Nobody took in what the peer has sent since, up to the largest window.
#[test]
fn a_peer_that_is_far_ahead_is_alive() {
    for seq in [1, 2, 100_000, (1 << 30) - 1] {
        let mut script = given();
        script.hear(Say { seq, ..ACK });
        script.said(&["alive/ack"]);
        let mut script = given();
        script.hear(Say { seq, ..DATA });
        script.said(&["alive/data"]);
    }
    for seq in [1 + (1 << 30), 1 << 31] {
        let mut script = given();
        script.hear(Say { seq, ..ACK });
        script.said(&[]);
        assert_eq!(script.rejected(Rejection::SeqOutOfWindow), 1);
    }
}

/// The owner has sent more since the flow was written down: neither an answer nor silence.
#[test]
fn an_acknowledgment_of_something_else_is_not_believed_and_clears_of_suspicion() {
    for ack in [0, 2, 5_000] {
        let mut script = given();
        script.hear(Say { ack, ..ACK });
        script.said(&[]);
        assert_eq!(script.rejected(Rejection::AckUnacceptable), 1);
        script.at(5_000);
        script.said(&["undetermined/unprobeable"]);
    }
    let mut script = given();
    script.hear(Say { ack: 2, ..ACK });
    script.at(1_000);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

#[test]
fn a_reset_that_answers_a_probe_means_rebooted() {
    let mut script = given();
    script.hear(Say { seq: 0, ..RST });
    script.hear(Say { seq: 2, ..RST });
    script.said(&[]);
    assert_eq!(script.rejected(Rejection::RstSeq), 2);
    // There is no earlier TTL to compare with.
    script.hear(Say { ttl: 17, ..RST });
    script.said(&["rebooted/reset"]);
    assert!(script.done);
    script.sent(&[PROBE]);
}

#[test]
fn a_late_answer_corrects_and_is_not_answered() {
    let mut script = given();
    script.at(5_000);
    script.said(&["down/silent"]);
    assert!(!script.done, "an answer to the last probe may be under way");
    script.at(5_500);
    script.hear(ACK);
    script.said(&["correction alive/ack"]);
    script.hear(FIN);
    script.at(6_999);
    assert!(!script.done);
    script.at(7_000);
    assert!(script.done, "3 s after the last probe");
    assert_eq!(script.frames.len(), 5);
}

#[test]
fn icmp_counts_as_on_flows_of_our_own() {
    let mut script = given();
    script.icmp(3, 1, script.last());
    script.said(&[]);
    script.at(1_000);
    script.icmp(3, 1, script.last());
    script.said(&["unreachable/icmp-host"]);
    script.at(60_000);
    assert_eq!(script.frames.len(), 2);
}

#[test]
fn what_must_not_be_probed_is_not() {
    let obstacles = [Seen::KernelOwned, Seen::NotLocal];
    let rows = obstacles.map(|seen| (Some(seen), 1001, seen));
    for (obstacle, snd_nxt, seen) in rows.into_iter().chain([(None, 1002, Seen::DataInFlight)]) {
        let mut script = Script::given(plan(), |given| {
            given.obstacle = obstacle;
            given.snd_nxt = SeqNumber(snd_nxt);
        });
        let verdict = &script.said(&["undetermined/unprobeable"])[0];
        assert_eq!(verdict.evidence[0].kind, seen);
        assert_eq!(verdict.local, Some(([10, 98, 0, 1], 40_000).into()));
        script.receive(ACK, 40_000);
        assert_eq!(script.rejected(Rejection::NoFlow), 1);
        script.at(60_000);
        script.sent(&[]);
        assert!(script.done);
    }
}

#[test]
fn an_interruption_waits_for_answers_under_way_and_sends_nothing() {
    let mut script = given();
    script.sent(&[PROBE]);
    script.at(200);
    script.sender.interrupt(script.now, Interruption::Wanted);
    script.sender.hurry(script.now);
    script.at(200);
    script.said(&["undetermined/interrupted"]);
    script.at(2_999);
    assert!(!script.done);
    script.at(3_000);
    assert!(script.done);
    script.sent(&[]);

    let mut script = Script::given(resting(), |_| ());
    script.at(200);
    script.sender.interrupt(script.now, Interruption::Wanted);
    script.at(200);
    assert!(script.done, "nothing was asked");
    script.sent(&[]);
}

#[test]
fn timestamps_are_live_and_tell_which_probe_was_answered() {
    let clock =
        TimestampClock { ts_recent: 77, ts_offset: u32::MAX - 1_499, in_microseconds: false };
    let octets = Plan { probe_bytes: ProbeBytes::One, ..plan() };
    for plan in [plan(), octets] {
        let mut script = Script::given(plan, |given| given.clock = Some(clock));
        script.at(1_007);
        // The sweep starts at 1 s of CLOCK_MONOTONIC.
        let tsval = |at: u32| Some(Timestamps { tsval: at.wrapping_sub(500), tsecr: 77 });
        assert_eq!(timestamps(&script), [tsval(0), tsval(1_000)]);
        script.options.timestamps = Some(Timestamps { tsval: 78, tsecr: 500 });
        script.hear(ACK);
        assert_eq!(script.said(&["alive/ack"])[0].rtt, Some(Duration::from_millis(7)));
        assert!(script.done);
    }
    // Neither stamped nor the only one: it may answer either.
    let mut script = Script::given(plan(), |given| given.clock = Some(clock));
    script.at(1_007);
    script.hear(ACK);
    assert_eq!(script.said(&["alive/ack"])[0].rtt, None);
    script.at(3_999);
    assert!(!script.done);
    script.at(4_000);
    assert!(script.done);
}

/// Handed out, then judged, then refused: the flow still comes to its end, and owes nothing.
#[test]
fn a_probe_that_did_not_leave_is_not_owed_after_the_verdict() {
    let given = Given::example(40_000);
    let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
    for refused in [true, false] {
        let mut flow = Flow::given(&given);
        flow.take_up(at(1), &plan());
        let kind = flow.next_segment(at(1), &plan()).expect("a probe");
        flow.close(&plan(), false, false);
        if refused {
            flow.refuse(kind, at(1));
        } else {
            flow.take_back(kind);
        }
        assert!(!flow.owes());
        assert_eq!((flow.stage, flow.deadline), (Stage::Lingering, at(4)));
        flow.expire(&plan());
        assert_eq!(flow.stage, Stage::Closed);
    }
    // Before the verdict it is owed again.
    let mut flow = Flow::given(&given);
    flow.take_up(at(1), &plan());
    let kind = flow.next_segment(at(1), &plan()).expect("a probe");
    flow.take_back(kind);
    assert!(flow.owes());

    // What was refused is no repeat, neither the first probe nor the second.
    let mut flow = Flow::given(&given);
    flow.take_up(at(1), &plan());
    for (sent, second) in [(1, 1), (2, 10)] {
        for second in second..second + 3 {
            let kind = flow.next_segment(at(second), &plan()).expect("a probe");
            flow.refuse(kind, at(second));
            flow.expire(&plan());
        }
        flow.next_segment(at(second + 3), &plan()).expect("a probe");
        assert_eq!((flow.repeats, flow.sent_in_all), (sent - 1, sent));
        flow.expire(&plan());
    }
}

/// A sender that is to open `owned` connections and to take up `given`, all to one peer.
fn sender(owned: u32, given: Vec<Given>, source_ports: RangeInclusive<u16>) -> Sender {
    Sender::new(start(owned, given, source_ports)).expect("a sender")
}

fn start(owned: u32, given: Vec<Given>, source_ports: RangeInclusive<u16>) -> Start {
    let (source, peer) = (IpAddr::from([10, 98, 0, 1]), SocketAddr::from(([10, 99, 0, 7], 80)));
    let path = PathInfo {
        id: PathId(0),
        interface: "test0".into(),
        link: LinkType::Ip,
        mac: MacAddr::default(),
        mtu: 1500,
    };
    let all = owned + given.len() as u32;
    let target = |id| Target { id: TargetId(id), peer, hop: Some(HopId(0)) };
    Start {
        plan: plan(),
        targets: (0..all).map(target).collect(),
        given,
        first_slot: 0,
        hops: vec![Hop { path: PathId(0), next_hop: peer.ip(), source }],
        paths: vec![path],
        resolve: true,
        source_ports,
        table: Arc::new(Table::with_capacity(all as usize, Family::V4, [1, 2])),
        now: Instant::ZERO,
    }
}

#[test]
fn slots_have_their_turns_in_order_and_given_ones_evenly_among_them() {
    let given = |count: u16| (0..count).map(|n| Given::example(50_000 + n)).collect();
    for (owned, flows, expected) in [
        (4, 0, vec![0, 1, 2, 3]),
        (0, 3, vec![0, 1, 2]),
        (4, 2, vec![0, 4, 1, 2, 5, 3]),
        (1, 3, vec![0, 1, 2, 3]),
    ] {
        let mut sender = sender(owned, given(flows), 61_000..=61_999);
        let mut turns = Vec::new();
        while let Poll::Transmit(due) = sender.poll_transmit(Instant::ZERO) {
            turns.extend(due.slot.map(|Slot(slot)| slot));
        }
        assert_eq!(turns, expected, "{owned} opened, {flows} given");
    }
}

/// A verdict is about the target, whatever its slot.
#[test]
fn a_verdict_names_the_target_and_not_its_slot() {
    let mut start = start(3, vec![Given::example(50_000)], 61_000..=61_999);
    start.first_slot = 7;
    start.table = Arc::new(Table::with_capacity(16, Family::V4, [1, 2]));
    for (target, id) in start.targets.iter_mut().zip([30, 10, 20, 40]) {
        target.id = TargetId(id);
    }
    let mut sender = Sender::new(start).expect("a sender");
    let mut slots = Vec::new();
    while let Poll::Transmit(due) = sender.poll_transmit(Instant::ZERO) {
        slots.extend(due.slot.map(|Slot(slot)| slot));
    }
    assert_eq!(slots, [7, 10, 8, 9]);
    sender.interrupt(Instant::ZERO, Interruption::Wanted);
    let verdicts = std::iter::from_fn(|| sender.poll_verdict());
    let mut told: Vec<_> = verdicts.map(|verdict| (verdict.target.0, verdict.local)).collect();
    told.sort_unstable();
    let ids: Vec<_> = told.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [10, 20, 30, 40]);
    assert_eq!(told[3].1, Some(SocketAddr::from(([10, 98, 0, 1], 50_000))), "the given one");
}

/// A connection that we open must not be on the 4-tuple of a given one.
#[test]
fn targets_leave_the_tuples_of_given_flows_alone() {
    for taken in [61_000, 61_001] {
        let mut sender = sender(1, vec![Given::example(taken)], 61_000..=61_001);
        let mut sent = Vec::new();
        while let Poll::Transmit(due) = sender.poll_transmit(Instant::ZERO) {
            let mut frame = [0; 256];
            let len = sender.emit(&due, &mut frame).expect("a frame");
            let Ok(Packet::Tcp(segment)) = parse(&frame[..len], LinkType::Ip, Checksums::Verify)
            else {
                panic!("TCP")
            };
            sent.push((segment.flags.0, segment.src_port));
        }
        sent.sort_unstable();
        let free = if taken == 61_000 { 61_001 } else { 61_000 };
        assert_eq!(sent, [(0x02, free), (0x10, taken)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever the peer says and whenever: keepalives with the given numbers, and nothing else.
    #[test]
    fn nothing_but_probes_is_ever_sent(
        idle in prop_oneof![Just(0u64), Just(2)], fin: bool, clock: bool, wnd in 1u16..,
        says in prop::collection::vec(
            (0u64..4_000, 0u8..64, 0u32..4, 0u32..3, 0usize..3, any::<bool>(), any::<bool>()), 0..30,
        ),
        interrupted in prop::option::of(0usize..30),
    ) {
        let mut plan = plan();
        plan.keepalive.idle = Duration::from_secs(idle);
        plan.close = if fin { Close::Fin } else { Close::Rst };
        let clock = clock.then_some(TimestampClock { ts_recent: 7, ts_offset: 9, in_microseconds: false });
        let mut script = Script::given(plan, |given| (given.wnd, given.clock) = (wnd, clock));
        let mut now = 0;
        for (index, (wait, flags, seq, ack, len, open, icmp)) in says.into_iter().enumerate() {
            now += wait;
            script.at(now);
            if interrupted == Some(index) {
                script.sender.interrupt(script.now, Interruption::Wanted);
            }
            if icmp && !script.frames.is_empty() {
                script.icmp(3, 1, script.last());
            }
            script.hear(Say { flags, seq, ack, len, wnd: u16::from(open), ttl: 60 });
        }
        script.at(now + 60_000);
        prop_assert!(script.done);
        let frames = script.frames.len();
        prop_assert!(frames <= 5, "{frames} probes");
        for frame in &script.frames {
            let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ip, Checksums::Verify) else {
                return Err(TestCaseError::fail("not TCP"));
            };
            prop_assert_eq!(segment.flags.0, 0x10);
            prop_assert_eq!((segment.seq, segment.ack), (SeqNumber(1000), SeqNumber(0)));
            prop_assert!(segment.payload.len() <= 1);
            prop_assert!(segment.wnd > 0 && segment.wnd <= wnd);
            prop_assert_eq!(segment.options.timestamps.is_some(), clock.is_some());
        }
        // Exactly one verdict, and corrections only after it.
        let verdicts = script.said_all();
        prop_assert_eq!(verdicts.iter().filter(|verdict| !verdict.correction).count(), 1);
    }
}
