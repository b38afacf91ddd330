//! Where no BPF program can be loaded: a clear refusal, and the same from `doctor`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const KEEPSWEEP: &str = env!("CARGO_BIN_EXE_keepsweep");

fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    assert!(is_root || std::env::var_os("CI").is_none(), "lab tests need root");
    if !is_root {
        eprintln!("skipped: needs root");
    }
    is_root
}

/// Runs a command line in namespaces of its own, for the network and for mounts.
fn apart(words: &[&str]) -> Output {
    Command::new("unshare").args(["--net", "--mount"]).args(words).output().expect("unshare starts")
}

/// `before` comes before `keepsweep audit`, and before `keepsweep doctor`.
fn assert_refused(before: &[&str], keepsweep: &str, words: &[&str]) {
    let audit = apart(&[before, &[keepsweep, "audit"]].concat());
    let stderr = String::from_utf8_lossy(&audit.stderr).into_owned();
    println!("{before:?}: {stderr}");
    assert_eq!(audit.status.code(), Some(3), "{before:?}: {stderr}");
    assert!(audit.stdout.is_empty(), "{}", String::from_utf8_lossy(&audit.stdout));

    let doctor = apart(&[before, &[keepsweep, "doctor"]].concat());
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(3), "{before:?}: {said}");
    assert!(said.contains("audit"), "{said}");
    for word in words {
        assert!(stderr.contains(word), "{before:?}: {word}: {stderr}");
        assert!(said.contains(word), "{before:?}: {word}: {said}");
    }
}

#[test]
fn root_without_the_capability_is_told_so() {
    if !is_root() {
        return;
    }
    // CAP_SYS_ADMIN implies CAP_BPF. The other is what a container has by default.
    let container = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
        +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    for capabilities in ["-bpf,-sys_admin", container] {
        let before = ["setpriv", "--bounding-set", capabilities];
        assert_refused(&before, KEEPSWEEP, &["CAP_BPF"]);
    }
}

#[test]
fn an_ordinary_user_is_told_so() {
    if !is_root() {
        return;
    }
    // Where anybody may read it.
    let folder = tempfile::tempdir().expect("temporary folder");
    let allow = |path: &Path| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("chmod");
    };
    allow(folder.path());
    let copy = folder.path().join("keepsweep");
    std::fs::copy(KEEPSWEEP, &copy).expect("copy");
    allow(&copy);
    let before = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    assert_refused(&before, copy.to_str().expect("path"), &["CAP_BPF"]);
}

#[test]
fn a_kernel_without_btf_is_named() {
    if !is_root() {
        return;
    }
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    assert_refused(&["sh", "-c", hide, "sh"], KEEPSWEEP, &["BTF"]);
}
