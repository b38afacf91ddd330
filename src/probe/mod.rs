//! What to send and what a reply means: the sans-IO core.
//!
//! Two halves share nothing but the flow table ([`table`]): the sender ([`sender`]) schedules and
//! crafts, the receiver ([`receiver`]) parses and matches. Neither reads a clock or a socket.

pub mod classify;
pub mod craft;
pub mod escalate;
pub mod evidence;
pub mod flow;
pub mod given;
pub mod health;
pub mod host;
pub mod kernel_hops;
pub mod matcher;
pub mod neighbour;
pub mod pace;
pub mod plan;
pub mod prefix;
pub mod receiver;
#[cfg(test)]
pub(crate) mod script;
pub mod sender;
pub mod table;
pub mod translations;
pub mod wheel;

/// Index of a flow's slot in the flow table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

/// How many times a slot has been given to a new flow: tells a late reply from a timely one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Generation(pub u32);

/// Index of a target in the order in which it was given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TargetId(pub u32);
