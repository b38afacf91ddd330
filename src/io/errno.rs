//! What an error number says of the path that it came from.
#![forbid(unsafe_code)]

use super::{IoError, Unsent};

impl Unsent {
    /// Says whether the path took no frame for reasons of its own (no link, no room), so that the
    /// frames that it refused are as good as others.
    pub fn is_of_path(&self) -> bool {
        let shortage = matches!(
            self.error.source.raw_os_error(),
            Some(libc::ENOBUFS | libc::EAGAIN | libc::ENOMEM)
        );
        shortage || self.error.is_of_link()
    }
}

impl IoError {
    /// Says whether the socket's own buffer is full: no frame leaves by it for the moment.
    pub fn is_of_buffer(&self) -> bool {
        self.source.raw_os_error() == Some(libc::EAGAIN)
    }

    /// Says whether the interface is down, without carrier or gone: what was to come in through it
    /// is lost as well.
    pub fn is_of_link(&self) -> bool {
        let errno = self.source.raw_os_error();
        matches!(errno, Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
    }
}
