//! keepsweep against real kernels: the lab of `scripts/lab`, over AF_PACKET.
//!
//! Needs root. Without it these tests fail when CI is set and say so otherwise.

mod audit;
mod ends;
mod faults;
mod flows;
mod hostile;
mod matrix;
mod orphans;
mod paths;
mod scale;
mod support;
