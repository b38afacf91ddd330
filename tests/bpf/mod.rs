//! What another program can do to our XDP program: what `bpftool link` does.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// linux/bpf.h: enum bpf_cmd, enum bpf_link_type.
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_TYPE_XDP: u32 = 6;

fn bpf(command: libc::c_long, attributes: &mut [u32]) -> io::Result<i32> {
    let octets = size_of_val(attributes);
    // SAFETY: the kernel reads and writes `octets` octets at `attributes`, and where a pointer is
    // among them the caller's buffer behind it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), octets) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn by_id(command: libc::c_long, id: u32) -> io::Result<OwnedFd> {
    let fd = bpf(command, &mut [id, 0, 0])?;
    // SAFETY: the kernel has just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the XDP link by which the program of this number hangs.
fn link_of(program: u32) -> Option<OwnedFd> {
    let mut id = 0;
    // Bounded: each step has a larger number.
    for _ in 0..100_000 {
        let mut next = [id, 0, 0];
        bpf(BPF_LINK_GET_NEXT_ID, &mut next).ok()?;
        id = next[1];
        // It may be gone by now.
        let Ok(link) = by_id(BPF_LINK_GET_FD_BY_ID, id) else { continue };
        let mut info = [0_u32; 16];
        let at = info.as_mut_ptr() as u64;
        let octets = size_of_val(&info) as u32;
        let mut request = [link.as_raw_fd() as u32, octets, at as u32, (at >> 32) as u32];
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request).expect("what link it is");
        if (info[0], info[2]) == (BPF_LINK_TYPE_XDP, program) {
            return Some(link);
        }
    }
    None
}

/// Detaches the program of this number from its interface, as `bpftool link detach` does.
pub fn detach(program: u32) {
    let link = link_of(program).expect("a link");
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd() as u32]).expect("detached");
}

/// Puts another program in its place.
pub fn replace(program: u32, other: u32) {
    let link = link_of(program).expect("a link");
    let other = by_id(BPF_PROG_GET_FD_BY_ID, other).expect("a program");
    let fds = [link.as_raw_fd() as u32, other.as_raw_fd() as u32];
    bpf(BPF_LINK_UPDATE, &mut [fds[0], fds[1], 0, 0]).expect("replaced");
}

/// Says whether anything hangs by the program of this number.
pub fn is_linked(program: u32) -> bool {
    link_of(program).is_some()
}

/// Says whether there is a program of this number.
pub fn is_loaded(program: u32) -> bool {
    by_id(BPF_PROG_GET_FD_BY_ID, program).is_ok()
}
