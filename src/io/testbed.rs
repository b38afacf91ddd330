//! Interfaces that exist only to be measured: in a network namespace of one thread's own, gone with
//! the process however it ends.
#![forbid(unsafe_code)]

use super::IoError;
use super::route::netlink::Netlink;
use super::route::{Interface, interfaces};
use crate::wire::MacAddr;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::io;
use std::net::Ipv4Addr;

/// A network namespace that the calling thread has entered, and threads that it spawns from now on.
#[derive(Debug)]
pub struct Testbed {
    netlink: Netlink,
}

/// What an interface has counted since it was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkCounts {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Received packets that it has thrown away.
    pub rx_dropped: u64,
    /// Packets that it was to send and has thrown away.
    pub tx_dropped: u64,
}

impl Testbed {
    /// Takes the calling thread into a new, empty network namespace. There is no way back.
    ///
    /// # Errors
    /// No CAP_SYS_ADMIN, or a kernel without network namespaces.
    pub fn enter() -> Result<Self, IoError> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| IoError {
            operation: "make a network namespace",
            object: "this thread".to_owned(),
            source: errno.into(),
            remedy: "needs CAP_SYS_ADMIN: try sudo, or name an interface with -i",
        })?;
        // Else the kernel's own router solicitations are counted among our frames. Where there is no
        // IPv6 there are none.
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        Ok(Testbed { netlink: Netlink::open()? })
    }

    /// Makes an `ifb`, which throws away what it is given.
    ///
    /// # Errors
    /// The kernel has none (EOPNOTSUPP).
    pub fn add_ifb(&mut self, name: &str) -> Result<(), IoError> {
        self.add(name, vec![LinkInfo::Kind(InfoKind::Ifb)])
    }

    /// Makes a `veth` pair: what one end sends, the other receives.
    ///
    /// # Errors
    /// The kernel has none (EOPNOTSUPP).
    pub fn add_veth(&mut self, name: &str, peer: &str) -> Result<(), IoError> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        let data = InfoData::Veth(InfoVeth::Peer(other));
        self.add(name, vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)])
    }

    fn add(&mut self, name: &str, info: Vec<LinkInfo>) -> Result<(), IoError> {
        let mut link = LinkMessage::default();
        link.attributes =
            vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        self.netlink.change("make an interface", RouteNetlinkMessage::NewLink(link))
    }

    /// Switches an interface on and returns what it is then.
    ///
    /// # Errors
    /// The kernel refused, or there is none of that name.
    pub fn raise(&mut self, name: &str) -> Result<Interface, IoError> {
        let mut link = LinkMessage::default();
        link.header.index = find(name)?.index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.netlink.change("switch an interface on", RouteNetlinkMessage::SetLink(link))?;
        find(name)
    }

    /// Gives an interface an address and a neighbour of the given MAC address, and routes a /16
    /// through that neighbour.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn route(
        &mut self,
        ifindex: u32,
        address: Ipv4Addr,
        (neighbour, mac): (Ipv4Addr, MacAddr),
        network: Ipv4Addr,
    ) -> Result<(), IoError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = ifindex;
        message.header.prefix_len = 24;
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
        ];
        self.netlink.change("add an address", RouteNetlinkMessage::NewAddress(message))?;

        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = ifindex;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(neighbour.into()),
            NeighbourAttribute::LinkLocalAddress(mac.0.to_vec()),
        ];
        self.netlink.change("add a neighbour", RouteNetlinkMessage::NewNeighbour(message))?;

        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 16;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(network.into()),
            RouteAttribute::Gateway(neighbour.into()),
            RouteAttribute::Oif(ifindex),
        ];
        self.netlink.change("add a route", RouteNetlinkMessage::NewRoute(message))
    }
}

fn find(name: &str) -> Result<Interface, IoError> {
    let gone = || IoError {
        operation: "find an interface",
        object: name.to_owned(),
        source: io::ErrorKind::NotFound.into(),
        remedy: "",
    };
    interfaces()?.into_iter().find(|interface| interface.name == name).ok_or_else(gone)
}

/// Reads what an interface has counted.
///
/// # Errors
/// The kernel refused, or the interface is gone.
pub fn counts(ifindex: u32) -> Result<LinkCounts, IoError> {
    let mut request = LinkMessage::default();
    request.header.index = ifindex;
    let reply = Netlink::open()?
        .get("read an interface's counters", RouteNetlinkMessage::GetLink(request))?;
    let RouteNetlinkMessage::NewLink(link) = reply else { return Ok(LinkCounts::default()) };
    let counts = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(LinkCounts {
            rx_packets: stats.rx_packets,
            tx_packets: stats.tx_packets,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        }),
        _ => None,
    });
    Ok(counts.unwrap_or_default())
}

/// Says whether a default route of this network namespace, of either family, leads through an
/// interface.
///
/// # Errors
/// The kernel refused.
pub fn has_default_route(ifindex: u32) -> Result<bool, IoError> {
    let mut netlink = Netlink::open()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let routes = netlink.dump("list routes", RouteNetlinkMessage::GetRoute(request))?;
        let leads_there = |route: &RouteMessage| {
            route.header.destination_prefix_length == 0
                && route.attributes.iter().any(|attribute| match attribute {
                    RouteAttribute::Oif(index) => *index == ifindex,
                    RouteAttribute::MultiPath(hops) => {
                        hops.iter().any(|hop| hop.interface_index == ifindex)
                    }
                    _ => false,
                })
        };
        let is_default = |reply: &RouteNetlinkMessage| match reply {
            RouteNetlinkMessage::NewRoute(route) => leads_there(route),
            _ => false,
        };
        if routes.iter().any(is_default) {
            return Ok(true);
        }
    }
    Ok(false)
}
