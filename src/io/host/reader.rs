//! Reading through BPF iterators.
#![forbid(unsafe_code)]

use super::owner::owners_are_in_proc;
use super::record::{ConnectionRecord, OwnerRecord, Record};
use super::{Connection, HostError, Owners, TcpState};
use crate::io::IoError;
use crate::time::{Clock, Instant};
use aya::programs::Iter;
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connections.bpf.o"));

const CONNECTIONS: &str = "connections";
const OWNERS: &str = "owners";
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// More than the eight pages that an iterator gives at once (bpf_seq_read,
/// kernel/bpf/bpf_iter.c), so that no record is cut.
const BUFFER_OCTETS: usize = 64 << 10;

/// Fruitless reads in a row after which a reading is given up. The kernel asks for another one
/// after each million of sockets that had nothing to tell.
const FRUITLESS_READS: u32 = 1_000;

/// What a reading has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Connections handed over.
    pub connections: usize,
    /// When it began.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
}

/// The BPF programs that read connections and their owners, loaded.
///
/// It may be used from several threads. A reading is of the network namespace that the thread is in
/// which asks for it: the kernel takes it from there when the iterator is created, which every
/// reading does anew. See the [module](super) for privileges.
pub struct Reader {
    // Attaching takes `&mut`; nothing else does.
    programs: Mutex<Ebpf>,
    tick: Duration,
    has_all: bool,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("has_all", &self.has_all).finish_non_exhaustive()
    }
}

impl Reader {
    /// Loads the programs.
    ///
    /// # Errors
    /// [`HostError::Btf`]: the kernel does not describe its types. [`HostError::Load`]: no privilege,
    /// or a kernel that is too old.
    pub fn open() -> Result<Reader, HostError> {
        Reader::open_with(Path::new(BTF))
    }

    fn open_with(btf: &Path) -> Result<Reader, HostError> {
        let failed = |reason| HostError::Btf { path: btf.to_owned(), reason };
        let types = fs::read(btf).map_err(|error| failed(error.to_string()))?;
        let types =
            Btf::parse(&types, Endianness::default()).map_err(|error| failed(error.to_string()))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&types))
            .load(OBJECT)
            .map_err(|error| HostError::load(CONNECTIONS, &error))?;
        for (name, kind) in [(CONNECTIONS, "tcp"), (OWNERS, "task_file")] {
            iterator(&mut programs, name)?
                .load(kind, &types)
                .map_err(|error| HostError::load(name, &error))?;
        }
        Ok(Reader { programs: Mutex::new(programs), tick: Clock.tick(), has_all: false })
    }

    /// Makes readings include listening and closed sockets, or leave them out, which is the default.
    #[must_use]
    pub fn with_listeners(mut self, included: bool) -> Reader {
        self.has_all = included;
        self
    }

    /// Hands every TCP connection of this thread's network namespace to `sink`, each once.
    ///
    /// The numbers of one connection belong together: the socket is locked while they are read (since
    /// Linux 5.15). Connections are read one after the other: each has its own [`Connection::at`].
    ///
    /// # Errors
    /// [`HostError`]; what was handed over before it is right, but not all.
    pub fn read(&self, sink: &mut dyn FnMut(Connection)) -> Result<Reading, HostError> {
        let at = Clock.now();
        let mut known = HashSet::new();
        let mut connections = 0;
        let mut last_at = None;
        self.records::<ConnectionRecord>(CONNECTIONS, |record| {
            last_at = Some(record.at());
            // A socket that moves within the kernel's table meanwhile can be met twice.
            if !known.insert(record.cookie()) {
                return;
            }
            let Some(connection) = record.connection(self.tick) else { return };
            let is_one = !matches!(connection.state, TcpState::Listen | TcpState::Closed);
            if is_one || self.has_all {
                connections += 1;
                sink(connection);
            }
        })?;
        let end = Clock.now();
        // Probes take TSvals from our clock: one that runs ahead of the kernel's would stall the
        // applications (RFC 7323 §5.3).
        if last_at.is_some_and(|last| last < at || last > end) {
            return Err(HostError::TimeNamespace);
        }
        Ok(Reading { connections, at, took: end.since(at) })
    }

    /// Finds out whose the TCP sockets are: which processes have descriptors of them. In whichever
    /// network namespace; processes of this PID namespace and of those within.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn owners(&self) -> Result<Owners, HostError> {
        if owners_are_in_proc() {
            return Owners::by_proc();
        }
        let mut owners = Owners::default();
        self.records::<OwnerRecord>(OWNERS, |record| {
            let comm = record.comm.split(|&octet| octet == 0).next().unwrap_or_default();
            let comm = || String::from_utf8_lossy(comm).into_owned();
            owners.add(record.inode, record.pid, record.fd, comm);
        })?;
        Ok(owners)
    }

    fn records<R: Record>(
        &self,
        name: &'static str,
        mut sink: impl FnMut(R),
    ) -> Result<(), HostError> {
        let failed = |source| {
            HostError::Io(IoError {
                operation: "read BPF iterator",
                object: name.to_owned(),
                source,
                remedy: "",
            })
        };
        let mut file = self.iterate(name)?;
        let mut buffer = vec![0; BUFFER_OCTETS];
        let mut fruitless = 0;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => {
                    fruitless = 0;
                    let (mut records, size) = (&buffer[..len], size_of::<R>());
                    while let Some(record) = R::read(records) {
                        sink(record);
                        records = &records[size..];
                    }
                    if !records.is_empty() {
                        let cut = "the kernel has cut a record";
                        return Err(failed(std::io::Error::new(ErrorKind::UnexpectedEof, cut)));
                    }
                }
                Err(error)
                    if fruitless < FRUITLESS_READS
                        && matches!(
                            error.kind(),
                            ErrorKind::Interrupted | ErrorKind::WouldBlock
                        ) =>
                {
                    fruitless += 1;
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Creates an iterator in this thread's network namespace.
    fn iterate(&self, name: &'static str) -> Result<File, HostError> {
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let program = iterator(&mut programs, name)?;
        let link = program
            .attach()
            .and_then(|id| program.take_link(id))
            .map_err(|error| HostError::attach(name, &error))?;
        link.into_file().map_err(|error| HostError::attach(name, &error))
    }
}

fn iterator<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Iter, HostError> {
    programs.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(HostError::Load {
        program: name,
        reason: "the embedded object does not have it".to_owned(),
        remedy: "this build is broken: build it again",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's types, with fields renamed: for all that CO-RE can see, they are not there.
    fn without(fields: &[&str]) -> tempfile::NamedTempFile {
        let mut types = fs::read(BTF).expect("root, and a kernel with BTF");
        for field in fields {
            let name = format!("\0{field}\0");
            let at = types.windows(name.len()).position(|window| window == name.as_bytes());
            types[at.expect("this kernel has the field") + 1] = b'~';
        }
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, &types).expect("written");
        file
    }

    #[test]
    fn fields_that_a_kernel_lacks_are_unknown_and_the_rest_is_told() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            println!("skipped: needs root");
            return;
        }
        let optional = ["md5sig_info", "tcp_usec_ts", "pinet6"];
        let types = without(&optional);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let _ours = std::net::TcpStream::connect(address).expect("connected");
        let signed = |btf: &Path| {
            let reader = Reader::open_with(btf).unwrap_or_else(|error| panic!("{error}"));
            let mut found = None;
            let mut take = |connection: Connection| {
                if connection.peer == address {
                    found = connection.numbers;
                }
            };
            reader.read(&mut take).unwrap_or_else(|error| panic!("{error}"));
            let numbers = found.expect("a full socket");
            assert_eq!(numbers.snd_una, numbers.snd_nxt);
            assert!(numbers.timestamps.is_none_or(|with| !with.in_microseconds));
            numbers.is_signed
        };
        assert_eq!(signed(types.path()), None);
        assert_eq!(signed(Path::new(BTF)), Some(false));
    }

    #[test]
    fn a_kernel_without_btf_is_told_with_a_remedy() {
        let error = Reader::open_with(Path::new("/nonexistent/vmlinux")).expect_err("no such file");
        assert_eq!(
            error.to_string(),
            "read the kernel's types from /nonexistent/vmlinux: No such file or directory (os \
             error 2); needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys mounted"
        );
        assert_eq!(error.remedy(), HostError::NO_BTF);
        assert!(error.without_remedy().ends_with("(os error 2)"), "{}", error.without_remedy());
    }
}
