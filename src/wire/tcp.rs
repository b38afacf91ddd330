//! TCP segments (RFC 9293 §3.1) with the options MSS, window scale, timestamps, SACK-permitted, SACK.

use super::ip::{self, Upper};
use super::{Checksums, EmitError, IpHeader, Layer, LinkHeader, ParseError, SeqNumber, checksum};
use pnet::packet::ip::IpNextHeaderProtocols::Tcp as TCP;
use pnet::packet::tcp::{MutableTcpPacket, TcpOptionNumber, TcpOptionNumbers as kind, TcpPacket};
use std::fmt;

const HEADER_LEN: usize = 20;
const MAX_OPTIONS_LEN: usize = 40;
/// RFC 7323 §2.3.
const MAX_WINDOW_SCALE: u8 = 14;
const MALFORMED: ParseError = ParseError::Malformed(Layer::Tcp);

/// The control bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flags(pub u8);

#[allow(missing_docs)]
impl Flags {
    pub const FIN: Flags = Flags(0x01);
    pub const SYN: Flags = Flags(0x02);
    pub const RST: Flags = Flags(0x04);
    pub const PSH: Flags = Flags(0x08);
    pub const ACK: Flags = Flags(0x10);
    pub const URG: Flags = Flags(0x20);
    pub const ECE: Flags = Flags(0x40);
    pub const CWR: Flags = Flags(0x80);

    /// Says whether every bit of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the bits of both.
    pub const fn union(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl fmt::Display for Flags {
    /// As tcpdump: `[S]`, `[S.]`, `[R.]`, `[.]`, `[none]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [(Flags, &str); 8] = [
            (Flags::FIN, "F"),
            (Flags::SYN, "S"),
            (Flags::RST, "R"),
            (Flags::PSH, "P"),
            (Flags::ACK, "."),
            (Flags::URG, "U"),
            (Flags::ECE, "E"),
            (Flags::CWR, "W"),
        ];
        f.write_str(if self.0 == 0 { "[none" } else { "[" })?;
        for (flag, letter) in LETTERS {
            if self.contains(flag) {
                f.write_str(letter)?;
            }
        }
        f.write_str("]")
    }
}

/// The timestamps option (RFC 7323 §3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Timestamps {
    pub tsval: u32,
    pub tsecr: u32,
}

/// The options of a segment; unknown ones are skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Maximum segment size, in octets.
    pub mss: Option<u16>,
    /// Window scale: the shift count, at most 14 (larger ones are read as 14, RFC 7323 §2.3).
    pub window_scale: Option<u8>,
    /// SACK-permitted (RFC 2018).
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks `(left, right)`, up to four, front to back.
    pub sack: [Option<(SeqNumber, SeqNumber)>; 4],
}

impl Options {
    /// Parses the octets between header and payload.
    #[inline]
    fn parse(mut bytes: &[u8]) -> Result<Options, ParseError> {
        let mut options = Options::default();
        while let [number, rest @ ..] = bytes {
            let number = TcpOptionNumber(*number);
            match number {
                kind::EOL => break,
                kind::NOP => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let len = usize::from(*rest.first().ok_or(MALFORMED)?);
            let option;
            (option, bytes) = bytes.split_at_checked(len).ok_or(MALFORMED)?;
            match (number, option.get(2..).ok_or(MALFORMED)?) {
                (kind::MSS, &[a, b]) => options.mss = Some(u16::from_be_bytes([a, b])),
                (kind::WSCALE, &[shift]) => {
                    options.window_scale = Some(shift.min(MAX_WINDOW_SCALE));
                }
                (kind::SACK_PERMITTED, []) => options.sack_permitted = true,
                (kind::TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
                    options.timestamps = Some(Timestamps {
                        tsval: u32::from_be_bytes([a, b, c, d]),
                        tsecr: u32::from_be_bytes([e, f, g, h]),
                    });
                }
                (kind::SACK, blocks) => options.sack = parse_sack(blocks)?,
                (kind::MSS | kind::WSCALE | kind::SACK_PERMITTED | kind::TIMESTAMPS, _) => {
                    return Err(MALFORMED);
                }
                _ => {}
            }
        }
        Ok(options)
    }

    /// Returns the options as octets, a multiple of four, and their number.
    ///
    /// MSS, then SACK-permitted (or two NOPs) and timestamps, then NOP and window scale, then two
    /// NOPs and SACK: every 32-bit field starts at a multiple of four, where [`checksum::update32`]
    /// can follow it.
    fn emit(&self) -> Result<([u8; MAX_OPTIONS_LEN], usize), EmitError> {
        let mut out = Room { octets: [0; MAX_OPTIONS_LEN], len: 0 };
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            out.push(&[kind::MSS.0, 4, a, b])?;
        }
        if self.sack_permitted {
            out.push(&[kind::SACK_PERMITTED.0, 2])?;
        } else if self.timestamps.is_some() {
            out.push(&[kind::NOP.0; 2])?;
        }
        if let Some(timestamps) = self.timestamps {
            out.push(&[kind::TIMESTAMPS.0, 10])?;
            out.push(&timestamps.tsval.to_be_bytes())?;
            out.push(&timestamps.tsecr.to_be_bytes())?;
        } else if self.sack_permitted {
            out.push(&[kind::NOP.0; 2])?;
        }
        if let Some(shift) = self.window_scale {
            out.push(&[kind::NOP.0, kind::WSCALE.0, 3, shift.min(MAX_WINDOW_SCALE)])?;
        }
        let blocks = self.sack.iter().flatten();
        let count = blocks.clone().count();
        if count > 0 {
            out.push(&[kind::NOP.0, kind::NOP.0, kind::SACK.0, 2 + 8 * count as u8])?;
        }
        for (left, right) in blocks {
            out.push(&left.0.to_be_bytes())?;
            out.push(&right.0.to_be_bytes())?;
        }
        Ok((out.octets, out.len))
    }
}

fn parse_sack(blocks: &[u8]) -> Result<[Option<(SeqNumber, SeqNumber)>; 4], ParseError> {
    let (blocks, []) = blocks.as_chunks::<8>() else { return Err(MALFORMED) };
    let mut sack = [None; 4];
    if blocks.is_empty() || blocks.len() > sack.len() {
        return Err(MALFORMED);
    }
    for (slot, &[a, b, c, d, e, f, g, h]) in sack.iter_mut().zip(blocks) {
        let edge = |octets| SeqNumber(u32::from_be_bytes(octets));
        *slot = Some((edge([a, b, c, d]), edge([e, f, g, h])));
    }
    Ok(sack)
}

/// Options being written.
struct Room {
    octets: [u8; MAX_OPTIONS_LEN],
    len: usize,
}

impl Room {
    fn push(&mut self, octets: &[u8]) -> Result<(), EmitError> {
        let end = self.len + octets.len();
        let room = self.octets.get_mut(self.len..end).ok_or(EmitError::TooLarge)?;
        room.copy_from_slice(octets);
        self.len = end;
        Ok(())
    }
}

/// A TCP segment with the IP header around it: parsed from a frame, or to be written into one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Segment<'a> {
    pub ip: IpHeader,
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: Flags,
    /// The window field as it stands in the header (unscaled).
    pub wnd: u16,
    pub options: Options,
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Parses what an IP packet carries.
    #[inline]
    pub(super) fn parse(upper: Upper<'a>, checksums: Checksums) -> Result<Self, ParseError> {
        let Upper { ip, bytes, .. } = upper;
        let tcp = TcpPacket::new(bytes).ok_or(ParseError::Truncated(Layer::Tcp))?;
        let header_len = usize::from(tcp.get_data_offset()) * 4;
        let options = bytes.get(HEADER_LEN..header_len).ok_or(MALFORMED)?;
        if checksums == Checksums::Verify {
            let pseudo = checksum::pseudo_header(ip.src, ip.dst, TCP.0, bytes.len() as u32);
            // A kernel on this machine leaves the pseudo-header's sum for the device to complete.
            if checksum::add(pseudo, checksum::sum(bytes)) != 0xffff && tcp.get_checksum() != pseudo
            {
                return Err(ParseError::Checksum(Layer::Tcp));
            }
        }
        Ok(Segment {
            ip,
            src_port: tcp.get_source(),
            dst_port: tcp.get_destination(),
            seq: SeqNumber(tcp.get_sequence()),
            ack: SeqNumber(tcp.get_acknowledgement()),
            flags: Flags(tcp.get_flags()),
            wnd: tcp.get_window(),
            options: Options::parse(options)?,
            payload: bytes.get(header_len..).ok_or(MALFORMED)?,
        })
    }

    /// Returns SEG.LEN: payload octets, plus one each for SYN and FIN.
    #[inline]
    pub fn seg_len(&self) -> u32 {
        let controls = [Flags::SYN, Flags::FIN];
        let controls = controls.into_iter().filter(|&flag| self.flags.contains(flag));
        self.payload.len() as u32 + controls.count() as u32
    }

    /// Writes the segment with IP header, checksums and `link` header into `buf`; returns the length.
    ///
    /// IPv4 carries DF and no options; IPv6 no extension headers. Every 32-bit field, those of the
    /// options included, is at a multiple of four octets from the start of the TCP header.
    ///
    /// # Errors
    /// [`EmitError`]; `buf` is then unchanged.
    pub fn emit(&self, link: &LinkHeader, buf: &mut [u8]) -> Result<usize, EmitError> {
        let (options, options_len) = self.options.emit()?;
        let header_len = HEADER_LEN + options_len;
        let len = header_len + self.payload.len();
        let have = buf.len();
        let (upper, total) = ip::emit(&self.ip, TCP, len, link, buf)?;
        let too_short = EmitError::TooShort { need: total, have };
        let (header, rest) = upper.split_at_mut_checked(HEADER_LEN).ok_or(too_short)?;
        let (rest, payload) = rest.split_at_mut_checked(options_len).ok_or(too_short)?;
        rest.copy_from_slice(&options[..options_len]);
        payload.copy_from_slice(self.payload);

        header.fill(0);
        let mut tcp = MutableTcpPacket::new(header).ok_or(too_short)?;
        tcp.set_source(self.src_port);
        tcp.set_destination(self.dst_port);
        tcp.set_sequence(self.seq.0);
        tcp.set_acknowledgement(self.ack.0);
        tcp.set_data_offset((header_len / 4) as u8);
        tcp.set_flags(self.flags.0);
        tcp.set_window(self.wnd);
        let pseudo = checksum::pseudo_header(self.ip.src, self.ip.dst, TCP.0, len as u32);
        let sum = checksum::add(pseudo, checksum::sum(upper));
        MutableTcpPacket::new(upper).ok_or(too_short)?.set_checksum(!sum);
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{LinkType, Packet, parse};

    fn options(bytes: &[u8]) -> Result<Options, ParseError> {
        Options::parse(bytes)
    }

    #[test]
    fn options_as_linux_sends_them() {
        let syn = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7, 1, 3, 3, 7];
        let expected = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { tsval: 9, tsecr: 7 }),
            sack: [None; 4],
        };
        assert_eq!(options(&syn), Ok(expected));
        let (octets, len) = expected.emit().unwrap();
        assert_eq!(octets[..len], syn);
    }

    #[test]
    fn options_of_others() {
        let none = Options::default();
        assert_eq!(options(&[]), Ok(none));
        assert_eq!(options(&[1, 1, 1, 0]), Ok(none));
        // What follows the end of the list is padding, whatever it holds.
        assert_eq!(options(&[0, 2, 9, 9]), Ok(none));
        // MD5 signature (RFC 2385), and one from the experimental range.
        let mut unknown = vec![19, 18];
        unknown.extend([0xaa; 16]);
        unknown.extend([253, 4, 0, 0, 2, 4, 0x02, 0x18]);
        assert_eq!(options(&unknown), Ok(Options { mss: Some(536), ..none }));
        // RFC 7323 §2.3: a larger shift is used as 14.
        assert_eq!(options(&[3, 3, 15]), Ok(Options { window_scale: Some(14), ..none }));
        let sack = [5, 10, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        let block = Some((SeqNumber(1), SeqNumber(u32::MAX)));
        assert_eq!(options(&sack), Ok(Options { sack: [block, None, None, None], ..none }));
    }

    #[test]
    fn options_that_lie_about_their_length() {
        for lie in [
            &[2][..],            // ends before its length
            &[2, 0, 5, 0xb4],    // zero: an endless loop for a careless parser
            &[2, 1, 5, 0xb4],    // not even itself
            &[2, 5, 5, 0xb4],    // past the end
            &[2, 3, 5, 1],       // too short for an MSS
            &[3, 2],             // too short for a shift
            &[4, 3, 0],          // too long for a flag
            &[8, 6, 0, 0, 0, 0], // half a timestamp
            &[5, 2],             // no block
            &[5, 6, 0, 0, 0, 0], // half a block
            &[99, 0],            // unknown ones must move on as well
            &[99, 255, 0],
        ] {
            assert_eq!(options(lie), Err(MALFORMED), "{lie:?}");
        }
        let mut five_blocks = [0; 42];
        five_blocks[..2].copy_from_slice(&[5, 42]);
        assert_eq!(options(&five_blocks), Err(MALFORMED));
    }

    fn ack() -> Segment<'static> {
        let address = |last| std::net::IpAddr::from([10, 98, 0, last]);
        Segment {
            ip: IpHeader { src: address(1), dst: address(7), ttl: 64, id: 0x1234 },
            src_port: 61_007,
            dst_port: 8080,
            seq: SeqNumber(0x0102_0304),
            ack: SeqNumber(0x0506_0708),
            flags: Flags::ACK,
            wnd: 0xfaf0,
            options: Options::default(),
            payload: &[],
        }
    }

    #[test]
    fn octets_of_a_keepalive() {
        let mut buf = [0xee; 64];
        assert_eq!(ack().emit(&LinkHeader::Ip, &mut buf), Ok(40));
        #[rustfmt::skip]
        let expected = [
            0x45, 0, 0, 40, 0x12, 0x34, 0x40, 0, 64, 6, 0x13, 0xd1, 10, 98, 0, 1, 10, 98, 0, 7,
            0xee, 0x4f, 0x1f, 0x90, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 0xfa, 0xf0, 0x82, 0x24, 0, 0,
        ];
        assert_eq!(buf[..40], expected);
        assert_eq!(buf[40..], [0xee; 24]);
    }

    fn verify(frame: &[u8]) -> Result<Packet<'_>, ParseError> {
        parse(frame, LinkType::Ip, Checksums::Verify)
    }

    #[test]
    fn an_unfilled_checksum_is_accepted() {
        let mut buf = [0; 64];
        let len = ack().emit(&LinkHeader::Ip, &mut buf).unwrap();
        let frame = &mut buf[..len];
        let right = [frame[36], frame[37]];
        let pseudo = checksum::pseudo_header(ack().ip.src, ack().ip.dst, 6, 20);
        frame[36..38].copy_from_slice(&pseudo.to_be_bytes());
        assert_eq!(verify(frame), Ok(Packet::Tcp(ack())));
        frame[36..38].copy_from_slice(&(!pseudo).to_be_bytes());
        assert_ne!(frame[36..38], right);
        assert_eq!(verify(frame), Err(ParseError::Checksum(Layer::Tcp)));
        assert_eq!(parse(frame, LinkType::Ip, Checksums::Trust), Ok(Packet::Tcp(ack())));
    }

    #[test]
    fn a_data_offset_that_lies() {
        for (offset, error) in [(0, MALFORMED), (4, MALFORMED), (6, MALFORMED), (15, MALFORMED)] {
            let mut buf = [0; 64];
            let len = ack().emit(&LinkHeader::Ip, &mut buf).unwrap();
            buf[32] = offset << 4;
            assert_eq!(
                parse(&buf[..len], LinkType::Ip, Checksums::Trust),
                Err(error),
                "data offset {offset}"
            );
        }
    }

    #[test]
    fn seg_len_counts_syn_and_fin() {
        let len = |flags, payload| Segment { flags, payload, ..ack() }.seg_len();
        assert_eq!(len(Flags::ACK, &[]), 0);
        assert_eq!(len(Flags::SYN, &[]), 1);
        assert_eq!(len(Flags::FIN.union(Flags::ACK), &[0; 3]), 4);
        assert_eq!(len(Flags::FIN.union(Flags::SYN), &[]), 2);
        assert_eq!(len(Flags::RST, &[]), 0);
    }

    #[test]
    fn flags_as_tcpdump_prints_them() {
        assert_eq!(Flags::SYN.to_string(), "[S]");
        assert_eq!(Flags::SYN.union(Flags::ACK).to_string(), "[S.]");
        assert_eq!(Flags::RST.union(Flags::ACK).to_string(), "[R.]");
        assert_eq!(Flags::ACK.to_string(), "[.]");
        assert_eq!(Flags::FIN.union(Flags::PSH).union(Flags::ACK).to_string(), "[FP.]");
        assert_eq!(Flags(0).to_string(), "[none]");
        assert_eq!(Flags(0xff).to_string(), "[FSRP.UEW]");
    }
}
