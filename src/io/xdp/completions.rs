//! The frames that the kernel gives back when they are sent, for all who send through one queue.

use super::rings::{BadCursor, Consumer, Ring};
use super::umem::{BadDescriptor, Free, TxLedger};
use std::fmt;
use std::ops::Range;
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
    /// Where its frames lie.
    frames: Range<u64>,
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
            ledgers.map(|ledger| Half { frames: ledger.range(), back: Vec::new() }).collect();
    }

    /// Appends the frames of half number `half` that are back, which `ledger` is of, to `free`.
    ///
    /// # Errors
    /// [`BadCursor`]; or, in [`BadDescriptor`], an address outside of all shares or of a frame that was
    /// not lent, the first of them: what came besides is where it belongs.
    pub fn take(
        &self,
        half: usize,
        ledger: &mut TxLedger,
        free: &mut Vec<Free>,
    ) -> Result<(), Error> {
        let mut returned = self.lock();
        let Returned { ring, consumer, halves } = &mut *returned;
        let mut bad = None;
        if let Some(ours) = halves.get_mut(half) {
            for addr in ours.back.drain(..) {
                match ledger.take_back(addr) {
                    Some(frame) => free.push(frame),
                    None => bad = bad.or(Some(BadDescriptor::not_lent(addr))),
                }
            }
        }
        let done = consumer.available(ring.producer())?;
        let entries = consumer.advance_by(done);
        if !ledger.take_back_in_order(entries.clone().map(|at| ring.read(at)), free) {
            free.reserve(done as usize);
            for at in entries {
                sort(ring.read(at), (half, halves), ledger, free, &mut bad);
            }
        }
        if done > 0 {
            consumer.release(ring.consumer());
        }
        bad.map_or(Ok(()), |bad| Err(bad.into()))
    }

    pub fn lock(&self) -> MutexGuard<'_, Returned> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the frame at `addr` into `free`, if it is of the share of `ledger`, or by for its half.
#[inline]
fn sort(
    addr: u64,
    (half, halves): (usize, &mut [Half]),
    ledger: &mut TxLedger,
    free: &mut Vec<Free>,
    bad: &mut Option<BadDescriptor>,
) {
    match ledger.take_back(addr) {
        Some(frame) => free.push(frame),
        None => put_by(addr, half, halves, bad),
    }
}

/// Puts the frame at `addr` by for its half, which is not number `half`: of that one it is not lent. Sets
/// `bad` unless that is set.
#[inline(never)]
fn put_by(addr: u64, half: usize, halves: &mut [Half], bad: &mut Option<BadDescriptor>) {
    let owner = match owner(addr, halves) {
        Ok(Some(owner)) if owner == half => Err(BadDescriptor::not_lent(addr)),
        owner => owner,
    };
    match owner {
        Ok(Some(other)) => halves[other].back.push(addr),
        Ok(None) => {}
        Err(error) => *bad = bad.or(Some(error)),
    }
}

/// Returns the number of the half that a frame belongs to; none for a frame that was withdrawn
/// (`Ledger::outside`): some kernels give back what they skip, others do not.
fn owner(addr: u64, halves: &[Half]) -> Result<Option<usize>, BadDescriptor> {
    let owner = halves.iter().position(|half| half.frames.contains(&addr));
    let is_withdrawn = || halves.last().is_some_and(|last| addr == last.frames.end);
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
    use super::super::umem::{FrameLayout, Umem};
    use super::*;

    fn half(frames: Range<u64>) -> Half {
        Half { frames, back: Vec::new() }
    }

    #[test]
    fn every_frame_comes_back_to_its_half() {
        let (_, mut rx, mut first) =
            Umem::map(FrameLayout::Chunks, 4, 32, "a test").unwrap().split();
        let mut free = first.issue();
        let (mut second, given) = first.split_off(16, &mut free).unwrap();
        let mut halves = [&first, &second].map(|ledger| half(ledger.range()));
        let mut given = given.into_iter();
        let (own, others) = (free.pop().unwrap(), given.next().unwrap());
        let (index, others_index) = (own.index(), others.index());
        let (own, others) = (first.lend_packet(own, 1).addr, second.lend_packet(others, 1).addr);
        free.clear();
        let mut bad = None;
        for addr in [others, own] {
            sort(addr, (0, &mut halves), &mut first, &mut free, &mut bad);
        }
        assert_eq!(free.iter().map(Free::index).collect::<Vec<_>>(), [index]);
        assert_eq!((halves[0].back.len(), &halves[1].back[..], bad), (0, &[others][..], None));
        assert_eq!(second.take_back(others).map(|frame| frame.index()), Some(others_index));

        // Twice; one that is received into; behind them all. The first of them is told.
        let received = rx.issue().pop().map(|frame| rx.lend(frame)).unwrap();
        for addr in [own, received, second.range().end + 1] {
            let mut bad = None;
            sort(addr, (0, &mut halves), &mut first, &mut free, &mut bad);
            assert!(bad.is_some(), "{addr}");
            let told = bad;
            sort(u64::MAX, (0, &mut halves), &mut first, &mut free, &mut bad);
            assert_eq!(bad, told);
        }
        assert_eq!((free.len(), halves[0].back.len(), halves[1].back.len()), (1, 0, 1));
    }

    #[test]
    fn an_address_outside_of_the_halves_is_refused() {
        let halves = [half(40..100)];
        for addr in [0, 39, 101, u64::MAX] {
            assert!(owner(addr, &halves).is_err(), "{addr}");
        }
        assert_eq!(owner(40, &halves), Ok(Some(0)));
        // Nobody's, but not wrong: it stands for a frame that was withdrawn.
        assert_eq!(owner(100, &halves), Ok(None));
    }
}
