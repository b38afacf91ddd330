//! Everything at once: caps, paths that refuse frames, next hops that change, interruptions, given
//! flows, connections of the kernel's, readings and holds that come late or never, loss. Each mechanism may make a flow wait; none may forget one that another has queued.

use crate::support::plan;
use keepsweep::io::sim::{
    Behaviour, Established, Impairment, Network, NetworkConfig, PeerGroup, Phase, TcpState, mac_of,
};
use keepsweep::io::{PathId, PathInfo};
use keepsweep::probe::Slot;
use keepsweep::probe::TargetId;
use keepsweep::probe::classify::{Reason, State};
use keepsweep::probe::evidence::Verdict;
use keepsweep::probe::given::Given;
use keepsweep::probe::host::{Host, Reading};
use keepsweep::probe::neighbour::{Hop, HopId};
use keepsweep::probe::plan::{Close, Keepalive, Plan};
use keepsweep::probe::receiver::{Heard, Post, Receiver};
use keepsweep::probe::sender::{
    HoldRequest, Interruption, Poll, Readings, Receipt, Refusal, Sender, Start, Target,
};
use keepsweep::probe::table::{Family, Table};
use keepsweep::time::Instant;
use keepsweep::wire::{Checksums, Flags, LinkType, MacAddr, Packet, SeqNumber, parse};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const OURS: PathId = PathId(0);
const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
/// Three next hops to the same peers: the sweep begins with the first; the last answers nobody.
const ROUTERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 66)];
const OWNED: u32 = 12;
const GIVEN: u32 = 4;
/// Behind those that were given, what this host's kernel owns; every other one has something old to
/// acknowledge.
const HOST: u32 = 4;
const ALL: u32 = OWNED + GIVEN + HOST;
/// The engine's: how long a path may refuse frames.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing that is set off here takes longer.
const BOUND: Duration = Duration::from_secs(1200);

fn millis(ms: u64) -> Instant {
    Instant::from_nanos(1 + ms * 1_000_000)
}

fn peer(index: u32) -> SocketAddr {
    // Two networks, so that a cap has something to tell apart.
    SocketAddr::from((Ipv4Addr::new(10, 99, (index % 2) as u8, index as u8), 80))
}

/// What happens when.
#[derive(Debug)]
struct Setting {
    plan: Plan,
    loss: f64,
    behaviour: Behaviour,
    /// The path refuses frames from the first instant to the second.
    outages: Vec<(Instant, Instant)>,
    /// One frame in a hundred, so many, is refused for itself.
    refusals: u8,
    redirects: Vec<(Instant, Slot, IpAddr)>,
    interrupted: Option<Instant>,
    /// Interrupted already when a next hop answers after the first, in the same turn.
    eager: bool,
    hurried: Option<Instant>,
    /// Frames handed out before they are flushed.
    batch: usize,
    /// How long readings and holds take at most; without, there are none.
    reading_ms: Option<u64>,
    hold_ms: Option<u64>,
    /// Whose socket is gone from when on.
    gone: Option<(Instant, Slot)>,
}

impl Setting {
    fn draw(rng: &mut fastrand::Rng) -> Setting {
        let some = |rng: &mut fastrand::Rng, of: &[Option<u64>]| of[rng.usize(..of.len())];
        let keepalive = Keepalive {
            idle: Duration::from_secs(rng.u64(0..2) * 3),
            interval: Duration::from_secs(1),
            count: 5,
        };
        let plan = Plan {
            keepalive,
            connect_timeout: Duration::from_secs([2, 15][rng.usize(..2)]),
            close: if rng.bool() { Close::Rst } else { Close::Fin },
            rate_pps: some(rng, &[None, Some(20), Some(200)]),
            rate_per_prefix_pps: some(rng, &[None, Some(2), Some(20)]),
            seed: rng.u64(..),
            ..plan()
        };
        let outages = (0..rng.usize(..4))
            .map(|_| {
                let from = rng.u64(..12_000);
                let long = if rng.u8(..5) == 0 { 100_000_000 } else { rng.u64(1..14_000) };
                (millis(from), millis(from + long))
            })
            .collect();
        let mut redirects: Vec<_> = (0..rng.usize(..30))
            .map(|_| {
                let slot = Slot(rng.u32(..ALL));
                (millis(rng.u64(..15_000)), slot, ROUTERS[rng.usize(..3)].into())
            })
            .collect();
        redirects.sort();
        let interrupted = rng.bool().then(|| rng.u64(..15_000));
        let hurried = interrupted.filter(|_| rng.bool()).map(|at| at + rng.u64(..3_000));
        Setting {
            plan,
            loss: [0.0, 0.0, 0.1][rng.usize(..3)],
            behaviour: [
                Behaviour::Listen,
                Behaviour::Listen,
                Behaviour::SynCookies,
                Behaviour::Silent,
            ][rng.usize(..4)],
            outages,
            refusals: [0, 0, 0, 5, 60, 100][rng.usize(..6)],
            redirects,
            interrupted: interrupted.map(millis),
            hurried: hurried.map(millis),
            batch: rng.usize(1..40),
            eager: rng.u8(..4) == 0,
            reading_ms: some(rng, &[None, Some(1), Some(50), Some(800), Some(8_000)]),
            hold_ms: some(rng, &[None, Some(1), Some(800), Some(8_000)]),
            gone: rng.bool().then(|| (millis(rng.u64(..8_000)), Slot(rng.u32(OWNED + GIVEN..ALL)))),
        }
    }

    fn is_out(&self, now: Instant) -> bool {
        self.outages.iter().any(|&(from, until)| from <= now && now < until)
    }

    /// Returns when something happens next after `now`.
    fn next(&self, now: Instant) -> Instant {
        let redirects = self.redirects.iter().map(|&(at, ..)| at);
        let all = redirects.chain(self.interrupted).chain(self.hurried);
        all.filter(|&at| at > now).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

fn network(setting: &Setting, seed: u64) -> Network {
    let link = Impairment { delay_us: 20_000, loss: setting.loss, ..Impairment::NONE };
    let group =
        |prefix: &str, behaviour| PeerGroup::new(prefix.parse().expect("a prefix"), behaviour);
    Network::new(NetworkConfig {
        seed,
        gateway: ROUTERS[0],
        on_link: Some("192.0.2.0/24".parse().expect("a prefix")),
        link: vec![Phase { from_ms: 0, out: link, back: link }],
        peers: vec![
            group("192.0.2.2/32", Behaviour::Listen),
            group("10.99.0.0/24", setting.behaviour),
            group("10.99.1.0/24", Behaviour::Listen),
        ],
        ..NetworkConfig::default()
    })
    .expect("a network that makes sense")
}

fn given(index: u32) -> Given {
    Given {
        local: (SOURCE, 40_000 + index as u16).into(),
        peer: peer(index),
        snd_una: SeqNumber(1000),
        snd_nxt: SeqNumber(1000),
        rcv_nxt: SeqNumber(u32::MAX),
        wnd: 502,
        clock: None,
        obstacle: None,
        host: (index >= OWNED + GIVEN).then(|| Host::new(index.into(), reading(index, millis(0)))),
    }
}

/// What the kernel says of a connection of its own: nothing has ever come since.
fn reading(index: u32, at: Instant) -> Reading {
    Reading {
        at,
        snd_una: SeqNumber(1000),
        snd_nxt: SeqNumber(1000),
        rcv_nxt: SeqNumber(u32::MAX),
        rcv_wup: SeqNumber(u32::MAX),
        wnd: 502,
        bytes_received: u64::from(index % 2) * 100,
        ..Reading::default()
    }
}

/// The kernel and the guard, as slow and as unwilling as the setting has them.
#[derive(Default)]
struct OwnHost {
    reading_due: Option<Instant>,
    requests: Vec<(Instant, HoldRequest)>,
    held: HashSet<SocketAddr>,
}

impl OwnHost {
    fn turn(
        &mut self,
        setting: &Setting,
        rng: &mut fastrand::Rng,
        sender: &mut Sender,
        now: Instant,
    ) {
        let mut after = |ms: u64| now + Duration::from_millis(rng.u64(..=ms));
        if sender.wants_reading().is_some()
            && let Some(ms) = setting.reading_ms
        {
            self.reading_due.get_or_insert_with(|| after(ms));
        }
        while let Some(request) = sender.poll_hold() {
            match (request.hold, setting.hold_ms) {
                (false, _) => {
                    self.held.remove(&request.local);
                    self.requests.retain(|(_, asked)| asked.local != request.local);
                }
                (true, Some(ms)) => self.requests.push((after(ms), request)),
                (true, None) => sender.handle_hold(request.slot, false, now),
            }
        }
        let due = |(at, _): &(Instant, HoldRequest)| *at <= now;
        for (_, request) in self.requests.extract_if(.., |request| due(request)) {
            self.held.insert(request.local);
            sender.handle_hold(request.slot, true, now);
        }
        if self.reading_due.is_some_and(|due| due <= now) {
            self.reading_due = None;
            let is_gone = |slot| setting.gone.is_some_and(|(at, gone)| gone == slot && at <= now);
            let read = |index| {
                let found = (!is_gone(Slot(index))).then(|| reading(index, now));
                (Slot(index), found)
            };
            let flows = (OWNED + GIVEN..ALL).map(read).collect();
            let begun = sender.wants_reading().map_or(now, |since| since.max(now));
            sender.handle_readings(&Readings { begun, flows }, now);
        }
    }

    fn next(&self) -> Instant {
        let requests = self.requests.iter().map(|(at, _)| *at);
        requests.chain(self.reading_due).min().unwrap_or(Instant::FAR_FUTURE)
    }
}

/// The sending end of the path, as the engine drives it.
struct Outlet {
    batch: Vec<(Receipt, Vec<u8>)>,
    failing: Option<Instant>,
    left: u64,
}

impl Outlet {
    fn flush(
        &mut self,
        setting: &Setting,
        rng: &mut fastrand::Rng,
        network: &mut Network,
        sender: &mut Sender,
        held: &HashSet<SocketAddr>,
        now: Instant,
    ) {
        for (receipt, mut frame) in self.batch.drain(..) {
            if setting.is_out(now) {
                self.failing.get_or_insert(now);
                sender.handle_unsent(receipt, Refusal::Path, now);
                continue;
            }
            if rng.u8(..100) < setting.refusals {
                sender.handle_unsent(receipt, Refusal::Frame, now);
                continue;
            }
            check(&frame, held);
            // The second router forwards as the first does.
            if frame[..6] == mac_of(ROUTERS[1].into()).0 {
                frame[..6].copy_from_slice(&mac_of(ROUTERS[0].into()).0);
            }
            self.left += 1;
            network.transmit(now, &frame);
            if self.failing.take().is_some() {
                sender.handle_path_open(OURS, now);
            }
        }
    }
}

/// Nothing is sent on a given flow but keepalives, nor one that acknowledges RCV.NXT on a connection of the
/// kernel's whose resets are not held.
fn check(frame: &[u8], held: &HashSet<SocketAddr>) {
    if let Ok(Packet::Tcp(segment)) = parse(frame, LinkType::Ethernet, Checksums::Verify)
        && segment.src_port < 61_000
    {
        let local = SocketAddr::new(segment.ip.src, segment.src_port);
        let is_host = u32::from(segment.src_port) >= 40_000 + OWNED + GIVEN;
        let is_old = segment.ack == SeqNumber(u32::MAX - 2);
        assert!(!is_old || is_host && segment.src_port % 2 == 1, "{segment:?}");
        assert!(!is_host || is_old || held.contains(&local), "{segment:?}");
        let expected = if is_old { u32::MAX - 2 } else { u32::MAX };
        let sent = (segment.flags, segment.seq, segment.ack);
        assert_eq!(sent, (Flags::ACK, SeqNumber(999), SeqNumber(expected)));
    }
}

fn run(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let setting = Setting::draw(&mut rng);
    let mut network = network(&setting, seed);
    let hops: Vec<_> =
        [Hop { path: OURS, next_hop: ROUTERS[0].into(), source: SOURCE.into() }].into();
    let target = |n: u32| Target { id: TargetId(n), peer: peer(n), hop: Some(HopId(0)) };
    let mut targets: Vec<_> = (0..ALL).map(target).collect();
    // As the engine does.
    rng.shuffle(&mut targets[..OWNED as usize]);
    let givens: Vec<_> = (OWNED..ALL).map(given).collect();
    for given in &givens {
        assert!(network.establish(&Established {
            peer: given.peer,
            prober: given.local,
            snd_una: given.snd_una,
            rcv_nxt: given.rcv_nxt,
            tsval: None,
        }));
    }
    let slots = ALL as usize;
    let table = Arc::new(Table::with_capacity(slots, Family::V4, [1, 2]));
    let post = Arc::new(Post::new(1, slots, 1 << 12));
    let next_hops: HashSet<_> = ROUTERS.map(IpAddr::from).into();
    let mut receiver =
        Receiver::new(OURS, LinkType::Ethernet, table.clone(), next_hops, post.clone());
    let mut now = Instant::from_nanos(1);
    let mut sender = Sender::new(Start {
        plan: setting.plan,
        targets,
        given: givens.clone(),
        first_slot: 0,
        hops,
        paths: vec![PathInfo {
            id: OURS,
            interface: "sim0".into(),
            link: LinkType::Ethernet,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
        }],
        resolve: true,
        source_ports: 61_000..=65_534,
        table,
        now,
    })
    .expect("a sender");

    let mut outlet = Outlet { batch: Vec::new(), failing: None, left: 0 };
    let mut host = OwnHost::default();
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut redirects = setting.redirects.iter().peekable();
    let (mut interrupted, mut given_up) = (false, false);
    let mut turns = 0u32;
    loop {
        turns += 1;
        assert!(now.since(Instant::ZERO) < BOUND, "seed {seed} does not end: {setting:?}");
        assert!(turns < 2_000_000, "seed {seed} spins at {now:?}: {setting:?}");
        network.poll_receive(now, &mut |frame| {
            assert!(receiver.handle_frame(frame).is_ok(), "room");
        });
        while let Some(&&(_, slot, next_hop)) = redirects.peek().filter(|(at, ..)| *at <= now) {
            redirects.next();
            sender.redirect(slot, next_hop);
        }
        let mut eager = false;
        while let Some(heard) = post.pop(0) {
            eager |= setting.eager
                && matches!(heard, Heard::Neighbour { ip, .. } if ip != IpAddr::from(ROUTERS[0]));
            sender.handle_heard(heard, now);
        }
        if !interrupted && (eager || setting.interrupted.is_some_and(|at| at <= now)) {
            interrupted = true;
            sender.interrupt(now, Interruption::Wanted);
        }
        let hurry = setting.hurried.is_some_and(|at| at <= now);
        if hurry {
            sender.hurry(now);
        }
        let patience = if hurry { Duration::ZERO } else { PATIENCE };
        if outlet.failing.is_some_and(|since| now.since(since) >= patience) {
            given_up = true;
            sender.fail_path(OURS, now);
        }
        sender.advance(now, now);
        host.turn(&setting, &mut rng, &mut sender, now);
        let mut until = Some(now);
        while outlet.batch.len() < setting.batch {
            match sender.poll_transmit(now) {
                Poll::Transmit(due) => {
                    let mut frame = vec![0; 256];
                    let len = sender.emit(&due, &mut frame).expect("room for a frame");
                    frame.truncate(len);
                    outlet.batch.push((due.receipt(), frame));
                }
                Poll::Pace(at) | Poll::Wait(at) => {
                    until = Some(at);
                    break;
                }
                Poll::Done => {
                    until = None;
                    break;
                }
            }
        }
        let idle = outlet.batch.is_empty();
        outlet.flush(&setting, &mut rng, &mut network, &mut sender, &host.held, now);
        while let Some(verdict) = sender.poll_verdict() {
            verdicts.push(verdict);
        }
        let until = match until {
            None if idle => break,
            _ if !idle => now,
            until => until.unwrap_or(now),
        };
        let given_up_at = outlet.failing.map_or(Instant::FAR_FUTURE, |since| since + PATIENCE);
        let given_up_at = if given_up_at > now { given_up_at } else { Instant::FAR_FUTURE };
        let arrival = network.next_arrival().unwrap_or(Instant::FAR_FUTURE);
        let next = until.min(arrival).min(setting.next(now)).min(given_up_at).min(host.next());
        now = next.max(now + Duration::from_micros(10));
    }

    host.turn(&setting, &mut rng, &mut sender, now);
    assert!(host.held.is_empty(), "seed {seed}: {:?} {setting:?}", host.held);
    for verdict in verdicts.iter().filter(|verdict| verdict.target.0 >= OWNED + GIVEN) {
        // Nothing was read, or it could not be probed as it should.
        let accused = !matches!(verdict.state, State::Alive | State::Undetermined);
        assert!(!accused || setting.reading_ms.is_some(), "seed {seed}: {verdict:?}");
        // What a next hop does not take needs no probe of its own.
        let is_probed = verdict.reason != Reason::Neighbour;
        assert!(
            !accused || !is_probed || setting.hold_ms.is_some(),
            "seed {seed}: {verdict:?} {setting:?}"
        );
    }
    assert_eq!(sender.sent().total(), outlet.left, "seed {seed}");
    let firsts: Vec<_> = verdicts.iter().filter(|verdict| !verdict.correction).collect();
    let peers: HashSet<_> = firsts.iter().map(|verdict| verdict.peer).collect();
    assert_eq!((firsts.len(), peers.len()), (slots, slots), "seed {seed}: {setting:?}");
    if setting.loss > 0.0 {
        return;
    }
    for verdict in &verdicts {
        let answers = setting.behaviour != Behaviour::Silent || verdict.target.0 % 2 == 1;
        let accused = matches!(verdict.state, State::Down | State::Rebooted);
        assert!(!answers || !accused, "seed {seed}: {verdict:?} {setting:?}");
    }
    for given in &givens {
        let state = network.state(given.peer, given.local);
        assert_eq!(state, Some(TcpState::Established), "seed {seed}: {given:?}");
    }
    if setting.refusals > 0 || given_up {
        return;
    }
    network.poll_receive(now + Duration::from_millis(900), &mut |_| {});
    let open = network.connections();
    let held = open.established + open.syn_recv + open.close_wait;
    assert_eq!(held, givens.len(), "seed {seed}: {open:?} {setting:?}");
}

#[test]
fn nothing_is_forgotten_whatever_it_waits_for() {
    (0..3_000).for_each(run);
}
