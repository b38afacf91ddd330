//! Sending: frames written into the UMEM and handed to the driver, past the whole stack.

use super::bare::BareRing;
use super::completions::Completions;
use super::rings::{Producer, Ring};
use super::socket::{Sizes, Sockets};
use super::umem::{Free, TxLedger};
use crate::io::{FRAME_OCTETS, FrameBuf, IoError, QueueCounts, Transmit, Unsent};
use crate::time::{Clock, Instant};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// The largest batch, in frames: so few that what is written stays in the nearest cache until the
/// kernel reads it, so many that the system call costs each next to nothing.
const BATCH: usize = 256;

/// How long a batch may make no progress before it is given up: other paths wait meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the last frames may take on their way out.
pub(super) const LAST_PATIENCE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// Sends frames through one queue by AF_XDP.
pub struct XdpTx {
    // First, so that the rings are unmapped before their sockets close.
    pub(super) tx: Ring<libc::xdp_desc>,
    pub(super) producer: Producer,
    pub(super) completions: Arc<Completions>,
    /// Which of the halves that send through this queue.
    half: usize,
    pub(super) ledger: TxLedger,
    pub(super) free: Vec<Free>,
    pending: Pending,
    withdrawn: Withdrawn,
    /// The first frame of the batch that was dropped and could not be repeated.
    lost: Option<usize>,
    /// How many free frames are to be left: the batch has room for those above, as far as is known, and
    /// the ring has places for them.
    floor: usize,
    /// Frames of the batch for which there was no room: the kernel has not given back enough in time.
    surplus: usize,
    scratch: Box<FrameBuf>,
    pub(super) frames: usize,
    /// Frames that were taken, in all.
    sent: u64,
    pub(super) zerocopy: bool,
    pub(super) sockets: Arc<Sockets>,
    pub(super) clock: Clock,
}

/// What of the batch the kernel has not taken: the last entries of the tx ring, by their cursors. What
/// stands in them is read back where it is wanted, since nobody else writes them.
#[derive(Debug, Default)]
struct Pending {
    /// The first entry of the batch.
    begun: u32,
    /// The first one that is pending.
    oldest: u32,
    /// How many frames the batch has: each has an entry in its turn.
    queued: u32,
    /// Behind them stand frames once more that the device has dropped: which of the batch each is.
    repeated: Vec<u32>,
}

impl Pending {
    /// Begins a batch whose first entry is `next`.
    fn begin(&mut self, next: u32) {
        (self.begun, self.oldest) = (next, next);
        self.repeated.clear();
    }

    /// Returns how many entries before `next` are pending.
    const fn count(&self, next: u32) -> u32 {
        next.wrapping_sub(self.oldest)
    }

    fn entries(&self, next: u32) -> impl Iterator<Item = u32> + use<> {
        let oldest = self.oldest;
        (0..self.count(next)).map(move |after| oldest.wrapping_add(after))
    }

    /// Returns which frame of the batch stands in the entry `at`.
    fn position(&self, at: u32) -> usize {
        let turn = at.wrapping_sub(self.begun);
        let again =
            turn.checked_sub(self.queued).and_then(|again| self.repeated.get(again as usize));
        again.copied().unwrap_or(turn) as usize
    }

    /// Strikes what the kernel has taken: everything before `consumed`, where `next` is the next free
    /// entry. Returns how many frames have left, and the last one of them apart if one was dropped. That
    /// one the kernel does not always show: it moves the cursor only after it has sent something
    /// (__xsk_tx_release).
    fn strike(&mut self, consumed: u32, next: u32, dropped: bool) -> (usize, Option<u32>) {
        let pending = self.count(next);
        let taken = pending.saturating_sub(next.wrapping_sub(consumed));
        let shown = if dropped { taken.max(1).min(pending) } else { taken };
        self.oldest = self.oldest.wrapping_add(shown);
        match dropped && shown > 0 {
            false => (taken as usize, None),
            true => (shown as usize - 1, Some(self.oldest.wrapping_sub(1))),
        }
    }
}

impl fmt::Debug for XdpTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdpTx").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl XdpTx {
    pub(super) fn new(
        tx: Ring<libc::xdp_desc>,
        completions: Arc<Completions>,
        sizes: Sizes,
        mut ledger: TxLedger,
        zerocopy: bool,
        sockets: Arc<Sockets>,
    ) -> Self {
        completions.share_out([&ledger].into_iter());
        let free = ledger.issue();
        Self::half(0, (tx, sizes.tx), completions, (ledger, free), zerocopy, sockets)
    }

    /// Makes half number `half`, with a tx ring of so many entries and frames of its own.
    fn half(
        half: usize,
        (tx, entries): (Ring<libc::xdp_desc>, u32),
        completions: Arc<Completions>,
        (ledger, free): (TxLedger, Vec<Free>),
        zerocopy: bool,
        sockets: Arc<Sockets>,
    ) -> Self {
        XdpTx {
            tx,
            producer: Producer::new(0, entries),
            completions,
            half,
            frames: free.len(),
            free,
            ledger,
            pending: Pending::default(),
            withdrawn: Withdrawn::default(),
            lost: None,
            floor: usize::MAX,
            surplus: 0,
            scratch: Box::new([0; FRAME_OCTETS]),
            sent: 0,
            zerocopy,
            sockets,
            clock: Clock,
        }
    }

    /// Makes `count` more sending halves of this queue, each for a thread of its own. All of them
    /// share the frames of this one, from which nothing may have been sent before.
    ///
    /// # Errors
    /// The kernel gives no more sockets; EBUSY if frames are on their way, or too few.
    pub fn share(&mut self, count: usize) -> Result<Vec<XdpTx>, IoError> {
        let ring = self.frames as u32;
        let each = self.frames / (count + 1);
        let mut halves: Vec<XdpTx> = Vec::with_capacity(count);
        for half in (1..=count).rev() {
            let (sockets, tx) = self.sockets.with_another_sending(ring)?;
            let split = (each > 1)
                .then(|| self.ledger.split_off(self.frames - each, &mut self.free))
                .flatten();
            let Some(share) = split else {
                return Err(self.sockets.sending.error("share the tx frames", Errno::EBUSY));
            };
            self.frames -= each;
            self.floor = usize::MAX;
            let (tx, completions) = ((tx, ring), self.completions.clone());
            halves.push(Self::half(half, tx, completions, share, self.zerocopy, sockets));
        }
        let ledgers = [&*self].into_iter().chain(halves.iter().rev()).map(|half| &half.ledger);
        self.completions.share_out(ledgers);
        Ok(halves)
    }

    /// Frames that a batch holds: others are still on their way when it is filled.
    fn batch(&self) -> usize {
        BATCH.min(self.frames / 2)
    }

    /// Lends the rings to a loop that sends nothing but `frame`. Nothing may be in the batch, and nobody
    /// else may send through the queue meanwhile.
    ///
    /// # Errors
    /// Frames are still on their way, or `frame` is too long.
    pub fn bare(&mut self, frame: &[u8]) -> Result<BareRing<'_>, IoError> {
        self.floor = usize::MAX;
        BareRing::new(self, frame)
    }

    /// Goes on at the cursor `at`, where the tx ring is empty: a loop on the bare ring has moved it.
    pub(super) fn restart(&mut self, at: u32) {
        self.producer.restart(at);
        self.pending.begin(at);
        self.floor = usize::MAX;
    }

    /// Takes back what the kernel has sent.
    fn reap(&mut self) -> Result<(), IoError> {
        let XdpTx { completions, half, ledger, free, withdrawn, sockets, .. } = self;
        let before = free.len();
        let bad_ring = |bad| sockets.sending.bad_ring(bad);
        completions.take(*half, ledger, free).map_err(bad_ring)?;
        if self.zerocopy {
            for at in before..free.len() {
                for skipped in withdrawn.skipped_before(free[at].index()) {
                    free.push(ledger.withdraw(skipped).map_err(|bad| bad_ring(bad.into()))?);
                }
            }
        }
        Ok(())
    }

    /// Puts a frame into the tx ring, where there must be room.
    #[inline]
    fn enqueue(&mut self, frame: Free, len: usize) {
        let descriptor = self.ledger.lend_packet(frame, len);
        self.tx.describe(self.producer.advance(), descriptor);
    }

    /// Returns how many frames of the batch the kernel has not taken.
    fn pending(&self) -> usize {
        self.pending.count(self.producer.next()) as usize
    }

    /// Returns the frame in the entry `at` of the tx ring, and how long it is.
    fn entry(&self, at: u32) -> (u32, usize) {
        let libc::xdp_desc { addr, len, .. } = self.tx.read(at);
        ((addr / FRAME_OCTETS as u64) as u32, len as usize)
    }

    /// Sees how much room the batch has, and says whether there is any.
    #[cold]
    fn open_up(&mut self) -> bool {
        // Nothing is sent behind what cannot be.
        if self.surplus == 0 {
            // Only withdrawn frames can fill the ring: it has no fewer entries than there are frames.
            let is_full = self.producer.known_free() == 0;
            let room = if is_full && self.skip_withdrawn().is_err() { 0 } else { self.room() };
            let left = self.batch().saturating_sub(self.pending());
            self.floor = self.free.len().saturating_sub(left.min(room as usize));
        }
        self.free.len() > self.floor
    }

    /// Lends a place for a frame that cannot be sent, as long as the batch is not full.
    #[cold]
    fn reserve_surplus(&mut self) -> Option<&mut FrameBuf> {
        (self.pending() + self.surplus < self.batch()).then_some(&mut self.scratch)
    }

    fn room(&mut self) -> u32 {
        self.producer.free(self.tx.consumer()).unwrap_or(0)
    }

    /// Makes the kernel skip what was withdrawn, as long as nothing of this batch is published. It
    /// skips one entry a call, and shows that when it looks for new ones (__xsk_generic_xmit,
    /// xskq_cons_get_entries).
    fn skip_withdrawn(&mut self) -> Result<(), IoError> {
        let size = self.producer.size();
        for _ in 0..2 * size {
            if self.room() as usize + self.pending() >= size as usize {
                break;
            }
            match self.kick() {
                Ok(()) => self.reap()?,
                Err(errno @ (Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)) => {
                    return Err(self.sockets.sending.error("send frames", errno));
                }
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Makes the kernel look at the tx ring. In copy mode this call is what sends.
    pub(super) fn kick(&self) -> Result<(), Errno> {
        let fd = self.sockets.sending.fd.as_raw_fd();
        // SAFETY: neither a buffer nor an address is passed.
        let result = unsafe {
            libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0)
        };
        Errno::result(result).map(drop)
    }

    /// Strikes from the batch what the kernel has taken since the last call, and returns how many
    /// frames that were and the one that it has dropped, if `dropped` says so (EBUSY).
    fn note_taken(&mut self, dropped: bool) -> Result<(usize, Option<u32>), IoError> {
        let socket = &self.sockets.sending;
        self.producer.free(self.tx.consumer()).map_err(|bad| socket.bad_ring(bad))?;
        Ok(self.pending.strike(self.producer.consumed(), self.producer.next(), dropped))
    }

    /// Sends what is pending, waiting out a full device within bounds.
    fn send_all(&mut self) -> Result<(), IoError> {
        self.skip_withdrawn()?;
        self.producer.publish(self.tx.producer());
        let mut pause = FIRST_PAUSE;
        let mut stuck_since: Option<Instant> = None;
        while self.pending() > 0 {
            // In zero-copy mode a driver that is awake finds the frames by itself.
            let asleep = self.tx.needs_wakeup() || stuck_since.is_some();
            let result = if !self.zerocopy || asleep { self.kick() } else { Ok(()) };
            let (taken, dropped) = self.note_taken(result == Err(Errno::EBUSY))?;
            self.reap()?;
            let has_dropped = dropped.is_some();
            if let Some(at) = dropped {
                self.repeat(at)?;
            }
            if taken > 0 {
                pause = FIRST_PAUSE;
                stuck_since = None;
                continue;
            }
            match result {
                // EAGAIN: the device's queue or the socket's buffer is full. EBUSY: the device has
                // dropped a frame.
                Ok(())
                | Err(
                    Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR,
                ) => {}
                Err(errno) => return Err(self.sockets.sending.error("send frames", errno)),
            }
            let now = self.clock.now();
            if now.since(*stuck_since.get_or_insert(now)) >= PATIENCE {
                // A device that drops frames has no room for them, or no link.
                let errno = if has_dropped { Err(Errno::ENOBUFS) } else { result };
                let errno = errno.err().unwrap_or(Errno::EAGAIN);
                let mut error = self.sockets.sending.error("send frames", errno);
                error.remedy = "the device takes no frames: see whether its link is up";
                return Err(error);
            }
            self.clock.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// Makes sure that what is still pending never leaves: its peers will hear that they were not
    /// asked, and a frame that left after their verdict would open what nobody closes.
    ///
    /// An entry of the tx ring cannot be taken out, but it can be made one that the kernel skips
    /// (xp_aligned_validate_desc, xp_unaligned_validate_desc). In copy mode the kernel reads entries only
    /// in our own calls. In zero-copy mode the driver may be reading this very one: then it leaves after
    /// all, now.
    fn withdraw(&mut self) -> Result<(), IoError> {
        let outside = self.ledger.outside();
        for at in self.pending.entries(self.producer.next()) {
            let (index, _) = self.entry(at);
            self.tx.overwrite(at, outside);
            if self.zerocopy {
                self.withdrawn.note_withdrawn(index);
                continue;
            }
            let socket = &self.sockets.sending;
            let frame = self.ledger.withdraw(index).map_err(|bad| socket.bad_ring(bad))?;
            self.free.push(frame);
        }
        Ok(())
    }

    /// Sends a frame again that the device has dropped, from the entry `at`; its octets are as they were.
    fn repeat(&mut self, at: u32) -> Result<(), IoError> {
        let (index, len) = self.entry(at);
        let position = self.pending.position(at);
        let Some(found) = self.free.iter().rposition(|frame| frame.index() == index) else {
            // Not given back with the drop, as every kernel does (kfree_skb, then xsk_destruct_skb).
            self.lost = Some(position);
            return Err(self.sockets.sending.error("send frames", Errno::EBUSY));
        };
        let socket = &self.sockets.sending;
        let room = self.producer.free(self.tx.consumer()).map_err(|bad| socket.bad_ring(bad))?;
        if room == 0 {
            self.lost = Some(position);
            return Err(socket.error("send frames", Errno::ENOBUFS));
        }
        let frame = self.free.swap_remove(found);
        self.enqueue(frame, len);
        self.pending.repeated.push(position as u32);
        if self.zerocopy {
            self.withdrawn.note_sent(index);
        }
        self.producer.publish(self.tx.producer());
        Ok(())
    }

    /// Waits until `wanted` frames have come back, for as long as `patience`.
    pub(super) fn await_frames(
        &mut self,
        wanted: usize,
        patience: Duration,
    ) -> Result<(), IoError> {
        self.reap()?;
        let begun = self.clock.now();
        let mut pause = FIRST_PAUSE;
        while self.free.len() < wanted && self.clock.now().since(begun) < patience {
            // With zero-copy, what the driver has sent and not cleaned up.
            match self.kick() {
                Ok(())
                | Err(
                    Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR,
                ) => drop(self.note_taken(false)?),
                Err(_) => return Ok(()),
            }
            self.clock.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.reap()?;
        }
        Ok(())
    }

    /// Says why no frame could be reserved: what the kernel says of the link, or that it gives none
    /// back.
    fn shortage(&self) -> IoError {
        let errno = match self.kick() {
            Err(errno @ (Errno::ENETDOWN | Errno::ENXIO | Errno::ENODEV)) => errno,
            _ => Errno::ENOBUFS,
        };
        self.sockets.sending.error("reserve frames", errno)
    }
}

/// Frames that a driver in zero-copy mode may have read before they were withdrawn. Addresses come
/// back in the order in which the entries were read, so whoever comes back says that those before
/// were skipped.
#[derive(Debug, Default)]
struct Withdrawn {
    /// Every frame that has not come back, and whether it was withdrawn.
    sent: VecDeque<(u32, bool)>,
}

impl Withdrawn {
    fn note_sent(&mut self, index: u32) {
        self.sent.push_back((index, false));
    }

    fn note_withdrawn(&mut self, index: u32) {
        let last = self.sent.iter_mut().rev().find(|(sent, _)| *sent == index);
        if let Some((_, is_withdrawn)) = last {
            *is_withdrawn = true;
        }
    }

    /// Returns how many may never come back.
    fn waiting(&self) -> usize {
        self.sent.iter().filter(|(_, is_withdrawn)| *is_withdrawn).count()
    }

    /// Notes that this frame has come back, and returns those that will not.
    fn skipped_before(&mut self, index: u32) -> Vec<u32> {
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == index) else {
            return Vec::new();
        };
        let before: Vec<_> = self.sent.drain(..=at).take(at).collect();
        // What was not withdrawn comes back itself, whatever the order.
        let (skipped, late): (Vec<_>, Vec<_>) = before.into_iter().partition(|(_, gone)| *gone);
        late.into_iter().rev().for_each(|entry| self.sent.push_front(entry));
        skipped.into_iter().map(|(index, _)| index).collect()
    }
}

impl Drop for XdpTx {
    /// Lets the driver send what it has taken: the last frames of a sweep close its flows, and a queue
    /// is reset when its socket goes.
    fn drop(&mut self) {
        let wanted = self.frames - self.withdrawn.waiting();
        if let Err(error) = self.await_frames(wanted, LAST_PATIENCE) {
            tracing::debug!(%error, "the last frames may not have been sent");
        }
    }
}

impl Transmit for XdpTx {
    #[inline]
    fn reserve(&mut self) -> Option<&mut FrameBuf> {
        if self.free.len() <= self.floor && !self.open_up() {
            return self.reserve_surplus();
        }
        self.free.last_mut().map(|frame| self.ledger.octets_mut(frame))
    }

    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`].
    #[inline]
    fn submit(&mut self, len: usize) {
        assert!(len <= FRAME_OCTETS, "frame of {len} octets in a buffer of {FRAME_OCTETS}");
        if self.free.len() > self.floor
            && let Some(frame) = self.free.pop()
        {
            self.enqueue(frame, len);
        } else {
            self.surplus += 1;
        }
    }

    /// In copy mode every frame has gone to the device when this returns, in zero-copy mode the driver
    /// has taken it. Frames that are refused do not leave later.
    fn flush(&mut self) -> Result<usize, Unsent> {
        let (queued, surplus) = (self.pending(), self.surplus);
        (self.floor, self.surplus) = (usize::MAX, 0);
        self.pending.queued = queued as u32;
        if self.zerocopy {
            for at in self.pending.entries(self.producer.next()) {
                self.withdrawn.note_sent(self.entry(at).0);
            }
        }
        let result = self.send_all();
        let unsent = self.pending.entries(self.producer.next());
        let unsent = unsent.map(|at| self.pending.position(at));
        let first_unsent = unsent.chain(self.lost.take()).min();
        let sent = first_unsent.unwrap_or(queued);
        let refused = queued + surplus - sent;
        self.sent += sent as u64;
        let unsent = |error| Unsent { sent, refused, error };
        let withdrawn = self.withdraw();
        self.pending.begin(self.producer.next());
        withdrawn.and(result).map_err(unsent)?;
        if self.free.len() < self.batch() {
            self.await_frames(self.batch(), PATIENCE).map_err(unsent)?;
        }
        if surplus > 0 {
            return Err(unsent(self.shortage()));
        }
        Ok(queued)
    }

    fn queue_counts(&self) -> Result<Option<QueueCounts>, IoError> {
        let socket = &self.sockets.sending;
        let tx_invalid_descs = socket.statistics()?.tx_invalid_descs;
        let sent = self.sent;
        let queue = socket.queue_id;
        Ok(Some(QueueCounts { queue, sent, tx_invalid_descs, ..QueueCounts::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_is_what_the_kernel_has_read() {
        for start in [0, u32::MAX - 1] {
            let at = |turn| start.wrapping_add(turn);
            let next = at(5);
            let mut pending = Pending { queued: 5, ..Pending::default() };
            pending.begin(start);
            assert_eq!(pending.strike(start, next, false), (0, None));
            assert_eq!(pending.strike(at(2), next, false), (2, None));
            // It was shown: the third left, the fourth was dropped.
            assert_eq!(pending.strike(at(4), next, true), (1, Some(at(3))));
            // It was not.
            assert_eq!(pending.strike(at(4), next, true), (0, Some(at(4))));
            assert_eq!(pending.count(next), 0);
            assert_eq!(pending.strike(at(4), next, true), (0, None));
        }
    }

    #[test]
    fn a_frame_that_is_repeated_keeps_its_position() {
        let start = u32::MAX;
        let mut pending = Pending { queued: 3, ..Pending::default() };
        pending.begin(start);
        let next = start.wrapping_add(3);
        let (_, dropped) = pending.strike(start.wrapping_add(1), next, true);
        let position = pending.position(dropped.expect("the first was dropped"));
        pending.repeated.push(position as u32);
        let unsent = pending.entries(next.wrapping_add(1)).map(|at| pending.position(at));
        assert_eq!(unsent.collect::<Vec<_>>(), [1, 2, 0]);
    }

    /// A frame that was withdrawn belongs to the driver until one behind it has come back.
    #[test]
    fn who_comes_back_says_who_does_not() {
        let mut sent = Withdrawn::default();
        (0..5).for_each(|index| sent.note_sent(index));
        (1..4).for_each(|index| sent.note_withdrawn(index));
        assert_eq!(sent.waiting(), 3);
        assert!(sent.skipped_before(0).is_empty());
        // Read by the driver before it was withdrawn.
        assert_eq!(sent.skipped_before(2), [1]);
        assert_eq!(sent.skipped_before(4), [3]);
        assert_eq!(sent.waiting(), 0);
        // Out of order: nobody is given up who was not withdrawn.
        (0..3).for_each(|index| sent.note_sent(index));
        assert!(sent.skipped_before(2).is_empty());
        assert!(sent.skipped_before(0).is_empty() && sent.skipped_before(1).is_empty());
    }
}
