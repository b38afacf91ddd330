//! Frames that Linux sent, and a pcap file that must stay as it is, octet by octet.
//!
//! `tests/golden/linux-*.pcap` were captured with tcpdump on a veth pair of Linux 6.18: once with
//! checksums left to the device (as keepsweep meets them on one machine), once filled in.
#![allow(missing_docs, clippy::unwrap_used)]

use keepsweep::wire::icmp::emit_error;
use keepsweep::wire::{
    Arp, ArpOp, Checksums, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Packet,
    PcapReader, PcapWriter, Segment, SeqNumber, Timestamps, describe, parse,
};
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

/// Compares with the golden file; `KEEPSWEEP_BLESS=1` writes it instead.
fn assert_golden(name: &str, actual: &[u8]) {
    let path = golden(name);
    if std::env::var_os("KEEPSWEEP_BLESS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read(&path).unwrap();
    assert!(
        expected == actual,
        "{} differs; this was made:\n{}",
        path.display(),
        String::from_utf8_lossy(actual)
    );
}

fn frames(name: &str) -> Vec<Vec<u8>> {
    let reader = PcapReader::new(fs::File::open(golden(name)).unwrap()).unwrap();
    assert_eq!(reader.link(), LinkType::Ethernet);
    reader.map(|record| record.unwrap().1).collect()
}

#[test]
fn frames_of_linux() {
    for name in ["linux-unfilled", "linux-filled"] {
        let mut text = String::new();
        for frame in frames(&format!("{name}.pcap")) {
            let packet = parse(&frame, LinkType::Ethernet, Checksums::Verify).unwrap();
            text += &format!("{}\n", describe(&packet));
        }
        assert_golden(&format!("{name}.txt"), text.as_bytes());
    }
}

/// What Linux wrote is what we would have written, but for the flow label of IPv6.
#[test]
fn segments_of_linux_are_emitted_as_linux_did() {
    let mut compared = 0;
    for frame in frames("linux-filled.pcap") {
        let Ok(Packet::Tcp(segment)) = parse(&frame, LinkType::Ethernet, Checksums::Verify) else {
            continue;
        };
        let mac = |at: usize| MacAddr(*frame[at..].first_chunk().unwrap());
        let link = LinkHeader::Ethernet { dst: mac(0), src: mac(6), vlan: None };
        let mut ours = [0; 2048];
        let len = segment.emit(&link, &mut ours).unwrap();
        if segment.ip.src.is_ipv6() {
            ours[15..18].copy_from_slice(&frame[15..18]);
        }
        assert_eq!(ours[..len], frame, "{}", describe(&Packet::Tcp(segment)));
        compared += 1;
    }
    assert_eq!(compared, 21);
}

/// One of everything that keepsweep writes.
fn everything() -> Vec<u8> {
    let [us, gateway] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
    let plain = LinkHeader::Ethernet { src: us, dst: gateway, vlan: None };
    let tagged = LinkHeader::Ethernet { src: us, dst: gateway, vlan: Some(100) };
    let back = LinkHeader::Ethernet { src: gateway, dst: us, vlan: None };
    let v4: [IpAddr; 2] = [[10, 98, 0, 1].into(), [10, 99, 0, 7].into()];
    let v6: [IpAddr; 2] = ["fd98::1", "fd99::7"].map(|address| address.parse().unwrap());

    let mut frames = Vec::new();
    let mut add = |emit: &dyn Fn(&mut [u8]) -> usize| {
        let mut buf = vec![0; 2048];
        let len = emit(&mut buf);
        buf.truncate(len);
        frames.push(buf);
    };
    let arp = Arp {
        op: ArpOp::Request,
        sender_mac: us,
        sender_ip: [10, 98, 0, 1].into(),
        target_mac: MacAddr::default(),
        target_ip: [10, 98, 0, 2].into(),
    };
    let broadcast = LinkHeader::Ethernet { src: us, dst: MacAddr::BROADCAST, vlan: None };
    add(&|buf| arp.emit(&broadcast, buf).unwrap());
    for [src, dst] in [v4, v6] {
        let ack = Segment {
            ip: IpHeader { src, dst, ttl: 64, id: if src.is_ipv4() { 7 } else { 0 } },
            src_port: 61_007,
            dst_port: 8080,
            seq: SeqNumber(1000),
            ack: SeqNumber(5000),
            flags: Flags::ACK,
            wnd: 64_240,
            options: Options::default(),
            payload: &[],
        };
        let mss = Options { mss: Some(1460), ..Options::default() };
        let syn = Segment { flags: Flags::SYN, ack: SeqNumber(0), options: mss, ..ack };
        let timestamps = Some(Timestamps { tsval: 9, tsecr: 8 });
        let block = Some((SeqNumber(5100), SeqNumber(5200)));
        let all = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps,
            sack: [block, None, None, None],
        };
        for link in [plain, tagged] {
            for segment in [
                syn,
                ack,
                Segment { payload: &[0], ..ack },
                Segment { options: all, ..ack },
                Segment { flags: Flags::RST.union(Flags::ACK), ..ack },
                Segment { flags: Flags::FIN.union(Flags::ACK), ..ack },
            ] {
                add(&|buf| segment.emit(&link, buf).unwrap());
            }
        }
        let mut quote = [0; 128];
        let len = ack.emit(&LinkHeader::Ip, &mut quote).unwrap();
        let reporter = IpHeader { src: dst, dst: src, ..ack.ip };
        let icmp_type = if src.is_ipv4() { 3 } else { 1 };
        add(&|buf| emit_error(&reporter, icmp_type, 3, &quote[..len], &back, buf).unwrap());
    }

    let mut pcap = PcapWriter::new(Vec::new(), LinkType::Ethernet).unwrap();
    for (at, frame) in frames.iter().enumerate() {
        pcap.frame(1_700_000_000_000_000_001 + at as u64 * 1_000_000, frame).unwrap();
    }
    pcap.into_inner()
}

#[test]
fn everything_that_is_written_stays_as_it_is() {
    assert_golden("wire.pcap", &everything());
}

/// Runs a dissector over the file, or returns `None` where it is not installed.
fn dissect(program: &str, args: &[&str]) -> Option<String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&everything()).unwrap();
    match Command::new(program).args(args).arg(file.path()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed");
            None
        }
        output => {
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap())
        }
    }
}

const FRAMES: usize = 1 + 2 * 13;

#[test]
fn tcpdump_finds_nothing_wrong() {
    let Some(text) = dissect("tcpdump", &["-nvvt", "-r"]) else { return };
    for complaint in ["incorrect", "bad ", "wrong", "truncated", "[|", "invalid"] {
        assert!(!text.contains(complaint), "{complaint}:\n{text}");
    }
    // Twelve segments a family, and the IPv4 one that the ICMP error quotes.
    assert!(text.matches("(correct)").count() >= 24, "{text}");
    assert!(text.contains("icmp6 sum ok"), "{text}");
}

#[test]
fn tshark_finds_nothing_wrong() {
    let args = [
        "-n",
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-T",
        "fields",
        "-e",
        "frame.number",
        "-e",
        "_ws.malformed",
        "-e",
        "tcp.checksum.status",
        "-e",
        "ip.checksum.status",
        "-e",
        "icmp.checksum.status",
        "-e",
        "icmpv6.checksum.status",
        "-e",
        "frame.time_epoch",
        "-r",
    ];
    let Some(text) = dissect("tshark", &args) else { return };
    assert_eq!(text.lines().count(), FRAMES, "{text}");
    for line in text.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        assert_eq!(fields[1], "", "{line}");
        // 0 is "bad", 1 "good", 2 "not verified" (quoted segments).
        for status in fields[2..6].iter().flat_map(|field| field.split(',')) {
            assert_ne!(status, "0", "{line}");
        }
    }
    assert!(text.lines().next().unwrap().ends_with("1700000000.000000001"), "{text}");
}
