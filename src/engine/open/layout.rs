//! Which peer is reached through which interface and next hop.
#![forbid(unsafe_code)]

use crate::engine::given::Examined;
use crate::engine::host::Kernel;
use crate::engine::watch::{Baseline, Way};
use crate::engine::{EngineError, IoKind, Path, Setup, given};
use crate::io::raw::Likeness;
use crate::io::route::{Constraint, Interface, Route, Routes, interfaces};
use crate::io::{PathId, PathInfo};
use crate::probe::TargetId;
use crate::probe::evidence::Seen;
use crate::probe::given::Given;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::sender::Target;
use crate::wire::LinkType;
use ipnet::IpNet;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// Addresses named in one message.
const REFUSED_SHOWN: usize = 16;

/// An interface that frames leave through, and how.
#[derive(Clone, Debug)]
pub(super) struct Egress {
    pub interface: Interface,
    /// By raw sockets.
    pub is_raw: bool,
    /// In whose name the kernel routes them, if it does.
    pub likeness: Likeness,
}

/// Which peer is reached through which interface and next hop.
pub(super) struct Layout {
    pub constraint: Constraint,
    pub interfaces: Vec<Interface>,
    /// The interfaces that frames leave through, by `PathId`. One interface may be there several times,
    /// for packets that are routed in different ways.
    pub egress: Vec<Egress>,
    pub hops: Vec<Hop>,
    /// The targets, and behind them the given flows; in the order of their slots, once they are shuffled.
    pub targets: Vec<Target>,
    pub given: Vec<Given>,
    /// What reads those that the kernel owns.
    pub kernel: Option<Kernel>,
    /// Why the kernel's connections cannot be read, if there are any.
    pub unreadable: Option<String>,
    /// Why the first connection of this host that no path can be opened for has none.
    pub no_way: Option<String>,
}

impl Layout {
    pub fn new(setup: &Setup) -> Result<Self, EngineError> {
        let interfaces = interfaces().map_err(EngineError::system)?;
        let constraint = constraint(setup, &interfaces)?;
        let mut routes = Routes::open().map_err(EngineError::system)?;
        let mut layout = Layout {
            constraint,
            interfaces,
            egress: Vec::new(),
            hops: Vec::new(),
            targets: Vec::with_capacity(setup.targets.len() + setup.flows.len()),
            given: Vec::new(),
            kernel: None,
            unreadable: None,
            no_way: None,
        };
        let mut known = HashMap::new();
        let mut not_peers = BTreeSet::new();
        for (index, &peer) in setup.targets.iter().enumerate() {
            let (constraint, likeness) = match setup.on_behalf.get(index) {
                None => (constraint, None),
                Some(&(source, likeness)) => {
                    (Constraint { source: Some(source), ..constraint }, Some(likeness))
                }
            };
            let added = layout
                .way(setup, peer, constraint, likeness, &mut routes)
                .and_then(|way| layout.add_target(setup, peer, way, &mut known, &mut not_peers));
            match added {
                // The way of one connection must not keep the hosts of the others from being asked.
                Err(error) if likeness.is_some() => {
                    tracing::info!(%error, %peer, "not asked");
                    layout.push(peer, None);
                }
                added => added?,
            }
        }
        let Examined { given, likeness, kernel, unreadable } =
            given::examine(&setup.flows, &mut routes)?;
        (layout.kernel, layout.unreadable) = (kernel, unreadable);
        for (mut flow, likeness) in given.into_iter().zip(likeness) {
            let Given { peer, local, .. } = flow;
            if flow.obstacle().is_some() {
                // Nothing is sent there, whatever the way.
                layout.push(peer, None);
            } else {
                let own = Constraint { source: Some(local.ip()), ..constraint };
                // Translated in the output hook, packets are routed anew.
                let (_, toward) = flow.wire();
                let way = layout.way(setup, toward, own, likeness, &mut routes);
                if let Some(likeness) = likeness
                    && layout.is_cut_off(local.ip(), likeness, &way)
                {
                    flow.obstacle = Some(Seen::LinkDown);
                    layout.push(peer, None);
                    layout.given.push(flow);
                    continue;
                }
                let added = way.and_then(|way| {
                    layout.add_target(setup, peer, way, &mut known, &mut not_peers)
                });
                match added {
                    // One connection of a host that is not well must not keep the others from being
                    // asked.
                    Err(error) if flow.host.is_some() => {
                        tracing::info!(%error, %peer, "not probed");
                        layout.no_way.get_or_insert_with(|| error.to_string());
                        flow.obstacle = Some(Seen::NotSent);
                        layout.push(peer, None);
                    }
                    added => added?,
                }
            }
            layout.given.push(flow);
        }
        if !not_peers.is_empty() {
            return Err(EngineError::Usage(broadcast(&not_peers)));
        }
        Ok(layout)
    }

    fn push(&mut self, peer: SocketAddr, hop: Option<HopId>) {
        let id = TargetId(self.targets.len() as u32);
        self.targets.push(Target { id, peer, hop });
    }

    /// Puts every `share` of the peers, of one at least, into a random order, in which they are asked: so
    /// that no subnet is hit in a burst. Given flows stay behind the others. To be done before anything is
    /// asked by slot: `baseline`, `cookies`, `into_senders`.
    ///
    /// This is the order of slots, too: whatever is kept by slot is then read as it lies in memory, and
    /// a sender takes a third of the time (`keepsweep bench tx`: 90 ns a keepalive instead of 250).
    pub fn shuffle(&mut self, seed: u64, share: usize) {
        let owned = self.targets.len() - self.given.len();
        let mut order: Vec<u32> = (0..self.targets.len() as u32).collect();
        for (first, share) in (0..).step_by(share).zip(order.chunks_mut(share)) {
            let mut random = fastrand::Rng::with_seed(seed.wrapping_add(first));
            let (opened, given) =
                share.split_at_mut(owned.saturating_sub(first as usize).min(share.len()));
            random.shuffle(opened);
            random.shuffle(given);
        }
        self.targets = order.iter().map(|&index| self.targets[index as usize]).collect();
        self.given =
            order[owned..].iter().map(|&index| self.given[index as usize - owned]).collect();
    }

    /// Asks the kernel for the way to `peer`, in the name of a socket with `likeness` if there is one.
    fn way(
        &self,
        setup: &Setup,
        peer: SocketAddr,
        constraint: Constraint,
        likeness: Option<Likeness>,
        routes: &mut Routes,
    ) -> Result<(Route, Option<Likeness>), EngineError> {
        let Likeness { mark, bound_interface } = likeness.unwrap_or_default();
        let bound = (bound_interface != 0).then_some(bound_interface);
        let constraint = Constraint { oif: bound.or(constraint.oif), mark, ..constraint };
        let constraint = constraint_of(peer, &constraint, &self.interfaces)?;
        let route = routes.lookup(peer.ip(), &constraint).map_err(EngineError::system)?;
        match route {
            Route::Via { ifindex, .. } => self.check_loopback(peer, ifindex)?,
            Route::Local { .. } if likeness.is_none() => check_local(setup, peer)?,
            Route::Local { .. } if !setup.targets.is_empty() => check_source_ports(setup, peer)?,
            _ => {}
        }
        Ok((route, likeness))
    }

    /// Says whether a connection of the kernel's cannot be asked for the sake of a link of this host:
    /// that of its route; or, where the route has gone with the link, the one that it is bound to or
    /// that has its address.
    fn is_cut_off(
        &self,
        local: IpAddr,
        likeness: Likeness,
        way: &Result<(Route, Option<Likeness>), EngineError>,
    ) -> bool {
        let is_down = |index: u32| {
            let found = self.interfaces.iter().find(|interface| interface.index == index);
            found.is_none_or(|interface| !interface.up)
        };
        let has_it = |interface: &&Interface| {
            interface.addresses.iter().any(|address| address.addr() == local)
        };
        match way {
            Ok((Route::Via { ifindex, .. }, _)) => is_down(*ifindex),
            Ok((Route::None(_), _)) | Err(_) if likeness.bound_interface != 0 => {
                is_down(likeness.bound_interface)
            }
            Ok((Route::None(_), _)) | Err(_) => {
                self.interfaces.iter().find(has_it).is_some_and(|interface| !interface.up)
            }
            Ok(_) => false,
        }
    }

    fn add_target(
        &mut self,
        setup: &Setup,
        peer: SocketAddr,
        (route, likeness): (Route, Option<Likeness>),
        known: &mut HashMap<(u32, IpAddr, IpAddr, Option<Likeness>), HopId>,
        not_peers: &mut BTreeSet<IpAddr>,
    ) -> Result<(), EngineError> {
        let hop = match route {
            Route::Via { ifindex, next_hop, source } => Some((ifindex, next_hop, source)),
            Route::None(_) => None,
            // The kernel loops it: there is no next hop to tell from another.
            Route::Local { ifindex, source } => Some((ifindex, source, source)),
            // A connection of the kernel's is older than that route.
            Route::Broadcast | Route::Multicast if likeness.is_some() => {
                return Err(EngineError::Usage(broadcast(&BTreeSet::from([peer.ip()]))));
            }
            Route::Broadcast | Route::Multicast => {
                not_peers.insert(peer.ip());
                return Ok(());
            }
        };
        let hop = match hop {
            None => None,
            Some((ifindex, next_hop, source)) => {
                let key = (ifindex, next_hop, source, likeness);
                Some(match known.get(&key) {
                    Some(&hop) => hop,
                    None => {
                        let hop = self.add_hop(setup, ifindex, next_hop, source, likeness)?;
                        known.insert(key, hop);
                        hop
                    }
                })
            }
        };
        self.push(peer, hop);
        Ok(())
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
        likeness: Option<Likeness>,
    ) -> Result<HopId, EngineError> {
        let is_same = |egress: &Egress| match likeness {
            Some(likeness) => egress.is_raw && egress.likeness == likeness,
            None => {
                egress.likeness == Likeness::default()
                    && egress.is_raw == takes_raw(setup, &egress.interface)
            }
        };
        let here = |egress: &Egress| egress.interface.index == ifindex && is_same(egress);
        let path = match self.egress.iter().position(here) {
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
                if likeness.is_none()
                    && let Some(io) = ethernet_only(setup)
                    && takes_raw(setup, interface)
                {
                    return Err(EngineError::Usage(format!(
                        "{next_hop} via {}: the interface has no MAC addresses, which the {io} \
                         path needs; leave out --io {io}",
                        interface.name
                    )));
                }
                self.egress.push(Egress {
                    is_raw: likeness.is_some() || takes_raw(setup, interface),
                    interface: interface.clone(),
                    likeness: likeness.unwrap_or_default(),
                });
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
    pub fn baseline(&self, setup: &Setup, paths: &[Path]) -> Baseline {
        let egress: Vec<_> = (0u8..)
            .map(PathId)
            .zip(self.egress.iter().map(|egress| egress.interface.index))
            .collect();
        let is_egress = |path: PathId| egress.iter().any(|&(egress, _)| egress == path);
        let elsewhere = paths.iter().map(|path| path.info.id).find(|&path| !is_egress(path));
        let elsewhere = elsewhere
            .into_iter()
            .flat_map(|path| self.elsewhere().map(move |interface| (path, interface.index)));
        let ways = self.hops.iter().map(|hop| {
            let Egress { interface, likeness, .. } = &self.egress[usize::from(hop.path.0)];
            Way {
                path: hop.path,
                ifindex: interface.index,
                next_hop: hop.next_hop,
                source: hop.source,
                likeness: *likeness,
            }
        });
        let opened = &self.targets[..self.targets.len() - self.given.len()];
        let toward = opened.iter().map(|target| target.peer);
        let toward = toward.chain(self.given.iter().map(|flow| flow.wire().1));
        let peers = self.targets.iter().zip(toward).map(|(target, toward)| {
            let way = target.hop.map(|HopId(hop)| hop);
            (toward.ip(), way)
        });
        Baseline {
            constraint: self.constraint,
            interfaces: self.interfaces.clone(),
            elsewhere: elsewhere.collect(),
            ways: ways.collect(),
            peers: peers.collect(),
            first_from_given: match setup.on_behalf.is_empty() {
                true => (self.targets.len() - self.given.len()) as u32,
                false => 0,
            },
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

    pub fn path_infos(&self) -> Vec<PathInfo> {
        let info = |(index, Egress { interface, is_raw, .. }): (usize, &Egress)| PathInfo {
            id: PathId(index as u8),
            interface: interface.name.clone(),
            link: if *is_raw { LinkType::Ip } else { LinkType::Ethernet },
            mac: interface.mac,
            mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        };
        self.egress.iter().enumerate().map(info).collect()
    }

    /// What frames of the sweep start with, or must be made to in one file.
    pub fn link(&self) -> LinkType {
        if self.egress.is_empty() || !self.egress.iter().all(|egress| egress.is_raw) {
            LinkType::Ethernet
        } else {
            LinkType::Ip
        }
    }

    /// The paths taken, as the summary names them.
    pub fn io(&self, setup: &Setup) -> &'static str {
        let raw = self.egress.iter().filter(|egress| egress.is_raw).count();
        match (raw, self.egress.len()) {
            (raw, all) if matches!(setup.io, IoKind::Xdp(_)) && (all == 0 || raw < all) => "xdp",
            // Nothing leaves: what would have been taken.
            (0, 0) if setup.io == IoKind::Raw => "raw",
            (0, _) => "packet",
            (raw, all) if raw == all => "raw",
            _ => "packet+raw",
        }
    }

    /// Our addresses, on whatever path: the answer to a frame of one path may come by another.
    pub fn sources(&self) -> Vec<IpAddr> {
        let translated = self.given.iter().map(|flow| flow.wire().0.ip());
        let mut sources: Vec<_> =
            self.hops.iter().map(|hop| hop.source).chain(translated).collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// Returns the address to ask for next hops from where `hop`'s source is not one of the interface:
    /// the link-local one, as RFC 4861 §7.2.2 has it. Many stacks ignore solicitations of others.
    pub fn asks_from(&self, hop: &Hop) -> Option<IpAddr> {
        let interface = &self.egress.get(usize::from(hop.path.0))?.interface;
        let own = || interface.addresses.iter().map(IpNet::addr);
        if hop.source.is_ipv4() || own().any(|own| own == hop.source) {
            return None;
        }
        own().find(|own| matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()))
    }

    /// Returns the interfaces that [`open_elsewhere`](Self::open_elsewhere) listens on.
    pub fn elsewhere(&self) -> impl Iterator<Item = &Interface> {
        let addresses = self.sources();
        let is_of_use = move |own: &IpNet| {
            addresses.iter().any(|source| source.is_ipv4() == own.addr().is_ipv4())
        };
        self.interfaces.iter().filter(move |interface| {
            interface.up
                && !interface.loopback
                && !interface.is_port
                && interface.addresses.iter().any(&is_of_use)
                && !self.egress.iter().any(|egress| egress.interface.index == interface.index)
        })
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
pub(super) fn takes_raw(setup: &Setup, interface: &Interface) -> bool {
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
    check_source_ports(setup, peer)
}

/// Checks that a peer that is this host itself does not use our source ports: the guard tells our
/// segments from the peer's by address and port.
fn check_source_ports(setup: &Setup, peer: SocketAddr) -> Result<(), EngineError> {
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
    Ok(Constraint { oif, source: setup.source, mark: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Slot;
    use crate::probe::host::{Host, Reading};

    /// Its interface or its address is gone.
    #[test]
    fn the_way_of_one_connection_keeps_no_other_host_from_being_asked() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let (here, elsewhere) = (peer.ip(), IpAddr::from([203, 0, 113, 1]));
        let lost = Likeness { mark: 0, bound_interface: i32::MAX as u32 };
        let any = Likeness::default();
        let on_behalf = vec![(here, lost), (here, any), (elsewhere, any), (here, any)];
        let setup = Setup {
            targets: vec![peer; on_behalf.len()],
            on_behalf,
            ..Setup::new(crate::probe::script::plan(), IoKind::Raw)
        };
        let layout = Layout::new(&setup).expect("a way for the others");
        let asked: Vec<_> = layout.targets.iter().map(|target| target.hop.is_some()).collect();
        assert_eq!(asked, [false, true, false, true]);
    }

    #[test]
    fn every_share_is_shuffled_and_given_flows_stay_behind() {
        const SHARE: usize = 40;
        let peer = |n: u16| SocketAddr::from(([127, 0, 0, 1], n));
        let shuffled = |seed| {
            let setup = Setup {
                targets: (0..100).map(|n| peer(1_000 + n)).collect(),
                ..Setup::new(crate::probe::script::plan(), IoKind::Raw)
            };
            let mut layout = Layout::new(&setup).expect("a way to this host");
            for n in 0..50 {
                layout.push(peer(1_100 + n), None);
                let host = Some(Host::new(u64::from(n) + 1, Reading::default()));
                layout.given.push(Given { peer: peer(1_100 + n), host, ..Given::example(n) });
            }
            layout.shuffle(seed, SHARE);
            layout
        };
        let layout = shuffled(7);
        let ids: Vec<_> = layout.targets.iter().map(|target| target.id.0).collect();
        // The third share has 20 of either kind.
        for part in [0..40, 40..80, 80..100, 100..120, 120..150] {
            let mut sorted = ids[part.clone()].to_vec();
            assert!(!sorted.is_sorted(), "{part:?}: in order");
            sorted.sort_unstable();
            assert_eq!(sorted, part.map(|id| id as u32).collect::<Vec<_>>());
        }
        for target in &layout.targets {
            assert_eq!(u32::from(target.peer.port()), 1_000 + target.id.0);
        }
        let cookies = layout.cookies();
        assert_eq!(cookies.len(), 50);
        for (slot, (target, given)) in (100..).zip(layout.targets[100..].iter().zip(&layout.given))
        {
            assert_eq!(target.peer, given.peer);
            let cookie = given.host.map(|host| host.cookie).expect("a socket's");
            assert_eq!(cookies.get(&cookie), Some(&Slot(slot)));
        }
        let again = shuffled(7);
        let other = shuffled(8);
        assert!(again.targets == layout.targets && other.targets != layout.targets);
    }
}
