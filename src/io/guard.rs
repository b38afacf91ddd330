//! Keeps this host's kernel from resetting the flows that keepsweep owns.
//!
//! The kernel has no socket for those flows and answers their SYN-ACKs and ACKs with RST. The guard
//! (`xdp/guard.bpf.c`) drops them on the way in, after AF_PACKET taps have seen them and before the
//! IP layer does, unless the kernel owns the tuple; and it counts every RST that the stack sends
//! from our addresses and ports all the same. Flows that were given are guarded in the same way, each
//! by its exact tuple.
//!
//! Of a connection that the kernel does own, RSTs and SYNs can be held back for a while ([`Holds`]): a
//! probe whose answer may be a RST must not cost the connection.
//!
//! Limits: it knows sockets, not NAT. A connection that this host forwards, and whose translated
//! port falls into the guarded range, is dropped too. So is one whose socket is bound to a device
//! above the one that the segment came in by (SO_BINDTODEVICE to a bridge or VLAN), if its port is
//! in the range; [`super::ports::check`] refuses a range that holds such a socket.

use super::bpf;
use super::conntrack::Ends;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use aya::programs::tc::{TcAttachOptions, TcError};
use aya::programs::{LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use aya::{Ebpf, Pod};
use nix::errno::Errno;
use std::collections;
use std::error::Error;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.bpf.o"));

const INGRESS: &str = "guard_ingress";
const EGRESS: &str = "guard_egress";

/// How much of the verifier's log an error quotes.
const VERIFIER_LINES: usize = 6;

/// `struct guard_source` of `xdp/shared.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Source {
    version: u32,
    addr: [u8; 16],
}

/// `struct guard_ports` of `xdp/shared.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub lo: u16,
    pub hi: u16,
}

/// `struct guard_tuple` of `xdp/shared.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tuple {
    local: Source,
    peer: [u8; 16],
    local_port: u16,
    peer_port: u16,
}

const _: () = assert!(size_of::<Source>() == 20 && size_of::<Ports>() == 4);
const _: () = assert!(size_of::<Tuple>() == 40);

// SAFETY: repr(C), Copy, no padding (asserted above), every bit pattern valid.
unsafe impl Pod for Source {}
// SAFETY: as above.
unsafe impl Pod for Ports {}
// SAFETY: as above.
unsafe impl Pod for Tuple {}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        let mut addr = [0; 16];
        match address {
            IpAddr::V4(v4) => {
                addr[..4].copy_from_slice(&v4.octets());
                Source { version: 4, addr }
            }
            IpAddr::V6(v6) => Source { version: 6, addr: v6.octets() },
        }
    }
}

impl From<&(SocketAddr, SocketAddr)> for Tuple {
    fn from((local, peer): &(SocketAddr, SocketAddr)) -> Self {
        Tuple {
            local: Source::from(local.ip()),
            peer: Source::from(peer.ip()).addr,
            local_port: local.port(),
            peer_port: peer.port(),
        }
    }
}

/// `enum guard_counter` of `xdp/shared.h`.
#[derive(Clone, Copy)]
enum Counter {
    Dropped = 0,
    PassedOwned = 1,
    KernelRsts = 2,
    Held = 3,
}

/// An interface to be guarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guarded {
    /// Its index.
    pub index: u32,
    /// Its name, for messages.
    pub name: String,
    /// Whether frames to peers leave through it: then so would the kernel's RSTs, and they are
    /// counted there. Each program attached costs a sweep an RCU grace period, and another at its end.
    pub is_egress: bool,
}

/// What is guarded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuardSpec {
    /// Our source addresses.
    pub sources: Vec<IpAddr>,
    /// Our source ports, on each of them.
    pub ports: RangeInclusive<u16>,
    /// Flows that are guarded besides, by local and peer address and port. A listener does not own
    /// such a tuple, though it has the port.
    pub tuples: Vec<(SocketAddr, SocketAddr)>,
    /// How many ends, of packets to connections of the kernel's, can be held at one time.
    pub holds: usize,
}

/// What the guard has done since it was attached, on all interfaces together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuardCounts {
    /// Inbound packets of guarded flows that were kept from the kernel.
    pub dropped: u64,
    /// Inbound packets of guarded flows that the kernel got, since it owns the tuple.
    pub passed_owned: u64,
    /// RSTs that the kernel sent on guarded flows. Must stay 0.
    pub kernel_rsts: u64,
    /// Inbound RSTs and SYNs that were held back from connections of the kernel's.
    pub held: u64,
}

/// Why there is no guard, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The object or one of its programs did not load.
    #[error("load the guard: {reason}; {remedy}")]
    Load {
        /// What the kernel said.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// A source address could not be put under the guard.
    #[error("guard source address {source_ip}: {reason}")]
    Configure {
        /// The address.
        source_ip: IpAddr,
        /// What the kernel said.
        reason: String,
    },
    /// A flow could not be put under the guard.
    #[error("guard the flow {local} → {peer}: {reason}")]
    ConfigureFlow {
        /// Its local end.
        local: SocketAddr,
        /// The peer's.
        peer: SocketAddr,
        /// What the kernel said.
        reason: String,
    },
    /// A connection of the kernel's could not be held, or let go.
    #[error("hold back resets of {local} → {peer}: {reason}")]
    Hold {
        /// Its local end.
        local: SocketAddr,
        /// The peer's.
        peer: SocketAddr,
        /// What the kernel said.
        reason: String,
    },
    /// A program did not attach.
    #[error("attach the guard to {interface} ({direction}): {reason}; {remedy}")]
    Attach {
        /// The interface.
        interface: String,
        /// `ingress` or `egress`.
        direction: &'static str,
        /// What the kernel said.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// The kernel did not say what is attached.
    #[error("look at tcx on {interface}: {reason}; {remedy}")]
    Query {
        /// The interface.
        interface: String,
        /// What the kernel said.
        reason: String,
        /// What to do about it.
        remedy: String,
    },
    /// None of the interfaces exists any more, or none was given.
    #[error("attach the guard: none of its interfaces exists; check `ip link` and -i")]
    NoInterface,
    /// The counters could not be read.
    #[error("read the guard's counters: {reason}")]
    Counters {
        /// What the kernel said.
        reason: String,
    },
}

/// The attached guard; dropping it detaches it.
///
/// It holds bpf_links and nothing pinned, so it is also gone when the process dies, however it dies.
pub struct Guard {
    // Owns the programs, and they own their links.
    _programs: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    holds: Arc<Holds>,
}

/// The connections of the kernel's whose RSTs and SYNs are held back from it.
///
/// Whoever has this may change them, without any privilege (the kernel asks for none to update a map
/// that is open). What is held is let go when the [`Guard`] is detached, at the latest.
pub struct Holds(Mutex<Held>);

struct Held {
    /// By the ends of their packets as they come in: the ends of the socket.
    map: HashMap<MapData, Tuple, Tuple>,
    /// By the ends of the socket: those of its packets.
    wire: collections::HashMap<Ends, Vec<Ends>>,
}

impl fmt::Debug for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holds").finish_non_exhaustive()
    }
}

impl Holds {
    /// Holds back RSTs and SYNs from the kernel's connection of these ends, from now on: those that come
    /// in with its ends, and those that come in with `wire`, which this host translates.
    ///
    /// # Errors
    /// [`GuardError::Hold`]: more are held than was said there would be, or the kernel refuses.
    pub fn hold(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        wire: Option<Ends>,
    ) -> Result<(), GuardError> {
        let socket = (local, peer);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { map, wire: known } = &mut *held;
        let known = known.entry(socket).or_default();
        for ends in [Some(socket), wire].into_iter().flatten() {
            if !known.contains(&ends) {
                map.insert(Tuple::from(&ends), Tuple::from(&socket), 0)
                    .map_err(|error| hold_error(socket, &error))?;
                known.push(ends);
            }
        }
        Ok(())
    }

    /// Lets them through again, from now on.
    ///
    /// # Errors
    /// [`GuardError::Hold`]: it was not held, or the kernel refuses.
    pub fn let_go(&self, local: SocketAddr, peer: SocketAddr) -> Result<(), GuardError> {
        let socket = (local, peer);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = held.wire.remove(&socket).unwrap_or_else(|| vec![socket]);
        // All of them, whatever becomes of one.
        let removed = known.iter().map(|ends| held.map.remove(&Tuple::from(ends)));
        let results: Vec<_> = removed.collect();
        results.into_iter().collect::<Result<(), _>>().map_err(|error| hold_error(socket, &error))
    }

    /// Counts the ends by which connections are held.
    ///
    /// # Errors
    /// [`GuardError::Counters`].
    pub fn count(&self) -> Result<usize, GuardError> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for tuple in held.map.keys() {
            tuple.map_err(|error| GuardError::Counters { reason: chain(&error) })?;
            count += 1;
        }
        Ok(count)
    }
}

fn hold_error((local, peer): Ends, error: &MapError) -> GuardError {
    GuardError::Hold { local, peer, reason: chain(error) }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

impl Guard {
    /// Attaches the guard to every interface of `interfaces`, at the head of its tcx chains: a program behind it cannot pass what it drops, and one that is attached there
    /// already keeps its work for everything else.
    ///
    /// Interfaces are found by index; one that has disappeared meanwhile is left out. Needs Linux
    /// 6.6, CAP_BPF and CAP_NET_ADMIN; two file descriptors an interface.
    ///
    /// # Errors
    /// [`GuardError`], naming the operation, the interface, what the kernel said and what to do.
    /// Nothing stays attached then.
    pub fn attach(interfaces: &[Guarded], spec: &GuardSpec) -> Result<Guard, GuardError> {
        let mut programs = load(spec)?;
        let mut attached = 0_usize;
        for Guarded { index, name, is_egress } in interfaces {
            // Names move between interfaces, indices do not.
            let now = interface_name(*index);
            let Some(name) = now.map_err(|error| attach_error(name, "ingress", &error))? else {
                tracing::debug!(interface = name, index, "gone before it was guarded");
                continue;
            };
            let mut there = attach_one(&mut programs, INGRESS, &name, TcAttachType::Ingress)?;
            if *is_egress {
                there &= attach_one(&mut programs, EGRESS, &name, TcAttachType::Egress)?;
            }
            attached += usize::from(there);
        }
        if attached == 0 {
            return Err(GuardError::NoInterface);
        }

        let counters = programs
            .take_map("counters")
            .ok_or_else(|| GuardError::Counters { reason: "no such map".to_owned() })?;
        let counters = PerCpuArray::try_from(counters)
            .map_err(|error| GuardError::Counters { reason: chain(&error) })?;
        let held = programs
            .take_map("held")
            .ok_or_else(|| GuardError::Counters { reason: "no map held".to_owned() })?;
        let map = HashMap::try_from(held)
            .map_err(|error| GuardError::Counters { reason: chain(&error) })?;
        let wire = collections::HashMap::new();
        let holds = Arc::new(Holds(Mutex::new(Held { map, wire })));
        Ok(Guard { _programs: programs, counters, holds })
    }

    /// Returns what holds back resets from the kernel's own connections.
    pub fn holds(&self) -> Arc<Holds> {
        Arc::clone(&self.holds)
    }

    /// Returns what the guard has counted so far. Needs no privilege.
    ///
    /// # Errors
    /// [`GuardError::Counters`].
    pub fn counts(&self) -> Result<GuardCounts, GuardError> {
        Ok(GuardCounts {
            dropped: self.count(Counter::Dropped)?,
            passed_owned: self.count(Counter::PassedOwned)?,
            kernel_rsts: self.count(Counter::KernelRsts)?,
            held: self.count(Counter::Held)?,
        })
    }

    fn count(&self, counter: Counter) -> Result<u64, GuardError> {
        let per_cpu = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(|error| GuardError::Counters { reason: chain(&error) })?;
        Ok(per_cpu.iter().sum())
    }
}

/// Loads the guard and lets it go again: what [`Guard::attach`] does, short of attaching.
///
/// # Errors
/// [`GuardError::Load`]: what the kernel said and what to do.
pub fn rehearse() -> Result<(), GuardError> {
    let ports = super::ports::DEFAULT;
    load(&GuardSpec { sources: Vec::new(), ports, tuples: Vec::new(), holds: 0 }).map(drop)
}

/// Returns the names of the tcx programs on an interface, on ingress and egress, those on ingress
/// first; one whose name takes more privilege to read than to count is called "?".
///
/// Needs CAP_NET_ADMIN.
///
/// # Errors
/// [`GuardError::Query`]; the kernel has no tcx, or does not tell.
pub fn tcx_programs(interface: &str) -> Result<[Vec<String>; 2], GuardError> {
    let names = |attach_type| match SchedClassifier::query_tcx(interface, attach_type) {
        Ok((_, programs)) => {
            let name = |program: &ProgramInfo| {
                program.name_as_str().filter(|name| !name.is_empty()).unwrap_or("?").to_owned()
            };
            Ok(programs.iter().map(name).collect())
        }
        // There is one, and its details take CAP_SYS_ADMIN (kernel/bpf/syscall.c).
        Err(ProgramError::SyscallError(error)) if error.call == "bpf_prog_get_fd_by_id" => {
            Ok(vec!["?".to_owned()])
        }
        Err(error) => Err(GuardError::Query {
            interface: interface.to_owned(),
            reason: chain(&error),
            remedy: remedy(&error),
        }),
    };
    Ok([names(TcAttachType::Ingress)?, names(TcAttachType::Egress)?])
}

/// Says whether a tcx program of this name is one of a guard.
pub(super) fn is_ours(name: &str) -> bool {
    [INGRESS, EGRESS].contains(&name)
}

/// Loads the programs and tells them what is ours; nothing is attached yet.
fn load(spec: &GuardSpec) -> Result<Ebpf, GuardError> {
    let load_error = |error: &(dyn Error + 'static)| GuardError::Load {
        reason: chain(error),
        remedy: remedy(error),
    };
    let capacity = |entries: usize| u32::try_from(entries.max(1)).unwrap_or(u32::MAX);
    let max_entries = [
        ("sources", capacity(spec.sources.len())),
        ("tuples", capacity(spec.tuples.len())),
        ("held", capacity(spec.holds)),
    ];
    let mut programs = bpf::load(OBJECT, &max_entries).map_err(|error| load_error(&error))?;

    let sources = programs.map_mut("sources").ok_or_else(|| missing("map sources"))?;
    let mut sources: HashMap<_, Source, Ports> =
        HashMap::try_from(sources).map_err(|error| load_error(&error))?;
    let ports = Ports { lo: *spec.ports.start(), hi: *spec.ports.end() };
    for &source_ip in &spec.sources {
        sources
            .insert(Source::from(source_ip), ports, 0)
            .map_err(|error| GuardError::Configure { source_ip, reason: chain(&error) })?;
    }

    let tuples = programs.map_mut("tuples").ok_or_else(|| missing("map tuples"))?;
    let mut tuples: HashMap<_, Tuple, u8> =
        HashMap::try_from(tuples).map_err(|error| load_error(&error))?;
    for tuple in &spec.tuples {
        tuples.insert(Tuple::from(tuple), 1, 0).map_err(|error| {
            let (local, peer) = *tuple;
            GuardError::ConfigureFlow { local, peer, reason: chain(&error) }
        })?;
    }

    for name in [INGRESS, EGRESS] {
        program(&mut programs, name)?.load().map_err(|error| load_error(&error))?;
    }
    Ok(programs)
}

/// Returns the present name of an interface, or `None` if there is no such interface any more.
pub(super) fn interface_name(index: u32) -> io::Result<Option<String>> {
    // Not nix 0.31's wrapper: it takes the null pointer of a failure for success.
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the IF_NAMESIZE octets that if_indextoname writes at most.
    if unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) }.is_null() {
        return match Errno::last() {
            Errno::ENXIO | Errno::ENODEV => Ok(None),
            errno => Err(errno.into()),
        };
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Some(name.to_string_lossy().into_owned()))
}

/// Attaches one program and returns whether the interface still existed.
fn attach_one(
    programs: &mut Ebpf,
    name: &str,
    interface: &str,
    attach_type: TcAttachType,
) -> Result<bool, GuardError> {
    let direction = match attach_type {
        TcAttachType::Ingress => "ingress",
        _ => "egress",
    };
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program(programs, name)?.attach_with_options(interface, attach_type, options) {
        Ok(_) => Ok(true),
        // Gone since its name was looked up.
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(false),
        Err(error) => Err(attach_error(interface, direction, &error)),
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, GuardError> {
    programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| missing(&format!("program {name}")))
}

fn missing(what: &str) -> GuardError {
    GuardError::Load {
        reason: format!("the embedded object has no {what}"),
        remedy: "this build is broken: build it again".to_owned(),
    }
}

fn attach_error(
    interface: &str,
    direction: &'static str,
    error: &(dyn Error + 'static),
) -> GuardError {
    GuardError::Attach {
        interface: interface.to_owned(),
        direction,
        reason: chain(error),
        remedy: remedy(error),
    }
}

/// Joins an error and its causes; aya's outermost text does not contain the errno.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    // With the verifier's whole log this would be megabytes; its last lines hold the reason.
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let mut last: Vec<_> = log.lines().rev().take(VERIFIER_LINES).collect();
        last.reverse();
        // Refused before the verifier looked at it.
        if last.is_empty() {
            return io_error.to_string();
        }
        return format!("{io_error}: {}", last.join(" | "));
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    // aya's transparent variants hide the error they carry from `source()`.
    if let Some(ProgramError::TcError(TcError::IoError(error))) = error.downcast_ref() {
        return error.raw_os_error().map(Errno::from_raw);
    }
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(code) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(Errno::from_raw(code));
        }
        cause = error.source();
    }
    None
}

fn remedy(error: &(dyn Error + 'static)) -> String {
    if matches!(errno(error), Some(Errno::EPERM | Errno::EACCES)) {
        return "needs CAP_BPF and CAP_NET_ADMIN outside any user namespace: try sudo".to_owned();
    }
    if errno(error) == Some(Errno::EMFILE) {
        return "two file descriptors are needed for every interface that is up, whatever -i says: \
                raise `ulimit -n`"
            .to_owned();
    }
    match KernelVersion::current() {
        // The link type and the attach types are unknown to older kernels, which say EINVAL.
        Ok(version) if version < KernelVersion::new(6, 6, 0) => {
            "the guard needs tcx, that is Linux 6.6 or newer".to_owned()
        }
        _ => "the guard needs Linux 6.6 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS"
            .to_owned(),
    }
}
