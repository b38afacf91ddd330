//! What a reply costs from its first octet to the flow that it belongs to, in memory.
#![forbid(unsafe_code)]

use super::flows::{Replies, flows, table};
use super::slice::Slice;
use super::{PEERS, Spread, Watch};
use crate::engine::EngineError;
use crate::io::bare::BATCH;
use crate::io::{PathId, RxFrame, affinity, cpu};
use crate::probe::receiver::{Post, Receiver};
use crate::time::{Clock, Instant};
use crate::wire::{Checksums, LinkType, MacAddr, parse};
use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

/// What it has come to.
#[derive(Clone, PartialEq, Debug)]
pub struct MatchReport {
    /// How often every loop had its turn.
    pub rounds: usize,
    /// Replies parsed, matched and handed over.
    pub matched: u64,
    /// Replies not believed.
    pub rejected: u64,
    /// Nanoseconds of CPU a reply.
    pub cpu_ns: Spread,
    /// Nanoseconds of CPU a reply that is parsed only, with its checksums.
    pub parse_cpu_ns: Spread,
    /// Replies a second.
    pub pps: Spread,
    /// How long something else had the CPU; not counted.
    pub off_cpu: Duration,
}

/// Measures it on this thread, pinned to one CPU.
///
/// # Errors
/// [`EngineError::System`]: no memory.
pub fn matching(span: Duration, watch: &Watch<'_>) -> Result<MatchReport, EngineError> {
    let cpus = cpu::allowed().map_err(EngineError::system)?;
    if let Some(&cpu) = cpus.last() {
        affinity::pin(cpu).map_err(EngineError::system)?;
    }
    let flows = flows();
    let table = Arc::new(table(&flows).map_err(EngineError::system)?);
    let replies = Replies::new(&flows, MacAddr([2; 6]), MacAddr([4; 6]));
    let replies = replies.map_err(EngineError::system)?;
    let post = Arc::new(Post::new(1, PEERS as usize, 4 * BATCH));
    let mut receiver =
        Receiver::new(PathId(0), LinkType::Ethernet, table, HashSet::new(), post.clone());
    let (mut frames, mut parsed) = (replies.forever(), replies.forever());
    let (mut real, mut parsing) = (Vec::new(), Vec::new());
    let begun = Clock.now();
    for round in 0.. {
        let slice = Slice::of(|| {
            for bytes in frames.by_ref().take(BATCH) {
                let frame = RxFrame { bytes, at: Instant::ZERO, checksums: Checksums::Verify };
                // A queue cannot be full: it is emptied below, and holds four batches.
                receiver.take_in(frame, &mut |_| {});
            }
            receiver.settle(&mut |_| {});
            while post.pop(0).is_some() {}
            Ok(BATCH as u64)
        })?;
        let without = Slice::of(|| {
            for bytes in parsed.by_ref().take(BATCH) {
                let _ = black_box(parse(bytes, LinkType::Ethernet, Checksums::Verify));
            }
            Ok(BATCH as u64)
        })?;
        // The first round warms up.
        if round > 0 {
            real.push(slice);
            parsing.push(without);
            if watch.is_stopped() || Clock.now().since(begun) >= span {
                break;
            }
        }
    }
    let counts = receiver.counts();
    Ok(MatchReport {
        rounds: real.len(),
        matched: counts.matched,
        rejected: counts.rejected.iter().sum(),
        cpu_ns: Spread::of(real.iter().map(Slice::cpu_ns)),
        parse_cpu_ns: Spread::of(parsing.iter().map(Slice::cpu_ns)),
        pps: Spread::of(real.iter().map(Slice::pps)),
        off_cpu: real.iter().chain(&parsing).map(|slice| slice.waited).sum(),
    })
}
