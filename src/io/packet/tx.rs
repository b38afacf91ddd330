//! Sending: batches of frames by `sendmmsg`, past the queueing discipline.
#![forbid(unsafe_code)]

use super::Socket;
use crate::io::bare::Bare;
use crate::io::batch::{Batch, PATIENCE};
use crate::io::{FrameBuf, IoError, Transmit, Unsent};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::os::fd::AsFd;
use std::time::Duration;

/// Sends frames through one interface by AF_PACKET.
#[derive(Debug)]
pub struct PacketTx {
    socket: Socket,
    batch: Batch,
}

impl PacketTx {
    /// Opens the sending end on the interface `ifindex`, whose name is used in messages.
    ///
    /// # Errors
    /// No CAP_NET_RAW, or no such interface. That an interface is down shows on flushing.
    pub fn open(ifindex: u32, interface: &str) -> Result<Self, IoError> {
        let socket = Socket::open(ifindex, interface)?;
        let on: libc::c_int = 1;
        socket.set("set PACKET_QDISC_BYPASS", libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on)?;
        // The default (208 KiB) holds about 270 small frames, since each is charged with its skb.
        // Without CAP_NET_ADMIN the request is cut to net.core.wmem_max, which also works.
        let octets = 8 << 20;
        if setsockopt(&socket.fd, sockopt::SndBufForce, &octets).is_err() {
            setsockopt(&socket.fd, sockopt::SndBuf, &octets)
                .map_err(|errno| socket.error("set SO_SNDBUF", errno.into()))?;
        }
        socket.bind(0)?;
        Ok(Self { socket, batch: Batch::new() })
    }
}

impl PacketTx {
    /// Lends the socket to a loop that sends nothing but `frame`.
    pub fn bare(&mut self, frame: &[u8]) -> Bare<'_> {
        Bare::new(self.socket.fd.as_fd(), &self.socket.interface, frame, &[])
    }
}

impl Transmit for PacketTx {
    fn reserve(&mut self) -> Option<&mut FrameBuf> {
        self.batch.next_frame()
    }

    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`], or no buffer is left to have been reserved.
    ///
    /// [`FRAME_OCTETS`]: crate::io::FRAME_OCTETS
    fn submit(&mut self, len: usize) {
        self.batch.submit(len);
    }

    fn flush(&mut self) -> Result<usize, Unsent> {
        let (fd, all) = (self.socket.fd.as_fd(), self.batch.len());
        let (mut sent, mut result) = self.batch.send(fd, all, Duration::ZERO);
        if matches!(result, Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENOMEM)) {
            // A device without carrier drops what it is given, and says that it has no room
            // (dev_direct_xmit): no use in waiting.
            result = self.socket.check_link();
            if result.is_ok() {
                let (later, waited) = self.batch.send(fd, all - sent, PATIENCE);
                (sent, result) = (sent + later, waited);
            }
        }
        // Whatever it was (link down, interface gone, frame too long), it holds for all of them.
        let refused = self.batch.len();
        self.batch.forget(refused);
        result.map(|()| sent).map_err(|errno| {
            let error = self.socket.error("send frames", errno.into());
            Unsent { sent, refused, error }
        })
    }
}
