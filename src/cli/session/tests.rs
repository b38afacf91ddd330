use super::*;
use crate::cli::args::{Args, Command};
use crate::engine::EngineError;
use crate::probe::TargetId;
use crate::probe::classify::Reason;
use crate::probe::evidence::Verdict;
use crate::report::Ndjson;
use clap::Parser;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Returns a verdict on the `index`-th address of 10.0.0.0/8.
pub fn verdict(index: u32, state: State) -> Verdict {
    let peer = std::net::Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 0]) + index);
    Verdict {
        target: TargetId(index),
        peer: SocketAddr::from((peer, 80)),
        local: None,
        round: 1,
        state,
        reason: Reason::Ack,
        probes: 1,
        replies: 1,
        rtt: None,
        evidence: Vec::new(),
        correction: false,
    }
}

fn reporting(more: &str) -> Reporting {
    let line = format!("keepsweep sweep -q {more}");
    let Command::Sweep(args) =
        Args::try_parse_from(line.split_whitespace()).expect("valid").command
    else {
        panic!("not a sweep");
    };
    Reporting::resolve(args.reporting).expect("valid").0
}

fn summary(states: [u64; 5]) -> Summary {
    Summary { peers: states.iter().sum(), states, ..Summary::default() }
}

fn told(verdict: &Verdict) -> Told<'_> {
    Told::Record(Record { verdict, name: None, label: None, connection: None })
}

fn to_file(path: &Path, signals: &[i32]) -> Session {
    let interrupted = Arc::new(AtomicBool::new(false));
    let destination = Destination::open(Some(path), Arc::clone(&interrupted)).expect("opened");
    let progress = Progress::new(10, false);
    let output =
        Output::new(Box::new(destination), Box::new(Ndjson), progress.screen(), Vec::new());
    let signals = Signals::new(signals).expect("registered");
    Session { output, progress, signals, interrupted, quiet: true, at_end: "", is_endless: false }
}

#[test]
fn exit_code_follows_from_the_states() {
    let ended = |states| Ended {
        summary: Ok(summary(states)),
        written: Written::InFull,
        interrupted: false,
    };
    let exit = |ended| conclude(&reporting("--format ndjson"), ended).expect("no failure");
    assert_eq!(exit(ended([9, 0, 0, 0, 0])), Exit::AllAlive);
    for state in 1..5 {
        let mut states = [9, 0, 0, 0, 0];
        states[state] = 1;
        assert_eq!(exit(ended(states)), Exit::SomeNotAlive);
    }
    assert_eq!(exit(Ended { interrupted: true, ..ended([9, 0, 0, 0, 0]) }), Exit::Interrupted);
    assert_eq!(exit(Ended { written: Written::Closed, ..ended([0, 9, 0, 0, 0]) }), Exit::AllAlive);
}

#[test]
fn full_disk_and_engine_failure_are_both_said() {
    let full = || Written::InPart { records: 7, of: 1234, error: io::Error::other("disk full") };
    let ended = Ended { summary: Ok(summary([9; 5])), written: full(), interrupted: true };
    let failure = conclude(&reporting("-o r.csv"), ended).expect_err("not written in full");
    assert_eq!(failure.exit(), Exit::System);
    assert_eq!(failure.to_string(), "write to r.csv: disk full; 7 of 1,234 records were written");

    let broken = EngineError::System("send on eth1: ENETDOWN".into());
    let ended = Ended { summary: Err(broken.into()), written: full(), interrupted: false };
    let failure = conclude(&reporting(""), ended).expect_err("the engine failed");
    assert!(failure.to_string().starts_with("send on eth1: ENETDOWN\nwrite to standard output"));
}

#[test]
fn signal_stops_the_engine_and_what_is_known_is_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("results");
    // Not SIGTERM: other tests run in this process.
    let session = to_file(&path, &[signal_hook::consts::SIGUSR1]);
    let ended = session.drive(|control, tell| {
        tell(told(&verdict(0, State::Alive)));
        signal_hook::low_level::raise(signal_hook::consts::SIGUSR1).expect("raised");
        while !control.stop.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        tell(told(&verdict(1, State::Undetermined)));
        Ok(summary([1, 0, 0, 0, 1]))
    });
    assert!(ended.interrupted);
    assert!(matches!(ended.written, Written::InFull));
    assert_eq!(conclude(&reporting(""), ended).expect("no failure"), Exit::Interrupted);
    let text = std::fs::read_to_string(&path).expect("written");
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn results_are_visible_while_the_engine_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("results");
    let ended = to_file(&path, &[]).drive(|_, tell| {
        tell(told(&verdict(0, State::Alive)));
        // Far below a batch: only the ticker can have written it.
        while std::fs::metadata(&path).map_or(0, |meta| meta.len()) == 0 {
            thread::yield_now();
        }
        Ok(summary([1, 0, 0, 0, 0]))
    });
    assert!(matches!(ended.written, Written::InFull));
}

#[test]
fn closed_pipe_stops_the_engine() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let session = to_file(Path::new(&format!("/proc/self/fd/{}", writer.as_raw_fd())), &[]);
    drop(reader);
    // It tells nothing that could fail to be written.
    let ended = session.drive(|control, _| {
        while !control.stop.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        Ok(summary([0, 1, 0, 0, 0]))
    });
    assert!(!ended.interrupted);
    assert_eq!(conclude(&reporting(""), ended).expect("no failure"), Exit::AllAlive);
}
