//! Hierarchical timer wheel with lazy expiry: entries are never cancelled; whoever polls one checks
//! its generation against the slot's.
//!
//! Eight levels of 64 buckets; a bucket of level `n` spans 64^n ticks of 131 µs, so the levels reach
//! 8 ms, 0.5 s, 34 s, 37 min, 39 h, 104 days, … to the end of the time line. An entry lies in the
//! level of the highest 6-bit digit in which its tick differs from the current one. Therefore all
//! entries of a level are due before any of a higher level, time may jump over any number of empty
//! buckets at once, and an entry moves at most seven times.
#![forbid(unsafe_code)]

use super::{Generation, Slot};
use crate::time::Instant;

/// 2^17 ns = 131 µs, well below the 500 ms that separate two probes of a flow.
const TICK_SHIFT: u32 = 17;
const DIGIT_BITS: u32 = 6;
const LEVELS: usize = 8;
const BUCKETS: usize = 1 << DIGIT_BITS;
const CHUNK_ENTRIES: usize = 31;
/// No chunk: the end of a list.
const NONE: u32 = u32::MAX;

/// A timer: which flow wanted to be looked at, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// When.
    pub deadline: Instant,
    /// The flow's slot.
    pub slot: Slot,
    /// The slot's generation when the timer was set.
    pub generation: Generation,
}

const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    /// The first tick that does not begin before the deadline.
    fn tick(&self) -> u64 {
        self.deadline.as_nanos().div_ceil(1 << TICK_SHIFT)
    }
}

/// Timers, ordered by tick and within a tick by when they were scheduled.
#[derive(Debug)]
pub struct Wheel {
    /// Every entry of an earlier tick has been moved to `due`.
    tick: u64,
    levels: [Level; LEVELS],
    /// Entries whose tick has come; those before `due_polled` in the first chunk are handed out.
    due: List,
    due_polled: usize,
    chunks: Chunks,
    len: usize,
}

#[derive(Debug)]
struct Level {
    /// Bit `n` is set while bucket `n` holds entries.
    occupied: u64,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    list: List,
    /// The tick of the earliest entry; exact, since nothing is ever cancelled.
    earliest: u64,
}

/// A queue of entries in chunks.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
}

const EMPTY: List = List { head: NONE, tail: NONE };

/// The chunks of all lists: memory follows the number of entries, not the sum over the buckets of
/// the most that each has held.
#[derive(Debug)]
struct Chunks {
    pool: Vec<Chunk>,
    free: u32,
}

#[derive(Debug)]
struct Chunk {
    entries: [Entry; CHUNK_ENTRIES],
    len: u32,
    next: u32,
}

impl Chunks {
    fn push(&mut self, list: &mut List, entry: Entry) {
        if list.tail == NONE || self.pool[list.tail as usize].len as usize == CHUNK_ENTRIES {
            let fresh = self.take(entry);
            match list.tail {
                NONE => list.head = fresh,
                tail => self.pool[tail as usize].next = fresh,
            }
            list.tail = fresh;
        }
        let tail = &mut self.pool[list.tail as usize];
        tail.entries[tail.len as usize] = entry;
        tail.len += 1;
    }

    fn take(&mut self, filler: Entry) -> u32 {
        if self.free == NONE {
            self.pool.push(Chunk { entries: [filler; CHUNK_ENTRIES], len: 0, next: NONE });
            return (self.pool.len() - 1) as u32;
        }
        let number = self.free;
        let chunk = &mut self.pool[number as usize];
        self.free = chunk.next;
        chunk.len = 0;
        chunk.next = NONE;
        number
    }

    /// Frees the chunk and returns the one behind it.
    fn release(&mut self, number: u32) -> u32 {
        let chunk = &mut self.pool[number as usize];
        let next = chunk.next;
        chunk.next = self.free;
        self.free = number;
        next
    }
}

impl Wheel {
    /// Builds an empty wheel at `start`.
    pub fn new(start: Instant) -> Self {
        let bucket = Bucket { list: EMPTY, earliest: u64::MAX };
        Wheel {
            tick: start.as_nanos() >> TICK_SHIFT,
            levels: std::array::from_fn(|_| Level { occupied: 0, buckets: [bucket; BUCKETS] }),
            due: EMPTY,
            due_polled: 0,
            chunks: Chunks { pool: Vec::new(), free: NONE },
            len: 0,
        }
    }

    /// Returns the number of entries not yet polled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether every entry has been polled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a timer; one whose deadline has passed is due at once.
    ///
    /// A deadline of [`Instant::FAR_FUTURE`] never comes.
    pub fn schedule(&mut self, deadline: Instant, slot: Slot, generation: Generation) {
        self.len += 1;
        self.place(Entry { deadline, slot, generation });
    }

    fn place(&mut self, entry: Entry) {
        let tick = entry.tick();
        if tick <= self.tick {
            self.chunks.push(&mut self.due, entry);
            return;
        }
        let level = ((tick ^ self.tick).ilog2() / DIGIT_BITS) as usize;
        let digit = digit(tick, level);
        let level = &mut self.levels[level];
        let bucket = &mut level.buckets[digit];
        level.occupied |= 1 << digit;
        bucket.earliest = bucket.earliest.min(tick);
        self.chunks.push(&mut bucket.list, entry);
    }

    /// Returns the next entry whose deadline is at or before `now`, at most one tick (131 µs) late,
    /// or `None` when there is none left.
    ///
    /// Entries come in the order of their ticks, those of one tick in the order in which they were
    /// scheduled. A `now` before an earlier one counts as that one.
    pub fn poll(&mut self, now: Instant) -> Option<Entry> {
        let now = now.as_nanos() >> TICK_SHIFT;
        loop {
            if self.due.head != NONE {
                return Some(self.pop_due());
            }
            match self.next_bucket() {
                Some((level, digit, start)) if start <= now => self.open(level, digit, start),
                // Up to the next bucket there is nothing, so every entry keeps its place.
                _ => {
                    self.tick = self.tick.max(now);
                    return None;
                }
            }
        }
    }

    /// Returns the instant at which `poll` will have an entry again: never too late, and early only
    /// by what is scheduled meanwhile. `None` while the wheel is empty.
    pub fn next_wakeup(&self) -> Option<Instant> {
        let tick = if self.due.head != NONE {
            self.tick
        } else {
            let (level, digit, _) = self.next_bucket()?;
            self.levels[level].buckets[digit].earliest
        };
        let nanos = u64::try_from(u128::from(tick) << TICK_SHIFT).unwrap_or(u64::MAX);
        Some(Instant::from_nanos(nanos))
    }

    /// Finds the first occupied bucket: its level, its digit and the tick at which it begins.
    fn next_bucket(&self) -> Option<(usize, usize, u64)> {
        let level = self.levels.iter().position(|level| level.occupied != 0)?;
        let digit = self.levels[level].occupied.trailing_zeros() as usize;
        let shift = DIGIT_BITS * level as u32;
        let above = self.tick >> shift >> DIGIT_BITS << DIGIT_BITS;
        Some((level, digit, (above | digit as u64) << shift))
    }

    /// Advances to the tick at which a bucket begins and deals out its entries.
    fn open(&mut self, level: usize, digit: usize, start: u64) {
        self.tick = start;
        let level_at = &mut self.levels[level];
        level_at.occupied &= !(1 << digit);
        let bucket = &mut level_at.buckets[digit];
        let list = std::mem::replace(&mut bucket.list, EMPTY);
        bucket.earliest = u64::MAX;
        if level == 0 {
            // All of one tick: `due` was empty, or this bucket would not have been opened.
            self.due = list;
            return;
        }
        // Each chunk is freed as soon as it is read, so dealing out needs no second copy.
        let mut number = list.head;
        while number != NONE {
            for at in 0..self.chunks.pool[number as usize].len as usize {
                let entry = self.chunks.pool[number as usize].entries[at];
                self.place(entry);
            }
            number = self.chunks.release(number);
        }
    }

    fn pop_due(&mut self) -> Entry {
        let head = &self.chunks.pool[self.due.head as usize];
        let entry = head.entries[self.due_polled];
        self.due_polled += 1;
        self.len -= 1;
        if self.due_polled == head.len as usize {
            self.due_polled = 0;
            self.due.head = self.chunks.release(self.due.head);
            if self.due.head == NONE {
                self.due = EMPTY;
            }
        }
        entry
    }
}

fn digit(tick: u64, level: usize) -> usize {
    (tick >> (DIGIT_BITS * level as u32)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;
    use std::time::Duration;

    const TICK: Duration = Duration::from_nanos(1 << TICK_SHIFT);

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn slots(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| wheel.poll(now)).map(|entry| entry.slot.0).collect()
    }

    #[test]
    fn an_entry_comes_at_its_deadline_and_not_before() {
        // One deadline in each level's reach, and some on the very edges.
        let start = at(987_654_321_000);
        for exponent in 0..55 {
            for offset in [0, 1, 77] {
                let deadline = start + Duration::from_nanos((1 << exponent) + offset);
                let mut wheel = Wheel::new(start);
                wheel.schedule(deadline, Slot(7), Generation(3));
                assert_eq!(wheel.poll(start), None);
                assert_eq!(wheel.poll(deadline - Duration::from_nanos(1)), None);
                let entry = wheel.poll(deadline + TICK).unwrap();
                assert_eq!(entry, Entry { deadline, slot: Slot(7), generation: Generation(3) });
                assert!(wheel.is_empty() && wheel.poll(Instant::FAR_FUTURE).is_none());
            }
        }
    }

    #[test]
    fn waking_at_next_wakeup_finds_an_entry_every_time() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut wheel = Wheel::new(at(12_345));
        assert_eq!(wheel.next_wakeup(), None);
        for n in 0..2_000 {
            let magnitude = rng.u32(10..58);
            wheel.schedule(at(rng.u64(..1 << magnitude)), Slot(n), Generation(0));
        }
        let mut left = 2_000;
        while let Some(wakeup) = wheel.next_wakeup() {
            let polled = slots(&mut wheel, wakeup).len();
            assert_ne!(polled, 0, "woken for nothing at {wakeup:?}");
            left -= polled;
        }
        assert_eq!(left, 0);
    }

    #[test]
    fn a_past_deadline_is_due_at_once() {
        let mut wheel = Wheel::new(at(1_000_000_000));
        wheel.schedule(at(5), Slot(1), Generation(0));
        assert!(wheel.next_wakeup().unwrap() <= at(1_000_000_000));
        assert_eq!(slots(&mut wheel, at(1_000_000_000)), [1]);
    }

    #[test]
    fn entries_of_one_tick_come_in_the_order_of_scheduling() {
        let mut wheel = Wheel::new(at(0));
        let deadline = at(3_600_000_000_000);
        // Set from afar, from nearer, and when the deadline is almost there: three levels.
        let mut expected = Vec::new();
        for (n, now) in
            [0, 3_500_000_000_000, 3_599_900_000_000, 3_599_999_000_000].into_iter().enumerate()
        {
            assert_eq!(wheel.poll(at(now)), None);
            for k in 0..100 {
                wheel.schedule(deadline, Slot(n as u32 * 100 + k), Generation(0));
                expected.push(n as u32 * 100 + k);
            }
        }
        assert_eq!(slots(&mut wheel, deadline + TICK), expected);
    }

    #[test]
    fn far_future_never_comes() {
        let mut wheel = Wheel::new(at(0));
        wheel.schedule(Instant::FAR_FUTURE, Slot(1), Generation(0));
        assert_eq!(wheel.next_wakeup(), Some(Instant::FAR_FUTURE));
        assert_eq!(wheel.poll(at(u64::MAX - 1)), None);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn time_does_not_run_backwards() {
        let mut wheel = Wheel::new(at(0));
        assert_eq!(wheel.poll(at(10_000_000_000)), None);
        wheel.schedule(at(20_000_000_000), Slot(1), Generation(0));
        assert_eq!(wheel.poll(at(1)), None);
        wheel.schedule(at(15_000_000_000), Slot(2), Generation(0));
        assert_eq!(slots(&mut wheel, at(20_000_000_000) + TICK), [2, 1]);
    }

    #[test]
    fn memory_follows_the_number_of_entries() {
        let mut wheel = Wheel::new(at(0));
        // Each flow sets its next timer when the last one fires, for minutes: every bucket of the
        // lower levels is used again and again.
        for n in 0..10_000 {
            wheel.schedule(at(u64::from(n) * 100_000), Slot(n), Generation(0));
        }
        for second in 1..=300 {
            let now = at(second * 1_000_000_000);
            let mut polled = 0;
            while let Some(entry) = wheel.poll(now) {
                wheel.schedule(
                    entry.deadline + Duration::from_secs(1),
                    entry.slot,
                    entry.generation,
                );
                polled += 1;
                assert!(polled <= 20_000, "an entry comes twice");
            }
        }
        assert_eq!(wheel.len(), 10_000);
        let bound = 2 * 10_000 / CHUNK_ENTRIES + LEVELS * BUCKETS;
        assert!(wheel.chunks.pool.len() <= bound, "{} chunks", wheel.chunks.pool.len());
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Nanoseconds from now, possibly past.
        Schedule(i64),
        Advance(u64),
    }

    fn span() -> impl Strategy<Value = u64> {
        // Every magnitude from 1 ns to 13 days, and whole ticks, where off-by-one would show.
        (0..50u32, any::<u64>(), any::<bool>()).prop_map(|(bits, random, whole)| {
            let span = random & ((1 << bits) - 1);
            if whole { span >> TICK_SHIFT << TICK_SHIFT } else { span }
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => span().prop_map(|span| Step::Schedule(span as i64)),
            1 => span().prop_map(|span| Step::Schedule(-(span as i64))),
            2 => span().prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_heap(
            start in 0..1u64 << 60,
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut now = start;
            let mut wheel = Wheel::new(at(start));
            // Ordered by the tick at which an entry is due (an overdue one: the current tick), then
            // by when it was scheduled.
            let mut heap = BinaryHeap::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Schedule(span) => {
                        let deadline = now.saturating_add_signed(span);
                        wheel.schedule(at(deadline), Slot(n as u32), Generation(n as u32));
                        let tick = deadline.div_ceil(1 << TICK_SHIFT).max(now >> TICK_SHIFT);
                        heap.push(Reverse((tick, n as u32, deadline)));
                    }
                    Step::Advance(span) => {
                        now += span;
                        while let Some(Reverse((tick, n, deadline))) = heap.peek().copied() {
                            let wakeup = wheel.next_wakeup().unwrap().as_nanos();
                            prop_assert_eq!(wakeup >> TICK_SHIFT, tick);
                            if tick > now >> TICK_SHIFT {
                                break;
                            }
                            let slot = Slot(n);
                            let entry = Entry { deadline: at(deadline), slot, generation: Generation(n) };
                            prop_assert_eq!(wheel.poll(at(now)), Some(entry));
                            prop_assert!(deadline <= now);
                            heap.pop();
                        }
                        prop_assert_eq!(wheel.poll(at(now)), None);
                    }
                }
                prop_assert_eq!(wheel.len(), heap.len());
            }
        }
    }
}
