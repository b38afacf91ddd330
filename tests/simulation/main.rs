//! The probing core against the simulated network: no kernel, no clock, the same bytes every time.

mod loss;
mod prefix;
mod scenarios;
mod support;
mod turmoil;
