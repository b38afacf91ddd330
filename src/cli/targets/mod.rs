//! Targets as given → peers to probe, each once, with their names and labels.
#![forbid(unsafe_code)]

mod entry;
mod memory;
mod resolve;
mod scope;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use entry::{parse_net, parse_target, read_lines};

use crate::probe::TargetId;
use entry::{BadEntry, Entry, Host, Origin};
use indicatif::{BinaryBytes, HumanCount};
use ipnet::IpNet;
use rangemap::RangeInclusiveSet;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// Faults named in one message; a list of another kind altogether would have thousands.
const FAULTS_SHOWN: usize = 10;

/// What the user gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// Targets on the command line.
    pub arguments: &'a [String],
    /// A file of targets; `-` is standard input.
    pub file: Option<&'a Path>,
    /// Addresses, prefixes or files of either, to leave out.
    pub exclude: &'a [String],
    /// Ports for targets that have none of their own.
    pub ports: &'a [u16],
    /// Whether public addresses may be probed.
    pub allow_public: bool,
}

/// The peers to probe.
#[derive(Debug)]
pub struct Targets {
    /// Each once; `TargetId` is the index.
    pub peers: Vec<SocketAddr>,
    /// What they were called.
    pub names: Names,
    /// How many were given again.
    pub duplicates: u64,
    /// Addresses of host names that were left out because they are IPv6.
    pub ipv6_left_out: u64,
}

/// The names and labels that targets were given under: one entry for all targets of a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Ascending by first target; each holds up to the next.
    runs: Vec<Run>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Run {
    first: u32,
    name: Option<Box<str>>,
    label: Option<Box<str>>,
}

impl Names {
    /// Returns the host name and the label that a target was given under.
    pub fn of(&self, target: TargetId) -> (Option<&str>, Option<&str>) {
        let after = self.runs.partition_point(|run| run.first <= target.0);
        match after.checked_sub(1).and_then(|index| self.runs.get(index)) {
            Some(run) => (run.name.as_deref(), run.label.as_deref()),
            None => (None, None),
        }
    }

    /// Returns every name, and every label.
    pub fn iter(&self) -> impl Iterator<Item = (Option<&str>, Option<&str>)> {
        self.runs.iter().map(|run| (run.name.as_deref(), run.label.as_deref()))
    }

    fn push(&mut self, first: u32, name: Option<&str>, label: Option<&str>) {
        let last = self
            .runs
            .last()
            .map_or((None, None), |run| (run.name.as_deref(), run.label.as_deref()));
        // A million plain addresses in a file are one run.
        if last != (name, label) {
            let run = Run { first, name: name.map(Into::into), label: label.map(Into::into) };
            self.runs.push(run);
        }
    }
}

/// Why the targets cannot be probed.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A list cannot be read.
    #[error("read {file}: {error}")]
    Unreadable {
        /// The list.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// Entries that cannot be understood.
    #[error("{}", shown(.0))]
    Malformed(Vec<BadEntry>),
    /// Names without an address.
    #[error("{}", shown(.0))]
    Unresolved(Vec<String>),
    /// A target without a port.
    #[error("{0}: {1} has no port: give it one ({1}:PORT) or use -p")]
    NoPort(Origin, String),
    /// An IPv6 target.
    #[error("{0}: {1}: IPv6 is not probed yet")]
    Ipv6(Origin, String),
    /// Multicast and its like.
    #[error("{origin}: {target}: {first} is {why} and never a peer{}",
            if *.many { "; leave it out with --exclude" } else { "" })]
    Refused {
        /// Where it was written.
        origin: Origin,
        /// What was written.
        target: String,
        /// The first such address.
        first: Ipv4Addr,
        /// What it is.
        why: &'static str,
        /// Whether the target has other addresses.
        many: bool,
    },
    /// A public address.
    #[error(
        "{origin}: {target}: {first} is a public address; probe it only if you are entitled to, \
             with --allow-public"
    )]
    Public {
        /// Where it was written.
        origin: Origin,
        /// What was written.
        target: String,
        /// The first such address.
        first: Ipv4Addr,
    },
    /// More than fits.
    #[error("{} targets ({largest} alone {}) need about {} of memory, and {limit}; \
             sweep them in parts",
            HumanCount(*.targets), HumanCount(*.largest_targets), BinaryBytes(memory::needed(*.targets)))]
    TooMany {
        /// Targets in all.
        targets: u64,
        /// The largest entry.
        largest: String,
        /// Its share.
        largest_targets: u64,
        /// What there is.
        limit: String,
    },
    /// Nothing was given.
    #[error("no targets: give some, or a list of them with --targets FILE")]
    Nothing,
    /// Everything given was excluded.
    #[error("no targets left: --exclude covers all that were given")]
    NothingLeft,
}

fn shown<T: ToString>(faults: &[T]) -> String {
    let mut lines: Vec<String> = faults.iter().take(FAULTS_SHOWN).map(T::to_string).collect();
    if faults.len() > FAULTS_SHOWN {
        lines.push(format!("and {} more", faults.len() - FAULTS_SHOWN));
    }
    lines.join("\n")
}

/// Reads, resolves, checks and counts the targets, then lists every peer once.
///
/// # Errors
/// [`TargetError`]: all of them are the user's to mend.
pub fn collect(given: &Given<'_>) -> Result<Targets, TargetError> {
    let entries = read(given)?;
    let excluded = exclusions(given.exclude)?;
    expand(&entries, &excluded, given, memory::available(), resolve::system)
}

fn read(given: &Given<'_>) -> Result<Vec<Entry>, TargetError> {
    let mut entries = Vec::new();
    let mut bad = Vec::new();
    for text in given.arguments {
        match entry::parse_target(text) {
            Ok((host, port)) => {
                entries.push(Entry { host, port, label: None, origin: Origin::Argument });
            }
            Err(why) => {
                bad.push(BadEntry { origin: Origin::Argument, text: text.clone(), why });
            }
        }
    }
    if let Some(path) = given.file {
        bad.extend(lines(path, |origin, word, label| {
            let (host, port) = entry::parse_target(word)?;
            entries.push(Entry { host, port, label: label.map(Into::into), origin });
            Ok(())
        })?);
    }
    if !bad.is_empty() {
        return Err(TargetError::Malformed(bad));
    }
    if entries.is_empty() {
        return Err(TargetError::Nothing);
    }
    Ok(entries)
}

fn lines(
    path: &Path,
    sink: impl FnMut(Origin, &str, Option<&str>) -> Result<(), entry::Malformed>,
) -> Result<Vec<BadEntry>, TargetError> {
    let stdin = path.as_os_str() == "-";
    let name: Arc<str> =
        if stdin { "standard input".into() } else { path.to_string_lossy().as_ref().into() };
    let read = if stdin {
        entry::read_lines(&name, io::stdin().lock(), sink)
    } else {
        File::open(path).and_then(|file| entry::read_lines(&name, BufReader::new(file), sink))
    };
    read.map_err(|error| TargetError::Unreadable { file: name.to_string(), error })
}

fn exclusions(exclude: &[String]) -> Result<RangeInclusiveSet<u32>, TargetError> {
    let mut excluded = RangeInclusiveSet::new();
    let mut add = |net: &IpNet| {
        // No IPv6 address is ever a target, so there is none to leave out.
        if let IpNet::V4(net) = net {
            excluded.insert(scope::range(net));
        }
    };
    for text in exclude {
        if let Ok(net) = entry::parse_net(text) {
            add(&net);
            continue;
        }
        let bad = lines(Path::new(text), |_, word, _| {
            add(&entry::parse_net(word)?);
            Ok(())
        });
        let bad = bad.map_err(|fault| match fault {
            TargetError::Unreadable { file, error } if error.kind() == io::ErrorKind::NotFound => {
                let file = format!("--exclude {file} (neither an address nor a prefix)");
                TargetError::Unreadable { file, error }
            }
            other => other,
        })?;
        if !bad.is_empty() {
            return Err(TargetError::Malformed(bad));
        }
    }
    Ok(excluded)
}

/// Consecutive addresses on one port, all given by one entry.
struct Piece {
    range: RangeInclusive<u32>,
    port: u16,
    entry: usize,
}

fn size(range: &RangeInclusive<u32>) -> u64 {
    u64::from(range.end() - range.start()) + 1
}

fn expand(
    entries: &[Entry],
    excluded: &RangeInclusiveSet<u32>,
    given: &Given<'_>,
    available: Option<u64>,
    look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Sync,
) -> Result<Targets, TargetError> {
    let names = entries.iter().filter_map(|entry| match &entry.host {
        Host::Name(name) => Some(&**name),
        Host::Net(_) => None,
    });
    let resolved = resolve::resolve(names, look_up);
    let unresolved: Vec<String> =
        entries.iter().filter_map(|entry| unresolved(entry, &resolved)).collect();
    if !unresolved.is_empty() {
        return Err(TargetError::Unresolved(unresolved));
    }

    // Pieces are counted before a single peer is listed: a typing error in a prefix length must
    // not take the machine's memory.
    let mut seen: HashMap<u16, RangeInclusiveSet<u32>> = HashMap::new();
    let mut pieces = Vec::new();
    let (mut targets, mut duplicates, mut ipv6_left_out) = (0, 0, 0);
    let (mut largest, mut largest_targets) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let own_port = entry.port;
        let ports = own_port.as_ref().map_or(given.ports, std::slice::from_ref);
        if ports.is_empty() {
            return Err(TargetError::NoPort(entry.origin.clone(), entry.to_string()));
        }
        let (ranges, left_out) = ranges(entry, &resolved)?;
        ipv6_left_out += left_out;
        let before = targets;
        for range in ranges {
            for part in excluded.gaps(&range) {
                check(entry, &part, given.allow_public)?;
                for &port in ports {
                    // Past the limit only the size still matters: an upper bound will do, and
                    // costs no memory.
                    if exceeds(targets, available) {
                        targets += size(&part);
                        continue;
                    }
                    let seen = seen.entry(port).or_default();
                    let mut fresh = 0;
                    for gap in seen.gaps(&part) {
                        fresh += size(&gap);
                        pieces.push(Piece { range: gap, port, entry: index });
                    }
                    seen.insert(part.clone());
                    targets += fresh;
                    duplicates += size(&part) - fresh;
                }
            }
        }
        if targets - before > largest_targets {
            (largest, largest_targets) = (index, targets - before);
        }
    }
    let too_many = |limit| TargetError::TooMany {
        targets,
        largest: entries[largest].to_string(),
        largest_targets,
        limit,
    };
    if let Some(available) = available.filter(|&available| memory::needed(targets) > available) {
        return Err(too_many(format!("{} are available", BinaryBytes(available))));
    }
    if exceeds(targets, available) {
        return Err(too_many(format!("at most {} can be told apart", HumanCount(u32::MAX.into()))));
    }
    if targets == 0 {
        return Err(TargetError::NothingLeft);
    }

    let mut peers = Vec::new();
    let room = usize::try_from(targets).ok().map(|targets| peers.try_reserve_exact(targets));
    if !matches!(room, Some(Ok(()))) {
        return Err(too_many("the system does not grant it".into()));
    }
    let mut names = Names::default();
    for piece in pieces {
        let entry = &entries[piece.entry];
        let name = match &entry.host {
            Host::Name(name) => Some(&**name),
            Host::Net(_) => None,
        };
        // Fits: no more than u32::MAX targets are let through above.
        names.push(peers.len() as u32, name, entry.label.as_deref());
        peers.extend(
            piece.range.map(|bits| SocketAddr::from((Ipv4Addr::from_bits(bits), piece.port))),
        );
    }
    Ok(Targets { peers, names, duplicates, ipv6_left_out })
}

fn exceeds(targets: u64, available: Option<u64>) -> bool {
    targets > u64::from(u32::MAX)
        || available.is_some_and(|octets| memory::needed(targets) > octets)
}

fn unresolved(entry: &Entry, resolved: &resolve::Resolved<'_>) -> Option<String> {
    let Host::Name(name) = &entry.host else { return None };
    let why = match resolved.get(&**name) {
        Some(Ok(addrs)) if !addrs.is_empty() => return None,
        Some(Err(error)) => error.to_string(),
        Some(Ok(_)) | None => "no address".to_owned(),
    };
    Some(format!("{}: resolve {name}: {why}", entry.origin))
}

/// Returns an entry's IPv4 addresses, and how many IPv6 addresses of a name are left out.
fn ranges(
    entry: &Entry,
    resolved: &resolve::Resolved<'_>,
) -> Result<(Vec<RangeInclusive<u32>>, u64), TargetError> {
    let ipv6 = || TargetError::Ipv6(entry.origin.clone(), entry.to_string());
    match &entry.host {
        Host::Net(IpNet::V4(net)) => Ok((vec![scope::range(net)], 0)),
        Host::Net(IpNet::V6(_)) => Err(ipv6()),
        Host::Name(name) => {
            let addrs = resolved.get(&**name).and_then(|found| found.as_ref().ok());
            let mut ranges = Vec::new();
            let mut left_out = 0;
            for addr in addrs.into_iter().flatten() {
                match addr {
                    IpAddr::V4(addr) => ranges.push(addr.to_bits()..=addr.to_bits()),
                    IpAddr::V6(_) => left_out += 1,
                }
            }
            // A resolver may list an address twice; that is not the user's duplicate.
            ranges.sort_unstable_by_key(|range| *range.start());
            ranges.dedup();
            if ranges.is_empty() { Err(ipv6()) } else { Ok((ranges, left_out)) }
        }
    }
}

fn check(entry: &Entry, part: &RangeInclusive<u32>, allow_public: bool) -> Result<(), TargetError> {
    let origin = || entry.origin.clone();
    if let Some((first, why)) = scope::first_refused(part) {
        let many = part.start() != part.end();
        return Err(TargetError::Refused {
            origin: origin(),
            target: entry.to_string(),
            first,
            why,
            many,
        });
    }
    match scope::first_public(part) {
        Some(first) if !allow_public => {
            Err(TargetError::Public { origin: origin(), target: entry.to_string(), first })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
