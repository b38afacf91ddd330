//! What changed from one audit to the next.
#![forbid(unsafe_code)]

use super::Outcome;
use crate::probe::classify::State;
use crate::report::{Summary, Tally};
use std::collections::HashMap;

/// How a connection differs from what was said of it in the round before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It was not there.
    New,
    /// Its peer's state was another one.
    State(State),
    /// It is no longer there.
    Gone,
}

impl Change {
    /// Returns the name used in records.
    pub const fn name(self) -> &'static str {
        match self {
            Change::New => "new",
            Change::State(_) => "state",
            Change::Gone => "gone",
        }
    }
}

/// Remembers what was said last of every connection. No other socket of this boot has the same
/// cookie, in whichever namespace.
#[derive(Debug, Default)]
pub struct Changes {
    known: HashMap<u64, (u32, Outcome)>,
    round: u32,
}

impl Changes {
    /// Begins a round; the first is 1.
    pub fn begin(&mut self) {
        self.round += 1;
    }

    /// Takes what is said in this round, and returns how it differs from the last; `None` if it does
    /// not. In the first round everything is new.
    ///
    /// A correction is compared with what it corrects.
    pub fn take(&mut self, outcome: &Outcome) -> Option<Change> {
        let cookie = outcome.listed.connection.cookie;
        match self.known.insert(cookie, (self.round, outcome.clone())) {
            None => Some(Change::New),
            Some((_, before)) if before.verdict.state == outcome.verdict.state => None,
            Some((_, before)) => Some(Change::State(before.verdict.state)),
        }
    }

    /// Returns the summary of all rounds with every connection that is known counted by what was said of
    /// it last: a round that was interrupted has come to some of them only.
    pub fn summarise(&self, rounds: Summary) -> Summary {
        let mut summary = Summary {
            peers: 0,
            states: Default::default(),
            reasons: Default::default(),
            audit: Some(Tally::default()),
            ..rounds
        };
        self.known.values().for_each(|(_, outcome)| outcome.count_in(&mut summary));
        summary
    }

    /// Ends a round in which everything was told, and returns what is no longer there, as it was seen
    /// last.
    pub fn gone(&mut self) -> Vec<Outcome> {
        let round = self.round;
        let gone = self.known.extract_if(|_, (seen, _)| *seen != round);
        let mut gone: Vec<_> = gone.map(|(_, (_, outcome))| outcome).collect();
        gone.sort_by_key(|outcome| outcome.listed.connection.cookie);
        gone
    }
}
