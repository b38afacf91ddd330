//! What a simulated network is made of: links, peers, and what befalls them when.
//!
//! Every type reads from TOML in kebab-case; whatever is left out takes its default.

use crate::wire::MacAddr;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// A simulated network.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetworkConfig {
    /// Seeds loss, jitter, initial sequence numbers and forgeries.
    pub seed: u64,
    /// Where frames for the prober are sent.
    #[serde(deserialize_with = "mac")]
    pub prober_mac: MacAddr,
    /// The prober's only IPv4 router. It answers ARP (its MAC is [`super::mac_of`] this address) and
    /// reports ICMP errors unless a fault names another reporter.
    pub gateway: Ipv4Addr,
    /// The same for IPv6 and ND.
    pub gateway_v6: Ipv6Addr,
    /// Peers in this prefix are the prober's neighbours: reached by their own MAC, and asked for it.
    pub on_link: Option<IpNet>,
    /// What the link does to frames, phase after phase; perfect before the first.
    pub link: Vec<Phase>,
    /// ICMP errors per second that all routers send together; unlimited if left out.
    pub icmp_per_second: Option<u32>,
    /// The hosts. The first group that holds an address decides.
    pub peers: Vec<PeerGroup>,
    /// What happens to them.
    pub events: Vec<Event>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        NetworkConfig {
            seed: 0,
            prober_mac: MacAddr([0x02, 0, 0, 0, 0, 0x01]),
            gateway: Ipv4Addr::new(192, 0, 2, 1),
            gateway_v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            on_link: None,
            link: Vec::new(),
            icmp_per_second: None,
            peers: Vec::new(),
            events: Vec::new(),
        }
    }
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<pnet::util::MacAddr>()
        .map(|mac| MacAddr(mac.octets()))
        .map_err(|error| serde::de::Error::custom(format!("MAC address {text:?}: {error}")))
}

/// What the link does from an instant on, until the next phase begins.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Phase {
    /// When it begins, in milliseconds.
    pub from_ms: u64,
    /// From the prober to the peers.
    pub out: Impairment,
    /// From the peers to the prober.
    pub back: Impairment,
}

/// What happens to the frames of one direction. Probabilities are in 0..=1, each drawn per frame.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Impairment {
    /// Probability of independent loss.
    pub loss: f64,
    /// Losses in bursts, on top of the independent ones.
    pub burst: Option<Burst>,
    /// Fixed one-way delay, in microseconds.
    pub delay_us: u64,
    /// Up to this much more, uniformly, in microseconds. Frames may overtake one another.
    pub jitter_us: u64,
    /// Probability that a frame is held back by `reorder_us`.
    pub reorder: f64,
    /// How long a reordered frame is held back, in microseconds.
    pub reorder_us: u64,
    /// Probability that a frame arrives twice.
    pub duplicate: f64,
}

impl Impairment {
    /// Nothing happens to frames, and they arrive at once.
    pub const NONE: Impairment = Impairment {
        loss: 0.0,
        burst: None,
        delay_us: 0,
        jitter_us: 0,
        reorder: 0.0,
        reorder_us: 0,
        duplicate: 0.0,
    };

    /// Returns the delay of a frame that was not held back.
    pub(super) fn usual_delay(&self) -> Duration {
        Duration::from_micros(self.delay_us.saturating_add(self.jitter_us))
    }
}

/// Losses in bursts: the Gilbert–Elliott chain, stepped once per frame.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Burst {
    /// Probability of turning from good to bad.
    pub to_bad: f64,
    /// Probability of turning from bad to good: the mean burst is 1 / `to_good` frames.
    pub to_good: f64,
    /// Probability of loss while bad.
    #[serde(default = "certain")]
    pub loss_bad: f64,
    /// Probability of loss while good.
    #[serde(default)]
    pub loss_good: f64,
}

fn once() -> u16 {
    1
}

fn certain() -> f64 {
    1.0
}

/// Hosts that behave alike: every address of a prefix.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PeerGroup {
    /// Their addresses.
    pub prefix: IpNet,
    /// The ports they listen on; every port if empty.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// How they answer.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// TTL or hop limit of their packets when they reach the prober.
    #[serde(default = "linux_ttl")]
    pub ttl: u8,
    /// Receive window they advertise, in octets; 0: their applications do not read.
    #[serde(default = "linux_window")]
    pub window: u16,
    /// Whether they take up timestamps that a SYN offers.
    #[serde(default = "yes")]
    pub timestamps: bool,
    /// Whether they answer ARP requests and Neighbour Solicitations, if on-link.
    #[serde(default = "yes")]
    pub arp: bool,
    /// Whether the application closes when the prober does; else it stays in CLOSE_WAIT.
    #[serde(default)]
    pub close_on_fin: bool,
    /// Octets that the application sends on every connection it accepts, such as a banner.
    #[serde(default)]
    pub greeting: u16,
    /// How many times more every reply is sent.
    #[serde(default)]
    pub repeat_replies: u8,
}

impl PeerGroup {
    /// Builds a group of ordinary Linux hosts that listen on every port.
    pub fn new(prefix: IpNet, behaviour: Behaviour) -> Self {
        PeerGroup {
            prefix,
            ports: Vec::new(),
            behaviour,
            ttl: linux_ttl(),
            window: linux_window(),
            timestamps: true,
            arp: true,
            close_on_fin: false,
            greeting: 0,
            repeat_replies: 0,
        }
    }
}

fn linux_ttl() -> u8 {
    64
}

fn linux_window() -> u16 {
    64_240
}

fn yes() -> bool {
    true
}

/// How a host answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// As Linux 6.x with a listener.
    #[default]
    Listen,
    /// As Linux 6.x whose listener always sends SYN cookies (net.ipv4.tcp_syncookies = 2).
    SynCookies,
    /// Up, but nothing listens.
    Closed,
    /// Answers ARP and ND and nothing else: a firewall that drops.
    Silent,
    /// Off: answers nothing, not even ARP or ND.
    Down,
    /// As `Listen`, but an empty keepalive is ignored (RFC 9293 §3.8.4 warns of such stacks).
    IgnoresEmptyProbes,
    /// Completes no handshake: SYN-ACK, then RST at once.
    ResetsAfterSynAck,
}

/// Something that happens to every host of a prefix at an instant.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Event {
    /// When, in milliseconds.
    #[serde(default)]
    pub at_ms: u64,
    /// To whom.
    pub prefix: IpNet,
    /// What.
    pub what: Fault,
}

/// What can happen to a host or to the path to it.
///
/// Those from `Up` to `Forge` last until the next `Up`; the others happen once, to the connections
/// that are established at that instant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The path is whole again, and the host up; after `Down` it remembers no connection.
    Up,
    /// Power off: nothing is answered, not even ARP or ND, and every connection is forgotten.
    Down,
    /// Every connection is forgotten, and the host is up again at once.
    Reboot {
        /// Whether the application listens again.
        listening: bool,
    },
    /// Frames vanish on the way; the hosts keep their connections.
    PathDrop {
        /// Towards the peers.
        out: bool,
        /// From the peers.
        back: bool,
    },
    /// A router reports an ICMP error instead of forwarding.
    Icmp {
        /// ICMP or ICMPv6 type.
        icmp_type: u8,
        /// Its code.
        code: u8,
        /// Who reports; the gateway if left out.
        #[serde(default)]
        from: Option<IpAddr>,
        /// Quote the IP header and 8 octets only, as older routers do (RFC 792).
        #[serde(default)]
        short_quote: bool,
    },
    /// A routing loop: time exceeded in transit.
    TtlExceeded {
        /// Who reports; the gateway if left out.
        #[serde(default)]
        from: Option<IpAddr>,
    },
    /// A firewall answers in the host's name, as nft `reject with tcp reset` does.
    FirewallReset {
        /// TTL of its RST when it reaches the prober.
        ttl: u8,
    },
    /// The hosts stop answering ARP and ND.
    ArpSilent,
    /// An attacker forges replies to every segment on its way to the hosts, which still get it.
    Forge {
        /// How well the attacker guesses.
        how: Forgery,
        /// Forged frames per segment.
        copies: u8,
    },
    /// The application stops reading: the window closes, and is advertised as 0.
    ZeroWindow,
    /// The application reads again, and a window update says so.
    OpenWindow,
    /// The application closes: FIN, repeated until acknowledged.
    CloseFin,
    /// The application aborts: RST with SEG.SEQ = SND.NXT.
    CloseRst,
    /// The application sends data, repeated until acknowledged.
    SendData {
        /// How much, at most 1,460 octets.
        octets: u16,
        /// How often, at once, whatever the prober's window says.
        #[serde(default = "once")]
        segments: u16,
    },
}

impl Fault {
    /// Says whether it lasts until the next `Up`.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(
            self,
            Fault::ZeroWindow
                | Fault::OpenWindow
                | Fault::CloseFin
                | Fault::CloseRst
                | Fault::SendData { .. }
        )
    }
}

/// What a forger knows besides addresses and ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forgery {
    /// Nothing: sequence numbers are random.
    Random,
    /// Almost everything: sequence numbers are just beside those that would be believed.
    OffByOne,
}

/// A network that makes no sense.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A probability outside 0..=1.
    #[error("{name} = {value} is not a probability")]
    Probability {
        /// Which.
        name: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// A reporter of another address family than the hosts.
    #[error("{from} cannot report ICMP errors of {prefix}: another address family")]
    Reporter {
        /// The reporter.
        from: IpAddr,
        /// The hosts.
        prefix: IpNet,
    },
    /// More octets than one segment carries.
    #[error("{octets} octets do not fit one segment of 1460")]
    Segment {
        /// How many were asked for.
        octets: u16,
    },
    /// More peer groups than a connection can refer to.
    #[error("{0} peer groups are too many: 65535 at most")]
    Groups(usize),
}

/// Largest payload the simulated applications send, in octets.
pub(super) const MSS: u16 = 1460;

impl NetworkConfig {
    /// Returns the router for the address family of `host`.
    pub fn gateway_for(&self, host: IpAddr) -> IpAddr {
        match host {
            IpAddr::V4(_) => self.gateway.into(),
            IpAddr::V6(_) => self.gateway_v6.into(),
        }
    }

    /// Says whether the network makes sense.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that does not.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for imp in self.link.iter().flat_map(|phase| [&phase.out, &phase.back]) {
            let frame =
                [("loss", imp.loss), ("reorder", imp.reorder), ("duplicate", imp.duplicate)];
            let burst = imp.burst.map(|burst| {
                [
                    ("to-bad", burst.to_bad),
                    ("to-good", burst.to_good),
                    ("loss-bad", burst.loss_bad),
                    ("loss-good", burst.loss_good),
                ]
            });
            for (name, value) in frame.into_iter().chain(burst.into_iter().flatten()) {
                if !(0.0..=1.0).contains(&value) {
                    return Err(ConfigError::Probability { name, value });
                }
            }
        }
        if self.peers.len() > usize::from(u16::MAX) {
            return Err(ConfigError::Groups(self.peers.len()));
        }
        let greetings = self.peers.iter().map(|group| group.greeting);
        let sent = self.events.iter().filter_map(|event| match event.what {
            Fault::SendData { octets, .. } => Some(octets),
            _ => None,
        });
        if let Some(octets) = greetings.chain(sent).find(|octets| *octets > MSS) {
            return Err(ConfigError::Segment { octets });
        }
        for event in &self.events {
            if let Fault::Icmp { from: Some(from), .. } | Fault::TtlExceeded { from: Some(from) } =
                event.what
                && from.is_ipv4() != event.prefix.addr().is_ipv4()
            {
                return Err(ConfigError::Reporter { from, prefix: event.prefix });
            }
        }
        Ok(())
    }
}
