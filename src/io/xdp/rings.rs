//! The four rings of an AF_XDP socket: who may read and write which entry, and when.
//!
//! A ring has two cursors in shared memory, free-running 32-bit counts that wrap at 2^32: `producer`,
//! up to where entries are written, and `consumer`, up to where they are read. Each has one writer.
//! We produce into the fill and tx rings and consume from the rx and completion rings; the kernel
//! does the opposite (net/xdp/xsk_queue.h, whose memory barriers are mirrored here).
//!
//! [`Producer`] and [`Consumer`] are our end of a ring without its memory, so that they can be tested
//! without a kernel; [`Ring`] is the memory.

#[cfg(test)]
mod tests;

use nix::errno::Errno;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cursor in shared memory: std's atomics, or loom's when a model is checked.
pub(super) trait Cursor {
    /// Reads the cursor and makes what was written before it visible.
    fn load_acquire(&self) -> u32;
    /// Writes the cursor after everything that was read or written before.
    fn store_release(&self, value: u32);
}

impl Cursor for AtomicU32 {
    fn load_acquire(&self) -> u32 {
        self.load(Ordering::Acquire)
    }

    fn store_release(&self, value: u32) {
        self.store(value, Ordering::Release);
    }
}

/// A cursor of the kernel's that lies outside of the ring; nothing it says can be relied on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("ring cursor {theirs} of the kernel, ours {ours}, in a ring of {size}")]
pub(super) struct BadCursor {
    ours: u32,
    theirs: u32,
    size: u32,
}

/// Our end of a ring that we write.
#[derive(Debug)]
pub(super) struct Producer {
    /// Where the next entry goes.
    next: u32,
    /// Up to where the kernel had read when we last looked.
    consumed: u32,
    size: u32,
}

impl Producer {
    /// Starts at the cursor `start`, at which the ring is empty; `size` is a power of two.
    pub const fn new(start: u32, size: u32) -> Self {
        Producer { next: start, consumed: start, size }
    }

    /// Returns how many entries can be written.
    ///
    /// # Errors
    /// [`BadCursor`].
    pub fn free(&mut self, consumer: &impl Cursor) -> Result<u32, BadCursor> {
        // Acquire: the kernel has read an entry before we overwrite it. loom: entries_survive.
        self.look(consumer.load_acquire())?;
        Ok(self.size - self.next.wrapping_sub(self.consumed))
    }

    fn look(&mut self, theirs: u32) -> Result<(), BadCursor> {
        // Only forward, and never past what is written.
        let unread = self.next.wrapping_sub(theirs);
        if unread > self.next.wrapping_sub(self.consumed) {
            return Err(BadCursor { ours: self.next, theirs, size: self.size });
        }
        self.consumed = theirs;
        Ok(())
    }

    /// Returns how many entries could be written at the last [`free`](Self::free), less those written
    /// since.
    pub const fn known_free(&self) -> u32 {
        self.size - self.next.wrapping_sub(self.consumed)
    }

    /// Returns how many entries the ring has.
    pub const fn size(&self) -> u32 {
        self.size
    }

    /// Returns the cursor of the entry that is to be written next, and moves on. It must be free.
    pub fn advance(&mut self) -> u32 {
        let at = self.next;
        self.next = at.wrapping_add(1);
        at
    }

    /// Shows the kernel every entry written so far.
    pub fn publish(&self, producer: &impl Cursor) {
        // Release: the entries before the cursor. loom: entries_survive.
        producer.store_release(self.next);
    }

    /// Goes on at the cursor `at`, where the ring is empty: somebody else has written meanwhile.
    pub fn restart(&mut self, at: u32) {
        (self.next, self.consumed) = (at, at);
    }

    /// Returns up to where the kernel had read at the last [`free`](Self::free).
    pub const fn consumed(&self) -> u32 {
        self.consumed
    }

    /// Returns the cursor of the next entry.
    pub const fn next(&self) -> u32 {
        self.next
    }
}

/// Our end of a ring that the kernel writes.
#[derive(Debug)]
pub(super) struct Consumer {
    /// The entry that is read next.
    next: u32,
    /// Up to where the kernel had written when we last looked.
    produced: u32,
    size: u32,
}

impl Consumer {
    /// Starts at the cursor `start`, at which the ring is empty; `size` is a power of two.
    pub const fn new(start: u32, size: u32) -> Self {
        Consumer { next: start, produced: start, size }
    }

    /// Returns how many entries can be read.
    ///
    /// # Errors
    /// [`BadCursor`].
    pub fn available(&mut self, producer: &impl Cursor) -> Result<u32, BadCursor> {
        // Acquire: the entries that the kernel wrote before it moved the cursor. loom: entries_survive.
        let theirs = producer.load_acquire();
        let unread = theirs.wrapping_sub(self.next);
        if unread > self.size || unread < self.produced.wrapping_sub(self.next) {
            return Err(BadCursor { ours: self.next, theirs, size: self.size });
        }
        self.produced = theirs;
        Ok(unread)
    }

    /// Goes on at the cursor `at`, where the ring is empty: somebody else has read meanwhile.
    pub fn restart(&mut self, at: u32) {
        (self.next, self.produced) = (at, at);
    }

    /// Returns the cursor of the entry that is read next.
    pub const fn next(&self) -> u32 {
        self.next
    }

    /// Returns the cursors of the next `count` entries, and moves on. There must be as many.
    pub fn advance_by(&mut self, count: u32) -> impl ExactSizeIterator<Item = u32> + Clone + use<> {
        let first = self.next;
        self.next = first.wrapping_add(count);
        (0..count).map(move |after| first.wrapping_add(after))
    }

    /// Gives the kernel back every entry read so far.
    pub fn release(&self, consumer: &impl Cursor) {
        // Release: our reads are done before the kernel may overwrite. loom: entries_survive.
        consumer.store_release(self.next);
    }
}

/// The memory of a ring, shared with the kernel; entries are `u64` or `xdp_desc`.
#[derive(Debug)]
pub(super) struct Ring<T> {
    start: NonNull<u8>,
    octets: usize,
    producer: NonNull<u32>,
    consumer: NonNull<u32>,
    flags: NonNull<u32>,
    entries: NonNull<T>,
    mask: u32,
}

// SAFETY: the mapping belongs to this value alone and is reachable from any thread.
unsafe impl<T: Send> Send for Ring<T> {}

/// Which ring of a socket, and where it is mapped (`XDP_PGOFF_*`).
#[derive(Clone, Copy)]
pub(super) struct Place<T> {
    page_offset: u64,
    entries: PhantomData<T>,
}

/// The rx ring.
pub(super) const RX: Place<libc::xdp_desc> = Place::new(libc::XDP_PGOFF_RX_RING as u64);
/// The tx ring.
pub(super) const TX: Place<libc::xdp_desc> = Place::new(libc::XDP_PGOFF_TX_RING as u64);
/// The fill ring.
pub(super) const FILL: Place<u64> = Place::new(libc::XDP_UMEM_PGOFF_FILL_RING);
/// The completion ring.
pub(super) const COMPLETION: Place<u64> = Place::new(libc::XDP_UMEM_PGOFF_COMPLETION_RING);

impl<T> Place<T> {
    const fn new(page_offset: u64) -> Self {
        Place { page_offset, entries: PhantomData }
    }
}

impl<T: Copy> Ring<T> {
    /// Maps the ring at `place` of `socket`, which has `size` entries (a power of two) and whose parts
    /// lie at `offsets`.
    ///
    /// # Errors
    /// The kernel's, or EINVAL if the offsets make no sense.
    pub fn map(
        socket: BorrowedFd<'_>,
        place: Place<T>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> Result<Self, Errno> {
        let end = |offset: u64, octets: usize| {
            usize::try_from(offset).ok().and_then(|offset| offset.checked_add(octets))
        };
        let entries = size as usize * size_of::<T>();
        let octets = end(offsets.desc, entries).ok_or(Errno::EINVAL)?;
        for word in [offsets.producer, offsets.consumer, offsets.flags] {
            let inside = end(word, 4).is_some_and(|end| end <= octets);
            if !inside || !word.is_multiple_of(4) {
                return Err(Errno::EINVAL);
            }
        }
        if !size.is_power_of_two() || !offsets.desc.is_multiple_of(align_of::<T>() as u64) {
            return Err(Errno::EINVAL);
        }
        let at = libc::off_t::try_from(place.page_offset).map_err(|_| Errno::EINVAL)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                octets,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                socket.as_raw_fd(),
                at,
            )
        };
        let start = match NonNull::new(mapping.cast::<u8>()) {
            Some(start) if mapping != libc::MAP_FAILED => start,
            _ => return Err(Errno::last()),
        };
        // SAFETY: all four offsets lie inside the mapping (checked above).
        unsafe {
            Ok(Ring {
                start,
                octets,
                producer: start.add(offsets.producer as usize).cast(),
                consumer: start.add(offsets.consumer as usize).cast(),
                flags: start.add(offsets.flags as usize).cast(),
                entries: start.add(offsets.desc as usize).cast(),
                mask: size - 1,
            })
        }
    }

    /// Returns the cursor up to where entries are written.
    pub fn producer(&self) -> &AtomicU32 {
        // SAFETY: aligned and inside the mapping (checked in `map`), which lives as long as `self`; the
        // kernel accesses it as a whole word.
        unsafe { AtomicU32::from_ptr(self.producer.as_ptr()) }
    }

    /// Returns the cursor up to where entries are read.
    pub fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as in `producer`.
        unsafe { AtomicU32::from_ptr(self.consumer.as_ptr()) }
    }

    /// Says whether the kernel sleeps and wants a system call to look at the ring.
    pub fn needs_wakeup(&self) -> bool {
        // SAFETY: as in `producer`.
        let flags = unsafe { AtomicU32::from_ptr(self.flags.as_ptr()) };
        flags.load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// Writes the entry at the cursor `at`, as [`Producer::advance`] has returned it.
    pub fn write(&mut self, at: u32, entry: T) {
        // SAFETY: masked, so inside the mapping; the kernel does not touch an entry that is ours.
        unsafe { self.entries.add((at & self.mask) as usize).write(entry) }
    }

    /// Writes over an entry that the kernel has been shown, and may be reading.
    pub fn overwrite(&mut self, at: u32, entry: T) {
        // SAFETY: masked, so inside the mapping; a volatile write, since the kernel sees it as it happens.
        unsafe { self.entries.add((at & self.mask) as usize).write_volatile(entry) }
    }

    /// Reads the entry at the cursor `at`, as [`Consumer::advance_by`] has returned it.
    pub fn read(&self, at: u32) -> T {
        // SAFETY: masked, so inside the mapping; the kernel does not touch an entry that is ours, and
        // every bit pattern is a valid entry.
        unsafe { self.entries.add((at & self.mask) as usize).read_volatile() }
    }
}

impl Ring<libc::xdp_desc> {
    /// Writes a descriptor as [`write`](Self::write) does, but its two halves at once, as the compiler
    /// does not: a frame that is sent takes as long as it has writes.
    #[inline]
    pub fn describe(&mut self, at: u32, descriptor: libc::xdp_desc) {
        const { assert!(size_of::<libc::xdp_desc>() == 16) };
        const { assert!(std::mem::offset_of!(libc::xdp_desc, addr) == 0) };
        const { assert!(std::mem::offset_of!(libc::xdp_desc, len) == 8) };
        let libc::xdp_desc { addr, len, options } = descriptor;
        let [len, options] = [len, options].map(u64::from);
        let rest =
            if cfg!(target_endian = "little") { len | options << 32 } else { len << 32 | options };
        // SAFETY: as in `write`; of the same size and alignment, any two words are a descriptor.
        unsafe { self.entries.add((at & self.mask) as usize).cast().write([addr, rest]) }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and no reference into it outlives this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.octets) };
    }
}
