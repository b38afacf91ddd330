//! Which CPU a thread runs on, and how long it had to wait for it.
#![forbid(unsafe_code)]

use super::IoError;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// Returns the CPUs that this thread may run on.
///
/// # Errors
/// The kernel would not tell.
pub fn allowed() -> Result<Vec<usize>, IoError> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| error("read the CPUs", errno))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect())
}

/// Keeps this thread on one CPU; threads that it spawns later too.
///
/// # Errors
/// There is no such CPU, or this process may not use it.
pub fn pin(cpu: usize) -> Result<(), IoError> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| error("pin to a CPU", errno))
}

/// Returns how long this thread has been ready to run while something else had its CPU
/// (/proc/thread-self/schedstat); zero where the kernel does not say.
pub fn waited() -> Duration {
    let nanos = fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn error(operation: &'static str, errno: nix::errno::Errno) -> IoError {
    IoError { operation, object: "this thread".to_owned(), source: errno.into(), remedy: "" }
}
