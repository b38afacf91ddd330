//! The running sweep: its threads and their loops.

mod driver;
mod listener;

use super::capture::Capture;
use super::host::{KernelWatch, Wanted};
use super::watch::{HostEvent, Outlook, deal_out};
use super::{Control, EngineError, Path, Sweep};
use crate::io::guard::{Guard, GuardCounts};
use crate::io::watch::Waker;
use crate::probe::evidence::Verdict;
use crate::probe::matcher::Rejection;
use crate::probe::receiver::{Receiver, RxCounts};
use crate::report::Summary;
use crate::time::Clock;
use crossbeam::channel;
use crossbeam::sync::Parker;
use driver::{Driver, Ended, Outlet};
use listener::{Hearing, Listener};
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
        let Sweep {
            senders,
            paths,
            table,
            post,
            guard,
            redirects,
            mut capture,
            watch,
            kernel,
            peers,
            io,
            ..
        } = self;
        let guard_counts = |guard: &Option<Guard>| {
            guard.as_ref().map_or(Ok(GuardCounts::default()), Guard::counts)
        };
        let kernel_before = guard_counts(&guard).map_err(EngineError::system)?;
        let holds = guard.as_ref().map(Guard::holds);
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
        let (ended, counts, kernel) = thread::scope(|scope| {
            let _stop = StopOnPanic(control);
            let close_capture = CloseCapture(capture);
            let writer =
                capture.zip(file).map(|(capture, file)| scope.spawn(move || capture.write(file)));
            let mut listeners = Vec::with_capacity(paths.len());
            let mut hearing = hearings.iter();
            for path in paths {
                let Path { info, next_hops, transmits: ends, receive, loopback } = path;
                for (transmits, end) in transmits.iter_mut().zip(ends) {
                    transmits.push(Outlet::new(info.id, info.link, end));
                }
                let Some((receive, hearing)) = receive.zip(hearing.next()) else { continue };
                let receiver =
                    Receiver::new(info.id, info.link, table.clone(), next_hops, post.clone());
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
                listeners.push(scope.spawn(move || listener.run()));
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
                drivers.push(scope.spawn(move || driver.run()));
            }
            drop(verdicts);
            for verdict in reported.iter().flatten() {
                tally.count(&verdict);
                control.states[verdict.state as usize]
                    .store(tally.states[verdict.state as usize], Ordering::Relaxed);
                report(verdict);
            }
            // The drivers have let go of their ends: the last verdict is known.
            let ended: Vec<_> = drivers.into_iter().map(|driver| driver.join()).collect();
            wanted.wake();
            // While the listeners close their rings: letting go of the guard waits for the kernel too.
            let counted = guard_counts(&guard);
            drop(guard);
            let counts: Vec<_> = listeners.into_iter().map(|listener| listener.join()).collect();
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
                tracing::info!(counts = ?redirect.counts(), "XDP program of {}", redirect.interface());
            }
            (ended, counts, counted)
        });
        let ended: Result<Vec<Ended>, _> = ended.into_iter().collect();
        let ended = ended.map_err(|_| EngineError::System("a sending thread panicked".into()))?;
        let last = ended.iter().map(|ended| ended.at).max().unwrap_or(begun);
        tally.elapsed = last.since(begun);
        let mut received = Vec::with_capacity(counts.len());
        for count in counts {
            match count {
                Ok((counts, error)) => {
                    received.push(counts);
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
        summary.faults = faults;
        summary.faults.extend(ended.into_iter().flat_map(|ended| ended.faults));
        summary.faults.dedup();
        Ok(summary)
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
