//! Loading our BPF objects.
//!
//! aya's loader begins by reading every type that the running kernel has, whether an object refers to any
//! or not: 45 ms of CPU, more than all else that a sweep takes to start. Objects that are loaded for one
//! purpose therefore share a loader ([`Together`]).
#![forbid(unsafe_code)]

use aya::{Ebpf, EbpfError, EbpfLoader};
use std::sync::{Mutex, MutexGuard, PoisonError};

static SHARED: Mutex<Shared> = Mutex::new(Shared { users: 0, loader: None });

struct Shared {
    users: usize,
    /// Made by the first who loads, dropped by the last user: the kernel's types take some 20 MB.
    loader: Option<EbpfLoader<'static>>,
}

/// As long as one of these lives, whatever is loaded in this process is loaded by one loader.
#[derive(Debug)]
#[must_use]
pub struct Together(());

impl Together {
    /// Begins to share.
    pub fn begin() -> Self {
        shared().users += 1;
        Together(())
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        let mut shared = shared();
        shared.users -= 1;
        if shared.users == 0 {
            shared.loader = None;
        }
    }
}

/// Loads `object`, its maps sized by `max_entries` where they are among them.
///
/// # Errors
/// No privilege, or the kernel or aya refuses the object.
pub(super) fn load(object: &[u8], max_entries: &[(&'static str, u32)]) -> Result<Ebpf, EbpfError> {
    let mut shared = shared();
    if shared.users == 0 {
        drop(shared);
        return load_by(&mut EbpfLoader::new(), object, max_entries);
    }
    load_by(shared.loader.get_or_insert_with(EbpfLoader::new), object, max_entries)
}

fn load_by(
    loader: &mut EbpfLoader<'static>,
    object: &[u8],
    max_entries: &[(&'static str, u32)],
) -> Result<Ebpf, EbpfError> {
    for &(map, entries) in max_entries {
        loader.map_max_entries(map, entries);
    }
    loader.load(object)
}

fn shared() -> MutexGuard<'static, Shared> {
    // A loader has no state that a panic could leave half done but these numbers, set before each use.
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}
