//! Time: instants that the core is given, and the only place that reads the OS clock.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point on a monotonic time line, in nanoseconds since an arbitrary start.
///
/// On Linux the start is that of CLOCK_MONOTONIC; in a simulation it is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Instant(u64);

impl Instant {
    /// The start of the time line.
    pub const ZERO: Instant = Instant(0);
    /// Later than every other instant.
    pub const FAR_FUTURE: Instant = Instant(u64::MAX);

    /// Builds an instant from nanoseconds since the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Instant(nanos)
    }

    /// Returns the nanoseconds since the start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time since `earlier`, zero if `earlier` is later.
    pub const fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, span: Duration) -> Instant {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, span: Duration) -> Instant {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_sub(nanos))
    }
}

#[cfg(feature = "os")]
pub use os::Clock;

#[cfg(feature = "os")]
mod os {
    use super::Instant;
    use nix::time::{ClockId, clock_getres, clock_gettime};
    use std::time::Duration;

    fn read(clock: ClockId) -> u64 {
        // Both clocks always exist on Linux; a kernel without them cannot run this program.
        clock_gettime(clock).map_or(0, |ts| {
            (ts.tv_sec() as u64).saturating_mul(1_000_000_000) + ts.tv_nsec() as u64
        })
    }

    /// The OS clock.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Clock;

    impl Clock {
        /// Reads CLOCK_MONOTONIC.
        pub fn now(&self) -> Instant {
            Instant::from_nanos(read(ClockId::CLOCK_MONOTONIC))
        }

        /// Reads how long the machine has been suspended since it was started: CLOCK_BOOTTIME −
        /// CLOCK_MONOTONIC. Two readings differ by less than a microsecond or so unless it was.
        pub fn suspended(&self) -> Duration {
            let boottime = read(ClockId::CLOCK_BOOTTIME);
            Duration::from_nanos(boottime.saturating_sub(read(ClockId::CLOCK_MONOTONIC)))
        }

        /// Returns the length of a tick of the kernel (1 s / CONFIG_HZ), the unit of its `jiffies`.
        ///
        /// It is the resolution of CLOCK_MONOTONIC_COARSE (`posix_get_coarse_res`,
        /// kernel/time/posix-timers.c).
        pub fn tick(&self) -> Duration {
            // It always exists, as above; most kernels have 250 ticks a second.
            clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
                .map_or(Duration::from_millis(4), Duration::from)
        }

        /// Reads CLOCK_REALTIME as nanoseconds since 1970, for time stamps that leave the program.
        pub fn realtime_nanos(&self) -> u64 {
            read(ClockId::CLOCK_REALTIME)
        }

        /// Reads how long this thread has run on a CPU, in the kernel too (CLOCK_THREAD_CPUTIME_ID).
        pub fn thread_cpu(&self) -> Duration {
            Duration::from_nanos(read(ClockId::CLOCK_THREAD_CPUTIME_ID))
        }

        /// Blocks this thread for `span`.
        #[allow(clippy::disallowed_methods)]
        pub fn sleep(&self, span: Duration) {
            std::thread::sleep(span);
        }
    }
}
