//! The receiving half: parse, match, hand on. One per path; shares only the flow table and the
//! senders' queues.
#![forbid(unsafe_code)]

use crate::io::{PathId, RxFrame};
use crate::probe::Slot;
use crate::probe::matcher::{Rejection, Reply, ReplyKind, match_icmp, match_segment};
use crate::probe::table::Table;
use crate::wire::{ArpOp, LinkType, MacAddr, Packet, ParseError, parse};
use crossbeam::queue::ArrayQueue;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What a receiver tells the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// A reply matched to a flow.
    Reply {
        /// Through which path it came.
        path: PathId,
        /// What it says.
        reply: Reply,
    },
    /// An ARP reply.
    Neighbour {
        /// On which path.
        path: PathId,
        /// Whose address.
        ip: IpAddr,
        /// The address.
        mac: MacAddr,
    },
}

/// The way from the receivers to the senders: a bounded queue each, and slots dealt out evenly, a
/// contiguous share to every sender.
#[derive(Debug)]
pub struct Post {
    queues: Box<[ArrayQueue<Heard>]>,
    /// Whose sender has ended: nobody takes anything from such a queue any more.
    closed: Box<[AtomicBool]>,
    share: usize,
    /// Next hops that the senders ask for beside those known from the start.
    asked: RwLock<HashSet<(PathId, IpAddr)>>,
}

impl Post {
    /// Builds the queues, of `capacity` messages each, for `senders` senders that own `slots` slots.
    pub fn new(senders: usize, slots: usize, capacity: usize) -> Self {
        let senders = senders.max(1);
        Post {
            queues: (0..senders).map(|_| ArrayQueue::new(capacity)).collect(),
            closed: (0..senders).map(|_| AtomicBool::new(false)).collect(),
            share: slots.div_ceil(senders).max(1),
            asked: RwLock::default(),
        }
    }

    /// Lets the receiver of `path` believe answers of the next hop `ip` too.
    pub fn ask(&self, path: PathId, ip: IpAddr) {
        self.asked.write().unwrap_or_else(PoisonError::into_inner).insert((path, ip));
    }

    fn is_asked(&self, path: PathId, ip: IpAddr) -> bool {
        self.asked.read().unwrap_or_else(PoisonError::into_inner).contains(&(path, ip))
    }

    /// Returns how many slots each sender owns; the last may own fewer.
    pub fn share(&self) -> usize {
        self.share
    }

    /// Hands a message to whom it concerns: a reply to the owner of its slot, all else to everyone.
    ///
    /// # Errors
    /// A queue is full; the message comes back, and may have reached others already.
    pub fn push(&self, heard: Heard) -> Result<(), Heard> {
        match heard {
            Heard::Reply { reply: Reply { slot: Slot(slot), .. }, .. } => {
                // A slot beyond the shares cannot come from the table; the last owner refuses it.
                let owner = (slot as usize / self.share).min(self.queues.len() - 1);
                self.push_to(owner, heard)
            }
            Heard::Neighbour { .. } => {
                (0..self.queues.len()).try_for_each(|sender| self.push_to(sender, heard))
            }
        }
    }

    fn push_to(&self, sender: usize, heard: Heard) -> Result<(), Heard> {
        // Relaxed: a message more or less makes no difference to a sender that has ended.
        if self.closed[sender].load(Ordering::Relaxed) {
            return Ok(());
        }
        self.queues[sender].push(heard)
    }

    /// Says that `sender` has ended: what comes for it from now on is thrown away.
    pub fn close(&self, sender: usize) {
        self.closed[sender].store(true, Ordering::Relaxed);
    }

    /// Takes the next message for `sender`.
    pub fn pop(&self, sender: usize) -> Option<Heard> {
        self.queues[sender].pop()
    }

    /// Returns how many messages wait for `sender`.
    pub fn waiting(&self, sender: usize) -> usize {
        self.queues[sender].len()
    }
}

/// Frames received, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxCounts {
    /// Frames handed in.
    pub frames: u64,
    /// Frames believed and handed on.
    pub matched: u64,
    /// Frames not believed, in the order of [`Rejection::ALL`].
    pub rejected: [u64; Rejection::ALL.len()],
}

impl RxCounts {
    /// Counts a frame under `rejection`.
    pub fn reject(&mut self, rejection: Rejection) {
        self.rejected[rejection as usize] += 1;
    }
}

/// The receiving half of one path.
#[derive(Debug)]
pub struct Receiver {
    path: PathId,
    link: LinkType,
    table: Arc<Table>,
    next_hops: HashSet<IpAddr>,
    post: Arc<Post>,
    counts: RxCounts,
}

impl Receiver {
    /// Builds the receiving half for the path `path`, whose frames start with `link` and on which
    /// the senders ask for the MAC addresses of `next_hops`.
    pub fn new(
        path: PathId,
        link: LinkType,
        table: Arc<Table>,
        next_hops: HashSet<IpAddr>,
        post: Arc<Post>,
    ) -> Self {
        Receiver { path, link, table, next_hops, post, counts: RxCounts::default() }
    }

    /// Parses one frame, matches it, and hands what is believed to the sender.
    ///
    /// # Errors
    /// The queue to the sender is full: hand over the returned message with
    /// [`hand_on`](Self::hand_on) once there is room.
    pub fn handle_frame(&mut self, frame: RxFrame<'_>) -> Result<(), Heard> {
        self.counts.frames += 1;
        match self.judge(frame) {
            Ok(heard) => {
                self.counts.matched += 1;
                self.hand_on(heard)
            }
            Err((rejection, hint)) => {
                self.counts.reject(rejection);
                hint.map_or(Ok(()), |heard| self.hand_on(heard))
            }
        }
    }

    /// Hands a message to the sender.
    ///
    /// # Errors
    /// The queue is full; the message comes back.
    pub fn hand_on(&self, heard: Heard) -> Result<(), Heard> {
        self.post.push(heard)
    }

    /// Returns what the path's frames start with.
    pub fn link(&self) -> LinkType {
        self.link
    }

    /// Returns the counters.
    pub fn counts(&self) -> &RxCounts {
        &self.counts
    }

    fn reply(&self, reply: Reply) -> Heard {
        Heard::Reply { path: self.path, reply }
    }

    fn judge(&self, frame: RxFrame<'_>) -> Result<Heard, (Rejection, Option<Heard>)> {
        let reject = |rejection| (rejection, None);
        let packet =
            parse(frame.bytes, self.link, frame.checksums).map_err(|error| match error {
                ParseError::Checksum(_) => reject(Rejection::Checksum),
                ParseError::Truncated(_) | ParseError::Malformed(_) => reject(Rejection::Malformed),
            })?;
        match packet {
            Packet::Tcp(segment) => {
                let reply = match_segment(&self.table, &segment, frame.at).map_err(reject)?;
                if reply.kind == ReplyKind::OldConnection {
                    return Err((Rejection::AckUnacceptable, Some(self.reply(reply))));
                }
                Ok(self.reply(reply))
            }
            Packet::Icmp(error) => {
                let reply = match_icmp(&self.table, &error, frame.at).map_err(reject)?;
                Ok(self.reply(reply))
            }
            Packet::Arp(arp) if arp.op == ArpOp::Reply => {
                let ip = arp.sender_ip.into();
                if !self.next_hops.contains(&ip) && !self.post.is_asked(self.path, ip) {
                    return Err(reject(Rejection::ArpUnasked));
                }
                Ok(Heard::Neighbour { path: self.path, ip, mac: arp.sender_mac })
            }
            Packet::Arp(_) | Packet::Other => Err(reject(Rejection::OtherProtocol)),
        }
    }
}
