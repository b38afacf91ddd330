//! The classic BPF program that lets in what may be an answer to us, and nothing else.
#![forbid(unsafe_code)]

use super::PortRanges;
use crate::wire::MacAddr;
use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_B, BPF_H, BPF_IND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP,
    BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MSH, BPF_RET, BPF_RSH,
    BPF_ST, BPF_TAX, BPF_W, BPF_X, sock_filter,
};
use std::net::{IpAddr, Ipv6Addr};

/// What the receiving end lets in.
///
/// - TCP to one of `addresses` and a port in `ports`, over IPv4 first fragments only;
/// - ICMP (types 3, 4, 11, 12; first fragments only) and ICMPv6 errors (1 to 4) to one of `addresses`;
/// - ARP requests and replies whose target address is one of `addresses`;
/// - Neighbour Advertisements to one of `addresses`;
/// - whatever has IPv6 extension headers and is for one of `addresses`: the parser walks them.
///
/// IP packets must also be addressed to `mac`, so that promiscuous mode changes nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilterSpec {
    /// Our addresses on the interface.
    pub addresses: Vec<IpAddr>,
    /// Our source ports.
    pub ports: PortRanges,
    /// Ports of the kernel's own connections: of TCP to these only segments without data are let in, and
    /// those with SYN, FIN or RST. They may be busy.
    pub bare_ports: PortRanges,
    /// The interface's address.
    pub mac: MacAddr,
}

const ETHERTYPE: u32 = 12;
const NETWORK: u32 = 14;
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const ARP: u32 = 0x0806;
const TCP: u32 = 6;
const ICMP: u32 = 1;
const ICMPV6: u32 = 58;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
/// Flags of segments that are let in whatever they carry (RFC 9293 §3.1).
const SYN_FIN_RST: u32 = 0x07;
/// Hop-by-hop, routing, fragment, authentication, destination options (RFC 8200 §4).
const EXTENSIONS: [u32; 5] = [0, 43, 44, 51, 60];

/// Frames are taken whole: a segment cut off by a snap length would contradict its IP total length.
const ACCEPT: u32 = u32::MAX;

impl FilterSpec {
    /// Returns the program, or `None` if it would exceed the kernel's 4,096 instructions (about
    /// 2,000 IPv4 or 440 IPv6 addresses).
    pub(super) fn program(&self) -> Option<Vec<sock_filter>> {
        let (v4, v6) = by_family(&self.addresses);
        let mut p = Program::default();

        p.load_half(ETHERTYPE);
        let arp = p.placeholder();
        let ipv6 = p.placeholder();
        p.require(BPF_JEQ, IPV4);
        p.require_mac(self.mac);
        p.load_word(NETWORK + 16);
        let addresses = p.placeholder();

        p.patch_equal(arp, ARP);
        p.load_word(NETWORK);
        p.require(BPF_JEQ, 0x0001_0800); // Ethernet, IPv4
        p.load_half(NETWORK + 4);
        p.require(BPF_JEQ, 0x0604); // address lengths
        p.load_half(NETWORK + 6);
        p.require_one_of(&[1, 2]); // request, reply
        p.load_word(NETWORK + 24);

        // Both families of frame have their destination in the accumulator here, so that the list
        // of addresses, the only part that grows, is needed once.
        p.patch_always(addresses);
        p.require_one_of(&v4);

        p.load_half(ETHERTYPE);
        p.accept_if(BPF_JEQ, ARP);
        p.accept_replies(NETWORK, &self.ports, &self.bare_ports);

        p.patch_equal(ipv6, IPV6);
        p.require_mac(self.mac);
        p.require_one_of_v6(NETWORK + 24, &v6);
        let icmp_types = [1, 2, 3, 4, NEIGHBOUR_ADVERTISEMENT];
        p.accept_replies_v6(NETWORK, &self.ports, &self.bare_ports, &icmp_types);
        p.finished()
    }
}

/// The IPv4 addresses as words, and the IPv6 ones.
fn by_family(addresses: &[IpAddr]) -> (Vec<u32>, Vec<Ipv6Addr>) {
    let mut families = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => families.0.push(address.to_bits()),
            IpAddr::V6(address) => families.1.push(*address),
        }
    }
    families
}

/// Which packets [`super::PacketRx::open_elsewhere`] lets in: the TCP segments and ICMP errors of a
/// [`FilterSpec`], on any of several interfaces whatever their link layer is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElsewhereSpec {
    /// The indices of the interfaces.
    pub interfaces: Vec<u32>,
    /// Our addresses.
    pub addresses: Vec<IpAddr>,
    /// Our source ports.
    pub ports: PortRanges,
    /// Ports of the kernel's own connections, as in [`FilterSpec`].
    pub bare_ports: PortRanges,
}

impl ElsewhereSpec {
    /// Returns the program, which sees packets from the IP header on, or `None` if it would be too
    /// long.
    pub(super) fn program(&self) -> Option<Vec<sock_filter>> {
        let mut p = Program::default();
        p.load_ancillary(libc::SKF_AD_IFINDEX);
        p.require_one_of(&self.interfaces);
        p.load_ancillary(libc::SKF_AD_PKTTYPE);
        p.require(BPF_JEQ, u32::from(libc::PACKET_HOST));
        p.load_ancillary(libc::SKF_AD_PROTOCOL);
        let ipv6 = p.placeholder();
        p.require(BPF_JEQ, IPV4);
        p.load_word(16);
        let (v4, v6) = by_family(&self.addresses);
        p.require_one_of(&v4);
        p.accept_replies(0, &self.ports, &self.bare_ports);

        p.patch_equal(ipv6, IPV6);
        p.require_one_of_v6(24, &v6);
        p.accept_replies_v6(0, &self.ports, &self.bare_ports, &[1, 2, 3, 4]);
        p.finished()
    }
}

/// A program as it grows; every conditional jump spans two instructions at most, so that no jump can be
/// too far for its eight bits.
#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    fn push(&mut self, code: u32, jt: u8, jf: u8, k: u32) {
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
    }

    fn load_byte(&mut self, at: u32) {
        self.push(BPF_LD | BPF_B | BPF_ABS, 0, 0, at);
    }

    fn load_half(&mut self, at: u32) {
        self.push(BPF_LD | BPF_H | BPF_ABS, 0, 0, at);
    }

    fn load_word(&mut self, at: u32) {
        self.push(BPF_LD | BPF_W | BPF_ABS, 0, 0, at);
    }

    fn load_byte_indexed(&mut self, at: u32) {
        self.push(BPF_LD | BPF_B | BPF_IND, 0, 0, at);
    }

    fn load_half_indexed(&mut self, at: u32) {
        self.push(BPF_LD | BPF_H | BPF_IND, 0, 0, at);
    }

    fn load_index_with_ihl(&mut self, network: u32) {
        self.push(BPF_LDX | BPF_B | BPF_MSH, 0, 0, network);
    }

    /// Loads what the kernel knows of the packet beside its octets.
    fn load_ancillary(&mut self, what: libc::c_int) {
        self.load_word((libc::SKF_AD_OFF + what) as u32);
    }

    /// Accepts first fragments of TCP segments to `ports`, of those without data to `bare`, and of ICMP
    /// errors in the IPv4 packet that begins at `network`, and nothing else.
    fn accept_replies(&mut self, network: u32, ports: &PortRanges, bare: &PortRanges) {
        self.load_half(network + 6);
        self.reject_if(BPF_JSET, 0x1fff); // fragment offset
        self.load_index_with_ihl(network);
        self.load_byte(network + 9);
        let icmp = self.placeholder();
        self.require(BPF_JEQ, TCP);
        self.load_half_indexed(network + 2);
        self.accept_ports(ports);
        if self.require_ports(bare) {
            self.load_byte_indexed(network + 13);
            self.accept_if(BPF_JSET, SYN_FIN_RST);
            // The header's length and what lies before it, against the whole.
            self.load_byte_indexed(network + 12);
            self.push(BPF_ALU | BPF_RSH | BPF_K, 0, 0, 4);
            self.push(BPF_ALU | BPF_LSH | BPF_K, 0, 0, 2);
            self.push(BPF_ALU | BPF_ADD | BPF_X, 0, 0, 0);
            self.push(BPF_MISC | BPF_TAX, 0, 0, 0);
            self.load_half(network + 2);
            self.accept_if_index();
            self.ret(0);
        }

        self.patch_equal(icmp, ICMP);
        self.load_byte_indexed(network);
        self.require_one_of(&[3, 4, 11, 12]);
        self.ret(ACCEPT);
    }

    /// Accepts TCP segments to `ports`, those without data to `bare`, ICMPv6 messages of `icmp_types`, and everything behind extension
    /// headers, in the IPv6 packet that begins at `network`, and nothing else.
    fn accept_replies_v6(
        &mut self,
        network: u32,
        ports: &PortRanges,
        bare: &PortRanges,
        icmp_types: &[u32],
    ) {
        let upper = network + 40;
        self.load_byte(network + 6);
        let tcp = self.placeholder();
        let icmp = self.placeholder();
        self.require_one_of(&EXTENSIONS);
        self.ret(ACCEPT);

        self.patch_equal(tcp, TCP);
        self.load_half(upper + 2);
        self.accept_ports(ports);
        if self.require_ports(bare) {
            self.load_byte(upper + 13);
            self.accept_if(BPF_JSET, SYN_FIN_RST);
            self.load_byte(upper + 12);
            self.push(BPF_ALU | BPF_RSH | BPF_K, 0, 0, 4);
            self.push(BPF_ALU | BPF_LSH | BPF_K, 0, 0, 2);
            self.push(BPF_MISC | BPF_TAX, 0, 0, 0);
            self.load_half(network + 4);
            self.accept_if_index();
            self.ret(0);
        }

        self.patch_equal(icmp, ICMPV6);
        self.load_byte(upper);
        self.require_one_of(icmp_types);
        self.ret(ACCEPT);
    }

    /// Accepts if the port in the accumulator is one of `ports`, else goes on with it.
    fn accept_ports(&mut self, ports: &PortRanges) {
        for range in ports.iter() {
            // Past the test of the end and its return if the port is below; past the return if above.
            self.push(BPF_JMP | BPF_JGE | BPF_K, 0, 2, u32::from(*range.start()));
            self.push(BPF_JMP | BPF_JGT | BPF_K, 1, 0, u32::from(*range.end()));
            self.ret(ACCEPT);
        }
    }

    /// Goes on only if the port in the accumulator is one of `ports`, and says whether it may be.
    fn require_ports(&mut self, ports: &PortRanges) -> bool {
        let end = self.0.len() + 3 * ports.iter().count() + 1;
        for range in ports.iter() {
            self.push(BPF_JMP | BPF_JGE | BPF_K, 0, 2, u32::from(*range.start()));
            self.push(BPF_JMP | BPF_JGT | BPF_K, 1, 0, u32::from(*range.end()));
            self.push(BPF_JMP | BPF_JA, 0, 0, (end - self.0.len() - 1) as u32);
        }
        self.ret(0);
        ports.iter().next().is_some()
    }

    /// Accepts if the accumulator equals the index register.
    fn accept_if_index(&mut self) {
        self.push(BPF_JMP | BPF_JEQ | BPF_X, 0, 1, 0);
        self.ret(ACCEPT);
    }

    /// Goes on only with frames to `mac`.
    fn require_mac(&mut self, MacAddr(mac): MacAddr) {
        self.load_word(2);
        self.require(BPF_JEQ, u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]));
        self.load_half(0);
        self.require(BPF_JEQ, u32::from_be_bytes([0, 0, mac[0], mac[1]]));
    }

    /// Goes on only if the 16 octets at `at` are one of `addresses`.
    fn require_one_of_v6(&mut self, at: u32, addresses: &[Ipv6Addr]) {
        /// Four words fetched and compared, and the jump out.
        const PER_ADDRESS: usize = 9;
        // Read once: the kernel makes some ten instructions of a look into the packet and one of a look
        // into scratch memory, and net.core.optmem_max bounds what it makes.
        for word in 0..4 {
            self.load_word(at + 4 * word);
            self.push(BPF_ST, 0, 0, word);
        }
        let end = self.0.len() + PER_ADDRESS * addresses.len() + 1;
        for address in addresses {
            let next = self.0.len() + PER_ADDRESS;
            // From the last word on: that is where addresses of one host differ.
            for word in (0..4u32).rev() {
                self.push(BPF_LD | BPF_W | BPF_MEM, 0, 0, word);
                let value = (address.to_bits() >> (96 - 32 * word)) as u32;
                let otherwise = (next - self.0.len() - 1) as u8;
                self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, otherwise, value);
            }
            self.push(BPF_JMP | BPF_JA, 0, 0, (end - self.0.len() - 1) as u32);
        }
        self.ret(0);
    }

    fn finished(self) -> Option<Vec<sock_filter>> {
        (self.0.len() <= libc::BPF_MAXINSNS as usize).then_some(self.0)
    }

    fn ret(&mut self, octets: u32) {
        self.push(BPF_RET | BPF_K, 0, 0, octets);
    }

    fn require(&mut self, comparison: u32, k: u32) {
        self.push(BPF_JMP | comparison | BPF_K, 1, 0, k);
        self.ret(0);
    }

    fn reject_if(&mut self, comparison: u32, k: u32) {
        self.push(BPF_JMP | comparison | BPF_K, 0, 1, k);
        self.ret(0);
    }

    fn accept_if(&mut self, comparison: u32, k: u32) {
        self.push(BPF_JMP | comparison | BPF_K, 0, 1, k);
        self.ret(ACCEPT);
    }

    /// Goes on only if the accumulator equals one of `values`.
    fn require_one_of(&mut self, values: &[u32]) {
        let end = self.0.len() + 2 * values.len() + 1;
        for &value in values {
            self.push(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, value);
            let next = self.0.len() + 1;
            self.push(BPF_JMP | BPF_JA, 0, 0, (end - next) as u32);
        }
        self.ret(0);
    }

    /// Leaves room for a jump whose target is not known yet.
    fn placeholder(&mut self) -> usize {
        self.push(BPF_JMP | BPF_JA, 0, 0, 0);
        self.push(BPF_JMP | BPF_JA, 0, 0, 0);
        self.0.len() - 2
    }

    /// Makes the jump at `at` lead here if the accumulator equals `k`.
    fn patch_equal(&mut self, at: usize, k: u32) {
        self.0[at] = sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 0, jf: 1, k };
        self.0[at + 1].k = (self.0.len() - at - 2) as u32;
    }

    /// Makes the jump at `at` lead here.
    fn patch_always(&mut self, at: usize) {
        self.0[at + 1].k = (self.0.len() - at - 2) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::packet::Socket;
    use std::net::Ipv4Addr;
    use std::os::unix::net::UnixDatagram;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
    const OURS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
    const ALSO_OURS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 4);
    const OURS_V6: Ipv6Addr = Ipv6Addr::new(0xfd98, 1, 2, 3, 4, 5, 6, 7);
    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 7);

    fn spec() -> FilterSpec {
        let addresses = vec![OURS.into(), OURS_V6.into(), ALSO_OURS.into(), LINK_LOCAL.into()];
        let (ports, bare_ports) = (PortRanges::from(61000..=61999), PortRanges::from(443..=443));
        FilterSpec { addresses, ports, bare_ports, mac: MacAddr(MAC) }
    }

    /// Runs a filter in the kernel: a datagram socket lets in what its filter does.
    struct Gate {
        inside: UnixDatagram,
        outside: UnixDatagram,
    }

    impl Gate {
        fn new(spec: &FilterSpec) -> Self {
            let (inside, outside) = UnixDatagram::pair().unwrap();
            inside.set_nonblocking(true).unwrap();
            let mut program = spec.program().unwrap();
            let fprog =
                libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
            let fd = inside.try_clone().unwrap().into();
            let socket = Socket { fd, ifindex: 0, interface: "test".to_owned() };
            socket.set("attach", libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &fprog).unwrap();
            Self { inside, outside }
        }

        fn lets_in(&self, frame: &[u8]) -> bool {
            self.outside.send(frame).unwrap();
            let mut received = [0; 2048];
            match self.inside.recv(&mut received) {
                Ok(length) => {
                    assert_eq!(&received[..length], frame, "taken whole");
                    true
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    false
                }
            }
        }
    }

    fn ethernet(dst: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&dst[..], &[2, 0, 0, 0, 0, 9], &ethertype.to_be_bytes(), payload].concat()
    }

    fn ipv4(protocol: u8, dst: Ipv4Addr, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let header = 20 + options;
        let mut packet = vec![0; header];
        packet[0] = 0x40 | (header / 4) as u8;
        packet[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[8] = 64;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 9, 9, 9]);
        packet[16..20].copy_from_slice(&dst.octets());
        packet.extend_from_slice(payload);
        ethernet(MAC, 0x0800, &packet)
    }

    fn tcp(dst_port: u16) -> Vec<u8> {
        let mut segment = vec![0; 20];
        segment[..2].copy_from_slice(&80u16.to_be_bytes());
        segment[2..4].copy_from_slice(&dst_port.to_be_bytes());
        segment[12] = 0x50;
        segment
    }

    fn arp(op: u16, target: Ipv4Addr) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4];
        packet.extend_from_slice(&op.to_be_bytes());
        packet.extend_from_slice(&[2, 0, 0, 0, 0, 9, 10, 9, 9, 9, 0, 0, 0, 0, 0, 0]);
        packet.extend_from_slice(&target.octets());
        packet
    }

    #[test]
    fn lets_in_tcp_to_our_addresses_and_ports() {
        let gate = Gate::new(&spec());
        for address in [OURS, ALSO_OURS] {
            for options in [0, 4, 40] {
                for port in [61000, 61500, 61999] {
                    assert!(gate.lets_in(&ipv4(6, address, options, 0x4000, &tcp(port))));
                }
            }
        }
        let long = [tcp(61000), vec![7; 1400]].concat();
        assert!(gate.lets_in(&ipv4(6, OURS, 0, 0, &long)));
        assert!(gate.lets_in(&ipv4(6, OURS, 0, 0x2000, &tcp(61000))), "first fragment");
    }

    #[test]
    fn keeps_out_other_ports_addresses_and_protocols() {
        let gate = Gate::new(&spec());
        for port in [0, 80, 60999, 62000, 65535] {
            assert!(!gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(port))), "port {port}");
        }
        for address in [[10, 1, 2, 5], [10, 1, 2, 2], [0, 0, 0, 0], [255, 255, 255, 255]] {
            assert!(!gate.lets_in(&ipv4(6, address.into(), 0, 0, &tcp(61000))));
        }
        assert!(!gate.lets_in(&ipv4(17, OURS, 0, 0, &tcp(61000))), "UDP");
        assert!(!gate.lets_in(&ipv4(6, OURS, 0, 1, &tcp(61000))), "later fragment");
        assert!(!gate.lets_in(&ipv4(1, OURS, 0, 1, &[3, 1, 0, 0])), "later fragment");
        let mut foreign = ipv4(6, OURS, 0, 0, &tcp(61000));
        for octet in 0..6 {
            foreign[octet] ^= 1;
            assert!(!gate.lets_in(&foreign), "MAC address of someone else");
            foreign[octet] ^= 1;
        }
        let mut ipv6 = ipv4(6, OURS, 0, 0, &tcp(61000));
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert!(!gate.lets_in(&ipv6));
    }

    #[test]
    fn lets_in_each_of_several_ranges() {
        let mixed = [61000..=61999, 443..=443, 0..=0, 8000..=8001, u16::MAX..=u16::MAX];
        let many = (0..32_000).map(|n| 2 * n..=2 * n);
        for (ports, inside, outside) in [
            (
                PortRanges::covering(mixed),
                &[0, 443, 8000, 8001, 61000, 61999, u16::MAX][..],
                &[1, 442, 444, 7999, 8002, 60999, 62000, u16::MAX - 1][..],
            ),
            (PortRanges::covering(many), &[0, 2, 31_998, 63_998], &[64_000, u16::MAX]),
            (PortRanges::default(), &[], &[0, 80, u16::MAX]),
        ] {
            let gate = Gate::new(&FilterSpec { ports, ..spec() });
            for &port in inside {
                assert!(gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(port))), "port {port}");
            }
            for &port in outside {
                assert!(!gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(port))), "port {port}");
            }
        }
    }

    /// A busy connection of the kernel's must not fill the ring.
    #[test]
    fn of_the_kernels_ports_lets_in_what_carries_no_data() {
        let gate = Gate::new(&spec());
        let with = |flags: u8, options: usize, data: usize| {
            let mut segment = tcp(443);
            segment[12] = (5 + options as u8) << 4;
            segment[13] = flags;
            segment.extend(vec![0x55; 4 * options + data]);
            segment
        };
        for options in [0, 3, 10] {
            for (flags, data, wanted) in [
                (0x10, 0, true),
                (0x10, 1, false),
                (0x18, 1_400, false),
                (0x11, 10, true),
                (0x14, 10, true),
                (0x12, 0, true),
            ] {
                let segment = with(flags, options, data);
                for ip_options in [0, 8, 40] {
                    // What stands behind the packet is padding.
                    let frame = [ipv4(6, OURS, ip_options, 0, &segment), vec![0; 6]].concat();
                    assert_eq!(gate.lets_in(&frame), wanted, "{flags:#x} {options} {data}");
                }
                assert_eq!(gate.lets_in(&ipv6(6, OURS_V6, &segment)), wanted, "{flags:#x} {data}");
            }
        }
        let bare = FilterSpec { ports: PortRanges::default(), ..spec() };
        assert!(Gate::new(&bare).lets_in(&ipv4(6, OURS, 0, 0, &with(0x10, 0, 0))));
        assert!(!Gate::new(&bare).lets_in(&ipv4(6, OURS, 0, 0, &tcp(444))));
        let none = FilterSpec { bare_ports: PortRanges::default(), ..spec() };
        assert!(!Gate::new(&none).lets_in(&ipv4(6, OURS, 0, 0, &with(0x10, 0, 0))));
        assert!(Gate::new(&none).lets_in(&ipv4(1, OURS, 0, 0, &[3, 1, 0, 0])), "ICMP");
    }

    #[test]
    fn lets_in_icmp_errors_only() {
        let gate = Gate::new(&spec());
        for icmp_type in 0..=255 {
            let frame = ipv4(1, OURS, 8, 0, &[icmp_type, 1, 0, 0, 0, 0, 0, 0]);
            assert_eq!(gate.lets_in(&frame), [3, 4, 11, 12].contains(&icmp_type), "{icmp_type}");
        }
        assert!(!gate.lets_in(&ipv4(1, [10, 1, 2, 5].into(), 0, 0, &[3, 1, 0, 0])));
    }

    #[test]
    fn lets_in_arp_for_our_addresses_only() {
        let gate = Gate::new(&spec());
        for op in 0..=4 {
            for dst in [MAC, [0xff; 6]] {
                let frame = ethernet(dst, 0x0806, &arp(op, ALSO_OURS));
                assert_eq!(gate.lets_in(&frame), op == 1 || op == 2, "operation {op}");
            }
        }
        assert!(!gate.lets_in(&ethernet(MAC, 0x0806, &arp(2, [10, 1, 2, 5].into()))));
        let mut not_ipv4 = arp(2, OURS);
        not_ipv4[3] = 1;
        assert!(!gate.lets_in(&ethernet(MAC, 0x0806, &not_ipv4)));
    }

    #[test]
    fn keeps_out_every_truncation() {
        let gate = Gate::new(&spec());
        // What the filter looks at last: port, ICMP type, ARP target address.
        let frames = [
            (ipv4(6, OURS, 4, 0, &tcp(61000)), 14 + 24 + 4),
            (ipv4(1, OURS, 4, 0, &[3, 1, 0, 0]), 14 + 24 + 1),
            (ethernet(MAC, 0x0806, &arp(2, OURS)), 14 + 28),
        ];
        for (frame, needed) in frames {
            for length in 1..=frame.len() {
                assert_eq!(gate.lets_in(&frame[..length]), length >= needed, "{length}");
            }
        }
    }

    #[test]
    fn holds_many_addresses_or_none() {
        let many: Vec<Ipv4Addr> = (0..1900u32).map(|i| Ipv4Addr::from(0x0a02_0000 + i)).collect();
        let addresses = many.iter().map(|&address| address.into()).collect();
        let gate = Gate::new(&FilterSpec { addresses, ..spec() });
        for address in [many[0], many[127], many[128], many[1000], many[1899]] {
            assert!(gate.lets_in(&ipv4(6, address, 0, 0, &tcp(61000))));
        }
        assert!(!gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(61000))));
        let gate = Gate::new(&FilterSpec { addresses: Vec::new(), ..spec() });
        assert!(!gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(61000))));
        let too_many = vec![OURS.into(); 2100];
        assert!(FilterSpec { addresses: too_many, ..spec() }.program().is_none());
    }

    fn ipv6(next: u8, dst: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[next, 255]);
        packet.extend_from_slice(&Ipv6Addr::LOCALHOST.octets());
        packet.extend_from_slice(&dst.octets());
        packet.extend_from_slice(payload);
        ethernet(MAC, 0x86dd, &packet)
    }

    #[test]
    fn lets_in_ipv6_like_ipv4() {
        let gate = Gate::new(&spec());
        for address in [OURS_V6, LINK_LOCAL] {
            for port in [61000, 61500, 61999] {
                assert!(gate.lets_in(&ipv6(6, address, &tcp(port))));
            }
            for port in [0, 80, 60999, 62000, 65535] {
                assert!(!gate.lets_in(&ipv6(6, address, &tcp(port))), "port {port}");
            }
            for icmp_type in 0..=255 {
                let frame = ipv6(58, address, &[icmp_type, 0, 0, 0, 0, 0, 0, 0]);
                let wanted = [1, 2, 3, 4, 136].contains(&icmp_type);
                assert_eq!(gate.lets_in(&frame), wanted, "{icmp_type}");
            }
            for next in 0..=255 {
                // Neither our ports nor a type of ICMPv6.
                let wanted = [0, 43, 44, 51, 60].contains(&next);
                assert_eq!(gate.lets_in(&ipv6(next, address, &[200; 8])), wanted, "{next}");
            }
        }
        let long = [tcp(61000), vec![7; 1400]].concat();
        assert!(gate.lets_in(&ipv6(6, OURS_V6, &long)));
    }

    #[test]
    fn keeps_out_ipv6_addresses_that_differ_in_one_octet() {
        let gate = Gate::new(&spec());
        let frames = [
            ipv6(6, OURS_V6, &tcp(61000)),
            ipv6(58, LINK_LOCAL, &[136, 0, 0, 0]),
            ipv6(60, OURS_V6, &[6, 0, 1, 4, 0, 0, 0, 0]),
        ];
        for frame in frames {
            assert!(gate.lets_in(&frame));
            for octet in (0..6).chain(38..54) {
                let mut foreign = frame.clone();
                foreign[octet] ^= 1;
                assert!(!gate.lets_in(&foreign), "octet {octet}");
            }
        }
        let mapped = ipv6(6, OURS.to_ipv6_mapped(), &tcp(61000));
        assert!(!gate.lets_in(&mapped));
    }

    #[test]
    fn keeps_out_every_truncation_of_ipv6() {
        let gate = Gate::new(&spec());
        let frames = [
            (ipv6(6, OURS_V6, &tcp(61000)), 14 + 40 + 4),
            (ipv6(58, OURS_V6, &[136, 0, 0, 0]), 14 + 40 + 1),
            (ipv6(44, OURS_V6, &[6, 0, 0, 0, 0, 0, 0, 1]), 14 + 40),
        ];
        for (frame, needed) in frames {
            for length in 1..=frame.len() {
                assert_eq!(gate.lets_in(&frame[..length]), length >= needed, "{length}");
            }
        }
    }

    #[test]
    fn holds_many_ipv6_addresses_or_none() {
        let many: Vec<Ipv6Addr> =
            (0..430u16).map(|i| Ipv6Addr::new(0xfd01, i, 0, 0, 0, 0, 0, 9)).collect();
        let addresses = many.iter().map(|&address| address.into()).collect();
        let gate = Gate::new(&FilterSpec { addresses, ..spec() });
        for address in [many[0], many[127], many[300], many[429]] {
            assert!(gate.lets_in(&ipv6(6, address, &tcp(61000))));
        }
        assert!(!gate.lets_in(&ipv6(6, OURS_V6, &tcp(61000))));
        assert!(!gate.lets_in(&ipv4(6, OURS, 0, 0, &tcp(61000))));
        let gate = Gate::new(&FilterSpec { addresses: vec![OURS.into()], ..spec() });
        assert!(!gate.lets_in(&ipv6(6, OURS_V6, &tcp(61000))));
        let too_many = vec![OURS_V6.into(); 480];
        assert!(FilterSpec { addresses: too_many, ..spec() }.program().is_none());
    }
}
