//! What our own kernel answers to a segment that it could not deliver, or that a firewall of this
//! host would not let out: never the peer's word, and never what a router says.
#![forbid(unsafe_code)]

use super::{Flow, Step};
use crate::probe::classify::ICMP_PROBES_APART;
use crate::probe::evidence::{Seen, Sighting};
use crate::probe::matcher::{Reply, ReplyKind};
use crate::wire::IcmpKind;

impl Flow {
    /// Takes in a reply that came from this host itself on a flow to another one.
    ///
    /// Host unreachable (IPv6: address unreachable) is what Linux says when the next hop does not
    /// answer ARP or ND (net/ipv4/route.c, ipv4_link_failure); all else accuses our own side.
    pub fn handle_local(&mut self, reply: &Reply, has_neighbours: bool) -> Step {
        if self.is_judged() || self.still_means(reply).is_none() {
            return Step::Continue;
        }
        let is_unresolved =
            has_neighbours && matches!(reply.kind, ReplyKind::Icmp { kind: IcmpKind::Host, .. });
        if !is_unresolved {
            if !self.facts.observer {
                self.facts.observer = true;
                self.note_own(Seen::ObserverFault, reply);
            }
            return Step::Continue;
        }
        // All that waited for the neighbour is given up at once: that is one report.
        if self.icmp_at != self.sent_in_all {
            self.icmp_at = self.sent_in_all;
            self.facts.neighbour_reports = self.facts.neighbour_reports.saturating_add(1);
            self.note_own(Seen::NeighbourFailed, reply);
        }
        if self.facts.neighbour_reports >= ICMP_PROBES_APART {
            Step::Verdict
        } else {
            Step::Continue
        }
    }

    fn note_own(&mut self, kind: Seen, reply: &Reply) {
        let at = self.since_first_asked(reply.at);
        let from = match reply.kind {
            ReplyKind::Icmp { from, .. } => Some(from),
            _ => None,
        };
        self.evidence.push(Sighting { kind, at, ttl: None, seg_seq: None, seg_ack: None, from });
    }
}
