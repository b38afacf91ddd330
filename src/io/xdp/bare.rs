//! The barest loop over an AF_XDP ring: entries that never change, and two cursors that move on.

use super::completions::Completions;
use super::tx::{LAST_PATIENCE, XdpTx};
use super::umem::CHUNK;
use crate::io::IoError;
use crate::io::bare::BareLoop;
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
}

impl<'a> BareRing<'a> {
    /// Writes `frame` into one frame of the UMEM, and its descriptor into every tx entry.
    pub(super) fn new(lender: &'a mut XdpTx, frame: &[u8]) -> Result<Self, IoError> {
        let all = lender.frames;
        lender.await_frames(all, LAST_PATIENCE)?;
        let completions = lender.completions.clone();
        let (next, seen) = (lender.producer.next(), completions.lock().consumer.next());
        let Some(first) = lender.free.first_mut().filter(|_| frame.len() <= CHUNK) else {
            return Err(lender.sockets.sending.error("send a constant frame", Errno::EMSGSIZE));
        };
        lender.ledger.octets_mut(first)[..frame.len()].copy_from_slice(frame);
        let addr = u64::from(first.index()) * CHUNK as u64;
        let descriptor = libc::xdp_desc { addr, len: frame.len() as u32, options: 0 };
        for index in 0..all as u32 {
            lender.tx.write(index, descriptor);
        }
        Ok(BareRing { lender, completions, next, seen, in_flight: 0 })
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
        let room = (self.lender.frames as u32 - self.in_flight).min(crate::io::bare::BATCH as u32);
        self.next = self.next.wrapping_add(room);
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
        self.lender.producer.restart(self.next);
        self.completions.lock().consumer.restart(self.seen);
    }
}
