//! Sending: frames written into the UMEM and handed to the driver, past the whole stack.

use super::bare::BareRing;
use super::completions::Completions;
use super::rings::{Producer, Ring};
use super::socket::{Sizes, Sockets};
use super::umem::{CHUNK, Free, Ledger};
use crate::io::{FRAME_OCTETS, IoError, QueueCounts, Transmit, Unsent};
use crate::time::{Clock, Instant};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// The largest batch, in frames.
const BATCH: usize = 256;

/// How long a batch may make no progress before it is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// Octets of a cache line, and how many of them a packet may be moved away from its frame's start.
const LINE: usize = 64;
const COLOURS: usize = (CHUNK - FRAME_OCTETS) / LINE;

/// Returns where in its frame a packet is written. Frames are 2 KiB apart: if all packets began with
/// theirs, they would share two sets of the nearest cache, and a batch has ten times as many.
const fn offset(index: u32) -> usize {
    index as usize % COLOURS * LINE
}

/// Sends frames through one queue by AF_XDP.
pub struct XdpTx {
    // First, so that the rings are unmapped before their sockets close.
    pub(super) tx: Ring<libc::xdp_desc>,
    pub(super) producer: Producer,
    /// Up to where the kernel has taken descriptors: it shows that late when it drops one.
    pub(super) taken: u32,
    pub(super) completions: Arc<Completions>,
    /// Which of the halves that send through this queue.
    half: usize,
    /// Addresses on their way from `completions` to `free`.
    back: Vec<u64>,
    pub(super) ledger: Ledger,
    pub(super) free: Vec<Free>,
    /// The frame last reserved.
    next: Option<Free>,
    /// What of the batch the kernel has not taken, in the order of the tx ring.
    pending: VecDeque<Pending>,
    /// Frames of the batch for which there was a place in the ring.
    queued: usize,
    /// Those for which there was none: the kernel has not given back enough frames in time.
    surplus: usize,
    scratch: Box<[u8; FRAME_OCTETS]>,
    pub(super) frames: usize,
    /// Frames that were taken, in all.
    sent: u64,
    pub(super) zerocopy: bool,
    pub(super) sockets: Arc<Sockets>,
    pub(super) clock: Clock,
}

/// A descriptor in the tx ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pending {
    /// Which frame of the UMEM.
    index: u32,
    /// Which frame of the batch.
    position: u16,
    len: u16,
}

const _: () = assert!(BATCH <= u16::MAX as usize);
const _: () = assert!(FRAME_OCTETS <= u16::MAX as usize);

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
        mut ledger: Ledger,
        zerocopy: bool,
        sockets: Arc<Sockets>,
    ) -> Self {
        completions.share_out([&ledger].into_iter());
        let free = ledger.issue();
        XdpTx {
            tx,
            producer: Producer::new(0, sizes.tx),
            taken: 0,
            completions,
            half: 0,
            back: Vec::new(),
            free,
            ledger,
            next: None,
            pending: VecDeque::with_capacity(BATCH),
            queued: 0,
            surplus: 0,
            scratch: Box::new([0; FRAME_OCTETS]),
            frames: sizes.tx as usize,
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
            let Some((ledger, free)) = split else {
                return Err(self.sockets.sending.error("share the tx frames", Errno::EBUSY));
            };
            self.frames -= each;
            halves.push(XdpTx {
                tx,
                producer: Producer::new(0, ring),
                taken: 0,
                completions: self.completions.clone(),
                half,
                back: Vec::new(),
                ledger,
                free,
                next: None,
                pending: VecDeque::with_capacity(BATCH),
                queued: 0,
                surplus: 0,
                scratch: Box::new([0; FRAME_OCTETS]),
                frames: each,
                sent: 0,
                zerocopy: self.zerocopy,
                sockets,
                clock: self.clock,
            });
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
        BareRing::new(self, frame)
    }

    /// Takes back what the kernel has sent.
    fn reap(&mut self) -> Result<(), IoError> {
        let socket = &self.sockets.sending;
        self.completions.take(self.half, &mut self.back).map_err(|bad| socket.bad_ring(bad))?;
        for addr in self.back.drain(..) {
            let frame = self.ledger.take_back(addr).map_err(|bad| socket.bad_ring(bad))?;
            self.free.push(frame);
        }
        Ok(())
    }

    /// Puts a frame into the tx ring, where there is always room: no more frames exist.
    fn enqueue(&mut self, position: u16, frame: Free, len: u16) {
        let index = frame.index();
        let descriptor = self.ledger.lend_packet(frame, offset(index), usize::from(len));
        self.tx.write(self.producer.advance(), descriptor);
        self.pending.push_back(Pending { position, index, len });
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
    fn note_taken(&mut self, dropped: bool) -> Result<(usize, Option<Pending>), IoError> {
        let socket = &self.sockets.sending;
        self.producer.free(self.tx.consumer()).map_err(|bad| socket.bad_ring(bad))?;
        // It shows what it has taken only after it has sent something (__xsk_tx_release).
        let shown = self.producer.consumed();
        let is_news =
            shown.wrapping_sub(self.taken) <= self.producer.next().wrapping_sub(self.taken);
        let mut count = if is_news { shown.wrapping_sub(self.taken) } else { 0 };
        if dropped && count == 0 && self.taken != self.producer.next() {
            count = 1;
        }
        self.taken = self.taken.wrapping_add(count);
        let stale = (self.producer.next().wrapping_sub(self.taken) as usize + count as usize)
            .saturating_sub(self.pending.len());
        // What an earlier batch has left behind comes first, and was reported then.
        let of_batch = (count as usize).saturating_sub(stale).min(self.pending.len());
        let last = self.pending.drain(..of_batch).next_back();
        match dropped {
            true => Ok((of_batch.saturating_sub(1), last)),
            false => Ok((of_batch, None)),
        }
    }

    /// Sends what is pending, waiting out a full device within bounds.
    fn send_all(&mut self) -> Result<(), IoError> {
        self.producer.publish(self.tx.producer());
        let mut pause = FIRST_PAUSE;
        let mut stuck_since: Option<Instant> = None;
        while !self.pending.is_empty() {
            // In zero-copy mode a driver that is awake finds the frames by itself.
            let asleep = self.tx.needs_wakeup() || stuck_since.is_some();
            let result = if !self.zerocopy || asleep { self.kick() } else { Ok(()) };
            let (taken, dropped) = self.note_taken(result == Err(Errno::EBUSY))?;
            self.reap()?;
            if let Some(lost) = dropped {
                self.repeat(lost)?;
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
                let errno = result.err().unwrap_or(Errno::EAGAIN);
                let mut error = self.sockets.sending.error("send frames", errno);
                error.remedy = "the device takes no frames: see whether its link is up";
                return Err(error);
            }
            self.clock.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// Sends a frame again that the device has dropped; its octets are as they were.
    fn repeat(&mut self, lost: Pending) -> Result<(), IoError> {
        let Some(at) = self.free.iter().rposition(|frame| frame.index() == lost.index) else {
            // Not given back with the drop, as every kernel does (kfree_skb, then xsk_destruct_skb).
            return Err(self.sockets.sending.error("send frames", Errno::EBUSY));
        };
        let frame = self.free.swap_remove(at);
        self.enqueue(lost.position, frame, lost.len);
        self.producer.publish(self.tx.producer());
        Ok(())
    }

    /// Waits until `wanted` frames have come back, within bounds.
    pub(super) fn await_frames(&mut self, wanted: usize) -> Result<(), IoError> {
        self.reap()?;
        let begun = self.clock.now();
        let mut pause = FIRST_PAUSE;
        while self.free.len() < wanted && self.clock.now().since(begun) < PATIENCE {
            // What an earlier batch has left in the ring, or, with zero-copy, what the driver has sent
            // and not cleaned up.
            match self.kick() {
                Ok(()) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => {
                    self.note_taken(false)?;
                }
                Err(Errno::EBUSY) => drop(self.note_taken(true)?),
                Err(_) => return Ok(()),
            }
            self.clock.sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.reap()?;
        }
        Ok(())
    }
}

impl Drop for XdpTx {
    /// Lets the driver send what it has taken: the last frames of a sweep close its flows, and a queue
    /// is reset when its socket goes.
    fn drop(&mut self) {
        let held = usize::from(self.next.is_some());
        if let Err(error) = self.await_frames(self.frames - held) {
            tracing::debug!(%error, "the last frames may not have been sent");
        }
    }
}

impl Transmit for XdpTx {
    fn reserve(&mut self) -> Option<&mut [u8]> {
        if self.queued + self.surplus >= self.batch() {
            return None;
        }
        if self.next.is_none() {
            self.next = self.free.pop();
        }
        match &mut self.next {
            // In the order of the batch: nothing is sent behind what cannot be.
            Some(frame) if self.surplus == 0 => {
                let start = offset(frame.index());
                self.ledger.octets_mut(frame).get_mut(start..start + FRAME_OCTETS)
            }
            _ => Some(&mut self.scratch[..]),
        }
    }

    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`].
    fn submit(&mut self, len: usize) {
        assert!(len <= FRAME_OCTETS, "frame of {len} octets in a buffer of {FRAME_OCTETS}");
        match self.next.take() {
            Some(frame) if self.surplus == 0 => {
                self.enqueue(self.queued as u16, frame, len as u16);
                self.queued += 1;
            }
            kept => {
                self.next = kept;
                self.surplus += 1;
            }
        }
    }

    /// In copy mode every frame has gone to the device when this returns, in zero-copy mode the driver
    /// has taken it. Frames that are refused stay in the tx ring, from which nothing can be taken back:
    /// they may still leave, late.
    fn flush(&mut self) -> Result<usize, Unsent> {
        let result = self.send_all();
        let (queued, surplus) = (self.queued, self.surplus);
        let first_unsent = self.pending.iter().map(|pending| usize::from(pending.position)).min();
        self.pending.clear();
        (self.queued, self.surplus) = (0, 0);
        let sent = first_unsent.unwrap_or(queued);
        let refused = queued + surplus - sent;
        self.sent += sent as u64;
        let unsent = |error| Unsent { sent, refused, error };
        result.map_err(unsent)?;
        self.await_frames(self.batch()).map_err(unsent)?;
        if surplus > 0 {
            return Err(unsent(self.sockets.sending.error("reserve frames", Errno::EAGAIN)));
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
