//! Everything that must be in place before the first frame: privilege, ports, routes, paths, guard.

use super::capture::Capture;
use super::given;
use super::watch::{Baseline, HostWatch, Way};
use super::xdp::{Beside, XdpSpec};
use super::{EngineError, IoKind, Path, Setup, Sweep};
use crate::io::guard::{Guard, GuardSpec, Guarded};
use crate::io::packet::{ElsewhereSpec, FilterSpec, PacketRx, PacketTx, PortRanges, RxOptions};
use crate::io::ports::PortsError;
use crate::io::raw::{Egress, RawTx};
use crate::io::route::{Constraint, Interface, Route, Routes, interfaces};
use crate::io::watch::Watch;
use crate::io::xdp::{self, Redirect};
use crate::io::{PathId, PathInfo, Transmit, ports, privilege};
use crate::probe::TargetId;
use crate::probe::given::Given;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Keepalive, Plan};
use crate::probe::receiver::Post;
use crate::probe::sender::{Poll, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::time::{Clock, Instant};
use crate::wire::{EmitError, LinkType, MacAddr};
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Replies between receivers and sender; beyond it receivers wait and the kernel's ring fills.
const HEARD: usize = 1 << 16;
/// Below this many peers a second sender costs more than it brings.
const PEERS_WORTH_A_SENDER: usize = 4096;
const MAX_SENDERS: usize = 16;
/// Addresses named in one message.
const REFUSED_SHOWN: usize = 16;
/// The receive ring for interfaces through which answers are the exception.
const ELSEWHERE: RxOptions = RxOptions { ring_octets: 4 << 20, retire_ms: 2 };

impl Sweep {
    /// Checks privileges and ports, looks up routes, opens one path per egress interface, attaches
    /// the guard, then drops every capability of the calling thread and those it will start.
    ///
    /// # Errors
    /// [`EngineError`], each naming operation, object and remedy.
    pub fn open(setup: Setup) -> Result<Sweep, EngineError> {
        // First: what changes from here on is noticed.
        let watch = Watch::open().map_err(EngineError::system)?;
        let layout = Layout::new(&setup)?;
        privilege::require(privilege::SWEEP).map_err(EngineError::system)?;
        // Given flows have ports of their own.
        if !setup.targets.is_empty() {
            ports::check(&setup.source_ports).map_err(|error| match error {
                PortsError::Io(error) => EngineError::system(error),
                error => EngineError::Usage(error.to_string()),
            })?;
        }
        let capture = match &setup.pcap {
            None => None,
            Some(path) => Some(Capture::create(path, layout.link(&setup)).map_err(|error| {
                EngineError::System(format!("create {}: {error}", path.display()))
            })?),
        };
        let senders = layout.number_of_senders(&setup)?;
        let Opened { guard, redirects, paths, notes } = layout.open_paths(&setup, senders)?;
        let peers = layout.targets.len();
        let notes = given::notes(&layout.given).into_iter().chain(notes).collect();
        let io = layout.io(&setup);
        let post = Arc::new(Post::new(senders, peers, HEARD));
        let watch = HostWatch::new(watch, layout.baseline(&paths));
        let (senders, table) = layout.into_senders(&setup, post.share(), Clock.now(), true)?;
        privilege::drop_all().map_err(EngineError::system)?;
        let watch = Some(watch);
        Ok(Sweep {
            senders,
            paths,
            table,
            post,
            guard,
            redirects,
            capture,
            watch,
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

/// What is open before the first frame.
struct Opened {
    guard: Option<Guard>,
    redirects: Vec<Redirect>,
    paths: Vec<Path>,
    notes: Vec<String>,
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
    let layout = Layout::new(setup)?;
    let infos = layout.path_infos(setup);
    let given = layout.given.clone();
    let mut setup = setup.clone();
    // Without a rest, so that the first frame of a given flow is there to be seen.
    let keepalive = Keepalive { idle: Duration::ZERO, ..setup.plan.keepalive };
    setup.plan = Plan { rate_pps: None, rate_per_prefix_pps: None, keepalive, ..setup.plan };
    let share = layout.targets.len().max(1);
    let (senders, _) = layout.into_senders(&setup, share, Instant::ZERO, false)?;
    let mut frame = [0; 256];
    for mut sender in senders {
        // Time stands still, so nothing is repeated.
        while let Poll::Transmit(due) = sender.poll_transmit(Instant::ZERO) {
            let len = sender.emit(&due, &mut frame).map_err(EngineError::system)?;
            if let Some(slot) = due.slot {
                show(TargetId(slot.0), &infos[usize::from(due.path.0)], &frame[..len]);
            }
        }
    }
    Ok(given)
}

/// Which peer is reached through which interface and next hop.
struct Layout {
    constraint: Constraint,
    interfaces: Vec<Interface>,
    /// The interfaces that frames leave through, by `PathId`.
    egress: Vec<Interface>,
    hops: Vec<Hop>,
    /// The targets, and behind them the given flows.
    targets: Vec<Target>,
    given: Vec<Given>,
}

impl Layout {
    fn new(setup: &Setup) -> Result<Self, EngineError> {
        let interfaces = interfaces().map_err(EngineError::system)?;
        let constraint = constraint(setup, &interfaces)?;
        let mut routes = Routes::open().map_err(EngineError::system)?;
        let mut layout = Layout {
            constraint,
            interfaces,
            egress: Vec::new(),
            hops: Vec::new(),
            targets: Vec::with_capacity(setup.targets.len() + setup.flows.len()),
            given: given::examine(&setup.flows, &mut routes)?,
        };
        let mut known = HashMap::new();
        let targets = setup.targets.iter().map(|&peer| (peer, Some(constraint)));
        let flows: Vec<_> = layout
            .given
            .iter()
            .map(|flow| {
                let own = Constraint { source: Some(flow.local.ip()), ..constraint };
                (flow.peer, flow.obstacle().is_none().then_some(own))
            })
            .collect();
        let mut not_peers = BTreeSet::new();
        for (peer, constraint) in targets.chain(flows) {
            let Some(constraint) = constraint else {
                // Nothing is sent there, whatever the way.
                layout.targets.push(Target { peer, hop: None });
                continue;
            };
            let constraint = constraint_of(peer, &constraint, &layout.interfaces)?;
            let route = routes.lookup(peer.ip(), &constraint).map_err(EngineError::system)?;
            let hop = match route {
                Route::Via { ifindex, next_hop, source } => {
                    layout.check_loopback(peer, ifindex)?;
                    Some((ifindex, next_hop, source))
                }
                Route::None(_) => None,
                Route::Local { ifindex, source } => {
                    check_local(setup, peer)?;
                    // The kernel loops it: there is no next hop to tell from another.
                    Some((ifindex, source, source))
                }
                Route::Broadcast | Route::Multicast => {
                    not_peers.insert(peer.ip());
                    continue;
                }
            };
            let hop = match hop {
                None => None,
                Some(key) => Some(match known.get(&key) {
                    Some(&hop) => hop,
                    None => {
                        let (ifindex, next_hop, source) = key;
                        let hop = layout.add_hop(setup, ifindex, next_hop, source)?;
                        known.insert(key, hop);
                        hop
                    }
                }),
            };
            layout.targets.push(Target { peer, hop });
        }
        if !not_peers.is_empty() {
            return Err(EngineError::Usage(broadcast(&not_peers)));
        }
        Ok(layout)
    }

    /// Given another interface, Linux takes the loopback's addresses for neighbours there; and given
    /// the loopback, it takes every address for one, but sends what cannot be looped elsewhere.
    fn check_loopback(&self, peer: SocketAddr, ifindex: u32) -> Result<(), EngineError> {
        let egress = self.interfaces.iter().find(|interface| interface.index == ifindex);
        match egress {
            Some(egress) if peer.ip().is_loopback() && !egress.loopback => {
                Err(EngineError::Usage(format!(
                    "{}: a loopback address, which is not behind {}; leave out -i, or it (--exclude {})",
                    peer.ip(),
                    egress.name,
                    peer.ip()
                )))
            }
            Some(egress)
                if egress.loopback
                    && self.constraint.oif == Some(ifindex)
                    && !self.is_own(peer.ip()) =>
            {
                Err(EngineError::Usage(format!(
                    "{}: not an address of this host, and nothing else is behind {}; leave out -i, or \
                     it (--exclude {})",
                    peer.ip(),
                    egress.name,
                    peer.ip()
                )))
            }
            _ => Ok(()),
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        let mut own = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        address.is_loopback() || own.any(|own| own.addr() == address)
    }

    fn add_hop(
        &mut self,
        setup: &Setup,
        ifindex: u32,
        next_hop: IpAddr,
        source: IpAddr,
    ) -> Result<HopId, EngineError> {
        let path = match self.egress.iter().position(|interface| interface.index == ifindex) {
            Some(path) => path,
            None => {
                let found = self.interfaces.iter().find(|interface| interface.index == ifindex);
                let interface = found.ok_or_else(|| {
                    EngineError::System(format!(
                        "interface {ifindex}: gone since its route was read"
                    ))
                })?;
                if !interface.up {
                    return Err(EngineError::System(format!(
                        "{next_hop} via {}: the interface is down or has no carrier; see: ip link \
                         show {}",
                        interface.name, interface.name
                    )));
                }
                if let Some(io) = ethernet_only(setup)
                    && takes_raw(setup, interface)
                {
                    return Err(EngineError::Usage(format!(
                        "{next_hop} via {}: the interface has no MAC addresses, which the {io} \
                         path needs; leave out --io {io}",
                        interface.name
                    )));
                }
                self.egress.push(interface.clone());
                self.egress.len() - 1
            }
        };
        let path = u8::try_from(path).map(PathId).map_err(|_| {
            EngineError::Usage("targets leave through more than 256 interfaces; use -i".into())
        })?;
        self.hops.push(Hop { path, next_hop, source });
        Ok(HopId((self.hops.len() - 1) as u32))
    }

    /// Returns what the host looked like to those who made this layout and `paths` from it.
    fn baseline(&self, paths: &[Path]) -> Baseline {
        let egress: Vec<_> =
            (0u8..).map(PathId).zip(self.egress.iter().map(|interface| interface.index)).collect();
        let is_egress = |path: PathId| egress.iter().any(|&(egress, _)| egress == path);
        let elsewhere = paths.iter().map(|path| path.info.id).find(|&path| !is_egress(path));
        let elsewhere = elsewhere
            .into_iter()
            .flat_map(|path| self.elsewhere().map(move |interface| (path, interface.index)));
        let ways = self.hops.iter().map(|hop| Way {
            path: hop.path,
            ifindex: self.egress[usize::from(hop.path.0)].index,
            next_hop: hop.next_hop,
            source: hop.source,
        });
        let peers = self.targets.iter().map(|target| {
            let way = target.hop.map(|HopId(hop)| hop);
            (target.peer.ip(), way)
        });
        Baseline {
            constraint: self.constraint,
            interfaces: self.interfaces.clone(),
            elsewhere: elsewhere.collect(),
            ways: ways.collect(),
            peers: peers.collect(),
            first_given: (self.targets.len() - self.given.len()) as u32,
            kernel_neighbours: egress
                .iter()
                .copied()
                .filter(|&(egress, _)| {
                    let path = paths.iter().find(|path| path.info.id == egress);
                    path.is_some_and(|path| path.info.has_kernel_neighbours())
                })
                .collect(),
            egress,
        }
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
            for interface in &self.egress {
                let queues = xdp::queues(&interface.name).map_err(EngineError::system)?;
                most = most.min(queues as usize);
            }
        }
        Ok(most.clamp(1, MAX_SENDERS))
    }

    fn path_infos(&self, setup: &Setup) -> Vec<PathInfo> {
        let info = |(index, interface): (usize, &Interface)| PathInfo {
            id: PathId(index as u8),
            interface: interface.name.clone(),
            link: if takes_raw(setup, interface) { LinkType::Ip } else { LinkType::Ethernet },
            mac: interface.mac,
            mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        };
        self.egress.iter().enumerate().map(info).collect()
    }

    /// What frames of the sweep start with, or must be made to in one file.
    fn link(&self, setup: &Setup) -> LinkType {
        let is_raw = |interface: &Interface| takes_raw(setup, interface);
        if self.egress.is_empty() || !self.egress.iter().all(is_raw) {
            LinkType::Ethernet
        } else {
            LinkType::Ip
        }
    }

    /// The paths taken, as the summary names them.
    fn io(&self, setup: &Setup) -> &'static str {
        let raw = self.egress.iter().filter(|interface| takes_raw(setup, interface)).count();
        match (raw, self.egress.len()) {
            _ if matches!(setup.io, IoKind::Xdp(_)) => "xdp",
            // Nothing leaves: what would have been taken.
            (0, 0) if setup.io == IoKind::Raw => "raw",
            (0, _) => "packet",
            (raw, all) if raw == all => "raw",
            _ => "packet+raw",
        }
    }

    /// Our addresses, on whatever path: the answer to a frame of one path may come by another.
    fn sources(&self) -> Vec<IpAddr> {
        let mut sources: Vec<_> = self.hops.iter().map(|hop| hop.source).collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// Returns the address to ask for next hops from where `hop`'s source is not one of the interface:
    /// the link-local one, as RFC 4861 §7.2.2 has it. Many stacks ignore solicitations of others.
    fn asks_from(&self, hop: &Hop) -> Option<IpAddr> {
        let interface = self.egress.get(usize::from(hop.path.0))?;
        let own = || interface.addresses.iter().map(IpNet::addr);
        if hop.source.is_ipv4() || own().any(|own| own == hop.source) {
            return None;
        }
        own().find(|own| matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()))
    }

    /// Attaches the guard and opens every path, side by side: most of it is waiting for the kernel.
    fn open_paths(&self, setup: &Setup, senders: usize) -> Result<Opened, EngineError> {
        let mut opened =
            Opened { guard: None, redirects: Vec::new(), paths: Vec::new(), notes: Vec::new() };
        if self.egress.is_empty() {
            // No target has a route: nothing is sent, and nothing can come back.
            return Ok(opened);
        }
        let egress: Vec<_> = self.egress.iter().map(|interface| interface.index).collect();
        // No segment of a peer comes in by the loopback unless frames leave through it. Nor does the
        // kernel take one from the port of a bridge, but from the bridge.
        let is_in_use = |interface: &Interface| {
            let index = interface.index;
            interface.enabled && (!interface.loopback || egress.contains(&index))
        };
        let up: Vec<_> = self
            .interfaces
            .iter()
            .filter(|interface| is_in_use(interface) && !interface.is_port)
            .map(|interface| Guarded {
                index: interface.index,
                name: interface.name.clone(),
                is_egress: egress.contains(&interface.index),
            })
            .collect();
        let spec = self.guard_spec(setup);
        let infos = self.path_infos(setup);
        thread::scope(|scope| {
            let guard = scope.spawn(|| Guard::attach(&up, &spec).map_err(EngineError::system));
            let paths: Vec<_> = infos
                .into_iter()
                .zip(&egress)
                .map(|(info, &ifindex)| {
                    scope.spawn(move || self.open_path(setup, info, ifindex, senders))
                })
                .collect();
            let elsewhere = scope.spawn(|| self.open_elsewhere(setup));
            let own_voice = scope.spawn(|| self.open_own_voice(setup));
            // Behind the others: no hop names them.
            let mut unnamed = Vec::new();
            for path in paths {
                let (path, beside) = join(path)?;
                opened.paths.push(path);
                if let Some(Beside { queues, redirect, notes }) = beside {
                    unnamed.extend(queues);
                    opened.redirects.push(redirect);
                    opened.notes.extend(notes);
                }
            }
            unnamed.extend(join(elsewhere)?);
            unnamed.extend(join(own_voice)?);
            opened.paths.extend(unnamed);
            // Not a frame leaves before all of them are there.
            opened.guard = Some(join(guard)?);
            Ok(opened)
        })
    }

    /// Source ports on the addresses that connections are opened from, and every flow that is given
    /// and probed.
    fn guard_spec(&self, setup: &Setup) -> GuardSpec {
        let (targets, flows) = self.targets.split_at(setup.targets.len());
        let hops: HashSet<HopId> = targets.iter().filter_map(|target| target.hop).collect();
        let sources: HashSet<IpAddr> =
            hops.iter().map(|&HopId(hop)| self.hops[hop as usize].source).collect();
        let probed = flows.iter().zip(&self.given).filter(|(target, _)| target.hop.is_some());
        GuardSpec {
            sources: sources.into_iter().collect(),
            ports: setup.source_ports.clone(),
            tuples: probed.map(|(_, flow)| (flow.local, flow.peer)).collect(),
        }
    }

    /// The ports on which there may be answers.
    fn port_ranges(&self, setup: &Setup) -> PortRanges {
        let opened = (!setup.targets.is_empty()).then(|| setup.source_ports.clone());
        let given = self.given.iter().map(|flow| flow.local.port()..=flow.local.port());
        PortRanges::covering(opened.into_iter().chain(given))
    }

    /// Returns the interfaces that [`open_elsewhere`](Self::open_elsewhere) listens on.
    fn elsewhere(&self) -> impl Iterator<Item = &Interface> {
        let addresses = self.sources();
        let is_of_use = move |own: &IpNet| {
            addresses.iter().any(|source| source.is_ipv4() == own.addr().is_ipv4())
        };
        self.interfaces.iter().filter(move |interface| {
            interface.up
                && !interface.loopback
                && !interface.is_port
                && interface.addresses.iter().any(&is_of_use)
                && !self.egress.iter().any(|egress| egress.index == interface.index)
        })
    }

    /// Listens on the interfaces that no frame leaves through: what the guard keeps from the kernel
    /// there may be the answer. Only those with an address of their own: what passes through another
    /// (the port of a bridge, which may have a link-local one) comes in a second time where the
    /// address is.
    fn open_elsewhere(&self, setup: &Setup) -> Result<Option<Path>, EngineError> {
        let interfaces: Vec<_> = self.elsewhere().map(|interface| interface.index).collect();
        if interfaces.is_empty() {
            return Ok(None);
        }
        let filter = self.cooked_filter(setup, interfaces);
        let receive = PacketRx::open_elsewhere(&filter, ELSEWHERE).map_err(EngineError::system)?;
        Ok(Some(Path {
            info: listening_only("the other interfaces"),
            next_hops: HashSet::new(),
            transmits: Vec::new(),
            receive: Box::new(receive),
            loopback: false,
        }))
    }

    /// Listens to what our own kernel says of packets that it routes for us and cannot deliver: it
    /// comes in by the loopback.
    fn open_own_voice(&self, setup: &Setup) -> Result<Option<Path>, EngineError> {
        let is_raw = self.egress.iter().any(|interface| takes_raw(setup, interface));
        let loopback = self.interfaces.iter().find(|interface| interface.loopback && interface.up);
        let Some(loopback) = loopback.filter(|_| is_raw) else { return Ok(None) };
        if self.egress.iter().any(|egress| egress.index == loopback.index) {
            // Frames leave through it: it is heard already.
            return Ok(None);
        }
        let filter = self.cooked_filter(setup, vec![loopback.index]);
        let receive = PacketRx::open_cooked(loopback.index, &loopback.name, &filter, ELSEWHERE)
            .map_err(EngineError::system)?;
        Ok(Some(Path {
            info: listening_only(&loopback.name),
            next_hops: HashSet::new(),
            transmits: Vec::new(),
            receive: Box::new(receive),
            loopback: true,
        }))
    }

    fn cooked_filter(&self, setup: &Setup, interfaces: Vec<u32>) -> ElsewhereSpec {
        let ports = self.port_ranges(setup);
        ElsewhereSpec { interfaces, addresses: self.sources(), ports }
    }

    fn open_path(
        &self,
        setup: &Setup,
        info: PathInfo,
        ifindex: u32,
        senders: usize,
    ) -> Result<(Path, Option<Beside>), EngineError> {
        let name = &info.interface;
        if info.link == LinkType::Ip {
            return Ok((self.open_raw_path(setup, info, ifindex, senders)?, None));
        }
        let mut addresses = self.sources();
        let here = || self.hops.iter().filter(|hop| hop.path == info.id);
        // Neighbours answer whom they were asked by.
        if let Some(asks_from) = here().find_map(|hop| self.asks_from(hop))
            && !addresses.contains(&asks_from)
        {
            addresses.push(asks_from);
        }
        let filter = FilterSpec { addresses, ports: self.port_ranges(setup), mac: info.mac };
        let receive = PacketRx::open(ifindex, name, &filter, RxOptions::default())
            .map_err(EngineError::system)?;
        let (transmits, beside) = match setup.io {
            IoKind::Xdp(options) => {
                let GuardSpec { sources, ports, .. } = self.guard_spec(setup);
                let spec = XdpSpec { info: &info, ifindex, senders, sources, ports, options };
                let (transmits, beside) = spec.open().map_err(EngineError::system)?;
                (transmits, Some(beside))
            }
            _ => {
                let mut transmits: Vec<Box<dyn Transmit>> = Vec::with_capacity(senders);
                for _ in 0..senders {
                    let transmit = PacketTx::open(ifindex, name).map_err(EngineError::system)?;
                    transmits.push(Box::new(transmit));
                }
                (transmits, None)
            }
        };
        let next_hops = here().map(|hop| hop.next_hop).collect();
        let receive = Box::new(receive);
        Ok((Path { info, next_hops, transmits, receive, loopback: false }, beside))
    }

    fn open_raw_path(
        &self,
        setup: &Setup,
        info: PathInfo,
        ifindex: u32,
        senders: usize,
    ) -> Result<Path, EngineError> {
        let name = &info.interface;
        let loopback = self
            .interfaces
            .iter()
            .any(|interface| interface.index == ifindex && interface.loopback);
        let filter = self.cooked_filter(setup, vec![ifindex]);
        let receive = PacketRx::open_cooked(ifindex, name, &filter, RxOptions::default())
            .map_err(EngineError::system)?;
        let egress = match (loopback, &setup.interface) {
            (true, _) => Egress::Loopback,
            (false, Some(_)) => Egress::Interface { index: ifindex, name },
            (false, None) => Egress::Routes { index: ifindex, name },
        };
        let mut transmits: Vec<Box<dyn Transmit>> = Vec::with_capacity(senders);
        for _ in 0..senders {
            transmits.push(Box::new(RawTx::open(egress).map_err(EngineError::system)?));
        }
        // The kernel resolves its neighbours itself.
        let next_hops = HashSet::new();
        Ok(Path { info, next_hops, transmits, receive: Box::new(receive), loopback })
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
        let paths = self.path_infos(setup);
        // The slot of the first given flow.
        let owned = self.targets.len() - self.given.len();
        let loopback = self.egress.iter().position(|interface| interface.loopback);
        let loopback = loopback.map(|index| PathId(index as u8));
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
            Ok(sender.with_loopback(loopback))
        });
        let senders: Result<Vec<_>, EmitError> = shares.collect();
        Ok((senders.map_err(EngineError::system)?, table))
    }
}

/// The name of the path that was asked for, if it needs interfaces with MAC addresses.
fn ethernet_only(setup: &Setup) -> Option<&'static str> {
    match setup.io {
        IoKind::Packet => Some("packet"),
        IoKind::Xdp(_) => Some("xdp"),
        IoKind::Auto | IoKind::Raw => None,
    }
}

/// Whether frames leave through `interface` by raw sockets.
fn takes_raw(setup: &Setup, interface: &Interface) -> bool {
    setup.io == IoKind::Raw || !interface.has_mac || interface.loopback
}

/// Checks that a peer that is this host itself can be probed.
fn check_local(setup: &Setup, peer: SocketAddr) -> Result<(), EngineError> {
    if let Some(io) = ethernet_only(setup) {
        return Err(EngineError::Usage(format!(
            "{}: an address of this host, which the {io} path cannot reach; leave out --io {io}, or \
             it (--exclude {})",
            peer.ip(),
            peer.ip()
        )));
    }
    // The guard tells our segments from the peer's by address and port.
    if setup.source_ports.contains(&peer.port()) {
        return Err(EngineError::Usage(format!(
            "{peer}: an address of this host, and its port is one of our source ports {}-{}; choose \
             others with --source-ports LO-HI",
            setup.source_ports.start(),
            setup.source_ports.end()
        )));
    }
    Ok(())
}

/// Describes a path that nothing leaves through.
fn listening_only(interface: &str) -> PathInfo {
    PathInfo {
        id: PathId(u8::MAX),
        interface: interface.to_owned(),
        link: LinkType::Ip,
        mac: MacAddr::default(),
        mtu: 0,
    }
}

/// Says all at once that these addresses must be left out, and how.
fn broadcast(addresses: &BTreeSet<IpAddr>) -> String {
    let first = || addresses.iter().take(REFUSED_SHOWN).map(IpAddr::to_string);
    let excludes: Vec<_> = first().map(|address| format!("--exclude {address}")).collect();
    let (named, excludes) = (first().collect::<Vec<_>>().join(", "), excludes.join(" "));
    match addresses.len() {
        1 => format!(
            "{named}: a broadcast or multicast address of a connected network, which must not be \
             probed; leave it out ({excludes})"
        ),
        ..=REFUSED_SHOWN => format!(
            "{named}: broadcast or multicast addresses of connected networks, which must not be \
             probed; leave them out ({excludes})"
        ),
        all => format!(
            "{named} and {} more: broadcast or multicast addresses of connected networks, which \
             must not be probed; leave them out ({excludes} …, or a file of them: --exclude FILE)",
            all - REFUSED_SHOWN
        ),
    }
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
        .map(|target| Target { peer: target.peer, hop: target.hop.map(&mut rename) })
        .collect();
    (targets, own)
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, EngineError>>) -> Result<T, EngineError> {
    thread.join().unwrap_or_else(|_| Err(EngineError::System("a thread panicked".into())))
}

/// Returns what the look-up of the route to `peer` is bound to: beside `constraint`, the interface
/// that its scope names.
fn constraint_of(
    peer: SocketAddr,
    constraint: &Constraint,
    interfaces: &[Interface],
) -> Result<Constraint, EngineError> {
    let usage = |text: String| Err(EngineError::Usage(format!("{}: {text}", peer.ip())));
    if let Some(source) = constraint.source
        && source.is_ipv4() != peer.is_ipv4()
    {
        return usage(format!(
            "source address {source} is of another address family; sweep the two families apart"
        ));
    }
    let SocketAddr::V6(peer) = peer else { return Ok(*constraint) };
    if let Some(v4) = peer.ip().to_ipv4_mapped() {
        return usage(format!("an IPv4 address as IPv6 writes it; give it as {v4}"));
    }
    let name = |index| interfaces.iter().find(|known| known.index == index).map(|i| &i.name);
    match (peer.scope_id(), constraint.oif) {
        (0, None) if peer.ip().is_unicast_link_local() => usage(format!(
            "a link-local address, which says nothing of its link; write {}%IFACE",
            peer.ip()
        )),
        (0, _) => Ok(*constraint),
        (scope, Some(oif)) if scope != oif => match (name(scope), name(oif)) {
            (Some(scope), Some(oif)) => usage(format!("is on {scope}, but -i says {oif}")),
            _ => usage(format!("interface {scope}: no such interface; see: ip link")),
        },
        (scope, _) if name(scope).is_none() => {
            usage(format!("interface {scope}: no such interface; see: ip link"))
        }
        (scope, _) => Ok(Constraint { oif: Some(scope), ..*constraint }),
    }
}

/// Checks `-i` and `--source` against the interfaces that there are.
fn constraint(setup: &Setup, interfaces: &[Interface]) -> Result<Constraint, EngineError> {
    let oif = match &setup.interface {
        None => None,
        Some(name) => {
            let found = interfaces.iter().find(|interface| interface.name == *name);
            let Some(interface) = found else {
                let names: Vec<_> = interfaces.iter().map(|known| known.name.as_str()).collect();
                return Err(EngineError::Usage(format!(
                    "interface {name}: no such interface; there are {}",
                    names.join(", ")
                )));
            };
            if !interface.up {
                return Err(EngineError::System(format!(
                    "interface {name}: down; bring it up: ip link set {name} up"
                )));
            }
            Some(interface.index)
        }
    };
    if let Some(source) = setup.source {
        let owned = interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
            .any(|address| address.addr() == source);
        if !owned {
            return Err(EngineError::Usage(format!(
                "source address {source}: not an address of this host (see: ip address)"
            )));
        }
    }
    Ok(Constraint { oif, source: setup.source })
}
