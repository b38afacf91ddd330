//! Drives both halves of the core against `io::sim` in simulated time, on one thread.

use keepsweep::io::sim::{Counters, Network, NetworkConfig};
use keepsweep::io::{PathId, PathInfo};
use keepsweep::probe::TargetId;
use keepsweep::probe::evidence::Verdict;
use keepsweep::probe::neighbour::{Hop, HopId};
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use keepsweep::probe::receiver::{Post, Receiver, RxCounts};
use keepsweep::probe::sender::{Poll, Sender, Start, Target};
use keepsweep::probe::table::{Family, Table};
use keepsweep::time::Instant;
use keepsweep::wire::{Checksums, LinkType, Packet, Segment, parse};
use siphasher::sip::SipHasher13;
use std::collections::HashMap;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The prober's addresses.
const SOURCE: [u8; 4] = [10, 98, 0, 1];
const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd98, 0, 0, 0, 0, 0, 0, 1);

fn source_for(host: IpAddr) -> IpAddr {
    if host.is_ipv4() { SOURCE.into() } else { SOURCE_V6.into() }
}

/// The default plan of the command line, at full rate.
pub fn plan() -> Plan {
    Plan {
        keepalive: Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: 5 },
        probe_bytes: ProbeBytes::Auto,
        connect_timeout: Duration::from_secs(15),
        close: Close::Rst,
        rate_pps: None,
        rate_per_prefix_pps: None,
        seed: 1,
    }
}

/// What a simulated sweep came to.
pub struct Outcome {
    /// First verdicts, by peer.
    pub verdicts: HashMap<SocketAddr, Verdict>,
    /// Verdicts that overturned one.
    pub corrections: Vec<Verdict>,
    /// Frames sent, by kind.
    pub sent: std::collections::BTreeMap<&'static str, u64>,
    /// What the receiver counted.
    pub received: RxCounts,
    /// Replies that the sender refused.
    pub refused: u64,
    /// When each segment was sent, and to whom, if there is a cap by network.
    pub sent_at: Vec<(Instant, Ipv4Addr)>,
    /// A hash over every octet sent and its time.
    pub fingerprint: u64,
    /// When the last verdict was given.
    pub ended: Instant,
    /// The network afterwards.
    pub network: Network,
}

impl Outcome {
    /// The network's counters.
    pub fn counters(&self) -> &Counters {
        self.network.counters()
    }
}

/// Sweeps `peers`; those in `on_link` are their own next hop.
pub fn sweep(plan: Plan, config: NetworkConfig, peers: &[SocketAddr]) -> Outcome {
    let path = PathInfo {
        id: PathId(0),
        interface: "sim0".into(),
        link: LinkType::Ethernet,
        mac: config.prober_mac,
        mtu: 1500,
    };
    let via = |next_hop| Hop { path: PathId(0), next_hop, source: source_for(next_hop) };
    let mut hops = vec![via(config.gateway.into()), via(config.gateway_v6.into())];
    let mut targets = Vec::with_capacity(peers.len());
    for &peer in peers {
        let on_link = config.on_link.is_some_and(|prefix| prefix.contains(&peer.ip()));
        if on_link {
            hops.push(via(peer.ip()));
        }
        let hop = if on_link { hops.len() - 1 } else { usize::from(peer.is_ipv6()) };
        let id = TargetId(targets.len() as u32);
        targets.push(Target { id, peer, hop: Some(HopId(hop as u32)) });
    }
    // As the engine does.
    fastrand::Rng::with_seed(plan.seed).shuffle(&mut targets);
    let table = Arc::new(Table::with_capacity(
        peers.len(),
        Family::of(peers.iter().map(SocketAddr::ip)),
        [1, 2],
    ));
    let post = Arc::new(Post::new(1, peers.len(), 1 << 16));
    let next_hops = hops.iter().map(|hop| hop.next_hop).collect();
    let mut receiver =
        Receiver::new(PathId(0), LinkType::Ethernet, table.clone(), next_hops, post.clone());
    let mut network = Network::new(config).expect("a network that makes sense");
    let mut now = Instant::from_nanos(1);
    let mut sender = Sender::new(Start {
        plan,
        targets,
        given: Vec::new(),
        first_slot: 0,
        hops,
        paths: vec![path],
        resolve: true,
        source_ports: 61000..=65534,
        table,
        now,
    })
    .expect("a sender");

    let mut fingerprint = SipHasher13::new();
    let mut sent_at = Vec::new();
    let mut verdicts = HashMap::with_capacity(peers.len());
    let mut corrections = Vec::new();
    let mut ended = now;
    let mut frame = [0; 256];
    // Bounded: a sweep of the default plan takes well under an hour of simulated time.
    let limit = now + Duration::from_secs(24 * 3600);
    loop {
        assert!(now < limit, "the sweep does not end");
        network.poll_receive(now, &mut |frame| {
            let mut pending = receiver.handle_frame(frame);
            while let Err(message) = pending {
                // Full: the sender takes it in before the next frame, as on a real machine.
                while let Some(message) = post.pop(0) {
                    sender.handle_heard(message, now);
                }
                pending = receiver.hand_on(message);
            }
        });
        while let Some(message) = post.pop(0) {
            sender.handle_heard(message, now);
        }
        sender.advance(now, now);
        let wait = loop {
            match sender.poll_transmit(now) {
                Poll::Transmit(due) => {
                    let len = sender.emit(&due, &mut frame).expect("room for a frame");
                    fingerprint.write_u64(now.as_nanos());
                    fingerprint.write(&frame[..len]);
                    if plan.rate_per_prefix_pps.is_some()
                        && let Ok(Packet::Tcp(Segment { ip, .. })) =
                            parse(&frame[..len], LinkType::Ethernet, Checksums::Verify)
                        && let IpAddr::V4(dst) = ip.dst
                    {
                        sent_at.push((now, dst));
                    }
                    network.transmit(now, &frame[..len]);
                }
                Poll::Pace(until) | Poll::Wait(until) => break Some(until),
                Poll::Done => break None,
            }
        };
        while let Some(verdict) = sender.poll_verdict() {
            ended = now;
            if verdict.correction {
                corrections.push(verdict);
            } else {
                let twice = verdicts.insert(verdict.peer, verdict);
                assert!(twice.is_none(), "reported twice: {twice:?}");
            }
        }
        let Some(until) = wait else { break };
        let next = until.min(network.next_arrival().unwrap_or(Instant::FAR_FUTURE));
        // What is due now was not done now: let the smallest step of time pass.
        now = next.max(now + Duration::from_nanos(1));
    }
    // What the last frames set off at the peers.
    network.poll_receive(now + Duration::from_millis(900), &mut |frame| {
        let _ = receiver.handle_frame(frame);
    });
    Outcome {
        verdicts,
        corrections,
        sent: sender.sent().by_kind(),
        received: *receiver.counts(),
        refused: sender.rejected().iter().sum(),
        sent_at,
        fingerprint: fingerprint.finish(),
        ended,
        network,
    }
}
