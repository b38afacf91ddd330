//! What `keepsweep audit` has said.

use super::apps::Held;
use crate::support::records;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

/// A finished audit.
pub struct Audit {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Standard error.
    pub stderr: String,
    /// One record per connection, by namespace and the two ends.
    pub records: HashMap<(String, SocketAddr, SocketAddr), Value>,
    /// The last record.
    pub summary: Value,
}

impl Audit {
    /// Runs `keepsweep audit --format ndjson` to its end, in a namespace by its full name.
    pub fn run(namespace: &str, args: &[&str]) -> Audit {
        Audit::read(Audit::command(namespace, args).output().expect("keepsweep starts"))
    }

    /// The same, to be started elsewhere or otherwise.
    pub fn command(namespace: &str, args: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_keepsweep")])
            .args(["audit", "--format", "ndjson"])
            .args(args);
        command
    }

    /// Reads what an audit has written.
    pub fn read(output: Output) -> Audit {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let (records, summary) = records(&output, |record| {
            let end = |ip: &str, port: &str| {
                let ip = record[ip].as_str().expect(ip);
                // A link-local address has its scope behind it.
                let ip = ip.split('%').next().unwrap_or(ip);
                let ip: IpAddr = ip.parse().expect("an address");
                let port = record[port].as_u64().expect(port);
                SocketAddr::new(ip, u16::try_from(port).expect("a port"))
            };
            let ends = (end("local_ip", "local_port"), end("peer_ip", "peer_port"));
            let namespace = record["netns"].as_str().unwrap_or("").to_owned();
            (namespace, ends.0, ends.1)
        });
        assert!(!summary.is_null(), "no summary; exit {:?}: {stderr}", output.status.code());
        Audit { code: output.status.code(), stderr, records, summary }
    }

    /// Returns the record of a connection.
    pub fn record(&self, namespace: &str, held: &Held) -> &Value {
        // A scope is no part of a record's address.
        let plain = |end: SocketAddr| SocketAddr::new(end.ip(), end.port());
        let key = (namespace.to_owned(), plain(held.local), plain(held.peer));
        let record = self.records.get(&key);
        record.unwrap_or_else(|| panic!("{held:?}: no record\n{}", self.stderr))
    }

    /// Checks that the summary counts what the records say.
    pub fn assert_counts(&self) {
        let count = |state: &str| {
            self.records.values().filter(|record| record["state"] == state).count() as u64
        };
        for state in ["alive", "down", "rebooted", "unreachable", "undetermined"] {
            assert_eq!(self.summary[state], count(state), "{state}: {}", self.summary);
        }
        assert_eq!(self.summary["peers"], self.records.len() as u64, "{}", self.summary);
        let sum = |field: &str| {
            let parts = self.summary[field].as_object().expect(field).values();
            parts.filter_map(Value::as_u64).sum::<u64>()
        };
        assert_eq!(sum("reasons"), self.records.len() as u64, "{}", self.summary);
        assert_eq!(self.summary["frames_sent"], sum("sent_by_kind"), "{}", self.summary);
    }

    /// Checks that each of these connections has one of these verdicts, as "state/reason".
    pub fn assert_says(&self, namespace: &str, held: &[Held], verdicts: &[&str]) {
        for held in held {
            let record = self.record(namespace, held);
            let text = |field: &str| record[field].as_str().unwrap_or("?");
            let said = format!("{}/{}", text("state"), text("reason"));
            assert!(verdicts.contains(&said.as_str()), "{}: {record}", held.group);
            assert_eq!(record["cookie"], held.cookie, "{record}");
        }
    }

    /// Returns how many frames were sent whose kind begins like this.
    pub fn sent(&self, kind: &str) -> u64 {
        let kinds = self.summary["sent_by_kind"].as_object().expect("sent_by_kind").iter();
        kinds.filter(|(name, _)| name.starts_with(kind)).filter_map(|(_, sent)| sent.as_u64()).sum()
    }

    /// Checks that nothing but probes was sent, and no RST by our own kernel.
    pub fn assert_harmless(&self) {
        self.assert_only_probes();
        assert_eq!(self.summary["kernel_rsts"], 0, "{}", self.summary);
    }

    /// Checks that nothing but probes was sent.
    pub fn assert_only_probes(&self) {
        let sent = self.summary["sent_by_kind"].as_object().expect("sent_by_kind");
        let strange: Vec<_> = sent
            .iter()
            .filter(|(kind, sent)| !kind.starts_with("probe") && sent.as_u64() != Some(0))
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

/// An audit that goes on, ended when this is dropped.
pub struct Rounds {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Rounds {
    /// Starts `keepsweep audit --format ndjson --every D`, in a namespace by its full name.
    pub fn start(namespace: &str, every: &str) -> Rounds {
        let mut command = Audit::command(namespace, &["--every", every]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("keepsweep starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Rounds { child, out }
    }

    /// Waits for the next so many records.
    pub fn next(&mut self, count: usize) -> Vec<Value> {
        let record = |_| {
            let mut line = String::new();
            self.out.read_line(&mut line).expect("readable");
            serde_json::from_str(&line).expect("a line is a JSON object")
        };
        (0..count).map(record).collect()
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
