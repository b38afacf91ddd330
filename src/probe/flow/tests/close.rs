//! Rule 17: every flow that we opened is closed, and what comes late is answered and weighed.

use crate::probe::matcher::Rejection;
use crate::probe::plan::{Close, Plan};
use crate::probe::script::{ACK, DATA, FIN, RST, SYN_ACK, Say, Script, plan, resting};

fn by_fin() -> Plan {
    Plan { close: Close::Fin, ..resting() }
}

/// The peer acknowledges our FIN.
const FIN_ACKED: Say = Say { ack: 2, ..ACK };

/// Probed, answered, and our FIN just sent, at 10,020 ms.
fn finishing() -> Script {
    let mut script = Script::probing_under(by_fin());
    script.hear(ACK);
    script.said(&["alive/ack"]);
    script.sent(&["10020 [.] 0 ack 1", "10020 [F.] 1 ack 1"]);
    assert!(!script.done);
    script
}

#[test]
fn both_sides_close() {
    let mut script = finishing();
    script.at(10_030);
    script.hear(FIN_ACKED);
    script.sent(&[]);
    script.hear(Say { ack: 2, ..FIN });
    script.sent(&["10030 [.] 2 ack 2"]);
    assert!(script.done);
    // Our last ACK was lost: said again, not answered by RST.
    script.at(11_000);
    script.hear(Say { ack: 2, ..FIN });
    script.sent(&["11000 [.] 2 ack 2"]);
}

#[test]
fn both_sides_close_at_the_same_time() {
    let mut script = finishing();
    script.at(10_030);
    // Its FIN has crossed ours, which may yet be lost.
    script.hear(FIN);
    assert!(!script.done);
    script.sent(&["10030 [F.] 1 ack 2"]);
    script.at(10_050);
    script.hear(Say { seq: 2, ..FIN_ACKED });
    assert!(script.done);
    script.sent(&[]);
}

/// It may take its time, but not ours without end. A FIN that is acknowledged is not repeated.
#[test]
fn a_peer_that_never_closes_is_reset() {
    let mut script = finishing();
    script.at(10_030);
    script.hear(FIN_ACKED);
    script.at(13_019);
    script.sent(&[]);
    script.at(13_020);
    script.sent(&["13020 [R.] 2 ack 1"]);
    assert!(script.done);
}

#[test]
fn data_after_our_fin_is_acknowledged() {
    let mut script = finishing();
    script.hear(FIN_ACKED);
    script.hear(Say { ack: 2, ..DATA });
    script.sent(&["10020 [.] 2 ack 11"]);
    script.hear(Say { seq: 11, ack: 2, ..FIN });
    script.sent(&["10020 [.] 2 ack 12"]);
    assert!(script.done);
}

/// RST must hit the peer's RCV.NXT to the octet (RFC 5961 §3.2): the FIN before it may be lost.
#[test]
fn a_fin_that_never_arrives_leaves_nothing_behind() {
    let mut script = finishing();
    script.at(13_020);
    script.sent(&["11020 [F.] 1 ack 1", "12020 [F.] 1 ack 1", "13020 [R.] 2 ack 1"]);
    script.at(13_030);
    // The challenge ACK says where the peer stands.
    script.hear(ACK);
    script.sent(&["13030 [R.] 1 ack 1"]);
    assert!(script.done);
}

#[test]
fn nothing_is_sent_into_a_zero_window() {
    let mut script = Script::probing_under(by_fin());
    script.hear(Say { wnd: 0, ..ACK });
    script.said(&["alive/zero-window"]);
    script.sent(&["10020 [.] 0 ack 1", "10020 [R.] 1 ack 1"]);
    assert!(script.done);
}

#[test]
fn an_accused_peer_gets_no_fin() {
    let mut script = Script::probing_under(by_fin());
    script.icmp(3, 1, script.last());
    script.at(11_020);
    script.icmp(3, 1, script.last());
    script.said(&["unreachable/icmp-host"]);
    script.at(11_500);
    script.sent(&[
        "10020 [.] 0 ack 1",
        "11020 [.] 0 ack 1",
        "11020 [R.] 1 ack 1",
        "11220 [R.] 1 ack 1",
        "11420 [R.] 1 ack 1",
    ]);
    assert!(script.done);
}

#[test]
fn a_fin_of_the_peers_is_answered_until_acknowledged() {
    let mut script = Script::probing();
    script.hear(FIN);
    script.at(13_019);
    script.sent(&[
        "10020 [.] 0 ack 1",
        "10020 [F.] 1 ack 2",
        "11020 [F.] 1 ack 2",
        "12020 [F.] 1 ack 2",
    ]);
    script.at(13_020);
    script.sent(&["13020 [R.] 2 ack 2"]);
    assert!(script.done);
}

#[test]
fn fins_without_end_do_not_hold_up_the_sweep() {
    let mut script = Script::probing();
    script.hear(FIN);
    for at in (10_100..40_000).step_by(100) {
        script.at(at);
        script.hear(FIN);
    }
    assert!(script.done);
    assert!(script.frames.len() < 20, "{} frames", script.frames.len());
}

/// Our FIN still waits for its turn: an ACK of all but it ends nothing.
#[test]
fn a_fin_that_has_not_left_cannot_be_acknowledged() {
    let mut script = Script::new(Plan { rate_pps: Some(1), ..plan() });
    script.at(500);
    script.hear(SYN_ACK);
    script.at(2_500);
    script.hear(FIN);
    script.hear(FIN);
    script.at(3_000);
    script.sent(&["0 [S] 0", "1000 [.] 1 ack 1", "2000 [.] 0 ack 1", "3000 [F.] 1 ack 2"]);
    script.at(4_000);
    script.sent(&["4000 [F.] 1 ack 2"]);
    script.hear(Say { seq: 2, ..FIN_ACKED });
    script.at(5_000);
    script.sent(&[]);
    assert!(script.done);
}

#[test]
fn who_talks_on_after_our_reset_gets_another_a_few_times() {
    let mut script = Script::probing();
    script.hear(ACK);
    script.sent(&["10020 [.] 0 ack 1", "10020 [R.] 1 ack 1"]);
    // Crossed our RST on the way.
    script.at(10_100);
    script.hear(ACK);
    script.sent(&[]);
    for at in [10_500, 11_000, 11_500, 12_000, 12_500, 13_000] {
        script.at(at);
        script.hear(DATA);
    }
    script.sent(&[
        "10500 [R.] 1 ack 1",
        "11000 [R.] 1 ack 1",
        "11500 [R.] 1 ack 1",
        "12000 [R.] 1 ack 1",
    ]);
    script.said(&["alive/ack"]);
    script.hear(RST);
    assert_eq!(script.rejected(Rejection::ClosedFlow), 1);
}

/// A late reply overturns an accusation, and only that; what it says is what is reported.
#[test]
fn corrections_say_what_came() {
    let aborted = Say { flags: 0x14, ack: 1, ..RST };
    for (say, correction) in [
        (ACK, Some("correction alive/ack")),
        (Say { wnd: 0, ..ACK }, Some("correction alive/zero-window")),
        (DATA, Some("correction alive/data")),
        (FIN, Some("correction alive/closed-by-peer")),
        (SYN_ACK, Some("correction alive/ack")),
        (RST, Some("correction rebooted/reset")),
        (Say { ttl: 63, ..RST }, Some("correction unreachable/path-reset")),
        (Say { seq: 2, ..RST }, None),
        (aborted, None),
        (Say { ack: 2, ..ACK }, None),
    ] {
        let mut script = Script::probing();
        script.at(15_020);
        script.said(&["down/silent"]);
        // Sent before our RST came: an answer all the same.
        script.at(15_025);
        script.hear(say);
        let verdicts = script.said(&Vec::from_iter(correction));
        for verdict in verdicts {
            assert_eq!((verdict.probes, verdict.replies), (5, 1));
            assert_eq!(verdict.evidence.len(), 1);
            assert_eq!(verdict.evidence[0].at.as_millis(), 5_005);
        }
        // Once is enough.
        script.hear(say);
        script.said(&[]);
    }
}

/// The RST was not the peer's, or not for this connection: the peer still holds it.
#[test]
fn an_ack_after_a_reset_takes_rebooted_back() {
    let mut script = Script::probing();
    script.hear(RST);
    script.said(&["rebooted/reset"]);
    script.at(10_500);
    script.hear(RST);
    script.said(&[]);
    script.hear(ACK);
    script.said(&["correction alive/ack"]);
    script.sent(&["10020 [.] 0 ack 1", "10500 [R.] 1 ack 1"]);
}

#[test]
fn what_was_not_accused_is_not_corrected() {
    let mut script = Script::probing();
    script.hear(ACK);
    script.said(&["alive/ack"]);
    script.hear(DATA);
    script.said(&[]);
}
