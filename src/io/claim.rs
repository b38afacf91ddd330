//! What sweeps of one network namespace must know of each other.
//!
//! The XDP program of one takes every answer to its source ports, before any socket of another hears
//! it: to that one every peer would be silent. So each sweep says which ports it uses, by the name of
//! an abstract Unix socket: it belongs to the network namespace, everybody can read it in
//! /proc/net/unix, and it is gone with the process.
#![forbid(unsafe_code)]

use super::IoError;
use crate::time::Clock;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PREFIX: &str = "keepsweep/ports/";
/// Of this thread: the process may have threads in other network namespaces.
const LISTING: &str = "/proc/thread-self/net/unix";

/// How long the socket of a process that was killed may still be there.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// Source ports that a sweep uses; given up when this is dropped.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixDatagram,
}

/// Who hears the answers to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hears {
    /// This sweep beside others: packet sockets get copies.
    Too,
    /// This sweep alone: by AF_XDP.
    Alone,
}

/// Why ports could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another sweep uses them, and one of the two hears alone.
    #[error(
        "source ports {}-{}: keepsweep process {pid} of this network namespace uses {}-{}, and {}; wait \
         for its end, or choose other ports with --source-ports LO-HI",
        .wanted.start(), .wanted.end(), .theirs.start(), .theirs.end(),
        match .alone {
            true => "hears them by AF_XDP alone: every peer would seem silent to this sweep",
            false => "would hear nothing any more beside AF_XDP: every peer would seem silent to it",
        }
    )]
    Taken {
        /// The range asked for.
        wanted: RangeInclusive<u16>,
        /// The range of the other.
        theirs: RangeInclusive<u16>,
        /// Its process.
        pid: u32,
        /// Whether it is the other that hears alone.
        alone: bool,
    },
    /// It could not be found out.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// What the name of a socket says.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Notice {
    ports: RangeInclusive<u16>,
    hears: Hears,
    pid: u32,
    /// Which claim of the process.
    number: u32,
}

impl Notice {
    fn name(&self) -> String {
        let Notice { ports, hears, pid, number } = self;
        let hears = match hears {
            Hears::Too => "too",
            Hears::Alone => "alone",
        };
        format!("{PREFIX}{}-{}/{hears}/{pid}/{number}", ports.start(), ports.end())
    }

    fn parse(name: &str) -> Option<Notice> {
        let mut parts = name.strip_prefix(PREFIX)?.split('/');
        let (lo, hi) = parts.next()?.split_once('-')?;
        let hears = match parts.next()? {
            "too" => Hears::Too,
            "alone" => Hears::Alone,
            _ => return None,
        };
        Some(Notice {
            ports: lo.parse().ok()?..=hi.parse().ok()?,
            hears,
            pid: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        })
    }

    fn is_against(&self, other: &Notice) -> bool {
        let overlap =
            self.ports.start() <= other.ports.end() && other.ports.start() <= self.ports.end();
        self != other && overlap && (self.hears == Hears::Alone || other.hears == Hears::Alone)
    }
}

/// Says that this process uses `ports`, and looks whether that does harm. A process that was killed
/// is waited for, up to 2 s. Needs no privilege.
///
/// # Errors
/// [`ClaimError`]: another sweep uses some of them, and one of the two hears by AF_XDP.
pub fn claim(ports: &RangeInclusive<u16>, hears: Hears) -> Result<Claim, ClaimError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mine = Notice { ports: ports.clone(), hears, pid: std::process::id(), number };
    let name = mine.name();
    // First said, then looked: of two that begin at once, one sees the other at least.
    let socket = SocketAddr::from_abstract_name(&name)
        .and_then(|address| UnixDatagram::bind_addr(&address))
        .map_err(|source| failed("claim source ports", &name, source))?;
    let clock = Clock;
    let begun = clock.now();
    loop {
        let listing = fs::read(LISTING).map_err(|source| failed("read", LISTING, source))?;
        let Some(other) = against(&mine, &String::from_utf8_lossy(&listing)) else {
            return Ok(Claim { _socket: socket });
        };
        if clock.now().since(begun) >= PATIENCE {
            let Notice { ports: theirs, hears, pid, .. } = other;
            let alone = hears == Hears::Alone;
            return Err(ClaimError::Taken { wanted: ports.clone(), theirs, pid, alone });
        }
        clock.sleep(PAUSE);
    }
}

/// Returns who is against `mine` among the sockets of `listing`, as /proc/net/unix has them: the name
/// comes last, and an abstract one begins with "@".
fn against(mine: &Notice, listing: &str) -> Option<Notice> {
    listing
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(7)?.strip_prefix('@'))
        .filter_map(Notice::parse)
        .find(|other| mine.is_against(other))
}

fn failed(operation: &'static str, object: &str, source: io::Error) -> IoError {
    IoError { operation, object: object.to_owned(), source, remedy: "see that /proc is mounted" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(ports: RangeInclusive<u16>, hears: Hears, pid: u32) -> Notice {
        Notice { ports, hears, pid, number: 0 }
    }

    #[test]
    fn only_who_hears_alone_is_in_the_way_and_only_on_the_same_ports() {
        use Hears::{Alone, Too};
        let mine = |hears| notice(61_000..=65_534, hears, 1);
        let rows = [
            (Too, 61_000..=65_534, Too, false),
            (Too, 65_534..=65_535, Alone, true),
            (Alone, 1..=61_000, Too, true),
            (Alone, 61_000..=65_534, Alone, true),
            (Alone, 50_000..=60_999, Alone, false),
        ];
        for (hears, ports, theirs, expected) in rows {
            let other = notice(ports, theirs, 2);
            let listing = format!(
                "Num       RefCount Protocol Flags    Type St Inode Path\n\
                 0000000000000000: 00000002 00000000 00000000 0002 01 4711\n\
                 0000000000000000: 00000002 00000000 00000000 0002 01 4712 /run/x\n\
                 0000000000000000: 00000002 00000000 00000000 0002 01 4713 @{}\n\
                 0000000000000000: 00000002 00000000 00000000 0002 01 4714 @{}\n",
                mine(hears).name(),
                other.name(),
            );
            assert_eq!(against(&mine(hears), &listing), expected.then_some(other));
        }
    }

    #[test]
    fn names_of_others_are_none_of_ours() {
        let name = notice(1..=2, Hears::Too, 3).name();
        assert_eq!(Notice::parse(&name), Some(notice(1..=2, Hears::Too, 3)));
        for name in [
            "",
            "x",
            "keepsweep/ports/",
            "keepsweep/ports/1-2/both/3/0",
            "keepsweep/ports/1-99999/too/3/0",
        ] {
            assert_eq!(Notice::parse(name), None, "{name}");
        }
    }

    #[test]
    fn claims_are_seen_and_given_up() {
        // Ports that no test sweeps from.
        let first = claim(&(7..=8), Hears::Alone).expect("claimed");
        match claim(&(8..=9), Hears::Too) {
            Err(ClaimError::Taken { theirs, alone: true, pid, .. }) => {
                assert_eq!((theirs, pid), (7..=8, std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        claim(&(8..=9), Hears::Alone).expect("given up");
    }
}
