//! `keepsweep sweep`: arguments as resolved, then the run.
#![forbid(unsafe_code)]

use super::args::{Format, Io, Rate, SweepArgs};
use super::dry_run::{self, FirstFrames};
use super::exit::{Exit, Failure};
use super::flows::{self, Flows};
use super::output::{Destination, Output, Written};
use super::progress::Progress;
use super::say;
use super::targets::{self, Given, Names, Targets as Peers};
use crate::engine::{Control, EngineError, IoKind, Setup, Sweep, XdpOptions};
use crate::io::xdp::{XdpMode, ZeroCopy};
use crate::probe::TargetId;
use crate::probe::classify::State;
use crate::probe::evidence::Verdict;
use crate::probe::plan::{EMPTY_PROBE_SPACING, Keepalive, Plan, ProbeBytes};
use crate::report::{Csv, Layout, Memory, Ndjson, Record, Summary, Table, table};
use anyhow::{Context, anyhow};
use indicatif::{BinaryBytes, HumanCount, ProgressBar};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::fmt::{self, Display};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How long a known result may rest in a buffer, and how often progress is drawn.
const TICK: Duration = Duration::from_millis(100);

/// Notices told in one run.
const MAX_NOTICES: u64 = 20;

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

/// What is written of a sweep, and where to.
#[derive(Debug)]
struct Reporting {
    format: Format,
    output: Option<PathBuf>,
    only: Vec<State>,
    quiet: bool,
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
            if !args.quiet {
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
        // `-` is standard output, as for --targets it is standard input.
        let output = args.output.filter(|path| path.as_os_str() != "-");
        if let Some(pcap) = &args.pcap
            && (pcap.as_os_str() == "-" || output.as_ref() == Some(pcap))
        {
            let text = "--pcap: frames need a file of their own, beside standard output and -o";
            return Err(Failure::Usage(anyhow!(text)));
        }
        let request = Request {
            setup: Setup {
                plan,
                targets: targets.peers,
                flows: flows.given,
                io,
                interface: args.interface,
                source: args.source,
                source_ports: args.source_ports,
                cpus: args.cpus,
                pcap: args.pcap,
            },
            names: targets.names,
            unresolved: targets.unresolved,
            memory,
            profile: args.profile.name(),
            dry_run: args.dry_run,
            verbose: args.verbose > 0,
            reporting: Reporting {
                format: args.format,
                output,
                only: args.only,
                quiet: args.quiet,
            },
        };
        Ok((request, notes))
    }

    fn layout(&self) -> Box<dyn Layout> {
        match self.reporting.format {
            Format::Ndjson => Box::new(Ndjson),
            Format::Csv => Box::new(Csv),
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

impl Reporting {
    /// The summary goes with the records; also to standard error where they have no place for it,
    /// or are out of sight.
    fn says_summary(&self) -> bool {
        !self.quiet && (self.format == Format::Csv || self.output.is_some())
    }

    fn output_name(&self) -> String {
        self.output.as_deref().map_or("standard output".into(), |path| path.display().to_string())
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
    let profile = args.profile.keepalive();
    let keepalive = Keepalive {
        idle: args.idle.unwrap_or(profile.idle),
        interval: args.interval.unwrap_or(profile.interval),
        count: args.count.unwrap_or(profile.count),
    };
    if keepalive.interval < EMPTY_PROBE_SPACING && args.probe_bytes != ProbeBytes::One {
        return Err(Failure::Usage(anyhow!(
            "--interval {}: Linux answers one empty keepalive per {}, so silence to closer ones \
             proves nothing; use {} or more, or --probe-bytes 1",
            humantime::format_duration(keepalive.interval),
            humantime::format_duration(EMPTY_PROBE_SPACING),
            humantime::format_duration(EMPTY_PROBE_SPACING)
        )));
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => getrandom::u64()
            .map_err(|error| Failure::System(anyhow!("get a random seed: {error}")))?,
    };
    Ok(Plan {
        keepalive,
        probe_bytes: args.probe_bytes,
        connect_timeout: args.connect_timeout,
        close: args.close,
        rate_pps: match args.rate {
            Rate::Pps(pps) => Some(pps),
            Rate::Max => None,
        },
        rate_per_prefix_pps: args.rate_per_prefix,
        seed,
    })
}

/// Runs `keepsweep sweep`.
///
/// # Errors
/// [`Failure`], before or instead of results.
pub fn run(args: SweepArgs) -> Result<Exit, Failure> {
    trace_to_stderr(args.verbose);
    let (request, notes) = Request::resolve(args)?;
    let reporting = &request.reporting;
    if !reporting.quiet {
        notes.iter().for_each(say);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let destination = Destination::open(reporting.output.as_deref(), Arc::clone(&interrupted))
        .with_context(|| format!("open {} for writing", reporting.output_name()))
        .map_err(Failure::System)?;
    if request.dry_run {
        return print_dry_run(&request, destination);
    }
    let layout = request.layout();
    let unresolved: Vec<Verdict> = request.unresolved().collect();
    let Request { setup, names, reporting, memory, verbose, .. } = request;
    let peers = (setup.targets.len() + setup.flows.len()) as u64;
    tracing::info!(peers, seed = setup.plan.seed, keepalive = ?setup.plan.keepalive, "sweep");

    // From here on a signal asks for an orderly end instead of killing the process with flows open.
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM])
        .context("catch SIGHUP, SIGINT and SIGTERM")
        .map_err(Failure::System)?;
    // Capabilities are per thread (capabilities(7)): the helper threads of `drive` start only after
    // the engine has dropped them, and so never have any.
    let sweep = if peers > 0 { Some(Sweep::open(setup)?) } else { None };
    if let Some(sweep) = &sweep
        && !reporting.quiet
    {
        sweep.notes().iter().for_each(|note| say(format!("note: {note}")));
    }
    destination
        .clear()
        .with_context(|| format!("empty {}", reporting.output_name()))
        .map_err(Failure::System)?;

    let progress = Progress::new(peers, !reporting.quiet && !verbose);
    let only = reporting.only.clone();
    let output = Output::new(Box::new(destination), layout, progress.screen(), only);
    let quiet = reporting.quiet;
    let session = Session { names: &names, output, progress, signals, interrupted, quiet };
    let ended = session.drive(|control, report| {
        // First: the others may take hours.
        unresolved.iter().for_each(|verdict| report(verdict.clone()));
        let mut summary = match sweep {
            Some(sweep) => sweep.run(control, report)?,
            None => Summary { io: "none".into(), ..Summary::default() },
        };
        summary.peers += unresolved.len() as u64;
        unresolved.iter().for_each(|verdict| summary.count(verdict));
        summary.memory = targets::memory_peak().map(|peak| Memory { peak, targets: memory });
        Ok(summary)
    });
    conclude(&reporting, ended)
}

fn trace_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    let ansi = io::stderr().is_terminal();
    // Of ours only: libraries talk of netlink attributes and BPF relocations.
    let ours = Targets::new().with_target("keepsweep", level);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(ansi)
        // Else a closed standard error would end the thread that logs, with its flows open.
        .log_internal_errors(false);
    tracing_subscriber::registry().with(layer.with_filter(ours)).init();
}

fn print_dry_run(request: &Request, destination: Destination) -> Result<Exit, Failure> {
    let first = FirstFrames::craft(&request.setup)?;
    if let Some(path) = &request.setup.pcap {
        first.capture(path, request.setup.plan.rate_pps)?;
    }
    let written = destination.clear().and_then(|()| {
        let mut out = BufWriter::new(destination);
        dry_run::write(request, &first, &mut out)?;
        out.flush()
    });
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System(anyhow!("write to {}: {error}", request.reporting.output_name())))
        }
        Ok(()) | Err(_) => Ok(Exit::AllAlive),
    }
}

/// Everything around a running engine.
struct Session<'a> {
    names: &'a Names,
    output: Output,
    progress: Progress,
    signals: Signals,
    interrupted: Arc<AtomicBool>,
    quiet: bool,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    summary: Result<Summary, EngineError>,
    written: Written,
    interrupted: bool,
}

/// Ends the thread that waits for signals, also if the engine panics.
struct CloseOnDrop(Handle);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Session<'_> {
    /// Calls `engine` and writes what it reports, while one thread waits for signals, up to the last
    /// octet written, and another flushes results and draws progress.
    fn drive(
        self,
        engine: impl FnOnce(&Control, &mut dyn FnMut(Verdict)) -> Result<Summary, EngineError>,
    ) -> Ended {
        let Session { names, output, mut progress, mut signals, interrupted, quiet } = self;
        let screen = progress.screen();
        let control = Control::default();
        let (summary, written) = thread::scope(|scope| {
            // Dropped last: what is left of the output may have to wait for its reader, too.
            let _close = CloseOnDrop(signals.handle());
            scope.spawn(|| {
                for _ in signals.forever() {
                    let again = interrupted.swap(true, Ordering::Relaxed);
                    control.hurry.fetch_or(again, Ordering::Relaxed);
                    control.stop.store(true, Ordering::Relaxed);
                    if !again && !quiet {
                        screen.suspend(|| {
                            say("interrupted: closing the open connections, within --rate; interrupt again to close them at once");
                        });
                    }
                }
            });
            let output = Mutex::new(output);
            let with_output = |act: &mut dyn FnMut(&mut Output)| {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                act(&mut output);
                // Nobody reads any more: close the flows and go.
                if output.is_closed() {
                    control.stop.store(true, Ordering::Relaxed);
                }
            };
            let summary = thread::scope(|scope| {
                let (_running, ended) = mpsc::channel::<()>();
                let (with_output, control) = (&with_output, &control);
                scope.spawn(move || {
                    let mut told = 0;
                    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                        tell(control, &mut told, &progress.screen(), quiet);
                        with_output(&mut Output::flush);
                        progress.update(control);
                    }
                    progress.finish();
                    tell(control, &mut told, &progress.screen(), quiet);
                });
                engine(control, &mut |verdict| {
                    let (name, label) = names.of(verdict.target);
                    let record = Record { verdict: &verdict, name, label };
                    with_output(&mut |output| output.record(&record));
                })
            });
            let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
            let written = output.finish(summary.as_ref().ok());
            (summary, written)
        });
        Ended { summary, written, interrupted: interrupted.load(Ordering::Relaxed) }
    }
}

/// Says what happened to this host; the first few, since a link may go up and down all day.
fn tell(control: &Control, told: &mut u64, screen: &ProgressBar, quiet: bool) {
    while let Some(notice) = control.notices.pop() {
        *told += 1;
        if quiet || *told > MAX_NOTICES {
            continue;
        }
        screen.suspend(|| say(notice));
        if *told == MAX_NOTICES {
            screen.suspend(|| say("more of this kind is not told"));
        }
    }
}

fn conclude(reporting: &Reporting, ended: Ended) -> Result<Exit, Failure> {
    let closed = matches!(ended.written, Written::Closed);
    if let Ok(summary) = &ended.summary
        && reporting.says_summary()
        && !closed
    {
        // Standard error is the last resort: there is nowhere to say that it failed.
        let _ = io::stderr().lock().write_all(table::summary(summary).as_bytes());
    }
    let mut failures: Vec<String> = match &ended.summary {
        Ok(summary) => summary.faults.clone(),
        Err(error) => vec![error.to_string()],
    };
    if let Written::InPart { records, of, error } = &ended.written {
        failures.push(format!(
            "write to {}: {error}; {} of {} records were written",
            reporting.output_name(),
            HumanCount(*records),
            HumanCount(*of)
        ));
    }
    let failure = (!failures.is_empty()).then(|| failures.join("\n"));
    match (ended.summary, failure) {
        (Err(EngineError::Usage(_)), Some(failure)) => Err(Failure::Usage(anyhow!(failure))),
        (_, Some(failure)) => Err(Failure::System(anyhow!(failure))),
        (_, None) if ended.interrupted => Ok(Exit::Interrupted),
        (_, None) if closed => Ok(Exit::AllAlive),
        (Ok(summary), None) if summary.states[State::Alive as usize] == summary.peers => {
            Ok(Exit::AllAlive)
        }
        (_, None) => Ok(Exit::SomeNotAlive),
    }
}

#[cfg(test)]
pub(super) mod tests;
