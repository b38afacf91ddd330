//! Opening one queue: its UMEM, rings and sockets.
//!
//! There are two sockets to a queue, one that receives and owns the UMEM and one that sends and shares
//! it: poll() on a socket that can send would also send (xsk_poll, copy mode), and swallow the error.

use super::ZeroCopy;
use super::completions::Completions;
use super::rings::{COMPLETION, FILL, Place, RX, Ring, TX};
use super::rx::{Rings, XdpRx};
use super::tx::XdpTx;
use super::umem::{FrameLayout, Umem};
use crate::io::IoError;
use crate::time::Clock;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// How many frames a queue has; all powers of two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sizes {
    /// Received packets that it holds.
    pub rx: u32,
    /// Packets on their way out.
    pub tx: u32,
}

impl Sizes {
    /// From 8 ms at a million packets a second, longer than a receiver on a busy machine has to wait for
    /// its turn; to what the memlock limit, which is 8 MiB by default and counts for all queues of a user,
    /// allows.
    pub const TRIED: [Sizes; 5] = [
        Sizes { rx: 8192, tx: 2048 },
        Sizes { rx: 4096, tx: 2048 },
        Sizes { rx: 2048, tx: 1024 },
        Sizes { rx: 1024, tx: 512 },
        Sizes { rx: 512, tx: 256 },
    ];

    /// Returns the memory that frames take, in octets.
    pub const fn octets(self, layout: FrameLayout) -> u64 {
        layout.octets(self.rx, self.tx) as u64
    }

    /// Twice the frames: the kernel shows late what it has taken from the fill ring.
    pub const fn fill(self) -> u32 {
        2 * self.rx
    }
}

/// How long a queue may still be held by a socket that is closing, and how often to look.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// XDP_MAX_TX_SKB_BUDGET of Linux 6.17 and newer: packets sent by one call in copy mode, 32 by
/// default.
const MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Which queue to open, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueSpec<'a> {
    /// The interface's index.
    pub ifindex: u32,
    /// Its name, for messages.
    pub interface: &'a str,
    /// The queue, from 0 on.
    pub queue_id: u32,
    /// Whether packets are to be copied between UMEM and driver.
    pub zerocopy: ZeroCopy,
}

/// An open queue.
#[derive(Debug)]
pub struct Queue {
    /// Its sending half.
    pub tx: XdpTx,
    /// Its receiving half.
    pub rx: XdpRx,
    /// Whether the driver reads and writes the UMEM itself.
    pub zerocopy: bool,
    /// The memory that it has locked, in octets.
    pub octets: u64,
}

impl Queue {
    /// Returns the memory that one of many queues takes if it may, in octets.
    pub const fn usual_octets(layout: FrameLayout) -> u64 {
        Sizes { rx: 4096, tx: 2048 }.octets(layout)
    }

    /// Opens the sockets of one queue and fills its fill ring. Frames come in once the XDP program has
    /// been told of the queue (`Redirect::set_socket`).
    ///
    /// A queue that is still held by another socket, as after a restart, is waited for up to 2 s.
    ///
    /// # Errors
    /// [`IoError`] with a remedy: no CAP_NET_RAW, a memlock limit, no such queue, no zero-copy in the
    /// driver, another program on the queue, the interface down or gone.
    pub fn open(spec: QueueSpec<'_>) -> Result<Queue, IoError> {
        Self::open_within(spec, Self::usual_octets(spec.zerocopy.layout()))
    }

    /// The same with no more than `octets` of memory, or as little as a queue can do with.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_within(spec: QueueSpec<'_>, octets: u64) -> Result<Queue, IoError> {
        let [first @ .., last] = Sizes::TRIED;
        let layout = spec.zerocopy.layout();
        for sizes in first.into_iter().filter(|sizes| sizes.octets(layout) <= octets) {
            match Self::open_with(spec, sizes) {
                // The memlock limit (xdp_umem_account_pages): others of this user have their part.
                Err(error) if error.source.raw_os_error() == Some(libc::ENOBUFS) => {
                    tracing::debug!(?sizes, %error, "fewer frames");
                }
                result => return result,
            }
        }
        Self::open_with(spec, last).map_err(|mut error| {
            if error.source.raw_os_error() == Some(libc::ENOBUFS) {
                let limit = match getrlimit(Resource::RLIMIT_MEMLOCK) {
                    Ok((soft, _)) => format!("{} KiB", soft >> 10),
                    Err(_) => "an unknown amount".to_owned(),
                };
                error.source = io::Error::other(format!(
                    "{}: a queue locks at least {} KiB, and the memlock limit is {limit} for all that \
                     this user locks",
                    error.source,
                    last.octets(layout) >> 10
                ));
            }
            error
        })
    }

    fn open_with(spec: QueueSpec<'_>, sizes: Sizes) -> Result<Queue, IoError> {
        let layout = spec.zerocopy.layout();
        let umem = Umem::map(layout, sizes.rx, sizes.tx, spec.interface)?;
        let receiving = Socket::new(spec)?;
        receiving.set("register the UMEM", libc::XDP_UMEM_REG, &umem.registration())?;
        receiving.set("size the fill ring", libc::XDP_UMEM_FILL_RING, &sizes.fill())?;
        receiving.set("size the completion ring", libc::XDP_UMEM_COMPLETION_RING, &sizes.tx)?;
        receiving.set("size the rx ring", libc::XDP_RX_RING, &sizes.rx)?;

        let offsets = receiving.offsets()?;
        let rx = receiving.map(RX, &offsets.rx, sizes.rx)?;
        let fill = receiving.map(FILL, &offsets.fr, sizes.fill())?;
        let completion = receiving.map(COMPLETION, &offsets.cr, sizes.tx)?;

        let (umem, rx_frames, tx_frames) = umem.split();
        let rings =
            Rings::filled(rx, fill, sizes, rx_frames).map_err(|bad| receiving.bad_ring(bad))?;
        receiving.bind_umem(spec)?;
        let (sending, tx) = receiving.sending_end(sizes.tx)?;
        let zerocopy = receiving.is_zerocopy()?;
        if zerocopy && layout == FrameLayout::Packed {
            // Never, as it is bound with XDP_COPY: a card writes wherever there is room for a chunk.
            return Err(receiving.error("have frames copied", Errno::EOPNOTSUPP));
        }

        let sockets = Arc::new(Sockets { receiving: Arc::new(receiving), sending, _umem: umem });
        let rx = rings.with_sockets(sockets.clone());
        let completions = Arc::new(Completions::new(completion, sizes.tx));
        let tx = XdpTx::new(tx, completions, sizes, tx_frames, zerocopy, sockets);
        Ok(Queue { tx, rx, zerocopy, octets: sizes.octets(layout) })
    }
}

/// The two sockets of a queue; the queue is free again when all its halves are gone.
#[derive(Debug)]
pub(super) struct Sockets {
    pub receiving: Arc<Socket>,
    pub sending: Socket,
    // After the sockets: the kernel writes into it until they are closed.
    _umem: Arc<Umem>,
}

impl Sockets {
    /// Opens another socket that sends through the same queue, from a tx ring of its own with `size`
    /// entries.
    pub fn with_another_sending(
        &self,
        size: u32,
    ) -> Result<(Arc<Sockets>, Ring<libc::xdp_desc>), IoError> {
        let (sending, tx) = self.receiving.sending_end(size)?;
        let sockets =
            Sockets { receiving: self.receiving.clone(), sending, _umem: self._umem.clone() };
        Ok((Arc::new(sockets), tx))
    }
}

/// Opens an AF_XDP socket and closes it again.
///
/// # Errors
/// No CAP_NET_RAW, or a kernel without AF_XDP.
pub(super) fn try_open() -> Result<(), IoError> {
    open_socket("this host").map(drop)
}

fn open_socket(object: &str) -> Result<OwnedFd, IoError> {
    let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointer is passed.
    let fd = Errno::result(unsafe { libc::socket(libc::AF_XDP, flags, 0) })
        .map_err(|errno| io_error("open AF_XDP socket", object, errno))?;
    // SAFETY: the descriptor was just made, and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An AF_XDP socket and what messages say of it.
#[derive(Debug)]
pub(super) struct Socket {
    pub fd: OwnedFd,
    ifindex: u32,
    pub queue_id: u32,
    object: String,
}

impl Socket {
    fn new(spec: QueueSpec<'_>) -> Result<Self, IoError> {
        let object = format!("{} queue {}", spec.interface, spec.queue_id);
        Self::open(object, spec.ifindex, spec.queue_id)
    }

    fn open(object: String, ifindex: u32, queue_id: u32) -> Result<Self, IoError> {
        Ok(Socket { fd: open_socket(&object)?, ifindex, queue_id, object })
    }

    /// Opens a socket that sends through the queue of this one, whose UMEM it shares, from a tx ring of
    /// `size` entries.
    fn sending_end(&self, size: u32) -> Result<(Socket, Ring<libc::xdp_desc>), IoError> {
        let sending = Self::open(self.object.clone(), self.ifindex, self.queue_id)?;
        sending.set("size the tx ring", libc::XDP_TX_RING, &size)?;
        // More is better and less is enough: older kernels do not know it.
        let _ = sending.set("set XDP_MAX_TX_SKB_BUDGET", MAX_TX_SKB_BUDGET, &size);
        // A packet in copy mode is charged with its skb: the default (208 KiB) holds about 270.
        let octets = 8 << 20;
        if setsockopt(&sending.fd, sockopt::SndBufForce, &octets).is_err() {
            setsockopt(&sending.fd, sockopt::SndBuf, &octets)
                .map_err(|errno| sending.error("set SO_SNDBUF", errno))?;
        }
        let tx = sending.map(TX, &sending.offsets()?.tx, size)?;
        sending
            .bind(libc::XDP_SHARED_UMEM, self.queue_id, self.fd.as_raw_fd() as u32)
            .map_err(|errno| sending.error("bind the sending AF_XDP socket", errno))?;
        Ok((sending, tx))
    }

    pub fn error(&self, operation: &'static str, errno: Errno) -> IoError {
        io_error(operation, &self.object, errno)
    }

    /// Reports a ring or descriptor of the kernel's that contradicts itself.
    pub fn bad_ring(&self, bad: impl std::error::Error + Send + Sync + 'static) -> IoError {
        IoError {
            operation: "read the AF_XDP rings",
            object: self.object.clone(),
            source: io::Error::new(io::ErrorKind::InvalidData, bad),
            remedy: "",
        }
    }

    /// Sets an option that takes the kernel's own layout `T`.
    fn set<T>(&self, operation: &'static str, option: i32, value: &T) -> Result<(), IoError> {
        // SAFETY: the kernel reads exactly size_of::<T>() octets from `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop).map_err(|errno| self.error(operation, errno))
    }

    /// Reads an option of the kernel's layout `T`, which an older kernel may fill only in part.
    ///
    /// # Safety
    /// Every bit pattern must be a valid `T`.
    unsafe fn get<T>(&self, operation: &'static str, option: i32) -> Result<(T, usize), IoError> {
        let mut value = std::mem::MaybeUninit::<T>::zeroed();
        let mut length = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` octets, the size of `value`.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_XDP,
                option,
                value.as_mut_ptr().cast(),
                &mut length,
            )
        };
        Errno::result(result).map_err(|errno| self.error(operation, errno))?;
        // SAFETY: zeroed, then written by the kernel; any bit pattern is valid (the caller's word).
        Ok((unsafe { value.assume_init() }, length as usize))
    }

    fn offsets(&self) -> Result<libc::xdp_mmap_offsets, IoError> {
        // SAFETY: plain integers.
        let (offsets, octets): (libc::xdp_mmap_offsets, _) =
            unsafe { self.get("read XDP_MMAP_OFFSETS", libc::XDP_MMAP_OFFSETS)? };
        if octets < size_of::<libc::xdp_mmap_offsets>() {
            // Linux before 5.4: other layout, no need_wakeup.
            return Err(self.error("read XDP_MMAP_OFFSETS", Errno::EPROTONOSUPPORT));
        }
        Ok(offsets)
    }

    fn is_zerocopy(&self) -> Result<bool, IoError> {
        // SAFETY: a plain integer.
        let (options, _): (libc::xdp_options, _) =
            unsafe { self.get("read XDP_OPTIONS", libc::XDP_OPTIONS)? };
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// Reads the kernel's counters of this socket.
    pub fn statistics(&self) -> Result<libc::xdp_statistics, IoError> {
        // SAFETY: plain integers.
        unsafe { self.get("read XDP_STATISTICS", libc::XDP_STATISTICS) }.map(|(counts, _)| counts)
    }

    /// Takes the socket's pending error.
    pub fn check(&self, operation: &'static str) -> Result<(), IoError> {
        match getsockopt(&self.fd, sockopt::SocketError) {
            Ok(0) => Ok(()),
            Ok(errno) => Err(self.error(operation, Errno::from_raw(errno))),
            Err(errno) => Err(self.error(operation, errno)),
        }
    }

    fn map<T: Copy>(
        &self,
        place: Place<T>,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> Result<Ring<T>, IoError> {
        Ring::map(self.fd.as_fd(), place, offsets, size)
            .map_err(|errno| self.error("map an AF_XDP ring", errno))
    }

    fn bind(&self, flags: u16, queue_id: u32, shared_with: u32) -> Result<(), Errno> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: self.ifindex,
            sxdp_queue_id: queue_id,
            sxdp_shared_umem_fd: shared_with,
        };
        // SAFETY: the kernel reads one sockaddr_xdp from `address`, which outlives the call.
        let result = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop)
    }

    /// Binds the socket that owns the UMEM.
    fn bind_umem(&self, spec: QueueSpec<'_>) -> Result<(), IoError> {
        let copy = match spec.zerocopy {
            // The kernel tries, and copies where the driver cannot.
            ZeroCopy::Auto => 0,
            ZeroCopy::On => libc::XDP_ZEROCOPY,
            // Said, and not only meant: a card would write where it likes (`FrameLayout::Packed`).
            ZeroCopy::Off => libc::XDP_COPY,
        };
        let clock = Clock;
        let begun = clock.now();
        loop {
            match self.bind(copy | libc::XDP_USE_NEED_WAKEUP, spec.queue_id, 0) {
                Ok(()) => return Ok(()),
                // The kernel frees a queue some time after its sockets are closed; nothing tells when.
                Err(Errno::EBUSY) if clock.now().since(begun) < BUSY_PATIENCE => {
                    clock.sleep(BUSY_PAUSE);
                }
                Err(errno) => {
                    let mut error = self.error("bind AF_XDP socket", errno);
                    if spec.zerocopy == ZeroCopy::On
                        && matches!(errno, Errno::EOPNOTSUPP | Errno::EINVAL)
                    {
                        error.remedy =
                            "the driver has no zero-copy for this queue: --zerocopy auto";
                    }
                    return Err(error);
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn io_error(operation: &'static str, object: &str, errno: Errno) -> IoError {
    let remedy = match errno {
        Errno::EPERM | Errno::EACCES => "needs CAP_NET_RAW, try sudo",
        Errno::EAFNOSUPPORT => "the kernel lacks CONFIG_XDP_SOCKETS: --io packet",
        Errno::EPROTONOSUPPORT => "the kernel's AF_XDP is too old: --io packet",
        Errno::ENOBUFS => {
            "raise the limit (as root: prlimit --pid $$ --memlock=unlimited), grant cap_ipc_lock with \
             setcap, use fewer queues (ethtool -L IFACE combined N), or --io packet"
        }
        Errno::EBUSY => "another program uses the queue: end it, or use --io packet",
        Errno::EINVAL => {
            "the interface has no such queue (see: ethtool -l), or cannot do AF_XDP: --io packet"
        }
        Errno::EOPNOTSUPP => "the driver cannot do that: --zerocopy auto, or --io packet",
        Errno::ENETDOWN => "bring the interface up",
        Errno::ENXIO | Errno::ENODEV => "the interface is gone",
        _ => "",
    };
    IoError { operation, object: object.to_owned(), source: errno.into(), remedy }
}
