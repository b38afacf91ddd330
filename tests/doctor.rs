//! `keepsweep doctor` in network namespaces: what it finds there, and that it leaves no trace.

mod netns;

use netns::{in_namespace, ip};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::process::{Command, Output};

const DOCTOR: &[&str] = &[env!("CARGO_BIN_EXE_keepsweep"), "doctor", "--format", "ndjson"];

fn run(before: &[&str], after: &[&str]) -> Output {
    let words = [before, DOCTOR, after].concat();
    Command::new(words[0]).args(&words[1..]).output().expect("it starts")
}

/// Findings by check, and by interface where they are about one.
fn findings(output: &Output) -> HashMap<String, Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = HashMap::new();
    for line in text.lines() {
        let finding: Value = serde_json::from_str(line).expect("a line is a JSON object");
        assert_eq!(finding["schema"], "keepsweep/1");
        assert_eq!(finding["type"], "check");
        let needs_remedy = finding["status"] != "ok";
        assert_eq!(finding["remedy"].is_string(), needs_remedy, "{line}");
        let check = finding["check"].as_str().expect("a name").to_owned();
        let key = match finding["interface"].as_str() {
            Some(interface) => format!("{check} {interface}"),
            None => check,
        };
        assert!(found.insert(key, finding).is_none(), "twice: {line}");
    }
    found
}

fn raise_veth() {
    ip("link add up0 type veth peer name up1");
    ip("link set up0 up");
    ip("link set up1 up");
    ip("address add 10.0.0.1/24 dev up0");
}

#[test]
fn root_can_sweep_and_nothing_is_left() {
    in_namespace(|| {
        raise_veth();
        let before = ip("-details link show up0");
        let output = run(&[], &[]);
        let found = findings(&output);
        assert_eq!(output.status.code(), Some(0), "{found:#?}");
        for check in [
            "capabilities",
            "guard",
            "tcx",
            "btf",
            "connections",
            "shield",
            "audit-reach",
            "source-ports",
            "interface up0",
        ] {
            assert_eq!(found[check]["status"], "ok", "{}", found[check]);
        }
        let up0 = found["interface up0"]["found"].as_str().expect("text");
        assert!(up0.starts_with("packet path, veth, MTU 1500"), "{up0}");
        assert!(up0.contains("XDP native") && !up0.contains("tcx"), "{up0}");
        assert!(found.contains_key("interface lo") && found.contains_key("interface up1"));
        assert_eq!(ip("-details link show up0"), before);
        assert_eq!(findings(&run(&[], &[])), found);
    });
}

#[test]
fn one_interface_alone() {
    in_namespace(|| {
        raise_veth();
        ip("link add up2 type veth peer name up3");
        let output = run(&[], &["-i", "up0"]);
        let found = findings(&output);
        assert_eq!(output.status.code(), Some(0), "{found:#?}");
        assert!(!found.contains_key("interface lo") && found.contains_key("interface up0"));

        let output = run(&[], &["-i", "up2"]);
        let off = &findings(&output)["interface up2"];
        assert_eq!(output.status.code(), Some(3), "{off}");
        assert_eq!(off["remedy"], "ip link set dev up2 up");

        let output = run(&[], &["-i", "nosuch0"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            said,
            "keepsweep: interface nosuch0: no such interface; there are lo, up1, up0, up3, up2\n"
        );
    });
}

#[test]
fn without_privilege_it_names_what_is_missing() {
    in_namespace(|| {
        raise_veth();
        let output = run(&["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"], &[]);
        let found = findings(&output);
        assert_eq!(output.status.code(), Some(3), "{found:#?}");
        let capabilities = &found["capabilities"];
        assert_eq!(capabilities["status"], "missing");
        assert_eq!(capabilities["found"], "missing CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF");
        let remedy = capabilities["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains("sudo setcap") && remedy.contains("cap_bpf"), "{remedy}");
        assert_eq!(found["guard"]["status"], "missing");
        let remedy = found["connections"]["remedy"].as_str().expect("a remedy");
        assert!(remedy.starts_with("needs CAP_BPF and CAP_PERFMON"), "{remedy}");
        assert_eq!(
            found["connections"]["found"],
            "load BPF program connections: Operation not permitted (os error 1); audit cannot run, \
             a sweep can"
        );
        let hidden = found["audit-reach"]["found"].as_str().expect("text");
        assert!(hidden.starts_with("without CAP_SYS_ADMIN and CAP_SYS_PTRACE"), "{hidden}");
        // What it may not look at it does not call missing.
        assert_eq!(found["tcx"]["status"], "warn");
        assert_eq!(found["interface up0"]["status"], "ok");
    });
}

/// There it has every capability, and none that counts.
#[test]
fn a_user_namespace_is_not_enough() {
    in_namespace(|| {
        let output = run(&["unshare", "--user", "--map-root-user", "--net", "--"], &[]);
        let found = findings(&output);
        assert_eq!(output.status.code(), Some(3), "{found:#?}");
        let capabilities = found["capabilities"]["found"].as_str().expect("text");
        assert!(capabilities.contains("user namespace"), "{capabilities}");
        assert_eq!(found["guard"]["status"], "missing");
        let remedy = found["guard"]["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains("outside any user namespace"), "{remedy}");
        let remedy = found["connections"]["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains("outside any user namespace"), "{remedy}");
        assert_eq!(found["audit-reach"]["status"], "warn");
    });
}

#[test]
fn without_btf_a_sweep_can_run_and_an_audit_cannot() {
    in_namespace(|| {
        raise_veth();
        let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
        let output = run(&["unshare", "--mount", "sh", "-c", hide, "sh"], &[]);
        let found = findings(&output);
        assert_eq!(output.status.code(), Some(0), "{found:#?}");
        let connections = &found["connections"];
        assert_eq!(
            connections["found"],
            "read the kernel's types from /sys/kernel/btf/vmlinux: No such file or directory (os \
             error 2); audit cannot run, a sweep can"
        );
        assert_eq!(connections["remedy"], found["btf"]["remedy"]);
    });
}

#[test]
fn another_clock_than_the_kernels_is_told() {
    in_namespace(|| {
        let _one = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let output = run(&["unshare", "--time", "--monotonic", "5000", "--"], &[]);
        let connections = &findings(&output)["connections"];
        assert_eq!(connections["remedy"], "run keepsweep outside of that time namespace");
    });
}

#[test]
fn ports_in_the_way_are_named() {
    in_namespace(|| {
        raise_veth();
        let listener = std::net::TcpListener::bind("127.0.0.1:61005").expect("bound");
        let output = run(&[], &[]);
        let ports = &findings(&output)["source-ports"];
        assert_eq!(output.status.code(), Some(3), "{ports}");
        let found = ports["found"].as_str().expect("text");
        assert!(found.contains("LISTEN 127.0.0.1:61005"), "{found}");
        drop(listener);

        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 62000").expect("set");
        let output = run(&[], &[]);
        let ports = &findings(&output)["source-ports"];
        assert_eq!(output.status.code(), Some(3), "{ports}");
        let remedy = ports["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains("--source-ports 1024-9999"), "{remedy}");
    });
}

#[test]
fn too_few_files_are_told() {
    in_namespace(|| {
        raise_veth();
        let output = run(&["prlimit", "--nofile=30:30"], &[]);
        let files = &findings(&output)["open-files"];
        assert_eq!(output.status.code(), Some(3), "{files}");
        assert_eq!(files["status"], "missing");
        assert!(files["remedy"].as_str().is_some_and(|text| text.contains("--nofile=")), "{files}");
    });
}

#[test]
fn the_table_says_what_to_do() {
    in_namespace(|| {
        raise_veth();
        let keepsweep = &DOCTOR[..2];
        let output = Command::new(keepsweep[0])
            .arg(keepsweep[1])
            .args(["-i", "up0"])
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("CHECK") && text.ends_with("\n\nsweep can run\n"), "{text}");

        ip("link set up1 down");
        let output = Command::new(keepsweep[0])
            .arg(keepsweep[1])
            .args(["-i", "up0"])
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("\n                          → check the cable"), "{text}");
        assert!(text.ends_with("sweep cannot run yet: 1 missing, see →\n"), "{text}");
    });
}
