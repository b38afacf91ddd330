//! 65,536 real peers at full rate.

use crate::support::{Lab, Sweep, assert_every_queue_heard};

const PEERS: usize = 65_536;

#[test]
fn every_peer_once_and_alive() {
    sweep_everyone("65k", "0", 1, &[]);
}

#[test]
fn every_peer_alive_under_syn_cookies() {
    sweep_everyone("65kc", "2", 1, &[]);
}

/// Which queue an answer comes in by is the router's choice, and has nothing to do with the one that its
/// probe left by.
#[test]
fn every_peer_alive_whichever_queue_it_answers_by() {
    for mode in ["drv", "skb"] {
        let options = ["--io", "xdp", "--xdp-mode", mode];
        let Some(sweep) = sweep_everyone("65kq", "0", 2, &options) else { return };
        assert_every_queue_heard(&sweep, mode, 2);
        let queues = sweep.summary["xdp"][0]["queues"].as_array().expect("a list");
        for queue in queues {
            assert!(queue["sent"].as_u64() > Some(PEERS as u64), "{}", sweep.summary);
            // A hash that is any good puts far more than a quarter of the answers on each of the two.
            let many = queue["received"].as_u64() > Some(PEERS as u64 / 2);
            assert!(many || mode == "skb", "{}", sweep.summary);
        }
    }
}

/// Senders that share one queue and its completion ring.
#[test]
fn every_peer_alive_by_one_queue_of_af_xdp() {
    let options = ["--io", "xdp", "--xdp-mode", "drv", "--cpus", "0-1"];
    let Some(sweep) = sweep_everyone("65kx", "0", 1, &options) else { return };
    assert_every_queue_heard(&sweep, "drv", 1);
}

fn sweep_everyone(name: &str, syncookies: &str, queues: u32, options: &[&str]) -> Option<Sweep> {
    let lab = Lab::up_alone(name, &["--syncookies", syncookies])?;
    lab.set_queues(queues);
    let sweep = lab.sweep(&[&["10.99.0.0/16", "-p", "8080", "--rate", "max"], options].concat());
    assert_eq!(sweep.code, Some(0), "{}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.peers.len(), PEERS);
    assert_eq!(sweep.count("alive"), PEERS, "{}", sweep.summary);
    sweep.assert_accounts();
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
    Some(sweep)
}
