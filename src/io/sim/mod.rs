//! An in-memory network in simulated time: lossy links, a gateway, and peers that answer as Linux
//! does, for deterministic tests with up to a million of them.
//!
//! ```text
//! transmit ─frame→ Direction(out) ─segment→ faults → Connection / listener ─┐
//!                                   agenda: everything that is due later    │
//! poll_receive ←frame─ Direction(back) ←──────── segments, ICMP, ARP/ND ←───┘
//! ```
//!
//! Nothing here reads a clock: the test hands in the instant, and [`Network::next_arrival`] says to
//! which one to jump next. The same seed and the same calls give the same bytes.
#![forbid(unsafe_code)]

mod agenda;
mod config;
mod counters;
mod faults;
mod link;
mod network;
mod peer;
mod segment;
#[cfg(test)]
mod tests;

pub use config::{
    Behaviour, Burst, ConfigError, Event, Fault, Forgery, Impairment, NetworkConfig, PeerGroup,
    Phase,
};
pub use counters::{Connections, Counters};
pub use network::{Network, mac_of};
pub use peer::{Established, TcpState};
