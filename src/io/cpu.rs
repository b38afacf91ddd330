//! Which CPUs a thread may run on, and how long it had to wait for one.
#![forbid(unsafe_code)]

use super::IoError;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Returns the CPUs that this thread may run on.
///
/// # Errors
/// The kernel would not tell.
pub fn allowed() -> Result<Vec<usize>, IoError> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| IoError {
        operation: "read the CPUs",
        object: "this thread".to_owned(),
        source: errno.into(),
        remedy: "",
    })?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Returns how long this thread has been ready to run while something else had its CPU
/// (/proc/thread-self/schedstat); zero where the kernel does not say.
pub fn waited() -> Duration {
    let nanos = fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}
