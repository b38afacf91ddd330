//! Third-party TCP keepalive prober.
//!
//! ```text
//! target ─Target→ schedule ─→ flow ──Due──→ craft ─frame→ io.transmit ──────▶ peers
//!                    ▲        ▲ │ │                                            │
//!                  wheel ◀────┼─┘ ├──Facts──→ classify ─Verdict→ report        │
//!                             │   └─publish─→ table (lock-free)                │
//!                             │                 ▼                              ▼
//!                             └─────Reply───── match ◀─Packet─ wire ◀─frame─ io.receive
//! ```
//!
//! Above the table is the sender: it owns every flow and alone decides, and publishes in the table
//! what a reply must look like. Below is the receiver: it believes only what fits, and hands it to
//! the flow's owner. At full rate there is a sender on every core; there is a receiver for every
//! interface.
//!
//! An audit asks about the connections that this host's own kernel has. It stands before the
//! targets, and behind the verdicts:
//!
//! ```text
//! kernel ─Connection→ io.host ─→ audit: filter, whose are they ─flows→ a sweep in each namespace
//!                                  └──────────── join ◀─Verdict───────────┘
//!                                                 └─Outcome→ report
//! ```
//!
//! Silence is doubted in between: hosts are asked by a sweep of fresh SYNs, and the connections of
//! those that are there once more ([`probe::escalate`]). Where this host translates its own
//! connections, conntrack says which ends their packets have on the wire, and the receivers map those
//! to the sockets' ([`probe::translations`]); no reset reaches a socket that is asked, by the guard on
//! the interface and the shield at the socket. Where there is no shield, whatever else may translate
//! keeps from asking ([`io::facts`]).
//!
//! The core ([`wire`], [`probe`]) is sans-IO: it is given frames and instants and never reads a
//! clock or touches a socket. [`io`] moves frames, for real or in a simulation; the engine drives
//! both, and the command line says what to do.

#[cfg(feature = "os")]
pub mod audit;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "os")]
pub mod engine;
#[cfg(all(feature = "cli", any(feature = "fuzz", all(test, not(loom)))))]
#[doc(hidden)]
pub mod fuzz;
pub mod io;
pub mod probe;
pub mod report;
pub mod time;
pub mod wire;
