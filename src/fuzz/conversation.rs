//! A whole sweep of one peer that says whatever the fuzzer wants it to.

use crate::io::{PathId, PathInfo, RxFrame};
use crate::probe::TargetId;
use crate::probe::classify::{Reason, State};
use crate::probe::evidence::Verdict;
use crate::probe::neighbour::{Hop, HopId};
use crate::probe::plan::{Close, Keepalive, Plan, ProbeBytes};
use crate::probe::receiver::{Post, Receiver};
use crate::probe::sender::{Poll, Sender, Start, Target};
use crate::probe::table::{Family, Table};
use crate::time::Instant;
use crate::wire::icmp::emit_error;
use crate::wire::{
    Checksums, Flags, IpHeader, LinkHeader, LinkType, MacAddr, Options, Packet, Segment, SeqNumber,
    parse,
};
use arbitrary::{Arbitrary, Unstructured};
use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);
/// The peer's initial sequence number, so that its numbers wrap at once.
const IRS: SeqNumber = SeqNumber(u32::MAX);
/// Frames that a sweep of one peer may take when nobody answers, with room to spare.
const UNASKED: usize = 200;
/// Frames that one input may deliver.
const MOST_SAID: usize = 10_000;

#[derive(Arbitrary, Debug)]
struct Setting {
    /// Every frame comes from a forger, who is off by one wherever it counts.
    forger: bool,
    idle_s: u8,
    count: u8,
    one: bool,
    fin: bool,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Wait { millis: u16 },
    Say { flags: u8, seq: i16, ack: i8, len: u8, wnd: u8, ttl: u8, copies: u8 },
    Error { icmp_type: u8, code: u8, off: i8 },
}

/// What the peer knows of us: our last SYN, and the last frame of all.
#[derive(Default)]
struct Heard {
    port: u16,
    iss: SeqNumber,
    last: Vec<u8>,
    frames: usize,
}

/// One verdict, an end, and no more frames than questions and answers need.
pub(super) fn conversation(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let Ok(setting) = Setting::arbitrary(&mut input) else { return };
    let table = Arc::new(Table::with_capacity(1, Family::V4, [1, 2]));
    let post = Arc::new(Post::new(1, 1, 1 << 10));
    let mut receiver = Receiver::new(
        PathId(0),
        LinkType::Ip,
        Arc::clone(&table),
        HashSet::new(),
        Arc::clone(&post),
    );
    let Ok(mut sender) = sender(&setting, table) else { return };
    let mut now = Instant::from_nanos(1);
    let mut heard = Heard::default();
    let mut verdicts = Vec::new();
    let mut said = 0;
    run(&mut sender, &mut now, Duration::ZERO, &mut heard, &mut verdicts);
    // An input that has run out goes on for ever, as zeros.
    while !input.is_empty()
        && said < MOST_SAID
        && let Ok(event) = Event::arbitrary(&mut input)
    {
        match event {
            Event::Wait { millis } => {
                let span = Duration::from_millis(millis.into());
                run(&mut sender, &mut now, span, &mut heard, &mut verdicts);
                continue;
            }
            Event::Say { copies, .. } => {
                let frame = say(&event, &setting, &heard);
                for _ in 0..=copies % 100 {
                    said += 1;
                    deliver(&frame, now, &mut receiver, &post, &mut sender);
                }
            }
            Event::Error { .. } => {
                said += 1;
                deliver(&say(&event, &setting, &heard), now, &mut receiver, &post, &mut sender);
            }
        }
        run(&mut sender, &mut now, Duration::ZERO, &mut heard, &mut verdicts);
    }
    // Long enough for every plan and every close.
    let ended = run(&mut sender, &mut now, Duration::from_secs(3600), &mut heard, &mut verdicts);
    assert!(ended, "the sweep does not end: {setting:?}");
    let given = verdicts.iter().filter(|verdict| !verdict.correction).count();
    assert_eq!(given, 1, "{verdicts:#?}");
    let seconds = now.as_nanos() as usize / 1_000_000_000;
    assert!(heard.frames <= UNASKED + 2 * said + 5 * seconds, "{} for {said}", heard.frames);
    let counts = receiver.counts();
    assert_eq!(counts.frames, counts.matched + counts.rejected.iter().sum::<u64>());
    if setting.forger {
        assert_eq!(counts.matched, 0, "{setting:?}");
        let verdict = &verdicts[0];
        assert_eq!((verdict.state, verdict.reason), (State::Down, Reason::Silent));
    }
}

fn sender(setting: &Setting, table: Arc<Table>) -> Result<Sender, crate::wire::EmitError> {
    let path = PathInfo {
        id: PathId(0),
        interface: "fuzz0".into(),
        link: LinkType::Ip,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    Sender::new(Start {
        plan: Plan {
            keepalive: Keepalive {
                idle: Duration::from_secs(setting.idle_s.into()),
                interval: Duration::from_secs(1),
                count: u16::from(setting.count % 9) + 1,
            },
            probe_bytes: if setting.one { ProbeBytes::One } else { ProbeBytes::Auto },
            connect_timeout: Duration::from_secs(15),
            close: if setting.fin { Close::Fin } else { Close::Rst },
            rate_pps: None,
            rate_per_prefix_pps: None,
            seed: 1,
        },
        targets: vec![Target { id: TargetId(0), peer: (PEER, 80).into(), hop: Some(HopId(0)) }],
        given: Vec::new(),
        first_slot: 0,
        hops: vec![Hop { path: PathId(0), next_hop: PEER.into(), source: SOURCE.into() }],
        paths: vec![path],
        resolve: true,
        source_ports: 61_000..=65_534,
        table,
        now: Instant::from_nanos(1),
    })
}

/// Lets `span` pass, doing everything when it is due; says whether the sweep is over.
fn run(
    sender: &mut Sender,
    now: &mut Instant,
    span: Duration,
    heard: &mut Heard,
    verdicts: &mut Vec<Verdict>,
) -> bool {
    let end = *now + span;
    loop {
        sender.advance(*now, *now);
        let until = loop {
            match sender.poll_transmit(*now) {
                Poll::Transmit(due) => {
                    let mut frame = vec![0; 256];
                    let Ok(len) = sender.emit(&due, &mut frame) else { panic!("no frame") };
                    frame.truncate(len);
                    heard.take_in(frame);
                }
                Poll::Pace(until) | Poll::Wait(until) => break Some(until),
                Poll::Done => break None,
            }
        };
        while let Some(verdict) = sender.poll_verdict() {
            verdicts.push(verdict);
        }
        let Some(until) = until else { return true };
        if *now >= end {
            return false;
        }
        *now = until.max(*now + Duration::from_micros(1)).min(end);
    }
}

impl Heard {
    fn take_in(&mut self, frame: Vec<u8>) {
        let Ok(Packet::Tcp(segment)) = parse(&frame, LinkType::Ip, Checksums::Verify) else {
            panic!("what we send is a segment");
        };
        if segment.flags.contains(Flags::SYN) {
            (self.port, self.iss) = (segment.src_port, segment.seq);
        }
        self.frames += 1;
        self.last = frame;
    }
}

fn say(event: &Event, setting: &Setting, heard: &Heard) -> Vec<u8> {
    let mut buf = vec![0; 1024];
    let len = match *event {
        Event::Say { mut flags, seq, ack, len, wnd, ttl, .. } => {
            let mut acknowledged = i32::from(ack) + 1;
            let mut seq = i32::from(seq);
            if setting.forger {
                // An ACK without SYN to a SYN is a hint, which may make us try other tuples.
                flags |= if flags & 0x04 == 0 { 0x02 } else { 0 };
                acknowledged += if (1..=2).contains(&acknowledged) { 2 } else { 0 };
                seq = 1 << 20;
            }
            let payload = vec![0x55; len.into()];
            let segment = Segment {
                ip: IpHeader { src: PEER.into(), dst: SOURCE.into(), ttl, id: 0 },
                src_port: 80,
                dst_port: heard.port,
                seq: IRS + seq as u32,
                ack: heard.iss + acknowledged as u32,
                flags: Flags(flags),
                wnd: wnd.into(),
                options: Options::default(),
                payload: &payload,
            };
            segment.emit(&LinkHeader::Ip, &mut buf)
        }
        Event::Error { icmp_type, code, off } => {
            let mut quote = heard.last.clone();
            // The sequence number stands behind an IPv4 header and the ports.
            if let Some(seq) = quote.get_mut(24..28).and_then(|seq| seq.first_chunk_mut::<4>()) {
                // SYN and keepalive carry ISS; RST and bare ACK do not.
                let right = if setting.forger { heard.iss.0 } else { u32::from_be_bytes(*seq) };
                let off = if setting.forger && off == 0 { 1 } else { off };
                *seq = right.wrapping_add_signed(off.into()).to_be_bytes();
            }
            let ip = IpHeader {
                src: Ipv4Addr::new(10, 98, 0, 254).into(),
                dst: SOURCE.into(),
                ttl: 63,
                id: 0,
            };
            emit_error(&ip, icmp_type, code, &quote, &LinkHeader::Ip, &mut buf)
        }
        Event::Wait { .. } => Ok(0),
    };
    buf.truncate(len.unwrap_or(0));
    buf
}

fn deliver(bytes: &[u8], now: Instant, receiver: &mut Receiver, post: &Post, sender: &mut Sender) {
    let frame = RxFrame { bytes, at: now, checksums: Checksums::Verify };
    assert!(receiver.handle_frame(frame).is_ok(), "the queue holds one message");
    while let Some(heard) = post.pop(0) {
        sender.handle_heard(heard, now);
    }
}
