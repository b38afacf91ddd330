//! Answers that do not come in where the frames went out, and interfaces that stand on others.

use crate::support::{Lab, Sweep};

const PEERS: &[&str] = &["10.99.0.0/28", "-p", "8080,8081"];

fn assert_all_alive(sweep: &Sweep) {
    assert_eq!(sweep.code, Some(0), "{}\n{}", sweep.stderr, sweep.summary);
    assert_eq!(sweep.count("alive"), 32, "{}", sweep.summary);
    sweep.assert_accounts();
}

/// The guard keeps the answers from the kernel on every interface: so each must be listened on.
#[test]
fn answers_may_come_by_another_interface() {
    let Some(lab) = Lab::up("asym", &[]) else { return };
    lab.script(&["exec", "fleet", "ip", "route", "add", "10.98.0.1", "via", "10.96.0.1"]);
    assert_all_alive(&lab.sweep(PEERS));
}

#[test]
fn the_source_may_be_the_address_of_another_interface() {
    let Some(lab) = Lab::up("source", &[]) else { return };
    assert_all_alive(&lab.sweep(&[PEERS, &["--source", "10.96.0.1"]].concat()));
}

/// A guard on the port of a bridge would drop the answers before the bridge, and we, see them.
#[test]
fn peers_behind_a_bridge_are_heard() {
    let Some(lab) = Lab::up("bridge", &[]) else { return };
    for command in [
        "ip link add br0 type bridge",
        "ip addr del 10.98.0.1/24 dev up0",
        "ip link set up0 master br0",
        "ip link set br0 up",
        "ip addr add 10.98.0.1/24 dev br0",
        "ip route replace default via 10.98.0.254",
    ] {
        let words: Vec<&str> = ["exec"].into_iter().chain(command.split(' ')).collect();
        lab.script(&words);
    }
    assert_all_alive(&lab.sweep(PEERS));
}

/// The same where the frame is for another MAC address than that of the interface below.
#[test]
fn peers_behind_a_macvlan_are_heard() {
    let Some(lab) = Lab::up("macvlan", &[]) else { return };
    for command in [
        "ip link add link up0 name mv0 type macvlan mode bridge",
        "ip addr del 10.98.0.1/24 dev up0",
        "ip link set mv0 up",
        "ip addr add 10.98.0.1/24 dev mv0",
        "ip route replace default via 10.98.0.254",
    ] {
        let words: Vec<&str> = ["exec"].into_iter().chain(command.split(' ')).collect();
        lab.script(&words);
    }
    assert_all_alive(&lab.sweep(PEERS));
}
