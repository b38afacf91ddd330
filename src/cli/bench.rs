//! `keepsweep bench`: how fast this machine is, by each I/O path.
#![forbid(unsafe_code)]

mod rows;

use super::args::{BenchArgs, BenchFormat, BenchWhat};
use super::exit::{Exit, Failure};
use super::say;
use crate::engine::bench::{self, BenchPath, RxSetup, TxSetup, Watch};
use crate::io::privilege::{self, Capability};
use anyhow::anyhow;
use rows::Rows;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs `keepsweep bench`.
///
/// # Errors
/// [`Failure`]: an interface that must not be used, missing privilege, or the kernel refused.
pub fn run(args: &BenchArgs) -> Result<Exit, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::System(anyhow!("listen for signals: {error}")))?;
    }
    let watch = Watch { stop: &stop, say: &|text| say(text) };
    let mut rows = Rows::default();
    let result = measure(args, &watch, &mut rows);
    let written = write(&match args.format {
        BenchFormat::Table => rows.table(),
        BenchFormat::Ndjson => rows.ndjson(),
    });
    let failed = result?;
    written?;
    failed.iter().for_each(say);
    Ok(match (stop.load(Ordering::Relaxed), failed.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::AllAlive,
        (false, false) => Exit::System,
    })
}

/// Fills `rows`, and returns what went wrong with single paths.
fn measure(args: &BenchArgs, watch: &Watch<'_>, rows: &mut Rows) -> Result<Vec<String>, Failure> {
    let usage = |text: &str| Err(Failure::Usage(anyhow!("{text}")));
    match args.what {
        BenchWhat::Rx if args.interface.is_some() => {
            return usage(
                "bench rx takes no -i: it receives at one end of a pair of interfaces of its own, \
                 since somebody must send the replies",
            );
        }
        BenchWhat::Rx if args.io.contains(&BenchPath::Raw) => {
            return usage(
                "the raw path receives by AF_PACKET: bench rx --io packet measures it too",
            );
        }
        BenchWhat::Match if args.interface.is_some() || !args.io.is_empty() => {
            return usage("bench match measures in memory: it takes no -i and no --io");
        }
        _ => {}
    }
    require(args)?;
    let mut paths = match (args.io.as_slice(), args.what, &args.interface) {
        ([], BenchWhat::Tx, Some(_)) | ([], BenchWhat::Rx, _) => {
            vec![BenchPath::Packet, BenchPath::Xdp]
        }
        ([], ..) => BenchPath::ALL.to_vec(),
        (chosen, ..) => chosen.to_vec(),
    };
    paths.sort_unstable();
    paths.dedup();
    let failed = match args.what {
        BenchWhat::Tx => {
            let setup = TxSetup {
                interface: args.interface.clone(),
                paths,
                span: args.seconds,
                yes: args.yes,
            };
            bench::tx(&setup, watch, &mut |report| rows.tx.push(report))?
        }
        BenchWhat::Rx => {
            let setup = RxSetup { paths, span: args.seconds };
            bench::rx(&setup, watch, &mut |report| rows.rx.push(report))?
        }
        BenchWhat::Match => {
            rows.matching = Some(bench::matching(args.seconds, watch)?);
            Vec::new()
        }
    };
    Ok(failed.iter().map(ToString::to_string).collect())
}

/// Checks the capabilities that a measurement takes.
fn require(args: &BenchArgs) -> Result<(), Failure> {
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN};
    let needed: &[Capability] = match (args.what, &args.interface) {
        (BenchWhat::Match, _) => &[],
        (BenchWhat::Tx, Some(_)) => &[CAP_NET_RAW],
        (BenchWhat::Tx, None) => &[CAP_NET_RAW, CAP_NET_ADMIN, CAP_SYS_ADMIN],
        (BenchWhat::Rx, _) => &[CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF, CAP_SYS_ADMIN],
    };
    privilege::require(needed).map_err(|missing| Failure::System(missing.into()))
}

fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who stops reading has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System(anyhow!("write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
