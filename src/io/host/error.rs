//! What can go wrong.
#![forbid(unsafe_code)]

use crate::io::IoError;
use crate::io::guard::{chain, errno};
use nix::errno::Errno;
use std::error::Error;
use std::path::PathBuf;

/// Why this host's connections, or its namespaces, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel does not describe its own types.
    #[error("read the kernel's types from {}: {reason}; {}", path.display(), Self::NO_BTF)]
    Btf {
        /// Where they should be.
        path: PathBuf,
        /// Why they could not be read.
        reason: String,
    },
    /// The kernel refused a program.
    #[error("load BPF program {program}: {reason}; {remedy}")]
    Load {
        /// Which one.
        program: &'static str,
        /// Why, with the end of the verifier's log.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The clock of this process is not the kernel's.
    #[error(
        "read this host's connections: this process's CLOCK_MONOTONIC is not the kernel's, so \
         that no timestamp can be told; {}",
        Self::TIME_NAMESPACE
    )]
    TimeNamespace,
    /// A namespace went away since it was listed.
    #[error("enter network namespace {name}: it is gone; list the namespaces again")]
    Gone {
        /// Its label.
        name: String,
    },
    /// Any other operation.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl HostError {
    /// What to do where the kernel does not describe its types.
    pub const NO_BTF: &str = "needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted";
    const TIME_NAMESPACE: &str = "run keepsweep outside of that time namespace";
    const PRIVILEGE: &str =
        "needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, outside any user namespace: try sudo";
    const KERNEL: &str = "needs Linux 5.12 or newer with CONFIG_BPF_SYSCALL and CONFIG_PROC_FS";

    pub(super) fn load(program: &'static str, cause: &(dyn Error + 'static)) -> HostError {
        let remedy = match errno(cause) {
            Some(Errno::EPERM | Errno::EACCES) => Self::PRIVILEGE,
            _ => Self::KERNEL,
        };
        HostError::Load { program, reason: chain(cause), remedy }
    }

    pub(super) fn attach(program: &'static str, cause: &(dyn Error + 'static)) -> HostError {
        let remedy = match errno(cause) {
            Some(Errno::EPERM | Errno::EACCES) => Self::PRIVILEGE,
            Some(Errno::EMFILE) => "raise `ulimit -n`",
            _ => Self::KERNEL,
        };
        let source = match errno(cause) {
            Some(errno) => errno.into(),
            None => std::io::Error::other(chain(cause)),
        };
        HostError::Io(IoError {
            operation: "create BPF iterator",
            object: program.to_owned(),
            source,
            remedy,
        })
    }

    /// Returns its text without the remedy.
    pub fn without_remedy(&self) -> String {
        let mut text = self.to_string();
        let remedy = self.remedy();
        if !remedy.is_empty() && text.ends_with(remedy) {
            text.truncate(text.len() - remedy.len());
            text.truncate(text.trim_end_matches("; ").len());
        }
        text
    }

    /// Returns what to do about it, or an empty text.
    pub fn remedy(&self) -> &str {
        match self {
            HostError::Btf { .. } => Self::NO_BTF,
            HostError::Load { remedy, .. } => remedy,
            HostError::TimeNamespace => Self::TIME_NAMESPACE,
            HostError::Gone { .. } => "list the namespaces again",
            HostError::Io(error) => error.remedy,
        }
    }
}
