//! Ten hosts in one: namespaces with the same addresses, ports and connections.

use super::apps::App;
use super::report::Audit;
use serde_json::json;
use std::net::SocketAddr;
use std::process::Command;

const HOSTS: usize = 10;
const CONNECTIONS: usize = 20;
const FIRST_PORT: u16 = 40_000;
/// Nobody else's: with `--netns all` an audit sees the whole machine.
const PEER: &str = "10.66.77.2";

/// A host and its peer, removed when dropped.
struct Pair {
    host: String,
    peer: String,
}

fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
}

impl Pair {
    fn raise(number: usize) -> Pair {
        let [host, peer] = ["host", "peer"].map(|end| format!("kst-auns-{end}{number}"));
        let pair = Pair { host, peer };
        pair.remove();
        let Pair { host, peer } = &pair;
        run(&format!("ip netns add {host}"));
        run(&format!("ip netns add {peer}"));
        run(&format!("ip -n {host} link add up0 type veth peer name up0 netns {peer}"));
        for (namespace, address) in [(host, "10.66.77.1"), (peer, PEER)] {
            run(&format!("ip -n {namespace} link set lo up"));
            run(&format!("ip -n {namespace} link set up0 up"));
            run(&format!("ip -n {namespace} addr add {address}/24 dev up0"));
        }
        pair
    }

    fn remove(&self) {
        for namespace in [&self.host, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }

    /// Lets the peer swallow what it is sent, or forget its connections without a word.
    fn strike(&self, forgets: bool) {
        let Pair { peer, .. } = self;
        run(&format!("ip netns exec {peer} nft add table inet strike"));
        let hook = if forgets { "output" } else { "input" };
        let chain = format!("{{ type filter hook {hook} priority 0; }}");
        run(&format!("ip netns exec {peer} nft add chain inet strike silence {chain}"));
        run(&format!(
            "ip netns exec {peer} nft add rule inet strike silence meta l4proto tcp drop"
        ));
        if forgets {
            run(&format!("ip netns exec {peer} ss -K state established"));
            run(&format!("ip netns exec {peer} nft delete table inet strike"));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn all_namespaces_each_connection_once() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "lab tests need root");
        eprintln!("skipped: needs root");
        return;
    }
    let pairs: Vec<Pair> = (0..HOSTS).map(Pair::raise).collect();
    let group = json!({
        "name": "idle", "count": CONNECTIONS, "condition": "idle", "port": 9100,
        "peers": format!("{PEER}/32"), "from": "10.66.77.1/32", "from_port": FIRST_PORT,
    });
    let servers: Vec<App> = pairs.iter().map(|pair| App::serve(&pair.peer, &[])).collect();
    let groups = [group];
    let mut apps: Vec<App> = pairs.iter().map(|pair| App::connect(&pair.host, &groups)).collect();
    pairs[3].strike(false);
    pairs[5].strike(true);

    let peer = format!("{PEER}/32");
    let output = Command::new(env!("CARGO_BIN_EXE_keepsweep"))
        .args(["audit", "--format", "ndjson", "--netns", "all", "--peer", &peer])
        .output()
        .expect("keepsweep starts");
    let audit = Audit::read(output);
    assert_eq!(audit.code, Some(1), "{}", audit.stderr);
    assert_eq!(audit.records.len(), HOSTS * CONNECTIONS, "{}", audit.stderr);
    for (number, (pair, app)) in pairs.iter().zip(&mut apps).enumerate() {
        let expected = match number {
            3 => ("down", "host-silent"),
            5 => ("rebooted", "reset"),
            _ => ("alive", "ack"),
        };
        let held = app.list();
        for (index, held) in held.iter().enumerate() {
            let port = FIRST_PORT + index as u16;
            let local = SocketAddr::new([10, 66, 77, 1].into(), port);
            assert_eq!(held.local, local);
            let record = audit.records.get(&(pair.host.clone(), local, held.peer));
            let record = record.unwrap_or_else(|| panic!("{}: {local}", pair.host));
            let said = (record["state"].as_str(), record["reason"].as_str());
            assert_eq!(said, (Some(expected.0), Some(expected.1)), "{record}");
            assert_eq!(record["cookie"], held.cookie, "{record}");
            assert_eq!(record["pid"], app.pid(), "{record}");
            assert_eq!((held.state.as_str(), &held.error), ("established", &None));
        }
        assert_eq!(held.len(), CONNECTIONS);
    }
    drop(servers);
}
