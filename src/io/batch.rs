//! Frames side by side in one buffer, handed to a socket by `sendmmsg`.

use super::{FRAME_OCTETS, FrameBuf};
use crate::time::{Clock, Instant};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

/// With their headers, addresses and frames they fill half of the nearest cache, and the system call is
/// shared out among enough of them to cost each next to nothing.
const BATCH: usize = 128;

/// How long a batch may make no progress before its frames are handed back. Short, since other paths
/// wait meanwhile; a queue that moves at all makes room for a frame in less, even at 10 Mbit/s.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(4);

/// Frames, and the headers that describe them to `sendmmsg`. Close packing keeps it in the cache:
/// 2 KiB apart, frames would share two sets of it.
pub(super) struct Batch {
    frames: Box<[Frame]>,
    lengths: Box<[libc::iovec]>,
    /// Where to and where from, for sockets that want to be told.
    names: Box<[Name]>,
    sources: Box<[Source]>,
    headers: Box<[Header]>,
    /// The frames that are to be sent stand at `start..end`.
    start: usize,
    end: usize,
}

// SAFETY: the raw pointers in `lengths` and `headers` point into `frames`, `lengths`, `names` and
// `sources`, heap blocks that this value owns alone and that do not move with it.
unsafe impl Send for Batch {}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The octets of a frame, in as few cache lines as may be: nearly always one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Frame(FrameBuf);

/// What describes a frame, in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Header(pub libc::mmsghdr);

// The kernel reads them as an array of what is in them.
const _: () = assert!(size_of::<Header>() == size_of::<libc::mmsghdr>());

/// To whom a frame goes, for the kernel's route look-up.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// From whom, so that rules that select by source apply (IP_PKTINFO, IPV6_PKTINFO).
#[derive(Clone, Copy)]
#[repr(C)]
union Source {
    v4: Control<libc::in_pktinfo>,
    v6: Control<libc::in6_pktinfo>,
}

/// One control message, as CMSG_DATA lays it out: its data begins after the padded header.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control<T> {
    header: libc::cmsghdr,
    data: T,
}

impl<T> Control<T> {
    // The kernel reads the length of the header without trailing padding (CMSG_LEN).
    const LEN: usize = std::mem::offset_of!(Self, data) + size_of::<T>();

    fn new(level: i32, kind: i32, data: T) -> Self {
        // SAFETY: cmsghdr is plain old data, for which all zero is a valid value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = Self::LEN as _;
        header.cmsg_level = level;
        header.cmsg_type = kind;
        Control { header, data }
    }
}

// CMSG_DATA stands where the header, rounded up to a word, ends.
const _: () = assert!(size_of::<libc::cmsghdr>().is_multiple_of(size_of::<usize>()));
const _: () = assert!(align_of::<Source>() >= align_of::<libc::cmsghdr>());

impl Batch {
    /// Makes a batch for a socket that knows where its frames go.
    pub fn new() -> Self {
        Self::with_addresses(Box::default(), Box::default())
    }

    /// Makes a batch whose frames are given addresses by [`address`](Self::address).
    pub fn addressed() -> Self {
        // SAFETY: both are plain old data, for which all zero is a valid value.
        let (name, source): (Name, Source) = unsafe { std::mem::zeroed() };
        Self::with_addresses([name; BATCH].into(), [source; BATCH].into())
    }

    fn with_addresses(names: Box<[Name]>, sources: Box<[Source]>) -> Self {
        let mut frames = vec![Frame([0; FRAME_OCTETS]); BATCH].into_boxed_slice();
        let mut lengths: Box<[libc::iovec]> = frames
            .iter_mut()
            .map(|frame| libc::iovec { iov_base: frame.0.as_mut_ptr().cast(), iov_len: 0 })
            .collect();
        let headers = lengths
            .iter_mut()
            .map(|iov| {
                // SAFETY: mmsghdr is plain old data; all zero is a message without address and control data.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = iov;
                header.msg_hdr.msg_iovlen = 1;
                Header(header)
            })
            .collect();
        Self { frames, lengths, names, sources, headers, start: 0, end: 0 }
    }

    /// Returns how many frames are to be sent.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Returns the buffer for the next frame, or `None` if there is none left.
    pub fn next_frame(&mut self) -> Option<&mut FrameBuf> {
        self.frames.get_mut(self.end).map(|frame| &mut frame.0)
    }

    /// Adds the first `len` octets of that buffer, and returns them.
    ///
    /// # Panics
    /// If `len` is more than [`FRAME_OCTETS`], or no buffer is left to have been reserved.
    pub fn submit(&mut self, len: usize) -> &[u8] {
        // The kernel reads `len` octets: past the frame it would send its neighbours, or foreign memory.
        assert!(len <= FRAME_OCTETS, "frame of {len} octets in a buffer of {FRAME_OCTETS}");
        self.lengths[self.end].iov_len = len;
        self.end += 1;
        &self.frames[self.end - 1].0[..len]
    }

    /// Addresses the frame last submitted; `scope_id` is the interface of link-local addresses, `bound`
    /// the source that an IPv4 socket has anyway. Addresses of two families are as good as none.
    ///
    /// # Panics
    /// If this batch has no room for addresses, or no frame.
    pub fn address(
        &mut self,
        addresses: Option<(IpAddr, IpAddr)>,
        scope_id: u32,
        bound: Option<Ipv4Addr>,
    ) {
        let last = self.end - 1;
        let (to, from) = (&mut self.names[last], &mut self.sources[last]);
        let header = &mut self.headers[last].0.msg_hdr;
        let (name, control) = match addresses {
            Some((IpAddr::V4(src), IpAddr::V4(dst))) => {
                // SAFETY: every field of the structures may be zero.
                let mut v4: (libc::sockaddr_in, libc::in_pktinfo) = unsafe { std::mem::zeroed() };
                let (name, info) = &mut v4;
                name.sin_family = libc::AF_INET as libc::sa_family_t;
                name.sin_addr.s_addr = u32::from(dst).to_be();
                to.v4 = *name;
                let control = if bound == Some(src) {
                    0
                } else {
                    info.ipi_spec_dst.s_addr = u32::from(src).to_be();
                    from.v4 = Control::new(libc::IPPROTO_IP, libc::IP_PKTINFO, *info);
                    Control::<libc::in_pktinfo>::LEN
                };
                (size_of_val(name), control)
            }
            Some((IpAddr::V6(src), IpAddr::V6(dst))) => {
                // SAFETY: as above.
                let mut v6: (libc::sockaddr_in6, libc::in6_pktinfo) = unsafe { std::mem::zeroed() };
                let (name, info) = &mut v6;
                name.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                name.sin6_addr.s6_addr = dst.octets();
                if dst.is_unicast_link_local() {
                    name.sin6_scope_id = scope_id;
                }
                info.ipi6_addr.s6_addr = src.octets();
                if src.is_unicast_link_local() {
                    info.ipi6_ifindex = scope_id as _;
                }
                to.v6 = *name;
                from.v6 = Control::new(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, *info);
                (size_of_val(name), Control::<libc::in6_pktinfo>::LEN)
            }
            _ => (0, 0),
        };
        header.msg_name = (&raw mut *to).cast();
        header.msg_namelen = name as libc::socklen_t;
        header.msg_control = (&raw mut *from).cast();
        header.msg_controllen = control as _;
    }

    /// Says whether the first frame is addressed to IPv6, and how many from it on are alike.
    pub fn run(&self) -> (bool, usize) {
        let is_v6 = |header: &Header| {
            header.0.msg_hdr.msg_namelen as usize == size_of::<libc::sockaddr_in6>()
        };
        let pending = &self.headers[self.start..self.end];
        let first = pending.first().is_some_and(is_v6);
        (first, pending.iter().take_while(|header| is_v6(header) == first).count())
    }

    /// Sends the first `count` frames and returns how many left; those are gone from the batch.
    ///
    /// A socket whose buffer is full is waited for as long as [`PATIENCE`], a device or a kernel that
    /// is short of memory as long as `shortage`.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        count: usize,
        shortage: Duration,
    ) -> (usize, Result<(), Errno>) {
        let end = self.end.min(self.start + count);
        let before = self.start;
        let result = self.send_until(socket, end, shortage);
        let sent = self.start - before;
        self.forget(0);
        (sent, result)
    }

    fn send_until(
        &mut self,
        socket: BorrowedFd<'_>,
        end: usize,
        shortage: Duration,
    ) -> Result<(), Errno> {
        let clock = Clock;
        let mut pause = FIRST_PAUSE;
        let mut stuck_since: Option<Instant> = None;
        while self.start < end {
            match self.send_once(socket, end) {
                Ok(taken) if taken > 0 => {
                    self.start += taken;
                    pause = FIRST_PAUSE;
                    stuck_since = None;
                }
                Err(Errno::EINTR) => {}
                // No buffer space: the device's queue is full (dev_direct_xmit), or memory is short.
                result @ (Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::ENOMEM)) => {
                    let errno = result.err().unwrap_or(Errno::EAGAIN);
                    let now = clock.now();
                    let patience = if errno == Errno::EAGAIN { PATIENCE } else { shortage };
                    if now.since(*stuck_since.get_or_insert(now)) >= patience {
                        return Err(errno);
                    }
                    if errno == Errno::EAGAIN {
                        await_room(socket)?;
                    } else {
                        clock.sleep(pause);
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Takes the first `count` frames out of the batch unsent.
    pub fn forget(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Sends what stands at `start..end` in one call, and returns how many frames the kernel took.
    fn send_once(&mut self, socket: BorrowedFd<'_>, end: usize) -> nix::Result<usize> {
        let pending = &mut self.headers[self.start..end];
        // SAFETY: every header names one iovec in `lengths`, whose base is one of the `frames` and whose
        // length `submit` has checked, and no address and control data or those in `names` and `sources`
        // with their sizes; the kernel writes only `msg_len` of the `pending` headers.
        let taken = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                pending.as_mut_ptr().cast(),
                pending.len() as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        Errno::result(taken).map(|taken| taken as usize)
    }
}

/// Waits for room in the socket's send buffer.
fn await_room(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
