//! The pcap file of a run: frames come from several threads, and one thread of its own writes them,
//! so that no disk holds up a probe.

use crate::io::RxFrame;
use crate::time::{Clock, Instant};
use crate::wire::LinkType;
use crate::wire::pcap::PcapWriter;
use crossbeam::channel::{self, RecvTimeoutError};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Frames, and octets of frames, that may wait to be written. What comes beyond is missing from the
/// file, and counted.
const MAX_WAITING: usize = 1 << 18;
const MAX_WAITING_OCTETS: usize = 64 << 20;
/// How soon the writing thread notices that no more frames come.
const TURN: Duration = Duration::from_millis(20);

/// Every probe and reply, in the order in which the threads came to hand them over.
pub(super) struct Capture {
    path: PathBuf,
    frames: channel::Sender<Framed>,
    waiting: channel::Receiver<Framed>,
    waiting_octets: AtomicUsize,
    missing: AtomicU64,
    closed: AtomicBool,
    file: Option<PcapWriter<BufWriter<File>>>,
}

/// A frame, what it starts with, and when it was sent or received.
struct Framed {
    at: Instant,
    link: LinkType,
    frame: Box<[u8]>,
}

impl Capture {
    /// Begins a file whose frames start with `link`.
    pub fn create(path: &Path, link: LinkType) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Capture::to(path, PcapWriter::new(file, link)?))
    }

    /// Goes on with a file whose frames start with `link`.
    pub fn append(path: &Path, link: LinkType) -> io::Result<Self> {
        let file = BufWriter::new(File::options().append(true).open(path)?);
        Ok(Capture::to(path, PcapWriter::go_on(file, link)))
    }

    fn to(path: &Path, pcap: PcapWriter<BufWriter<File>>) -> Self {
        let (frames, waiting) = channel::bounded(MAX_WAITING);
        Capture {
            path: path.to_owned(),
            frames,
            waiting,
            waiting_octets: AtomicUsize::new(0),
            missing: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            file: Some(pcap),
        }
    }

    /// Takes one frame that was received.
    pub fn received(&self, link: LinkType, frame: RxFrame<'_>) {
        self.frame(frame.at, link, frame.bytes.into());
    }

    /// Takes one frame that was sent or received at `at`. Never waits.
    pub fn frame(&self, at: Instant, link: LinkType, frame: Box<[u8]>) {
        let octets = frame.len();
        let waiting = self.waiting_octets.fetch_add(octets, Ordering::Relaxed);
        let has_room = waiting + octets <= MAX_WAITING_OCTETS;
        if !has_room || self.frames.try_send(Framed { at, link, frame }).is_err() {
            self.waiting_octets.fetch_sub(octets, Ordering::Relaxed);
            self.missing.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets [`write`](Self::write) end once it has written what waits.
    pub fn close(&self) {
        // Release: whoever sees it also sees the frames before it.
        self.closed.store(true, Ordering::Release);
    }

    /// Takes the file to write to, once.
    pub fn take_file(&mut self) -> Option<PcapWriter<BufWriter<File>>> {
        self.file.take()
    }

    /// Writes what is handed over until the capture is closed; says what was lost if it could not be
    /// written or came too fast.
    pub fn write(&self, mut pcap: PcapWriter<BufWriter<File>>) -> Result<(), String> {
        let mut written = 0u64;
        let mut error = None;
        loop {
            // First the flag, then the queue: what was handed over before it is then found there.
            let closed = self.closed.load(Ordering::Acquire);
            match self.waiting.recv_timeout(if closed { Duration::ZERO } else { TURN }) {
                Ok(Framed { at, link, frame }) => {
                    self.waiting_octets.fetch_sub(frame.len(), Ordering::Relaxed);
                    if error.is_some() {
                        continue;
                    }
                    let age = Clock.now().since(at).as_nanos() as u64;
                    let stamp = Clock.realtime_nanos().saturating_sub(age);
                    match pcap.frame_of(link, stamp, &frame) {
                        Ok(()) => written += 1,
                        // The rest is taken all the same, so that nobody counts it as missing.
                        Err(failed) => error = Some(failed),
                    }
                }
                Err(RecvTimeoutError::Timeout) if !closed => {}
                Err(_) => break,
            }
        }
        if let Some(error) = error.or_else(|| pcap.flush().err()) {
            let path = self.path.display();
            return Err(format!(
                "write {path}: {error}; the capture ends after about {written} frames"
            ));
        }
        match self.missing.load(Ordering::Relaxed) {
            0 => Ok(()),
            missing => Err(format!(
                "write {}: {missing} frames are missing from the capture: they came faster than \
                 they could be written; use a faster disk or a lower --rate",
                self.path.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::pcap::PcapReader;

    /// With nobody writing, memory stays bounded, nobody waits, and what is lost is told.
    #[test]
    fn frames_beyond_the_bound_are_counted_and_told() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let mut capture = Capture::create(file.path(), LinkType::Ethernet).expect("created");
        let frame = vec![0u8; 1 << 15];
        let fit = MAX_WAITING_OCTETS / frame.len();
        for _ in 0..fit + 7 {
            capture.frame(Clock.now(), LinkType::Ethernet, frame.as_slice().into());
        }
        capture.close();
        let pcap = capture.take_file().expect("not taken");
        let told = capture.write(pcap).expect_err("not all of it fitted");
        assert!(told.contains("7 frames are missing"), "{told}");
        let size = file.path().metadata().expect("a file").len() as usize;
        assert_eq!(size, 24 + fit * (16 + frame.len()));
        // There is room again.
        capture.frame(Clock.now(), LinkType::Ip, [0u8; 20].into());
        assert_eq!(capture.waiting_octets.load(Ordering::Relaxed), 20);
    }

    #[test]
    fn a_second_sweep_goes_on_where_the_first_has_left_off() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        for open in [Capture::create, Capture::append] {
            let mut capture = open(file.path(), LinkType::Ip).expect("opened");
            capture.frame(Clock.now(), LinkType::Ip, [0x45; 20].into());
            capture.close();
            let pcap = capture.take_file().expect("not taken");
            capture.write(pcap).expect("written");
        }
        let bytes = std::fs::read(file.path()).expect("readable");
        let frames = PcapReader::new(&bytes[..]).expect("a header").collect::<Result<Vec<_>, _>>();
        assert_eq!(frames.expect("whole").len(), 2);
    }

    #[test]
    fn a_full_disk_is_told_once() {
        let mut capture =
            Capture::create(Path::new("/dev/full"), LinkType::Ethernet).expect("opened");
        for _ in 0..2000 {
            capture.frame(Clock.now(), LinkType::Ethernet, [0u8; 100].into());
        }
        capture.close();
        let pcap = capture.take_file().expect("not taken");
        let told = capture.write(pcap).expect_err("the disk is full");
        assert!(told.contains("/dev/full") && told.contains("the capture ends after"), "{told}");
        assert_eq!(capture.waiting_octets.load(Ordering::Relaxed), 0);
    }
}
