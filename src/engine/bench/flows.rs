//! Flows to measure with: as many as a /16 has addresses, with random numbers.
#![forbid(unsafe_code)]

use super::PEERS;
use crate::io::FRAME_OCTETS;
use crate::io::ports;
use crate::probe::Slot;
use crate::probe::craft::{Outgoing, WINDOW};
use crate::probe::flow::SegmentKind;
use crate::probe::table::{Expect, Family, FlowKey, InsertError, Past, Phase, Table};
use crate::wire::{EmitError, Flags, IpHeader, LinkHeader, MacAddr, Options, Segment, SeqNumber};
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
            tos: 0,
            ip_id: self.local_port.wrapping_add(repeat),
            timestamps: None,
        }
    }
}

/// Returns a table that holds `flows`, each in the slot of its place, with a keepalive unanswered.
///
/// # Errors
/// The table has no room.
pub fn table(flows: &[BenchFlow]) -> Result<Table, InsertError> {
    let table = Table::with_capacity(flows.len(), Family::V4, [1, 2]);
    for (slot, flow) in (0..).map(Slot).zip(flows) {
        let key = FlowKey {
            local: SocketAddr::from((SOURCE, flow.local_port)),
            peer: SocketAddr::from((flow.peer, flow.peer_port)),
        };
        let expect = Expect {
            phase: Phase::Open,
            snd_una: flow.snd_una,
            snd_nxt: flow.snd_una,
            rcv_nxt: flow.rcv_nxt,
            past: Past::UNKNOWN,
            probe_ack: flow.rcv_nxt,
            probe_outstanding: true,
            given: false,
        };
        table.insert(slot, &key, &expect)?;
    }
    Ok(table)
}

/// The answers to the keepalives of all flows, frame behind frame in random order.
#[derive(Debug)]
pub struct Replies {
    octets: Vec<u8>,
    each: usize,
}

impl Replies {
    /// Emits them, from a peer's MAC address to ours.
    ///
    /// # Errors
    /// [`EmitError`], which none of these causes.
    pub fn new(flows: &[BenchFlow], src: MacAddr, dst: MacAddr) -> Result<Self, EmitError> {
        let link = LinkHeader::Ethernet { src, dst, vlan: None };
        let mut buf = [0; FRAME_OCTETS];
        let (mut octets, mut each) = (Vec::new(), 0);
        for flow in order().into_iter().map(|index| &flows[index as usize]) {
            let reply = Segment {
                ip: IpHeader { src: flow.peer.into(), dst: SOURCE.into(), ttl: 64, id: 0 },
                src_port: flow.peer_port,
                dst_port: flow.local_port,
                seq: flow.rcv_nxt,
                ack: flow.snd_una,
                flags: Flags::ACK,
                wnd: 64_240,
                options: Options::default(),
                payload: &[],
            };
            each = reply.emit(&link, &mut buf)?;
            octets.extend_from_slice(&buf[..each]);
        }
        Ok(Replies { octets, each })
    }

    /// Goes through them once.
    pub fn once(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.octets.chunks_exact(self.each.max(1))
    }

    /// Goes through them over and over.
    pub fn forever(&self) -> impl Iterator<Item = &[u8]> + '_ {
        self.octets.chunks_exact(self.each.max(1)).cycle()
    }
}

/// Makes the flows, their peers in random order: as a sweep goes through them, and has them in memory.
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
    let mut flows: Vec<_> = (0..PEERS).map(flow).collect();
    fastrand::Rng::with_seed(3).shuffle(&mut flows);
    flows
}

/// Returns an order in which they answer: random, as if all had been asked at once.
fn order() -> Vec<u32> {
    let mut order: Vec<u32> = (0..PEERS).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut order);
    order
}
