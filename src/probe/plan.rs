//! The keepalive plan: idle, interval, count, and what each probe carries.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Linux answers one empty out-of-window segment per socket in this time
/// (tcp_invalid_ratelimit, net/ipv4/tcp_input.c): a closer repeat proves nothing.
pub const EMPTY_PROBE_SPACING: Duration = Duration::from_millis(500);

/// What a keepalive probe carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProbeBytes {
    /// 0 bytes first, 1 byte in the second half of the plan.
    #[default]
    Auto,
    /// Always 0.
    Zero,
    /// Always 1 (0 until the handshake is confirmed, and towards a zero window).
    One,
}

/// How flows that we opened are closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Close {
    /// RST: one segment, nothing left at the peer.
    #[default]
    Rst,
    /// FIN, and RST if the peer does not close in its turn.
    Fin,
}

/// idle / interval / count, as in TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// Rest before the first probe.
    pub idle: Duration,
    /// Between probes of one flow.
    pub interval: Duration,
    /// Probes before silence is believed. With 0, of a connection that we open, what its SYN draws is all
    /// that is asked: a SYN-ACK is answered with RST, so that no application hears of it.
    pub count: u16,
}

/// Well-known settings: name, idle / interval / count.
pub const PROFILES: [(&str, Keepalive); 5] = [
    ("fast", keepalive(0, 1, 5)),
    ("linux", keepalive(7200, 75, 9)),
    ("bsd", keepalive(7200, 75, 8)),
    ("windows", keepalive(7200, 1, 10)),
    ("rfc1122", keepalive(7200, 75, 10)),
];

const fn keepalive(idle_s: u64, interval_s: u64, count: u16) -> Keepalive {
    Keepalive {
        idle: Duration::from_secs(idle_s),
        interval: Duration::from_secs(interval_s),
        count,
    }
}

/// Everything that decides what is sent when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// idle / interval / count.
    pub keepalive: Keepalive,
    /// What the probes carry.
    pub probe_bytes: ProbeBytes,
    /// How long an unanswered SYN is repeated (RFC 6298 backoff from 1 s).
    pub connect_timeout: Duration,
    /// How owned flows are closed.
    pub close: Close,
    /// Frames per second, all kinds; `None` as fast as the path takes them.
    pub rate_pps: Option<u64>,
    /// Frames per second towards one IPv4 /24 or IPv6 /48, address resolution left aside; `None`
    /// without a cap of their own.
    pub rate_per_prefix_pps: Option<u64>,
    /// Seeds the order of targets, initial sequence numbers and source ports.
    pub seed: u64,
}

impl Plan {
    /// Says whether the probe after `asked` earlier ones should carry a byte.
    pub(crate) fn probe_carries_data(&self, asked: u16) -> bool {
        match self.probe_bytes {
            ProbeBytes::Zero => false,
            ProbeBytes::One => true,
            ProbeBytes::Auto => asked >= self.keepalive.count.div_ceil(2),
        }
    }
}
