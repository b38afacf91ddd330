//! The XDP program that hands answers to us to our AF_XDP sockets (`xdp/redirect.bpf.c`).

#[cfg(test)]
mod tests;

use super::link::{Hanging, Link};
use super::rx::XdpRx;
use super::umem::FrameLayout;
use crate::io::guard::{Ports, Source, chain, errno};
use crate::io::{IoError, bpf};
use crate::wire::MacAddr;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, Pod};
use nix::errno::Errno;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.bpf.o"));

const PROGRAM: &str = "redirect";

/// `struct redirect_interface` of `xdp/shared.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct OnInterface {
    frame_max: u32,
    mac: [u8; 6],
    _padding: [u8; 2],
}

const _: () = assert!(size_of::<OnInterface>() == 12);

// SAFETY: repr(C), Copy, no padding but the field of that name, every bit pattern valid.
unsafe impl Pod for OnInterface {}

/// Where the program is to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpMode {
    /// In the driver, or in the stack where the driver cannot.
    #[default]
    Auto,
    /// In the driver (native).
    Drv,
    /// In the stack, after the driver has built an sk_buff (generic).
    Skb,
}

/// Where a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attached {
    /// In the driver (native).
    Drv,
    /// In the stack (generic).
    Skb,
    /// On the card; ours never does.
    Hw,
}

impl Attached {
    /// Returns its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Attached::Drv => "drv",
            Attached::Skb => "skb",
            Attached::Hw => "hw",
        }
    }

    /// `XDP_FLAGS_*_MODE` of linux/if_link.h.
    const fn flag(self) -> u32 {
        match self {
            Attached::Skb => 1 << 1,
            Attached::Drv => 1 << 2,
            Attached::Hw => 1 << 3,
        }
    }
}

/// Which frames are redirected on one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedirectSpec {
    /// The interface's own address.
    pub mac: MacAddr,
    /// Our source addresses.
    pub sources: Vec<IpAddr>,
    /// Our source ports, on each of them.
    pub ports: RangeInclusive<u16>,
    /// How many queues may get a socket.
    pub queues: u32,
    /// What a frame of the UMEM holds, in octets; longer ones pass. No more than the `FrameLayout` of every
    /// queue has room for.
    pub frame_octets: u32,
}

/// What the program has done with the frames of its interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RedirectCounts {
    /// Handed to an AF_XDP socket.
    pub redirected: u64,
    /// Passed: none of ours, or the kernel owns the tuple.
    pub passed: u64,
    /// Passed: ends early or contradicts itself.
    pub malformed: u64,
    /// Ours, and passed: the queue that it came in by has no socket.
    pub no_socket: u64,
}

/// `enum redirect_counter` of `xdp/shared.h`.
#[derive(Clone, Copy)]
enum Counter {
    Redirected = 0,
    Passed = 1,
    Malformed = 2,
    NoSocket = 3,
}

/// The program of one interface, loaded; once attached it stays so until this value is dropped.
///
/// It hangs on a bpf_link that is pinned nowhere, so it is also gone when the process dies.
pub struct Redirect {
    // First: the program is taken off before its maps go.
    attachment: Option<Arc<Attachment>>,
    programs: Ebpf,
    counters: PerCpuArray<MapData, u64>,
    interface: String,
    /// The longest frame that it redirects.
    frame_octets: u32,
}

/// Our program on its interface. It is taken off when the last one who has this lets go of it.
#[derive(Debug)]
pub struct Attachment {
    link: Link,
    /// What the kernel said when it was attached.
    begun: Hanging,
    interface: String,
}

/// What has become of our program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is where it was attached.
    Attached,
    /// Somebody has detached it, or the interface is gone.
    Detached,
    /// Somebody has put another program, of this number, in its place.
    Replaced(u32),
}

impl Attachment {
    /// Returns the index that its interface had at first.
    pub fn ifindex(&self) -> u32 {
        self.begun.ifindex
    }

    /// Returns the name that its interface had at first.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Returns the number of the program that was attached.
    pub fn program(&self) -> u32 {
        self.begun.program
    }

    /// Asks the kernel what has become of the program. Needs no privilege.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn standing(&self) -> Result<Standing, IoError> {
        let now = self.link.hanging().map_err(|errno| {
            let operation = "see whether the XDP program is still attached";
            io_error(operation, &self.interface, &errno, "")
        })?;
        Ok(match now {
            Hanging { program, .. } if program != self.begun.program => Standing::Replaced(program),
            // Renumbered in another network namespace: not where it was either.
            Hanging { ifindex, .. } if ifindex != self.begun.ifindex => Standing::Detached,
            _ => Standing::Attached,
        })
    }
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redirect").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl Redirect {
    /// Loads the program for `interface` and tells it what is ours. Nothing is attached yet: the
    /// sockets come first, or the first frames would find none.
    ///
    /// # Errors
    /// No CAP_BPF or CAP_NET_ADMIN, or a kernel whose verifier refuses the program: the end of its
    /// log is in the message.
    pub fn load(interface: &str, spec: &RedirectSpec) -> Result<Redirect, IoError> {
        let error = |error: &(dyn Error + 'static)| load_error(interface, error);
        let broken = |what: &str| IoError {
            operation: "load the XDP program",
            object: interface.to_owned(),
            source: io::Error::other(format!("the embedded object has no {what}")),
            remedy: "this build is broken: build it again",
        };
        let capacity = u32::try_from(spec.sources.len().max(1)).unwrap_or(u32::MAX);
        let max_entries = [("sources", capacity), ("xsks", spec.queues.max(1))];
        let mut programs = bpf::load(OBJECT, &max_entries).map_err(|cause| error(&cause))?;

        let globals = programs.map_mut(".bss").ok_or_else(|| broken("map .bss"))?;
        let mut globals: Array<_, OnInterface> =
            Array::try_from(globals).map_err(|cause| error(&cause))?;
        let own = OnInterface { frame_max: spec.frame_octets, mac: spec.mac.0, _padding: [0; 2] };
        globals.set(0, own, 0).map_err(|cause| error(&cause))?;

        let sources = programs.map_mut("sources").ok_or_else(|| broken("map sources"))?;
        let mut sources: HashMap<_, Source, Ports> =
            HashMap::try_from(sources).map_err(|cause| error(&cause))?;
        let ports = Ports { lo: *spec.ports.start(), hi: *spec.ports.end() };
        for &source in &spec.sources {
            sources.insert(Source::from(source), ports, 0).map_err(|cause| error(&cause))?;
        }
        let program: &mut Xdp = programs
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| broken("program"))?;
        program.load().map_err(|cause| error(&cause))?;
        let counters = programs.take_map("counters").ok_or_else(|| broken("map counters"))?;
        let counters = PerCpuArray::try_from(counters).map_err(|cause| error(&cause))?;
        Ok(Redirect {
            attachment: None,
            programs,
            counters,
            interface: interface.to_owned(),
            frame_octets: spec.frame_octets,
        })
    }

    /// Sends the frames of queue `queue_id` that are ours to the socket of `rx`.
    ///
    /// # Errors
    /// There are not that many queues, or the program redirects longer frames than `rx` has room for.
    pub fn set_socket(&mut self, queue_id: u32, rx: &XdpRx) -> Result<(), IoError> {
        // The kernel would write one that is too long over its neighbours (`FrameLayout::Packed`).
        if self.frame_octets > rx.layout().packet_octets() {
            return Err(io_error("enter AF_XDP socket", &self.interface, &Errno::EMSGSIZE, ""));
        }
        self.enter(queue_id, rx.socket())
    }

    fn enter(&mut self, queue_id: u32, socket: BorrowedFd<'_>) -> Result<(), IoError> {
        let error = |cause: &(dyn Error + 'static)| {
            io_error("enter AF_XDP socket", &self.interface, cause, "")
        };
        let map = self.programs.map_mut("xsks").ok_or_else(|| error(&Errno::ENOENT))?;
        let mut sockets = XskMap::try_from(map).map_err(|cause| error(&cause))?;
        sockets.set(queue_id, socket.as_raw_fd(), 0).map_err(|cause| error(&cause))
    }

    /// Attaches the program, and returns where it runs and, for [`XdpMode::Auto`], why not in the
    /// driver.
    ///
    /// Attaching to a driver resets the link on many NICs.
    ///
    /// # Errors
    /// [`IoError`] with a remedy: another program is attached, the driver cannot, the MTU is too
    /// large, the queues do not suit.
    pub fn attach(
        &mut self,
        ifindex: u32,
        mode: XdpMode,
    ) -> Result<(Attached, Option<IoError>), IoError> {
        let (first, second) = match mode {
            XdpMode::Auto => (Attached::Drv, Some(Attached::Skb)),
            XdpMode::Drv => (Attached::Drv, None),
            XdpMode::Skb => (Attached::Skb, None),
        };
        match (self.attach_as(ifindex, first), second) {
            (Ok(()), _) => Ok((first, None)),
            // The driver's own reasons, one of which is that it has no XDP.
            (
                Err((
                    Some(
                        Errno::EOPNOTSUPP
                        | Errno::ERANGE
                        | Errno::ENOSPC
                        | Errno::EINVAL
                        | Errno::ENOMEM,
                    ),
                    why,
                )),
                Some(second),
            ) => {
                self.attach_as(ifindex, second).map_err(|(_, error)| error)?;
                Ok((second, Some(why)))
            }
            (Err((_, error)), _) => Err(error),
        }
    }

    fn attach_as(&mut self, ifindex: u32, to: Attached) -> Result<(), (Option<Errno>, IoError)> {
        let operation = match to {
            Attached::Drv => "attach the XDP program (native)",
            Attached::Skb => "attach the XDP program (generic)",
            Attached::Hw => "attach the XDP program (offloaded)",
        };
        let error = |cause: &(dyn Error + 'static)| {
            let errno = xdp_errno(cause);
            (errno, io_error(operation, &self.interface, cause, attach_remedy(errno)))
        };
        let program: &mut Xdp = self
            .programs
            .program_mut(PROGRAM)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| error(&Errno::ENOENT))?;
        let fd = program.fd().map_err(|cause| error(&cause))?;
        let link = Link::create(fd.as_fd(), ifindex, to.flag()).map_err(|errno| error(&errno))?;
        let begun = link.hanging().map_err(|errno| error(&errno))?;
        let interface = self.interface.clone();
        self.attachment = Some(Arc::new(Attachment { link, begun, interface }));
        Ok(())
    }

    /// Returns what the program hangs on, once it is attached, for whoever watches it.
    pub fn attachment(&self) -> Option<Arc<Attachment>> {
        self.attachment.clone()
    }

    /// Returns the name of its interface.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Returns what the program has counted. Needs no privilege.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counts(&self) -> Result<RedirectCounts, IoError> {
        Ok(RedirectCounts {
            redirected: self.count(Counter::Redirected)?,
            passed: self.count(Counter::Passed)?,
            malformed: self.count(Counter::Malformed)?,
            no_socket: self.count(Counter::NoSocket)?,
        })
    }

    fn count(&self, counter: Counter) -> Result<u64, IoError> {
        let per_cpu = self.counters.get(&(counter as u32), 0).map_err(|cause| {
            io_error("read the XDP program's counters", &self.interface, &cause, "")
        })?;
        Ok(per_cpu.iter().sum())
    }
}

/// Opens an AF_XDP socket and loads the program, and lets both go again.
///
/// # Errors
/// The kernel has no AF_XDP, its verifier refuses the program, or a capability is missing.
pub fn rehearse() -> Result<(), IoError> {
    super::socket::try_open()?;
    let spec = RedirectSpec {
        mac: MacAddr::default(),
        sources: Vec::new(),
        ports: crate::io::ports::DEFAULT,
        queues: 1,
        frame_octets: FrameLayout::Packed.packet_octets(),
    };
    Redirect::load("this host", &spec).map(drop)
}

/// As [`errno`], but also where aya hides it in a variant of its own.
fn xdp_errno(cause: &(dyn Error + 'static)) -> Option<Errno> {
    if let Some(ProgramError::SyscallError(call)) = cause.downcast_ref() {
        return call.io_error.raw_os_error().map(Errno::from_raw);
    }
    cause.downcast_ref::<Errno>().copied().or_else(|| errno(cause))
}

fn io_error(
    operation: &'static str,
    interface: &str,
    cause: &(dyn Error + 'static),
    remedy: &'static str,
) -> IoError {
    let source = match xdp_errno(cause) {
        Some(errno) => errno.into(),
        None => io::Error::other(chain(cause)),
    };
    IoError { operation, object: interface.to_owned(), source, remedy }
}

fn load_error(interface: &str, cause: &(dyn Error + 'static)) -> IoError {
    let remedy = match xdp_errno(cause) {
        Some(Errno::EPERM) => {
            "needs CAP_BPF and CAP_NET_ADMIN outside any user namespace: try sudo"
        }
        _ => {
            "the XDP path needs Linux 6.6 or newer with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS; \
              --io packet does not"
        }
    };
    // Not by number alone: the verifier's log says what it disliked.
    IoError {
        operation: "load the XDP program",
        object: interface.to_owned(),
        source: io::Error::other(chain(cause)),
        remedy,
    }
}

fn attach_remedy(errno: Option<Errno>) -> &'static str {
    match errno {
        Some(Errno::EBUSY | Errno::EEXIST) => {
            "another XDP program is attached there (see: ip link show); take it off, or use --io packet"
        }
        Some(Errno::EOPNOTSUPP) => "the driver has no native XDP: --xdp-mode skb, or --io packet",
        Some(Errno::ERANGE) => {
            "the driver's XDP does not do this MTU: lower it, --xdp-mode skb, or --io packet"
        }
        Some(Errno::ENOSPC) => {
            "the other end of this veth has more transmit queues than this end has receive queues: \
             ethtool -L evens them out; or --xdp-mode skb, or --io packet"
        }
        Some(Errno::EPERM | Errno::EACCES) => "needs CAP_BPF and CAP_NET_ADMIN, try sudo",
        Some(Errno::ENODEV) => "the interface is gone",
        Some(Errno::EINVAL) => {
            "the driver refuses it as the interface is set up (see: dmesg): --xdp-mode skb, or --io packet"
        }
        Some(Errno::ENOMEM) => "the driver has no memory for its XDP queues: --xdp-mode skb",
        _ => "--xdp-mode skb asks less of the driver, --io packet nothing",
    }
}
