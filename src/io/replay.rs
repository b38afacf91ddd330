//! Sends frames out of memory faster than any socket can (`xdp/replay.bpf.c`): what receiving is measured
//! with.
#![forbid(unsafe_code)]

use super::IoError;
use super::guard::{chain, errno};
use aya::maps::{Array, MapData};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use std::error::Error;
use std::fmt;
use std::io;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/replay.bpf.o"));

/// `struct replay_frame` of `xdp/shared.h`.
type Words = [u64; 7];
/// Octets of a frame; shorter ones are padded.
pub const REPLAY_OCTETS: usize = size_of::<Words>();

/// How many frames leave before the receiver has its turn: a NAPI budget.
const AT_ONCE: u32 = 64;

/// Frames that leave through one interface, over and over.
pub struct Replay {
    programs: Ebpf,
    sent: Array<MapData, u32>,
    interface: String,
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("interface", &self.interface).finish_non_exhaustive()
    }
}

impl Replay {
    /// Loads `frames`, a power of two of them, to leave through the interface `ifindex`, whose name is
    /// used in messages. What is longer than [`REPLAY_OCTETS`] is cut.
    ///
    /// # Errors
    /// No CAP_BPF or CAP_NET_ADMIN, or the kernel's verifier refuses the program.
    pub fn load<'a>(
        ifindex: u32,
        interface: &str,
        frames: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, IoError> {
        let error = |cause: &(dyn Error + 'static)| io_error("load the replay", interface, cause);
        let broken = || error(&Errno::ENOENT);
        let count = u32::try_from(frames.len()).map_err(|_| error(&Errno::E2BIG))?.max(1);
        let mut programs = EbpfLoader::new()
            .map_max_entries("frames", count)
            .override_global("last_frame", &(count - 1), true)
            .override_global("out_ifindex", &ifindex, true)
            .load(OBJECT)
            .map_err(|cause| error(&cause))?;
        let map = programs.map_mut("frames").ok_or_else(broken)?;
        let mut entries: Array<_, Words> = Array::try_from(map).map_err(|cause| error(&cause))?;
        for (index, frame) in (0..).zip(frames) {
            let mut octets = [0; REPLAY_OCTETS];
            let len = frame.len().min(REPLAY_OCTETS);
            octets[..len].copy_from_slice(&frame[..len]);
            let (words, _) = octets.as_chunks::<8>();
            let words: Words = std::array::from_fn(|word| u64::from_ne_bytes(words[word]));
            entries.set(index, words, 0).map_err(|cause| error(&cause))?;
        }
        let program: &mut Xdp = programs
            .program_mut("replay")
            .and_then(|found| found.try_into().ok())
            .ok_or_else(broken)?;
        program.load().map_err(|cause| error(&cause))?;
        // It has nothing to do there: but a program that is attached anywhere need not be entered into
        // the kernel's dispatcher for every run, which waits for a grace period (bpf_prog_change_xdp).
        program.attach_to_if_index(ifindex, XdpMode::Driver).map_err(|cause| error(&cause))?;
        let sent = programs.take_map(".bss").ok_or_else(broken)?;
        let sent = Array::try_from(sent).map_err(|cause| error(&cause))?;
        Ok(Replay { programs, sent, interface: interface.to_owned() })
    }

    /// Sends `count` frames and returns how many that were; fewer if a signal came.
    ///
    /// # Errors
    /// The kernel cannot (before Linux 5.18), or the interface takes none.
    pub fn send(&mut self, count: u32) -> Result<u64, IoError> {
        let before = self.sent()?;
        let error =
            |cause: &(dyn Error + 'static)| io_error("replay frames", &self.interface, cause);
        let program = self.programs.program("replay").and_then(|found| found.try_into().ok());
        let program: &Xdp = program.ok_or_else(|| error(&Errno::ENOENT))?;
        let attrs = TestRunAttrs::new().xdp_live_frames(AT_ONCE);
        let frame = [0; REPLAY_OCTETS];
        let options =
            TestRunOptions { data_in: Some(&frame), repeat: count, attrs, ..TestRunOptions::new() };
        if let Err(cause) = program.test_run(options)
            && errno(&cause) != Some(Errno::EINTR)
        {
            return Err(error(&cause));
        }
        Ok(u64::from(self.sent()?.wrapping_sub(before)))
    }

    fn sent(&self) -> Result<u32, IoError> {
        self.sent
            .get(&0, 0)
            .map_err(|cause| io_error("count replayed frames", &self.interface, &cause))
    }
}

fn io_error(operation: &'static str, interface: &str, cause: &(dyn Error + 'static)) -> IoError {
    let source = match errno(cause) {
        Some(errno) => errno.into(),
        None => io::Error::other(chain(cause)),
    };
    let remedy = "needs Linux 5.18, CAP_BPF and CAP_NET_ADMIN: try sudo";
    IoError { operation, object: interface.to_owned(), source, remedy }
}
