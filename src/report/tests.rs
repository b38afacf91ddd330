use super::*;
use crate::io::QueueCounts;
use crate::probe::TargetId;
use crate::probe::evidence::{Seen, Sighting};
use crate::wire::{IcmpKind, SeqNumber};
use snapbox::{IntoData, assert_data_eq, str};
use std::net::{IpAddr, SocketAddr};

fn ack() -> Verdict {
    Verdict {
        target: TargetId(0),
        peer: SocketAddr::from(([10, 99, 0, 7], 8080)),
        local: Some(SocketAddr::from(([10, 98, 0, 1], 61007))),
        round: 1,
        state: State::Alive,
        reason: Reason::Ack,
        probes: 1,
        replies: 1,
        rtt: Some(Duration::from_nanos(81_432)),
        evidence: vec![Sighting {
            kind: Seen::Ack,
            at: Duration::from_nanos(91_999),
            ttl: Some(64),
            seg_seq: Some(SeqNumber(1)),
            seg_ack: Some(SeqNumber(1)),
            from: None,
        }],
        correction: false,
    }
}

fn icmp() -> Verdict {
    let sighting = Sighting {
        kind: Seen::Icmp(IcmpKind::Host, 3, 1),
        at: Duration::from_millis(2),
        ttl: Some(63),
        seg_seq: None,
        seg_ack: None,
        from: Some(IpAddr::from([10, 98, 0, 254])),
    };
    Verdict {
        target: TargetId(1),
        peer: SocketAddr::from(([10, 99, 255, 255], 65535)),
        local: Some(SocketAddr::from(([10, 98, 0, 1], 61008))),
        state: State::Unreachable,
        reason: Reason::IcmpHost,
        probes: 5,
        replies: 2,
        rtt: None,
        evidence: vec![sighting, Sighting { at: Duration::from_secs(1), ..sighting }],
        ..ack()
    }
}

fn no_route() -> Verdict {
    Verdict {
        local: None,
        state: State::Unreachable,
        reason: Reason::NoRoute,
        probes: 0,
        replies: 0,
        rtt: None,
        evidence: Vec::new(),
        correction: true,
        ..ack()
    }
}

fn summary() -> Summary {
    Summary {
        io: "packet".into(),
        rounds: 0,
        peers: 65_536,
        states: [65_530, 3, 2, 1, 0],
        reasons: [
            ((State::Alive, Reason::Ack), 65_000),
            ((State::Alive, Reason::Refused), 530),
            ((State::Down, Reason::Silent), 3),
            ((State::Rebooted, Reason::Reset), 2),
            ((State::Unreachable, Reason::IcmpHost), 1),
        ]
        .into(),
        corrections: 1,
        frames_sent: 196_624,
        sent_by_kind: [("syn", 65_542), ("ack", 65_541), ("probe-0", 65_541)].into(),
        frames_received: 131_100,
        replies_matched: 131_090,
        replies_rejected: [("rst-seq", 7), ("no-flow", 3)].into(),
        rx_dropped: 0,
        xdp: Vec::new(),
        guard_dropped: 131_090,
        kernel_rsts: 0,
        loss_estimate: 0.0125,
        faults: Vec::new(),
        elapsed: Duration::from_micros(4_213_900),
        audit: None,
        memory: Some(Memory { peak: 52 << 20, targets: 2 << 20 }),
    }
}

const NAMED: (Option<&str>, Option<&str>) = (Some("db1.example.net"), Some("rack\u{1b}[7, \"a\""));

fn written(layout: &mut dyn Layout) -> String {
    let mut out = Vec::new();
    layout.header(&mut out).expect("encodes");
    let (name, label) = NAMED;
    let records = [
        Record { verdict: &ack(), name: None, label: None, connection: None },
        Record { verdict: &icmp(), name, label, connection: None },
        Record { verdict: &no_route(), name: None, label: None, connection: None },
    ];
    for record in &records {
        layout.record(record, &mut out).expect("encodes");
    }
    layout.summary(&summary(), &mut out).expect("encodes");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn ndjson_is_the_agreed_format() {
    assert_data_eq!(written(&mut Ndjson), str![[r#"
{"schema":"keepsweep/1","type":"peer","peer_ip":"10.99.0.7","peer_port":8080,"local_ip":"10.98.0.1","local_port":61007,"name":null,"label":null,"round":1,"state":"alive","reason":"ack","probes":1,"replies":1,"rtt_us":81.4,"evidence":[{"kind":"ack","at_us":91,"ttl":64,"seg_seq":1,"seg_ack":1}]}
{"schema":"keepsweep/1","type":"peer","peer_ip":"10.99.255.255","peer_port":65535,"local_ip":"10.98.0.1","local_port":61008,"name":"db1.example.net","label":"rack\u001b[7, \"a\"","round":1,"state":"unreachable","reason":"icmp-host","probes":5,"replies":2,"rtt_us":null,"evidence":[{"kind":"icmp-host","at_us":2000,"ttl":63,"icmp_type":3,"icmp_code":1,"from":"10.98.0.254"},{"kind":"icmp-host","at_us":1000000,"ttl":63,"icmp_type":3,"icmp_code":1,"from":"10.98.0.254"}]}
{"schema":"keepsweep/1","type":"correction","peer_ip":"10.99.0.7","peer_port":8080,"local_ip":null,"local_port":null,"name":null,"label":null,"round":1,"state":"unreachable","reason":"no-route","probes":0,"replies":0,"rtt_us":null,"evidence":[]}
{"schema":"keepsweep/1","type":"summary","io":"packet","peers":65536,"alive":65530,"down":3,"rebooted":2,"unreachable":1,"undetermined":0,"frames_sent":196624,"frames_received":131100,"replies_matched":131090,"replies_rejected":{"no-flow":3,"rst-seq":7},"rx_dropped":0,"loss_estimate":0.0125,"elapsed_ms":4213,"rate_pps":46661,"reasons":{"alive/ack":65000,"alive/refused":530,"down/silent":3,"rebooted/reset":2,"unreachable/icmp-host":1},"sent_by_kind":{"ack":65541,"probe-0":65541,"syn":65542},"guard_dropped":131090,"kernel_rsts":0,"corrections":1}

"#]].raw());
}

#[test]
fn what_af_xdp_counted_is_in_the_summary() {
    let carried = QueueCounts { queue: 0, sent: 1_300, received: 1_200, ..QueueCounts::default() };
    let lossy = QueueCounts {
        queue: 1,
        rx_dropped: 5,
        rx_ring_full: 4,
        fill_ring_empty: 3,
        rx_invalid_descs: 2,
        tx_invalid_descs: 1,
        ..QueueCounts::default()
    };
    let up0 = XdpCounts {
        interface: "up0".into(),
        redirected: 1_200,
        passed: 9,
        malformed: 8,
        no_socket: 7,
        queues: vec![carried, lossy, QueueCounts { queue: 2, ..QueueCounts::default() }],
    };
    let summary = Summary { io: "xdp".into(), xdp: vec![up0], ..summary() };
    let mut out = Vec::new();
    Ndjson.summary(&summary, &mut out).expect("encodes");
    let written = String::from_utf8(out).expect("UTF-8");
    let (_, xdp) = written.split_once(r#""corrections":1,"#).expect("the last field of all paths");
    assert_data_eq!(xdp, str![[r#"
"xdp":[{"interface":"up0","redirected":1200,"passed":9,"malformed":8,"no_socket":7,"queues":[{"queue":0,"sent":1300,"received":1200,"rx_dropped":0,"rx_ring_full":0,"fill_ring_empty":0,"rx_invalid_descs":0,"tx_invalid_descs":0},{"queue":1,"sent":0,"received":0,"rx_dropped":5,"rx_ring_full":4,"fill_ring_empty":3,"rx_invalid_descs":2,"tx_invalid_descs":1},{"queue":2,"sent":0,"received":0,"rx_dropped":0,"rx_ring_full":0,"fill_ring_empty":0,"rx_invalid_descs":0,"tx_invalid_descs":0}]}]}

"#]].raw());
    let table = table::summary(&summary);
    let line = table.lines().find(|line| line.starts_with("xdp up0")).expect("a line");
    assert_data_eq!(
        line,
        str![
            "xdp up0      1,200 redirected, 9 passed, 8 malformed, 7 for a queue without a socket; queue 0: 1,300 sent, 1,200 received; queue 1: 5 dropped for want of a free frame, 4 dropped at a full rx ring, 3 times without a free frame, 2 bad addresses in the fill ring, 1 bad descriptors in the tx ring; queue 2 idle"
        ]
    );
}

#[test]
fn ndjson_is_json() {
    let text = written(&mut Ndjson);
    let objects: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(objects.len(), 4);
    assert_eq!(objects[0]["rtt_us"], 81.4);
    assert!(objects[2]["local_port"].is_null());
    let last = &objects[3];
    let of = |name: &str| last[name].as_u64().expect("a count");
    let states: u64 = State::ALL.iter().map(|state| of(state.name())).sum();
    assert_eq!(states, of("peers"));
}

#[test]
fn csv_quotes_what_needs_it() {
    let text = written(&mut Csv::default());
    // An escape character has no place in this file.
    assert_data_eq!(text.replace('\u{1b}', "ESC"), str![[r#"
type,peer_ip,peer_port,local_ip,local_port,name,label,round,state,reason,probes,replies,rtt_us,evidence
peer,10.99.0.7,8080,10.98.0.1,61007,,,1,alive,ack,1,1,81.4,ack@91 ttl=64 seq=1 ack=1
peer,10.99.255.255,65535,10.98.0.1,61008,db1.example.net,"rackESC[7, ""a""",1,unreachable,icmp-host,5,2,,icmp-host@2000 ttl=63 icmp=3/1 from=10.98.0.254; icmp-host@1000000 ttl=63 icmp=3/1 from=10.98.0.254
correction,10.99.0.7,8080,,,,,1,unreachable,no-route,0,0,,

"#]].raw());
    let mut reader = ::csv::Reader::from_reader(text.as_bytes());
    let labels: Vec<String> =
        reader.records().map(|row| row.expect("a row")[6].to_owned()).collect();
    assert_eq!(labels, ["", NAMED.1.expect("a label"), ""]);
}

#[test]
fn table_is_aligned_and_sends_no_escapes() {
    let text = written(&mut Table::new(19, [NAMED].into_iter()));
    assert!(!text.contains('\u{1b}'));
    assert_data_eq!(text, str![[r#"
PEER                 NAME             LABEL              STATE         REASON          PROBES       RTT  SEEN
10.99.0.7:8080                                           alive         ack                  1    81.4us  ack
10.99.255.255:65535  db1.example.net  rack\u{1b}[7, "a"  unreachable   icmp-host            5         -  icmp-host x2 from 10.98.0.254
10.99.0.7:8080                                           unreachable   no-route             0         -  corrected

alive         65,530  ack 65,000, refused 530
down               3  silent 3
rebooted           2  reset 2
unreachable        1  icmp-host 1
undetermined       0
peers         65,536

frames sent  196,624 (ack 65,541, probe-0 65,541, syn 65,542)
received     131,100 = 131,090 matched + 10 rejected (no-flow 3, rst-seq 7)
on our side  0 dropped for lack of room; guard kept 131,090 from our kernel; our kernel sent 0 RSTs
probes lost  1.25 % (estimate)
elapsed      4s 213ms, 46,661 frames/s, io packet
memory       52.00 MiB at most, 2.00 MiB of it for the targets
corrections  1

"#]].raw());
}

/// A name without an address is a record like any other; of a link-local address the link is told.
#[test]
fn peers_without_an_address_and_with_a_scope() {
    let unresolved = Verdict::unresolved(TargetId(3), 5432);
    let name = Some("db9.example.net");
    let link_local = Verdict {
        peer: std::net::SocketAddrV6::new("fe80::1".parse().expect("v6"), 22, 0, 2).into(),
        ..ack()
    };
    let written = |layout: &mut dyn Layout| {
        let mut out = Vec::new();
        for (verdict, name) in [(&unresolved, name), (&link_local, None)] {
            layout
                .record(&Record { verdict, name, label: None, connection: None }, &mut out)
                .expect("encodes");
        }
        String::from_utf8(out).expect("UTF-8")
    };
    assert_data_eq!(written(&mut Ndjson), str![[r#"
{"schema":"keepsweep/1","type":"peer","peer_ip":null,"peer_port":5432,"local_ip":null,"local_port":null,"name":"db9.example.net","label":null,"round":1,"state":"undetermined","reason":"unprobeable","probes":0,"replies":0,"rtt_us":null,"evidence":[{"kind":"unresolved","at_us":0}]}
{"schema":"keepsweep/1","type":"peer","peer_ip":"fe80::1%2","peer_port":22,"local_ip":"10.98.0.1","local_port":61007,"name":null,"label":null,"round":1,"state":"alive","reason":"ack","probes":1,"replies":1,"rtt_us":81.4,"evidence":[{"kind":"ack","at_us":91,"ttl":64,"seg_seq":1,"seg_ack":1}]}

"#]].raw());
    assert_data_eq!(
        written(&mut Csv::default()),
        str![[r#"
peer,,5432,,,db9.example.net,,1,undetermined,unprobeable,0,0,,unresolved@0
peer,fe80::1%2,22,10.98.0.1,61007,,,1,alive,ack,1,1,81.4,ack@91 ttl=64 seq=1 ack=1

"#]]
        .raw()
    );
    assert_data_eq!(
        written(&mut Table::new(20, [(name, None)].into_iter())),
        str![[r#"
db9.example.net:5432  db9.example.net  undetermined  unprobeable          0         -  unresolved
[fe80::1%2]:22                         alive         ack                  1    81.4us  ack

"#]]
        .raw()
    );
}

#[test]
fn table_leaves_out_empty_columns() {
    let mut out = Vec::new();
    Table::new(15, [(None, None)].into_iter()).header(&mut out).expect("encodes");
    let text = String::from_utf8(out).expect("UTF-8");
    assert_data_eq!(
        text,
        str![[r#"
PEER             STATE         REASON          PROBES       RTT  SEEN

"#]]
        .raw()
    );
}

#[test]
fn a_sweep_without_time_or_frames_has_a_summary() {
    let none = Summary::default();
    assert_eq!((none.rate_pps(), none.rejected()), (0, 0));
    let mut out = Vec::new();
    Ndjson.summary(&none, &mut out).expect("encodes");
    assert!(String::from_utf8(out).expect("UTF-8").contains(r#""rate_pps":0"#));
}

#[test]
fn a_summary_of_rounds_has_what_was_done_and_what_failed_in_any() {
    let round = |io: &str, frames_sent, faults: &[&str]| Summary {
        io: io.into(),
        frames_sent,
        loss_estimate: 0.5,
        faults: faults.iter().map(|&fault| fault.to_owned()).collect(),
        ..Summary::default()
    };
    let mut rounds = round("none", 0, &[]);
    rounds.loss_estimate = 0.0;
    for next in [round("raw", 30, &["a", "b"]), round("none", 0, &["b", "c"])] {
        rounds.absorb(next);
    }
    assert_eq!((&*rounds.io, rounds.frames_sent, rounds.loss_estimate), ("raw", 30, 0.5));
    assert_eq!(rounds.faults, ["a", "b", "c"]);
    rounds.absorb(Summary {
        faults: (0..2 * MOST_FAULTS).map(|n| n.to_string()).collect(),
        ..Summary::default()
    });
    assert_eq!(rounds.faults.len(), MOST_FAULTS);
    let object = |rounds| {
        let mut out = Vec::new();
        Ndjson.summary(&Summary { rounds, ..summary() }, &mut out).expect("encodes");
        String::from_utf8(out).expect("UTF-8")
    };
    assert!(object(12).contains(r#""rounds":12"#) && !object(0).contains("rounds"));
}
