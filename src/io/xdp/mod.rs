//! The AF_XDP path: frames written into memory shared with the driver, past the whole stack.
//!
//! One [`Queue`] for each queue of the interface that is used, with a sending half for one thread and
//! a receiving half for another, and one [`Redirect`], the XDP program that hands the answers to
//! them. An AF_PACKET socket beside them hears what the program lets through: ARP and Neighbour
//! Discovery, and the answers on queues without a socket.
//!
//! Our own layer on libc and not the `xdp` crate (0.8), which has one free list behind `&mut` for
//! both halves, uses what the kernel says in a descriptor unchecked, cannot share a UMEM between two
//! sockets, and overflows its cursors where overflow is checked.

mod bare;
mod channels;
mod completions;
mod link;
mod memory;
mod program;
mod rings;
mod rx;
mod socket;
mod tx;
mod umem;

pub use bare::BareRing;
pub use channels::{enable_gro, queues, queues_of};
pub use memory::lockable_per_queue;
pub use program::{
    Attached, Attachment, Redirect, RedirectCounts, RedirectSpec, Standing, XdpMode, rehearse,
};
pub use rx::XdpRx;
pub use socket::{Queue, QueueSpec};
pub use tx::XdpTx;
pub use umem::FrameLayout;

use crate::io::facts::xdp_features_of;

/// Queues beyond this many get no socket of ours: what comes in by them passes to the AF_PACKET
/// socket. Each takes a thread and [`Queue::usual_octets`].
pub const MAX_QUEUES: u32 = 16;

/// Whether the driver is to read and write frames in the UMEM itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ZeroCopy {
    /// Where the driver can.
    #[default]
    Auto,
    /// Or not at all.
    On,
    /// The kernel copies.
    Off,
}

impl ZeroCopy {
    /// Returns `Off` instead of `Auto` where the driver has no zero-copy: then frames may lie closer
    /// together.
    #[must_use]
    pub fn settle(self, ifindex: u32) -> Self {
        let cannot = || xdp_features_of(ifindex).is_some_and(|features| !features.is_zero_copy());
        if self == ZeroCopy::Auto && cannot() { ZeroCopy::Off } else { self }
    }

    /// Returns how frames that packets are received into lie.
    #[must_use]
    pub const fn layout(self) -> FrameLayout {
        match self {
            ZeroCopy::Auto | ZeroCopy::On => FrameLayout::Chunks,
            ZeroCopy::Off => FrameLayout::Packed,
        }
    }
}
