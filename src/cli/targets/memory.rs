//! Whether the targets fit into memory.
#![forbid(unsafe_code)]

use crate::engine;
use crate::probe::table::Family;
use std::fs;
use std::net::SocketAddr;

/// Octets that one target takes: its address as resolved, and what the engine keeps of it.
pub const OCTETS_PER_TARGET: u64 =
    (size_of::<SocketAddr>() + engine::memory_per_target(Family::V4)) as u64;

/// Returns the octets that a sweep of `targets` needs.
pub const fn needed(targets: u64) -> u64 {
    targets.saturating_mul(OCTETS_PER_TARGET)
}

/// Returns the octets that can be had without swapping (MemAvailable, proc_meminfo(5)), if the
/// kernel says.
pub fn available() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(parse_available(text), Some(8192 * 1024));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: much kB\n"), None);
    }

    #[test]
    fn need_never_wraps() {
        assert_eq!(needed(2), 2 * OCTETS_PER_TARGET);
        assert_eq!(needed(u64::MAX), u64::MAX);
    }
}
