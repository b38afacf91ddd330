//! One flow as written: named fields, whatever the format, to the numbers of a connection.
#![forbid(unsafe_code)]

use crate::probe::given::{Given, TimestampClock};
use crate::wire::SeqNumber;
use nix::net::if_::if_nametoindex;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// The fields that are read, by name; others are ignored. The first six are needed.
pub const FIELDS: [&str; 13] = [
    "local_ip",
    "local_port",
    "peer_ip",
    "peer_port",
    "snd_una",
    "rcv_nxt",
    "snd_nxt",
    "wnd",
    "ts_recent",
    "ts_offset_ms",
    "name",
    "type",
    "tcp_state",
];

/// How many of [`FIELDS`] a flow cannot do without.
pub const NEEDED: usize = 6;

/// The fields of one flow in the order of [`FIELDS`], as text.
pub type Fields<'a> = [Option<Cow<'a, str>>; FIELDS.len()];

/// What a line is about.
#[derive(Debug)]
pub enum Line {
    /// A flow and its name.
    Flow(Box<Given>, Option<Box<str>>),
    /// A socket of an audit's list that has no numbers, as in TIME_WAIT: there is nothing to ask.
    WithoutNumbers,
    /// Whatever was counted before.
    Summary,
}

/// A window that is likely enough where none is given: what Linux offers at first on Ethernet.
const USUAL_WINDOW: u16 = 64_240;

/// Why a line cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// Not an object, or a broken one.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// Not a record of the header's shape.
    #[error("{found} columns, where the header has {expected}")]
    Columns {
        /// Columns of the line.
        found: usize,
        /// Columns of the header.
        expected: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 text")]
    Encoding,
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field holds something else than it should.
    #[error("{field}: {text:?}: expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it holds.
        text: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The ends are of different address families.
    #[error("local_ip and peer_ip are of different address families")]
    MixedFamilies,
    /// The flow leads from an address and port to itself.
    #[error("local and peer address and port are the same")]
    Itself,
    /// SND.NXT is before SND.UNA (RFC 9293 §3.3.1).
    #[error("snd_nxt is before snd_una")]
    Order,
    /// One of the two is of no use.
    #[error("ts_recent and ts_offset_ms go together: give both or neither")]
    HalfATimestamp,
    /// No interface is called so.
    #[error("{field}: {text:?}: no such interface after the %")]
    Scope {
        /// Which field.
        field: &'static str,
        /// What it holds.
        text: String,
    },
}

/// Reads what a line is about from its fields.
///
/// # Errors
/// [`Malformed`], naming the field and what is expected there.
pub fn parse(fields: &Fields<'_>) -> Result<Line, Malformed> {
    let [local_ip, local_port, peer_ip, peer_port, snd_una, rcv_nxt, optional @ ..] = fields;
    let [snd_nxt, wnd, ts_recent, ts_offset_ms, name, kind, tcp_state] = optional;
    if kind.as_deref() == Some("summary") {
        return Ok(Line::Summary);
    }
    // Only an audit knows the state, and it leaves out no number that there is.
    if tcp_state.is_some() && snd_una.is_none() && rcv_nxt.is_none() {
        return Ok(Line::WithoutNumbers);
    }
    let needed = [local_ip, local_port, peer_ip, peer_port, snd_una, rcv_nxt];
    if let Some(missing) = needed.iter().position(|field| field.is_none()) {
        return Err(Malformed::Missing(FIELDS[missing]));
    }
    let text = |field: &'_ Option<Cow<'_, str>>| field.as_deref().unwrap_or_default().to_owned();
    let local =
        address("local_ip", &text(local_ip))?.with_port(port("local_port", &text(local_port))?);
    let peer = address("peer_ip", &text(peer_ip))?.with_port(port("peer_port", &text(peer_port))?);
    if local.is_ipv4() != peer.is_ipv4() {
        return Err(Malformed::MixedFamilies);
    }
    if local == peer {
        return Err(Malformed::Itself);
    }
    let snd_una = sequence("snd_una", &text(snd_una))?;
    let rcv_nxt = sequence("rcv_nxt", &text(rcv_nxt))?;
    let snd_nxt = snd_nxt.as_deref().map_or(Ok(snd_una), |text| sequence("snd_nxt", text))?;
    if snd_nxt.is_before(snd_una) {
        return Err(Malformed::Order);
    }
    let clock = match (ts_recent.as_deref(), ts_offset_ms.as_deref()) {
        (Some(recent), Some(offset)) => Some(TimestampClock {
            ts_recent: number("ts_recent", recent, "a number from 0 to 4294967295")?,
            ts_offset: modular("ts_offset_ms", offset)?,
            in_microseconds: false,
        }),
        (None, None) => None,
        _ => return Err(Malformed::HalfATimestamp),
    };
    let name = name.as_deref().filter(|name| !name.is_empty());
    if let Some(name) = name.filter(|name| name.chars().any(char::is_control)) {
        return Err(wrong("name", name, "text without control characters"));
    }
    let given = Given {
        local,
        peer: scoped_like(peer, local),
        snd_una,
        snd_nxt,
        rcv_nxt,
        wnd: wnd.as_deref().map_or(Ok(USUAL_WINDOW), window)?,
        clock,
        obstacle: None,
        host: None,
    };
    Ok(Line::Flow(Box::new(given), name.map(Into::into)))
}

fn wrong(field: &'static str, text: &str, expected: &'static str) -> Malformed {
    /// Longest quotation of a value.
    const SHOWN: usize = 60;
    Malformed::Field { field, text: text.chars().take(SHOWN).collect(), expected }
}

/// An address, with the number of its interface where it is an IPv6 one of that interface only.
#[derive(Clone, Copy)]
struct Address {
    ip: IpAddr,
    scope_id: u32,
}

impl Address {
    fn with_port(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => SocketAddr::from((ip, port)),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope_id).into(),
        }
    }
}

fn address(field: &'static str, text: &str) -> Result<Address, Malformed> {
    let expected = "an IP address";
    let (ip, scope) = match text.split_once('%') {
        Some((ip, scope)) => (ip, Some(scope)),
        None => (text, None),
    };
    let ip: IpAddr = ip.parse().map_err(|_| wrong(field, text, expected))?;
    // A socket of both families shows its IPv4 connections so.
    let ip = ip.to_canonical();
    let scope_id = match scope {
        None => 0,
        Some(_) if ip.is_ipv4() => return Err(wrong(field, text, expected)),
        Some(scope) => match number(field, scope, "an interface") {
            Ok(index) => index,
            Err(_) => if_nametoindex(scope)
                .map_err(|_| Malformed::Scope { field, text: text.to_owned() })?,
        },
    };
    Ok(Address { ip, scope_id })
}

/// A link-local peer is on the link of our end, if only that says which it is.
fn scoped_like(peer: SocketAddr, local: SocketAddr) -> SocketAddr {
    match (peer, local) {
        (SocketAddr::V6(mut peer), SocketAddr::V6(local))
            if peer.scope_id() == 0 && is_link_local(*peer.ip()) =>
        {
            peer.set_scope_id(local.scope_id());
            peer.into()
        }
        _ => peer,
    }
}

fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.is_unicast_link_local()
}

fn port(field: &'static str, text: &str) -> Result<u16, Malformed> {
    positive(field, text, "a port, 1 to 65535")
}

/// A window of 0 cannot be told to the peer: it would have to send a probe of its own to see it opened.
fn window(text: &str) -> Result<u16, Malformed> {
    positive("wnd", text, "the window field of a header, 1 to 65535")
}

fn positive(field: &'static str, text: &str, expected: &'static str) -> Result<u16, Malformed> {
    match number::<u16>(field, text, expected)? {
        0 => Err(wrong(field, text, expected)),
        number => Ok(number),
    }
}

fn sequence(field: &'static str, text: &str) -> Result<SeqNumber, Malformed> {
    number(field, text, "a sequence number, 0 to 4294967295").map(SeqNumber)
}

/// A difference modulo 2^32: the kernel's is unsigned, others write a negative one.
fn modular(field: &'static str, text: &str) -> Result<u32, Malformed> {
    let expected = "milliseconds, -2147483648 to 4294967295";
    match text.strip_prefix('-') {
        None => number(field, text, expected),
        Some(rest) => match number::<u32>(field, rest, expected) {
            Ok(magnitude) if magnitude <= 1 << 31 => Ok(magnitude.wrapping_neg()),
            _ => Err(wrong(field, text, expected)),
        },
    }
}

fn number<T: std::str::FromStr>(
    field: &'static str,
    text: &str,
    expected: &'static str,
) -> Result<T, Malformed> {
    // FromStr would take "+80".
    let is_number = !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
    let parsed = is_number.then(|| text.parse().ok()).flatten();
    parsed.ok_or_else(|| wrong(field, text, expected))
}
