//! The flow table: the only state that the sender half and the receiver half share.
//!
//! A dense array of slots, allocated once, and an index from 4-tuple to slot. Every slot has exactly
//! one writer, the sender that owns the flow; receivers only look up and read, without ever waiting.
//! A receiver validates a reply against what the slot publishes and hands it to the owner together
//! with the generation it saw; the owner drops it if the generation is no longer current.
//!
//! All state is atomics, so there is no unsafe code. The loom models named beside the orderings are
//! in `loom_models`; `KEEPSWEEP_LOOM=1 cargo test --lib loom` runs them.
#![forbid(unsafe_code)]

mod index;
#[cfg(all(test, loom))]
mod loom_models;
mod slot;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;

use super::{Generation, Slot};
use crate::wire::SeqNumber;
use index::Index;
use slot::FlowSlot;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address families that a table has room for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// IPv4 alone, at half the size.
    V4,
    /// IPv6, and IPv4 beside it.
    V6,
}

impl Family {
    /// Returns the smallest family that has room for all of `addresses`.
    pub fn of(addresses: impl IntoIterator<Item = IpAddr>) -> Family {
        let any_v6 = addresses.into_iter().any(|address| address.is_ipv6());
        if any_v6 { Family::V6 } else { Family::V4 }
    }
}

/// A flow's 4-tuple. IPv6 flow labels and scope identifiers are not part of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
}

/// How far a flow has come, as a receiver must know it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Our SYN is out.
    SynSent,
    /// The peer's SYN-ACK has come, or the flow was given as established.
    Open,
    /// Ended by either side; what still arrives is late.
    Closed,
}

/// What a receiver needs to tell an acceptable reply from any other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expect {
    /// How far the flow has come.
    pub phase: Phase,
    /// SND.UNA (RFC 9293 §3.3.1).
    pub snd_una: SeqNumber,
    /// SND.NXT.
    pub snd_nxt: SeqNumber,
    /// RCV.NXT; meaningless in `SynSent`.
    pub rcv_nxt: SeqNumber,
    /// How far below RCV.NXT a segment of the peer's may start.
    pub past: Past,
    /// SEG.ACK of the last probe: what a RST that answers it carries as SEG.SEQ (RFC 9293 §3.5.2).
    pub probe_ack: SeqNumber,
    /// Whether a probe is unanswered.
    pub probe_outstanding: bool,
    /// Whether the flow was given: its windows may be scaled, and its numbers may have aged.
    pub given: bool,
}

/// How many sequence numbers the peer has used up, from its SYN to RCV.NXT: none of its segments,
/// however late, can start below them.
///
/// Rounded up to a power of two, so that it fits the slot; 65,535, the largest unscaled window, stands
/// for everything beyond.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past(u8);

impl Past {
    /// Of a flow whose beginning was not seen.
    pub const UNKNOWN: Past = Past(15);

    /// Returns the shortest past that holds the numbers from `irs` up to `rcv_nxt`.
    pub fn between(irs: SeqNumber, rcv_nxt: SeqNumber) -> Self {
        let used = rcv_nxt.0.wrapping_sub(irs.0);
        let power = used.checked_next_power_of_two().map_or(u32::BITS, u32::trailing_zeros);
        Past(power.min(15) as u8)
    }

    /// Returns its length in sequence numbers.
    pub const fn octets(self) -> u32 {
        if self.0 < 15 { 1 << self.0 } else { 65_535 }
    }
}

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// The flow's slot.
    pub slot: Slot,
    /// The slot's generation when it was read.
    pub generation: Generation,
    /// What the owner last published, all of one publication.
    pub expect: Expect,
}

/// A 4-tuple made ready for a look-up in one table: packed and hashed.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    hash: u64,
    /// As many words as the table's keys have, then zeros.
    words: [u64; 5],
}

/// Why a flow could not be entered; the slot is then vacant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InsertError {
    /// Another slot holds the same 4-tuple.
    #[error("4-tuple already in the flow table")]
    Duplicate,
    /// The index has no room (it has, for as many flows as there are slots).
    #[error("flow table full")]
    Full,
    /// The 4-tuple is of a family that the table has no room for, or of two.
    #[error("4-tuple not of an address family that the flow table holds")]
    Family,
}

/// The flow table; shared by reference between threads.
pub struct Table {
    flows: Flows,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

enum Flows {
    V4(Store<2>),
    V6(Store<5>),
}

impl Table {
    /// Allocates a table for `flows` flows of a family.
    ///
    /// `hash_key` must be random in every run that meets real peers: who knows it can choose
    /// addresses that crowd one part of the index.
    ///
    /// # Panics
    /// If `flows` is 2^32 − 1 or more; refuse by [`Table::memory_for`] long before.
    pub fn with_capacity(flows: usize, family: Family, hash_key: [u64; 2]) -> Self {
        assert!(flows < u32::MAX as usize, "a flow table of {flows} flows");
        let flows = match family {
            Family::V4 => Flows::V4(Store::with_capacity(flows, hash_key)),
            Family::V6 => Flows::V6(Store::with_capacity(flows, hash_key)),
        };
        Table { flows }
    }

    /// Returns the octets that a table for `flows` flows takes: about 82 (IPv4) or 146 (IPv6) each.
    pub const fn memory_for(flows: usize, family: Family) -> usize {
        let slot = match family {
            Family::V4 => size_of::<FlowSlot<2>>(),
            Family::V6 => size_of::<FlowSlot<5>>(),
        };
        flows.saturating_mul(slot).saturating_add(Index::memory_for(flows))
    }

    /// Returns the number of slots.
    pub fn capacity(&self) -> usize {
        match &self.flows {
            Flows::V4(store) => store.slots.len(),
            Flows::V6(store) => store.slots.len(),
        }
    }

    /// Finds the flow `key` and what its owner last published. Never waits; any thread may call it.
    ///
    /// A flow that was inserted before the call and not removed during it is always found.
    #[inline]
    pub fn lookup(&self, key: &FlowKey) -> Option<View> {
        match &self.flows {
            Flows::V4(store) => store.lookup(&pack_v4(key)?),
            Flows::V6(store) => store.lookup(&pack_any(key)?),
        }
    }

    /// Begins a look-up that goes on with [`fetch`](Self::fetch) and [`find`](Self::find); `None` if the
    /// table has no room for the 4-tuple's family.
    ///
    /// A look-up reads two places in memory, the second of which only the first can tell. Whoever has
    /// many to make takes each step for all of them, and has the CPU read those places side by side.
    #[inline]
    pub fn prepare(&self, key: &FlowKey) -> Option<Prepared> {
        match &self.flows {
            Flows::V4(store) => store.prepare(&pack_v4(key)?),
            Flows::V6(store) => store.prepare(&pack_any(key)?),
        }
    }

    /// Has the CPU read the slot that a look-up will come to.
    #[inline]
    pub fn fetch(&self, prepared: &Prepared) {
        match &self.flows {
            Flows::V4(store) => store.fetch(prepared),
            Flows::V6(store) => store.fetch(prepared),
        }
    }

    /// Ends a look-up that was prepared by this table: as [`lookup`](Self::lookup), at this moment.
    #[inline]
    pub fn find(&self, prepared: &Prepared) -> Option<View> {
        match &self.flows {
            Flows::V4(store) => store.find(prepared.hash, prepared.words.first_chunk()?),
            Flows::V6(store) => store.find(prepared.hash, prepared.words.first_chunk()?),
        }
    }

    /// Gives `slot` to the flow `key`, publishes `expect`, and returns the slot's new generation.
    ///
    /// Only the slot's owner may call it. A flow that the slot still holds is removed first, also
    /// when the insertion then fails.
    ///
    /// # Errors
    /// [`InsertError`]; the slot is then vacant.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn insert(
        &self,
        slot: Slot,
        key: &FlowKey,
        expect: &Expect,
    ) -> Result<Generation, InsertError> {
        self.remove(slot);
        match &self.flows {
            Flows::V4(store) => store.insert(slot, pack_v4(key), expect),
            Flows::V6(store) => store.insert(slot, pack_any(key), expect),
        }
    }

    /// Replaces what `slot` publishes; a vacant slot stays vacant. Only the slot's owner may call it.
    ///
    /// # Panics
    /// If there is no such slot.
    #[inline]
    pub fn publish(&self, slot: Slot, expect: &Expect) {
        match &self.flows {
            Flows::V4(store) => store.slot(slot).publish(expect),
            Flows::V6(store) => store.slot(slot).publish(expect),
        }
    }

    /// Takes `slot` from its flow, frees the 4-tuple and bumps the generation; does nothing to a
    /// vacant slot. Only the slot's owner may call it.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn remove(&self, slot: Slot) {
        match &self.flows {
            Flows::V4(store) => store.remove(slot),
            Flows::V6(store) => store.remove(slot),
        }
    }

    /// Returns the current generation of `slot`: a reply that was matched under another is stale.
    ///
    /// # Panics
    /// If there is no such slot.
    #[inline]
    pub fn generation(&self, slot: Slot) -> Generation {
        match &self.flows {
            Flows::V4(store) => store.slot(slot).generation(),
            Flows::V6(store) => store.slot(slot).generation(),
        }
    }
}

/// Slots and index; keys are packed into `W` words.
struct Store<const W: usize> {
    slots: Box<[FlowSlot<W>]>,
    index: Index,
}

impl<const W: usize> Store<W> {
    fn with_capacity(flows: usize, hash_key: [u64; 2]) -> Self {
        let slots = (0..flows).map(|_| FlowSlot::vacant()).collect();
        Store { slots, index: Index::with_capacity(flows, hash_key) }
    }

    fn slot(&self, slot: Slot) -> &FlowSlot<W> {
        &self.slots[slot.0 as usize]
    }

    fn lookup(&self, key: &[u64; W]) -> Option<View> {
        self.find(self.index.hash(key), key)
    }

    fn prepare(&self, key: &[u64; W]) -> Option<Prepared> {
        let hash = self.index.hash(key);
        self.index.prefetch(hash);
        let mut words = [0; 5];
        *words.first_chunk_mut()? = *key;
        Some(Prepared { hash, words })
    }

    fn fetch(&self, prepared: &Prepared) {
        if let Some(slot) = self.slots.get(self.index.guess(prepared.hash) as usize) {
            slot.prefetch();
        }
    }

    fn find(&self, hash: u64, key: &[u64; W]) -> Option<View> {
        self.index.find(hash, |number| {
            let slot = Slot(number);
            let (generation, expect) = self.slot(slot).read(key)?;
            Some(View { slot, generation, expect })
        })
    }

    fn insert(
        &self,
        slot: Slot,
        key: Option<[u64; W]>,
        expect: &Expect,
    ) -> Result<Generation, InsertError> {
        let key = key.ok_or(InsertError::Family)?;
        let state = self.slot(slot);
        let hash = self.index.hash(&key);
        let _home = self.index.lock_home(hash);
        if self.find(hash, &key).is_some() {
            return Err(InsertError::Duplicate);
        }
        // The slot before the index: whoever finds the entry finds the flow.
        let generation = state.open(&key, expect);
        if !self.index.place(hash, slot.0) {
            state.vacate();
            return Err(InsertError::Full);
        }
        Ok(generation)
    }

    fn remove(&self, slot: Slot) {
        let state = self.slot(slot);
        if let Some(key) = state.owned_key() {
            // The slot before the index: an entry that is still there leads to nothing.
            state.vacate();
            self.index.clear(self.index.hash(&key), slot.0);
        }
    }
}

fn pack_ports(key: &FlowKey) -> u64 {
    u64::from(key.local.port()) << 16 | u64::from(key.peer.port())
}

fn pack_v4(key: &FlowKey) -> Option<[u64; 2]> {
    match (key.local.ip(), key.peer.ip()) {
        (IpAddr::V4(local), IpAddr::V4(peer)) => {
            let addresses = u64::from(local.to_bits()) << 32 | u64::from(peer.to_bits());
            Some([addresses, pack_ports(key)])
        }
        _ => None,
    }
}

/// Marks a packed IPv4 tuple, beside the ports: whatever addresses a peer puts into an IPv6 packet,
/// such as IPv4-mapped ones (RFC 4291 §2.5.5.2), it cannot be taken for an IPv4 flow.
const IS_V4: u64 = 1 << 63;

fn pack_any(key: &FlowKey) -> Option<[u64; 5]> {
    let halves = |ip: Ipv6Addr| [(ip.to_bits() >> 64) as u64, ip.to_bits() as u64];
    match (key.local.ip(), key.peer.ip()) {
        (IpAddr::V6(local), IpAddr::V6(peer)) => {
            let ([a, b], [c, d]) = (halves(local), halves(peer));
            Some([a, b, c, d, pack_ports(key)])
        }
        _ => pack_v4(key).map(|[addresses, ports]| [addresses, 0, 0, 0, ports | IS_V4]),
    }
}
