//! Socket options that no crate names.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

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
