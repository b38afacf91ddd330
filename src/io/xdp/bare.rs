//! The barest loop over an AF_XDP ring: frames that are written once, descriptors, and cursors that
//! move on. It is what `xdpsock --txonly` of the kernel's samples does.

use super::completions::Completions;
use super::tx::{LAST_PATIENCE, XdpTx};
use crate::io::bare::{BATCH, BareLoop};
use crate::io::{FRAME_OCTETS, IoError};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sends one constant frame through the rings of an [`XdpTx`], which gets them back when this value
/// goes.
#[derive(Debug)]
pub struct BareRing<'a> {
    lender: &'a mut XdpTx,
    completions: Arc<Completions>,
    /// Cursor of the next tx entry.
    next: u32,
    /// Cursor of the next completion entry.
    seen: u32,
    in_flight: u32,
    /// Where the frames are that it sends in turn, as many as two batches.
    frames: Box<[u64]>,
    len: u32,
    turn: usize,
}

impl<'a> BareRing<'a> {
    /// Writes `frame` into as many frames of the UMEM as can be on their way while others are filled.
    pub(super) fn new(lender: &'a mut XdpTx, frame: &[u8]) -> Result<Self, IoError> {
        lender.await_frames(lender.frames, LAST_PATIENCE)?;
        let completions = lender.completions.clone();
        let (next, seen) = (lender.producer.next(), completions.lock().consumer.next());
        if frame.len() > FRAME_OCTETS || lender.free.is_empty() {
            return Err(lender.sockets.sending.error("send a constant frame", Errno::EMSGSIZE));
        }
        let XdpTx { free, ledger, .. } = &mut *lender;
        let chosen = free.iter_mut().rev().take(2 * BATCH);
        let frames: Box<[u64]> = chosen
            .map(|free| {
                ledger.octets_mut(free)[..frame.len()].copy_from_slice(frame);
                u64::from(free.index()) * FRAME_OCTETS as u64
            })
            .collect();
        let len = frame.len() as u32;
        Ok(BareRing { lender, completions, next, seen, in_flight: 0, frames, len, turn: 0 })
    }

    fn reap(&mut self) {
        let returned = self.completions.lock();
        let produced = returned.ring.producer().load(Ordering::Acquire);
        self.in_flight = self.in_flight.saturating_sub(produced.wrapping_sub(self.seen));
        self.seen = produced;
        returned.ring.consumer().store(produced, Ordering::Release);
    }
}

impl BareLoop for BareRing<'_> {
    fn send(&mut self) -> Result<usize, IoError> {
        // They are alike: which of them are on their way does not matter, only how many.
        let room = (self.frames.len() as u32 - self.in_flight).min(BATCH as u32);
        for _ in 0..room {
            let descriptor =
                libc::xdp_desc { addr: self.frames[self.turn], len: self.len, options: 0 };
            self.lender.tx.write(self.next, descriptor);
            self.next = self.next.wrapping_add(1);
            self.turn = if self.turn + 1 < self.frames.len() { self.turn + 1 } else { 0 };
        }
        self.in_flight += room;
        self.lender.tx.producer().store(self.next, Ordering::Release);
        let kicked = match self.lender.zerocopy && !self.lender.tx.needs_wakeup() {
            true => Ok(()),
            false => self.lender.kick(),
        };
        self.reap();
        match kicked {
            Ok(())
            | Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOBUFS | Errno::ENOMEM | Errno::EINTR) => {
                Ok(room as usize)
            }
            Err(errno) => Err(self.lender.sockets.sending.error("send a constant frame", errno)),
        }
    }
}

impl Drop for BareRing<'_> {
    fn drop(&mut self) {
        let clock = self.lender.clock;
        let begun = clock.now();
        while self.in_flight > 0 && clock.now().since(begun) < LAST_PATIENCE {
            // What it says shows when frames do not come back.
            let _ = self.lender.kick();
            self.reap();
        }
        // If some have not come back by now, the lender finds its ring in disorder, and says so.
        self.lender.restart(self.next);
        self.completions.lock().consumer.restart(self.seen);
    }
}
