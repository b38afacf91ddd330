//! What the simulated network promises: each protocol rule of Linux that the prober relies on.

use super::*;
use crate::time::Instant;
use crate::wire::{
    self, Arp, ArpOp, Checksums, Flags, IcmpError, IpHeader, LinkHeader, LinkType, MacAddr, Nd,
    NdKind, Options, Packet, Segment, SeqNumber, Timestamps, nd,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

const SYN: Flags = Flags::SYN;
const ACK: Flags = Flags::ACK;
const RST: Flags = Flags::RST;
const SYN_ACK: Flags = Flags::SYN.union(Flags::ACK);
const RST_ACK: Flags = Flags::RST.union(Flags::ACK);
const FIN_ACK: Flags = Flags::FIN.union(Flags::ACK);
const PSH_ACK: Flags = Flags::PSH.union(Flags::ACK);

/// Our initial sequence number in every test.
const ISS: SeqNumber = SeqNumber(0xffff_fffe);

fn us() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 10], 61_000))
}

fn us_v6() -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10)
}

fn peer() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 7], 22))
}

fn at_ms(ms: u64) -> Instant {
    Instant::ZERO + Duration::from_millis(ms)
}

/// A segment that arrived, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Heard {
    ms: u64,
    from: SocketAddr,
    flags: Flags,
    seq: SeqNumber,
    ack: SeqNumber,
    wnd: u16,
    len: usize,
    ttl: u8,
    timestamps: Option<Timestamps>,
}

/// A prober that does only what it is told.
struct Prober {
    network: Network,
    now: Instant,
    gateway: MacAddr,
    /// TSval to send, if any.
    tsval: Option<u32>,
    icmp: Vec<IcmpError>,
    arp: Vec<Arp>,
    nd: Vec<Nd>,
}

fn network(group: PeerGroup, events: &[(u64, Fault)]) -> NetworkConfig {
    let prefix = group.prefix;
    NetworkConfig {
        events: events.iter().map(|&(at_ms, what)| Event { at_ms, prefix, what }).collect(),
        peers: vec![group],
        ..NetworkConfig::default()
    }
}

fn group(behaviour: Behaviour) -> PeerGroup {
    PeerGroup::new("10.0.0.0/8".parse().unwrap(), behaviour)
}

impl Prober {
    fn new(config: NetworkConfig) -> Self {
        let gateway = mac_of(IpAddr::V4(config.gateway));
        let network = Network::new(config).unwrap();
        Prober {
            network,
            now: Instant::ZERO,
            gateway,
            tsval: None,
            icmp: Vec::new(),
            arp: Vec::new(),
            nd: Vec::new(),
        }
    }

    fn with(behaviour: Behaviour) -> Self {
        Prober::new(network(group(behaviour), &[]))
    }

    fn segment(&self, flags: Flags, seq: SeqNumber, ack: SeqNumber, payload: &[u8]) -> Vec<u8> {
        let link = LinkHeader::Ethernet {
            src: MacAddr([2, 0, 0, 0, 0, 1]),
            dst: self.gateway,
            vlan: None,
        };
        let timestamps = self.tsval.map(|tsval| Timestamps { tsval, tsecr: 0 });
        let mss = flags.contains(SYN).then_some(1460);
        let segment = Segment {
            ip: IpHeader { src: us().ip(), dst: peer().ip(), ttl: 64, id: 77 },
            src_port: us().port(),
            dst_port: peer().port(),
            seq,
            ack,
            flags,
            wnd: 5000,
            options: Options { timestamps, mss, ..Options::default() },
            payload,
        };
        let mut frame = vec![0; 1600];
        let len = segment.emit(&link, &mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    fn send(&mut self, flags: Flags, seq: SeqNumber, ack: SeqNumber, payload: &[u8]) {
        let frame = self.segment(flags, seq, ack, payload);
        self.network.transmit(self.now, &frame);
    }

    /// Lets `ms` milliseconds pass, from one arrival to the next as a real driver does.
    fn wait(&mut self, ms: u64) -> Vec<Heard> {
        let until = self.now + Duration::from_millis(ms);
        let mut heard = Vec::new();
        while let Some(next) = self.network.next_arrival().filter(|next| *next <= until) {
            let (icmp, arp, nd) = (&mut self.icmp, &mut self.arp, &mut self.nd);
            self.network.poll_receive(next, &mut |frame| {
                assert_eq!(frame.at, next, "handed over late");
                match wire::parse(frame.bytes, LinkType::Ethernet, Checksums::Verify).unwrap() {
                    Packet::Tcp(segment) => heard.push(Heard {
                        ms: frame.at.since(Instant::ZERO).as_millis() as u64,
                        from: SocketAddr::new(segment.ip.src, segment.src_port),
                        flags: segment.flags,
                        seq: segment.seq,
                        ack: segment.ack,
                        wnd: segment.wnd,
                        len: segment.payload.len(),
                        ttl: segment.ip.ttl,
                        timestamps: segment.options.timestamps,
                    }),
                    Packet::Icmp(error) => icmp.push(error),
                    Packet::Arp(reply) => arp.push(reply),
                    Packet::Nd(advert) => nd.push(advert),
                    Packet::Other => panic!("neither TCP nor ICMP nor ARP"),
                }
            });
        }
        self.network.poll_receive(until, &mut |_| panic!("next_arrival has missed a frame"));
        self.now = until;
        heard
    }

    fn only(&mut self) -> Heard {
        let heard = self.wait(0);
        assert_eq!(heard.len(), 1, "{heard:?}");
        heard[0]
    }

    /// Sends a SYN and returns the peer's initial sequence number.
    fn syn(&mut self) -> SeqNumber {
        self.send(SYN, ISS, SeqNumber(0), b"");
        let heard = self.only();
        assert_eq!((heard.flags, heard.ack, heard.from), (SYN_ACK, ISS + 1, peer()));
        heard.seq
    }

    /// Opens the connection and returns our RCV.NXT.
    fn connect(&mut self) -> SeqNumber {
        let rcv_nxt = self.syn() + 1;
        self.send(ACK, ISS + 1, rcv_nxt, b"");
        assert_eq!(self.state(), Some(TcpState::SynRecv), "not yet arrived");
        rcv_nxt
    }

    /// Opens the connection and lets the last ACK arrive, which must draw nothing.
    fn connected(behaviour: Behaviour) -> (Self, SeqNumber) {
        Prober::connected_to(network(group(behaviour), &[]))
    }

    fn connected_to(config: NetworkConfig) -> (Self, SeqNumber) {
        let mut prober = Prober::new(config);
        let rcv_nxt = prober.connect();
        assert_eq!(prober.wait(0), []);
        assert_eq!(prober.state(), Some(TcpState::Established));
        (prober, rcv_nxt)
    }

    fn keepalive(&mut self, rcv_nxt: SeqNumber, payload: &[u8]) {
        self.send(ACK, ISS, rcv_nxt, payload);
    }

    fn state(&self) -> Option<TcpState> {
        self.network.state(peer(), us())
    }

    fn asks_for(&mut self, target_ip: Ipv4Addr) -> Vec<Arp> {
        let link = LinkHeader::Ethernet {
            src: MacAddr([2, 0, 0, 0, 0, 1]),
            dst: MacAddr::BROADCAST,
            vlan: None,
        };
        let request = Arp {
            op: ArpOp::Request,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender_ip: Ipv4Addr::new(192, 0, 2, 10),
            target_mac: MacAddr::default(),
            target_ip,
        };
        let mut frame = [0; 64];
        let len = request.emit(&link, &mut frame).unwrap();
        self.network.transmit(self.now, &frame[..len]);
        self.wait(1);
        std::mem::take(&mut self.arp)
    }

    /// Sends a Neighbour Solicitation for `target` to the MAC address `dst`.
    fn solicits(&mut self, target: Ipv6Addr, dst: MacAddr) -> Vec<Nd> {
        let src = MacAddr([2, 0, 0, 0, 0, 1]);
        let question = Nd::solicit(us_v6(), target, src);
        let link = LinkHeader::Ethernet { src, dst, vlan: None };
        let mut frame = [0; 128];
        let len = question.emit(&link, &mut frame).unwrap();
        self.network.transmit(self.now, &frame[..len]);
        self.wait(1);
        std::mem::take(&mut self.nd)
    }
}

fn facts(heard: &Heard) -> (Flags, SeqNumber, SeqNumber, usize) {
    (heard.flags, heard.seq, heard.ack, heard.len)
}

#[test]
fn arp_is_answered_by_the_gateway_and_by_neighbours_that_are_up() {
    let prefix = |text: &str| text.parse().unwrap();
    let mut mute = PeerGroup::new(prefix("192.0.2.32/32"), Behaviour::Listen);
    mute.arp = false;
    let mut prober = Prober::new(NetworkConfig {
        on_link: Some(prefix("192.0.2.0/24")),
        peers: vec![
            mute,
            PeerGroup::new(prefix("192.0.2.33/32"), Behaviour::Down),
            PeerGroup::new(prefix("192.0.2.34/32"), Behaviour::Silent),
            PeerGroup::new(prefix("192.0.2.40/29"), Behaviour::Listen),
            group(Behaviour::Listen),
        ],
        events: vec![
            Event { at_ms: 100, prefix: prefix("192.0.2.40/32"), what: Fault::Down },
            Event { at_ms: 100, prefix: prefix("192.0.2.41/32"), what: Fault::ArpSilent },
            Event { at_ms: 200, prefix: prefix("192.0.2.40/29"), what: Fault::Up },
        ],
        ..NetworkConfig::default()
    });
    let host = |last: u8| Ipv4Addr::new(192, 0, 2, last);
    let answers = |prober: &mut Prober, ip| {
        let replies = prober.asks_for(ip);
        if let Some(reply) = replies.first() {
            assert_eq!((reply.op, reply.sender_ip), (ArpOp::Reply, ip));
            assert_eq!(reply.sender_mac, mac_of(IpAddr::V4(ip)));
            assert_eq!(reply.target_mac, MacAddr([2, 0, 0, 0, 0, 1]));
        }
        !replies.is_empty()
    };
    for (last, up) in [(1, true), (32, false), (33, false), (34, true), (40, true), (99, false)] {
        assert_eq!(answers(&mut prober, host(last)), up, "{last}");
    }
    assert!(!answers(&mut prober, Ipv4Addr::new(10, 0, 0, 7)), "behind the gateway");
    prober.wait(100);
    assert!(!answers(&mut prober, host(40)));
    assert!(!answers(&mut prober, host(41)));
    assert!(answers(&mut prober, host(42)));
    prober.wait(100);
    assert!(answers(&mut prober, host(40)));
    assert!(answers(&mut prober, host(41)));
}

#[test]
fn solicitations_are_answered_like_arp() {
    let prefix = |text: &str| text.parse().unwrap();
    let mut prober = Prober::new(NetworkConfig {
        on_link: Some(prefix("2001:db8::/64")),
        peers: vec![
            PeerGroup::new(prefix("2001:db8::33/128"), Behaviour::Down),
            PeerGroup::new(prefix("2001:db8::40/125"), Behaviour::Listen),
            PeerGroup::new(prefix("fd00::/8"), Behaviour::Listen),
        ],
        events: vec![Event {
            at_ms: 100,
            prefix: prefix("2001:db8::40/128"),
            what: Fault::ArpSilent,
        }],
        ..NetworkConfig::default()
    });
    let answers = |prober: &mut Prober, host: &str| {
        let host: Ipv6Addr = host.parse().unwrap();
        let group = nd::multicast_mac(nd::solicited_node(host));
        let adverts = prober.solicits(host, group);
        if let Some(advert) = adverts.first() {
            let router = host == Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
            let kind = NdKind::Advertisement { router, solicited: true, overrides: true };
            let mac = Some(mac_of(host.into()));
            assert_eq!(*advert, Nd { kind, src: host, dst: us_v6(), target: host, mac });
        }
        !adverts.is_empty()
    };
    for (host, up) in [
        ("2001:db8::1", true),
        ("2001:db8::33", false),
        ("2001:db8::40", true),
        ("2001:db8::99", false),
        ("fd00::1", false),
    ] {
        assert_eq!(answers(&mut prober, host), up, "{host}");
    }
    prober.wait(100);
    assert!(!answers(&mut prober, "2001:db8::40"));
    assert!(answers(&mut prober, "2001:db8::41"));
    // The group's own MAC address, not everyone's.
    let misaddressed = prober.network.counters().misaddressed;
    assert_eq!(prober.solicits(Ipv6Addr::LOCALHOST, MacAddr::BROADCAST), []);
    assert_eq!(prober.network.counters().misaddressed, misaddressed + 1);
}

#[test]
fn a_handshake_completes_and_a_keepalive_draws_an_ack() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::Listen);
    prober.keepalive(rcv_nxt, b"");
    let ack = prober.only();
    assert_eq!(facts(&ack), (ACK, rcv_nxt, ISS + 1, 0));
    assert_eq!((ack.wnd, ack.ttl, ack.timestamps), (64_240, 64, None));
    assert_eq!(prober.network.next_arrival(), None, "no timer left");
}

#[test]
fn a_syn_ack_is_repeated_five_times_and_then_forgotten() {
    let mut prober = Prober::with(Behaviour::Listen);
    let iss = prober.syn();
    let heard = prober.wait(62_999);
    let times: Vec<u64> = heard.iter().map(|heard| heard.ms).collect();
    assert_eq!(times, [1_000, 3_000, 7_000, 15_000, 31_000]);
    assert!(heard.iter().all(|heard| facts(heard) == (SYN_ACK, iss, ISS + 1, 0)));
    assert_eq!(prober.network.connections(), Connections { syn_recv: 1, ..Default::default() });
    prober.wait(1);
    assert_eq!(prober.network.connections(), Connections::default());
}

#[test]
fn a_repeated_syn_draws_the_same_syn_ack_at_most_every_500_ms() {
    let mut prober = Prober::with(Behaviour::Listen);
    let iss = prober.syn();
    prober.wait(100);
    assert_eq!(prober.syn(), iss);
    prober.wait(499);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), []);
    prober.wait(1);
    assert_eq!(prober.syn(), iss);
}

#[test]
fn in_syn_recv_a_keepalive_draws_an_ack_but_completes_nothing() {
    let mut prober = Prober::with(Behaviour::Listen);
    let rcv_nxt = prober.syn() + 1;
    prober.wait(1);
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(prober.wait(499), [], "limited");
    assert_eq!(prober.state(), Some(TcpState::SynRecv));
    prober.keepalive(rcv_nxt, b"x");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
    assert_eq!(prober.state(), Some(TcpState::SynRecv));
    prober.send(ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(prober.wait(0), []);
    assert_eq!(prober.state(), Some(TcpState::Established));
}

#[test]
fn in_syn_recv_a_wrong_ack_draws_a_rst_and_an_exact_rst_ends_it() {
    let mut prober = Prober::with(Behaviour::Listen);
    let rcv_nxt = prober.syn() + 1;
    prober.send(ACK, ISS + 1, rcv_nxt + 5, b"");
    assert_eq!(facts(&prober.only()), (RST, rcv_nxt + 5, SeqNumber(0), 0));
    assert_eq!(prober.state(), Some(TcpState::SynRecv));
    prober.send(RST, ISS, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), []);
    assert_eq!(prober.state(), Some(TcpState::SynRecv), "RST before the window");
    prober.send(RST, ISS + 1, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), []);
    assert_eq!(prober.state(), None);
}

#[test]
fn a_closed_port_answers_as_rfc_9293_says() {
    let mut prober = Prober::with(Behaviour::Closed);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(facts(&prober.only()), (RST_ACK, SeqNumber(0), ISS + 1, 0));
    prober.send(ACK, ISS, SeqNumber(4711), b"x");
    assert_eq!(facts(&prober.only()), (RST, SeqNumber(4711), SeqNumber(0), 0));
    prober.send(RST, ISS, SeqNumber(4711), b"");
    assert_eq!(prober.wait(1_000), []);

    let mut listener = group(Behaviour::Listen);
    listener.ports = vec![80, 443];
    let mut prober = Prober::new(network(listener, &[]));
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.only().flags, RST_ACK, "port 22 is not among its ports");
}

#[test]
fn a_listener_without_cookies_resets_a_stray_ack() {
    let mut prober = Prober::with(Behaviour::Listen);
    prober.keepalive(SeqNumber(99), b"");
    assert_eq!(facts(&prober.only()), (RST, SeqNumber(99), SeqNumber(0), 0));
}

#[test]
fn a_syn_cookie_leaves_no_state_until_its_ack() {
    let mut prober = Prober::with(Behaviour::SynCookies);
    let rcv_nxt = prober.syn() + 1;
    assert_eq!(prober.state(), None);
    assert_eq!(prober.wait(70_000), [], "not repeated");
    prober.send(ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(prober.wait(0), []);
    assert_eq!(prober.state(), Some(TcpState::Established));
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
}

#[test]
fn a_keepalive_that_overtakes_the_ack_is_a_wrong_cookie() {
    for payload in [&b""[..], b"x"] {
        let mut prober = Prober::with(Behaviour::SynCookies);
        let rcv_nxt = prober.syn() + 1;
        prober.keepalive(rcv_nxt, payload);
        assert_eq!(facts(&prober.only()), (RST, rcv_nxt, SeqNumber(0), 0));
        assert_eq!(prober.state(), None);
        prober.send(ACK, ISS + 1, rcv_nxt, b"");
        assert_eq!(prober.wait(0), []);
        assert_eq!(prober.state(), Some(TcpState::Established));
    }
}

#[test]
fn empty_probes_are_answered_once_in_500_ms_and_those_with_data_always() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::Listen);
    prober.wait(10);
    let mut times = Vec::new();
    for _ in 0..30 {
        prober.keepalive(rcv_nxt, b"");
        times.extend(prober.wait(50).iter().map(|heard| heard.ms));
    }
    assert_eq!(times, [10, 510, 1_010]);
    assert_eq!(prober.network.counters().acks_limited, 27);
    for _ in 0..30 {
        prober.keepalive(rcv_nxt, b"x");
        assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
    }
    assert_eq!(prober.network.counters().delivered_octets, 0);
    prober.send(ACK, ISS + 1, rcv_nxt, b"x");
    assert_eq!(prober.only().ack, ISS + 2);
    assert_eq!(prober.network.counters().delivered_octets, 1, "the garbage byte of SND.NXT");
}

#[test]
fn the_limit_is_per_connection() {
    let mut config = network(group(Behaviour::Listen), &[]);
    config.seed = 5;
    let mut prober = Prober::new(config);
    for last in 1..=20 {
        let flow = Established {
            peer: SocketAddr::from(([10, 0, 0, last], 22)),
            prober: us(),
            snd_una: ISS + 1,
            rcv_nxt: SeqNumber(1),
            tsval: None,
        };
        assert!(prober.network.establish(&flow));
    }
    prober.now = at_ms(1);
    let frame = |last: u8, prober: &Prober| {
        let link = LinkHeader::Ethernet {
            src: MacAddr([2, 0, 0, 0, 0, 1]),
            dst: prober.gateway,
            vlan: None,
        };
        let dst = IpAddr::from([10, 0, 0, last]);
        let segment = Segment {
            ip: IpHeader { src: us().ip(), dst, ttl: 64, id: 0 },
            src_port: us().port(),
            dst_port: 22,
            seq: ISS,
            ack: SeqNumber(1),
            flags: ACK,
            wnd: 1,
            options: Options::default(),
            payload: b"",
        };
        let mut frame = vec![0; 64];
        let len = segment.emit(&link, &mut frame).unwrap();
        frame.truncate(len);
        frame
    };
    for last in 1..=20 {
        let frame = frame(last, &prober);
        prober.network.transmit(prober.now, &frame);
        prober.network.transmit(prober.now, &frame);
    }
    assert_eq!(prober.wait(1).len(), 20);
    assert_eq!(prober.network.counters().acks_limited, 20);
    let stranger = Established {
        peer: SocketAddr::from(([11, 0, 0, 1], 22)),
        prober: us(),
        snd_una: ISS,
        rcv_nxt: ISS,
        tsval: None,
    };
    assert!(!prober.network.establish(&stranger), "no such host");
}

#[test]
fn paws_drops_an_empty_stale_probe_silently() {
    let mut prober = Prober::with(Behaviour::Listen);
    prober.now = at_ms(5_000);
    prober.tsval = Some(1_000);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    let syn_ack = prober.only();
    assert_eq!(syn_ack.timestamps, Some(Timestamps { tsval: 5_000, tsecr: 1_000 }));
    let rcv_nxt = syn_ack.seq + 1;
    prober.tsval = Some(1_010);
    prober.send(ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(prober.wait(1_000), []);

    prober.tsval = Some(999);
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(prober.wait(600), []);
    prober.keepalive(rcv_nxt, b"x");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0), "data is answered all the same");
    prober.wait(600);
    prober.tsval = Some(2_000);
    prober.keepalive(rcv_nxt, b"");
    let ack = prober.only();
    assert_eq!(ack.timestamps, Some(Timestamps { tsval: 7_200, tsecr: 1_010 }), "out of window");
    prober.wait(600);
    prober.tsval = None;
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(prober.only().flags, ACK, "without the option Linux answers");
}

#[test]
fn timestamps_are_left_out_where_the_peer_does_not_do_them() {
    let mut old = group(Behaviour::Listen);
    old.timestamps = false;
    let mut prober = Prober::new(network(old, &[]));
    prober.tsval = Some(1);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.only().timestamps, None);
}

#[test]
fn challenge_acks_answer_syn_and_inexact_rst_and_share_the_limit() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::Listen);
    prober.wait(1);
    prober.send(SYN, SeqNumber(1), SeqNumber(0), b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
    prober.send(RST, ISS + 2, SeqNumber(0), b"");
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(prober.wait(500), [], "limited");
    prober.send(RST, ISS + 2, SeqNumber(0), b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
    prober.wait(500);
    prober.send(RST, ISS, SeqNumber(0), b"");
    prober.send(RST, ISS + 1 + 70_000, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), [], "outside the window");
    assert_eq!(prober.state(), Some(TcpState::Established));
    prober.send(RST, ISS + 1, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), []);
    assert_eq!(prober.state(), None);
}

#[test]
fn acknowledgments_out_of_range_are_not_believed() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::Listen);
    prober.wait(1);
    prober.send(ACK, ISS + 1, rcv_nxt + 1, b"x");
    assert_eq!(prober.wait(0), [], "acknowledges what was never sent");
    prober.send(ACK, ISS + 1, rcv_nxt - 70_000, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0), "RFC 5961 §5.2");
    assert_eq!(prober.network.counters().delivered_octets, 0);
}

#[test]
fn our_fin_leaves_close_wait_until_the_application_closes() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::Listen);
    prober.send(FIN_ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 2, 0));
    assert_eq!(prober.state(), Some(TcpState::CloseWait));
    prober.send(FIN_ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 2, 0), "repeated FIN");
    assert_eq!(prober.network.connections().left_open(), 1);
    prober.send(RST, ISS + 2, SeqNumber(0), b"");
    prober.wait(0);
    assert_eq!(prober.network.connections().left_open(), 0);

    let mut tidy = group(Behaviour::Listen);
    tidy.close_on_fin = true;
    let (mut prober, rcv_nxt) = Prober::connected_to(network(tidy, &[]));
    prober.send(FIN_ACK, ISS + 1, rcv_nxt, b"");
    let heard: Vec<_> = prober.wait(0).iter().map(facts).collect();
    assert_eq!(heard, [(ACK, rcv_nxt, ISS + 2, 0), (FIN_ACK, rcv_nxt, ISS + 2, 0)]);
    assert_eq!(prober.state(), Some(TcpState::LastAck));
    assert_eq!(prober.wait(200).len(), 1, "the FIN again");
    prober.send(ACK, ISS + 2, rcv_nxt + 1, b"");
    assert_eq!(prober.wait(60_000), []);
    assert_eq!(prober.state(), None);
}

#[test]
fn a_peers_fin_is_repeated_until_acknowledged_and_keepalives_are_still_answered() {
    let config = network(group(Behaviour::Listen), &[(1_000, Fault::CloseFin)]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    let heard = prober.wait(2_500);
    assert!(heard.iter().all(|heard| facts(heard) == (FIN_ACK, rcv_nxt, ISS + 1, 0)));
    let times: Vec<u64> = heard.iter().map(|heard| heard.ms).collect();
    assert_eq!(times, [1_000, 1_200, 1_600, 2_400]);
    assert_eq!(prober.state(), Some(TcpState::FinWait1));

    prober.send(ACK, ISS + 1, rcv_nxt + 1, b"");
    assert_eq!(prober.wait(1_000), []);
    assert_eq!(prober.state(), Some(TcpState::FinWait2));
    prober.keepalive(rcv_nxt + 1, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt + 1, ISS + 1, 0));
    prober.send(FIN_ACK, ISS + 1, rcv_nxt + 1, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt + 1, ISS + 2, 0));
    assert_eq!(prober.state(), Some(TcpState::TimeWait));
    assert_eq!(prober.network.connections().left_open(), 0);
    prober.wait(1_000);
    prober.send(ACK, ISS + 1, rcv_nxt + 1, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt + 1, ISS + 2, 0), "TIME_WAIT answers too");
    prober.wait(60_000);
    assert_eq!(prober.state(), None);
}

#[test]
fn time_wait_gives_way_to_a_new_connection() {
    let config = network(group(Behaviour::Listen), &[(1, Fault::CloseFin)]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    prober.wait(1);
    prober.send(FIN_ACK, ISS + 1, rcv_nxt + 1, b"");
    assert_eq!(prober.only().ack, ISS + 2);
    assert_eq!(prober.state(), Some(TcpState::TimeWait));
    prober.send(SYN, ISS + 1_000, SeqNumber(0), b"");
    let syn_ack = prober.only();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN_ACK, ISS + 1_001));
    assert_ne!(syn_ack.seq, rcv_nxt - 1);
}

#[test]
fn fin_from_both_sides_at_once_ends_in_time_wait() {
    let config = network(group(Behaviour::Listen), &[(1, Fault::CloseFin)]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    assert_eq!(prober.wait(1).len(), 1);
    prober.send(FIN_ACK, ISS + 1, rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt + 1, ISS + 2, 0));
    assert_eq!(prober.state(), Some(TcpState::Closing));
    prober.send(ACK, ISS + 2, rcv_nxt + 1, b"");
    prober.wait(0);
    assert_eq!(prober.state(), Some(TcpState::TimeWait));
}

#[test]
fn a_fin_that_nobody_acknowledges_is_given_up() {
    let config = network(group(Behaviour::Listen), &[(1_000, Fault::CloseFin)]);
    let (mut prober, _) = Prober::connected_to(config);
    assert_eq!(prober.wait(600_000).len(), 9, "once, and tcp_orphan_retries");
    assert_eq!(prober.network.connections(), Connections::default());
    assert_eq!(prober.network.next_arrival(), None);
}

#[test]
fn data_is_repeated_with_backoff_until_acknowledged() {
    let config =
        network(group(Behaviour::Listen), &[(1_000, Fault::SendData { octets: 9, segments: 1 })]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    let heard = prober.wait(2_000);
    assert!(heard.iter().all(|heard| facts(heard) == (PSH_ACK, rcv_nxt, ISS + 1, 9)));
    let times: Vec<u64> = heard.iter().map(|heard| heard.ms).collect();
    assert_eq!(times, [1_000, 1_200, 1_600]);
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt + 9, ISS + 1, 0), "SEG.SEQ = SND.NXT");
    prober.send(ACK, ISS + 1, rcv_nxt + 4, b"");
    let rest = prober.wait(200);
    assert_eq!(rest.iter().map(facts).collect::<Vec<_>>(), [(PSH_ACK, rcv_nxt + 4, ISS + 1, 5)]);
    prober.send(ACK, ISS + 1, rcv_nxt + 9, b"");
    assert_eq!(prober.wait(60_000), []);
    assert_eq!(prober.state(), Some(TcpState::Established));
}

#[test]
fn a_greeting_follows_the_handshake() {
    for behaviour in [Behaviour::Listen, Behaviour::SynCookies] {
        let mut polite = group(behaviour);
        polite.greeting = 21;
        let mut prober = Prober::new(network(polite, &[]));
        let rcv_nxt = prober.syn() + 1;
        prober.send(ACK, ISS + 1, rcv_nxt, b"");
        assert_eq!(facts(&prober.only()), (PSH_ACK, rcv_nxt, ISS + 1, 21));
        prober.send(ACK, ISS + 1, rcv_nxt + 21, b"");
        assert_eq!(prober.wait(10_000), []);
    }
}

#[test]
fn a_zero_window_is_advertised_and_its_opening_announced() {
    let events = [(1_000, Fault::ZeroWindow), (9_000, Fault::OpenWindow)];
    let (mut prober, rcv_nxt) = Prober::connected_to(network(group(Behaviour::Listen), &events));
    assert_eq!(prober.wait(2_000), [], "a closed window is not announced");
    for payload in [&b""[..], b"x"] {
        prober.keepalive(rcv_nxt, payload);
        let ack = prober.only();
        assert_eq!((facts(&ack), ack.wnd), ((ACK, rcv_nxt, ISS + 1, 0), 0));
    }
    prober.send(ACK, ISS + 1, rcv_nxt, b"x");
    assert_eq!(prober.only().ack, ISS + 1, "nothing fits");
    assert_eq!(prober.network.counters().delivered_octets, 0);
    let update = prober.wait(7_000);
    assert_eq!(update.len(), 1);
    assert_eq!((update[0].ms, update[0].wnd), (9_000, 64_240));
}

#[test]
fn a_rebooted_peer_resets_what_it_forgot() {
    for (listening, answer) in [(true, SYN_ACK), (false, RST_ACK)] {
        let config = network(group(Behaviour::Listen), &[(1_000, Fault::Reboot { listening })]);
        let (mut prober, rcv_nxt) = Prober::connected_to(config);
        assert_eq!(prober.wait(1_000), []);
        assert_eq!(prober.network.connections(), Connections::default());
        prober.keepalive(rcv_nxt, b"");
        assert_eq!(facts(&prober.only()), (RST, rcv_nxt, SeqNumber(0), 0));
        prober.send(SYN, ISS + 9, SeqNumber(0), b"");
        assert_eq!(prober.only().flags, answer);
    }
}

#[test]
fn a_host_that_is_off_forgets_and_one_behind_a_broken_path_remembers() {
    let down = [(1_000, Fault::Down), (5_000, Fault::Up)];
    let broken = [(1_000, Fault::PathDrop { out: true, back: true }), (5_000, Fault::Up)];
    for (events, afterwards) in [(down, RST), (broken, ACK)] {
        let config = network(group(Behaviour::Listen), &events);
        let (mut prober, rcv_nxt) = Prober::connected_to(config);
        prober.wait(1_500);
        prober.keepalive(rcv_nxt, b"");
        prober.keepalive(rcv_nxt, b"x");
        assert_eq!(prober.wait(3_500), []);
        prober.keepalive(rcv_nxt, b"");
        assert_eq!(prober.only().flags, afterwards);
    }
}

#[test]
fn a_path_may_break_one_way_only() {
    let fault = Fault::PathDrop { out: false, back: true };
    let config = network(group(Behaviour::Listen), &[(0, fault)]);
    let mut prober = Prober::new(config);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.wait(10_000), []);
    assert_eq!(prober.state(), Some(TcpState::SynRecv), "the SYN has arrived");
    assert_eq!(prober.network.counters().lost_back, 4);
    assert_eq!(prober.network.counters().lost_out, 0);
}

#[test]
fn routers_report_with_a_quote() {
    let router = IpAddr::from([198, 51, 100, 9]);
    for short_quote in [false, true] {
        let fault = Fault::Icmp { icmp_type: 3, code: 13, from: Some(router), short_quote };
        let config = network(group(Behaviour::Listen), &[(1_000, fault)]);
        let (mut prober, rcv_nxt) = Prober::connected_to(config);
        prober.wait(1_000);
        prober.keepalive(rcv_nxt, b"x");
        assert_eq!(prober.wait(0), []);
        let error = prober.icmp.pop().unwrap();
        assert_eq!((error.icmp_type, error.code, error.ip.src), (3, 13, router));
        assert_eq!(error.ip.dst, us().ip());
        let quoted = error.quoted;
        assert_eq!((quoted.src, quoted.dst, quoted.seq), (us(), peer(), ISS));
        assert_eq!((quoted.ack, quoted.ip_id), ((!short_quote).then_some(rcv_nxt), 77));
        assert_eq!(prober.state(), Some(TcpState::Established), "never got there");
    }
}

#[test]
fn a_routing_loop_is_reported_by_the_gateway_unless_said_otherwise() {
    let config = network(group(Behaviour::Listen), &[(0, Fault::TtlExceeded { from: None })]);
    let mut prober = Prober::new(config);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.wait(0), []);
    let error = prober.icmp.pop().unwrap();
    assert_eq!((error.icmp_type, error.code), (11, 0));
    assert_eq!(error.ip.src, IpAddr::from([192, 0, 2, 1]));
}

#[test]
fn icmp_is_limited_where_asked() {
    let fault = Fault::Icmp { icmp_type: 3, code: 1, from: None, short_quote: false };
    let mut config = network(group(Behaviour::Listen), &[(0, fault)]);
    config.icmp_per_second = Some(10);
    let mut prober = Prober::new(config);
    for _ in 0..300 {
        prober.keepalive(SeqNumber(1), b"");
        prober.wait(10);
    }
    // A second's worth at once, then 10 a second for 3 s.
    assert!((38..=41).contains(&prober.icmp.len()), "{}", prober.icmp.len());
    assert_eq!(prober.network.counters().icmp, prober.icmp.len() as u64);
    assert_eq!(prober.network.counters().icmp_limited, 300 - prober.icmp.len() as u64);
}

#[test]
fn a_firewall_resets_with_its_own_ttl() {
    let config = network(group(Behaviour::Listen), &[(1_000, Fault::FirewallReset { ttl: 255 })]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    prober.wait(1_000);
    prober.keepalive(rcv_nxt, b"");
    let rst = prober.only();
    assert_eq!((facts(&rst), rst.ttl), ((RST, rcv_nxt, SeqNumber(0), 0), 255));
    assert_eq!(rst.from, peer());
    assert_eq!(prober.state(), Some(TcpState::Established));
}

#[test]
fn a_stack_may_ignore_empty_probes() {
    let (mut prober, rcv_nxt) = Prober::connected(Behaviour::IgnoresEmptyProbes);
    prober.keepalive(rcv_nxt, b"");
    assert_eq!(prober.wait(1_000), []);
    prober.keepalive(rcv_nxt, b"x");
    assert_eq!(facts(&prober.only()), (ACK, rcv_nxt, ISS + 1, 0));
}

#[test]
fn a_peer_may_reset_right_after_its_syn_ack() {
    let mut prober = Prober::with(Behaviour::ResetsAfterSynAck);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    let heard: Vec<_> = prober.wait(0).iter().map(facts).collect();
    assert_eq!(heard.len(), 2);
    let (_, iss, ..) = heard[0];
    assert_eq!(heard, [(SYN_ACK, iss, ISS + 1, 0), (RST_ACK, iss + 1, ISS + 1, 0)]);
    assert_eq!(prober.network.connections(), Connections::default());
}

#[test]
fn an_application_may_abort() {
    let config = network(group(Behaviour::Listen), &[(1_000, Fault::CloseRst)]);
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    let heard: Vec<_> = prober.wait(1_000).iter().map(facts).collect();
    assert_eq!(heard, [(RST_ACK, rcv_nxt, ISS + 1, 0)]);
    assert_eq!(prober.network.connections(), Connections::default());
}

#[test]
fn hosts_that_are_off_or_hidden_never_answer() {
    for behaviour in [Behaviour::Down, Behaviour::Silent] {
        let mut prober = Prober::with(behaviour);
        prober.send(SYN, ISS, SeqNumber(0), b"");
        prober.keepalive(SeqNumber(1), b"x");
        assert_eq!(prober.wait(100_000), []);
        assert_eq!(prober.network.counters().ignored, 2);
    }
}

#[test]
fn replies_may_come_several_times() {
    let mut noisy = group(Behaviour::Listen);
    noisy.repeat_replies = 3;
    let mut prober = Prober::new(network(noisy, &[]));
    prober.send(SYN, ISS, SeqNumber(0), b"");
    let heard = prober.wait(0);
    assert_eq!(heard.len(), 4);
    assert!(heard.iter().all(|one| one == &heard[0]));
}

#[test]
fn forgeries_are_never_what_the_peer_would_have_said() {
    for how in [Forgery::Random, Forgery::OffByOne] {
        let forge = Fault::Forge { how, copies: 4 };
        let (mut prober, rcv_nxt) =
            Prober::connected_to(network(group(Behaviour::Listen), &[(1_000, forge)]));
        prober.wait(1_000);
        for round in 0..50 {
            prober.keepalive(rcv_nxt, if round % 2 == 0 { b"" } else { b"x" });
            let heard = prober.wait(600);
            let true_ones = heard.iter().filter(|one| facts(one) == (ACK, rcv_nxt, ISS + 1, 0));
            assert_eq!((true_ones.count(), heard.len()), (1, 4), "{heard:?}");
            assert!(heard.iter().all(|one| !one.flags.contains(RST) || one.seq != rcv_nxt));
        }
        assert_eq!(prober.icmp.len(), 50);
        assert!(prober.icmp.iter().all(|error| error.quoted.seq.distance(ISS).unsigned_abs() > 1));
        assert_eq!(prober.network.counters().forged, 4 * 50);
    }
}

#[test]
fn loss_begins_when_the_schedule_says() {
    let mut config = network(group(Behaviour::Listen), &[]);
    let lossy = Impairment { loss: 1.0, ..Impairment::NONE };
    config.link = vec![
        Phase { from_ms: 1_000, out: lossy, back: Impairment::NONE },
        Phase { from_ms: 2_000, out: Impairment::NONE, back: lossy },
        Phase { from_ms: 3_000, ..Phase::default() },
    ];
    let (mut prober, rcv_nxt) = Prober::connected_to(config);
    let mut answered = Vec::new();
    for _ in 0..4 {
        prober.keepalive(rcv_nxt, b"x");
        answered.push(prober.wait(1_000).len());
    }
    assert_eq!(answered, [1, 0, 0, 1]);
    let counters = prober.network.counters();
    assert_eq!((counters.sent, counters.received), (6, 3));
    assert_eq!((counters.lost_out, counters.lost_back), (1, 1));
}

#[test]
fn delays_add_up_both_ways() {
    let mut config = network(group(Behaviour::Listen), &[]);
    let delayed = |delay_us| Impairment { delay_us, ..Impairment::NONE };
    config.link = vec![Phase { from_ms: 0, out: delayed(7_000), back: delayed(3_000) }];
    let mut prober = Prober::new(config);
    prober.send(SYN, ISS, SeqNumber(0), b"");
    assert_eq!(prober.wait(9), []);
    assert_eq!(prober.wait(1).len(), 1);
}

/// Opens and probes many peers over a bad link, and returns every octet that came back.
fn trace(seed: u64) -> Vec<u8> {
    let bad = Impairment {
        loss: 0.1,
        burst: Some(Burst { to_bad: 0.02, to_good: 0.3, loss_bad: 0.9, loss_good: 0.0 }),
        delay_us: 900,
        jitter_us: 5_000,
        reorder: 0.05,
        reorder_us: 20_000,
        duplicate: 0.05,
    };
    let mut config = network(
        group(Behaviour::Listen),
        &[
            (100, Fault::Forge { how: Forgery::Random, copies: 2 }),
            (150, Fault::SendData { octets: 3, segments: 1 }),
            (250, Fault::CloseFin),
        ],
    );
    config.seed = seed;
    config.link = vec![Phase { from_ms: 0, out: bad, back: bad }];
    let mut prober = Prober::new(config);
    let mut bytes = Vec::new();
    for step in 0..400u32 {
        let link = LinkHeader::Ethernet {
            src: MacAddr([2, 0, 0, 0, 0, 1]),
            dst: prober.gateway,
            vlan: None,
        };
        let segment = Segment {
            ip: IpHeader {
                src: us().ip(),
                dst: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + step % 50)),
                ttl: 64,
                id: 0,
            },
            src_port: 61_000,
            dst_port: 80,
            seq: SeqNumber(step),
            ack: SeqNumber(0),
            flags: SYN,
            wnd: 1_000,
            options: Options::default(),
            payload: b"",
        };
        let mut frame = [0; 128];
        let len = segment.emit(&link, &mut frame).unwrap();
        prober.network.transmit(prober.now, &frame[..len]);
        prober.now = prober.now + Duration::from_millis(1);
        prober.network.poll_receive(prober.now, &mut |frame| {
            bytes.extend_from_slice(&frame.at.as_nanos().to_be_bytes());
            bytes.extend_from_slice(frame.bytes);
        });
    }
    bytes
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let first = trace(1);
    assert!(first.len() > 10_000);
    assert_eq!(first, trace(1));
    assert_ne!(first, trace(2));
}

#[test]
fn frames_that_no_one_could_take_are_counted() {
    let mut prober = Prober::with(Behaviour::Listen);
    let mut frame = prober.segment(SYN, ISS, SeqNumber(0), b"");
    frame[40] ^= 0xff;
    prober.network.transmit(prober.now, &frame);
    frame[40] ^= 0xff;
    frame[0] ^= 0x10;
    prober.network.transmit(prober.now, &frame);
    assert_eq!(prober.wait(1_000), []);
    let counters = prober.network.counters();
    assert_eq!((counters.malformed, counters.misaddressed), (1, 1));
}

#[test]
fn a_network_reads_from_toml() {
    let config: NetworkConfig = toml::from_str(
        r#"
        seed = 7
        prober-mac = "02:00:00:00:00:aa"
        gateway = "192.0.2.254"
        gateway-v6 = "2001:db8::fe"
        on-link = "192.0.2.0/24"

        [[link]]
        from-ms = 1000
        out = { loss = 0.05, delay-us = 500 }
        back = { burst = { to-bad = 0.01, to-good = 0.25 } }

        [[peers]]
        prefix = "10.0.0.0/16"
        ports = [22]
        behaviour = "syn-cookies"
        ttl = 60

        [[events]]
        at-ms = 2000
        prefix = "10.0.1.0/24"
        what = "down"

        [[events]]
        at-ms = 2000
        prefix = "10.0.2.0/24"
        what = { icmp = { icmp-type = 3, code = 1, from = "192.0.2.254" } }

        [[events]]
        at-ms = 3000
        prefix = "10.0.3.0/24"
        what = { reboot = { listening = false } }
        "#,
    )
    .unwrap();
    assert_eq!(config.prober_mac, MacAddr([2, 0, 0, 0, 0, 0xaa]));
    assert_eq!(config.link[0].out.loss, 0.05);
    let burst = Burst { to_bad: 0.01, to_good: 0.25, loss_bad: 1.0, loss_good: 0.0 };
    assert_eq!(config.link[0].back.burst, Some(burst));
    assert_eq!(config.peers[0].behaviour, Behaviour::SynCookies);
    assert_eq!((config.peers[0].ttl, config.peers[0].window), (60, 64_240));
    let from = Some(IpAddr::from([192, 0, 2, 254]));
    let icmp = Fault::Icmp { icmp_type: 3, code: 1, from, short_quote: false };
    let faults: Vec<Fault> = config.events.iter().map(|event| event.what).collect();
    assert_eq!(faults, [Fault::Down, icmp, Fault::Reboot { listening: false }]);
    assert_eq!(config.validate(), Ok(()));
    for wrong in ["sede = 7", "prober-mac = \"02:00\"", "[[events]]\nprefix = \"10.0.0.0/8\""] {
        assert!(toml::from_str::<NetworkConfig>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_network_that_makes_no_sense_is_refused() {
    let mut config = network(group(Behaviour::Listen), &[]);
    config.link =
        vec![Phase { back: Impairment { loss: 1.5, ..Impairment::NONE }, ..Phase::default() }];
    let refused = Network::new(config).err();
    assert_eq!(refused, Some(ConfigError::Probability { name: "loss", value: 1.5 }));
    let fault = Fault::SendData { octets: 1_461, segments: 1 };
    let refused = Network::new(network(group(Behaviour::Listen), &[(0, fault)])).err();
    assert_eq!(refused, Some(ConfigError::Segment { octets: 1_461 }));
    let from = IpAddr::from([0u16; 8]);
    let fault = Fault::TtlExceeded { from: Some(from) };
    let config = network(group(Behaviour::Listen), &[(0, fault)]);
    let prefix = config.peers[0].prefix;
    assert_eq!(Network::new(config).err(), Some(ConfigError::Reporter { from, prefix }));
}
