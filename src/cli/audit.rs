//! `keepsweep audit`: arguments as resolved, then round after round.
#![forbid(unsafe_code)]

use super::args::{AuditArgs, Format};
use super::exit::{Exit, Failure};
use super::output::Output;
use super::progress::Progress;
use super::session::{self, Reporting, Session, Told, conclude, trace_to_stderr};
use super::{plan, say};
use crate::audit::{Audit, AuditError, Change, Changes, Finding, Listed, Listing, Outcome};
use crate::engine::Control;
use crate::io::privilege;
use crate::io::shield::Shield;
use crate::probe::classify::Reason;
use crate::report::{Audited, Connections, Csv, Layout, Ndjson, Record, Summary, connections};
use crate::time::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What is done after the first Ctrl-C.
const ENDING: &str = "interrupted: writing what is known";

/// How often a rest between rounds looks whether it has been interrupted.
const LOOK: Duration = Duration::from_millis(50);

/// An audit as resolved from the arguments.
struct Request {
    audit: Audit,
    every: Option<Duration>,
    /// Whether the connections may be of several network namespaces.
    several: bool,
    reporting: Reporting,
    verbose: bool,
}

impl Request {
    fn resolve(args: AuditArgs) -> Result<Request, Failure> {
        let tcp_states = args.tcp_states();
        let plan = plan::resolve(&args.keepalive, &args.pace)?;
        let verbose = args.reporting.verbose > 0;
        let (reporting, pcap) = Reporting::resolve(args.reporting)?;
        let mut audit = Audit::new().plan(plan).keepalive_off_over(args.keepalive_off_over);
        audit = args.pid.iter().fold(audit, |audit, pid| audit.pid(*pid));
        audit = args.peer.iter().fold(audit, |audit, peer| audit.peer(*peer));
        let several = args.netns.as_deref() == Some("all");
        audit = match args.netns {
            Some(_) if several => audit.every_netns(),
            Some(name) => audit.netns(name),
            None => audit,
        };
        if let Some(ports) = args.source_ports {
            audit = audit.source_ports(ports);
        }
        if args.keepalives_only {
            audit = audit.keepalives_only();
        }
        if let Some(span) = args.idle_over {
            audit = audit.idle_over(span);
        }
        if let Some(states) = tcp_states {
            audit = audit.tcp_states(states);
        }
        if let Some(path) = pcap {
            audit = audit.pcap(path);
        }
        if args.every.is_none() {
            audit = audit.gives_up_privileges();
        }
        Ok(Request { audit, every: args.every, several, reporting, verbose })
    }

    fn layout(&self) -> Box<dyn Layout> {
        match self.reporting.format {
            Format::Ndjson => Box::new(Ndjson),
            Format::Csv => Box::new(Csv::of_connections()),
            Format::Table => Box::new(Connections::new(self.several, self.every.is_some())),
        }
    }

    /// Lists again, and has said what could not be looked at, unless it was the same before. A process
    /// or namespace that has ended has no connections any more.
    fn list_again(&self, said: &mut Vec<String>, control: &Control) -> Result<Listing, Failure> {
        let listing = match self.audit.list() {
            Err(AuditError::Usage(warning)) => {
                let mut none = Listing::default();
                none.warnings.push(warning);
                none
            }
            listing => listing?,
        };
        for warning in listing.warnings.iter().filter(|warning| !said.contains(warning)) {
            control.notices.push(format!("warning: {warning}"));
        }
        said.clone_from(&listing.warnings);
        Ok(listing)
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Failure {
        match error {
            AuditError::Usage(_) => Failure::Usage(error.into()),
            // As text: it holds its own cause, which a chain of errors would say again.
            AuditError::Host(error) => Failure::System(anyhow::Error::msg(error.to_string())),
            AuditError::Engine(error) => error.into(),
        }
    }
}

/// Runs `keepsweep audit`.
///
/// # Errors
/// [`Failure`], before or instead of results.
pub fn run(args: AuditArgs) -> Result<Exit, Failure> {
    trace_to_stderr(args.reporting.verbose);
    let dry_run = args.dry_run;
    let request = Request::resolve(args)?;
    let reporting = &request.reporting;
    let interrupted = Arc::new(AtomicBool::new(false));
    let destination = reporting.open(&interrupted)?;
    let listing = request.audit.list()?;
    listing.warnings.iter().for_each(|warning| say(format!("warning: {warning}")));
    if !reporting.quiet {
        listing.left_out_in_words().into_iter().for_each(|text| say(format!("note: {text}")));
        if listing.is_empty() {
            say("there is no such connection");
        }
    }
    if dry_run {
        let list = with_findings(&request.audit, &listing);
        return reporting.write_at_once(destination, |out| match reporting.format {
            Format::Ndjson => connections::write_ndjson(&list, out),
            Format::Csv => connections::write_csv(&list, out),
            Format::Table => connections::write_table(&list, request.several, out),
        });
    }

    request.audit.check_source_ports(&listing)?;
    let signals = session::signals()?;
    reporting.clear(&destination)?;
    // Each sweep opens it, which takes none of the privileges that are given up here while it is open.
    let _shield = Shield::open();
    // Threads have those of the one that starts them.
    privilege::keep(&request.audit.capabilities())
        .map_err(|error| Failure::System(error.into()))?;
    let shows_progress = !reporting.quiet && !request.verbose && request.every.is_none();
    let progress = Progress::new(listing.len() as u64, shows_progress);
    let only = reporting.only.clone();
    let output = Output::new(Box::new(destination), request.layout(), progress.screen(), only);
    let quiet = reporting.quiet;
    let (at_end, is_endless) = (ENDING, request.every.is_some());
    let session = Session { output, progress, signals, interrupted, quiet, at_end, is_endless };
    let ended = session.drive(|control, tell| {
        Ok(match request.every {
            None => once(&request.audit, listing, control, tell)?,
            Some(every) => again_and_again(&request, every, listing, control, tell)?,
        })
    });
    conclude(reporting, ended)
}

fn with_findings(audit: &Audit, listing: &Listing) -> Vec<(Arc<Listed>, Vec<Finding>)> {
    let mut list: Vec<_> = listing.iter().cloned().collect();
    list.sort_by(|one, other| {
        let key = |listed: &Arc<Listed>| (listed.connection.local, listed.connection.peer);
        one.process.cmp(&other.process).then_with(|| key(one).cmp(&key(other)))
    });
    let with = |listed: Arc<Listed>| {
        let findings = audit.findings(&listed);
        (listed, findings)
    };
    list.into_iter().map(with).collect()
}

fn once(
    audit: &Audit,
    listing: Listing,
    control: &Control,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Summary, AuditError> {
    audit.probe(listing, control, &mut |outcome| tell(told(&outcome, None)))
}

/// Audits until interrupted, and tells what changes; returns the summary of all rounds, with what is
/// known by then.
fn again_and_again(
    request: &Request,
    every: Duration,
    first: Listing,
    control: &Control,
    tell: &mut dyn FnMut(Told<'_>),
) -> Result<Summary, Failure> {
    let mut changes = Changes::default();
    let mut rounds = Summary { io: "none".into(), ..Summary::default() };
    let first_begun = Clock.now();
    let mut said = first.warnings.clone();
    let mut listing = Some(first);
    for round in 1.. {
        let begun = Clock.now();
        let listing = match listing.take() {
            Some(listing) => listing,
            None => request.list_again(&mut said, control)?,
        };
        changes.begin();
        let summary = request.audit.probe(listing, control, &mut |mut outcome| {
            outcome.verdict.round = round;
            // What is known from the rounds before still stands.
            if outcome.verdict.reason == Reason::Interrupted && round > 1 {
                return;
            }
            if let Some(change) = changes.take(&outcome) {
                tell(told(&outcome, Some(change)));
            }
        })?;
        if !control.stop.load(Ordering::Relaxed) {
            for mut outcome in changes.gone() {
                outcome.verdict.round = round;
                tell(told(&outcome, Some(Change::Gone)));
            }
        }
        rounds.rounds = round;
        rounds.corrections += summary.corrections;
        rounds.absorb(summary);
        tell(Told::RoundEnds);
        while Clock.now().since(begun) < every && !control.stop.load(Ordering::Relaxed) {
            thread::park_timeout(LOOK);
        }
        if control.stop.load(Ordering::Relaxed) {
            break;
        }
    }
    rounds.elapsed = Clock.now().since(first_begun);
    Ok(changes.summarise(rounds))
}

fn told<'a>(outcome: &'a Outcome, change: Option<Change>) -> Told<'a> {
    let Outcome { listed, verdict, findings } = outcome;
    let connection = Some(Audited { listed, findings, change });
    Told::Record(Record { verdict, name: None, label: None, connection })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::Exit;
    use crate::io::IoError;
    use crate::io::host::HostError;
    use std::io;

    #[test]
    fn a_cause_is_said_once() {
        let error = IoError {
            operation: "enter network namespace",
            object: "web".to_owned(),
            source: io::Error::from_raw_os_error(1),
            remedy: "try sudo",
        };
        let text = error.to_string();
        let failure = Failure::from(AuditError::Host(HostError::Io(error)));
        assert_eq!((failure.exit(), failure.to_string()), (Exit::System, text));
    }
}
