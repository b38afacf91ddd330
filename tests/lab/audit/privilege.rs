//! Without the privilege to load BPF programs: a clear refusal, and the same from `doctor`.

use std::process::{Command, Output};

/// Runs keepsweep in a network namespace of its own, without some of root's capabilities.
fn run_without(capabilities: &str, args: &[&str]) -> Output {
    Command::new("unshare")
        .args(["--net", "setpriv", "--bounding-set", capabilities])
        .arg(env!("CARGO_BIN_EXE_keepsweep"))
        .args(args)
        .output()
        .expect("unshare starts")
}

#[test]
fn without_bpf_an_audit_says_what_it_needs_and_doctor_agrees() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "lab tests need root");
        eprintln!("skipped: needs root");
        return;
    }
    // What a container has by default, and root without BPF alone. CAP_SYS_ADMIN implies it.
    let container = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,\
        +net_bind_service,+net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    for capabilities in ["-bpf,-sys_admin", container] {
        let audit = run_without(capabilities, &["audit"]);
        let stderr = String::from_utf8_lossy(&audit.stderr).into_owned();
        assert_eq!(audit.status.code(), Some(3), "{capabilities}: {stderr}");
        assert!(stderr.contains("CAP_BPF"), "{capabilities}: {stderr}");
        assert!(audit.stdout.is_empty(), "{}", String::from_utf8_lossy(&audit.stdout));

        let doctor = run_without(capabilities, &["doctor"]);
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert_eq!(doctor.status.code(), Some(3), "{said}");
        assert!(said.contains("audit") && said.contains("CAP_BPF"), "{capabilities}: {said}");
    }
}
