//! Every interleaving (up to three preemptions) of the races that the table must survive.

use super::*;
use loom::sync::Arc;
use loom::thread;
use std::net::Ipv4Addr;

const HASH_KEY: [u64; 2] = [1, 2];

fn key(n: u16) -> FlowKey {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    FlowKey { local: at(61000), peer: at(n) }
}

/// A publication whose every field follows from `n`, so that a mix betrays itself.
fn expect(n: u32) -> Expect {
    Expect {
        phase: if n & 1 == 0 { Phase::SynSent } else { Phase::Open },
        snd_una: SeqNumber(n),
        snd_nxt: SeqNumber(n),
        rcv_nxt: SeqNumber(n),
        past: Past((n & 15) as u8),
        probe_ack: SeqNumber(n),
        probe_outstanding: n & 2 != 0,
        given: n & 4 != 0,
    }
}

fn table(flows: usize) -> Arc<Table> {
    Arc::new(Table::with_capacity(flows, Family::V4, HASH_KEY))
}

/// Finds tuples with one home bucket, so that all but the first overflow into the next buckets.
fn crowded(table: &Table, count: usize) -> Vec<FlowKey> {
    let Flows::V4(store) = &table.flows else { panic!("an IPv4 table") };
    let home = |n: u16| {
        let hash = pack_v4(&key(n)).map_or(0, |packed| store.index.hash(&packed));
        ((hash >> 32) * (table.capacity() as u64 * 2)) >> 32
    };
    (1..).filter(|n| home(*n) == home(1)).take(count).map(key).collect()
}

/// A table of both families, one flow of each, and IPv4 written as IPv6 for a third.
fn of_both_families() -> (Arc<Table>, [FlowKey; 3]) {
    let v6 = |n: u16, ip: Ipv6Addr| FlowKey {
        local: SocketAddr::from((ip, 61000)),
        peer: SocketAddr::from((ip, n)),
    };
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let table = Arc::new(Table::with_capacity(2, Family::V6, HASH_KEY));
    (table, [key(1), v6(1, Ipv6Addr::LOCALHOST), v6(1, mapped)])
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A reply to a flow that ends while its slot goes to another is matched to the old flow under the
/// old generation, or not at all.
#[test]
fn loom_reply_races_reuse() {
    check(|| {
        let table = table(1);
        let old = table.insert(Slot(0), &key(1), &expect(1)).unwrap();
        let owner = {
            let table = table.clone();
            thread::spawn(move || {
                table.remove(Slot(0));
                table.insert(Slot(0), &key(2), &expect(2)).unwrap()
            })
        };
        if let Some(view) = table.lookup(&key(1)) {
            assert_eq!((view.generation, view.expect), (old, expect(1)));
        }
        let late = table.lookup(&key(2));
        let new = owner.join().unwrap();
        assert_ne!(new, old);
        if let Some(view) = late {
            assert_eq!((view.generation, view.expect), (new, expect(2)));
        }
        assert_eq!(table.lookup(&key(1)), None);
        assert_eq!(table.generation(Slot(0)), new);
    });
}

/// The same tuple in the same slot again: what is read is all of the old flow or all of the new.
#[test]
fn loom_reply_races_reuse_by_the_same_tuple() {
    check(|| {
        let table = table(1);
        let old = table.insert(Slot(0), &key(1), &expect(1)).unwrap();
        let owner = {
            let table = table.clone();
            thread::spawn(move || table.insert(Slot(0), &key(1), &expect(2)).unwrap())
        };
        let seen = table.lookup(&key(1));
        let new = owner.join().unwrap();
        if let Some(view) = seen {
            assert!(
                (view.generation, view.expect) == (old, expect(1))
                    || (view.generation, view.expect) == (new, expect(2))
            );
        }
    });
}

/// A reader that came to a slot by mistake (a collision of tags) while it changes hands takes
/// neither the old generation for the new tuple nor a mix.
#[test]
fn loom_reply_races_reuse_of_a_slot() {
    check(|| {
        let slot = Arc::new(FlowSlot::<2>::vacant());
        slot.open(&[1, 1], &expect(1));
        let owner = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.vacate();
                slot.open(&[1, 2], &expect(2))
            })
        };
        let seen = slot.read(&[1, 2]);
        let new = owner.join().unwrap();
        assert!(seen.is_none_or(|seen| seen == (new, expect(2))));
        assert_eq!(slot.read(&[1, 2]), Some((new, expect(2))));
    });
}

/// A publication is seen whole or not at all, and a flow that stays is never missed.
#[test]
fn loom_reply_races_publish() {
    check(|| {
        let table = table(1);
        let generation = table.insert(Slot(0), &key(1), &expect(1)).unwrap();
        let owner = {
            let table = table.clone();
            thread::spawn(move || {
                for n in 2..=4 {
                    table.publish(Slot(0), &expect(n));
                }
            })
        };
        let first = table.lookup(&key(1)).unwrap();
        let second = table.lookup(&key(1)).unwrap();
        for view in [first, second] {
            assert_eq!(view.generation, generation);
            assert_eq!(view.expect, expect(view.expect.snd_una.0));
        }
        assert!(first.expect.snd_una.0 <= second.expect.snd_una.0);
        owner.join().unwrap();
        assert_eq!(table.lookup(&key(1)).unwrap().expect, expect(4));
    });
}

/// A flow that overflows from its home is seen whole or not yet; the flow it passes is always seen.
#[test]
fn loom_insert_races_lookup() {
    check(|| {
        let table = table(2);
        let keys = crowded(&table, 2);
        table.insert(Slot(0), &keys[0], &expect(1)).unwrap();
        let owner = {
            let (table, key) = (table.clone(), keys[1]);
            thread::spawn(move || table.insert(Slot(1), &key, &expect(2)).unwrap())
        };
        let early = table.lookup(&keys[1]);
        assert_eq!(table.lookup(&keys[0]).unwrap().expect, expect(1));
        let later = table.lookup(&keys[1]);
        let generation = owner.join().unwrap();
        let whole = View { slot: Slot(1), generation, expect: expect(2) };
        assert!(early.is_none_or(|view| view == whole));
        assert!(later.is_none_or(|view| view == whole));
        assert!(early.is_none() || later.is_some());
        assert_eq!(table.lookup(&keys[1]), Some(whole));
    });
}

/// While flows of the same home go, and others take their cells, a flow beyond them is never missed.
#[test]
fn loom_remove_races_lookup() {
    check(|| {
        let table = table(3);
        let keys = crowded(&table, 3);
        for n in 0..3 {
            table.insert(Slot(n), &keys[n as usize], &expect(n)).unwrap();
        }
        let owner = {
            let (table, key) = (table.clone(), keys[0]);
            thread::spawn(move || {
                table.remove(Slot(0));
                table.remove(Slot(1));
                table.insert(Slot(1), &key, &expect(7)).unwrap()
            })
        };
        assert_eq!(table.lookup(&keys[2]).unwrap().expect, expect(2));
        let gone = table.lookup(&keys[1]);
        assert!(gone.is_none_or(|view| view.expect == expect(1)));
        assert!(gone.is_some() || table.lookup(&keys[1]).is_none());
        let generation = owner.join().unwrap();
        assert_eq!(table.lookup(&keys[1]), None);
        let back = View { slot: Slot(1), generation, expect: expect(7) };
        assert_eq!(table.lookup(&keys[0]), Some(back));
    });
}

/// A slot that goes from an IPv4 flow to an IPv6 one is read as either, never as a mix of both; and
/// what looks like the IPv4 flow in IPv6 finds neither.
#[test]
fn loom_reply_races_reuse_by_the_other_family() {
    check(|| {
        let (table, [v4, v6, mapped]) = of_both_families();
        let old = table.insert(Slot(0), &v4, &expect(1)).unwrap();
        let owner = {
            let table = table.clone();
            thread::spawn(move || table.insert(Slot(0), &v6, &expect(2)).unwrap())
        };
        if let Some(view) = table.lookup(&v4) {
            assert_eq!((view.generation, view.expect), (old, expect(1)));
        }
        assert_eq!(table.lookup(&mapped), None);
        let late = table.lookup(&v6);
        let new = owner.join().unwrap();
        if let Some(view) = late {
            assert_eq!((view.generation, view.expect), (new, expect(2)));
        }
        assert_eq!(table.lookup(&v4), None);
        assert!(table.lookup(&v6).is_some());
    });
}

/// Of two senders that insert one tuple exactly one succeeds.
#[test]
fn loom_two_inserters_of_one_tuple() {
    check(|| {
        let table = table(2);
        let other = {
            let table = table.clone();
            thread::spawn(move || table.insert(Slot(1), &key(1), &expect(2)).is_ok())
        };
        let mine = table.insert(Slot(0), &key(1), &expect(1)).is_ok();
        let theirs = other.join().unwrap();
        assert!(mine != theirs);
        let view = table.lookup(&key(1)).unwrap();
        assert_eq!(view.slot, if mine { Slot(0) } else { Slot(1) });
    });
}

/// Two senders that want one cell both find a place, and both flows are found.
#[test]
fn loom_two_inserters_of_one_home() {
    check(|| {
        let table = table(2);
        let keys = crowded(&table, 2);
        let other = {
            let (table, key) = (table.clone(), keys[1]);
            thread::spawn(move || table.insert(Slot(1), &key, &expect(2)).unwrap())
        };
        table.insert(Slot(0), &keys[0], &expect(1)).unwrap();
        assert_eq!(table.lookup(&keys[0]).unwrap().expect, expect(1));
        other.join().unwrap();
        assert_eq!(table.lookup(&keys[1]).unwrap().expect, expect(2));
        table.remove(Slot(0));
        assert_eq!(table.lookup(&keys[1]).unwrap().slot, Slot(1));
    });
}
