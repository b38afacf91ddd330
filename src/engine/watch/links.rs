//! Whether the links and addresses that a sweep began with are still there.

use super::{Baseline, HostEvent, Way, trouble};
use crate::engine::Control;
use crate::io::route::{Interface, interfaces};
use crate::io::{IoError, PathId};
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::time::{Clock, Instant};
use crate::wire::MacAddr;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// After a link or an address is back, switches and neighbours need a while to find it.
const GRACE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Link {
    name_of: u32,
    mac: MacAddr,
    losses: u32,
    down_since: Option<Instant>,
}

/// The links and addresses of a sweep.
#[derive(Debug)]
pub(super) struct Links {
    links: Vec<(PathId, Link)>,
    sources: Vec<(IpAddr, Option<Instant>)>,
}

impl Links {
    /// Begins with those of `baseline`.
    pub fn new(baseline: &Baseline) -> Self {
        let find = |index: u32| baseline.interfaces.iter().find(|known| known.index == index);
        let links = baseline.egress.iter().chain(&baseline.elsewhere);
        let links = links.filter_map(|&(path, index)| {
            let interface = find(index)?;
            let (mac, losses) = (interface.mac, interface.carrier_losses);
            Some((path, Link { name_of: index, mac, losses, down_since: None }))
        });
        let own: BTreeSet<IpAddr> = addresses(&baseline.interfaces).collect();
        let sources: BTreeSet<IpAddr> = baseline.ways.iter().map(|way| way.source).collect();
        Links {
            links: links.collect(),
            // A source need not be an address of an interface: whole prefixes can be local.
            sources: sources.intersection(&own).map(|&source| (source, None)).collect(),
        }
    }

    /// Says whether the link or the address of `way` is not there for now.
    pub fn is_down(&self, way: &Way) -> bool {
        let Links { links, sources } = self;
        links.iter().any(|(path, link)| *path == way.path && link.down_since.is_some())
            || sources.iter().any(|(source, lost)| *source == way.source && lost.is_some())
    }

    /// Compares links and addresses with what they were, and tells of those that differ.
    ///
    /// # Errors
    /// The kernel does not list them.
    pub fn check(
        &mut self,
        baseline: &Baseline,
        control: &Control,
    ) -> Result<Vec<HostEvent>, IoError> {
        let found = interfaces()?;
        let now = Clock.now();
        let mut events = Vec::new();
        let Baseline { interfaces: known, egress, .. } = baseline;
        for (path, link) in &mut self.links {
            let is_egress = egress.iter().any(|(egress, _)| egress == path);
            let name = known
                .iter()
                .find(|known| known.index == link.name_of)
                .map_or_else(String::new, |known| known.name.clone());
            let state = found.iter().find(|found| found.index == link.name_of);
            let is_up = state.is_some_and(|state| state.up && state.mac == link.mac);
            let what = match state {
                None => "gone",
                Some(state) if state.mac != link.mac => "with another MAC address",
                Some(state) if !state.enabled => "down",
                Some(_) => "without carrier",
            };
            let losses = state.map_or(link.losses, |state| state.carrier_losses);
            let say = |text: String| {
                if is_egress {
                    control.notices.push(text);
                } else {
                    tracing::info!("{text}");
                }
            };
            match (link.down_since, is_up) {
                (None, false) => {
                    link.down_since = Some(now);
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, Instant::FAR_FUTURE));
                    say(format!(
                        "{name}: {what}; until it is back, silence of peers behind it proves nothing"
                    ));
                }
                (Some(since), true) => {
                    link.down_since = None;
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, now + GRACE));
                    let away = now.since(since).as_secs_f64();
                    say(format!("{name}: back after {away:.1} s"));
                }
                (None, true) if losses != link.losses => {
                    events.push(trouble(Scope::Path(*path), Seen::LinkDown, now + GRACE));
                    say(format!("{name}: lost its carrier for a moment"));
                }
                _ => {}
            }
            link.losses = losses;
        }
        // Several interfaces are listened on as one path: it is well only if all are.
        let down: BTreeSet<PathId> =
            self.links.iter().filter_map(|(path, link)| link.down_since.map(|_| *path)).collect();
        events.retain(|event| match event {
            HostEvent::Trouble(Scope::Path(path), _, until) => {
                *until == Instant::FAR_FUTURE || !down.contains(path)
            }
            _ => true,
        });
        let own: BTreeSet<IpAddr> = addresses(&found).collect();
        for (source, lost_since) in &mut self.sources {
            let (scope, kind) = (Scope::Source(*source), Seen::AddressLost);
            match (*lost_since, own.contains(source)) {
                (None, false) => {
                    *lost_since = Some(now);
                    events.push(trouble(scope, kind, Instant::FAR_FUTURE));
                    control.notices.push(format!(
                        "{source}: no longer an address of this host; until it is back, silence \
                         towards it proves nothing"
                    ));
                }
                (Some(since), true) => {
                    *lost_since = None;
                    events.push(trouble(scope, kind, now + GRACE));
                    let away = now.since(since).as_secs_f64();
                    control
                        .notices
                        .push(format!("{source}: an address of this host again after {away:.1} s"));
                }
                _ => {}
            }
        }
        Ok(events)
    }
}

fn addresses(interfaces: &[Interface]) -> impl Iterator<Item = IpAddr> {
    interfaces.iter().flat_map(|interface| &interface.addresses).map(|address| address.addr())
}
