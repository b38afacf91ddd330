//! Opening an egress interface for AF_XDP: its queues, the program that feeds them, and who drives what.

use super::{Path, XdpOptions};
use crate::io::xdp::{
    self, Attached, FrameLayout, MAX_QUEUES, Queue, QueueSpec, Redirect, RedirectSpec, XdpMode,
    ZeroCopy,
};
use crate::io::{IoError, PathInfo, Transmit};
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// What the queues of an interface share if that is more: the fewer there are, the more comes in by each.
const fn shared_octets(layout: FrameLayout) -> u64 {
    match layout {
        FrameLayout::Chunks => 64 << 20,
        FrameLayout::Packed => 8 << 20,
    }
}

/// More senders than this share no queue: its lock and its device are the limit by then.
const SENDERS_A_QUEUE: usize = 4;

/// Returns how many senders an interface is good for.
pub(super) fn most_senders(interface: &str) -> Result<usize, IoError> {
    Ok(xdp::queues(interface)?.min(MAX_QUEUES) as usize * SENDERS_A_QUEUE)
}

/// What is opened on one interface.
pub(super) struct XdpSpec<'a> {
    pub info: &'a PathInfo,
    pub ifindex: u32,
    /// How many sending halves are wanted: not more than [`most_senders`].
    pub senders: usize,
    /// Our source addresses, on whatever interface.
    pub sources: Vec<IpAddr>,
    pub ports: RangeInclusive<u16>,
    pub options: XdpOptions,
    /// How many interfaces there are to share what memory may be locked.
    pub interfaces: usize,
}

/// What there is beside the sending halves.
pub(super) struct Beside {
    /// The receiving halves: an answer may come by another queue than its probe has left by.
    pub queues: Vec<Path>,
    pub redirect: Redirect,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

impl XdpSpec<'_> {
    /// Opens a socket on every queue, and then attaches the program: it would find none before.
    pub fn open(self) -> Result<(Vec<Box<dyn Transmit>>, Beside), IoError> {
        let XdpSpec { info, ifindex, senders, sources, ports, options, interfaces } = self;
        let interface = &info.interface;
        let queues = xdp::queues(interface)?.min(MAX_QUEUES);
        // The driver cannot read frames that only the stack hands over.
        let zerocopy = match (options.mode, options.zerocopy) {
            (XdpMode::Skb, ZeroCopy::Auto) => ZeroCopy::Off,
            (_, zerocopy) => zerocopy.settle(ifindex),
        };
        let layout = zerocopy.layout();
        let frame_octets = layout.packet_octets();
        let spec = RedirectSpec { mac: info.mac, sources, ports, queues, frame_octets };
        let mut redirect = Redirect::load(interface, &spec)?;
        let mut transmits: Vec<Box<dyn Transmit>> = Vec::with_capacity(senders);
        let mut receiving = Vec::with_capacity(queues as usize);
        let mut copied = false;
        let usual = Queue::usual_octets(layout);
        let mut octets = usual;
        let share = queues.saturating_mul(u32::try_from(interfaces).unwrap_or(u32::MAX));
        let lockable = xdp::lockable_per_queue(share, layout);
        for queue_id in 0..queues {
            let spec = QueueSpec { ifindex, interface, queue_id, zerocopy };
            let room = (shared_octets(layout) / u64::from(queues)).max(usual);
            let mut queue = Queue::open_within(spec, room.min(lockable))?;
            octets = octets.min(queue.octets);
            redirect.set_socket(queue_id, &queue.rx)?;
            copied |= !queue.zerocopy;
            // Evenly: the first queues have one more where they do not come out even.
            let here = (senders + (queues - 1 - queue_id) as usize) / queues as usize;
            if let Some(more) = here.checked_sub(1) {
                for half in queue.tx.share(more)? {
                    transmits.push(Box::new(half));
                }
                transmits.push(Box::new(queue.tx));
            }
            receiving.push(Path {
                info: info.clone(),
                next_hops: HashSet::new(),
                transmits: Vec::new(),
                receive: Some(Box::new(queue.rx)),
                loopback: false,
            });
        }
        let (attached, why) = redirect.attach(ifindex, options.mode)?;
        let mut notes = vec![format!(
            "{interface}: AF_XDP on {queues} queue{}, XDP program in the {}, {}",
            if queues == 1 { "" } else { "s" },
            match attached {
                Attached::Drv => "driver",
                Attached::Skb => "stack (skb)",
                Attached::Hw => "card",
            },
            if copied { "frames are copied" } else { "zero-copy" },
        )];
        if octets < usual {
            notes.push(format!(
                "{interface}: {} KiB of frames a queue instead of {}, since no more memory may be \
                 locked: at a high rate answers may be dropped, and are then not believed to be \
                 missing; grant cap_ipc_lock too, or raise ulimit -l",
                octets >> 10,
                usual >> 10
            ));
        }
        notes.extend(why.map(|why| format!("{interface}: not in the driver: {why}")));
        Ok((transmits, Beside { queues: receiving, redirect, notes }))
    }
}
