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
mod resume;
#[cfg(test)]
mod tests;

pub use self::handshake::MAX_OPENS;

use self::close::{MAX_FINS, RST_SPACING, RSTS_UNDER_LOSS};
use self::handshake::UNHELD;
use self::host::HostSide;
use crate::probe::evidence::{Facts, Seen, Sighting};
use crate::probe::given::Origin;
use crate::probe::plan::{EMPTY_PROBE_SPACING, Plan};
use crate::probe::table::{Expect, Past, Phase};
use crate::probe::{Generation, matcher::Reply, matcher::ReplyKind};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::time::Duration;

/// First retransmission time-out of a SYN or FIN (RFC 6298 §2.1); doubles for SYNs.
const FIRST_RTO: Duration = Duration::from_secs(1);
/// Segments of one question that may be refused, a second apart, before the flow is given up.
const MAX_REFUSED: u8 = 5;
/// Sightings kept for one verdict: a flood must not cost memory.
const MAX_SIGHTINGS: usize = 8;
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
                    Some(host) => host.acknowledge(self.asked, plan),
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

    /// Takes in a reply that the receiver has matched to this flow.
    pub fn handle(&mut self, reply: &Reply, plan: &Plan) -> Step {
        if self.is_judged() {
            return self.handle_late(reply);
        }
        let Some(kind) = self.still_means(reply) else { return Step::Continue };
        let reply = &Reply { kind, ..*reply };
        if kind != ReplyKind::OldConnection {
            self.replies = self.replies.saturating_add(1);
        }
        self.note(self.seen(reply), reply);
        match kind {
            ReplyKind::SynAck => self.handle_syn_ack(reply, plan),
            ReplyKind::Ack => {
                self.handle_segment(reply);
                if reply.wnd == 0 {
                    self.facts.zero_window = true;
                }
                self.facts.ack = true;
                self.handle_life(reply.at, plan)
            }
            ReplyKind::Data { next } => {
                self.handle_segment(reply);
                self.advance_rcv_nxt(next);
                self.facts.data = true;
                self.owe_ack(reply.at);
                self.handle_life(reply.at, plan)
            }
            ReplyKind::Fin { next } => {
                self.handle_segment(reply);
                self.advance_rcv_nxt(next);
                self.facts.closed = true;
                Step::Verdict
            }
            ReplyKind::RstToSyn => {
                self.facts.refused = true;
                Step::Verdict
            }
            ReplyKind::RstToProbe | ReplyKind::Rst if !self.confirmed && self.opens < MAX_OPENS => {
                Step::Reopen
            }
            // It took our SYN and then would not have us, again and again: up, and refusing.
            ReplyKind::RstToProbe if !self.confirmed => {
                self.facts.closed = true;
                Step::Verdict
            }
            ReplyKind::RstToProbe => {
                self.facts.reset = true;
                self.facts.foreign_ttl = self.has_foreign_ttl(reply);
                Step::Verdict
            }
            ReplyKind::Rst => {
                self.facts.closed = true;
                Step::Verdict
            }
            // The peer holds an older connection on this 4-tuple (left by a prober that was
            // killed): it answers SYNs with challenge ACKs, so only another tuple can connect.
            ReplyKind::OldConnection if self.origin.is_owned() && self.opens < MAX_OPENS => {
                Step::Reopen
            }
            ReplyKind::OldConnection if self.is_host() => self.look(reply.at),
            // Every tuple is taken. The SYN is repeated: the leftover may go away.
            ReplyKind::OldConnection => {
                self.facts.taken = true;
                Step::Continue
            }
            ReplyKind::Icmp { kind, quoted_id, .. } => {
                self.facts.icmp = Some(kind);
                // Two routers, or one that repeats itself, may report the same probe.
                let another = quoted_id != Some(self.icmp_id);
                if another && self.icmp_at != self.sent_in_all {
                    self.icmp_at = self.sent_in_all;
                    self.icmp_id = quoted_id.unwrap_or_default();
                    self.facts.icmp_probes = self.facts.icmp_probes.saturating_add(1);
                }
                if self.facts.icmp_probes >= crate::probe::classify::ICMP_PROBES_APART {
                    Step::Verdict
                } else {
                    Step::Continue
                }
            }
        }
    }

    /// Says what a reply means by now: it was matched by what the flow published before the replies
    /// in front of it were heard.
    fn still_means(&self, reply: &Reply) -> Option<ReplyKind> {
        let is_asking = self.is_asking();
        match reply.kind {
            // Nobody has asked yet.
            _ if matches!(self.stage, Stage::Unstarted | Stage::Resolving) => None,
            ReplyKind::OldConnection if self.is_host() => {
                (self.stage == Stage::Probing).then_some(reply.kind)
            }
            ReplyKind::OldConnection if !self.origin.is_owned() => is_asking.then_some(reply.kind),
            // The peer repeats it while it waits for the owner's ACK: it is not silent.
            ReplyKind::SynAck if !self.origin.is_owned() => Some(ReplyKind::Ack),
            ReplyKind::OldConnection if self.stage != Stage::SynSent => None,
            ReplyKind::Icmp { .. } if self.stage != Stage::SynSent && !is_asking => None,
            // SYN or probe has been answered since: the peer closes.
            ReplyKind::RstToSyn if self.stage != Stage::SynSent => self.as_close(reply),
            ReplyKind::RstToProbe if !is_asking => self.as_close(reply),
            kind => Some(kind),
        }
    }

    fn as_close(&self, reply: &Reply) -> Option<ReplyKind> {
        (reply.seg_seq == self.rcv_nxt).then_some(ReplyKind::Rst)
    }

    fn has_foreign_ttl(&self, reply: &Reply) -> bool {
        self.peer_ttl.is_some_and(|ttl| ttl != reply.ttl)
    }

    fn handle_segment(&mut self, reply: &Reply) {
        let is_old = reply.seg_seq.is_before(self.rcv_nxt);
        self.peer_ttl = Some(reply.ttl);
        if !is_old || reply.wnd == 0 {
            self.peer_window_zero = reply.wnd == 0;
        }
        // Karn, unless the answer says which probe it is to; and an answer only: data and keepalives
        // of the peer's come when they like.
        let first = self.asked == 1 && self.asked_at > Instant::ZERO;
        let unambiguous = first || self.is_echoed_by(reply);
        if self.is_asking() && unambiguous && reply.kind == ReplyKind::Ack && !is_old {
            self.rtt = Some(reply.at.since(self.asked_at));
        }
        // The peer's own keepalive stands at RCV.NXT − 1 and wants an ACK.
        if is_old {
            self.owe_ack(reply.at);
        }
    }

    fn advance_rcv_nxt(&mut self, next: SeqNumber) {
        // The owner has not got what came to us: to acknowledge it would be to lose it.
        if self.origin.is_owned() && self.rcv_nxt.is_before(next) {
            self.rcv_nxt = next;
        }
    }

    /// The peer acknowledged something of ours beyond its SYN-ACK, or spoke.
    fn handle_life(&mut self, at: Instant, plan: &Plan) -> Step {
        self.confirmed = self.unheld < UNHELD;
        match self.stage {
            Stage::Probing if self.is_forced(plan) => Step::Continue,
            Stage::Probing => Step::Verdict,
            Stage::Confirming if plan.keepalive.idle.is_zero() => Step::Verdict,
            Stage::Confirming => {
                self.stage = Stage::Resting;
                self.facts = Facts::default();
                // Linux would not answer a second empty probe any sooner.
                self.deadline = at + plan.keepalive.idle.max(EMPTY_PROBE_SPACING);
                self.owed.0 &= !Owed::PROBE;
                Step::Continue
            }
            Stage::Resting => {
                // What came before the rest is over says nothing of what is after it.
                self.facts = Facts::default();
                Step::Continue
            }
            _ => Step::Continue,
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

    fn seen(&self, reply: &Reply) -> Seen {
        match reply.kind {
            ReplyKind::SynAck => Seen::SynAck,
            ReplyKind::Ack if reply.wnd == 0 => Seen::ZeroWindow,
            ReplyKind::Ack | ReplyKind::OldConnection => Seen::Ack,
            ReplyKind::Data { .. } => Seen::Data,
            ReplyKind::Fin { .. } => Seen::Fin,
            ReplyKind::RstToSyn => Seen::RstToSyn,
            ReplyKind::RstToProbe => Seen::RstToProbe,
            ReplyKind::Rst => Seen::Rst,
            ReplyKind::Icmp { kind, icmp_type, code, .. } => Seen::Icmp(kind, icmp_type, code),
        }
    }

    fn note(&mut self, kind: Seen, reply: &Reply) {
        // The last place is kept for what decides: the sighting that ends a flood.
        if self.evidence.len() >= MAX_SIGHTINGS {
            self.evidence.pop();
        }
        let from = match reply.kind {
            ReplyKind::Icmp { from, .. } => Some(from),
            _ => None,
        };
        let relative =
            |number: SeqNumber, base: SeqNumber| SeqNumber(number.0.wrapping_sub(base.0));
        let irs = if reply.kind == ReplyKind::SynAck { reply.seg_seq } else { self.irs };
        self.evidence.push(Sighting {
            kind,
            at: self.since_first_asked(reply.at),
            ttl: Some(reply.ttl),
            seg_seq: from.is_none().then(|| relative(reply.seg_seq, irs)),
            seg_ack: from.is_none().then(|| relative(reply.seg_ack, self.iss)),
            from,
        });
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
