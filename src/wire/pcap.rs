//! pcap files with nanosecond time stamps, as tcpdump and Wireshark read them.

use super::LinkType;
use std::io::{self, Read, Write};

/// Writes a pcap file, one frame at a time.
#[derive(Debug)]
pub struct PcapWriter<W: Write> {
    out: W,
}

impl<W: Write> PcapWriter<W> {
    /// Writes the file header (magic 0xa1b23c4d, snap length 65,535).
    ///
    /// # Errors
    /// What `out` returns.
    pub fn new(out: W, link: LinkType) -> io::Result<Self> {
        let _ = link;
        let _ = &out;
        todo!()
    }

    /// Writes one frame; `realtime_ns` is nanoseconds since 1970.
    ///
    /// # Errors
    /// What the writer returns.
    pub fn frame(&mut self, realtime_ns: u64, frame: &[u8]) -> io::Result<()> {
        let _ = (realtime_ns, frame, &mut self.out);
        todo!()
    }
}

/// Reads a pcap file of either byte order, micro- or nanosecond stamps, frame by frame.
#[derive(Debug)]
pub struct PcapReader<R: Read> {
    _input: R,
}
