//! Frames in and out of the machine, or of a simulated network.

#[cfg(feature = "os")]
pub mod affinity;
#[cfg(feature = "os")]
pub mod bare;
#[cfg(feature = "os")]
mod batch;
#[cfg(feature = "os")]
pub mod bpf;
#[cfg(feature = "os")]
pub mod claim;
#[cfg(feature = "os")]
pub mod conntrack;
#[cfg(feature = "os")]
pub mod cpu;
#[cfg(feature = "os")]
mod errno;
#[cfg(feature = "os")]
pub mod facts;
#[cfg(feature = "os")]
pub mod guard;
#[cfg(feature = "os")]
pub mod host;
#[cfg(feature = "os")]
mod nfnetlink;
#[cfg(feature = "os")]
pub mod packet;
#[cfg(feature = "os")]
pub mod ports;
pub(crate) mod prefetch;
#[cfg(feature = "os")]
pub mod privilege;
#[cfg(feature = "os")]
pub mod raw;
#[cfg(feature = "os")]
pub mod replay;
#[cfg(feature = "os")]
pub mod route;
#[cfg(feature = "os")]
pub mod shield;
pub mod sim;
#[cfg(feature = "os")]
mod sockopt;
#[cfg(feature = "os")]
pub mod testbed;
#[cfg(feature = "os")]
pub mod watch;
#[cfg(feature = "os")]
pub mod xdp;

use crate::time::Instant;
use crate::wire::{Checksums, LinkType, MacAddr};
use serde::Serialize;
use std::time::Duration;

/// Largest frame, in octets. The longest that keepsweep sends is a tagged IPv6 segment with all TCP
/// options and one octet of data: 119. Not more, so that a batch of them stays in the nearest cache.
pub const FRAME_OCTETS: usize = 128;
/// Where a frame is written to.
pub type FrameBuf = [u8; FRAME_OCTETS];

/// Which path instance (egress interface) a frame leaves through: an index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PathId(pub u8);

/// What the core must know of a path to craft frames for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// Its index.
    pub id: PathId,
    /// The interface's name, for messages.
    pub interface: String,
    /// What frames start with.
    pub link: LinkType,
    /// The interface's own address (all zero where there is none).
    pub mac: MacAddr,
    /// Largest IP packet, in octets.
    pub mtu: u16,
}

impl PathInfo {
    /// Says whether it is the kernel that resolves next hops: packets leave from the IP header on,
    /// by an interface with a MAC address.
    pub fn has_kernel_neighbours(&self) -> bool {
        self.link == LinkType::Ip && self.mac != MacAddr::default()
    }
}

/// A frame as received.
#[derive(Clone, Copy, Debug)]
pub struct RxFrame<'a> {
    /// From the first octet of the link header on.
    pub bytes: &'a [u8],
    /// When it reached this machine (the kernel's stamp where there is one).
    pub at: Instant,
    /// How far its checksums can be relied on.
    pub checksums: Checksums,
}

/// What one call to [`Receive::receive`] has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Frames handed to the sink.
    pub frames: usize,
    /// Every frame that reached the machine before this instant has been handed over by now.
    pub complete_until: Instant,
}

/// A path's drop counters, cumulative since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxStats {
    /// Frames that the kernel queued for us or tried to.
    pub received: u64,
    /// Frames lost because our ring was full.
    pub dropped: u64,
}

/// What one queue of an interface has carried and lost, cumulative; lost frames by the kernel's own names
/// (`struct xdp_statistics` of linux/if_xdp.h). Field order is part of the format of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct QueueCounts {
    /// Which queue, from 0 on.
    pub queue: u32,
    /// Frames that left by it.
    pub sent: u64,
    /// Frames that came in by it and were handed over.
    pub received: u64,
    /// Frames lost because there was no free one to receive them into, or they fit into none.
    pub rx_dropped: u64,
    /// Frames lost because our rx ring was full.
    pub rx_ring_full: u64,
    /// How often the driver found no free frame (those lost so are among `rx_dropped`).
    pub fill_ring_empty: u64,
    /// Addresses in the fill ring that the kernel refused: must be 0.
    pub rx_invalid_descs: u64,
    /// Descriptors in the tx ring that the kernel refused: must be 0.
    pub tx_invalid_descs: u64,
}

impl QueueCounts {
    /// Adds what another end of the same queue has counted.
    pub fn add(&mut self, other: &QueueCounts) {
        for (own, more) in [
            (&mut self.sent, other.sent),
            (&mut self.received, other.received),
            (&mut self.rx_dropped, other.rx_dropped),
            (&mut self.rx_ring_full, other.rx_ring_full),
            (&mut self.fill_ring_empty, other.fill_ring_empty),
            (&mut self.rx_invalid_descs, other.rx_invalid_descs),
            (&mut self.tx_invalid_descs, other.tx_invalid_descs),
        ] {
            *own += more;
        }
    }
}

/// The sending end of a path.
///
/// `reserve` → write a frame into the buffer → `submit` → … → `flush`.
pub trait Transmit: Send {
    /// Returns the buffer for the next frame, or `None` while the batch is full: flush first.
    fn reserve(&mut self) -> Option<&mut FrameBuf>;

    /// Adds the first `len` octets of the buffer last reserved to the batch.
    fn submit(&mut self, len: usize);

    /// Hands the batch to the kernel and returns the number of frames it took: all of them, unless
    /// an error is returned. A transient shortage (ENOBUFS, EAGAIN) is waited out, but not for longer
    /// than the other paths can wait.
    ///
    /// # Errors
    /// [`Unsent`]: which frames left, which were refused, and why. What stands behind them is still
    /// in the batch: flush again.
    fn flush(&mut self) -> Result<usize, Unsent>;

    /// Returns what this end has counted of the queue that it sends through, if it has one to itself.
    ///
    /// # Errors
    /// The socket failed.
    fn queue_counts(&self) -> Result<Option<QueueCounts>, IoError> {
        Ok(None)
    }
}

/// A batch, or a part of it, that did not leave.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unsent {
    /// So many frames, from the first one on, did leave.
    pub sent: usize,
    /// So many behind them were refused: one for what concerns only that frame, else all.
    pub refused: usize,
    /// What was refused and why.
    #[source]
    pub error: IoError,
}

/// The receiving end of a path.
pub trait Receive: Send {
    /// Hands every frame there is to `sink`, waiting up to `wait` for the first one.
    ///
    /// # Errors
    /// The interface went away, or the socket failed.
    fn receive(
        &mut self,
        wait: Duration,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Received, IoError>;

    /// Returns the drop counters.
    ///
    /// # Errors
    /// The socket failed.
    fn stats(&mut self) -> Result<RxStats, IoError>;

    /// Returns what this end has counted of the queue that it hears, if it hears only one.
    ///
    /// # Errors
    /// The socket failed.
    fn queue_counts(&self) -> Result<Option<QueueCounts>, IoError> {
        Ok(None)
    }
}

/// An operation of the operating system that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} on {object}: {source}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
pub struct IoError {
    /// What was tried ("bind AF_PACKET socket").
    pub operation: &'static str,
    /// On what ("eth1").
    pub object: String,
    /// Why it failed.
    pub source: std::io::Error,
    /// What to do about it, or empty.
    pub remedy: &'static str,
}
