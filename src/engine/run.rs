//! The running sweep: its threads and their loops.

use super::capture::Capture;
use super::{Control, EngineError, Path, Sweep};
use crate::io::{IoError, Receive, Transmit};
use crate::probe::evidence::{Seen, Verdict};
use crate::probe::matcher::Rejection;
use crate::probe::receiver::{Heard, Receiver, RxCounts};
use crate::probe::sender::{Poll, Sender};
use crate::report::Summary;
use crate::time::{Clock, Instant};
use crossbeam::channel;
use crossbeam::queue::ArrayQueue;
use crossbeam::sync::{Parker, Unparker};
use std::sync::Arc;
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
        let Sweep { sender, paths, table, heard, guard, capture, peers } = self;
        let kernel_before = guard.counts().map_err(EngineError::system)?;
        let hearings: Vec<Hearing> = paths.iter().map(|_| Hearing::default()).collect();
        let finished = AtomicBool::new(false);
        let parker = Parker::new();
        let (verdicts, reported) = channel::unbounded();
        let begun = Clock.now();
        let capture_ref = capture.as_ref();

        let mut transmits = Vec::with_capacity(paths.len());
        let mut tally = Summary::default();
        let (ended, counts) = thread::scope(|scope| {
            let mut listeners = Vec::with_capacity(paths.len());
            for (path, hearing) in paths.into_iter().zip(&hearings) {
                let Path { info, transmit, receive } = path;
                transmits.push(transmit);
                let listener = Listener {
                    receiver: Receiver::new(info.id, info.link, table.clone(), heard.clone()),
                    receive,
                    hearing,
                    finished: &finished,
                    sender: parker.unparker().clone(),
                    control,
                    capture: capture_ref,
                };
                listeners.push(scope.spawn(move || listener.run()));
            }
            let driver = Driver {
                sender,
                transmits,
                heard,
                hearings: &hearings,
                parker,
                control,
                capture: capture_ref,
                verdicts,
                tx_failing_since: None,
                tx_error: None,
                dropped: 0,
            };
            let driver = scope.spawn(move || driver.run());
            for verdict in &reported {
                tally.count(&verdict);
                for (shown, count) in control.states.iter().zip(tally.states) {
                    shown.store(count, Ordering::Relaxed);
                }
                report(verdict);
            }
            let ended = driver.join();
            finished.store(true, Ordering::Release);
            let counts: Vec<_> = listeners.into_iter().map(|listener| listener.join()).collect();
            (ended, counts)
        });
        let elapsed = Clock.now().since(begun);
        let ended = ended.map_err(|_| EngineError::System("the sending thread panicked".into()))?;
        let mut summary = summarise(tally, &ended.sender, counts.into_iter().flatten());
        let kernel = guard.counts().map_err(EngineError::system)?;
        summary.io = "packet".into();
        summary.peers = peers as u64;
        summary.elapsed = elapsed;
        summary.guard_dropped = kernel.dropped - kernel_before.dropped;
        summary.kernel_rsts = kernel.kernel_rsts - kernel_before.kernel_rsts;
        summary.rx_dropped =
            hearings.iter().map(|hearing| hearing.dropped.load(Ordering::Acquire)).sum();
        if let Some(capture) = capture {
            summary.faults.extend(capture.finish().err());
        }
        summary.faults.extend(ended.tx_error.map(|error| error.to_string()));
        Ok(summary)
    }
}

/// Completes the tally of verdicts by what the two halves have counted.
fn summarise(
    tally: Summary,
    sender: &Sender,
    receivers: impl Iterator<Item = RxCounts>,
) -> Summary {
    let mut summary = Summary {
        frames_sent: sender.sent().total(),
        sent_by_kind: sender.sent().by_kind(),
        loss_estimate: sender.loss_estimate(),
        ..tally
    };
    let disbelieved: u64 = sender.rejected().iter().sum();
    let mut rejected = *sender.rejected();
    for counts in receivers {
        summary.frames_received += counts.frames;
        summary.replies_matched += counts.matched;
        for (total, count) in rejected.iter_mut().zip(counts.rejected) {
            *total += count;
        }
    }
    // Matched by a receiver, and then refused by the sender.
    summary.replies_matched = summary.replies_matched.saturating_sub(disbelieved);
    summary.replies_rejected = Rejection::ALL
        .iter()
        .zip(rejected)
        .filter(|&(_, count)| count > 0)
        .map(|(reason, count)| (reason.name(), count))
        .collect();
    summary
}

/// Drives the sending half.
struct Driver<'a> {
    sender: Sender,
    transmits: Vec<Box<dyn Transmit>>,
    heard: Arc<ArrayQueue<Heard>>,
    hearings: &'a [Hearing],
    parker: Parker,
    control: &'a Control,
    capture: Option<&'a Capture>,
    verdicts: channel::Sender<Verdict>,
    tx_failing_since: Option<Instant>,
    tx_error: Option<IoError>,
    dropped: u64,
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
            if !stopping && (self.control.stop.load(Ordering::Relaxed) || self.has_given_up(now)) {
                stopping = true;
                self.sender.interrupt(now);
            }
            self.sender.advance(now, heard_until);
            let wait = self.transmit(now);
            self.report();
            match wait {
                // An interrupted sweep whose frames no longer leave has nothing to wait for.
                None => break,
                Some(_) if stopping && self.tx_failing_since.is_some() => break,
                Some(until) => self.rest(until, heard_until),
            }
        }
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
        let dropped = self.hearings.iter().map(|hearing| hearing.dropped.load(Ordering::Acquire)).sum();
        let now = Clock.now();
        if dropped > self.dropped {
            self.dropped = dropped;
            self.sender.note_trouble(Seen::ObserverDrops, now);
        }
        if self.hearings.iter().any(|hearing| hearing.failed.load(Ordering::Acquire)) {
            self.sender.note_trouble(Seen::ObserverFault, now);
        }
        // All that is there now; what comes meanwhile has its turn after the next frames.
        for _ in 0..self.heard.len() {
            let Some(heard) = self.heard.pop() else { break };
            self.sender.handle_heard(heard, now);
        }
        heard_until
    }

    /// Sends what is due, up to a turn's worth; returns when more will be, `None` after the last.
    fn transmit(&mut self, now: Instant) -> Option<Instant> {
        let mut until = Some(now);
        for _ in 0..TURN {
            let due = match self.sender.poll_transmit(now) {
                Poll::Transmit(due) => due,
                Poll::Wait(at) => {
                    until = Some(at);
                    break;
                }
                Poll::Done => {
                    until = None;
                    break;
                }
            };
            let index = usize::from(due.path.0);
            if self.transmits[index].reserve().is_none() {
                self.flush(index, now);
            }
            let Some(buf) = self.transmits[index].reserve() else { continue };
            match self.sender.emit(&due, buf) {
                Ok(len) => {
                    if let Some(capture) = self.capture {
                        capture.frame(&buf[..len]);
                    }
                    self.transmits[index].submit(len);
                }
                Err(error) => tracing::error!(%error, "frame not sent"),
            }
        }
        for index in 0..self.transmits.len() {
            self.flush(index, now);
        }
        self.control.sent.store(self.sender.sent().total(), Ordering::Relaxed);
        until
    }

    fn flush(&mut self, index: usize, now: Instant) {
        match self.transmits[index].flush() {
            Ok(0) => {}
            Ok(_) => self.tx_failing_since = None,
            Err(error) => {
                // Whatever was in that batch was not asked: silence after it accuses nobody.
                tracing::warn!(%error, "frames not sent");
                self.sender.note_trouble(Seen::ObserverFault, Clock.now());
                self.tx_failing_since.get_or_insert(now);
                self.tx_error = Some(error);
            }
        }
    }

    fn has_given_up(&self, now: Instant) -> bool {
        self.tx_failing_since.is_some_and(|since| now.since(since) > TX_PATIENCE)
    }

    fn report(&mut self) {
        while let Some(verdict) = self.sender.poll_verdict() {
            // Fails only if the caller's thread is gone, and then nobody wants it.
            let _ = self.verdicts.send(verdict);
        }
    }

    fn rest(&self, until: Instant, heard_until: Instant) {
        let now = Clock.now();
        if !self.heard.is_empty() {
            return;
        }
        let nap = match until > now {
            true => until.since(now).min(LONGEST_NAP),
            false if heard_until < until => HEARING_NAP,
            false => return,
        };
        self.parker.park_timeout(nap);
    }
}

/// Drives the receiving half of one path.
struct Listener<'a> {
    receiver: Receiver,
    receive: Box<dyn Receive>,
    hearing: &'a Hearing,
    finished: &'a AtomicBool,
    sender: Unparker,
    control: &'a Control,
    capture: Option<&'a Capture>,
}

impl Listener<'_> {
    fn run(mut self) -> RxCounts {
        while !self.finished.load(Ordering::Acquire) {
            if let Err(error) = self.listen() {
                tracing::warn!(%error, "replies not received");
                self.hearing.failed.store(true, Ordering::Release);
                self.hearing.complete_until.store(u64::MAX, Ordering::Release);
                break;
            }
        }
        *self.receiver.counts()
    }

    fn listen(&mut self) -> Result<(), IoError> {
        let Listener { receiver, receive, finished, sender, capture, .. } = self;
        let before = receiver.counts().matched;
        let received = receive.receive(LISTEN, &mut |frame| {
            if let Some(capture) = capture {
                capture.frame(frame.bytes);
            }
            let mut pending = receiver.handle_frame(frame);
            // The sender is behind: wait for it rather than lose what was heard. The ring holds
            // what comes meanwhile, and says so if it cannot.
            while let Err(heard) = pending {
                if finished.load(Ordering::Acquire) {
                    break;
                }
                sender.unpark();
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
            sender.unpark();
        }
        Ok(())
    }
}
