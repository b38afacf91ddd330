//! Connections of this host's kernel: probed so that they survive the answer, and never accused before
//! the kernel was asked again.

use crate::io::PathId;
use crate::probe::classify::State;
use crate::probe::evidence::Seen;
use crate::probe::given::TimestampClock;
use crate::probe::health::Scope;
use crate::probe::host::{Host, Reading, Wire};
use crate::probe::plan::{Plan, ProbeBytes};
use crate::probe::script::{ACK, FIN, RST, Say, Script, plan, resting};
use crate::probe::sender::Interruption;
use crate::probe::table::FlowKey;
use crate::time::Instant;
use crate::wire::{Checksums, LinkType, Packet, Timestamps, parse};
use proptest::prelude::*;
use std::time::Duration;

/// The answer to an old-ack probe of a host without the connection.
const OLD_RST: Say = Say { seq: u32::MAX, ..RST };
const OLD: &str = "0 [.] 0 ack -1";
const EXACT: &str = "0 [.] 0 ack 1";

fn host() -> Script {
    Script::host(plan(), |_| ())
}

/// The peer has never sent more than one octet.
fn fresh() -> Script {
    Script::host(plan(), |host| {
        host.first.bytes_received = 1;
        host.latest.bytes_received = 1;
    })
}

fn evidence(script: &mut Script, said: &str) -> Vec<Seen> {
    script.said(&[said])[0].evidence.iter().map(|sighting| sighting.kind).collect()
}

#[test]
fn the_first_probe_acknowledges_what_is_old_and_an_answer_ends_it() {
    let mut script = host();
    script.sent(&[OLD]);
    script.at(3);
    script.hear(ACK);
    assert_eq!(evidence(&mut script, "alive/ack"), [Seen::Ack]);
    assert!(script.done, "nothing has to be kept from the kernel");
    assert_eq!(script.holds(), [false; 0]);
    assert_eq!(script.sender.wants_reading(), None);
}

#[test]
fn silence_takes_the_whole_plan_half_of_it_under_a_hold_and_a_reading_before_each_step() {
    let mut script = host();
    for second in 1..=2 {
        script.at(second * 1_000);
        script.sent(if second == 1 { &[OLD] } else { &["1000 [.] 0 ack -1"] });
        script.read(|_| ());
    }
    script.at(3_000);
    script.sent(&["2000 [.] 0 ack -1"]);
    script.read(|_| ());
    script.sent(&[]);
    script.hold(true);
    script.sent(&["3000 [.] 0+1 ack 1"]);
    script.at(4_000);
    script.read(|_| ());
    assert_eq!(script.holds(), [false; 0]);
    script.at(5_000);
    script.sent(&["4000 [.] 0+1 ack 1"]);
    script.said(&[]);
    script.read(|_| ());
    let verdict = &script.said(&["down/silent"])[0];
    assert_eq!((verdict.probes, verdict.replies), (5, 0));
    script.at(6_999);
    assert_eq!(script.holds(), [false; 0], "an answer may be under way");
    script.at(7_000);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);
}

/// The flow's packets have these ends on the wire.
fn wire(port: u16) -> Wire {
    Wire::Other(FlowKey { local: ([10, 9, 9, 9], port).into(), peer: ([10, 8, 8, 8], 80).into() })
}

#[test]
fn resets_are_held_by_the_ends_on_the_wire_as_they_are_now() {
    let mut script = Script::host(plan(), |host| {
        (host.first.bytes_received, host.latest.bytes_received) = (0, 0);
        host.latest.wire = wire(1);
    });
    let held = |script: &mut Script, expected: Wire| {
        let request = script.sender.poll_hold().expect("a request");
        assert_eq!((request.hold, request.wire, request.cookie), (true, expected, 7));
        script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
        script.listen();
    };
    held(&mut script, wire(1));
    script.sent(&[EXACT]);
    script.at(1_000);
    script.read(|reading| reading.wire = wire(2));
    script.sent(&[]);
    held(&mut script, wire(2));
    script.sent(&["1000 [.] 0 ack 1"]);
    script.at(2_000);
    script.read(|_| ());
    script.sent(&["2000 [.] 0 ack 1"]);
    assert_eq!(script.holds(), [false; 0], "they are held");
    // Refused, and over: those that are held are let go.
    script.at(3_000);
    script.read(|reading| reading.wire = Wire::Unknown);
    script.hold(false);
    script.read(|_| ());
    assert_eq!(evidence(&mut script, "undetermined/observer"), [Seen::TranslationUnknown]);
    script.at(10_000);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);
}

/// Nobody listens for ends on the wire that were not known when the receivers were opened.
#[test]
fn silence_from_ends_that_nobody_listens_for_accuses_nobody() {
    for (at_first, then) in [(Wire::Same, wire(1)), (wire(1), wire(2)), (wire(1), Wire::Unknown)] {
        let mut script = Script::host(plan(), |host| host.latest.wire = at_first);
        for second in 1..=5 {
            script.at(second * 1_000);
            script.read(|reading| reading.wire = if second < 3 { at_first } else { then });
            if script.holds().contains(&true) {
                script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
                script.listen();
            }
        }
        let seen = evidence(&mut script, "undetermined/observer");
        assert_eq!(seen, [Seen::TranslationUnknown], "{at_first:?} {then:?}");
    }
    // What is heard all the same is believed.
    let mut script = Script::host(plan(), |host| host.latest.wire = Wire::Unknown);
    script.hear(ACK);
    assert_eq!(evidence(&mut script, "alive/ack"), [Seen::Ack]);
}

#[test]
fn a_reset_that_only_the_socket_would_have_heard_is_one() {
    for (number, is_one) in [(0, true), (u32::MAX, false), (1, false)] {
        let mut script = fresh();
        script.hold(true);
        script.sent(&[EXACT]);
        script.at(1_000);
        script.read(|reading| reading.reset = Some(reading.rcv_nxt + number));
        if !is_one {
            script.sent(&["1000 [.] 0 ack 1"]);
            script.said(&[]);
            continue;
        }
        assert_eq!(evidence(&mut script, "rebooted/reset-or-rebind"), [Seen::KernelRst]);
        script.at(2_999);
        assert_eq!(script.holds(), [false; 0], "its copy may be under way");
        script.at(3_000);
        assert_eq!(script.holds(), [false]);
    }
}

/// To its peer it is another connection then, whether or not that has forgotten the one before.
#[test]
fn a_reset_of_what_is_translated_anew_may_be_for_that() {
    for (before, now, reason) in [
        (Wire::Same, Wire::Same, "rebooted/reset"),
        (Wire::Same, Wire::Unknown, "rebooted/reset"),
        (Wire::Unknown, Wire::Same, "rebooted/reset"),
        (wire(1), wire(1), "rebooted/reset"),
        (wire(1), Wire::Unknown, "rebooted/reset-or-rebind"),
        (wire(1), Wire::Same, "rebooted/reset-or-rebind"),
        (wire(1), wire(2), "rebooted/reset-or-rebind"),
        (Wire::Same, wire(1), "rebooted/reset-or-rebind"),
        (Wire::Unknown, wire(1), "rebooted/reset-or-rebind"),
    ] {
        let mut script = Script::host(plan(), |host| host.latest.wire = before);
        script.hear(OLD_RST);
        script.read(|reading| reading.wire = now);
        assert_eq!(evidence(&mut script, reason), [Seen::RstToProbe], "{before:?} {now:?}");
    }
}

/// The entry that was made for a probe goes with the RST that the probe has drawn.
#[test]
fn what_was_translated_anew_for_a_while_was_translated_anew() {
    let with = |wire: Wire| move |reading: &mut crate::probe::host::Reading| reading.wire = wire;
    let mut script = Script::host(plan(), |_| ());
    script.at(1_000);
    script.read(with(wire(1)));
    script.hear(OLD_RST);
    script.read(with(Wire::Same));
    assert_eq!(evidence(&mut script, "rebooted/reset-or-rebind"), [Seen::RstToProbe]);
    // Nobody has listened for the answers to some of the probes.
    let mut script = Script::host(plan(), |_| ());
    for second in 1..=5 {
        script.at(second * 1_000);
        script.read(with(if second == 2 { wire(1) } else { Wire::Same }));
        if script.holds().contains(&true) {
            script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
            script.listen();
        }
    }
    assert_eq!(evidence(&mut script, "undetermined/observer"), [Seen::TranslationUnknown]);
}

#[test]
fn at_least_one_probe_is_exact() {
    for (count, old, exact) in [(1, 1, 1), (2, 1, 1), (3, 2, 1), (4, 2, 2)] {
        let mut few = plan();
        few.keepalive.count = count;
        let mut script = Script::host(few, |_| ());
        let mut holds = 0;
        for second in 1..=10 {
            script.at(second * 1_000);
            if script.sender.wants_reading().is_some() {
                script.read(|_| ());
            }
            if script.holds().contains(&true) {
                holds += 1;
                script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
                script.listen();
            }
        }
        script.said(&["down/silent"]);
        assert_eq!((holds, script.frames.len()), (1, old + exact), "{count}");
    }
}

#[test]
fn the_kernel_has_the_last_word_before_silence() {
    for (second, change) in [(1, true), (4, true), (5, false)] {
        let mut script = host();
        for now in 1..=second {
            script.at(now * 1_000);
            if now < second {
                script.read(|_| ());
                if script.holds() == [true] {
                    script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
                    script.listen();
                }
            }
        }
        script.said(&[]);
        let now = script.now;
        script.read(|reading| match change {
            true => reading.last_ack_at = now,
            false => reading.bytes_received += 10,
        });
        let (said, seen) = match change {
            true => ("alive/ack", Seen::KernelAck),
            false => ("alive/data", Seen::KernelData),
        };
        assert_eq!(evidence(&mut script, said), [seen]);
        // The answer to an exact probe may be under way: to the second, of 4 s, until 7 s.
        assert_eq!(script.done, second == 1);
        if second > 1 {
            let last_exact = if second == 4 { 3_000 } else { 4_000 };
            script.at(last_exact + 2_999);
            assert_eq!(script.holds(), [false; 0], "{second}");
            script.at(last_exact + 3_000);
            assert_eq!(script.holds(), [false], "{second}");
            assert!(script.done);
        }
    }
}

/// A firewall may reset what the peer would have answered, and late.
#[test]
fn an_answer_lets_go_only_if_no_other_probe_can_draw_a_reset() {
    // The second exact probe is answered; so may the first be.
    let timestamps = |script: &Script| Some(Timestamps { tsval: 1, tsecr: tsval(script) });
    let clock = TimestampClock { ts_recent: 77, ts_offset: 5, in_microseconds: false };
    for (exact, lets_go) in [(1, 0), (2, 4_000)] {
        let mut script = Script::host(plan(), |host| {
            (host.first.bytes_received, host.latest.bytes_received) = (1, 1);
            host.latest.clock = Some(clock);
        });
        script.hold(true);
        if exact == 2 {
            script.at(1_000);
            script.read(|_| ());
        }
        assert_eq!(script.frames.len(), exact);
        script.options.timestamps = timestamps(&script);
        script.hear(ACK);
        let rtt = script.said(&["alive/ack"])[0].rtt;
        assert_eq!(rtt, Some(Duration::ZERO), "it is known which probe was answered");
        if exact == 2 {
            script.at(3_999);
            assert_eq!(script.holds(), [false; 0]);
            script.at(lets_go);
        }
        assert_eq!(script.holds(), [false]);
        assert!(script.done);
    }
}

/// Over the loopback the other end's probe, as good a sign of life, comes before the answer.
#[test]
fn an_answer_after_the_verdict_lets_go_too() {
    let mut script = fresh();
    script.hold(true);
    script.hear(Say { seq: 0, ..ACK });
    script.said(&["alive/ack"]);
    script.at(20);
    assert_eq!(script.holds(), [false; 0]);
    script.hear(ACK);
    script.said(&[]);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);
}

/// The TSval of the last frame.
fn tsval(script: &Script) -> u32 {
    let frame = script.frames.last().expect("one was sent");
    let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ip, Checksums::Verify) else {
        panic!("TCP")
    };
    segment.options.timestamps.expect("timestamps").tsval
}

#[test]
fn life_before_the_first_probe_needs_none() {
    let alive = |change: &dyn Fn(&mut Host), said: &str, seen: Seen| {
        let mut script = Script::host(plan(), |host| change(host));
        let verdict = &script.said(&[said])[0];
        assert_eq!((verdict.evidence[0].kind, verdict.probes), (seen, 0));
        script.sent(&[]);
        assert!(script.done);
    };
    alive(&|host| host.first.bytes_received -= 1, "alive/data", Seen::KernelData);
    alive(&|host| host.first.snd_una = host.first.snd_una - 1, "alive/ack", Seen::KernelAck);
    alive(
        &|host| host.first.rcv_nxt = host.first.rcv_nxt - 1,
        "alive/closed-by-peer",
        Seen::KernelFin,
    );
    let acked = |host: &mut Host| {
        host.first.at = Instant::ZERO;
        host.latest.last_ack_at = Instant::from_nanos(1);
    };
    alive(&acked, "alive/ack", Seen::KernelAck);
    let stopped = |host: &mut Host| {
        acked(host);
        host.latest.is_peer_window_zero = true;
    };
    alive(&stopped, "alive/zero-window", Seen::KernelAck);
}

/// A sweep may be slow to begin with a flow.
#[test]
fn an_old_reading_is_not_relied_on() {
    let old = |host: &mut Host| host.latest.at = Instant::from_nanos(400_000_000);
    let mut script = Script::host(plan(), old);
    script.sent(&[]);
    script.read(|reading| reading.is_in_flight = true);
    script.sent(&[]);
    let mut script = Script::host(plan(), old);
    script.read(|_| ());
    script.sent(&[OLD]);
}

#[test]
fn a_reset_is_believed_once_the_kernel_was_read() {
    let mut script = host();
    script.at(10);
    script.hear(OLD_RST);
    script.said(&[]);
    script.at(20);
    script.read(|_| ());
    assert_eq!(evidence(&mut script, "rebooted/reset"), [Seen::RstToProbe]);
    script.sent(&[OLD]);
    assert_eq!(script.holds(), [false; 0]);
    assert!(script.done);

    // It has gone on: whoever sent the reset does not speak for it.
    let mut script = host();
    script.hear(OLD_RST);
    let now = script.now;
    script.at(10);
    script.read(|reading| reading.last_ack_at = now + Duration::from_millis(1));
    assert_eq!(evidence(&mut script, "alive/ack"), [Seen::RstToProbe, Seen::KernelAck]);

    // The answer comes on the wire while the kernel is being read.
    let mut script = host();
    script.hear(OLD_RST);
    script.hear(ACK);
    script.said(&["alive/ack"]);
    assert!(script.done);
    let now = script.now;
    script.read(|reading| reading.last_ack_at = now);
    script.said(&[]);
}

#[test]
fn a_reset_where_no_probe_could_draw_one_is_the_peer_closing() {
    let mut script = host();
    // Its kernel's: it acknowledges what only it can know.
    script.hear(Say { flags: 0x14, ack: 1, ..RST });
    script.said(&["alive/closed-by-peer"]);
    let mut script = host();
    script.hear(RST);
    script.said(&["alive/closed-by-peer"]);
    let mut script = host();
    script.hear(Say { seq: 0, ..RST });
    script.hear(Say { seq: 2, ..RST });
    script.at(999);
    script.said(&[]);
}

#[test]
fn without_two_octets_nothing_is_sent_before_the_hold() {
    let mut script = fresh();
    script.at(100);
    script.sent(&[]);
    script.hold(true);
    script.sent(&["100 [.] 0 ack 1"]);
    script.at(110);
    script.hear(RST);
    script.read(|_| ());
    script.said(&["rebooted/reset"]);
    script.at(3_099);
    assert_eq!(script.holds(), [false; 0], "its copy may be under way");
    script.at(3_100);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);

    let mut script = fresh();
    script.hold(true);
    script.sent(&[EXACT]);
    script.hear(ACK);
    script.said(&["alive/ack"]);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);
}

#[test]
fn a_hold_that_is_refused_or_late_accuses_nobody() {
    let mut script = fresh();
    script.hold(false);
    script.read(|_| ());
    assert_eq!(evidence(&mut script, "undetermined/observer"), [Seen::NotHeld]);
    script.sent(&[]);
    assert!(script.done);

    let mut script = fresh();
    script.at(5_000);
    script.read(|_| ());
    assert_eq!(evidence(&mut script, "undetermined/observer"), [Seen::NotHeld]);
    script.sent(&[]);

    let mut script = host();
    for second in 1..=3 {
        script.at(second * 1_000);
        script.read(|_| ());
    }
    script.hold(false);
    script.read(|reading| reading.bytes_received += 1);
    script.said(&["alive/data"]);
    assert_eq!(script.frames.len(), 3);
}

#[test]
fn a_hold_that_comes_after_the_verdict_is_let_go() {
    let mut script = fresh();
    script.hear(ACK);
    script.said(&["alive/ack"]);
    assert_eq!(script.holds(), [true, false]);
    script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
    script.at(60_000);
    script.sent(&[]);
    assert!(script.done);
}

#[test]
fn data_in_flight_is_left_and_read_again() {
    let busy = |host: &mut Host| host.latest.is_in_flight = true;
    let mut script = Script::host(plan(), busy);
    script.at(100);
    script.read(|reading| reading.retransmits = 1);
    for second in 1..=3 {
        script.at(second * 1_000 + 100);
        script.read(|_| ());
    }
    script.at(4_100);
    script.said(&[]);
    script.read(|reading| reading.retransmits = 3);
    assert_eq!(evidence(&mut script, "undetermined/unprobeable"), [Seen::InFlight(3)]);
    script.sent(&[]);
    assert!(script.done);

    // Our own link is down, and has been for long.
    let mut script = Script::host(plan(), busy);
    script.at(100);
    for second in 0..5 {
        script.at(second * 1_000 + 100);
        let (scope, always) = (Scope::Path(PathId(0)), Instant::FAR_FUTURE);
        script.sender.note_trouble(scope, Seen::LinkDown, always);
        script.read(|_| ());
    }
    let seen = [Seen::InFlight(0), Seen::LinkDown];
    assert_eq!(evidence(&mut script, "undetermined/observer"), seen);

    // It is acknowledged, which is life.
    let mut script = Script::host(plan(), busy);
    script.at(100);
    script.read(|reading| reading.snd_una = reading.snd_una + 5);
    script.said(&["alive/ack"]);
    // Or heard on the wire before the kernel is read.
    let mut script = Script::host(plan(), busy);
    script.at(50);
    script.hear(ACK);
    script.said(&["alive/ack"]);
    // What came back without an acknowledgment can be probed.
    let mut script = Script::host(plan(), busy);
    script.at(100);
    script.read(|reading| reading.is_in_flight = false);
    script.sent(&["100 [.] 0 ack -1"]);
}

#[test]
fn data_that_leaves_between_two_probes_stops_them() {
    let mut script = host();
    script.at(1_000);
    script.sent(&[OLD]);
    script.read(|reading| {
        reading.snd_nxt = reading.snd_nxt + 10;
        reading.is_in_flight = true;
    });
    for _ in 0..5 {
        script.at(script.millis() as u64 + 1_000);
        script.read(|_| ());
    }
    script.at(60_000);
    script.sent(&[]);
    assert_eq!(evidence(&mut script, "undetermined/unprobeable"), [Seen::InFlight(0)]);
}

/// It acknowledges what the application has sent since the reading: the kernel knows whether it did.
#[test]
fn an_acknowledgment_of_something_newer_has_the_kernel_read_and_nothing_else() {
    let mut script = host();
    script.at(10);
    script.hear(Say { ack: 50, ..ACK });
    script.said(&[]);
    script.read(|reading| {
        reading.snd_una = reading.snd_una + 49;
        reading.snd_nxt = reading.snd_una;
    });
    script.said(&["alive/ack"]);

    let mut script = host();
    script.at(10);
    script.hear(Say { ack: 50, ..ACK });
    script.read(|_| ());
    script.at(999);
    script.sent(&[OLD]);
    script.at(1_000);
    script.read(|_| ());
    script.sent(&["1000 [.] 0 ack -1"]);
}

/// The other end of a connection over the loopback is probed, too: its probe is a hint.
#[test]
fn a_reading_that_comes_after_the_answer_is_no_second_verdict() {
    let mut script = host();
    script.hear(Say { seq: 0, ack: u32::MAX, ..ACK });
    assert!(script.sender.wants_reading().is_some(), "the hint is looked into");
    script.at(3);
    script.hear(ACK);
    script.said(&["alive/ack"]);
    let now = script.now;
    script.read(|reading| reading.last_ack_at = now);
    script.said(&[]);
}

#[test]
fn a_socket_that_is_gone_or_closing_accuses_nobody() {
    let mut script = host();
    script.hear(OLD_RST);
    script.read_nothing();
    let seen = [Seen::RstToProbe, Seen::SocketGone];
    assert_eq!(evidence(&mut script, "undetermined/unprobeable"), seen);

    let mut script = host();
    script.at(1_000);
    script.read(|reading| reading.obstacle = Some(Seen::TcpState("tcp-fin-wait-1")));
    let seen = [Seen::TcpState("tcp-fin-wait-1")];
    assert_eq!(evidence(&mut script, "undetermined/unprobeable"), seen);
    assert_eq!(script.frames.len(), 1);
}

#[test]
fn without_a_reading_nobody_is_accused() {
    let mut script = host();
    script.at(5_999);
    script.said(&[]);
    script.sent(&[OLD]);
    script.at(6_000);
    assert_eq!(evidence(&mut script, "undetermined/observer"), [Seen::NotRead]);
    let mut script = host();
    script.hear(OLD_RST);
    script.at(5_000);
    let seen = [Seen::RstToProbe, Seen::NotRead];
    assert_eq!(evidence(&mut script, "undetermined/observer"), seen);
}

#[test]
fn our_own_trouble_from_the_start_is_never_the_connections() {
    for seen in [Seen::LinkDown, Seen::AddressLost] {
        let mut script = Script::given(plan(), |given| {
            given.host = Some(Host::new(7, Reading::default()));
            given.obstacle = Some(seen);
        });
        script.sent(&[]);
        assert_eq!(evidence(&mut script, "undetermined/observer"), [seen]);
        assert!(script.done);
    }
}

#[test]
fn a_fin_or_a_closed_window_is_life() {
    let mut script = host();
    script.hear(FIN);
    assert_eq!(evidence(&mut script, "alive/closed-by-peer"), [Seen::Fin]);
    // After data that the kernel has got and we have not, with and without more.
    for len in [0, 10] {
        let mut script = host();
        script.hear(Say { seq: 101, len, ..FIN });
        assert_eq!(evidence(&mut script, "alive/closed-by-peer"), [Seen::Fin]);
    }
    let mut script = host();
    script.at(1_000);
    script.read(|reading| (reading.bytes_received, reading.is_closed_by_peer) = (200, true));
    assert_eq!(evidence(&mut script, "alive/closed-by-peer"), [Seen::KernelFin]);
    let mut script = host();
    script.hear(Say { wnd: 0, ..ACK });
    script.said(&["alive/zero-window"]);
}

#[test]
fn icmp_takes_two_probes_and_a_reading() {
    let mut script = host();
    script.icmp(3, 1, script.last());
    script.at(1_000);
    script.read(|_| ());
    script.icmp(3, 1, script.last());
    script.said(&[]);
    script.read(|_| ());
    script.said(&["unreachable/icmp-host"]);
}

#[test]
fn a_late_answer_corrects() {
    let mut script = host();
    for second in 1..=5 {
        script.at(second * 1_000);
        script.read(|_| ());
        if script.holds() == [true] {
            script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
            script.listen();
        }
    }
    script.said(&["down/silent"]);
    script.hear(ACK);
    script.said(&["correction alive/ack"]);
}

#[test]
fn the_rest_begins_anew() {
    let mut script = Script::host(resting(), |_| ());
    script.at(10_000);
    script.sent(&[]);
    // It was well in between.
    let now = script.now;
    script.read(|reading| {
        (reading.bytes_received, reading.last_ack_at) = (5_000, now);
        (reading.rcv_nxt, reading.rcv_wup) = (reading.rcv_nxt + 10, reading.rcv_wup + 10);
        (reading.snd_una, reading.snd_nxt) = (reading.snd_una + 3, reading.snd_nxt + 3);
    });
    script.said(&[]);
    script.sent(&["10000 [.] 3 ack 9"]);
    script.hear(Say { ack: 4, seq: 11, ..ACK });
    script.said(&["alive/ack"]);
}

#[test]
fn an_interruption_waits_for_no_reading_and_takes_back_what_was_not_read() {
    let mut script = host();
    script.hear(OLD_RST);
    script.sender.interrupt(script.now, Interruption::Wanted);
    script.listen();
    script.said(&["undetermined/interrupted"]);
    assert!(script.done);

    let mut script = fresh();
    script.hold(true);
    script.at(100);
    script.sender.interrupt(script.now, Interruption::Wanted);
    script.listen();
    script.said(&["undetermined/interrupted"]);
    assert_eq!(script.holds(), [false; 0], "the reset may be under way");
    script.at(3_000);
    assert_eq!(script.holds(), [false]);
    assert!(script.done);
}

#[test]
fn frames_look_like_the_sockets_own() {
    let clock = TimestampClock { ts_recent: 77, ts_offset: 5, in_microseconds: true };
    let mut script = Script::host(plan(), |host| {
        host.latest.clock = Some(clock);
        host.latest.tos = 0x28;
        host.latest.wnd = 9;
    });
    script.at(1_000);
    script.read(|_| ());
    for (frame, (wnd, tsval)) in script.frames.iter().zip([(8, 1_000_005), (7, 2_000_005)]) {
        assert_eq!(frame[1], 0x28);
        let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ip, Checksums::Verify) else {
            panic!("TCP")
        };
        assert_eq!(segment.wnd, wnd);
        assert_eq!(segment.options.timestamps, Some(Timestamps { tsval, tsecr: 77 }));
    }
    assert_eq!(script.frames.len(), 2);
}

#[test]
fn forced_the_whole_plan_is_sent_whatever_is_in_flight_and_heard() {
    let mut script = Script::host(Plan { probe_bytes: ProbeBytes::One, ..resting() }, |_| ());
    let sender = std::mem::replace(&mut script.sender, Script::new(plan()).sender);
    script.sender = sender.forced();
    script.at(10_000);
    for second in 11..=15 {
        script.read(|reading| {
            reading.is_in_flight = true;
            reading.bytes_received += 10;
        });
        if script.holds() == [true] {
            script.sender.handle_hold(crate::probe::Slot(0), true, script.now);
            script.listen();
        }
        script.hear(ACK);
        script.at(second * 1_000);
    }
    assert_eq!(script.frames.len(), 5);
    script.said(&["alive/ack"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is heard and read, and whenever: keepalives with two acknowledgments at most, those of
    /// RCV.NXT only under the hold, which outlasts what they can draw, one verdict, and no accusation
    /// but after a reading without life.
    #[test]
    fn no_exact_probe_leaves_without_a_hold(
        fresh: bool, in_flight: bool, holds: bool,
        steps in prop::collection::vec(
            (1u64..2_000, 0u8..64, 0u32..4, 0u32..3, 0u8..6, any::<bool>(), any::<bool>()), 0..40,
        ),
        interrupted in prop::option::of(0usize..40),
    ) {
        let mut script = Script::host(plan(), |host| {
            let bytes = if fresh { 1 } else { 1_000 };
            (host.first.bytes_received, host.latest.bytes_received) = (bytes, bytes);
            host.latest.is_in_flight = in_flight;
        });
        let (mut now, mut held, mut known) = (0, false, 0);
        let mut last_read = None;
        // Exact probes, since when at least the last is out, and whether one was answered for sure.
        let (mut exact, mut exact_since, mut is_answered) = (0, 0, false);
        for (index, (wait, flags, seq, ack, what, speaks, answers)) in steps.into_iter().enumerate() {
            now += wait;
            script.at(now);
            if interrupted == Some(index) {
                script.sender.interrupt(script.now, Interruption::Wanted);
            }
            if speaks {
                let seq = seq.wrapping_sub(1);
                script.hear(Say { flags, seq, ack, len: 0, wnd: 1, ttl: 60 });
            }
            if answers && script.sender.wants_reading().is_some() {
                last_read = Some(what);
                match what {
                    0 => script.read_nothing(),
                    1 => script.read(|reading| reading.is_in_flight = true),
                    2 => script.read(|reading| reading.bytes_received += 1),
                    _ => script.read(|reading| reading.is_in_flight = false),
                }
            }
            for frame in &script.frames[known..] {
                let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ip, Checksums::Verify) else {
                    return Err(TestCaseError::fail("not TCP"));
                };
                prop_assert_eq!((segment.flags.0, segment.seq.0), (0x10, 1000));
                let is_exact = segment.ack.0 == 0;
                prop_assert!(is_exact || segment.ack.0 == u32::MAX - 1, "{}", segment.ack.0);
                prop_assert!(held || !is_exact);
                prop_assert!(is_exact || !fresh);
                if is_exact {
                    (exact, exact_since) = (exact + 1, now - wait);
                }
            }
            known = script.frames.len();
            is_answered |= speaks && flags & 0x14 == 0x10 && seq >= 2;
            for verdict in script.said_all() {
                is_answered |= verdict.state == State::Alive && verdict.rtt.is_some();
                let accused = ["down", "rebooted", "unreachable"].contains(&verdict.state.name());
                prop_assert!(!accused || verdict.correction || last_read.is_some_and(|what| what != 0 && what != 2));
            }
            for hold in script.holds() {
                if hold {
                    prop_assert!(!held, "held twice");
                    script.sender.handle_hold(crate::probe::Slot(0), holds, script.now);
                    held = holds;
                } else {
                    let is_over = exact == 0 || exact == 1 && is_answered;
                    prop_assert!(is_over || now >= exact_since + 3_000, "let go too early");
                    held = false;
                }
            }
        }
        for second in 1..=30 {
            script.at(now + second * 1_000);
            if script.holds().contains(&true) {
                script.sender.handle_hold(crate::probe::Slot(0), holds, script.now);
            }
        }
        prop_assert!(script.done, "unread, it ends too");
        prop_assert!(script.frames.len() <= 5);
    }
}
