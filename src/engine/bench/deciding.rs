//! What the sending half of a sweep takes to decide which keepalive is due, in memory.
#![forbid(unsafe_code)]

use super::flows::{BenchFlow, ROUTER, SOURCE};
use super::slice::Slice;
use crate::engine::EngineError;
use crate::io::bare::BATCH;
use crate::io::{FRAME_OCTETS, PathInfo, ports};
use crate::probe::TargetId;
use crate::probe::craft::WINDOW;
use crate::probe::given::Given;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use crate::probe::sender::{Poll, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::time::Instant;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// A sweep's sender over peers that never answer, which hands its frames to nobody.
#[derive(Debug)]
pub struct Deciding {
    sender: Sender,
    /// Goes on to the next deadline once nothing is due.
    now: Instant,
}

impl Deciding {
    /// Gives the sender `flows`, to be probed through `path` over and over.
    ///
    /// # Errors
    /// A frame cannot be crafted, which no interface causes.
    pub fn new(flows: &[BenchFlow], path: &PathInfo) -> Result<Self, EngineError> {
        let keepalive =
            Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: u16::MAX };
        let plan = Plan {
            keepalive,
            probe_bytes: ProbeBytes::Zero,
            connect_timeout: Duration::from_secs(15),
            close: Close::Rst,
            rate_pps: None,
            rate_per_prefix_pps: None,
            seed: 1,
        };
        let given = |flow: &BenchFlow| Given {
            local: SocketAddr::from((SOURCE, flow.local_port)),
            peer: SocketAddr::from((flow.peer, flow.peer_port)),
            snd_una: flow.snd_una,
            snd_nxt: flow.snd_una,
            rcv_nxt: flow.rcv_nxt,
            wnd: WINDOW,
            clock: None,
            obstacle: None,
            host: None,
        };
        let given: Vec<Given> = flows.iter().map(given).collect();
        let target = |(id, given): (u32, &Given)| Target {
            id: TargetId(id),
            peer: given.peer,
            hop: Some(HopId(0)),
        };
        let now = Instant::from_nanos(1_000_000_000);
        let start = Start {
            plan,
            targets: (0..).zip(&given).map(target).collect(),
            given,
            first_slot: 0,
            hops: vec![Hop { path: path.id, next_hop: ROUTER.into(), source: SOURCE.into() }],
            paths: vec![path.clone()],
            resolve: false,
            source_ports: ports::DEFAULT,
            table: Arc::new(Table::with_capacity(flows.len(), Family::V4, [1, 2])),
            now,
        };
        Ok(Deciding { sender: Sender::new(start).map_err(EngineError::system)?, now })
    }

    /// Decides and crafts for a slice's time.
    ///
    /// # Errors
    /// The sender has come to an end, or a frame cannot be crafted: never, with peers that are silent.
    pub fn slice(&mut self, buffer: &mut [u8]) -> Result<Slice, EngineError> {
        Slice::of(|| self.batch(buffer))
    }

    fn batch(&mut self, buffer: &mut [u8]) -> Result<u64, EngineError> {
        let mut put = 0;
        for buf in buffer.chunks_exact_mut(FRAME_OCTETS).take(BATCH) {
            let due = match self.sender.poll_transmit(self.now) {
                Poll::Transmit(due) => due,
                Poll::Wait(at) | Poll::Pace(at) if at != Instant::FAR_FUTURE => {
                    self.now = self.now.max(at);
                    self.sender.advance(self.now, self.now);
                    // Nobody wants them.
                    while self.sender.poll_verdict().is_some() {}
                    continue;
                }
                Poll::Wait(_) | Poll::Pace(_) | Poll::Done => {
                    return Err(EngineError::System("the sender has nothing left to send".into()));
                }
            };
            self.sender.emit(&due, buf).map_err(EngineError::system)?;
            put += 1;
        }
        Ok(put)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::bench::flows::flows;
    use crate::io::PathId;
    use crate::wire::{LinkType, MacAddr};

    #[test]
    fn every_flow_is_probed_once_a_round() {
        let path = PathInfo {
            id: PathId(0),
            interface: "test0".into(),
            link: LinkType::Ethernet,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        };
        let flows = &flows()[..1000];
        let mut deciding = Deciding::new(flows, &path).unwrap();
        let mut buffer = vec![0; BATCH * FRAME_OCTETS];
        let mut sent = 0;
        while sent < 3000 {
            sent += deciding.batch(&mut buffer).unwrap();
        }
        let counts = deciding.sender.sent().by_kind();
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [("probe-0", sent)]);
        // The third round is over, or the fourth has begun.
        let rounds = deciding.now.since(Instant::from_nanos(1_000_000_000));
        assert!((2..=3).contains(&rounds.as_secs()), "{rounds:?}");
    }
}
