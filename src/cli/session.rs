//! Everything around a running engine: signals, progress, results on their way out.
#![forbid(unsafe_code)]

use super::args::{Format, OutputArgs};
use super::exit::{Exit, Failure};
use super::output::{Destination, Output, Written};
use super::progress::Progress;
use super::say;
use crate::engine::Control;
use crate::io::privilege;
use crate::probe::classify::State;
use crate::report::{Record, Summary, table};
use anyhow::{Context, anyhow};
use indicatif::{HumanCount, ProgressBar};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
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

/// What is written of a run, and where to.
#[derive(Debug)]
pub struct Reporting {
    /// How.
    pub format: Format,
    /// Where to, if not to standard output.
    pub output: Option<PathBuf>,
    /// States to write, or all if empty.
    pub only: Vec<State>,
    /// Whether notes and progress are left out.
    pub quiet: bool,
}

impl Reporting {
    /// Resolves what was asked for; the second is the file for frames.
    ///
    /// # Errors
    /// [`Failure::Usage`]: results and frames would go to the same place.
    pub fn resolve(args: OutputArgs) -> Result<(Reporting, Option<PathBuf>), Failure> {
        let OutputArgs { format, output, only, pcap, quiet, .. } = args;
        // `-` is standard output, as for --targets it is standard input.
        let output = output.filter(|path| path.as_os_str() != "-");
        if let Some(pcap) = &pcap
            && (pcap.as_os_str() == "-" || output.as_ref() == Some(pcap))
        {
            let text = "--pcap: frames need a file of their own, beside standard output and -o";
            return Err(Failure::Usage(anyhow!(text)));
        }
        Ok((Reporting { format, output, only, quiet }, pcap))
    }

    /// Opens where results go, keeping what is there until [`Reporting::clear`].
    ///
    /// # Errors
    /// [`Failure::System`]: it cannot be opened for writing.
    pub fn open(&self, interrupted: &Arc<AtomicBool>) -> Result<Destination, Failure> {
        Destination::open(self.output.as_deref(), Arc::clone(interrupted))
            .with_context(|| format!("open {} for writing", self.output_name()))
            .map_err(Failure::System)
    }

    /// Empties it, now that there is something to write.
    ///
    /// # Errors
    /// [`Failure::System`]: the file system refuses.
    pub fn clear(&self, destination: &Destination) -> Result<(), Failure> {
        destination
            .clear()
            .with_context(|| format!("empty {}", self.output_name()))
            .map_err(Failure::System)
    }

    /// Writes what `write` writes, all in one go. A reader that goes away has read enough.
    ///
    /// # Errors
    /// [`Failure::System`]: not all of it was taken.
    pub fn write_at_once(
        &self,
        destination: Destination,
        write: impl FnOnce(&mut BufWriter<Destination>) -> io::Result<()>,
    ) -> Result<Exit, Failure> {
        let written = destination.clear().and_then(|()| {
            let mut out = BufWriter::new(destination);
            write(&mut out)?;
            out.flush()
        });
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::System(anyhow!("write to {}: {error}", self.output_name())))
            }
            Ok(()) | Err(_) => Ok(Exit::AllAlive),
        }
    }

    /// The summary goes with the records; also to standard error where they have no place for it,
    /// or are out of sight.
    fn says_summary(&self) -> bool {
        !self.quiet && (self.format == Format::Csv || self.output.is_some())
    }

    /// Returns what the place that results go to is called in messages.
    pub fn output_name(&self) -> String {
        self.output.as_deref().map_or("standard output".into(), |path| path.display().to_string())
    }
}

/// Has what is done said on standard error, if that was asked for.
pub fn trace_to_stderr(verbose: u8) {
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

/// Catches the signals that ask for an orderly end.
///
/// # Errors
/// [`Failure::System`]: the kernel refuses.
pub fn signals() -> Result<Signals, Failure> {
    Signals::new([SIGHUP, SIGINT, SIGTERM])
        .context("catch SIGHUP, SIGINT and SIGTERM")
        .map_err(Failure::System)
}

/// What a running engine tells.
pub enum Told<'a> {
    /// Something to write.
    Record(Record<'a>),
    /// All of a round has been told: what was held back to be sorted can be written.
    RoundEnds,
}

/// Everything around a running engine.
pub struct Session {
    /// Where records go.
    pub output: Output,
    /// What is shown meanwhile.
    pub progress: Progress,
    /// The signals that end the run.
    pub signals: Signals,
    /// Set by the first of them.
    pub interrupted: Arc<AtomicBool>,
    /// Whether notes are left out.
    pub quiet: bool,
    /// What is said after the first signal.
    pub at_end: &'static str,
    /// Whether it goes on until it is stopped: then also by output that cannot be written.
    pub is_endless: bool,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// What the engine came to.
    pub summary: Result<Summary, Failure>,
    /// How writing went.
    pub written: Written,
    /// Whether a signal ended it.
    pub interrupted: bool,
}

/// Ends the thread that waits for signals, also if the engine panics.
struct CloseOnDrop(Handle);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Session {
    /// Calls `engine` and writes what it reports, while one thread waits for signals, up to the last
    /// octet written, and another flushes results and draws progress.
    pub fn drive(
        self,
        engine: impl FnOnce(&Control, &mut dyn FnMut(Told<'_>)) -> Result<Summary, Failure>,
    ) -> Ended {
        let Session { output, mut progress, mut signals, interrupted, quiet, at_end, is_endless } =
            self;
        let screen = progress.screen();
        let control = Control::default();
        let (summary, written) = thread::scope(|scope| {
            // Dropped last: what is left of the output may have to wait for its reader, too.
            let _close = CloseOnDrop(signals.handle());
            scope.spawn(|| {
                renounce(&control);
                for _ in signals.forever() {
                    let again = interrupted.swap(true, Ordering::Relaxed);
                    control.hurry.fetch_or(again, Ordering::Relaxed);
                    control.stop.store(true, Ordering::Relaxed);
                    if !again && !quiet {
                        screen.suspend(|| say(at_end));
                    }
                }
            });
            let output = Mutex::new(output);
            let with_output = |act: &mut dyn FnMut(&mut Output)| {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                act(&mut output);
                // Nobody reads any more: close the flows and go.
                if output.is_closed() || is_endless && output.has_failed() {
                    control.stop.store(true, Ordering::Relaxed);
                }
            };
            let summary = thread::scope(|scope| {
                let (_running, ended) = mpsc::channel::<()>();
                let (with_output, control) = (&with_output, &control);
                scope.spawn(move || {
                    renounce(control);
                    let mut told = 0;
                    while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                        tell(control, &mut told, &progress.screen(), quiet);
                        with_output(&mut Output::flush);
                        progress.update(control);
                    }
                    progress.finish();
                    tell(control, &mut told, &progress.screen(), quiet);
                });
                engine(control, &mut |told| {
                    with_output(&mut |output| match &told {
                        Told::Record(record) => output.record(record),
                        Told::RoundEnds => output.end_round(),
                    });
                })
            });
            let output = output.into_inner().unwrap_or_else(PoisonError::into_inner);
            let written = output.finish(summary.as_ref().ok());
            (summary, written)
        });
        Ended { summary, written, interrupted: interrupted.load(Ordering::Relaxed) }
    }
}

/// Leaves the calling thread without capabilities: it has what it needs.
fn renounce(control: &Control) {
    if let Err(error) = privilege::drop_all() {
        control.notices.push(error.to_string());
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

/// Says how a run ended, and returns the exit code.
///
/// # Errors
/// [`Failure`]: the engine failed, or not everything could be written.
pub fn conclude(reporting: &Reporting, ended: Ended) -> Result<Exit, Failure> {
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
        (Err(Failure::Usage(_)), Some(failure)) => Err(Failure::Usage(anyhow!(failure))),
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
