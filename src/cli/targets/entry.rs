//! One target as written: on the command line or on a line of a file.
#![forbid(unsafe_code)]

use super::space;
use ipnet::{IpNet, Ipv6Net};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZero;
use std::sync::Arc;

/// Longest line of a target file, in octets: a host name, a port and a generous label.
const LONGEST_LINE: u64 = 4096;

/// What a target names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host<'a> {
    /// A host name, to be resolved.
    Name(&'a str),
    /// An address or a prefix.
    Net(IpNet),
    /// Link-local addresses on the interface of this name or number (RFC 4007 §11).
    Scoped(Ipv6Net, &'a str),
}

/// Where a target was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// On the command line.
    Argument,
    /// In a file, on this line (from 1).
    Line(Arc<str>, u64),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Argument => f.write_str("command line"),
            Origin::Line(file, line) => write!(f, "{file}:{line}"),
        }
    }
}

/// Why a target cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// The port is not a number from 1 to 65535.
    #[error("{0}")]
    Port(String),
    /// Looks like an IP address and is none.
    #[error("not an IP address")]
    Address,
    /// Has a slash and is no prefix.
    #[error("not a CIDR prefix")]
    Prefix,
    /// An IPv6 prefix that holds all of IPv4 and more.
    #[error("holds IPv4 addresses in their IPv6-mapped form; write them as IPv4")]
    Mapped,
    /// A `%` that does not follow a link-local address.
    #[error("only IPv6 link-local addresses (fe80::/10) have a scope: ADDRESS%INTERFACE")]
    Scope,
    /// A scope that is no interface of this host.
    #[error("no such interface: {0}; see: ip link")]
    Interface(String),
    /// What could steer a terminal.
    #[error("control character {0:?} in the label")]
    Control(char),
    /// Names and labels that cannot be numbered any more.
    #[error("names and labels beyond 4 GiB; sweep them in parts")]
    TooMuchText,
    /// Brackets that do not close, or that hold something else than IPv6.
    #[error("expected [IPv6] or [IPv6]:PORT")]
    Brackets,
    /// Not a host name either (RFC 1123 §2.1; `_` is let pass).
    #[error("neither a host name nor an IP address nor a CIDR prefix")]
    Name,
    /// A line that is not UTF-8.
    #[error("not UTF-8 text")]
    Encoding,
    /// A line that does not end.
    #[error("line longer than {LONGEST_LINE} octets")]
    TooLong,
}

/// Parses a target: host name, IP address or prefix, each with optional `:port`.
///
/// # Errors
/// [`Malformed`].
pub fn parse_target(text: &str) -> Result<(Host<'_>, Option<NonZero<u16>>), Malformed> {
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or(Malformed::Brackets)?;
        if !inside.contains(':') {
            return Err(Malformed::Brackets);
        }
        let port = match after.strip_prefix(':') {
            Some(port) => Some(parse_port(port)?),
            None if after.is_empty() => None,
            None => return Err(Malformed::Brackets),
        };
        return Ok((parse_addresses(inside)?, port));
    }
    // IPv6, which has two colons at least; a port would be one more, and belongs behind brackets.
    if text.bytes().filter(|octet| *octet == b':').nth(1).is_some() {
        return Ok((parse_addresses(text)?, None));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(parse_port(port)?)),
        None => (text, None),
    };
    if host.contains('/') {
        return Ok((parse_addresses(host)?, port));
    }
    // Most names begin with a letter: spares them the attempt.
    if host.starts_with(|c: char| c.is_ascii_digit())
        && let Ok(net) = parse_net(host)
    {
        return Ok((Host::Net(net), port));
    }
    check_name(host)?;
    Ok((Host::Name(host), port))
}

fn parse_addresses(text: &str) -> Result<Host<'_>, Malformed> {
    let Some((address, zone)) = text.split_once('%') else {
        let net = parse_net(text)?;
        return match net {
            IpNet::V6(v6) if space::spans_mapped(&v6) => Err(Malformed::Mapped),
            net => Ok(Host::Net(net)),
        };
    };
    // RFC 4007 §11.7: the length of a prefix follows the scope.
    let (zone, length) = zone.split_once('/').map_or((zone, None), |(z, l)| (z, Some(l)));
    let address: Ipv6Addr = address.parse().map_err(|_| Malformed::Address)?;
    let length = length.map_or(Ok(128), |text| text.parse().map_err(|_| Malformed::Prefix))?;
    let net = Ipv6Net::new(address, length).map_err(|_| Malformed::Prefix)?.trunc();
    // The whole of fe80::/10 may be given, and nothing wider.
    if zone.is_empty() || length < 10 || !address.is_unicast_link_local() {
        return Err(Malformed::Scope);
    }
    Ok(Host::Scoped(net, zone))
}

/// Parses an address or a prefix; host bits are cleared, and IPv4 in its IPv6-mapped form is IPv4.
///
/// # Errors
/// [`Malformed::Address`] or [`Malformed::Prefix`]; [`Malformed::Scope`] if it has one.
pub fn parse_net(text: &str) -> Result<IpNet, Malformed> {
    let net = if text.contains('/') {
        text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| Malformed::Prefix)
    } else {
        text.parse::<IpAddr>().map(IpNet::from).map_err(|_| Malformed::Address)
    };
    net.map(space::canonical)
}

fn parse_port(text: &str) -> Result<NonZero<u16>, Malformed> {
    let port = crate::cli::args::port(text).map_err(Malformed::Port)?;
    NonZero::new(port).ok_or_else(|| Malformed::Port("port 0 cannot be used".into()))
}

/// Refuses what could steer the terminal of whoever reads the records. Tabs are common, and harmless.
///
/// # Errors
/// [`Malformed::Control`].
pub fn check_label(label: &str) -> Result<(), Malformed> {
    match label.chars().find(|c| c.is_control() && *c != '\t') {
        Some(control) => Err(Malformed::Control(control)),
        None => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), Malformed> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_is_fine = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if name.len() > 253 || !name.split('.').all(label_is_fine) {
        return Err(Malformed::Name);
    }
    // getaddrinfo(3) takes "10.1" and "0x7f.1" for addresses, in the manner of inet_aton: somebody
    // who forgot an octet would probe a host that was never meant. No top-level domain is a number.
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if is_number(last) || hex.is_some_and(is_hex) {
        return Err(Malformed::Address);
    }
    Ok(())
}

/// What is wrong with an entry, and where it stands.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{origin}: {text:?}: {why}")]
pub struct BadEntry {
    /// Where.
    pub origin: Origin,
    /// What was written there.
    pub text: String,
    /// What is wrong with it.
    pub why: Malformed,
}

/// Hands every line that says something to `sink`: its number, its first word and what follows,
/// comments removed; what `sink` finds malformed is returned with file and line.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines(
    file: &Arc<str>,
    mut reader: impl BufRead,
    mut sink: impl FnMut(u64, &str, Option<&str>) -> Result<(), Malformed>,
) -> io::Result<Vec<BadEntry>> {
    let mut bad = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        let origin = || Origin::Line(Arc::clone(file), number);
        if read as u64 > LONGEST_LINE {
            // What follows would be taken for a line of its own.
            let why = Malformed::TooLong;
            bad.push(BadEntry { origin: origin(), text: String::new(), why });
            break;
        }
        let Ok(text) = std::str::from_utf8(&line) else {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            bad.push(BadEntry { origin: origin(), text, why: Malformed::Encoding });
            continue;
        };
        let text = if number == 1 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let text = without_comment(text);
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if word.is_empty() {
            continue;
        }
        let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
        if let Err(why) = sink(number, word, rest) {
            bad.push(BadEntry { origin: origin(), text: word.to_owned(), why });
        }
    }
    Ok(bad)
}

/// A `#` inside a word is part of it: labels such as `web#1` are common.
fn without_comment(line: &str) -> &str {
    if !line.contains('#') {
        return line.trim();
    }
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        if c == '#' && before.is_whitespace() {
            return line[..at].trim();
        }
        before = c;
    }
    line.trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Host<'static> {
        Host::Net(text.parse().expect("a prefix"))
    }

    fn scoped(text: &str, zone: &'static str) -> Host<'static> {
        Host::Scoped(text.parse().expect("a prefix"), zone)
    }

    #[test]
    fn every_form_of_target() {
        let name = Host::Name;
        let cases = [
            ("10.0.0.7", net("10.0.0.7/32"), None),
            ("10.0.0.7:80", net("10.0.0.7/32"), Some(80)),
            ("10.0.0.7/16", net("10.0.0.0/16"), None),
            ("10.0.0.0/16:8080", net("10.0.0.0/16"), Some(8080)),
            ("fd00::1", net("fd00::1/128"), None),
            ("[fd00::1]", net("fd00::1/128"), None),
            ("[fd00::1]:443", net("fd00::1/128"), Some(443)),
            ("[fd00::/64]:443", net("fd00::/64"), Some(443)),
            ("fd00::/64", net("fd00::/64"), None),
            ("::1", net("::1/128"), None),
            ("fd00::1:80", net("fd00::1:80/128"), None),
            ("2001:db8::7/120", net("2001:db8::/120"), None),
            ("::ffff:10.0.0.7", net("10.0.0.7/32"), None),
            ("[::ffff:10.0.0.7]:80", net("10.0.0.7/32"), Some(80)),
            ("[::ffff:a00:0/104]:80", net("10.0.0.0/8"), Some(80)),
            ("fe80::1%eth0", scoped("fe80::1/128", "eth0"), None),
            ("fe80::1%eth0.7", scoped("fe80::1/128", "eth0.7"), None),
            ("[fe80::1%eth0]:22", scoped("fe80::1/128", "eth0"), Some(22)),
            ("[fe80::1%2]", scoped("fe80::1/128", "2"), None),
            ("fe80::7%eth0/120", scoped("fe80::/120", "eth0"), None),
            ("[fe80::%eth0/120]:22", scoped("fe80::/120", "eth0"), Some(22)),
            ("db1.example.net", name("db1.example.net"), None),
            ("db1.example.net.:5432", name("db1.example.net."), Some(5432)),
            ("my_host-2", name("my_host-2"), None),
        ];
        for (text, host, port) in cases {
            let port = port.map(|port| NonZero::new(port).expect("not 0"));
            assert_eq!(parse_target(text), Ok((host, port)), "{text}");
        }
    }

    #[test]
    fn labels_do_not_steer_terminals() {
        assert_eq!(check_label("rack 7\trow é"), Ok(()));
        for (label, control) in [("a\x1b[2J", '\x1b'), ("a\0", '\0'), ("a\u{9b}K", '\u{9b}')] {
            assert_eq!(check_label(label), Err(Malformed::Control(control)));
        }
    }

    #[test]
    fn malformed_targets_say_why() {
        let cases = [
            ("10.0.0.256", Malformed::Address),
            ("10.0.1", Malformed::Address),
            ("0x7f.0x1", Malformed::Address),
            ("10.0.0.0/33", Malformed::Prefix),
            ("10.0.0.0/", Malformed::Prefix),
            ("host/24", Malformed::Prefix),
            ("fd00::1::2", Malformed::Address),
            ("fd00::1::2:80", Malformed::Address),
            ("1:2", Malformed::Address),
            ("fd00::/129", Malformed::Prefix),
            ("[fd00::/129]:80", Malformed::Prefix),
            ("[fd00::1:80", Malformed::Brackets),
            ("[]:80", Malformed::Brackets),
            ("[fd00::zz]:80", Malformed::Address),
            ("::/0", Malformed::Mapped),
            ("::ffff:0:0/95", Malformed::Mapped),
            ("fd00::1%eth0", Malformed::Scope),
            ("fe80::1%", Malformed::Scope),
            ("fe80::%eth0/9", Malformed::Scope),
            ("[fe80::1%eth0/129]", Malformed::Prefix),
            ("fe80::1/64%eth0", Malformed::Address),
            ("10.0.0.1%eth0", Malformed::Name),
            ("[fd00::1", Malformed::Brackets),
            ("[10.0.0.1]:80", Malformed::Brackets),
            ("[fd00::1]80", Malformed::Brackets),
            ("-host", Malformed::Name),
            ("a..b", Malformed::Name),
            ("héh", Malformed::Name),
            (":80", Malformed::Name),
        ];
        for (text, why) in cases {
            assert_eq!(parse_target(text), Err(why), "{text}");
        }
        for text in ["h:0", "h:65536", "h:", "h:http", "10.0.0.1:+80", "10.0.0.1:80/24"] {
            assert!(matches!(parse_target(text), Err(Malformed::Port(_))), "{text}");
        }
    }

    /// Line number, first word, the rest.
    type Line = (u64, String, Option<String>);

    fn lines(text: &[u8]) -> (Vec<Line>, Vec<BadEntry>) {
        let mut seen = Vec::new();
        let bad = read_lines(&"f".into(), text, |number, word, rest| {
            seen.push((number, word.to_owned(), rest.map(str::to_owned)));
            parse_target(word).map(|_| ())
        });
        (seen, bad.expect("memory can be read"))
    }

    #[test]
    fn files_have_labels_comments_and_blank_lines() {
        let text = b"\xef\xbb\xbfh1  rack 7 # old\r\n# all\n\n\th2\tweb#1\n  \nh3#x\nh4";
        let (seen, bad) = lines(text);
        let label = |text: &str| Some(text.to_owned());
        assert_eq!(
            seen,
            [
                (1, "h1".into(), label("rack 7")),
                (4, "h2".into(), label("web#1")),
                (6, "h3#x".into(), None),
                (7, "h4".into(), None),
            ]
        );
        assert_eq!(bad.len(), 1);
        assert_eq!(
            bad[0].to_string(),
            "f:6: \"h3#x\": neither a host name nor an IP address nor a CIDR prefix"
        );
    }

    #[test]
    fn binary_and_endless_lines_are_malformed() {
        let (seen, bad) = lines(b"\xff\xfe\nh1\n");
        assert_eq!((seen.len(), bad.len()), (1, 1));
        assert_eq!(bad[0].why, Malformed::Encoding);
        let (_, bad) = lines(&vec![b'a'; 1 << 20]);
        assert_eq!(bad.len(), 1);
        assert_eq!(bad[0].why, Malformed::TooLong);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,60}") {
            if let Ok((Host::Net(net), _)) = parse_target(&text) {
                prop_assert_eq!(net, net.trunc());
                prop_assert_eq!(net, space::canonical(net));
            }
        }

        #[test]
        fn what_is_written_is_read(addr: [u8; 4], prefix in 0u8..=32, port in 1u16..) {
            let net = IpNet::new(IpAddr::from(addr), prefix).expect("in range").trunc();
            let port = NonZero::new(port);
            let text = format!("{net}:{}", port.expect("not 0"));
            prop_assert_eq!(parse_target(&text), Ok((Host::Net(net), port)));
        }

        #[test]
        fn what_is_written_is_read_in_ipv6(addr: u128, prefix in 0u8..=128, port in 1u16..) {
            let net = IpNet::new(Ipv6Addr::from_bits(addr).into(), prefix).expect("in range").trunc();
            let canonical = space::canonical(net);
            let text = format!("[{net}]:{port}");
            match parse_target(&text) {
                Err(why) => {
                    prop_assert_eq!(why, Malformed::Mapped);
                    prop_assert!(net.contains(&space::address(0xffff_0a00_0001)) || prefix < 96);
                }
                Ok(read) => prop_assert_eq!(read, (Host::Net(canonical), NonZero::new(port))),
            }
        }
    }
}
