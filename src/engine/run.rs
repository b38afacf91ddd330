//! The running sweep: its threads and their loops.

use super::capture::Capture;
use super::{Control, EngineError, Path, Sweep};
use crate::io::guard::{Guard, GuardCounts};
use crate::io::{IoError, Receive, Transmit, Unsent};
use crate::probe::Slot;
use crate::probe::evidence::{Seen, Verdict};
use crate::probe::matcher::Rejection;
use crate::probe::receiver::{Post, Receiver, RxCounts};
use crate::probe::sender::{Due, Interruption, Poll, Sender};
use crate::report::Summary;
use crate::time::{Clock, Instant};
use crate::wire::LinkType;
use crossbeam::channel;
use crossbeam::sync::{Parker, Unparker};
use std::collections::VecDeque;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Replies taken in before frames are sent again, and frames sent before replies are looked at.
const TURN: usize = 256;
/// The longest the sender sleeps: how soon it notices a stop.
const LONGEST_NAP: Duration = Duration::from_millis(20);
/// The sender's nap while a deadline has passed that the receivers have not heard up to yet.
const HEARING_NAP: Duration = Duration::from_millis(1);
/// How long a receiver waits for a frame before it says again up to when it has heard everything.
const LISTEN: Duration = Duration::from_millis(2);
/// How long every transmission may fail before the sweep is given up.
const TX_PATIENCE: Duration = Duration::from_secs(5);

/// What the sender must know of a path's receiver before it believes silence.
#[derive(Debug, Default)]
struct Hearing {
    /// Every frame that came before this instant (ns) is in the queue by now.
    complete_until: AtomicU64,
    dropped: AtomicU64,
    /// How often the interface went down.
    outages: AtomicU64,
    failed: AtomicBool,
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
        let Sweep { senders, paths, table, post, guard, capture, peers, io, .. } = self;
        let guard_counts = |guard: &Option<Guard>| {
            guard.as_ref().map_or(Ok(GuardCounts::default()), Guard::counts)
        };
        let kernel_before = guard_counts(&guard).map_err(EngineError::system)?;
        let hearings: Vec<Hearing> = paths.iter().map(|_| Hearing::default()).collect();
        let finished = AtomicBool::new(false);
        let parkers: Vec<_> = senders.iter().map(|_| Parker::new()).collect();
        let unparkers: Vec<_> = parkers.iter().map(|parker| parker.unparker().clone()).collect();
        let (verdicts, reported) = channel::unbounded();
        let begun = Clock.now();
        tracing::info!(peers, "probing begins");
        let capture_ref = capture.as_ref();

        let mut tally = Summary::default();
        let mut transmits: Vec<Vec<_>> = senders.iter().map(|_| Vec::new()).collect();
        let (ended, counts, kernel) = thread::scope(|scope| {
            let mut listeners = Vec::with_capacity(paths.len());
            for (path, hearing) in paths.into_iter().zip(&hearings) {
                let Path { info, next_hops, transmits: ends, receive, loopback } = path;
                for (transmits, end) in transmits.iter_mut().zip(ends) {
                    transmits.push(Outlet { end, link: info.link, batch: VecDeque::new() });
                }
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
                    capture: capture_ref,
                };
                listeners.push(scope.spawn(move || listener.run()));
            }
            let mut drivers = Vec::with_capacity(senders.len());
            for (((index, sender), transmits), parker) in
                senders.into_iter().enumerate().zip(transmits).zip(parkers)
            {
                let driver = Driver {
                    index,
                    sender,
                    transmits,
                    post: &post,
                    hearings: &hearings,
                    parker,
                    control,
                    capture: capture_ref,
                    verdicts: verdicts.clone(),
                    tx_failing_since: None,
                    tx_error: None,
                    dropped: 0,
                    outages: 0,
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
            tally.elapsed = Clock.now().since(begun);
            let ended: Vec<_> = drivers.into_iter().map(|driver| driver.join()).collect();
            finished.store(true, Ordering::Release);
            // While the listeners close their rings: letting go of the guard waits for the kernel too.
            let kernel = guard_counts(&guard);
            drop(guard);
            let counts: Vec<_> = listeners.into_iter().map(|listener| listener.join()).collect();
            (ended, counts, kernel)
        });
        let ended: Result<Vec<Ended>, _> = ended.into_iter().collect();
        let ended = ended.map_err(|_| EngineError::System("a sending thread panicked".into()))?;
        let (counts, rx_errors): (Vec<_>, Vec<_>) = counts.into_iter().flatten().unzip();
        let mut summary = summarise(tally, &ended, counts.into_iter());
        let kernel = kernel.map_err(EngineError::system)?;
        summary.io = io.into();
        summary.peers = peers as u64;
        summary.guard_dropped = kernel.dropped - kernel_before.dropped;
        summary.kernel_rsts = kernel.kernel_rsts - kernel_before.kernel_rsts;
        summary.rx_dropped =
            hearings.iter().map(|hearing| hearing.dropped.load(Ordering::Acquire)).sum();
        if let Some(capture) = capture {
            summary.faults.extend(capture.finish().err());
        }
        let tx_errors = ended.into_iter().filter_map(|ended| ended.tx_error);
        let errors = tx_errors.chain(rx_errors.into_iter().flatten());
        summary.faults.extend(errors.map(|error| error.to_string()));
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

/// Drives one sending half.
struct Driver<'a> {
    index: usize,
    sender: Sender,
    transmits: Vec<Outlet>,
    post: &'a Post,
    hearings: &'a [Hearing],
    parker: Parker,
    control: &'a Control,
    capture: Option<&'a Capture>,
    verdicts: channel::Sender<Vec<Verdict>>,
    tx_failing_since: Option<Instant>,
    tx_error: Option<IoError>,
    dropped: u64,
    outages: u64,
    sent: u64,
}

/// A path's sending end, and which flow each frame of its batch belongs to.
struct Outlet {
    end: Box<dyn Transmit>,
    link: LinkType,
    batch: VecDeque<Option<Slot>>,
}

struct Ended {
    sender: Sender,
    tx_error: Option<IoError>,
}

impl Driver<'_> {
    fn run(mut self) -> Ended {
        let mut stopping = false;
        loop {
            let heard_until = self.hear();
            let now = Clock.now();
            if !stopping && self.control.stop.load(Ordering::Relaxed) {
                stopping = true;
                self.sender.interrupt(now, Interruption::Wanted);
            }
            if !stopping && self.has_given_up(now) {
                stopping = true;
                self.sender.interrupt(now, Interruption::PathFailed);
            }
            if self.control.hurry.load(Ordering::Relaxed) {
                self.sender.hurry(now);
            }
            self.sender.advance(now, heard_until);
            let stopped = self.transmit(now);
            self.report();
            match stopped {
                Some(Poll::Done) => break,
                // An interrupted sweep whose frames no longer leave has nothing to wait for.
                _ if stopping && self.tx_failing_since.is_some() => break,
                Some(until) => self.rest(until),
                None => {}
            }
        }
        // What still comes for this sender must not hold up the receivers.
        self.post.close(self.index);
        Ended { sender: self.sender, tx_error: self.tx_error }
    }

    /// Takes in what the receivers have heard, and returns up to when that is everything.
    fn hear(&mut self) -> Instant {
        // First the instant, then the queue: every frame before the instant is then taken in.
        let heard_until = self
            .hearings
            .iter()
            .map(|hearing| hearing.complete_until.load(Ordering::Acquire))
            .min()
            .map_or(Instant::FAR_FUTURE, Instant::from_nanos);
        let dropped =
            self.hearings.iter().map(|hearing| hearing.dropped.load(Ordering::Acquire)).sum();
        let now = Clock.now();
        if dropped > self.dropped {
            self.dropped = dropped;
            self.sender.note_trouble(Seen::ObserverDrops, now);
        }
        let outages =
            self.hearings.iter().map(|hearing| hearing.outages.load(Ordering::Acquire)).sum();
        let failed = self.hearings.iter().any(|hearing| hearing.failed.load(Ordering::Acquire));
        if failed || outages > self.outages {
            self.outages = outages;
            self.sender.note_trouble(Seen::ObserverFault, now);
        }
        // All that is there now; what comes meanwhile has its turn after the next frames.
        for _ in 0..self.post.waiting(self.index) {
            let Some(heard) = self.post.pop(self.index) else { break };
            self.sender.handle_heard(heard, now);
        }
        heard_until
    }

    /// Sends what is due, up to a turn's worth; returns why it stopped before, if it did.
    fn transmit(&mut self, now: Instant) -> Option<Poll> {
        let mut stopped = None;
        for _ in 0..TURN {
            match self.sender.poll_transmit(now) {
                Poll::Transmit(due) => self.put(&due, now),
                other => {
                    stopped = Some(other);
                    break;
                }
            }
        }
        for index in 0..self.transmits.len() {
            self.flush(index, now);
        }
        let sent = self.sender.sent().total();
        self.control.sent.fetch_add(sent - self.sent, Ordering::Relaxed);
        self.sent = sent;
        stopped
    }

    /// Adds one frame to its path's batch.
    fn put(&mut self, due: &Due, now: Instant) {
        let index = usize::from(due.path.0);
        if self.transmits[index].end.reserve().is_none() {
            self.flush(index, now);
        }
        let Outlet { end, link, batch } = &mut self.transmits[index];
        // There is room after a flush, whether it succeeded or not.
        let Some(buf) = end.reserve() else { return };
        match self.sender.emit(due, buf) {
            Ok(len) => {
                if let Some(capture) = self.capture {
                    capture.frame(now, *link, &buf[..len]);
                }
                end.submit(len);
                batch.push_back(due.slot);
            }
            Err(error) => {
                tracing::error!(%error, "frame not crafted");
                self.sender.handle_unsent(due.slot, now);
            }
        }
    }

    fn flush(&mut self, index: usize, now: Instant) {
        let Outlet { end, batch, .. } = &mut self.transmits[index];
        while !batch.is_empty() {
            match end.flush() {
                Ok(_) => {
                    self.tx_failing_since = None;
                    batch.clear();
                }
                Err(Unsent { sent, refused, error }) => {
                    tracing::warn!(%error, refused, "frames not sent");
                    batch.drain(..sent.min(batch.len()));
                    // At least one, so that this ends whatever the path claims.
                    let refused = refused.max(1).min(batch.len());
                    batch
                        .drain(..refused)
                        .for_each(|slot| self.sender.handle_unsent(slot, Clock.now()));
                    self.tx_failing_since.get_or_insert(now);
                    self.tx_error = Some(error);
                }
            }
        }
    }

    fn has_given_up(&self, now: Instant) -> bool {
        self.tx_failing_since.is_some_and(|since| now.since(since) > TX_PATIENCE)
    }

    fn report(&mut self) {
        // Together, since each message may have to wake the caller's thread.
        let verdicts: Vec<_> = iter::from_fn(|| self.sender.poll_verdict()).collect();
        if !verdicts.is_empty() {
            // Fails only if the caller's thread is gone, and then nobody wants them.
            let _ = self.verdicts.send(verdicts);
        }
    }

    fn rest(&self, until: Poll) {
        if self.post.waiting(self.index) > 0 {
            return;
        }
        let now = Clock.now();
        let nap = match until {
            Poll::Pace(at) => at.since(now),
            // Already past: the receivers have not heard up to it yet.
            Poll::Wait(at) if at <= now => HEARING_NAP,
            Poll::Wait(at) => at.since(now),
            Poll::Transmit(_) | Poll::Done => Duration::ZERO,
        };
        if !nap.is_zero() {
            self.parker.park_timeout(nap.min(LONGEST_NAP));
        }
    }
}

/// Drives the receiving half of one path.
struct Listener<'a> {
    receiver: Receiver,
    receive: Box<dyn Receive>,
    hearing: &'a Hearing,
    finished: &'a AtomicBool,
    senders: &'a [Unparker],
    post: &'a Post,
    control: &'a Control,
    capture: Option<&'a Capture>,
}

impl Listener<'_> {
    fn run(mut self) -> (RxCounts, Option<IoError>) {
        while !self.finished.load(Ordering::Acquire) {
            let Err(error) = self.listen() else { continue };
            tracing::warn!(%error, "replies not received");
            // Told once; frames come again when the interface does.
            if error.source.raw_os_error() == Some(libc::ENETDOWN) {
                self.hearing.outages.fetch_add(1, Ordering::Release);
                continue;
            }
            self.hearing.failed.store(true, Ordering::Release);
            self.hearing.complete_until.store(u64::MAX, Ordering::Release);
            return (*self.receiver.counts(), Some(error));
        }
        (*self.receiver.counts(), None)
    }

    fn listen(&mut self) -> Result<(), IoError> {
        let Listener { receiver, receive, finished, senders, capture, .. } = self;
        let link = receiver.link();
        let before = receiver.counts().matched;
        let received = receive.receive(LISTEN, &mut |frame| {
            if let Some(capture) = capture {
                capture.frame(frame.at, link, frame.bytes);
            }
            let mut pending = receiver.handle_frame(frame);
            // A sender is behind: wait for it rather than lose what was heard. The ring holds
            // what comes meanwhile, and says so if it cannot.
            while let Err(heard) = pending {
                if finished.load(Ordering::Acquire) {
                    break;
                }
                senders.iter().for_each(Unparker::unpark);
                thread::yield_now();
                pending = receiver.hand_on(heard);
            }
        })?;
        // Drops before the instant: who believes the silence up to it must know of them.
        let stats = receive.stats()?;
        self.hearing.dropped.store(stats.dropped, Ordering::Release);
        self.hearing.complete_until.store(received.complete_until.as_nanos(), Ordering::Release);
        let matched = receiver.counts().matched - before;
        if matched > 0 {
            self.control.replies.fetch_add(matched, Ordering::Relaxed);
            for (index, sender) in senders.iter().enumerate() {
                if self.post.waiting(index) > 0 {
                    sender.unpark();
                }
            }
        }
        Ok(())
    }
}
