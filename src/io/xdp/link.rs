//! The bpf_link that the XDP program hangs on, made and asked by our own system calls.
//!
//! aya attaches by netlink where the kernel refuses a link (EINVAL), and what is attached so would
//! outlive a killed process; nor does it say what has become of a link.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// linux/bpf.h: enum bpf_cmd, enum bpf_attach_type, enum bpf_link_type.
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_XDP: u32 = 37;
const BPF_LINK_TYPE_XDP: u32 = 6;

/// `link_create` of `union bpf_attr`, as far as XDP uses it; the kernel takes the rest for zero.
#[repr(C)]
struct Create {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `info` of `union bpf_attr`.
#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info` of a link of XDP, as far as it is needed.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    kind: u32,
    id: u32,
    prog_id: u32,
    _aligned: u32,
    ifindex: u32,
    _aligned_too: u32,
}

const _: () = assert!(size_of::<Create>() == 16 && size_of::<GetInfo>() == 16);

/// A program on an interface; taken off when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    fd: OwnedFd,
}

/// What hangs on what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hanging {
    /// The interface; 0 if the link was detached or the interface deleted.
    pub ifindex: u32,
    /// The number of the program, which whoever has the link can replace.
    pub program: u32,
}

impl Link {
    /// Attaches `program` to the interface `ifindex`; `flags` are `XDP_FLAGS_*`.
    ///
    /// # Errors
    /// The kernel's, among them EBUSY: another program is attached.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> Result<Link, Errno> {
        let prog_fd = u32::try_from(program.as_raw_fd()).map_err(|_| Errno::EBADF)?;
        let mut create = Create { prog_fd, target_ifindex: ifindex, attach_type: BPF_XDP, flags };
        let fd = bpf(BPF_LINK_CREATE, &mut create)?;
        // SAFETY: the kernel has just made the descriptor (close-on-exec), and nobody else has it.
        Ok(Link { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Asks the kernel what the link is now. Needs no privilege.
    ///
    /// # Errors
    /// The kernel's.
    pub fn hanging(&self) -> Result<Hanging, Errno> {
        let mut info = Info::default();
        let mut request = GetInfo {
            bpf_fd: u32::try_from(self.fd.as_raw_fd()).map_err(|_| Errno::EBADF)?,
            info_len: size_of::<Info>() as u32,
            info: (&raw mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request)?;
        match info.kind {
            BPF_LINK_TYPE_XDP => Ok(Hanging { ifindex: info.ifindex, program: info.prog_id }),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Calls bpf(2) with the kernel's own layout `T`, one of those of this file.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> Result<i32, Errno> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` octets at `attributes`, which is borrowed
    // mutably for the call, and through it only `Info` above, whose length the request says.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    Errno::result(result).map(|value| value as i32)
}
