//! Targets as given → peers to probe, each once, with their names and labels.
#![forbid(unsafe_code)]

mod entry;
mod expand;
mod list;
mod memory;
mod names;
mod resolve;
pub(super) mod scope;
pub(super) mod space;

pub use memory::peak as memory_peak;
pub use names::Names;

// As `crate::fuzz`, which alone wants them here.
#[cfg(any(all(test, not(loom)), feature = "fuzz"))]
pub(crate) use entry::{parse_net, parse_target, read_lines};

use crate::probe::TargetId;
use crate::probe::table::Family;
use entry::{BadEntry, Origin};
use indicatif::{BinaryBytes, HumanCount};
use list::List;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

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
    /// The only interface to probe through: where link-local addresses without a scope are.
    pub interface: Option<&'a str>,
    /// The address to probe from: of the one family that can be probed then.
    pub source: Option<IpAddr>,
}

/// The peers to probe.
#[derive(Debug, Default)]
pub struct Targets {
    /// Each once; `TargetId` is the index.
    pub peers: Vec<SocketAddr>,
    /// Host names without an address, numbered behind the peers, and the port of each; each once.
    pub unresolved: Vec<(TargetId, u16)>,
    /// What the resolver said of them: the first few, and how many more.
    pub resolver: Option<String>,
    /// What they were called.
    pub names: Names,
    /// How many were given again.
    pub duplicates: u64,
    /// Addresses of host names that were left out because they are not of the source address's
    /// family.
    pub other_family: u64,
}

impl Targets {
    /// Returns the octets that peers, names and labels take.
    pub fn memory(&self) -> u64 {
        (self.peers.capacity() * size_of::<SocketAddr>()) as u64 + self.names.memory()
    }

    /// Returns the octets that the engine takes for as many peers, about.
    pub fn memory_of_engine(&self) -> u64 {
        let family = Family::of(self.peers.iter().map(SocketAddr::ip));
        memory::needed(self.peers.len() as u128, family)
            .saturating_sub((self.peers.len() * size_of::<SocketAddr>()) as u64)
    }

    /// Numbers `count` flows behind the peers, as the engine does; `named` are those with a name.
    pub fn add_flows<'a>(&mut self, count: usize, named: impl Iterator<Item = (usize, &'a str)>) {
        self.names.insert(self.peers.len() as u32, count as u32, named);
        for (TargetId(id), _) in &mut self.unresolved {
            *id += count as u32;
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
    #[error("{}", shown(.0, .0.len()))]
    Malformed(Vec<BadEntry>),
    /// Names cannot be resolved for want of a thread.
    #[error("resolve host names: {0}; give addresses, or raise the limit of threads (ulimit -u)")]
    Resolver(io::Error),
    /// A target without a port.
    #[error("{0}: {1} has no port: give it one ({2}) or use -p")]
    NoPort(Origin, String, String),
    /// Multicast and its like.
    #[error("{origin}: {target}: {first} is {why} and never a peer{}",
            if *.many { "; leave it out with --exclude" } else { "" })]
    Refused {
        /// Where it was written.
        origin: Origin,
        /// What was written.
        target: String,
        /// The first such address.
        first: IpAddr,
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
        first: IpAddr,
    },
    /// A link-local address that could be on any link.
    #[error(
        "{origin}: {target}: {first} is link-local, one on every link: say on which \
             ({first}%INTERFACE), or use -i"
    )]
    NoScope {
        /// Where it was written.
        origin: Origin,
        /// What was written.
        target: String,
        /// The first such address.
        first: IpAddr,
    },
    /// A link-local address of another link than the one to probe through.
    #[error("{origin}: {target}: is not on {interface}, the only interface to probe through (-i)")]
    OtherInterface {
        /// Where it was written.
        origin: Origin,
        /// What was written.
        target: String,
        /// The interface of -i.
        interface: String,
    },
    /// An address of the family that the source address is not of.
    #[error("{0}: {1}: cannot be probed from {2} (--source), which is of the other address family")]
    OtherFamily(Origin, String, IpAddr),
    /// Host names that have no address of the source address's family.
    #[error("no targets left: no name has an address of the family of {0} (--source)")]
    NoneOfFamily(IpAddr),
    /// More than this machine can take.
    #[error("{} targets ({largest} alone {}) need {} of memory, and {limit}; sweep them in parts",
            count(*.targets), count(*.largest_targets), octets(*.need))]
    TooMany {
        /// All of them.
        targets: u128,
        /// The entry that stands for the most.
        largest: String,
        /// How many that is.
        largest_targets: u128,
        /// Octets that they would need.
        need: u64,
        /// What is exceeded.
        limit: String,
    },
    /// Nothing was given.
    #[error("no targets: give some, or a list of them with --targets FILE")]
    Nothing,
    /// Everything given was excluded.
    #[error("no targets left: --exclude covers all that were given")]
    NothingLeft,
}

/// The first few of `all`, and how many more.
fn shown<T: ToString>(first: &[T], all: usize) -> String {
    let mut lines: Vec<String> = first.iter().take(FAULTS_SHOWN).map(T::to_string).collect();
    if all > lines.len() {
        lines.push(format!("and {} more", HumanCount((all - lines.len()) as u64)));
    }
    lines.join("\n")
}

fn count(n: u128) -> String {
    match u64::try_from(n) {
        Ok(n) if n < 1_000_000_000_000_000 => HumanCount(n).to_string(),
        _ => format!("2^{}", n.ilog2()),
    }
}

fn octets(n: u64) -> String {
    match n {
        u64::MAX => "more than 16 EiB".into(),
        n => format!("about {}", BinaryBytes(n)),
    }
}

/// Reads what `--exclude` leaves out.
///
/// # Errors
/// [`TargetError`]: a file that cannot be read, or a line that is neither address nor prefix.
pub fn exclusions(exclude: &[String]) -> Result<space::Set, TargetError> {
    list::exclusions(exclude)
}

/// Reads, resolves, checks and counts the targets, then lists every peer once; calls `waiting` now
/// and then while host names are resolved, with how many are done, and of how many.
///
/// # Errors
/// [`TargetError`]: all of them are the user's to mend.
pub fn collect(
    given: &Given<'_>,
    waiting: &mut dyn FnMut(usize, usize),
) -> Result<Targets, TargetError> {
    let list = List::read(given)?;
    tracing::debug!(entries = list.entries.len(), "targets read");
    let excluded = list::exclusions(given.exclude)?;
    expand::expand(list, &excluded, given, memory::available(), resolve::system, waiting)
}

#[cfg(test)]
mod tests;
