//! How many keepalives a second leave through each path.
#![forbid(unsafe_code)]

use super::deciding::Deciding;
use super::flows::{BenchFlow, NETWORK, ROUTER, SOURCE, flows};
use super::slice::Slice;
use super::{BenchPath, Spread, Watch, sink};
use crate::engine::EngineError;
use crate::io::bare::{BATCH, BareLoop};
use crate::io::packet::PacketTx;
use crate::io::raw::{Egress, RawTx};
use crate::io::route::{Interface, interfaces};
use crate::io::testbed::{self, LinkCounts};
use crate::io::xdp::{Queue, QueueSpec, XdpTx, ZeroCopy};
use crate::io::{FRAME_OCTETS, IoError, PathId, PathInfo, Transmit, affinity, cpu};
use crate::probe::craft::{CraftError, Crafter};
use crate::time::{Clock, Instant};
use crate::wire::{LinkType, MacAddr};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::time::Duration;

/// How often the sender alone has its turn.
const SENDER_SLICES: usize = 5;

/// What to measure.
#[derive(Clone, Debug)]
pub struct TxSetup {
    /// Send through this interface; else through one of our own that swallows frames.
    pub interface: Option<String>,
    /// Which paths.
    pub paths: Vec<BenchPath>,
    /// How long, each path.
    pub span: Duration,
    /// Also where a default route leads through the interface.
    pub yes: bool,
}

/// What a path has come to.
#[derive(Clone, PartialEq, Debug)]
pub struct TxReport {
    /// The path.
    pub path: BenchPath,
    /// The interface, and what it is ("ifb", "veth") if it is our own.
    pub interface: (String, Option<&'static str>),
    /// Whether the driver read our frames itself.
    pub zerocopy: bool,
    /// How often every loop had its turn.
    pub rounds: usize,
    /// Keepalives that the kernel took.
    pub frames_sent: u64,
    /// Keepalives that it refused, and why it did last.
    pub frames_refused: (u64, Option<String>),
    /// Constant frames that it took.
    pub bare_frames_sent: u64,
    /// By how much the interface's own counter of frames went up.
    pub interface_frames: u64,
    /// By how much its counter of frames thrown away went up; an `ifb` throws all away.
    pub interface_drops: u64,
    /// Keepalives a second.
    pub pps: Spread,
    /// Nanoseconds of CPU a keepalive.
    pub cpu_ns: Spread,
    /// Constant frames a second, by the barest loop over the same socket.
    pub bare_pps: Spread,
    /// Nanoseconds of CPU a constant frame.
    pub bare_cpu_ns: Spread,
    /// Keepalives a second beside constant frames a second, neighbouring slices.
    pub ratio_to_bare: Spread,
    /// Nanoseconds of CPU that crafting a keepalive takes, and reading its flow out of memory.
    pub craft_ns: Spread,
    /// Nanoseconds of CPU that a sweep's sender takes a keepalive to decide which is due, keep its timers
    /// and craft it; in memory, and no part of the figures above.
    pub sender_ns: Spread,
    /// Constant frames a second by `sendto`, one by one; raw sockets only.
    pub sendto_pps: Option<Spread>,
    /// How long something else had the CPU; not counted.
    pub off_cpu: Duration,
}

/// Measures the paths one after the other, each on this thread, pinned to one CPU. `report` gets what
/// each has come to; what could not be measured is among the errors returned.
///
/// Without an interface the calling thread is in another network namespace from then on.
///
/// # Errors
/// [`EngineError::Usage`]: no such interface, or one that must not be flooded.
/// [`EngineError::System`]: missing privilege, or the kernel refused.
pub fn tx(
    setup: &TxSetup,
    watch: &Watch<'_>,
    report: &mut dyn FnMut(TxReport),
) -> Result<Vec<IoError>, EngineError> {
    let (interface, kind, paths) = match &setup.interface {
        Some(name) => (chosen(name, setup)?, None, setup.paths.clone()),
        None => {
            let (mut testbed, interface, kind) = sink()?;
            testbed
                .route(interface.index, SOURCE, (ROUTER, interface.mac), NETWORK)
                .map_err(EngineError::system)?;
            (interface, Some(kind), setup.paths.clone())
        }
    };
    if kind == Some("veth") {
        (watch.say)(
            "this kernel has no ifb: measured on a veth pair, whose other end costs time too",
        );
    }
    let cpus = cpu::allowed().map_err(EngineError::system)?;
    if let Some(&cpu) = cpus.last() {
        affinity::pin(cpu).map_err(EngineError::system)?;
    }
    let mut failed = Vec::new();
    for &path in &paths {
        if watch.is_stopped() {
            break;
        }
        (watch.say)(&format!(
            "{}: sending through {} for {:.1} s",
            path.name(),
            interface.name,
            setup.span.as_secs_f64()
        ));
        match Sender::open(path, &interface) {
            Ok(mut sender) => report(sender.run(setup.span, kind, watch)?),
            Err(error) => failed.push(error),
        }
    }
    Ok(failed)
}

/// Checks that frames may be poured into an interface of this host.
fn chosen(name: &str, setup: &TxSetup) -> Result<Interface, EngineError> {
    let all = interfaces().map_err(EngineError::system)?;
    let Some(interface) = all.iter().find(|interface| interface.name == name) else {
        let names: Vec<_> = all.iter().map(|known| known.name.as_str()).collect();
        return Err(EngineError::Usage(format!(
            "interface {name}: no such interface; there are {}",
            names.join(", ")
        )));
    };
    let usage = |why: &str| Err(EngineError::Usage(format!("interface {name}: {why}")));
    if !interface.has_mac || interface.loopback {
        return usage("without MAC addresses; bench sends Ethernet frames");
    }
    if !interface.up {
        return Err(EngineError::System(format!(
            "interface {name}: down; bring it up: ip link set {name} up"
        )));
    }
    if setup.paths.contains(&BenchPath::Raw) {
        return usage(
            "raw sockets would have the kernel ask for 65,536 neighbours by ARP; measure raw without \
             -i, and here --io packet,xdp",
        );
    }
    let carries_default =
        testbed::has_default_route(interface.index).map_err(EngineError::system)?;
    if carries_default && !setup.yes {
        return usage(&format!(
            "the default route leads through it. bench would send as many frames as it takes for \
             {:.0} s, to 198.19.0.0/16 with its own MAC address as destination, and crowd out other \
             traffic; if that is what you want, say --yes",
            setup.span.as_secs_f64() * setup.paths.len() as f64
        ));
    }
    Ok(interface.clone())
}

enum End {
    Raw(RawTx),
    Packet(PacketTx),
    Xdp(Box<Queue>),
}

impl End {
    fn bare<'a>(
        &'a mut self,
        frame: &[u8],
        peers: &'a [Ipv4Addr],
    ) -> Result<Box<dyn BareLoop + 'a>, IoError> {
        Ok(match self {
            End::Raw(end) => Box::new(end.bare(frame, peers)),
            End::Packet(end) => Box::new(end.bare(frame)),
            End::Xdp(queue) => Box::new(XdpTx::bare(&mut queue.tx, frame)?),
        })
    }
}

/// One path, and the frames that go through it.
struct Sender<'a> {
    path: BenchPath,
    interface: &'a Interface,
    end: End,
    info: PathInfo,
    crafter: Crafter,
    flows: Vec<BenchFlow>,
    /// The first flow of the next batch.
    next: usize,
    repeat: u16,
    sent: u64,
    refused: u64,
    refusal: Option<IoError>,
}

impl<'a> Sender<'a> {
    fn open(path: BenchPath, interface: &'a Interface) -> Result<Self, IoError> {
        let Interface { index, name, .. } = interface;
        let (link, end) = match path {
            BenchPath::Raw => {
                (LinkType::Ip, End::Raw(RawTx::open(Egress::Routes { index: *index, name })?))
            }
            BenchPath::Packet => (LinkType::Ethernet, End::Packet(PacketTx::open(*index, name)?)),
            BenchPath::Xdp => {
                let (ifindex, zerocopy) = (*index, ZeroCopy::Auto.settle(*index));
                let spec = QueueSpec { ifindex, interface: name, queue_id: 0, zerocopy };
                (LinkType::Ethernet, End::Xdp(Box::new(Queue::open(spec)?)))
            }
        };
        let info = PathInfo {
            id: PathId(0),
            interface: name.clone(),
            link,
            mac: interface.mac,
            mtu: u16::try_from(interface.mtu).unwrap_or(u16::MAX),
        };
        let crafter = Crafter::new(&info, SOURCE.into()).map_err(|error| IoError {
            operation: "craft a template",
            object: name.clone(),
            source: std::io::Error::other(error),
            remedy: "",
        })?;
        Ok(Sender {
            path,
            interface,
            end,
            info,
            crafter,
            flows: flows(),
            next: 0,
            repeat: 0,
            sent: 0,
            refused: 0,
            refusal: None,
        })
    }

    fn run(
        &mut self,
        span: Duration,
        kind: Option<&'static str>,
        watch: &Watch<'_>,
    ) -> Result<TxReport, EngineError> {
        let before = testbed::counts(self.interface.index).map_err(EngineError::system)?;
        let mut frame = [0; FRAME_OCTETS];
        let outgoing = self.flows[0].keepalive(self.interface.mac, 0);
        let len = self.crafter.emit(&outgoing, &mut frame).map_err(EngineError::system)?;
        let constant = &frame[..len];
        let peers: Vec<_> = self.flows.iter().map(|flow| flow.peer).collect();
        let begun = Clock.now();
        let is_over = |now: Instant| watch.is_stopped() || now.since(begun) >= span;
        let (mut real, mut bare, mut sendto) = (Vec::new(), Vec::new(), Vec::new());
        let mut crafted = Vec::new();
        let mut buffer = vec![0; BATCH * FRAME_OCTETS];
        let mut bare_sent = 0;
        // The first round warms up: caches, the kernel's pools of memory.
        for round in 0.. {
            let slice = self.real_slice()?;
            let mut barest = self.end.bare(constant, &peers).map_err(EngineError::system)?;
            let reference = bare_slice(&mut *barest)?;
            drop(barest);
            bare_sent += reference.frames;
            let mut pushed = (slice, reference, None);
            if let End::Raw(end) = &mut self.end {
                let one_by_one = bare_slice(&mut end.bare(constant, &peers).one_by_one())?;
                bare_sent += one_by_one.frames;
                pushed.2 = Some(one_by_one);
            }
            let crafting = Slice::of(|| self.craft_batch(&mut buffer))?;
            if round > 0 {
                crafted.push(crafting);
                real.push(pushed.0);
                bare.push(pushed.1);
                sendto.extend(pushed.2);
            }
            // No room for a single frame: the path takes none.
            if slice.frames == 0
                && let Some(error) = self.refusal.take()
            {
                return Err(EngineError::system(error));
            }
            if round > 0 && is_over(Clock.now()) {
                break;
            }
        }
        let mut deciding = Deciding::new(&self.flows, &self.info)?;
        // The first warms up.
        deciding.slice(&mut buffer)?;
        let decided: Result<Vec<_>, _> =
            (0..SENDER_SLICES).map(|_| deciding.slice(&mut buffer)).collect();
        let decided = decided?;
        let after = testbed::counts(self.interface.index).map_err(EngineError::system)?;
        // What an `ifb` is given it counts as received.
        let frames = |counts: LinkCounts| match kind {
            Some("ifb") => counts.rx_packets,
            _ => counts.tx_packets,
        };
        let drops = |counts: LinkCounts| counts.rx_dropped + counts.tx_dropped;
        let pps = |slices: &[Slice]| Spread::of(slices.iter().map(Slice::pps));
        let cpu_ns = |slices: &[Slice]| Spread::of(slices.iter().map(Slice::cpu_ns));
        let ratios = real.iter().zip(&bare).map(|(real, bare)| real.pps() / bare.pps());
        let all = real.iter().chain(&bare).chain(&sendto);
        Ok(TxReport {
            path: self.path,
            interface: (self.interface.name.clone(), kind),
            zerocopy: matches!(&self.end, End::Xdp(queue) if queue.zerocopy),
            rounds: real.len(),
            frames_sent: self.sent,
            frames_refused: (self.refused, self.refusal.as_ref().map(IoError::to_string)),
            bare_frames_sent: bare_sent,
            interface_frames: frames(after).saturating_sub(frames(before)),
            interface_drops: drops(after).saturating_sub(drops(before)),
            pps: pps(&real),
            cpu_ns: cpu_ns(&real),
            bare_pps: pps(&bare),
            bare_cpu_ns: cpu_ns(&bare),
            ratio_to_bare: Spread::of(ratios),
            craft_ns: cpu_ns(&crafted),
            sender_ns: cpu_ns(&decided),
            sendto_pps: (!sendto.is_empty()).then(|| pps(&sendto)),
            off_cpu: all.map(|slice| slice.waited).sum(),
        })
    }

    fn real_slice(&mut self) -> Result<Slice, EngineError> {
        Slice::of(|| self.batch())
    }

    /// Crafts and sends a batch, and returns how many frames left.
    fn batch(&mut self) -> Result<u64, EngineError> {
        let (turn, repeat) = self.take_turn();
        let keepalives = Keepalives {
            crafter: &self.crafter,
            flows: &self.flows[turn],
            mac: self.interface.mac,
            repeat,
        };
        let taken = match &mut self.end {
            End::Raw(end) => keepalives.send(end),
            End::Packet(end) => keepalives.send(end),
            End::Xdp(queue) => keepalives.send(&mut queue.tx),
        };
        let Taken { sent, refused, refusal } = taken.map_err(EngineError::system)?;
        self.sent += sent;
        self.refused += refused;
        self.refusal = refusal.or(self.refusal.take());
        Ok(sent)
    }

    /// Crafts a batch and sends nothing.
    fn craft_batch(&mut self, buffer: &mut [u8]) -> Result<u64, EngineError> {
        let (turn, repeat) = self.take_turn();
        let flows = &self.flows[turn];
        for (flow, buf) in flows.iter().zip(buffer.chunks_exact_mut(FRAME_OCTETS)) {
            let outgoing = flow.keepalive(self.interface.mac, repeat);
            self.crafter.emit(&outgoing, buf).map_err(EngineError::system)?;
        }
        Ok(flows.len() as u64)
    }

    /// Returns whose turn it is next, a batch of flows, and how often they have had theirs.
    fn take_turn(&mut self) -> (Range<usize>, u16) {
        let turn = self.next..(self.next + BATCH).min(self.flows.len());
        let repeat = self.repeat;
        self.next = turn.end;
        if turn.end == self.flows.len() {
            self.next = 0;
            self.repeat = repeat.wrapping_add(1);
        }
        (turn, repeat)
    }
}

/// A batch's worth of flows, and what their keepalives have in common.
struct Keepalives<'a> {
    crafter: &'a Crafter,
    flows: &'a [BenchFlow],
    mac: MacAddr,
    repeat: u16,
}

/// What a path did with a batch.
#[derive(Default)]
struct Taken {
    sent: u64,
    refused: u64,
    refusal: Option<IoError>,
}

impl Keepalives<'_> {
    /// Crafts them into the buffers of `end`, and has them sent.
    fn send<T: Transmit>(&self, end: &mut T) -> Result<Taken, CraftError> {
        let mut taken = Taken::default();
        let mut flows = self.flows.iter();
        loop {
            let mut put = 0;
            while flows.len() > 0
                && let Some(buf) = end.reserve()
                && let Some(flow) = flows.next()
            {
                let len = self.crafter.emit(&flow.keepalive(self.mac, self.repeat), buf)?;
                end.submit(len);
                put += 1;
            }
            // Nothing left; or no room in an empty batch: as if all were refused.
            if put == 0 {
                return Ok(taken);
            }
            taken.flush(end, put);
        }
    }
}

impl Taken {
    fn flush(&mut self, end: &mut impl Transmit, mut left: usize) {
        while left > 0 {
            match end.flush() {
                Ok(_) => {
                    self.sent += left as u64;
                    return;
                }
                Err(unsent) => {
                    self.sent += unsent.sent as u64;
                    self.refused += unsent.refused as u64;
                    // At least one, so that this ends whatever the path claims.
                    left = left.saturating_sub(unsent.sent + unsent.refused.max(1));
                    self.refusal = Some(unsent.error);
                }
            }
        }
    }
}

fn bare_slice(bare: &mut dyn BareLoop) -> Result<Slice, EngineError> {
    Slice::of(|| bare.send().map(|sent| sent as u64).map_err(EngineError::system))
}
