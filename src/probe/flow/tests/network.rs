//! Rules 11 and 13: what the network and our own side say; and the end of the run.

use crate::probe::classify::{Reason, State};
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::probe::matcher::Rejection;
use crate::probe::plan::Plan;
use crate::probe::script::{ACK, DATA, FIN, RST, SYN_ACK, Say, Script, plan, resting};
use crate::wire::LinkType;
use std::time::Duration;

#[test]
fn errors_about_two_probes_condemn_and_one_does_not() {
    let mut script = Script::probing();
    script.icmp(3, 1, script.last());
    script.icmp(3, 1, script.last());
    script.said(&[]);
    script.at(11_020);
    script.icmp(3, 13, script.last());
    let verdict = &script.said(&["unreachable/icmp-admin"])[0];
    assert_eq!((verdict.probes, verdict.evidence.len()), (2, 3));
}

/// Two routers, or one that repeats itself late: still one probe.
#[test]
fn late_errors_about_one_probe_are_one() {
    let mut script = Script::probing();
    let first = script.last();
    script.icmp(3, 1, first);
    script.at(11_020);
    script.icmp(3, 1, first);
    script.said(&[]);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

/// IPv6 has no identification: the window tells two SYNs apart.
#[test]
fn late_errors_about_one_ipv6_probe_are_one() {
    let mut script = Script::v6(plan());
    let first = script.last();
    script.icmp(1, 3, first);
    script.at(1_000);
    script.icmp(1, 3, first);
    script.said(&[]);
    script.icmp(1, 3, script.last());
    script.said(&["unreachable/icmp-host"]);
}

#[test]
fn an_answer_between_two_errors_is_life() {
    let mut script = Script::probing();
    script.icmp(3, 0, script.last());
    script.at(11_020);
    script.hear(ACK);
    script.said(&["alive/ack"]);
    script.icmp(3, 0, script.last());
    script.said(&[]);
    assert_eq!(script.rejected(Rejection::ClosedFlow), 1);
}

#[test]
fn an_answer_after_two_errors_corrects() {
    let mut script = Script::probing();
    script.icmp(3, 0, script.last());
    script.at(11_020);
    script.icmp(3, 0, script.last());
    script.said(&["unreachable/icmp-net"]);
    script.hear(ACK);
    script.said(&["correction alive/ack"]);
}

#[test]
fn one_error_just_before_the_end_points_at_the_path() {
    let mut script = Script::probing();
    script.at(15_019);
    script.icmp(11, 0, script.last());
    script.said(&[]);
    script.at(15_020);
    script.said(&["unreachable/icmp-ttl"]);
}

#[test]
fn errors_about_the_handshake_say_nothing_of_the_keepalive() {
    let mut script = Script::new(resting());
    let syn = script.last();
    script.icmp(3, 1, syn);
    script.at(1_000);
    script.hear(SYN_ACK);
    // The second SYN's, late.
    script.icmp(3, 1, syn);
    script.hear(ACK);
    script.at(2_000);
    script.icmp(3, 1, script.last());
    assert_eq!(script.rejected(Rejection::IcmpQuote), 1, "nothing is outstanding");
    script.at(11_000);
    script.icmp(3, 1, script.last());
    script.said(&[]);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

#[test]
fn errors_about_two_syns_condemn() {
    let mut script = Script::new(plan());
    script.icmp(3, 3, script.last());
    script.at(1_000);
    script.icmp(3, 3, script.last());
    script.said(&["unreachable/icmp-port"]);
}

#[test]
fn too_big_and_the_bare_ack_do_not_count() {
    let mut script = Script::new(plan());
    script.hear(SYN_ACK);
    let (ack, probe) = (script.last() - 1, script.last());
    script.icmp(3, 1, ack);
    assert_eq!(script.rejected(Rejection::IcmpQuote), 1);
    script.icmp(3, 4, probe);
    assert_eq!(script.rejected(Rejection::IcmpIrrelevant), 1);
    script.at(5_000);
    script.said(&["down/silent"]);
}

/// Silence counts only if we would have heard; one soft error does not change that.
#[test]
fn our_own_trouble_accuses_nobody() {
    for (trouble_at, icmp, said) in [
        (10_019, false, "down/silent"),
        (10_020, false, "undetermined/observer"),
        (15_019, false, "undetermined/observer"),
        (10_019, true, "unreachable/icmp-host"),
        (12_000, true, "undetermined/observer"),
    ] {
        let mut script = Script::confirmed(resting());
        let mut noted = false;
        for at in [10_019, 10_020, 12_000, 15_019] {
            script.at(at);
            if at == trouble_at {
                script.sender.note_trouble(Scope::Everywhere, Seen::ObserverDrops, script.now);
                noted = true;
            }
            if icmp && at == 10_020 {
                script.icmp(3, 1, script.last());
            }
        }
        assert!(noted);
        script.at(15_020);
        let verdict = &script.said(&[said])[0];
        let told = verdict.evidence.iter().any(|seen| seen.kind == Seen::ObserverDrops);
        assert_eq!(told, trouble_at >= 10_020);
    }
}

#[test]
fn our_own_trouble_does_not_weigh_against_an_answer() {
    let mut script = Script::probing();
    script.sender.note_trouble(Scope::Everywhere, Seen::ObserverDrops, script.now);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

fn interrupted(script: &mut Script) -> (State, Reason) {
    script.sender.interrupt(script.now, crate::probe::sender::Interruption::Wanted);
    script.listen();
    let verdicts = script.said_all();
    assert_eq!(verdicts.len(), 1);
    assert!(script.done, "a RST is sent at once");
    (verdicts[0].state, verdicts[0].reason)
}

#[test]
fn an_interrupt_closes_what_is_open_and_accuses_nobody() {
    let unknown = (State::Undetermined, Reason::Interrupted);
    let mut script = Script::new(plan());
    assert_eq!(interrupted(&mut script), unknown);
    script.sent(&["0 [S] 0", "0 [R] 1"]);

    let mut script = Script::new(plan());
    script.icmp(3, 1, script.last());
    assert_eq!(interrupted(&mut script), unknown);

    let mut script = Script::new(plan());
    script.hear(SYN_ACK);
    assert_eq!(interrupted(&mut script), unknown);
    script.sent(&["0 [S] 0", "0 [.] 1 ack 1", "0 [.] 0 ack 1", "0 [R.] 1 ack 1"]);

    let mut script = Script::confirmed(resting());
    assert_eq!(interrupted(&mut script), unknown);
    script.sent(&["20 [R.] 1 ack 1"]);

    // What came before the rest is over says nothing of what is after it.
    let mut script = Script::confirmed(resting());
    script.hear(DATA);
    assert_eq!(interrupted(&mut script), unknown);
    script.sent(&["20 [.] 1 ack 11", "20 [R.] 1 ack 11"]);

    let mut script = Script::probing();
    assert_eq!(interrupted(&mut script), unknown);
    script.hear(ACK);
    script.said(&[]);
}

#[test]
fn an_interrupt_before_the_first_frame_sends_none() {
    let mut script = Script::over(Plan { rate_pps: Some(1), ..plan() }, LinkType::Ethernet);
    script.sent(&["0 arp"]);
    assert_eq!(interrupted(&mut script), (State::Undetermined, Reason::Interrupted));
    // Too late: nobody waits for it any more.
    script.at(2_000);
    script.arp_reply();
    script.at(60_000);
    script.sent(&[]);
    script.said(&[]);
}

#[test]
fn a_next_hop_that_does_not_answer() {
    let mut script = Script::over(plan(), LinkType::Ethernet);
    script.at(4_999);
    script.sent(&["0 arp", "1000 arp", "2000 arp", "3000 arp", "4000 arp"]);
    script.said(&[]);
    script.at(5_000);
    let verdict = &script.said(&["unreachable/neighbour"])[0];
    assert_eq!(verdict.local, None);
    assert_eq!(verdict.evidence[0].at, Duration::ZERO);
    script.sent(&[]);

    let mut script = Script::over(plan(), LinkType::Ethernet);
    script.sender.note_trouble(Scope::Everywhere, Seen::ObserverDrops, script.now);
    script.at(5_000);
    script.said(&["undetermined/observer"]);
}

/// Whoever floods is acknowledged a few times a second, however much he sends, and the verdict is that
/// of the first segment.
#[test]
fn a_flood_of_data_is_acknowledged_four_times_a_second() {
    let mut script = Script::confirmed(resting());
    let mut seq = 1;
    for at in 1_000..4_000 {
        script.at(at);
        for _ in 0..10 {
            script.hear(Say { seq, len: 2, ..DATA });
            seq += 2;
        }
    }
    let before = script.frames.len();
    script.at(10_019);
    assert_eq!(script.frames.len(), before, "nothing is owed for what has been");
    // SYN, ACK and keepalive of the handshake, and 3 s of ACKs.
    assert_eq!(script.frames.len(), 3 + 3 * 4);
    script.at(10_020);
    script.hear(Say { seq, len: 2, ..DATA });
    let verdict = script.said(&["alive/data"]).remove(0);
    assert!(verdict.evidence.len() <= 8);
    let closed = script.frames.len();
    // It goes on after the end: a few more RSTs (see MAX_LATE_ANSWERS), and that is all.
    for at in 10_021..20_000 {
        script.at(at);
        seq += 2;
        script.hear(Say { seq, len: 2, ..DATA });
    }
    assert!(script.frames.len() <= closed + 5, "{}", script.frames.len() - closed);
    script.said(&[]);
    assert!(script.done);
}

/// Every reply a hundred times over: one verdict, the same as of one.
#[test]
fn replies_a_hundred_times_over() {
    let hundred = |say: Say| [say; 100];
    let established = || {
        let mut script = Script::new(resting());
        script.at(10);
        script.hear_together(&hundred(SYN_ACK)[..60]);
        script.at(20);
        script.hear_together(&hundred(ACK)[..60]);
        // The network is slow with the other copies.
        script.at(60);
        script.hear_together(&hundred(SYN_ACK)[..40]);
        script.hear_together(&hundred(ACK)[..40]);
        script.at(10_019);
        script.sent(&["0 [S] 0", "10 [.] 1 ack 1", "10 [.] 0 ack 1"]);
        script.at(10_020);
        script.sent(&["10020 [.] 0 ack 1"]);
        script
    };
    for (say, verdict) in [
        (ACK, "alive/ack"),
        (DATA, "alive/data"),
        (FIN, "alive/closed-by-peer"),
        (RST, "rebooted/reset"),
        (Say { wnd: 0, ..ACK }, "alive/zero-window"),
    ] {
        let mut script = established();
        script.at(10_030);
        script.hear_together(&hundred(say)[..60]);
        script.at(10_040);
        script.hear_together(&hundred(say)[..40]);
        script.at(60_000);
        script.said(&[verdict]);
        assert!(script.done);
        assert!(script.frames.len() <= 4 + 6, "{verdict}: {} frames", script.frames.len());
    }
    // Copies of one error are one error: silence it is.
    let mut script = established();
    let probe = script.last();
    for _ in 0..100 {
        script.icmp(3, 1, probe);
    }
    script.at(10_520);
    script.said(&[]);
    script.at(30_000);
    script.said(&["unreachable/icmp-host"]);
}
