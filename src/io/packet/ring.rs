//! The memory shared with the kernel: a ring of TPACKET_V3 blocks.

use super::Socket;
use super::block::{NUM_PKTS, STATUS};
use crate::io::IoError;
use nix::errno::Errno;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Octets of a block. A frame must fit into one, and merged by GRO it can be 64 KiB long.
pub(super) const BLOCK_OCTETS: usize = 128 << 10;

const FEWEST_BLOCKS: usize = 8;

/// A mapped ring and the block that is read next.
///
/// The kernel fills blocks in order (net/packet/af_packet.c, prb_*). A block belongs to it while
/// `block_status` is TP_STATUS_KERNEL and to us while TP_STATUS_USER is set.
#[derive(Debug)]
pub(super) struct Ring {
    start: NonNull<u8>,
    blocks: usize,
    cursor: usize,
}

// SAFETY: the mapping belongs to this value alone and is reachable from any thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives `socket` a ring of up to `octets`, or half of it, and so on, if memory is short.
    /// The kernel hands over a block that is not full after `retire_ms`.
    pub fn new(socket: &Socket, octets: usize, retire_ms: u32) -> Result<Self, IoError> {
        let version: libc::c_int = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        socket.set("set PACKET_VERSION", libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        let mut blocks = (octets / BLOCK_OCTETS).clamp(FEWEST_BLOCKS, 1 << 14);
        loop {
            match Self::map(socket, blocks, retire_ms) {
                Err(error)
                    if blocks > FEWEST_BLOCKS
                        && matches!(
                            error.source.raw_os_error(),
                            Some(libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS)
                        ) =>
                {
                    blocks = (blocks / 2).max(FEWEST_BLOCKS);
                }
                result => return result,
            }
        }
    }

    fn map(socket: &Socket, blocks: usize, retire_ms: u32) -> Result<Self, IoError> {
        const FRAME: usize = 2048; // only has to divide the block: version 3 packs frames closely
        const OPERATION: &str = "set PACKET_RX_RING";
        let mut request = libc::tpacket_req3 {
            tp_block_size: BLOCK_OCTETS as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: FRAME as u32,
            tp_frame_nr: (blocks * (BLOCK_OCTETS / FRAME)) as u32,
            tp_retire_blk_tov: retire_ms,
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        socket.set(OPERATION, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                blocks * BLOCK_OCTETS,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.fd.as_raw_fd(),
                0,
            )
        };
        let start = match NonNull::new(mapping.cast::<u8>()) {
            Some(start) if mapping != libc::MAP_FAILED => start,
            _ => {
                let errno = Errno::last();
                // The kernel refuses a second ring of another size until the first is given back.
                request.tp_block_nr = 0;
                request.tp_frame_nr = 0;
                socket.set(OPERATION, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
                return Err(socket.error("map the receive ring", errno.into()));
            }
        };
        Ok(Self { start, blocks, cursor: 0 })
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Returns the next block if the kernel has handed it over.
    pub fn peek(&self) -> Option<&[u8]> {
        // Acquire: what the kernel wrote into the block before it set the status is visible after.
        if self.word(STATUS).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let start = self.cursor * BLOCK_OCTETS;
        // SAFETY: cursor < blocks, so the block lies in the mapping; the kernel does not write into a
        // block that is ours, which it stays until `release`, for which the slice must be gone.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(start), BLOCK_OCTETS) })
    }

    /// Says whether the kernel, as far as it got, has put no frame into the next block.
    ///
    /// Only meaningful after [`peek`](Self::peek) returned `None`: the next block is then the one
    /// that the kernel fills. It counts a frame in before it copies it (prb_fill_curr_block), and
    /// when it opens a block sets the count to 0 (prb_open_block); before that, an old count can
    /// make an empty block look used, never the other way round.
    pub fn is_idle(&self) -> bool {
        self.word(NUM_PKTS).load(Ordering::Acquire) == 0
    }

    /// Gives the block last peeked back to the kernel and moves on to the next.
    pub fn release(&mut self) {
        // Release: our reads of the block are done before the kernel may write into it.
        self.word(STATUS).store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.cursor = (self.cursor + 1) % self.blocks;
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= BLOCK_OCTETS && at.is_multiple_of(4));
        // SAFETY: `at` is one of two constants, aligned and inside the block; cursor < blocks, so the
        // block lies in the page-aligned mapping; the kernel accesses both words as whole words.
        unsafe {
            AtomicU32::from_ptr(self.start.as_ptr().add(self.cursor * BLOCK_OCTETS + at).cast())
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no slice of it outlives this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.blocks * BLOCK_OCTETS) };
    }
}
