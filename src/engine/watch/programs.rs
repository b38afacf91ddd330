//! What becomes of our XDP programs, and of the queues below them, while a sweep runs.

use super::{HostEvent, trouble};
use crate::engine::Control;
use crate::io::facts::xdp_programs;
use crate::io::xdp::{Attachment, Redirect, Standing, queues_of};
use crate::io::{IoError, PathId};
use crate::probe::evidence::Seen;
use crate::probe::health::Scope;
use crate::time::{Clock, Instant};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks: the kernel tells nobody when a bpf_link is detached. Shorter than any interval
/// between probes, so that silence is not yet believed when it is noticed.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The programs of a sweep.
#[derive(Debug, Default)]
pub(super) struct Programs(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    path: PathId,
    attachment: Arc<Attachment>,
    queues: Option<u32>,
    fate: Fate,
}

/// What was last told of a program, as far as it matters to who listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Answers come by AF_XDP.
    Attached,
    /// They come by the AF_PACKET socket beside.
    Detached,
    /// The interface is gone, which is told as such.
    Gone,
    /// Another program has them first, and may keep them.
    Foreign(u32),
    /// The kernel does not say.
    Unknown,
}

impl Fate {
    /// Says whether answers may be lost for as long as it lasts.
    fn is_deaf(self) -> bool {
        matches!(self, Fate::Foreign(_) | Fate::Unknown)
    }
}

impl Programs {
    /// Watches the programs that are attached, each on the interface of one of `egress`.
    pub fn new(redirects: &[Redirect], egress: &[(PathId, u32)]) -> Self {
        let watched = redirects.iter().filter_map(|redirect| {
            let attachment = redirect.attachment()?;
            let ifindex = attachment.ifindex();
            let &(path, _) = egress.iter().find(|(_, index)| *index == ifindex)?;
            let queues = queues_of(ifindex).ok();
            Some(Watched { path, attachment, queues, fate: Fate::Attached })
        });
        Programs(watched.collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Looks at all of them, and tells of what has changed.
    pub fn look(&mut self, control: &Control) -> Vec<HostEvent> {
        let mut events = Vec::new();
        for watched in &mut self.0 {
            watched.look_at_program(control, &mut events);
            watched.look_at_queues(control, &mut events);
        }
        events
    }
}

impl Watched {
    fn look_at_program(&mut self, control: &Control, events: &mut Vec<HostEvent>) {
        let found = self.find();
        let fate = found.as_ref().copied().unwrap_or(Fate::Unknown);
        let scope = Scope::Path(self.path);
        if fate.is_deaf() {
            // Each time: other faults of the same kind end, and must not end this one.
            events.push(trouble(scope, Seen::ObserverFault, Instant::FAR_FUTURE));
        }
        let before = std::mem::replace(&mut self.fate, fate);
        if fate == before || before == Fate::Gone {
            return;
        }
        if !fate.is_deaf() {
            events.push(trouble(scope, Seen::ObserverFault, Clock.now()));
        }
        let interface = self.attachment.interface();
        control.notices.push(match (found, before) {
            (Err(error), _) => format!("{error}; while it lasts, silence on the path proves nothing"),
            (Ok(Fate::Gone), _) => return,
            (Ok(Fate::Attached), _) => format!(
                "{interface}: our XDP program is there again; silence up to now proves nothing"
            ),
            (Ok(Fate::Foreign(program)), _) => format!(
                "{interface}: XDP program {program}, not ours, is attached there now and may keep \
                 answers from us: until it is gone, silence proves nothing (see: bpftool net show \
                 dev {interface})"
            ),
            (Ok(Fate::Detached), Fate::Foreign(_)) => format!(
                "{interface}: the other XDP program is gone; answers are heard by the AF_PACKET \
                 socket, silence up to now proves nothing"
            ),
            (Ok(_), _) => format!(
                "{interface}: our XDP program was detached by someone else; from now on answers are \
                 heard by the AF_PACKET socket, the guard keeps them from this host's kernel, and \
                 silence up to now proves nothing"
            ),
        });
    }

    fn find(&self) -> Result<Fate, IoError> {
        match self.attachment.standing()? {
            Standing::Attached => Ok(Fate::Attached),
            Standing::Replaced(program) => Ok(Fate::Foreign(program)),
            Standing::Detached => match xdp_programs(self.attachment.ifindex()) {
                Ok(programs) => Ok(match programs.first() {
                    None => Fate::Detached,
                    Some(&(_, program)) => Fate::Foreign(program),
                }),
                Err(error) if error.is_of_link() => Ok(Fate::Gone),
                Err(error) => Err(error),
            },
        }
    }

    fn look_at_queues(&mut self, control: &Control, events: &mut Vec<HostEvent>) {
        // An interface that is gone has none.
        let Ok(now) = queues_of(self.attachment.ifindex()) else { return };
        let Some(before) = self.queues.replace(now).filter(|&before| before != now) else { return };
        events.push(trouble(Scope::Path(self.path), Seen::ObserverFault, Clock.now()));
        control.notices.push(format!(
            "{}: has {now} queues now instead of {before}: answers on queues without an AF_XDP \
             socket are heard by the AF_PACKET socket; silence up to now proves nothing",
            self.attachment.interface()
        ));
    }
}
