//! The memory that frames are in, and whose each frame is.
//!
//! A frame is nobody's ([`Free`]), ours ([`Ours`]), or the kernel's. The first two are tokens that
//! cannot be copied; whoever lends a frame to the kernel gives its token away, and with it every way
//! to the frame's octets. A [`Ledger`] remembers what is lent, so that an address from the kernel
//! becomes a token again only if it was.
//!
//! Whatever goes round in the rings is kept together, so that it stays in the cache ([`FrameLayout`]): what is
//! sent always, since of that the kernel only asks that no packet reaches from one chunk into the next
//! (xp_aligned_validate_desc, and less in an unaligned UMEM, xp_unaligned_validate_desc); what is
//! received where the kernel copies it.

#[cfg(test)]
mod tests;

use crate::io::{FRAME_OCTETS, FrameBuf, IoError};
use nix::errno::Errno;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

/// Octets of a chunk, the least that the kernel allows (XDP_UMEM_MIN_CHUNK_SIZE).
const CHUNK: usize = 2048;
/// Octets of a large page, where there are any: memory is fetched and cleared faster by them.
const HUGE_PAGE: usize = 2 << 20;
/// What the kernel leaves free before a received packet (XDP_PACKET_HEADROOM).
const HEADROOM: usize = 256;
/// In an unaligned UMEM, where a descriptor has the packet's place in its frame
/// (XSK_UNALIGNED_BUF_OFFSET_SHIFT).
const OFFSET_SHIFT: u32 = 48;

/// How the frames that packets are received into lie in the UMEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameLayout {
    /// A chunk each, as drivers in zero-copy mode want it: the card writes as it likes.
    Chunks,
    /// Four to a chunk (XDP_UMEM_UNALIGNED_CHUNK_FLAG): for the kernel's copies, which begin behind the
    /// headroom and are as long as the packet. So whoever redirects to the socket must see to it that
    /// none is longer than [`packet_octets`](Self::packet_octets). Nor has the kernel heads for as many
    /// buffers as there are frames, only for chunks: a copy needs one for as long as it takes.
    Packed,
}

impl FrameLayout {
    /// Returns the length of the longest packet that a frame has room for, in octets.
    pub const fn packet_octets(self) -> u32 {
        ((1 << self.shift()) - HEADROOM) as u32
    }

    const fn shift(self) -> u32 {
        match self {
            FrameLayout::Chunks => CHUNK.ilog2(),
            FrameLayout::Packed => (2 * HEADROOM).ilog2(),
        }
    }

    /// Returns the address of the packet that a descriptor names `addr`.
    const fn resolve(self, addr: u64) -> u64 {
        match self {
            FrameLayout::Chunks => addr,
            FrameLayout::Packed => (addr & ((1 << OFFSET_SHIFT) - 1)) + (addr >> OFFSET_SHIFT),
        }
    }

    /// Returns the memory that frames take, in octets: `rx` to receive into and `tx` to send from.
    pub(super) const fn octets(self, rx: u32, tx: u32) -> usize {
        ((rx as usize) << self.shift()) + tx as usize * FRAME_OCTETS
    }
}

/// How far apart the frames of a [`Ledger`] are.
pub(super) trait Spacing: Copy {
    /// Its binary logarithm, in octets.
    fn shift(self) -> u32;
}

impl Spacing for FrameLayout {
    fn shift(self) -> u32 {
        self.shift()
    }
}

/// The frames that are sent, one behind the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent;

impl Spacing for Sent {
    fn shift(self) -> u32 {
        FRAME_OCTETS.ilog2()
    }
}

const _: () = assert!(FRAME_OCTETS.is_power_of_two() && CHUNK.is_multiple_of(FRAME_OCTETS));
const _: () = assert!(FrameLayout::Packed.packet_octets() == 256);

/// A frame that holds nothing of interest to anyone.
#[derive(Debug)]
#[must_use]
pub(super) struct Free(u32);

impl Free {
    /// Returns which frame of the UMEM this is.
    pub fn index(&self) -> u32 {
        self.0
    }
}

/// A frame with a packet in it that we may read.
#[derive(Debug)]
#[must_use]
pub(super) struct Ours {
    index: u32,
    offset: u32,
    len: u32,
}

impl Ours {
    /// Says that the packet is no longer wanted.
    pub fn free(self) -> Free {
        Free(self.index)
    }
}

/// A descriptor or address that the kernel handed over and that cannot be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("descriptor at {addr}, {len} octets long: {reason}")]
pub(super) struct BadDescriptor {
    addr: u64,
    len: u32,
    reason: &'static str,
}

impl BadDescriptor {
    /// Reports an address that is nobody's.
    pub const fn outside(addr: u64) -> Self {
        BadDescriptor { addr, len: 0, reason: "outside the UMEM" }
    }

    /// Reports the address of a frame that the kernel has not got.
    pub const fn not_lent(addr: u64) -> Self {
        BadDescriptor { addr, len: 0, reason: "not lent" }
    }
}

/// The frames that are received into.
pub(super) type RxLedger = Ledger<FrameLayout>;
/// The frames that are sent.
pub(super) type TxLedger = Ledger<Sent>;

/// The memory of a queue.
#[derive(Debug)]
pub(super) struct Umem {
    mapping: NonNull<u8>,
    mapped: usize,
    /// The first frame, somewhere in the mapping.
    start: NonNull<u8>,
    octets: usize,
    layout: FrameLayout,
    rx: u32,
    tx: u32,
}

// SAFETY: the mapping belongs to this value; its octets are only reached through a `Ledger`, which
// hands out frames of its own share to whoever holds their token.
unsafe impl Send for Umem {}
// SAFETY: as above; `&Umem` itself gives no access to the octets.
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps memory for `rx` frames to receive into and `tx` to send from; both fill whole chunks, and what
    /// is sent one at least. `interface` is named in messages.
    ///
    /// # Errors
    /// No memory.
    pub fn map(layout: FrameLayout, rx: u32, tx: u32, interface: &str) -> Result<Self, IoError> {
        let octets = layout.octets(rx, tx);
        debug_assert!(layout.octets(rx, 0).is_multiple_of(CHUNK) && octets.is_multiple_of(CHUNK));
        let mapped = octets + HUGE_PAGE;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let Some(mapping) = NonNull::new(mapping).filter(|_| mapping != libc::MAP_FAILED) else {
            return Err(IoError {
                operation: "map the UMEM",
                object: interface.to_owned(),
                source: Errno::last().into(),
                remedy: "",
            });
        };
        let mapping = mapping.cast::<u8>();
        let before = mapping.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // SAFETY: at most as far into the mapping as it is longer than the frames.
        let start = unsafe { mapping.add(before) };
        // Whether or not there are such pages: registering it makes the kernel fetch all of them.
        // SAFETY: the range lies inside the mapping; its contents do not change.
        unsafe { libc::madvise(start.as_ptr().cast(), octets, libc::MADV_HUGEPAGE) };
        Ok(Umem { mapping, mapped, start, octets, layout, rx, tx })
    }

    /// Describes the memory to the kernel (XDP_UMEM_REG).
    pub fn registration(&self) -> libc::xdp_umem_reg {
        libc::xdp_umem_reg {
            addr: self.start.as_ptr() as u64,
            len: self.octets as u64,
            chunk_size: CHUNK as u32,
            headroom: 0,
            flags: match self.layout {
                FrameLayout::Chunks => 0,
                FrameLayout::Packed => libc::XDP_UMEM_UNALIGNED_CHUNK_FLAG,
            },
            tx_metadata_len: 0,
        }
    }

    /// Splits the memory in two: what is received into, and behind it what is sent from.
    pub fn split(self) -> (Arc<Self>, RxLedger, TxLedger) {
        let Umem { layout, rx, tx, .. } = self;
        let umem = Arc::new(self);
        let first = (layout.octets(rx, 0) / FRAME_OCTETS) as u32;
        let head = Ledger::new(umem.clone(), layout, 0, rx);
        let tail = Ledger::new(umem.clone(), Sent, first, tx);
        (umem, head, tail)
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`; every ledger holds the Umem, and no slice of a
        // frame outlives its ledger.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

/// A share of a UMEM's memory as frames, and which of them are lent to the kernel.
///
/// Frames are numbered from the beginning of the UMEM, as if all of it were frames of this size. No two
/// shares overlap.
pub(super) struct Ledger<S> {
    umem: Arc<Umem>,
    spacing: S,
    first: u32,
    /// By index from `first` on, but for the `latest`.
    lent: Box<[bool]>,
    /// The frames lent to be sent since one was last taken back by itself, in their order: in copy mode those
    /// of a batch come back in the same, and are told by one comparison.
    latest: Vec<u32>,
    unissued: bool,
}

impl<S> fmt::Debug for Ledger<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.first..self.first + self.lent.len() as u32;
        f.debug_struct("Ledger").field("frames", &frames).finish_non_exhaustive()
    }
}

impl<S: Spacing> Ledger<S> {
    fn new(umem: Arc<Umem>, spacing: S, first: u32, frames: u32) -> Self {
        let lent = vec![false; frames as usize].into();
        Ledger { umem, spacing, first, lent, latest: Vec::new(), unissued: true }
    }

    /// Returns the tokens of all frames; only the first time, as there is one of each.
    pub fn issue(&mut self) -> Vec<Free> {
        let frames = if self.unissued { self.lent.len() as u32 } else { 0 };
        self.unissued = false;
        (self.first..self.first + frames).map(Free).collect()
    }

    /// Gives the frames from number `at` of this share on away, with their tokens out of `free`. None
    /// if one of them is in use.
    pub fn split_off(&mut self, at: usize, free: &mut Vec<Free>) -> Option<(Self, Vec<Free>)> {
        let first = self.first + u32::try_from(at).ok()?;
        let count = self.lent.len().checked_sub(at)?;
        if free.iter().filter(|frame| frame.0 >= first).count() != count {
            return None;
        }
        let (kept, given) = free.drain(..).partition(|frame| frame.0 < first);
        *free = kept;
        self.lent = self.lent[..at].into();
        let mut ledger = Ledger::new(self.umem.clone(), self.spacing, first, count as u32);
        ledger.unissued = false;
        Some((ledger, given))
    }

    /// Returns the addresses of the frames of this share.
    pub fn range(&self) -> Range<u64> {
        let address = |frame: u64| frame << self.spacing.shift();
        let first = u64::from(self.first);
        address(first)..address(first + self.lent.len() as u64)
    }

    /// Returns a descriptor of nothing, which the kernel skips.
    pub fn outside(&self) -> libc::xdp_desc {
        libc::xdp_desc { addr: self.umem.octets as u64, len: 64, options: 0 }
    }

    fn slot(&self, index: u32) -> usize {
        let slot = index.wrapping_sub(self.first) as usize;
        if slot >= self.lent.len() {
            misplaced(index);
        }
        slot
    }
}

/// By value: an index whose address is given away must stand in memory, with every frame.
#[cold]
#[inline(never)]
fn misplaced(index: u32) -> ! {
    panic!("frame {index} of another share")
}

impl RxLedger {
    /// Returns how its frames lie.
    pub fn layout(&self) -> FrameLayout {
        self.spacing
    }

    /// Returns the packet in a frame.
    pub fn octets<'a>(&'a self, frame: &'a Ours) -> &'a [u8] {
        self.slot(frame.index);
        let start = ((frame.index as usize) << self.spacing.shift()) + frame.offset as usize;
        // SAFETY: the frame is of this ledger's share (checked), offset and length lie inside it
        // (checked in `take_packet`), and its only token is borrowed for as long as the slice lives.
        unsafe {
            std::slice::from_raw_parts(self.umem.start.as_ptr().add(start), frame.len as usize)
        }
    }

    /// Gives a frame to the kernel, and returns its address for the fill ring.
    pub fn lend(&mut self, frame: Free) -> u64 {
        let slot = self.slot(frame.0);
        self.lent[slot] = true;
        u64::from(frame.0) << self.spacing.shift()
    }

    /// Takes back a frame that the kernel has filled, by its descriptor from the rx ring.
    ///
    /// # Errors
    /// [`BadDescriptor`] if it was not lent, or if the packet is not inside the frame, or not whole.
    pub fn take_packet(&mut self, descriptor: libc::xdp_desc) -> Result<Ours, BadDescriptor> {
        let libc::xdp_desc { addr, len, options } = descriptor;
        if options & libc::XDP_PKT_CONTD != 0 {
            return Err(BadDescriptor { addr, len, reason: "goes on in another frame" });
        }
        let (index, offset) = self.locate(addr, len)?;
        Ok(Ours { index, offset, len })
    }

    #[inline]
    fn locate(&mut self, addr: u64, len: u32) -> Result<(u32, u32), BadDescriptor> {
        let bad = |reason| BadDescriptor { addr, len, reason };
        let (addr, shift) = (self.spacing.resolve(addr), self.spacing.shift());
        let index = u32::try_from(addr >> shift).map_err(|_| bad("outside the UMEM"))?;
        let offset = (addr & ((1 << shift) - 1)) as u32;
        if u64::from(offset) + u64::from(len) > 1 << shift {
            return Err(bad("longer than its frame"));
        }
        let lent = index
            .checked_sub(self.first)
            .and_then(|slot| self.lent.get_mut(slot as usize))
            .ok_or(bad("outside our share of the UMEM"))?;
        if !std::mem::replace(lent, false) {
            return Err(bad("not lent"));
        }
        Ok((index, offset))
    }
}

impl TxLedger {
    const fn address(index: u32) -> u64 {
        index as u64 * FRAME_OCTETS as u64
    }

    /// Appends frames that the kernel has sent to `free`, by their addresses from the completion ring, if
    /// those are the first of the latest, in their order. Says whether they are; if not, nothing has changed.
    pub fn take_back_in_order(
        &mut self,
        addrs: impl ExactSizeIterator<Item = u64>,
        free: &mut Vec<Free>,
    ) -> bool {
        let count = addrs.len();
        let Some(expected) = self.latest.get(..count) else { return false };
        // All of them, without a branch for each.
        let differ = addrs
            .zip(expected)
            .fold(0, |differ, (addr, &index)| differ | (addr ^ Self::address(index)));
        if differ == 0 {
            free.extend(self.latest.drain(..count).map(Free));
        }
        differ == 0
    }

    /// Takes back a frame that the kernel has sent, by its address from the completion ring; none if no
    /// frame of this share is lent there.
    #[inline]
    pub fn take_back(&mut self, addr: u64) -> Option<Free> {
        if !self.latest.is_empty() {
            self.settle();
        }
        let index = addr / FRAME_OCTETS as u64;
        let slot = index.wrapping_sub(self.first.into()) as usize;
        let was_lent = std::mem::replace(self.lent.get_mut(slot)?, false);
        was_lent.then_some(Free(index as u32))
    }

    /// Takes back a frame that was lent, and that the kernel has not read and will not read.
    ///
    /// # Errors
    /// [`BadDescriptor`] if it was not lent.
    pub fn withdraw(&mut self, index: u32) -> Result<Free, BadDescriptor> {
        let addr = Self::address(index);
        self.take_back(addr).ok_or(BadDescriptor::not_lent(addr))
    }

    /// Moves the latest into `lent`, so that each can be found by its index.
    #[inline(never)]
    fn settle(&mut self) {
        for index in self.latest.drain(..) {
            self.lent[(index - self.first) as usize] = true;
        }
    }

    /// Returns the octets of a frame that nobody uses, to be written.
    #[inline]
    pub fn octets_mut<'a>(&'a mut self, frame: &'a mut Free) -> &'a mut FrameBuf {
        self.slot(frame.0);
        let start = frame.0 as usize * FRAME_OCTETS;
        // SAFETY: the frame is of this ledger's share (checked), so inside the mapping; its token, of
        // which there is one, is borrowed for as long as the reference lives, and the kernel has not
        // got the frame.
        unsafe { &mut *self.umem.start.as_ptr().add(start).cast() }
    }

    /// Gives a frame whose first `len` octets are to be sent to the kernel, and returns its descriptor
    /// for the tx ring.
    ///
    /// # Panics
    /// If it is not that long.
    #[inline]
    pub fn lend_packet(&mut self, frame: Free, len: usize) -> libc::xdp_desc {
        assert!(len <= FRAME_OCTETS, "packet of {len} octets in a frame of {FRAME_OCTETS}");
        self.slot(frame.0);
        self.latest.push(frame.0);
        libc::xdp_desc { addr: Self::address(frame.0), len: len as u32, options: 0 }
    }
}
