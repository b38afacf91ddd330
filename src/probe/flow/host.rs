//! A flow that this host's kernel owns: the kernel is asked again before its peer is accused of
//! anything, and before each probe after the first.
//!
//! Probes acknowledge at first what was acknowledged long ago ([`Reading::old_ack`]): the RST of a peer
//! that has forgotten the connection then misses our socket. In the second half of the plan, or where
//! there is nothing old to acknowledge, they acknowledge RCV.NXT, and only while the guard holds that
//! RST back: a firewall that drops what does not fit the connection lets it through.
#![forbid(unsafe_code)]

use super::{Flow, Owed, Stage, Step};
use crate::probe::classify::{State, classify};
use crate::probe::evidence::{Facts, Seen};
use crate::probe::given::Origin;
use crate::probe::host::{Host, Life, Reading, Wire};
use crate::probe::plan::Plan;
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::time::Duration;

/// How long a flow waits for the kernel to be read, or for a hold.
const PATIENCE: Duration = Duration::from_secs(5);
/// A reading that is older says nothing of whether data is in flight.
const FRESH: Duration = Duration::from_millis(500);
/// Data in flight is mostly acknowledged after a round-trip time; else it is looked for each second.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What goes on once the kernel was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum After {
    /// The rest is over: whatever came before counts for nothing.
    Rest,
    /// The next probe, or silence.
    Next,
    /// The wait for an answer, up to this deadline.
    Wait(Instant),
    /// The verdict.
    Verdict,
}

/// Where the hold of the guard on a flow's resets stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hold {
    None,
    Wanted,
    Asked,
    Held,
    Released,
}

/// What a flow of the kernel's has beside all others.
#[derive(Debug)]
pub(super) struct HostSide {
    first: Reading,
    latest: Reading,
    /// The SEG.ACK of the first probes, if they can have one. Only life moves the numbers, and then the
    /// flow is judged: so it stays what it was.
    old_ack: Option<SeqNumber>,
    /// Probes sent that acknowledge RCV.NXT, and when the last of them was.
    exact: u16,
    pub(super) exact_at: Instant,
    hold: Hold,
    /// The ends on the wire by which resets are held, or are to be.
    held: Option<Wire>,
    /// The ends on the wire when the receivers were opened: those that they listen for.
    heard: Wire,
    /// Whether answers may have come with ends on the wire that nobody listens for.
    was_deaf: bool,
    /// A reading is awaited that begins then or later.
    awaits: Option<(Instant, After)>,
    /// Readings that found data in flight.
    looks: u16,
    /// Whether the kernel has nothing more to say before the verdict.
    is_settled: bool,
    is_forced: bool,
}

impl HostSide {
    pub(super) fn new(host: &Host) -> Self {
        HostSide {
            first: host.first,
            latest: host.latest,
            old_ack: host.latest.old_ack(),
            exact: 0,
            exact_at: Instant::ZERO,
            hold: Hold::None,
            held: None,
            heard: host.latest.wire,
            was_deaf: false,
            awaits: None,
            looks: 0,
            is_settled: false,
            is_forced: false,
        }
    }

    pub(super) fn snd_nxt(&self) -> SeqNumber {
        self.latest.snd_nxt
    }

    /// Says whether resets are held, by the ends that packets now have on the wire.
    fn is_held(&self) -> bool {
        self.hold == Hold::Held && self.held == Some(self.latest.wire)
    }

    /// Says whether answers may come with ends that nobody listens for.
    fn is_deaf(&self) -> bool {
        self.latest.wire == Wire::Unknown || self.latest.wire != self.heard
    }

    /// Says whether packets have got other ends on the wire than they had.
    fn is_remapped(&self) -> bool {
        match (self.heard, self.latest.wire) {
            // Nobody knows better, and the RST was heard: with the ends of the socket.
            (Wire::Unknown | Wire::Same, Wire::Unknown | Wire::Same) => false,
            (before, now) => before != now,
        }
    }

    /// How many of the plan's probes acknowledge what is old.
    fn old_probes(&self, plan: &Plan) -> u16 {
        if self.old_ack.is_some() { plan.keepalive.count.div_ceil(2) } else { 0 }
    }

    /// How many probes there are at most: at least one of them acknowledges RCV.NXT.
    pub(super) fn probes(&self, plan: &Plan) -> u16 {
        plan.keepalive.count.max(self.old_probes(plan).saturating_add(1))
    }

    /// Returns the SEG.ACK of the probe after `asked` others, unless it is RCV.NXT.
    fn old_ack(&self, asked: u16, plan: &Plan) -> Option<SeqNumber> {
        self.old_ack.filter(|_| asked < self.old_probes(plan))
    }

    /// Returns the SEG.ACK of the probe after `asked` others, which is sent at `now`.
    pub(super) fn acknowledge(&mut self, asked: u16, now: Instant, plan: &Plan) -> SeqNumber {
        self.old_ack(asked, plan).unwrap_or_else(|| {
            self.exact = self.exact.saturating_add(1);
            self.exact_at = now;
            self.latest.rcv_nxt
        })
    }
}

impl Flow {
    /// Says whether this host's kernel owns the flow.
    pub(crate) fn is_host(&self) -> bool {
        self.host.is_some()
    }

    /// Returns what ends its packets have outside of this host.
    pub(crate) fn wire(&self) -> Wire {
        self.host.as_ref().map_or(Wire::Same, |host| host.latest.wire)
    }

    /// Has the whole plan sent, whatever is in flight and whatever is heard.
    pub(crate) fn force(&mut self) {
        self.host.iter_mut().for_each(|host| host.is_forced = true);
    }

    /// Says whether probes are still to be sent whatever the peer says.
    pub(super) fn is_forced(&self, plan: &Plan) -> bool {
        self.host.as_ref().is_some_and(|host| host.is_forced && self.asked < host.probes(plan))
    }

    /// Begins the rest or the probing; a flow that has shown life already needs none.
    pub(super) fn take_up_host(&mut self, now: Instant, plan: &Plan) -> Step {
        let Some(host) = &self.host else { return Step::Continue };
        let (first, latest) = (host.first, host.latest);
        if !plan.keepalive.idle.is_zero() {
            self.stage = Stage::Resting;
            self.deadline = now + plan.keepalive.idle;
            return Step::Continue;
        }
        self.stage = Stage::Probing;
        match latest.life_since(&first) {
            Some(life) if !self.is_forced(plan) => self.show_life(life),
            _ if now.since(latest.at) > FRESH => self.await_reading(now, After::Next),
            _ => self.go_on(now, plan),
        }
    }

    /// Does what is next, by the newest reading: waits for data in flight, probes, or gives up.
    fn go_on(&mut self, now: Instant, plan: &Plan) -> Step {
        let asked = self.asked;
        let Some(host) = &mut self.host else { return Step::Continue };
        if host.latest.is_in_flight && !host.is_forced {
            host.looks = host.looks.saturating_add(1);
            if host.looks > plan.keepalive.count {
                let retransmits = host.latest.retransmits;
                return self.cannot_be_probed(Seen::InFlight(retransmits));
            }
            let wait = if host.looks == 1 { FIRST_LOOK } else { LOOK_EVERY };
            self.deadline = now + wait;
            return Step::Continue;
        }
        if asked >= host.probes(plan) {
            host.is_settled = true;
            if host.was_deaf || host.is_deaf() {
                let at = host.latest.at;
                self.facts.observer = true;
                self.note_local(Seen::TranslationUnknown, at);
            }
            return self.exhausted();
        }
        if host.old_ack(asked, plan).is_none() && !host.is_held() {
            host.hold = Hold::Wanted;
            self.deadline = now + PATIENCE;
            return Step::Continue;
        }
        self.owe_again(Owed::PROBE)
    }

    /// Lets the deadline pass that stood at `due`.
    pub(super) fn expire_host(&mut self, due: Instant) -> Step {
        let is_resting = self.stage == Stage::Resting;
        let Some(host) = &mut self.host else { return Step::Continue };
        match (host.awaits, host.hold) {
            (Some(_), _) => self.unread(),
            (None, Hold::Wanted | Hold::Asked) => self.not_held(),
            (None, _) if is_resting => {
                self.stage = Stage::Probing;
                self.ask_anew();
                self.await_reading(due, After::Rest)
            }
            (None, _) => self.await_reading(due, After::Next),
        }
    }

    /// Waits for a reading that begins at `since` or later, and probes no more until then.
    fn await_reading(&mut self, since: Instant, after: After) -> Step {
        let Some(host) = &mut self.host else { return Step::Continue };
        let (since, after) = match host.awaits {
            Some((earlier, After::Verdict)) => (earlier.max(since), After::Verdict),
            Some((earlier, _)) => (earlier.max(since), after),
            None => (since, after),
        };
        host.awaits = Some((since, after));
        self.owed = Owed::default();
        self.deadline = since + PATIENCE;
        Step::Continue
    }

    /// Returns since when a reading is awaited, if one is.
    pub(crate) fn awaits_reading(&self) -> Option<Instant> {
        self.host.as_ref()?.awaits.map(|(since, _)| since)
    }

    /// Says at `now` whether the verdict has to wait until the kernel was read.
    pub(crate) fn must_be_read(&mut self, now: Instant) -> bool {
        let is_settled = self.host.as_ref().is_none_or(|host| host.is_settled);
        if is_settled || classify(&self.facts).0 == State::Alive {
            return false;
        }
        self.await_reading(now, After::Verdict);
        true
    }

    /// Lets the verdict be given as it stands.
    pub(crate) fn settle(&mut self) {
        if let Some(host) = &mut self.host {
            host.is_settled = true;
            host.awaits = None;
        }
    }

    /// Takes back what the kernel was not asked about: there is no time to.
    pub(crate) fn leave_unread(&mut self) {
        if self.host.is_some() {
            self.settle();
            self.facts = life_of(&self.facts);
        }
    }

    /// Takes in a hint that the flow has gone on: the kernel knows.
    pub(super) fn look(&mut self, at: Instant) -> Step {
        match self.host.as_ref().map(|host| (host.awaits, host.hold)) {
            Some((None, Hold::None | Hold::Held)) => {
                let after = if self.owes() { After::Next } else { After::Wait(self.deadline) };
                self.await_reading(at, after)
            }
            _ => Step::Continue,
        }
    }

    /// Takes in what the kernel said of the flow in a reading that began at `begun`; `None` if it does
    /// not own it any more.
    pub(crate) fn handle_reading(
        &mut self,
        found: Option<&Reading>,
        begun: Instant,
        plan: &Plan,
    ) -> Step {
        let is_forced = self.is_forced(plan);
        let Some(host) = &mut self.host else { return Step::Continue };
        let Some((_, after)) = host.awaits.filter(|&(since, _)| since <= begun) else {
            return Step::Continue;
        };
        host.awaits = None;
        self.deadline = Instant::FAR_FUTURE;
        let Some(reading) = found else { return self.cannot_be_probed(Seen::SocketGone) };
        host.latest = *reading;
        // Also if it is as it was again: an entry goes with the RST that it was made for.
        let is_elsewhere = matches!(reading.wire, Wire::Other(_)) && reading.wire != host.heard;
        host.was_deaf = is_elsewhere || (host.was_deaf && after != After::Rest);
        self.facts.remapped |= host.is_remapped();
        let is_reset = host.exact > 0 && reading.reset == Some(self.probe_ack);
        if after == After::Rest {
            host.first = *reading;
            host.old_ack = reading.old_ack();
            self.number(reading);
        } else if let Some(life) = reading.life_since(&host.first)
            && !is_forced
        {
            return self.show_life(life);
        }
        if is_reset && !is_forced {
            return self.reset_at_the_socket(begun);
        }
        if let Some(obstacle) = reading.obstacle {
            return self.cannot_be_probed(obstacle);
        }
        match after {
            After::Rest | After::Next => self.go_on(begun, plan),
            After::Wait(deadline) => {
                self.deadline = deadline;
                Step::Continue
            }
            After::Verdict => {
                self.settle();
                Step::Verdict
            }
        }
    }

    /// Takes the numbers of a reading for its own.
    pub(super) fn number(&mut self, reading: &Reading) {
        self.iss = reading.snd_una - 1;
        self.irs = reading.rcv_nxt - 1;
        self.rcv_nxt = reading.rcv_nxt;
        let Reading { wnd, clock, tos, .. } = *reading;
        self.origin = Origin::Given { wnd, clock, tos };
    }

    fn show_life(&mut self, life: Life) -> Step {
        let Some(host) = &self.host else { return Step::Continue };
        let Reading { at, is_peer_window_zero, .. } = host.latest;
        self.facts.zero_window |= is_peer_window_zero;
        let seen = match life {
            Life::Data => {
                self.facts.data = true;
                Seen::KernelData
            }
            Life::Fin => {
                self.facts.closed = true;
                Seen::KernelFin
            }
            Life::Ack => {
                self.facts.ack = true;
                Seen::KernelAck
            }
        };
        self.note_local(seen, at);
        Step::Verdict
    }

    /// An answer has come all the way to the socket that we have not heard on the wire.
    fn reset_at_the_socket(&mut self, at: Instant) -> Step {
        // With ends that are known it would have been heard; unless it was lost on our side.
        self.facts.remapped |= !self.facts.reset;
        self.facts.reset = true;
        self.note_local(Seen::KernelRst, at);
        self.settle();
        Step::Verdict
    }

    fn cannot_be_probed(&mut self, why: Seen) -> Step {
        let at = self.host.as_ref().map_or(Instant::ZERO, |host| host.latest.at);
        self.facts = Facts { unprobeable: true, ..life_of(&self.facts) };
        self.note_local(why, at);
        self.settle();
        Step::Verdict
    }

    /// The kernel was not read in time: nobody is accused.
    fn unread(&mut self) -> Step {
        let deadline = self.asked_at + PATIENCE;
        self.facts = Facts { exhausted: true, observer: true, ..life_of(&self.facts) };
        self.note_local(Seen::NotRead, deadline);
        self.settle();
        Step::Verdict
    }

    /// The guard does not hold the flow's resets: probes that need it are not sent. If it does so later,
    /// it is told to let go.
    fn not_held(&mut self) -> Step {
        let is_unknown = self.wire() == Wire::Unknown;
        let why = if is_unknown { Seen::TranslationUnknown } else { Seen::NotHeld };
        self.facts.observer = true;
        self.note_local(why, self.asked_at);
        self.exhausted()
    }

    /// Returns whether the flow's resets are to be held or let go from now on, if that is news.
    pub(crate) fn take_hold_request(&mut self) -> Option<bool> {
        let is_over = self.stage == Stage::Closed;
        let host = self.host.as_mut()?;
        match host.hold {
            Hold::Wanted if !is_over => {
                host.hold = Hold::Asked;
                host.held = Some(host.latest.wire);
                Some(true)
            }
            // Also if other ends were to be held than are.
            _ if is_over && host.held.take().is_some() => {
                host.hold = Hold::Released;
                Some(false)
            }
            _ => None,
        }
    }

    /// Takes in whether the flow's resets are held from now on.
    pub(crate) fn handle_hold(&mut self, is_held: bool) -> Step {
        let is_judged = self.is_judged();
        let Some(host) = self.host.as_mut().filter(|host| host.hold == Hold::Asked) else {
            return Step::Continue;
        };
        match is_held {
            true => host.hold = Hold::Held,
            false => {
                host.hold = Hold::None;
                host.held = host.held.filter(|_| host.exact > 0);
                if !is_judged && host.awaits.is_none() {
                    return self.not_held();
                }
            }
        }
        if is_judged || host.awaits.is_some() {
            return Step::Continue;
        }
        self.deadline = Instant::FAR_FUTURE;
        self.owe_again(Owed::PROBE)
    }

    /// Says whether nothing more may be on its way that matters once the verdict is given: a reset
    /// that our socket must not see, or an answer that overturns an accusation.
    pub(super) fn is_host_over(&self, host: &HostSide, all_is_in: bool) -> bool {
        let is_alive = classify(&self.facts).0 == State::Alive;
        match host.exact {
            0 => is_alive || !self.accused || all_is_in,
            // It draws one answer, which was none that is held back.
            1 => is_alive && self.rtt.is_some(),
            // A firewall on the way may yet answer one that the peer has not.
            _ => false,
        }
    }
}

/// Keeps the signs of life.
fn life_of(facts: &Facts) -> Facts {
    let Facts { ack, zero_window, data, closed, .. } = *facts;
    Facts { ack, zero_window, data, closed, ..Facts::default() }
}
