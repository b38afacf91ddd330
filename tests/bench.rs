//! `keepsweep bench` in network namespaces: every frame accounted for, nothing left behind. Never how
//! fast: that depends on what else the machine does.

mod netns;

use netns::{in_namespace, ip};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const BENCH: &[&str] = &[env!("CARGO_BIN_EXE_keepsweep"), "bench"];

fn bench(arguments: &str) -> Output {
    run(&[], arguments)
}

fn run(before: &[&str], arguments: &str) -> Output {
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    let words = [before, BENCH, &arguments].concat();
    Command::new(words[0]).args(&words[1..]).output().expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The rows of a run that went well.
fn rows(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    let text = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    for row in &rows {
        assert_eq!(row["schema"], "keepsweep/1");
        assert_eq!(row["type"], "bench");
        assert_eq!(row["peers"], 65_536);
        assert!(count(row, "rounds") > 0, "{row}");
        assert!(row["pps"]["max"].as_f64() > Some(0.0), "{row}");
        assert!(row["pps"]["min"].as_f64() <= row["pps"]["median"].as_f64(), "{row}");
        assert!(row["pps"]["median"].as_f64() <= row["pps"]["max"].as_f64(), "{row}");
        assert!(row["cpu_ns_per_frame"]["max"].as_f64() > Some(0.0), "{row}");
    }
    rows
}

fn count(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("no {field} in {row}"))
}

fn names(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["io"].as_str().expect("a name")).collect()
}

#[test]
fn every_frame_sent_is_counted_by_the_interface() {
    in_namespace(|| {
        let before = ip("-details link show");
        let rows = rows(&bench("tx --seconds 0.2 --format ndjson"));
        assert_eq!(names(&rows), ["raw", "packet", "xdp"]);
        for row in &rows {
            assert_eq!(row["bench"], "tx");
            let sent = count(row, "frames_sent") + count(row, "bare_frames_sent");
            assert!(count(row, "frames_sent") > 0 && count(row, "bare_frames_sent") > 0);
            assert_eq!(count(row, "interface_frames"), sent, "{row}");
            assert_eq!(count(row, "frames_refused"), 0, "{row}");
            assert_eq!(row["zerocopy"], false);
            assert_eq!(row["sendto_pps"].is_object(), row["io"] == "raw", "{row}");
            assert!(row["ratio_to_bare"]["median"].is_f64(), "{row}");
            assert!(row["ratio_to_raw_sendto"].is_f64(), "{row}");
        }
        assert_eq!(ip("-details link show"), before);
    });
}

#[test]
fn every_reply_offered_is_accounted_for() {
    in_namespace(|| {
        let before = ip("-details link show");
        let rows = rows(&bench("rx --seconds 0.6 --format ndjson"));
        assert_eq!(names(&rows), ["packet", "xdp"]);
        for row in &rows {
            assert_eq!(row["bench"], "rx");
            let received = count(row, "frames_received");
            assert_eq!(count(row, "replies_rejected"), 0, "{row}");
            assert!(count(row, "replies_matched") > 0, "{row}");
            assert_eq!(
                count(row, "replies_matched") + count(row, "bare_frames_received"),
                received,
                "{row}"
            );
            let lost = count(row, "ring_dropped") + count(row, "lost_before_ring");
            assert_eq!(received + lost, count(row, "frames_offered"), "{row}");
        }
        assert_eq!(rows[0]["xdp_mode"], Value::Null);
        assert!(rows[1]["xdp_mode"].is_string());
        assert_eq!(ip("-details link show"), before);
    });
}

#[test]
fn matching_takes_no_privilege() {
    let bare: &[&str] = match nix::unistd::geteuid().is_root() {
        true => &["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"],
        false => &[],
    };
    let rows = rows(&run(bare, "match --seconds 0.2 --format ndjson"));
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["bench"], "match");
    assert_eq!(count(&rows[0], "replies_rejected"), 0);
    assert!(count(&rows[0], "replies_matched") > 0);
    assert!(rows[0]["parse_cpu_ns_per_frame"]["median"].as_f64() > Some(0.0));
}

#[test]
fn without_privilege_it_says_which() {
    in_namespace(|| {
        let bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"];
        let output = run(&bare, "tx");
        assert_eq!(output.status.code(), Some(3));
        assert!(said(&output).contains("CAP_SYS_ADMIN"), "{}", said(&output));
        assert!(output.stdout.is_empty());
    });
}

fn raise_veth() {
    ip("link add up0 type veth peer name up1");
    // Counters are compared: neither end is to solicit routers or report groups.
    if Path::new("/proc/net/if_inet6").exists() {
        ip("link set up0 addrgenmode none");
        ip("link set up1 addrgenmode none");
    }
    ip("link set up0 up");
    ip("link set up1 up");
    ip("address add 10.0.0.1/24 dev up0");
}

#[test]
fn a_named_interface_is_flooded_only_if_nothing_else_needs_it() {
    in_namespace(|| {
        raise_veth();
        let quick = "tx -i up0 --seconds 0.1 --format ndjson";
        let rows_of = |output: &Output| {
            let rows = rows(output);
            for row in &rows {
                assert_eq!(row["interface"], "up0");
                assert_eq!(row["interface_kind"], Value::Null);
                let sent = count(row, "frames_sent") + count(row, "bare_frames_sent");
                // Its own kernel may have had something to say as well.
                assert!(count(row, "interface_frames") >= sent, "{row}");
            }
            names(&rows).join(",")
        };
        assert_eq!(rows_of(&bench(quick)), "packet,xdp");

        ip("route add default via 10.0.0.2");
        let before = ip("-s link show up0");
        let output = bench(quick);
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("say --yes"), "{}", said(&output));
        assert!(output.stdout.is_empty());
        assert_eq!(ip("-s link show up0"), before, "nothing was sent");

        assert_eq!(rows_of(&bench(&format!("{quick} --yes --io packet"))), "packet");

        for (arguments, code, why) in [
            ("tx -i up0 --yes --io raw", 2, "by ARP"),
            ("tx -i nosuch0", 2, "no such interface; there are lo"),
            ("tx -i lo", 2, "without MAC addresses"),
        ] {
            let output = bench(arguments);
            assert_eq!(output.status.code(), Some(code), "{arguments}: {}", said(&output));
            assert!(said(&output).contains(why), "{arguments}: {}", said(&output));
        }
        ip("link set up1 down");
        let output = bench(quick);
        assert_eq!(output.status.code(), Some(3));
        assert!(said(&output).contains("bring it up"), "{}", said(&output));
    });
}

#[test]
fn an_interrupted_run_tells_what_it_knows() {
    in_namespace(|| {
        let mut child = Command::new(BENCH[0])
            .args(["bench", "tx", "--io", "packet,xdp", "--seconds", "600", "--format", "ndjson"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // It says what it begins with once its signals are listened for.
        let mut stderr = child.stderr.take().expect("a pipe");
        let mut byte = [0];
        std::io::Read::read_exact(&mut stderr, &mut byte).expect("it says something");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(130));
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).expect("a JSON object");
            assert_eq!(row["io"], "packet");
            assert!(count(&row, "frames_sent") > 0);
        }
    });
}

#[test]
fn a_killed_run_leaves_nothing() {
    in_namespace(|| {
        let before = ip("-details link show");
        let mut child = Command::new(BENCH[0])
            .args(["bench", "rx", "--io", "xdp", "--seconds", "600"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stderr = child.stderr.take().expect("a pipe");
        let mut byte = [0];
        std::io::Read::read_exact(&mut stderr, &mut byte).expect("it says something");
        let tasks = format!("/proc/{}/task", child.id());
        // The namespace of the thread that measures.
        let namespace = std::fs::read_dir(tasks)
            .expect("its threads")
            .filter_map(|task| std::fs::read_link(task.ok()?.path().join("ns/net")).ok())
            .next()
            .expect("a namespace");
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        assert_eq!(ip("-details link show"), before);
        let ours = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        assert_ne!(namespace, ours);
        // The namespace itself goes when its last socket is closed, soon after.
        let clock = keepsweep::time::Clock;
        let begun = clock.now();
        let is_there = || {
            let listed = Command::new("lsns").args(["-t", "net", "-n", "-o", "NS"]).output();
            let listed = String::from_utf8(listed.expect("run lsns").stdout).expect("text");
            let number = namespace.to_string_lossy();
            let number = number.trim_start_matches("net:[").trim_end_matches(']').to_owned();
            listed.split_whitespace().any(|line| line == number)
        };
        while is_there() {
            assert!(clock.now().since(begun) < Duration::from_secs(10), "namespace left behind");
            clock.sleep(Duration::from_millis(20));
        }
    });
}
