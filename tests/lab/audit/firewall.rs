//! Silent connections: forgotten by a firewall, or without a peer. Whose host is up is asked of it.

use super::apps::{App, Held};
use super::network::{counter, ip};
use super::report::Audit;
use crate::support::Lab;
use keepsweep::wire::pcap::PcapReader;
use keepsweep::wire::{Checksums, Flags, LinkType, Packet, parse};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::process::{Child, Stdio};

/// Connections of each group, all to one port of as many peers.
const COUNT: usize = 4;
/// SYNs to a host that does not answer: after 0, 1 and 3 s.
const SYNS: u64 = 3;
/// A host behind one router, and that router.
const PEER_TTL: u64 = 63;
const ROUTER_TTL: u64 = 64;

fn group(name: &str, peers: &str, port: u16) -> Value {
    json!({ "name": name, "count": COUNT, "peers": peers, "condition": "idle", "port": port,
            "greeted": true })
}

fn with(mut group: Value, more: Value) -> Value {
    let (Value::Object(group), Value::Object(more)) = (&mut group, more) else { panic!("objects") };
    group.extend(more);
    Value::Object(group.clone())
}

/// Returns those of a group.
fn of(app: &mut App, name: &str) -> Vec<Held> {
    let mut held = app.list();
    held.retain(|held| held.group == name);
    assert_eq!(held.len(), COUNT, "{name}");
    held
}

fn assert_unharmed(app: &mut App) {
    let harmed = app.list().into_iter().find(|held| held.error.is_some() || held.state == "closed");
    assert!(harmed.is_none(), "{harmed:?}");
}

/// Counts on the router what an audit sends beside keepalives.
fn watch(lab: &Lab) {
    let table = "table inet audit_watch {
        counter syns { }
        chain watch {
            type filter hook prerouting priority -400
            iifname up0 tcp sport 61000-65534 tcp flags & (syn | ack) == syn counter name syns
        }
    }";
    lab.script(&["exec", "router", "nft", table]);
}

fn syns(lab: &Lab) -> u64 {
    counter(lab, "audit_watch", "syns")
}

/// Every socket of the peers by state: an audit must leave no trace there.
fn sockets(lab: &Lab) -> Vec<String> {
    let listed = lab.script(&["exec", "fleet", "ss", "-Htan"]);
    let mut sockets: Vec<_> = listed
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            [words[0], words[3], words[4]].join(" ")
        })
        .collect();
    sockets.sort_unstable();
    sockets
}

/// Returns the kinds of evidence of a connection's record, and the TTL of the last of them.
fn evidence(audit: &Audit, host: &str, held: &Held) -> (Vec<String>, Option<u64>) {
    let seen = audit.record(host, held)["evidence"].as_array().expect("a list").clone();
    let kinds = seen.iter().map(|seen| seen["kind"].as_str().expect("a kind").to_owned());
    (kinds.collect(), seen.last().and_then(|seen| seen["ttl"].as_u64()))
}

/// Both families, as one, which is how they are to be judged.
fn nets(subnet: u8) -> [String; 2] {
    [format!("10.99.{subnet}.0/24"), format!("fd99:0:0:{subnet}::/120")]
}

fn fault(lab: &Lab, words: &[&str], subnets: &[u8]) {
    let nets: Vec<String> = subnets.iter().flat_map(|&subnet| nets(subnet)).collect();
    let nets: Vec<&str> = nets.iter().map(String::as_str).collect();
    lab.script(&[&["fault"], words, &nets].concat());
}

/// A firewall that forgets beside peers that are gone, and all the ways in which a host answers.
#[test]
fn what_a_firewall_has_forgotten_is_told_from_what_is_gone() {
    const MARK: u32 = 7;
    let Some(lab) = Lab::up("aufire", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let (forgotten, refused, gone, well, caller, marked) = (1, 2, 3, 4, 5, 6);
    fault(&lab, &["firewall"], &[forgotten, refused, gone, well, caller, marked]);
    // Of a second address; and by a way that only marked packets may take.
    ip(&host, "addr add 10.98.0.77/24 dev up0");
    // Deprecated: never chosen unless it is asked for.
    ip(&host, "-6 addr add fd98::77/64 dev up0 nodad preferred_lft 0");
    for (family, net, via) in
        [("-4", &nets(marked)[0], "10.98.0.254"), ("-6", &nets(marked)[1], "fd98::fe")]
    {
        ip(&host, &format!("{family} route add blackhole {net}"));
        ip(&host, &format!("{family} route add default via {via} table 107"));
        ip(&host, &format!("{family} rule add fwmark {MARK} table 107"));
    }
    let mut server = App::serve(&fleet, &[]);
    let mut mute = App::serve(&fleet, &["--port", "9200"]);
    let mut own = App::serve(&host, &[]);
    let mut groups = Vec::new();
    let mut calls = Vec::new();
    for (family, (own, from)) in
        [("10.98.0.1/32", "10.98.0.77/32"), ("fd98::1/128", "fd98::77/128")].into_iter().enumerate()
    {
        let net = |subnet: u8| nets(subnet)[family].clone();
        let one = |subnet: u8| net(subnet).replace("0/24", "9/32").replace("/120", "9/128");
        let name = |name: &str| format!("{name}{family}");
        groups.extend([
            group(&name("forgotten"), &net(forgotten), 9100),
            // Many connections to one peer, which is asked once; and once more from another address.
            group(&name("same"), &one(forgotten), 9100),
            with(group(&name("other"), &one(forgotten), 9100), json!({ "from": from })),
            group(&name("refused"), &net(refused), 9200),
            group(&name("gone"), &net(gone), 9100),
            group(&name("well"), &net(well), 9100),
            with(group(&name("marked"), &net(marked), 9100), json!({ "mark": MARK })),
        ]);
        calls.push(with(group(&name("caller"), own, 9100), json!({ "from": net(caller) })));
    }
    let mut app = App::connect(&host, &groups);
    let mut callers = App::connect(&fleet, &calls);
    mute.ask("mute");
    fault(&lab, &["gone"], &[gone]);
    fault(&lab, &["forget"], &[forgotten, refused, caller, marked]);
    watch(&lab);
    let (before, accepted) = (sockets(&lab), server.list().len());

    let pcap = tempfile::NamedTempFile::new().expect("temporary file");
    let audit = Audit::run(&host, &["--pcap", pcap.path().to_str().expect("a path")]);
    println!("{}", audit.summary);
    assert_eq!(audit.code, Some(1), "{}", audit.stderr);
    assert_eq!(audit.records.len(), groups.len() * COUNT + calls.len() * COUNT);
    for family in ["0", "1"] {
        let lost = "unreachable/flow-state-lost";
        for (name, verdict, kind) in [
            ("forgotten", lost, "fresh-syn-ack"),
            ("same", lost, "fresh-syn-ack"),
            ("other", lost, "fresh-syn-ack"),
            ("marked", lost, "fresh-syn-ack"),
            ("refused", lost, "fresh-rst"),
            ("caller", lost, "fresh-rst"),
            ("gone", "down/host-silent", ""),
            ("well", "alive/ack", "ack"),
        ] {
            let held = match name {
                // Its ends are those of the other side.
                "caller" => of(&mut callers, &format!("{name}{family}"))
                    .into_iter()
                    .map(|held| Held { local: held.peer, peer: held.local, ..held })
                    .collect(),
                _ => of(&mut app, &format!("{name}{family}")),
            };
            for held in &held {
                let record = audit.record(&host, held);
                let said =
                    [&record["state"], &record["reason"]].map(|said| said.as_str().expect("text"));
                assert_eq!(said.join("/"), verdict, "{name}{family}: {record}");
                let expected = if kind.is_empty() { vec![] } else { vec![kind.to_owned()] };
                let ttl = (!kind.is_empty()).then_some(PEER_TTL);
                assert_eq!(evidence(&audit, &host, held), (expected, ttl), "{record}");
                let probes = match verdict {
                    "alive/ack" => 1,
                    "down/host-silent" => 5,
                    // Asked again.
                    _ => 5 + 3,
                };
                assert_eq!(record["probes"], probes, "{record}");
            }
        }
    }
    // "forgotten", "refused", "marked" and "caller" have four peers each, "same" and "other" one.
    let answered = 2 * (4 * COUNT as u64 + 2);
    let unanswered = 2 * COUNT as u64;
    assert_eq!(audit.sent("syn"), answered + SYNS * unanswered, "{}", audit.summary);
    assert_eq!(syns(&lab), answered + SYNS * unanswered);
    audit.assert_counts();
    assert_eq!(audit.summary["kernel_rsts"], 0, "{}", audit.summary);

    // The file goes on: keepalives before, SYNs, keepalives after, and every answer.
    let text = std::fs::read(pcap.path()).expect("readable");
    let frames = PcapReader::new(&text[..]).expect("a header");
    let (mut sent, mut from_other) = (Vec::new(), 0);
    for frame in frames {
        let (_, frame) = frame.expect("whole");
        if let Ok(Packet::Tcp(segment)) = parse(&frame, LinkType::Ip, Checksums::Trust)
            && segment.flags == Flags::SYN
        {
            from_other += u64::from(segment.ip.src.to_string().ends_with("77"));
            sent.push("syn");
        } else if sent.last() != Some(&"other") {
            sent.push("other");
        }
    }
    assert_eq!(from_other, 2);
    assert_eq!(sent.iter().filter(|kind| **kind == "syn").count() as u64, audit.sent("syn"));
    assert_eq!((sent.first(), sent.last()), (Some(&"other"), Some(&"other")));

    // Nobody's application has heard of it, and nobody's connection has suffered.
    assert_eq!((sockets(&lab), server.list().len()), (before, accepted));
    for app in [&mut app, &mut callers, &mut own] {
        assert_unharmed(app);
    }

    let audit = Audit::run(&host, &["--keepalives-only"]);
    let forgotten = [of(&mut app, "forgotten0"), of(&mut app, "forgotten1")].concat();
    audit.assert_says(&host, &forgotten, &["down/silent"]);
    audit.assert_says(&host, &of(&mut app, "gone0"), &["down/silent"]);
    audit.assert_harmless();
    audit.assert_counts();
}

/// What answers in the host's place, or refuses in its name.
#[test]
fn who_answers_in_the_place_of_a_host_is_not_taken_for_it() {
    let Some(lab) = Lab::up("aurefuse", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let (reset, known, router, own) = (1, 2, 3, 4);
    fault(&lab, &["firewall"], &[reset, known, router, own]);
    // A host of IPv6 speaks for an address only if it is one of an interface's.
    for peer in 0..COUNT {
        ip(&fleet, &format!("-6 addr add fd99:0:0:{own}::{peer}/128 dev lo nodad"));
    }
    let _server = App::serve(&fleet, &[]);
    let groups: Vec<Value> = [0, 1]
        .into_iter()
        .flat_map(|family| {
            let net = |subnet: u8| nets(subnet)[family].clone();
            let name = |name: &str| format!("{name}{family}");
            // Another connection of the same hosts, which goes on: to the port that does not greet.
            let heard = with(group(&name("heard"), &net(known), 9100), json!({ "greeted": false }));
            [
                group(&name("reset"), &net(reset), 9100),
                group(&name("known"), &net(known), 9100),
                heard,
                group(&name("router"), &net(router), 9100),
                group(&name("own"), &net(own), 9100),
            ]
        })
        .collect();
    let mut app = App::connect(&host, &groups);
    let rules = |subnet: u8, icmp: bool| {
        let reject = |family: usize| match (icmp, family) {
            (false, _) => "reject with tcp reset",
            (true, 0) => "reject with icmp type admin-prohibited",
            (true, _) => "reject with icmpv6 type admin-prohibited",
        };
        let syn = "tcp flags & (syn | ack) == syn";
        let [v4, v6] = nets(subnet);
        format!("{syn} ip daddr {v4} {}\n{syn} ip6 daddr {v6} {}\n", reject(0), reject(1))
    };
    let table = |hook: &str, rules: String| {
        let chain = format!("type filter hook {hook} priority 0\n{rules}");
        format!("table inet refuse {{\nchain new {{\n{chain}}}\n}}")
    };
    let on_path = [rules(reset, false), rules(known, false), rules(router, true)].concat();
    lab.script(&["exec", "router", "nft", &table("forward", on_path)]);
    lab.script(&["exec", "fleet", "nft", &table("input", rules(own, true))]);
    fault(&lab, &["forget"], &[reset, router, own]);
    for (family, net) in ["ipv4", "ipv6"].into_iter().zip(nets(known)) {
        // Of the two ports only the one that greets.
        let words = ["-D", "-f", family, "-p", "tcp", "--orig-dst", &net, "--dport", "9101"];
        lab.script(&[&["exec", "router", "conntrack"], &words[..]].concat());
    }

    let audit = Audit::run(&host, &[]);
    println!("{}", audit.summary);
    for (name, verdict, kinds, ttl) in [
        // Nothing tells the router's RST from the host's: known by no other connection.
        ("reset", "unreachable/flow-state-lost", &["fresh-rst"][..], Some(ROUTER_TTL)),
        ("known", "unreachable/path-reset", &["fresh-rst"], Some(ROUTER_TTL)),
        ("heard", "alive/ack", &["ack"], Some(PEER_TTL)),
        ("router", "unreachable/icmp-admin", &["icmp-admin"; 2], None),
        ("own", "unreachable/flow-state-lost", &["icmp-admin"; 2], None),
    ] {
        for family in [0, 1] {
            let held = of(&mut app, &format!("{name}{family}"));
            audit.assert_says(&host, &held, &[verdict]);
            for held in &held {
                let (seen, seen_ttl) = evidence(&audit, &host, held);
                let is_one = seen.iter().all(|kind| kinds.contains(&kind.as_str()));
                assert!(is_one && !seen.is_empty(), "{}", audit.record(&host, held));
                assert!(ttl.is_none() || seen_ttl == ttl, "{}", audit.record(&host, held));
            }
        }
    }
    audit.assert_counts();
    assert_eq!(audit.summary["kernel_rsts"], 0, "{}", audit.summary);
    assert_unharmed(&mut app);
}

/// Starts an audit, and waits until it asks hosts that do not answer.
fn up_to_the_first_syn(lab: &Lab) -> Child {
    let host = lab.namespace("prober");
    let child = Audit::command(&host, &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("keepsweep starts");
    lab.await_condition("a SYN on the way", || syns(lab) > 0);
    child
}

/// All is silent, and well again before the connections are asked once more.
#[test]
fn an_outage_that_is_over_accuses_nobody() {
    let Some(lab) = Lab::up("auheal", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let groups: Vec<Value> = [("well", 1), ("rebooted", 2)]
        .into_iter()
        .flat_map(|(name, subnet)| {
            let [v4, v6] = nets(subnet);
            [group(&format!("{name}0"), &v4, 9100), group(&format!("{name}1"), &v6, 9100)]
        })
        .collect();
    let mut app = App::connect(&host, &groups);
    fault(&lab, &["reboot"], &[2]);
    fault(&lab, &["drop"], &[1, 2]);
    watch(&lab);
    let child = up_to_the_first_syn(&lab);
    lab.script(&["heal", "drop"]);
    let audit = Audit::read(child.wait_with_output().expect("keepsweep ends"));
    println!("{}", audit.summary);
    for family in ["0", "1"] {
        for (name, verdict, answer) in
            [("well", "alive/ack", "ack"), ("rebooted", "rebooted/reset", "rst-to-probe")]
        {
            let held = of(&mut app, &format!("{name}{family}"));
            audit.assert_says(&host, &held, &[verdict]);
            for held in &held {
                let (seen, _) = evidence(&audit, &host, held);
                assert_eq!(seen, ["fresh-syn-ack", answer]);
            }
        }
    }
    audit.assert_counts();
    assert_eq!(audit.summary["kernel_rsts"], 0, "{}", audit.summary);
    assert_unharmed(&mut app);
}

#[test]
fn an_interruption_while_hosts_are_asked_leaves_what_is_known() {
    let Some(lab) = Lab::up("aufireint", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let [v4, v6] = nets(1);
    let groups =
        [group("v4", &v4, 9100), group("v6", &v6, 9100), group("well", "10.99.2.0/24", 9100)];
    let mut app = App::connect(&host, &groups);
    fault(&lab, &["drop"], &[1]);
    watch(&lab);
    let child = up_to_the_first_syn(&lab);
    signal::kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signal");
    let audit = Audit::read(child.wait_with_output().expect("keepsweep ends"));
    assert_eq!(audit.code, Some(130), "{}", audit.stderr);
    let interrupted = "undetermined/interrupted";
    for (name, verdict) in [("v4", interrupted), ("v6", interrupted), ("well", "alive/ack")] {
        audit.assert_says(&host, &of(&mut app, name), &[verdict]);
    }
    audit.assert_counts();
    assert_unharmed(&mut app);
}

/// What was silent while this host was well is not accused by a silence that may be its own.
#[test]
fn a_link_that_goes_down_while_hosts_are_asked_accuses_nobody() {
    let Some(lab) = Lab::up("aufirelink", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let [v4, v6] = nets(1);
    let mut app = App::connect(&host, &[group("v4", &v4, 9100), group("v6", &v6, 9100)]);
    fault(&lab, &["drop"], &[1]);
    watch(&lab);
    let child = up_to_the_first_syn(&lab);
    lab.script(&["fault", "link-down", "router/up0"]);
    let audit = Audit::read(child.wait_with_output().expect("keepsweep ends"));
    println!("{}", audit.stderr);
    for name in ["v4", "v6"] {
        audit.assert_says(&host, &of(&mut app, name), &["undetermined/observer"]);
    }
    audit.assert_counts();
    assert_unharmed(&mut app);
}

/// On a host that hands out all ports to its own connections there are none for fresh SYNs.
#[test]
fn without_ports_for_fresh_syns_silence_is_silence_and_the_user_is_told() {
    let Some(lab) = Lab::up("auports", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    lab.script(&["exec", "sysctl", "-q", "net.ipv4.ip_local_port_range=1024 65535"]);
    let _server = App::serve(&fleet, &[]);
    let mut app = App::connect(&host, &[group("gone", &nets(1)[0], 9100)]);
    fault(&lab, &["gone"], &[1]);
    let held = of(&mut app, "gone");
    let audit = Audit::run(&host, &[]);
    audit.assert_says(&host, &held, &["down/silent"]);
    assert_eq!(audit.code, Some(1), "{}", audit.stderr);
    assert!(audit.stderr.contains("--source-ports LO-HI"), "{}", audit.stderr);
    audit.assert_counts();
    let audit = Audit::run(&host, &["--source-ports", "600-900"]);
    audit.assert_says(&host, &held, &["down/host-silent"]);
    assert_eq!(audit.stderr, "", "nothing to say");
    assert_unharmed(&mut app);
}

/// A host whose own firewall lets out nothing new is not asked, and what was known stands.
#[test]
fn a_host_that_may_open_no_connections_knows_no_less_than_before() {
    let Some(lab) = Lab::up("auoutput", &[]) else { return };
    let (host, fleet) = (lab.namespace("prober"), lab.namespace("fleet"));
    let _server = App::serve(&fleet, &[]);
    let mut app = App::connect(&host, &[group("gone", &nets(1)[0], 9100)]);
    fault(&lab, &["gone"], &[1]);
    let table = "table inet closed {
        chain out {
            type filter hook output priority 0
            tcp flags & (syn | ack) == syn drop
        }
    }";
    lab.script(&["exec", "nft", table]);
    let held = of(&mut app, "gone");
    let audit = Audit::run(&host, &[]);
    audit.assert_says(&host, &held, &["down/silent"]);
    for held in &held {
        assert_eq!(evidence(&audit, &host, held).0, ["not-sent"]);
    }
    assert_unharmed(&mut app);
}
