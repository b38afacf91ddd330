//! Linux capabilities: which are needed, and giving up the others, or all of them.

use super::IoError;
use caps::{CapSet, CapsHashSet};
use std::fmt;
use std::io;

pub use caps::Capability;

/// What a sweep needs until its paths and guard are open.
///
/// CAP_NET_RAW for AF_PACKET; CAP_BPF to load the guard, CAP_NET_ADMIN to load and attach a tcx
/// program. The guard's programs compare packet bytes only, never pointers, so the verifier does
/// not ask for CAP_PERFMON.
pub const SWEEP: &[Capability] =
    &[Capability::CAP_NET_RAW, Capability::CAP_NET_ADMIN, Capability::CAP_BPF];

/// What it takes to read the connections of this host's kernel: CAP_BPF to load a BPF iterator,
/// CAP_PERFMON since it follows pointers.
pub const CONNECTIONS: &[Capability] = &[Capability::CAP_BPF, Capability::CAP_PERFMON];

/// What it takes to look at other users' processes and to enter network namespaces.
///
/// CAP_SYS_PTRACE for what /proc shows to a debugger only (proc(5)), CAP_DAC_READ_SEARCH for the
/// directory that it is in, CAP_SYS_ADMIN for setns(2).
pub const OTHERS: &[Capability] =
    &[Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// Capabilities that this thread lacks; says how to grant them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "missing {}; run `sudo keepsweep …`, or grant {} once: \
     sudo setcap {}+ep \"$(which keepsweep)\"",
    list(.missing, ", ", |name| name.to_owned()),
    if .missing.len() == 1 { "it" } else { "them" },
    list(.needed, ",", str::to_lowercase)
)]
pub struct MissingCapabilities {
    /// What is missing, in the order of `needed`.
    pub missing: Vec<Capability>,
    /// Everything that was asked for: what setcap has to name, since it replaces what a file has.
    pub needed: Vec<Capability>,
}

fn list(capabilities: &[Capability], separator: &str, write: impl Fn(&str) -> String) -> String {
    capabilities
        .iter()
        .map(|capability| write(&capability.to_string()))
        .collect::<Vec<_>>()
        .join(separator)
}

/// Checks that the calling thread has every capability of `needed` in its effective set.
///
/// A set that cannot be read counts as empty. Inside a user namespace the kernel may still refuse
/// what this allows: the guard asks for CAP_BPF outside of any.
///
/// # Errors
/// [`MissingCapabilities`], which lists all of them at once.
pub fn require(needed: &[Capability]) -> Result<(), MissingCapabilities> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    check(needed, &held)
}

fn check(needed: &[Capability], held: &CapsHashSet) -> Result<(), MissingCapabilities> {
    let missing: Vec<_> = needed.iter().copied().filter(|need| !held.contains(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(MissingCapabilities { missing, needed: needed.to_vec() })
}

/// Gives up every capability of the calling thread, for good, and sets `no_new_privs`. See [`keep`].
///
/// # Errors
/// As [`keep`].
pub fn drop_all() -> Result<(), IoError> {
    keep(&[])
}

/// Gives up every capability of the calling thread but those of `wanted` that it has, for good, and
/// sets `no_new_privs`.
///
/// Clears the inheritable and ambient sets too, and the bounding set where that is allowed
/// (CAP_SETPCAP; root has it, a binary with file capabilities has not). With `no_new_privs` nothing
/// that is executed later gains any, not even for uid 0 or a setuid file.
///
/// Capabilities belong to threads: threads that exist already keep theirs, threads that are
/// spawned later have those of the one that spawns them.
///
/// Open descriptors keep working (sockets, bpf_links, maps). What is opened later is checked
/// against the plain user: root stays uid 0, but without CAP_DAC_OVERRIDE, so that a file or
/// directory of another user is writable only if its mode says so. Open output files before.
///
/// # Errors
/// [`IoError`] naming the set that could not be changed or holds something else afterwards.
pub fn keep(wanted: &[Capability]) -> Result<(), IoError> {
    let permitted = caps::read(None, CapSet::Permitted);
    let permitted = permitted.map_err(|error| failed("permitted set", error))?;
    let kept: CapsHashSet =
        wanted.iter().copied().filter(|capability| permitted.contains(capability)).collect();
    // First, as it needs CAP_SETPCAP, which the others take away.
    if matches!(caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP), Ok(true)) {
        for capability in caps::runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability)
                .map_err(|error| failed("bounding set", error))?;
        }
    }
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(|error| failed("ambient set", error))?;
    }
    for (set, name, left) in [
        (CapSet::Inheritable, "inheritable set", &CapsHashSet::new()),
        (CapSet::Effective, "effective set", &kept),
        (CapSet::Permitted, "permitted set", &kept),
    ] {
        caps::set(None, set, left).map_err(|error| failed(name, error))?;
        let found = caps::read(None, set).map_err(|error| failed(name, error))?;
        if found != *left {
            return Err(failed(name, "not what it was set to"));
        }
    }
    nix::sys::prctl::set_no_new_privs().map_err(|errno| IoError {
        operation: "set no_new_privs",
        object: "this thread".to_owned(),
        source: errno.into(),
        remedy: "",
    })
}

fn failed(set: &str, reason: impl fmt::Display) -> IoError {
    IoError {
        operation: "drop capabilities",
        object: set.to_owned(),
        // The crate keeps the text of the error and not its number.
        source: io::Error::other(reason.to_string()),
        remedy: "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_every_missing_capability_and_both_remedies() {
        let held = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
        let error = check(SWEEP, &held).unwrap_err();
        assert_eq!(error.missing, [Capability::CAP_NET_RAW, Capability::CAP_BPF]);
        assert_eq!(
            error.to_string(),
            "missing CAP_NET_RAW, CAP_BPF; run `sudo keepsweep …`, or grant them once: \
             sudo setcap cap_net_raw,cap_net_admin,cap_bpf+ep \"$(which keepsweep)\""
        );
    }

    #[test]
    fn is_content_with_more_than_needed() {
        let held = SWEEP.iter().copied().chain([Capability::CAP_CHOWN]).collect();
        assert_eq!(check(SWEEP, &held), Ok(()));
    }
}
