//! Interfaces and route look-ups against `ip`, in a network namespace of their own.

mod netns;

use keepsweep::io::route::{Constraint, NoRoute, Route, Routes, interfaces};
use keepsweep::time::Clock;
use netns::{in_namespace, ip};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// Two interfaces, overlapping prefixes, routes that refuse, and a policy rule.
const NETWORK: &[&str] = &[
    "link add one type veth peer name one-peer",
    "link add two type veth peer name two-peer",
    "addr add 10.1.0.1/24 dev one",
    "addr add 10.2.0.1/24 dev two",
    "addr add 10.2.0.9/24 dev two",
    "addr add fd01::1/64 dev one nodad",
    "addr add fd03::1/64 dev one nodad",
    "link set one up",
    "link set one-peer up",
    "link set two up",
    "link set two-peer up",
    "route add 10.0.0.0/8 via 10.1.0.254",
    "route add 10.64.0.0/10 via 10.2.0.254",
    "route add 10.64.1.0/24 via 10.1.0.253 src 10.2.0.9",
    "route add 10.64.1.128/25 dev two",
    "route add 10.64.1.200/32 via 10.2.0.253",
    "route add unreachable 10.65.0.0/16",
    "route add prohibit 10.66.0.0/16",
    "route add blackhole 10.67.0.0/16",
    "route add throw 10.68.0.0/16",
    "route add 10.64.0.0/10 via 10.1.0.252 table 100",
    "rule add to 10.70.0.0/16 table 100",
    "rule add to 10.71.0.0/16 prohibit",
    "-6 route add fd00::/8 via fd01::fe",
    "-6 route add prohibit fd05:1::/48",
];

fn network() {
    for arguments in NETWORK {
        ip(arguments);
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Waits until `condition` holds, ten seconds at most.
#[track_caller]
fn await_that(condition: impl Fn() -> bool) {
    let begun = Clock.now();
    while !condition() {
        assert!(Clock.now().since(begun) < Duration::from_secs(10), "waited in vain");
        Clock.sleep(Duration::from_millis(1));
    }
}

fn index_of(name: &str) -> u32 {
    let all = interfaces().expect("list interfaces");
    all.iter().find(|interface| interface.name == name).expect("interface exists").index
}

/// What `ip route get` says: interface, next hop and source, or nothing if it refuses.
fn ip_route_get(dst: IpAddr, constraint: &str) -> Option<(String, IpAddr, IpAddr)> {
    let output = std::process::Command::new("ip")
        .args(["-j", "route", "get", &dst.to_string()])
        .args(constraint.split_whitespace())
        .output()
        .expect("run ip");
    if !output.status.success() {
        return None;
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |key: &str| answer[0][key].as_str().map(str::to_owned);
    let next_hop = text("gateway").map_or(dst, |gateway| address(&gateway));
    let source = text("prefsrc").or(text("from")).expect("a source");
    Some((text("dev").expect("a device"), next_hop, address(&source)))
}

#[test]
fn lists_interfaces_with_their_addresses() {
    in_namespace(|| {
        network();
        ip("link set two mtu 1400");
        ip("link set two-peer down");
        let all = interfaces().expect("list interfaces");
        let find = |name| all.iter().find(|interface| interface.name == name).expect("exists");
        let (lo, one, two) = (find("lo"), find("one"), find("two"));
        assert!(lo.loopback && lo.up && !lo.has_mac);
        assert!(!one.loopback && one.up && one.has_mac);
        assert!(!two.up, "no link");
        assert_eq!(two.mtu, 1400);
        let addresses: Vec<String> = two
            .addresses
            .iter()
            .filter(|own| own.addr().is_ipv4())
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, ["10.2.0.1/24", "10.2.0.9/24"]);
        let json: serde_json::Value =
            serde_json::from_str(&ip("-j link show dev one")).expect("JSON");
        let mac: Vec<String> = one.mac.0.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(json[0]["address"].as_str(), Some(mac.join(":").as_str()));
        assert_eq!(json[0]["ifindex"].as_u64(), Some(one.index.into()));
    });
}

#[test]
fn finds_every_kind_of_route() {
    in_namespace(|| {
        network();
        let (one, two) = (index_of("one"), index_of("two"));
        let mut routes = Routes::open().expect("open");
        let mut of = |dst| routes.lookup(address(dst), &Constraint::default()).expect("look up");
        let via = |ifindex, next_hop, source| Route::Via {
            ifindex,
            next_hop: address(next_hop),
            source: address(source),
        };
        assert_eq!(of("10.1.0.77"), via(one, "10.1.0.77", "10.1.0.1"), "on link");
        assert_eq!(of("10.1.0.78"), via(one, "10.1.0.78", "10.1.0.1"), "on link, from memory");
        assert_eq!(of("10.200.0.1"), via(one, "10.1.0.254", "10.1.0.1"));
        assert_eq!(of("10.64.9.9"), via(two, "10.2.0.254", "10.2.0.1"));
        assert_eq!(of("10.64.1.1"), via(one, "10.1.0.253", "10.2.0.9"));
        assert_eq!(of("10.64.1.129"), via(two, "10.64.1.129", "10.2.0.1"));
        assert_eq!(of("10.64.1.200"), via(two, "10.2.0.253", "10.2.0.1"));
        assert_eq!(of("10.70.0.1"), via(one, "10.1.0.252", "10.1.0.1"), "by rule");
        assert_eq!(of("10.65.0.1"), Route::None(NoRoute::Unreachable));
        assert_eq!(of("10.66.0.1"), Route::None(NoRoute::Prohibit));
        assert_eq!(of("10.67.0.1"), Route::None(NoRoute::Blackhole));
        assert_eq!(of("10.71.0.1"), Route::None(NoRoute::Prohibit), "by rule");
        assert_eq!(of("192.0.2.1"), Route::None(NoRoute::NoRoute));
        assert_eq!(of("10.1.0.255"), Route::Broadcast);
        assert_eq!(of("255.255.255.255"), Route::Broadcast);
        assert_eq!(of("224.0.0.1"), Route::Multicast);
        assert_eq!(of("ff02::1"), Route::Multicast);
        assert!(matches!(of("10.2.0.9"), Route::Local { .. }));
        assert!(matches!(of("127.1.2.3"), Route::Local { .. }));
        assert!(matches!(of("::1"), Route::Local { .. }));
        assert_eq!(of("fd05:1::1"), Route::None(NoRoute::Prohibit));
        assert!(matches!(of("2001:db8::1"), Route::None(_)));
        assert_eq!(of("fd01::77"), via(one, "fd01::77", "fd01::1"));
        // One route, two addresses of ours: the closer to the destination is the source.
        assert_eq!(of("fd01:9::77"), via(one, "fd01::fe", "fd01::1"));
        assert_eq!(of("fd03:9::77"), via(one, "fd01::fe", "fd03::1"));
    });
}

#[test]
fn obeys_constraints() {
    in_namespace(|| {
        network();
        let two = index_of("two");
        let mut routes = Routes::open().expect("open");
        let dst = address("10.64.1.129");
        let source = address("10.2.0.9");
        let constraint = Constraint { source: Some(source), ..Constraint::default() };
        let route = routes.lookup(dst, &constraint).expect("look up");
        assert_eq!(route, Route::Via { ifindex: two, next_hop: dst, source });
        let constraint = Constraint { oif: Some(two), ..Constraint::default() };
        let Route::Via { ifindex, .. } =
            routes.lookup(address("10.200.0.1"), &constraint).expect("look up")
        else {
            panic!("Linux takes it to be on the link");
        };
        assert_eq!(ifindex, two);
        for (foreign, oif) in [("10.9.9.9", None), ("10.9.9.9", Some(two)), ("fd01::1", None)] {
            let constraint = Constraint { oif, source: Some(address(foreign)), mark: 0 };
            let error = routes.lookup(dst, &constraint).expect_err("not a source for this");
            assert!(error.to_string().contains(foreign), "{error}");
        }
        // A whole prefix can be this host's.
        ip("route add local 10.9.0.0/16 dev lo");
        let mut routes = Routes::open().expect("open");
        let source = address("10.9.9.9");
        let constraint = Constraint { source: Some(source), ..Constraint::default() };
        let route = routes.lookup(dst, &constraint).expect("look up");
        assert_eq!(route, Route::Via { ifindex: two, next_hop: dst, source });
        ip("route add 10.72.0.0/16 via inet6 fe80::1 dev two");
        let mut routes = Routes::open().expect("open");
        let error = routes.lookup(address("10.72.0.1"), &Constraint::default());
        assert!(error.expect_err("not supported").to_string().contains("fe80::1"));
    });
}

#[test]
fn chooses_ipv6_sources_as_the_kernel_does() {
    in_namespace(|| {
        network();
        for arguments in [
            // Global beside unique local, of which the destination decides; and one that is outdated.
            "addr add 2001:db8:1::1/64 dev one nodad",
            "addr add 2001:db8:1::2/64 dev one nodad preferred_lft 0",
            "addr add fe80::1:1/64 dev one nodad",
            "addr add fe80::2:1/64 dev two nodad",
            "-6 route add 2001:db8::/32 via fe80::fe dev one",
        ] {
            ip(arguments);
        }
        // A link that has just come up gets its local routes a moment later.
        for own in ["2001:db8:1::2", "fe80::1:1", "fe80::2:1"] {
            await_that(|| ip("-6 route show table local").contains(&format!("local {own} ")));
        }
        let (one, two) = (index_of("one"), index_of("two"));
        let mut routes = Routes::open().expect("open");
        let bound = |oif: u32, source: Option<&str>| Constraint {
            oif: (oif > 0).then_some(oif),
            source: source.map(address),
            mark: 0,
        };
        let mut of = |dst, constraint| routes.lookup(address(dst), &constraint).expect("look up");
        let via = |ifindex, next_hop, source| Route::Via {
            ifindex,
            next_hop: address(next_hop),
            source: address(source),
        };
        // By a router that is known by its link-local address only; never the outdated source.
        assert_eq!(of("2001:db8:9::7", bound(0, None)), via(one, "fe80::fe", "2001:db8:1::1"));
        assert_eq!(of("2001:db8:1::7", bound(0, None)), via(one, "2001:db8:1::7", "2001:db8:1::1"));
        assert_eq!(of("fd77::7", bound(0, None)), via(one, "fd01::fe", "fd03::1"), "ULA to ULA");
        // Unless it is asked for.
        let outdated = Some("2001:db8:1::2");
        let route = via(one, "fe80::fe", "2001:db8:1::2");
        assert_eq!(of("2001:db8:9::7", bound(0, outdated)), route);

        // The link decides what a link-local address means.
        let link_local = |name: &str| {
            let all = interfaces().expect("list interfaces");
            let found = all.into_iter().find(|known| known.name == name).expect("exists");
            let own: Vec<IpAddr> = found.addresses.iter().map(|own| own.addr()).collect();
            move |source: IpAddr| own.contains(&source)
        };
        for (oif, is_own) in [(one, link_local("one")), (two, link_local("two"))] {
            let Route::Via { ifindex, next_hop, source } = of("fe80::77", bound(oif, None)) else {
                panic!("on link");
            };
            assert_eq!((ifindex, next_hop), (oif, address("fe80::77")));
            assert!(is_own(source) && source.to_string().starts_with("fe80:"), "{source}");
        }
        let route = of("fe80::77", bound(two, Some("fe80::2:1")));
        assert_eq!(route, via(two, "fe80::77", "fe80::2:1"));

        // Through an interface without such a route there is none, with a source and without.
        let unrouted = [bound(two, None), bound(two, Some("fd01::1"))];
        for constraint in unrouted {
            let route = of("2001:db8:9::7", constraint);
            assert!(matches!(route, Route::None(_)), "{route:?}");
        }
    });
}

#[test]
fn a_route_without_a_source_is_none() {
    in_namespace(|| {
        network();
        // `two` has link-local addresses only, which no router forwards.
        ip("-6 route add 2001:db8::/32 via fe80::fe dev two");
        ip("-6 route add 2001:db8:2::/48 dev two");
        ip("addr add fe80::2:1/64 dev two nodad");
        for address in ["fd01::1/64", "fd03::1/64"] {
            ip(&format!("addr del {address} dev one"));
        }
        let mut routes = Routes::open().expect("open");
        let mut of = |dst| routes.lookup(address(dst), &Constraint::default()).expect("look up");
        assert_eq!(of("2001:db8:9::7"), Route::None(NoRoute::NoSource));
        let Route::Via { source, .. } = of("2001:db8:2::7") else { panic!("on link") };
        assert!(source.to_string().starts_with("fe80:"), "{source}");

        // An address whose uniqueness is still being checked is no source yet.
        ip("-6 addr flush dev two scope link");
        std::fs::write("/proc/sys/net/ipv6/conf/two/dad_transmits", "1000").expect("set sysctl");
        ip("addr add 2001:db8:2::1/64 dev two");
        // Linux then falls back on it.
        await_that(|| ip("-6 route show table local").contains("local ::1 "));
        for interface in ["one", "one-peer", "two-peer"] {
            ip(&format!("-6 addr flush dev {interface}"));
        }
        let mut routes = Routes::open().expect("open");
        let dst = address("2001:db8:2::7");
        let route = routes.lookup(dst, &Constraint::default()).expect("look up");
        assert_eq!(route, Route::None(NoRoute::NoSource), "not even ::1");
        let tentative =
            Constraint { source: Some(address("2001:db8:2::1")), ..Constraint::default() };
        let error = routes.lookup(dst, &tentative).expect_err("not usable");
        assert!(error.to_string().contains("2001:db8:2::1"), "{error}");
    });
}

#[test]
fn agrees_with_the_kernel_for_random_addresses() {
    in_namespace(|| {
        network();
        let mut routes = Routes::open().expect("open");
        let mut random = fastrand::Rng::with_seed(7);
        let names: Vec<(u32, String)> =
            interfaces().expect("list").into_iter().map(|i| (i.index, i.name)).collect();
        let mut answered = 0;
        for constraint in ["", "oif two", "from 10.2.0.9"] {
            let bound = match constraint {
                "oif two" => Constraint { oif: Some(index_of("two")), ..Constraint::default() },
                "" => Constraint::default(),
                _ => Constraint { source: Some(address("10.2.0.9")), ..Constraint::default() },
            };
            for _ in 0..150 {
                // Mostly where the prefixes overlap.
                let dst = IpAddr::V4(match random.u8(0..4) {
                    0 => Ipv4Addr::from(random.u32(0x0a00_0000..0x0b00_0000)),
                    1 => Ipv4Addr::from(random.u32(0x0a40_0000..0x0a48_0000)),
                    2 => Ipv4Addr::from(random.u32(0x0a40_0000..0x0a40_0200)),
                    _ => Ipv4Addr::from(random.u32(0x0100_0000..0xe000_0000)),
                });
                let ours = routes.lookup(dst, &bound).expect("look up");
                match (ours, ip_route_get(dst, constraint)) {
                    (Route::Via { ifindex, next_hop, source }, Some(theirs)) => {
                        let name = &names.iter().find(|(i, _)| *i == ifindex).expect("listed").1;
                        assert_eq!((name.clone(), next_hop, source), theirs, "{dst} {constraint}");
                        answered += 1;
                    }
                    (Route::Local { .. } | Route::Broadcast, Some(_)) | (Route::None(_), None) => {}
                    (ours, theirs) => panic!("{dst} {constraint}: {ours:?}, but ip: {theirs:?}"),
                }
            }
        }
        assert!(answered > 100, "only {answered} had a route");
        assert!(routes.lookups_made() < 100, "{} of 450 asked", routes.lookups_made());
    });
}

#[test]
fn asks_once_for_a_whole_network() {
    in_namespace(|| {
        network();
        let mut routes = Routes::open().expect("open");
        for dst in 0x0ac8_0000u32..0x0ac9_0000 {
            let dst = IpAddr::V4(Ipv4Addr::from(dst));
            let route = routes.lookup(dst, &Constraint::default()).expect("look up");
            assert!(matches!(route, Route::Via { .. }), "{dst}: {route:?}");
        }
        assert_eq!(routes.lookups_made(), 1);
    });
}
