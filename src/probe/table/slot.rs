//! One flow's hot state: what the receiver needs to believe or reject a reply.
//!
//! A slot has one writer, its owner, and any number of readers. The four sequence numbers are kept
//! twice: the owner writes the copy that nobody is sent to, then names it in `control`. A reader
//! reads `control`, the key and the copy it names, and `control` again; if both reads agree, then
//! all it read belongs together.
//!
//! Why a reader never waits for a stalled owner: wherever the owner stops, `control` either names a
//! copy that is complete or says that the slot is vacant. A reader starts over only when the owner
//! has *finished* a `publish`, `open` or `vacate` in the few nanoseconds between its two reads, and
//! a flow does that a few times a second.

use super::sync::{AtomicU64, Ordering};
use super::{Expect, Past, Phase};
use crate::io::prefetch::prefetch;
use crate::probe::Generation;
use crate::wire::SeqNumber;

/// The state of one flow; `W` words of key: 2 for IPv4 alone, 5 for both families.
#[repr(C, align(64))]
pub(super) struct FlowSlot<const W: usize> {
    control: AtomicU64,
    numbers: [[AtomicU64; 2]; 2],
    key: [AtomicU64; W],
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<FlowSlot<2>>() == 64);
    assert!(size_of::<FlowSlot<5>>() == 128);
};

/// The decoded `control` word: generation (32 bits), version (24), status (8).
///
/// The version says which copy of the numbers is current (by its lowest bit) and makes two
/// publications of the same status differ. It comes round after 2^24 publications of one flow:
/// a reader would have to be off the processor for exactly that many.
#[derive(Clone, Copy)]
struct Control(u64);

const VERSION_MASK: u64 = 0xff_ffff;
/// Status bits 0 and 1: the phase; 0 is a vacant slot.
const PHASE_MASK: u64 = 0b11;
const PROBE_OUTSTANDING: u64 = 1 << 2;
const GIVEN: u64 = 1 << 3;
/// Status bits 4 to 7: the exponent of [`Past`].
const PAST_SHIFT: u32 = 4;
const PAST_MASK: u64 = 0b1111;

impl Control {
    fn generation(self) -> Generation {
        Generation((self.0 >> 32) as u32)
    }

    fn copy(self) -> usize {
        ((self.0 >> 8) & 1) as usize
    }

    fn is_vacant(self) -> bool {
        self.0 & PHASE_MASK == 0
    }

    fn next_version(self, status: u64) -> Control {
        let version = ((self.0 >> 8) + 1) & VERSION_MASK;
        Control(self.0 & !0xffff_ffff | version << 8 | status)
    }

    fn next_generation(self) -> Control {
        let generation = self.generation().0.wrapping_add(1);
        Control(u64::from(generation) << 32 | self.0 & 0xffff_ffff)
    }

    fn vacated(self) -> Control {
        Control(self.next_generation().0 & !0xff)
    }
}

fn status_of(expect: &Expect) -> u64 {
    let phase = match expect.phase {
        Phase::SynSent => 1,
        Phase::Open => 2,
        Phase::Closed => 3,
    };
    let mut status = phase | u64::from(expect.past.0) << PAST_SHIFT;
    if expect.probe_outstanding {
        status |= PROBE_OUTSTANDING;
    }
    if expect.given {
        status |= GIVEN;
    }
    status
}

fn expect_of(control: Control, numbers: [u64; 2]) -> Option<Expect> {
    let phase = match control.0 & PHASE_MASK {
        1 => Phase::SynSent,
        2 => Phase::Open,
        3 => Phase::Closed,
        _ => return None,
    };
    let high = |word: u64| SeqNumber((word >> 32) as u32);
    let low = |word: u64| SeqNumber(word as u32);
    Some(Expect {
        phase,
        snd_una: high(numbers[0]),
        snd_nxt: low(numbers[0]),
        rcv_nxt: high(numbers[1]),
        past: Past((control.0 >> PAST_SHIFT & PAST_MASK) as u8),
        probe_ack: low(numbers[1]),
        probe_outstanding: control.0 & PROBE_OUTSTANDING != 0,
        given: control.0 & GIVEN != 0,
    })
}

fn numbers_of(expect: &Expect) -> [u64; 2] {
    let pair = |high: SeqNumber, low: SeqNumber| u64::from(high.0) << 32 | u64::from(low.0);
    [pair(expect.snd_una, expect.snd_nxt), pair(expect.rcv_nxt, expect.probe_ack)]
}

impl<const W: usize> FlowSlot<W> {
    /// Builds a vacant slot of generation 0.
    pub(super) fn vacant() -> Self {
        FlowSlot {
            control: AtomicU64::new(0),
            numbers: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            key: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Has the CPU fetch what [`read`](Self::read) reads: one cache line, or two.
    #[inline]
    pub(super) fn prefetch(&self) {
        prefetch(&self.control);
        if size_of::<Self>() > 64 {
            prefetch(&self.key[W - 1]);
        }
    }

    /// Returns the current generation.
    pub(super) fn generation(&self) -> Generation {
        // Acquire: pairs with the Release stores of `control` in `open`, `publish` and `vacate`.
        Control(self.control.load(Ordering::Acquire)).generation()
    }

    /// Returns what the slot publishes if it holds the flow `key`.
    pub(super) fn read(&self, key: &[u64; W]) -> Option<(Generation, Expect)> {
        loop {
            // Acquire: pairs with the Release store of `control` in `open` and `publish`: key and
            // numbers are at least as new as this word. loom: insert_races_lookup.
            let control = Control(self.control.load(Ordering::Acquire));
            if control.is_vacant() {
                return None;
            }
            // Acquire on every word: pairs with the Release stores in `open` and `publish`. A word
            // newer than `control` brings with it the later value that `control` had before that
            // word was written, so the second read below cannot agree with the first.
            // loom: reply_races_reuse_of_a_slot, reply_races_publish.
            let same_flow =
                self.key.iter().zip(key).all(|(at, k)| at.load(Ordering::Acquire) == *k);
            let numbers = &self.numbers[control.copy()];
            let numbers = [numbers[0].load(Ordering::Acquire), numbers[1].load(Ordering::Acquire)];
            // Relaxed is enough: the Acquire loads above keep this one behind them.
            if self.control.load(Ordering::Relaxed) != control.0 {
                continue;
            }
            if !same_flow {
                return None;
            }
            return expect_of(control, numbers).map(|expect| (control.generation(), expect));
        }
    }

    /// Returns the key of the flow the slot holds. For its owner only.
    pub(super) fn owned_key(&self) -> Option<[u64; W]> {
        // Relaxed throughout: only the caller's own thread writes these words.
        if Control(self.control.load(Ordering::Relaxed)).is_vacant() {
            return None;
        }
        Some(std::array::from_fn(|i| self.key[i].load(Ordering::Relaxed)))
    }

    /// Gives a vacant slot to a new flow and returns its generation. For its owner only.
    pub(super) fn open(&self, key: &[u64; W], expect: &Expect) -> Generation {
        let vacant = Control(self.control.load(Ordering::Relaxed));
        let control = vacant.next_generation().next_version(status_of(expect));
        for (at, word) in self.key.iter().zip(key) {
            // Release: after the store of `control` in `vacate`; pairs with the Acquire in `read`.
            // loom: reply_races_reuse_of_a_slot.
            at.store(*word, Ordering::Release);
        }
        self.write(control, expect);
        control.generation()
    }

    /// Replaces what a live slot publishes; a vacant one stays vacant. For its owner only.
    pub(super) fn publish(&self, expect: &Expect) {
        let control = Control(self.control.load(Ordering::Relaxed));
        if !control.is_vacant() {
            self.write(control.next_version(status_of(expect)), expect);
        }
    }

    fn write(&self, control: Control, expect: &Expect) {
        for (at, word) in self.numbers[control.copy()].iter().zip(numbers_of(expect)) {
            // Release: after the last store of `control`, which sent readers to the other copy;
            // pairs with the Acquire in `read`. loom: reply_races_publish.
            at.store(word, Ordering::Release);
        }
        // Release: publishes key and numbers; pairs with the first Acquire in `read`.
        self.control.store(control.0, Ordering::Release);
    }

    /// Takes the slot from its flow and bumps the generation. For its owner only.
    pub(super) fn vacate(&self) {
        let control = Control(self.control.load(Ordering::Relaxed));
        // Release: a reader that meets any later word of this slot, or the index cell as it is
        // after the removal, meets this one too. loom: remove_races_lookup.
        self.control.store(control.vacated().0, Ordering::Release);
    }
}
