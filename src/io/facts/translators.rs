//! What may translate the addresses of packets without connection tracking's knowing of it.
#![forbid(unsafe_code)]

use crate::io::guard;
use crate::io::route::interfaces;
use crate::io::route::netlink::Netlink;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use std::fs;
use std::path::Path;

/// Absent where IPVS is not loaded.
const IPVS: &str = "/proc/net/ip_vs";
/// RFC 6296 (net/ipv6/netfilter/ip6t_NPT.c).
pub(super) const PREFIX_TRANSLATION: [&str; 2] = ["SNPT", "DNPT"];
/// Queueing disciplines to which programs and actions are attached that see packets as they come in.
const HOOKS: [&str; 2] = ["clsact", "ingress"];

/// Says whether there is anything in this network namespace that may translate packets beside
/// nftables and without connection tracking: IPVS, prefix translation by ip6tables, programs and actions of
/// others at tc. What cannot be found out may be.
pub fn may_translate_untracked() -> bool {
    Path::new(IPVS).exists()
        || translates_prefixes()
        || has_hooks().unwrap_or(true)
        || has_programs().unwrap_or(true)
}

/// Says whether ip6tables has the only table here that such rules can stand in, and their targets.
fn translates_prefixes() -> bool {
    let has = |file: &str, wanted: &[&str]| {
        let lines = fs::read_to_string(file).unwrap_or_default();
        lines.lines().any(|line| wanted.contains(&line))
    };
    has("/proc/net/ip6_tables_names", &["mangle"])
        && has("/proc/net/ip6_tables_targets", &PREFIX_TRANSLATION)
}

fn has_hooks() -> Option<bool> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = Netlink::open().ok()?.dump("list queueing disciplines", request).ok()?;
    let is_hook = |attribute: &TcAttribute| match attribute {
        TcAttribute::Kind(kind) => HOOKS.contains(&kind.as_str()),
        _ => false,
    };
    Some(found.iter().any(|reply| match reply {
        RouteNetlinkMessage::NewQueueDiscipline(discipline) => {
            discipline.attributes.iter().any(is_hook)
        }
        _ => false,
    }))
}

fn has_programs() -> Option<bool> {
    for interface in interfaces().ok()?.iter().filter(|interface| interface.enabled) {
        match guard::tcx_programs(&interface.name) {
            Ok(programs) if programs.concat().iter().all(|name| guard::is_ours(name)) => {}
            _ => return Some(true),
        }
    }
    Some(false)
}
