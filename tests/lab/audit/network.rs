//! The audited host, its applications and what befalls their peers: the truth, made.

use super::apps::{App, Held};
use super::truth::{APART_PORT, Family, Fate, MARK, MARKED, MUTE_PORT, Opinion, ROWS, Row};
use crate::support::{Lab, pause};
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

/// The audited host is the lab's prober.
pub struct Network {
    pub lab: Lab,
    /// On the audited host: what it has opened, with and without timestamps.
    openers: Vec<App>,
    /// On the audited host: what it has accepted.
    accepters: Vec<App>,
    /// The peers that have opened connections.
    callers: Vec<App>,
    /// The peers' servers; the second is the one that goes mute.
    servers: Vec<App>,
    /// Every connection of the audited host, by its two ends.
    pub truth: HashMap<(SocketAddr, SocketAddr), Known>,
}

/// What is known of a connection.
#[derive(Debug)]
pub struct Known {
    pub row: &'static Row,
    pub group: String,
    pub cookie: u64,
    pub pid: u32,
}

impl Network {
    /// Opens the connections of every row, as many as `count` says, and brings what is to come over
    /// their peers.
    pub fn raise(lab: Lab, count: impl Fn(&Row) -> usize) -> Network {
        let host = lab.namespace("prober");
        let fleet = lab.namespace("fleet");
        // Before the connections, as it must see them being opened.
        let followed = [Fate::Firewalled, Fate::FirewalledAndRebooted, Fate::Forgotten];
        fault(&lab, &["firewall"], |row| followed.contains(&row.fate));
        let [v4, v6] = MARKED;
        for (family, net, via) in [("-4", v4, "10.98.0.254"), ("-6", v6, "fd98::fe")] {
            ip(&host, &format!("{family} route add blackhole {net}"));
            ip(&host, &format!("{family} route add default via {via} table 107"));
            ip(&host, &format!("{family} rule add fwmark {MARK} table 107"));
        }
        let mut network = Network {
            openers: Vec::new(),
            accepters: vec![
                App::serve(&host, &["--mapped"]),
                App::serve(&host, &["--port", &APART_PORT.to_string()]),
            ],
            callers: Vec::new(),
            servers: vec![
                App::serve(&fleet, &[]),
                App::serve(&fleet, &["--port", &MUTE_PORT.to_string()]),
            ],
            truth: HashMap::new(),
            lab,
        };
        for timestamps in [true, false] {
            let value = format!("net.ipv4.tcp_timestamps={}", u8::from(timestamps));
            network.lab.script(&["exec", "sysctl", "-q", &value]);
            let groups = |accepted: bool| -> Vec<Value> {
                let rows = ROWS.iter().filter(|row| row.accepted == accepted);
                rows.flat_map(|row| variants(row, timestamps, count(row))).collect()
            };
            network.openers.push(App::connect(&host, &groups(false)));
            network.callers.push(App::connect(&fleet, &groups(true)));
        }
        network.learn();
        network.strike();
        network
    }

    /// Asks the applications for their connections.
    fn learn(&mut self) {
        for app in &mut self.openers {
            let pid = app.pid();
            for Held { group, local, peer, cookie, .. } in app.list() {
                let row = Row::of(&group);
                self.truth.insert((local, peer), Known { row, group, cookie, pid });
            }
        }
        let mut cookies = HashMap::new();
        for app in &mut self.accepters {
            let pid = app.pid();
            cookies.extend(app.list().into_iter().map(|c| ((c.local, c.peer), (c.cookie, pid))));
        }
        // Who called knows the group; who accepted, the socket.
        for app in &mut self.callers {
            for Held { group, local, peer, .. } in app.list() {
                let row = Row::of(&group);
                let (cookie, pid) = cookies.remove(&(peer, local)).expect("it was accepted");
                self.truth.insert((peer, local), Known { row, group, cookie, pid });
            }
        }
        assert!(cookies.is_empty(), "nobody called: {cookies:?}");
        let held = |apps: &[App]| apps.iter().map(|app| app.held).sum::<usize>();
        assert_eq!(self.truth.len(), held(&self.openers) + held(&self.callers));
    }

    /// Lets every peer meet its fate.
    fn strike(&mut self) {
        let mut faults: Vec<&[&str]> = Vec::new();
        for row in ROWS {
            if let Fate::Fault(words) = row.fate
                && !faults.contains(&words)
            {
                faults.push(words);
            }
        }
        for words in faults {
            fault(&self.lab, words, |row| row.fate == Fate::Fault(words));
        }
        let reboots = [Fate::RebootedAndMute, Fate::FirewalledAndRebooted];
        fault(&self.lab, &["reboot"], |row| reboots.contains(&row.fate));
        self.servers[1].ask("mute");
        fault(&self.lab, &["forget"], |row| row.fate == Fate::Forgotten);
        watch_resets(&self.lab);
    }

    /// Returns how many RSTs have come from the audited host since the faults, but for those that end
    /// fresh SYNs.
    pub fn resets(&self) -> u64 {
        resets(&self.lab)
    }

    /// Returns every connection as the audited host's applications see it now.
    pub fn held(&mut self) -> Vec<Held> {
        let apps = self.openers.iter_mut().chain(&mut self.accepters);
        apps.flat_map(App::list).collect()
    }

    /// Checks that every connection is as it was `before`.
    pub fn assert_untouched(&mut self, before: &[Held]) {
        let after = self.held();
        assert_eq!(after.len(), before.len());
        for (was, is) in before.iter().zip(&after) {
            let is_same = (was.cookie, &was.state, is.error.as_ref(), is.corrupt)
                == (is.cookie, &is.state, None, false);
            assert!(is_same, "{is:?}\nwas {was:?}");
        }
    }

    /// Checks that the connections whose peers are well still carry data.
    pub fn assert_alive_go_on(&mut self) {
        for app in self.openers.iter_mut().chain(&mut self.accepters) {
            app.ask("say");
        }
        let mut waiting = Vec::new();
        for _ in 0..50 {
            waiting = self.held();
            // What the peer does not read it does not acknowledge; what is busy is never at rest.
            waiting.retain(|held| {
                let row = self.truth[&(held.local, held.peer)].row;
                row.opinion == Opinion::Heard && row.condition != "busy" && held.unacknowledged
            });
            if waiting.is_empty() {
                return;
            }
            pause(Duration::from_millis(100));
        }
        panic!("{} stand still, such as {:?}", waiting.len(), waiting[0]);
    }

    /// Has the audited host's kernel ask every peer itself, which ends the connections of those
    /// that do not answer: the truth of the network is what comes of it.
    pub fn assert_kernel_agrees(&mut self) {
        for app in self.openers.iter_mut().chain(&mut self.accepters) {
            app.ask("arm 1 1 3");
        }
        // Silence for 1 + 3 s, and what jiffies and other work add.
        pause(Duration::from_secs(8));
        for held in self.held() {
            let row = self.truth[&(held.local, held.peer)].row;
            let error = held.error.as_deref();
            let agrees = match row.opinion {
                Opinion::Heard => error.is_none() && held.since_ack_ms < 3000,
                // EHOSTUNREACH is what its own lack of a route makes of it.
                Opinion::TimedOut => matches!(error, Some("ETIMEDOUT" | "EHOSTUNREACH")),
                // EPIPE is what it is called where the peer has closed.
                Opinion::Reset => matches!(error, Some("ECONNRESET" | "EPIPE")),
                Opinion::None => error.is_none() && held.unacknowledged,
            };
            assert!(agrees && !held.corrupt, "{}: {held:?}", row.name);
        }
    }
}

/// Has the router count the RSTs that come from the audited host, but for those that end fresh SYNs.
pub fn watch_resets(lab: &Lab) {
    let table = "table inet audit_watch {
        counter resets { }
        chain watch {
            type filter hook prerouting priority -400
            iifname up0 tcp sport != 61000-65534 tcp flags & rst != 0 counter name resets
        }
    }";
    lab.script(&["exec", "router", "nft", table]);
}

/// Returns how many it has counted.
pub fn resets(lab: &Lab) -> u64 {
    let show = ["exec", "router", "nft", "-j", "list", "counter", "inet", "audit_watch", "resets"];
    let answer: Value = serde_json::from_str(&lab.script(&show)).expect("JSON");
    let counters = answer["nftables"].as_array().expect("a list").iter();
    let packets = |object: &Value| object["counter"]["packets"].as_u64();
    counters.filter_map(packets).next().expect("the counter")
}

fn variants(row: &Row, timestamps: bool, count: usize) -> impl Iterator<Item = Value> {
    let all = Family::ALL.into_iter().flat_map(|family| [(family, false), (family, true)]);
    all.filter_map(move |(family, greeted)| row.group(family, timestamps, greeted, count))
}

/// Calls `scripts/lab fault` for the nets of some rows.
fn fault(lab: &Lab, words: &[&str], is_struck: impl Fn(&Row) -> bool) {
    let nets = ROWS.iter().filter(|row| is_struck(row)).flat_map(|row| row.nets);
    lab.script(&[&["fault"], words, &nets.collect::<Vec<_>>()].concat());
}

/// Returns how many packets a counter of the router's has seen.
pub fn counter(lab: &Lab, table: &str, name: &str) -> u64 {
    let show = ["exec", "router", "nft", "-j", "list", "counter", "inet", table, name];
    let answer: Value = serde_json::from_str(&lab.script(&show)).expect("JSON");
    let counters = answer["nftables"].as_array().expect("a list").iter();
    let packets = |object: &Value| object["counter"]["packets"].as_u64();
    counters.filter_map(packets).next().expect("the counter")
}

/// Runs `ip` in a namespace.
pub fn ip(namespace: &str, command: &str) {
    let output = Command::new("ip")
        .args(["-n", namespace])
        .args(command.split_whitespace())
        .output()
        .expect("run ip");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {command}: {errors}");
}
