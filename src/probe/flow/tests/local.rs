//! What this host itself says on a flow: it accuses us, or says that the neighbour is missing, and is
//! never the peer's word unless the peer is this host.

use crate::io::PathId;
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::probe::plan::Plan;
use crate::probe::script::{ACK, REFUSAL, RST, SYN_ACK, Script, plan};
use std::time::Duration;

/// A loopback that no flow leaves through.
const ELSEWHERE: PathId = PathId(u8::MAX);

fn overheard() -> Script {
    let mut script = Script::new(plan());
    script.on_loopback(ELSEWHERE);
    script
}

#[test]
fn a_neighbour_missing_for_two_syns_condemns_and_for_one_does_not() {
    let mut script = overheard();
    script.at(3_000);
    // All that the kernel had queued is given up at once.
    (0..3).for_each(|syn| script.icmp(3, 1, syn));
    script.said(&[]);
    script.at(10_000);
    script.icmp(3, 1, script.last());
    let verdict = &script.said(&["unreachable/neighbour"])[0];
    let seen: Vec<_> = verdict.evidence.iter().map(|sighting| sighting.kind).collect();
    assert_eq!(seen, [Seen::NeighbourFailed, Seen::NeighbourFailed]);
}

#[test]
fn a_missing_neighbour_weighs_when_silence_lasts_and_not_against_an_answer() {
    let short = Plan { connect_timeout: Duration::from_secs(5), ..plan() };
    let mut script = Script::new(short);
    script.on_loopback(ELSEWHERE);
    script.at(3_000);
    script.icmp(3, 1, script.last());
    script.at(5_000);
    script.said(&["unreachable/neighbour"]);

    let mut script = overheard();
    script.at(3_000);
    script.icmp(3, 1, script.last());
    // As if through another interface.
    script.hear_elsewhere(SYN_ACK);
    script.hear_elsewhere(ACK);
    script.said(&["alive/ack"]);
}

#[test]
fn our_own_trouble_excuses_a_missing_neighbour() {
    let mut script = overheard();
    script.sender.note_trouble(Scope::Everywhere, Seen::ObserverFault, script.now);
    script.icmp(3, 1, script.last());
    script.at(3_000);
    script.icmp(3, 1, script.last());
    script.said(&["undetermined/observer"]);
}

/// A firewall of ours that rejects: no router and no peer has said this.
#[test]
fn other_errors_from_ourselves_accuse_ourselves() {
    for (icmp_type, code) in [(3, 0), (3, 3), (3, 13), (11, 0)] {
        let mut script = overheard();
        for at in [0, 1_000, 3_000] {
            script.at(at);
            script.icmp(icmp_type, code, script.last());
        }
        script.at(14_999);
        script.said(&[]);
        script.at(15_000);
        let verdict = &script.said(&["undetermined/observer"])[0];
        assert_eq!(verdict.evidence.len(), 1, "told once: {verdict:?}");
    }
}

/// `reject with tcp reset` in our own output hook looks like the peer but for where it comes from.
#[test]
fn a_rst_from_ourselves_is_not_the_peers() {
    let mut script = overheard();
    script.hear(REFUSAL);
    script.said(&[]);
    script.at(15_000);
    script.said(&["undetermined/observer"]);

    let mut script = Script::probing();
    script.on_loopback(ELSEWHERE);
    script.hear(RST);
    script.said(&[]);
    script.at(60_000);
    script.said(&["undetermined/observer"]);
}

/// An interface without MAC addresses has no neighbours that could be missing: a tunnel says so when
/// it has no peer for the address.
#[test]
fn without_neighbours_none_is_missing() {
    let mut script = Script::without_mac(plan());
    script.on_loopback(ELSEWHERE);
    for at in [0, 1_000, 3_000, 7_000] {
        script.at(at);
        script.icmp(3, 1, script.last());
    }
    script.at(15_000);
    script.said(&["undetermined/observer"]);
}

#[test]
fn on_the_loopback_itself_the_peer_is_heard() {
    let own = PathId(0);
    let mut script = Script::new(plan());
    script.on_loopback(own);
    script.hear(SYN_ACK);
    script.hear(ACK);
    script.said(&["alive/ack"]);

    let mut script = Script::new(plan());
    script.on_loopback(own);
    script.hear(REFUSAL);
    script.said(&["alive/refused"]);
}

/// This host is up: it runs this very program.
#[test]
fn this_host_is_never_down() {
    let mut script = Script::new(plan());
    script.loop_back(PathId(0));
    script.at(15_000);
    script.said(&["undetermined/observer"]);

    let mut script = Script::new(plan());
    script.loop_back(PathId(0));
    script.hear(SYN_ACK);
    script.at(5_000);
    script.said(&["undetermined/observer"]);
}

fn looked_after() -> Script {
    let mut script = Script::new(plan());
    let sender = std::mem::replace(&mut script.sender, Script::new(plan()).sender);
    script.sender = sender.with_looks();
    script
}

/// Somebody looks at the kernel's table of neighbours and finds the peer there like this.
fn look(script: &mut Script, is_resolved: Option<bool>) {
    let [peer, _] = script.ends;
    if let Some(is_resolved) = is_resolved {
        script.sender.note_kernel_hop(PathId(0), peer, is_resolved, script.now);
    }
    script.sender.note_look(script.now);
    script.listen();
}

#[test]
fn silence_of_a_peer_whom_the_kernel_cannot_resolve_is_no_sign_of_death() {
    for (at, is_resolved, said) in [
        ([14_000, 15_100], Some(false), "unreachable/neighbour"),
        ([14_000, 15_100], Some(true), "down/silent"),
        ([14_000, 15_100], None, "down/silent"),
    ] {
        let mut script = looked_after();
        script.at(at[0]);
        look(&mut script, is_resolved);
        script.at(at[1]);
        script.said(&[]);
        look(&mut script, is_resolved);
        let verdict = &script.said(&[said])[0];
        let failed = verdict.evidence.iter().any(|seen| seen.kind == Seen::NeighbourFailed);
        assert_eq!(failed, is_resolved == Some(false), "{verdict:?}");
    }
}

#[test]
fn a_next_hop_that_the_kernel_finds_again_is_none_that_is_missing() {
    let mut script = looked_after();
    for (at, is_resolved) in [(1_000, false), (2_000, false), (14_000, true), (15_100, true)] {
        script.at(at);
        script.said(&[]);
        look(&mut script, Some(is_resolved));
    }
    script.said(&["undetermined/observer"]);
}

#[test]
fn a_next_hop_that_vanishes_after_an_answer_is_missing() {
    let mut script = looked_after();
    look(&mut script, Some(false));
    script.at(20);
    script.hear(SYN_ACK);
    look(&mut script, Some(true));
    // The bare ACK and five keepalives go unanswered.
    for at in [3_000, 4_000, 5_500] {
        script.at(at);
        script.said(&[]);
        look(&mut script, Some(false));
    }
    script.said(&["unreachable/neighbour"]);
}

#[test]
fn an_answer_while_silence_waits_for_a_look_is_life() {
    let mut script = looked_after();
    script.at(15_100);
    script.hear(SYN_ACK);
    script.hear(ACK);
    look(&mut script, None);
    script.said(&["alive/ack"]);
}

#[test]
fn silence_that_nobody_looks_after_proves_nothing() {
    let mut script = looked_after();
    script.at(19_990);
    script.said(&[]);
    script.at(20_010);
    script.said(&["undetermined/observer"]);
}
