//! Lists of netfilter, over its netlink socket (linux/netfilter/nfnetlink.h).
#![forbid(unsafe_code)]

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// `struct nlmsghdr` and `struct nfgenmsg` (family, version, resource).
const NETLINK_HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;
/// NLM_F_DUMP_INTR: what was being listed changed meanwhile.
const INTERRUPTED: u16 = 0x10;
/// More than what the kernel puts into one datagram of a dump.
const BUFFER_OCTETS: usize = 64 << 10;

/// Hands everything to `sink` that the kernel lists for a request of the type `kind` (subsystem and
/// message) with the attributes `restriction`: its protocol family (NFPROTO_*) and its attributes.
///
/// Needs CAP_NET_ADMIN.
///
/// # Errors
/// The kernel does not tell; EINVAL if it has no such subsystem. [`io::ErrorKind::Interrupted`] if the
/// list changed while it was read.
pub fn dump(kind: u16, restriction: &[u8], sink: &mut dyn FnMut(u8, &[u8])) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = vec![0; NETLINK_HEADER + NETFILTER_HEADER];
    request.extend_from_slice(restriction);
    let len = request.len() as u32;
    let mut header = NetlinkBuffer::new(&mut request);
    header.set_length(len);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    socket.send(&request, 0)?;
    let mut buffer = vec![0; BUFFER_OCTETS];
    loop {
        let len = match socket.recv(&mut &mut buffer[..], libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            len => len?,
        };
        let datagram = buffer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
        if messages(datagram, sink)? {
            return Ok(());
        }
    }
}

/// Writes an attribute, padded.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Hands the messages in a datagram to `sink`, and says whether the dump ends with it.
fn messages(datagram: &[u8], sink: &mut dyn FnMut(u8, &[u8])) -> io::Result<bool> {
    if datagram.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if message.flags() & INTERRUPTED != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                let code = message.payload().first_chunk().map(|code| i32::from_ne_bytes(*code));
                return match code {
                    Some(code) if code < 0 => {
                        Err(io::Error::from_raw_os_error(code.saturating_neg()))
                    }
                    _ => Ok(true),
                };
            }
            _ => {
                if let Some((header, of)) =
                    message.payload().split_first_chunk::<NETFILTER_HEADER>()
                {
                    sink(header[0], of);
                }
            }
        }
        let aligned = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(aligned..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; NETLINK_HEADER];
        bytes.extend_from_slice(payload);
        let len = bytes.len() as u32;
        let mut header = NetlinkBuffer::new(&mut bytes);
        header.set_length(len);
        header.set_message_type(kind);
        header.set_flags(flags);
        bytes
    }

    #[test]
    fn a_dump_ends_where_it_says_so_and_its_errors_are_told() {
        let mut seen = Vec::new();
        let mut count =
            |datagram: &[u8]| messages(datagram, &mut |family, of| seen.push((family, of.len())));
        let two = [message(0x100, 0, &[2; 4]), message(0x100, 0, &[10; 12])].concat();
        assert!(!count(&two).expect("two messages"));
        assert!(count(&[two, message(NLMSG_DONE, 0, &[0; 4])].concat()).expect("an end"));
        let refusal = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        let error = count(&refusal).expect_err("a refusal");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let changed = count(&message(0x100, INTERRUPTED, &[0; 4])).expect_err("half a list");
        assert_eq!(changed.kind(), io::ErrorKind::Interrupted);
        assert!(count(&[]).is_err() && count(&[1, 2, 3]).is_err());
        assert_eq!(seen, [(2, 0), (10, 8), (2, 0), (10, 8)]);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes, &mut |_, _| ());
        }
    }
}
