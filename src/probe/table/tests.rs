use super::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn key(n: u32) -> FlowKey {
    FlowKey {
        local: SocketAddr::from((Ipv4Addr::new(10, 0, 0, (n % 3) as u8), 61000 + (n % 7) as u16)),
        peer: SocketAddr::from((Ipv4Addr::from_bits(0x0a01_0000 + n / 2), 80 + (n % 2) as u16)),
    }
}

fn key_v6(n: u32) -> FlowKey {
    let ip = |group: u128, n: u32| Ipv6Addr::from_bits(group << 112 | u128::from(n));
    FlowKey {
        local: SocketAddr::from((ip(0xfd00, n % 3), 61000 + (n % 7) as u16)),
        peer: SocketAddr::from((ip(0xfd01, n / 2), 80 + (n % 2) as u16)),
    }
}

/// A publication in which every field follows from `n` and `owner`, so that a mix betrays itself.
fn expect(owner: u32, n: u32) -> Expect {
    Expect {
        phase: [Phase::SynSent, Phase::Open, Phase::Closed][n as usize % 3],
        snd_una: SeqNumber(n),
        snd_nxt: SeqNumber(n.wrapping_mul(3)),
        rcv_nxt: SeqNumber(n ^ 0xffff_ffff),
        past: Past((n % 16) as u8),
        probe_ack: SeqNumber(owner),
        probe_outstanding: n & 8 != 0,
        given: n & 32 != 0,
    }
}

const HASH_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

fn table(flows: usize) -> Table {
    Table::with_capacity(flows, Family::V4, HASH_KEY)
}

fn index(table: &Table) -> (&Index, impl Fn(u32) -> u64) {
    let Flows::V4(store) = &table.flows else { panic!("an IPv4 table") };
    (&store.index, |n| store.index.hash(&pack_v4(&key(n)).expect("an IPv4 tuple")))
}

#[test]
fn a_flow_is_found_as_published_until_it_is_removed() {
    let table = table(4);
    assert_eq!(table.lookup(&key(1)), None);
    let first = table.insert(Slot(2), &key(1), &expect(1, 5)).unwrap();
    let view = View { slot: Slot(2), generation: first, expect: expect(1, 5) };
    assert_eq!(table.lookup(&key(1)), Some(view));
    assert_eq!(table.generation(Slot(2)), first);

    table.publish(Slot(2), &expect(1, 6));
    table.publish(Slot(2), &expect(1, 7));
    assert_eq!(table.lookup(&key(1)), Some(View { expect: expect(1, 7), ..view }));
    assert_eq!(table.generation(Slot(2)), first);

    table.remove(Slot(2));
    assert_eq!(table.lookup(&key(1)), None);
    let vacant = table.generation(Slot(2));
    assert_ne!(vacant, first);

    let second = table.insert(Slot(2), &key(1), &expect(1, 8)).unwrap();
    assert!(second != first && second != vacant);
}

#[test]
fn a_past_holds_what_the_peer_has_used_up() {
    let past = |used: u32| Past::between(SeqNumber(u32::MAX), SeqNumber(u32::MAX) + used).octets();
    for (used, len) in [
        (0, 1),
        (1, 1),
        (2, 2),
        (3, 4),
        (4, 4),
        (5, 8),
        (16_384, 16_384),
        (16_385, 65_535),
        (65_536, 65_535),
        (u32::MAX, 65_535),
    ] {
        assert_eq!(past(used), len, "{used}");
    }
    assert_eq!(Past::UNKNOWN.octets(), 65_535);
}

#[test]
fn every_field_of_a_publication_survives() {
    let table = table(1);
    table.insert(Slot(0), &key(0), &expect(0, 0)).unwrap();
    for n in 0..64 {
        let published = Expect { probe_ack: SeqNumber(u32::MAX - n), ..expect(n, n * 0x0404_0403) };
        table.publish(Slot(0), &published);
        assert_eq!(table.lookup(&key(0)).unwrap().expect, published);
    }
}

#[test]
fn the_same_tuple_cannot_be_in_two_slots() {
    let table = table(2);
    table.insert(Slot(0), &key(1), &expect(1, 1)).unwrap();
    assert_eq!(table.insert(Slot(1), &key(1), &expect(1, 2)), Err(InsertError::Duplicate));
    assert_eq!(table.lookup(&key(1)).unwrap().slot, Slot(0));
    table.remove(Slot(0));
    assert!(table.insert(Slot(1), &key(1), &expect(1, 2)).is_ok());
}

#[test]
fn inserting_into_a_live_slot_frees_its_former_tuple() {
    let table = table(2);
    let first = table.insert(Slot(0), &key(1), &expect(1, 1)).unwrap();
    let second = table.insert(Slot(0), &key(2), &expect(2, 1)).unwrap();
    assert_ne!(first, second);
    assert_eq!(table.lookup(&key(1)), None);
    assert_eq!(table.lookup(&key(2)).unwrap().generation, second);
    // The same tuple again is no duplicate of itself.
    assert!(table.insert(Slot(0), &key(2), &expect(2, 2)).is_ok());
}

#[test]
fn a_vacant_slot_is_neither_published_nor_removed() {
    let table = table(1);
    table.publish(Slot(0), &expect(1, 1));
    assert_eq!(table.lookup(&key(0)), None);
    let generation = table.generation(Slot(0));
    table.remove(Slot(0));
    assert_eq!(table.generation(Slot(0)), generation);
}

#[test]
fn families_do_not_mix() {
    let v4 = table(1);
    assert_eq!(v4.insert(Slot(0), &key_v6(1), &expect(1, 1)), Err(InsertError::Family));
    assert_eq!(v4.lookup(&key_v6(1)), None);
    let both = Table::with_capacity(1, Family::V6, HASH_KEY);
    for mixed in [
        FlowKey { local: key(1).local, peer: key_v6(1).peer },
        FlowKey { local: key_v6(1).local, peer: key(1).peer },
    ] {
        assert_eq!(both.insert(Slot(0), &mixed, &expect(1, 1)), Err(InsertError::Family));
        assert_eq!(both.lookup(&mixed), None);
    }
}

#[test]
fn the_family_is_the_smallest_with_room_for_all() {
    let (v4, v6) = (key(1).peer.ip(), key_v6(1).peer.ip());
    assert_eq!(Family::of([]), Family::V4);
    assert_eq!(Family::of([v4, v4]), Family::V4);
    assert_eq!(Family::of([v4, v6, v4]), Family::V6);
}

/// The same flow as a peer would write it that hopes IPv4-mapped addresses are taken for IPv4.
fn with_each(key: &FlowKey, change: impl Fn(Ipv4Addr) -> Ipv6Addr) -> FlowKey {
    let change = |end: SocketAddr| match end.ip() {
        IpAddr::V4(ip) => SocketAddr::new(change(ip).into(), end.port()),
        IpAddr::V6(_) => end,
    };
    FlowKey { local: change(key.local), peer: change(key.peer) }
}

#[test]
fn no_ipv6_packet_reaches_an_ipv4_flow() {
    let table = Table::with_capacity(8, Family::V6, HASH_KEY);
    table.insert(Slot(0), &key(5), &expect(5, 1)).unwrap();
    table.insert(Slot(1), &key_v6(5), &expect(6, 1)).unwrap();
    assert_eq!(table.lookup(&key(5)).unwrap().slot, Slot(0));
    assert_eq!(table.lookup(&key_v6(5)).unwrap().slot, Slot(1));

    let mapped = with_each(&key(5), |ip| ip.to_ipv6_mapped());
    let compatible = with_each(&key(5), |ip| Ipv6Addr::from_bits(ip.to_bits().into()));
    // What the words of a packed IPv4 tuple would be as IPv6 addresses.
    let [addresses, ..] = pack_v4(&key(5)).unwrap();
    let words = FlowKey {
        local: SocketAddr::from((
            Ipv6Addr::from_bits(u128::from(addresses) << 64),
            key(5).local.port(),
        )),
        peer: SocketAddr::from((Ipv6Addr::UNSPECIFIED, key(5).peer.port())),
    };
    for (slot, forged) in (2..).zip([mapped, compatible, words]) {
        assert_eq!(table.lookup(&forged), None, "{forged:?}");
        // It may be a flow of its own.
        table.insert(Slot(slot), &forged, &expect(7, 1)).unwrap();
        assert_eq!(table.lookup(&forged).unwrap().slot, Slot(slot));
        assert_eq!(table.lookup(&key(5)).unwrap().slot, Slot(0));
    }
}

#[test]
fn an_ipv6_table_tells_tuples_apart_by_every_part() {
    let table = Table::with_capacity(2_000, Family::V6, HASH_KEY);
    for n in 0..2_000 {
        table.insert(Slot(n), &key_v6(n), &expect(n, n)).unwrap();
    }
    for n in 0..2_000 {
        let view = table.lookup(&key_v6(n)).unwrap();
        assert_eq!((view.slot, view.expect), (Slot(n), expect(n, n)));
    }
    assert_eq!(table.lookup(&key_v6(2_000)), None);
}

#[test]
fn scope_and_flow_label_are_not_part_of_the_tuple() {
    let table = Table::with_capacity(1, Family::V6, HASH_KEY);
    table.insert(Slot(0), &key_v6(1), &expect(1, 1)).unwrap();
    let mut scoped = key_v6(1);
    if let SocketAddr::V6(peer) = &mut scoped.peer {
        peer.set_scope_id(3);
        peer.set_flowinfo(9);
    }
    assert!(table.lookup(&scoped).is_some());
}

#[test]
fn a_table_takes_as_many_flows_as_it_has_slots() {
    for flows in [1, 2, 3, 7, 8, 50, 1_000, 65_536] {
        let table = table(flows);
        assert_eq!(table.capacity(), flows);
        for n in 0..flows as u32 {
            assert!(table.insert(Slot(n), &key(n), &expect(n, n)).is_ok(), "{n} of {flows}");
        }
        assert!(
            (0..flows as u32).all(|n| table.lookup(&key(n)).is_some_and(|v| v.slot == Slot(n)))
        );
    }
}

#[test]
fn the_memory_of_a_table_is_known_beforehand() {
    assert_eq!(Table::memory_for(7, Family::V4), 7 * 64 + 2 * 64);
    assert_eq!(Table::memory_for(7, Family::V6), 7 * 128 + 2 * 64);
    assert_eq!(Table::memory_for(usize::MAX, Family::V6), usize::MAX);
    let table = table(100_000);
    let Flows::V4(store) = &table.flows else { panic!("an IPv4 table") };
    assert_eq!(
        size_of_val(&*store.slots) + Index::memory_for(100_000),
        Table::memory_for(100_000, Family::V4)
    );
}

/// Mean and maximum of the buckets that a search for an absent tuple visits.
fn miss_lengths(table: &Table) -> (f64, usize) {
    let (index, hash) = index(table);
    let lengths: Vec<usize> =
        (1 << 30..(1 << 30) + 50_000).map(|n| index.miss_length(hash(n))).collect();
    let sum: usize = lengths.iter().sum();
    (sum as f64 / lengths.len() as f64, lengths.into_iter().max().unwrap_or(0))
}

#[test]
fn searches_stay_short_after_millions_of_insertions_and_removals() {
    const FLOWS: u32 = 10_000;
    let table = table(FLOWS as usize);
    for n in 0..FLOWS {
        table.insert(Slot(n), &key(n), &expect(n, n)).unwrap();
    }
    let mut rng = fastrand::Rng::with_seed(1);
    let mut held: Vec<u32> = (0..FLOWS).collect();
    let mut next = FLOWS;
    let mut lengths = vec![miss_lengths(&table)];
    for churned in [1_000_000, 3_000_000] {
        while next < FLOWS + churned {
            let slot = rng.u32(..FLOWS);
            table.remove(Slot(slot));
            table.insert(Slot(slot), &key(next), &expect(next, next)).unwrap();
            held[slot as usize] = next;
            next += 1;
        }
        lengths.push(miss_lengths(&table));
    }
    // A table that lives long visits more than a fresh one, since an entry does not move back when
    // its home has room again, but soon no more than that: every flow here was replaced 100 times
    // by the first measurement and 300 times by the second.
    let [fresh, aged, old] = lengths[..] else { panic!("three measurements") };
    assert!(fresh.0 < 1.1 && aged.0 < 1.25 && old.0 < 1.25, "{lengths:?}");
    assert!((aged.0 - old.0).abs() < 0.03, "{lengths:?}");
    assert!(lengths.iter().all(|(_, longest)| *longest <= 16), "{lengths:?}");
    for (slot, n) in held.into_iter().enumerate() {
        assert_eq!(table.lookup(&key(n)).unwrap().slot, Slot(slot as u32));
        table.remove(Slot(slot as u32));
    }
    assert!(index(&table).0.is_pristine());
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert { slot: u32, key: u32, n: u32 },
    Publish { slot: u32, n: u32 },
    Remove { slot: u32 },
    Lookup { key: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    let (slot, key) = (0..24u32, 0..40u32);
    prop_oneof![
        4 => (slot.clone(), key.clone(), any::<u32>())
            .prop_map(|(slot, key, n)| Step::Insert { slot, key, n }),
        2 => (slot.clone(), any::<u32>()).prop_map(|(slot, n)| Step::Publish { slot, n }),
        2 => slot.prop_map(|slot| Step::Remove { slot }),
        3 => key.prop_map(|key| Step::Lookup { key }),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_hash_map(
        steps in prop::collection::vec(step(), 1..400),
        hash_key: [u64; 2],
        families in 0..3u8,
    ) {
        let either = |n: u32| if n.is_multiple_of(2) { key(n) } else { key_v6(n) };
        let (family, key): (_, fn(u32) -> FlowKey) = match families {
            0 => (Family::V4, key),
            1 => (Family::V6, key_v6),
            _ => (Family::V6, either),
        };
        let table = Table::with_capacity(24, family, hash_key);
        let mut slots: HashMap<u32, (u32, Generation, Expect)> = HashMap::new();
        let mut owner: HashMap<u32, u32> = HashMap::new();
        for step in steps {
            match step {
                Step::Insert { slot, key: k, n } => {
                    let before = table.generation(Slot(slot));
                    if let Some((former, ..)) = slots.remove(&slot) {
                        owner.remove(&former);
                    }
                    let inserted = table.insert(Slot(slot), &key(k), &expect(k, n));
                    match owner.entry(k) {
                        Entry::Occupied(_) => {
                            prop_assert_eq!(inserted, Err(InsertError::Duplicate));
                        }
                        Entry::Vacant(vacant) => {
                            let generation = inserted.unwrap();
                            prop_assert_ne!(generation, before);
                            slots.insert(slot, (k, generation, expect(k, n)));
                            vacant.insert(slot);
                        }
                    }
                }
                Step::Publish { slot, n } => {
                    if let Some((k, _, published)) = slots.get_mut(&slot) {
                        *published = expect(*k, n);
                    }
                    table.publish(Slot(slot), &expect(slots.get(&slot).map_or(0, |s| s.0), n));
                }
                Step::Remove { slot } => {
                    let before = table.generation(Slot(slot));
                    table.remove(Slot(slot));
                    let held = slots.remove(&slot);
                    if let Some((k, ..)) = held {
                        owner.remove(&k);
                    }
                    prop_assert_eq!(table.generation(Slot(slot)) != before, held.is_some());
                }
                Step::Lookup { key: k } => {
                    let known = owner.get(&k).map(|slot| {
                        let (_, generation, expect) = slots[slot];
                        View { slot: Slot(*slot), generation, expect }
                    });
                    prop_assert_eq!(table.lookup(&key(k)), known);
                }
            }
        }
        for k in 0..40 {
            prop_assert_eq!(
                table.lookup(&key(k)).map(|view| view.slot.0),
                owner.get(&k).copied()
            );
        }
    }
}

/// Two owners insert, publish and remove over one set of tuples while two readers look up.
#[test]
fn owners_and_readers_on_many_threads() {
    const SLOTS_EACH: u32 = 24;
    const TUPLES: u32 = 64;
    const RESIDENT: u32 = 1 << 20;
    const ROUNDS: u32 = 400_000;
    let table = table(2 * SLOTS_EACH as usize + 8);
    // Flows that stay throughout: they must be found by every single look-up.
    for n in 0..8 {
        let slot = Slot(2 * SLOTS_EACH + n);
        table.insert(slot, &key(RESIDENT + n), &expect(RESIDENT + n, 0)).unwrap();
    }
    let stop = AtomicBool::new(false);
    // How many of the tuple's insertions are in force: must never exceed 1.
    let holders: Vec<AtomicU64> = (0..TUPLES).map(|_| AtomicU64::new(0)).collect();
    let found = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (table, stop, found) = (&table, &stop, &found);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(100 + reader);
                let mut hits = 0;
                while !stop.load(Ordering::Relaxed) {
                    let n = rng.u32(..TUPLES);
                    if let Some(view) = table.lookup(&key(n)) {
                        hits += 1;
                        assert_eq!(view.expect, expect(n, view.expect.snd_una.0));
                        assert!(view.slot.0 < 2 * SLOTS_EACH);
                    }
                    let n = RESIDENT + rng.u32(..8);
                    assert!(table.lookup(&key(n)).is_some_and(|v| v.expect == expect(n, 0)));
                }
                found.fetch_add(hits, Ordering::Relaxed);
            });
        }
        let owners: Vec<_> = (0..2u32)
            .map(|owner| {
                let (table, holders) = (&table, &holders);
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(u64::from(owner));
                    let mut held = vec![None; SLOTS_EACH as usize];
                    for round in 0..ROUNDS {
                        let at = rng.usize(..held.len());
                        let slot = Slot(owner * SLOTS_EACH + at as u32);
                        match held[at] {
                            Some((n, generation)) if rng.bool() => {
                                assert_eq!(table.generation(slot), generation);
                                table.publish(slot, &expect(n, round));
                            }
                            Some((n, _)) => {
                                holders[n as usize].fetch_sub(1, Ordering::SeqCst);
                                table.remove(slot);
                                held[at] = None;
                            }
                            None => {
                                let n = rng.u32(..TUPLES);
                                match table.insert(slot, &key(n), &expect(n, round)) {
                                    Ok(generation) => {
                                        let others =
                                            holders[n as usize].fetch_add(1, Ordering::SeqCst);
                                        assert_eq!(others, 0, "tuple {n} in two slots");
                                        held[at] = Some((n, generation));
                                    }
                                    Err(error) => assert_eq!(error, InsertError::Duplicate),
                                }
                            }
                        }
                    }
                    for (at, flow) in held.into_iter().enumerate() {
                        if let Some((n, _)) = flow {
                            holders[n as usize].fetch_sub(1, Ordering::SeqCst);
                        }
                        table.remove(Slot(owner * SLOTS_EACH + at as u32));
                    }
                })
            })
            .collect();
        let ended: Vec<_> = owners.into_iter().map(|owner| owner.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(found.into_inner() > 0);
    assert!((0..TUPLES).all(|n| table.lookup(&key(n)).is_none()));
    for n in 0..8 {
        table.remove(Slot(2 * SLOTS_EACH + n));
    }
    assert!(index(&table).0.is_pristine());
}
