//! Socket options that no crate names.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Sets an option that takes the kernel's own layout `T` (setsockopt(2)).
///
/// # Errors
/// What the kernel said.
pub(super) fn set_option<T>(
    socket: &OwnedFd,
    level: i32,
    option: i32,
    value: &T,
) -> Result<(), Errno> {
    // SAFETY: the kernel reads exactly size_of::<T>() octets from `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// Reads an option of eight octets (getsockopt(2)).
///
/// # Errors
/// What the kernel said; EINVAL if it filled less than that.
pub(super) fn get_u64(socket: BorrowedFd<'_>, level: i32, option: i32) -> Result<u64, Errno> {
    let mut value = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` octets to `value`, which is as large, and their
    // number to `len`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    Errno::result(result)?;
    if len as usize == size_of::<u64>() { Ok(value) } else { Err(Errno::EINVAL) }
}
