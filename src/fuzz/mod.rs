//! Fuzz targets: every parser of octets that the network, the kernel or a user supplies, and the two
//! halves of the core behind them. A target takes any octets and panics when something is wrong.
//!
//! `scripts/fuzz` runs them with coverage feedback; the tests below replay the corpora
//! (`fuzz/corpus/TARGET/`), so that what was found once stays found.
#![forbid(unsafe_code)]

mod conversation;
mod reply;
#[cfg(test)]
mod tests;

use crate::cli::flows;
use crate::cli::targets::{parse_net, parse_target, read_lines};
use crate::io::packet::Frames;
use crate::io::ports::read_dump;
use crate::wire::{Checksums, LinkHeader, LinkType, Packet, PcapReader, describe, parse};
use std::io::BufReader;
use std::sync::Arc;

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

/// Every target; its corpus has the same name.
pub const TARGETS: &[Target] = &[
    ("wire", wire),
    ("pcap", pcap),
    ("block", block),
    ("dump", dump),
    ("targets", targets),
    ("flows", flows),
    ("reply", reply::reply),
    ("conversation", conversation::conversation),
];

/// A frame: whatever parses as a segment is the same segment when written and parsed again.
fn wire(bytes: &[u8]) {
    for link in [LinkType::Ethernet, LinkType::Ip] {
        for checksums in [Checksums::Verify, Checksums::Trust] {
            let Ok(packet) = parse(bytes, link, checksums) else { continue };
            assert!(!describe(&packet).to_string().is_empty());
            let Packet::Tcp(segment) = packet else { continue };
            assert!(segment.payload.len() <= bytes.len());
            let mut frame = vec![0; bytes.len() + 64];
            // Options may take more room when each is aligned.
            if let Ok(len) = segment.emit(&LinkHeader::Ip, &mut frame) {
                let again = parse(&frame[..len], LinkType::Ip, Checksums::Verify);
                assert_eq!(again, Ok(Packet::Tcp(segment)));
            }
        }
    }
}

/// A capture file: frames end with the file, and none is longer than the file.
fn pcap(bytes: &[u8]) {
    let Ok(reader) = PcapReader::new(bytes) else { return };
    let link = reader.link();
    for (_, frame) in reader.flatten() {
        assert!(frame.len() <= bytes.len());
        let _ = parse(&frame, link, Checksums::Verify);
    }
}

/// A block of the receive ring as the kernel hands it over: frames lie within it, and end.
fn block(bytes: &[u8]) {
    let Ok(frames) = Frames::new(bytes) else { return };
    let within = bytes.as_ptr_range();
    let mut count = 0;
    for frame in frames.flatten() {
        let frame = frame.bytes.as_ptr_range();
        assert!(within.start <= frame.start && frame.end <= within.end);
        count += 1;
    }
    // Frame headers do not overlap, so that a count that lies cannot keep us here.
    assert!(count <= bytes.len() / size_of::<libc::tpacket3_hdr>() + 1);
}

/// A datagram of sock_diag: nobody holds a port outside the range that was asked for.
fn dump(bytes: &[u8]) {
    let ports = 61_000..=65_534;
    let mut holders = 0;
    let _ = read_dump(bytes, &ports, &mut |holder| {
        assert!(ports.contains(&holder.local.port()));
        holders += 1;
    });
    assert!(holders <= bytes.len() / 16);
}

/// A list of targets or of exclusions: every line is taken or named as bad, at most once.
fn targets(bytes: &[u8]) {
    let mut entries = 0;
    let bad = read_lines(&Arc::from("fuzz"), BufReader::new(bytes), |_, word, label| {
        entries += 1;
        assert!(!word.is_empty() && !word.contains(char::is_whitespace));
        assert!(label.is_none_or(|label| !label.is_empty() && label == label.trim()));
        if let Ok(net) = parse_net(word) {
            assert_eq!(parse_net(&net.to_string()), Ok(net));
        }
        let _ = parse_target(word)?;
        Ok(())
    });
    let lines = bytes.split(|&octet| octet == b'\n').count();
    // Reading from memory cannot fail.
    assert!(bad.is_ok_and(|bad| bad.len() <= lines) && entries <= lines);
}

/// A list of flows, NDJSON or CSV: taken, or refused with a message.
fn flows(bytes: &[u8]) {
    if let Err(error) = flows::read("fuzz", bytes, &Default::default(), true) {
        assert!(!error.to_string().is_empty());
    }
}
