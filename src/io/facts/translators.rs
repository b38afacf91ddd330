//! What may translate the addresses of packets without connection tracking's knowing of it.
#![forbid(unsafe_code)]

use super::rules;
use crate::io::guard;
use crate::io::route::interfaces;
use crate::io::route::netlink::Netlink;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use std::path::Path;

/// Absent where IPVS is not loaded.
const IPVS: &str = "/proc/net/ip_vs";
/// Queueing disciplines to which programs and actions are attached that see packets as they come in.
const HOOKS: [&str; 2] = ["clsact", "ingress"];

/// Says whether there is anything in this network namespace that may translate packets without
/// connection tracking: IPVS, programs and actions of others at tc, rules that write addresses or
/// ports. What cannot be found out may be.
pub fn may_translate_untracked() -> bool {
    Path::new(IPVS).exists()
        || has_hooks().unwrap_or(true)
        || has_programs().unwrap_or(true)
        || rules::translate().unwrap_or(true)
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
