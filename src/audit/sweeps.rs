//! Asking: one sweep in each network namespace, several at a time.
#![forbid(unsafe_code)]

use super::list::{InNamespace, name};
use super::{Audit, AuditError, Listed, Listing, Outcome};
use crate::engine::{self, Control, EngineError, IoKind, Setup, Sweep};
use crate::io::host::{HostError, Namespace};
use crate::io::privilege;
use crate::io::shield::Shield;
use crate::probe::TargetId;
use crate::probe::classify::{Reason, State};
use crate::probe::evidence::{Seen, Sighting, Verdict};
use crate::probe::plan::Plan;
use crate::report::{Summary, Tally};
use crate::time::Clock;
use crossbeam::channel::{self, Receiver, Sender};
use std::collections::HashSet;
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
    /// privileges of those threads; the calling thread keeps its own, unless it
    /// [gives them up](Audit::gives_up_privileges).
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
        // Open as long as any sweep is: threads that go on asking have not got what it takes to attach it.
        let _shield = Shield::open();
        let turns = Turns::new(AT_A_TIME);
        thread::scope(|scope| {
            let (said_to, said) = channel::unbounded();
            for (index, job) in jobs.iter().enumerate() {
                let (turns, said_to) = (&turns, said_to.clone());
                scope.spawn(move || {
                    let _turn = turns.take();
                    let ended = job.run(self, control, &mut |verdict| {
                        // It is read until all have ended.
                        let _ = said_to.send(Said::Verdict(index, verdict));
                    });
                    let _ = said_to.send(Said::Ended(index, Box::new(ended)));
                });
            }
            drop(said_to);
            // Those threads have what they need, and give up the rest by themselves.
            if self.gives_up_privileges
                && let Err(error) = privilege::drop_all()
            {
                control.stop.store(true, Ordering::Relaxed);
                return Err(EngineError::System(error.to_string()).into());
            }
            round.hear(&jobs, said.into_iter())
        })?;
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
    /// Counts and hands on what the sweeps of `jobs` say, up to the last word.
    fn hear(&mut self, jobs: &[Job], said: impl Iterator<Item = Said>) -> Result<(), AuditError> {
        let control = self.control;
        let mut unsaid: Vec<HashSet<u32>> =
            jobs.iter().map(|job| (0..job.asked.len() as u32).collect()).collect();
        let mut failed = None;
        for said in said {
            let (index, error) = match said {
                Said::Verdict(index, verdict) => {
                    let slot = verdict.target.0;
                    unsaid[index].remove(&slot);
                    if let Some(listed) = jobs[index].asked.get(slot as usize) {
                        self.say(listed, verdict);
                    }
                    continue;
                }
                Said::Ended(index, ended) => match *ended {
                    Ok(summary) => {
                        self.summary.absorb(summary);
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
                error if jobs.len() == 1 => {
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
                    self.summary.faults.push(format!("{netns}: {error}"));
                    (Reason::Observer, Some(Seen::ObserverFault))
                }
            };
            let mut slots: Vec<_> = std::mem::take(&mut unsaid[index]).into_iter().collect();
            slots.sort_unstable();
            for slot in slots {
                self.say_unasked(&jobs[index].asked[slot as usize], reason, seen);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn say(&mut self, listed: &Arc<Listed>, verdict: Verdict) {
        self.control.count(&verdict);
        let findings = self.audit.findings(listed);
        let outcome = Outcome { listed: Arc::clone(listed), verdict, findings };
        match outcome.verdict.correction {
            true => self.summary.corrections += 1,
            false => outcome.count_in(&mut self.summary),
        }
        (self.report)(outcome);
    }

    /// Says what there is to say of a connection whose peer nobody asks.
    fn say_unasked(&mut self, listed: &Arc<Listed>, reason: Reason, seen: Option<Seen>) {
        self.say(listed, unasked(listed, reason, seen));
    }
}

/// Lets so many threads go on at a time.
struct Turns(Sender<()>, Receiver<()>);

/// One of them, until it is dropped.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn new(at_a_time: usize) -> Turns {
        let (taken, given_back) = channel::bounded(at_a_time);
        Turns(taken, given_back)
    }

    fn take(&self) -> Turn<'_> {
        // Waits while all are taken. It cannot fail: both ends are here.
        let _ = self.0.send(());
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.1.try_recv();
    }
}

impl Job {
    /// Moves the calling thread into the namespace, for good, and gives up every privilege of it that no
    /// sweep needs.
    pub(super) fn settle(&self, audit: &Audit) -> Result<(), AuditError> {
        // Entering needs CAP_SYS_ADMIN, even where one is already.
        if !self.namespace.is_own {
            self.namespace.enter_for_good()?;
        }
        privilege::keep(&audit.sweep_capabilities())
            .map_err(|error| EngineError::System(error.to_string()).into())
    }

    /// Runs one sweep, on a thread of its own: opening it takes the thread's privileges away.
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
                control.note_once(format!("{}: {note}", name(&self.namespace)));
            }
            Ok(sweep.run_uncounted(control, report)?)
        };
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
    let flows = asked.iter().map(|listed| engine::given(&listed.connection)).collect();
    // So that the host's own routes, marks and NAT apply.
    Setup { flows, ..Setup::new(plan, IoKind::Raw) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::PLAN;
    use crate::audit::tests::outcome;
    use crate::io::host;

    #[test]
    fn whatever_becomes_of_a_sweep_what_it_has_said_is_counted() {
        let namespace = host::own_namespace().expect("/proc is there");
        let job = |indices: &[u8]| Job {
            namespace: namespace.clone(),
            asked: indices.iter().map(|&index| outcome(index, State::Alive).listed).collect(),
            plan: PLAN,
        };
        let jobs = [job(&[1, 2, 3]), job(&[4])];
        let says = |job: usize, slot: u32, state, correction| {
            let verdict = outcome(0, state).verdict;
            Said::Verdict(job, Verdict { target: TargetId(slot), correction, ..verdict })
        };
        let broken = AuditError::from(EngineError::System("a sending thread panicked".into()));
        let frames =
            Summary { peers: 1, states: [1, 0, 0, 0, 0], frames_sent: 3, ..Summary::default() };
        let said = [
            says(0, 0, State::Alive, false),
            says(0, 1, State::Down, false),
            says(1, 0, State::Alive, false),
            says(0, 1, State::Alive, true),
            Said::Ended(0, Box::new(Err(broken))),
            Said::Ended(1, Box::new(Ok(frames))),
        ];
        let mut told = [0; 5];
        let mut corrections = 0;
        let mut report = |outcome: Outcome| match outcome.verdict.correction {
            true => corrections += 1,
            false => told[outcome.verdict.state as usize] += 1,
        };
        let audit = Audit::new();
        let (summary, control) = (Summary::default(), Control::default());
        let mut round = Round { audit: &audit, control: &control, summary, report: &mut report };
        round.hear(&jobs, said.into_iter()).expect("the other one goes on");
        let summary = round.summary;
        assert_eq!((told, corrections), ([2, 1, 0, 0, 1], 1));
        assert_eq!((summary.states, summary.corrections, summary.peers), (told, corrections, 4));
        assert_eq!(summary.reasons.values().sum::<u64>(), 4);
        let by_process: Vec<_> = summary.audit.expect("tallied").processes.into_values().collect();
        assert_eq!(by_process, [told]);
        assert_eq!((summary.frames_sent, summary.faults.len()), (3, 1));
    }
}
