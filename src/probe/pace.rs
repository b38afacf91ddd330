//! Pacing: so many frames a second, evenly, although the sending thread may lose the processor.
//!
//! Two schedules have to agree. The *mean* grants one frame every 1/rate seconds and lets a sender
//! that was held up make good for the last 100 ms. The *peak* grants frames 1.1 times as fast and
//! lets it make good for 0.9 ms only: what was missed is caught up gradually, and no 10 ms ever hold
//! more than 1.1 × (10 + 0.9) / 10 = 1.199 times their share.
#![forbid(unsafe_code)]

use crate::time::Instant;

/// How far back the mean rate is made good.
const MEAN_MEMORY_NS: u64 = 100_000_000;
/// How far back the peak rate is made good.
const PEAK_MEMORY_NS: u64 = 900_000;
/// The peak rate as a multiple of the mean rate: numerator and denominator.
const PEAK: (u64, u64) = (11, 10);
/// Beyond this a nanosecond would hold millions of frames; larger rates are taken as this one.
const MAX_RATE: u64 = 1_000_000_000_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Says when the next frame may be sent.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// Mean and peak; `None` is unlimited.
    schedules: Option<[Schedule; 2]>,
}

/// Grants one frame every `step` on the average, and remembers a delay for `memory_ns`.
///
/// Times are whole nanoseconds plus a fraction counted in `1 / denominator` ns: exact for every
/// rate, so nothing drifts.
#[derive(Clone, Debug)]
struct Schedule {
    next_ns: u64,
    next_fraction: u64,
    step_ns: u64,
    step_fraction: u64,
    denominator: u64,
    memory_ns: u64,
}

impl Schedule {
    /// Builds a schedule of `numerator / denominator` nanoseconds a frame.
    fn new(start: Instant, numerator: u64, denominator: u64, memory_ns: u64) -> Self {
        Schedule {
            next_ns: start.as_nanos(),
            next_fraction: 0,
            step_ns: numerator / denominator,
            step_fraction: numerator % denominator,
            denominator,
            memory_ns,
        }
    }

    fn ready_at(&self) -> u64 {
        self.next_ns.saturating_add(u64::from(self.next_fraction > 0))
    }

    fn take(&mut self, now_ns: u64) {
        let oldest = now_ns.saturating_sub(self.memory_ns);
        if self.next_ns < oldest {
            self.next_ns = oldest;
            self.next_fraction = 0;
        }
        self.next_ns = self.next_ns.saturating_add(self.step_ns);
        self.next_fraction += self.step_fraction;
        if self.next_fraction >= self.denominator {
            self.next_fraction -= self.denominator;
            self.next_ns = self.next_ns.saturating_add(1);
        }
    }
}

impl Pacer {
    /// Builds a pacer for `rate_pps` frames a second that grants the first one at `start`.
    ///
    /// `None` is unlimited; a rate of 0 never grants anything.
    pub fn new(rate_pps: Option<u64>, start: Instant) -> Self {
        let schedules = rate_pps.map(|rate| match rate.min(MAX_RATE) {
            0 => [1, 1].map(|step| Schedule::new(Instant::FAR_FUTURE, step, 1, 0)),
            rate => [
                Schedule::new(start, NS_PER_S, rate, MEAN_MEMORY_NS),
                Schedule::new(start, NS_PER_S * PEAK.1, rate * PEAK.0, PEAK_MEMORY_NS),
            ],
        });
        Pacer { schedules }
    }

    /// Returns the first instant from `now` on at which [`Pacer::take`] grants a frame.
    pub fn ready_at(&self, now: Instant) -> Instant {
        match &self.schedules {
            None => now,
            Some([mean, peak]) => {
                now.max(Instant::from_nanos(mean.ready_at().max(peak.ready_at())))
            }
        }
    }

    /// Takes the right to send one frame at `now`.
    ///
    /// # Errors
    /// The instant at which to ask again; nothing is then taken.
    #[inline]
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let ready_at = self.ready_at(now);
        if ready_at > now {
            return Err(ready_at);
        }
        for schedule in self.schedules.iter_mut().flatten() {
            schedule.take(now.as_nanos());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const START: Instant = Instant::from_nanos(5_000_000_123);
    const WINDOW: u64 = 10_000_000;

    /// Sends as fast as `pacer` allows for `seconds`; after each wait the thread comes back late by
    /// what `lateness` says. Returns when each frame was sent, in ns since `START`.
    fn send(rate: u64, seconds: u64, mut lateness: impl FnMut(u64) -> u64) -> Vec<u64> {
        let mut pacer = Pacer::new(Some(rate), START);
        let end = START + Duration::from_secs(seconds);
        let (mut now, mut sent) = (START, Vec::new());
        while now < end {
            match pacer.take(now) {
                Ok(()) => sent.push(now.as_nanos() - START.as_nanos()),
                Err(when) => {
                    assert!(when > now);
                    let since_start = when.as_nanos() - START.as_nanos();
                    now = when + Duration::from_nanos(lateness(since_start));
                }
            }
        }
        sent
    }

    /// The most frames in any 10 ms, wherever they begin.
    fn fullest_window(sent: &[u64]) -> usize {
        let mut first = 0;
        let mut fullest = 0;
        for (n, at) in sent.iter().enumerate() {
            while sent[first] + WINDOW <= *at {
                first += 1;
            }
            fullest = fullest.max(n + 1 - first);
        }
        fullest
    }

    #[test]
    fn the_mean_is_exact_at_every_rate() {
        for (rate, seconds) in [(1, 1_000), (7, 700), (1_000, 100), (20_000, 60), (1_000_000, 2)] {
            let sent = send(rate, seconds, |_| 0);
            assert_eq!(sent.len() as u64, rate * seconds, "{rate} pps");
            for (n, at) in sent.iter().enumerate() {
                // Frame n is due at n/rate seconds, rounded up to a whole nanosecond.
                let due = (n as u128 * u128::from(NS_PER_S)).div_ceil(u128::from(rate));
                assert_eq!(u128::from(*at), due, "{rate} pps, frame {n}");
            }
        }
    }

    #[test]
    fn nothing_drifts_over_a_week() {
        // 3 pps: no whole number of nanoseconds. One late wake-up every second in between.
        let week = 7 * 86_400;
        let sent = send(3, week, |at| if at % NS_PER_S < 1_000 { 40_000_000 } else { 0 });
        assert_eq!(sent.len() as u64, 3 * week);
    }

    #[test]
    fn late_wakeups_cost_neither_mean_nor_evenness() {
        for rate in [1_000, 20_000, 1_000_000] {
            let mut rng = fastrand::Rng::with_seed(rate);
            // Timer slack of up to 150 µs at each wait, and a stall of up to 8 ms now and then.
            let sent = send(rate, 10, |_| {
                if rng.u64(..2_000) == 0 { rng.u64(..8_000_000) } else { rng.u64(..150_000) }
            });
            let mean = sent.len() as f64 / (rate * 10) as f64;
            assert!((0.999..=1.0).contains(&mean), "{rate} pps: mean {mean}");
            let share = (rate * WINDOW / NS_PER_S) as f64;
            // A window may begin with a frame and end with one: hence one more.
            let fullest = (fullest_window(&sent) - 1) as f64 / share;
            assert!(fullest <= 1.2, "{rate} pps: {fullest} of a 10 ms share");
        }
    }

    #[test]
    fn a_stall_is_caught_up_at_the_peak_rate() {
        let rate = 20_000;
        let mut stalled = false;
        // One stall of 50 ms, in the middle of the first second.
        let sent = send(rate, 3, |at| {
            if at >= 500_000_000 && !stalled {
                stalled = true;
                50_000_000
            } else {
                0
            }
        });
        assert!(stalled);
        assert_eq!(sent.len() as u64, 3 * rate);
        assert!(fullest_window(&sent) <= 240);
        // 50 ms are made good at a tenth of the rate: half a second later all is as it was.
        let due = |n: usize| n as u64 * 50_000;
        assert!(sent.iter().enumerate().skip(22_000).all(|(n, at)| *at == due(n)));
        // Nothing but the 0.9 ms comes at once.
        let resumed = sent.iter().position(|at| *at >= 550_000_000).unwrap();
        let at_once = sent.iter().filter(|at| **at == sent[resumed]).count();
        assert!((20..=21).contains(&at_once), "{at_once}");
    }

    #[test]
    fn a_long_stall_is_forgotten_beyond_its_last_100_ms() {
        let mut pacer = Pacer::new(Some(20_000), START);
        assert_eq!(pacer.take(START), Ok(()));
        let mut now = START + Duration::from_secs(3_600);
        let (resumed, mut sent) = (now, 0u64);
        while now < resumed + Duration::from_secs(10) {
            match pacer.take(now) {
                Ok(()) => sent += 1,
                Err(when) => now = when,
            }
        }
        assert!((202_000..=202_001).contains(&sent), "{sent}");
    }

    #[test]
    fn a_refused_take_takes_nothing() {
        let mut pacer = Pacer::new(Some(1_000), START);
        assert_eq!(pacer.take(START), Ok(()));
        let next = START + Duration::from_millis(1);
        for _ in 0..5 {
            assert_eq!(pacer.take(START), Err(next));
        }
        assert_eq!(pacer.ready_at(START), next);
        assert_eq!(pacer.take(next), Ok(()));
        let late = next + Duration::from_secs(1);
        assert_eq!(pacer.ready_at(late), late);
    }

    #[test]
    fn without_a_rate_every_frame_goes_at_once() {
        let mut pacer = Pacer::new(None, START);
        assert!((0..100_000).all(|_| pacer.take(START).is_ok()));
        assert_eq!(pacer.ready_at(START), START);
        assert_eq!(pacer.ready_at(Instant::ZERO), Instant::ZERO);
    }

    #[test]
    fn extreme_rates_neither_panic_nor_divide_by_zero() {
        let mut never = Pacer::new(Some(0), START);
        assert_eq!(never.take(START), Err(Instant::FAR_FUTURE));
        let mut wild = Pacer::new(Some(u64::MAX), START);
        assert_eq!(wild.take(START), Ok(()));
        let next = START + Duration::from_nanos(1);
        assert_eq!(wild.take(START), Err(next));
        assert!((0..100_000).all(|_| wild.take(next).is_ok()));
    }
}
