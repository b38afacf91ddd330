//! A lab of real kernels for one test, and keepsweep run inside it.

use keepsweep::time::Clock;
use serde_json::Value;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// Labs that share the machine with others, and labs that want it for themselves.
static MACHINE: RwLock<()> = RwLock::new(());

/// How much of the machine a test may take.
pub enum Share<'a> {
    Some { _guard: RwLockReadGuard<'a, ()> },
    All { _guard: RwLockWriteGuard<'a, ()> },
}

/// Namespaces prober, router and fleet, removed when dropped.
pub struct Lab {
    name: String,
    _share: Share<'static>,
}

impl Lab {
    /// Raises a lab beside others.
    pub fn up(name: &str, options: &[&str]) -> Option<Lab> {
        let share = Share::Some { _guard: MACHINE.read().unwrap_or_else(|e| e.into_inner()) };
        Lab::raise(name, options, share)
    }

    /// Raises a lab that no other test runs beside.
    pub fn up_alone(name: &str, options: &[&str]) -> Option<Lab> {
        let share = Share::All { _guard: MACHINE.write().unwrap_or_else(|e| e.into_inner()) };
        Lab::raise(name, options, share)
    }

    fn raise(name: &str, options: &[&str], share: Share<'static>) -> Option<Lab> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "lab tests need root");
            eprintln!("skipped: needs root");
            return None;
        }
        // Built before anything runs: two labs must not build at the same time.
        let lab = Lab { name: format!("kst-{name}"), _share: share };
        lab.script(&["down"]);
        lab.script(&[&["up"], options].concat());
        Some(lab)
    }

    /// Runs `scripts/lab` and returns what it printed.
    pub fn script(&self, args: &[&str]) -> String {
        let output = self.lab_command(args).output().expect("scripts/lab starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/lab {args:?}: {errors}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn lab_command(&self, args: &[&str]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(root.join("scripts/lab"));
        command.args(args).env("KEEPSWEEP_LAB", &self.name);
        command
    }

    /// Returns the number of connections that the peers at `port` hold.
    pub fn connections(&self, port: &str) -> usize {
        self.script(&["connections", port]).trim().parse().expect("a number")
    }

    /// Gives both ends of the prober's links so many queues. The other end chooses by a hash of the flow
    /// which of them an answer comes in by.
    pub fn set_queues(&self, queues: u32) {
        self.script(&["queues", &queues.to_string(), "hash"]);
    }

    /// Returns a namespace's full name.
    pub fn namespace(&self, which: &str) -> String {
        format!("{}-{which}", self.name)
    }

    /// Starts `keepsweep sweep` in the prober.
    pub fn start(&self, args: &[&str]) -> Running {
        self.start_with(args, Stdio::piped())
    }

    /// The same with standard output elsewhere.
    pub fn start_with(&self, args: &[&str], stdout: Stdio) -> Running {
        // exec: the process that is signalled must be keepsweep itself.
        let child = Command::new("ip")
            .args(["netns", "exec", &self.namespace("prober"), env!("CARGO_BIN_EXE_keepsweep")])
            .arg("sweep")
            .args(args)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .expect("keepsweep starts");
        Running { child }
    }

    /// Runs `keepsweep sweep --format ndjson` to its end.
    pub fn sweep(&self, args: &[&str]) -> Sweep {
        self.start(&[&["--format", "ndjson"], args].concat()).finish()
    }

    /// Waits until the peers at `port` hold `count` connections.
    pub fn await_connections(&self, port: &str, count: usize) {
        self.await_condition(&format!("{count} connections"), || self.connections(port) >= count);
    }

    /// Waits until `condition` holds, half a minute at most.
    pub fn await_condition(&self, what: &str, condition: impl FnMut() -> bool) {
        let in_time = holds_within(Duration::from_secs(30), condition);
        assert!(in_time, "{what}: not within 30 s\n{}", self.script(&["status"]));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.lab_command(&["down"]).status();
    }
}

/// Waits until `condition` holds, for `span` at most, and says whether it does.
pub fn holds_within(span: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Clock.now();
    while Clock.now().since(begun) < span {
        if condition() {
            return true;
        }
        pause(Duration::from_millis(100));
    }
    false
}

/// Lets real time pass, where what is awaited is time itself or shows only by polling.
pub fn pause(span: Duration) {
    Clock.sleep(span);
}

/// A sweep under way.
pub struct Running {
    child: Child,
}

impl Running {
    /// Sends a signal to keepsweep.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("signal");
    }

    /// Returns keepsweep's process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reads standard error up to `text`, which keepsweep must say before it ends.
    pub fn await_message(&mut self, text: &str) {
        let stderr = self.child.stderr.as_mut().expect("piped");
        let mut said = Vec::new();
        let mut octet = [0];
        // One at a time: what follows is for `output`.
        while stderr.read(&mut octet).expect("readable") > 0 {
            said.push(octet[0]);
            if said.ends_with(text.as_bytes()) {
                return;
            }
        }
        panic!("{text:?} was not said: {}", String::from_utf8_lossy(&said));
    }

    /// Waits for the end and reads the NDJSON.
    pub fn finish(self) -> Sweep {
        Sweep::read(self.output())
    }

    /// Waits for the end.
    pub fn output(self) -> Output {
        self.child.wait_with_output().expect("keepsweep ends")
    }
}

/// Reads what was written: the records of peers, each of them once, by their `key`, and behind them the
/// summary; null if there is none.
pub fn records<K: Hash + Eq>(
    output: &Output,
    key: impl Fn(&Value) -> K,
) -> (HashMap<K, Value>, Value) {
    let mut peers = HashMap::new();
    let mut summary = Value::Null;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let record: Value = serde_json::from_str(line).expect("a line is a JSON object");
        assert!(summary.is_null(), "a record after the summary: {line}");
        match record["type"].as_str() {
            Some("peer") => {
                let twice = peers.insert(key(&record), record);
                assert!(twice.is_none(), "reported twice: {line}");
            }
            Some("summary") => summary = record,
            Some("correction") => panic!("a verdict had to be corrected: {line}"),
            other => panic!("record type {other:?}: {line}"),
        }
    }
    (peers, summary)
}

/// A finished sweep.
pub struct Sweep {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard error.
    pub stderr: String,
    /// One record per peer, by "ip:port".
    pub peers: HashMap<String, Value>,
    /// The last record.
    pub summary: Value,
}

impl Sweep {
    /// Reads what a sweep has written.
    pub fn read(output: Output) -> Sweep {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let (peers, summary) = records(&output, |record| {
            let ip = record["peer_ip"].as_str().expect("peer_ip");
            format!("{ip}:{}", record["peer_port"])
        });
        Sweep { code: output.status.code(), stderr, peers, summary }
    }

    /// Returns how many peers are in `state`.
    pub fn count(&self, state: &str) -> usize {
        self.peers.values().filter(|record| record["state"] == state).count()
    }

    /// Checks that every frame is accounted for, and that our own kernel kept quiet.
    pub fn assert_accounts(&self) {
        let number =
            |field: &str| self.summary[field].as_u64().unwrap_or_else(|| panic!("{field}"));
        let sum = |field: &str| -> u64 {
            let parts = self.summary[field].as_object().unwrap_or_else(|| panic!("{field}"));
            parts.values().filter_map(Value::as_u64).sum()
        };
        assert_eq!(number("peers") as usize, self.peers.len(), "{}", self.summary);
        assert_eq!(number("frames_sent"), sum("sent_by_kind"), "{}", self.summary);
        assert_eq!(
            number("frames_received"),
            number("replies_matched") + sum("replies_rejected"),
            "{}",
            self.summary
        );
        assert_eq!(number("kernel_rsts"), 0, "{}", self.summary);
    }
}

/// Returns what AF_XDP counted on an interface.
pub fn interface<'a>(sweep: &'a Sweep, name: &str) -> &'a Value {
    let links = sweep.summary["xdp"].as_array().expect("a list");
    links.iter().find(|link| link["interface"] == name).expect("an interface of the sweep")
}

/// Checks that answers came in by every queue of the link to the router, and that every frame on the way
/// through AF_XDP is accounted for. In generic mode veth with one or two queues says of each that it came in by
/// queue 0.
pub fn assert_every_queue_heard(sweep: &Sweep, mode: &str, queues: u32) {
    let link = interface(sweep, "up0");
    let counted = link["queues"].as_array().expect("a list");
    assert_eq!(counted.len(), queues as usize, "{link}");
    let mut handed_over = 0;
    for queue in counted {
        let received = queue["received"].as_u64().expect("a number");
        let is_used = mode == "drv" || queue["queue"] == 0;
        assert_eq!(received > 0, is_used, "queue {}: {link}", queue["queue"]);
        handed_over += received;
        for lost in ["rx_invalid_descs", "tx_invalid_descs"] {
            assert_eq!(queue[lost], 0, "{link}");
        }
    }
    assert_eq!(link["malformed"], 0, "{link}");
    assert_eq!(link["no_socket"], 0, "{link}");
    let dropped = sweep.summary["rx_dropped"].as_u64().expect("a number");
    let redirected = link["redirected"].as_u64().expect("a number");
    assert!(
        handed_over <= redirected && redirected <= handed_over + dropped,
        "frames unaccounted for: {link}"
    );
}
