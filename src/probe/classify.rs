//! From evidence to (state, reason): one total function.
#![forbid(unsafe_code)]

use crate::probe::evidence::Facts;
use crate::wire::IcmpKind;
use serde::{Deserialize, Serialize};

/// How many distinct probes must draw an ICMP error before the network is believed over silence
/// that has not lasted yet: the errors are soft (RFC 1122 §4.2.3.9, RFC 5927 §5).
pub const ICMP_PROBES_APART: u8 = 2;

/// Says which state the facts prove, and by what.
///
/// Signs of life weigh most, then what the peer itself said, then the network, then silence;
/// silence while our own side was sick accuses nobody, nor does it when the peer speaks on another
/// connection.
pub fn classify(facts: &Facts) -> (State, Reason) {
    use Reason as R;
    use State as S;
    if facts.closed {
        return (S::Alive, R::ClosedByPeer);
    }
    if facts.refused {
        return (S::Alive, R::Refused);
    }
    if facts.zero_window {
        return (S::Alive, R::ZeroWindow);
    }
    if facts.data {
        return (S::Alive, R::Data);
    }
    if facts.ack {
        return (S::Alive, R::Ack);
    }
    if facts.reset {
        return match (facts.foreign_ttl, facts.remapped) {
            (true, _) => (S::Unreachable, R::PathReset),
            (false, true) => (S::Rebooted, R::ResetOrRebind),
            (false, false) => (S::Rebooted, R::Reset),
        };
    }
    if facts.unprobeable {
        return (S::Undetermined, R::Unprobeable);
    }
    if facts.no_route {
        return (S::Unreachable, R::NoRoute);
    }
    if facts.neighbour_failed || is_without_neighbour(facts) {
        // Our own loss of the ARP reply would look the same.
        return if facts.observer {
            (S::Undetermined, R::Observer)
        } else {
            (S::Unreachable, R::Neighbour)
        };
    }
    let is_silent = facts.exhausted && !facts.observer && !facts.taken;
    if let Some(kind) = facts.icmp
        && (facts.icmp_probes >= ICMP_PROBES_APART || is_silent)
    {
        return (S::Unreachable, icmp_reason(kind));
    }
    match (facts.exhausted, facts.observer) {
        (true, false) if facts.taken => (S::Undetermined, R::Unprobeable),
        (true, false) => (S::Down, R::Silent),
        (true, true) => (S::Undetermined, R::Observer),
        (false, _) => (S::Undetermined, R::Interrupted),
    }
}

/// Our own kernel could not resolve the next hop, probes apart or until silence had lasted.
const fn is_without_neighbour(facts: &Facts) -> bool {
    facts.neighbour_reports >= ICMP_PROBES_APART || (facts.neighbour_reports > 0 && facts.exhausted)
}

const fn icmp_reason(kind: IcmpKind) -> Reason {
    match kind {
        IcmpKind::Net => Reason::IcmpNet,
        IcmpKind::Host => Reason::IcmpHost,
        IcmpKind::Port => Reason::IcmpPort,
        IcmpKind::Admin => Reason::IcmpAdmin,
        IcmpKind::TimeExceeded => Reason::IcmpTtl,
        IcmpKind::TooBig | IcmpKind::Other => Reason::IcmpOther,
    }
}

/// The keepalive states, and the refusal to accuse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Up and reachable.
    Alive,
    /// Crashed, off, or rebooting.
    Down,
    /// Came back without its memory of the connection.
    Rebooted,
    /// Cannot be reached from here: the network says so.
    Unreachable,
    /// We must not accuse.
    Undetermined,
}

impl State {
    /// Every state, in the order of summaries.
    pub const ALL: [State; 5] =
        [State::Alive, State::Down, State::Rebooted, State::Unreachable, State::Undetermined];

    /// Returns the name used in records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            State::Alive => "alive",
            State::Down => "down",
            State::Rebooted => "rebooted",
            State::Unreachable => "unreachable",
            State::Undetermined => "undetermined",
        }
    }
}

/// Why a peer is in its state. The closed list of reasons that keepsweep can give today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Reason {
    Ack,
    Data,
    ZeroWindow,
    ClosedByPeer,
    Refused,
    Silent,
    HostSilent,
    Reset,
    ResetOrRebind,
    PathReset,
    FlowStateLost,
    IcmpNet,
    IcmpHost,
    IcmpPort,
    IcmpAdmin,
    IcmpTtl,
    IcmpOther,
    Neighbour,
    NoRoute,
    Observer,
    Unprobeable,
    Interrupted,
}

impl Reason {
    /// Returns the name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Ack => "ack",
            Reason::Data => "data",
            Reason::ZeroWindow => "zero-window",
            Reason::ClosedByPeer => "closed-by-peer",
            Reason::Refused => "refused",
            Reason::Silent => "silent",
            Reason::HostSilent => "host-silent",
            Reason::Reset => "reset",
            Reason::ResetOrRebind => "reset-or-rebind",
            Reason::PathReset => "path-reset",
            Reason::FlowStateLost => "flow-state-lost",
            Reason::IcmpNet => "icmp-net",
            Reason::IcmpHost => "icmp-host",
            Reason::IcmpPort => "icmp-port",
            Reason::IcmpAdmin => "icmp-admin",
            Reason::IcmpTtl => "icmp-ttl",
            Reason::IcmpOther => "icmp-other",
            Reason::Neighbour => "neighbour",
            Reason::NoRoute => "no-route",
            Reason::Observer => "observer",
            Reason::Unprobeable => "unprobeable",
            Reason::Interrupted => "interrupted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(change: impl FnOnce(&mut Facts)) -> Facts {
        let mut facts = Facts::default();
        change(&mut facts);
        facts
    }

    /// Every row: what was seen, and the one verdict it allows.
    #[test]
    fn truth_table() {
        use IcmpKind as K;
        use Reason as R;
        use State as S;
        let icmp = |kind, probes, exhausted| {
            facts(|f| {
                f.icmp = Some(kind);
                f.icmp_probes = probes;
                f.exhausted = exhausted;
            })
        };
        let rows = [
            (facts(|f| f.ack = true), S::Alive, R::Ack),
            (facts(|f| f.data = true), S::Alive, R::Data),
            (facts(|f| (f.ack, f.data) = (true, true)), S::Alive, R::Data),
            (facts(|f| (f.ack, f.zero_window) = (true, true)), S::Alive, R::ZeroWindow),
            (facts(|f| (f.ack, f.closed) = (true, true)), S::Alive, R::ClosedByPeer),
            (facts(|f| f.refused = true), S::Alive, R::Refused),
            (facts(|f| f.reset = true), S::Rebooted, R::Reset),
            (facts(|f| (f.reset, f.foreign_ttl) = (true, true)), S::Unreachable, R::PathReset),
            (facts(|f| (f.reset, f.remapped) = (true, true)), S::Rebooted, R::ResetOrRebind),
            (
                facts(|f| (f.reset, f.foreign_ttl, f.remapped) = (true, true, true)),
                S::Unreachable,
                R::PathReset,
            ),
            (facts(|f| (f.exhausted, f.remapped) = (true, true)), S::Down, R::Silent),
            (facts(|f| (f.reset, f.ack) = (true, true)), S::Alive, R::Ack),
            (facts(|f| f.no_route = true), S::Unreachable, R::NoRoute),
            (facts(|f| f.neighbour_failed = true), S::Unreachable, R::Neighbour),
            (facts(|f| f.neighbour_reports = 2), S::Unreachable, R::Neighbour),
            (facts(|f| f.neighbour_reports = 1), S::Undetermined, R::Interrupted),
            (
                facts(|f| (f.neighbour_reports, f.exhausted) = (1, true)),
                S::Unreachable,
                R::Neighbour,
            ),
            (
                facts(|f| (f.neighbour_reports, f.observer) = (2, true)),
                S::Undetermined,
                R::Observer,
            ),
            (facts(|f| (f.neighbour_reports, f.ack) = (2, true)), S::Alive, R::Ack),
            (
                facts(|f| (f.neighbour_failed, f.observer) = (true, true)),
                S::Undetermined,
                R::Observer,
            ),
            (icmp(K::Host, 2, false), S::Unreachable, R::IcmpHost),
            (icmp(K::Net, 2, false), S::Unreachable, R::IcmpNet),
            (icmp(K::Port, 2, false), S::Unreachable, R::IcmpPort),
            (icmp(K::Admin, 2, false), S::Unreachable, R::IcmpAdmin),
            (icmp(K::TimeExceeded, 2, false), S::Unreachable, R::IcmpTtl),
            (icmp(K::Other, 2, false), S::Unreachable, R::IcmpOther),
            // One error is never enough by itself, but silence after it points at the path.
            (icmp(K::Host, 1, false), S::Undetermined, R::Interrupted),
            (icmp(K::Host, 1, true), S::Unreachable, R::IcmpHost),
            (
                facts(|f| (f.icmp, f.icmp_probes, f.ack) = (Some(K::Host), 5, true)),
                S::Alive,
                R::Ack,
            ),
            (facts(|f| f.exhausted = true), S::Down, R::Silent),
            (facts(|f| (f.exhausted, f.observer) = (true, true)), S::Undetermined, R::Observer),
            (facts(|f| f.observer = true), S::Undetermined, R::Interrupted),
            // One soft error and a silence that is not to be relied on are not two.
            (
                facts(|f| {
                    (f.icmp, f.icmp_probes) = (Some(K::Host), 1);
                    (f.exhausted, f.observer) = (true, true);
                }),
                S::Undetermined,
                R::Observer,
            ),
            (facts(|f| (f.exhausted, f.taken) = (true, true)), S::Undetermined, R::Unprobeable),
            (facts(|f| (f.ack, f.taken) = (true, true)), S::Alive, R::Ack),
            (facts(|f| f.taken = true), S::Undetermined, R::Interrupted),
            (facts(|f| f.unprobeable = true), S::Undetermined, R::Unprobeable),
            (
                facts(|f| (f.exhausted, f.unprobeable) = (true, true)),
                S::Undetermined,
                R::Unprobeable,
            ),
            (Facts::default(), S::Undetermined, R::Interrupted),
        ];
        for (facts, state, reason) in rows {
            assert_eq!(classify(&facts), (state, reason), "{facts:?}");
        }
    }

    /// No combination of facts accuses a peer that showed life, or blames it for our own trouble.
    #[test]
    fn never_accuses_against_evidence() {
        for bits in 0u32..1 << 16 {
            let bit = |n: u32| bits >> n & 1 == 1;
            let facts = Facts {
                ack: bit(0),
                zero_window: bit(1),
                data: bit(2),
                closed: bit(3),
                refused: bit(4),
                reset: bit(5),
                foreign_ttl: bit(6),
                remapped: bit(15),
                icmp_probes: u8::from(bit(7)) * (1 + u8::from(bit(13))),
                icmp: bit(7).then_some(IcmpKind::Host),
                neighbour_failed: bit(8),
                neighbour_reports: u8::from(bit(14)),
                no_route: bit(9),
                exhausted: bit(10),
                observer: bit(11),
                taken: bit(12),
                unprobeable: bit(14),
            };
            let (state, _) = classify(&facts);
            let life =
                facts.ack || facts.zero_window || facts.data || facts.closed || facts.refused;
            assert_eq!(state == State::Alive, life, "{facts:?}");
            if state == State::Down {
                assert!(facts.exhausted && !facts.observer && facts.icmp.is_none(), "{facts:?}");
                assert!(!facts.taken && !facts.unprobeable, "{facts:?}");
            }
            assert!(state != State::Rebooted || facts.reset, "{facts:?}");
        }
    }
}
