//! Entries → peers, each once. Everything is counted before a single peer is listed: a typing error
//! in a prefix length must not take the machine's memory.
#![forbid(unsafe_code)]

use super::list::{self, Entry, Host, List};
use super::names::{Names, Span};
use super::resolve::{self, Found, Resolved};
use super::space::{self, Range, Set};
use super::{FAULTS_SHOWN, Given, TargetError, Targets, memory, scope, shown};
use crate::probe::TargetId;
use crate::probe::table::Family;
use indicatif::{BinaryBytes, HumanCount};
use std::collections::HashSet;
use std::iter;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::slice;

/// Consecutive addresses on one port, all given by one entry.
#[derive(Clone, Debug)]
struct Piece {
    first: u128,
    last: u128,
    /// Index of the entry.
    entry: u32,
    /// In the order given: more than one piece may be of one entry.
    number: u32,
    /// Interface index of link-local addresses.
    scope: u32,
    port: u16,
}

impl Piece {
    fn range(&self) -> Range {
        self.first..=self.last
    }

    fn place(&self) -> (u32, u16) {
        (self.scope, self.port)
    }
}

/// Expands `list`, whose names `look_up` resolves; `available` is the memory to stay within.
///
/// # Errors
/// [`TargetError`].
pub fn expand(
    list: List,
    excluded: &Set,
    given: &Given<'_>,
    available: Option<u64>,
    look_up: impl Fn(&str) -> Found + Sync,
    waiting: &mut dyn FnMut(usize, usize),
) -> Result<Targets, TargetError> {
    let names = list.entries.iter().filter_map(|entry| match entry.host {
        Host::Name(name) => list.text.get(name),
        Host::Net(..) => None,
    });
    let resolved = resolve::resolve(names, look_up, waiting).map_err(TargetError::Resolver)?;
    let mut expansion = Expansion {
        list: &list,
        resolved: &resolved,
        given,
        interface: given.interface.map(|name| (name, list::interface(name))),
        pieces: Vec::new(),
        room: room(available),
        asked: 0,
        family: Family::V4,
        largest: (0, 0),
        unresolved: Vec::new(),
        resolver: Vec::new(),
        without_address: 0,
        other_family: 0,
    };
    for index in 0..list.entries.len() {
        expansion.add(index, excluded)?;
    }
    tracing::debug!(pieces = expansion.pieces.len(), "targets checked");
    let Expansion { mut pieces, asked, family, largest, mut unresolved, resolver, .. } = expansion;
    let (without_address, other_family) = (expansion.without_address, expansion.other_family);

    let too_many = |targets, limit| TargetError::TooMany {
        targets,
        largest: list.shown(&list.entries[largest.0]),
        largest_targets: largest.1,
        need: memory::needed(targets, family),
        limit,
    };
    let check_room = |targets: u128| {
        let need = memory::needed(targets, family);
        if let Some(available) = available.filter(|&octets| need > octets) {
            return Err(too_many(targets, format!("{} are available", BinaryBytes(available))));
        }
        if targets > u32::MAX.into() {
            let most = HumanCount(u32::MAX.into());
            return Err(too_many(targets, format!("at most {most} can be told apart")));
        }
        Ok(())
    };
    if pieces.len() as u64 >= expansion.room {
        check_room(asked)?;
    }
    cut_duplicates(&mut pieces);
    let targets =
        pieces.iter().map(|piece| space::size(&piece.range())).fold(0, u128::saturating_add);
    check_room(targets.saturating_add(unresolved.len() as u128))?;
    match (targets == 0 && unresolved.is_empty(), given.source) {
        (true, Some(source)) if other_family > 0 => return Err(TargetError::NoneOfFamily(source)),
        (true, _) => return Err(TargetError::NothingLeft),
        (false, _) => {}
    }
    let duplicates = u64::try_from(asked.saturating_sub(targets)).unwrap_or(u64::MAX);

    let mut peers = Vec::new();
    // Fits, as both checks above see to.
    if peers.try_reserve_exact(targets as usize).is_err() {
        return Err(too_many(targets, "the system does not grant it".into()));
    }
    let mut named = Vec::new();
    for piece in &pieces {
        named.push((peers.len() as u32, piece.entry));
        peers.extend(piece.range().map(|number| peer(number, piece)));
    }
    drop(pieces);
    let given_again = unresolved.len();
    let mut known = HashSet::new();
    unresolved.retain(|&(entry, port)| {
        let Host::Name(name) = list.entries[entry as usize].host else { return false };
        known.insert((list.text.get(name), port))
    });
    let duplicates = duplicates + (given_again - unresolved.len()) as u64;
    drop(known);
    let unresolved: Vec<(TargetId, u16)> = iter::zip(peers.len() as u32.., unresolved)
        .map(|(id, (entry, port))| {
            named.push((id, entry));
            (TargetId(id), port)
        })
        .collect();
    let resolver = (without_address > 0).then(|| shown(&resolver, without_address));
    drop(resolved);
    let List { entries, text, .. } = list;
    let mut names = Names::new(text);
    for (first, entry) in named {
        let Entry { host, label, .. } = entries[entry as usize];
        let name = match host {
            Host::Name(name) => name,
            Host::Net(..) => Span::default(),
        };
        names.push(first, name, label);
    }
    names.shrink();
    Ok(Targets { peers, unresolved, resolver, names, duplicates, other_family })
}

/// How many pieces are worth looking at. Every one holds a target at least, so beyond that only
/// duplicates could make it all fit.
fn room(available: Option<u64>) -> u64 {
    let most = u64::from(u32::MAX);
    available.map_or(most, |octets| (octets / (2 * size_of::<Piece>() as u64)).min(most))
}

fn peer(number: u128, piece: &Piece) -> SocketAddr {
    match space::address(number) {
        IpAddr::V4(addr) => SocketAddr::from((addr, piece.port)),
        IpAddr::V6(addr) => {
            let scope = if addr.is_unicast_link_local() { piece.scope } else { 0 };
            SocketAddr::V6(SocketAddrV6::new(addr, piece.port, 0, scope))
        }
    }
}

struct Expansion<'a> {
    list: &'a List,
    resolved: &'a Resolved<'a>,
    given: &'a Given<'a>,
    /// The interface of -i and its index, if there is such an interface.
    interface: Option<(&'a str, Option<u32>)>,
    pieces: Vec<Piece>,
    /// Beyond this many pieces only the size still matters, which costs no memory.
    room: u64,
    /// Targets, duplicates included.
    asked: u128,
    /// IPv6 if any target is.
    family: Family,
    /// The entry that stands for the most targets, and how many that is.
    largest: (usize, u128),
    /// Index of an entry whose name has no address, and port.
    unresolved: Vec<(u32, u16)>,
    /// What the resolver said of the first of those.
    resolver: Vec<String>,
    without_address: usize,
    other_family: u64,
}

impl Expansion<'_> {
    fn add(&mut self, index: usize, excluded: &Set) -> Result<(), TargetError> {
        let (list, given) = (self.list, self.given);
        let entry = &list.entries[index];
        let own_port = entry.port.map(|port| port.get());
        let ports = own_port.as_ref().map_or(given.ports, slice::from_ref);
        if ports.is_empty() {
            let shown = list.shown(entry);
            let example = match entry.host {
                Host::Net(net, _) if net.addr().is_ipv6() => format!("[{shown}]:PORT"),
                _ => format!("{shown}:PORT"),
            };
            return Err(TargetError::NoPort(list.origin(entry), shown, example));
        }
        let before = self.asked;
        match entry.host {
            Host::Net(net, scope) => {
                self.add_range(index, &space::range(&net), scope, ports, excluded)?;
            }
            Host::Name(name) => {
                let name = list.text.get(name).unwrap_or_default();
                let resolved = self.resolved;
                match resolved.get(name) {
                    Some(Ok(addrs)) if !addrs.is_empty() => {
                        self.add_addresses(index, addrs, ports, excluded)?;
                    }
                    Some(Err(error)) => self.no_address(index, name, &error.to_string(), ports),
                    Some(Ok(_)) | None => self.no_address(index, name, "no address", ports),
                }
            }
        }
        if self.asked - before > self.largest.1 {
            self.largest = (index, self.asked - before);
        }
        Ok(())
    }

    fn no_address(&mut self, index: usize, name: &str, why: &str, ports: &[u16]) {
        self.without_address += 1;
        if self.resolver.len() < FAULTS_SHOWN {
            // The standard library's preface, which says nothing more.
            let why = why.strip_prefix("failed to lookup address information: ").unwrap_or(why);
            let origin = self.list.origin(&self.list.entries[index]);
            self.resolver.push(format!("{origin}: resolve {name}: {why}"));
        }
        let fit = (self.room as usize).saturating_sub(self.unresolved.len());
        self.unresolved.extend(ports.iter().take(fit).map(|&port| (index as u32, port)));
    }

    fn add_addresses(
        &mut self,
        index: usize,
        addrs: &[SocketAddr],
        ports: &[u16],
        excluded: &Set,
    ) -> Result<(), TargetError> {
        for (nth, addr) in addrs.iter().enumerate() {
            // A resolver may list an address twice; that is not the user's duplicate.
            if addrs[..nth].contains(addr) {
                continue;
            }
            let ip = addr.ip().to_canonical();
            if self.given.source.is_some_and(|source| source.is_ipv4() != ip.is_ipv4()) {
                self.other_family += 1;
                continue;
            }
            let scope = match addr {
                SocketAddr::V6(v6) => v6.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            let number = space::number(ip);
            self.add_range(index, &(number..=number), scope, ports, excluded)?;
        }
        Ok(())
    }

    fn add_range(
        &mut self,
        index: usize,
        range: &Range,
        scope: u32,
        ports: &[u16],
        excluded: &Set,
    ) -> Result<(), TargetError> {
        let entry = &self.list.entries[index];
        if let Some(source) = self.given.source
            && source.is_ipv4() != space::address(*range.start()).is_ipv4()
        {
            let (origin, target) = (self.list.origin(entry), self.list.shown(entry));
            return Err(TargetError::OtherFamily(origin, target, source));
        }
        if space::address(*range.start()).is_ipv6() {
            self.family = Family::V6;
        }
        for part in excluded.gaps(range) {
            let scope = self.check(entry, &part, scope)?;
            for &port in ports {
                self.asked = self.asked.saturating_add(space::size(&part));
                if (self.pieces.len() as u64) < self.room {
                    self.pieces.push(Piece {
                        first: *part.start(),
                        last: *part.end(),
                        entry: index as u32,
                        number: self.pieces.len() as u32,
                        scope,
                        port,
                    });
                }
            }
        }
        Ok(())
    }

    /// Returns the scope of link-local addresses in `part`, unless it must not or cannot be probed.
    fn check(&self, entry: &Entry, part: &Range, scope: u32) -> Result<u32, TargetError> {
        let written = || (self.list.origin(entry), self.list.shown(entry));
        if let Some((first, why)) = scope::first_refused(part) {
            let ((origin, target), many) = (written(), part.start() != part.end());
            return Err(TargetError::Refused { origin, target, first, why, many });
        }
        if let Some(first) = scope::first_public(part).filter(|_| !self.given.allow_public) {
            let (origin, target) = written();
            return Err(TargetError::Public { origin, target, first });
        }
        let Some(first) = scope::first_link_local(part) else { return Ok(0) };
        match (scope, self.interface) {
            (0, None) => {
                let (origin, target) = written();
                Err(TargetError::NoScope { origin, target, first })
            }
            // That there is no such interface is for the engine to say.
            (0, Some((_, index))) => Ok(index.unwrap_or(0)),
            (scope, Some((name, Some(index)))) if scope != index => {
                let (origin, target) = written();
                Err(TargetError::OtherInterface { origin, target, interface: name.to_owned() })
            }
            (scope, _) => Ok(scope),
        }
    }
}

/// Leaves every address on every port to the piece that gave it first.
///
/// By sorting: an interval set of a million single addresses would be slow to build, and large.
fn cut_duplicates(pieces: &mut Vec<Piece>) {
    pieces.sort_unstable_by_key(|piece| (piece.place(), piece.first, piece.number));
    let mut cut = Vec::new();
    let mut start = 0;
    while start < pieces.len() {
        let place = pieces[start].place();
        let (mut end, mut last) = (start + 1, pieces[start].last);
        while end < pieces.len() && pieces[end].place() == place && pieces[end].first <= last {
            last = last.max(pieces[end].last);
            end += 1;
        }
        if end - start > 1 {
            cut_heap(&mut pieces[start..end], &mut cut);
        }
        start = end;
    }
    pieces.retain(|piece| piece.number != CUT);
    pieces.append(&mut cut);
    pieces.sort_unstable_by_key(|piece| (piece.number, piece.first));
}

/// Marks a piece of which nothing, or only what is in `cut`, is left.
const CUT: u32 = u32::MAX;

/// Cuts pieces that overlap; what is left of those that lose something goes to `cut`.
fn cut_heap(heap: &mut [Piece], cut: &mut Vec<Piece>) {
    heap.sort_unstable_by_key(|piece| piece.number);
    let mut seen = Set::new();
    for piece in heap {
        let range = piece.range();
        let gaps: Vec<Range> = seen.gaps(&range).collect();
        if gaps != slice::from_ref(&range) {
            cut.extend(gaps.iter().map(|gap| Piece {
                first: *gap.start(),
                last: *gap.end(),
                ..*piece
            }));
            piece.number = CUT;
        }
        seen.insert(range);
    }
}
