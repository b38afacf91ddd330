//! Connections whose addresses the audited host translates itself, as hosts of containers do: what
//! their sockets have for ends is not what is on the wire.

use super::apps::{App, Held};
use super::network::{resets, watch_resets};
use super::report::{Audit, Rounds};
use crate::support::Lab;
use serde_json::{Value, json};

/// Connections of each kind, fate and family, with and without a greeting.
const COUNT: usize = 4;
const SERVER: u16 = 9100;
const MUTE_SERVER: u16 = 9200;

/// How a connection is translated. Each has 16 networks of peers, as many as there may be fates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Another destination, in the output hook.
    Dnat,
    /// Another source, in the postrouting hook.
    Masquerade,
    /// Both.
    Both,
    /// Accepted, at another port of the address that the peer knows.
    Redirect,
    /// Accepted, at another address and port.
    Forwarded,
}

impl Kind {
    const ALL: [Kind; 5] =
        [Kind::Dnat, Kind::Masquerade, Kind::Both, Kind::Redirect, Kind::Forwarded];

    /// The ports that peers know of what the host accepts.
    fn service(self) -> Option<u16> {
        match self {
            Kind::Redirect => Some(9500),
            Kind::Forwarded => Some(9600),
            _ => None,
        }
    }

    fn has_another_destination(self) -> bool {
        matches!(self, Kind::Dnat | Kind::Both)
    }
}

/// What befalls the peers, and what is to be said of them.
const FATES: [(&[&str], &str); 5] = [
    (&[], "alive/ack"),
    (&["fault", "gone"], "down/silent"),
    (&["fault", "reboot"], "rebooted/reset"),
    // And nobody listens any more.
    (&["fault", "reboot"], "rebooted/reset"),
    (&["fault", "icmp", "host"], "unreachable/icmp-host"),
];
const MUTE: usize = 3;

/// The network of a kind's peers that meet one fate, as the peers know it.
fn network(kind: Kind, fate: usize, is_v6: bool) -> String {
    let subnet = 16 * kind as usize + fate;
    if is_v6 { format!("fd99:0:0:{subnet:x}::/120") } else { format!("10.99.{subnet}.0/24") }
}

const TABLE: &str = "table inet translate {
    chain out {
        type nat hook output priority -100
        dnat ip prefix to ip daddr map { 10.77.0.0/16 : 10.99.0.0/16 }
        dnat ip6 prefix to ip6 daddr map { fd77::/48 : fd99::/48 }
    }
    chain post {
        type nat hook postrouting priority 100
        ip daddr 10.99.16.0-10.99.47.255 tcp dport 1-65535 masquerade to :20000-29999
        ip6 daddr fd99:0:0:10::-fd99:0:0:2f:ffff:ffff:ffff:ffff tcp dport 1-65535 masquerade to :20000-29999
    }
    chain pre {
        type nat hook prerouting priority -100
        tcp dport 9500-9501 redirect to :tcp dport map { 9500 : 9100, 9501 : 9101 }
        dnat ip to tcp dport map { 9600 : 10.96.0.1 . 9100, 9601 : 10.96.0.1 . 9101 }
        dnat ip6 to tcp dport map { 9600 : fd96::1 . 9100, 9601 : fd96::1 . 9101 }
    }
}";

/// The audited host, its applications, and their peers.
struct Network {
    /// On the audited host: what it has opened, and what it has accepted.
    opener: App,
    accepter: App,
    /// The peers that have opened connections, and the peers' servers.
    caller: App,
    servers: Vec<App>,
    lab: Lab,
}

impl Network {
    fn raise(name: &str) -> Option<Network> {
        let lab = Lab::up(name, &[])?;
        let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
        lab.script(&["exec", "nft", TABLE]);
        let mute = MUTE_SERVER.to_string();
        let servers = vec![App::serve(&fleet, &[]), App::serve(&fleet, &["--port", &mute])];
        let accepter = App::serve(&host, &[]);
        let groups = |is_accepted: bool| -> Vec<Value> {
            let kinds =
                Kind::ALL.into_iter().filter(|kind| kind.service().is_some() == is_accepted);
            let fates = kinds.flat_map(|kind| (0..FATES.len()).map(move |fate| (kind, fate)));
            fates.flat_map(|(kind, fate)| variants(kind, fate)).collect()
        };
        let opener = App::connect(&host, &groups(false));
        let caller = App::connect(&fleet, &groups(true));
        Some(Network { opener, accepter, caller, servers, lab })
    }

    /// Lets every peer meet its fate.
    fn strike(&mut self) {
        for (fate, (words, _)) in
            FATES.iter().enumerate().filter(|(_, (words, _))| !words.is_empty())
        {
            let networks: Vec<_> = Kind::ALL
                .into_iter()
                .flat_map(|kind| [false, true].map(|is_v6| network(kind, fate, is_v6)))
                .collect();
            let networks: Vec<&str> = networks.iter().map(String::as_str).collect();
            self.lab.script(&[words, &networks[..]].concat());
        }
        self.servers[1].ask("mute");
        watch_resets(&self.lab);
    }

    /// Returns the audited host's connections, under the names of their groups.
    fn held(&mut self) -> Vec<Held> {
        let mut held = self.opener.list();
        // Who called knows the group; who accepted, the socket.
        let callers = self.caller.list();
        for mut accepted in self.accepter.list() {
            let caller = callers.iter().find(|caller| caller.local == accepted.peer);
            accepted.group = caller.expect("a caller").group.clone();
            held.push(accepted);
        }
        held
    }
}

/// The groups of a kind and fate.
fn variants(kind: Kind, fate: usize) -> impl Iterator<Item = Value> {
    let all = [(false, false), (false, true), (true, false), (true, true)];
    all.into_iter().map(move |(is_v6, greeted)| {
        let peers = network(kind, fate, is_v6);
        let server = if fate == MUTE { MUTE_SERVER } else { SERVER };
        let mut group = json!({
            "name": format!("{kind:?}/{fate}/{is_v6}/{greeted}"),
            "count": COUNT, "condition": "idle", "greeted": greeted,
        });
        match kind.service() {
            Some(port) => {
                group["port"] = port.into();
                group["from"] = peers.into();
                group["peers"] = if is_v6 { "fd98::1/128" } else { "10.98.0.1/32" }.into();
            }
            None => {
                group["port"] = server.into();
                let known = kind.has_another_destination();
                let known =
                    known.then(|| peers.replace("10.99.", "10.77.").replace("fd99", "fd77"));
                group["peers"] = known.unwrap_or(peers).into();
            }
        }
        group
    })
}

/// What is to be said of a connection, by its group.
fn expected(held: &Held) -> &'static str {
    let fate: usize = held.group.split('/').nth(1).expect("a fate").parse().expect("a number");
    FATES[fate].1
}

fn record<'a>(audit: &'a Audit, host: &str, held: &Held) -> &'a Value {
    let key = (host.to_owned(), held.local, held.peer);
    audit.records.get(&key).unwrap_or_else(|| panic!("{held:?}: no record\n{}", audit.stderr))
}

/// Runs an audit with or without a shield at the sockets.
fn audit(host: &str, is_shielded: bool) -> Audit {
    let mut command = Audit::command(host, &[]);
    if !is_shielded {
        command.env("KEEPSWEEP_TEST_UNSHIELDED", "1");
    }
    let audit = Audit::read(command.output().expect("keepsweep starts"));
    println!("{}\n{}", audit.stderr, audit.summary);
    audit
}

/// Checks that nothing has happened to any of them.
fn assert_unharmed(held: &[Held]) {
    let is_harmed = |held: &&Held| held.error.is_some() || held.state != "established";
    let harmed: Vec<_> = held.iter().filter(is_harmed).collect();
    assert!(harmed.is_empty(), "{} killed, such as {:?}", harmed.len(), harmed[0]);
}

#[test]
fn are_found_out_like_all_others_and_live() {
    found_out("aunat", true);
}

/// Then resets are held by the addresses on the wire alone.
#[test]
fn are_found_out_without_a_shield() {
    found_out("aunat2", false);
}

fn found_out(name: &str, is_shielded: bool) {
    let Some(mut network) = Network::raise(name) else { return };
    network.strike();
    let host = network.lab.namespace("prober");
    let before = network.held();
    assert_eq!(before.len(), Kind::ALL.len() * FATES.len() * 4 * COUNT);
    let audit = audit(&host, is_shielded);
    assert_unharmed(&network.held());
    for held in &before {
        let verdict = expected(held);
        audit.assert_says(&host, std::slice::from_ref(held), &[verdict]);
        let record = record(&audit, &host, held);
        // What was heard on the wire, to the first probe, and not what the kernel tells of it later.
        let is_first = matches!(verdict, "alive/ack" | "rebooted/reset");
        assert!(!is_first || record["probes"] == 1, "{}: {record}", held.group);
        assert!(verdict != "alive/ack" || record["rtt_us"].is_number(), "{}: {record}", held.group);
        let port = record["wire"]["local_port"].as_u64().expect("ends on the wire");
        let is_same = held.group.starts_with("Dnat/");
        assert_eq!(port == u64::from(held.local.port()), is_same, "{}: {record}", held.group);
    }
    audit.assert_harmless();
    assert_eq!(resets(&network.lab), 0, "RSTs left the audited host");
}

/// What is translated to this host itself passes the loopback, where nobody else translates it; what its
/// neighbours do not answer its own kernel tells.
#[test]
fn stay_here_or_go_to_neighbours() {
    for is_shielded in [true, false] {
        let Some(lab) = Lab::up("aunathere", &[]) else { return };
        let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
        let table = "table inet translate {
            chain out {
                type nat hook output priority -100
                ip daddr 10.77.1.0/24 dnat ip to 10.98.0.1
                ip6 daddr fd77:0:0:1::/64 dnat ip6 to ::1
                dnat ip prefix to ip daddr map { 10.77.2.0/28 : 10.96.1.0/28, 10.77.3.0/28 : 10.96.1.128/28 }
            }
            chain post {
                type nat hook postrouting priority 100
                ip daddr 10.96.1.0/24 tcp dport 1-65535 masquerade to :20000-29999
            }
        }";
        lab.script(&["exec", "nft", table]);
        let _server = App::serve(&fleet, &[]);
        let mut here = App::serve(&host, &[]);
        let group = |name: &str, peers: &str| json!({ "name": name, "count": COUNT, "peers": peers, "condition": "idle", "port": SERVER });
        let groups = [
            group("here", "10.77.1.0/28"),
            group("here6", "fd77:0:0:1::/124"),
            group("near", "10.77.2.0/28"),
            group("lost", "10.77.3.0/28"),
        ];
        let mut app = App::connect(&host, &groups);
        lab.script(&["fault", "gone", "10.96.1.128/28"]);
        lab.script(&["exec", "ip", "neigh", "flush", "dev", "lan0"]);
        let audit = audit(&host, is_shielded);
        for (held, is_opened) in [(app.list(), true), (here.list(), false)] {
            assert_eq!(held.len(), if is_opened { 4 * COUNT } else { 2 * COUNT });
            assert_unharmed(&held);
            for held in &held {
                let is_lost = is_opened && held.group == "lost";
                let verdict = if is_lost { "unreachable/neighbour" } else { "alive/ack" };
                audit.assert_says(&host, std::slice::from_ref(held), &[verdict]);
                let record = record(&audit, &host, held);
                // Heard on the wire: the answer, or the probe of the other end.
                assert!(is_lost || record["evidence"][0]["kind"] == "ack", "{record}");
            }
        }
        audit.assert_harmless();
    }
}

/// Their next packets, which are our probes, are translated anew, and perhaps otherwise.
#[test]
fn live_when_their_host_has_forgotten_how() {
    for is_shielded in [true, false] {
        let Some(mut network) = Network::raise("auflush") else { return };
        network.strike();
        let host = network.lab.namespace("prober");
        network.lab.script(&["exec", "conntrack", "-F"]);
        let audit = audit(&host, is_shielded);
        let held = network.held();
        assert_unharmed(&held);
        for held in held.iter().filter(|held| held.group.starts_with("Dnat/")) {
            // It is translated as before, which nobody can know.
            let verdict = match expected(held) {
                "rebooted/reset" => "rebooted/reset-or-rebind",
                verdict => verdict,
            };
            audit.assert_says(
                &host,
                std::slice::from_ref(held),
                &[verdict, "undetermined/observer"],
            );
        }
    }
}

/// Rules and entries that are gone by the next round are in none of its records.
#[test]
fn are_told_as_each_round_finds_them() {
    let Some(lab) = Lab::up("auwire", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    lab.script(&["exec", "nft", TABLE]);
    let _server = App::serve(&fleet, &[]);
    let group = json!({ "name": "dnat", "count": COUNT, "peers": "10.77.0.0/24", "port": SERVER,
                        "condition": "idle" });
    let _app = App::connect(&host, &[group]);
    let mut rounds = Rounds::start(&host, "10s");
    for record in rounds.next(COUNT) {
        let ip = record["wire"]["peer_ip"].as_str().expect("ends on the wire");
        assert!(ip.starts_with("10.99.0.") && record["state"] == "alive", "{record}");
    }
    lab.script(&["exec", "nft", "delete table inet translate"]);
    lab.script(&["exec", "conntrack", "-F"]);
    for record in rounds.next(COUNT) {
        assert!(record["wire"].is_null() && record["state_before"] == "alive", "{record}");
    }
}

/// Rules that are younger than the connections, so that nothing is tracked until our own probes are: some
/// of them as they are, some under another port, which their peers do not know.
#[test]
fn live_when_tracking_begins_with_our_probes() {
    for is_shielded in [true, false] {
        let Some(lab) = Lab::up("aubegin", &[]) else { return };
        let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
        let _server = App::serve(&fleet, &[]);
        let cases = [Kind::Dnat, Kind::Masquerade]
            .into_iter()
            .flat_map(|kind| [0, 1, 2].map(|fate| (kind, fate)))
            .flat_map(|case| [false, true].map(|is_v6| (case, is_v6)))
            .flat_map(|case| [false, true].map(|greeted| (case, greeted)));
        let groups = cases.map(|(((kind, fate), is_v6), greeted)| {
            json!({
                "name": format!("{kind:?}/{fate}/{is_v6}/{greeted}"), "count": COUNT, "condition": "idle",
                "peers": network(kind, fate, is_v6), "port": SERVER, "greeted": greeted,
            })
        });
        let mut app = App::connect(&host, &groups.collect::<Vec<_>>());
        for (fate, words) in [(1, "gone"), (2, "reboot")] {
            for kind in [Kind::Dnat, Kind::Masquerade] {
                let networks = [false, true].map(|is_v6| network(kind, fate, is_v6));
                lab.script(&["fault", words, &networks[0], &networks[1]]);
            }
        }
        lab.script(&["exec", "nft", TABLE]);
        let count = "/proc/sys/net/netfilter/nf_conntrack_count";
        assert_eq!(lab.script(&["exec", "cat", count]).trim(), "0");
        let audit = audit(&host, is_shielded);
        assert_ne!(lab.script(&["exec", "cat", count]).trim(), "0");
        let held = app.list();
        assert_unharmed(&held);
        for held in &held {
            // An old acknowledgment asks without doing harm, and then it is known.
            let is_known = is_shielded || held.group.ends_with("/true");
            let verdicts: &[&str] = match (held.group.starts_with("Dnat/"), expected(held)) {
                (true, verdict) if is_known => &[verdict],
                (false, "alive/ack" | "rebooted/reset") if is_shielded => {
                    &["rebooted/reset-or-rebind", "undetermined/observer"]
                }
                _ => &["undetermined/observer"],
            };
            audit.assert_says(&host, std::slice::from_ref(held), verdicts);
        }
    }
}

/// By rules that keep no account of connections, so that nobody can be asked.
#[test]
fn live_when_nobody_knows_how() {
    // Before connection tracking sees a packet, if it does at all.
    stateless("austateless", "priority -300; ");
}

/// Behind its back, so that it knows the connections, and says that they are not translated.
#[test]
fn live_when_those_err_who_should_know() {
    stateless("auerring", "priority 0; ct state new,established,untracked,invalid ");
}

fn stateless(name: &str, rule: &str) {
    let Some(lab) = Lab::up(name, &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let pairs: Vec<_> = (0..3)
        .flat_map(|fate| (0..COUNT).map(move |last| (fate, last)))
        .map(|(fate, last)| (format!("10.77.{fate}.{last}"), format!("10.99.{fate}.{last}")))
        .collect();
    let map = |pairs: &mut dyn Iterator<Item = (&String, &String)>| {
        pairs.map(|(from, to)| format!("{from} : {to}")).collect::<Vec<_>>().join(", ")
    };
    let there = map(&mut pairs.iter().map(|(known, real)| (known, real)));
    let back = map(&mut pairs.iter().map(|(known, real)| (real, known)));
    let table = format!(
        "table ip stateless {{
            chain out {{ type route hook output {rule} ip daddr set ip daddr map {{ {there} }}; }}
            chain in {{ type filter hook prerouting priority -300; ip saddr set ip saddr map {{ {back} }}; }}
        }}"
    );
    lab.script(&["exec", "nft", &table]);
    let is_tracked = rule.contains("ct ");
    let _server = App::serve(&fleet, &[]);
    let groups = (0..3).flat_map(|fate| {
        [false, true].map(|greeted| {
            json!({
                "name": format!("stateless/{fate}/{greeted}"), "count": COUNT, "condition": "idle",
                "peers": format!("10.77.{fate}.0/30"), "port": SERVER, "greeted": greeted,
            })
        })
    });
    let mut app = App::connect(&host, &groups.collect::<Vec<_>>());
    lab.script(&["fault", "gone", "10.99.1.0/24"]);
    lab.script(&["fault", "reboot", "10.99.2.0/24"]);
    for is_shielded in [false, true] {
        let audit = audit(&host, is_shielded);
        let held = app.list();
        assert_unharmed(&held);
        for held in &held {
            let verdict = match expected(held) {
                "alive/ack" if is_shielded || held.group.ends_with("true") => "alive/ack",
                // Nobody sees that a fresh SYN is translated, too.
                "down/silent" if is_shielded && !is_tracked => "down/host-silent",
                // Nor that the translation is as it was.
                "rebooted/reset" if is_shielded => "rebooted/reset-or-rebind",
                verdict if is_shielded => verdict,
                _ => "undetermined/observer",
            };
            audit.assert_says(&host, std::slice::from_ref(held), &[verdict]);
            let record = record(&audit, &host, held);
            let why = record["evidence"].as_array().and_then(|seen| seen.last());
            let is_said = why.is_some_and(|why| why["kind"] == "translation-unknown");
            assert_eq!(is_said, verdict == "undetermined/observer", "{record}");
        }
        // Hosts are asked by fresh SYNs only where it is sure of silence.
        if !is_shielded {
            audit.assert_only_probes();
        }
    }
}
