//! One sender and its ends of the paths: hears, sends, and deals with what did not leave.

use super::listener::Hearing;
use super::{LastOut, StopOnPanic};
use crate::engine::Control;
use crate::engine::capture::Capture;
use crate::engine::host::Wanted;
use crate::engine::watch::{HostEvent, Outlook};
use crate::io::guard::Holds;
use crate::io::shield::Shield;
use crate::io::{IoError, PathId, QueueCounts, Transmit, Unsent};
use crate::probe::evidence::{Seen, Verdict};
use crate::probe::health::Scope;
use crate::probe::host::Wire;
use crate::probe::receiver::Post;
use crate::probe::sender::{Due, HoldRequest, Interruption, Poll, Receipt, Refusal, Sender};
use crate::time::{Clock, Instant};
use crate::wire::LinkType;
use crossbeam::channel;
use crossbeam::sync::Parker;
use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Replies taken in before frames are sent again, and frames sent before replies are looked at.
const TURN: usize = 256;
/// The longest the sender sleeps: how soon it notices a stop.
const LONGEST_NAP: Duration = Duration::from_millis(20);
/// The sender's nap while a deadline has passed that the receivers have not heard up to yet.
const HEARING_NAP: Duration = Duration::from_millis(1);
/// How long a path may refuse frames before its peers are given up.
const TX_PATIENCE: Duration = Duration::from_secs(5);
/// A sender that did nothing for so long was stopped, with all that should have been heard.
const STARVED: Duration = Duration::from_secs(1);
/// Between two readings a suspended time that differs by more is one.
const SUSPENDED: Duration = Duration::from_millis(10);

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

/// Drives one sending half.
pub(super) struct Driver<'a> {
    pub index: usize,
    pub sender: Sender,
    pub transmits: Vec<Outlet>,
    pub post: &'a Post,
    pub hearings: &'a [Hearing],
    /// Drops and outages of each hearing that the sender knows of.
    pub heard: Vec<(u64, u64)>,
    pub events: channel::Receiver<Vec<HostEvent>>,
    /// What holds back resets from the kernel's connections, and what reads those.
    pub holds: Option<Arc<Holds>>,
    pub shield: Option<Arc<Shield>>,
    pub wanted: &'a Wanted,
    pub outlook: &'a Outlook,
    pub last_out: &'a LastOut<'a>,
    pub parker: Parker,
    pub control: &'a Control,
    pub capture: Option<&'a Capture>,
    pub verdicts: channel::Sender<Vec<Verdict>>,
    pub last_turn: Instant,
    /// How long the machine had been suspended at the last turn.
    pub suspended: Duration,
    pub faults: Vec<String>,
    /// Whether it was told that the guard does not hold.
    pub is_hold_told: bool,
    pub sent: u64,
}

/// A path's sending end, and what its batch consists of.
pub(super) struct Outlet {
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
    pub fn new(id: PathId, link: LinkType, end: Box<dyn Transmit>) -> Self {
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

pub(super) struct Ended {
    pub sender: Sender,
    pub at: Instant,
    /// By path, where one was sent through a queue.
    pub queues: Vec<(PathId, QueueCounts)>,
    pub faults: Vec<String>,
}

impl Driver<'_> {
    pub fn run(mut self) -> Ended {
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
            self.hold(now);
            let stopped = self.transmit(now);
            if let Some(since) = self.sender.wants_reading() {
                self.wanted.ask(since);
            }
            self.report();
            match stopped {
                Some(Poll::Done) => {
                    self.hold(now);
                    break;
                }
                Some(until) => self.rest(until),
                None => {}
            }
        }
        let mut queues = Vec::new();
        for Outlet { id, end, refused, refusal, .. } in &self.transmits {
            match end.queue_counts() {
                Ok(counts) => queues.extend(counts.map(|counts| (*id, counts))),
                Err(error) => self.faults.push(error.to_string()),
            }
            if let Some(error) = refusal {
                self.faults.push(format!("{error}; {refused} frames were refused so"));
            }
        }
        Ended { sender: self.sender, at: Clock.now(), queues, faults: self.faults }
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
        let mut read = Vec::new();
        for event in self.events.try_iter().flatten() {
            match event {
                HostEvent::Read(readings) => read.push(readings),
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
        // After what was heard on the wire, which may already tell that the peer lives.
        for readings in read {
            self.sender.handle_readings(&readings, now);
        }
        while let Some(moved) = self.sender.poll_moved() {
            self.control.notices.push(format!(
                "{}: has another MAC address now, {} instead of {}; frames follow it",
                moved.next_hop, moved.to, moved.from
            ));
        }
        heard_until
    }

    /// Holds back and lets go the resets of connections as the sender wants it: on their way in, and at
    /// the socket.
    fn hold(&mut self, now: Instant) {
        while let Some(HoldRequest { slot, local, peer, wire, cookie, hold }) =
            self.sender.poll_hold()
        {
            let is_shielded = match &self.shield {
                Some(shield) if hold => shield.hold(cookie).is_ok(),
                Some(shield) => {
                    shield.let_go(cookie);
                    true
                }
                None => false,
            };
            let Some(holds) = &self.holds else {
                self.sender.handle_hold(slot, false, now);
                continue;
            };
            let done = match (hold, wire) {
                (true, Wire::Other(wire)) => holds.hold(local, peer, Some((wire.local, wire.peer))),
                (true, _) => holds.hold(local, peer, None),
                (false, _) => holds.let_go(local, peer),
            };
            if let Err(error) = &done
                && !std::mem::replace(&mut self.is_hold_told, true)
            {
                self.control.notices.push(error.to_string());
            }
            if hold {
                let is_held = is_shielded || (done.is_ok() && wire != Wire::Unknown);
                self.sender.handle_hold(slot, is_held, now);
            }
        }
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
