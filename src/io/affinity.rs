//! Which CPU a thread runs on.
#![forbid(unsafe_code)]

use super::IoError;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, to the kernel.
const THIS: Pid = Pid::from_raw(0);

/// Lets the calling thread run on no CPU but `cpu`. Needs no privilege.
///
/// # Errors
/// There is no such CPU, it is offline, or the thread's cpuset does not have it.
pub fn pin(cpu: usize) -> Result<(), IoError> {
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(THIS, &set)).map_err(|errno| error(cpu, errno))
}

/// Checks that a thread can be pinned to each of `cpus`, and leaves the calling thread where it was.
///
/// # Errors
/// As [`pin`].
pub fn check(cpus: &[usize]) -> Result<(), IoError> {
    let before = sched_getaffinity(THIS).map_err(|errno| error(0, errno))?;
    let result = cpus.iter().try_for_each(|&cpu| pin(cpu));
    sched_setaffinity(THIS, &before).map_err(|errno| error(0, errno))?;
    result
}

fn error(cpu: usize, errno: Errno) -> IoError {
    let remedy = match errno {
        Errno::EINVAL => {
            "this machine has no such CPU, it is offline, or this process may not use it: see lscpu -e \
             and /proc/self/status (Cpus_allowed_list)"
        }
        _ => "",
    };
    IoError {
        operation: "pin a thread",
        object: format!("CPU {cpu}"),
        source: errno.into(),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(THIS).unwrap();
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect()
    }

    #[test]
    fn checking_leaves_the_thread_where_it_was() {
        let before = allowed();
        check(&before).unwrap();
        assert_eq!(allowed(), before);
        for cpu in [CpuSet::count() - 1, usize::MAX] {
            let error = check(&[before[0], cpu]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("pin a thread on CPU {cpu}: ")), "{error}");
            assert!(error.contains("no such CPU"), "{error}");
        }
        assert_eq!(allowed(), before);
    }

    #[test]
    fn a_pinned_thread_has_one_cpu() {
        let last = *allowed().last().unwrap();
        let pinned = std::thread::spawn(move || {
            pin(last).unwrap();
            allowed()
        });
        assert_eq!(pinned.join().unwrap(), [last]);
    }
}
