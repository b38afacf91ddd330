//! The AF_XDP path among others: faults of our own host, programs and sweeps of others, what it needs
//! and what it leaves behind.

use crate::bpf;
use crate::faults::{
    ALL, assert_all_alive, assert_routed_undetermined, finish, lost_for_a_while, lost_for_good,
    on_prober, start_by,
};
use crate::support::{Lab, Sweep};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

const SMALL: &[&str] = &["10.99.0.0/26", "10.96.1.0/26", "-p", "8080", "--io", "xdp"];

/// Returns the number of the XDP program on an interface of the prober.
fn program_on(lab: &Lab, interface: &str) -> Option<u32> {
    let text = lab.script(&["exec", "ip", "-j", "link", "show", "dev", interface]);
    let links: Value = serde_json::from_str(&text).expect("JSON");
    links[0]["xdp"]["prog"]["id"].as_u64().map(|id| id as u32)
}

fn await_program(lab: &Lab, interface: &str) -> u32 {
    lab.await_condition("an XDP program", || program_on(lab, interface).is_some());
    program_on(lab, interface).expect("a program")
}

#[test]
fn interface_down() {
    lost_for_good("x-down", "xdp", "up0: down", |lab| {
        lab.script(&["fault", "link-down", "prober/up0"]);
    });
}

#[test]
fn carrier_lost() {
    lost_for_good("x-carrier", "xdp", "up0: without carrier", |lab| {
        lab.script(&["fault", "link-down", "router/up0"]);
    });
}

#[test]
fn interface_deleted() {
    lost_for_good("x-gone", "xdp", "up0: gone", |lab| on_prober(lab, "ip link del up0"));
}

/// With the other end of a veth both go.
#[test]
fn other_end_deleted() {
    lost_for_good("x-peer", "xdp", "up0: gone", |lab| {
        lab.script(&["exec", "router", "ip", "link", "del", "up0"]);
    });
}

#[test]
fn interface_down_and_up() {
    lost_for_a_while("x-flap", "xdp", "prober/up0");
}

#[test]
fn carrier_lost_and_found() {
    lost_for_a_while("x-flap2", "xdp", "router/up0");
}

/// The kernel tells nobody. Answers are heard beside, and the guard keeps them from our kernel.
#[test]
fn program_detached() {
    let Some(lab) = Lab::up("x-detach", &[]) else { return };
    let mut sweep = start_by(&lab, "xdp");
    let program = await_program(&lab, "up0");
    bpf::detach(program);
    assert_eq!(program_on(&lab, "up0"), None);
    sweep.await_message("up0: our XDP program was detached by someone else");
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    // The handshakes' last ACKs are long past: what is answered now would be answered by a RST.
    assert!(sweep.summary["guard_dropped"].as_u64() > Some(0), "{}", sweep.summary);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

/// While connections are opened: SYN-ACKs that come to our kernel would draw RSTs.
#[test]
fn program_detached_during_the_handshakes() {
    let Some(lab) = Lab::up("x-detach2", &[]) else { return };
    let args = ["10.99.0.0/20", "-p", "8080", "--io", "xdp", "--rate", "2000", "--idle", "3s"];
    let sweep = lab.start(&[&args[..], &["--format", "ndjson"]].concat());
    lab.await_connections("8080", 500);
    bpf::detach(await_program(&lab, "up0"));
    let sweep = sweep.finish();
    assert_eq!(sweep.count("alive"), 4096, "{}\n{}", sweep.stderr, sweep.summary);
    assert!(sweep.stderr.contains("was detached by someone else"), "{}", sweep.stderr);
    sweep.assert_accounts();
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

/// Another program is a reason to believe no silence: it may keep what is ours.
#[test]
fn program_replaced() {
    let Some(lab) = Lab::up("x-replace", &[]) else { return };
    let mut sweep = start_by(&lab, "xdp");
    let (ours, other) = (await_program(&lab, "up0"), await_program(&lab, "lan0"));
    bpf::replace(ours, other);
    sweep.await_message("not ours, is attached there now");
    lab.script(&["fault", "drop", "10.99.0.0/22"]);
    let sweep = finish(sweep, 25);
    assert_routed_undetermined(&sweep, &["observer-fault"]);
    assert_eq!(sweep.code, Some(1), "{}", sweep.stderr);
}

#[test]
fn queues_added_and_interface_renamed() {
    let Some(lab) = Lab::up("x-queues", &[]) else { return };
    lab.set_queues(1);
    on_prober(&lab, "ip link set up0 up");
    let mut sweep = start_by(&lab, "xdp");
    on_prober(&lab, "ethtool -L up0 rx 2 tx 2");
    sweep.await_message("up0: has 2 queues now instead of 1");
    on_prober(&lab, "ip link property add dev up0 altname other0");
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
}

/// A name is for messages: the interface is its index.
#[test]
fn interface_renamed() {
    let Some(lab) = Lab::up("x-rename", &[]) else { return };
    let sweep = start_by(&lab, "xdp");
    on_prober(&lab, "ip link set lan0 name lan9");
    let sweep = finish(sweep, 25);
    assert_all_alive(&sweep);
    // For the lab, which addresses it by name.
    on_prober(&lab, "ip link set lan9 name lan0");
}

/// Checks that nothing of an ended run is left.
fn assert_nothing_left(lab: &Lab, programs: &[u32]) {
    // The kernel lets go of programs some time after their last user.
    lab.await_condition("programs gone", || !programs.iter().any(|&id| bpf::is_loaded(id)));
    for &program in programs {
        assert!(!bpf::is_linked(program), "a link to {program}");
    }
    for interface in ["up0", "lan0"] {
        assert_eq!(program_on(lab, interface), None, "{interface}");
        let filters = lab.script(&["exec", "tc", "filter", "show", "dev", interface, "ingress"]);
        assert_eq!(filters, "", "{interface}");
    }
}

fn ended_by(name: &str, signal: Signal) {
    let Some(lab) = Lab::up(name, &[]) else { return };
    let settings = || lab.script(&["exec", "ip", "-details", "link", "show"]);
    let before = settings();
    let sweep = start_by(&lab, "xdp");
    let programs = [await_program(&lab, "up0"), await_program(&lab, "lan0")];
    assert!(programs.iter().all(|&program| bpf::is_loaded(program)));
    sweep.signal(signal);
    let output = sweep.output();
    assert_nothing_left(&lab, &programs);
    // Without counters of carrier changes: nothing else may differ.
    assert_eq!(settings(), before);
    if signal == Signal::SIGINT {
        let sweep = Sweep::read(output);
        assert_eq!(sweep.code, Some(130), "{}", sweep.stderr);
        assert_eq!(sweep.count("undetermined"), ALL, "{}", sweep.summary);
        sweep.assert_accounts();
        assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
    }
}

#[test]
fn nothing_is_left_by_ctrl_c() {
    ended_by("x-int", Signal::SIGINT);
}

#[test]
fn nothing_is_left_by_kill_9() {
    ended_by("x-kill", Signal::SIGKILL);
}

/// The queues of the killed run are still held for a moment.
#[test]
fn again_at_once_after_kill_9() {
    let Some(lab) = Lab::up("x-again", &[]) else { return };
    for round in 0..10 {
        let args = [SMALL, &["--idle", "1h", "--format", "ndjson"]].concat();
        let sweep = lab.start(&args);
        lab.await_connections("8080", 1);
        sweep.signal(Signal::SIGKILL);
        sweep.output();
        let sweep = lab.sweep(&[SMALL, &["--seed", &round.to_string()]].concat());
        assert_eq!(sweep.code, Some(0), "round {round}: {}", sweep.stderr);
        assert_eq!(sweep.count("alive"), 128, "round {round}: {}", sweep.summary);
        sweep.assert_accounts();
        lab.script(&["relisten"]);
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let said = stderr(output);
    println!("{said}");
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
    assert!(output.stdout.is_empty(), "printed records");
}

/// Who comes second is refused: one of the two would hear nothing, and call every peer down.
#[test]
fn two_sweeps_of_which_one_hears_alone() {
    let Some(lab) = Lab::up("x-two", &[]) else { return };
    let resting = ["10.99.0.0/26", "-p", "8080", "--idle", "1h", "--format", "ndjson"];
    for (first, second, words) in [
        ("xdp", "xdp", "hears them by AF_XDP alone"),
        ("xdp", "packet", "hears them by AF_XDP alone"),
        ("packet", "xdp", "would hear nothing any more beside AF_XDP"),
    ] {
        let running = lab.start(&[&resting[..], &["--io", first]].concat());
        lab.await_connections("8080", 64);
        let output = lab.start(&["10.99.1.1:8080", "--io", second]).output();
        let pid = format!("keepsweep process {}", running.pid());
        let words = [words, "source ports 61000-65534", "--source-ports", &pid];
        assert_refused(&output, 2, &words);
        // On other ports they do not get into each other's way, unless both want the queue.
        let ports = ["10.99.2.0/26", "-p", "8080", "--source-ports", "50000-60999"];
        let range = "net.ipv4.ip_local_port_range=32768 49999";
        lab.script(&["exec", "sysctl", "-q", range]);
        let args = [&ports[..], &["--io", second, "--format", "ndjson"]].concat();
        if (first, second) == ("xdp", "xdp") {
            let words = ["bind AF_XDP socket on up0 queue 0", "another program uses the queue"];
            assert_refused(&lab.start(&args).output(), 3, &words);
        } else {
            let sweep = lab.start(&args).finish();
            assert_eq!(sweep.count("alive"), 64, "{}\n{}", sweep.stderr, sweep.summary);
            sweep.assert_accounts();
        }
        running.signal(Signal::SIGINT);
        let ended = running.finish();
        assert_eq!(ended.count("undetermined"), 64, "{}", ended.summary);
        assert_eq!(lab.connections("8080"), 0, "connections left on the peers");
    }
}

/// Runs `keepsweep sweep` in the prober with these capabilities alone, as a user of whom nothing else runs:
/// locked memory is counted by user, and given back a moment after the process has ended.
fn run_with(lab: &Lab, capabilities: &[&str], limits: &[&str], args: &[&str]) -> Output {
    static USERS: AtomicU32 = AtomicU32::new(60_000);
    let user = USERS.fetch_add(1, Ordering::Relaxed);
    let list: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let list = list.join(",");
    let sets = ["--inh-caps", "--ambient-caps"].map(|set| format!("{set}={list}"));
    // Nobody may look into the folder of whoever builds.
    let copy = Path::new("/run/keepsweep-lab").join(lab.namespace("keepsweep"));
    std::fs::copy(env!("CARGO_BIN_EXE_keepsweep"), &copy).expect("copied");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &lab.namespace("prober"), "prlimit"]).args(limits);
    command.args(["setpriv", &format!("--reuid={user}"), "--regid=65534", "--clear-groups"]);
    if !capabilities.is_empty() {
        command.args(sets);
    }
    let output = command
        .arg(&copy)
        .arg("sweep")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let _ = std::fs::remove_file(&copy);
    output
}

const NEEDED: [&str; 3] = ["net_raw", "net_admin", "bpf"];
const ROOM: &[&str] = &["--memlock=8388608:8388608"];

#[test]
fn every_capability_is_asked_for_and_no_other() {
    let Some(lab) = Lab::up("x-caps", &[]) else { return };
    lab.set_queues(1);
    for missing in NEEDED {
        let others: Vec<_> = NEEDED.into_iter().filter(|name| *name != missing).collect();
        let output = run_with(&lab, &others, ROOM, &["10.99.0.1:8080", "--io", "xdp"]);
        let name = format!("missing CAP_{}", missing.to_uppercase());
        assert_refused(&output, 3, &[&name, "sudo setcap"]);
    }
    let args = [SMALL, &["--format", "ndjson"]].concat();
    let sweep = Sweep::read(run_with(&lab, &NEEDED, &["--memlock=4194304:4194304"], &args));
    assert_eq!(sweep.code, Some(0), "{}", sweep.stderr);
    assert_eq!(sweep.count("alive"), 128, "{}", sweep.summary);
    // Two interfaces of a queue each share 4 MiB: neither takes what the other one is to have.
    let notes = sweep.stderr.matches("1152 KiB of frames a queue instead of 2304").count();
    assert_eq!(notes, 2, "{}", sweep.stderr);
    sweep.assert_accounts();
}

#[test]
fn locked_memory_is_shared_out() {
    let Some(lab) = Lab::up("x-mem", &[]) else { return };
    lab.set_queues(2);
    let args = ["10.99.0.0/26", "-p", "8080", "--io", "xdp", "--format", "ndjson"];
    for (limit, said) in [
        // The soft limit is raised where the hard one allows.
        ("--memlock=65536:4194304", "1152 KiB of frames a queue instead of 2304"),
        ("--memlock=4194304:4194304", "1152 KiB of frames a queue instead of 2304"),
        ("--memlock=1048576:1048576", "288 KiB of frames a queue instead of 2304"),
    ] {
        let sweep = Sweep::read(run_with(&lab, &NEEDED, &[limit], &args));
        assert_eq!(sweep.code, Some(0), "{limit}: {}", sweep.stderr);
        assert_eq!(sweep.count("alive"), 64, "{}", sweep.summary);
        assert!(sweep.stderr.contains(said), "{limit}: {}", sweep.stderr);
    }
    let output = run_with(&lab, &NEEDED, &["--memlock=524288:524288"], &args);
    let words =
        ["register the UMEM on up0 queue 1", "288 KiB", "512 KiB", "prlimit", "--io packet"];
    assert_refused(&output, 3, &words);
}

/// Interfaces whose driver has no XDP: the program runs in the stack, and says so.
#[test]
fn without_native_support_the_stack_does_it() {
    let Some(lab) = Lab::up("x-skb", &[]) else { return };
    for command in [
        "ip link add br0 type bridge",
        "ip link set br0 address 02:00:00:00:00:b0",
        "ip addr flush dev lan0",
        "ip link set lan0 master br0",
        "ip link set br0 up",
        "ip addr add 10.96.0.1/22 dev br0",
    ] {
        on_prober(&lab, command);
    }
    let args = ["10.96.1.0/26", "-p", "8080", "--io", "xdp", "--format", "ndjson"];
    let sweep = lab.start(&args).finish();
    assert_eq!(sweep.code, Some(0), "{}", sweep.stderr);
    assert_eq!(sweep.count("alive"), 64, "{}", sweep.summary);
    for words in ["br0: AF_XDP on 1 queue, XDP program in the stack (skb)", "not in the driver"] {
        assert!(sweep.stderr.contains(words), "{}", sweep.stderr);
    }
    sweep.assert_accounts();
    let output = lab.start(&[&args[..], &["--xdp-mode", "drv"]].concat()).output();
    let words = ["attach the XDP program (native) on br0", "no native XDP", "--xdp-mode skb"];
    assert_refused(&output, 3, &words);
    let output = lab.start(&[&args[..], &["--zerocopy", "on"]].concat()).output();
    assert_refused(&output, 3, &["bind AF_XDP socket on br0 queue 0", "--zerocopy auto"]);
}
