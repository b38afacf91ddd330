//! The network namespaces of this host.
#![forbid(unsafe_code)]

use super::HostError;
use super::owner::{cgroup, listing, numbered};
use crate::io::IoError;
use nix::sched::{CloneFlags, setns};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

/// Ways into one namespace that are kept, in case a process ends meanwhile.
const WAYS: usize = 4;

/// A network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its inode: [`super::Connection::netns`].
    pub inode: u64,
    /// The names that `ip netns` has for it, in order; mostly one or none.
    pub names: Vec<String>,
    /// The process with the lowest PID in it, if there is one.
    pub pid: Option<u32>,
    /// That process's name.
    pub comm: Option<String>,
    /// The container of that process: the first 12 digits of its id.
    pub container: Option<String>,
    /// Whether the calling thread was in it.
    pub is_own: bool,
    ways: Vec<PathBuf>,
}

impl Namespace {
    /// Returns what to call it: its name, else its container, else its process, else its inode.
    pub fn label(&self) -> String {
        if let Some(name) = self.names.first() {
            return name.clone();
        }
        match (&self.container, &self.comm, self.pid) {
            (Some(container), _, _) => format!("container {container}"),
            (None, Some(comm), Some(pid)) => format!("{comm} (pid {pid})"),
            _ => format!("net:[{}]", self.inode),
        }
    }

    /// Runs `f` on a new thread inside of it, and returns what it returns. The calling thread stays
    /// where it is; to run in its own namespace needs no privilege.
    ///
    /// # Errors
    /// [`HostError::Gone`], or no CAP_SYS_ADMIN.
    ///
    /// # Panics
    /// If `f` does.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, HostError> {
        thread::scope(|scope| {
            let run = || self.enter_for_good().map(|()| f());
            let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, run);
            match thread.map(|thread| thread.join()) {
                Ok(Ok(ran)) => ran,
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(self.error("start a thread for network namespace", error)),
            }
        })
    }

    /// Moves the calling thread into it; nothing leads back. To stay in its own namespace needs no
    /// privilege.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_for_good(&self) -> Result<(), HostError> {
        let file = self.open()?;
        if own_inode().ok() == Some(self.inode) {
            return Ok(());
        }
        setns(&file, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| self.error("enter network namespace", errno.into()))
    }

    /// Opens it by whichever way still leads there.
    fn open(&self) -> Result<File, HostError> {
        for way in &self.ways {
            match File::open(way) {
                // The path may lead to another one by now: PIDs and names are used again.
                Ok(file) => {
                    let found = file.metadata();
                    let found = found.map_err(|e| self.error("look at network namespace", e))?;
                    if found.ino() == self.inode {
                        return Ok(file);
                    }
                }
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::ENOENT | libc::ESRCH | libc::EINVAL)
                    ) => {}
                Err(error) => return Err(self.error("open network namespace", error)),
            }
        }
        Err(HostError::Gone { name: self.label() })
    }

    fn error(&self, operation: &'static str, source: io::Error) -> HostError {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, also where the namespace was made: try sudo"
            }
            Some(libc::EMFILE) => "raise `ulimit -n`",
            _ => "",
        };
        HostError::Io(IoError { operation, object: self.label(), source, remedy })
    }
}

/// The namespaces that were found, and what could not be looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Namespaces {
    /// Each once; our own first, then those with names, then by the PID of the first process.
    pub found: Vec<Namespace>,
    /// Processes whose namespace may not be looked at, without CAP_SYS_PTRACE.
    pub hidden_processes: usize,
}

/// Lists the network namespaces of this host: the calling thread's, those that are mounted, as `ip
/// netns` and container engines do, and those of every thread that can be seen.
///
/// One that is kept by nothing but an open file is not found.
///
/// # Errors
/// /proc cannot be read.
pub fn namespaces() -> Result<Namespaces, HostError> {
    let mut found = own_and_mounted()?;
    let mut hidden_processes = 0;
    for pid in numbered(Path::new("/proc")).map_err(listing)? {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        // A process may be gone by now.
        for tid in numbered(&tasks).unwrap_or_default() {
            let way = tasks.join(format!("{tid}/ns/net"));
            let inode = match fs::metadata(&way) {
                Ok(metadata) => metadata.ino(),
                Err(error) => {
                    hidden_processes += usize::from(is_refusal(&error) && tid == pid);
                    continue;
                }
            };
            let namespace = at(&mut found, inode, Some(&way));
            if namespace.pid.is_none() {
                namespace.pid = Some(pid);
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
                namespace.comm = comm.map(|comm| comm.trim().to_owned());
                namespace.container = cgroup(pid).and_then(|path| container(&path));
            }
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    for namespace in &mut found {
        namespace.names.sort_unstable();
    }
    found.sort_by_cached_key(|namespace| {
        let named = (namespace.names.is_empty(), namespace.names.clone());
        (!namespace.is_own, named, namespace.pid, namespace.inode)
    });
    Ok(Namespaces { found, hidden_processes })
}

/// Returns the network namespace of the calling thread, without looking for processes in it.
///
/// # Errors
/// /proc cannot be read.
pub fn own_namespace() -> Result<Namespace, HostError> {
    let mut found = own_and_mounted()?.into_values();
    // It is always among them.
    let own = found.find(|namespace| namespace.is_own);
    let mut own = own.ok_or_else(|| listing(io::ErrorKind::NotFound.into()))?;
    own.names.sort_unstable();
    Ok(own)
}

fn own_and_mounted() -> Result<HashMap<u64, Namespace>, HostError> {
    let mut found = HashMap::new();
    // Without a way: this one is another thread's in `enter`.
    at(&mut found, own_inode().map_err(listing)?, None).is_own = true;

    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").map_err(listing)?;
    for (inode, way) in mounted(&mounts) {
        let namespace = at(&mut found, inode, Some(&way));
        if let (Some(name), true) = (way.file_name(), is_named(&way)) {
            let name = name.to_string_lossy().into_owned();
            if !namespace.names.contains(&name) {
                namespace.names.push(name);
            }
        }
    }
    Ok(found)
}

/// Returns the inode of this thread's namespace.
fn own_inode() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

fn at<'a>(
    found: &'a mut HashMap<u64, Namespace>,
    inode: u64,
    way: Option<&Path>,
) -> &'a mut Namespace {
    let namespace = found.entry(inode).or_insert_with(|| Namespace {
        inode,
        names: Vec::new(),
        pid: None,
        comm: None,
        container: None,
        is_own: false,
        ways: Vec::new(),
    });
    if let Some(way) = way
        && namespace.ways.len() < WAYS
    {
        namespace.ways.push(way.to_owned());
    }
    namespace
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// Whether `ip netns` knows it by the name of its file (ip-netns(8)); container engines mount theirs
/// elsewhere, under names that say nothing.
fn is_named(way: &Path) -> bool {
    way.parent().is_some_and(|parent| {
        parent == Path::new("/run/netns") || parent == Path::new("/var/run/netns")
    })
}

/// Takes the mounted network namespaces out of a text as /proc/PID/mountinfo has it
/// (proc_pid_mountinfo(5)): the inode is in the root of the mount, `net:[4026532008]`.
fn mounted(mounts: &str) -> impl Iterator<Item = (u64, PathBuf)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        let inode = fields.next()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
        Some((inode, PathBuf::from(unescaped(fields.next()?))))
    })
}

/// Undoes the kernel's escapes of space, tab, newline and backslash (mangle, fs/seq_file.c).
fn unescaped(path: &str) -> String {
    [(r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", r"\")]
        .iter()
        .fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

/// Finds the id of a container in the path of a control group: 64 hexadecimal digits, as every
/// engine has it somewhere in it.
fn container(cgroup: &str) -> Option<String> {
    let mut runs = cgroup.rsplit(|c: char| !c.is_ascii_hexdigit());
    runs.find(|run| run.len() == 64).map(|id| id[..12].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_namespaces_are_told_from_others() {
        let text = "\
            29 1 254:0 / / rw - ext4 /dev/vda rw\n\
            84 25 0:4 net:[4026532008] /run/netns/blue rw shared:1 - nsfs nsfs rw\n\
            85 25 0:4 mnt:[4026532009] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n\
            86 25 0:4 net:[4026532010] /run/docker/netns/a\\040b rw - nsfs nsfs rw\n\
            87 25 0:4 net:[nonsense] /run/netns/odd rw - nsfs nsfs rw\n\
            88 25\n";
        let found: Vec<_> = mounted(text).collect();
        let blue = (4_026_532_008, PathBuf::from("/run/netns/blue"));
        let docker = (4_026_532_010, PathBuf::from("/run/docker/netns/a b"));
        assert_eq!(found, [blue.clone(), docker.clone()]);
        assert!(is_named(&blue.1) && !is_named(&docker.1));
    }

    #[test]
    fn containers_of_several_engines() {
        let id = "3f".repeat(32);
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/docker/{id}"),
            format!("/kubepods/besteffort/pod4d0ce8b8-1e2f-4a3b-8c5d-1a2b3c4d5e6f/{id}"),
            format!("/machine.slice/libpod-{id}.scope/container"),
        ] {
            assert_eq!(container(&path).as_deref(), Some("3f3f3f3f3f3f"), "{path}");
        }
        assert_eq!(container("/user.slice/user-1000.slice"), None);
        assert_eq!(container(&format!("/{id}00")), None);
    }
}
