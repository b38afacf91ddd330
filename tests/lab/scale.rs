//! 65,536 real peers at full rate.

use crate::support::Lab;

const PEERS: usize = 65_536;

#[test]
fn every_peer_once_and_alive() {
    sweep_everyone("65k", "0");
}

#[test]
fn every_peer_alive_under_syn_cookies() {
    sweep_everyone("65kc", "2");
}

fn sweep_everyone(name: &str, syncookies: &str) {
    let Some(lab) = Lab::up_alone(name, &["--syncookies", syncookies]) else { return };
    let sweep = lab.sweep(&["10.99.0.0/16", "-p", "8080", "--rate", "max"]);
    assert_eq!(sweep.code, Some(0), "{}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.peers.len(), PEERS);
    assert_eq!(sweep.count("alive"), PEERS, "{}", sweep.summary);
    sweep.assert_accounts();
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}
