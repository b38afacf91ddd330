//! The frames in one TPACKET_V3 block, read with every offset and length checked.
#![forbid(unsafe_code)]

use crate::wire::Checksums;
use libc::{TP_STATUS_CSUM_VALID, TP_STATUS_CSUMNOTREADY};
use libc::{tpacket_bd_header_u, tpacket_block_desc, tpacket_hdr_v1, tpacket3_hdr};
use std::mem::offset_of;

const HEADER: usize = offset_of!(tpacket_block_desc, hdr) + offset_of!(tpacket_bd_header_u, bh1);

/// Where the kernel publishes who owns a block (`block_status`).
pub(super) const STATUS: usize = HEADER + offset_of!(tpacket_hdr_v1, block_status);
/// Where the kernel counts the frames in a block, also while it still fills it.
pub(super) const NUM_PKTS: usize = HEADER + offset_of!(tpacket_hdr_v1, num_pkts);
const FIRST: usize = HEADER + offset_of!(tpacket_hdr_v1, offset_to_first_pkt);

/// A block that contradicts itself; a kernel that hands one over cannot be read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("TPACKET_V3 block: {0} outside the block")]
pub(crate) struct BadBlock(&'static str);

/// A frame in a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockFrame<'a> {
    /// From the link header on; a stripped 802.1Q tag is not put back.
    pub bytes: &'a [u8],
    /// CLOCK_REALTIME when the kernel took it.
    pub realtime_ns: u64,
    /// Whether the kernel vouches for the checksums.
    pub checksums: Checksums,
}

/// Walks the frames of a retired block.
#[derive(Debug)]
pub(crate) struct Frames<'a> {
    block: &'a [u8],
    next: usize,
    left: u32,
}

impl<'a> Frames<'a> {
    /// Starts at the first frame.
    pub fn new(block: &'a [u8]) -> Result<Self, BadBlock> {
        let left = read_u32(block, NUM_PKTS).ok_or(BadBlock("header"))?;
        let next = read_u32(block, FIRST).ok_or(BadBlock("header"))? as usize;
        Ok(Self { block, next, left })
    }

    fn read(&mut self) -> Result<BlockFrame<'a>, BadBlock> {
        let header = self
            .next
            .checked_add(size_of::<tpacket3_hdr>())
            .and_then(|end| self.block.get(self.next..end))
            .ok_or(BadBlock("frame header"))?;
        // In bounds: `header` is as long as the structure.
        let word = |at| read_u32(header, at).unwrap_or(0);
        let status = word(offset_of!(tpacket3_hdr, tp_status));
        let mac = offset_of!(tpacket3_hdr, tp_mac);
        let start = self.next + usize::from(u16::from_ne_bytes([header[mac], header[mac + 1]]));
        let bytes = start
            .checked_add(word(offset_of!(tpacket3_hdr, tp_snaplen)) as usize)
            .and_then(|end| self.block.get(start..end))
            .ok_or(BadBlock("frame"))?;
        let seconds = u64::from(word(offset_of!(tpacket3_hdr, tp_sec)));
        let nanos = u64::from(word(offset_of!(tpacket3_hdr, tp_nsec)));
        // The last frame's offset leads nowhere and is not followed.
        if self.left > 1 {
            let offset = word(offset_of!(tpacket3_hdr, tp_next_offset)) as usize;
            self.next = Some(offset)
                .filter(|&offset| offset >= size_of::<tpacket3_hdr>())
                .and_then(|offset| self.next.checked_add(offset))
                .ok_or(BadBlock("next frame"))?;
        }
        Ok(BlockFrame {
            bytes,
            realtime_ns: seconds * 1_000_000_000 + nanos,
            checksums: if status & (TP_STATUS_CSUM_VALID | TP_STATUS_CSUMNOTREADY) != 0 {
                Checksums::Trust
            } else {
                Checksums::Verify
            },
        })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<BlockFrame<'a>, BadBlock>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let frame = self.read();
        // After a contradiction nothing that follows can be located.
        self.left = if frame.is_ok() { self.left - 1 } else { 0 };
        Some(frame)
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME_HEADER: usize = size_of::<tpacket3_hdr>();

    fn put(bytes: &mut [u8], at: usize, word: u32) {
        bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }

    /// A block of 4 KiB laid out as the kernel does.
    fn block(frames: &[(&[u8], u32)]) -> Vec<u8> {
        let mut block = vec![0; 4096];
        let first = size_of::<tpacket_block_desc>();
        put(&mut block, NUM_PKTS, frames.len() as u32);
        put(&mut block, FIRST, first as u32);
        let mut at = first;
        for (bytes, status) in frames {
            let length = (FRAME_HEADER + bytes.len()).next_multiple_of(16);
            let header = &mut block[at..at + length];
            put(header, offset_of!(tpacket3_hdr, tp_next_offset), length as u32);
            put(header, offset_of!(tpacket3_hdr, tp_sec), 2_000_000_000);
            put(header, offset_of!(tpacket3_hdr, tp_nsec), 5);
            put(header, offset_of!(tpacket3_hdr, tp_snaplen), bytes.len() as u32);
            put(header, offset_of!(tpacket3_hdr, tp_status), *status);
            let mac = offset_of!(tpacket3_hdr, tp_mac);
            header[mac..mac + 2].copy_from_slice(&(FRAME_HEADER as u16).to_ne_bytes());
            header[FRAME_HEADER..][..bytes.len()].copy_from_slice(bytes);
            at += length;
        }
        block
    }

    #[test]
    fn yields_frames_in_order_with_stamp_and_checksum_state() {
        let block =
            block(&[(b"one", 1), (b"three", TP_STATUS_CSUMNOTREADY), (b"", TP_STATUS_CSUM_VALID)]);
        let frames: Vec<_> = Frames::new(&block).unwrap().map(Result::unwrap).collect();
        let bytes: Vec<_> = frames.iter().map(|frame| frame.bytes).collect();
        assert_eq!(bytes, [&b"one"[..], b"three", b""]);
        let checksums: Vec<_> = frames.iter().map(|frame| frame.checksums).collect();
        assert_eq!(checksums, [Checksums::Verify, Checksums::Trust, Checksums::Trust]);
        assert!(frames.iter().all(|frame| frame.realtime_ns == 2_000_000_000_000_000_005));
    }

    #[test]
    fn stops_at_a_frame_outside_the_block() {
        let first = size_of::<tpacket_block_desc>();
        let good = block(&[(b"one", 1), (b"two", 1)]);
        for (at, word, read) in [
            (FIRST, 4090, 0),
            (FIRST, u32::MAX, 0),
            (first + offset_of!(tpacket3_hdr, tp_snaplen), 4096, 0),
            (first + offset_of!(tpacket3_hdr, tp_snaplen), u32::MAX, 0),
            (first + offset_of!(tpacket3_hdr, tp_next_offset), 0, 0),
            (first + offset_of!(tpacket3_hdr, tp_next_offset), 4064, 1),
            (NUM_PKTS, u32::MAX, 2),
        ] {
            let mut bad = good.clone();
            put(&mut bad, at, word);
            let frames: Vec<_> = Frames::new(&bad).unwrap().collect();
            assert!(frames.last().is_some_and(Result::is_err), "{at}: {word}");
            assert_eq!(frames.iter().filter(|frame| frame.is_ok()).count(), read, "{at}: {word}");
        }
        assert_eq!(Frames::new(&good[..10]).unwrap_err(), BadBlock("header"));
    }

    proptest! {
        #[test]
        fn arbitrary_blocks_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..512), count: u32) {
            if bytes.len() >= NUM_PKTS + 4 {
                put(&mut bytes, NUM_PKTS, count);
            }
            if let Ok(frames) = Frames::new(&bytes) {
                prop_assert!(frames.count() <= bytes.len() / FRAME_HEADER + 1);
            }
        }
    }
}
