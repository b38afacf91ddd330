//! Flows as written: what is read, what is refused and in which words.

use super::*;
use crate::cli::targets;
use crate::probe::given::TimestampClock;
use crate::wire::SeqNumber;
use proptest::prelude::*;

const HEADER: &str = "local_ip,local_port,peer_ip,peer_port,snd_una,rcv_nxt";

fn run(text: &str) -> Result<Flows, FlowsError> {
    read("flows", text.as_bytes(), &Set::new(), false)
}

#[track_caller]
fn message(text: &str) -> String {
    run(text).expect_err("refused").to_string()
}

/// A line of NDJSON with some fields changed; `null` leaves one out.
fn json(changes: &[(&str, &str)]) -> String {
    let mut fields = vec![
        ("local_ip", "\"10.0.0.1\""),
        ("local_port", "40000"),
        ("peer_ip", "\"10.0.0.2\""),
        ("peer_port", "443"),
        ("snd_una", "1000"),
        ("rcv_nxt", "4294967295"),
    ];
    for change in changes {
        match fields.iter_mut().find(|field| field.0 == change.0) {
            Some(field) => field.1 = change.1,
            None => fields.push(*change),
        }
    }
    let fields: Vec<String> =
        fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn plain() -> Given {
    Given {
        local: ([10, 0, 0, 1], 40_000).into(),
        peer: ([10, 0, 0, 2], 443).into(),
        snd_una: SeqNumber(1000),
        snd_nxt: SeqNumber(1000),
        rcv_nxt: SeqNumber(u32::MAX),
        wnd: 64_240,
        clock: None,
        obstacle: None,
        host: None,
    }
}

#[test]
fn what_every_flow_needs_is_enough() {
    assert_eq!(run(&json(&[])).expect("fine").given, [plain()]);
    let csv = format!("{HEADER}\n10.0.0.1,40000,10.0.0.2,443,1000,4294967295\n");
    assert_eq!(run(&csv).expect("fine").given, [plain()]);
}

#[test]
fn the_rest_is_read_where_it_is_given() {
    let full = Given {
        snd_nxt: SeqNumber(1005),
        wnd: 502,
        clock: Some(TimestampClock {
            ts_recent: 7,
            ts_offset: 0u32.wrapping_sub(12),
            in_microseconds: false,
        }),
        ..plain()
    };
    let line = json(&[
        ("snd_nxt", "1005"),
        ("wnd", "502"),
        ("ts_recent", "7"),
        ("ts_offset_ms", "-12"),
        ("name", "\"db \\u00e9 1\""),
        ("pid", "17"),
        ("evidence", "[{\"kind\":\"ack\",\"name\":\"no\"}]"),
        ("state", "null"),
    ]);
    let flows = run(&line).expect("fine");
    assert_eq!(flows.given, [full]);
    assert_eq!(flows.names, [(0, "db é 1".into())]);
    // Columns in any order, with others between them, quotes, spaces and CRLF.
    let csv = "\r\n peer_ip ,comm,name,ts_offset_ms,rcv_nxt,snd_una,snd_nxt,wnd,peer_port,local_port,local_ip,ts_recent\r\n\
               10.0.0.2,\"a,b\",\"db é 1\",4294967284,4294967295,1000,1005, 502 ,443,40000,10.0.0.1,7\r\n";
    let flows = run(csv).expect("fine");
    assert_eq!(flows.given, [full]);
    assert_eq!(flows.names, [(0, "db é 1".into())]);
}

#[test]
fn absent_is_null_or_empty_and_summaries_are_no_flows() {
    let line =
        json(&[("wnd", "null"), ("ts_recent", "null"), ("name", "\"\""), ("type", "\"peer\"")]);
    let text = format!("\u{feff}\n{line}\n\n  \n{{\"type\":\"summary\",\"peers\":1}}");
    let flows = run(&text).expect("fine");
    assert_eq!((flows.given, flows.names), (vec![plain()], vec![]));
    let csv = format!("\u{feff}{HEADER},wnd,name\n10.0.0.1,40000,10.0.0.2,443,1000,4294967295,,\n");
    assert_eq!(run(&csv).expect("fine").given, [plain()]);
}

/// As `audit --dry-run` lists them: nothing that an audit leaves out may be missed.
#[test]
fn listed_sockets_without_numbers_are_passed_over_and_counted() {
    let state = |state| ("tcp_state", state);
    let gone = [("snd_una", "null"), ("rcv_nxt", "null")];
    let waiting = json(&[gone[0], gone[1], state("\"time-wait\"")]);
    let established = json(&[state("\"established\"")]);
    let flows = run(&format!("{waiting}\n{established}\n{waiting}\n")).expect("fine");
    assert_eq!((flows.given, flows.without_numbers), (vec![plain()], 2));
    let row = "10.0.0.1,40000,10.0.0.2,443,,,time-wait";
    assert_eq!(
        message(&format!("{HEADER},tcp_state\n{row}\n")),
        "flows: no flows in it, only sockets without sequence numbers, as in TIME_WAIT: 1"
    );
    assert_eq!(message(&json(&gone)), "flows:1: snd_una is missing");
    let half = json(&[gone[0], state("\"established\"")]);
    assert_eq!(message(&half), "flows:1: snd_una is missing");
}

#[test]
fn addresses_of_both_families_scopes_and_mapped_ones() {
    let mapped = json(&[("local_ip", "\"::ffff:10.0.0.1\""), ("peer_ip", "\"::ffff:10.0.0.2\"")]);
    assert_eq!(run(&mapped).expect("fine").given, [plain()]);
    let text = json(&[("local_ip", "\"fe80::1%lo\""), ("peer_ip", "\"fe80::2\"")]);
    let flows = run(&text).expect("fine");
    let scope = |address: SocketAddr| match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => panic!("IPv6"),
    };
    assert_ne!(scope(flows.given[0].local), 0);
    assert_eq!(scope(flows.given[0].local), scope(flows.given[0].peer));
    let text = json(&[("local_ip", "\"fd00::1\""), ("peer_ip", "\"fe80::2%7\"")]);
    assert_eq!(scope(run(&text).expect("fine").given[0].peer), 7);
}

#[test]
fn refusals_name_place_field_and_remedy() {
    let sequence = "a sequence number, 0 to 4294967295";
    let window = "the window field of a header, 1 to 65535";
    let rows: &[(&[(&str, &str)], String)] = &[
        (&[("snd_una", "null")], "snd_una is missing".into()),
        (&[("local_ip", "7")], "local_ip: \"7\": expected an IP address".into()),
        (
            &[("peer_ip", "\"10.0.0.2%lo\"")],
            "peer_ip: \"10.0.0.2%lo\": expected an IP address".into(),
        ),
        (
            &[("local_ip", "\"fe80::1%nosuch0\"")],
            "local_ip: \"fe80::1%nosuch0\": no such interface after the %".into(),
        ),
        (&[("peer_port", "0")], "peer_port: \"0\": expected a port, 1 to 65535".into()),
        (&[("local_port", "65536")], "local_port: \"65536\": expected a port, 1 to 65535".into()),
        (&[("snd_una", "4294967296")], format!("snd_una: \"4294967296\": expected {sequence}")),
        (&[("rcv_nxt", "-1")], format!("rcv_nxt: \"-1\": expected {sequence}")),
        (&[("rcv_nxt", "1.0")], format!("rcv_nxt: \"1.0\": expected {sequence}")),
        (&[("rcv_nxt", "\"+5\"")], format!("rcv_nxt: \"+5\": expected {sequence}")),
        (&[("snd_nxt", "999")], "snd_nxt is before snd_una".into()),
        (&[("wnd", "0")], format!("wnd: \"0\": expected {window}")),
        (&[("wnd", "65536")], format!("wnd: \"65536\": expected {window}")),
        (
            &[("ts_recent", "1")],
            "ts_recent and ts_offset_ms go together: give both or neither".into(),
        ),
        (
            &[("ts_recent", "1"), ("ts_offset_ms", "-2147483649")],
            "ts_offset_ms: \"-2147483649\": expected milliseconds, -2147483648 to 4294967295"
                .into(),
        ),
        (
            &[("peer_ip", "\"fd00::1\"")],
            "local_ip and peer_ip are of different address families".into(),
        ),
        (
            &[("peer_ip", "\"10.0.0.1\""), ("peer_port", "40000")],
            "local and peer address and port are the same".into(),
        ),
        (
            &[("name", "\"a\\u001bb\"")],
            "name: \"a\\u{1b}b\": expected text without control characters".into(),
        ),
        (
            &[("peer_ip", "\"224.0.0.1\"")],
            "peer_ip: 224.0.0.1 is multicast (224.0.0.0/4) and never a peer; take the line out"
                .into(),
        ),
        (
            &[("peer_ip", "\"8.8.8.8\"")],
            "peer_ip: 8.8.8.8 is a public address; probe it only if you are entitled to, with \
             --allow-public"
                .into(),
        ),
    ];
    for (changes, expected) in rows {
        let text = format!("\n{}\n{}\n", json(&[]), json(changes));
        assert_eq!(message(&text), format!("flows:3: {expected}"));
    }
    let text = json(&[("wnd", "[1]")]);
    assert!(message(&text).starts_with("flows:1: not a JSON object: wnd: invalid type: sequence"));
    let text = format!("{}\nhello\n", json(&[]));
    assert!(message(&text).starts_with("flows:2: not a JSON object: "), "{}", message(&text));
    assert!(
        read("flows", json(&[("peer_ip", "\"8.8.8.8\"")]).as_bytes(), &Set::new(), true).is_ok()
    );
}

#[test]
fn public_ipv6_peers_are_refused_as_ipv4_ones_are() {
    for (ip, said) in [
        ("ff02::1", Some("multicast (ff00::/8)")),
        ("::", Some("unspecified (::)")),
        ("2600::1", Some("--allow-public")),
        ("3fff:1000::1", Some("--allow-public")),
        ("2001:db8::1", None),
        ("3fff:fff::1", None),
        ("fd00::1", None),
        ("fe80::1", None),
        ("::1", None),
    ] {
        let line = json(&[("local_ip", "\"fd00::9\""), ("peer_ip", &format!("\"{ip}\""))]);
        match (run(&line), said) {
            (Ok(_), None) => {}
            (Err(error), Some(said)) => assert!(error.to_string().contains(said), "{error}"),
            (other, _) => panic!("{ip}: {other:?}"),
        }
    }
}

#[test]
fn csv_faults_name_their_lines() {
    assert_eq!(
        message("local_ip,local_port\n"),
        "flows: expected a flow as a JSON object, or a CSV header with local_ip, local_port, \
         peer_ip, peer_port, snd_una, rcv_nxt; peer_ip is missing"
    );
    assert_eq!(message(&format!("{HEADER},wnd,wnd\n")), "flows: the header names wnd twice");
    let good = "10.0.0.1,40000,10.0.0.2,443,1000,5";
    let text = format!(
        "{HEADER}\r\n{good}\r\n\r\n{good},9\r\n{good}\r\n10.0.0.1,x,10.0.0.2,443,1000,5\r\n"
    );
    assert_eq!(
        message(&text),
        "flows:4: 7 columns, where the header has 6\n\
         flows:6: local_port: \"x\": expected a port, 1 to 65535"
    );
}

#[test]
fn a_long_list_of_faults_is_cut_and_an_empty_file_is_told() {
    let text = format!("{}\n", json(&[("wnd", "0")])).repeat(2_025);
    let text = message(&text);
    assert_eq!(text.lines().count(), 11);
    assert!(text.ends_with("and 2,015 more"), "{text}");
    for text in ["", " \n\n", &format!("{HEADER}\n"), "{\"type\":\"summary\"}\n"] {
        assert_eq!(message(text), "flows: no flows in it");
    }
    assert!(matches!(
        collect(Path::new("/nonexistent/flows"), &Set::new(), false),
        Err(FlowsError::Unreadable { .. })
    ));
}

#[test]
fn a_line_without_an_end_is_refused() {
    for start in ["{\"a\":\"", "local_ip,", ""] {
        let endless = start.as_bytes().chain(io::repeat(b'x')).take(1 << 30);
        let text = read("flows", endless, &Set::new(), false).expect_err("refused").to_string();
        assert!(text.contains("a line longer than 65536 octets"), "{text}");
    }
}

#[test]
fn of_lines_about_the_same_flow_the_last_counts() {
    let line = |changes: &[(&str, &str)]| format!("{}\n", json(changes));
    let text = [
        line(&[("snd_una", "1"), ("name", "\"old\"")]),
        line(&[("local_port", "1"), ("name", "\"other\"")]),
        line(&[
            ("snd_una", "2"),
            ("name", "\"new\""),
            ("local_ip", "\"::ffff:10.0.0.1\""),
            ("peer_ip", "\"::ffff:10.0.0.2\""),
        ]),
    ]
    .concat();
    let flows = run(&text).expect("fine");
    assert_eq!(flows.duplicates, 1);
    let una: Vec<u32> = flows.given.iter().map(|flow| flow.snd_una.0).collect();
    assert_eq!(una, [1000, 2]);
    assert_eq!(flows.names, [(0, "other".into()), (1, "new".into())]);
}

proptest! {
    /// What is written is read, in either format.
    #[test]
    fn ndjson_and_csv_say_the_same(
        flows in prop::collection::vec(
            (any::<u16>(), 1u16.., any::<u32>(), any::<u32>(), 0u32..1 << 31, 1u16..,
             prop::option::of(any::<(u32, u32)>()), "[a-z,\" é]{0,6}"),
            1..20,
        ),
    ) {
        let mut lines = String::new();
        let mut csv = format!("name,ts_offset_ms,ts_recent,wnd,snd_nxt,{HEADER}\n");
        let mut model: Vec<(Given, String)> = Vec::new();
        for (host, port, una, nxt, ahead, wnd, clock, name) in flows {
            let name = name.trim().to_owned();
            let snd_nxt = una.wrapping_add(ahead);
            let peer = format!("10.7.{}.{}", host >> 8, host & 0xff);
            let (recent, offset) = clock.map_or((String::new(), String::new()), |(recent, offset)| {
                (recent.to_string(), offset.to_string())
            });
            let null = |text: &str| if text.is_empty() { "null".to_owned() } else { text.to_owned() };
            lines += &format!(
                "{}\n",
                json(&[
                    ("peer_ip", &format!("\"{peer}\"")), ("peer_port", &port.to_string()),
                    ("snd_una", &una.to_string()), ("rcv_nxt", &nxt.to_string()),
                    ("snd_nxt", &snd_nxt.to_string()), ("wnd", &wnd.to_string()),
                    ("ts_recent", &null(&recent)), ("ts_offset_ms", &null(&offset)),
                    ("name", &serde_json::to_string(&name).expect("text")),
                ])
            );
            let quoted = name.replace('"', "\"\"");
            csv += &format!(
                "\"{quoted}\",{offset},{recent},{wnd},{snd_nxt},10.0.0.1,40000,{peer},{port},{una},{nxt}\n"
            );
            let given = Given {
                peer: SocketAddr::new(peer.parse().expect("an address"), port),
                snd_una: SeqNumber(una),
                snd_nxt: SeqNumber(snd_nxt),
                rcv_nxt: SeqNumber(nxt),
                wnd,
                clock: clock.map(|(ts_recent, ts_offset)| TimestampClock { ts_recent, ts_offset, in_microseconds: false }),
                ..plain()
            };
            model.retain(|(known, _)| known.peer != given.peer);
            model.push((given, name));
        }
        for text in [lines, csv] {
            let flows = run(&text).expect("fine");
            let mut names = flows.names.iter().peekable();
            let read: Vec<(Given, String)> = flows.given.iter().enumerate().map(|(index, given)| {
                let name = names.next_if(|(named, _)| *named == index);
                (*given, name.map_or(String::new(), |(_, name)| name.to_string()))
            }).collect();
            prop_assert_eq!(&read, &model);
        }
    }

    #[test]
    fn arbitrary_octets_do_not_panic(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read("flows", &octets[..], &Set::new(), true);
        let headed = [HEADER.as_bytes(), b"\n", &octets].concat();
        let _ = read("flows", &headed[..], &Set::new(), true);
        let braced = [b"{", &octets[..]].concat();
        let _ = read("flows", &braced[..], &Set::new(), true);
    }
}

#[test]
fn excluded_peers_are_left_out() {
    let excluded = targets::exclusions(&["10.0.0.2".to_owned()]).expect("an address");
    let read = |text: &str| read("flows", text.as_bytes(), &excluded, false);
    let other = json(&[("peer_ip", "\"10.0.0.3\""), ("name", "\"kept\"")]);
    let flows = read(&format!("{}\n{other}", json(&[]))).expect("one is left");
    assert_eq!(flows.given.len(), 1);
    assert_eq!(flows.names, [(0, "kept".into())]);
    let none_left = read(&json(&[])).expect_err("none is left").to_string();
    assert_eq!(none_left, "flows: no flows left: --exclude covers the peers of all");
}
