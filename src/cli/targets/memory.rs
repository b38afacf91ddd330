//! Whether the targets fit into memory, and how much the process has had.
#![forbid(unsafe_code)]

use crate::engine;
use crate::probe::table::Family;
use std::fs;
use std::net::SocketAddr;

/// Returns the octets that one target takes, if there are none but of `family` or smaller ones: its
/// address as resolved, and what the engine keeps of it.
pub const fn per_target(family: Family) -> u64 {
    (size_of::<SocketAddr>() + engine::memory_per_target(family)) as u64
}

/// Returns the octets that a sweep of `targets` needs.
pub fn needed(targets: u128, family: Family) -> u64 {
    u64::try_from(targets.saturating_mul(per_target(family).into())).unwrap_or(u64::MAX)
}

/// Returns the octets that can be had without swapping (MemAvailable, proc_meminfo(5)), if the
/// kernel says.
pub fn available() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Returns the most octets that this process has had in memory (VmHWM, proc_pid_status(5)), if the
/// kernel says.
pub fn peak() -> Option<u64> {
    parse(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

fn parse_available(meminfo: &str) -> Option<u64> {
    parse(meminfo, "MemAvailable:")
}

/// Both files hold lines such as `VmHWM:      5096 kB`.
fn parse(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
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
        assert_eq!(needed(2, Family::V4), 2 * per_target(Family::V4));
        assert!(needed(2, Family::V6) > needed(2, Family::V4));
        assert!(peak().is_some_and(|octets| octets > 0));
        assert_eq!(needed(u128::MAX, Family::V4), u64::MAX);
    }
}
