//! Silence is doubted before it is told: the peers' hosts are asked by fresh SYNs, and the connections
//! whose hosts are there once more. All else is told at once.
#![forbid(unsafe_code)]

use super::sweeps::{Job, setup};
use super::{Audit, AuditError, Listed};
use crate::engine::{Control, EngineError, Setup};
use crate::io::raw::Likeness;
use crate::io::{conntrack, ports};
use crate::probe::TargetId;
use crate::probe::classify::{Reason, State};
use crate::probe::escalate::{self, Doubted, HeardFrom};
use crate::probe::evidence::{Seen, Verdict};
use crate::report::Summary;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Job {
    /// Asks the peers of all connections and hands the verdicts to `say`: one on each, then corrections.
    ///
    /// To be called on a thread of its own, which moves into the namespace, and keeps what privileges it
    /// takes to open another sweep until it returns.
    pub(super) fn run(
        &self,
        audit: &Audit,
        control: &Control,
        say: &mut (dyn FnMut(Verdict) + Send),
    ) -> Result<Summary, AuditError> {
        if control.stop.load(Ordering::Relaxed) {
            return Err(EngineError::System("interrupted".into()).into());
        }
        self.settle(audit)?;
        let mut silent = BTreeMap::new();
        let mut heard = HeardFrom::default();
        let plain = Setup { pcap: audit.pcap.clone(), ..setup(&self.asked, self.plan) };
        let asked = self.sweep(plain, control, &mut |verdict| {
            heard.learn(&verdict);
            // What a late answer overturns has not been told.
            let is_news = silent.remove(&verdict.target).is_some() || !verdict.correction;
            // A fresh SYN would be translated anew, and its answer be nobody's.
            let is_askable = self.listed(verdict.target).translated.is_none();
            if verdict.reason == Reason::Silent && is_askable && !audit.keepalives_only {
                silent.insert(verdict.target, verdict);
            } else {
                say(Verdict { correction: !is_news, ..verdict });
            }
        });
        if silent.is_empty() {
            return asked;
        }
        let Ok(mut summary) = asked else {
            silent.into_values().for_each(say);
            return asked;
        };
        let mut doubted = Vec::new();
        // A rule of this host's own, younger than the connection, may have translated the SYN: then its
        // answer was nobody's.
        let may_translate = || conntrack::count().is_some_and(|count| count > 0);
        let may_have_translated = may_translate();
        let asked = self.ask_hosts(audit, control, silent, &mut summary);
        let may_have_translated = may_have_translated || may_translate();
        for (verdict, fresh) in asked {
            let is_proof = |fresh: &Verdict| fresh.state != State::Down || !may_have_translated;
            let Some(fresh) = fresh.filter(is_proof) else {
                say(verdict);
                continue;
            };
            match escalate::host_asked(verdict, &fresh, &heard) {
                Doubted { verdict, asks_again: true } => doubted.push(verdict),
                Doubted { verdict, .. } => say(verdict),
            }
        }
        if !doubted.is_empty() {
            self.ask_again(audit, control, doubted, &mut summary, say);
        }
        Ok(summary)
    }

    /// Asks the hosts of silent connections, and returns what each has come to, if it was asked.
    fn ask_hosts(
        &self,
        audit: &Audit,
        control: &Control,
        silent: BTreeMap<TargetId, Verdict>,
        summary: &mut Summary,
    ) -> Vec<(Verdict, Option<Verdict>)> {
        let mut questions = Questions::default();
        let question_of = |verdict: &Verdict| questions.about(self.listed(verdict.target));
        let asked: Vec<_> = silent.values().map(question_of).collect();
        let mut answers = HashMap::new();
        // Another seed each time: neither is a 4-tuple to be used again within 2 MSL, nor are its numbers
        // to be foreseen.
        let seed = getrandom::u64().map_err(|error| EngineError::System(error.to_string()).into());
        let swept = seed.and_then(|seed| {
            let fresh = Setup {
                plan: escalate::fresh_syn(&self.plan, seed),
                targets: questions.peers,
                on_behalf: questions.on_behalf,
                source_ports: audit.source_ports.clone().unwrap_or(ports::DEFAULT),
                ..self.further(audit, &[])
            };
            self.sweep(fresh, control, &mut |verdict| {
                answers.insert(verdict.target, verdict);
            })
        });
        match swept {
            Ok(more) => summary.absorb(more),
            Err(_) if control.stop.load(Ordering::Relaxed) => {}
            Err(error) => control.note_once(format!(
                "ask the hosts of silent connections by fresh SYNs: {error}; without an answer, what a \
                 firewall has forgotten is taken for down"
            )),
        }
        let is_interrupted = control.stop.load(Ordering::Relaxed);
        let joined = silent.into_values().zip(asked).map(|(verdict, question)| {
            let fresh = answers.get(&question).cloned();
            if fresh.is_none() && is_interrupted {
                let (reason, why) = (Reason::Interrupted, Seen::Interrupted);
                return (escalate::not_asked_again(verdict, reason, why), None);
            }
            (verdict, fresh)
        });
        joined.collect()
    }

    /// Asks connections again that were silent and whose hosts are there, and says what comes of it.
    fn ask_again(
        &self,
        audit: &Audit,
        control: &Control,
        doubted: Vec<Verdict>,
        summary: &mut Summary,
        say: &mut (dyn FnMut(Verdict) + Send),
    ) {
        let listed = doubted.iter().map(|verdict| Arc::clone(self.listed(verdict.target)));
        let listed: Vec<_> = listed.collect();
        let again = Setup { plan: escalate::again(&self.plan), ..self.further(audit, &listed) };
        let mut is_said = vec![false; doubted.len()];
        let swept = self.sweep(again, control, &mut |verdict| {
            let index = verdict.target.0 as usize;
            is_said[index] = true;
            say(escalate::asked_again(&doubted[index], verdict));
        });
        let (reason, why) = match swept {
            Ok(more) => return summary.absorb(more),
            Err(_) if control.stop.load(Ordering::Relaxed) => {
                (Reason::Interrupted, Seen::Interrupted)
            }
            Err(error) => {
                summary.faults.push(format!("ask silent connections once more: {error}"));
                (Reason::Observer, Seen::ObserverFault)
            }
        };
        let unsaid = doubted.into_iter().zip(is_said).filter(|(_, is_said)| !is_said);
        unsaid.for_each(|(verdict, _)| say(escalate::not_asked_again(verdict, reason, why)));
    }

    /// Returns a sweep of `listed` that follows another one of the same namespace.
    fn further(&self, audit: &Audit, listed: &[Arc<Listed>]) -> Setup {
        Setup { pcap: audit.pcap.clone(), pcap_goes_on: true, ..setup(listed, self.plan) }
    }
}

/// What hosts are asked: each peer once from each own address and by each way, however many connections
/// there are.
#[derive(Default)]
struct Questions {
    peers: Vec<SocketAddr>,
    on_behalf: Vec<(IpAddr, Likeness)>,
    known: HashMap<(IpAddr, Likeness, SocketAddr), TargetId>,
}

impl Questions {
    /// Returns the question to the host of this connection's peer.
    fn about(&mut self, listed: &Listed) -> TargetId {
        let (source, peer) = (listed.connection.local.ip(), listed.connection.peer);
        let likeness = listed.numbers().map(|numbers| Likeness {
            mark: numbers.mark,
            bound_interface: numbers.bound_interface,
        });
        let likeness = likeness.unwrap_or_default();
        let next = TargetId(self.peers.len() as u32);
        let question = *self.known.entry((source, likeness, peer)).or_insert(next);
        if question == next {
            self.peers.push(peer);
            self.on_behalf.push((source, likeness));
        }
        question
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::tests::listed;

    #[test]
    fn a_host_is_asked_once_from_each_address_and_by_each_way() {
        let mut questions = Questions::default();
        let mut ask = |port, mark| {
            questions.about(&listed(|connection, numbers| {
                connection.local.set_port(port);
                numbers.mark = mark;
            }))
        };
        let asked = [ask(40_001, 0), ask(40_002, 0), ask(40_003, 7), ask(40_004, 7)];
        assert_eq!(asked.map(|TargetId(index)| index), [0, 0, 1, 1]);
        assert_eq!(questions.peers.len(), 2);
        let marks = questions.on_behalf.iter().map(|(_, likeness)| likeness.mark);
        assert_eq!(marks.collect::<Vec<_>>(), [0, 7]);
    }
}
