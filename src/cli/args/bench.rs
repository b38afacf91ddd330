//! The arguments of `keepsweep bench`.
#![forbid(unsafe_code)]

use crate::engine::bench::BenchPath;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use std::time::Duration;

pub(super) const FOOTER: &str = "\
Every path runs beside the barest loop over the same socket, which sends one constant frame, or
throws away what it receives: what crafting and handing over cost is the difference. By AF_XDP that
frame stands ready in 512 places, whose descriptors are written in turn. Both loops have one CPU, in
turns of 40 ms; figures are medians, and time in which something else had the CPU is not counted.

tx leaves out what a sweep's sender takes to decide which peer is due (timers, flow table): that is
measured in memory, and shown beside.

Without -i nothing leaves this machine: the interfaces are made in a network namespace that goes
with the process. With -i, frames go to 198.19.0.0/16 (RFC 2544 benchmarks) and carry the
interface's own MAC address as destination: a switch that has learnt it drops them, and floods them
nowhere.

Examples:
  sudo keepsweep bench tx
  sudo keepsweep bench rx --io packet,xdp --seconds 10
  sudo keepsweep bench tx -i eth1 --io xdp --format ndjson
  keepsweep bench match

Exit codes: 0 measured, 2 bad usage, 3 missing privilege or kernel feature, or an OS error, 130
interrupted, after saying what is known.";

/// The arguments of `keepsweep bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_name = "tx|rx|match", hide_possible_values = true)]
    pub what: BenchWhat,

    /// tx: send through this interface, instead of one that swallows frames
    ///
    /// Refused where the default route leads through it, unless --yes is given. Raw sockets are left
    /// out: the kernel would ask for every peer by ARP.
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,

    /// Which paths [default: all]
    #[arg(
        long,
        value_name = "raw|packet|xdp[,...]",
        value_delimiter = ',',
        hide_possible_values = true
    )]
    pub io: Vec<BenchPath>,

    /// How long to measure each path, in seconds
    #[arg(long, value_name = "S", default_value = "3", value_parser = seconds)]
    pub seconds: Duration,

    /// Also flood an interface that the default route leads through
    #[arg(long)]
    pub yes: bool,

    /// How results are written
    #[arg(long, value_name = "table|ndjson", default_value = "table", hide_possible_values = true)]
    pub format: BenchFormat,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BenchWhat {
    /// Keepalives crafted and sent.
    Tx,
    /// Replies received, parsed, matched and handed over.
    Rx,
    /// Replies parsed and matched in memory.
    Match,
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum BenchFormat {
    /// For people.
    Table,
    /// One JSON object a line.
    Ndjson,
}

impl ValueEnum for BenchPath {
    fn value_variants<'a>() -> &'a [BenchPath] {
        &BenchPath::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds, such as 3 or 0.5".to_owned())?;
    // Also NaN.
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("expected 0.1 to 3600 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_bounds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(
            ["0", "-1", "nan", "inf", "1e9", "", "3s"].iter().all(|text| seconds(text).is_err())
        );
    }
}
