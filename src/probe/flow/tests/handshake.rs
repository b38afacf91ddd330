//! Rules 15 and 16: SYN, SYN-ACK, and the answer that confirms them.

use crate::probe::escalate;
use crate::probe::evidence::Seen;
use crate::probe::flow::MAX_OPENS;
use crate::probe::matcher::Rejection;
use crate::probe::plan::{Keepalive, Plan, ProbeBytes};
use crate::probe::script::{ACK, DATA, REFUSAL, RST, SYN_ACK, Say, Script, plan, resting};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::time::Duration;

/// A challenge ACK for a connection that is not ours.
const CHALLENGE: Say = Say { seq: 77, ack: 5_000, ..ACK };

#[test]
fn syns_double_their_spacing_until_the_timeout() {
    let mut script = Script::new(plan());
    script.at(14_999);
    script.sent(&["0 [S] 0", "1000 [S] 0", "3000 [S] 0", "7000 [S] 0"]);
    script.said(&[]);
    script.at(20_000);
    // Numbers of the peer's are not known, so the RST has no ACK.
    script.sent(&["15000 [R] 1"]);
    assert_eq!(script.said(&["down/silent"])[0].probes, 4);
    assert!(script.done);
}

#[test]
fn the_timeout_cuts_the_last_wait_short() {
    let mut script = Script::new(Plan { connect_timeout: Duration::from_millis(2500), ..plan() });
    script.at(2_499);
    script.sent(&["0 [S] 0", "1000 [S] 0"]);
    script.at(2_500);
    script.sent(&["2500 [R] 1"]);
    script.said(&["down/silent"]);
}

#[test]
fn a_syn_ack_is_acknowledged_and_asked_at_once() {
    let mut script = Script::new(plan());
    script.at(10);
    script.hear(SYN_ACK);
    script.sent(&["0 [S] 0", "10 [.] 1 ack 1", "10 [.] 0 ack 1"]);
    script.at(20);
    script.hear(ACK);
    let verdict = &script.said(&["alive/ack"])[0];
    assert_eq!((verdict.probes, verdict.replies), (1, 1));
    assert_eq!(verdict.rtt, Some(Duration::from_millis(10)));
    script.sent(&["20 [R.] 1 ack 1"]);
    assert!(script.done);
}

#[test]
fn a_refusal_is_life() {
    let mut script = Script::new(plan());
    script.hear(Say { ack: 2, ..REFUSAL });
    script.said(&[]);
    assert_eq!(script.rejected(Rejection::RstAck), 1);
    script.hear(REFUSAL);
    script.said(&["alive/refused"]);
    script.sent(&["0 [S] 0"]);
    assert!(script.done);
}

/// The bare ACK is repeated before each keepalive, and no octet is sent, whatever was asked for.
#[test]
fn unconfirmed_means_ack_and_empty_keepalive() {
    let mut script = Script::new(Plan { probe_bytes: ProbeBytes::One, ..plan() });
    script.hear(SYN_ACK);
    script.at(4_999);
    let mut expected = vec!["0 [S] 0".to_string()];
    for at in [0, 1000, 2000, 3000, 4000] {
        expected.extend([format!("{at} [.] 1 ack 1"), format!("{at} [.] 0 ack 1")]);
    }
    script.sent(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    script.said(&[]);
    script.at(6_000);
    assert_eq!(script.said(&["down/silent"])[0].probes, 5);
    // The path has lost segments: the RST is repeated.
    script.sent(&["5000 [R.] 1 ack 1", "5200 [R.] 1 ack 1", "5400 [R.] 1 ack 1"]);
}

#[test]
fn a_repeated_syn_ack_draws_the_ack_alone() {
    let mut script = Script::new(plan());
    script.hear(SYN_ACK);
    script.sent(&["0 [S] 0", "0 [.] 1 ack 1", "0 [.] 0 ack 1"]);
    // One that the network has duplicated draws nothing.
    script.at(499);
    script.hear(SYN_ACK);
    script.sent(&[]);
    script.at(500);
    script.hear(SYN_ACK);
    script.at(999);
    script.sent(&["500 [.] 1 ack 1"]);
    script.at(1000);
    script.sent(&["1000 [.] 1 ack 1", "1000 [.] 0 ack 1"]);
    script.hear(Say { seq: 1_000_000, ..SYN_ACK });
    assert_eq!(script.rejected(Rejection::Syn), 1);
    script.sent(&[]);
}

/// It acknowledges our SYN: whatever else is silent, the peer is not.
#[test]
fn a_peer_that_repeats_its_syn_ack_is_not_silent() {
    let mut script = Script::new(plan());
    script.hear(SYN_ACK);
    script.at(1_000);
    script.hear(SYN_ACK);
    script.at(6_000);
    script.said(&["alive/ack"]);
}

#[test]
fn a_syn_ack_in_the_rest_confirms_again() {
    let mut script = Script::confirmed(resting());
    script.at(600);
    script.hear(SYN_ACK);
    script.sent(&["600 [.] 1 ack 1", "600 [.] 0 ack 1"]);
    script.at(620);
    script.hear(ACK);
    script.at(10_619);
    script.sent(&[]);
    script.at(10_620);
    script.sent(&["10620 [.] 0 ack 1"]);
}

/// Lost ACKs look like a full accept queue at first; that the repeats end shows that they were not,
/// and that a RST after the rest is a reboot.
#[test]
fn a_peer_that_stops_repeating_its_syn_ack_holds_the_connection() {
    let mut script = Script::confirmed(resting());
    for repeat in [1_000, 3_000, 7_000] {
        script.at(repeat);
        script.hear(SYN_ACK);
        script.at(repeat + 600);
        script.hear(ACK);
    }
    script.at(17_600);
    script.hear(RST);
    script.said(&["rebooted/reset"]);
}

/// A listener whose accept queue is full answers keepalives from its request socket, repeats its
/// SYN-ACK, and in the end forgets: up, but not to be called silent or rebooted.
#[test]
fn a_peer_that_never_accepts_is_neither_down_nor_rebooted() {
    let idle = Duration::from_secs(40);
    let count = 2;
    let mut script = Script::confirmed(Plan {
        keepalive: Keepalive { idle, count, ..plan().keepalive },
        ..plan()
    });
    let port = script.port;
    for at in [1_000, 3_000, 7_000, 15_000, 31_000] {
        script.at(at);
        script.hear(SYN_ACK);
        script.at(at + 10);
        script.hear(ACK);
        script.said(&[]);
    }
    script.at(71_009);
    script.said(&[]);
    script.frames.clear();
    script.at(71_020);
    assert_eq!(script.frames.len(), 2, "the bare ACK and a keepalive");
    script.hear(RST);
    script.said(&[]);
    assert_ne!(script.port, port, "opened again");
}

#[test]
fn syn_acks_without_end_do_not_hold_up_the_sweep() {
    let mut script = Script::confirmed(resting());
    for at in (100..400_000).step_by(100) {
        script.at(at);
        script.hear_together(&[SYN_ACK, ACK]);
    }
    assert_eq!(script.said(&["alive/ack"]).len(), 1);
}

#[test]
fn a_reset_while_unconfirmed_opens_again_on_another_port() {
    let mut script = Script::new(plan());
    let mut ports = vec![script.port];
    for _ in 1..MAX_OPENS {
        script.hear(SYN_ACK);
        // The second one is still in the queue when the first has ended the attempt.
        script.hear_together(&[RST, ACK]);
        assert_eq!(
            script.sender.rejected()[Rejection::StaleGeneration as usize],
            ports.len() as u64
        );
        // And what is said to an old port later finds no flow.
        let before = script.rejected(Rejection::NoFlow);
        script.receive(SYN_ACK, ports[ports.len() - 1]);
        assert_eq!(script.rejected(Rejection::NoFlow), before + 1);
        script.said(&[]);
        ports.push(script.port);
    }
    ports.dedup();
    assert_eq!(ports.len(), usize::from(MAX_OPENS));
    // Again and again: up, and it would not have us.
    script.hear(SYN_ACK);
    script.hear(RST);
    script.said(&["alive/closed-by-peer"]);
    assert!(script.done);
}

/// The RST answers the bare ACK, before the first keepalive has left.
#[test]
fn a_reset_before_the_first_keepalive_opens_again() {
    let mut script = Script::new(Plan { rate_pps: Some(1), ..plan() });
    let port = script.port;
    script.at(500);
    script.hear(SYN_ACK);
    script.at(1_500);
    script.sent(&["0 [S] 0", "1000 [.] 1 ack 1"]);
    script.hear(RST);
    script.at(2_000);
    script.sent(&["2000 [S] 0"]);
    script.said(&[]);
    assert_ne!(script.port, port);
}

/// A connection that a killed prober left behind: only another 4-tuple can connect.
#[test]
fn a_taken_tuple_is_left_for_another() {
    let mut script = Script::new(plan());
    let port = script.port;
    script.at(5);
    script.hear(CHALLENGE);
    script.sent(&["0 [S] 0", "5 [S] 0"]);
    assert_ne!(script.port, port);
    assert_eq!(script.rejected(Rejection::AckUnacceptable), 1);
    script.hear(SYN_ACK);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

/// The killed prober had the same seed, so its connection has the initial sequence number that our
/// SYN repeats: the challenge ACK acknowledges our SYN to the octet.
#[test]
fn a_taken_tuple_with_our_own_numbers_is_left_too() {
    let mut script = Script::new(plan());
    let port = script.port;
    script.hear(ACK);
    assert_ne!(script.port, port);
    script.sent(&["0 [S] 0", "0 [S] 0"]);
}

/// All tuples taken: the peer speaks, but on no connection of ours. Its ACKs prove nothing, since
/// anyone can send them; but silence they are not.
#[test]
fn taken_tuples_accuse_nobody() {
    let mut script = Script::new(plan());
    (1..MAX_OPENS).for_each(|_| script.hear(CHALLENGE));
    script.sent(&["0 [S] 0"; MAX_OPENS as usize]);
    script.hear(CHALLENGE);
    script.at(14_999);
    script.sent(&["1000 [S] 0", "3000 [S] 0", "7000 [S] 0"]);
    script.at(15_000);
    let verdict = &script.said(&["undetermined/unprobeable"])[0];
    assert_eq!((verdict.probes, verdict.evidence.len()), (4, 1));
    assert_eq!(verdict.evidence[0].kind.name(), "ack");
}

#[test]
fn a_taken_tuple_that_comes_free_connects() {
    let mut script = Script::new(plan());
    (0..=MAX_OPENS).for_each(|_| script.hear(CHALLENGE));
    script.at(1_000);
    script.hear(SYN_ACK);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

/// What was matched while the SYN was unanswered, and is heard after its answer, is judged anew.
#[test]
fn replies_overtaken_by_the_syn_ack_end_nothing() {
    for overtaken in [CHALLENGE, Say { seq: 77, ..REFUSAL }] {
        let mut script = Script::new(plan());
        script.hear_together(&[SYN_ACK, overtaken]);
        script.sent(&["0 [S] 0", "0 [.] 1 ack 1", "0 [.] 0 ack 1"]);
        script.said(&[]);
        script.hear(ACK);
        script.said(&["alive/ack"]);
    }
}

#[test]
fn a_syn_ack_after_the_verdict_corrects_it_and_is_reset() {
    let mut script = Script::new(plan());
    script.at(15_000);
    script.said(&["down/silent"]);
    script.at(15_500);
    script.frames.clear();
    script.hear(SYN_ACK);
    let verdict = &script.said(&["correction alive/ack"])[0];
    assert_eq!(verdict.evidence.last().map(|seen| seen.kind.name()), Some("syn-ack"));
    assert_eq!(verdict.evidence.last().map(|seen| seen.at), Some(Duration::from_millis(15_500)));
    assert_eq!(script.frames.len(), 1, "a RST for the half-open connection");
    script.hear(SYN_ACK);
    script.said(&[]);
}

#[test]
fn a_refusal_after_the_verdict_corrects_it() {
    let mut script = Script::new(plan());
    script.at(15_001);
    script.said(&["down/silent"]);
    script.sent(&["0 [S] 0", "1000 [S] 0", "3000 [S] 0", "7000 [S] 0", "15000 [R] 1"]);
    script.hear(Say { ack: 9, ..REFUSAL });
    script.said(&[]);
    script.hear(REFUSAL);
    script.said(&["correction alive/refused"]);
    script.sent(&[]);
}

/// We stood still for half a minute: what the receivers have not heard yet is not silence.
#[test]
fn a_stall_of_our_own_is_not_silence() {
    let mut script = Script::new(plan());
    script.at(6_999);
    script.heard_until = script.now + Duration::from_millis(2);
    script.now = script.now + Duration::from_secs(30);
    script.listen();
    script.said(&[]);
    script.heard_until = Instant::FAR_FUTURE;
    script.hear(SYN_ACK);
    script.hear(ACK);
    script.said(&["alive/ack"]);
}

#[test]
fn data_confirms_as_an_ack_does() {
    let mut script = Script::new(resting());
    script.hear(SYN_ACK);
    script.hear(DATA);
    script.sent(&["0 [S] 0", "0 [.] 1 ack 1", "0 [.] 0 ack 1", "0 [.] 1 ack 11"]);
    script.at(10_000);
    script.sent(&["10000 [.] 0 ack 11"]);
    script.hear(Say { seq: 11, ..RST });
    script.said(&["rebooted/reset"]);
}

/// A question to the host alone: whoever listens there never gets a connection.
#[test]
fn without_keepalives_a_syn_ack_is_the_answer_and_is_reset() {
    let asking = escalate::fresh_syn(&plan(), 1);
    let mut script = Script::new(asking);
    script.at(10);
    script.hear(SYN_ACK);
    let verdict = &script.said(&["alive/ack"])[0];
    let [seen] = verdict.evidence[..] else { panic!("{verdict:?}") };
    let number = Some(SeqNumber(0));
    assert_eq!((seen.kind, seen.seg_seq, seen.ttl), (Seen::SynAck, number, Some(60)));
    assert_eq!(verdict.rtt, Some(Duration::from_millis(10)));
    script.sent(&["0 [S] 0", "10 [R.] 1 ack 1"]);
    assert!(script.done);
    // The RST was lost: the peer repeats itself, and is told again.
    script.at(1_010);
    script.hear(SYN_ACK);
    script.sent(&["1010 [R.] 1 ack 1"]);

    let mut script = Script::new(asking);
    script.hear(REFUSAL);
    script.said(&["alive/refused"]);
    script.sent(&["0 [S] 0"]);

    let mut script = Script::new(asking);
    script.at(5_000);
    script.sent(&["0 [S] 0", "1000 [S] 0", "3000 [S] 0", "5000 [R] 1"]);
    assert_eq!(script.said(&["down/silent"])[0].probes, 3);
    // Even then a late answer counts, and leaves nothing behind.
    script.hear(SYN_ACK);
    script.said(&["correction alive/ack"]);
}
