//! Sending: batches of frames by `sendmmsg`, past the queueing discipline.

use super::Socket;
use crate::io::{IoError, Transmit, Unsent};
use crate::time::{Clock, Instant};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// Largest frame, in octets. The longest that keepsweep sends is a tagged IPv6 segment with all
/// TCP options and one octet of data: 119.
///
/// Close packing keeps a batch in the cache: 2 KiB apart, frames would share two sets of it.
pub const FRAME_OCTETS: usize = 256;

const BATCH: usize = 256;

/// How long a batch may make no progress before its frames are handed back. Short, since other paths
/// wait meanwhile; a queue that moves at all makes room for a frame in less, even at 10 Mbit/s.
const PATIENCE: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// Sends frames through one interface by AF_PACKET.
#[derive(Debug)]
pub struct PacketTx {
    socket: Socket,
    batch: Batch,
    clock: Clock,
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
        Ok(Self { socket, batch: Batch::new(), clock: Clock })
    }

    /// Waits for room in the socket's send buffer, or for `pause` when it is the device that is short of it.
    fn wait(&self, errno: Errno, pause: Duration) -> Result<(), IoError> {
        if errno != Errno::EAGAIN {
            self.clock.sleep(pause);
            return Ok(());
        }
        let mut fds = [PollFd::new(self.socket.fd.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(self.socket.error("poll AF_PACKET socket", errno.into())),
        }
    }

    /// Sends the batch from frame `*sent` on, which counts up.
    fn send_all(&mut self, sent: &mut usize) -> Result<(), IoError> {
        let mut pause = FIRST_PAUSE;
        let mut stuck_since: Option<Instant> = None;
        while *sent < self.batch.len {
            match self.batch.send(self.socket.fd.as_raw_fd(), *sent) {
                Ok(taken) if taken > 0 => {
                    *sent += taken;
                    pause = FIRST_PAUSE;
                    stuck_since = None;
                }
                Err(Errno::EINTR) => {}
                // No buffer space: the device's queue is full (dev_direct_xmit), or memory is short.
                result @ (Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENOMEM)) => {
                    let errno = result.err().unwrap_or(Errno::EAGAIN);
                    // A device without carrier drops what it is given, and says the same
                    // (dev_direct_xmit): no use in waiting.
                    if errno == Errno::ENOBUFS {
                        self.socket.check_link("send frames")?;
                    }
                    let now = self.clock.now();
                    if now.since(*stuck_since.get_or_insert(now)) >= PATIENCE {
                        return Err(self.socket.error("send frames", errno.into()));
                    }
                    self.wait(errno, pause)?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(errno) => return Err(self.socket.error("send frames", errno.into())),
            }
        }
        Ok(())
    }
}

impl Transmit for PacketTx {
    fn reserve(&mut self) -> Option<&mut [u8]> {
        self.batch.next_frame()
    }

    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`], or no buffer is left to have been reserved.
    fn submit(&mut self, len: usize) {
        self.batch.submit(len);
    }

    fn flush(&mut self) -> Result<usize, Unsent> {
        let mut sent = 0;
        let result = self.send_all(&mut sent);
        let batch = std::mem::take(&mut self.batch.len);
        // Whatever it was (link down, interface gone, frame too long), it holds for all of them.
        result.map(|()| sent).map_err(|error| Unsent { sent, refused: batch - sent, error })
    }
}

/// Frames side by side in one buffer, and the headers that describe them to `sendmmsg`.
struct Batch {
    buffer: Box<[u8]>,
    lengths: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    len: usize,
}

// SAFETY: the raw pointers in `lengths` and `headers` point into `buffer` and `lengths`, heap blocks
// that this value owns alone and that do not move with it.
unsafe impl Send for Batch {}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Batch {
    fn new() -> Self {
        let mut buffer = vec![0u8; BATCH * FRAME_OCTETS].into_boxed_slice();
        let mut lengths: Box<[libc::iovec]> = buffer
            .chunks_exact_mut(FRAME_OCTETS)
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: 0 })
            .collect();
        let headers = lengths
            .iter_mut()
            .map(|iov| {
                // SAFETY: mmsghdr is plain old data; all zero is a message without address and control data.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = iov;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self { buffer, lengths, headers, len: 0 }
    }

    fn next_frame(&mut self) -> Option<&mut [u8]> {
        let start = self.len * FRAME_OCTETS;
        self.buffer.get_mut(start..start + FRAME_OCTETS)
    }

    fn submit(&mut self, len: usize) {
        // The kernel reads `len` octets: past the frame it would send its neighbours, or foreign memory.
        assert!(len <= FRAME_OCTETS, "frame of {len} octets in a buffer of {FRAME_OCTETS}");
        self.lengths[self.len].iov_len = len;
        self.len += 1;
    }

    /// Sends what stands at `from..len` in one call, and returns how many frames the kernel took.
    fn send(&mut self, fd: i32, from: usize) -> nix::Result<usize> {
        let pending = &mut self.headers[from..self.len];
        // SAFETY: every header names one iovec in `lengths`, whose base is a frame in `buffer` and whose
        // length `submit` has checked; the kernel writes only `msg_len` of the `pending` headers.
        let taken = unsafe {
            libc::sendmmsg(
                fd,
                pending.as_mut_ptr(),
                pending.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        Errno::result(taken).map(|taken| taken as usize)
    }
}
