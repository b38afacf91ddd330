//! The cursors without a kernel.

use super::*;

#[cfg(not(loom))]
mod plain {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A few entries before the counts wrap.
    const NEAR_WRAP: u32 = u32::MAX - 2;

    #[test]
    fn producer_wraps_at_2_pow_32() {
        let (producer, consumer) = (AtomicU32::new(NEAR_WRAP), AtomicU32::new(NEAR_WRAP));
        let mut ours = Producer::new(NEAR_WRAP, 8);
        assert_eq!(ours.free(&consumer), Ok(8));
        let cursors: Vec<_> = (0..8).map(|_| ours.advance()).collect();
        assert_eq!(cursors, [u32::MAX - 2, u32::MAX - 1, u32::MAX, 0, 1, 2, 3, 4]);
        assert_eq!(ours.free(&consumer), Ok(0));
        ours.publish(&producer);
        assert_eq!(producer.load(Ordering::Relaxed), 5);
        consumer.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(ours.free(&consumer), Ok(2));
        consumer.store(5, Ordering::Relaxed);
        assert_eq!(ours.free(&consumer), Ok(8));
    }

    #[test]
    fn consumer_wraps_at_2_pow_32() {
        let (producer, consumer) = (AtomicU32::new(NEAR_WRAP), AtomicU32::new(NEAR_WRAP));
        let mut ours = Consumer::new(NEAR_WRAP, 8);
        assert_eq!(ours.available(&producer), Ok(0));
        producer.store(5, Ordering::Relaxed);
        assert_eq!(ours.available(&producer), Ok(8));
        let cursors: Vec<_> = ours.advance_by(8).collect();
        assert_eq!(cursors, [u32::MAX - 2, u32::MAX - 1, u32::MAX, 0, 1, 2, 3, 4]);
        assert_eq!(ours.available(&producer), Ok(0));
        ours.release(&consumer);
        assert_eq!(consumer.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn cursors_outside_of_the_ring_are_refused() {
        let mut ours = Producer::new(10, 8);
        ours.advance();
        ours.advance();
        assert_eq!(ours.free(&AtomicU32::new(11)), Ok(7));
        // Past what was written, back behind what was read, and far away.
        for theirs in [13, 10, 0, u32::MAX] {
            assert!(ours.free(&AtomicU32::new(theirs)).is_err(), "{theirs}");
        }
        assert_eq!(ours.free(&AtomicU32::new(12)), Ok(8));

        let mut ours = Consumer::new(10, 8);
        assert_eq!(ours.available(&AtomicU32::new(14)), Ok(4));
        for theirs in [13, 9, 19, 0, u32::MAX] {
            assert!(ours.available(&AtomicU32::new(theirs)).is_err(), "{theirs}");
        }
        assert_eq!(ours.available(&AtomicU32::new(18)), Ok(8));
    }

    proptest! {
        /// Any interleaving of the two ends agrees with a plain queue.
        #[test]
        fn both_ends_agree_with_a_queue(
            start: u32,
            size in (0_u32..6).prop_map(|exponent| 1 << exponent),
            steps in proptest::collection::vec((any::<bool>(), 0_u32..40), 1..60),
        ) {
            let (producer, consumer) = (AtomicU32::new(start), AtomicU32::new(start));
            let (mut write, mut read) = (Producer::new(start, size), Consumer::new(start, size));
            let mut entries = vec![0_u32; size as usize];
            let mut model = VecDeque::new();
            let mut value = 0;
            for (is_write, want) in steps {
                if is_write {
                    let free = write.free(&consumer).unwrap();
                    prop_assert_eq!(free as usize, size as usize - model.len());
                    for _ in 0..want.min(free) {
                        entries[(write.advance() % size) as usize] = value;
                        model.push_back(value);
                        value += 1;
                    }
                    write.publish(&producer);
                } else {
                    let available = read.available(&producer).unwrap();
                    prop_assert_eq!(available as usize, model.len());
                    for at in read.advance_by(want.min(available)) {
                        let entry = entries[(at % size) as usize];
                        prop_assert_eq!(Some(entry), model.pop_front());
                    }
                    read.release(&consumer);
                }
            }
        }
    }
}

#[cfg(loom)]
mod models {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32 as LoomU32;
    use loom::thread;

    impl Cursor for LoomU32 {
        fn load_acquire(&self) -> u32 {
            self.load(Ordering::Acquire)
        }

        fn store_release(&self, value: u32) {
            self.store(value, Ordering::Release);
        }
    }

    const SIZE: u32 = 2;
    const START: u32 = u32::MAX;
    const ENTRIES: u32 = 3;

    struct Shared {
        producer: LoomU32,
        consumer: LoomU32,
        entries: [UnsafeCell<u32>; SIZE as usize],
    }

    // SAFETY: that no entry is accessed from both sides at once is what the model checks.
    unsafe impl Sync for Shared {}

    /// Every entry arrives once, in order and whole, over the wrap of the counts and of the ring; loom
    /// reports any access to an entry that the other end may touch at the same time. Up to two preemptions.
    #[test]
    fn loom_entries_survive() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shared = Arc::new(Shared {
                producer: LoomU32::new(START),
                consumer: LoomU32::new(START),
                entries: [UnsafeCell::new(u32::MAX), UnsafeCell::new(u32::MAX)],
            });
            let theirs = shared.clone();
            let writer = thread::spawn(move || {
                let mut ours = Producer::new(START, SIZE);
                let mut value = 0;
                while value < ENTRIES {
                    let free = ours.free(&theirs.consumer).unwrap();
                    if free == 0 {
                        thread::yield_now();
                    }
                    for _ in 0..free.min(ENTRIES - value) {
                        let at = (ours.advance() % SIZE) as usize;
                        // SAFETY: checked by loom.
                        theirs.entries[at].with_mut(|entry| unsafe { *entry = value });
                        value += 1;
                    }
                    ours.publish(&theirs.producer);
                }
            });
            let mut ours = Consumer::new(START, SIZE);
            let mut expected = 0;
            while expected < ENTRIES {
                let available = ours.available(&shared.producer).unwrap();
                if available == 0 {
                    thread::yield_now();
                }
                for at in ours.advance_by(available) {
                    let at = (at % SIZE) as usize;
                    // SAFETY: checked by loom.
                    let value = shared.entries[at].with(|entry| unsafe { *entry });
                    assert_eq!(value, expected);
                    expected += 1;
                }
                ours.release(&shared.consumer);
            }
            writer.join().unwrap();
        });
    }
}
