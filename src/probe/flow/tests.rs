//! Flows in simulated time: send this, expect that, expect nothing.

mod close;
mod given;
mod handshake;
mod keepalive;
mod local;
mod network;
