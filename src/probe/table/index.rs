//! From the hash of a 4-tuple to its slot: open addressing by buckets of one cache line.
//!
//! An entry lives in its home bucket or, where that was full, in the first later bucket with a free
//! cell. Every bucket counts the entries that had to pass it (`passed`); a search ends at the first
//! bucket that nobody has passed. There are no tombstones and nothing ever moves:
//!
//! - **A present key is never missed.** An entry stays in its cell from insertion to removal. It adds
//!   one to the counter of each full bucket on its way *before* it takes its cell, and takes that one
//!   back *after* it has left the cell, so while it is there no counter between its home and its cell
//!   is zero. Other entries only add to and subtract from the same counters what they themselves
//!   added.
//! - **Searches stay short.** The counters are exact: they count entries that are there now, not
//!   entries that once were. After any number of insertions and removals an index is as good as
//!   its current load (at most a half) allows, and an empty one is all zeros again.
//! - **Nobody waits for a reader, and no reader for anybody.** Insertions for one home bucket exclude
//!   each other by a flag in that bucket, which makes two insertions of one key see each other.
//!   Searches and removals ignore it.

use super::sync::{AtomicU32, AtomicU64, Ordering, yield_now};
use crate::io::prefetch::prefetch;
use siphasher::sip::SipHasher13;

/// Cells of a bucket; one in a loom model, so that a few flows already overflow.
const CELLS: usize = if cfg!(loom) { 1 } else { 7 };

#[repr(C, align(64))]
struct Bucket {
    /// How many entries live in a later bucket because this one was full when they came by.
    passed: AtomicU32,
    /// 1 while a flow whose home this is is being inserted.
    inserting: AtomicU32,
    /// Tag (32 bits of the hash) and slot number plus one; 0 is an empty cell.
    cells: [AtomicU64; CELLS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

/// The index; its entries do not hold keys, so a search asks the slot.
pub(super) struct Index {
    buckets: Box<[Bucket]>,
    hasher: SipHasher13,
}

/// Excludes other insertions for one home bucket until it is dropped.
pub(super) struct HomeGuard<'a>(&'a Bucket);

impl Drop for HomeGuard<'_> {
    fn drop(&mut self) {
        // Release: what this insertion wrote is seen by the next one for the same home; pairs with
        // the Acquire in `lock_home`. loom: two_inserters.
        self.0.inserting.store(0, Ordering::Release);
    }
}

const fn buckets_for(flows: usize) -> usize {
    // Two cells a flow: load factor at most a half.
    let buckets = flows.saturating_mul(2).div_ceil(CELLS);
    if buckets == 0 { 1 } else { buckets }
}

const fn entry_of(hash: u64, slot: u32) -> u64 {
    // The home bucket comes from the upper half of the hash, the tag from the lower, so that the tag
    // still tells apart entries of one bucket.
    hash << 32 | (slot as u64 + 1)
}

impl Index {
    /// Builds an empty index for so many flows, hashed with a key that peers cannot know.
    pub(super) fn with_capacity(flows: usize, hash_key: [u64; 2]) -> Self {
        let buckets = (0..buckets_for(flows))
            .map(|_| Bucket {
                passed: AtomicU32::new(0),
                inserting: AtomicU32::new(0),
                cells: std::array::from_fn(|_| AtomicU64::new(0)),
            })
            .collect();
        Index { buckets, hasher: SipHasher13::new_with_keys(hash_key[0], hash_key[1]) }
    }

    /// Returns the octets that an index for so many flows takes.
    pub(super) const fn memory_for(flows: usize) -> usize {
        buckets_for(flows).saturating_mul(size_of::<Bucket>())
    }

    /// Hashes a packed key.
    pub(super) fn hash<const W: usize>(&self, key: &[u64; W]) -> u64 {
        let mut bytes = [0; 8 * 5];
        for (at, word) in bytes.chunks_exact_mut(8).zip(key) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        self.hasher.hash(&bytes[..8 * W])
    }

    fn home(&self, hash: u64) -> usize {
        // Maps 32 random bits evenly to any number of buckets, without a division.
        (((hash >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    /// Has the CPU fetch the hash's home bucket.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(bucket) = self.buckets.get(self.home(hash)) {
            prefetch(bucket);
        }
    }

    /// Returns the slot that a search for this hash most likely asks, or `u32::MAX`: one of its home
    /// bucket.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> u32 {
        let Some(bucket) = self.buckets.get(self.home(hash)) else { return u32::MAX };
        // No branch to guess wrong: all cells are in one cache line. Relaxed: it is only a guess.
        bucket.cells.iter().fold(u32::MAX, |guess, cell| {
            let entry = cell.load(Ordering::Relaxed);
            if (entry >> 32) as u32 == hash as u32 { (entry as u32).wrapping_sub(1) } else { guess }
        })
    }

    /// Visits buckets from the hash's home on, round to it again.
    fn buckets_from(&self, hash: u64) -> impl Iterator<Item = &Bucket> {
        let (before, from) = self.buckets.split_at(self.home(hash));
        from.iter().chain(before)
    }

    /// Returns the first answer that `ask` has for a slot entered under this hash.
    pub(super) fn find<R>(&self, hash: u64, mut ask: impl FnMut(u32) -> Option<R>) -> Option<R> {
        let tag = hash as u32;
        for bucket in self.buckets_from(hash) {
            for cell in &bucket.cells {
                // Acquire: pairs with the Release in `place`: the slot already holds the flow. (A slot
                // that did not would only be a miss: it answers for itself.)
                let entry = cell.load(Ordering::Acquire);
                if entry != 0
                    && (entry >> 32) as u32 == tag
                    && let Some(answer) = ask(entry as u32 - 1)
                {
                    return Some(answer);
                }
            }
            // Acquire: pairs with the Release in `take_back`: whoever sees the counter lowered sees
            // the flow gone. loom: remove_races_lookup.
            if bucket.passed.load(Ordering::Acquire) == 0 {
                return None;
            }
        }
        None
    }

    /// Keeps other insertions for this hash's home bucket out; searches and removals go on.
    pub(super) fn lock_home(&self, hash: u64) -> Option<HomeGuard<'_>> {
        let home = self.buckets_from(hash).next()?;
        // Two senders meet here once in some hundred thousand insertions: worth no queue. Acquire:
        // pairs with the Release in `HomeGuard::drop`.
        while home.inserting.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            yield_now();
        }
        Some(HomeGuard(home))
    }

    /// Enters `slot` under `hash` and says whether there was room.
    pub(super) fn place(&self, hash: u64, slot: u32) -> bool {
        let entry = entry_of(hash, slot);
        for (distance, bucket) in self.buckets_from(hash).enumerate() {
            for cell in &bucket.cells {
                // Release: who finds the entry finds the slot's words and the counters on the way;
                // pairs with the Acquire in `find`.
                if cell.load(Ordering::Relaxed) == 0
                    && cell.compare_exchange(0, entry, Ordering::Release, Ordering::Relaxed).is_ok()
                {
                    return true;
                }
            }
            if distance + 1 == self.buckets.len() {
                self.take_back(hash, distance);
                return false;
            }
            // Relaxed: published by the Release that takes the cell.
            bucket.passed.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    /// Removes `slot`, which was entered under `hash`.
    pub(super) fn clear(&self, hash: u64, slot: u32) {
        let entry = entry_of(hash, slot);
        for (distance, bucket) in self.buckets_from(hash).enumerate() {
            for cell in &bucket.cells {
                // Relaxed: only the slot's owner, the caller, writes and clears its entry.
                if cell.load(Ordering::Relaxed) == entry {
                    // Release: after the slot was vacated; pairs with the Acquire in `find`.
                    cell.store(0, Ordering::Release);
                    self.take_back(hash, distance);
                    return;
                }
            }
        }
    }

    /// Takes back what an entry added to the first `distance` buckets on its way.
    fn take_back(&self, hash: u64, distance: usize) {
        for bucket in self.buckets_from(hash).take(distance) {
            // Release: after the cell was cleared; pairs with the Acquire in `find`.
            bucket.passed.fetch_sub(1, Ordering::Release);
        }
    }

    /// Returns how many buckets a search for this hash visits if it finds nothing.
    #[cfg(all(test, not(loom)))]
    pub(super) fn miss_length(&self, hash: u64) -> usize {
        let passed = |b: &&Bucket| b.passed.load(Ordering::Relaxed) != 0;
        (self.buckets_from(hash).take_while(passed).count() + 1).min(self.buckets.len())
    }

    /// Says whether no trace of any entry is left.
    #[cfg(all(test, not(loom)))]
    pub(super) fn is_pristine(&self) -> bool {
        self.buckets.iter().all(|bucket| {
            bucket.passed.load(Ordering::Relaxed) == 0
                && bucket.inserting.load(Ordering::Relaxed) == 0
                && bucket.cells.iter().all(|cell| cell.load(Ordering::Relaxed) == 0)
        })
    }
}
