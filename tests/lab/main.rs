//! keepsweep against real kernels: the lab of `scripts/lab`, over AF_PACKET and AF_XDP.
//!
//! Needs root. Without it these tests fail when CI is set and say so otherwise.

mod audit;
#[path = "../bpf/mod.rs"]
mod bpf;
mod ends;
mod faults;
mod flows;
mod hostile;
mod matrix;
mod orphans;
mod paths;
mod scale;
mod support;
mod xdp;
