//! Interfaces, and the kernel's route to a destination, looked up once for all that must share it.
#![forbid(unsafe_code)]

mod classes;
mod neighbours;
pub(super) mod netlink;

pub use neighbours::{Neighbour, NeighbourTable};

use super::IoError;
use crate::wire::MacAddr;
use classes::Classes;
use ipnet::IpNet;
use netlink::Netlink;
use netlink_packet_core::DefaultNla;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network interface of this host (of the network namespace of the calling thread).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address; all zero where there is none.
    pub mac: MacAddr,
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Whether it is switched on and its link is up.
    pub up: bool,
    /// Whether it is switched on; its link may come up later.
    pub enabled: bool,
    /// How often its link went down since it was made.
    pub carrier_losses: u32,
    /// Whether what it receives is handed to a bridge, bond or team, and never to the IP layer.
    pub is_port: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether its frames start with an Ethernet header.
    pub has_mac: bool,
    /// Its own addresses, with the prefix of the network each is in.
    pub addresses: Vec<IpNet>,
}

/// Lists the interfaces, by index.
///
/// # Errors
/// The kernel refused a netlink request.
pub fn interfaces() -> Result<Vec<Interface>, IoError> {
    list_interfaces(&mut Netlink::open()?)
}

/// Why the kernel has no route.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum NoRoute {
    /// No table holds one (ENETUNREACH).
    #[error("no route")]
    NoRoute,
    /// An `unreachable` route (EHOSTUNREACH; for IPv6 the kernel does not tell it from none).
    #[error("unreachable by route")]
    Unreachable,
    /// A `prohibit` route or rule (EACCES).
    #[error("prohibited by route")]
    Prohibit,
    /// A `blackhole` route, or a destination that packets may not have (EINVAL).
    #[error("blackholed by route")]
    Blackhole,
    /// A route, but no source address that it could be used with: none but the loopback's, or for a
    /// destination behind a router only link-local ones, which routers do not forward (RFC 4291
    /// §2.5.6).
    #[error("no source address")]
    NoSource,
}

/// Where the kernel would send a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Out of an interface.
    Via {
        /// The egress interface.
        ifindex: u32,
        /// Whose MAC address frames go to: a router, or the destination itself where it is on link.
        next_hop: IpAddr,
        /// The source address that the kernel prefers, or the one asked for.
        source: IpAddr,
    },
    /// To this host itself.
    Local {
        /// The interface that it would be looped through.
        ifindex: u32,
        /// The source address that the kernel prefers, or the one asked for.
        source: IpAddr,
    },
    /// To everyone on a link.
    Broadcast,
    /// To a group.
    Multicast,
    /// Nowhere.
    None(NoRoute),
}

/// What a look-up is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Constraint {
    /// Leave through this interface only. Where no route does, Linux takes the destination to be on
    /// that link (net/ipv4/route.c, ip_route_output_key_hash_rcu).
    pub oif: Option<u32>,
    /// Use this source address, which must be one of this host's.
    pub source: Option<IpAddr>,
    /// The mark of the packets (SO_MARK); rules can select by it.
    pub mark: u32,
}

/// The kernel's answer for a class of destinations.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// `gateway` is `None` where destinations are on link.
    Via {
        ifindex: u32,
        gateway: Option<IpAddr>,
        source: IpAddr,
    },
    Fixed(Route),
}

/// Answers by class and whether that is of IPv4.
type Answers = HashMap<(usize, bool), Answer>;

/// Looks up routes in the kernel, once per class of destinations.
///
/// Two destinations that lie in the same prefixes of all routing tables and all `to` selectors of
/// rules cannot be told apart by the kernel, so one answer serves both. All prefixes are read on
/// opening; changes after that are not seen. Of a multipath route every destination of the class
/// gets the same path, and redirects that the kernel learnt for single destinations are not followed.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    v4: Classes,
    v6: Classes,
    /// By constraint: there are few, so that the list is not worth a hash.
    answers: Vec<(Constraint, Answers)>,
    lookups_made: u64,
}

impl Routes {
    /// Reads all routing tables and rules.
    ///
    /// # Errors
    /// The kernel refused a netlink request, or its answer cannot be read.
    pub fn open() -> Result<Self, IoError> {
        let mut netlink = Netlink::open()?;
        // What the kernel treats apart without asking a table (__mkroute_output, ip6_route_*), and
        // RFC 6724 §2.1 labels, by which it chooses IPv6 source addresses.
        let mut prefixes: Vec<IpNet> = [
            "0.0.0.0/8",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "255.255.255.255/32",
            "::/128",
            "::1/128",
            "ff00::/8",
            "fe80::/10",
            "fec0::/10",
            "fc00::/7",
            "::/96",
            "::ffff:0:0/96",
            "2001::/32",
            "2001:10::/28",
            "2002::/16",
            "3ffe::/16",
        ]
        .iter()
        .filter_map(|prefix| prefix.parse().ok())
        .collect();
        for interface in list_interfaces(&mut netlink)? {
            // RFC 6724 §5 rule 8: among equals, the source with the longest prefix in common with the
            // destination wins, so every length of such a prefix is a class.
            prefixes.extend(
                interface
                    .addresses
                    .iter()
                    .filter(|own| matches!(own, IpNet::V6(_)))
                    .flat_map(|own| (1..=128).filter_map(|length| prefix(own.addr(), length))),
            );
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            for reply in netlink.dump("list routes", RouteNetlinkMessage::GetRoute(request))? {
                if let RouteNetlinkMessage::NewRoute(route) = reply {
                    prefixes.extend(destination_of_route(&route));
                }
            }
            let mut request = RuleMessage::default();
            request.header.family = family;
            for reply in
                netlink.dump("list routing rules", RouteNetlinkMessage::GetRule(request))?
            {
                if let RouteNetlinkMessage::NewRule(rule) = reply {
                    prefixes.extend(destination_of_rule(&rule));
                }
            }
        }
        Ok(Self {
            netlink,
            v4: Classes::new(prefixes.iter().filter(|prefix| prefix.addr().is_ipv4())),
            v6: Classes::new(prefixes.iter().filter(|prefix| prefix.addr().is_ipv6())),
            answers: Vec::new(),
            lookups_made: 0,
        })
    }

    /// Returns where the kernel would send TCP for `dst`.
    ///
    /// # Errors
    /// The netlink exchange failed; `constraint` holds a source of the other family or one that is
    /// not this host's; the next hop is of another address family than `dst`.
    pub fn lookup(&mut self, dst: IpAddr, constraint: &Constraint) -> Result<Route, IoError> {
        if dst.is_multicast() {
            return Ok(Route::Multicast);
        }
        if dst == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Ok(Route::Broadcast);
        }
        // For the kernel, "any address" as a destination means this host.
        if dst.is_unspecified() {
            return Ok(Route::None(NoRoute::Blackhole));
        }
        let class = match dst {
            IpAddr::V4(dst) => self.v4.class_of(u128::from(u32::from(dst))),
            IpAddr::V6(dst) => self.v6.class_of(u128::from(dst)),
        };
        let key = (class, dst.is_ipv4());
        let known = self.answers.iter().find(|(asked, _)| asked == constraint);
        let answer = match known.and_then(|(_, answers)| answers.get(&key)) {
            Some(answer) => *answer,
            None => {
                let answer = self.ask(dst, constraint)?;
                self.remember(key, constraint, answer);
                answer
            }
        };
        Ok(match answer {
            Answer::Via { ifindex, gateway, source } => {
                Route::Via { ifindex, next_hop: gateway.unwrap_or(dst), source }
            }
            Answer::Fixed(route) => route,
        })
    }

    /// Returns how often the kernel was asked.
    pub fn lookups_made(&self) -> u64 {
        self.lookups_made
    }

    fn remember(&mut self, key: (usize, bool), constraint: &Constraint, answer: Answer) {
        match self.answers.iter_mut().find(|(asked, _)| asked == constraint) {
            Some((_, answers)) => drop(answers.insert(key, answer)),
            None => self.answers.push((*constraint, HashMap::from([(key, answer)]))),
        }
    }

    fn ask(&mut self, dst: IpAddr, constraint: &Constraint) -> Result<Answer, IoError> {
        const OPERATION: &str = "look up route";
        let error =
            |source| IoError { operation: OPERATION, object: dst.to_string(), source, remedy: "" };
        let bits = if dst.is_ipv4() { 32 } else { 128 };
        let mut request = RouteMessage::default();
        request.header.address_family =
            if dst.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        request.header.destination_prefix_length = bits;
        request.attributes.push(RouteAttribute::Destination(dst.into()));
        if let Some(source) = constraint.source {
            let unusable = if source.is_ipv4() != dst.is_ipv4() {
                Some("is of another address family")
            } else if !self.is_local(source)? {
                // The kernel's refusal would look like a missing route, and with `oif` it does not refuse.
                Some("is not on this host")
            } else {
                None
            };
            if let Some(why) = unusable {
                let text = format!("source address {source} {why}");
                return Err(error(io::Error::new(io::ErrorKind::AddrNotAvailable, text)));
            }
            // With a source, Linux takes an IPv6 `oif` for a preference only (net/ipv6/route.c,
            // ip6_route_output_flags).
            if dst.is_ipv4() || constraint.oif.is_none() {
                request.header.source_prefix_length = bits;
                request.attributes.push(RouteAttribute::Source(source.into()));
            }
        }
        if let Some(oif) = constraint.oif {
            request.attributes.push(RouteAttribute::Oif(oif));
        }
        if constraint.mark != 0 {
            request.attributes.push(RouteAttribute::Mark(constraint.mark));
        }
        // RTA_IP_PROTO: rules can select by protocol.
        let tcp = DefaultNla::new(27, vec![libc::IPPROTO_TCP as u8]);
        request.attributes.push(RouteAttribute::Other(tcp));

        self.lookups_made += 1;
        let reply = match self.netlink.get(OPERATION, RouteNetlinkMessage::GetRoute(request)) {
            Ok(RouteNetlinkMessage::NewRoute(reply)) => reply,
            Ok(_) => return Err(error(io::ErrorKind::InvalidData.into())),
            Err(refusal) => {
                let none = match refusal.source.raw_os_error() {
                    Some(libc::ENETUNREACH) => NoRoute::NoRoute,
                    Some(libc::EHOSTUNREACH) => NoRoute::Unreachable,
                    Some(libc::EACCES) => NoRoute::Prohibit,
                    Some(libc::EINVAL) => NoRoute::Blackhole,
                    _ => return Err(error(refusal.source)),
                };
                return Ok(Answer::Fixed(Route::None(none)));
            }
        };
        let answer = read_answer(&reply, constraint).map_err(error)?;
        Ok(match answer {
            // Linux offers what there is, even ::1 of the loopback (ipv6_dev_get_saddr).
            Answer::Via { gateway, source, .. }
                if source.is_loopback()
                    || gateway.is_some() && is_link_local(source) && !is_link_local(dst) =>
            {
                Answer::Fixed(Route::None(NoRoute::NoSource))
            }
            _ => answer,
        })
    }

    /// Says whether packets to `address` stay here; whole prefixes can be local, not only the
    /// addresses that interfaces have.
    fn is_local(&mut self, address: IpAddr) -> Result<bool, IoError> {
        let route = self.lookup(address, &Constraint::default())?;
        Ok(matches!(route, Route::Local { .. }))
    }
}

fn read_answer(reply: &RouteMessage, constraint: &Constraint) -> io::Result<Answer> {
    let mut ifindex = None;
    let mut gateway = None;
    let mut preferred = None;
    for attribute in &reply.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => preferred = address_of(address),
            _ => {}
        }
    }
    let missing = |what: &str| io::Error::new(io::ErrorKind::AddrNotAvailable, what.to_owned());
    let ifindex = ifindex.ok_or_else(|| missing("the route has no interface"));
    let source = constraint.source.or(preferred).ok_or_else(|| missing("no source address"));
    Ok(match reply.header.kind {
        RouteType::Local | RouteType::Anycast => {
            Answer::Fixed(Route::Local { ifindex: ifindex?, source: source? })
        }
        RouteType::Broadcast => Answer::Fixed(Route::Broadcast),
        RouteType::Multicast => Answer::Fixed(Route::Multicast),
        RouteType::Unreachable => Answer::Fixed(Route::None(NoRoute::Unreachable)),
        RouteType::Prohibit => Answer::Fixed(Route::None(NoRoute::Prohibit)),
        RouteType::BlackHole => Answer::Fixed(Route::None(NoRoute::Blackhole)),
        RouteType::Unicast => {
            let Ok(source) = source else {
                return Ok(Answer::Fixed(Route::None(NoRoute::NoSource)));
            };
            if let Some(other) = gateway.filter(|gateway| gateway.is_ipv4() != source.is_ipv4()) {
                let text = format!("next hop {other} of another address family is not supported");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
            Answer::Via { ifindex: ifindex?, gateway, source }
        }
        kind => {
            let text = format!("route of unknown type {kind:?}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    })
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn list_interfaces(netlink: &mut Netlink) -> Result<Vec<Interface>, IoError> {
    let mut found = BTreeMap::new();
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    for reply in netlink.dump("list interfaces", links)? {
        if let RouteNetlinkMessage::NewLink(link) = reply {
            let interface = read_link(&link);
            found.insert(interface.index, interface);
        }
    }
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for reply in netlink.dump("list addresses", addresses)? {
        if let RouteNetlinkMessage::NewAddress(message) = reply
            && let Some(interface) = found.get_mut(&message.header.index)
        {
            interface.addresses.extend(read_address(&message));
        }
    }
    Ok(found.into_values().collect())
}

fn read_link(link: &LinkMessage) -> Interface {
    let flags = link.header.flags;
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        enabled: flags.contains(LinkFlags::Up),
        carrier_losses: 0,
        is_port: false,
        loopback: flags.contains(LinkFlags::Loopback),
        has_mac: false,
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::CarrierDownCount(count) => interface.carrier_losses = *count,
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(octets) => {
                if let Ok(mac) = <[u8; 6]>::try_from(octets.as_slice()) {
                    interface.mac = MacAddr(mac);
                    interface.has_mac = link.header.link_layer_type == LinkLayerType::Ether;
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                interface.is_port = infos.iter().any(|info| match info {
                    // A VRF's ports keep their addresses, and the IP layer.
                    LinkInfo::PortKind(kind) => *kind != InfoPortKind::Vrf,
                    _ => false,
                });
            }
            _ => {}
        }
    }
    interface
}

fn read_address(message: &AddressMessage) -> Option<IpNet> {
    // On a point-to-point link IFA_ADDRESS is the other end, and IFA_LOCAL is ours.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let own = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    prefix(own, message.header.prefix_len)
}

fn destination_of_route(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => address_of(address),
        _ => None,
    });
    let address = address.or_else(|| any_address(route.header.address_family))?;
    prefix(address, route.header.destination_prefix_length)
}

fn destination_of_rule(rule: &RuleMessage) -> Option<IpNet> {
    let address = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    });
    let address = address.or_else(|| any_address(rule.header.family))?;
    prefix(address, rule.header.dst_len)
}

fn any_address(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn prefix(address: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(address, length).ok()
}
