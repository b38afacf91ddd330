//! `keepsweep sweep`: arguments as resolved, then the run.
#![forbid(unsafe_code)]

use super::args::{Format, Io, SweepArgs};
use super::dry_run::{self, FirstFrames};
use super::exit::{Exit, Failure};
use super::flows::{self, Flows};
use super::output::{Destination, Output};
use super::progress::Progress;
use super::session::{self, Reporting, Session, Told, conclude, trace_to_stderr};
use super::targets::{self, Given, Names, Targets as Peers};
use super::{plan, say};
use crate::engine::{IoKind, Setup, Sweep, XdpOptions};
use crate::io::xdp::{XdpMode, ZeroCopy};
use crate::probe::TargetId;
use crate::probe::evidence::Verdict;
use crate::probe::plan::{Keepalive, Plan};
use crate::report::{Csv, Layout, Memory, Ndjson, Record, Summary, Table, table};
use anyhow::anyhow;
use indicatif::{BinaryBytes, HumanCount};
use std::fmt::{self, Display};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What is done after the first Ctrl-C.
const CLOSING: &str = "interrupted: closing the open connections, within --rate; interrupt again to close them at once";

/// A sweep as resolved from the arguments.
#[derive(Debug)]
pub struct Request {
    /// For the engine.
    pub setup: Setup,
    /// What the targets were called.
    pub names: Names,
    /// Host names that have no address, and the port of each.
    pub unresolved: Vec<(TargetId, u16)>,
    /// Octets that the targets take.
    memory: u64,
    /// The profile that the plan started from.
    pub profile: &'static str,
    dry_run: bool,
    verbose: bool,
    reporting: Reporting,
}

impl Request {
    fn resolve(args: SweepArgs) -> Result<(Request, Vec<String>), Failure> {
        let plan = plan(&args)?;
        let io = io_kind(&args)?;
        let given = Given {
            arguments: &args.targets,
            file: args.target_file.as_deref(),
            exclude: &args.exclude,
            ports: &args.ports,
            allow_public: args.allow_public,
            interface: args.interface.as_deref(),
            source: args.source,
        };
        let mut waiting = |done: usize, of: usize| {
            if !args.reporting.quiet {
                let [done, of] = [done, of].map(|names| HumanCount(names as u64));
                say(format!("resolving host names: {done} of {of} so far"));
            }
        };
        let (mut targets, flows) = peers(&given, args.flows.as_deref(), &mut waiting)?;
        tracing::info!(
            peers = targets.peers.len(),
            memory = %BinaryBytes(targets.memory()),
            sweep = %BinaryBytes(targets.memory_of_engine()),
            "targets"
        );
        let mut notes = Vec::new();
        if flows.duplicates > 0 {
            let again = HumanCount(flows.duplicates);
            notes.push(format!(
                "note: flows given again: {again}; each is probed once, by its last line"
            ));
        }
        if flows.without_numbers > 0 {
            let sockets = HumanCount(flows.without_numbers);
            notes.push(format!(
                "note: flows passed over: {sockets}; their sockets have no sequence numbers, as in \
                 TIME_WAIT, and nobody can be asked on them"
            ));
        }
        let named = flows.names.iter().map(|(index, name)| (*index, &**name));
        targets.add_flows(flows.given.len(), named);
        if targets.duplicates > 0 {
            let again = HumanCount(targets.duplicates);
            notes.push(format!("note: duplicate targets: {again}; each peer is probed once"));
        }
        if targets.other_family > 0 {
            let addresses = HumanCount(targets.other_family);
            notes.push(format!(
                "note: addresses of host names left out: {addresses}; --source is of the other \
                 address family"
            ));
        }
        notes.extend(targets.resolver.clone());
        let memory = targets.memory();
        let profile = args.keepalive.profile.name();
        let verbose = args.reporting.verbose > 0;
        let (reporting, pcap) = Reporting::resolve(args.reporting)?;
        let request = Request {
            setup: Setup {
                plan,
                targets: targets.peers,
                on_behalf: Vec::new(),
                flows: flows.given,
                io,
                interface: args.interface,
                source: args.source,
                source_ports: args.source_ports,
                cpus: args.cpus,
                pcap,
                pcap_goes_on: false,
            },
            names: targets.names,
            unresolved: targets.unresolved,
            memory,
            profile,
            dry_run: args.dry_run,
            verbose,
            reporting,
        };
        Ok((request, notes))
    }

    fn layout(&self) -> Box<dyn Layout> {
        match self.reporting.format {
            Format::Ndjson => Box::new(Ndjson),
            Format::Csv => Box::new(Csv::default()),
            Format::Table => {
                let flows = self.setup.flows.iter().map(|flow| &flow.peer);
                let widths = self.setup.targets.iter().chain(flows).map(width);
                let names = self.unresolved.iter().filter_map(|&(target, port)| {
                    self.names.of(target).0.map(|name| width(table::by_name(name, port)))
                });
                Box::new(Table::new(widths.chain(names).max().unwrap_or(0), self.names.iter()))
            }
        }
    }

    /// What is said of the names without an address: nobody can ask them anything.
    fn unresolved(&self) -> impl Iterator<Item = Verdict> {
        self.unresolved.iter().map(|&(target, port)| Verdict::unresolved(target, port))
    }
}

/// Reads targets and flows; there must be some of either.
fn peers(
    given: &Given<'_>,
    flows: Option<&Path>,
    waiting: &mut dyn FnMut(usize, usize),
) -> Result<(Peers, Flows), Failure> {
    let is_stdin = |path: &Path| path.as_os_str() == "-";
    if given.file.is_some_and(is_stdin) && flows.is_some_and(is_stdin) {
        let text = "--targets - and --flows -: both cannot be standard input; give a file for one";
        return Err(Failure::Usage(anyhow!(text)));
    }
    let collected = match flows {
        Some(_) if given.arguments.is_empty() && given.file.is_none() => Peers::default(),
        _ => targets::collect(given, waiting).map_err(|error| Failure::Usage(error.into()))?,
    };
    let flows = match flows {
        Some(path) => {
            let excluded =
                targets::exclusions(given.exclude).map_err(|error| Failure::Usage(error.into()))?;
            flows::collect(path, &excluded, given.allow_public)
                .map_err(|error| Failure::Usage(anyhow!("--flows: {error}")))?
        }
        None => Flows::default(),
    };
    Ok((collected, flows))
}

/// Counts what `text` would be written as, without writing it: there may be millions.
fn width(text: impl Display) -> usize {
    struct Count(usize);
    impl fmt::Write for Count {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0 += text.len();
            Ok(())
        }
    }
    let mut count = Count(0);
    // Counting cannot fail.
    let _ = fmt::Write::write_fmt(&mut count, format_args!("{text}"));
    count.0
}

/// Joins `--io` with what only one of its paths can use.
fn io_kind(args: &SweepArgs) -> Result<IoKind, Failure> {
    let SweepArgs { xdp_mode, zerocopy, .. } = *args;
    let mode = xdp_mode.unwrap_or_default();
    let options = XdpOptions { mode, zerocopy: zerocopy.unwrap_or_default() };
    let contradiction = if args.io != Io::Xdp && (xdp_mode.is_some() || zerocopy.is_some()) {
        "--xdp-mode and --zerocopy: only for --io xdp"
    } else if (options.mode, options.zerocopy) == (XdpMode::Skb, ZeroCopy::On) {
        "--zerocopy on: needs the XDP program in the driver; leave out --xdp-mode skb"
    } else {
        return Ok(match args.io {
            Io::Auto => IoKind::Auto,
            Io::Packet => IoKind::Packet,
            Io::Raw => IoKind::Raw,
            Io::Xdp => IoKind::Xdp(options),
        });
    };
    Err(Failure::Usage(anyhow!(contradiction)))
}

fn plan(args: &SweepArgs) -> Result<Plan, Failure> {
    let plan = plan::resolve(&args.keepalive, &args.pace)?;
    let idle = args.idle.unwrap_or(args.keepalive.profile.keepalive().idle);
    Ok(Plan {
        keepalive: Keepalive { idle, ..plan.keepalive },
        connect_timeout: args.connect_timeout,
        close: args.close,
        rate_per_prefix_pps: args.rate_per_prefix,
        ..plan
    })
}

/// Runs `keepsweep sweep`.
///
/// # Errors
/// [`Failure`], before or instead of results.
pub fn run(args: SweepArgs) -> Result<Exit, Failure> {
    trace_to_stderr(args.reporting.verbose);
    let (request, notes) = Request::resolve(args)?;
    let reporting = &request.reporting;
    if !reporting.quiet {
        notes.iter().for_each(say);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let destination = reporting.open(&interrupted)?;
    if request.dry_run {
        return print_dry_run(&request, destination);
    }
    let layout = request.layout();
    let unresolved: Vec<Verdict> = request.unresolved().collect();
    let Request { setup, names, reporting, memory, verbose, .. } = request;
    let peers = (setup.targets.len() + setup.flows.len()) as u64;
    tracing::info!(peers, seed = setup.plan.seed, keepalive = ?setup.plan.keepalive, "sweep");

    // From here on a signal asks for an orderly end instead of killing the process with flows open.
    let signals = session::signals()?;
    // Capabilities are per thread (capabilities(7)): the helper threads of `drive` start only after
    // the engine has dropped them, and so never have any.
    let sweep = if peers > 0 { Some(Sweep::open(setup)?) } else { None };
    if let Some(sweep) = &sweep
        && !reporting.quiet
    {
        sweep.notes().iter().for_each(|note| say(format!("note: {note}")));
    }
    reporting.clear(&destination)?;

    let progress = Progress::new(peers, !reporting.quiet && !verbose);
    let only = reporting.only.clone();
    let output = Output::new(Box::new(destination), layout, progress.screen(), only);
    let quiet = reporting.quiet;
    let (at_end, is_endless) = (CLOSING, false);
    let session = Session { output, progress, signals, interrupted, quiet, at_end, is_endless };
    let ended = session.drive(|control, tell| {
        let mut report = |verdict: Verdict| {
            let (name, label) = names.of(verdict.target);
            tell(Told::Record(Record { verdict: &verdict, name, label, connection: None }));
        };
        // First: the others may take hours.
        unresolved.iter().for_each(|verdict| report(verdict.clone()));
        let mut summary = match sweep {
            Some(sweep) => sweep.run(control, &mut report)?,
            None => Summary { io: "none".into(), ..Summary::default() },
        };
        summary.peers += unresolved.len() as u64;
        unresolved.iter().for_each(|verdict| summary.count(verdict));
        summary.memory = targets::memory_peak().map(|peak| Memory { peak, targets: memory });
        Ok(summary)
    });
    conclude(&reporting, ended)
}

fn print_dry_run(request: &Request, destination: Destination) -> Result<Exit, Failure> {
    let first = FirstFrames::craft(&request.setup)?;
    if let Some(path) = &request.setup.pcap {
        first.capture(path, request.setup.plan.rate_pps)?;
    }
    request.reporting.write_at_once(destination, |out| dry_run::write(request, &first, out))
}

#[cfg(test)]
pub(super) mod tests;
