//! Everything that must be in place before the first frame: privilege, ports, routes, paths, guard.

mod layout;
mod paths;

use super::capture::Capture;
use super::given;
use super::watch::HostWatch;
use super::xdp::most_senders;
use super::{Cpus, EngineError, IoKind, Setup, Sweep};
use crate::io::claim::{self, Claim, ClaimError, Hears};
use crate::io::packet::PortRanges;
use crate::io::ports::PortsError;
use crate::io::shield::Shield;
use crate::io::watch::Watch;
use crate::io::{PathId, PathInfo, affinity, ports, privilege};
use crate::probe::given::Given;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Keepalive, Plan};
use crate::probe::receiver::Post;
use crate::probe::sender::{Poll, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::probe::translations::Translations;
use crate::probe::{Slot, TargetId};
use crate::time::{Clock, Instant};
use crate::wire::EmitError;
use layout::{Egress, Layout};
use paths::Opened;
use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Replies between receivers and sender; beyond it receivers wait and the kernel's ring fills.
const HEARD: usize = 1 << 16;
/// Below this many peers a second sender costs more than it brings.
const PEERS_WORTH_A_SENDER: usize = 4096;
const MAX_SENDERS: usize = 16;

impl Sweep {
    /// Checks privileges and ports, looks up routes, opens one path per egress interface, attaches
    /// the guard, then drops every capability of the calling thread and those it will start.
    ///
    /// # Errors
    /// [`EngineError`], each naming operation, object and remedy.
    pub fn open(setup: Setup) -> Result<Sweep, EngineError> {
        // First: what changes from here on is noticed.
        let watch = Watch::open().map_err(EngineError::system)?;
        let mut layout = Layout::new(&setup)?;
        privilege::require(privilege::SWEEP).map_err(EngineError::system)?;
        if let Some(Cpus { senders, receivers }) = &setup.cpus {
            let check = |cpus| affinity::check(cpus).map_err(|e| EngineError::Usage(e.to_string()));
            check(senders).and_then(|()| check(receivers))?;
        }
        // Given flows have ports of their own.
        if !setup.targets.is_empty() {
            check_ports(&setup.source_ports)?;
        }
        let claims = claims(&setup, &layout.given)?;
        let capture = match &setup.pcap {
            None => None,
            Some(path) => {
                let opened = match setup.pcap_goes_on {
                    false => Capture::create(path, layout.link()),
                    true => Capture::append(path, layout.link()),
                };
                Some(opened.map_err(|error| {
                    EngineError::System(format!("create {}: {error}", path.display()))
                })?)
            }
        };
        let senders = layout.number_of_senders(&setup)?;
        let Opened { guard, shield, redirects, paths, notes } =
            layout.open_paths(&setup, senders)?;
        layout.set_shield(shield.clone());
        let peers = layout.targets.len();
        let (unreadable, no_way) = (layout.unreadable.as_deref(), layout.no_way.as_deref());
        let said = given::notes(&layout.given, unreadable, no_way);
        let notes = said.into_iter().chain(notes).collect();
        let io = layout.io(&setup);
        let post = Arc::new(Post::new(senders, peers, HEARD));
        layout.shuffle(setup.plan.seed, post.share());
        let watch =
            HostWatch::new(watch, layout.baseline(&setup, &paths)).with_programs(&redirects);
        let kernel = layout.kernel.take().map(|kernel| (kernel, layout.cookies()));
        let (senders, table) = layout.into_senders(&setup, post.share(), Clock.now(), true)?;
        let translations = Arc::new(Translations::default());
        let senders = senders.into_iter();
        let senders =
            senders.map(|sender| sender.with_translations(translations.clone())).collect();
        privilege::drop_all().map_err(EngineError::system)?;
        let watch = Some(watch);
        Ok(Sweep {
            senders,
            paths,
            table,
            translations,
            post,
            guard,
            shield,
            redirects,
            capture,
            watch,
            kernel,
            _claims: claims,
            cpus: setup.cpus,
            peers,
            io,
            notes,
        })
    }

    /// Returns what the user should know of the flows that were given, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

/// Says on which ports this sweep hears, alone where an XDP program takes the answers.
fn claims(setup: &Setup, given: &[Given]) -> Result<Vec<Claim>, EngineError> {
    let hears = match setup.io {
        IoKind::Xdp(_) => Hears::Alone,
        _ => Hears::Too,
    };
    let opened = (!setup.targets.is_empty()).then(|| setup.source_ports.clone());
    let given = ports_to_claim(given, opened.as_ref()).into_iter().map(|ports| (ports, Hears::Too));
    let wanted = opened.map(|ports| (ports, hears)).into_iter().chain(given);
    wanted.map(|(ports, hears)| claim(&ports, hears)).collect()
}

fn claim(ports: &RangeInclusive<u16>, hears: Hears) -> Result<Claim, EngineError> {
    claim::claim(ports, hears).map_err(|error| match error {
        ClaimError::Io(error) => EngineError::system(error),
        taken => EngineError::Usage(taken.to_string()),
    })
}

fn check_ports(ports: &RangeInclusive<u16>) -> Result<(), EngineError> {
    ports::check(ports).map_err(|error| match error {
        PortsError::Io(error) => EngineError::system(error),
        taken => EngineError::Usage(taken.to_string()),
    })
}

/// Checks that a sweep could be opened on `ports` in the calling thread's network namespace.
pub(crate) fn check_source_ports(ports: &RangeInclusive<u16>) -> Result<(), EngineError> {
    check_ports(ports)?;
    claim(ports, Hears::Too).map(drop)
}

/// Returns the ports of given flows whose answers the XDP program of another sweep would take: it lets
/// pass what the kernel owns. What our own one takes is heard, so `opened` is left out.
fn ports_to_claim(
    given: &[Given],
    opened: Option<&RangeInclusive<u16>>,
) -> Vec<RangeInclusive<u16>> {
    let probed = given.iter().filter(|flow| flow.host.is_none() && flow.obstacle().is_none());
    let others = probed.map(|flow| flow.local.port());
    let others = others.filter(|port| opened.is_none_or(|opened| !opened.contains(port)));
    // Joined on either side of `opened`, and not across it.
    let (below, above): (Vec<u16>, Vec<u16>) =
        others.partition(|port| opened.is_none_or(|opened| port < opened.start()));
    let joined = |ports: Vec<u16>| PortRanges::covering(ports.into_iter().map(|port| port..=port));
    [below, above]
        .into_iter()
        .flat_map(|ports| joined(ports).iter().cloned().collect::<Vec<_>>())
        .collect()
}

/// Crafts the first frame to every peer in the order of the sweep and hands it to `show` together
/// with its target and the path it would leave through. Sends nothing and needs no privilege; MAC
/// addresses of next hops are not asked for and stay zero.
///
/// Returns the given flows with what forbids probing them; on the others the first frame is a
/// keepalive, as if there were no rest.
///
/// # Errors
/// [`EngineError::Usage`] if the setup is impossible, [`EngineError::System`] if routes cannot be
/// read.
pub fn preview(
    setup: &Setup,
    show: &mut dyn FnMut(TargetId, &PathInfo, &[u8]),
) -> Result<Vec<Given>, EngineError> {
    let mut layout = Layout::new(setup)?;
    let infos = layout.path_infos();
    let given = layout.given.clone();
    let mut setup = setup.clone();
    // Without a rest, so that the first frame of a given flow is there to be seen.
    let keepalive = Keepalive { idle: Duration::ZERO, ..setup.plan.keepalive };
    setup.plan = Plan { rate_pps: None, rate_per_prefix_pps: None, keepalive, ..setup.plan };
    let share = layout.targets.len().max(1);
    layout.shuffle(setup.plan.seed, share);
    let ids: Vec<_> = layout.targets.iter().map(|target| target.id).collect();
    let (senders, _) = layout.into_senders(&setup, share, Instant::ZERO, false)?;
    let mut frame = [0; 256];
    for mut sender in senders {
        // Time stands still, so nothing is repeated.
        while let Poll::Transmit(due) = sender.poll_transmit(Instant::ZERO) {
            let len = sender.emit(&due, &mut frame).map_err(EngineError::system)?;
            if let Some(slot) = due.slot {
                show(ids[slot.0 as usize], &infos[usize::from(due.path.0)], &frame[..len]);
            }
        }
    }
    Ok(given)
}

impl Layout {
    /// Says what keeps resets from the kernel's sockets, beside the guard.
    fn set_shield(&mut self, shield: Option<Arc<Shield>>) {
        if shield.is_none() {
            // What was read does not do: it is read again before the first probe.
            for host in self.given.iter_mut().filter_map(|flow| flow.host.as_mut()) {
                host.latest.at = Instant::ZERO;
            }
        }
        if let Some(kernel) = &mut self.kernel {
            kernel.set_shield(shield);
        }
    }

    /// The sockets of the given flows that the kernel owns and that are probed.
    fn cookies(&self) -> HashMap<u64, Slot> {
        let first = self.targets.len() - self.given.len();
        let flows = self.given.iter().enumerate();
        flows
            .filter(|(_, flow)| flow.obstacle.is_none())
            .filter_map(|(index, flow)| Some((flow.host?.cookie, Slot((first + index) as u32))))
            .collect()
    }

    /// How many senders a sweep is worth: one for each core at full rate, unless there are few peers
    /// or, by AF_XDP, few queues to send through.
    fn number_of_senders(&self, setup: &Setup) -> Result<usize, EngineError> {
        if setup.plan.rate_pps.is_some() {
            return Ok(1);
        }
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let mut most = cores.min((setup.targets.len() + setup.flows.len()) / PEERS_WORTH_A_SENDER);
        if matches!(setup.io, IoKind::Xdp(_)) {
            for Egress { interface, .. } in self.egress.iter().filter(|egress| !egress.is_raw) {
                let senders = most_senders(&interface.name).map_err(EngineError::system)?;
                most = most.min(senders);
            }
        }
        Ok(most.clamp(1, MAX_SENDERS))
    }

    /// Shares the targets out between senders, `share` each.
    fn into_senders(
        self,
        setup: &Setup,
        share: usize,
        now: Instant,
        resolve: bool,
    ) -> Result<(Vec<Sender>, Arc<Table>), EngineError> {
        let mut hash_key = [0; 2];
        for half in &mut hash_key {
            *half = getrandom::u64().map_err(EngineError::system)?;
        }
        let family = Family::of(self.targets.iter().map(|target| target.peer.ip()));
        let table = Arc::new(Table::with_capacity(self.targets.len(), family, hash_key));
        let paths = self.path_infos();
        // The slot of the first given flow.
        let owned = self.targets.len() - self.given.len();
        let loopback: Vec<_> = (0u8..)
            .map(PathId)
            .zip(&self.egress)
            .filter_map(|(path, egress)| egress.interface.loopback.then_some(path))
            .collect();
        let asks_as: HashSet<_> = self
            .hops
            .iter()
            .filter_map(|hop| Some((hop.path, hop.source, self.asks_from(hop)?)))
            .collect();
        let shares = self.targets.chunks(share).enumerate().map(|(index, targets)| {
            let given = |slot: usize| slot.saturating_sub(owned);
            let given = given(index * share)..given(index * share + targets.len());
            let (targets, hops) = own_hops(targets, &self.hops);
            let mut sender = Sender::new(Start {
                plan: setup.plan,
                targets,
                given: self.given[given].to_vec(),
                first_slot: (index * share) as u32,
                hops,
                paths: paths.clone(),
                resolve,
                source_ports: setup.source_ports.clone(),
                table: table.clone(),
                now,
            })?;
            for &(path, source, address) in &asks_as {
                sender.ask_as(path, source, address);
            }
            // A dry run has nobody who looks, and believes nothing.
            let sender = if resolve { sender.with_looks() } else { sender };
            let sender = if is_forced() { sender.forced() } else { sender };
            Ok(sender.with_loopback(loopback.clone()))
        });
        let senders: Result<Vec<_>, EmitError> = shares.collect();
        Ok((senders.map_err(EngineError::system)?, table))
    }
}

/// Says whether connections of the kernel's are to be probed whatever is in flight: a switch of the test
/// network, which shows that it does no harm.
fn is_forced() -> bool {
    cfg!(feature = "lab") && std::env::var_os("KEEPSWEEP_TEST_PROBE_IN_FLIGHT").is_some()
}

/// Keeps only the hops that `targets` name, so that no sender carries those of another.
fn own_hops(targets: &[Target], hops: &[Hop]) -> (Vec<Target>, Vec<Hop>) {
    let mut own = Vec::new();
    let mut renamed = HashMap::new();
    let mut rename = |HopId(hop): HopId| {
        *renamed.entry(hop).or_insert_with(|| {
            own.push(hops[hop as usize]);
            HopId((own.len() - 1) as u32)
        })
    };
    let targets = targets
        .iter()
        .map(|target| Target { hop: target.hop.map(&mut rename), ..*target })
        .collect();
    (targets, own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::evidence::Seen;
    use crate::probe::host::{Host, Reading};

    #[test]
    fn only_ports_whose_answers_another_sweep_would_take_are_claimed() {
        let flow = Given::example;
        let owned = Given { host: Some(Host::new(1, Reading::default())), ..flow(500) };
        let unprobed = Given { obstacle: Some(Seen::KernelOwned), ..flow(600) };
        let given = [flow(60_999), owned, flow(61_007), unprobed, flow(65_535), flow(60_998)];
        let alone = ports_to_claim(&given, None);
        assert_eq!(alone, [60_998..=60_999, 61_007..=61_007, 65_535..=65_535]);
        let beside = ports_to_claim(&given, Some(&(61_000..=65_534)));
        assert_eq!(beside, [60_998..=60_999, 65_535..=65_535]);
        // So many that some are joined: never across what is opened.
        let many: Vec<_> = (1..=100).map(|step| flow(step * 600)).collect();
        let beside = ports_to_claim(&many, Some(&(30_001..=30_500)));
        assert!(beside.iter().all(|ports| *ports.end() <= 30_000 || *ports.start() > 30_500));
        assert_eq!(ports_to_claim(&[owned], None), []);
    }
}
