//! pcap files with nanosecond time stamps, as tcpdump and Wireshark read them
//! (draft-ietf-opsawg-pcap).

use super::LinkType;
use pnet::packet::ethernet::EtherTypes;
use std::io::{self, ErrorKind, Read, Write};

/// In the writer's byte order; stamps in nanoseconds.
const MAGIC_NS: u32 = 0xa1b2_3c4d;
/// The same with stamps in microseconds.
const MAGIC_US: u32 = 0xa1b2_c3d4;
const FILE_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
/// As much of a frame as is written.
const SNAPLEN: usize = 65_535;
/// As much of a frame as is read: libpcap's own limit (MAXIMUM_SNAPLEN, pcap-int.h).
const MAX_RECORD_LEN: u32 = 262_144;
/// A header of two addresses and an EtherType.
const ETHERNET_LEN: usize = 14;
const NS_PER_S: u64 = 1_000_000_000;

/// Link types as they stand in the file (<https://www.tcpdump.org/linktypes.html>).
const LINKTYPE_ETHERNET: u32 = 1;
const LINKTYPE_RAW: u32 = 101;
const LINKTYPE_IPV4: u32 = 228;
const LINKTYPE_IPV6: u32 = 229;

/// Writes a pcap file, one frame at a time.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    out: W,
    link: LinkType,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header (magic 0xa1b23c4d, snap length 65,535).
    ///
    /// Give it a buffered writer: every frame is two writes.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn new(mut out: W, link: LinkType) -> io::Result<Self> {
        let link_type = match link {
            LinkType::Ethernet => LINKTYPE_ETHERNET,
            LinkType::Ip => LINKTYPE_RAW,
        };
        let mut header = [0; FILE_HEADER_LEN];
        put(&mut header, 0, MAGIC_NS);
        header[4..8].copy_from_slice(&[2, 0, 4, 0]); // version 2.4
        put(&mut header, 16, SNAPLEN as u32);
        put(&mut header, 20, link_type);
        out.write_all(&header)?;
        Ok(PcapWriter { out, link })
    }

    /// Goes on behind the last frame of a file that [`new`](Self::new) has begun with the same `link`.
    pub fn go_on(out: W, link: LinkType) -> Self {
        PcapWriter { out, link }
    }

    /// Writes one frame; `realtime_ns` is nanoseconds since 1970.
    ///
    /// Of a frame longer than the snap length only the beginning is kept, with its true length.
    ///
    /// # Errors
    /// What the writer returns; `InvalidInput` for a time after 2106, which the format cannot hold.
    pub fn frame(&mut self, realtime_ns: u64, frame: &[u8]) -> io::Result<()> {
        self.record(realtime_ns, &[], frame)
    }

    /// Writes one frame that begins with `link`: what begins with the IP header gets an Ethernet header
    /// without addresses in a file of Ethernet frames, as frames on the loopback have.
    ///
    /// # Errors
    /// As [`frame`](Self::frame); `InvalidInput` for an Ethernet frame in a file of IP packets.
    pub fn frame_of(&mut self, link: LinkType, realtime_ns: u64, frame: &[u8]) -> io::Result<()> {
        match (self.link, link) {
            (LinkType::Ip, LinkType::Ethernet) => {
                let text = "pcap: an Ethernet frame in a file of IP packets";
                Err(io::Error::new(ErrorKind::InvalidInput, text))
            }
            (LinkType::Ethernet, LinkType::Ip) => {
                let is_v6 = frame.first().is_some_and(|octet| octet >> 4 == 6);
                let ethertype = if is_v6 { EtherTypes::Ipv6 } else { EtherTypes::Ipv4 };
                let mut header = [0; ETHERNET_LEN];
                header[12..].copy_from_slice(&ethertype.0.to_be_bytes());
                self.record(realtime_ns, &header, frame)
            }
            _ => self.record(realtime_ns, &[], frame),
        }
    }

    fn record(&mut self, realtime_ns: u64, before: &[u8], frame: &[u8]) -> io::Result<()> {
        let seconds = u32::try_from(realtime_ns / NS_PER_S)
            .map_err(|_| io::Error::new(ErrorKind::InvalidInput, "pcap: time after 2106"))?;
        let captured = &frame[..frame.len().min(SNAPLEN - before.len())];
        let length = before.len() + frame.len();
        let mut header = [0; RECORD_HEADER_LEN];
        put(&mut header, 0, seconds);
        put(&mut header, 4, (realtime_ns % NS_PER_S) as u32);
        put(&mut header, 8, (before.len() + captured.len()) as u32);
        put(&mut header, 12, u32::try_from(length).unwrap_or(u32::MAX));
        self.out.write_all(&header)?;
        self.out.write_all(before)?;
        self.out.write_all(captured)
    }

    /// Flushes the writer.
    ///
    /// # Errors
    /// What the writer returns.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Returns the writer, not flushed.
    pub fn into_inner(self) -> W {
        self.out
    }
}

fn put(header: &mut [u8], at: usize, field: u32) {
    header[at..at + 4].copy_from_slice(&field.to_le_bytes());
}

/// Reads a pcap file of either byte order, micro- or nanosecond stamps, frame by frame.
///
/// Iterates over (nanoseconds since 1970, frame); ends at the end of the file or after an error.
#[derive(Debug)]
pub struct PcapReader<R: Read> {
    input: R,
    link: LinkType,
    big_endian: bool,
    ns_per_unit: u64,
    done: bool,
}

impl<R: Read> PcapReader<R> {
    /// Reads the file header.
    ///
    /// # Errors
    /// What `input` returns; `UnexpectedEof` if it ends within the header; `InvalidData` if it is
    /// no pcap file of major version 2, or its link type is neither Ethernet nor raw IP.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut header = [0; FILE_HEADER_LEN];
        input.read_exact(&mut header)?;
        let (big_endian, ns_per_unit) = match (get(&header, 0, false), get(&header, 0, true)) {
            (MAGIC_NS, _) => (false, 1),
            (MAGIC_US, _) => (false, 1_000),
            (_, MAGIC_NS) => (true, 1),
            (_, MAGIC_US) => (true, 1_000),
            (magic, _) => return Err(invalid(format!("not a pcap file (magic {magic:#010x})"))),
        };
        let version = get(&header, 4, big_endian);
        let major = if big_endian { version >> 16 } else { version & 0xffff };
        if major != 2 {
            return Err(invalid(format!("pcap version {major}, not 2")));
        }
        // The upper half says how long the frame check sequence is, if there is one.
        let link = match get(&header, 20, big_endian) & 0xffff {
            LINKTYPE_ETHERNET => LinkType::Ethernet,
            LINKTYPE_RAW | LINKTYPE_IPV4 | LINKTYPE_IPV6 => LinkType::Ip,
            other => return Err(invalid(format!("link type {other}, not Ethernet or raw IP"))),
        };
        Ok(PcapReader { input, link, big_endian, ns_per_unit, done: false })
    }

    /// Returns what the frames start with.
    pub fn link(&self) -> LinkType {
        self.link
    }

    fn record(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut header = Vec::with_capacity(RECORD_HEADER_LEN);
        self.input.by_ref().take(RECORD_HEADER_LEN as u64).read_to_end(&mut header)?;
        if header.is_empty() {
            return Ok(None);
        }
        let header = header.first_chunk::<RECORD_HEADER_LEN>().ok_or(ErrorKind::UnexpectedEof)?;
        let field = |at| get(header, at, self.big_endian);
        let realtime_ns = u64::from(field(0)) * NS_PER_S + u64::from(field(4)) * self.ns_per_unit;
        let captured_len = field(8);
        // Checked before it is allocated: four octets must not cost four gigabytes.
        if captured_len > MAX_RECORD_LEN {
            return Err(invalid(format!("frame of {captured_len} octets in a pcap file")));
        }
        let mut frame = vec![0; captured_len as usize];
        self.input.read_exact(&mut frame)?;
        Ok(Some((realtime_ns, frame)))
    }
}

impl<R: Read> Iterator for PcapReader<R> {
    type Item = io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let record = self.record().transpose();
        self.done = !matches!(record, Some(Ok(_)));
        record
    }
}

impl<R: Read> std::iter::FusedIterator for PcapReader<R> {}

fn get(header: &[u8], at: usize, big_endian: bool) -> u32 {
    let mut octets = [0; 4];
    octets.copy_from_slice(&header[at..at + 4]);
    if big_endian { u32::from_be_bytes(octets) } else { u32::from_le_bytes(octets) }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(link: LinkType, frames: &[(u64, Vec<u8>)]) -> Vec<u8> {
        let mut writer = PcapWriter::new(Vec::new(), link).unwrap();
        for (at, frame) in frames {
            writer.frame(*at, frame).unwrap();
        }
        writer.into_inner()
    }

    fn read(file: &[u8]) -> io::Result<Vec<(u64, Vec<u8>)>> {
        PcapReader::new(file)?.collect()
    }

    fn error(file: &[u8]) -> ErrorKind {
        read(file).expect_err("must not be read").kind()
    }

    proptest! {
        #[test]
        fn round_trip(
            frames in prop::collection::vec(
                (0..u64::from(u32::MAX) * NS_PER_S, prop::collection::vec(any::<u8>(), 0..200)),
                0..8,
            ),
            link in prop::sample::select(&[LinkType::Ethernet, LinkType::Ip]),
        ) {
            let file = write(link, &frames);
            prop_assert_eq!(PcapReader::new(&file[..]).unwrap().link(), link);
            prop_assert_eq!(read(&file).unwrap(), frames);
        }

        #[test]
        fn arbitrary_octets_end(
            tail in prop::collection::vec(any::<u8>(), 0..300), link in 0u8..3,
        ) {
            let mut file = write(LinkType::Ethernet, &[]);
            file[20] = link;
            file.extend(&tail);
            if let Ok(reader) = PcapReader::new(&file[..]) {
                // No record is shorter than its header: the iterator must come to an end.
                prop_assert!(reader.count() <= tail.len() / RECORD_HEADER_LEN + 1);
            }
        }
    }

    #[test]
    fn octets() {
        let file = write(LinkType::Ip, &[(1_700_000_000_123_456_789, vec![0x45, 0xff])]);
        #[rustfmt::skip]
        let expected = [
            0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 101, 0, 0, 0,
            0x00, 0xf1, 0x53, 0x65, 0x15, 0xcd, 0x5b, 0x07, 2, 0, 0, 0, 2, 0, 0, 0, 0x45, 0xff,
        ];
        assert_eq!(file, expected);
    }

    #[test]
    fn other_byte_order_and_microseconds() {
        #[rustfmt::skip]
        let file = [
            0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1,
            0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 9, 0xaa,
        ];
        assert_eq!(PcapReader::new(&file[..]).unwrap().link(), LinkType::Ethernet);
        assert_eq!(read(&file).unwrap(), [(5_000_007_000, vec![0xaa])]);
    }

    #[test]
    fn snap_length() {
        let mut file = write(LinkType::Ethernet, &[(0, vec![7; 65_536])]);
        assert_eq!(file[32..40], [0xff, 0xff, 0, 0, 0, 0, 1, 0], "captured 65535 of 65536");
        file = write(LinkType::Ethernet, &[(0, vec![7; 65_536]), (1, vec![8])]);
        assert_eq!(read(&file).unwrap(), [(0, vec![7; 65_535]), (1, vec![8])]);
    }

    #[test]
    fn truncated_files() {
        let file = write(LinkType::Ethernet, &[(0, vec![1; 5])]);
        for len in (0..24).chain(25..file.len()) {
            assert_eq!(error(&file[..len]), ErrorKind::UnexpectedEof, "cut to {len}");
        }
        let mut reader = PcapReader::new(&file[..30]).unwrap();
        assert!(reader.next().is_some_and(|record| record.is_err()));
        assert!(reader.next().is_none(), "an error ends the iteration");
    }

    #[test]
    fn files_that_are_refused() {
        let file = write(LinkType::Ethernet, &[(0, vec![1; 5])]);
        let with = |at: usize, octet: u8| {
            let mut file = file.clone();
            file[at] = octet;
            error(&file)
        };
        assert_eq!(with(0, 0), ErrorKind::InvalidData, "magic");
        assert_eq!(with(4, 3), ErrorKind::InvalidData, "version");
        assert_eq!(with(20, 113), ErrorKind::InvalidData, "Linux cooked capture");
        assert_eq!(with(35, 0xff), ErrorKind::InvalidData, "a frame of 4 GB");
    }

    #[test]
    fn ip_packets_among_ethernet_frames() {
        let mut writer = PcapWriter::new(Vec::new(), LinkType::Ethernet).unwrap();
        writer.frame_of(LinkType::Ethernet, 1, b"ethernet").unwrap();
        writer.frame_of(LinkType::Ip, 2, &[0x45, 1]).unwrap();
        writer.frame_of(LinkType::Ip, 3, &[0x60, 2]).unwrap();
        let frames = read(&writer.into_inner()).unwrap();
        assert_eq!(frames[0].1, b"ethernet");
        assert_eq!(frames[1].1, [&[0; 12][..], &[0x08, 0x00, 0x45, 1]].concat());
        assert_eq!(frames[2].1, [&[0; 12][..], &[0x86, 0xdd, 0x60, 2]].concat());

        let mut writer = PcapWriter::new(Vec::new(), LinkType::Ip).unwrap();
        writer.frame_of(LinkType::Ip, 2, &[0x45, 1]).unwrap();
        let error = writer.frame_of(LinkType::Ethernet, 1, b"ethernet").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(read(&writer.into_inner()).unwrap(), [(2, vec![0x45, 1])]);
    }

    #[test]
    fn a_time_that_does_not_fit() {
        let mut writer = PcapWriter::new(Vec::new(), LinkType::Ip).unwrap();
        let error = writer.frame((1 << 32) * NS_PER_S, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(writer.into_inner().len(), FILE_HEADER_LEN, "nothing half written");
    }
}
