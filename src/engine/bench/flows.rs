//! Flows to measure with: as many as a /16 has addresses, with random numbers.
#![forbid(unsafe_code)]

use super::PEERS;
use crate::io::ports;
use crate::probe::craft::{Outgoing, WINDOW};
use crate::probe::flow::SegmentKind;
use crate::wire::{MacAddr, SeqNumber};
use std::net::{Ipv4Addr, SocketAddr};

/// Our own address: in the range that is set aside for benchmarks (RFC 2544 §C.2.2, 198.18.0.0/15).
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The router through which the kernel sends packets to the peers.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The peers' network, a /16.
pub const NETWORK: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);

/// One flow, as far as a keepalive needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BenchFlow {
    /// The peer.
    pub peer: Ipv4Addr,
    /// Its port.
    pub peer_port: u16,
    /// Ours.
    pub local_port: u16,
    /// SND.UNA.
    pub snd_una: SeqNumber,
    /// RCV.NXT.
    pub rcv_nxt: SeqNumber,
}

impl BenchFlow {
    /// Returns the keepalive that is sent for the `repeat`th time.
    pub fn keepalive(&self, mac: MacAddr, repeat: u16) -> Outgoing {
        Outgoing {
            kind: SegmentKind::Probe0,
            mac,
            local_port: self.local_port,
            peer: SocketAddr::from((self.peer, self.peer_port)),
            seq: self.snd_una - 1,
            ack: Some(self.rcv_nxt),
            wnd: WINDOW - repeat % 8,
            ip_id: self.local_port.wrapping_add(repeat),
            timestamps: None,
        }
    }
}

/// Makes the flows, in the order of their peers.
pub fn flows() -> Vec<BenchFlow> {
    let mut rng = fastrand::Rng::with_seed(1);
    let network = NETWORK.to_bits();
    let flow = |number| BenchFlow {
        peer: Ipv4Addr::from_bits(network + number),
        peer_port: 443,
        local_port: rng.u16(ports::DEFAULT),
        snd_una: SeqNumber(rng.u32(..)),
        rcv_nxt: SeqNumber(rng.u32(..)),
    };
    (0..PEERS).map(flow).collect()
}

/// Returns an order in which to take them: random, as a sweep goes through its peers.
pub fn order() -> Vec<u32> {
    let mut order: Vec<u32> = (0..PEERS).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut order);
    order
}
