//! A peer's TCP, as Linux 6.x does it (net/ipv4/tcp_input.c, tcp_minisocks.c, tcp_timer.c): what it
//! answers in each state, and what it sends and repeats of itself.

use super::config::{Behaviour, MSS, PeerGroup};
use super::counters::Counters;
use super::segment::{Seg, Tuple};
use crate::time::Instant;
use crate::wire::{Flags, SeqNumber, Timestamps};
use siphasher::sip::SipHasher13;
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::Duration;

/// sysctl net.ipv4.tcp_invalid_ratelimit.
const INVALID_RATELIMIT: Duration = Duration::from_millis(500);
/// TCP_TIMEOUT_INIT: the first repeat of a SYN-ACK.
const TIMEOUT_INIT: Duration = Duration::from_secs(1);
/// TCP_RTO_MAX.
const RTO_MAX: Duration = Duration::from_secs(120);
/// sysctl net.ipv4.tcp_synack_retries.
const SYNACK_RETRIES: u8 = 5;
/// sysctl net.ipv4.tcp_retries2.
const RETRIES2: u8 = 15;
/// What tcp_orphan_retries returns by default.
const ORPHAN_RETRIES: u8 = 8;
/// TCP_TIMEWAIT_LEN; also sysctl net.ipv4.tcp_fin_timeout.
const TIMEWAIT_LEN: Duration = Duration::from_secs(60);
/// An acknowledgment further below SND.UNA than this is too old (RFC 5961 §5.2).
const MAX_WINDOW: u32 = 65_535;

/// Where a peer's connection stands (RFC 9293 §3.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs)]
pub enum TcpState {
    SynRecv,
    Established,
    CloseWait,
    LastAck,
    FinWait1,
    FinWait2,
    Closing,
    TimeWait,
}

/// A connection to set up without a handshake: both ends agree on the sequence numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Established {
    /// The simulated end.
    pub peer: SocketAddr,
    /// The prober's end.
    pub prober: SocketAddr,
    /// The prober's SND.UNA = SND.NXT, the peer's RCV.NXT.
    pub snd_una: SeqNumber,
    /// The prober's RCV.NXT, the peer's SND.UNA = SND.NXT.
    pub rcv_nxt: SeqNumber,
    /// The prober's latest TSval, if timestamps were negotiated.
    pub tsval: Option<u32>,
}

/// What a peer needs to act: when, as whom, and where its segments go.
pub(super) struct Turn<'a> {
    pub(super) now: Instant,
    pub(super) tuple: Tuple,
    pub(super) group: &'a PeerGroup,
    /// First repeat of what is not acknowledged.
    pub(super) rto: Duration,
    pub(super) out: &'a mut Vec<Seg>,
    pub(super) counters: &'a mut Counters,
}

/// What becomes of a connection after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Keep,
    Forget,
    /// The segment is not the connection's: the listener answers.
    Listener,
    /// Forget, and let the listener take the segment for a new connection.
    Renew,
}

/// A peer's end of a connection, from the first SYN on.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) snd_una: SeqNumber,
    pub(super) snd_nxt: SeqNumber,
    pub(super) rcv_nxt: SeqNumber,
    /// TS.Recent, if timestamps were negotiated (RFC 7323 §4.3).
    ts_recent: Option<u32>,
    /// When the last rate-limited ACK was sent; zero if never, as in the kernel.
    last_oow_ack: Instant,
    /// When the only timer goes off; timers are never cancelled, a stale one finds another instant.
    pub(super) timer: Instant,
    pub(super) group: u16,
    pub(super) rcv_wnd: u16,
    pub(super) state: TcpState,
    retries: u8,
    /// A FIN of ours holds the sequence number SND.NXT − 1.
    fin_sent: bool,
}

impl Connection {
    /// Answers a SYN and waits for the handshake's last ACK.
    pub(super) fn open(syn: &Seg, group: u16, iss: SeqNumber, turn: &mut Turn<'_>) -> Self {
        let connection = Connection {
            snd_una: iss,
            snd_nxt: iss + 1,
            rcv_nxt: syn.seq + 1,
            ts_recent: negotiated(syn, turn.group),
            last_oow_ack: Instant::ZERO,
            timer: turn.now + TIMEOUT_INIT,
            group,
            rcv_wnd: turn.group.window,
            state: TcpState::SynRecv,
            retries: 0,
            fin_sent: false,
        };
        connection.send_syn_ack(turn);
        connection
    }

    /// Sets up a connection that both ends already know.
    pub(super) fn establish(flow: &Established, group: u16, rcv_wnd: u16) -> Self {
        Connection {
            snd_una: flow.rcv_nxt,
            snd_nxt: flow.rcv_nxt,
            rcv_nxt: flow.snd_una,
            ts_recent: flow.tsval,
            last_oow_ack: Instant::ZERO,
            timer: Instant::FAR_FUTURE,
            group,
            rcv_wnd,
            state: TcpState::Established,
            retries: 0,
            fin_sent: false,
        }
    }

    /// Takes a segment from the prober.
    pub(super) fn on_segment(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Next {
        match self.state {
            TcpState::SynRecv => self.on_segment_in_syn_recv(seg, turn),
            TcpState::FinWait2 | TcpState::TimeWait => self.on_segment_in_timewait(seg, turn),
            _ => self.on_segment_in_full(seg, turn),
        }
    }

    // tcp_check_req
    fn on_segment_in_syn_recv(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Next {
        let control = seg.flags.0 & (Flags::SYN.0 | Flags::ACK.0 | Flags::RST.0 | Flags::FIN.0);
        let paws_reject = self.is_stale(seg);
        if control == Flags::SYN.0 && seg.seq == self.rcv_nxt - 1 && !paws_reject {
            if !self.is_oow_limited(seg, turn) {
                self.send_syn_ack(turn);
                self.timer = turn.now + self.synack_timeout();
            }
            return Next::Keep;
        }
        if seg.has(Flags::ACK) && seg.ack != self.snd_nxt {
            return Next::Listener;
        }
        if paws_reject || !self.is_in_window(seg) {
            if !seg.has(Flags::RST) && !self.is_oow_limited(seg, turn) {
                self.send_ack(turn);
            }
            return Next::Keep;
        }
        // embryonic_reset
        if seg.has(Flags::RST) {
            return Next::Forget;
        }
        if seg.has(Flags::SYN) && seg.seq != self.rcv_nxt - 1 {
            turn.out.push(reset(seg, turn.group.ttl));
            return Next::Forget;
        }
        if !seg.has(Flags::ACK) {
            return Next::Keep;
        }
        self.accept(turn);
        self.on_segment_in_full(seg, turn)
    }

    /// Completes the handshake; the application accepts at once and sends its greeting.
    pub(super) fn accept(&mut self, turn: &mut Turn<'_>) {
        self.state = TcpState::Established;
        self.snd_una = self.snd_nxt;
        self.retries = 0;
        self.last_oow_ack = Instant::ZERO;
        self.timer = Instant::FAR_FUTURE;
        if turn.group.greeting > 0 {
            self.send_data(turn.group.greeting, turn);
        }
    }

    // tcp_validate_incoming, tcp_ack, tcp_data_queue, tcp_rcv_state_process
    fn on_segment_in_full(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Next {
        if !self.is_acceptable(seg, turn) {
            return Next::Keep;
        }
        if seg.has(Flags::RST) {
            if seg.seq == self.rcv_nxt {
                return Next::Forget;
            }
            self.send_challenge_ack(turn);
            return Next::Keep;
        }
        if seg.has(Flags::SYN) {
            self.send_challenge_ack(turn);
            return Next::Keep;
        }
        if !seg.has(Flags::ACK) {
            return Next::Keep;
        }
        if let Some(ts) = seg.timestamps
            && self.ts_recent.is_some()
            && !self.is_stale(seg)
            && !self.rcv_nxt.is_before(seg.seq)
        {
            self.ts_recent = Some(ts.tsval);
        }
        match self.on_ack(seg, turn) {
            Some(Next::Keep) => self.on_payload(seg, turn),
            Some(next) => next,
            None => Next::Keep,
        }
    }

    /// PAWS (RFC 7323 §5) and the sequence check (RFC 9293 §3.10.7.4), with the answers they draw.
    fn is_acceptable(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> bool {
        let is_reset = seg.has(Flags::RST);
        if self.is_stale(seg) && !is_reset {
            let is_pure_ack = seg.has(Flags::ACK) && seg.seq == seg.end_seq();
            let is_disordered = is_pure_ack && seg.seq == self.rcv_nxt && seg.ack == self.snd_una;
            if !is_disordered {
                if seg.has(Flags::SYN) {
                    self.send_challenge_ack(turn);
                // Linux ≥ 6.14 counts it as PAWS_OLD_ACK and says nothing.
                } else if !(is_pure_ack && seg.seq.is_before(self.rcv_nxt)) {
                    self.send_dupack(seg, turn);
                }
                return false;
            }
        }
        // tcp_sequence; what was received is acknowledged at once, so RCV.WUP is RCV.NXT.
        let right = self.rcv_nxt + u32::from(self.rcv_wnd);
        let in_sequence = !seg.end_seq().is_before(self.rcv_nxt) && !right.is_before(seg.end_seq());
        if in_sequence {
            return true;
        }
        if is_reset {
            return false;
        }
        if seg.has(Flags::SYN) {
            self.send_challenge_ack(turn);
        } else if seg.payload > 0 || turn.group.behaviour != Behaviour::IgnoresEmptyProbes {
            self.send_dupack(seg, turn);
        }
        false
    }

    /// Takes SEG.ACK; `None` if the segment is to be dropped for it.
    fn on_ack(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Option<Next> {
        if self.snd_nxt.is_before(seg.ack) {
            if matches!(self.state, TcpState::FinWait1 | TcpState::LastAck | TcpState::Closing) {
                self.send_challenge_ack(turn);
            }
            return None;
        }
        if seg.ack.is_before(self.snd_una) {
            if seg.ack.is_before(self.snd_una - MAX_WINDOW) {
                self.send_challenge_ack(turn);
                return None;
            }
            return Some(Next::Keep);
        }
        if seg.ack == self.snd_una {
            return Some(Next::Keep);
        }
        self.snd_una = seg.ack;
        self.retries = 0;
        if self.snd_una != self.snd_nxt {
            self.timer = turn.now + turn.rto;
            return Some(Next::Keep);
        }
        self.timer = Instant::FAR_FUTURE;
        if self.fin_sent {
            match self.state {
                TcpState::FinWait1 => self.rest(TcpState::FinWait2, turn),
                TcpState::Closing => self.rest(TcpState::TimeWait, turn),
                TcpState::LastAck => return Some(Next::Forget),
                _ => {}
            }
        }
        Some(Next::Keep)
    }

    fn on_payload(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Next {
        // The acknowledgment of our FIN may have come with the prober's.
        if matches!(self.state, TcpState::FinWait2 | TcpState::TimeWait) {
            return self.on_segment_in_timewait(seg, turn);
        }
        if seg.seq == seg.end_seq() {
            return Next::Keep;
        }
        let past_data = seg.seq + u32::from(seg.payload);
        let is_new = self.rcv_nxt.is_before(past_data);
        match self.state {
            TcpState::FinWait1 if is_new => {
                // Nobody reads any more: TCP_ABORT_ON_DATA.
                turn.out.push(reset(seg, turn.group.ttl));
                return Next::Forget;
            }
            TcpState::Established | TcpState::FinWait1 => {}
            // Whatever follows the prober's FIN; a repeat of the FIN or of data is acknowledged.
            _ if is_new => return Next::Keep,
            _ => {}
        }
        let is_next = !self.rcv_nxt.is_before(seg.seq) && self.rcv_nxt.is_before(seg.end_seq());
        if !is_next {
            // A repeat, or out of order and, in this model, not kept: acknowledged at once.
            self.send_ack(turn);
            return Next::Keep;
        }
        turn.counters.delivered_octets += u64::from(past_data.0.wrapping_sub(self.rcv_nxt.0));
        self.rcv_nxt = seg.end_seq();
        self.send_ack(turn);
        if seg.has(Flags::FIN) {
            if self.state == TcpState::FinWait1 {
                self.state = TcpState::Closing;
            } else {
                self.state = TcpState::CloseWait;
                if turn.group.close_on_fin {
                    self.close(turn);
                }
            }
        }
        Next::Keep
    }

    // tcp_timewait_state_process: FIN_WAIT2 has no socket any more, either.
    fn on_segment_in_timewait(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> Next {
        let paws_reject = self.is_stale(seg);
        if self.state == TcpState::FinWait2 {
            if paws_reject || !self.is_in_window(seg) {
                if !seg.has(Flags::RST) && !self.is_oow_limited(seg, turn) {
                    self.send_ack(turn);
                }
                return Next::Keep;
            }
            if seg.has(Flags::RST) {
                return Next::Forget;
            }
            let after = self.rcv_nxt.is_before(seg.end_seq());
            if seg.has(Flags::SYN) && !seg.seq.is_before(self.rcv_nxt) {
                turn.out.push(reset(seg, turn.group.ttl));
                return Next::Forget;
            }
            if !seg.has(Flags::ACK) || !after || seg.seq == seg.end_seq() {
                return Next::Keep;
            }
            if !seg.has(Flags::FIN) || seg.end_seq() != self.rcv_nxt + 1 {
                turn.out.push(reset(seg, turn.group.ttl));
                return Next::Forget;
            }
            self.rcv_nxt = seg.end_seq();
            self.rest(TcpState::TimeWait, turn);
            self.send_ack(turn);
            return Next::Keep;
        }
        let is_exact = seg.seq == self.rcv_nxt && (seg.seq == seg.end_seq() || seg.has(Flags::RST));
        if !paws_reject && is_exact {
            if seg.has(Flags::RST) {
                return Next::Forget;
            }
            self.rest(TcpState::TimeWait, turn);
            return Next::Keep;
        }
        if seg.has(Flags::SYN)
            && !seg.has(Flags::RST)
            && !seg.has(Flags::ACK)
            && !paws_reject
            && self.rcv_nxt.is_before(seg.seq)
        {
            return Next::Renew;
        }
        if !seg.has(Flags::RST) {
            if seg.has(Flags::ACK) {
                self.rest(TcpState::TimeWait, turn);
            }
            if !self.is_oow_limited(seg, turn) {
                self.send_ack(turn);
            }
        }
        Next::Keep
    }

    /// Acts when `self.timer` has gone off.
    pub(super) fn on_timer(&mut self, turn: &mut Turn<'_>) -> Next {
        let limit = match self.state {
            TcpState::FinWait2 | TcpState::TimeWait => return Next::Forget,
            TcpState::SynRecv => SYNACK_RETRIES,
            TcpState::Established | TcpState::CloseWait => RETRIES2,
            TcpState::FinWait1 | TcpState::LastAck | TcpState::Closing => ORPHAN_RETRIES,
        };
        if self.retries >= limit {
            return Next::Forget;
        }
        self.retries += 1;
        if self.state == TcpState::SynRecv {
            self.timer = turn.now + self.synack_timeout();
            self.send_syn_ack(turn);
        } else {
            self.timer = turn.now + (turn.rto * (1 << self.retries)).min(RTO_MAX);
            self.send_unacknowledged(turn);
        }
        Next::Keep
    }

    /// The application sends `octets` more.
    pub(super) fn send_data(&mut self, octets: u16, turn: &mut Turn<'_>) {
        if !matches!(self.state, TcpState::Established | TcpState::CloseWait) || octets == 0 {
            return;
        }
        let mut data = self.segment(Flags::ACK.union(Flags::PSH), turn);
        data.payload = octets;
        turn.out.push(data);
        self.snd_nxt = self.snd_nxt + u32::from(octets);
        self.arm(turn);
    }

    /// The application closes.
    pub(super) fn close(&mut self, turn: &mut Turn<'_>) {
        self.state = match self.state {
            TcpState::Established => TcpState::FinWait1,
            TcpState::CloseWait => TcpState::LastAck,
            _ => return,
        };
        turn.out.push(self.segment(Flags::ACK.union(Flags::FIN), turn));
        self.snd_nxt = self.snd_nxt + 1;
        self.fin_sent = true;
        self.arm(turn);
    }

    /// The application aborts.
    pub(super) fn abort(&mut self, turn: &mut Turn<'_>) {
        turn.out.push(self.segment(Flags::ACK.union(Flags::RST), turn));
    }

    /// The application stops reading, or reads again and the window update says so.
    pub(super) fn set_window(&mut self, rcv_wnd: u16, turn: &mut Turn<'_>) {
        self.rcv_wnd = rcv_wnd;
        if rcv_wnd > 0 {
            self.send_ack(turn);
        }
    }

    fn arm(&mut self, turn: &Turn<'_>) {
        if self.timer == Instant::FAR_FUTURE {
            self.timer = turn.now + turn.rto;
        }
    }

    fn rest(&mut self, state: TcpState, turn: &Turn<'_>) {
        self.state = state;
        self.timer = turn.now + TIMEWAIT_LEN;
    }

    fn synack_timeout(&self) -> Duration {
        (TIMEOUT_INIT * (1 << self.retries)).min(RTO_MAX)
    }

    /// Says whether PAWS rejects the segment (RFC 7323 §5.2).
    fn is_stale(&self, seg: &Seg) -> bool {
        match (self.ts_recent, seg.timestamps) {
            (Some(recent), Some(ts)) => SeqNumber(ts.tsval).is_before(SeqNumber(recent)),
            _ => false,
        }
    }

    // tcp_in_window
    fn is_in_window(&self, seg: &Seg) -> bool {
        let (end, left) = (seg.end_seq(), self.rcv_nxt);
        let right = left + u32::from(self.rcv_wnd);
        seg.seq == left
            || (left.is_before(end) && seg.seq.is_before(right))
            || (seg.seq == right && seg.seq == end)
    }

    // tcp_oow_rate_limited: what carries data and no SYN cannot be part of an ACK loop.
    fn is_oow_limited(&mut self, seg: &Seg, turn: &mut Turn<'_>) -> bool {
        if seg.seq != seg.end_seq() && !seg.has(Flags::SYN) {
            return false;
        }
        self.is_limited(turn)
    }

    fn is_limited(&mut self, turn: &mut Turn<'_>) -> bool {
        if self.last_oow_ack != Instant::ZERO
            && turn.now.since(self.last_oow_ack) < INVALID_RATELIMIT
        {
            turn.counters.acks_limited += 1;
            return true;
        }
        self.last_oow_ack = turn.now;
        false
    }

    fn send_dupack(&mut self, seg: &Seg, turn: &mut Turn<'_>) {
        if !self.is_oow_limited(seg, turn) {
            self.send_ack(turn);
        }
    }

    // RFC 5961; tcp_send_challenge_ack spares nothing from the limit.
    fn send_challenge_ack(&mut self, turn: &mut Turn<'_>) {
        if !self.is_limited(turn) {
            self.send_ack(turn);
        }
    }

    fn send_ack(&self, turn: &mut Turn<'_>) {
        turn.out.push(self.segment(Flags::ACK, turn));
    }

    fn send_syn_ack(&self, turn: &mut Turn<'_>) {
        let ts = self.ts_recent.map(|recent| timestamps(recent, turn.now));
        turn.out.push(syn_ack(turn, self.snd_una, self.rcv_nxt, ts));
    }

    /// Sends from SND.UNA again: data, and the FIN if all that is before it fits.
    fn send_unacknowledged(&self, turn: &mut Turn<'_>) {
        let fin = u32::from(self.fin_sent);
        let data = self.snd_nxt.0.wrapping_sub(self.snd_una.0).saturating_sub(fin);
        let payload = u16::try_from(data).unwrap_or(u16::MAX).min(MSS);
        let mut flags = Flags::ACK;
        if payload > 0 {
            flags = flags.union(Flags::PSH);
        }
        if self.fin_sent && u32::from(payload) == data {
            flags = flags.union(Flags::FIN);
        }
        let mut again = self.segment(flags, turn);
        again.seq = self.snd_una;
        again.payload = payload;
        turn.out.push(again);
    }

    fn segment(&self, flags: Flags, turn: &Turn<'_>) -> Seg {
        let mut seg = Seg::from_peer(turn.tuple, flags, self.snd_nxt, self.rcv_nxt);
        seg.ttl = turn.group.ttl;
        seg.wnd = self.rcv_wnd;
        seg.timestamps = self.ts_recent.map(|recent| timestamps(recent, turn.now));
        seg
    }
}

fn negotiated(syn: &Seg, group: &PeerGroup) -> Option<u32> {
    syn.timestamps.filter(|_| group.timestamps).map(|ts| ts.tsval)
}

/// TSval counts milliseconds. Linux adds an offset per connection; none is needed here.
fn timestamps(recent: u32, now: Instant) -> Timestamps {
    Timestamps { tsval: (now.as_nanos() / 1_000_000) as u32, tsecr: recent }
}

/// Builds a SYN-ACK.
pub(super) fn syn_ack(
    turn: &Turn<'_>,
    iss: SeqNumber,
    rcv_nxt: SeqNumber,
    timestamps: Option<Timestamps>,
) -> Seg {
    let mut seg = Seg::from_peer(turn.tuple, Flags::SYN.union(Flags::ACK), iss, rcv_nxt);
    seg.ttl = turn.group.ttl;
    seg.wnd = turn.group.window;
    seg.mss = Some(MSS);
    seg.timestamps = timestamps;
    seg
}

/// Builds the RST that a segment draws where no connection is (RFC 9293 §3.5.2, tcp_v4_send_reset).
pub(super) fn reset(seg: &Seg, ttl: u8) -> Seg {
    let mut rst = if seg.has(Flags::ACK) {
        Seg::from_peer(seg.tuple, Flags::RST, seg.ack, SeqNumber(0))
    } else {
        let flags = Flags::RST.union(Flags::ACK);
        Seg::from_peer(seg.tuple, flags, SeqNumber(0), seg.end_seq())
    };
    rst.ttl = ttl;
    rst
}

/// Returns the initial sequence number that a SYN cookie encodes the prober's in.
pub(super) fn cookie(seed: u64, tuple: &Tuple, irs: SeqNumber) -> SeqNumber {
    let mut hasher = SipHasher13::new_with_keys(seed, 0);
    (tuple, irs).hash(&mut hasher);
    SeqNumber(std::hash::Hasher::finish(&hasher) as u32)
}
