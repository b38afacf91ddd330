//! How fast each path is on this machine: the real path beside the barest loop over the same socket.
//!
//! Both run in turn, a few dozen milliseconds each, so that whatever else the machine does meets both
//! alike; what counts is the median. Time in which something else had the CPU is not counted.
#![forbid(unsafe_code)]

mod deciding;
mod flows;
mod matching;
mod rx;
mod slice;
mod tx;

pub use matching::{MatchReport, matching};
pub use rx::{RxReport, RxSetup, rx};
pub use tx::{TxReport, TxSetup, tx};

use crate::engine::EngineError;
use crate::io::route::Interface;
use crate::io::testbed::Testbed;
use serde::Serialize;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many peers the frames are for, or from.
pub const PEERS: u32 = 1 << 16;

/// A path that can be measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BenchPath {
    /// Raw sockets.
    Raw,
    /// AF_PACKET.
    Packet,
    /// AF_XDP.
    Xdp,
}

impl BenchPath {
    /// Every path, slowest first.
    pub const ALL: [BenchPath; 3] = [BenchPath::Raw, BenchPath::Packet, BenchPath::Xdp];

    /// Returns its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            BenchPath::Raw => "raw",
            BenchPath::Packet => "packet",
            BenchPath::Xdp => "xdp",
        }
    }
}

/// What a measurement shows while it goes on, and how it is ended early.
pub struct Watch<'a> {
    /// Set to end with what is known.
    pub stop: &'a AtomicBool,
    /// Is told what is going on, a sentence each.
    pub say: &'a (dyn Fn(&str) + Sync),
}

impl fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("stop", self.stop).finish_non_exhaustive()
    }
}

impl Watch<'_> {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A figure over all slices.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of `figures`; all zero if there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
            (Some(&min), Some(&median), Some(&max)) => Spread { median, min, max },
            _ => Spread::default(),
        }
    }
}

/// The private interface that is measured, where none was named.
const OURS: &str = "ksbench0";
/// The other end of a pair.
const OTHER: &str = "ksbench1";

/// Makes a namespace with an interface that swallows what is sent; returns the interface and its kind.
fn sink() -> Result<(Testbed, Interface, &'static str), EngineError> {
    let mut testbed = Testbed::enter().map_err(EngineError::system)?;
    let kind = match testbed.add_ifb(OURS) {
        Ok(()) => "ifb",
        // No such kind.
        Err(error) if error.source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            testbed.add_veth(OURS, OTHER).map_err(EngineError::system)?;
            testbed.raise(OTHER).map_err(EngineError::system)?;
            "veth"
        }
        Err(error) => return Err(EngineError::system(error)),
    };
    let interface = testbed.raise(OURS).map_err(EngineError::system)?;
    Ok((testbed, interface, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_needs_no_order_and_no_figures() {
        let spread = Spread::of([3.0, 1.0, 2.0, 9.0, 4.0]);
        assert_eq!((spread.median, spread.min, spread.max), (3.0, 1.0, 9.0));
        assert_eq!(Spread::of([]), Spread::default());
    }
}
