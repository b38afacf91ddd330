//! Sweep after sweep in one process, each checked: does every frame add up, is every verdict right, does
//! memory stay flat? Run by `scripts/bench soak`, beside lab-forger.
//!
//! Prints one JSON object a sweep and a last one for all of them. Exits with 1 if anything was wrong.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use ipnet::Ipv4Net;
use keepsweep::engine::{Control, IoKind, Setup, Sweep};
use keepsweep::probe::classify::{Reason, State};
use keepsweep::probe::evidence::Verdict;
use keepsweep::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use keepsweep::report::Summary;
use keepsweep::time::Clock;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Sweeps the lab again and again and checks every sweep.
#[derive(Parser)]
#[command(name = "lab-soak")]
struct Args {
    /// How long to begin new sweeps.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// The peers.
    #[arg(long, default_value = "10.99.0.0/16")]
    peers: Ipv4Net,
    /// Those of them that are down; the others are alive.
    #[arg(long)]
    down: Ipv4Net,
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The fleet's control socket: it is asked to free the connections of each sweep.
    #[arg(long)]
    control: PathBuf,
}

/// What was wrong with one sweep.
#[derive(Default)]
struct Faults {
    wrong: u64,
    /// Not accused, since frames were lost on our own side.
    excused: u64,
    examples: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let begun = Clock.now();
    let (mut sweeps, mut bad, mut excused, mut frames) = (0_u64, 0_u64, 0_u64, 0_u64);
    let mut resident = Vec::new();
    while Clock.now().since(begun) < Duration::from_secs(args.seconds) {
        let (summary, mut faults) = sweep(&args, sweeps + 1)?;
        check_accounts(&summary, &mut faults);
        relisten(&args.control)?;
        sweeps += 1;
        bad += faults.wrong;
        excused += faults.excused;
        frames += summary.frames_sent + summary.frames_received;
        resident.push(resident_kib()?);
        println!(
            "{}",
            json!({
                "sweep": sweeps,
                "elapsed_ms": summary.elapsed.as_millis() as u64,
                "frames_sent": summary.frames_sent,
                "frames_received": summary.frames_received,
                "matched": summary.replies_matched,
                "rejected": summary.replies_rejected,
                "rx_dropped": summary.rx_dropped,
                "states": summary.states,
                "wrong": faults.wrong,
                "excused": faults.excused,
                "examples": faults.examples,
                "rss_kib": resident.last(),
            })
        );
    }
    // The first sweep has made every allocation that lasts.
    println!(
        "{}",
        json!({
            "sweeps": sweeps,
            "frames": frames,
            "wrong": bad,
            "excused": excused,
            "rss_kib": {
                "first": resident.first(), "last": resident.last(), "peak": resident.iter().max(),
            },
        })
    );
    Ok(ExitCode::from(u8::from(bad > 0)))
}

/// Runs one sweep on a thread of its own, which gives up its capabilities; ours are for the next.
fn sweep(args: &Args, seed: u64) -> Result<(Summary, Faults)> {
    let (first, last) = (args.peers.network().to_bits(), args.peers.broadcast().to_bits());
    let targets: Vec<_> =
        (first..=last).map(|bits| SocketAddr::new(IpAddr::V4(bits.into()), args.port)).collect();
    let mut said = vec![0_u32; targets.len()];
    let down = args.down;
    let setup = Setup {
        on_behalf: Vec::new(),
        flows: Vec::new(),
        plan: Plan {
            keepalive: Keepalive {
                idle: Duration::ZERO,
                interval: Duration::from_secs(1),
                count: 5,
            },
            probe_bytes: ProbeBytes::Auto,
            connect_timeout: Duration::from_secs(3),
            close: Close::Rst,
            rate_pps: None,
            rate_per_prefix_pps: None,
            seed,
        },
        targets,
        io: IoKind::Packet,
        interface: None,
        source: None,
        source_ports: 61_000..=65_534,
        cpus: None,
        pcap: None,
        pcap_goes_on: false,
    };
    let swept = std::thread::spawn(move || -> Result<(Summary, Faults)> {
        let mut faults = Faults::default();
        let summary = Sweep::open(setup)?.run(&Control::default(), &mut |verdict| {
            said[verdict.target.0 as usize] += 1;
            check_verdict(&verdict, &down, &mut faults);
        })?;
        if let Some(target) = said.iter().position(|times| *times != 1) {
            faults.add(format!("target {target}: {} verdicts", said[target]));
        }
        Ok((summary, faults))
    });
    swept.join().map_err(|_| anyhow!("a sweep panicked"))?
}

fn check_verdict(verdict: &Verdict, down: &Ipv4Net, faults: &mut Faults) {
    let is_down = matches!(verdict.peer.ip(), IpAddr::V4(ip) if down.contains(&ip));
    let expected = if is_down { State::Down } else { State::Alive };
    // Dropped for lack of room, or starved: either way our own side's, and said so.
    if is_down && verdict.reason == Reason::Observer {
        faults.excused += 1;
    } else if verdict.state != expected || verdict.correction {
        faults.add(format!("{verdict:?}"));
    }
}

fn check_accounts(summary: &Summary, faults: &mut Faults) {
    let rejected: u64 = summary.replies_rejected.values().sum();
    let sent: u64 = summary.sent_by_kind.values().sum();
    let states: u64 = summary.states.iter().sum();
    let adds_up = summary.frames_received == summary.replies_matched + rejected
        && summary.frames_sent == sent
        && summary.peers == states
        && summary.kernel_rsts == 0
        && summary.faults.is_empty();
    if !adds_up {
        faults.add(format!("does not add up: {summary:?}"));
    }
}

impl Faults {
    fn add(&mut self, what: String) {
        self.wrong += 1;
        if self.examples.len() < 3 {
            self.examples.push(what);
        }
    }
}

/// Dead connections stay in the queue of a listener that never accepts.
fn relisten(control: &Path) -> Result<()> {
    let mut stream = UnixStream::connect(control)
        .with_context(|| format!("connect to the fleet at {}", control.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(b"relisten\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the fleet's answer")?;
    anyhow::ensure!(!answer.starts_with("error"), "fleet: {}", answer.trim_end());
    Ok(())
}

/// Resident set size, in KiB.
fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
    kib.parse().context("VmRSS is not a number")
}
