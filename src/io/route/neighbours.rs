//! The kernel's table of neighbours, as it stands.
#![forbid(unsafe_code)]

use super::netlink::Netlink;
use crate::io::IoError;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use std::net::IpAddr;

/// An entry of the kernel's table of neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    /// The interface that it is behind.
    pub ifindex: u32,
    /// Its address.
    pub address: IpAddr,
    /// Whether packets to it leave: else ARP or ND has had no answer, so far or at all
    /// (NUD_INCOMPLETE, NUD_FAILED; net/core/neighbour.c).
    pub is_resolved: bool,
}

/// Reads the kernel's table of neighbours.
#[derive(Debug)]
pub struct NeighbourTable(Netlink);

impl NeighbourTable {
    /// Opens the table; needs no privilege.
    ///
    /// # Errors
    /// The kernel refused a netlink socket.
    pub fn open() -> Result<Self, IoError> {
        Netlink::open().map(NeighbourTable)
    }

    /// Returns the entries of both families.
    ///
    /// # Errors
    /// The netlink exchange failed.
    pub fn read(&mut self) -> Result<Vec<Neighbour>, IoError> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let replies = self.0.dump("list neighbours", request)?;
        Ok(replies.iter().filter_map(read_entry).collect())
    }
}

fn read_entry(reply: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(entry) = reply else { return None };
    let is_resolved = match entry.header.state {
        NeighbourState::Incomplete | NeighbourState::Failed => false,
        // Nobody has asked for it yet.
        NeighbourState::None | NeighbourState::Other(_) => return None,
        _ => true,
    };
    let address = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some((*address).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some((*address).into())
        }
        _ => None,
    })?;
    Some(Neighbour { ifindex: entry.header.ifindex, address, is_resolved })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_entries_that_were_asked_for_say_anything() {
        let address = IpAddr::from([10, 0, 0, 1]);
        for (state, is_resolved) in [
            (NeighbourState::Incomplete, Some(false)),
            (NeighbourState::Failed, Some(false)),
            (NeighbourState::Reachable, Some(true)),
            (NeighbourState::Stale, Some(true)),
            (NeighbourState::Delay, Some(true)),
            (NeighbourState::Probe, Some(true)),
            (NeighbourState::Permanent, Some(true)),
            (NeighbourState::Noarp, Some(true)),
            (NeighbourState::None, None),
        ] {
            let mut entry = NeighbourMessage::default();
            (entry.header.ifindex, entry.header.state) = (3, state);
            let nameless = RouteNetlinkMessage::NewNeighbour(entry.clone());
            assert_eq!(read_entry(&nameless), None);
            let destination = NeighbourAddress::Inet([10, 0, 0, 1].into());
            entry.attributes.push(NeighbourAttribute::Destination(destination));
            let expected =
                is_resolved.map(|is_resolved| Neighbour { ifindex: 3, address, is_resolved });
            assert_eq!(read_entry(&RouteNetlinkMessage::NewNeighbour(entry)), expected, "{state}");
        }
    }
}
