use super::*;
use crate::audit::{Middlebox, Process};
use crate::io::host::{Connection, Numbers, SocketKeepalive, SocketTimestamps, TcpState};
use crate::probe::TargetId;
use crate::report::{Csv, Ndjson, Tally};
use crate::time::Instant;
use crate::wire::{IcmpKind, SeqNumber};
use snapbox::{IntoData, assert_data_eq, str};
use std::net::{IpAddr, SocketAddr};

fn listed(comm: Option<&str>, local: &str, peer: &str, state: TcpState) -> Listed {
    let since = Duration::from_secs(8070);
    Listed {
        connection: Connection {
            at: Instant::ZERO,
            local: local.parse().expect("an address"),
            peer: peer.parse().expect("an address"),
            v4_mapped: false,
            state,
            cookie: 4097,
            netns: 4_026_531_840,
            inode: 1,
            uid: 0,
            numbers: Some(Numbers {
                snd_una: SeqNumber(1000),
                snd_nxt: SeqNumber(1000),
                write_seq: SeqNumber(1000),
                rcv_nxt: SeqNumber(u32::MAX),
                rcv_wup: SeqNumber(u32::MAX),
                rcv_wnd: 64_256,
                rcv_wscale: 7,
                snd_wnd: 1,
                bytes_received: 10,
                packets_out: 0,
                retrans_out: 0,
                retransmits: 0,
                probes_out: 0,
                timestamps: Some(SocketTimestamps {
                    ts_recent: 7,
                    offset: 4_294_967_284,
                    in_microseconds: false,
                }),
                is_signed: None,
                mark: 0,
                bound_interface: 0,
                tos: 0,
                keepalive: Some(SocketKeepalive {
                    idle: Duration::from_secs(7200),
                    interval: Duration::from_secs(75),
                    count: 9,
                }),
                since_data_sent: since,
                since_data_received: since,
                since_ack_received: since,
            }),
        },
        process: comm.map(|comm| Process {
            pid: 812,
            comm: comm.into(),
            fd: Some(7),
            cgroup: Some("/system.slice/db.service".into()),
        }),
        translated: None,
        netns: "net:[4026531840]".into(),
    }
}

fn verdict(listed: &Listed, state: State, reason: Reason, probes: u16) -> Verdict {
    Verdict {
        target: TargetId(0),
        peer: listed.connection.peer,
        local: Some(listed.connection.local),
        round: 1,
        state,
        reason,
        probes,
        replies: 0,
        rtt: None,
        evidence: Vec::new(),
        correction: false,
    }
}

/// A live connection, a dead one, one whose peer the network cannot reach, and a mini-socket.
fn outcomes() -> Vec<(Listed, Verdict, Vec<Finding>, Option<Change>)> {
    let web = listed(Some("nginx"), "10.0.0.1:443", "192.0.2.7:50001", TcpState::Established);
    let mut db = listed(Some("postgres"), "10.0.0.1:5432", "10.0.1.9:50002", TcpState::CloseWait);
    if let Some(numbers) = &mut db.connection.numbers {
        numbers.keepalive = None;
        numbers.timestamps = None;
    }
    db.translated = Some((([10, 0, 0, 1], 20_000).into(), ([10, 9, 9, 9], 6432).into()));
    let odd = listed(
        Some("a\u{1b}[1m"),
        "[2001:db8::1]:40000",
        "[2001:db8::2]:22",
        TcpState::Established,
    );
    let mut mini = listed(None, "[fe80::1%2]:443", "[fe80::2%2]:50003", TcpState::TimeWait);
    mini.connection.numbers = None;
    let mut icmp = verdict(&odd, State::Unreachable, Reason::IcmpHost, 5);
    icmp.evidence.push(Sighting {
        kind: Seen::Icmp(IcmpKind::Host, 3, 1),
        at: Duration::from_millis(2),
        ttl: Some(63),
        seg_seq: None,
        seg_ack: None,
        from: Some(IpAddr::from([10, 0, 0, 254])),
    });
    let live = verdict(&web, State::Alive, Reason::Ack, 1);
    let dead = verdict(&db, State::Down, Reason::Silent, 5);
    let unasked = verdict(&mini, State::Undetermined, Reason::Unprobeable, 0);
    let idle = vec![Finding::Idle(Middlebox::Azure), Finding::Idle(Middlebox::Nat)];
    let off = vec![Finding::KeepaliveOff, Finding::Idle(Middlebox::Azure)];
    vec![
        (web, live, idle, None),
        (mini, unasked, vec![], Some(Change::Gone)),
        (odd, icmp, vec![], Some(Change::New)),
        (db, dead, off, Some(Change::State(State::Alive))),
    ]
}

fn written(layout: &mut dyn Layout) -> (String, Vec<usize>) {
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    layout.header(&mut out).expect("encodes");
    let mut summary = Summary { peers: 4, audit: Some(Tally::default()), ..Summary::default() };
    for (listed, verdict, findings, change) in &outcomes() {
        let connection = Some(Audited { listed, findings, change: *change });
        let record = Record { verdict, name: None, label: None, connection };
        layout.record(&record, &mut out).expect("encodes");
        summary.count(verdict);
        let holder = listed.process.as_ref();
        let holder = holder.map(|process| (process.comm.to_string(), process.pid));
        let names = findings.iter().map(|finding| finding.name());
        let tally = summary.audit.as_mut().expect("one");
        tally.count(holder, verdict.peer.ip(), verdict.state, names);
    }
    layout.rest(&mut out, &mut ends).expect("encodes");
    layout.summary(&summary, &mut out).expect("encodes");
    (String::from_utf8(out).expect("UTF-8"), ends)
}

#[test]
fn table_is_sorted_by_need_and_says_why() {
    let (text, ends) = written(&mut Connections::new(true, true));
    assert!(!text.contains('\u{1b}'));
    // Each record ends where a line ends.
    assert_eq!(ends.len(), 4);
    assert!(ends.iter().all(|end| text.as_bytes()[end - 1] == b'\n'));
    assert_data_eq!(text, str![[r#"
CHANGE     STATE         PROCESS          NETNS             LOCAL                PEER               SILENT  WHY
was alive  down          postgres[812]    net:[4026531840]  10.0.0.1:5432        10.0.1.9:50002     2h 14m  no answer to 5 probes; close-wait; on the wire 10.0.0.1:20000 → 10.9.9.9:6432; keepalive off; idle too long for azure
new        unreachable   a\u{1b}[1m[812]  net:[4026531840]  [2001:db8::1]:40000  [2001:db8::2]:22   2h 14m  the network says: icmp-host from 10.0.0.254
gone       undetermined  -                net:[4026531840]  [fe80::1%2]:443      [fe80::2%2]:50003  -       cannot be asked; time-wait
           alive         nginx[812]       net:[4026531840]  10.0.0.1:443         192.0.2.7:50001    2h 14m  answers; idle too long for azure nat

alive         1  ack 1
down          1  silent 1
rebooted      0
unreachable   1  icmp-host 1
undetermined  1  unprobeable 1
peers         4

findings  idle-azure 2, idle-nat 1, keepalive-off 1

process             alive  down  rebooted  unreachable  undetermined
held by no process      0     0         0            0             1
a\u{1b}[1m[812]         0     0         0            1             0
postgres[812]           0     1         0            0             0
nginx[812]              1     0         0            0             0

peers in       alive  down  rebooted  unreachable  undetermined
10.0.1.0/24        0     1         0            0             0
2001:db8::/64      0     0         0            1             0
fe80::/64          0     0         0            0             1
192.0.2.0/24       1     0         0            0             0

frames sent  0
received     0 = 0 matched + 0 rejected
on our side  0 dropped for lack of room; guard kept 0 from our kernel; our kernel sent 0 RSTs
probes lost  0.00 % (estimate)
elapsed      0s, 0 frames/s, io

"#]].raw());
}

#[test]
fn a_summary_of_rounds_says_that_it_is_one() {
    let said = |rounds| table::summary(&Summary { rounds, ..Summary::default() });
    assert!(!said(0).contains("rounds"));
    let scope = "rounds       12; peers count as they were last, frames and time in all of them\n";
    assert!(said(12).contains(scope), "{}", said(12));
}

#[test]
fn columns_that_say_nothing_are_left_out_and_nothing_has_no_header() {
    let mut out = Vec::new();
    let mut layout = Connections::new(false, false);
    layout.rest(&mut out, &mut Vec::new()).expect("encodes");
    assert!(out.is_empty());
    let (text, _) = written(&mut layout);
    let header = text.lines().next().expect("a line");
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["STATE", "PROCESS", "LOCAL", "PEER", "SILENT", "WHY"]
    );
}

#[test]
fn ndjson_has_the_fields_of_an_audit_behind_those_of_a_peer() {
    let (text, _) = written(&mut Ndjson);
    for line in text.lines() {
        let _: serde_json::Value = serde_json::from_str(line).expect("JSON");
    }
    assert_data_eq!(text, str![[r#"
{"schema":"keepsweep/1","type":"peer","peer_ip":"192.0.2.7","peer_port":50001,"local_ip":"10.0.0.1","local_port":443,"name":null,"label":null,"round":1,"state":"alive","reason":"ack","probes":1,"replies":0,"rtt_us":null,"evidence":[],"pid":812,"comm":"nginx","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"established","keepalive":{"idle_s":7200,"interval_s":75,"count":9},"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":7,"ts_offset_ms":4294967284,"findings":["idle-azure","idle-nat"]}
{"schema":"keepsweep/1","type":"gone","peer_ip":"fe80::2%2","peer_port":50003,"local_ip":"fe80::1","local_port":443,"name":null,"label":null,"round":1,"state":"undetermined","reason":"unprobeable","probes":0,"replies":0,"rtt_us":null,"evidence":[],"pid":null,"comm":null,"fd":null,"cgroup":null,"netns":"net:[4026531840]","cookie":4097,"idle_ms":null,"heard_ms":null,"tcp_state":"time-wait","keepalive":null,"snd_una":null,"snd_nxt":null,"rcv_nxt":null,"wnd":null,"ts_recent":null,"ts_offset_ms":null,"findings":[],"change":"gone"}
{"schema":"keepsweep/1","type":"peer","peer_ip":"2001:db8::2","peer_port":22,"local_ip":"2001:db8::1","local_port":40000,"name":null,"label":null,"round":1,"state":"unreachable","reason":"icmp-host","probes":5,"replies":0,"rtt_us":null,"evidence":[{"kind":"icmp-host","at_us":2000,"ttl":63,"icmp_type":3,"icmp_code":1,"from":"10.0.0.254"}],"pid":812,"comm":"a\u001b[1m","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"established","keepalive":{"idle_s":7200,"interval_s":75,"count":9},"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":7,"ts_offset_ms":4294967284,"findings":[],"change":"new"}
{"schema":"keepsweep/1","type":"peer","peer_ip":"10.0.1.9","peer_port":50002,"local_ip":"10.0.0.1","local_port":5432,"name":null,"label":null,"round":1,"state":"down","reason":"silent","probes":5,"replies":0,"rtt_us":null,"evidence":[],"pid":812,"comm":"postgres","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"close-wait","keepalive":null,"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":null,"ts_offset_ms":null,"wire":{"peer_ip":"10.9.9.9","peer_port":6432,"local_ip":"10.0.0.1","local_port":20000},"findings":["keepalive-off","idle-azure"],"change":"state","state_before":"alive"}
{"schema":"keepsweep/1","type":"summary","io":"","peers":4,"alive":1,"down":1,"rebooted":0,"unreachable":1,"undetermined":1,"frames_sent":0,"frames_received":0,"replies_matched":0,"replies_rejected":{},"rx_dropped":0,"loss_estimate":0.0,"elapsed_ms":0,"rate_pps":0,"reasons":{"alive/ack":1,"down/silent":1,"undetermined/unprobeable":1,"unreachable/icmp-host":1},"sent_by_kind":{},"guard_dropped":0,"kernel_rsts":0,"corrections":0,"findings":{"idle-azure":2,"idle-nat":1,"keepalive-off":1},"by_process":[{"pid":null,"comm":null,"alive":0,"down":0,"rebooted":0,"unreachable":0,"undetermined":1},{"pid":812,"comm":"a\u001b[1m","alive":0,"down":0,"rebooted":0,"unreachable":1,"undetermined":0},{"pid":812,"comm":"postgres","alive":0,"down":1,"rebooted":0,"unreachable":0,"undetermined":0},{"pid":812,"comm":"nginx","alive":1,"down":0,"rebooted":0,"unreachable":0,"undetermined":0}],"by_prefix":[{"prefix":"10.0.1.0/24","alive":0,"down":1,"rebooted":0,"unreachable":0,"undetermined":0},{"prefix":"2001:db8::/64","alive":0,"down":0,"rebooted":0,"unreachable":1,"undetermined":0},{"prefix":"fe80::/64","alive":0,"down":0,"rebooted":0,"unreachable":0,"undetermined":1},{"prefix":"192.0.2.0/24","alive":1,"down":0,"rebooted":0,"unreachable":0,"undetermined":0}]}

"#]].raw());
}

#[test]
fn csv_has_a_column_for_each_of_them() {
    let (text, _) = written(&mut Csv::of_connections());
    let mut reader = ::csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.records().filter(Result::is_ok).count(), 4);
    assert_data_eq!(text.replace('\u{1b}', "ESC"), str![[r#"
type,peer_ip,peer_port,local_ip,local_port,name,label,round,state,reason,probes,replies,rtt_us,evidence,pid,comm,fd,cgroup,netns,cookie,idle_ms,heard_ms,tcp_state,keepalive,snd_una,snd_nxt,rcv_nxt,wnd,ts_recent,ts_offset_ms,wire,findings,change
peer,192.0.2.7,50001,10.0.0.1,443,,,1,alive,ack,1,0,,,812,nginx,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,established,7200/75/9,1000,1000,4294967295,502,7,4294967284,,idle-azure idle-nat,
gone,fe80::2%2,50003,fe80::1,443,,,1,undetermined,unprobeable,0,0,,,,,,,net:[4026531840],4097,,,time-wait,,,,,,,,,,gone
peer,2001:db8::2,22,2001:db8::1,40000,,,1,unreachable,icmp-host,5,0,,icmp-host@2000 ttl=63 icmp=3/1 from=10.0.0.254,812,aESC[1m,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,established,7200/75/9,1000,1000,4294967295,502,7,4294967284,,,new
peer,10.0.1.9,50002,10.0.0.1,5432,,,1,down,silent,5,0,,,812,postgres,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,close-wait,,1000,1000,4294967295,502,,,10.0.0.1:20000 10.9.9.9:6432,keepalive-off idle-azure,state

"#]].raw());
}

#[test]
fn lists_for_people_and_programs() {
    let list: Vec<_> = outcomes()
        .into_iter()
        .map(|(listed, _, findings, _)| (Arc::new(listed), findings))
        .collect();
    let text = |write: &dyn Fn(&mut Vec<u8>) -> io::Result<()>| {
        let mut out = Vec::new();
        write(&mut out).expect("written");
        String::from_utf8(out).expect("UTF-8").replace('\u{1b}', "ESC")
    };
    assert_data_eq!(text(&|out| write_table(&list, true, out)), str![[r#"
PROCESS          LOCAL                PEER               TCP          IDLE    SILENT  KEEPALIVE  NETNS             FINDINGS
nginx[812]       10.0.0.1:443         192.0.2.7:50001    established  2h 14m  2h 14m  7200/75/9  net:[4026531840]  idle too long for azure nat
-                [fe80::1%2]:443      [fe80::2%2]:50003  time-wait    -       -       -          net:[4026531840]
a\u{1b}[1m[812]  [2001:db8::1]:40000  [2001:db8::2]:22   established  2h 14m  2h 14m  7200/75/9  net:[4026531840]
postgres[812]    10.0.0.1:5432        10.0.1.9:50002     close-wait   2h 14m  2h 14m  off        net:[4026531840]  keepalive off; idle too long for azure

"#]].raw());
    assert_data_eq!(text(&|out| write_ndjson(&list, out)), str![[r#"
{"schema":"keepsweep/1","type":"connection","peer_ip":"192.0.2.7","peer_port":50001,"local_ip":"10.0.0.1","local_port":443,"name":null,"pid":812,"comm":"nginx","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"established","keepalive":{"idle_s":7200,"interval_s":75,"count":9},"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":7,"ts_offset_ms":4294967284,"findings":["idle-azure","idle-nat"]}
{"schema":"keepsweep/1","type":"connection","peer_ip":"fe80::2%2","peer_port":50003,"local_ip":"fe80::1%2","local_port":443,"name":null,"pid":null,"comm":null,"fd":null,"cgroup":null,"netns":"net:[4026531840]","cookie":4097,"idle_ms":null,"heard_ms":null,"tcp_state":"time-wait","keepalive":null,"snd_una":null,"snd_nxt":null,"rcv_nxt":null,"wnd":null,"ts_recent":null,"ts_offset_ms":null,"findings":[]}
{"schema":"keepsweep/1","type":"connection","peer_ip":"2001:db8::2","peer_port":22,"local_ip":"2001:db8::1","local_port":40000,"name":null,"pid":812,"comm":"a\u001b[1m","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"established","keepalive":{"idle_s":7200,"interval_s":75,"count":9},"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":7,"ts_offset_ms":4294967284,"findings":[]}
{"schema":"keepsweep/1","type":"connection","peer_ip":"10.0.1.9","peer_port":50002,"local_ip":"10.0.0.1","local_port":5432,"name":null,"pid":812,"comm":"postgres","fd":7,"cgroup":"/system.slice/db.service","netns":"net:[4026531840]","cookie":4097,"idle_ms":8070000,"heard_ms":8070000,"tcp_state":"close-wait","keepalive":null,"snd_una":1000,"snd_nxt":1000,"rcv_nxt":4294967295,"wnd":502,"ts_recent":null,"ts_offset_ms":null,"wire":{"peer_ip":"10.9.9.9","peer_port":6432,"local_ip":"10.0.0.1","local_port":20000},"findings":["keepalive-off","idle-azure"]}

"#]].raw());
    assert_data_eq!(text(&|out| write_csv(&list, out)), str![[r#"
type,peer_ip,peer_port,local_ip,local_port,name,pid,comm,fd,cgroup,netns,cookie,idle_ms,heard_ms,tcp_state,keepalive,snd_una,snd_nxt,rcv_nxt,wnd,ts_recent,ts_offset_ms,wire,findings
connection,192.0.2.7,50001,10.0.0.1,443,,812,nginx,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,established,7200/75/9,1000,1000,4294967295,502,7,4294967284,,idle-azure idle-nat
connection,fe80::2%2,50003,fe80::1%2,443,,,,,,net:[4026531840],4097,,,time-wait,,,,,,,,,
connection,2001:db8::2,22,2001:db8::1,40000,,812,aESC[1m,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,established,7200/75/9,1000,1000,4294967295,502,7,4294967284,,
connection,10.0.1.9,50002,10.0.0.1,5432,,812,postgres,7,/system.slice/db.service,net:[4026531840],4097,8070000,8070000,close-wait,,1000,1000,4294967295,502,,,10.0.0.1:20000 10.9.9.9:6432,keepalive-off idle-azure

"#]].raw());
}

#[test]
fn ages_have_two_units_at_most() {
    let ages = [0, 59, 60, 725, 3600, 8070, 86_399, 86_400, 273_600, 40_000_000];
    let texts = ages.map(|age| span(Duration::from_secs(age)));
    let expected =
        ["0s", "59s", "1m", "12m 5s", "1h", "2h 14m", "23h 59m", "1d", "3d 4h", "462d 23h"];
    assert_eq!(texts, expected);
}

/// What is listed can be given back to `sweep --flows`, in either format.
#[test]
fn lists_are_flows() {
    use crate::cli::{flows, targets};
    let none = targets::exclusions(&[]).expect("nothing to exclude");
    // The mini-socket is none.
    let list: Vec<_> = outcomes()
        .into_iter()
        .filter(|(listed, ..)| listed.numbers().is_some())
        .map(|(listed, _, findings, _)| (Arc::new(listed), findings))
        .collect();
    let (mut ndjson, mut csv) = (Vec::new(), Vec::new());
    write_ndjson(&list, &mut ndjson).expect("written");
    write_csv(&list, &mut csv).expect("written");
    for text in [ndjson, csv] {
        let flows = flows::read("list", &text[..], &none, true).expect("flows");
        assert_eq!(flows.given.len(), list.len());
        for (given, (listed, _)) in flows.given.iter().zip(&list) {
            let connection = &listed.connection;
            let numbers = listed.numbers().expect("a full socket");
            assert_eq!((given.local, given.peer), (connection.local, connection.peer));
            assert_eq!((given.snd_una, given.rcv_nxt), (numbers.snd_una, numbers.rcv_nxt));
            assert_eq!((given.wnd, given.clock), (502, listed.clock()));
        }
    }
}

#[test]
fn every_reason_is_said_in_words() {
    let listed = listed(None, "10.0.0.1:1", "10.0.0.2:2", TcpState::Established);
    let said = |state, reason, probes| in_words(&verdict(&listed, state, reason, probes));
    assert_eq!(said(State::Down, Reason::Silent, 1), "no answer to 1 probe");
    let asked = said(State::Down, Reason::HostSilent, 5);
    assert_eq!(asked, "no answer to 5 probes, nor to fresh SYNs");
    let lost = said(State::Unreachable, Reason::FlowStateLost, 8);
    assert_eq!(lost, "host is up, but the path has lost the connection");
    assert_eq!(said(State::Alive, Reason::Ack, 0), "was heard, unasked");
    assert_eq!(said(State::Undetermined, Reason::Unprobeable, 0), "cannot be asked");
    let unfit = |kind| {
        let evidence = vec![Sighting::unframed(kind)];
        let verdict = verdict(&listed, State::Undetermined, Reason::Observer, 5);
        in_words(&Verdict { evidence, ..verdict })
    };
    assert_eq!(unfit(Seen::LinkDown), "this host was unfit to judge: link-down");
    let unknown = "not judged: how this host translates the connection is not known";
    assert_eq!(unfit(Seen::TranslationUnknown), unknown);
    let _: SocketAddr = listed.connection.peer;
}
