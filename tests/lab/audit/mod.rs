//! `keepsweep audit` against the truth: real applications, real sockets, real faults.

mod apps;
mod network;
mod truth;

use crate::support::Lab;
use network::Network;

/// What the audits below are held against is itself held against the kernel's own keepalive.
#[test]
fn the_network_is_what_the_truth_says() {
    let Some(lab) = Lab::up_alone("autruth", &[]) else { return };
    let mut network = Network::raise(lab, |row| row.count.min(3));
    assert_eq!(network.resets(), 0);
    network.assert_kernel_agrees();
}
