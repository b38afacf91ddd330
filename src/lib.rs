//! Third-party TCP keepalive prober.
//!
//! ```text
//! target ─Target→ schedule ─Due→ craft ─frame→ io.transmit ──────────▶ peers
//!                    ▲                                                   │
//!                  wheel ◀─── table (lock-free, the only shared state) ──┤
//!                                      ▲                                 ▼
//! report ◀─Verdict─ classify ◀─Evidence─ match ◀─Reply─ wire ◀─frame─ io.receive
//! ```
//!
//! The core ([`wire`], [`probe`]) is sans-IO: it is given frames and instants and never reads a
//! clock or touches a socket.

#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "os")]
pub mod engine;
pub mod io;
pub mod probe;
pub mod report;
pub mod time;
pub mod wire;
