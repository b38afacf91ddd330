//! Where results go: records leave whole, in batches, and none is lost unsaid.
#![forbid(unsafe_code)]

use crate::probe::classify::State;
use crate::report::{Layout, Record, Summary};
use indicatif::ProgressBar;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A batch is written when it has grown to this many octets, if not before.
const BATCH: usize = 64 * 1024;

/// A pipe that polls writable takes this many octets without blocking (PIPE_BUF, pipe(7)).
const PIPE_BUF: usize = 4096;

/// How long, in turns of [`TURN_MS`], a reader that does not read is waited for once the run has
/// been interrupted.
const TURNS_AFTER_INTERRUPT: u32 = 20;
const TURN_MS: u8 = 100;

/// Where records are written to.
pub trait Sink: Write + Send {
    /// Says whether nobody will ever read what is written from now on, without writing anything.
    fn is_closed(&self) -> bool;
}

/// A file, pipe or terminal. A reader that stands still is waited for, but not once the user wants
/// to leave.
#[derive(Debug)]
pub struct Destination {
    file: File,
    is_regular: bool,
    /// Named with -o: ours to empty.
    is_named: bool,
    interrupted: Arc<AtomicBool>,
}

impl Destination {
    /// Opens `path`, or standard output. What a file holds is kept until [`Destination::clear`].
    ///
    /// # Errors
    /// The file cannot be created or opened for writing.
    pub fn open(path: Option<&Path>, interrupted: Arc<AtomicBool>) -> io::Result<Destination> {
        let file = match path {
            Some(path) => OpenOptions::new().write(true).create(true).truncate(false).open(path)?,
            None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        };
        let is_regular = file.metadata()?.is_file();
        Ok(Destination { file, is_regular, is_named: path.is_some(), interrupted })
    }

    /// Empties a file that was named with -o, now that there is something to put into it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn clear(&self) -> io::Result<()> {
        // Standard output may be a file that already holds something of somebody else's.
        if self.is_regular && self.is_named { self.file.set_len(0) } else { Ok(()) }
    }

    fn wait(&self) -> io::Result<()> {
        let mut turns = 0;
        loop {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::from(TURN_MS)) {
                Ok(0) if self.interrupted.load(Ordering::Relaxed) => turns += 1,
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
            if turns == TURNS_AFTER_INTERRUPT {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "its reader stands still"));
            }
        }
    }
}

impl Sink for Destination {
    fn is_closed(&self) -> bool {
        // Nothing to wait for: these two are always told (poll(2)). A pipe without a reader has the
        // first, a socket or terminal without its other end the second.
        let closed = PollFlags::POLLERR | PollFlags::POLLHUP;
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0].revents().is_some_and(|told| told.intersects(closed))
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_regular {
            return self.file.write(bytes);
        }
        self.wait()?;
        self.file.write(&bytes[..bytes.len().min(PIPE_BUF)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// How writing went.
#[derive(Debug)]
pub enum Written {
    /// Everything was taken.
    InFull,
    /// The reader went away: its right.
    Closed,
    /// Some of it was not taken.
    InPart {
        /// Records written.
        records: u64,
        /// Records that were to be written.
        of: u64,
        /// What stopped it.
        error: io::Error,
    },
}

/// Takes records and hands them on in batches.
pub struct Output {
    sink: Box<dyn Sink>,
    layout: Box<dyn Layout>,
    /// Steps aside while text goes to the terminal.
    screen: ProgressBar,
    /// States to write, or all if empty.
    only: Vec<State>,
    pending: Vec<u8>,
    /// Where in `pending` each record ends.
    ends: Vec<usize>,
    due: u64,
    written: u64,
    error: Option<io::Error>,
}

impl Output {
    /// Writes to `sink` by way of `layout`, beginning with its header.
    pub fn new(
        sink: Box<dyn Sink>,
        layout: Box<dyn Layout>,
        screen: ProgressBar,
        only: Vec<State>,
    ) -> Output {
        let mut output = Output {
            sink,
            layout,
            screen,
            only,
            pending: Vec::new(),
            ends: Vec::new(),
            due: 0,
            written: 0,
            error: None,
        };
        output.error = output.layout.header(&mut output.pending).err();
        output
    }

    /// Takes one record. A correction or a change is always written: the record that it overturns may
    /// have been.
    pub fn record(&mut self, record: &Record<'_>) {
        let verdict = record.verdict;
        let is_update = verdict.correction || record.is_change();
        if !(self.only.is_empty() || is_update || self.only.contains(&verdict.state)) {
            return;
        }
        self.due += 1;
        if self.error.is_some() {
            return;
        }
        let before = self.pending.len();
        match self.layout.record(record, &mut self.pending) {
            // Held back to be sorted.
            Ok(()) if self.pending.len() == before => {}
            Ok(()) => self.ends.push(self.pending.len()),
            Err(error) => self.error = Some(error),
        }
        if self.pending.len() >= BATCH {
            self.flush();
        }
    }

    /// Takes what the layout has held back so far, and writes it.
    pub fn end_round(&mut self) {
        if self.error.is_none() {
            self.error = self.layout.rest(&mut self.pending, &mut self.ends).err();
        }
        self.flush();
    }

    /// Writes what has been taken; if that is nothing, looks whether somebody still reads. After a
    /// failure nothing more is written: half a record in the middle would spoil the rest.
    pub fn flush(&mut self) {
        if self.error.is_some() {
            return;
        }
        if self.pending.is_empty() {
            self.error = self.sink.is_closed().then(|| io::ErrorKind::BrokenPipe.into());
            return;
        }
        let (sink, pending) = (&mut self.sink, &self.pending);
        let mut taken = 0;
        let result = self.screen.suspend(|| {
            while taken < pending.len() {
                match sink.write(&pending[taken..]) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(octets) => taken += octets,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            sink.flush()
        });
        self.written += self.ends.partition_point(|end| *end <= taken) as u64;
        self.error = result.err();
        self.pending.clear();
        self.ends.clear();
    }

    /// Says whether the reader went away.
    pub fn is_closed(&self) -> bool {
        self.error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Says whether nothing can be written any more, whatever the reason.
    pub fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    /// Writes what is left, with the summary if the run came to one.
    pub fn finish(mut self, summary: Option<&Summary>) -> Written {
        self.end_round();
        if self.error.is_none()
            && let Some(summary) = summary
        {
            self.error = self.layout.summary(summary, &mut self.pending).err();
        }
        self.flush();
        match self.error {
            None => Written::InFull,
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Written::Closed,
            Some(error) => Written::InPart { records: self.written, of: self.due, error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::session::tests::verdict;
    use crate::report::Csv;
    use std::os::fd::OwnedFd;
    use std::sync::Mutex;

    /// Takes `room` octets, a few at a time, then fails.
    struct Disk {
        content: Arc<Mutex<Vec<u8>>>,
        room: usize,
        error: io::ErrorKind,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let octets = bytes.len().min(self.room).min(7);
            if octets == 0 {
                return Err(self.error.into());
            }
            self.room -= octets;
            self.content.lock().expect("no panic").extend_from_slice(&bytes[..octets]);
            Ok(octets)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Disk {
        fn is_closed(&self) -> bool {
            false
        }
    }

    fn output(room: usize, error: io::ErrorKind, only: &[State]) -> (Output, Arc<Mutex<Vec<u8>>>) {
        let content = Arc::new(Mutex::new(Vec::new()));
        let disk = Disk { content: Arc::clone(&content), room, error };
        (
            Output::new(
                Box::new(disk),
                Box::new(Csv::default()),
                ProgressBar::hidden(),
                only.to_vec(),
            ),
            content,
        )
    }

    fn take(output: &mut Output, states: &[State]) {
        for (index, state) in states.iter().enumerate() {
            let verdict = verdict(index as u32, *state);
            output.record(&Record { verdict: &verdict, name: None, label: None, connection: None });
        }
    }

    #[test]
    fn full_disk_is_counted_in_whole_records() {
        for room in 0..2000 {
            let (mut output, content) = output(room, io::ErrorKind::StorageFull, &[]);
            take(&mut output, &[State::Alive; 10]);
            output.flush();
            take(&mut output, &[State::Down; 3]);
            let written = output.finish(None);
            let content = content.lock().expect("no panic");
            let lines = content.iter().filter(|octet| **octet == b'\n').count() as u64;
            match written {
                Written::InFull => assert_eq!(lines, 14),
                Written::InPart { records, of, .. } => {
                    assert_eq!((content.len(), of), (room, 13));
                    assert_eq!(records, lines.saturating_sub(1));
                }
                Written::Closed => panic!("the disk is full"),
            }
        }
    }

    #[test]
    fn closed_pipe_is_told_apart() {
        let (mut output, _) = output(100, io::ErrorKind::BrokenPipe, &[]);
        take(&mut output, &[State::Alive; 10]);
        assert!(!output.is_closed());
        output.flush();
        assert!(output.is_closed());
        assert!(matches!(output.finish(None), Written::Closed));
    }

    #[test]
    fn a_reader_that_goes_away_is_noticed_with_nothing_to_write() {
        let (pipe_end, pipe) = io::pipe().expect("a pipe");
        let (socket_end, socket) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let ends: [(Box<dyn Send>, OwnedFd); 2] =
            [(Box::new(pipe_end), pipe.into()), (Box::new(socket_end), socket.into())];
        for (end, writer) in ends {
            let file = File::from(writer);
            let (is_regular, is_named, interrupted) = (false, false, Arc::default());
            let sink = Destination { file, is_regular, is_named, interrupted };
            let layout = Box::new(crate::report::Ndjson);
            let mut output = Output::new(Box::new(sink), layout, ProgressBar::hidden(), Vec::new());
            output.flush();
            assert!(!output.is_closed(), "somebody may still read");
            drop(end);
            output.flush();
            assert!(output.is_closed() && matches!(output.finish(None), Written::Closed));
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        let file = Destination::open(Some(file.path()), Arc::default()).expect("opened");
        assert!(!file.is_closed(), "a file takes everything");
    }

    #[test]
    fn only_filters_rows_but_never_corrections() {
        let (mut output, content) = output(10_000, io::ErrorKind::StorageFull, &[State::Down]);
        take(&mut output, &[State::Alive, State::Down, State::Rebooted]);
        let mut late = verdict(1, State::Alive);
        late.correction = true;
        output.record(&Record { verdict: &late, name: None, label: None, connection: None });
        assert!(matches!(output.finish(None), Written::InFull));
        let content = content.lock().expect("no panic");
        let text = std::str::from_utf8(&content).expect("UTF-8");
        let types: Vec<&str> = text.lines().filter_map(|line| line.split(',').next()).collect();
        assert_eq!(types, ["type", "peer", "correction"]);
    }

    #[test]
    fn batches_go_out_unasked() {
        let (mut output, content) = output(usize::MAX, io::ErrorKind::StorageFull, &[]);
        take(&mut output, &vec![State::Alive; 2000]);
        assert!(content.lock().expect("no panic").len() >= BATCH);
    }

    #[test]
    fn interrupted_run_does_not_wait_for_a_reader_that_stands_still() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let interrupted = Arc::new(AtomicBool::new(true));
        let file = File::from(OwnedFd::from(writer));
        let mut destination = Destination { file, is_regular: false, is_named: false, interrupted };
        let error = destination.write_all(&vec![b'x'; 1 << 20]).expect_err("the pipe is full");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(reader);
        let error = destination.write_all(b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn earlier_results_are_kept_until_there_are_new_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("results");
        std::fs::write(&path, "earlier").expect("written");
        let mut destination = Destination::open(Some(&path), Arc::default()).expect("opened");
        assert_eq!(std::fs::read(&path).expect("read"), b"earlier");
        destination.clear().expect("cleared");
        destination.write_all(b"new").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
    }
}
