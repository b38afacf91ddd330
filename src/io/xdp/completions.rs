//! The frames that the kernel gives back when they are sent, for all who send through one queue.

use super::rings::{BadCursor, Consumer, Ring};
use super::umem::{BadDescriptor, Free, TxLedger};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The completion ring of a queue.
///
/// A queue has one, whichever socket a frame was sent by: each sending half takes its own frames out of
/// it, and puts those of the others by for them.
pub(super) struct Completions(Mutex<Returned>);

/// The ring, and what was read from it for others.
pub(super) struct Returned {
    pub ring: Ring<u64>,
    pub consumer: Consumer,
    halves: Vec<Half>,
}

/// The addresses of a half's frames that are back.
struct Half {
    /// Its frames lie in front of this address, and behind those of the half before it.
    end: u64,
    back: Vec<u64>,
}

impl fmt::Debug for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completions").finish_non_exhaustive()
    }
}

impl Completions {
    /// Takes charge of a ring of `size` entries, in which nothing is yet.
    pub fn new(ring: Ring<u64>, size: u32) -> Self {
        let consumer = Consumer::new(0, size);
        Completions(Mutex::new(Returned { ring, consumer, halves: Vec::new() }))
    }

    /// Says whose the frames of each half are: `ledgers` in the order of their frames.
    pub fn share_out<'a>(&self, ledgers: impl Iterator<Item = &'a TxLedger>) {
        self.lock().halves =
            ledgers.map(|ledger| Half { end: ledger.end(), back: Vec::new() }).collect();
    }

    /// Appends the frames of half number `half` that are back, which `ledger` is of, to `free`.
    ///
    /// # Errors
    /// [`BadCursor`]; or, in [`BadDescriptor`], an address outside of all shares or of a frame that was
    /// not lent.
    pub fn take(
        &self,
        half: usize,
        ledger: &mut TxLedger,
        free: &mut Vec<Free>,
    ) -> Result<(), Error> {
        let mut returned = self.lock();
        let Returned { ring, consumer, halves } = &mut *returned;
        if let Some(put_by) = halves.get_mut(half) {
            for addr in put_by.back.drain(..) {
                ledger.take_back(addr, free)?;
            }
        }
        let done = consumer.available(ring.producer())?;
        free.reserve(done as usize);
        for at in consumer.advance_by(done) {
            let addr = ring.read(at);
            if ledger.take_back(addr, free)? {
                continue;
            }
            if let Some(other) = owner(addr, halves)? {
                halves[other].back.push(addr);
            }
        }
        if done > 0 {
            consumer.release(ring.consumer());
        }
        Ok(())
    }

    pub fn lock(&self) -> MutexGuard<'_, Returned> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the number of the half that a frame belongs to; none for a frame that was withdrawn
/// (`Ledger::outside`): some kernels give back what they skip, others do not.
fn owner(addr: u64, halves: &[Half]) -> Result<Option<usize>, BadDescriptor> {
    let owner = halves.iter().position(|half| addr < half.end);
    let is_withdrawn = || halves.last().is_some_and(|last| addr == last.end);
    if owner.is_none() && !is_withdrawn() {
        return Err(BadDescriptor::outside(addr));
    }
    Ok(owner)
}

/// What the kernel wrote into the ring, or into its cursor, cannot be right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Cursor(#[from] BadCursor),
    #[error(transparent)]
    Address(#[from] BadDescriptor),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_back_to_its_half() {
        let halves = [100, 200, 300].map(|end| Half { end, back: Vec::new() });
        let owners = [99, 100, 250, 0, 199].map(|addr| owner(addr, &halves));
        assert_eq!(owners, [0, 1, 2, 0, 1].map(|half| Ok(Some(half))));
    }

    #[test]
    fn an_address_behind_the_last_half_is_refused() {
        let halves = [Half { end: 100, back: Vec::new() }];
        assert!(owner(101, &halves).is_err());
        // Nobody's, but not wrong: it stands for a frame that was withdrawn.
        assert_eq!(owner(100, &halves), Ok(None));
        assert!(owner(u64::MAX, &halves).is_err());
    }
}
