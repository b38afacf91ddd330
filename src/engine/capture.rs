//! The pcap file of a run, written from several threads.

use crate::time::{Clock, Instant};
use crate::wire::LinkType;
use crate::wire::pcap::PcapWriter;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Every probe and reply, in the order in which the threads came to write them.
pub(super) struct Capture {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    pcap: PcapWriter<BufWriter<File>>,
    frames: u64,
    /// The first error; nothing is written after it.
    error: Option<io::Error>,
}

impl Capture {
    /// Begins a file whose frames start with `link`.
    pub fn create(path: &Path, link: LinkType) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let pcap = PcapWriter::new(file, link)?;
        let state = Mutex::new(State { pcap, frames: 0, error: None });
        Ok(Capture { path: path.to_owned(), state })
    }

    /// Writes one frame that was sent or received at `at`.
    pub fn frame(&self, at: Instant, link: LinkType, frame: &[u8]) {
        let age = Clock.now().since(at).as_nanos() as u64;
        let stamp = Clock.realtime_nanos().saturating_sub(age);
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.error.is_some() {
            return;
        }
        match state.pcap.frame_of(link, stamp, frame) {
            Ok(()) => state.frames += 1,
            Err(error) => state.error = Some(error),
        }
    }

    /// Writes out what is buffered; says what was lost if that, or an earlier write, failed.
    pub fn finish(self) -> Result<(), String> {
        let mut state = self.state.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let error = match state.error.take() {
            Some(error) => Some(error),
            None => state.pcap.flush().err(),
        };
        match error {
            None => Ok(()),
            Some(error) => Err(format!(
                "write {}: {error}; the capture ends after about {} frames",
                self.path.display(),
                state.frames
            )),
        }
    }
}
