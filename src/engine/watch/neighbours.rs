//! What the kernel says of the next hops that it resolves for us.

use super::{Baseline, HostEvent};
use crate::engine::Control;
use crate::io::PathId;
use crate::io::route::NeighbourTable;
use crate::time::Instant;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Between two looks at the kernel's table of neighbours.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was told of next hops.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// Those last told to be unresolved.
    unresolved: BTreeSet<(PathId, IpAddr)>,
    is_blind: bool,
}

impl Neighbours {
    /// Looks at the kernel's table of neighbours. If that fails, nobody is told: without a look no
    /// silence is believed.
    pub fn look(&mut self, baseline: &Baseline, control: &Control, now: Instant) -> Vec<HostEvent> {
        let found = match NeighbourTable::open().and_then(|mut table| table.read()) {
            Ok(found) => found,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    control.notices.push(format!(
                        "{error}; while it lasts, silence on the raw path proves nothing"
                    ));
                }
                return Vec::new();
            }
        };
        self.is_blind = false;
        let mut events = Vec::new();
        for entry in found {
            let paths = baseline.kernel_neighbours.iter();
            for &(path, _) in paths.filter(|(_, index)| *index == entry.ifindex) {
                let key = (path, entry.address);
                let is_news = match entry.is_resolved {
                    true => self.unresolved.remove(&key),
                    false => {
                        self.unresolved.insert(key);
                        true
                    }
                };
                if is_news {
                    events.push(HostEvent::Neighbour(path, entry.address, entry.is_resolved, now));
                }
            }
        }
        events.push(HostEvent::Looked(now));
        events
    }
}
