//! Which of this host's own connections have other ends on the wire than their sockets have: what
//! connection tracking says of them (ctnetlink; net/netfilter/nf_conntrack_netlink.c).
//!
//! An entry holds a connection's packets as they come into this host, before anything is translated, in
//! two tuples, one for each direction. Whoever opened it is the source of the first tuple, ORIG, and
//! hears the second, REPLY; whoever was opened to is the source of REPLY, and hears ORIG. So a socket
//! that sends as one of the tuples says is answered as the other one says, and is translated if that
//! is not the same turned round:
//!
//! ```text
//! DNAT in output      ORIG socket → service   REPLY backend → socket
//! masquerade          ORIG socket → peer      REPLY peer → other address and port
//! REDIRECT, accepted  ORIG peer → service     REPLY socket → peer
//! ```
//!
//! On the loopback this does not hold: there all is translated, both ways, before a packet leaves.

use super::privilege::{self, Capability};
use super::{IoError, nfnetlink};
use crossbeam::channel::{Receiver, Sender, bounded};
use netlink_packet_core::NlasIterator;
use std::collections::hash_map::Entry as Place;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// The ends of a connection: ours and the peer's, without scope.
pub type Ends = (SocketAddr, SocketAddr);

/// Returns two ends as connection tracking has them, without scope.
pub fn ends(local: SocketAddr, peer: SocketAddr) -> Ends {
    let plain = |end: SocketAddr| SocketAddr::new(end.ip(), end.port());
    (plain(local), plain(peer))
}

/// What connection tracking says of some connections: by the ends of the socket those on the wire, or
/// `None` where entries contradict each other, or sequence numbers are translated as well.
pub type Tracked = HashMap<Ends, Option<Ends>>;

/// NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET.
const GET: u16 = 1 << 8 | 1;

// enum ctattr_type and its kin (linux/netfilter/nfnetlink_conntrack.h).
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

// enum ip_conntrack_status (linux/netfilter/nf_conntrack_common.h).
const IPS_SRC_NAT: u32 = 1 << 4;
const IPS_DST_NAT: u32 = 1 << 5;
const IPS_SEQ_ADJUST: u32 = 1 << 6;

/// Absent where connection tracking is not loaded.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// IPVS alters entries without marking them (net/netfilter/ipvs/ip_vs_nfct.c).
const IPVS: &str = "/proc/net/ip_vs";

/// Which entries are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// Those that are translated: the kernel itself leaves out the others.
    Translated,
    /// All, so that a connection without an entry can be told from one that is not translated.
    All,
}

/// Reads what connection tracking says of the TCP connections `of` in the calling thread's network
/// namespace.
///
/// Needs CAP_NET_ADMIN. To be spared where nothing is [tracked](count).
///
/// # Errors
/// The kernel does not tell.
pub fn read(of: &HashSet<Ends>, extent: Extent) -> Result<Tracked, IoError> {
    let mut tracked = Tracked::new();
    let wanted = match extent {
        Extent::Translated if !Path::new(IPVS).exists() => {
            vec![with_status(IPS_SRC_NAT), with_status(IPS_DST_NAT)]
        }
        _ => vec![Vec::new()],
    };
    let remedy = "needs CAP_NET_ADMIN, and a kernel with CONFIG_NF_CT_NETLINK";
    for restriction in wanted {
        let mut note = |_, attributes: &[u8]| {
            if let Some(entry) = Entry::parse(attributes) {
                entry.note(of, extent, &mut tracked);
            }
        };
        nfnetlink::dump(GET, &restriction, &mut note).map_err(|source| failed(source, remedy))?;
    }
    Ok(tracked)
}

fn failed(source: io::Error, remedy: &'static str) -> IoError {
    let object = "this network namespace".to_owned();
    IoError { operation: "read connection tracking of", object, source, remedy }
}

/// Returns how many connections of this network namespace are tracked; `None` if none ever is.
pub fn count() -> Option<u64> {
    // What cannot be read is not nothing.
    Some(fs::read_to_string(COUNT).ok()?.trim().parse().unwrap_or(u64::MAX))
}

/// What restricts a dump to the entries that have `status`.
fn with_status(status: u32) -> Vec<u8> {
    let attributes = [CTA_STATUS, CTA_STATUS_MASK];
    let octets = status.to_be_bytes();
    attributes.into_iter().flat_map(|kind| nfnetlink::attribute(kind, &octets)).collect()
}

/// One direction of a connection: whence and whither its packets go as they come into this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Tuple {
    src: SocketAddr,
    dst: SocketAddr,
}

/// An entry for a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    orig: Tuple,
    reply: Tuple,
    is_seq_adjusted: bool,
}

impl Entry {
    /// Reads an entry; `None` if it is of another protocol, or not all there.
    fn parse(attributes: &[u8]) -> Option<Entry> {
        let (mut orig, mut reply, mut status) = (None, None, 0);
        for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
            let value = attribute.value();
            match attribute.kind() {
                CTA_TUPLE_ORIG => orig = Some(Tuple::parse(value)?),
                CTA_TUPLE_REPLY => reply = Some(Tuple::parse(value)?),
                CTA_STATUS => status = u32::from_be_bytes(*value.first_chunk()?),
                _ => {}
            }
        }
        let is_seq_adjusted = status & IPS_SEQ_ADJUST != 0;
        Some(Entry { orig: orig?, reply: reply?, is_seq_adjusted })
    }

    /// Returns the ends that the socket of one of its sides has, if that is here, and those that its
    /// packets have on the wire.
    fn sides(&self) -> [(Ends, Ends); 2] {
        let side = |sent: Tuple, heard: Tuple| ((sent.src, sent.dst), (heard.dst, heard.src));
        [side(self.orig, self.reply), side(self.reply, self.orig)]
    }

    /// Adds to `tracked` what is news of the connections `of`.
    fn note(&self, of: &HashSet<Ends>, extent: Extent, tracked: &mut Tracked) {
        for (socket, wire) in self.sides() {
            let is_news = wire != socket || self.is_seq_adjusted || extent == Extent::All;
            if !is_news || !of.contains(&socket) {
                continue;
            }
            let wire = Some(wire).filter(|_| !self.is_seq_adjusted);
            match tracked.entry(socket) {
                Place::Vacant(place) => drop(place.insert(wire)),
                // In another zone, or of a connection that is over: which of them counts?
                Place::Occupied(mut place) if *place.get() != wire => drop(place.insert(None)),
                Place::Occupied(_) => {}
            }
        }
    }
}

impl Tuple {
    fn parse(attributes: &[u8]) -> Option<Tuple> {
        let (mut src, mut dst) = (None, None);
        let (mut protocol, mut src_port, mut dst_port) = (None, None, None);
        for part in NlasIterator::new(attributes).map_while(Result::ok) {
            for field in NlasIterator::new(part.value()).map_while(Result::ok) {
                let value = field.value();
                match (part.kind(), field.kind()) {
                    (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => src = Some(address(value)?),
                    (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => dst = Some(address(value)?),
                    (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = value.first().copied(),
                    (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => src_port = Some(port(value)?),
                    (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => dst_port = Some(port(value)?),
                    _ => {}
                }
            }
        }
        if protocol.map(i32::from) != Some(libc::IPPROTO_TCP) {
            return None;
        }
        let end = |address: IpAddr, port| SocketAddr::new(address, port);
        Some(Tuple { src: end(src?, src_port?), dst: end(dst?, dst_port?) })
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
        16 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn port(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*value.first_chunk()?))
}

/// Reads connection tracking again and again, for threads that have no privilege to.
///
/// The kernel looks at the privileges of whoever asks, each time (nfnetlink_rcv). So this has a thread of
/// its own, in the network namespace of the thread that opened it, which keeps CAP_NET_ADMIN alone.
#[derive(Debug)]
pub struct Conntrack {
    ask: Sender<(Arc<HashSet<Ends>>, Extent)>,
    answers: Receiver<Result<Tracked, IoError>>,
}

impl Conntrack {
    /// Starts the thread; it ends when this is dropped.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn open() -> Result<Conntrack, IoError> {
        let (ask, asked) = bounded::<(Arc<HashSet<Ends>>, Extent)>(1);
        let (answer, answers) = bounded(1);
        let serve = move || {
            let kept = privilege::keep(&[Capability::CAP_NET_ADMIN]);
            for (of, extent) in asked {
                let tracked = match &kept {
                    Ok(()) => read(&of, extent),
                    Err(error) => Err(failed(io::Error::other(error.to_string()), "")),
                };
                if answer.send(tracked).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("conntrack".to_owned());
        thread.spawn(serve).map_err(|source| IoError {
            operation: "start a thread",
            object: "connection tracking".to_owned(),
            source,
            remedy: "",
        })?;
        Ok(Conntrack { ask, answers })
    }

    /// Does what [`read`] does.
    ///
    /// # Errors
    /// As [`read`].
    pub fn read(&mut self, of: &Arc<HashSet<Ends>>, extent: Extent) -> Result<Tracked, IoError> {
        let sent = self.ask.send((Arc::clone(of), extent)).ok();
        let answer = sent.and_then(|()| self.answers.recv().ok());
        answer.unwrap_or_else(|| Err(failed(io::Error::other("its thread has ended"), "")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::nfnetlink::attribute;
    use proptest::prelude::*;

    fn ends(text: &str) -> Ends {
        let mut ends = text.split(' ').map(|end| end.parse().expect("an end"));
        (ends.next().expect("ours"), ends.next().expect("the peer's"))
    }

    fn octets(address: IpAddr) -> Vec<u8> {
        match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    fn tuple(kind: u16, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let [from, to] = if src.is_ipv4() {
            [CTA_IP_V4_SRC, CTA_IP_V4_DST]
        } else {
            [CTA_IP_V6_SRC, CTA_IP_V6_DST]
        };
        let addresses =
            [attribute(from, &octets(src.ip())), attribute(to, &octets(dst.ip()))].concat();
        let ports = [
            attribute(CTA_PROTO_NUM, &[6]),
            attribute(CTA_PROTO_SRC_PORT, &src.port().to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &dst.port().to_be_bytes()),
        ];
        let parts = [
            attribute(CTA_TUPLE_IP | NESTED, &addresses),
            attribute(CTA_TUPLE_PROTO | NESTED, &ports.concat()),
        ];
        attribute(kind | NESTED, &parts.concat())
    }

    /// An entry, its tuples written as `source destination`.
    fn entry(orig: &str, reply: &str, status: u32) -> Vec<u8> {
        let ((orig_src, orig_dst), (reply_src, reply_dst)) = (ends(orig), ends(reply));
        [
            tuple(CTA_TUPLE_ORIG, orig_src, orig_dst),
            tuple(CTA_TUPLE_REPLY, reply_src, reply_dst),
            attribute(CTA_STATUS, &status.to_be_bytes()),
            attribute(99, b"of a later kernel"),
        ]
        .concat()
    }

    fn tracked(entries: &[Vec<u8>], of: &[&str], extent: Extent) -> Tracked {
        let of = of.iter().map(|text| ends(text)).collect();
        let mut tracked = Tracked::new();
        for attributes in entries {
            Entry::parse(attributes).expect("an entry").note(&of, extent, &mut tracked);
        }
        tracked
    }

    const SOCKET: &str = "10.0.0.1:40000 10.9.9.9:80";
    const REVERSE: &str = "10.9.9.9:80 10.0.0.1:40000";

    /// Whichever side the socket is of, and whatever is translated.
    #[test]
    fn the_wire_is_the_other_direction_turned_round() {
        let v6 = "[fd00::1]:40000 [fd09::9]:80";
        for (orig, reply, socket, wire) in [
            // DNAT in the output hook, masquerading, both.
            (SOCKET, "10.2.2.2:81 10.0.0.1:40000", SOCKET, "10.0.0.1:40000 10.2.2.2:81"),
            (SOCKET, "10.9.9.9:80 10.0.0.7:20000", SOCKET, "10.0.0.7:20000 10.9.9.9:80"),
            (SOCKET, "10.2.2.2:81 10.0.0.7:20000", SOCKET, "10.0.0.7:20000 10.2.2.2:81"),
            (v6, "[fd02::2]:81 [fd00::1]:20000", v6, "[fd00::1]:20000 [fd02::2]:81"),
            // Accepted: REDIRECT or DNAT in the prerouting hook, and SNAT in the input hook.
            (REVERSE, "10.0.0.5:81 10.9.9.9:80", "10.0.0.5:81 10.9.9.9:80", SOCKET),
            (REVERSE, "10.0.0.1:40000 10.7.7.7:9", "10.0.0.1:40000 10.7.7.7:9", SOCKET),
        ] {
            let found = tracked(&[entry(orig, reply, 0x38)], &[socket], Extent::Translated);
            assert_eq!(found, Tracked::from([(ends(socket), Some(ends(wire)))]), "{orig} {reply}");
        }
    }

    #[test]
    fn what_is_not_translated_is_told_on_demand_and_of_others_nothing() {
        let plain = [
            entry(SOCKET, REVERSE, 0),
            entry("10.1.1.1:1 10.1.1.2:2", "10.3.3.3:3 10.1.1.1:1", 0x20),
        ];
        assert_eq!(tracked(&plain, &[SOCKET], Extent::Translated), Tracked::new());
        let all = tracked(&plain, &[SOCKET], Extent::All);
        assert_eq!(all, Tracked::from([(ends(SOCKET), Some(ends(SOCKET)))]));
    }

    #[test]
    fn what_nobody_can_say_is_none() {
        let one = entry(SOCKET, "10.2.2.2:81 10.0.0.1:40000", 0x20);
        let other = entry(SOCKET, "10.2.2.3:81 10.0.0.1:40000", 0x20);
        let adjusted = entry(SOCKET, REVERSE, IPS_SEQ_ADJUST);
        let none = Tracked::from([(ends(SOCKET), None)]);
        assert_eq!(tracked(&[one.clone(), other], &[SOCKET], Extent::Translated), none);
        assert_eq!(tracked(&[adjusted], &[SOCKET], Extent::Translated), none);
        // The same once more, as two dumps tell it that is translated both ways.
        let twice = tracked(&[one.clone(), one], &[SOCKET], Extent::Translated);
        assert_eq!(
            twice,
            Tracked::from([(ends(SOCKET), Some(ends("10.0.0.1:40000 10.2.2.2:81")))])
        );
    }

    #[test]
    fn half_an_entry_and_one_of_another_protocol_are_none() {
        let whole = entry(SOCKET, REVERSE, 0);
        let tuples = whole.len() - 8 - 24;
        for len in 0..tuples {
            assert_eq!(Entry::parse(&whole[..len]), None, "{len}");
        }
        assert!(Entry::parse(&whole).is_some());
        let mut udp = whole;
        let protocol = udp.windows(8).position(|part| part == [5, 0, 1, 0, 6, 0, 0, 0]);
        udp[protocol.expect("little endian") + 4] = 17;
        assert_eq!(Entry::parse(&udp), None);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::parse(&bytes);
        }

        #[test]
        fn whatever_is_changed_in_an_entry_is_read_or_refused(at in 0usize..200, octet: u8) {
            let mut attributes = entry(SOCKET, REVERSE, 0x38);
            let at = at % attributes.len();
            attributes[at] = octet;
            let _ = Entry::parse(&attributes);
        }
    }
}
