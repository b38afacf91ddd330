//! The running sweep: its threads and their loops.

use super::capture::Capture;
use super::watch::{HostEvent, Outlook, deal_out};
use super::{Control, EngineError, Path, Sweep};
use crate::io::guard::{Guard, GuardCounts};
use crate::io::watch::Waker;
use crate::io::{IoError, PathId, Receive, Transmit, Unsent};
use crate::probe::evidence::{Seen, Verdict};
use crate::probe::health::Scope;
use crate::probe::matcher::Rejection;
use crate::probe::receiver::{Post, Receiver, RxCounts};
use crate::probe::sender::{Due, Interruption, Poll, Receipt, Refusal, Sender};
use crate::report::Summary;
use crate::time::{Clock, Instant};
use crate::wire::LinkType;
use crossbeam::channel;
use crossbeam::sync::{Parker, Unparker};
use std::collections::VecDeque;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
/// How long a path may refuse frames before its peers are given up.
const TX_PATIENCE: Duration = Duration::from_secs(5);
/// A sender that did nothing for so long was stopped, with all that should have been heard.
const STARVED: Duration = Duration::from_secs(1);
/// Between two readings a suspended time that differs by more is one.
const SUSPENDED: Duration = Duration::from_millis(10);

/// What the sender must know of a path's receiver before it believes silence.
#[derive(Debug)]
struct Hearing {
    path: PathId,
    /// Every frame that came before this instant (ns) is in the queue by now.
    complete_until: AtomicU64,
    dropped: AtomicU64,
    /// How often the interface went down.
    outages: AtomicU64,
    failed: AtomicBool,
}

impl Hearing {
    fn new(path: PathId) -> Self {
        Hearing {
            path,
            complete_until: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            outages: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }
}

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

/// On the way out of a sender, however it ends: what still comes for it must not hold up the
/// receivers.
struct Leave<'a> {
    index: usize,
    post: &'a Post,
    last_out: &'a LastOut<'a>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.post.close(self.index);
        self.last_out.leave();
    }
}

/// On the way out of a receiver, however it ends: nobody waits to hear more.
struct LastHeard<'a>(&'a Hearing);

impl Drop for LastHeard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
        // Release: whoever sees it also sees that the path failed.
        self.0.complete_until.store(u64::MAX, Ordering::Release);
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
            peers,
            io,
            ..
        } = self;
        let guard_counts = |guard: &Option<Guard>| {
            guard.as_ref().map_or(Ok(GuardCounts::default()), Guard::counts)
        };
        let kernel_before = guard_counts(&guard).map_err(EngineError::system)?;
        let hearings: Vec<_> = paths.iter().map(|path| Hearing::new(path.info.id)).collect();
        let outlook = Outlook::new();
        let finished = AtomicBool::new(false);
        let parkers: Vec<_> = senders.iter().map(|_| Parker::new()).collect();
        let unparkers: Vec<_> = parkers.iter().map(|parker| parker.unparker().clone()).collect();
        let (verdicts, reported) = channel::unbounded();
        let (events_to, events): (Vec<_>, Vec<_>) =
            senders.iter().map(|_| channel::unbounded()).unzip();
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
            for (path, hearing) in paths.into_iter().zip(&hearings) {
                let Path { info, next_hops, transmits: ends, receive, loopback } = path;
                for (transmits, end) in transmits.iter_mut().zip(ends) {
                    transmits.push(Outlet::new(info.id, info.link, end));
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
                    outlook: &outlook,
                    last_out,
                    parker,
                    control,
                    capture,
                    verdicts: verdicts.clone(),
                    last_turn: Clock.now(),
                    suspended: Clock.suspended(),
                    faults: Vec::new(),
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
            // While the listeners close their rings: letting go of the guard waits for the kernel too.
            let kernel = guard_counts(&guard);
            drop(guard);
            let counts: Vec<_> = listeners.into_iter().map(|listener| listener.join()).collect();
            match watcher.map(|watcher| watcher.join()) {
                None | Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => faults.push(error.to_string()),
                Some(Err(_)) => faults.push("the thread that watches this host panicked".into()),
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
            (ended, counts, kernel)
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

/// Drives one sending half.
struct Driver<'a> {
    index: usize,
    sender: Sender,
    transmits: Vec<Outlet>,
    post: &'a Post,
    hearings: &'a [Hearing],
    /// Drops and outages of each hearing that the sender knows of.
    heard: Vec<(u64, u64)>,
    events: channel::Receiver<Vec<HostEvent>>,
    outlook: &'a Outlook,
    last_out: &'a LastOut<'a>,
    parker: Parker,
    control: &'a Control,
    capture: Option<&'a Capture>,
    verdicts: channel::Sender<Vec<Verdict>>,
    last_turn: Instant,
    /// How long the machine had been suspended at the last turn.
    suspended: Duration,
    faults: Vec<String>,
    sent: u64,
}

/// A path's sending end, and what its batch consists of.
struct Outlet {
    id: PathId,
    link: LinkType,
    end: Box<dyn Transmit>,
    batch: VecDeque<Passenger>,
    /// Since when the path refuses frames, and why.
    failing: Option<(Instant, IoError)>,
    /// Why it refuses them has cost more than time: how long silence proves nothing after it takes
    /// frames again.
    blind_for: Option<Duration>,
    is_congestion_told: bool,
    is_given_up: bool,
    /// Frames refused each for itself, and why the last one was.
    refused: u64,
    refusal: Option<IoError>,
}

/// A frame on its way out.
struct Passenger {
    receipt: Receipt,
    /// For the capture, which is to hold only what left.
    frame: Option<Box<[u8]>>,
}

impl Outlet {
    fn new(id: PathId, link: LinkType, end: Box<dyn Transmit>) -> Self {
        Outlet {
            id,
            link,
            end,
            batch: VecDeque::new(),
            failing: None,
            blind_for: None,
            is_congestion_told: false,
            is_given_up: false,
            refused: 0,
            refusal: None,
        }
    }
}

struct Ended {
    sender: Sender,
    at: Instant,
    faults: Vec<String>,
}

impl Driver<'_> {
    fn run(mut self) -> Ended {
        let _stop = StopOnPanic(self.control);
        let _leave = Leave { index: self.index, post: self.post, last_out: self.last_out };
        let mut stopping = false;
        loop {
            let heard_until = self.hear();
            let now = Clock.now();
            if !stopping && self.control.stop.load(Ordering::Relaxed) {
                stopping = true;
                self.sender.interrupt(now, Interruption::Wanted);
            }
            let hurry = self.control.hurry.load(Ordering::Relaxed);
            if hurry {
                self.sender.hurry(now);
            }
            self.give_up_paths(if hurry { Duration::ZERO } else { TX_PATIENCE }, now);
            self.sender.advance(now, heard_until);
            let stopped = self.transmit(now);
            self.report();
            match stopped {
                Some(Poll::Done) => break,
                Some(until) => self.rest(until),
                None => {}
            }
        }
        for Outlet { refused, refusal, .. } in &self.transmits {
            if let Some(error) = refusal {
                self.faults.push(format!("{error}; {refused} frames were refused so"));
            }
        }
        Ended { sender: self.sender, at: Clock.now(), faults: self.faults }
    }

    /// Takes in what the receivers have heard and what happened to the host, and returns up to when
    /// that is everything.
    fn hear(&mut self) -> Instant {
        // First the instants, then the queues: everything before the instants is then taken in.
        let heard_until = self
            .hearings
            .iter()
            .map(|hearing| hearing.complete_until.load(Ordering::Acquire))
            .chain([self.outlook.settled_until()])
            .min()
            .map_or(Instant::FAR_FUTURE, Instant::from_nanos);
        let now = Clock.now();
        self.note_standstill(now);
        for (hearing, known) in self.hearings.iter().zip(&mut self.heard) {
            let scope = Scope::Path(hearing.path);
            let dropped = hearing.dropped.load(Ordering::Acquire);
            let outages = hearing.outages.load(Ordering::Acquire);
            if dropped > known.0 {
                self.sender.note_trouble(scope, Seen::ObserverDrops, now);
            }
            if outages > known.1 {
                self.sender.note_trouble(scope, Seen::ObserverFault, now);
            }
            if hearing.failed.load(Ordering::Acquire) {
                self.sender.note_trouble(scope, Seen::ObserverFault, Instant::FAR_FUTURE);
            }
            *known = (dropped, outages);
        }
        if self.outlook.is_blind() {
            let always = Instant::FAR_FUTURE;
            self.sender.note_trouble(Scope::Everywhere, Seen::ObserverFault, always);
        }
        for event in self.events.try_iter().flatten() {
            match event {
                HostEvent::Trouble(scope, kind, until) => {
                    self.sender.note_trouble(scope, kind, until);
                }
                HostEvent::Redirect(slot, _, next_hop) => self.sender.redirect(slot, next_hop),
                HostEvent::Neighbour(path, next_hop, is_resolved, at) => {
                    self.sender.note_kernel_hop(path, next_hop, is_resolved, at);
                }
                HostEvent::Looked(at) => self.sender.note_look(at),
            }
        }
        // All that is there now; what comes meanwhile has its turn after the next frames.
        for _ in 0..self.post.waiting(self.index) {
            let Some(heard) = self.post.pop(self.index) else { break };
            self.sender.handle_heard(heard, now);
        }
        while let Some(moved) = self.sender.poll_moved() {
            self.control.notices.push(format!(
                "{}: has another MAC address now, {} instead of {}; frames follow it",
                moved.next_hop, moved.to, moved.from
            ));
        }
        heard_until
    }

    /// Frames get lost while nobody takes them: this process was stopped, or the machine.
    fn note_standstill(&mut self, now: Instant) {
        let stood = now.since(self.last_turn);
        let suspended = Clock.suspended();
        let slept = suspended.saturating_sub(self.suspended);
        if stood > STARVED || slept > SUSPENDED {
            self.sender.note_trouble(Scope::Everywhere, Seen::ObserverFault, now);
            if self.index == 0 {
                let seconds = (stood + slept).as_secs_f64();
                self.control.notices.push(format!(
                    "stood still for {seconds:.1} s (stopped, suspended or starved of CPU): silence \
                     up to now proves nothing"
                ));
            }
        }
        (self.last_turn, self.suspended) = (now, suspended);
    }

    /// Sends what is due, up to a turn's worth; returns why it stopped before, if it did.
    fn transmit(&mut self, now: Instant) -> Option<Poll> {
        let mut stopped = None;
        let mut put = false;
        for _ in 0..TURN {
            match self.sender.poll_transmit(now) {
                Poll::Transmit(due) => {
                    put = true;
                    self.put(&due, now);
                }
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
        // Not less than before: what did not leave was counted since.
        self.control.sent.fetch_add(sent.saturating_sub(self.sent), Ordering::Relaxed);
        self.sent = sent;
        // The last frames may have been refused since: then their flows are not closed yet.
        stopped.filter(|stopped| !put || *stopped != Poll::Done)
    }

    /// Adds one frame to its path's batch.
    fn put(&mut self, due: &Due, now: Instant) {
        let index = usize::from(due.path.0);
        if self.transmits[index].end.reserve().is_none() {
            self.flush(index, now);
        }
        let Outlet { end, batch, .. } = &mut self.transmits[index];
        let receipt = due.receipt();
        // There is room after a flush, whether it succeeded or not.
        let Some(buf) = end.reserve() else {
            return self.sender.handle_unsent(receipt, Refusal::Frame, now);
        };
        match self.sender.emit(due, buf) {
            Ok(len) => {
                let frame = self.capture.map(|_| Box::from(&buf[..len]));
                end.submit(len);
                batch.push_back(Passenger { receipt, frame });
            }
            Err(error) => {
                tracing::error!(%error, "frame not crafted");
                self.sender.handle_unsent(receipt, Refusal::Frame, now);
            }
        }
    }

    fn flush(&mut self, index: usize, now: Instant) {
        while !self.transmits[index].batch.is_empty() {
            match self.transmits[index].end.flush() {
                Ok(_) => self.passed(index, usize::MAX, now),
                Err(Unsent { sent: 0, refused, error }) => self.refused(index, refused, error),
                Err(Unsent { sent, refused, error }) => {
                    self.passed(index, sent, now);
                    self.refused(index, refused, error);
                }
            }
        }
    }

    /// The first `sent` frames of a batch have left.
    fn passed(&mut self, index: usize, sent: usize, now: Instant) {
        let Outlet { id, link, batch, failing, blind_for, is_given_up, .. } =
            &mut self.transmits[index];
        for passenger in batch.drain(..sent.min(batch.len())) {
            if let (Some(capture), Some(frame)) = (self.capture, passenger.frame) {
                capture.frame(now, *link, frame);
            }
        }
        let Some((since, error)) = failing.take() else { return };
        *is_given_up = false;
        let now = Clock.now();
        // Else it was a mere shortage, and nothing that was to be heard is lost.
        if let Some(span) = blind_for.take() {
            self.sender.note_trouble(Scope::Path(*id), Seen::NotSent, now + span);
        }
        self.sender.handle_path_open(*id, now);
        let lasted = now.since(since).as_secs_f64();
        tracing::info!(%error, "frames are sent again after {lasted:.1} s");
    }

    /// The first `refused` frames of a batch were not taken.
    fn refused(&mut self, index: usize, refused: usize, error: IoError) {
        let outlet = &mut self.transmits[index];
        let now = Clock.now();
        // At least one, so that flushing ends whatever the path claims.
        let refused = refused.max(1).min(outlet.batch.len());
        let unsent = Unsent { sent: 0, refused, error };
        // The kernel has its own reasons to have no room for a packet that it routes, such as a full
        // table of neighbours: they are not those of others.
        let (is_of_path, is_congested) = match outlet.link {
            LinkType::Ethernet => (unsent.is_of_path(), false),
            LinkType::Ip => (unsent.error.is_of_link(), unsent.error.is_of_buffer()),
        };
        let is_of_path = is_of_path || is_congested;
        let refusal = if is_of_path { Refusal::Path } else { Refusal::Frame };
        for passenger in outlet.batch.drain(..refused) {
            self.sender.handle_unsent(passenger.receipt, refusal, now);
        }
        // What stands in a full buffer counts as sent, and leaves when it does.
        let blind_for = is_congested.then_some(TX_PATIENCE);
        let blind_for = blind_for.or(unsent.error.is_of_link().then_some(Duration::ZERO));
        if is_congested && !outlet.is_congestion_told {
            outlet.is_congestion_told = true;
            self.control.notices.push(format!(
                "{}: frames are to leave faster than they do, and wait in this host: silence \
                 meanwhile proves nothing; use a lower --rate",
                unsent.error.object
            ));
        }
        if blind_for.is_some() {
            outlet.blind_for = outlet.blind_for.max(blind_for);
            let scope = Scope::Path(outlet.id);
            self.sender.note_trouble(scope, Seen::NotSent, Instant::FAR_FUTURE);
        }
        match (refusal, &mut outlet.failing) {
            (Refusal::Path, Some((_, latest))) => *latest = unsent.error,
            (Refusal::Path, none) => {
                tracing::info!(error = %unsent.error, refused, "frames not sent");
                *none = Some((now, unsent.error));
            }
            (Refusal::Frame, _) => {
                outlet.refused += refused as u64;
                outlet.refusal = Some(unsent.error);
            }
        }
    }

    /// Gives up the paths that have refused frames for `patience`.
    fn give_up_paths(&mut self, patience: Duration, now: Instant) {
        for Outlet { id, failing, is_given_up, .. } in &mut self.transmits {
            if let Some((since, error)) = failing
                && !*is_given_up
                && now.since(*since) >= patience
            {
                *is_given_up = true;
                let seconds = now.since(*since).as_secs();
                self.faults.push(format!(
                    "{error}; no frame left for {seconds} s: peers behind it that had not answered \
                     are undetermined"
                ));
                self.sender.fail_path(*id, now);
            }
        }
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
        let _last_heard = LastHeard(self.hearing);
        while !self.finished.load(Ordering::Acquire) {
            let Err(error) = self.listen() else { continue };
            tracing::warn!(%error, "replies not received");
            // Told once; frames come again when the interface does.
            if error.source.raw_os_error() == Some(libc::ENETDOWN) {
                self.hearing.outages.fetch_add(1, Ordering::Release);
                continue;
            }
            self.hearing.failed.store(true, Ordering::Release);
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
                capture.received(link, frame);
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

#[cfg(test)]
mod tests;
