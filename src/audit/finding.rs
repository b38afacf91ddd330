//! What an operator wants to know even of connections that are alive.
#![forbid(unsafe_code)]

use super::Listed;
use std::time::Duration;

/// How long a connection without SO_KEEPALIVE may be idle, unless told otherwise: what
/// TCP_KEEPIDLE is by default (RFC 9293 §3.8.4).
pub const KEEPALIVE_OFF_OVER: Duration = Duration::from_secs(7200);

/// Something that endangers a connection, or hides its death.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Finding {
    /// SO_KEEPALIVE is off, and no data moved for long: nobody would notice if the peer died.
    KeepaliveOff,
    /// A middlebox of this kind would have forgotten the connection by now.
    Idle(Middlebox),
}

/// Kinds of middleboxes, by how long they remember a connection without a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Middlebox {
    /// Azure: load balancer and NAT gateway, 4 minutes by default
    /// (learn.microsoft.com/azure/load-balancer/load-balancer-tcp-reset).
    Azure,
    /// AWS: Network Load Balancer and NAT gateway, 350 s
    /// (docs.aws.amazon.com/elasticloadbalancing/latest/network/network-load-balancers.html,
    /// docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-troubleshooting.html).
    Aws,
    /// Google Cloud: the connection tracking of a VPC network, 10 minutes
    /// (cloud.google.com/compute/docs/troubleshooting/general-tips).
    Gcp,
    /// IPVS (kube-proxy), 15 minutes: `ip_vs_tcp` of ESTABLISHED, net/netfilter/ipvs/ip_vs_proto_tcp.c.
    Ipvs,
    /// A NAT that does what it must, and no more: 2 hours 4 minutes (RFC 5382 §5, REQ-5).
    Nat,
}

impl Middlebox {
    /// Every kind, the most forgetful first.
    pub const ALL: [Middlebox; 5] =
        [Middlebox::Azure, Middlebox::Aws, Middlebox::Gcp, Middlebox::Ipvs, Middlebox::Nat];

    /// Returns how long it remembers an established connection without a segment.
    pub const fn remembers(self) -> Duration {
        Duration::from_secs(match self {
            Middlebox::Azure => 240,
            Middlebox::Aws => 350,
            Middlebox::Gcp => 600,
            Middlebox::Ipvs => 900,
            Middlebox::Nat => 7440,
        })
    }
}

impl Finding {
    /// Every finding, in the order of [`findings`].
    pub const ALL: [Finding; 6] = [
        Finding::KeepaliveOff,
        Finding::Idle(Middlebox::Azure),
        Finding::Idle(Middlebox::Aws),
        Finding::Idle(Middlebox::Gcp),
        Finding::Idle(Middlebox::Ipvs),
        Finding::Idle(Middlebox::Nat),
    ];

    /// Returns its name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Finding::KeepaliveOff => "keepalive-off",
            Finding::Idle(Middlebox::Azure) => "idle-azure",
            Finding::Idle(Middlebox::Aws) => "idle-aws",
            Finding::Idle(Middlebox::Gcp) => "idle-gcp",
            Finding::Idle(Middlebox::Ipvs) => "idle-ipvs",
            Finding::Idle(Middlebox::Nat) => "idle-nat",
        }
    }
}

/// Returns what there is to find in `listed`; without keepalive it may be idle for
/// `keepalive_off_over`.
///
/// A socket without numbers (TIME_WAIT, SYN_RECV) has none: the kernel ends it anyway.
pub fn findings(listed: &Listed, keepalive_off_over: Duration) -> Vec<Finding> {
    let (Some(numbers), Some(idle), Some(quiet)) =
        (listed.numbers(), listed.idle(), listed.quiet())
    else {
        return Vec::new();
    };
    let unwatched = numbers.keepalive.is_none() && idle > keepalive_off_over;
    let forgotten = Middlebox::ALL.into_iter().filter(|kind| quiet > kind.remembers());
    unwatched
        .then_some(Finding::KeepaliveOff)
        .into_iter()
        .chain(forgotten.map(Finding::Idle))
        .collect()
}
