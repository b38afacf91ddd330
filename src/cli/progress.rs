//! Progress on standard error.
#![forbid(unsafe_code)]

use crate::engine::Control;
use crate::probe::classify::State;
use crate::time::{Clock, Instant};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal};
use std::sync::atomic::Ordering;

const TEMPLATE: &str =
    "{percent:>3}% of {human_len} peers, about {eta} left, {prefix}\n     {wide_msg}";

/// Shows how far a sweep has come.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    clock: Clock,
    last: Instant,
    last_sent: u64,
}

impl Progress {
    /// Shows progress on standard error if `wanted` and that is a terminal.
    pub fn new(peers: u64, wanted: bool) -> Progress {
        let clock = Clock;
        let bar = if wanted && io::stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(peers), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        Progress { bar, clock, last: clock.now(), last_sent: 0 }
    }

    /// Returns what must be suspended while text goes to the same terminal.
    pub fn screen(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Shows the counters as they are now.
    pub fn update(&mut self, control: &Control) {
        if self.bar.is_hidden() {
            return;
        }
        let now = self.clock.now();
        let sent = control.sent.load(Ordering::Relaxed);
        let seconds = now.since(self.last).as_secs_f64();
        let rate = (sent - self.last_sent) as f64 / seconds.max(f64::MIN_POSITIVE);
        (self.last, self.last_sent) = (now, sent);
        let states: Vec<u64> =
            control.states.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let replies = control.replies.load(Ordering::Relaxed);
        self.bar.set_prefix(traffic(sent, rate as u64, replies));
        self.bar.set_message(by_state(&states));
        self.bar.set_position(states.iter().sum());
    }

    /// Takes the progress off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn traffic(sent: u64, rate: u64, replies: u64) -> String {
    let [sent, rate, replies] = [sent, rate, replies].map(HumanCount);
    format!("sent {sent} ({rate}/s), replies {replies}")
}

fn by_state(states: &[u64]) -> String {
    let counts = State::ALL.iter().zip(states);
    let counts: Vec<String> =
        counts.map(|(state, peers)| format!("{} {}", state.name(), HumanCount(*peers))).collect();
    counts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_is_named() {
        assert_eq!(traffic(65_536, 9_998, 2048), "sent 65,536 (9,998/s), replies 2,048");
        assert_eq!(
            by_state(&[1024, 3, 2, 1, 0]),
            "alive 1,024, down 3, rebooted 2, unreachable 1, undetermined 0"
        );
    }
}
