//! What is counted: frames, and the connections that peers hold.

/// What has happened to frames, cumulative.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Frames that the prober sent.
    pub sent: u64,
    /// Frames handed to the prober.
    pub received: u64,
    /// Frames lost on the way to the peers, by the link or by a broken path.
    pub lost_out: u64,
    /// Frames lost on the way to the prober.
    pub lost_back: u64,
    /// Frames that the link duplicated, both ways.
    pub duplicated: u64,
    /// Frames of the prober that do not parse: always a bug in what crafted them.
    pub malformed: u64,
    /// Frames addressed to a MAC that is neither the gateway's nor the on-link peer's.
    pub misaddressed: u64,
    /// Frames of the prober that no host takes an interest in: no such address, host down, not TCP.
    pub ignored: u64,
    /// Answers that peers withheld for the 500 ms limit (TCPACKSkipped*).
    pub acks_limited: u64,
    /// Octets that peers handed to their applications: 0 unless a probe was taken for data.
    pub delivered_octets: u64,
    /// ICMP errors that routers sent.
    pub icmp: u64,
    /// ICMP errors that routers withheld for their rate limit.
    pub icmp_limited: u64,
    /// Frames that an attacker forged.
    pub forged: u64,
}

/// Connections that the peers hold, by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Connections {
    pub syn_recv: usize,
    pub established: usize,
    pub close_wait: usize,
    pub last_ack: usize,
    pub fin_wait1: usize,
    pub fin_wait2: usize,
    pub closing: usize,
    pub time_wait: usize,
}

impl Connections {
    /// Returns how many connections a prober has left behind: all but those in TIME_WAIT.
    pub fn left_open(&self) -> usize {
        self.syn_recv
            + self.established
            + self.close_wait
            + self.last_ack
            + self.fin_wait1
            + self.fin_wait2
            + self.closing
    }
}
