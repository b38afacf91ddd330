//! Reading connections, namespace by namespace, and finding out whose they are.
#![forbid(unsafe_code)]

use super::filter::Taken;
use super::{Audit, AuditError, Listed, Process, Scope, state_name};
use crate::engine::{self, EngineError};
use crate::io::conntrack::{self, Extent, Tracked};
use crate::io::host::{
    self, Connection, HostError, Namespace, Namespaces, Owners, Reader, TcpState, namespaces,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// The connections that were asked for, by namespace.
#[derive(Debug, Default)]
pub struct Listing {
    pub(super) namespaces: Vec<InNamespace>,
    /// Connections that were left out for their state alone, by state; none where states were named.
    pub left_out: BTreeMap<TcpState, u64>,
    /// What could not be looked at, in words.
    pub warnings: Vec<String>,
}

/// The connections of one namespace.
#[derive(Debug)]
pub(super) struct InNamespace {
    pub namespace: Namespace,
    pub connections: Vec<Arc<Listed>>,
}

impl Listing {
    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.namespaces.iter().map(|one| one.connections.len()).sum()
    }

    /// Says whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the connections, those of one namespace together.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Listed>> {
        self.namespaces.iter().flat_map(|one| &one.connections)
    }

    /// Says in words what was left out for its state; `None` if nothing was.
    pub fn left_out_in_words(&self) -> Option<String> {
        let counts: Vec<_> = self
            .left_out
            .iter()
            .map(|(state, count)| format!("{count} in {}", state_name(*state)))
            .collect();
        (!counts.is_empty()).then(|| {
            format!(
                "not asked, since the kernel itself ends them: {}; --tcp-state all lists them",
                counts.join(", ")
            )
        })
    }
}

impl Audit {
    /// Reads the connections that this audit is about. Sends nothing.
    ///
    /// # Errors
    /// [`AuditError::Usage`]: no such namespace or process. [`AuditError::Host`]: no privilege, or the
    /// kernel does not tell. Of several namespaces those that cannot be entered, or are gone
    /// meanwhile, are in [`Listing::warnings`].
    pub fn list(&self) -> Result<Listing, AuditError> {
        let reader = Reader::open()?;
        let sockets = self.sockets()?;
        let found = match self.looks_for_namespaces() {
            true => namespaces()?,
            // Looking for all takes a while where there are many processes.
            false => Namespaces { found: vec![host::own_namespace()?], hidden_processes: 0 },
        };
        let mut listing = Listing::default();
        if found.hidden_processes > 0 && self.scope == Scope::All {
            listing.warnings.push(format!(
                "look into every network namespace: that of {} hidden process(es) is left out, \
                 unless another one is in it; {}",
                found.hidden_processes,
                host::hidden_remedy()
            ));
        }
        let chosen = self.choose(found.found)?;
        let several = chosen.len() > 1;
        let mut read = Vec::with_capacity(chosen.len());
        let mut refusals = Vec::new();
        for namespace in chosen {
            match read_in(&namespace, &reader) {
                Ok(found) => read.push((namespace, found)),
                Err(error) if several => refusals.push(error),
                Err(error) => return Err(error.into()),
            }
        }
        if read.is_empty()
            && let Some(error) = refusals.pop()
        {
            return Err(error.into());
        }
        listing.warnings.extend(refusals.iter().map(ToString::to_string));

        // After the connections, so that whoever opened one is there to be found.
        let mut owners = Attribution::new(reader.owners()?);
        for (namespace, (connections, tracked)) in read {
            let netns: Arc<str> = name(&namespace).into();
            let mut taken = Vec::new();
            for connection in connections {
                match self.filter.takes(&connection, sockets.as_ref()) {
                    Taken::Yes => {
                        let asked = sockets.as_ref().and_then(|held| held.get(&connection.inode));
                        let process = owners.process(&connection, asked.copied());
                        let ends = conntrack::ends(connection.local, connection.peer);
                        let translated = tracked.get(&ends).copied().flatten();
                        let netns = Arc::clone(&netns);
                        taken.push(Arc::new(Listed { connection, process, translated, netns }));
                    }
                    Taken::ButForState(state) => *listing.left_out.entry(state).or_default() += 1,
                    Taken::No => {}
                }
            }
            listing.namespaces.push(InNamespace { namespace, connections: taken });
        }
        tracing::info!(
            connections = listing.len(),
            namespaces = listing.namespaces.len(),
            "listed"
        );
        Ok(listing)
    }

    /// Checks that fresh SYNs can leave from the [ports that were named](Audit::source_ports), if any were:
    /// in this namespace, if `listing` is of it, and in every other that has connections in it.
    ///
    /// # Errors
    /// [`EngineError::Usage`]: they cannot. Others if that could not be found out.
    pub fn check_source_ports(&self, listing: &Listing) -> Result<(), AuditError> {
        let Some(ports) = &self.source_ports else { return Ok(()) };
        let check = || engine::check_source_ports(ports);
        // Others may have other settings and nobody to be asked.
        let is_concerned = |of: &&InNamespace| of.namespace.is_own || !of.connections.is_empty();
        let asked = listing.namespaces.iter().filter(is_concerned);
        for InNamespace { namespace, .. } in asked {
            // Entering needs CAP_SYS_ADMIN, even where one is already.
            let checked = if namespace.is_own { Ok(check()) } else { namespace.enter(check) };
            match checked {
                // There is nobody to be asked any more.
                Err(HostError::Gone { .. }) => {}
                Ok(Err(EngineError::Usage(why))) if !namespace.is_own => {
                    let why = format!("network namespace {}: {why}", name(namespace));
                    return Err(EngineError::Usage(why).into());
                }
                checked => checked??,
            }
        }
        Ok(())
    }

    /// Returns the inodes of the sockets of the processes that were asked for, and which of them has
    /// it, if any were.
    fn sockets(&self) -> Result<Option<HashMap<u64, u32>>, AuditError> {
        if self.pids.is_empty() {
            return Ok(None);
        }
        let mut sockets = HashMap::new();
        for &pid in &self.pids {
            match host::sockets_of(pid)? {
                Some(found) => sockets.extend(found.into_iter().map(|inode| (inode, pid))),
                None => return Err(no_process(pid)),
            }
        }
        Ok(Some(sockets))
    }

    /// Returns those of `found` that were asked for.
    fn choose(&self, found: Vec<Namespace>) -> Result<Vec<Namespace>, AuditError> {
        match &self.scope {
            Scope::All => Ok(found),
            Scope::Named(wanted) => {
                let known = listed(&found);
                let is_it = |one: &Namespace| one.names.contains(wanted) || inode(one) == *wanted;
                let chosen: Vec<_> = found.into_iter().filter(is_it).collect();
                match chosen.is_empty() {
                    true => Err(AuditError::Usage(format!(
                        "find network namespace {wanted}: no such namespace; there are {known}"
                    ))),
                    false => Ok(chosen),
                }
            }
            Scope::Own if self.pids.is_empty() => Ok(found),
            Scope::Own => {
                let mut inodes = HashSet::new();
                for &pid in &self.pids {
                    inodes.insert(host::netns_of(pid)?.ok_or_else(|| no_process(pid))?);
                }
                Ok(found.into_iter().filter(|one| inodes.contains(&one.inode)).collect())
            }
        }
    }
}

fn no_process(pid: u32) -> AuditError {
    AuditError::Usage(format!("look at process {pid}: no such process; see: ps -p {pid}"))
}

/// Reads the connections of `namespace`, and how it translates them; from outside of it in no case: an
/// iterator is of the namespace of the thread that creates it.
fn read_in(
    namespace: &Namespace,
    reader: &Reader,
) -> Result<(Vec<Connection>, Tracked), HostError> {
    let read = || {
        let mut connections = Vec::new();
        reader.read(&mut |connection| connections.push(connection))?;
        let tracked = translations(&connections);
        Ok((connections, tracked))
    };
    // Entering needs CAP_SYS_ADMIN, even where one is already.
    if namespace.is_own { read() } else { namespace.enter(read)? }
}

/// Reads how this thread's network namespace translates `connections`. That is good to know, and no more:
/// where it is not told, the list does without.
fn translations(connections: &[Connection]) -> Tracked {
    if conntrack::count().is_none_or(|count| count == 0) {
        return Tracked::new();
    }
    let ends = connections.iter().map(|one| conntrack::ends(one.local, one.peer)).collect();
    let read = conntrack::read(&ends, Extent::Translated);
    read.inspect_err(|error| tracing::info!(%error, "not told")).unwrap_or_default()
}

fn inode(namespace: &Namespace) -> String {
    format!("net:[{}]", namespace.inode)
}

/// Returns what records call it: its name, else its inode.
pub(super) fn name(namespace: &Namespace) -> String {
    namespace.names.first().cloned().unwrap_or_else(|| inode(namespace))
}

/// Names the first few, for a message.
fn listed(namespaces: &[Namespace]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<_> = namespaces.iter().take(SHOWN).map(name).collect();
    if namespaces.len() > SHOWN {
        names.push(format!("{} more", namespaces.len() - SHOWN));
    }
    names.join(", ")
}

/// Whose sockets are, with each process's words kept once.
struct Attribution {
    owners: Owners,
    processes: HashMap<u32, Process>,
}

impl Attribution {
    fn new(owners: Owners) -> Attribution {
        Attribution { owners, processes: HashMap::new() }
    }

    /// Returns the process that holds the socket: of several the one that was `asked` for, else the
    /// first.
    fn process(&mut self, connection: &Connection, asked: Option<u32>) -> Option<Process> {
        let owner = self.owners.of(connection);
        let pid = asked.or(owner.map(|owner| owner.pid))?;
        let owner = owner.filter(|owner| owner.pid == pid);
        let process = self.processes.entry(pid).or_insert_with(|| Process {
            pid,
            comm: match owner {
                Some(owner) => owner.comm.as_str().into(),
                None => host::comm(pid).unwrap_or_default().into(),
            },
            fd: None,
            cgroup: host::cgroup(pid).map(Into::into),
        });
        Some(Process { fd: owner.map(|owner| owner.fd), ..process.clone() })
    }
}
