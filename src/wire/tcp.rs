//! TCP segments (RFC 9293 §3.1) with the options MSS, window scale, timestamps, SACK-permitted, SACK.

use super::{EmitError, IpHeader, LinkHeader, SeqNumber};

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

    /// Says whether every bit of `other` is set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the bits of both.
    pub const fn union(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
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

impl Segment<'_> {
    /// Returns SEG.LEN: payload octets, plus one each for SYN and FIN.
    pub fn seg_len(&self) -> u32 {
        todo!()
    }

    /// Writes the segment with IP header, checksums and `link` header into `buf`; returns the length.
    ///
    /// IPv4 carries DF and no options; IPv6 no extension headers.
    ///
    /// # Errors
    /// [`EmitError`]; `buf` is then unchanged.
    pub fn emit(&self, link: &LinkHeader, buf: &mut [u8]) -> Result<usize, EmitError> {
        let _ = (link, buf);
        todo!()
    }
}
