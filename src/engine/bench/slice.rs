//! A few dozen milliseconds of one loop.
#![forbid(unsafe_code)]

use crate::engine::EngineError;
use crate::io::cpu;
use crate::time::Clock;
use std::time::Duration;

/// How long a slice lasts: long beside what its ends cost, short beside what else the machine does.
pub const SLICE: Duration = Duration::from_millis(40);

/// What a slice has come to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Slice {
    /// Frames sent or received.
    pub frames: u64,
    /// How long it took.
    pub wall: Duration,
    /// How much of that this thread has run.
    pub cpu: Duration,
    /// How much of that something else had the CPU, while this thread could have run.
    pub waited: Duration,
}

impl Slice {
    /// Repeats `turn`, which returns how many frames it moved, for a slice's time.
    ///
    /// # Errors
    /// What `turn` says.
    pub fn of(mut turn: impl FnMut() -> Result<u64, EngineError>) -> Result<Self, EngineError> {
        let (waited, cpu, begun) = (cpu::waited(), Clock.thread_cpu(), Clock.now());
        let mut frames = 0;
        let wall = loop {
            frames += turn()?;
            let wall = Clock.now().since(begun);
            if wall >= SLICE {
                break wall;
            }
        };
        let cpu = Clock.thread_cpu().saturating_sub(cpu);
        Ok(Slice { frames, wall, cpu, waited: cpu::waited().saturating_sub(waited) })
    }

    /// Returns frames per second of the time in which this thread had the CPU or did not want it.
    pub fn pps(&self) -> f64 {
        let seconds = self.wall.saturating_sub(self.waited).as_secs_f64();
        self.frames as f64 / seconds.max(f64::MIN_POSITIVE)
    }

    /// Returns nanoseconds of CPU per frame.
    pub fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / (self.frames as f64).max(1.0)
    }
}
