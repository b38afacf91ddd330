//! Rules of nftables that translate packets by themselves, without connection tracking.
#![forbid(unsafe_code)]

use super::translators::PREFIX_TRANSLATION;
use crate::io::nfnetlink;
use netlink_packet_core::NlasIterator;
use std::io;

/// NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE.
const GET_RULE: u16 = 10 << 8 | 7;

// linux/netfilter/nf_tables.h and nf_tables_compat.h.
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_PAYLOAD_SREG: u16 = 5;
const NFTA_PAYLOAD_CSUM_OFFSET: u16 = 7;
const NFTA_TARGET_NAME: u16 = 1;

const NFT_PAYLOAD_LL_HEADER: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
/// Where addresses begin: behind DSCP, ECN, length, hop limit.
const IPV6_ADDRESSES: u32 = 8;
/// And behind TTL and checksum. A rule that has that one updated writes to IPv4.
const IPV4_ADDRESSES: u32 = 12;
const IPV4_CHECKSUM: u32 = 10;
/// Behind ports and numbers: flags, window, checksum. (UDP's checksum lies where TCP has its numbers.)
const TCP_FLAGS: u32 = 12;
/// Behind an Ethernet header; a rule that writes further reaches addresses.
const ETHERNET_AND_IP: u32 = 14 + IPV6_ADDRESSES;
/// NFPROTO_ARP (linux/netfilter.h).
const ARP: u8 = 3;
/// A list that changes while it is read is read so often.
const ATTEMPTS: usize = 4;

/// Says whether a rule of nftables in this network namespace writes where TCP packets have addresses,
/// ports or numbers. What user space does to packets that a rule queues for it nobody can tell.
///
/// Needs CAP_NET_ADMIN. Loads nftables where it is a module.
///
/// # Errors
/// The kernel does not list its rules, or they change all the time.
pub fn rules_translate() -> io::Result<bool> {
    for _ in 0..ATTEMPTS {
        let mut is_any = false;
        let mut note = |family, rule: &[u8]| is_any |= family != ARP && translates(rule);
        let Err(error) = nfnetlink::dump(GET_RULE, &[], &mut note) else { return Ok(is_any) };
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::Interrupted, _) => {}
            // A kernel without nftables, or without netfilter.
            (_, Some(libc::EINVAL | libc::EPROTONOSUPPORT)) => return Ok(false),
            _ => return Err(error),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

fn translates(rule: &[u8]) -> bool {
    let expressions = values(rule, NFTA_RULE_EXPRESSIONS);
    let mut expressions = expressions.flat_map(|list| values(list, NFTA_LIST_ELEM));
    expressions.any(|expression| {
        let of = values(expression, NFTA_EXPR_DATA).next().unwrap_or_default();
        match values(expression, NFTA_EXPR_NAME).next().map(word) {
            Some(b"payload") => writes_ends(of),
            Some(b"target") => values(of, NFTA_TARGET_NAME).any(|name| {
                PREFIX_TRANSLATION.iter().any(|target| target.as_bytes() == word(name))
            }),
            _ => false,
        }
    })
}

/// Says whether a payload expression writes more than what no connection is told by.
fn writes_ends(payload: &[u8]) -> bool {
    let number = |kind| {
        let value = values(payload, kind).next()?;
        Some(u32::from_be_bytes(*value.first_chunk()?))
    };
    if number(NFTA_PAYLOAD_SREG).is_none() {
        return false;
    }
    let offset = number(NFTA_PAYLOAD_OFFSET);
    let end = offset.zip(number(NFTA_PAYLOAD_LEN));
    let end = end.map_or(u32::MAX, |(offset, len)| offset.saturating_add(len));
    match number(NFTA_PAYLOAD_BASE) {
        Some(NFT_PAYLOAD_LL_HEADER) => end > ETHERNET_AND_IP,
        Some(NFT_PAYLOAD_NETWORK_HEADER) => {
            let is_v4 = number(NFTA_PAYLOAD_CSUM_OFFSET) == Some(IPV4_CHECKSUM);
            end > if is_v4 { IPV4_ADDRESSES } else { IPV6_ADDRESSES }
        }
        Some(NFT_PAYLOAD_TRANSPORT_HEADER) => offset.is_none_or(|offset| offset < TCP_FLAGS),
        _ => true,
    }
}

/// Returns the values of the attributes of one kind.
fn values(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    let attributes = NlasIterator::new(attributes).map_while(Result::ok);
    attributes.filter(move |attribute| attribute.kind() == kind).map(|attribute| {
        let end = usize::from(attribute.length());
        attribute.into_inner().get(4..end).unwrap_or_default()
    })
}

/// A string without the zero octet that ends it.
fn word(value: &[u8]) -> &[u8] {
    value.strip_suffix(&[0]).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::nfnetlink::attribute;
    use proptest::prelude::*;

    const NESTED: u16 = 0x8000;

    fn rule(expressions: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let list = expressions.iter().flat_map(|(name, of)| {
            let parts = [
                attribute(NFTA_EXPR_NAME, &[name.as_bytes(), &[0]].concat()),
                attribute(NFTA_EXPR_DATA | NESTED, of),
            ];
            attribute(NFTA_LIST_ELEM | NESTED, &parts.concat())
        });
        let list: Vec<u8> = list.collect();
        [attribute(1, b"table\0"), attribute(NFTA_RULE_EXPRESSIONS | NESTED, &list)].concat()
    }

    /// A payload expression with a register at `register`.
    fn payload(register: u16, base: u32, offset: u32, len: u32) -> (&'static str, Vec<u8>) {
        let fields = [
            (register, 1),
            (NFTA_PAYLOAD_BASE, base),
            (NFTA_PAYLOAD_OFFSET, offset),
            (NFTA_PAYLOAD_LEN, len),
        ];
        let fields = fields.map(|(kind, value)| attribute(kind, &value.to_be_bytes()));
        ("payload", fields.concat())
    }

    #[test]
    fn rules_that_write_addresses_or_ports_translate() {
        const NFTA_PAYLOAD_DREG: u16 = 1;
        let write = |base, offset, len| payload(NFTA_PAYLOAD_SREG, base, offset, len);
        let writes = |base, offset, len| translates(&rule(&[write(base, offset, len)]));
        // As nft writes `ip ttl set`, `ip saddr set`: with the header's checksum.
        let writes_v4 = |offset, len| {
            let (name, fields) = write(1, offset, len);
            let checksum = attribute(NFTA_PAYLOAD_CSUM_OFFSET, &IPV4_CHECKSUM.to_be_bytes());
            translates(&rule(&[(name, [fields, checksum].concat())]))
        };
        assert!(writes_v4(12, 4) && writes_v4(16, 4) && writes(1, 16, 4) && writes(1, 8, 16));
        assert!(writes(2, 0, 2) && writes(2, 2, 2) && writes(2, 4, 4) && writes(3, 0, 4));
        // In the middle of both words, of an unknown length, and from the Ethernet header on.
        assert!(writes(1, 6, 4) && writes(1, 4, u32::MAX) && writes(0, 30, 4));
        // DSCP, hop limit, TTL, flags, window, MAC address.
        assert!(!writes(1, 0, 2) && !writes(1, 7, 1) && !writes_v4(8, 2));
        assert!(!writes(2, 12, 2) && !writes(2, 14, 2) && !writes(0, 0, 6));
        let reads = payload(NFTA_PAYLOAD_DREG, 1, 16, 4);
        assert!(!translates(&rule(&[reads.clone(), ("lookup", Vec::new())])));
        assert!(translates(&rule(&[reads, write(1, 16, 4)])));
        let target =
            |name: &[u8]| translates(&rule(&[("target", attribute(NFTA_TARGET_NAME, name))]));
        assert!(target(b"DNPT\0") && !target(b"TCPMSS\0"));
        assert!(!translates(&rule(&[])) && !translates(&[]));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..80) {
            let _ = translates(&bytes);
            let mut rule = rule(&[payload(NFTA_PAYLOAD_SREG, 1, 16, 4)]);
            if let (Some(place), Some(octet)) = (rule.get_mut(at), bytes.first()) {
                *place = *octet;
            }
            let _ = translates(&rule);
        }
    }
}
