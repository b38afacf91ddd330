use super::filter::{Filter, Taken};
use super::*;
use crate::io::host::{Connection, Numbers, SocketKeepalive, SocketTimestamps};
use crate::probe::classify::{Reason, State};
use crate::time::Instant;
use crate::wire::SeqNumber;
use std::collections::HashMap;
use std::net::SocketAddr;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// An established connection, with keepalive, that was last used a second ago.
fn connection(index: u8) -> Connection {
    Connection {
        at: Instant::from_nanos(1_000_000_000_000),
        local: SocketAddr::from(([10, 0, 0, 1], 40_000 + u16::from(index))),
        peer: SocketAddr::from(([10, 0, 1, index], 443)),
        v4_mapped: false,
        state: TcpState::Established,
        cookie: u64::from(index),
        netns: 4_026_531_840,
        inode: 1000 + u64::from(index),
        uid: 0,
        numbers: Some(Numbers {
            snd_una: SeqNumber(1000),
            snd_nxt: SeqNumber(1000),
            write_seq: SeqNumber(1000),
            rcv_nxt: SeqNumber(500),
            rcv_wup: SeqNumber(500),
            rcv_wnd: 65_536,
            rcv_wscale: 7,
            snd_wnd: 65_536,
            bytes_received: 10,
            packets_out: 0,
            retrans_out: 0,
            retransmits: 0,
            probes_out: 0,
            timestamps: Some(SocketTimestamps { ts_recent: 7, offset: 9, in_microseconds: false }),
            is_signed: Some(false),
            mark: 0,
            bound_interface: 0,
            tos: 0,
            keepalive: Some(SocketKeepalive { idle: seconds(60), interval: seconds(5), count: 3 }),
            since_data_sent: seconds(1),
            since_data_received: seconds(1),
            since_ack_received: seconds(1),
        }),
    }
}

pub(super) fn listed(change: impl FnOnce(&mut Connection, &mut Numbers)) -> Listed {
    let mut connection = connection(1);
    let mut numbers = connection.numbers.take().expect("a full socket");
    change(&mut connection, &mut numbers);
    Listed {
        connection: Connection { numbers: Some(numbers), ..connection },
        process: None,
        translated: None,
        netns: "blue".into(),
    }
}

fn silent_for(data_sent: u64, data_received: u64, ack: u64) -> Listed {
    listed(|_, numbers| {
        numbers.since_data_sent = seconds(data_sent);
        numbers.since_data_received = seconds(data_received);
        numbers.since_ack_received = seconds(ack);
    })
}

#[test]
fn keepalives_do_not_end_idleness_but_keep_middleboxes_awake() {
    let kept = silent_for(9000, 8000, 60);
    assert_eq!(kept.idle(), Some(seconds(8000)));
    assert_eq!(kept.unheard(), Some(seconds(60)));
    assert_eq!(kept.quiet(), Some(seconds(60)));
    let talking_to_itself = silent_for(5, 8000, 8000);
    assert_eq!(talking_to_itself.idle(), Some(seconds(5)));
    assert_eq!(talking_to_itself.unheard(), Some(seconds(8000)));
    assert_eq!(talking_to_itself.quiet(), Some(seconds(5)));
    let mut never = silent_for(0, 0, 0);
    if let Some(numbers) = &mut never.connection.numbers {
        numbers.since_data_sent = Duration::MAX;
        numbers.since_data_received = Duration::MAX;
    }
    assert_eq!((never.idle(), never.quiet()), (None, Some(Duration::ZERO)));
    never.connection.numbers = None;
    assert_eq!((never.idle(), never.unheard(), never.quiet()), (None, None, None));
}

#[test]
fn window_is_what_is_left_of_the_last_offer() {
    let of = |rcv_wnd, ahead: u32, shift| {
        let listed = listed(|_, numbers| {
            numbers.rcv_wup = SeqNumber(u32::MAX - 1);
            numbers.rcv_nxt = numbers.rcv_wup + ahead;
            numbers.rcv_wnd = rcv_wnd;
            numbers.rcv_wscale = shift;
        });
        listed.window()
    };
    assert_eq!(of(65_536, 0, 7), Some(512));
    assert_eq!(of(65_536, 128, 7), Some(511));
    assert_eq!(of(100, 99, 0), Some(1));
    // The rest is below the unit of the field, used up, overrun, or too large for it.
    assert_eq!(of(127, 0, 7), None);
    assert_eq!(of(100, 100, 0), None);
    assert_eq!(of(100, 101, 0), None);
    assert_eq!(of(1 << 20, 0, 0), Some(u16::MAX));
}

#[test]
fn clocks_in_microseconds_have_no_place_in_the_flows_format() {
    assert!(listed(|_, _| ()).clock().is_some());
    let fine = listed(|_, numbers| {
        if let Some(timestamps) = &mut numbers.timestamps {
            timestamps.in_microseconds = true;
        }
    });
    assert_eq!(fine.clock(), None);
}

#[test]
fn findings_follow_from_keepalive_and_silence() {
    let off = |mut listed: Listed| {
        if let Some(numbers) = &mut listed.connection.numbers {
            numbers.keepalive = None;
        }
        listed
    };
    let names = |listed: &Listed| {
        let found = findings(listed, seconds(7200));
        found.iter().map(|finding| finding.name()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&silent_for(240, 240, 240)), "");
    assert_eq!(names(&silent_for(241, 241, 241)), "idle-azure");
    assert_eq!(names(&silent_for(351, 400, 900)), "idle-azure idle-aws");
    assert_eq!(names(&silent_for(901, 901, 901)), "idle-azure idle-aws idle-gcp idle-ipvs");
    // What the kernel's own keepalives do for the middleboxes, and not for the finding.
    assert_eq!(names(&off(silent_for(7200, 7200, 10))), "");
    assert_eq!(names(&off(silent_for(7201, 7201, 10))), "keepalive-off");
    assert_eq!(names(&silent_for(9000, 9000, 10)), "");
    let all = Finding::ALL.map(Finding::name).join(" ");
    assert_eq!(names(&off(silent_for(7441, 7441, 7441))), all);
    let mut mini = off(silent_for(9000, 9000, 9000));
    mini.connection.numbers = None;
    assert_eq!(names(&mini), "");
}

#[test]
fn filters_are_all_to_be_passed_and_states_are_told_apart() {
    let with = |state| Connection { state, ..connection(1) };
    let established = with(TcpState::Established);
    let takes = |filter: &Filter| filter.takes(&established, None);
    assert_eq!(takes(&Filter::default()), Taken::Yes);
    for state in TCP_STATES {
        let expected = match ASKED.contains(&state) {
            true => Taken::Yes,
            false => Taken::ButForState(state),
        };
        assert_eq!(Filter::default().takes(&with(state), None), expected);
    }
    let peers = |texts: &[&str]| {
        let peers = texts.iter().map(|text| text.parse().expect("a prefix")).collect();
        takes(&Filter { peers, ..Filter::default() })
    };
    assert_eq!(peers(&["10.0.1.0/24"]), Taken::Yes);
    assert_eq!(peers(&["fd00::/8", "10.0.1.1/32"]), Taken::Yes);
    assert_eq!(peers(&["10.0.0.0/24", "::/0"]), Taken::No);
    let idle = |span| takes(&Filter { idle_over: Some(span), ..Filter::default() });
    assert_eq!(idle(Duration::from_millis(999)), Taken::Yes);
    assert_eq!(idle(seconds(1)), Taken::No);
    // Nobody holds it, and the kernel has a timer for it: only who asks for the state gets it.
    let mini = Connection { state: TcpState::FinWait2, numbers: None, ..connection(1) };
    assert_eq!(Filter::default().takes(&mini, None), Taken::ButForState(TcpState::FinWait2));
    let asked_for = Filter { states: Some(vec![TcpState::FinWait2]), ..Filter::default() };
    assert_eq!(asked_for.takes(&mini, None), Taken::Yes);
    // Nothing is said of what was left out on request: the kernel does not end those by itself.
    assert_eq!(asked_for.takes(&established, None), Taken::No);
    // Of a socket without numbers nobody knows how long it is idle.
    let filter = Filter { idle_over: Some(Duration::ZERO), ..Filter::default() };
    assert_eq!(filter.takes(&mini, None), Taken::No);
    let sockets = |inode| HashMap::from([(inode, 7)]);
    assert_eq!(Filter::default().takes(&established, Some(&sockets(1001))), Taken::Yes);
    assert_eq!(Filter::default().takes(&established, Some(&sockets(1002))), Taken::No);
    assert_eq!(
        Filter::default().takes(&with(TcpState::TimeWait), Some(&HashMap::new())),
        Taken::No
    );
}

#[test]
fn what_is_left_out_is_said() {
    let mut listing = Listing::default();
    assert_eq!(listing.left_out_in_words(), None);
    listing.left_out = [(TcpState::TimeWait, 12), (TcpState::FinWait1, 3)].into();
    let words = listing.left_out_in_words().expect("something was");
    assert!(words.contains("3 in fin-wait-1, 12 in time-wait;"), "{words}");
}

/// What is said of the connection with this number.
pub(super) fn outcome(index: u8, state: State) -> Outcome {
    let listed = Listed { connection: connection(index), ..listed(|_, _| ()) };
    let mut verdict = sweeps::unasked(&listed, Reason::Ack, None);
    verdict.state = state;
    Outcome { listed: Arc::new(listed), verdict, findings: Vec::new() }
}

#[test]
fn rounds_tell_what_changed_and_nothing_else() {
    let mut changes = Changes::default();
    changes.begin();
    assert_eq!(changes.take(&outcome(1, State::Alive)), Some(Change::New));
    assert_eq!(changes.take(&outcome(2, State::Alive)), Some(Change::New));
    assert!(changes.gone().is_empty());
    changes.begin();
    assert_eq!(changes.take(&outcome(1, State::Alive)), None);
    assert_eq!(changes.take(&outcome(2, State::Down)), Some(Change::State(State::Alive)));
    // The correction of it.
    assert_eq!(changes.take(&outcome(2, State::Alive)), Some(Change::State(State::Down)));
    assert_eq!(changes.take(&outcome(3, State::Alive)), Some(Change::New));
    assert!(changes.gone().is_empty());
    changes.begin();
    assert_eq!(changes.take(&outcome(3, State::Alive)), None);
    let gone: Vec<u64> =
        changes.gone().iter().map(|outcome| outcome.listed.connection.cookie).collect();
    assert_eq!(gone, [1, 2]);
    changes.begin();
    // Told once.
    assert_eq!(changes.take(&outcome(3, State::Alive)), None);
    assert!(changes.gone().is_empty());
}

#[test]
fn a_summary_of_rounds_counts_what_is_known() {
    let mut changes = Changes::default();
    changes.begin();
    for (index, state) in [(1, State::Alive), (2, State::Alive), (3, State::Down)] {
        changes.take(&outcome(index, state));
    }
    changes.begin();
    // The rest of the round was cut off.
    changes.take(&outcome(2, State::Rebooted));
    let mut round = Summary { frames_sent: 7, ..Summary::default() };
    outcome(2, State::Rebooted).count_in(&mut round);
    let summary = changes.summarise(round);
    assert_eq!((summary.peers, summary.states), (3, [1, 1, 1, 0, 0]));
    assert_eq!(summary.reasons.values().sum::<u64>(), 3);
    assert_eq!(summary.frames_sent, 7, "what was done stays");
    let by_process: Vec<_> = summary.audit.expect("tallied").processes.into_values().collect();
    assert_eq!(by_process, [[1, 1, 1, 0, 0]]);
}

#[test]
fn rates_are_shared_by_number_of_connections() {
    assert_eq!(sweeps::share(10_000, 3, 4), 7500);
    assert_eq!(sweeps::share(10_000, 1, 20_000), 1);
    assert_eq!(sweeps::share(u64::MAX, 5, 5), u64::MAX);
    assert_eq!(sweeps::share(1, 0, 0), 1);
}
