//! What drivers can do with XDP, asked of the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml; Linux 6.3).
#![forbid(unsafe_code)]

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use std::collections::HashMap;
use std::io;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
/// The attribute CTRL_ATTR_FAMILY_NAME, 4 + 7 octets and one of padding.
const FAMILY_NAME_NETDEV: &[u8; 8] = b"netdev\0\0";
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const NETLINK_HEADER: usize = 16;
/// `struct genlmsghdr`: command, version, two reserved octets.
const GENL_HEADER: usize = 4;

/// `enum netdev_xdp_act` of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    const BASIC: u64 = 1 << 0;
    const REDIRECT: u64 = 1 << 1;
    const ZEROCOPY: u64 = 1 << 3;
    const RX_SG: u64 = 1 << 5;

    /// Says whether its driver runs programs that redirect into AF_XDP sockets.
    pub const fn is_native(self) -> bool {
        self.0 & (Self::BASIC | Self::REDIRECT) == Self::BASIC | Self::REDIRECT
    }

    /// Says whether its driver hands frames that do not fit into a page to programs.
    pub const fn is_multi_buffer(self) -> bool {
        self.0 & Self::RX_SG != 0
    }

    /// Says whether its driver receives into an AF_XDP socket's memory.
    pub const fn is_zero_copy(self) -> bool {
        self.0 & Self::ZEROCOPY != 0
    }
}

/// Returns the features of an interface of this network namespace, if it can be asked for them.
pub fn xdp_features_of(ifindex: u32) -> Option<XdpFeatures> {
    match xdp_features() {
        Ok(all) => all.get(&ifindex).copied(),
        Err(error) => {
            tracing::debug!(%error, "no xdp-features");
            None
        }
    }
}

/// Returns the features of every interface of this network namespace, by index.
///
/// # Errors
/// The kernel has no such family, or its answer cannot be read.
pub(super) fn xdp_features() -> io::Result<HashMap<u32, XdpFeatures>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;

    let mut attribute = vec![0; 4];
    attribute[..2].copy_from_slice(&(4 + 7_u16).to_ne_bytes());
    attribute[2..].copy_from_slice(&CTRL_ATTR_FAMILY_NAME.to_ne_bytes());
    attribute.extend_from_slice(FAMILY_NAME_NETDEV);
    let request = request(GENL_ID_CTRL, 0, CTRL_CMD_GETFAMILY, &attribute);
    let mut family = None;
    exchange(&socket, &request, &mut |payload| family = family.or(family_id(payload)))?;
    let family = family.ok_or(io::ErrorKind::InvalidData)?;

    let request = self::request(family, NLM_F_DUMP, NETDEV_CMD_DEV_GET, &[]);
    let mut found = HashMap::new();
    exchange(&socket, &request, &mut |payload| found.extend(device(payload)))?;
    Ok(found)
}

fn request(family: u16, flags: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; NETLINK_HEADER];
    bytes.extend_from_slice(&[command, 1, 0, 0]);
    bytes.extend_from_slice(attributes);
    let len = bytes.len() as u32;
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length(len);
    header.set_message_type(family);
    header.set_flags(NLM_F_REQUEST | flags);
    bytes
}

/// Sends a request and hands the payload of every answer to `sink`.
fn exchange(socket: &Socket, request: &[u8], sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    socket.send(request, 0)?;
    let is_dump = NetlinkBuffer::new(request).flags() & NLM_F_DUMP != 0;
    let mut buffer = vec![0_u8; 32 << 10];
    loop {
        let len = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => {
                    let code =
                        message.payload().first_chunk().map(|code| i32::from_ne_bytes(*code));
                    return match code {
                        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                        _ => Ok(()),
                    };
                }
                _ => sink(message.payload()),
            }
            let aligned = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(aligned..).unwrap_or_default();
        }
        if !is_dump {
            return Ok(());
        }
    }
}

fn family_id(payload: &[u8]) -> Option<u16> {
    let id = attribute(payload, CTRL_ATTR_FAMILY_ID)?;
    Some(u16::from_ne_bytes(*id.first_chunk()?))
}

fn device(payload: &[u8]) -> Option<(u32, XdpFeatures)> {
    let index = attribute(payload, NETDEV_A_DEV_IFINDEX)?;
    let features = attribute(payload, NETDEV_A_DEV_XDP_FEATURES)?;
    let features = XdpFeatures(u64::from_ne_bytes(*features.first_chunk()?));
    Some((u32::from_ne_bytes(*index.first_chunk()?), features))
}

fn attribute(payload: &[u8], kind: u16) -> Option<Vec<u8>> {
    let attributes = payload.get(GENL_HEADER..)?;
    NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_device_and_nothing_from_less() {
        let mut payload = vec![NETDEV_CMD_DEV_GET, 1, 0, 0];
        payload.extend_from_slice(&[8, 0, 1, 0, 7, 0, 0, 0]);
        payload.extend_from_slice(&[12, 0, 3, 0, 0b1011, 0, 0, 0, 0, 0, 0, 0]);
        if cfg!(target_endian = "little") {
            assert_eq!(device(&payload), Some((7, XdpFeatures(0b1011))));
        }
        for len in 0..payload.len() {
            assert_eq!(device(&payload[..len]), None, "{len}");
        }
    }

    #[test]
    fn native_needs_redirect() {
        let all = [0b0000, 0b0001, 0b0010, 0b0011, 0b1011].map(XdpFeatures);
        assert_eq!(all.map(XdpFeatures::is_native), [false, false, false, true, true]);
        assert_eq!(all.map(XdpFeatures::is_zero_copy), [false, false, false, false, true]);
        assert_eq!(
            [0b01011, 0b100011].map(XdpFeatures).map(XdpFeatures::is_multi_buffer),
            [false, true]
        );
    }
}
