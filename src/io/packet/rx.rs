//! Receiving: frames from a TPACKET_V3 ring, behind a classic BPF filter.

use super::Socket;
use super::block::Frames;
use super::filter::{ElsewhereSpec, FilterSpec};
use super::ring::Ring;
use crate::io::{IoError, Receive, Received, RxFrame, RxStats};
use crate::time::{Clock, Instant};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::SockType;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How long a frame may be on its way from the interrupt into the ring: a softirq that is put off
/// to ksoftirqd waits for a time slice, a tick of 4 ms at HZ=250.
const SOFTIRQ_MARGIN: Duration = Duration::from_millis(4);

/// Between two calls CLOCK_REALTIME and CLOCK_MONOTONIC drift apart by less than this unless
/// someone sets the clock (NTP slews by at most 0.5 ms a second).
const CLOCK_STEP_NS: u64 = 1_000_000;

/// How the receive ring is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxOptions {
    /// Octets of locked kernel memory; less is taken if memory is short, down to 1 MiB.
    pub ring_octets: usize,
    /// After how many milliseconds the kernel hands over a block that is not full: the latency of a
    /// lone frame. Each such block is spent on the few frames in it, so that the ring outlasts a
    /// receiver that is stopped for (number of blocks) × this.
    pub retire_ms: u32,
}

impl Default for RxOptions {
    /// 16 MiB and 2 ms: 128 blocks, a quarter of a second of trickle, or about 115,000 replies at
    /// once.
    fn default() -> Self {
        Self { ring_octets: 16 << 20, retire_ms: 2 }
    }
}

/// Receives frames of one interface by AF_PACKET.
///
/// An 802.1Q tag that the kernel has stripped (TP_STATUS_VLAN_VALID) is not put back: such frames
/// look untagged. Frames that this host sends are not seen.
#[derive(Debug)]
pub struct PacketRx {
    // First, so that the ring is unmapped before its socket closes.
    ring: Ring,
    socket: Socket,
    stats: RxStats,
    clock: Clock,
    stamps: Stamps,
    complete_until: Instant,
}

/// Turns the kernel's stamps, which are of CLOCK_REALTIME, into instants of our time line, whatever
/// that clock is set to meanwhile.
#[derive(Debug, Default)]
struct Stamps {
    /// CLOCK_REALTIME − CLOCK_MONOTONIC when last measured; negative where the clock is off.
    offset_ns: i128,
}

impl Stamps {
    /// Takes in one reading of CLOCK_REALTIME, made between the instants `before` and `after`, and
    /// says whether the clock was set since the last.
    fn measure(&mut self, before: Instant, realtime_ns: u64, after: Instant) -> bool {
        let middle = before.as_nanos().midpoint(after.as_nanos());
        let offset = i128::from(realtime_ns) - i128::from(middle);
        let stepped = offset.abs_diff(self.offset_ns) > u128::from(CLOCK_STEP_NS);
        self.offset_ns = offset;
        stepped
    }

    /// Returns when a frame with the stamp `realtime_ns` came, which was after `earliest`, up to
    /// when all frames are handed over, and not after `now`.
    fn instant(&self, realtime_ns: u64, earliest: Instant, now: Instant) -> Instant {
        let nanos = i128::from(realtime_ns) - self.offset_ns;
        let nanos = nanos.clamp(0, i128::from(u64::MAX)) as u64;
        Instant::from_nanos(nanos).clamp(earliest, now.max(earliest))
    }
}

impl PacketRx {
    /// Opens the receiving end on the interface `ifindex`, whose name is used in messages.
    ///
    /// # Errors
    /// No CAP_NET_RAW, no such interface or one that is down, no memory for the smallest ring, or
    /// more addresses in `filter` than a classic BPF program can hold.
    pub fn open(
        ifindex: u32,
        interface: &str,
        filter: &FilterSpec,
        options: RxOptions,
    ) -> Result<Self, IoError> {
        Self::start(Socket::open(ifindex, interface)?, filter.program(), options)
    }

    /// Opens a receiving end for replies that come in through other interfaces than those that
    /// frames leave through (asymmetric routes, a source address of another interface). Its frames
    /// begin with the IP header.
    ///
    /// # Errors
    /// No CAP_NET_RAW, no memory for the smallest ring, or more interfaces and addresses in `filter`
    /// than a classic BPF program can hold.
    pub fn open_elsewhere(filter: &ElsewhereSpec, options: RxOptions) -> Result<Self, IoError> {
        let socket = Socket::open_as(SockType::Datagram, 0, "the other interfaces")?;
        Self::start(socket, filter.program(), options)
    }

    /// Opens the receiving end on one interface of whatever link layer, with or without MAC addresses.
    /// Its frames begin with the IP header.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_cooked(
        ifindex: u32,
        interface: &str,
        filter: &ElsewhereSpec,
        options: RxOptions,
    ) -> Result<Self, IoError> {
        let socket = Socket::open_as(SockType::Datagram, ifindex, interface)?;
        Self::start(socket, filter.program(), options)
    }

    fn start(
        socket: Socket,
        program: Option<Vec<libc::sock_filter>>,
        options: RxOptions,
    ) -> Result<Self, IoError> {
        let mut program = program.ok_or_else(|| {
            socket.error("build receive filter", io::ErrorKind::ArgumentListTooLong.into())
        })?;
        let on: libc::c_int = 1;
        socket.set(
            "set PACKET_IGNORE_OUTGOING",
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            &on,
        )?;
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        socket.set("attach receive filter", libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        let ring = Ring::new(&socket, options.ring_octets, options.retire_ms)?;
        let clock = Clock;
        let complete_until = clock.now();
        // Last: from here on frames come, and only those that the filter lets in.
        socket.bind(libc::ETH_P_ALL as u16)?;
        let mut rx = Self {
            ring,
            socket,
            stats: RxStats::default(),
            clock,
            stamps: Stamps::default(),
            complete_until,
        };
        rx.measure_offset();
        Ok(rx)
    }

    /// Returns the size of the ring, in octets.
    pub fn ring_octets(&self) -> usize {
        self.ring.blocks() * super::ring::BLOCK_OCTETS
    }

    /// Measures how CLOCK_REALTIME, by which the kernel stamps frames, relates to our time line, and
    /// returns the present instant and whether the clock was set since the last measurement.
    fn measure_offset(&mut self) -> (Instant, bool) {
        let before = self.clock.now();
        let realtime = self.clock.realtime_nanos();
        let now = self.clock.now();
        (now, self.stamps.measure(before, realtime, now))
    }

    /// Hands over what the kernel has retired, at most one round of the ring, so that a flood
    /// cannot keep the caller here.
    fn drain(&mut self, sink: &mut dyn FnMut(RxFrame<'_>)) -> Result<usize, IoError> {
        if self.ring.peek().is_none() {
            self.note_idle();
            return Ok(0);
        }
        let (now, mut stepped) = self.measure_offset();
        let mut handed = 0;
        for _ in 0..self.ring.blocks() {
            let Some(block) = self.ring.peek() else {
                self.note_idle();
                break;
            };
            let mut last_stamp = self.complete_until;
            let walk = Frames::new(block).and_then(|mut frames| {
                frames.try_for_each(|frame| {
                    let frame = frame?;
                    let at = self.stamps.instant(frame.realtime_ns, self.complete_until, now);
                    last_stamp = last_stamp.max(at);
                    handed += 1;
                    sink(RxFrame { bytes: frame.bytes, at, checksums: frame.checksums });
                    Ok(())
                })
            });
            self.ring.release();
            walk.map_err(|bad| {
                self.socket
                    .error("read receive ring", io::Error::new(io::ErrorKind::InvalidData, bad))
            })?;
            // Set while the block was walked: its stamps tell nothing of the blocks behind it.
            stepped |= self.measure_offset().1;
            // Blocks are filled one after the other, so later blocks hold later frames only.
            if !stepped {
                self.complete_until = self.complete_until.max(last_stamp - SOFTIRQ_MARGIN);
            }
        }
        Ok(handed)
    }

    /// Notes that every frame has been handed over, if the block being filled holds none.
    fn note_idle(&mut self) {
        // The clock is read first: a frame that comes in between is then after the instant noted.
        let now = self.clock.now();
        if self.ring.is_idle() {
            self.complete_until = self.complete_until.max(now - SOFTIRQ_MARGIN);
        }
    }

    fn await_block(&self, wait: Duration) -> Result<(), IoError> {
        let operation = "poll AF_PACKET socket";
        // Rounded up: a wait cut to 0 ms would turn the caller's loop into a busy one.
        let millis = wait.as_nanos().div_ceil(1_000_000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(()),
            Ok(_) if fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR)) => {
                self.socket.check("receive frames")
            }
            Ok(_) => Ok(()),
            Err(errno) => Err(self.socket.error(operation, errno.into())),
        }
    }
}

impl Receive for PacketRx {
    /// Hands over every frame in retired blocks.
    ///
    /// `complete_until` lags behind the present by 4 ms while no frame comes, and otherwise by up to
    /// the retire time more. It does not depend on the kernel's retire timer being on time: frames
    /// that wait in the block being filled hold it back.
    ///
    /// # Errors
    /// The interface went down (told once; when it comes up again, frames are received again) or
    /// is gone, or the kernel handed over a block that contradicts itself.
    fn receive(
        &mut self,
        wait: Duration,
        sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Received, IoError> {
        let mut frames = self.drain(sink)?;
        if frames == 0 {
            self.await_block(wait)?;
            frames = self.drain(sink)?;
        }
        Ok(Received { frames, complete_until: self.complete_until })
    }

    fn stats(&mut self) -> Result<RxStats, IoError> {
        let mut since_last =
            libc::tpacket_stats_v3 { tp_packets: 0, tp_drops: 0, tp_freeze_q_cnt: 0 };
        let mut length = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` octets, the size of `since_last`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                std::ptr::from_mut(&mut since_last).cast(),
                &mut length,
            )
        };
        Errno::result(result)
            .map_err(|errno| self.socket.error("read PACKET_STATISTICS", errno.into()))?;
        // Reading resets the kernel's counters; its `tp_packets` includes the drops.
        self.stats.received += u64::from(since_last.tp_packets);
        self.stats.dropped += u64::from(since_last.tp_drops);
        Ok(self.stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600 * 1_000_000_000;

    fn measured(monotonic: u64, realtime: u64) -> (Stamps, bool) {
        let mut stamps = Stamps::default();
        let at = Instant::from_nanos(monotonic);
        let stepped = stamps.measure(at, realtime, at);
        (stamps, stepped)
    }

    #[test]
    fn stamps_become_instants() {
        let (mut stamps, _) = measured(5 * HOUR, 100 * HOUR);
        let (earliest, now) = (Instant::from_nanos(4 * HOUR), Instant::from_nanos(6 * HOUR));
        let at = stamps.instant(100 * HOUR + 7, earliest, now);
        assert_eq!(at, Instant::from_nanos(5 * HOUR + 7));
        // As little as NTP may slew is not a step, and is followed.
        let later = Instant::from_nanos(5 * HOUR + 1_000);
        assert!(!stamps.measure(later, 100 * HOUR + 1_000 + CLOCK_STEP_NS, later));
        let at = stamps.instant(100 * HOUR + CLOCK_STEP_NS, earliest, now);
        assert_eq!(at, Instant::from_nanos(5 * HOUR));
    }

    /// A frame stamped before the clock was set, or after it but before that was noticed, still came
    /// between the last complete instant and now.
    #[test]
    fn steps_both_ways_keep_instants_in_bounds() {
        let start = 5 * HOUR;
        let (earliest, now) = (Instant::from_nanos(start), Instant::from_nanos(start + 1_000_000));
        for (was, is) in [(100 * HOUR, 101 * HOUR), (100 * HOUR, 99 * HOUR), (100 * HOUR, 0)] {
            let (mut stamps, _) = measured(start, was);
            // Not noticed yet.
            let at = stamps.instant(is + 500_000, earliest, now);
            assert!(earliest <= at && at <= now, "{was} → {is}: {at:?}");
            assert!(stamps.measure(now, is + 1_000_000, now), "{was} → {is} is a step");
            // Noticed: new stamps are exact again, old ones within bounds.
            let at = stamps.instant(is + 500_000, earliest, now);
            assert_eq!(at, Instant::from_nanos(start + 500_000), "{was} → {is}");
            let at = stamps.instant(was + 500_000, earliest, now);
            assert!(earliest <= at && at <= now, "{was} → {is}: {at:?}");
            assert!(!stamps.measure(now, is + 1_000_000, now), "told once");
        }
    }

    #[test]
    fn an_instant_is_never_before_what_is_complete() {
        let (stamps, _) = measured(5 * HOUR, 100 * HOUR);
        let (earliest, now) = (Instant::from_nanos(10), Instant::from_nanos(3));
        assert_eq!(stamps.instant(0, earliest, now), earliest);
    }
}
