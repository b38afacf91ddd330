//! The receiving half: parse, match, hand on. One per path; shares only the flow table and the
//! senders' queues.
#![forbid(unsafe_code)]

use crate::io::{PathId, RxFrame};
use crate::probe::Slot;
use crate::probe::matcher::{Gist, Rejection, Reply, ReplyKind, judge_segment, key_of, match_icmp};
use crate::probe::table::{FlowKey, Prepared, Table};
use crate::probe::translations::Translations;
use crate::time::Instant;
use crate::wire::{ArpOp, LinkType, MacAddr, NdKind, Packet, ParseError, parse};
use crossbeam::queue::ArrayQueue;
use std::collections::HashSet;
use std::mem;
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
    /// The same, heard on the loopback: from this host itself.
    Local {
        /// The loopback's path.
        path: PathId,
        /// The reply.
        reply: Reply,
    },
    /// An ARP reply or Neighbour Advertisement.
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
            Heard::Reply { reply: Reply { slot: Slot(slot), .. }, .. }
            | Heard::Local { reply: Reply { slot: Slot(slot), .. }, .. } => {
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

/// Segments that are looked up together. Fetching a flow's two cache lines takes as long as parsing
/// one to three frames, and a core has about a dozen such fetches under way at once; more than twice
/// as many gain nothing.
const TOGETHER: usize = 32;

/// A segment that is parsed, but not looked up.
#[derive(Clone, Copy, Debug)]
struct Pending {
    flow: Prepared,
    gist: Gist,
}

/// A frame that is believed, or why it is not and what the sender should know all the same.
type Judged = Result<Heard, (Rejection, Option<Heard>)>;

/// The receiving half of one path.
///
/// Frames are handled one at a time ([`handle_frame`](Self::handle_frame)), or taken in and settled
/// some at a time ([`take_in`](Self::take_in), [`settle`](Self::settle)), which comes to the same and
/// is faster.
#[derive(Debug)]
pub struct Receiver {
    path: PathId,
    link: LinkType,
    table: Arc<Table>,
    next_hops: HashSet<IpAddr>,
    post: Arc<Post>,
    on_loopback: bool,
    translations: Arc<Translations>,
    counts: RxCounts,
    /// Taken in and not settled, in the order in which they came.
    pending: Vec<Pending>,
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
        Receiver {
            path,
            link,
            table,
            next_hops,
            post,
            on_loopback: false,
            translations: Arc::default(),
            counts: RxCounts::default(),
            pending: Vec::with_capacity(TOGETHER),
        }
    }

    /// Says which flows have other ends on the wire than in the table.
    #[must_use]
    pub fn with_translations(self, translations: Arc<Translations>) -> Self {
        Receiver { translations, ..self }
    }

    /// Says that the path is the loopback: what is heard there comes from this host, whoever it says
    /// it is from.
    #[must_use]
    pub fn on_loopback(self) -> Self {
        Receiver { on_loopback: true, ..self }
    }

    /// Parses one frame, matches it, and hands what is believed to the sender. What was taken in before
    /// must be settled, or its turn comes later.
    ///
    /// # Errors
    /// The queue to the sender is full: hand over the returned message with
    /// [`hand_on`](Self::hand_on) once there is room.
    pub fn handle_frame(&mut self, frame: RxFrame<'_>) -> Result<(), Heard> {
        self.counts.frames += 1;
        let judged = self.parse(frame).and_then(|packet| match packet {
            Packet::Tcp(segment) => {
                let view = self.table.lookup(&self.in_table(key_of(&segment)));
                self.believe(judge_segment(view, &Gist::of(&segment, frame.at)))
            }
            packet => self.judge_other(packet, frame.at),
        });
        self.conclude(judged)
    }

    /// Parses one frame. If it holds a segment, that is matched later, together with others; `stuck`
    /// gets what should be handed on and finds the queue full, to be handed over before it returns.
    ///
    /// Every frame's turn comes in the order in which it was taken in, and at the next
    /// [`settle`](Self::settle) at the latest.
    #[inline]
    pub fn take_in(&mut self, frame: RxFrame<'_>, stuck: &mut dyn FnMut(Heard)) {
        self.counts.frames += 1;
        let judged = match self.parse(frame) {
            Ok(Packet::Tcp(segment)) => {
                match self.table.prepare(&self.in_table(key_of(&segment))) {
                    Some(flow) => {
                        self.pending.push(Pending { flow, gist: Gist::of(&segment, frame.at) });
                        if self.pending.len() == TOGETHER {
                            self.settle(stuck);
                        }
                        return;
                    }
                    None => Err((Rejection::NoFlow, None)),
                }
            }
            Ok(packet) => {
                // An error may be about a flow whose segment came before it.
                self.settle(stuck);
                self.judge_other(packet, frame.at)
            }
            Err(refused) => Err(refused),
        };
        if let Err(heard) = self.conclude(judged) {
            stuck(heard);
        }
    }

    /// Matches every segment that was taken in, and hands on what is believed; `stuck` as for
    /// [`take_in`](Self::take_in).
    pub fn settle(&mut self, stuck: &mut dyn FnMut(Heard)) {
        let mut pending = mem::take(&mut self.pending);
        for segment in &pending {
            self.table.fetch(&segment.flow);
        }
        for Pending { flow, gist } in pending.drain(..) {
            let judged = self.believe(judge_segment(self.table.find(&flow), &gist));
            if let Err(heard) = self.conclude(judged) {
                stuck(heard);
            }
        }
        self.pending = pending;
    }

    fn conclude(&mut self, judged: Judged) -> Result<(), Heard> {
        match judged {
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

    /// Returns the ends that the table has for a flow with these on the wire. What comes by the loopback
    /// has been translated back before it was sent.
    #[inline]
    fn in_table(&self, wire: FlowKey) -> FlowKey {
        if self.on_loopback { wire } else { self.translations.socket_of(wire) }
    }

    fn is_asked(&self, next_hop: IpAddr) -> bool {
        self.next_hops.contains(&next_hop) || self.post.is_asked(self.path, next_hop)
    }

    fn heard(&self, reply: Reply) -> Heard {
        match self.on_loopback {
            true => Heard::Local { path: self.path, reply },
            false => Heard::Reply { path: self.path, reply },
        }
    }

    #[inline]
    fn parse<'f>(&self, frame: RxFrame<'f>) -> Result<Packet<'f>, (Rejection, Option<Heard>)> {
        parse(frame.bytes, self.link, frame.checksums).map_err(|error| match error {
            ParseError::Checksum(_) => (Rejection::Checksum, None),
            ParseError::Truncated(_) | ParseError::Malformed(_) => (Rejection::Malformed, None),
        })
    }

    fn believe(&self, matched: Result<Reply, Rejection>) -> Judged {
        let reply = matched.map_err(|rejection| (rejection, None))?;
        match reply.kind {
            ReplyKind::OldConnection => Err((Rejection::AckUnacceptable, Some(self.heard(reply)))),
            _ => Ok(self.heard(reply)),
        }
    }

    /// Judges what is no segment.
    fn judge_other(&self, packet: Packet<'_>, at: Instant) -> Judged {
        let reject = |rejection| (rejection, None);
        match packet {
            Packet::Icmp(mut error) => {
                let quoted = FlowKey { local: error.quoted.src, peer: error.quoted.dst };
                let FlowKey { local, peer } = self.in_table(quoted);
                (error.quoted.src, error.quoted.dst) = (local, peer);
                self.believe(match_icmp(&self.table, &error, at))
            }
            Packet::Arp(arp) if arp.op == ArpOp::Reply => {
                let ip = arp.sender_ip.into();
                if !self.is_asked(ip) {
                    return Err(reject(Rejection::ArpUnasked));
                }
                Ok(Heard::Neighbour { path: self.path, ip, mac: arp.sender_mac })
            }
            Packet::Nd(advert) if advert.kind != NdKind::Solicitation => {
                let ip = advert.target.into();
                // Without an address it is no answer to a question put to the group (RFC 4861
                // §7.2.4), and leaves open what is open (§7.2.5).
                let mac = advert.mac.filter(|_| self.is_asked(ip));
                let mac = mac.ok_or(reject(Rejection::NdUnasked))?;
                Ok(Heard::Neighbour { path: self.path, ip, mac })
            }
            Packet::Tcp(_) | Packet::Arp(_) | Packet::Nd(_) | Packet::Other => {
                Err(reject(Rejection::OtherProtocol))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::host::Wire;
    use crate::probe::table::{Expect, Family, FlowKey, Past, Phase};
    use crate::wire::icmp::emit_error;
    use crate::wire::{
        Arp, Checksums, Flags, IpHeader, LinkHeader, Nd, Options, Segment, SeqNumber,
    };
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEIRS: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
    const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

    fn receiver() -> Receiver {
        let table = Arc::new(Table::with_capacity(1, Family::V6, [1, 2]));
        let next_hops = HashSet::from([ROUTER.into(), ROUTER_V4.into()]);
        let post = Arc::new(Post::new(1, 1, 16));
        Receiver::new(PathId(3), LinkType::Ethernet, table, next_hops, post)
    }

    /// What the sender hears of a frame, and under what the frame is counted.
    fn hear(emit: impl Fn(&LinkHeader, &mut [u8]) -> usize) -> (Option<Heard>, Option<Rejection>) {
        let mut receiver = receiver();
        let mut bytes = [0; 128];
        let len = emit(&LinkHeader::Ethernet { src: THEIRS, dst: US, vlan: None }, &mut bytes);
        let (bytes, checksums) = (&bytes[..len], Checksums::Verify);
        receiver.handle_frame(RxFrame { bytes, at: Instant::ZERO, checksums }).unwrap();
        let counts = receiver.counts();
        let refused = Rejection::ALL.into_iter().find(|&why| counts.rejected[why as usize] > 0);
        assert_eq!(counts.matched + counts.rejected.iter().sum::<u64>(), 1);
        (receiver.post.pop(0), refused)
    }

    fn advert() -> Nd {
        let kind = NdKind::Advertisement { router: true, solicited: true, overrides: true };
        let dst = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        Nd { kind, src: ROUTER, dst, target: ROUTER, mac: Some(THEIRS) }
    }

    #[test]
    fn neighbours_are_believed_if_they_were_asked_for() {
        let heard = |message: Nd| hear(move |link, buf| message.emit(link, buf).unwrap());
        let believed = Heard::Neighbour { path: PathId(3), ip: ROUTER.into(), mac: THEIRS };
        assert_eq!(heard(advert()), (Some(believed), None));
        // From another of its addresses, or by its proxy.
        let proxied = Nd { src: Ipv6Addr::LOCALHOST, ..advert() };
        assert_eq!(heard(proxied), (Some(believed), None));

        let refused = |why| (None, Some(why));
        let other = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xff);
        assert_eq!(heard(Nd { target: other, ..advert() }), refused(Rejection::NdUnasked));
        let mapped = Nd { target: ROUTER_V4.to_ipv6_mapped(), ..advert() };
        assert_eq!(heard(mapped), refused(Rejection::NdUnasked));
        assert_eq!(heard(Nd { mac: None, ..advert() }), refused(Rejection::NdUnasked));
        let question = Nd { kind: NdKind::Solicitation, ..advert() };
        assert_eq!(heard(question), refused(Rejection::OtherProtocol));
        let forwarded = hear(|link, buf| {
            let len = advert().emit(link, buf).unwrap();
            buf[21] = 254;
            len
        });
        assert_eq!(forwarded, refused(Rejection::Malformed));
    }

    #[test]
    fn arp_replies_too() {
        let heard = |sender_ip: Ipv4Addr, op: ArpOp| {
            hear(move |link, buf| {
                let target_ip = Ipv4Addr::new(10, 0, 0, 1);
                Arp { op, sender_mac: THEIRS, sender_ip, target_mac: US, target_ip }
                    .emit(link, buf)
                    .unwrap()
            })
        };
        let believed = Heard::Neighbour { path: PathId(3), ip: ROUTER_V4.into(), mac: THEIRS };
        assert_eq!(heard(ROUTER_V4, ArpOp::Reply), (Some(believed), None));
        let other = Ipv4Addr::new(10, 0, 0, 253);
        assert_eq!(heard(other, ArpOp::Reply), (None, Some(Rejection::ArpUnasked)));
        assert_eq!(heard(ROUTER_V4, ArpOp::Request), (None, Some(Rejection::OtherProtocol)));
    }

    /// A frame to a receiver whose table holds [`FLOWS`] flows.
    #[derive(Clone, Debug)]
    enum Incoming {
        Segment { flow: u16, flags: u8, seq: u32, ack: u32, len: usize, damaged: bool },
        Error { flow: u16, seq: u32 },
        Arp { known: bool },
        Garbage(Vec<u8>),
    }

    const FLOWS: u16 = 40;

    fn incoming() -> impl Strategy<Value = Incoming> {
        // Beyond the flows there are, in both directions of every number, and often right.
        let flow = || 0..FLOWS + 4;
        let near = || prop_oneof![4 => Just(0u32), 1 => 0u32..3, 1 => any::<u32>()];
        let flags = prop_oneof![4 => Just(0x10u8), 1 => Just(0x04), 1 => Just(0x12), 1 => 0u8..32];
        let segment = (flow(), flags, near(), near(), 0..3usize, prop::bool::weighted(0.05));
        prop_oneof![
            12 => segment.prop_map(|(flow, flags, seq, ack, len, damaged)| {
                Incoming::Segment { flow, flags, seq, ack, len, damaged }
            }),
            2 => (flow(), near()).prop_map(|(flow, seq)| Incoming::Error { flow, seq }),
            1 => any::<bool>().prop_map(|known| Incoming::Arp { known }),
            1 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Incoming::Garbage),
        ]
    }

    fn ends(flow: u16, v6: bool) -> (SocketAddr, SocketAddr) {
        let ip = |net: u8, host: u8| match v6 {
            true => IpAddr::from([0xfd00, net.into(), 0, 0, 0, 0, 0, host.into()]),
            false => IpAddr::from([10, net, 0, host]),
        };
        (SocketAddr::new(ip(98, 1), 61_000 + flow), SocketAddr::new(ip(99, flow as u8), 80))
    }

    fn table_of_flows(family: Family, v6: impl Fn(u16) -> bool) -> Table {
        let table = Table::with_capacity(FLOWS.into(), family, [1, 2]);
        for flow in 0..FLOWS {
            let (local, peer) = ends(flow, v6(flow));
            let una = SeqNumber(u32::from(flow));
            let expect = Expect {
                phase: [Phase::Open, Phase::SynSent, Phase::Closed, Phase::Open]
                    [usize::from(flow % 4)],
                snd_una: una,
                snd_nxt: una,
                rcv_nxt: SeqNumber(u32::MAX),
                past: Past::UNKNOWN,
                probe_ack: SeqNumber(u32::MAX),
                probe_outstanding: flow % 3 != 0,
                given: flow % 5 == 0,
            };
            table.insert(Slot(flow.into()), &FlowKey { local, peer }, &expect).unwrap();
        }
        table
    }

    fn emit(incoming: &Incoming, v6: bool) -> Vec<u8> {
        let link = LinkHeader::Ethernet { src: THEIRS, dst: US, vlan: None };
        let mut buf = [0; 512];
        let segment = |from: SocketAddr, to: SocketAddr, flags, seq, ack| Segment {
            ip: IpHeader { src: from.ip(), dst: to.ip(), ttl: 60, id: 0 },
            src_port: from.port(),
            dst_port: to.port(),
            seq,
            ack,
            flags: Flags(flags),
            wnd: 100,
            options: Options::default(),
            payload: &[],
        };
        let len = match incoming {
            &Incoming::Segment { flow, flags, seq, ack, len, damaged } => {
                let (local, peer) = ends(flow, v6);
                let (seq, ack) = (SeqNumber(u32::MAX) + seq, SeqNumber(u32::from(flow)) + ack);
                let payload = &[7; 3][..len];
                let segment = Segment { payload, ..segment(peer, local, flags, seq, ack) };
                let len = segment.emit(&link, &mut buf).unwrap();
                buf[len - 1] ^= u8::from(damaged);
                len
            }
            &Incoming::Error { flow, seq } => {
                let (local, peer) = ends(flow, v6);
                let una = SeqNumber(u32::from(flow));
                let mut quoted = [0; 128];
                let probe = segment(local, peer, 0x10, una - 1 + seq, SeqNumber(0));
                let len = probe.emit(&LinkHeader::Ip, &mut quoted).unwrap();
                let ip = IpHeader { src: peer.ip(), dst: local.ip(), ttl: 63, id: 0 };
                let (icmp_type, code) = if v6 { (1, 3) } else { (3, 1) };
                emit_error(&ip, icmp_type, code, &quoted[..len], &link, &mut buf).unwrap()
            }
            &Incoming::Arp { known } => {
                let sender_ip = if known { ROUTER_V4 } else { Ipv4Addr::new(10, 0, 0, 1) };
                let target_ip = Ipv4Addr::new(10, 0, 0, 2);
                let arp = Arp {
                    op: ArpOp::Reply,
                    sender_mac: THEIRS,
                    sender_ip,
                    target_mac: US,
                    target_ip,
                };
                arp.emit(&link, &mut buf).unwrap()
            }
            Incoming::Garbage(bytes) => return bytes.clone(),
        };
        buf[..len].to_vec()
    }

    /// Flow 3 goes by the ends of flow 41 on the wire; on the loopback by its own.
    #[test]
    fn what_is_translated_belongs_to_the_flow_with_the_ends_of_the_socket() {
        let key = |(local, peer)| FlowKey { local, peer };
        for v6 in [false, true] {
            let translations = Arc::new(Translations::default());
            let wire = Wire::Other(key(ends(41, v6)));
            translations.note(key(ends(3, v6)), Wire::Same, wire);
            let table = Arc::new(table_of_flows(Family::V6, |_| v6));
            for on_loopback in [false, true] {
                let post = Arc::new(Post::new(1, 1, 16));
                let receiver = Receiver::new(
                    PathId(3),
                    LinkType::Ethernet,
                    table.clone(),
                    HashSet::new(),
                    post.clone(),
                );
                let receiver = receiver.with_translations(translations.clone());
                let mut receiver = if on_loopback { receiver.on_loopback() } else { receiver };
                let mut slots = Vec::new();
                for flow in [3, 41] {
                    // What flow 3 is answered, with these ends.
                    let ack = 3u32.wrapping_sub(flow.into());
                    let incoming = Incoming::Segment {
                        flow,
                        flags: 0x10,
                        seq: 0,
                        ack,
                        len: 0,
                        damaged: false,
                    };
                    let bytes = emit(&incoming, v6);
                    let frame =
                        RxFrame { bytes: &bytes, at: Instant::ZERO, checksums: Checksums::Verify };
                    receiver.handle_frame(frame).unwrap();
                    receiver.take_in(frame, &mut |_| unreachable!());
                    receiver.settle(&mut |_| unreachable!());
                    let heard = std::iter::from_fn(|| post.pop(0));
                    slots.push(
                        heard
                            .map(|heard| match heard {
                                Heard::Reply { reply, .. } | Heard::Local { reply, .. } => {
                                    reply.slot.0
                                }
                                Heard::Neighbour { .. } => unreachable!(),
                            })
                            .collect::<Vec<_>>(),
                    );
                }
                assert_eq!(slots, [vec![3, 3], if on_loopback { vec![] } else { vec![3, 3] }]);
            }
        }
    }

    proptest! {
        #[test]
        fn taken_in_together_or_one_by_one_frames_come_to_the_same(
            frames in prop::collection::vec((incoming(), any::<bool>()), 0..150),
            room in 1usize..40,
            settled_each in 1usize..70,
            both in any::<bool>(),
        ) {
            // A table for IPv4 alone is also met by IPv6.
            let (family, v6): (_, fn(u16) -> bool) =
                if both { (Family::V6, |flow| flow % 2 == 1) } else { (Family::V4, |_| false) };
            let table = Arc::new(table_of_flows(family, v6));
            let receiver = |post: &Arc<Post>| {
                let next_hops = HashSet::from([ROUTER_V4.into()]);
                Receiver::new(PathId(3), LinkType::Ethernet, table.clone(), next_hops, post.clone())
            };
            let (one_post, some_post) =
                (Arc::new(Post::new(1, 1, 200)), Arc::new(Post::new(1, 1, room)));
            let (mut one, mut some) = (receiver(&one_post), receiver(&some_post));
            let take = |post: &Post| std::iter::from_fn(|| post.pop(0)).collect::<Vec<_>>();
            let mut heard = Vec::new();
            let mut stuck = |message| {
                heard.extend(take(&some_post));
                assert_eq!(some_post.push(message), Ok(()), "there is room");
            };
            for (number, (incoming, odd)) in (1..).zip(&frames) {
                let flow_v6 = match *incoming {
                    Incoming::Segment { flow, .. } | Incoming::Error { flow, .. } => v6(flow) != (*odd && flow >= FLOWS),
                    _ => false,
                };
                let bytes = emit(incoming, flow_v6);
                let at = Instant::from_nanos(number as u64);
                let frame = RxFrame { bytes: &bytes, at, checksums: Checksums::Verify };
                prop_assert_eq!(one.handle_frame(frame), Ok(()));
                some.take_in(frame, &mut stuck);
                if number % settled_each == 0 {
                    some.settle(&mut stuck);
                }
            }
            some.settle(&mut stuck);
            heard.extend(take(&some_post));
            prop_assert_eq!(heard, take(&one_post));
            prop_assert_eq!(one.counts(), some.counts());
            let counts = some.counts();
            let rejected: u64 = counts.rejected.iter().sum();
            prop_assert_eq!(counts.frames, frames.len() as u64);
            prop_assert_eq!(counts.matched + rejected, counts.frames);
        }
    }
}
