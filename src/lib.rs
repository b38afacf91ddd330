//! Third-party TCP keepalive prober.
//!
//! ```text
//!           ┌──────────────────── sender ─────────────────────┐
//! target ─Target→ schedule ─→ flow ─Due→ craft ─frame→ io.transmit ──────────▶ peers
//!           │        ▲       │  ▲  │                          │                 │
//!           │      wheel ◀───┘  │  └─Facts→ classify ─Verdict→ report            │
//!           └───────────────────┼──────────│──────────────────┘                 │
//!                             Reply     publish                                 │
//!                               │          ▼                                    │
//!                               │        table (lock-free)                      │
//!           ┌───────────────────│──────────│──────── receiver ┐                 │
//!           │                   └──────── match ◀── wire ◀─frame─ io.receive ◀──┘
//!           └─────────────────────────────────────────────────┘
//! ```
//!
//! The sender owns every flow and alone decides; it publishes in the flow table what a reply must
//! look like. The receiver believes only what fits, and hands it to the flow's owner. At full rate
//! there is a sender on every core; there is a receiver for every interface.
//!
//! The core ([`wire`], [`probe`]) is sans-IO: it is given frames and instants and never reads a
//! clock or touches a socket. [`io`] moves frames, for real or in a simulation; the engine drives
//! both, and the command line says what to do.

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "os")]
pub mod engine;
pub mod io;
pub mod probe;
pub mod report;
pub mod time;
pub mod wire;
