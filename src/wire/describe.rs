//! A packet in one line, in tcpdump's words.

use super::{Arp, ArpOp, IcmpError, IcmpKind, Nd, NdKind, Options, Packet, Segment};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Describes a packet in tcpdump's manner, for `--dry-run` and traces.
///
/// `IP 10.98.0.1.61007 > 10.99.0.7.8080: Flags [S], seq 1, win 64240, options [mss 1460], length 0`.
/// Unlike tcpdump, an empty ACK shows its sequence number too: in a keepalive it is what matters.
pub fn describe<'a>(packet: &'a Packet<'a>) -> impl fmt::Display + 'a {
    Description(packet)
}

struct Description<'a>(&'a Packet<'a>);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Packet::Tcp(segment) => tcp(segment, f),
            Packet::Icmp(error) => icmp(error, f),
            Packet::Arp(packet) => arp(packet, f),
            Packet::Nd(message) => nd(message, f),
            Packet::Other => f.write_str("other"),
        }
    }
}

fn tcp(segment: &Segment<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Segment { ip, src_port, dst_port, seq, ack, flags, wnd, options, payload } = segment;
    write!(f, "{} {}.{src_port} > {}.{dst_port}: ", family(ip.src), ip.src, ip.dst)?;
    write!(f, "Flags {flags}, seq {}", seq.0)?;
    if !payload.is_empty() {
        write!(f, ":{}", (*seq + payload.len() as u32).0)?;
    }
    if flags.contains(super::Flags::ACK) {
        write!(f, ", ack {}", ack.0)?;
    }
    write!(f, ", win {wnd}")?;
    if *options != Options::default() {
        write!(f, ", options [{}]", OptionList(options))?;
    }
    write!(f, ", length {}", payload.len())
}

struct OptionList<'a>(&'a Options);

impl fmt::Display for OptionList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { mss, window_scale, sack_permitted, timestamps, sack } = self.0;
        let mut comma = "";
        let mut item = |text: fmt::Arguments<'_>| {
            write!(f, "{comma}{text}")?;
            comma = ",";
            fmt::Result::Ok(())
        };
        if let Some(mss) = mss {
            item(format_args!("mss {mss}"))?;
        }
        if *sack_permitted {
            item(format_args!("sackOK"))?;
        }
        if let Some(timestamps) = timestamps {
            item(format_args!("TS val {} ecr {}", timestamps.tsval, timestamps.tsecr))?;
        }
        if let Some(shift) = window_scale {
            item(format_args!("wscale {shift}"))?;
        }
        let blocks = sack.iter().flatten();
        if sack.iter().any(Option::is_some) {
            item(format_args!("sack {} ", blocks.clone().count()))?;
        }
        for (left, right) in blocks {
            write!(f, "{{{}:{}}}", left.0, right.0)?;
        }
        Ok(())
    }
}

fn icmp(error: &IcmpError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let IcmpError { ip, icmp_type, code, quoted } = error;
    let protocol = if ip.src.is_ipv4() { "ICMP" } else { "ICMP6" };
    let meaning = match error.kind() {
        IcmpKind::Net => "net unreachable",
        IcmpKind::Host => "host unreachable",
        IcmpKind::Port => "port unreachable",
        IcmpKind::Admin => "administratively prohibited",
        IcmpKind::TimeExceeded => "time exceeded in-transit",
        IcmpKind::TooBig => "packet too big",
        IcmpKind::Other => "error",
    };
    write!(f, "{} {} > {}: {protocol} {meaning} ", family(ip.src), ip.src, ip.dst)?;
    write!(f, "(type {icmp_type}, code {code}), quoting ")?;
    write!(f, "{} > {}: seq {}", Endpoint(quoted.src), Endpoint(quoted.dst), quoted.seq.0)?;
    match quoted.ack {
        Some(ack) => write!(f, ", ack {}", ack.0),
        None => Ok(()),
    }
}

struct Endpoint(SocketAddr);

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.ip(), self.0.port())
    }
}

fn arp(packet: &Arp, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match packet.op {
        ArpOp::Request => {
            write!(f, "ARP, Request who-has {} tell {}", packet.target_ip, packet.sender_ip)
        }
        ArpOp::Reply => write!(f, "ARP, Reply {} is-at {}", packet.sender_ip, packet.sender_mac),
    }
}

fn nd(message: &Nd, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Nd { kind, src, dst, target, mac } = message;
    write!(f, "IP6 {src} > {dst}: ICMP6, ")?;
    let option = match kind {
        NdKind::Solicitation => {
            write!(f, "neighbor solicitation, who has {target}")?;
            "source link-address"
        }
        NdKind::Advertisement { router, solicited, overrides } => {
            write!(f, "neighbor advertisement, tgt is {target}")?;
            let flags = [("router", router), ("solicited", solicited), ("override", overrides)];
            for (name, _) in flags.iter().filter(|(_, set)| **set) {
                write!(f, ", {name}")?;
            }
            "destination link-address"
        }
    };
    match mac {
        Some(mac) => write!(f, ", {option} {mac}"),
        None => Ok(()),
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IP" } else { "IP6" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Flags, IpHeader, MacAddr, Quoted, SeqNumber, Timestamps};
    use std::net::Ipv6Addr;

    fn syn() -> Segment<'static> {
        Segment {
            ip: IpHeader { src: [10, 98, 0, 1].into(), dst: [10, 99, 0, 7].into(), ttl: 64, id: 0 },
            src_port: 61_007,
            dst_port: 8080,
            seq: SeqNumber(1),
            ack: SeqNumber(0),
            flags: Flags::SYN,
            wnd: 64_240,
            options: Options { mss: Some(1460), ..Options::default() },
            payload: &[],
        }
    }

    #[test]
    fn segments() {
        assert_eq!(
            describe(&Packet::Tcp(syn())).to_string(),
            "IP 10.98.0.1.61007 > 10.99.0.7.8080: Flags [S], seq 1, win 64240, options [mss 1460], \
             length 0"
        );
        let block = Some((SeqNumber(5), SeqNumber(9)));
        let data = Segment {
            ip: IpHeader {
                src: Ipv6Addr::LOCALHOST.into(),
                dst: "fd00::7".parse().unwrap(),
                ttl: 1,
                id: 0,
            },
            seq: SeqNumber(u32::MAX),
            ack: SeqNumber(9),
            flags: Flags::ACK,
            options: Options {
                mss: None,
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some(Timestamps { tsval: 3, tsecr: 4 }),
                sack: [block, block, None, None],
            },
            payload: b"x",
            ..syn()
        };
        assert_eq!(
            describe(&Packet::Tcp(data)).to_string(),
            "IP6 ::1.61007 > fd00::7.8080: Flags [.], seq 4294967295:0, ack 9, win 64240, \
             options [sackOK,TS val 3 ecr 4,wscale 7,sack 2 {5:9}{5:9}], length 1"
        );
    }

    #[test]
    fn others() {
        let quoted = Quoted {
            src: ([10, 98, 0, 1], 61_007).into(),
            dst: ([10, 99, 0, 7], 8080).into(),
            seq: SeqNumber(5),
            ack: Some(SeqNumber(6)),
            wnd: None,
            ip_id: 0,
        };
        let ip = IpHeader { src: [10, 98, 0, 254].into(), dst: syn().ip.src, ttl: 64, id: 0 };
        let error = IcmpError { ip, icmp_type: 3, code: 1, quoted };
        assert_eq!(
            describe(&Packet::Icmp(error)).to_string(),
            "IP 10.98.0.254 > 10.98.0.1: ICMP host unreachable (type 3, code 1), quoting \
             10.98.0.1.61007 > 10.99.0.7.8080: seq 5, ack 6"
        );
        let request = Arp {
            op: ArpOp::Request,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender_ip: [10, 98, 0, 1].into(),
            target_mac: MacAddr::default(),
            target_ip: [10, 98, 0, 2].into(),
        };
        assert_eq!(
            describe(&Packet::Arp(request)).to_string(),
            "ARP, Request who-has 10.98.0.2 tell 10.98.0.1"
        );
        assert_eq!(
            describe(&Packet::Arp(Arp { op: ArpOp::Reply, ..request })).to_string(),
            "ARP, Reply 10.98.0.1 is-at 02:00:00:00:00:01"
        );
        let solicitation = Nd {
            kind: NdKind::Solicitation,
            src: "fd98::1".parse().unwrap(),
            dst: "ff02::1:ff00:fe".parse().unwrap(),
            target: "fd98::fe".parse().unwrap(),
            mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        };
        assert_eq!(
            describe(&Packet::Nd(solicitation)).to_string(),
            "IP6 fd98::1 > ff02::1:ff00:fe: ICMP6, neighbor solicitation, who has fd98::fe, \
             source link-address 02:00:00:00:00:01"
        );
        let kind = NdKind::Advertisement { router: true, solicited: true, overrides: false };
        let advertisement = Nd { kind, mac: None, ..solicitation };
        assert_eq!(
            describe(&Packet::Nd(advertisement)).to_string(),
            "IP6 fd98::1 > ff02::1:ff00:fe: ICMP6, neighbor advertisement, tgt is fd98::fe, \
             router, solicited"
        );
        assert_eq!(describe(&Packet::Other).to_string(), "other");
    }
}
