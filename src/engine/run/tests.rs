//! Threads that panic: the run ends, and says so.

use super::*;
use crate::io::{
    FRAME_OCTETS, FrameBuf, IoError, PathId, PathInfo, Receive, Received, RxFrame, RxStats,
    Transmit, Unsent,
};
use crate::probe::TargetId;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use crate::probe::receiver::Post;
use crate::probe::sender::{Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::time::Instant;
use crate::wire::{LinkType, MacAddr};
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

const PEERS: usize = 10;
/// Longer than a sweep of silent peers takes here; what hangs, hangs for ever.
const BOUND: Duration = Duration::from_secs(10);

/// A path into the void that fails as it is told to.
#[derive(Clone, Copy, Default)]
struct Void {
    send_panics: bool,
    receive_panics: bool,
    /// Refuses frames for so long from the first on.
    refuses_for: Duration,
    errno: i32,
    is_raw: bool,
}

struct VoidTx(Void, FrameBuf, usize, Option<Instant>);

impl Transmit for VoidTx {
    fn reserve(&mut self) -> Option<&mut FrameBuf> {
        (self.2 < 4).then_some(&mut self.1)
    }

    fn submit(&mut self, _len: usize) {
        self.2 += 1;
    }

    fn flush(&mut self) -> Result<usize, Unsent> {
        assert!(!self.0.send_panics, "as told to");
        let sent = std::mem::take(&mut self.2);
        let now = Clock.now();
        if now.since(*self.3.get_or_insert(now)) >= self.0.refuses_for {
            return Ok(sent);
        }
        let source = io::Error::from_raw_os_error(self.0.errno);
        let error = IoError { operation: "send", object: "void0".into(), source, remedy: "" };
        Err(Unsent { sent: 0, refused: sent, error })
    }
}

impl Receive for Void {
    fn receive(
        &mut self,
        wait: Duration,
        _sink: &mut dyn FnMut(RxFrame<'_>),
    ) -> Result<Received, IoError> {
        assert!(!self.receive_panics, "as told to");
        Clock.sleep(wait);
        Ok(Received { frames: 0, complete_until: Clock.now() })
    }

    fn stats(&mut self) -> Result<RxStats, IoError> {
        Ok(RxStats::default())
    }
}

/// Peers that never answer, half of them behind each path; SYNs are given up after a second.
fn sweep(paths: [Void; 2]) -> Sweep {
    let plan = Plan {
        keepalive: Keepalive { idle: Duration::ZERO, interval: Duration::from_secs(1), count: 1 },
        probe_bytes: ProbeBytes::Auto,
        connect_timeout: Duration::from_secs(1),
        close: Close::Rst,
        rate_pps: None,
        rate_per_prefix_pps: None,
        seed: 1,
    };
    let table = Arc::new(Table::with_capacity(PEERS, Family::V4, [1, 2]));
    let info = |id: u8| PathInfo {
        id: PathId(id),
        interface: "void0".into(),
        link: if paths[usize::from(id)].is_raw { LinkType::Ip } else { LinkType::Ethernet },
        mac: MacAddr::default(),
        mtu: 1500,
    };
    let gateway = IpAddr::from([10, 98, 0, 254]);
    let source = IpAddr::from([10, 98, 0, 1]);
    let sender = Sender::new(Start {
        plan,
        targets: (0..PEERS)
            .map(|index| Target {
                id: TargetId(index as u32),
                peer: SocketAddr::from(([10, 99, 0, index as u8], 80)),
                hop: Some(HopId((index % 2) as u32)),
            })
            .collect(),
        given: Vec::new(),
        first_slot: 0,
        hops: (0..2).map(|id| Hop { path: PathId(id), next_hop: gateway, source }).collect(),
        paths: (0..2).map(info).collect(),
        resolve: false,
        source_ports: 61000..=65534,
        table: table.clone(),
        now: Clock.now(),
    });
    let path = |(id, void): (u8, Void)| Path {
        info: info(id),
        next_hops: HashSet::new(),
        transmits: vec![Box::new(VoidTx(void, [0; FRAME_OCTETS], 0, None)) as Box<dyn Transmit>],
        receive: Some(Box::new(void)),
        loopback: false,
    };
    Sweep {
        _claims: Vec::new(),
        senders: vec![sender.expect("a sender")],
        paths: (0u8..).zip(paths).map(path).collect(),
        table,
        translations: Arc::default(),
        post: Arc::new(Post::new(1, PEERS, 16)),
        guard: None,
        shield: None,
        redirects: Vec::new(),
        capture: None,
        watch: None,
        kernel: None,
        cpus: None,
        peers: PEERS,
        io: "packet",
        notes: Vec::new(),
    }
}

/// Runs it within the bound; returns how it ended and what was said of peers on the two paths.
fn run(paths: [Void; 2]) -> (Result<Summary, EngineError>, [Vec<String>; 2]) {
    let begun = Clock.now();
    let mut said = [Vec::new(), Vec::new()];
    let ended = sweep(paths).run(&Control::default(), &mut |verdict| {
        let reason = format!("{}/{}", verdict.state.name(), verdict.reason.name());
        said[verdict.target.0 as usize % 2].push(reason);
    });
    assert!(Clock.now().since(begun) < BOUND, "took {:?}", Clock.now().since(begun));
    (ended, said)
}

#[test]
fn silent_peers_are_down() {
    let (ended, said) = run([Void::default(); 2]);
    assert_eq!(ended.expect("no panic").faults, Vec::<String>::new());
    assert_eq!(said, [const { "down/silent" }; 2].map(|down| vec![down.to_owned(); 5]));
}

#[test]
fn a_panic_of_a_sender_ends_the_run() {
    let (ended, _) = run([Void { send_panics: true, ..Void::default() }, Void::default()]);
    let error = ended.expect_err("a thread panicked").to_string();
    assert_eq!(error, "a sending thread panicked");
}

#[test]
fn a_panic_of_a_receiver_accuses_nobody_and_is_told() {
    let (ended, said) = run([Void { receive_panics: true, ..Void::default() }, Void::default()]);
    let summary = ended.expect("verdicts");
    assert_eq!(summary.faults, ["a receiving thread panicked"]);
    // Nothing was ever heard: answers to what left by the other path may have come by this one.
    assert_eq!(said.map(|said| said == ["undetermined/observer"; 5]), [true; 2]);
}

#[test]
fn a_panic_of_the_caller_ends_every_thread() {
    let begun = Clock.now();
    let sweep = sweep([Void::default(); 2]);
    let result = catch_unwind(AssertUnwindSafe(|| {
        sweep.run(&Control::default(), &mut |_| panic!("as told to"))
    }));
    assert!(result.is_err() && Clock.now().since(begun) < BOUND);
}

#[test]
fn a_path_that_refuses_for_a_while_is_waited_for() {
    // The device's queue is full, or the raw socket's buffer.
    for (is_raw, errno) in [(false, libc::ENOBUFS), (true, libc::EAGAIN)] {
        let refuses_for = Duration::from_secs(2);
        let (ended, said) = run([Void { refuses_for, errno, is_raw, ..Void::default() }; 2]);
        let summary = ended.expect("no panic");
        assert_eq!(summary.faults, Vec::<String>::new());
        // A mere shortage: every SYN left in the end, and nothing that was to be heard was lost. But
        // what stands in a full buffer has not left this host.
        let silence = if is_raw { "undetermined/observer" } else { "down/silent" };
        assert_eq!(said.map(|said| said == [silence; 5]), [true; 2]);
        assert_eq!(summary.sent_by_kind.get("syn"), Some(&10));
        assert_eq!(summary.frames_sent, summary.sent_by_kind.values().sum::<u64>());
    }
}

#[test]
fn a_link_that_was_down_accuses_nobody_behind_it() {
    let refuses_for = Duration::from_millis(400);
    let down = Void { refuses_for, errno: libc::ENETDOWN, ..Void::default() };
    let (ended, [mut behind, beside]) = run([down, Void::default()]);
    assert_eq!(ended.expect("no panic").faults, Vec::<String>::new());
    // Asked in full once the link was back, but for the one whose SYN showed that it was.
    behind.sort();
    assert_eq!(behind[..4], ["down/silent"; 4]);
    assert_eq!(behind[4], "undetermined/observer");
    // Nothing was ever heard: their answers may have come by the link that was down.
    assert_eq!(beside, ["undetermined/observer"; 5]);
}

#[test]
fn a_path_that_refuses_for_good_is_given_up_alone() {
    let dead = Void { refuses_for: Duration::MAX, errno: libc::ENOBUFS, ..Void::default() };
    let (ended, said) = run([dead, Void::default()]);
    let summary = ended.expect("no panic");
    assert_eq!(summary.faults.len(), 1, "{:?}", summary.faults);
    assert!(summary.faults[0].contains("no frame left for 5 s"), "{:?}", summary.faults);
    assert_eq!(said[0], ["undetermined/observer"; 5]);
    assert_eq!(said[1], ["down/silent"; 5]);
    assert_eq!(summary.sent_by_kind.get("syn"), Some(&5), "only what left counts");
}

#[test]
fn frames_refused_for_themselves_are_given_up_one_by_one() {
    let picky = Void { refuses_for: Duration::MAX, errno: libc::EPERM, ..Void::default() };
    let (ended, said) = run([picky, Void::default()]);
    let summary = ended.expect("no panic");
    assert!(summary.faults[0].contains("frames were refused so"), "{:?}", summary.faults);
    assert_eq!(said[0], ["undetermined/observer"; 5]);
    assert_eq!(said[1], ["down/silent"; 5]);
}
