//! Asking: one sweep in each network namespace, several at a time.
#![forbid(unsafe_code)]

use super::list::{InNamespace, name};
use super::{Audit, AuditError, Listed, Listing, Outcome};
use crate::engine::{self, Control, EngineError, IoKind, Setup, Sweep};
use crate::io::host::{HostError, Namespace};
use crate::io::ports;
use crate::probe::TargetId;
use crate::probe::classify::{Reason, State};
use crate::probe::evidence::{Seen, Sighting, Verdict};
use crate::probe::plan::Plan;
use crate::report::{Summary, Tally};
use crate::time::Clock;
use crossbeam::channel;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

/// Namespaces that are swept at a time; each takes a handful of threads and descriptors.
const AT_A_TIME: usize = 16;

/// The connections of one namespace that are to be asked.
pub(super) struct Job {
    namespace: Namespace,
    /// In the order of the sweep's targets.
    pub asked: Vec<Arc<Listed>>,
    pub plan: Plan,
}

/// What a worker says of the job with this index.
enum Said {
    Verdict(usize, Verdict),
    Ended(usize, Box<Result<Summary, AuditError>>),
}

impl Audit {
    /// Asks the peers of `listing`, and hands what comes out to `report` on the calling thread as it
    /// is known: every connection once, then corrections.
    ///
    /// Sweeps are opened on threads of their own, inside of the namespaces, and give up the
    /// privileges of those threads; the calling thread keeps its own.
    ///
    /// # Errors
    /// [`AuditError`] if nothing could be asked. Where one of several namespaces fails, its
    /// connections are `undetermined`, and the others go on: see [`Summary::faults`]; one that is gone
    /// is a notice of `control`.
    pub fn probe(
        &self,
        listing: Listing,
        control: &Control,
        report: &mut dyn FnMut(Outcome),
    ) -> Result<Summary, AuditError> {
        let begun = Clock.now();
        let mut round = Round {
            audit: self,
            control,
            summary: Summary {
                io: "none".into(),
                audit: Some(Tally::default()),
                ..Summary::default()
            },
            report,
        };
        let jobs = self.jobs(listing, &mut round)?;
        let single = jobs.len() == 1;
        let mut unsaid: Vec<HashSet<u32>> =
            jobs.iter().map(|job| (0..job.asked.len() as u32).collect()).collect();
        let mut failed = None;
        thread::scope(|scope| {
            let (jobs_to, jobs_of) = channel::unbounded();
            let (said_to, said) = channel::unbounded();
            (0..jobs.len()).for_each(|index| {
                // Both ends are here.
                let _ = jobs_to.send(index);
            });
            drop(jobs_to);
            for _ in 0..jobs.len().min(AT_A_TIME) {
                let (jobs, jobs_of, said_to) = (&jobs, jobs_of.clone(), said_to.clone());
                scope.spawn(move || {
                    for index in jobs_of {
                        let ended = jobs[index].run(self, control, &mut |verdict| {
                            // It is read until all have ended.
                            let _ = said_to.send(Said::Verdict(index, verdict));
                        });
                        let _ = said_to.send(Said::Ended(index, Box::new(ended)));
                    }
                });
            }
            drop(said_to);
            for said in said {
                let (index, error) = match said {
                    Said::Verdict(index, verdict) => {
                        let slot = verdict.target.0;
                        unsaid[index].remove(&slot);
                        if let Some(listed) = jobs[index].asked.get(slot as usize) {
                            round.say(listed, verdict);
                        }
                        continue;
                    }
                    Said::Ended(index, ended) => match *ended {
                        Ok(summary) => {
                            round.absorb(summary);
                            continue;
                        }
                        Err(error) => (index, error),
                    },
                };
                let netns = name(&jobs[index].namespace);
                let (reason, seen) = match error {
                    _ if control.stop.load(Ordering::Relaxed) => {
                        (Reason::Interrupted, Some(Seen::Interrupted))
                    }
                    error if single => {
                        failed = Some(error);
                        continue;
                    }
                    AuditError::Host(HostError::Gone { .. }) => {
                        control.notices.push(format!(
                            "network namespace {netns} is gone, and its connections with it"
                        ));
                        (Reason::Unprobeable, Some(Seen::SocketGone))
                    }
                    error => {
                        round.summary.faults.push(format!("{netns}: {error}"));
                        (Reason::Observer, Some(Seen::ObserverFault))
                    }
                };
                let mut slots: Vec<_> = std::mem::take(&mut unsaid[index]).into_iter().collect();
                slots.sort_unstable();
                for slot in slots {
                    round.say_unasked(&jobs[index].asked[slot as usize], reason, seen);
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        round.summary.elapsed = Clock.now().since(begun);
        Ok(round.summary)
    }

    /// Makes a job of every namespace that has a connection to ask, and says of the others what there
    /// is to say.
    fn jobs(&self, listing: Listing, round: &mut Round<'_>) -> Result<Vec<Job>, AuditError> {
        let mut jobs = Vec::new();
        for InNamespace { namespace, connections } in listing.namespaces {
            let mut ends = HashSet::new();
            let mut asked = Vec::new();
            for listed in connections {
                let tuple = (listed.connection.local, listed.connection.peer);
                if ends.insert(tuple) {
                    asked.push(listed);
                } else {
                    // Sockets of two interfaces may have the same ends (VRF); replies do not say whose
                    // they are.
                    round.say_unasked(&listed, Reason::Unprobeable, None);
                }
            }
            if !asked.is_empty() {
                jobs.push(Job { namespace, asked, plan: self.plan });
            }
        }
        if jobs.len() > 1 && self.pcap.is_some() {
            return Err(AuditError::Usage(format!(
                "write frames to a pcap file: there are connections in {} network namespaces, and \
                 a file is of one; name it with --netns",
                jobs.len()
            )));
        }
        let all: usize = jobs.iter().map(|job| job.asked.len()).sum();
        for job in &mut jobs {
            job.plan.rate_pps = self.plan.rate_pps.map(|pps| share(pps, job.asked.len(), all));
        }
        Ok(jobs)
    }
}

/// Returns the part of `pps` that is due to `part` of `all` connections, at least 1.
pub(super) fn share(pps: u64, part: usize, all: usize) -> u64 {
    let due = u128::from(pps) * part as u128 / all.max(1) as u128;
    u64::try_from(due).unwrap_or(u64::MAX).max(1)
}

/// Where outcomes are counted and handed on.
struct Round<'a> {
    audit: &'a Audit,
    control: &'a Control,
    summary: Summary,
    report: &'a mut dyn FnMut(Outcome),
}

impl Round<'_> {
    fn say(&mut self, listed: &Arc<Listed>, verdict: Verdict) {
        self.control.count(&verdict);
        self.summary.count(&verdict);
        self.summary.peers += u64::from(!verdict.correction);
        let findings = self.audit.findings(listed);
        if let Some(tally) = self.summary.audit.as_mut().filter(|_| !verdict.correction) {
            let holder = listed.process.as_ref();
            let holder = holder.map(|process| (process.comm.to_string(), process.pid));
            let names = findings.iter().map(|finding| finding.name());
            tally.count(holder, verdict.peer.ip(), verdict.state, names);
        }
        (self.report)(Outcome { listed: Arc::clone(listed), verdict, findings });
    }

    /// Says what there is to say of a connection whose peer nobody asks.
    fn say_unasked(&mut self, listed: &Arc<Listed>, reason: Reason, seen: Option<Seen>) {
        self.say(listed, unasked(listed, reason, seen));
    }

    /// Adds what the sweeps of one namespace have done. What they have found is counted as it is said.
    fn absorb(&mut self, sweeps: Summary) {
        self.summary.absorb(Summary {
            peers: 0,
            states: Default::default(),
            reasons: BTreeMap::new(),
            corrections: 0,
            ..sweeps
        });
    }
}

impl Job {
    /// Runs one sweep in the namespace, on a thread of its own: opening it takes the thread's privileges
    /// away.
    pub(super) fn sweep(
        &self,
        setup: Setup,
        control: &Control,
        report: &mut (dyn FnMut(Verdict) + Send),
    ) -> Result<Summary, AuditError> {
        let sweep = || -> Result<Summary, AuditError> {
            if control.stop.load(Ordering::Relaxed) {
                return Err(EngineError::System("interrupted".into()).into());
            }
            let sweep = Sweep::open(setup)?;
            for note in sweep.notes() {
                control.notices.push(format!("{}: {note}", name(&self.namespace)));
            }
            Ok(sweep.run_uncounted(control, report)?)
        };
        if !self.namespace.is_own {
            return self.namespace.enter(sweep)?;
        }
        let run = thread::scope(|scope| scope.spawn(sweep).join());
        run.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Returns the connection that a verdict is on.
    pub(super) fn listed(&self, target: TargetId) -> &Arc<Listed> {
        &self.asked[target.0 as usize]
    }
}

/// Returns a sweep over connections of the calling thread's namespace.
pub(super) fn setup(asked: &[Arc<Listed>], plan: Plan) -> Setup {
    Setup {
        plan,
        targets: Vec::new(),
        on_behalf: Vec::new(),
        flows: asked.iter().map(|listed| engine::given(&listed.connection)).collect(),
        // So that the host's own routes, marks and NAT apply.
        io: IoKind::Raw,
        interface: None,
        source: None,
        source_ports: ports::DEFAULT,
        cpus: None,
        pcap: None,
        pcap_goes_on: false,
    }
}

/// Returns the verdict on a connection whose peer was not asked.
pub(super) fn unasked(listed: &Listed, reason: Reason, seen: Option<Seen>) -> Verdict {
    Verdict {
        target: TargetId(0),
        peer: listed.connection.peer,
        local: Some(listed.connection.local),
        round: 1,
        state: State::Undetermined,
        reason,
        probes: 0,
        replies: 0,
        rtt: None,
        evidence: seen.map(Sighting::unframed).into_iter().collect(),
        correction: false,
    }
}
