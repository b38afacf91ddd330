//! Keeps RSTs and SYNs from sockets of this host's kernel, whatever addresses they came in with.
//!
//! The guard tells a connection by the addresses of its packets as they come in, and cannot know every
//! way in which a host may translate them (nftables, IPVS, BPF programs). The shield
//! (`xdp/shield.bpf.c`) tells it by the cookie of the socket, once the kernel has found that. It is
//! attached to the root of the cgroup2 hierarchy by a bpf_link: gone when the process is, however it
//! ends. Where that root cannot be had, as in a container with a cgroup namespace of its own, there is
//! no shield.

use super::guard::{chain, errno};
use super::{IoError, bpf};
use crate::wire::SeqNumber;
use aya::maps::{HashMap, MapData, MapError};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError};
use aya::{Ebpf, Pod};
use nix::errno::Errno;
use std::collections::{self, HashSet};
use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/shield.bpf.o"));
const PROGRAM: &str = "shield_ingress";
const MAP: &str = "shielded";

/// The one of this process: more of them would only be more work for every packet of the host.
static ATTACHED: Mutex<Weak<Program>> = Mutex::new(Weak::new());

/// Inode of the root of the whole hierarchy, which is what a cgroup namespace hides
/// (kernel/cgroup/cgroup.c, cgroup_setup_root).
const ROOT_INODE: u64 = 1;

/// `struct shield_kept` of `xdp/shared.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Kept {
    resets: u32,
    seq: u32,
}

const _: () = assert!(size_of::<Kept>() == 8);
// SAFETY: repr(C), Copy, no padding (asserted above), every bit pattern valid.
unsafe impl Pod for Kept {}

/// Keeps RSTs and SYNs from some sockets, for as long as it lives.
#[derive(Debug)]
pub struct Shield {
    program: Arc<Program>,
    /// The cookies of those sockets.
    held: Mutex<HashSet<u64>>,
}

impl Shield {
    /// Attaches the program to the root of the hierarchy, unless another one of this process has.
    ///
    /// Needs CAP_BPF and CAP_NET_ADMIN, and CAP_SYS_ADMIN where no cgroup2 hierarchy is mounted.
    ///
    /// # Errors
    /// The root of the hierarchy cannot be had, or the kernel refuses the program.
    pub fn open() -> Result<Shield, IoError> {
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        let program = match attached.upgrade() {
            Some(program) => program,
            None => Arc::new(Program::attach(&root()?)?),
        };
        *attached = Arc::downgrade(&program);
        Ok(Shield { program, held: Mutex::default() })
    }

    /// Keeps RSTs and SYNs from the socket with this cookie, from now on. Needs no privilege.
    ///
    /// # Errors
    /// Too many are held, or the kernel refuses.
    pub fn hold(&self, cookie: u64) -> Result<(), IoError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.contains(&cookie) {
            self.program.hold(cookie)?;
            held.insert(cookie);
        }
        Ok(())
    }

    /// Lets them through again, from now on.
    pub fn let_go(&self, cookie: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.remove(&cookie) {
            self.program.let_go(cookie);
        }
    }

    /// Returns SEG.SEQ of the last RST without ACK that was kept from the socket, if there was one since
    /// it is held.
    pub fn reset(&self, cookie: u64) -> Option<SeqNumber> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.contains(&cookie) { self.program.reset(cookie) } else { None }
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        held.iter().for_each(|&cookie| self.program.let_go(cookie));
    }
}

/// The attached program; detached when dropped.
struct Program {
    // Owns the program, and it owns its link.
    _programs: Ebpf,
    shielded: Mutex<Shielded>,
}

struct Shielded {
    map: HashMap<MapData, u64, Kept>,
    /// How many hold each cookie.
    holders: collections::HashMap<u64, usize>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

/// Looks for the root of the hierarchy and loads the program, and lets both go again.
///
/// # Errors
/// As [`Shield::open`].
pub fn rehearse() -> Result<(), IoError> {
    root()?;
    load().map(drop)
}

/// Loads the program; it is not attached yet.
fn load() -> Result<Ebpf, IoError> {
    let mut programs = bpf::load(OBJECT, &[]).map_err(|error| refused_program(&error))?;
    program(&mut programs)?.load().map_err(|error| refused_program(&error))?;
    Ok(programs)
}

fn program(programs: &mut Ebpf) -> Result<&mut CgroupSkb, IoError> {
    let program = programs.program_mut(PROGRAM).ok_or_else(missing)?;
    program.try_into().map_err(|error: ProgramError| refused_program(&error))
}

fn missing() -> IoError {
    refused_program(&io::Error::other("the embedded object does not have it"))
}

fn refused_program(error: &(dyn Error + 'static)) -> IoError {
    let source = errno(error).map_or_else(|| io::Error::other(chain(error)), Into::into);
    failed("attach the shield to", source, "needs CAP_BPF and CAP_NET_ADMIN: try sudo")
}

impl Program {
    fn attach(root: &File) -> Result<Program, IoError> {
        let mut programs = load()?;
        // A link is always one of several that may be there; the kernel takes no flag for it.
        program(&mut programs)?
            .attach(root, CgroupSkbAttachType::Ingress, CgroupAttachMode::Single)
            .map_err(|error| refused_program(&error))?;
        let map = programs.take_map(MAP).ok_or_else(missing)?;
        let map = HashMap::try_from(map).map_err(|error| refused_program(&error))?;
        let shielded = Shielded { map, holders: collections::HashMap::new() };
        Ok(Program { _programs: programs, shielded: Mutex::new(shielded) })
    }

    fn hold(&self, cookie: u64) -> Result<(), IoError> {
        let mut shielded = self.shielded.lock().unwrap_or_else(PoisonError::into_inner);
        let Shielded { map, holders } = &mut *shielded;
        let holders = holders.entry(cookie).or_default();
        if *holders == 0 {
            map.insert(cookie, Kept::default(), 0).map_err(|error| refused(cookie, &error))?;
        }
        *holders += 1;
        Ok(())
    }

    fn let_go(&self, cookie: u64) {
        let mut shielded = self.shielded.lock().unwrap_or_else(PoisonError::into_inner);
        let Shielded { map, holders } = &mut *shielded;
        let Some(count) = holders.get_mut(&cookie) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            holders.remove(&cookie);
            // Fails only if it is not there.
            let _ = map.remove(&cookie);
        }
    }

    fn reset(&self, cookie: u64) -> Option<SeqNumber> {
        let shielded = self.shielded.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { resets, seq } = shielded.map.get(&cookie, 0).ok()?;
        (resets > 0).then_some(SeqNumber(seq))
    }
}

fn refused(cookie: u64, error: &MapError) -> IoError {
    let source = errno(error).map_or_else(|| io::Error::other(chain(error)), Into::into);
    IoError {
        operation: "keep resets from",
        object: format!("the socket with cookie {cookie}"),
        source,
        remedy: "",
    }
}

fn failed(operation: &'static str, source: io::Error, remedy: &'static str) -> IoError {
    IoError { operation, object: "the root of the cgroup2 hierarchy".to_owned(), source, remedy }
}

/// Opens the root of the whole cgroup2 hierarchy.
fn root() -> Result<File, IoError> {
    const REMEDY: &str = "run keepsweep in the host's cgroup namespace, with cgroup2 mounted";
    const UNMOUNTED: &str = "cgroup2 is not mounted where keepsweep sees it, and mounting it for itself \
                             needs CAP_SYS_ADMIN: mount it, or try sudo";
    let is_root =
        |directory: &File| directory.metadata().is_ok_and(|metadata| metadata.ino() == ROOT_INODE);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounted = mount_points(&mounts).filter_map(|path| File::open(path).ok());
    if let Some(root) = mounted.find(is_root) {
        return Ok(root);
    }
    // As below `ip netns exec`, which mounts another /sys.
    let root = mount_detached().map_err(|source| {
        let is_forbidden = source.kind() == io::ErrorKind::PermissionDenied;
        failed("open", source, if is_forbidden { UNMOUNTED } else { REMEDY })
    })?;
    let hidden = || failed("open", io::Error::other("a cgroup namespace hides it"), REMEDY);
    Some(root).filter(is_root).ok_or_else(hidden)
}

/// Returns where cgroup2 is mounted (proc_pid_mountinfo(5)).
fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let is_it = kind.split(' ').next() == Some("cgroup2");
        place.split(' ').nth(4).filter(|_| is_it)
    })
}

/// Mounts cgroup2 nowhere, for as long as the descriptor is open.
fn mount_detached() -> io::Result<File> {
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    let descriptor = |result: libc::c_long| {
        let fd = Errno::result(result)?;
        let fd = libc::c_int::try_from(fd).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just made it for us, and nobody else knows it.
        Ok::<_, Errno>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: a string that ends with 0 and outlives the call, and a flag.
    let context =
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1_u32) })?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: an open descriptor; this command takes neither key nor value.
    let made = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, null, null, 0)
    };
    Errno::result(made)?;
    // SAFETY: an open descriptor, and two numbers.
    let mount =
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1_u32, 0_u32) })?;
    // What fsmount returns only names the place (O_PATH).
    File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_where_cgroup2_is_mounted() {
        let mountinfo = "\
            31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup2 rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:7 master:1 - cgroup2 none rw\n\
            42 31 0:38 / - cgroup2\n\ngarbage\n";
        assert_eq!(mount_points(mountinfo).collect::<Vec<_>>(), ["/sys/fs/cgroup/unified"]);
    }
}
