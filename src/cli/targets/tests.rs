use super::entry::Host;
use super::*;
use ipnet::IpNet;
use proptest::prelude::*;
use resolve::Found;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV6};
use std::num::NonZero;

fn look_up(name: &str) -> Found {
    let addrs = |texts: &[&str]| {
        let addr = |text: &&str| SocketAddr::new(text.parse().expect("an address"), 0);
        Ok(texts.iter().map(addr).collect())
    };
    match name {
        "two" => addrs(&["10.0.0.9", "10.0.0.8"]),
        "both" => addrs(&["fd00::7", "10.0.0.7", "fd00::7", "::ffff:10.0.0.7"]),
        "six" => addrs(&["::1"]),
        "lo" => Ok(vec![SocketAddrV6::new("fe80::9".parse().expect("v6"), 0, 0, 1).into()]),
        "none" => Ok(Vec::new()),
        _ => Err(io::Error::other("no such name")),
    }
}

fn run_given(
    texts: &[&str],
    exclude: &[&str],
    given: &Given<'_>,
    available: Option<u64>,
) -> Result<Targets, TargetError> {
    let exclude: Vec<String> = exclude.iter().map(|text| (*text).to_owned()).collect();
    let excluded = list::exclusions(&exclude)?;
    expand::expand(List::of(texts), &excluded, given, available, look_up, &mut |_, _| {})
}

fn run_with(
    texts: &[&str],
    exclude: &[&str],
    ports: &[u16],
    available: Option<u64>,
) -> Result<Targets, TargetError> {
    run_given(texts, exclude, &Given { ports, ..Given::default() }, available)
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
    assert_eq!(targets.names.runs(), 4);
    let of = |index| targets.names.of(TargetId(index));
    assert_eq!(of(0), (None, Some("rack 7")));
    assert_eq!(of(65_535), (None, Some("rack 7")));
    assert_eq!(of(65_536), (Some("two"), Some("web")));
    assert_eq!(of(65_537), (Some("two"), Some("web")));
    assert_eq!(of(65_538), (None, None));
    assert_eq!(of(65_539), (None, None));
    assert_eq!(of(65_540), (Some("both"), None));
    assert_eq!(peers(&targets)[65_540..], ["[fd00::7]:80", "10.0.0.7:80"]);
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
    assert_eq!(
        message(run(&["fd00::/120"], &[])),
        "list:1: fd00::/120 has no port: give it one ([fd00::/120]:PORT) or use -p"
    );
    assert_eq!(
        message(run(&["ff02::1"], &[80])),
        "list:1: ff02::1: ff02::1 is multicast (ff00::/8) and never a peer"
    );
    assert_eq!(
        message(run(&["2001:db8::1", "[2606:4700::1111]:80"], &[80])),
        "list:2: 2606:4700::1111: 2606:4700::1111 is a public address; probe it only if you are \
         entitled to, with --allow-public"
    );
}

#[test]
fn ipv6_is_expanded_and_cut_as_ipv4_is() {
    let list = ["2001:db8::/126", "[2001:db8::2]:81", "[2001:db8::1]:80 again", "::1"];
    let targets = run_with(&list, &["2001:db8::3", "::/127"], &[80], None).expect("fine");
    let left = ["[2001:db8::]:80", "[2001:db8::1]:80", "[2001:db8::2]:80", "[2001:db8::2]:81"];
    assert_eq!(peers(&targets), left);
    assert_eq!(targets.duplicates, 1);
    // However it is written, it is the same peer, and left out under either name.
    let mapped = run(&["10.0.0.1", "::ffff:10.0.0.1", "[::ffff:10.0.0.0/127]:80"], &[80]);
    let mapped = mapped.expect("fine");
    assert_eq!(
        (peers(&mapped), mapped.duplicates),
        (vec!["10.0.0.1:80".into(), "10.0.0.0:80".into()], 2)
    );
    let cut = run_with(&["10.0.0.0/30", "six"], &["::ffff:10.0.0.0/127", "::/0"], &[80], None);
    assert_eq!(peers(&cut.expect("fine")), ["10.0.0.2:80", "10.0.0.3:80"]);
}

/// Whatever is given, and however often: the size is known at once.
#[test]
fn a_typing_error_in_a_prefix_costs_nothing() {
    let text = message(run_with(&["fd00::/64"], &[], &[80, 443], Some(1 << 30)));
    let says = "2^65 targets (fd00::/64 alone 2^65) need more than 16 EiB of memory, and 1.00 GiB \
                are available; sweep them in parts";
    assert_eq!(text, says);
    let text = message(run(&["fd00::/96", "fd00::/64"], &[80]));
    assert!(text.starts_with("2^64 targets (fd00::/64 alone 2^64) need"), "{text}");
    let ports: Vec<u16> = (1..=65_535).collect();
    let given = Given { ports: &ports, allow_public: true, ..Given::default() };
    let text = message(run_given(&["2000::/3"; 1000], &["2000::1"], &given, Some(1 << 24)));
    assert!(text.contains("need more than 16 EiB"), "{text}");
    let text = message(run_with(&["10.0.0.1:80"; 1000], &["fd00::1"], &[], Some(700)));
    assert!(text.starts_with("1,000 targets"), "{text}");
}

#[test]
fn link_local_addresses_have_a_scope() {
    let list = ["fe80::1%lo", "[fe80::1%1]:22", "fe80::2%lo/127", "lo"];
    let targets = run(&list, &[80]).expect("fine");
    let expected =
        ["[fe80::1%1]:80", "[fe80::1%1]:22", "[fe80::2%1]:80", "[fe80::3%1]:80", "[fe80::9%1]:80"];
    assert_eq!(peers(&targets), expected);
    assert_eq!(
        message(run(&["fe80::1"], &[80])),
        "list:1: fe80::1: fe80::1 is link-local, one on every link: say on which \
         (fe80::1%INTERFACE), or use -i"
    );
    let through =
        |interface| Given { ports: &[80], interface: Some(interface), ..Given::default() };
    let targets = run_given(&["fe80::1", "fe80::1%lo", "fd00::1"], &[], &through("lo"), None);
    let targets = targets.expect("fine");
    assert_eq!(
        (peers(&targets), targets.duplicates),
        (vec!["[fe80::1%1]:80".into(), "[fd00::1]:80".into()], 1)
    );
    // The engine says that there is no such interface.
    assert!(run_given(&["fe80::1"], &[], &through("nosuch0"), None).is_ok());
    let zone = entry::Malformed::Interface("nosuch0".into()).to_string();
    assert_eq!(zone, "no such interface: nosuch0; see: ip link");
}

#[test]
fn a_source_address_is_of_one_family() {
    let from =
        |source: &str| Given { ports: &[80], source: source.parse().ok(), ..Given::default() };
    let targets = run_given(&["both", "10.0.0.1"], &[], &from("10.0.0.2"), None).expect("fine");
    assert_eq!(
        (peers(&targets), targets.other_family),
        (vec!["10.0.0.7:80".into(), "10.0.0.1:80".into()], 1)
    );
    assert_eq!(
        message(run_given(&["both", "10.0.0.1"], &[], &from("fd00::2"), None)),
        "list:2: 10.0.0.1: cannot be probed from fd00::2 (--source), which is of the other address \
         family"
    );
    assert_eq!(
        message(run_given(&["two"], &[], &from("fd00::2"), None)),
        "no targets left: no name has an address of the family of fd00::2 (--source)"
    );
}

#[test]
fn names_without_an_address_are_kept_apart() {
    let list = ["two", "gone rack 7", "gone:81", "none:82", "gone", "10.0.0.1"];
    let targets = run(&list, &[80]).expect("fine");
    assert_eq!(peers(&targets), ["10.0.0.9:80", "10.0.0.8:80", "10.0.0.1:80"]);
    let unresolved = [(TargetId(3), 80), (TargetId(4), 81), (TargetId(5), 82)];
    assert_eq!(targets.unresolved, unresolved);
    assert_eq!(targets.duplicates, 1);
    assert_eq!(targets.names.of(TargetId(2)), (None, None));
    assert_eq!(targets.names.of(TargetId(3)), (Some("gone"), Some("rack 7")));
    assert_eq!(targets.names.of(TargetId(4)), (Some("gone"), None));
    assert_eq!(targets.names.of(TargetId(5)), (Some("none"), None));
    assert_eq!(
        targets.resolver.expect("faults"),
        "list:2: resolve gone: no such name\nlist:3: resolve gone: no such name\n\
         list:4: resolve none: no address\nlist:5: resolve gone: no such name"
    );
    let nobody = run(&["gone"], &[80, 81]).expect("a record is a result");
    assert_eq!((nobody.peers.len(), nobody.unresolved.len()), (0, 2));
}

#[test]
fn too_many_targets_say_what_they_would_need() {
    let need = memory::needed(65_536 + 1, Family::V4);
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
    let text = shown(&faults, faults.len());
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
        // The place in the list as the label.
        let labelled: Vec<String> =
            texts.iter().enumerate().map(|(nth, text)| format!("{text} {nth}")).collect();
        let labelled: Vec<&str> = labelled.iter().map(String::as_str).collect();
        let mut model = HashSet::new();
        let mut by_first = Vec::new();
        let mut in_all = 0;
        for text in &texts {
            let (Host::Net(IpNet::V4(net)), port) = entry::parse_target(text).expect("well-formed")
            else { panic!("IPv4") };
            let ports = port.map_or(vec![80, 81], |port: NonZero<u16>| vec![port.get()]);
            for bits in net.network().to_bits()..=net.broadcast().to_bits() {
                let addr = Ipv4Addr::from_bits(bits);
                let is_cut = cut.iter().any(|text| {
                    let net: ipnet::Ipv4Net = text.parse().expect("a prefix");
                    net.contains(&addr)
                });
                for &port in ports.iter().filter(|_| !is_cut) {
                    in_all += 1;
                    let peer = SocketAddr::from((addr, port));
                    if model.insert(peer) {
                        by_first.push((text.to_string(), peer));
                    }
                }
            }
        }
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        match run_with(&labelled, &cut, &[80, 81], None) {
            Ok(targets) => {
                prop_assert_eq!(targets.peers.len(), model.len());
                prop_assert_eq!(targets.duplicates, in_all - model.len() as u64);
                // Each under what it was given as first, in the order in which it was given.
                let mut nth = 0;
                for (id, peer) in targets.peers.iter().enumerate() {
                    let label = targets.names.of(TargetId(id as u32)).1.expect("a label");
                    let place: usize = label.parse().expect("a number");
                    prop_assert!(place >= nth);
                    nth = place;
                    prop_assert!(by_first.contains(&(texts[place].to_owned(), *peer)));
                }
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
