//! Requests to the kernel over an rtnetlink socket (RFC 3549), one after the other.
#![forbid(unsafe_code)]

use crate::io::IoError;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// NLM_F_DUMP_INTR: what was being listed changed meanwhile.
const INTERRUPTED: u16 = 0x10;
const ATTEMPTS: usize = 8;

/// More than the 32 KiB that the kernel puts into one datagram of a dump.
const BUFFER_OCTETS: usize = 64 << 10;

#[derive(Debug)]
pub(in crate::io) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    pub fn open() -> Result<Self, IoError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|source| failed("open netlink socket", source))?;
        Ok(Self { socket, buffer: vec![0; BUFFER_OCTETS], sequence: 0 })
    }

    /// Returns everything that `request` lists, as it stood at one time.
    pub fn dump(
        &mut self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, IoError> {
        for _ in 0..ATTEMPTS {
            let exchange = self.exchange(NLM_F_REQUEST | NLM_F_DUMP, request.clone());
            match exchange.map_err(|source| failed(operation, source))? {
                (_, true) => {}
                (replies, false) => return Ok(replies),
            }
        }
        let busy = io::Error::new(io::ErrorKind::Interrupted, "it changed while it was read");
        Err(failed(operation, busy))
    }

    /// Returns the one answer to `request`.
    pub fn get(
        &mut self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<RouteNetlinkMessage, IoError> {
        let (mut replies, _) =
            self.exchange(NLM_F_REQUEST, request).map_err(|source| failed(operation, source))?;
        replies.pop().ok_or_else(|| failed(operation, io::ErrorKind::UnexpectedEof.into()))
    }

    /// Makes what `request` describes, which must not exist yet, or changes what it names.
    pub fn change(
        &mut self,
        operation: &'static str,
        request: RouteNetlinkMessage,
    ) -> Result<(), IoError> {
        let flags = match &request {
            RouteNetlinkMessage::SetLink(_) => NLM_F_REQUEST | NLM_F_ACK,
            _ => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        };
        self.exchange(flags, request).map(drop).map_err(|source| failed(operation, source))
    }

    /// Returns the answers, and whether what they tell of changed while they were written.
    fn exchange(
        &mut self,
        flags: u16,
        request: RouteNetlinkMessage,
    ) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut replies = Vec::new();
        let mut interrupted = false;
        loop {
            let length = match self.socket.recv(&mut &mut self.buffer[..], libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            let mut datagram = self
                .buffer
                .get(..length)
                .filter(|datagram| !datagram.is_empty())
                .ok_or(io::ErrorKind::InvalidData)?;
            while !datagram.is_empty() {
                let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                let length = (reply.header.length as usize).next_multiple_of(4).max(16);
                datagram = datagram.get(length..).unwrap_or_default();
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= reply.header.flags & INTERRUPTED != 0;
                match reply.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        replies.push(inner);
                        if flags & NLM_F_DUMP == 0 {
                            return Ok((replies, interrupted));
                        }
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok((replies, interrupted)),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(_) => Err(error.to_io()),
                            None => Ok((replies, interrupted)),
                        };
                    }
                    NetlinkPayload::Overrun(_) => return Err(io::ErrorKind::InvalidData.into()),
                    _ => {}
                }
            }
        }
    }
}

fn failed(operation: &'static str, source: io::Error) -> IoError {
    IoError { operation, object: "this host".to_owned(), source, remedy: "" }
}
