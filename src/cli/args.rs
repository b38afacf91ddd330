//! Arguments as typed.
#![forbid(unsafe_code)]

mod audit;
mod bench;

pub use audit::{AuditArgs, OneOrAll};
pub use bench::{BenchArgs, BenchFormat, BenchWhat};

use crate::engine::Cpus;
use crate::io::xdp::{XdpMode, ZeroCopy};
use crate::probe::classify::State;
use crate::probe::plan::{Close, Keepalive, PROFILES, ProbeBytes};
use clap::builder::PossibleValue;
use clap::{ArgAction, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Longest duration that can be asked for: well past any keepalive setting in use, and far from
/// where sums of durations overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Ask thousands of TCP peers "are you still there?" and say of each whether it is alive, down,
/// rebooted or unreachable, and on what evidence.
#[derive(Debug, Parser)]
#[command(
    name = "keepsweep",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Start with: keepsweep sweep --help"
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Reads a command line.
    ///
    /// No option looks like a negative number, so that one is the value of the option before it, which says
    /// what is wrong with it. clap by itself says that there is no such option.
    ///
    /// # Errors
    /// What is wrong with it, or the help that was asked for.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Args, clap::Error> {
        let mut joined: Vec<OsString> = Vec::new();
        let mut are_options = true;
        for word in words {
            let is_negative = matches!(word.as_encoded_bytes(), [b'-', b'0'..=b'9', ..]);
            are_options &= word != "--";
            let is_option = |before: &[u8]| match before {
                [b'-', b'-', _, ..] => !before.contains(&b'='),
                [b'-', letter] => letter.is_ascii_alphabetic(),
                _ => false,
            };
            match joined.last_mut() {
                Some(option)
                    if are_options && is_negative && is_option(option.as_encoded_bytes()) =>
                {
                    option.push("=");
                    option.push(word);
                }
                _ => joined.push(word),
            }
        }
        Args::try_parse_from(joined)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Open a connection to every target in user space, probe it with keepalives, close it, and
    /// report the state of every peer
    #[command(after_help = SHORT_FOOTER, after_long_help = LONG_FOOTER)]
    Sweep(Box<SweepArgs>),
    /// Ask the peers of this host's own connections, without touching an application: which are
    /// dead, whose are they, and why
    #[command(after_help = audit::SHORT_FOOTER, after_long_help = audit::LONG_FOOTER)]
    Audit(Box<AuditArgs>),
    /// Say what this machine can do, what is missing for a sweep, and what to do about it
    #[command(after_help = DOCTOR_FOOTER)]
    Doctor(DoctorArgs),
    /// Say how fast this machine sends and receives by each I/O path
    #[command(after_help = bench::FOOTER)]
    Bench(BenchArgs),
}

const DOCTOR_FOOTER: &str = "\
Looks only: it changes nothing, sends no frame, and without privileges says what it could not look at.
Exit codes: 0 a sweep can run, 2 bad usage, 3 something is missing.";

const SHORT_FOOTER: &str = "Examples, states and exit codes: keepsweep sweep --help";

const LONG_FOOTER: &str = "\
States:
  alive         it answered (also with FIN, data, a zero window, or a RST to our SYN)
  down          silent through the whole probe plan, and nothing points at the path or at us
  rebooted      it no longer knows the connection: a RST that answers our probe
  unreachable   the network says so: ICMP, unanswered ARP or ND, no route
  undetermined  our own side was sick, no connection could be had to probe, or the run was
                interrupted: nobody is accused

Examples:
  See what would be sent; needs no privilege:
    keepsweep sweep 10.1.0.0/16 -p 22 --dry-run
  A /16 in a few seconds, only those that are not alive:
    sudo keepsweep sweep 10.1.0.0/16 -p 22 --rate max --only down,rebooted,unreachable
  A fleet from a file ('db1.example.net:5432 rack-7', one a line), as NDJSON:
    sudo keepsweep sweep --targets fleet.txt --format ndjson -o fleet.ndjson
  Connections that something else has opened, from a list of their numbers:
    sudo keepsweep sweep --flows connections.ndjson --format ndjson
  Does it survive an idle minute? Twice a second after that, eight times:
    sudo keepsweep sweep 10.1.2.3:443 --idle 60s --interval 500ms --count 8

Exit codes:
  0    every peer is alive
  1    some peer is not (undetermined included)
  2    bad usage or input
  3    missing privilege or kernel feature, an OS error, or output that could not be written in full
  130  interrupted, after closing flows and writing what is known
A closed pipe ends the run quietly with 0.";

/// The arguments of `keepsweep sweep`.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// Peers: a host name (all its addresses), an IP address or a CIDR, each with optional :PORT
    ///
    /// Every address of a CIDR counts, the first and the last included. A target without a port of
    /// its own is probed on each port of -p. An IPv6 address with a port stands in brackets, and a
    /// link-local one names its interface: [fe80::1%eth0]:22. A name without an address is reported
    /// as undetermined.
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,

    /// Read targets from FILE, or from standard input if FILE is '-'
    ///
    /// One target a line, with an optional label after white space; the label travels into the
    /// records, and has no control characters. Blank lines and what follows a '#' are ignored.
    #[arg(long = "targets", value_name = "FILE", help_heading = "Targets")]
    pub target_file: Option<PathBuf>,

    /// Probe given connections that keepsweep did not open, and never close them; '-' is standard
    /// input
    ///
    /// NDJSON or CSV with a header line: local_ip, local_port, peer_ip, peer_port, snd_una, rcv_nxt
    /// and optionally snd_nxt, wnd, ts_recent with ts_offset_ms, name; other fields are ignored.
    /// Nothing but keepalives is sent on them. Those that this host's kernel still owns are probed with
    /// its numbers, by raw sockets. Not probed, and reported as undetermined, are those with data in
    /// flight (snd_nxt beyond snd_una), and those whose local_ip is not of this host. May be given
    /// together with targets.
    #[arg(long, value_name = "FILE", help_heading = "Targets")]
    pub flows: Option<PathBuf>,

    /// Leave out these addresses, also among the peers of --flows; may be repeated
    ///
    /// An IP address, a CIDR, or a file with one of either a line.
    #[arg(long, value_name = "CIDR|FILE", help_heading = "Targets")]
    pub exclude: Vec<String>,

    /// Ports for targets that have none of their own
    #[arg(short, long = "port", value_name = "PORT[,PORT...]", value_delimiter = ',',
          value_parser = port, help_heading = "Targets")]
    pub ports: Vec<u16>,

    /// Allow targets outside private, loopback, link-local and documentation ranges of IPv4 and IPv6
    ///
    /// Probe only what you are entitled to probe. Multicast, broadcast and unspecified addresses
    /// are refused with or without it.
    #[arg(long, help_heading = "Targets")]
    pub allow_public: bool,

    /// What keepalives are sent.
    #[command(flatten)]
    pub keepalive: KeepaliveArgs,

    /// How long a connection rests before its first keepalive (TCP_KEEPIDLE) [default: the profile's]
    ///
    /// 0 asks at once. Else one keepalive goes before the rest, to make sure that the peer holds the
    /// connection, and the rest is 500ms at least.
    #[arg(long, value_name = "D", value_parser = duration, help_heading = "Probing")]
    pub idle: Option<Duration>,

    /// How long an unanswered SYN is repeated
    #[arg(long, value_name = "D", default_value = "15s", value_parser = positive_duration,
          help_heading = "Probing")]
    pub connect_timeout: Duration,

    /// How connections are closed
    #[arg(
        long,
        value_name = "rst|fin",
        default_value = "rst",
        hide_possible_values = true,
        help_heading = "Probing"
    )]
    pub close: Close,

    /// How fast, and in which order.
    #[command(flatten)]
    pub pace: PaceArgs,

    /// Most frames per second towards one IPv4 /24 or IPv6 /48 [default: as --rate]
    ///
    /// ARP and ND aside. Meanwhile the others are probed.
    #[arg(long, value_name = "PPS", value_parser = positive_rate, help_heading = "Probing")]
    pub rate_per_prefix: Option<u64>,

    /// How frames leave and arrive; auto picks for each interface
    ///
    /// packet: past the host's IP layer, and every neighbour is asked for by keepsweep itself; the rule.
    /// raw: through the host's own routes, firewall (output hook) and neighbour table; auto takes it for
    /// addresses of this host and for interfaces without MAC addresses (tun, WireGuard). On a large
    /// network that is directly connected packet is better: the kernel's neighbour table holds 1024
    /// entries (gc_thresh3). A firewall with `ct state invalid drop` in its output hook does not let raw
    /// keepalives out.
    /// xdp: AF_XDP, past the whole stack in both directions; never taken unasked, since attaching its
    /// program to a driver resets the link on many network cards.
    #[arg(
        long,
        value_name = "auto|packet|raw|xdp",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "I/O"
    )]
    pub io: Io,

    /// Where the XDP program of --io xdp runs: in the driver or in the stack [default: auto]
    ///
    /// auto: in the driver, or in the stack where the driver cannot.
    #[arg(long, value_name = "auto|drv|skb", hide_possible_values = true, help_heading = "I/O")]
    pub xdp_mode: Option<XdpMode>,

    /// Whether the driver reads and writes the frames of --io xdp itself [default: auto]
    ///
    /// auto: where the driver can; else the kernel copies them.
    #[arg(long, value_name = "auto|on|off", hide_possible_values = true, help_heading = "I/O")]
    pub zerocopy: Option<ZeroCopy>,

    /// Keep the sending and receiving threads on these CPUs: 0-3 or 0,2, or 0-1/2-3 for senders/receivers
    ///
    /// Sender n runs on the n-th CPU of the list, and so does the receiver of queue n (or, on the other
    /// paths, of interface n), from the first CPU on again where there are more of them. With a
    /// `/`, senders take the CPUs before it and receivers those behind it. At full rate there is
    /// a sender for each core, else one.
    #[arg(long, value_name = "LIST[/LIST]", value_parser = cpus, help_heading = "I/O")]
    pub cpus: Option<Cpus>,

    /// Probe only through this interface
    #[arg(short, long, value_name = "IFACE", help_heading = "I/O")]
    pub interface: Option<String>,

    /// Probe from this address of the host [default: what the kernel's routes prefer]
    #[arg(long, value_name = "IP", help_heading = "I/O")]
    pub source: Option<IpAddr>,

    /// Source ports; must not overlap net.ipv4.ip_local_port_range
    #[arg(long, value_name = "LO-HI", default_value = "61000-65534", value_parser = port_range,
          help_heading = "I/O")]
    pub source_ports: RangeInclusive<u16>,

    /// Where results go.
    #[command(flatten)]
    pub reporting: OutputArgs,

    /// Print what would be sent, with --pcap also as frames, and send nothing; needs no privilege
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
}

/// What keepalives are sent: the same of a sweep and of an audit.
#[derive(Debug, clap::Args)]
pub struct KeepaliveArgs {
    /// Keepalive settings to start from: idle/interval/count
    #[arg(long, value_name = "NAME", default_value = "fast", help_heading = "Probing")]
    pub profile: Profile,

    /// Time between keepalives on one connection (TCP_KEEPINTVL) [default: the profile's]
    ///
    /// At least 500ms unless --probe-bytes 1: Linux answers one empty probe per 500 ms.
    #[arg(long, value_name = "D", value_parser = duration, help_heading = "Probing")]
    pub interval: Option<Duration>,

    /// Unanswered keepalives before silence is believed (TCP_KEEPCNT) [default: the profile's]
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Probing")]
    pub count: Option<u16>,

    /// Octets in a keepalive; auto: 0, then 1 in the second half of the plan
    ///
    /// The first keepalive of a connection is always empty, and so is every one until the peer has
    /// answered one, or while its window is zero.
    #[arg(
        long,
        value_name = "auto|0|1",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Probing"
    )]
    pub probe_bytes: ProbeBytes,
}

/// How fast is sent, and in which order.
#[derive(Debug, clap::Args)]
pub struct PaceArgs {
    /// Frames per second, every kind counted, or 'max'
    #[arg(long, value_name = "PPS|max", default_value = "10000", value_parser = rate,
          help_heading = "Probing")]
    pub rate: Rate,

    /// Seed of the probing order, sequence numbers and source ports [default: random]
    #[arg(long, value_name = "N", value_parser = seed, help_heading = "Probing")]
    pub seed: Option<u64>,
}

/// What is written of the results, and where to.
#[derive(Debug, clap::Args)]
pub struct OutputArgs {
    /// How results are written
    #[arg(
        long,
        value_name = "table|ndjson|csv",
        default_value = "table",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub format: Format,

    /// Write results to FILE instead of standard output
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Write only records of these states; counts and exit code still cover every peer
    ///
    /// Corrections of an earlier record are always written.
    #[arg(long, value_name = "STATE[,STATE...]", value_delimiter = ',', value_parser = state,
          help_heading = "Output")]
    pub only: Vec<State>,

    /// Write every probe and reply to this pcap file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub pcap: Option<PathBuf>,

    /// No progress and no notes on standard error; errors are still said
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Say on standard error what is being done; twice for more
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
}

/// The arguments of `keepsweep doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Look at this interface only
    #[arg(short, long, value_name = "IFACE")]
    pub interface: Option<String>,

    /// How findings are written
    #[arg(long, value_name = "table|ndjson", default_value = "table", hide_possible_values = true)]
    pub format: DoctorFormat,
}

/// How findings are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum DoctorFormat {
    /// For people.
    Table,
    /// One JSON object a line.
    Ndjson,
}

/// How results are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object a line.
    Ndjson,
    /// With a header line.
    Csv,
}

/// A named entry of [`PROFILES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile(usize);

impl Profile {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        PROFILES[self.0].0
    }

    /// Returns its idle / interval / count.
    pub const fn keepalive(self) -> Keepalive {
        PROFILES[self.0].1
    }
}

// Never indexed past PROFILES: values are only made from this list.
const PROFILE_LIST: [Profile; PROFILES.len()] = {
    let mut list = [Profile(0); PROFILES.len()];
    let mut index = 0;
    while index < list.len() {
        list[index] = Profile(index);
        index += 1;
    }
    list
};

impl ValueEnum for Profile {
    fn value_variants<'a>() -> &'a [Profile] {
        &PROFILE_LIST
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let Keepalive { idle, interval, count } = self.keepalive();
        let settings = format!("{}s/{}s/{count}", idle.as_secs(), interval.as_secs());
        Some(PossibleValue::new(self.name()).help(settings))
    }
}

impl ValueEnum for ProbeBytes {
    fn value_variants<'a>() -> &'a [ProbeBytes] {
        &[ProbeBytes::Auto, ProbeBytes::Zero, ProbeBytes::One]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            ProbeBytes::Auto => "auto",
            ProbeBytes::Zero => "0",
            ProbeBytes::One => "1",
        }))
    }
}

impl ValueEnum for Close {
    fn value_variants<'a>() -> &'a [Close] {
        &[Close::Rst, Close::Fin]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Close::Rst => "rst",
            Close::Fin => "fin",
        }))
    }
}

/// A name of an [`IoKind`](crate::engine::IoKind).
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum Io {
    Auto,
    Packet,
    Raw,
    Xdp,
}

impl ValueEnum for XdpMode {
    fn value_variants<'a>() -> &'a [XdpMode] {
        &[XdpMode::Auto, XdpMode::Drv, XdpMode::Skb]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            XdpMode::Auto => "auto",
            XdpMode::Drv => "drv",
            XdpMode::Skb => "skb",
        }))
    }
}

impl ValueEnum for ZeroCopy {
    fn value_variants<'a>() -> &'a [ZeroCopy] {
        &[ZeroCopy::Auto, ZeroCopy::On, ZeroCopy::Off]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            ZeroCopy::Auto => "auto",
            ZeroCopy::On => "on",
            ZeroCopy::Off => "off",
        }))
    }
}

/// A sending rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// Frames per second.
    Pps(u64),
    /// As fast as the path takes them.
    Max,
}

fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    // FromStr would take "+80".
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Parses a port, 1 to 65535.
///
/// # Errors
/// What is wrong with it.
pub fn port(text: &str) -> Result<u16, String> {
    match digits(text) {
        Some(0) => Err("port 0 cannot be used".into()),
        Some(port) => Ok(port),
        None => Err(format!("{text:?} is not a port (1 to 65535)")),
    }
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (low, high) = text.split_once('-').ok_or("expected LO-HI, such as 61000-65534")?;
    let (low, high) = (port(low)?, port(high)?);
    if low > high {
        return Err(format!("{low} is above {high}; expected LO-HI"));
    }
    Ok(low..=high)
}

fn cpus(text: &str) -> Result<Cpus, String> {
    let (senders, receivers) = text.split_once('/').unwrap_or((text, text));
    Ok(Cpus { senders: cpu_list(senders)?, receivers: cpu_list(receivers)? })
}

/// Reads a list as the kernel and taskset(1) write it.
fn cpu_list(text: &str) -> Result<Vec<usize>, String> {
    let number = |text: &str| match text.parse::<u16>() {
        Ok(cpu) if text.bytes().all(|octet| octet.is_ascii_digit()) => Ok(usize::from(cpu)),
        _ => Err(format!("{text:?} is no CPU; expected a list such as 0-3 or 0,2")),
    };
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{first} is above {last}; expected FIRST-LAST"));
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn duration(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|error| {
        let is_span = |text| humantime::parse_duration(text).is_ok();
        let is_negative = text.strip_prefix('-').is_some_and(is_span);
        let why = if is_negative { "negative".to_owned() } else { error.to_string() };
        format!("{why}; expected a duration such as 250ms, 75s or 2h")
    })?;
    if span > LONGEST {
        return Err("longer than a year".into());
    }
    Ok(span)
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than 0".into()),
        span => Ok(span),
    }
}

fn count(text: &str) -> Result<u16, String> {
    match digits(text) {
        Some(0) => Err("without a probe there is nothing to tell; at least 1".into()),
        Some(count) => Ok(count),
        None => Err("expected a number from 1 to 65535".into()),
    }
}

fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    match digits(text) {
        Some(0) => Err("at 0 frames per second nothing is ever sent".into()),
        Some(pps) => Ok(Rate::Pps(pps)),
        None => Err("expected frames per second, or 'max'".into()),
    }
}

fn positive_rate(text: &str) -> Result<u64, String> {
    match rate(text) {
        Ok(Rate::Pps(pps)) => Ok(pps),
        Ok(Rate::Max) => Err("expected frames per second; without a cap, leave it out".into()),
        Err(why) => Err(why.replace(", or 'max'", "")),
    }
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a number from 0 to 18446744073709551615".into())
}

fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
        format!("no such state; there are {}", State::ALL.map(State::name).join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations_have_units_and_an_end() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("75").is_err());
        assert!(duration("-1s").is_err());
        assert!(duration("2years").is_err());
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn ports_and_ranges() {
        assert_eq!(port("65535"), Ok(65535));
        assert!(["0", "65536", "+80", "", " 80", "http"].iter().all(|text| port(text).is_err()));
        assert_eq!(port_range("61000-61000"), Ok(61000..=61000));
        let Command::Sweep(sweep) = Args::parse_from(["keepsweep", "sweep"]).command else {
            panic!("not a sweep");
        };
        assert_eq!(sweep.source_ports, crate::io::ports::DEFAULT);
        let wrong = ["61000", "0-9", "9-8", "1-65536", "-", "1-2-3"];
        assert!(wrong.iter().all(|text| port_range(text).is_err()));
    }

    #[test]
    fn cpus_are_lists_of_senders_and_receivers() {
        let both = |senders: &[usize], receivers: &[usize]| {
            Ok(Cpus { senders: senders.to_vec(), receivers: receivers.to_vec() })
        };
        assert_eq!(cpus("3"), both(&[3], &[3]));
        assert_eq!(cpus("0-2,8"), both(&[0, 1, 2, 8], &[0, 1, 2, 8]));
        assert_eq!(cpus("1/0"), both(&[1], &[0]));
        assert_eq!(cpus("0,2/4-5"), both(&[0, 2], &[4, 5]));
        let wrong = ["", "/", "1/", "/1", "2-1", "a", "-1", "1-", "1,,2", "+1", "70000", "0/1/2"];
        assert!(wrong.iter().all(|text| cpus(text).is_err()));
    }

    #[test]
    fn rates_and_counts_are_positive() {
        assert_eq!(rate("max"), Ok(Rate::Max));
        assert_eq!(rate("20000"), Ok(Rate::Pps(20_000)));
        assert!(["0", "-1", "1e3", "MAX", ""].iter().all(|text| rate(text).is_err()));
        assert_eq!(positive_rate("50"), Ok(50));
        assert!(["0", "max", "x"].iter().all(|text| positive_rate(text).is_err()));
        assert_eq!(count("8"), Ok(8));
        assert!(["0", "65536", ""].iter().all(|text| count(text).is_err()));
    }

    #[test]
    fn every_profile_can_be_named() {
        for (name, keepalive) in PROFILES {
            let profile = Profile::from_str(name, false).expect("named");
            assert_eq!(profile.keepalive(), keepalive);
        }
    }
}
