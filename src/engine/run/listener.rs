//! One path's receiving end, and what it lets the senders know of how far it has heard.

use crate::engine::Control;
use crate::engine::capture::Capture;
use crate::io::{IoError, PathId, QueueCounts, Receive};
use crate::probe::receiver::{Post, Receiver, RxCounts};
use crossbeam::sync::Unparker;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// How long a receiver waits for a frame before it says again up to when it has heard everything.
const LISTEN: Duration = Duration::from_millis(2);

/// What the sender must know of a path's receiver before it believes silence.
#[derive(Debug)]
pub(super) struct Hearing {
    pub path: PathId,
    /// Every frame that came before this instant (ns) is in the queue by now.
    pub complete_until: AtomicU64,
    pub dropped: AtomicU64,
    /// How often the interface went down.
    pub outages: AtomicU64,
    pub failed: AtomicBool,
}

impl Hearing {
    pub fn new(path: PathId) -> Self {
        Hearing {
            path,
            complete_until: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            outages: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }
}

/// On the way out of a receiver, however it ends: nobody waits to hear more.
struct LastHeard<'a>(&'a Hearing);

impl Drop for LastHeard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::Release);
        }
        // Release: whoever sees it also sees that the path failed.
        self.0.complete_until.store(u64::MAX, Ordering::Release);
    }
}

/// Drives the receiving half of one path.
pub(super) struct Listener<'a> {
    pub receiver: Receiver,
    pub receive: Box<dyn Receive>,
    pub hearing: &'a Hearing,
    pub finished: &'a AtomicBool,
    pub senders: &'a [Unparker],
    pub post: &'a Post,
    pub control: &'a Control,
    pub capture: Option<&'a Capture>,
}

/// What a receiver has to say when it ends.
pub(super) struct Heard {
    pub counts: RxCounts,
    pub queue: Option<QueueCounts>,
    pub error: Option<IoError>,
}

impl Listener<'_> {
    /// Returns which queue it hears, if it hears only one.
    pub fn queue(&self) -> Option<u32> {
        self.receive.queue_counts().ok().flatten().map(|counts| counts.queue)
    }

    pub fn run(mut self) -> Heard {
        let error = self.listen_on();
        let (queue, unread) = match self.receive.queue_counts() {
            Ok(queue) => (queue, None),
            Err(error) => (None, Some(error)),
        };
        Heard { counts: *self.receiver.counts(), queue, error: error.or(unread) }
    }

    /// Listens until nobody wants replies any more, or receiving fails.
    fn listen_on(&mut self) -> Option<IoError> {
        let _last_heard = LastHeard(self.hearing);
        while !self.finished.load(Ordering::Acquire) {
            let Err(error) = self.listen() else { continue };
            tracing::warn!(%error, "replies not received");
            // Told once; frames come again when the interface does.
            if error.source.raw_os_error() == Some(libc::ENETDOWN) {
                self.hearing.outages.fetch_add(1, Ordering::Release);
                continue;
            }
            self.hearing.failed.store(true, Ordering::Release);
            return Some(error);
        }
        None
    }

    fn listen(&mut self) -> Result<(), IoError> {
        let Listener { receiver, receive, finished, senders, post, capture, .. } = self;
        let link = receiver.link();
        let before = receiver.counts().matched;
        // A sender is behind: wait for it rather than lose what was heard. The ring holds what comes
        // meanwhile, and says so if it cannot.
        let mut stuck = |heard| {
            let mut pending = Err(heard);
            while let Err(heard) = pending {
                if finished.load(Ordering::Acquire) {
                    break;
                }
                senders.iter().for_each(Unparker::unpark);
                thread::yield_now();
                pending = post.push(heard);
            }
        };
        let received = receive.receive(LISTEN, &mut |frame| {
            if let Some(capture) = capture {
                capture.received(link, frame);
            }
            receiver.take_in(frame, &mut stuck);
        });
        // Also if it failed, and before anything is said of how far was heard.
        receiver.settle(&mut stuck);
        let received = received?;
        // Drops before the instant: who believes the silence up to it must know of them.
        let stats = receive.stats()?;
        self.hearing.dropped.store(stats.dropped, Ordering::Release);
        self.hearing.complete_until.store(received.complete_until.as_nanos(), Ordering::Release);
        let matched = receiver.counts().matched - before;
        if matched > 0 {
            self.control.replies.fetch_add(matched, Ordering::Relaxed);
            for (index, sender) in senders.iter().enumerate() {
                if self.post.waiting(index) > 0 {
                    sender.unpark();
                }
            }
        }
        Ok(())
    }
}
