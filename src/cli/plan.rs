//! What keepalives are sent, as resolved from the arguments that a sweep and an audit share.
#![forbid(unsafe_code)]

use super::args::{KeepaliveArgs, PaceArgs, Rate};
use super::exit::Failure;
use crate::probe::plan::{Close, EMPTY_PROBE_SPACING, Keepalive, Plan, ProbeBytes};
use anyhow::anyhow;
use std::time::Duration;

/// Joins a profile with what was given beside it. There is no rest before the first probe.
///
/// # Errors
/// [`Failure::Usage`] if the settings contradict each other, [`Failure::System`] without a seed.
pub fn resolve(args: &KeepaliveArgs, pace: &PaceArgs) -> Result<Plan, Failure> {
    let profile = args.profile.keepalive();
    let keepalive = Keepalive {
        idle: Duration::ZERO,
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
    let seed = match pace.seed {
        Some(seed) => seed,
        None => getrandom::u64()
            .map_err(|error| Failure::System(anyhow!("get a random seed: {error}")))?,
    };
    Ok(Plan {
        keepalive,
        probe_bytes: args.probe_bytes,
        connect_timeout: Duration::ZERO,
        close: Close::default(),
        rate_pps: match pace.rate {
            Rate::Pps(pps) => Some(pps),
            Rate::Max => None,
        },
        rate_per_prefix_pps: None,
        seed,
    })
}
