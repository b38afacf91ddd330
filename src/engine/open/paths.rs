//! Opens a path for every egress interface, and what listens beside them, under the guard.
#![forbid(unsafe_code)]

use super::layout::{Egress as Way, Layout};
use crate::engine::xdp::{Beside, XdpSpec};
use crate::engine::{EngineError, IoKind, Path, Setup};
use crate::io::bpf;
use crate::io::guard::{Guard, GuardSpec, Guarded};
use crate::io::packet::{ElsewhereSpec, FilterSpec, PacketRx, PacketTx, PortRanges, RxOptions};
use crate::io::raw::{Egress, RawTx};
use crate::io::route::Interface;
use crate::io::shield::Shield;
use crate::io::xdp::Redirect;
use crate::io::{PathId, PathInfo, Receive, Transmit};
use crate::probe::neighbour::HopId;
use crate::wire::{LinkType, MacAddr};
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;

/// The receive ring for interfaces, and beside AF_XDP sockets, where answers are the exception.
const ELSEWHERE: RxOptions = RxOptions { ring_octets: 4 << 20, retire_ms: 2 };

/// What is open before the first frame.
pub(super) struct Opened {
    pub guard: Option<Guard>,
    pub shield: Option<Arc<Shield>>,
    pub redirects: Vec<Redirect>,
    pub paths: Vec<Path>,
    pub notes: Vec<String>,
}

impl Layout {
    /// Attaches the guard and opens every path, side by side: most of it is waiting for the kernel.
    pub fn open_paths(&self, setup: &Setup, senders: usize) -> Result<Opened, EngineError> {
        let mut opened = Opened {
            guard: None,
            shield: None,
            redirects: Vec::new(),
            paths: Vec::new(),
            notes: Vec::new(),
        };
        if self.egress.is_empty() {
            // No target has a route: nothing is sent, and nothing can come back.
            return Ok(opened);
        }
        let egress: Vec<_> = self.egress.iter().map(|egress| egress.interface.index).collect();
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
        let infos = self.path_infos();
        let _loads = bpf::Together::begin();
        thread::scope(|scope| {
            let guard = scope.spawn(|| Guard::attach(&up, &spec).map_err(EngineError::system));
            let shield = (spec.holds > 0).then(|| scope.spawn(open_shield));
            let paths: Vec<_> = infos
                .into_iter()
                .zip(&self.egress)
                .map(|(info, way)| scope.spawn(move || self.open_path(setup, info, way, senders)))
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
            match shield.map(join) {
                Some(Ok(shield)) => opened.shield = Some(Arc::new(shield)),
                Some(Err(error)) => opened.notes.push(format!(
                    "{error}; connections that this host may translate in ways that nobody can \
                     tell are not asked everything"
                )),
                None => {}
            }
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
        let (hosts, files): (Vec<_>, Vec<_>) = probed.partition(|(_, flow)| flow.host.is_some());
        GuardSpec {
            sources: sources.into_iter().collect(),
            ports: setup.source_ports.clone(),
            tuples: files.into_iter().map(|(_, flow)| (flow.local, flow.peer)).collect(),
            // By the ends of the socket and by those on the wire, which may change meanwhile.
            holds: 3 * hosts.len(),
        }
    }

    /// The ports on which there may be answers.
    fn port_ranges(&self, setup: &Setup) -> PortRanges {
        let opened = (!setup.targets.is_empty()).then(|| setup.source_ports.clone());
        PortRanges::covering(opened.into_iter().chain(self.given_ports(false)))
    }

    /// The ports of connections of the kernel's: segments with data are none of our business there.
    fn bare_ports(&self) -> PortRanges {
        PortRanges::covering(self.given_ports(true))
    }

    fn given_ports(&self, of_host: bool) -> impl Iterator<Item = RangeInclusive<u16>> {
        let given = self.given.iter().filter(move |flow| flow.host.is_some() == of_host);
        given.flat_map(|flow| {
            let ports = [flow.local.port(), flow.wire().0.port()];
            ports.map(|port| port..=port)
        })
    }

    /// Says whether frames of `info` are heard by another path's receiving end: on one interface there is
    /// one, that of the path which also resolves next hops if there is such a path.
    fn is_heard_elsewhere(&self, info: &PathInfo) -> bool {
        let own = usize::from(info.id.0);
        let Some(way) = self.egress.get(own) else { return false };
        self.egress.iter().enumerate().any(|(index, other)| {
            other.interface.index == way.interface.index
                && way.is_raw
                && (!other.is_raw || index < own)
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
            receive: Some(Box::new(receive)),
            loopback: false,
        }))
    }

    /// Listens to what our own kernel says of packets that it routes for us and cannot deliver: it
    /// comes in by the loopback.
    fn open_own_voice(&self, setup: &Setup) -> Result<Option<Path>, EngineError> {
        let is_raw = self.egress.iter().any(|egress| egress.is_raw);
        let loopback = self.interfaces.iter().find(|interface| interface.loopback && interface.up);
        let Some(loopback) = loopback.filter(|_| is_raw) else { return Ok(None) };
        if self.egress.iter().any(|egress| egress.interface.index == loopback.index) {
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
            receive: Some(Box::new(receive)),
            loopback: true,
        }))
    }

    fn cooked_filter(&self, setup: &Setup, interfaces: Vec<u32>) -> ElsewhereSpec {
        let ports = self.port_ranges(setup);
        ElsewhereSpec {
            interfaces,
            addresses: self.sources(),
            ports,
            bare_ports: self.bare_ports(),
        }
    }

    fn open_path(
        &self,
        setup: &Setup,
        info: PathInfo,
        way: &Way,
        senders: usize,
    ) -> Result<(Path, Option<Beside>), EngineError> {
        let (name, ifindex) = (&info.interface, way.interface.index);
        if way.is_raw {
            return Ok((self.open_raw_path(setup, info, way, senders)?, None));
        }
        let mut addresses = self.sources();
        let here = || self.hops.iter().filter(|hop| hop.path == info.id);
        // Neighbours answer whom they were asked by.
        if let Some(asks_from) = here().find_map(|hop| self.asks_from(hop))
            && !addresses.contains(&asks_from)
        {
            addresses.push(asks_from);
        }
        let (ports, bare_ports) = (self.port_ranges(setup), self.bare_ports());
        let filter = FilterSpec { addresses, ports, bare_ports, mac: info.mac };
        let ring = if let IoKind::Xdp(_) = setup.io { ELSEWHERE } else { RxOptions::default() };
        let receive = PacketRx::open(ifindex, name, &filter, ring).map_err(EngineError::system)?;
        let (transmits, beside) = match setup.io {
            IoKind::Xdp(options) => {
                let GuardSpec { sources, ports, .. } = self.guard_spec(setup);
                let spec = XdpSpec {
                    info: &info,
                    ifindex,
                    senders,
                    sources,
                    ports,
                    options,
                    interfaces: self.egress.len(),
                };
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
        let receive: Option<Box<dyn Receive>> = Some(Box::new(receive));
        Ok((Path { info, next_hops, transmits, receive, loopback: false }, beside))
    }

    fn open_raw_path(
        &self,
        setup: &Setup,
        info: PathInfo,
        way: &Way,
        senders: usize,
    ) -> Result<Path, EngineError> {
        let (name, ifindex, loopback) =
            (&info.interface, way.interface.index, way.interface.loopback);
        let receive: Option<Box<dyn Receive>> = match self.is_heard_elsewhere(&info) {
            true => None,
            false => {
                let filter = self.cooked_filter(setup, vec![ifindex]);
                let receive = PacketRx::open_cooked(ifindex, name, &filter, RxOptions::default())
                    .map_err(EngineError::system)?;
                Some(Box::new(receive))
            }
        };
        let egress = match (loopback, &setup.interface) {
            (true, _) => Egress::Loopback,
            (false, Some(_)) => Egress::Interface { index: ifindex, name },
            (false, None) => Egress::Routes { index: ifindex, name },
        };
        let mut transmits: Vec<Box<dyn Transmit>> = Vec::with_capacity(senders);
        for _ in 0..senders {
            let transmit = RawTx::open_like(egress, way.likeness).map_err(EngineError::system)?;
            transmits.push(Box::new(transmit));
        }
        // The kernel resolves its neighbours itself.
        let next_hops = HashSet::new();
        Ok(Path { info, next_hops, transmits, receive, loopback })
    }
}

fn open_shield() -> Result<Shield, EngineError> {
    // A switch of the test network: as if the root of the cgroups were hidden.
    if cfg!(feature = "lab") && std::env::var_os("KEEPSWEEP_TEST_UNSHIELDED").is_some() {
        return Err(EngineError::System("the test wants no shield".into()));
    }
    Shield::open().map_err(EngineError::system)
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

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, EngineError>>) -> Result<T, EngineError> {
    thread.join().unwrap_or_else(|_| Err(EngineError::System("a thread panicked".into())))
}
