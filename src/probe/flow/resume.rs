//! A flow that was given: taken up as it is, probed, and left as it was.
#![forbid(unsafe_code)]

use super::host::HostSide;
use super::{Flow, Owed, Stage, Step};
use crate::probe::given::{Given, Origin};
use crate::probe::matcher::Reply;
use crate::probe::plan::Plan;
use crate::time::Instant;
use crate::wire::Timestamps;
use std::time::Duration;

/// How long answers to the probes of a given flow may be under way after the last of them. Where
/// keepsweep ends, the guard does: the kernel then resets what it does not know, and takes a reset for
/// what it knows. So long TCP has waited where it had not measured the round trip yet (RFC 1122
/// §4.2.3.1), and who has pressed Ctrl-C will wait, too.
pub const LINGER: Duration = Duration::from_secs(3);

impl Flow {
    /// Returns a flow that somebody else has opened. It waits until it is [taken up](Self::take_up).
    pub fn given(given: &Given) -> Self {
        let flow = Flow {
            origin: Origin::Given { wnd: given.wnd, clock: given.clock, tos: 0 },
            opens: 1,
            confirmed: true,
            local_port: given.local.port(),
            // As if it had only just been opened: one number before the first octet.
            iss: given.snd_una - 1,
            irs: given.rcv_nxt - 1,
            rcv_nxt: given.rcv_nxt,
            ..Flow::new()
        };
        let Some(host) = &given.host else { return flow };
        let mut flow = Flow { host: Some(Box::new(HostSide::new(host))), ..flow };
        flow.number(&host.latest);
        flow
    }

    /// Says who opened it.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Begins the rest, or the keepalive plan if there is none.
    pub fn take_up(&mut self, now: Instant, plan: &Plan) -> Step {
        self.ask_anew();
        if self.is_host() {
            return self.take_up_host(now, plan);
        }
        if plan.keepalive.idle.is_zero() {
            self.stage = Stage::Probing;
            self.owe(Owed::PROBE);
        } else {
            self.stage = Stage::Resting;
            self.deadline = now + plan.keepalive.idle;
        }
        Step::Continue
    }

    /// Ends the probing without a word to the peer.
    pub(super) fn leave(&mut self) {
        self.owed = Owed::default();
        self.deadline = Instant::FAR_FUTURE;
        // With a round-trip time there was an answer that can only be to the last probe.
        let all_is_in = self.asked == 0 || self.rtt.is_some() || self.facts.reset;
        let all_is_in = match &self.host {
            Some(host) => self.is_host_over(host, all_is_in),
            None => all_is_in,
        };
        self.stage = if all_is_in { Stage::Closed } else { Stage::Lingering };
        if !all_is_in {
            // Of a probe that was taken back only the first is known, and the last exact one.
            let exact_at = self.host.as_ref().map_or(Instant::ZERO, |host| host.exact_at);
            self.deadline = self.asked_at.max(self.first_asked_at).max(exact_at) + LINGER;
        }
    }

    /// Says whether the flow was given and the verdict is there: no probe is owed any more, nor is one
    /// owed again that was handed out before it and did not leave.
    pub(super) fn has_left(&self) -> bool {
        !self.origin.is_owned() && self.is_judged()
    }

    /// Says whether `reply` echoes the TSval of the last probe (RFC 7323 §4.1).
    pub(super) fn is_echoed_by(&self, reply: &Reply) -> bool {
        let sent = self.origin.timestamps(self.asked_at);
        sent.is_some_and(|Timestamps { tsval, .. }| reply.tsecr == Some(tsval))
    }
}
