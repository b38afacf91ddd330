//! What is done about silence: the peer's host is asked by a fresh SYN, and the connection once more.
//!
//! A connection that was silent through its whole plan may have a dead peer, or be forgotten by a
//! firewall that drops what it does not know. A SYN from the same address to the same port tells them
//! apart: it needs nobody's memory. If it draws anything, the silence may also have been an outage that
//! is over by now, so that the connection is asked again before anything is said of the path.
#![forbid(unsafe_code)]

use super::classify::{Reason, State};
use super::evidence::{Seen, Sighting, Verdict};
use super::plan::{Close, Keepalive, Plan};
use crate::wire::IcmpKind;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// How long a host has time to answer: SYNs leave after 0, 1 and 3 s (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(5);
/// The second asking is no longer than that.
const AGAIN: Keepalive =
    Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: 3 };

/// Returns how hosts are asked where connections are asked by `plan`: what a SYN draws is all.
pub fn fresh_syn(plan: &Plan, seed: u64) -> Plan {
    Plan {
        keepalive: Keepalive { idle: Duration::ZERO, count: 0, ..plan.keepalive },
        connect_timeout: PATIENCE,
        close: Close::Rst,
        seed,
        ..*plan
    }
}

/// Returns how connections are asked once more that were asked by `plan`.
pub fn again(plan: &Plan) -> Plan {
    let Keepalive { interval, count, .. } = plan.keepalive;
    let (interval, count) = (interval.min(AGAIN.interval), count.min(AGAIN.count));
    Plan { keepalive: Keepalive { interval, count, ..AGAIN }, ..*plan }
}

/// With which TTLs or hop limits hosts have answered.
#[derive(Debug, Default)]
pub struct HeardFrom(BTreeSet<(IpAddr, u8)>);

impl HeardFrom {
    /// Takes in what a connection's peer has answered.
    pub fn learn(&mut self, verdict: &Verdict) {
        if verdict.state == State::Alive {
            let answers = verdict.evidence.iter().filter(|sighting| {
                matches!(sighting.kind, Seen::Ack | Seen::ZeroWindow | Seen::Data | Seen::Fin)
            });
            let ttls = answers.filter_map(|sighting| sighting.ttl);
            self.0.extend(ttls.map(|ttl| (verdict.peer.ip(), ttl)));
        }
    }

    /// Says whether `host` has answered, but never with `ttl`.
    fn is_foreign(&self, host: IpAddr, ttl: u8) -> bool {
        let mut known = self.0.range((host, u8::MIN)..=(host, u8::MAX)).peekable();
        known.peek().is_some() && known.all(|&(_, known)| known != ttl)
    }
}

/// What a silent connection's verdict has become.
#[derive(Clone, PartialEq, Debug)]
pub struct Doubted {
    /// The verdict, unless the connection answers after all.
    pub verdict: Verdict,
    /// Whether it is to be asked once more before that.
    pub asks_again: bool,
}

/// Says what becomes of the verdict on a `silent` connection, now that a fresh SYN to its peer has come
/// to `fresh`.
///
/// An ICMP error says of the SYN what it would say of a keepalive, and the verdict is the same, unless it
/// is the host itself that refuses new connections (firewalld does so by default). A RST of another TTL
/// than the host's is that of something on the path. What this host's own firewall does not let out asks
/// nobody, and changes nothing.
pub fn host_asked(silent: Verdict, fresh: &Verdict, heard: &HeardFrom) -> Doubted {
    let host = silent.peer.ip();
    let is_foreign_rst = |sighting: &Sighting| {
        sighting.kind == Seen::RstToSyn
            && sighting.ttl.is_some_and(|ttl| heard.is_foreign(host, ttl))
    };
    let is_own_refusal = |sighting: &Sighting| {
        matches!(sighting.kind, Seen::Icmp(IcmpKind::Admin | IcmpKind::Port, ..))
            && sighting.from == Some(host)
    };
    let is_unsent =
        fresh.probes == 0 && fresh.evidence.iter().all(|sighting| sighting.kind == Seen::NotSent);
    let (state, reason, asks_again) = match (fresh.state, fresh.reason) {
        (State::Alive, _) if fresh.evidence.iter().any(is_foreign_rst) => {
            (State::Unreachable, Reason::PathReset, true)
        }
        (State::Alive, _) => (State::Unreachable, Reason::FlowStateLost, true),
        (State::Unreachable, _) if fresh.evidence.iter().any(is_own_refusal) => {
            (State::Unreachable, Reason::FlowStateLost, true)
        }
        (State::Unreachable, reason) => (State::Unreachable, reason, true),
        (State::Down, _) => (State::Down, Reason::HostSilent, false),
        (State::Undetermined, Reason::Observer) if !is_unsent => {
            (State::Undetermined, Reason::Observer, false)
        }
        (State::Undetermined, Reason::Interrupted) => {
            (State::Undetermined, Reason::Interrupted, false)
        }
        (State::Undetermined | State::Rebooted, _) => (silent.state, silent.reason, false),
    };
    let seen = fresh.evidence.iter().map(|sighting| Sighting {
        kind: match sighting.kind {
            Seen::SynAck => Seen::FreshSynAck,
            Seen::RstToSyn => Seen::FreshRst,
            kind => kind,
        },
        ..*sighting
    });
    let mut verdict = Verdict { state, reason, ..silent };
    verdict.evidence.extend(seen);
    Doubted { verdict, asks_again }
}

/// Joins what is known of a connection that was silent with what came of asking it once more.
pub fn asked_again(doubted: &Verdict, again: Verdict) -> Verdict {
    let (state, reason) = match again.reason {
        Reason::Silent => (doubted.state, doubted.reason),
        reason => (again.state, reason),
    };
    Verdict {
        target: doubted.target,
        state,
        reason,
        probes: doubted.probes.saturating_add(again.probes),
        evidence: [&doubted.evidence[..], &again.evidence].concat(),
        ..again
    }
}

/// Returns what is said where a connection whose host is there could not be asked once more.
pub fn not_asked_again(doubted: Verdict, reason: Reason, why: Seen) -> Verdict {
    let mut verdict = Verdict { state: State::Undetermined, reason, ..doubted };
    verdict.evidence.push(Sighting::unframed(why));
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::TargetId;

    const HOST: [u8; 4] = [10, 0, 0, 2];
    const ROUTER: [u8; 4] = [10, 0, 0, 254];

    fn verdict(state: State, reason: Reason, evidence: Vec<Sighting>) -> Verdict {
        Verdict {
            target: TargetId(7),
            peer: (HOST, 443).into(),
            local: Some(([10, 0, 0, 1], 40_000).into()),
            round: 1,
            state,
            reason,
            probes: 5,
            replies: 0,
            rtt: None,
            evidence,
            correction: false,
        }
    }

    fn seen(kind: Seen, ttl: u8) -> Sighting {
        Sighting { ttl: Some(ttl), ..Sighting::unframed(kind) }
    }

    fn icmp(kind: IcmpKind, from: [u8; 4]) -> Sighting {
        Sighting { from: Some(from.into()), ..Sighting::unframed(Seen::Icmp(kind, 3, 0)) }
    }

    fn silent() -> Verdict {
        verdict(State::Down, Reason::Silent, Vec::new())
    }

    /// The host has answered on another connection.
    fn heard(ttls: &[u8]) -> HeardFrom {
        let mut heard = HeardFrom::default();
        for &ttl in ttls {
            heard.learn(&verdict(State::Alive, Reason::Ack, vec![seen(Seen::Ack, ttl)]));
        }
        heard
    }

    /// Every row: what the fresh SYN has come to, with which TTLs the host was heard, and what follows
    /// if the connection stays silent.
    #[test]
    fn truth_table() {
        use Reason as R;
        use State as S;
        let rst = |ttl| vec![seen(Seen::RstToSyn, ttl)];
        let local = |kind| vec![Sighting::unframed(kind)];
        let (lost, host_silent) =
            ((S::Unreachable, R::FlowStateLost, true), (S::Down, R::HostSilent, false));
        let none: &[u8] = &[];
        let rows = [
            (S::Alive, R::Ack, vec![seen(Seen::SynAck, 60)], none, lost),
            (S::Alive, R::Refused, rst(60), none, lost),
            (S::Alive, R::Refused, rst(60), &[60], lost),
            // A host may be heard by several ways.
            (S::Alive, R::Refused, rst(60), &[59, 60], lost),
            (S::Alive, R::Refused, rst(61), &[59, 60], (S::Unreachable, R::PathReset, true)),
            // Who answers with SYN-ACK serves the port, and that is what the connection was to.
            (S::Alive, R::Ack, vec![seen(Seen::SynAck, 61)], &[60], lost),
            (S::Down, R::Silent, vec![], none, host_silent),
            (S::Down, R::Silent, vec![], &[60], host_silent),
            (
                S::Unreachable,
                R::IcmpHost,
                vec![icmp(IcmpKind::Host, ROUTER)],
                none,
                (S::Unreachable, R::IcmpHost, true),
            ),
            (
                S::Unreachable,
                R::IcmpAdmin,
                vec![icmp(IcmpKind::Admin, ROUTER)],
                none,
                (S::Unreachable, R::IcmpAdmin, true),
            ),
            (S::Unreachable, R::IcmpAdmin, vec![icmp(IcmpKind::Admin, HOST)], none, lost),
            (S::Unreachable, R::IcmpPort, vec![icmp(IcmpKind::Port, HOST)], none, lost),
            // What no host says of itself: a router behind a NAT, under its address.
            (
                S::Unreachable,
                R::IcmpHost,
                vec![icmp(IcmpKind::Host, HOST)],
                none,
                (S::Unreachable, R::IcmpHost, true),
            ),
            (
                S::Unreachable,
                R::Neighbour,
                local(Seen::NeighbourFailed),
                none,
                (S::Unreachable, R::Neighbour, true),
            ),
            (
                S::Unreachable,
                R::NoRoute,
                local(Seen::NoRoute),
                none,
                (S::Unreachable, R::NoRoute, true),
            ),
            (
                S::Undetermined,
                R::Observer,
                local(Seen::LinkDown),
                none,
                (S::Undetermined, R::Observer, false),
            ),
            // One was sent, and then the path took no more.
            (
                S::Undetermined,
                R::Observer,
                local(Seen::NotSent),
                none,
                (S::Undetermined, R::Observer, false),
            ),
            (
                S::Undetermined,
                R::Interrupted,
                local(Seen::Interrupted),
                none,
                (S::Undetermined, R::Interrupted, false),
            ),
            (S::Undetermined, R::Unprobeable, vec![], none, (S::Down, R::Silent, false)),
        ];
        for (state, reason, evidence, ttls, expected) in rows {
            let fresh = verdict(state, reason, evidence);
            let doubted = host_asked(silent(), &fresh, &heard(ttls));
            let said = (doubted.verdict.state, doubted.verdict.reason, doubted.asks_again);
            assert_eq!(said, expected, "{fresh:?} {ttls:?}");
            assert_eq!(doubted.verdict.evidence.len(), fresh.evidence.len());
            assert_eq!((doubted.verdict.probes, doubted.verdict.target), (5, TargetId(7)));
        }
        // Not let out: nobody was asked.
        let refused = verdict(S::Undetermined, R::Observer, local(Seen::NotSent));
        let doubted = host_asked(silent(), &Verdict { probes: 0, ..refused }, &heard(none));
        assert_eq!((doubted.verdict.state, doubted.verdict.reason), (S::Down, R::Silent));
        assert!(!doubted.asks_again);
    }

    #[test]
    fn only_live_connections_tell_ttls_and_only_of_their_own_host() {
        let mut heard = HeardFrom::default();
        let evidence = vec![seen(Seen::RstToProbe, 63), seen(Seen::Ack, 63)];
        heard.learn(&verdict(State::Rebooted, Reason::Reset, evidence));
        assert!(!heard.is_foreign(HOST.into(), 60));
        heard.learn(&verdict(State::Alive, Reason::Ack, vec![seen(Seen::Ack, 60)]));
        assert!(heard.is_foreign(HOST.into(), 63) && !heard.is_foreign(HOST.into(), 60));
        assert!(!heard.is_foreign([10, 0, 0, 3].into(), 63));
        assert!(!heard.is_foreign([10, 0, 0, 1].into(), 63));
    }

    #[test]
    fn a_second_silence_proves_what_the_host_has_said_and_all_else_speaks_for_itself() {
        let fresh = verdict(State::Alive, Reason::Ack, vec![seen(Seen::SynAck, 60)]);
        let Doubted { verdict: doubted, .. } = host_asked(silent(), &fresh, &HeardFrom::default());
        let again = |state, reason, evidence| Verdict {
            target: TargetId(0),
            probes: 3,
            ..verdict(state, reason, evidence)
        };
        let kinds = |verdict: &Verdict| -> Vec<&str> {
            verdict.evidence.iter().map(|sighting| sighting.kind.name()).collect()
        };
        let still = asked_again(&doubted, again(State::Down, Reason::Silent, Vec::new()));
        assert_eq!((still.state, still.reason), (State::Unreachable, Reason::FlowStateLost));
        assert_eq!((still.probes, still.target), (8, TargetId(7)));
        assert_eq!(kinds(&still), ["fresh-syn-ack"]);
        for (state, reason, kind) in [
            (State::Alive, Reason::Ack, Seen::Ack),
            (State::Rebooted, Reason::Reset, Seen::RstToProbe),
            (State::Undetermined, Reason::Observer, Seen::LinkDown),
            (State::Undetermined, Reason::Interrupted, Seen::Interrupted),
        ] {
            let said = asked_again(&doubted, again(state, reason, vec![seen(kind, 60)]));
            assert_eq!((said.state, said.reason), (state, reason));
            assert_eq!(kinds(&said), ["fresh-syn-ack", kind.name()]);
        }
        let open = not_asked_again(doubted, Reason::Interrupted, Seen::Interrupted);
        assert_eq!((open.state, open.reason), (State::Undetermined, Reason::Interrupted));
        assert_eq!(kinds(&open), ["fresh-syn-ack", "interrupted"]);
    }

    #[test]
    fn plans_are_short_and_never_longer_than_what_was_asked_for() {
        let slow = Plan {
            keepalive: Keepalive {
                idle: Duration::ZERO,
                interval: Duration::from_secs(75),
                count: 9,
            },
            ..crate::probe::script::plan()
        };
        assert_eq!(again(&slow).keepalive, AGAIN);
        let quick = Keepalive { interval: Duration::from_millis(500), count: 2, ..AGAIN };
        assert_eq!(again(&Plan { keepalive: quick, ..slow }).keepalive, quick);
        let fresh = fresh_syn(&Plan { seed: 1, rate_pps: Some(9), ..slow }, 2);
        assert_eq!((fresh.keepalive.count, fresh.seed, fresh.rate_pps), (0, 2, Some(9)));
    }
}
