//! What a process holds.
#![forbid(unsafe_code)]

use super::HostError;
use super::owner::numbered;
use crate::io::IoError;
use crate::io::privilege::{self, Capability};
use crate::io::sockopt::get_u64;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the inodes of the sockets that process `pid` holds, TCP's and others; `None` if there is
/// no such process.
///
/// # Errors
/// It is another user's, without CAP_SYS_PTRACE.
pub fn sockets_of(pid: u32) -> Result<Option<HashSet<u64>>, HostError> {
    let directory = format!("/proc/{pid}/fd");
    let Some(descriptors) = unless_gone(pid, numbered(Path::new(&directory)))? else {
        return Ok(None);
    };
    let sockets = descriptors.into_iter().filter_map(|fd| {
        // Closed meanwhile.
        let target = fs::read_link(format!("{directory}/{fd}")).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    });
    Ok(Some(sockets.collect()))
}

/// Returns the cookie of a socket (SO_COOKIE, socket(7)): [`super::Connection::cookie`].
///
/// # Errors
/// It is not a socket.
pub fn cookie_of(socket: BorrowedFd<'_>) -> Result<u64, HostError> {
    get_u64(socket, libc::SOL_SOCKET, libc::SO_COOKIE).map_err(|errno| {
        HostError::Io(IoError {
            operation: "get SO_COOKIE",
            object: format!("descriptor {}", socket.as_raw_fd()),
            source: errno.into(),
            remedy: "needs a socket",
        })
    })
}

/// Returns the inode of the network namespace of process `pid`; `None` if there is no such process.
///
/// # Errors
/// It is another user's, without CAP_SYS_PTRACE.
pub fn netns_of(pid: u32) -> Result<Option<u64>, HostError> {
    let metadata = unless_gone(pid, fs::metadata(format!("/proc/{pid}/ns/net")))?;
    Ok(metadata.map(|metadata| metadata.ino()))
}

/// Returns the name of process `pid` (`comm`, proc(5)); `None` if it is gone.
pub fn comm(pid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned())
}

/// Says what to do where the kernel hides a process from us.
pub fn hidden_remedy() -> &'static str {
    hidden_from(privilege::require(&[Capability::CAP_SYS_PTRACE]).is_ok())
}

fn hidden_from(may_trace: bool) -> &'static str {
    match may_trace {
        // Landlock, for one, or a sandbox around the machine's own first process.
        true => "a security module keeps it even from CAP_SYS_PTRACE",
        false => "needs CAP_SYS_PTRACE for processes of other users: try sudo",
    }
}

fn unless_gone<T>(pid: u32, result: io::Result<T>) -> Result<Option<T>, HostError> {
    match result {
        Ok(found) => Ok(Some(found)),
        // ESRCH: it ended between the directory and what is in it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        Err(source) => Err(HostError::Io(IoError {
            operation: "read /proc",
            object: format!("process {pid}"),
            source,
            remedy: hidden_remedy(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_refusal_names_the_process_and_what_was_read() {
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        let text = unless_gone::<()>(4711, Err(refused)).expect_err("refused").to_string();
        assert!(text.starts_with("read /proc on process 4711: Permission denied"), "{text}");
        assert!(text.ends_with(hidden_remedy()), "{text}");
        assert!(hidden_from(false).contains("sudo"), "{text}");
        assert!(!hidden_from(true).contains("sudo"), "whoever has the capability is told no lie");
    }

    #[test]
    fn own_sockets_and_namespace_are_found_and_nobodys_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let link =
            fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).expect("a link");
        let own = std::process::id();
        let sockets = sockets_of(own).expect("may look").expect("there");
        let inode =
            sockets.iter().find(|inode| link.to_string_lossy() == format!("socket:[{inode}]"));
        assert!(inode.is_some(), "{link:?} is not among {sockets:?}");
        let netns = fs::metadata("/proc/self/ns/net").expect("own namespace").ino();
        assert_eq!(netns_of(own).expect("may look"), Some(netns));
        // Beyond the largest pid_max (2^22).
        assert_eq!(sockets_of(u32::MAX).expect("no error"), None);
        assert_eq!(netns_of(u32::MAX).expect("no error"), None);
    }
}
