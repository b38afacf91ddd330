//! The targets as given: read, understood, and kept small until they are expanded.
#![forbid(unsafe_code)]

use super::entry::{self, BadEntry, Malformed, Origin};
use super::names::{Span, Text};
use super::space::{self, Set};
use super::{Given, TargetError};
use ipnet::IpNet;
use nix::net::if_::{if_indextoname, if_nametoindex};
use std::fs::File;
use std::io::{self, BufReader};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

/// Octets read at once: a list of a million lines has tens of millions of them.
const READ_AHEAD: usize = 1 << 18;

/// What an entry names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Host {
    /// A host name, to be resolved.
    Name(Span),
    /// An address or a prefix, and the interface that it was written with; 0 for none.
    Net(IpNet, u32),
}

/// One target as given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// What it names.
    pub host: Host,
    /// Its own port.
    pub port: Option<NonZero<u16>>,
    /// Its label.
    pub label: Span,
    /// Its line in the file; 0 is the command line.
    line: u32,
}

/// All targets as given.
#[derive(Debug)]
pub struct List {
    /// In order.
    pub entries: Vec<Entry>,
    /// Names and labels.
    pub text: Text,
    file: Arc<str>,
    /// The interface that was asked for last: they are few, and many addresses are on one.
    zone: Option<(Box<str>, u32)>,
}

impl List {
    /// Reads the arguments and the file.
    ///
    /// # Errors
    /// [`TargetError::Unreadable`], [`TargetError::Malformed`], [`TargetError::Nothing`].
    pub fn read(given: &Given<'_>) -> Result<List, TargetError> {
        let file = given.file.map_or_else(|| "".into(), shown_path);
        let mut list = List { entries: Vec::new(), text: Text::default(), file, zone: None };
        let mut bad = Vec::new();
        for text in given.arguments {
            if let Err(why) = list.add(text, None, 0) {
                bad.push(BadEntry { origin: Origin::Argument, text: text.clone(), why });
            }
        }
        if let Some(path) = given.file {
            bad.extend(lines(path, |number, word, label| list.add(word, label, number))?);
        }
        if !bad.is_empty() {
            return Err(TargetError::Malformed(bad));
        }
        if list.entries.is_empty() {
            return Err(TargetError::Nothing);
        }
        Ok(list)
    }

    fn add(&mut self, word: &str, label: Option<&str>, line: u64) -> Result<(), Malformed> {
        let (host, port) = entry::parse_target(word)?;
        let host = match host {
            entry::Host::Net(net) => Host::Net(net, 0),
            entry::Host::Scoped(net, zone) => Host::Net(IpNet::V6(net), self.scope(zone)?),
            entry::Host::Name(name) => {
                Host::Name(self.text.keep(name).ok_or(Malformed::TooMuchText)?)
            }
        };
        let label = match label {
            None => Span::default(),
            Some(label) => {
                entry::check_label(label)?;
                self.text.keep(label).ok_or(Malformed::TooMuchText)?
            }
        };
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        self.entries.push(Entry { host, port, label, line });
        Ok(())
    }

    fn scope(&mut self, zone: &str) -> Result<u32, Malformed> {
        if let Some((known, index)) = &self.zone
            && **known == *zone
        {
            return Ok(*index);
        }
        // A number is the kernel's own for an interface (RFC 4007 §11.2).
        let index = match zone.parse().ok().filter(|index| if_indextoname(*index).is_ok()) {
            Some(index) => index,
            None => interface(zone).ok_or_else(|| Malformed::Interface(zone.to_owned()))?,
        };
        self.zone = Some((zone.into(), index));
        Ok(index)
    }

    /// Returns where an entry was written.
    pub fn origin(&self, entry: &Entry) -> Origin {
        match entry.line {
            0 => Origin::Argument,
            line => Origin::Line(Arc::clone(&self.file), line.into()),
        }
    }

    /// Returns an entry as it was written, without its port.
    pub fn shown(&self, entry: &Entry) -> String {
        match entry.host {
            Host::Name(name) => self.text.get(name).unwrap_or_default().to_owned(),
            Host::Net(net, scope) => {
                let zone = if scope == 0 { String::new() } else { zone(scope) };
                if net.prefix_len() == net.max_prefix_len() {
                    format!("{}{zone}", net.addr())
                } else {
                    format!("{}{zone}/{}", net.addr(), net.prefix_len())
                }
            }
        }
    }
}

/// Returns the index of the interface `name`, if there is one.
pub fn interface(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// Returns `%` and the name of an interface.
pub fn zone(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    format!("%{}", name.unwrap_or_else(|| index.to_string()))
}

fn shown_path(path: &Path) -> Arc<str> {
    if path.as_os_str() == "-" {
        return "standard input".into();
    }
    path.to_string_lossy().as_ref().into()
}

fn lines(
    path: &Path,
    sink: impl FnMut(u64, &str, Option<&str>) -> Result<(), Malformed>,
) -> Result<Vec<BadEntry>, TargetError> {
    let name = shown_path(path);
    let read = if path.as_os_str() == "-" {
        entry::read_lines(&name, BufReader::with_capacity(READ_AHEAD, io::stdin()), sink)
    } else {
        File::open(path).and_then(|file| {
            entry::read_lines(&name, BufReader::with_capacity(READ_AHEAD, file), sink)
        })
    };
    read.map_err(|error| TargetError::Unreadable { file: name.to_string(), error })
}

/// Reads what is to be left out: addresses, prefixes, or files of either.
///
/// # Errors
/// [`TargetError::Unreadable`], [`TargetError::Malformed`].
pub fn exclusions(exclude: &[String]) -> Result<Set, TargetError> {
    let mut excluded = Set::new();
    for text in exclude {
        if let Ok(net) = entry::parse_net(text) {
            space::insert(&mut excluded, &net);
            continue;
        }
        let bad = lines(Path::new(text), |_, word, _| {
            space::insert(&mut excluded, &entry::parse_net(word)?);
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

#[cfg(test)]
impl List {
    /// Reads entries as from a file named "list".
    pub fn of(texts: &[&str]) -> List {
        let mut list =
            List { entries: Vec::new(), text: Text::default(), file: "list".into(), zone: None };
        for (text, line) in texts.iter().zip(1..) {
            let (word, label) = text.split_once(' ').map_or((*text, None), |(w, l)| (w, Some(l)));
            list.add(word, label, line).expect("well-formed");
        }
        list
    }
}
