//! How many replies a second are received, parsed, matched and handed over.
#![forbid(unsafe_code)]

use super::flows::{BenchFlow, Replies, SOURCE, flows, table};
use super::slice::Slice;
use super::{BenchPath, OTHER, OURS, PEERS, Spread, Watch};
use crate::engine::EngineError;
use crate::io::bare::BATCH;
use crate::io::guard::{Guard, GuardSpec, Guarded};
use crate::io::packet::{FilterSpec, PacketRx, PortRanges, RxOptions};
use crate::io::replay::Replay;
use crate::io::route::Interface;
use crate::io::testbed::Testbed;
use crate::io::xdp::{
    self, Attached, Queue, QueueSpec, Redirect, RedirectSpec, XdpMode, XdpRx, ZeroCopy,
};
use crate::io::{IoError, PathId, Receive, RxFrame, affinity, cpu, ports};
use crate::probe::receiver::{Post, Receiver};
use crate::time::Clock;
use crate::wire::LinkType;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The paths take turns so often.
const PASSES: u32 = 3;
/// How long a receive waits for the first frame.
const LISTEN: Duration = Duration::from_millis(2);
/// How many replies are sent by one call: enough to make little of the call itself.
const AT_ONCE: u32 = 1 << 14;
/// How long the last frames may be on their way.
const LINGER: Duration = Duration::from_millis(50);

/// What to measure.
#[derive(Clone, Debug)]
pub struct RxSetup {
    /// Which paths; raw sockets receive as AF_PACKET does.
    pub paths: Vec<BenchPath>,
    /// How long, each path.
    pub span: Duration,
}

/// What a path has come to.
#[derive(Clone, PartialEq, Debug)]
pub struct RxReport {
    /// The path.
    pub path: BenchPath,
    /// Where the XDP program ran.
    pub attached: Option<Attached>,
    /// Whether the replies were sent and received on different CPUs.
    pub two_cpus: bool,
    /// How often every loop had its turn.
    pub rounds: usize,
    /// Replies that were sent to it.
    pub offered: u64,
    /// Of these: handed to us.
    pub received: u64,
    /// Of these: parsed, matched and handed over; the others met the bare loop.
    pub matched: u64,
    /// Of these: handed to the bare loop.
    pub bare_received: u64,
    /// Of these: not believed.
    pub rejected: u64,
    /// Not received since the path's ring was full.
    pub ring_dropped: u64,
    /// Not received, and lost before they came to the ring: between the two ends of the pair.
    pub lost: u64,
    /// Replies a second.
    pub pps: Spread,
    /// Nanoseconds that the receiving thread ran for a reply.
    pub cpu_ns: Spread,
    /// Frames a second if they are received and thrown away.
    pub bare_pps: Spread,
    /// Nanoseconds that the receiving thread ran for such a frame.
    pub bare_cpu_ns: Spread,
    /// Replies a second beside frames thrown away a second, neighbouring slices.
    pub ratio_to_bare: Spread,
    /// How long something else had the CPU; not counted.
    pub off_cpu: Duration,
}

impl RxReport {
    fn new(path: BenchPath, two_cpus: bool) -> Self {
        let none = Spread::default();
        RxReport {
            path,
            attached: None,
            two_cpus,
            rounds: 0,
            offered: 0,
            received: 0,
            matched: 0,
            bare_received: 0,
            rejected: 0,
            ring_dropped: 0,
            lost: 0,
            pps: none,
            cpu_ns: none,
            bare_pps: none,
            bare_cpu_ns: none,
            ratio_to_bare: none,
            off_cpu: Duration::ZERO,
        }
    }
}

/// A pair of interfaces in a namespace of the calling thread's own, and who sends and receives there.
struct Bed {
    ours: Interface,
    other: Interface,
    flows: Vec<BenchFlow>,
    replies: Replies,
    /// The CPU that replies are sent on.
    sending_cpu: Option<usize>,
}

/// The receiving end of a path, and what must live as long.
struct End {
    receive: Box<dyn Receive>,
    redirect: Option<(Redirect, Attached)>,
}

/// Slices of one path.
#[derive(Default)]
struct Slices {
    real: Vec<Slice>,
    bare: Vec<Slice>,
}

/// Measures the paths in turn: this thread receives, pinned to one CPU, and another sends, pinned to
/// another one if there is. The calling thread is in another network namespace from then on.
///
/// # Errors
/// [`EngineError::System`]: missing privilege, or the kernel refused.
pub fn rx(
    setup: &RxSetup,
    watch: &Watch<'_>,
    report: &mut dyn FnMut(RxReport),
) -> Result<Vec<IoError>, EngineError> {
    let bed = Bed::make()?;
    let guarded = Guarded { index: bed.ours.index, name: bed.ours.name.clone(), is_egress: true };
    let spec = GuardSpec {
        sources: vec![SOURCE.into()],
        ports: ports::DEFAULT,
        tuples: Vec::new(),
        holds: 0,
    };
    let _guard = Guard::attach(&[guarded], &spec).map_err(EngineError::system)?;
    let Interface { index, name, .. } = &bed.other;
    let mut replay = Replay::load(*index, name, bed.replies.once()).map_err(EngineError::system)?;
    let mut failed = Vec::new();
    let mut measured: Vec<_> = setup
        .paths
        .iter()
        .filter(|&&path| path != BenchPath::Raw)
        .map(|&path| (RxReport::new(path, bed.sending_cpu.is_some()), Slices::default()))
        .collect();
    for pass in 1..=PASSES {
        for (report, slices) in &mut measured {
            if watch.is_stopped() || !failed.is_empty() {
                break;
            }
            (watch.say)(&format!(
                "{}: receiving for {:.1} s, pass {pass} of {PASSES}",
                report.path.name(),
                (setup.span / PASSES).as_secs_f64()
            ));
            match bed.open(report.path) {
                Ok(end) => {
                    bed.pass(end, &mut replay, setup.span / PASSES, watch, report, slices)?;
                }
                Err(error) => failed.push(error),
            }
        }
    }
    for (mut finished, Slices { real, bare }) in measured {
        let pps = |slices: &[Slice]| Spread::of(slices.iter().map(Slice::pps));
        let cpu_ns = |slices: &[Slice]| Spread::of(slices.iter().map(Slice::cpu_ns));
        let ratios = real.iter().zip(&bare).map(|(real, bare)| real.pps() / bare.pps());
        finished.rounds = real.len();
        (finished.pps, finished.cpu_ns) = (pps(&real), cpu_ns(&real));
        (finished.bare_pps, finished.bare_cpu_ns) = (pps(&bare), cpu_ns(&bare));
        finished.ratio_to_bare = Spread::of(ratios);
        finished.off_cpu = real.iter().chain(&bare).map(|slice| slice.waited).sum();
        if finished.rounds > 0 {
            report(finished);
        }
    }
    Ok(failed)
}

impl Bed {
    fn make() -> Result<Self, EngineError> {
        let system = |error: IoError| EngineError::system(error);
        let cpus = cpu::allowed().map_err(system)?;
        let mut testbed = Testbed::enter().map_err(system)?;
        testbed.add_veth(OURS, OTHER).map_err(system)?;
        testbed.raise(OURS).map_err(system)?;
        let other = testbed.raise(OTHER).map_err(system)?;
        // Else a veth takes no frames that are not in an sk_buff; and most drivers do it.
        xdp::enable_gro(OURS).map_err(system)?;
        // Up only since both ends are.
        let ours = testbed.raise(OURS).map_err(system)?;
        if let Some(&cpu) = cpus.last() {
            affinity::pin(cpu).map_err(system)?;
        }
        let flows = flows();
        let replies = Replies::new(&flows, other.mac, ours.mac).map_err(EngineError::system)?;
        let sending_cpu = cpus.first().copied().filter(|_| cpus.len() > 1);
        Ok(Bed { ours, other, flows, replies, sending_cpu })
    }

    fn open(&self, path: BenchPath) -> Result<End, IoError> {
        let Interface { index, name, mac, .. } = &self.ours;
        if path != BenchPath::Xdp {
            let ports = PortRanges::covering([ports::DEFAULT]);
            let bare_ports = PortRanges::default();
            let filter =
                FilterSpec { addresses: vec![SOURCE.into()], ports, bare_ports, mac: *mac };
            let receive = PacketRx::open(*index, name, &filter, RxOptions::default())?;
            return Ok(End { receive: Box::new(receive), redirect: None });
        }
        let rx: XdpRx = queue(&self.ours)?.rx;
        let spec = RedirectSpec {
            mac: *mac,
            sources: vec![SOURCE.into()],
            ports: ports::DEFAULT,
            queues: 1,
            frame_octets: rx.layout().packet_octets(),
        };
        let mut redirect = Redirect::load(name, &spec)?;
        redirect.set_socket(0, &rx)?;
        let (attached, _) = redirect.attach(*index, XdpMode::Auto)?;
        Ok(End { receive: Box::new(rx), redirect: Some((redirect, attached)) })
    }

    /// Receives by one path for a while, with and without a look at what comes.
    fn pass(
        &self,
        mut end: End,
        replay: &mut Replay,
        span: Duration,
        watch: &Watch<'_>,
        report: &mut RxReport,
        slices: &mut Slices,
    ) -> Result<(), EngineError> {
        report.attached = end.redirect.as_ref().map(|(_, attached)| *attached);
        let table = Arc::new(table(&self.flows).map_err(EngineError::system)?);
        let post = Arc::new(Post::new(1, PEERS as usize, 4 * BATCH));
        let next_hops = HashSet::new();
        let mut receiver =
            Receiver::new(PathId(0), LinkType::Ethernet, table, next_hops, post.clone());
        let receive = &mut *end.receive;
        let enough = AtomicBool::new(false);
        let offered = AtomicU64::new(0);
        let mut bare_received = 0;
        let result = thread::scope(|scope| {
            let generator = scope.spawn(|| self.generate(replay, &enough, &offered));
            let mut listen = || {
                while offered.load(Ordering::Relaxed) == 0 && !generator.is_finished() {
                    bare_received += discard_once(receive)?;
                }
                let begun = Clock.now();
                for round in 0.. {
                    let real = Slice::of(|| listen_once(receive, &mut receiver, &post))?;
                    let bare = Slice::of(|| discard_once(receive))?;
                    bare_received += bare.frames;
                    // The first round warms up.
                    if round > 0 {
                        slices.real.push(real);
                        slices.bare.push(bare);
                        if watch.is_stopped() || Clock.now().since(begun) >= span {
                            break;
                        }
                    }
                    if generator.is_finished() {
                        break;
                    }
                }
                Ok(())
            };
            let listened = listen();
            enough.store(true, Ordering::Relaxed);
            let generated = generator.join().unwrap_or_else(|_| {
                Err(EngineError::System("the thread that sends replies panicked".into()))
            });
            generated.and(listened)
        });
        result?;
        // What is still under way.
        let begun = Clock.now();
        while Clock.now().since(begun) < LINGER {
            bare_received += discard_once(receive)?;
        }
        let counts = receiver.counts();
        let ring_dropped = receive.stats().map_err(EngineError::system)?.dropped;
        let (offered, received) = (offered.into_inner(), counts.frames + bare_received);
        report.offered += offered;
        report.received += received;
        report.matched += counts.matched;
        report.bare_received += bare_received;
        report.rejected += counts.rejected.iter().sum::<u64>();
        report.ring_dropped += ring_dropped;
        report.lost += offered.saturating_sub(received + ring_dropped);
        Ok(())
    }

    /// Sends replies as fast as it can until there are enough.
    fn generate(
        &self,
        replay: &mut Replay,
        enough: &AtomicBool,
        offered: &AtomicU64,
    ) -> Result<(), EngineError> {
        if let Some(cpu) = self.sending_cpu {
            affinity::pin(cpu).map_err(EngineError::system)?;
        }
        while !enough.load(Ordering::Relaxed) {
            let sent = replay.send(AT_ONCE).map_err(EngineError::system)?;
            offered.fetch_add(sent, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn queue(interface: &Interface) -> Result<Queue, IoError> {
    let (ifindex, zerocopy) = (interface.index, ZeroCopy::Off);
    Queue::open(QueueSpec { ifindex, interface: &interface.name, queue_id: 0, zerocopy })
}

/// What a listener does: parse, match, hand over; and, in the sender's place, takes what is handed over.
fn listen_once(
    receive: &mut dyn Receive,
    receiver: &mut Receiver,
    post: &Post,
) -> Result<u64, EngineError> {
    let before = receiver.counts().matched;
    let mut stuck = |heard| {
        let mut pending = Err(heard);
        while let Err(heard) = pending {
            while post.pop(0).is_some() {}
            pending = post.push(heard);
        }
    };
    let mut sink = |frame: RxFrame<'_>| receiver.take_in(frame, &mut stuck);
    receive.receive(LISTEN, &mut sink).map_err(EngineError::system)?;
    receiver.settle(&mut stuck);
    Ok(receiver.counts().matched - before)
}

fn discard_once(receive: &mut dyn Receive) -> Result<u64, EngineError> {
    let received = receive.receive(LISTEN, &mut |_| {}).map_err(EngineError::system)?;
    Ok(received.frames as u64)
}
