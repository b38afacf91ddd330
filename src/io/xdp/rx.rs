//! Receiving: frames that the kernel has put into the UMEM.

use super::rings::{BadCursor, Consumer, Producer, Ring};
use super::socket::{Sizes, Sockets};
use super::umem::{BadDescriptor, FrameLayout, Free, Ours, RxLedger};
use crate::io::prefetch::prefetch;
use crate::io::{IoError, QueueCounts, Receive, Received, RxFrame, RxStats};
use crate::time::{Clock, Instant};
use crate::wire::Checksums;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// How long a frame may be on its way from the interrupt into the rx ring: a softirq that is put off
/// to ksoftirqd waits for a time slice, a tick of 4 ms at HZ=250, and in the driver's mode frames
/// become visible only at the end of its poll (xsk_flush), a budget of 64 frames later.
const SOFTIRQ_MARGIN: Duration = Duration::from_millis(5);

/// Frames handed over before the kernel gets them back: a small part of what it has in store.
const TURN: u32 = 64;

/// Octets that the CPU fetches at once.
const CACHE_LINE: usize = 64;

/// A wait that is over sooner than this says that frames come close together.
const DENSE: Duration = Duration::from_micros(50);
/// Then a nap takes the place of the next wait: the kernel wakes a thread that polls for every frame or
/// two, and each time takes the CPU from a sender. The shortest rx ring holds as much as comes in this
/// time at a million frames a second.
const NAP: Duration = Duration::from_micros(400);

/// Receives the frames of one queue by AF_XDP.
pub struct XdpRx {
    // First, so that the rings are unmapped before their sockets close.
    rings: Rings,
    sockets: Arc<Sockets>,
    clock: Clock,
    received: u64,
    complete_until: Instant,
    /// Whether frames come so close together that it is not worth being woken for each.
    is_dense: bool,
}

/// The rx and fill rings, and the frames that go round in them.
#[derive(Debug)]
pub(super) struct Rings {
    rx: Ring<libc::xdp_desc>,
    consumer: Consumer,
    fill: Ring<u64>,
    producer: Producer,
    ledger: RxLedger,
    /// Frames that were taken from the rx ring and not handed over.
    turn: Vec<Ours>,
    /// Frames that the fill ring has no room for yet.
    spare: Vec<Free>,
}

impl fmt::Debug for XdpRx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdpRx").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

impl XdpRx {
    /// Returns the socket that the XDP program is to redirect to: no frame that is longer than its
    /// [`layout`](Self::layout) has room for.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.sockets.receiving.as_fd()
    }

    /// Returns how the frames lie that it receives into.
    pub fn layout(&self) -> FrameLayout {
        self.rings.ledger.layout()
    }

    /// Hands over what is in the rx ring, at most one round of it, so that a flood cannot keep the
    /// caller here.
    fn drain(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<usize, IoError> {
        // The clock is read first: what comes in between is then after the instant noted.
        let now = self.clock.now();
        let socket = &self.sockets.receiving;
        let mut left = self.rings.available().map_err(|bad| socket.bad_ring(bad))?;
        let total = left as usize;
        while left > 0 {
            let turn = left.min(TURN);
            self.rings.hand_over(turn, now, sink).map_err(|bad| socket.bad_ring(bad))?;
            self.rings.release().map_err(|bad| socket.bad_ring(bad))?;
            left -= turn;
        }
        if total > 0 && self.rings.fill.needs_wakeup() {
            self.wake();
        }
        self.received += total as u64;
        self.complete_until = self.complete_until.max(now - SOFTIRQ_MARGIN);
        Ok(total)
    }

    /// Tells a driver that has run out of frames that there are some again.
    fn wake(&self) {
        let fd = self.sockets.receiving.fd.as_raw_fd();
        // SAFETY: no buffer is passed. Whatever it returns, the next call to poll does the same.
        unsafe { libc::recv(fd, std::ptr::null_mut(), 0, libc::MSG_DONTWAIT) };
    }

    fn await_frame(&self, wait: Duration) -> Result<(), IoError> {
        let socket = &self.sockets.receiving;
        // Rounded up: a wait cut to 0 ms would turn the caller's loop into a busy one.
        let millis = wait.as_nanos().div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) if fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)) => {
                socket.check("receive frames")
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(socket.error("poll AF_XDP socket", errno)),
        }
    }
}

impl Rings {
    /// Fills the fill ring, which must be done before the socket is bound: some drivers take frames
    /// at once.
    pub fn filled(
        rx: Ring<libc::xdp_desc>,
        fill: Ring<u64>,
        sizes: Sizes,
        mut ledger: RxLedger,
    ) -> Result<Self, BadCursor> {
        let spare = ledger.issue();
        let mut rings = Rings {
            rx,
            consumer: Consumer::new(0, sizes.rx),
            fill,
            producer: Producer::new(0, sizes.fill()),
            ledger,
            turn: Vec::with_capacity(TURN as usize),
            spare,
        };
        rings.refill()?;
        Ok(rings)
    }

    pub fn with_sockets(self, sockets: Arc<Sockets>) -> XdpRx {
        let clock = Clock;
        let complete_until = clock.now();
        XdpRx { rings: self, sockets, clock, received: 0, complete_until, is_dense: false }
    }

    fn available(&mut self) -> Result<u32, BadCursor> {
        self.consumer.available(self.rx.producer())
    }

    /// Hands over the next `count` frames, of which there must be so many; after a bad one none.
    fn hand_over(
        &mut self,
        count: u32,
        at: Instant,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<(), BadDescriptor> {
        let mut taken = Ok(());
        for entry in self.consumer.advance_by(count) {
            match self.ledger.take_packet(self.rx.read(entry)) {
                Ok(packet) => {
                    // Another CPU wrote it: nothing else would bring it here before it is read. IPv6 and
                    // tags take a second line.
                    let octets = self.ledger.octets(&packet);
                    octets.first().into_iter().chain(octets.get(CACHE_LINE)).for_each(prefetch);
                    self.turn.push(packet);
                }
                Err(bad) => {
                    taken = Err(bad);
                    break;
                }
            }
        }
        for packet in self.turn.drain(..) {
            sink(RxFrame { bytes: self.ledger.octets(&packet), at, checksums: Checksums::Verify });
            self.spare.push(packet.free());
        }
        taken
    }

    /// Gives the kernel back the entries and the frames that were read.
    fn release(&mut self) -> Result<(), BadCursor> {
        self.consumer.release(self.rx.consumer());
        self.refill()
    }

    fn refill(&mut self) -> Result<(), BadCursor> {
        let room = self.producer.free(self.fill.consumer())?;
        for _ in 0..room {
            let Some(frame) = self.spare.pop() else { break };
            self.fill.write(self.producer.advance(), self.ledger.lend(frame));
        }
        self.producer.publish(self.fill.producer());
        Ok(())
    }
}

impl Receive for XdpRx {
    /// Hands over every frame in the rx ring.
    ///
    /// AF_XDP has no time stamps: a frame's instant is when it was found, up to half a millisecond late
    /// while many come. `complete_until` lags behind
    /// the present by 5 ms, also during a flood: whatever was in the ring when the clock was read has
    /// been handed over on return.
    ///
    /// # Errors
    /// The interface is gone, or the kernel handed over a descriptor that cannot be right. That the
    /// interface is down does not show here.
    fn receive(
        &mut self,
        wait: Duration,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Received, IoError> {
        let mut frames = self.drain(sink)?;
        if frames == 0 && self.is_dense && wait >= NAP {
            self.clock.sleep(NAP);
            frames = self.drain(sink)?;
        }
        if frames == 0 {
            let begun = self.clock.now();
            self.await_frame(wait)?;
            self.is_dense = self.clock.now().since(begun) < DENSE;
            frames = self.drain(sink)?;
        }
        Ok(Received { frames, complete_until: self.complete_until })
    }

    /// Counts as dropped what found no free frame or no room in the rx ring (XDP_STATISTICS). What a
    /// driver in zero-copy mode drops for want of frames only the NIC's own counters tell.
    fn stats(&mut self) -> Result<RxStats, IoError> {
        let counts = self.sockets.receiving.statistics()?;
        let dropped = counts.rx_dropped + counts.rx_ring_full;
        Ok(RxStats { received: self.received + dropped, dropped })
    }

    fn queue_counts(&self) -> Result<Option<QueueCounts>, IoError> {
        let socket = &self.sockets.receiving;
        let counts = socket.statistics()?;
        Ok(Some(QueueCounts {
            queue: socket.queue_id,
            received: self.received,
            rx_dropped: counts.rx_dropped,
            rx_ring_full: counts.rx_ring_full,
            fill_ring_empty: counts.rx_fill_ring_empty_descs,
            rx_invalid_descs: counts.rx_invalid_descs,
            ..QueueCounts::default()
        }))
    }
}
