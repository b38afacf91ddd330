//! One connection that is probed: what is known of it, and what it does next.
//!
//! A [`Flow`] is a state machine that is given replies and the passing of deadlines, and says what
//! it owes the peer. It belongs to the sender alone; what receivers must know of it is published
//! in the flow table.
//!
//! ```text
//! Unstarted → Resolving → SynSent → Confirming ─(idle > 0)→ Resting → Probing
//!                 └───────────┴──────────┴───────verdict───────┴─────────┴──→ Closing → Closed
//! ```
//!
//! One that was given ([`Origin::Given`]) goes from `Resolving` to `Resting` or `Probing`, and from
//! the verdict to `Lingering`. One of this host's kernel stays there while the kernel is read again.
#![forbid(unsafe_code)]

mod close;
mod handshake;
mod host;
mod local;
mod reply;
mod resume;
#[cfg(test)]
mod tests;

pub use self::handshake::MAX_OPENS;

use self::close::{MAX_FINS, RST_SPACING, RSTS_UNDER_LOSS};
use self::host::HostSide;
use crate::probe::Generation;
use crate::probe::evidence::{Facts, Seen, Sighting};
use crate::probe::given::Origin;
use crate::probe::plan::{EMPTY_PROBE_SPACING, Plan};
use crate::probe::table::{Expect, Past, Phase};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::time::Duration;

/// First retransmission time-out of a SYN or FIN (RFC 6298 §2.1); doubles for SYNs.
const FIRST_RTO: Duration = Duration::from_secs(1);
/// Segments of one question that may be refused, a second apart, before the flow is given up.
const MAX_REFUSED: u8 = 5;
/// ACKs that one flow sends in a second because its peer asks for them: enough for whoever talks, and
/// no echo for whoever floods (in the spirit of RFC 5961 §7). An ACK left out is asked for again.
const ACKS_PER_SECOND: u8 = 4;

/// Where a flow is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nothing was sent yet.
    Unstarted,
    /// Waits for the next hop's MAC address.
    Resolving,
    /// SYN sent.
    SynSent,
    /// SYN-ACK received: the bare ACK and a keepalive are repeated until the peer answers one.
    Confirming,
    /// Confirmed, idle until the keepalive plan begins.
    Resting,
    /// The keepalive plan runs.
    Probing,
    /// The verdict is given; we have sent FIN and wait for the peer's side of the close.
    FinWait,
    /// The peer has sent FIN; ours waits for its acknowledgment.
    LastAck,
    /// RSTs are repeated, because the path has lost segments.
    Resetting,
    /// The verdict on a given flow is there, and answers to its probes may be under way: the guard
    /// must keep them from the kernel, whose RST would kill the connection.
    Lingering,
    /// Nothing is owed any more.
    Closed,
}

/// What a flow sends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SegmentKind {
    /// SYN with our MSS.
    Syn,
    /// Bare ACK at SND.NXT.
    Ack,
    /// Keepalive, SEQ = SND.UNA − 1, no data.
    Probe0,
    /// Keepalive with one octet that the peer already has.
    Probe1,
    /// FIN, acknowledging all that came.
    Fin,
    /// RST at SND.NXT.
    Rst,
}

impl SegmentKind {
    /// Returns the name used in summaries.
    pub const fn name(self) -> &'static str {
        match self {
            SegmentKind::Syn => "syn",
            SegmentKind::Ack => "ack",
            SegmentKind::Probe0 => "probe-0",
            SegmentKind::Probe1 => "probe-1",
            SegmentKind::Fin => "fin",
            SegmentKind::Rst => "rst",
        }
    }
}

/// The set of segments that a flow owes its peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Owed(u8);

impl Owed {
    const SYN: u8 = 1;
    const ACK: u8 = 2;
    const PROBE: u8 = 4;
    const FIN: u8 = 8;
    const RST: u8 = 16;

    fn take(&mut self) -> Option<u8> {
        // Lowest bit first: the order in which the segments make sense to the peer.
        let bit = self.0 & self.0.wrapping_neg();
        self.0 &= !bit;
        (bit != 0).then_some(bit)
    }
}

/// What the owner of a flow has to do after the flow was told of something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing but sending what is owed and waiting for the deadline.
    Continue,
    /// Classify the facts and report; the flow closes itself.
    Verdict,
    /// Start over on another source port.
    Reopen,
    /// A verdict of `down`, `rebooted` or `unreachable` was wrong: classify again and report a correction.
    Correction,
}

/// A connection that is probed.
#[derive(Debug)]
pub struct Flow {
    origin: Origin,
    /// Beside, if this host's kernel owns it.
    host: Option<Box<HostSide>>,
    pub(crate) stage: Stage,
    owed: Owed,
    pub(crate) queued: bool,
    pub(crate) opens: u8,
    syns: u8,
    /// FINs, RSTs or late RSTs sent in the present closing stage.
    closing_tries: u8,
    confirmed: bool,
    peer_window_zero: bool,
    accused: bool,
    /// Segments of the present question that were refused, each for itself.
    refused: u8,
    fin_sent: bool,
    fin_acked: bool,
    /// SYN-ACKs that came after the peer had answered: it does not hold the connection after all.
    unheld: u8,
    /// When the last SYN-ACK came, and the longest wait between two.
    syn_ack_at: Instant,
    syn_ack_gap: Duration,
    /// Segments that had to be repeated: the path loses some.
    pub(crate) repeats: u16,
    /// ACKs owed on demand in the second that began then.
    acks: u8,
    acks_since: Instant,
    pub(crate) finished: bool,
    peer_ttl: Option<u8>,
    pub(crate) local_port: u16,
    /// Probes (or SYNs) sent for the present question.
    pub(crate) asked: u16,
    pub(crate) replies: u16,
    /// Probes and SYNs over the flow's life.
    pub(crate) sent_in_all: u16,
    /// `sent_in_all` and quoted identification at the last ICMP error that counted.
    icmp_at: u16,
    icmp_id: u16,
    pub(crate) generation: Generation,
    pub(crate) iss: SeqNumber,
    irs: SeqNumber,
    pub(crate) rcv_nxt: SeqNumber,
    probe_ack: SeqNumber,
    pub(crate) deadline: Instant,
    /// The deadline last given to the wheel.
    pub(crate) scheduled: Instant,
    opened_at: Instant,
    /// First and last probe of the present question.
    pub(crate) first_asked_at: Instant,
    asked_at: Instant,
    pub(crate) rtt: Option<Duration>,
    pub(crate) facts: Facts,
    pub(crate) evidence: Vec<Sighting>,
}

impl Flow {
    /// Returns a flow that has not started.
    pub fn new() -> Self {
        Flow {
            origin: Origin::Owned,
            host: None,
            stage: Stage::Unstarted,
            owed: Owed::default(),
            queued: false,
            opens: 0,
            syns: 0,
            closing_tries: 0,
            confirmed: false,
            peer_window_zero: false,
            accused: false,
            refused: 0,
            fin_sent: false,
            fin_acked: false,
            unheld: 0,
            syn_ack_at: Instant::ZERO,
            syn_ack_gap: Duration::ZERO,
            repeats: 0,
            acks: 0,
            acks_since: Instant::ZERO,
            finished: false,
            peer_ttl: None,
            local_port: 0,
            asked: 0,
            replies: 0,
            sent_in_all: 0,
            icmp_at: 0,
            icmp_id: 0,
            generation: Generation::default(),
            iss: SeqNumber(0),
            irs: SeqNumber(0),
            rcv_nxt: SeqNumber(0),
            probe_ack: SeqNumber(0),
            deadline: Instant::FAR_FUTURE,
            scheduled: Instant::FAR_FUTURE,
            opened_at: Instant::ZERO,
            first_asked_at: Instant::ZERO,
            asked_at: Instant::ZERO,
            rtt: None,
            facts: Facts::default(),
            evidence: Vec::new(),
        }
    }

    /// SND.UNA: octets and SYN that the peer has acknowledged, as far as we sent any.
    pub fn snd_una(&self) -> SeqNumber {
        self.iss + 1
    }

    /// SND.NXT.
    pub fn snd_nxt(&self) -> SeqNumber {
        self.iss + 1 + u32::from(self.fin_sent)
    }

    /// Says whether the verdict is given.
    pub fn is_judged(&self) -> bool {
        matches!(
            self.stage,
            Stage::FinWait | Stage::LastAck | Stage::Resetting | Stage::Lingering | Stage::Closed
        )
    }

    /// Says whether a segment is owed.
    pub fn owes(&self) -> bool {
        self.owed != Owed::default()
    }

    /// Returns what receivers must know to judge a reply.
    pub fn expect(&self) -> Expect {
        Expect {
            phase: match self.stage {
                // An answer to our SYN may come after the verdict.
                Stage::Unstarted | Stage::Resolving | Stage::SynSent | Stage::Closed
                    if !self.knows_peer() =>
                {
                    Phase::SynSent
                }
                Stage::Resetting | Stage::Lingering | Stage::Closed => Phase::Closed,
                _ => Phase::Open,
            },
            snd_una: self.snd_una(),
            snd_nxt: self.host.as_ref().map_or(self.snd_nxt(), |host| host.snd_nxt()),
            rcv_nxt: self.rcv_nxt,
            past: Past::between(self.irs, self.rcv_nxt),
            probe_ack: self.probe_ack,
            // A RST that answers one of the probes overturns `down`, however late it comes.
            probe_outstanding: self.is_asking() || self.accused,
            given: !self.origin.is_owned(),
        }
    }

    fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Confirming | Stage::Probing) && self.asked > 0
    }

    /// Takes the next owed segment, counting it as sent at `now`, and sets the deadline after it.
    pub fn next_segment(&mut self, now: Instant, plan: &Plan) -> Option<SegmentKind> {
        match self.owed.take()? {
            Owed::SYN => {
                if self.syns == 0 {
                    self.opened_at = now;
                }
                let rto = FIRST_RTO.saturating_mul(1u32 << self.syns.min(30));
                self.syns = self.syns.saturating_add(1);
                self.count_probe(now);
                // Nobody answers at once: one that we have held back ourselves until the end is
                // given time too.
                let least = now + FIRST_RTO.min(plan.connect_timeout);
                let end = self.opened_at + plan.connect_timeout;
                self.deadline = (now + rto).min(end.max(least));
                Some(SegmentKind::Syn)
            }
            Owed::ACK => Some(SegmentKind::Ack),
            Owed::PROBE => {
                let one =
                    self.confirmed && !self.peer_window_zero && plan.probe_carries_data(self.asked);
                self.probe_ack = match &mut self.host {
                    Some(host) => host.acknowledge(self.asked, now, plan),
                    None => self.rcv_nxt,
                };
                self.count_probe(now);
                let spacing = plan.keepalive.interval;
                let spacing = if one { spacing } else { spacing.max(EMPTY_PROBE_SPACING) };
                self.deadline = now + spacing;
                Some(if one { SegmentKind::Probe1 } else { SegmentKind::Probe0 })
            }
            Owed::FIN => {
                self.fin_sent = true;
                self.closing_tries = self.closing_tries.saturating_add(1);
                self.deadline = now + FIRST_RTO;
                Some(SegmentKind::Fin)
            }
            _ => {
                self.closing_tries = self.closing_tries.saturating_add(1);
                let again = self.stage == Stage::Resetting && self.closing_tries < RSTS_UNDER_LOSS;
                if again {
                    self.deadline = now + RST_SPACING;
                } else {
                    self.stage = Stage::Closed;
                    self.asked_at = now;
                }
                Some(SegmentKind::Rst)
            }
        }
    }

    fn count_probe(&mut self, now: Instant) {
        if self.asked == 0 {
            self.first_asked_at = now;
        }
        self.asked = self.asked.saturating_add(1);
        self.sent_in_all = self.sent_in_all.saturating_add(1);
        self.asked_at = now;
    }

    /// Undoes [`next_segment`](Self::next_segment) for a segment that did not leave: it is owed again.
    pub fn take_back(&mut self, kind: SegmentKind) {
        if self.has_left() {
            return;
        }
        if kind != SegmentKind::Ack {
            self.deadline = Instant::FAR_FUTURE;
        }
        let owed = match kind {
            SegmentKind::Syn => {
                self.syns = self.syns.saturating_sub(1);
                self.uncount_probe();
                Owed::SYN
            }
            SegmentKind::Ack => Owed::ACK,
            SegmentKind::Probe0 | SegmentKind::Probe1 => {
                self.uncount_probe();
                Owed::PROBE
            }
            SegmentKind::Fin => {
                self.closing_tries = self.closing_tries.saturating_sub(1);
                self.fin_sent &= self.closing_tries > 0;
                Owed::FIN
            }
            SegmentKind::Rst => {
                self.closing_tries = self.closing_tries.saturating_sub(1);
                Owed::RST
            }
        };
        self.owe(owed);
    }

    /// Takes back a segment that was refused for what it is, at `now`: it is owed again a while later,
    /// but not for ever, and silence proves nothing meanwhile.
    pub fn refuse(&mut self, kind: SegmentKind, now: Instant) -> Step {
        if self.has_left() {
            return Step::Continue;
        }
        self.take_back(kind);
        self.refused = self.refused.saturating_add(1);
        let was_question =
            matches!(kind, SegmentKind::Syn | SegmentKind::Probe0 | SegmentKind::Probe1);
        if was_question && self.asked > 0 {
            self.repeats = self.repeats.saturating_sub(1);
        }
        if !self.facts.observer && !self.is_judged() {
            self.facts.observer = true;
            self.note_local(Seen::NotSent, now);
        }
        if self.refused > MAX_REFUSED {
            self.owed = Owed::default();
            if self.is_judged() {
                self.stage = Stage::Closed;
                return Step::Continue;
            }
            return self.exhausted();
        }
        if kind == SegmentKind::Ack {
            // A keepalive acknowledges as well, and the peer repeats what we do not.
            self.owed.0 &= !Owed::ACK;
            return Step::Continue;
        }
        self.owed = Owed::default();
        self.deadline = now + FIRST_RTO;
        if self.stage == Stage::Closed {
            self.stage = Stage::Resetting;
        }
        Step::Continue
    }

    /// Lets a time that our own side was held up not count against the peer.
    pub fn excuse(&mut self, held_up: Duration) {
        if self.stage == Stage::SynSent && self.syns > 0 {
            self.opened_at = self.opened_at + held_up;
        }
    }

    fn uncount_probe(&mut self) {
        self.asked = self.asked.saturating_sub(1);
        self.sent_in_all = self.sent_in_all.saturating_sub(1);
        // When an earlier one was sent is no longer known: there is no round-trip time of it.
        self.asked_at = Instant::ZERO;
    }

    /// Forgets the answers to earlier questions.
    fn ask_anew(&mut self) {
        self.refused = 0;
        self.facts = Facts::default();
        self.asked = 0;
        self.replies = 0;
        self.evidence.clear();
    }

    /// Says whether the whole plan has gone by unanswered once the deadline passes.
    pub fn ends_in_silence(&self, plan: &Plan) -> bool {
        match self.stage {
            Stage::SynSent => self.deadline >= self.opened_at + plan.connect_timeout,
            Stage::Confirming | Stage::Probing => {
                let probes = self.host.as_ref().map(|host| host.probes(plan));
                self.asked >= probes.unwrap_or(plan.keepalive.count)
            }
            _ => false,
        }
    }

    /// Lets the deadline pass.
    pub fn expire(&mut self, plan: &Plan) -> Step {
        let is_over = self.ends_in_silence(plan);
        // Not `now`: it may be later than what the receivers have heard.
        let due = std::mem::replace(&mut self.deadline, Instant::FAR_FUTURE);
        match self.stage {
            _ if self.host.is_some() && !self.is_judged() => self.expire_host(due),
            _ if is_over => self.exhausted(),
            Stage::SynSent => self.owe_again(Owed::SYN),
            Stage::Confirming | Stage::Probing => self.owe_again(self.keepalive()),
            Stage::Resting => {
                self.confirmed |= self.is_held(due);
                self.stage = Stage::Probing;
                self.ask_anew();
                self.owe(self.keepalive())
            }
            Stage::FinWait if self.fin_acked && self.closing_tries < MAX_FINS => {
                self.closing_tries += 1;
                self.deadline = due + FIRST_RTO;
                Step::Continue
            }
            Stage::FinWait | Stage::LastAck if self.closing_tries < MAX_FINS => {
                self.owe_again(Owed::FIN)
            }
            Stage::FinWait | Stage::LastAck => {
                self.stage = Stage::Closed;
                self.owe(Owed::RST)
            }
            Stage::Resetting => self.owe(Owed::RST),
            Stage::Lingering => {
                self.stage = Stage::Closed;
                Step::Continue
            }
            Stage::Unstarted | Stage::Resolving | Stage::Closed => Step::Continue,
        }
    }

    /// Until the handshake is confirmed, the bare ACK goes before each keepalive.
    fn keepalive(&self) -> u8 {
        if self.confirmed { Owed::PROBE } else { Owed::ACK | Owed::PROBE }
    }

    fn owe(&mut self, bits: u8) -> Step {
        self.owed.0 |= match self.origin {
            Origin::Owned => bits,
            // The one place where answers to a given flow's peer are held back.
            Origin::Given { .. } => bits & Owed::PROBE,
        };
        Step::Continue
    }

    /// Owes the ACK that a segment of the peer's asks for, unless it asks too often.
    fn owe_ack(&mut self, at: Instant) -> Step {
        if self.owed.0 & Owed::ACK != 0 {
            return Step::Continue;
        }
        if at.since(self.acks_since) >= Duration::from_secs(1) {
            self.acks_since = at;
            self.acks = 0;
        }
        if self.acks == ACKS_PER_SECOND {
            return Step::Continue;
        }
        self.acks += 1;
        self.owe(Owed::ACK)
    }

    fn owe_again(&mut self, bits: u8) -> Step {
        // What was refused each time has not been asked yet, and what is owed already is sent once.
        let is_owed = self.owed.0 & bits & !Owed::ACK != 0;
        if !is_owed && (self.asked > 0 || bits == Owed::FIN) {
            self.repeats = self.repeats.saturating_add(1);
        }
        self.owe(bits)
    }

    fn exhausted(&mut self) -> Step {
        self.facts.exhausted = true;
        Step::Verdict
    }

    /// Says whether what is sent does not get out, or no answer to what the owner has sent gets in: not
    /// the peer's fault if our own side is cut off.
    pub(crate) fn is_held_up(&self) -> bool {
        let last = self.evidence.last().map(|last| last.kind);
        match last {
            Some(Seen::NotSent) => self.facts.observer,
            Some(Seen::InFlight(_)) => self.facts.unprobeable,
            _ => false,
        }
    }

    /// Has nothing said of the peer unless it shows life: our own side was sick, by `kind`.
    pub(crate) fn blame_observer(&mut self, kind: Seen, now: Instant) {
        (self.facts.exhausted, self.facts.observer) = (true, true);
        self.facts.unprobeable = false;
        if self.evidence.last().is_none_or(|last| last.kind != kind) {
            self.note_local(kind, now);
        }
    }

    /// Adds a sighting that no frame brought.
    pub fn note_local(&mut self, kind: Seen, now: Instant) {
        let at = self.since_first_asked(now);
        let sighting = Sighting { kind, at, ttl: None, seg_seq: None, seg_ack: None, from: None };
        self.evidence.push(sighting);
    }

    fn since_first_asked(&self, at: Instant) -> Duration {
        if self.asked == 0 { Duration::ZERO } else { at.since(self.first_asked_at) }
    }

    /// Returns the SEG.ACK of a segment that is sent now.
    pub(crate) fn seg_ack(&self, kind: SegmentKind) -> SeqNumber {
        match kind {
            SegmentKind::Probe0 | SegmentKind::Probe1 => self.probe_ack,
            _ => self.rcv_nxt,
        }
    }

    /// RST and FIN know RCV.NXT only once the peer has said its initial sequence number.
    pub(crate) fn knows_peer(&self) -> bool {
        self.peer_ttl.is_some() || !self.origin.is_owned()
    }
}

impl Default for Flow {
    fn default() -> Self {
        Flow::new()
    }
}
