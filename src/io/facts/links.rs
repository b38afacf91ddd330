//! Interfaces, and what sits on them.
#![forbid(unsafe_code)]

use super::netdev::{XdpFeatures, xdp_features};
use crate::io::IoError;
use crate::io::route::netlink::Netlink;
use crate::io::route::{Interface, interfaces};
use crate::io::xdp::{self, Attached};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// An interface of this host.
#[derive(Clone, PartialEq, Debug)]
pub struct Link {
    /// Its name, addresses and state.
    pub interface: Interface,
    /// What drives it ("virtio_net"), or the kind of a virtual one ("veth").
    pub driver: Option<String>,
    /// Queues that can both send and receive, as the AF_XDP path counts them.
    pub queues: Option<u32>,
    /// What its driver can do with XDP; `None` before Linux 6.3.
    pub xdp_features: Option<XdpFeatures>,
    /// XDP programs attached: where they run, and their numbers.
    pub xdp_programs: Vec<(Attached, u32)>,
}

/// Lists the interfaces of this network namespace, by index. Needs no privilege.
///
/// # Errors
/// The kernel refused a netlink request.
pub fn links() -> Result<Vec<Link>, IoError> {
    let mut more = HashMap::new();
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    for reply in Netlink::open()?.dump("list interfaces", request)? {
        if let RouteNetlinkMessage::NewLink(link) = reply {
            more.insert(link.header.index, read_link(&link));
        }
    }
    // Kernels before 6.3 do not know the question.
    let features = xdp_features().unwrap_or_default();
    let links = interfaces()?.into_iter().map(|interface| {
        let (kind, xdp_programs) = more.remove(&interface.index).unwrap_or_default();
        let sysfs = sysfs(&interface);
        let driver = sysfs.as_deref().and_then(driver).or(kind);
        Link {
            queues: xdp::queues(&interface.name).ok(),
            xdp_features: features.get(&interface.index).copied(),
            driver,
            xdp_programs,
            interface,
        }
    });
    Ok(links.collect())
}

fn read_link(link: &LinkMessage) -> (Option<String>, Vec<(Attached, u32)>) {
    let mut kind = None;
    let mut programs = Vec::new();
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            // With several programs IFLA_XDP_PROG_ID is left out; these name each.
            LinkAttribute::Xdp(xdp) => {
                programs.extend(xdp.iter().filter_map(|attribute| match attribute {
                    LinkXdp::DrvProgId(id) => Some((Attached::Drv, *id)),
                    LinkXdp::SkbProgId(id) => Some((Attached::Skb, *id)),
                    LinkXdp::HwProgId(id) => Some((Attached::Hw, *id)),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    (kind, programs)
}

/// Returns the interface's folder, if sysfs is that of this network namespace.
fn sysfs(interface: &Interface) -> Option<PathBuf> {
    let folder = Path::new("/sys/class/net").join(&interface.name);
    let index = fs::read_to_string(folder.join("ifindex")).ok()?;
    (index.trim().parse() == Ok(interface.index)).then_some(folder)
}

fn driver(folder: &Path) -> Option<String> {
    let driver = fs::read_link(folder.join("device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}

/// Returns the XDP programs on one interface: where they run, and their numbers. Needs no privilege.
///
/// # Errors
/// No such interface, or the kernel refused a netlink request.
pub fn xdp_programs(ifindex: u32) -> Result<Vec<(Attached, u32)>, IoError> {
    let mut link = LinkMessage::default();
    link.header.index = ifindex;
    let request = RouteNetlinkMessage::GetLink(link);
    let reply = Netlink::open()?.get("look at interface", request)?;
    Ok(match reply {
        RouteNetlinkMessage::NewLink(link) => read_link(&link).1,
        _ => Vec::new(),
    })
}
