//! The running sweep: its threads and their loops.

mod driver;
mod listener;

use super::capture::Capture;
use super::host::{KernelWatch, Wanted};
use super::watch::{HostEvent, Outlook, deal_out};
use super::{Control, EngineError, Path, Sweep};
use crate::io::guard::{Guard, GuardCounts};
use crate::io::watch::Waker;
use crate::io::xdp::RedirectCounts;
use crate::io::{QueueCounts, affinity};
use crate::probe::evidence::Verdict;
use crate::probe::matcher::Rejection;
use crate::probe::receiver::{Receiver, RxCounts};
use crate::report::{Summary, XdpCounts};
use crate::time::Clock;
use crossbeam::channel;
use crossbeam::sync::Parker;
use driver::{Driver, Ended, Outlet};
use listener::{Heard, Hearing, Listener};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Ends what waits for the senders, once the last of them has ended, however it did.
struct LastOut<'a> {
    senders_left: AtomicUsize,
    /// Nobody wants replies any more.
    finished: &'a AtomicBool,
    watch: Option<Waker>,
}

impl LastOut<'_> {
    fn leave(&self) {
        if self.senders_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finished.store(true, Ordering::Release);
            self.watch.iter().for_each(Waker::wake);
        }
    }
}

/// On the way out of a thread that panics: the others close what is open, and end.
struct StopOnPanic<'a>(&'a Control);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// On the way out of a run, however it ends: the capture's thread writes what it has, and ends.
struct CloseCapture<'a>(Option<&'a Capture>);

impl Drop for CloseCapture<'_> {
    fn drop(&mut self) {
        self.0.into_iter().for_each(Capture::close);
    }
}

impl Sweep {
    /// Runs to the last verdict; each is handed to `report` on the calling thread as it is known.
    ///
    /// # Errors
    /// [`EngineError::System`] when the paths fail for good or the capture could not be written;
    /// by then every peer was reported, those not resolved as `undetermined`.
    pub fn run(
        self,
        control: &Control,
        report: &mut dyn FnMut(Verdict),
    ) -> Result<Summary, EngineError> {
        self.run_uncounted(control, &mut |verdict| {
            control.count(&verdict);
            report(verdict);
        })
    }

    /// The same for whoever goes on asking before a verdict is given, and counts it in `control` then.
    pub(crate) fn run_uncounted(
        self,
        control: &Control,
        report: &mut dyn FnMut(Verdict),
    ) -> Result<Summary, EngineError> {
        let Sweep {
            senders,
            paths,
            table,
            translations,
            post,
            guard,
            shield,
            redirects,
            mut capture,
            watch,
            kernel,
            cpus,
            peers,
            io,
            ..
        } = self;
        let guard_counts = |guard: &Option<Guard>| {
            guard.as_ref().map_or(Ok(GuardCounts::default()), Guard::counts)
        };
        let kernel_before = guard_counts(&guard).map_err(EngineError::system)?;
        let holds = guard.as_ref().map(Guard::holds);
        let interfaces: HashMap<_, _> =
            paths.iter().map(|path| (path.info.id, path.info.interface.clone())).collect();
        let heard = paths.iter().filter(|path| path.receive.is_some());
        let hearings: Vec<_> = heard.map(|path| Hearing::new(path.info.id)).collect();
        let outlook = Outlook::new();
        let finished = AtomicBool::new(false);
        let parkers: Vec<_> = senders.iter().map(|_| Parker::new()).collect();
        let unparkers: Vec<_> = parkers.iter().map(|parker| parker.unparker().clone()).collect();
        let (verdicts, reported) = channel::unbounded();
        let (events_to, events): (Vec<_>, Vec<_>) =
            senders.iter().map(|_| channel::unbounded()).unzip();
        let told = events_to.clone();
        let reader = Parker::new();
        let wanted = &Wanted::new(reader.unparker().clone());
        let begun = Clock.now();
        tracing::info!(peers, "probing begins");
        let file = capture.as_mut().and_then(Capture::take_file);
        let capture = capture.as_ref();
        let last_out = &LastOut {
            senders_left: AtomicUsize::new(senders.len()),
            finished: &finished,
            watch: watch.as_ref().map(|watch| watch.waker()),
        };

        let mut tally = Summary::default();
        let mut transmits: Vec<Vec<_>> = senders.iter().map(|_| Vec::new()).collect();
        let mut faults = Vec::new();
        let mut xdp = Vec::with_capacity(redirects.len());
        let (ended, heard, kernel) = thread::scope(|scope| {
            let _stop = StopOnPanic(control);
            let close_capture = CloseCapture(capture);
            let writer =
                capture.zip(file).map(|(capture, file)| scope.spawn(move || capture.write(file)));
            let (sender_cpus, receiver_cpus) =
                cpus.map_or_else(Default::default, |cpus| (cpus.senders, cpus.receivers));
            let mut listeners = Vec::with_capacity(paths.len());
            let mut hearing = hearings.iter().enumerate();
            for path in paths {
                let Path { info, next_hops, transmits: ends, receive, loopback } = path;
                for (transmits, end) in transmits.iter_mut().zip(ends) {
                    transmits.push(Outlet::new(info.id, info.link, end));
                }
                // Another path on the same interface hears for it.
                let Some(receive) = receive else { continue };
                let Some((index, hearing)) = hearing.next() else { continue };
                let receiver =
                    Receiver::new(info.id, info.link, table.clone(), next_hops, post.clone())
                        .with_translations(translations.clone());
                let listener = Listener {
                    receiver: if loopback { receiver.on_loopback() } else { receiver },
                    receive,
                    hearing,
                    finished: &finished,
                    senders: &unparkers,
                    post: &post,
                    control,
                    capture,
                };
                let place = listener.queue().map_or(index, |queue| queue as usize);
                let cpu = in_turn(&receiver_cpus, place);
                listeners.push(scope.spawn(move || {
                    pin(cpu, control);
                    listener.run()
                }));
            }
            if senders.is_empty() {
                finished.store(true, Ordering::Release);
                last_out.watch.iter().for_each(Waker::wake);
            }
            let watcher = watch.map(|watch| {
                let (post, outlook) = (&post, &outlook);
                scope.spawn(move || {
                    watch.run(control, outlook, &mut |events| {
                        for event in &events {
                            if let HostEvent::Redirect(_, path, next_hop) = event {
                                post.ask(*path, *next_hop);
                            }
                        }
                        deal_out(events, post.share(), &events_to);
                    })
                })
            });
            let kernel = kernel.map(|(kernel, cookies)| {
                let watch = KernelWatch {
                    kernel,
                    cookies,
                    wanted,
                    parker: reader,
                    finished: &finished,
                    control,
                    events: told,
                    senders: &unparkers,
                };
                scope.spawn(move || watch.run())
            });
            let mut drivers = Vec::with_capacity(senders.len());
            for ((((index, sender), transmits), parker), events) in
                senders.into_iter().enumerate().zip(transmits).zip(parkers).zip(events)
            {
                let driver = Driver {
                    index,
                    sender,
                    transmits,
                    post: &post,
                    hearings: &hearings,
                    heard: vec![(0, 0); hearings.len()],
                    events,
                    holds: holds.clone(),
                    shield: shield.clone(),
                    wanted,
                    outlook: &outlook,
                    last_out,
                    parker,
                    control,
                    capture,
                    verdicts: verdicts.clone(),
                    last_turn: Clock.now(),
                    suspended: Clock.suspended(),
                    faults: Vec::new(),
                    is_hold_told: false,
                    sent: 0,
                };
                let cpu = in_turn(&sender_cpus, index);
                drivers.push(scope.spawn(move || {
                    pin(cpu, control);
                    driver.run()
                }));
            }
            drop(verdicts);
            for verdict in reported.iter().flatten() {
                tally.count(&verdict);
                report(verdict);
            }
            // The drivers have let go of their ends: the last verdict is known.
            let ended: Vec<_> = drivers.into_iter().map(|driver| driver.join()).collect();
            wanted.wake();
            // While the listeners close their rings: letting go of the guard waits for the kernel too.
            let counted = guard_counts(&guard);
            drop(guard);
            let heard: Vec<_> = listeners.into_iter().map(|listener| listener.join()).collect();
            match watcher.map(|watcher| watcher.join()) {
                None | Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => faults.push(error.to_string()),
                Some(Err(_)) => faults.push("the thread that watches this host panicked".into()),
            }
            if kernel.is_some_and(|kernel| kernel.join().is_err()) {
                faults.push("the thread that reads this host's connections panicked".into());
            }
            drop(close_capture);
            match writer.map(|writer| writer.join()) {
                None | Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => faults.push(error),
                Some(Err(_)) => faults.push("the thread that writes the capture panicked".into()),
            }
            for redirect in redirects {
                match redirect.counts() {
                    Ok(counts) => xdp.push(by_program(redirect.interface(), counts)),
                    Err(error) => faults.push(error.to_string()),
                }
            }
            (ended, heard, counted)
        });
        let ended: Result<Vec<Ended>, _> = ended.into_iter().collect();
        let ended = ended.map_err(|_| EngineError::System("a sending thread panicked".into()))?;
        let last = ended.iter().map(|ended| ended.at).max().unwrap_or(begun);
        tally.elapsed = last.since(begun);
        let mut received = Vec::with_capacity(heard.len());
        let mut queues: Vec<_> = ended.iter().flat_map(|ended| ended.queues.clone()).collect();
        for (heard, hearing) in heard.into_iter().zip(&hearings) {
            match heard {
                Ok(Heard { counts, queue, error }) => {
                    received.push(counts);
                    queues.extend(queue.map(|counts| (hearing.path, counts)));
                    faults.extend(error.map(|error| error.to_string()));
                }
                Err(_) => faults.push("a receiving thread panicked".into()),
            }
        }
        let mut summary = summarise(tally, &ended, received.into_iter());
        let kernel = kernel.map_err(EngineError::system)?;
        summary.io = io.into();
        summary.peers = peers as u64;
        summary.guard_dropped = kernel.dropped - kernel_before.dropped;
        summary.kernel_rsts = kernel.kernel_rsts - kernel_before.kernel_rsts;
        summary.rx_dropped =
            hearings.iter().map(|hearing| hearing.dropped.load(Ordering::Acquire)).sum();
        for (path, counts) in queues {
            let name = interfaces.get(&path);
            for xdp in xdp.iter_mut().filter(|xdp| Some(&xdp.interface) == name) {
                add_queue(&mut xdp.queues, counts);
            }
        }
        summary.xdp = xdp;
        summary.faults = faults;
        summary.faults.extend(ended.into_iter().flat_map(|ended| ended.faults));
        summary.faults.dedup();
        Ok(summary)
    }
}

fn in_turn(cpus: &[usize], index: usize) -> Option<usize> {
    cpus.get(index.checked_rem(cpus.len())?).copied()
}

/// Keeps the calling thread on `cpu`, if one is given. That it can be done was tried before; a CPU that
/// went offline since is no reason to stop.
fn pin(cpu: Option<usize>, control: &Control) {
    if let Some(Err(error)) = cpu.map(affinity::pin) {
        control.notices.push(format!("{error}; the thread runs wherever there is room"));
    }
}

fn by_program(interface: &str, counts: RedirectCounts) -> XdpCounts {
    let RedirectCounts { redirected, passed, malformed, no_socket } = counts;
    let interface = interface.to_owned();
    XdpCounts { interface, redirected, passed, malformed, no_socket, queues: Vec::new() }
}

/// Adds what one end of a queue has counted to the queue's, which stay in order.
fn add_queue(queues: &mut Vec<QueueCounts>, counts: QueueCounts) {
    match queues.binary_search_by_key(&counts.queue, |queue| queue.queue) {
        Ok(at) => queues[at].add(&counts),
        Err(at) => queues.insert(at, counts),
    }
}

/// Completes the tally of verdicts by what the two halves have counted.
fn summarise(
    tally: Summary,
    senders: &[Ended],
    receivers: impl Iterator<Item = RxCounts>,
) -> Summary {
    let mut summary = tally;
    let mut rejected = [0; Rejection::ALL.len()];
    let (mut repeats, mut asked) = (0, 0);
    for Ended { sender, .. } in senders {
        summary.frames_sent += sender.sent().total();
        for (kind, count) in sender.sent().by_kind() {
            *summary.sent_by_kind.entry(kind).or_default() += count;
        }
        for (total, count) in rejected.iter_mut().zip(sender.rejected()) {
            *total += count;
        }
        repeats += sender.repeats().0;
        asked += sender.repeats().1;
    }
    if asked > 0 {
        summary.loss_estimate = repeats as f64 / asked as f64;
    }
    // Matched by a receiver, and then refused by the sender.
    let disbelieved: u64 = rejected.iter().sum();
    for counts in receivers {
        summary.frames_received += counts.frames;
        summary.replies_matched += counts.matched;
        for (total, count) in rejected.iter_mut().zip(counts.rejected) {
            *total += count;
        }
    }
    summary.replies_matched = summary.replies_matched.saturating_sub(disbelieved);
    summary.replies_rejected = Rejection::ALL
        .iter()
        .zip(rejected)
        .filter(|&(_, count)| count > 0)
        .map(|(reason, count)| (reason.name(), count))
        .collect();
    summary
}

#[cfg(test)]
mod tests;
