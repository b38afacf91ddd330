//! Whose a socket is.
#![forbid(unsafe_code)]

use super::{Connection, HostError};
use crate::io::IoError;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

/// Inode of the first PID namespace, the same on every Linux (`PROC_PID_INIT_INO`,
/// include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A process that has a descriptor of a socket, and how many others have one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The process: of several the one with the lowest PID, which mostly is the parent.
    pub pid: u32,
    /// Its name, of 15 octets at most.
    pub comm: String,
    /// The lowest descriptor by which it has the socket.
    pub fd: u32,
    /// How many processes have one, itself included: more than one after a fork.
    pub processes: u32,
}

/// Who had which TCP socket at the time of reading.
#[derive(Clone, Default, Debug)]
pub struct Owners {
    by_inode: HashMap<u64, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    owner: Owner,
    // Descriptors come process by process, so that remembering one tells them apart; only threads
    // that share no descriptors (unshare(CLONE_FILES)) come on their own, and may count twice.
    last_pid: u32,
}

impl Owners {
    /// Returns the owner of a connection; `None` if no process has it any more, has it yet, or if it
    /// is in flight between two.
    pub fn of(&self, connection: &Connection) -> Option<&Owner> {
        self.of_inode(connection.inode)
    }

    /// Returns the owner of the socket with this inode.
    pub fn of_inode(&self, inode: u64) -> Option<&Owner> {
        self.by_inode.get(&inode).map(|entry| &entry.owner)
    }

    /// Returns how many sockets have an owner.
    pub fn len(&self) -> usize {
        self.by_inode.len()
    }

    /// Says whether no socket has one.
    pub fn is_empty(&self) -> bool {
        self.by_inode.is_empty()
    }

    /// Finds out by /proc, as [`super::Reader::owners`] does by BPF; slower. Sockets of other kinds
    /// are among them.
    ///
    /// Leaves out the processes of other users, without CAP_SYS_PTRACE.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn by_proc() -> Result<Owners, HostError> {
        let mut owners = Owners::default();
        for pid in numbered(Path::new("/proc")).map_err(listing)? {
            let root = format!("/proc/{pid}");
            // A process may be gone by now, or be another user's.
            let Ok(descriptors) = numbered(Path::new(&format!("{root}/fd"))) else { continue };
            let mut comm = None;
            for fd in descriptors {
                let Ok(target) = fs::read_link(format!("{root}/fd/{fd}")) else { continue };
                let inode = target
                    .to_str()
                    .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
                let Some(inode) = inode.and_then(|inode| inode.parse().ok()) else { continue };
                let comm = comm.get_or_insert_with(|| {
                    fs::read_to_string(format!("{root}/comm")).unwrap_or_default().trim().to_owned()
                });
                owners.add(inode, pid, fd, || comm.clone());
            }
        }
        Ok(owners)
    }

    pub(super) fn add(&mut self, inode: u64, pid: u32, fd: u32, comm: impl FnOnce() -> String) {
        match self.by_inode.get_mut(&inode) {
            None => {
                let owner = Owner { pid, comm: comm(), fd, processes: 1 };
                self.by_inode.insert(inode, Entry { owner, last_pid: pid });
            }
            Some(Entry { owner, last_pid }) => {
                if *last_pid != pid {
                    *last_pid = pid;
                    owner.processes += 1;
                }
                if (pid, fd) < (owner.pid, owner.fd) {
                    if owner.pid != pid {
                        owner.comm = comm();
                    }
                    (owner.pid, owner.fd) = (pid, fd);
                }
            }
        }
    }
}

/// Says whether owners must be looked for in /proc: the BPF iterator tells PIDs as the first namespace
/// has them, which mean nothing in another.
pub fn owners_are_in_proc() -> bool {
    !fs::read_link("/proc/self/ns/pid").is_ok_and(|ns| ns.as_os_str() == FIRST_PID_NAMESPACE)
}

/// Returns the control group of a process, such as `/system.slice/docker-3f….scope`: the unified
/// hierarchy's, else that of the first one named. `None` if the process is gone.
pub fn cgroup(pid: u32) -> Option<String> {
    cgroup_of(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// Takes the path out of a text as /proc/PID/cgroup has it (cgroups(7)).
pub(super) fn cgroup_of(text: &str) -> Option<String> {
    let paths = || {
        text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            Some((parts.next()?, parts.nth(1)?))
        })
    };
    let unified = paths().find(|(number, path)| *number == "0" && *path != "/");
    let any = || paths().find(|(_, path)| *path != "/").or_else(|| paths().next());
    unified.or_else(any).map(|(_, path)| path.to_owned())
}

/// Returns the entries of a directory whose names are numbers, in order.
pub(super) fn numbered(directory: &Path) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(directory)?.filter_map(Result::ok);
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn listing(source: io::Error) -> HostError {
    HostError::Io(IoError {
        operation: "list processes",
        object: "/proc".to_owned(),
        source,
        remedy: "mount /proc",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_processes_are_counted_and_the_first_is_named() {
        let mut owners = Owners::default();
        for (pid, fd) in [(20, 9), (20, 7), (20, 8), (10, 3), (30, 1)] {
            owners.add(5, pid, fd, || format!("p{pid}"));
        }
        let first = Owner { pid: 10, comm: "p10".into(), fd: 3, processes: 3 };
        assert_eq!(owners.of_inode(5), Some(&first));
        assert_eq!((owners.of_inode(6), owners.len()), (None, 1));
    }

    #[test]
    fn control_groups_of_either_hierarchy() {
        let of = |text| cgroup_of(text);
        assert_eq!(of("0::/system.slice/a.service\n").as_deref(), Some("/system.slice/a.service"));
        assert_eq!(of("5:cpu,cpuacct:/docker/3f\n0::/\n").as_deref(), Some("/docker/3f"));
        assert_eq!(of("1:name=systemd:/a:b\n").as_deref(), Some("/a:b"));
        assert_eq!(of("0::/\n").as_deref(), Some("/"));
        assert_eq!(of("nonsense"), None);
    }
}
