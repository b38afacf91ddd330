//! One direction of the link: what is lost, how late the rest arrives, and what arrives twice.

use super::config::{Burst, Impairment};
use std::time::Duration;

/// The state of one direction.
pub(super) struct Direction {
    rng: fastrand::Rng,
    /// Where the Gilbert–Elliott chain stands.
    bad: bool,
}

/// When a frame arrives, counted from when it was sent: never, once or twice.
pub(super) type Arrivals = [Option<Duration>; 2];

impl Direction {
    pub(super) fn new(seed: u64) -> Self {
        Direction { rng: fastrand::Rng::with_seed(seed), bad: false }
    }

    /// Sends one frame.
    pub(super) fn send(&mut self, imp: &Impairment) -> Arrivals {
        // Both are drawn for each frame, so that the chain does not depend on independent losses.
        let independent = self.happens(imp.loss);
        let in_burst = imp.burst.is_some_and(|burst| self.step(&burst));
        if independent || in_burst {
            return [None, None];
        }
        let first = self.delay(imp);
        let second = self.happens(imp.duplicate).then(|| self.delay(imp));
        [Some(first), second]
    }

    fn step(&mut self, burst: &Burst) -> bool {
        let turn = if self.bad { burst.to_good } else { burst.to_bad };
        self.bad ^= self.happens(turn);
        self.happens(if self.bad { burst.loss_bad } else { burst.loss_good })
    }

    fn delay(&mut self, imp: &Impairment) -> Duration {
        let mut delay = Duration::from_micros(imp.delay_us);
        if imp.jitter_us > 0 {
            delay += Duration::from_nanos(self.rng.u64(..=imp.jitter_us.saturating_mul(1_000)));
        }
        if self.happens(imp.reorder) {
            delay += Duration::from_micros(imp.reorder_us);
        }
        delay
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: usize = 200_000;

    fn send_all(imp: &Impairment) -> Vec<Arrivals> {
        let mut direction = Direction::new(3);
        (0..FRAMES).map(|_| direction.send(imp)).collect()
    }

    fn share(arrivals: &[Arrivals], is: impl Fn(&Arrivals) -> bool) -> f64 {
        arrivals.iter().filter(|one| is(one)).count() as f64 / arrivals.len() as f64
    }

    #[test]
    fn a_perfect_link_only_delays() {
        let sent = send_all(&Impairment { delay_us: 250, ..Impairment::default() });
        assert!(sent.iter().all(|one| *one == [Some(Duration::from_micros(250)), None]));
    }

    #[test]
    fn independent_loss_is_as_frequent_as_asked_and_independent() {
        let sent = send_all(&Impairment { loss: 0.05, ..Impairment::default() });
        let lost = |one: &Arrivals| one[0].is_none();
        let sigma = (0.05 * 0.95 / FRAMES as f64).sqrt();
        assert!((share(&sent, lost) - 0.05).abs() < 3.0 * sigma);
        let pairs = sent.windows(2).filter(|pair| lost(&pair[0]) && lost(&pair[1])).count() as f64;
        let expected = 0.0025 * FRAMES as f64;
        assert!((pairs - expected).abs() < 4.0 * expected.sqrt());
    }

    #[test]
    fn bursts_have_the_rate_and_length_of_the_chain() {
        let burst = Burst { to_bad: 0.01, to_good: 0.2, loss_bad: 1.0, loss_good: 0.0 };
        let sent = send_all(&Impairment { burst: Some(burst), ..Impairment::default() });
        let lost: Vec<bool> = sent.iter().map(|one| one[0].is_none()).collect();
        let losses = lost.iter().filter(|lost| **lost).count() as f64;
        let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
        let rate = losses / FRAMES as f64;
        assert!((rate - 0.01 / 0.21).abs() < 0.005, "{rate}");
        assert!((losses / bursts - 5.0).abs() < 0.5, "{}", losses / bursts);
    }

    #[test]
    fn jitter_reordering_and_duplication_stay_within_their_bounds() {
        let imp = Impairment {
            delay_us: 100,
            jitter_us: 50,
            reorder: 0.1,
            reorder_us: 1_000,
            duplicate: 0.02,
            ..Impairment::default()
        };
        let sent = send_all(&imp);
        let late = Duration::from_micros(1_100);
        assert!((share(&sent, |one| one[0] >= Some(late)) - 0.1).abs() < 0.005);
        assert!((share(&sent, |one| one[1].is_some()) - 0.02).abs() < 0.002);
        for delay in sent.iter().flatten().flatten() {
            let held = if *delay >= late { Duration::from_micros(1_000) } else { Duration::ZERO };
            assert!((100..=150).contains(&(*delay - held).as_micros()), "{delay:?}");
        }
    }
}
