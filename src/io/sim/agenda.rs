//! What is due when: a priority queue for things that are mostly added in the order they fall due.
//!
//! A binary heap of a million entries misses the cache on every level. Here entries wait unsorted
//! in buckets of a millisecond; only the bucket that time has reached is sorted.

use crate::time::Instant;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// When something is due; ties in the order of addition.
pub(super) type Key = (Instant, u64);

struct Entry<T> {
    key: Key,
    item: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

struct Bucket<T> {
    first: Key,
    entries: Vec<Entry<T>>,
}

/// The queue.
pub(super) struct Agenda<T> {
    /// The bucket in hand, latest first.
    run: Vec<Entry<T>>,
    /// What was added to the bucket in hand, or to an earlier one, after it was sorted.
    late: BinaryHeap<Reverse<Entry<T>>>,
    /// Index of the bucket in hand; those below have been emptied.
    current: u64,
    ahead: BTreeMap<u64, Bucket<T>>,
    /// Emptied buckets, kept for their memory.
    spare: Vec<Vec<Entry<T>>>,
}

const BUCKET_BITS: u32 = 20;
const SPARE_BUCKETS: usize = 16;

impl<T> Agenda<T> {
    pub(super) fn new() -> Self {
        Agenda {
            run: Vec::new(),
            late: BinaryHeap::new(),
            current: 0,
            ahead: BTreeMap::new(),
            spare: Vec::new(),
        }
    }

    /// Adds an item; `order` must be larger than that of every item added before.
    pub(super) fn add(&mut self, at: Instant, order: u64, item: T) {
        let key = (at, order);
        let index = at.as_nanos() >> BUCKET_BITS;
        if index <= self.current {
            self.late.push(Reverse(Entry { key, item }));
            return;
        }
        let bucket = self.ahead.entry(index).or_insert_with(|| Bucket {
            first: key,
            entries: self.spare.pop().unwrap_or_default(),
        });
        bucket.first = bucket.first.min(key);
        bucket.entries.push(Entry { key, item });
    }

    /// Returns the key of the earliest item.
    pub(super) fn first(&self) -> Option<Key> {
        let run = self.run.last().map(|entry| entry.key);
        let late = self.late.peek().map(|Reverse(entry)| entry.key);
        match (run, late) {
            (Some(run), Some(late)) => Some(run.min(late)),
            (Some(key), None) | (None, Some(key)) => Some(key),
            (None, None) => self.ahead.first_key_value().map(|(_, bucket)| bucket.first),
        }
    }

    /// Returns the earliest item.
    pub(super) fn peek(&mut self) -> Option<(Key, &T)> {
        self.turn_to_next_bucket();
        let late = self.late.peek().map(|Reverse(entry)| entry);
        let entry = match (self.run.last(), late) {
            (Some(run), Some(late)) => run.min(late),
            (run, late) => run.or(late)?,
        };
        Some((entry.key, &entry.item))
    }

    /// Removes the earliest item.
    pub(super) fn pop(&mut self) -> Option<(Key, T)> {
        self.turn_to_next_bucket();
        let entry = match (self.run.last(), self.late.peek()) {
            (Some(run), Some(Reverse(late))) if late.key < run.key => self.late.pop()?.0,
            (Some(_), _) => self.run.pop()?,
            (None, _) => self.late.pop()?.0,
        };
        Some((entry.key, entry.item))
    }

    fn turn_to_next_bucket(&mut self) {
        if !self.run.is_empty() || !self.late.is_empty() {
            return;
        }
        let Some((index, mut bucket)) = self.ahead.pop_first() else { return };
        self.current = index;
        bucket.entries.reverse();
        bucket.entries.sort_by_key(|entry| Reverse(entry.key));
        let emptied = std::mem::replace(&mut self.run, bucket.entries);
        if self.spare.len() < SPARE_BUCKETS {
            self.spare.push(emptied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_leave_in_order_of_time_then_of_addition() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut agenda = Agenda::new();
        let mut model = BTreeMap::new();
        let mut now = 0;
        for order in 0..20_000u64 {
            // From the same instant to several buckets ahead, so that all three stores are used.
            let at = Instant::from_nanos(now + rng.u64(0..4) * rng.u64(0..1 << 21));
            agenda.add(at, order, order);
            model.insert((at, order), order);
            if rng.u8(..3) == 0 {
                for _ in 0..rng.u8(..6) {
                    assert_eq!(agenda.first(), model.first_key_value().map(|(key, _)| *key));
                    let expected = model.pop_first();
                    assert_eq!(agenda.peek().map(|(key, item)| (key, *item)), expected);
                    assert_eq!(agenda.pop(), expected);
                    now = expected.map_or(now, |((at, _), _)| at.as_nanos());
                }
            }
        }
        while let Some(expected) = model.pop_first() {
            assert_eq!(agenda.pop(), Some(expected));
        }
        assert_eq!(agenda.pop(), None);
        assert_eq!(agenda.first(), None);
    }

    #[test]
    fn a_far_item_does_not_turn_nearer_ones_into_late_ones() {
        let mut agenda = Agenda::new();
        agenda.add(Instant::from_nanos(3_600_000_000_000), 0, "far");
        assert_eq!(agenda.first(), Some((Instant::from_nanos(3_600_000_000_000), 0)));
        agenda.add(Instant::from_nanos(50_000_000), 1, "near");
        assert!(agenda.late.is_empty());
        assert_eq!(agenda.pop().map(|(_, item)| item), Some("near"));
        assert_eq!(agenda.pop().map(|(_, item)| item), Some("far"));
    }
}
