//! A TCP segment in flight, smaller than the frame it came in.

use super::config::MSS;
use crate::wire::{
    EmitError, Flags, IpHeader, LinkHeader, Options, Segment, SeqNumber, Timestamps,
};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// A connection's name: both ends, whichever way a segment travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Tuple {
    pub(super) peer: IpAddr,
    pub(super) prober: IpAddr,
    pub(super) peer_port: u16,
    pub(super) prober_port: u16,
}

impl Tuple {
    pub(super) fn new(peer: SocketAddr, prober: SocketAddr) -> Self {
        Tuple {
            peer: peer.ip(),
            prober: prober.ip(),
            peer_port: peer.port(),
            prober_port: prober.port(),
        }
    }
}

// The derived one hashes lengths and discriminants too, which costs more than the look-up itself.
impl Hash for Tuple {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let ports = u32::from(self.peer_port) << 16 | u32::from(self.prober_port);
        match (self.peer, self.prober) {
            (IpAddr::V4(peer), IpAddr::V4(prober)) => {
                hasher.write_u64(u64::from(u32::from(peer)) << 32 | u64::from(u32::from(prober)));
                hasher.write_u32(ports);
            }
            (peer, prober) => {
                peer.hash(hasher);
                prober.hash(hasher);
                hasher.write_u32(ports);
            }
        }
    }
}

/// A segment in flight, to or from a peer. Payload is known by its length only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seg {
    pub(super) tuple: Tuple,
    pub(super) seq: SeqNumber,
    pub(super) ack: SeqNumber,
    pub(super) flags: Flags,
    pub(super) wnd: u16,
    pub(super) payload: u16,
    pub(super) ttl: u8,
    pub(super) ip_id: u16,
    pub(super) mss: Option<u16>,
    pub(super) window_scale: Option<u8>,
    pub(super) timestamps: Option<Timestamps>,
}

static PAYLOAD: [u8; MSS as usize] = [b'.'; MSS as usize];

impl Seg {
    /// Takes what the prober has sent.
    pub(super) fn from_prober(segment: &Segment<'_>) -> Self {
        Seg {
            tuple: Tuple {
                peer: segment.ip.dst,
                prober: segment.ip.src,
                peer_port: segment.dst_port,
                prober_port: segment.src_port,
            },
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            wnd: segment.wnd,
            payload: u16::try_from(segment.payload.len()).unwrap_or(u16::MAX),
            ttl: segment.ip.ttl,
            ip_id: segment.ip.id,
            mss: segment.options.mss,
            window_scale: segment.options.window_scale,
            timestamps: segment.options.timestamps,
        }
    }

    /// Builds a bare segment of the peer.
    pub(super) fn from_peer(tuple: Tuple, flags: Flags, seq: SeqNumber, ack: SeqNumber) -> Self {
        Seg {
            tuple,
            seq,
            ack,
            flags,
            wnd: 0,
            payload: 0,
            ttl: 0,
            ip_id: 0,
            mss: None,
            window_scale: None,
            timestamps: None,
        }
    }

    /// Returns the sequence number after the segment's last: SEG.SEQ + SEG.LEN.
    pub(super) fn end_seq(&self) -> SeqNumber {
        let control = u32::from(self.has(Flags::SYN)) + u32::from(self.has(Flags::FIN));
        self.seq + u32::from(self.payload) + control
    }

    pub(super) fn has(&self, flag: Flags) -> bool {
        self.flags.contains(flag)
    }

    /// Writes the segment as the peer sent it.
    pub(super) fn emit_from_peer(
        &self,
        link: &LinkHeader,
        buf: &mut [u8],
    ) -> Result<usize, EmitError> {
        let Tuple { peer, prober, peer_port, prober_port } = self.tuple;
        self.emit(peer, prober, peer_port, prober_port, link, buf)
    }

    /// Writes the IP packet as the prober sent it, but for one hop less to live and the payload's
    /// content: what a router on the way quotes.
    pub(super) fn emit_as_forwarded(&self, buf: &mut [u8]) -> Result<usize, EmitError> {
        let Tuple { peer, prober, peer_port, prober_port } = self.tuple;
        let forwarded = Seg { ttl: self.ttl.saturating_sub(1), ..*self };
        forwarded.emit(prober, peer, prober_port, peer_port, &LinkHeader::Ip, buf)
    }

    fn emit(
        &self,
        src: IpAddr,
        dst: IpAddr,
        src_port: u16,
        dst_port: u16,
        link: &LinkHeader,
        buf: &mut [u8],
    ) -> Result<usize, EmitError> {
        Segment {
            ip: IpHeader { src, dst, ttl: self.ttl, id: self.ip_id },
            src_port,
            dst_port,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            wnd: self.wnd,
            options: Options {
                mss: self.mss,
                window_scale: self.window_scale,
                timestamps: self.timestamps,
                ..Options::default()
            },
            payload: PAYLOAD.get(..usize::from(self.payload)).unwrap_or(&PAYLOAD),
        }
        .emit(link, buf)
    }
}
