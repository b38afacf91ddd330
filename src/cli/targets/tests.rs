use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn entries(texts: &[&str]) -> Vec<Entry> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let (word, label) = text.split_once(' ').map_or((*text, None), |(w, l)| (w, Some(l)));
            let (host, port) = entry::parse_target(word).expect("well-formed");
            let origin = Origin::Line("list".into(), index as u64 + 1);
            Entry { host, port, label: label.map(Into::into), origin }
        })
        .collect()
}

fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    match name {
        "two" => Ok(vec![IpAddr::from([10, 0, 0, 9]), IpAddr::from([10, 0, 0, 8])]),
        "both" => Ok(vec![IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), IpAddr::from([10, 0, 0, 7])]),
        "six" => Ok(vec![IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])]),
        _ => Err(io::Error::other("no such name")),
    }
}

fn run_with(
    texts: &[&str],
    exclude: &[&str],
    ports: &[u16],
    available: Option<u64>,
) -> Result<Targets, TargetError> {
    let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
    let given = Given { ports, ..Given::default() };
    expand(&entries(texts), &exclusions(&exclude)?, &given, available, look_up)
}

fn run(texts: &[&str], ports: &[u16]) -> Result<Targets, TargetError> {
    run_with(texts, &[], ports, None)
}

fn peers(targets: &Targets) -> Vec<String> {
    targets.peers.iter().map(SocketAddr::to_string).collect()
}

fn message(result: Result<Targets, TargetError>) -> String {
    result.expect_err("must be refused").to_string()
}

#[test]
fn every_address_of_a_prefix_counts() {
    let targets = run(&["10.3.0.0/16"], &[80]).expect("fine");
    assert_eq!(targets.peers.len(), 65_536);
    assert_eq!(targets.peers[0].to_string(), "10.3.0.0:80");
    assert_eq!(targets.peers[65_535].to_string(), "10.3.255.255:80");
    let slash_31 = run(&["10.3.0.0/31"], &[80]).expect("fine");
    assert_eq!(peers(&slash_31), ["10.3.0.0:80", "10.3.0.1:80"]);
}

#[test]
fn own_port_wins_over_p_and_p_multiplies() {
    let targets = run(&["10.0.0.1:22", "10.0.0.2"], &[80, 443]).expect("fine");
    assert_eq!(peers(&targets), ["10.0.0.1:22", "10.0.0.2:80", "10.0.0.2:443"]);
}

#[test]
fn duplicates_are_probed_once_and_counted() {
    let list = ["10.0.0.0/30", "10.0.0.1", "10.0.0.1:80", "10.0.0.1:81", "10.0.0.2/31"];
    let targets = run(&list, &[80]).expect("fine");
    assert_eq!(targets.duplicates, 4);
    assert_eq!(targets.peers.len(), 5);
    assert_eq!(run(&["10.0.0.1"], &[80, 80]).expect("fine").duplicates, 1);
}

#[test]
fn names_and_labels_are_kept_by_entry() {
    let list = ["10.1.0.0/16 rack 7", "two web", "10.0.0.1", "10.0.0.2", "both"];
    let targets = run(&list, &[80]).expect("fine");
    assert_eq!(targets.names.runs.len(), 4);
    let of = |index| targets.names.of(TargetId(index));
    assert_eq!(of(0), (None, Some("rack 7")));
    assert_eq!(of(65_535), (None, Some("rack 7")));
    assert_eq!(of(65_536), (Some("two"), Some("web")));
    assert_eq!(of(65_537), (Some("two"), Some("web")));
    assert_eq!(of(65_538), (None, None));
    assert_eq!(of(65_539), (None, None));
    assert_eq!(of(65_540), (Some("both"), None));
    assert_eq!(targets.ipv6_left_out, 1);
    assert_eq!(Names::default().of(TargetId(0)), (None, None));
}

#[test]
fn exclusions_are_left_out_and_may_leave_nothing() {
    let targets = run_with(&["10.0.0.0/29"], &["10.0.0.2/31", "10.0.0.7", "fd00::/8"], &[80], None);
    let left = ["10.0.0.0:80", "10.0.0.1:80", "10.0.0.4:80", "10.0.0.5:80", "10.0.0.6:80"];
    assert_eq!(peers(&targets.expect("fine")), left);
    let nothing = run_with(&["10.0.0.0/29"], &["10.0.0.0/8"], &[80], None);
    assert!(matches!(nothing, Err(TargetError::NothingLeft)));
    // What is never a peer may be cut out of a prefix.
    let cut = run_with(&["255.255.255.254/31"], &["255.255.255.255"], &[80], None);
    assert_eq!(
        message(cut),
        "list:1: 255.255.255.254/31: 255.255.255.254 is a public address; probe it only if you \
         are entitled to, with --allow-public"
    );
}

#[test]
fn refusals_name_place_target_and_remedy() {
    assert_eq!(
        message(run(&["10.0.0.1", "224.0.0.0/4:80"], &[80])),
        "list:2: 224.0.0.0/4: 224.0.0.0 is multicast (224.0.0.0/4) and never a peer; \
         leave it out with --exclude"
    );
    assert_eq!(
        message(run(&["8.8.8.8"], &[53])),
        "list:1: 8.8.8.8: 8.8.8.8 is a public address; probe it only if you are entitled to, \
         with --allow-public"
    );
    assert_eq!(
        message(run(&["10.0.0.1"], &[])),
        "list:1: 10.0.0.1 has no port: give it one (10.0.0.1:PORT) or use -p"
    );
    assert_eq!(message(run(&["fd00::1"], &[80])), "list:1: fd00::1: IPv6 is not probed yet");
    assert_eq!(message(run(&["six"], &[80])), "list:1: six: IPv6 is not probed yet");
    assert_eq!(
        message(run(&["two", "gone", "gone:81"], &[80])),
        "list:2: resolve gone: no such name\nlist:3: resolve gone: no such name"
    );
}

#[test]
fn too_many_targets_say_what_they_would_need() {
    let need = memory::needed(65_536 + 1);
    assert!(run_with(&["10.0.0.0/16", "10.1.0.0"], &[], &[80], Some(need)).is_ok());
    let text = message(run_with(&["10.0.0.0/16", "10.1.0.0"], &[], &[80], Some(need - 1)));
    let says = format!(
        "65,537 targets (10.0.0.0/16 alone 65,536) need about {} of memory",
        indicatif::BinaryBytes(need)
    );
    assert!(text.starts_with(&says), "{text}");
    let ports: Vec<u16> = (1..=2000).collect();
    let text = message(run(&["10.0.0.0/8", "10.0.0.0/8"], &ports));
    assert!(text.contains("at most 4,294,967,295 can be told apart"), "{text}");
}

#[test]
fn a_long_list_of_faults_is_cut() {
    let faults: Vec<u32> = (0..25).collect();
    let text = shown(&faults);
    assert_eq!(text.lines().count(), 11);
    assert!(text.ends_with("and 15 more"));
}

proptest! {
    /// Against a plain model: a set of addresses and ports.
    #[test]
    fn each_peer_is_listed_once(
        given in prop::collection::vec((0u8..64, 26u8..=32, prop::option::of(80u16..83)), 1..12),
        cut in prop::collection::vec((0u8..64, 28u8..=32), 0..4),
    ) {
        let texts: Vec<String> = given.iter().map(|(low, prefix, port)| {
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            format!("10.0.0.{low}/{prefix}{port}")
        }).collect();
        let cut: Vec<String> = cut.iter().map(|(low, prefix)| format!("10.0.0.{low}/{prefix}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut model = HashSet::new();
        let mut in_all = 0;
        for entry in entries(&texts) {
            let Host::Net(IpNet::V4(net)) = entry.host else { panic!("IPv4") };
            let ports = entry.port.map_or(vec![80, 81], |port| vec![port]);
            for bits in scope::range(&net) {
                let addr = Ipv4Addr::from_bits(bits);
                let is_cut = cut.iter().any(|text| {
                    let net: ipnet::Ipv4Net = text.parse().expect("a prefix");
                    net.contains(&addr)
                });
                for &port in ports.iter().filter(|_| !is_cut) {
                    in_all += 1;
                    model.insert(SocketAddr::from((addr, port)));
                }
            }
        }
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        match run_with(&texts, &cut, &[80, 81], None) {
            Ok(targets) => {
                prop_assert_eq!(targets.peers.len(), model.len());
                prop_assert_eq!(targets.duplicates, in_all - model.len() as u64);
                let listed: HashSet<SocketAddr> = targets.peers.into_iter().collect();
                prop_assert_eq!(listed, model);
            }
            Err(error) => {
                prop_assert!(matches!(error, TargetError::NothingLeft));
                prop_assert!(model.is_empty());
            }
        }
    }
}
