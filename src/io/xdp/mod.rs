//! The AF_XDP path: frames written into memory shared with the driver, past the whole stack.

mod program;

pub use program::{Attached, Redirect, RedirectCounts, RedirectSpec, XdpMode};
