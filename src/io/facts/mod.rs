//! What this host is like, as far as it matters to a sweep. Looks only, and changes nothing.
#![forbid(unsafe_code)]

mod links;
mod netdev;
mod rules;
mod translators;

pub use links::{Link, links, xdp_programs};
pub use netdev::{XdpFeatures, xdp_features_of};
pub use rules::rules_translate;
pub use translators::may_translate_untracked;

use nix::sys::resource::{Resource, getrlimit};
use std::fs;
use std::io;
use std::path::Path;

/// Inode of the first user namespace, the same on every Linux (`PROC_USER_INIT_INO`,
/// include/linux/proc_ns.h).
const FIRST_USER_NAMESPACE: &str = "user:[4026531837]";

/// The running kernel and its settings for BPF.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// Whether it describes its own types (/sys/kernel/btf/vmlinux).
    pub btf: bool,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u64>,
    /// `net.core.bpf_jit_enable`; only the first network namespace has it.
    pub bpf_jit: Option<u64>,
}

impl Kernel {
    /// Reads it.
    ///
    /// # Errors
    /// /proc is not mounted or cannot be read.
    pub fn read() -> io::Result<Kernel> {
        Ok(Kernel {
            release: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            bpf_jit: number("/proc/sys/net/core/bpf_jit_enable"),
        })
    }

    /// Returns major and minor version, or `None` if the release does not start with them.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut parts = self.release.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Says whether this process lives in a user namespace of its own, where a capability does not reach
/// BPF; `None` if /proc does not tell.
pub fn in_user_namespace() -> Option<bool> {
    let namespace = fs::read_link("/proc/self/ns/user").ok()?;
    Some(namespace.as_os_str() != FIRST_USER_NAMESPACE)
}

/// Connection tracking in this network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Conntrack {
    /// Connections tracked now.
    pub count: u64,
    /// Connections at most.
    pub max: u64,
    /// Whether a connection is picked up in the middle (`nf_conntrack_tcp_loose`).
    pub tcp_loose: Option<bool>,
    /// Whether segments outside the window are let through (`nf_conntrack_tcp_be_liberal`).
    pub be_liberal: Option<bool>,
    /// Seconds that an unanswered SYN is remembered (`nf_conntrack_tcp_timeout_syn_sent`).
    pub syn_sent_s: Option<u64>,
    /// Seconds that an idle connection is remembered (`nf_conntrack_tcp_timeout_established`).
    pub established_s: Option<u64>,
}

impl Conntrack {
    /// Reads it; `None` if it is not loaded.
    pub fn read() -> Option<Conntrack> {
        let setting = |name: &str| number(&format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        Some(Conntrack {
            count: setting("count")?,
            max: setting("max")?,
            tcp_loose: setting("tcp_loose").map(|value| value != 0),
            be_liberal: setting("tcp_be_liberal").map(|value| value != 0),
            syn_sent_s: setting("tcp_timeout_syn_sent"),
            established_s: setting("tcp_timeout_established"),
        })
    }
}

/// Returns how many neighbours the kernel remembers at most (`gc_thresh3`), for IPv4 and IPv6. The
/// first network namespace alone has the setting, and it holds for all.
pub fn neighbours_at_most() -> [Option<u64>; 2] {
    ["ipv4", "ipv6"]
        .map(|family| number(&format!("/proc/sys/net/{family}/neigh/default/gc_thresh3")))
}

/// Returns how many files this process may open, and how many it may allow itself.
///
/// # Errors
/// The kernel refused to tell.
pub fn open_files_at_most() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

/// Returns how many octets this process may lock in memory; `u64::MAX` is no limit.
///
/// # Errors
/// The kernel refused to tell.
pub fn locked_memory_at_most() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_MEMLOCK)?.0)
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases() {
        let version =
            |release: &str| Kernel { release: release.into(), ..Kernel::default() }.version();
        assert_eq!(version("6.18.44-generic"), Some((6, 18)));
        assert_eq!(version("6.6-rc1"), Some((6, 6)));
        assert_eq!(version("5.14.0-427.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("next"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn this_kernel_is_read() {
        assert!(Kernel::read().expect("proc is mounted").version().is_some());
        let (soft, hard) = open_files_at_most().expect("a limit");
        assert!(0 < soft && soft <= hard);
        assert!(in_user_namespace().is_some());
    }
}
