//! Flows in simulated time: send this, expect that, expect nothing.

mod close;
mod given;
mod handshake;
mod host;
mod keepalive;
mod local;
mod network;
