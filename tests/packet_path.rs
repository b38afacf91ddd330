//! The AF_PACKET path over a veth pair, in a network namespace of its own.

mod netns;

use keepsweep::io::packet::{FilterSpec, PacketRx, PacketTx, RxOptions};
use keepsweep::io::route::{Interface, interfaces};
use keepsweep::io::{IoError, Receive, RxFrame, Transmit};
use keepsweep::time::{Clock, Instant};
use netns::{in_namespace, ip};
use std::net::Ipv4Addr;
use std::time::Duration;

const NEAR: &str = "near0";
const FAR: &str = "far0";
const OURS: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
const DEADLINE: Duration = Duration::from_secs(10);

fn interface(name: &str) -> Interface {
    let all = interfaces().expect("list interfaces");
    all.into_iter().find(|interface| interface.name == name).expect("interface exists")
}

fn veth() {
    ip(&format!("link add {NEAR} type veth peer name {FAR}"));
    ip(&format!("link set {NEAR} up"));
    ip(&format!("link set {FAR} up"));
}

fn sender(name: &str) -> PacketTx {
    PacketTx::open(interface(name).index, name).expect("open the sending end")
}

/// The receiving end on `name`, for frames to it.
fn receiver(name: &str, options: RxOptions) -> PacketRx {
    let interface = interface(name);
    let filter = FilterSpec {
        addresses: vec![OURS.into()],
        ports: (61000..=65534).into(),
        bare_ports: Default::default(),
        mac: interface.mac,
    };
    PacketRx::open(interface.index, name, &filter, options).expect("open the receiving end")
}

/// A TCP frame to `OURS` at interface `to`, with `number` as its sequence number.
fn frame(to: &Interface, dst_port: u16, number: u32) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&to.mac.0);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[17] = 40;
    frame[22] = 64;
    frame[23] = 6;
    frame[26..30].copy_from_slice(&[10, 9, 9, 9]);
    frame[30..34].copy_from_slice(&OURS.octets());
    frame[34..36].copy_from_slice(&80u16.to_be_bytes());
    frame[36..38].copy_from_slice(&dst_port.to_be_bytes());
    frame[38..42].copy_from_slice(&number.to_be_bytes());
    frame[46] = 0x50;
    frame
}

fn number_of(frame: &RxFrame<'_>) -> u32 {
    u32::from_be_bytes(frame.bytes[38..42].try_into().expect("four octets"))
}

fn send(tx: &mut PacketTx, frame: &[u8]) {
    tx.reserve().expect("room in the batch")[..frame.len()].copy_from_slice(frame);
    tx.submit(frame.len());
}

fn send_many(tx: &mut PacketTx, to: &Interface, numbers: std::ops::Range<u32>) {
    for number in numbers {
        if tx.reserve().is_none() {
            tx.flush().expect("flush");
        }
        send(tx, &frame(to, 61000, number));
    }
    tx.flush().expect("flush");
}

/// Receives until `expected` frames have come, or the deadline has passed.
fn collect(rx: &mut PacketRx, expected: usize) -> Vec<(u32, Instant)> {
    let deadline = Clock.now() + DEADLINE;
    let mut seen = Vec::new();
    while seen.len() < expected && Clock.now() < deadline {
        rx.receive(Duration::from_millis(100), &mut |frame| {
            seen.push((number_of(&frame), frame.at));
        })
        .expect("receive");
    }
    seen
}

#[test]
fn carries_every_frame_in_order_and_stamps_it() {
    in_namespace(|| {
        veth();
        let (far, mut tx, mut rx) =
            (interface(FAR), sender(NEAR), receiver(FAR, RxOptions::default()));
        let before = Clock.now();
        send_many(&mut tx, &far, 0..5000);
        let after = Clock.now();
        let seen = collect(&mut rx, 5000);
        let numbers: Vec<u32> = seen.iter().map(|&(number, _)| number).collect();
        assert_eq!(numbers, (0..5000).collect::<Vec<u32>>());
        // The two clocks are read one after the other; a preempted thread can shift a stamp.
        let slack = Duration::from_millis(20);
        for (number, at) in seen {
            assert!(
                at >= before - slack && at <= after + slack,
                "{number}: {before:?} {at:?} {after:?}"
            );
        }
        let stats = rx.stats().expect("stats");
        assert_eq!((stats.received, stats.dropped), (5000, 0));
        assert_eq!(rx.stats().expect("stats").received, 5000, "cumulative although reading resets");
    });
}

#[test]
fn hands_over_frames_unchanged() {
    in_namespace(|| {
        veth();
        let (far, mut tx, mut rx) =
            (interface(FAR), sender(NEAR), receiver(FAR, RxOptions::default()));
        let sent = frame(&far, 65534, 0xdead_beef);
        send(&mut tx, &sent);
        assert_eq!(tx.flush().expect("flush"), 1);
        let mut seen = Vec::new();
        let deadline = Clock.now() + DEADLINE;
        while seen.is_empty() && Clock.now() < deadline {
            rx.receive(Duration::from_secs(1), &mut |frame| seen.push(frame.bytes.to_vec()))
                .expect("receive");
        }
        assert_eq!(seen, [sent.to_vec()]);
    });
}

#[test]
fn sees_neither_foreign_frames_nor_its_own() {
    in_namespace(|| {
        veth();
        let (near, far) = (interface(NEAR), interface(FAR));
        let mut tx = sender(NEAR);
        let mut own = receiver(NEAR, RxOptions::default());
        let mut rx = receiver(FAR, RxOptions::default());
        send(&mut tx, &frame(&far, 80, 1)); // foreign port
        send(&mut tx, &frame(&near, 61000, 2)); // foreign MAC address; outgoing for `own`
        send(&mut tx, &frame(&far, 61000, 3));
        tx.flush().expect("flush");
        let mut back = sender(FAR);
        send(&mut back, &frame(&near, 61000, 4));
        back.flush().expect("flush");
        let numbers = |rx: &mut PacketRx| -> Vec<u32> {
            collect(rx, 1).into_iter().map(|(number, _)| number).collect()
        };
        // The veth keeps the order, so that what was wrongly let in would have come first.
        assert_eq!(numbers(&mut rx), [3]);
        assert_eq!(numbers(&mut own), [4]);
        assert_eq!(rx.stats().expect("stats").received, 1);
        assert_eq!(own.stats().expect("stats").received, 1);
    });
}

#[test]
fn never_claims_to_be_complete_past_a_frame_still_to_come() {
    in_namespace(|| {
        veth();
        let (far, mut tx, mut rx) =
            (interface(FAR), sender(NEAR), receiver(FAR, RxOptions::default()));
        let mut complete_until = Instant::ZERO;
        let mut sent_at = Vec::new();
        let mut seen = 0;
        let deadline = Clock.now() + DEADLINE;
        while seen < 2000 && Clock.now() < deadline {
            if sent_at.len() < 2000 {
                let number = sent_at.len() as u32;
                send(&mut tx, &frame(&far, 61000, number));
                sent_at.push(Clock.now());
                tx.flush().expect("flush");
            }
            // Waits of 0 to 2 ms, so that frames are caught in blocks both retired and being filled.
            let wait = Duration::from_millis(u64::from(sent_at.len() % 97 == 0) * 2);
            let received = rx
                .receive(wait, &mut |frame| {
                    assert_eq!(number_of(&frame), seen as u32);
                    assert!(sent_at[seen] >= complete_until, "frame {seen} was to be in already");
                    assert!(frame.at >= complete_until);
                    seen += 1;
                })
                .expect("receive");
            assert!(received.complete_until >= complete_until, "went backwards");
            assert!(received.complete_until <= Clock.now());
            complete_until = received.complete_until;
        }
        assert_eq!(seen, 2000);
        // With nothing on its way it follows the present.
        let idle_since = Clock.now();
        let deadline = idle_since + DEADLINE;
        while complete_until < idle_since && Clock.now() < deadline {
            let received = rx.receive(Duration::from_millis(1), &mut |_| {}).expect("receive");
            complete_until = received.complete_until;
        }
        assert!(complete_until >= idle_since);
    });
}

#[test]
fn counts_what_a_full_ring_loses() {
    in_namespace(|| {
        veth();
        let (far, mut tx) = (interface(FAR), sender(NEAR));
        let mut rx = receiver(FAR, RxOptions { ring_octets: 1 << 20, retire_ms: 2 });
        assert_eq!(rx.ring_octets(), 1 << 20);
        send_many(&mut tx, &far, 0..20_000);
        let first = rx.stats().expect("stats");
        assert_eq!(first.received, 20_000);
        assert!(first.dropped > 0 && first.dropped < 20_000, "{first:?}");
        let kept = (first.received - first.dropped) as usize;
        assert_eq!(collect(&mut rx, kept).len(), kept);
        // And goes on afterwards.
        send_many(&mut tx, &far, 0..100);
        assert_eq!(collect(&mut rx, 100).len(), 100);
        let second = rx.stats().expect("stats");
        assert_eq!((second.received, second.dropped), (20_100, first.dropped));
    });
}

#[test]
fn batches_and_recovers_from_a_refused_frame() {
    in_namespace(|| {
        veth();
        ip(&format!("link set {NEAR} mtu 100"));
        let (far, mut tx, mut rx) =
            (interface(FAR), sender(NEAR), receiver(FAR, RxOptions::default()));
        let mut batch = 0;
        while tx.reserve().is_some() {
            send(&mut tx, &frame(&far, 61000, batch));
            batch += 1;
        }
        assert!((64..=256).contains(&batch), "{batch}");
        assert_eq!(tx.flush().expect("flush"), batch as usize);
        assert_eq!(tx.flush().expect("flush an empty batch"), 0);

        send(&mut tx, &[0; 128]);
        let unsent = tx.flush().expect_err("longer than the MTU");
        assert_eq!((unsent.sent, unsent.refused), (0, 1));
        let error = unsent.error;
        assert_eq!(error.source.raw_os_error(), Some(libc::EMSGSIZE), "{error}");
        send(&mut tx, &frame(&far, 61000, batch));
        assert_eq!(tx.flush().expect("the refused frame is gone"), 1);
        assert_eq!(collect(&mut rx, batch as usize + 1).len(), batch as usize + 1);
    });
}

#[track_caller]
fn assert_names(error: &IoError, errno: i32, interface: &str) {
    assert_eq!(error.source.raw_os_error(), Some(errno), "{error}");
    assert!(error.to_string().contains(interface), "{error}");
    assert!(!error.remedy.is_empty(), "{error}");
}

#[test]
fn names_an_interface_that_is_down_or_gone() {
    in_namespace(|| {
        veth();
        let far = interface(FAR);
        let mut tx = sender(FAR);
        let mut rx = receiver(FAR, RxOptions::default());
        ip(&format!("link set {FAR} down"));
        send(&mut tx, &frame(&far, 61000, 0));
        assert_names(&tx.flush().expect_err("down").error, libc::ENETDOWN, FAR);
        let down = rx.receive(DEADLINE, &mut |_| {}).expect_err("down");
        assert_names(&down, libc::ENETDOWN, FAR);
        let filter = FilterSpec {
            addresses: vec![OURS.into()],
            ports: (1..=2).into(),
            bare_ports: Default::default(),
            mac: far.mac,
        };
        let open = PacketRx::open(far.index, FAR, &filter, RxOptions::default());
        assert_names(&open.expect_err("down"), libc::ENETDOWN, FAR);

        // Up again, the same sockets go on.
        ip(&format!("link set {FAR} up"));
        let mut near = sender(NEAR);
        send_many(&mut near, &far, 0..1);
        assert_eq!(collect(&mut rx, 1).len(), 1);

        ip(&format!("link del {FAR}"));
        send(&mut tx, &frame(&far, 61000, 0));
        assert_names(&tx.flush().expect_err("gone").error, libc::ENXIO, FAR);
        assert_names(&rx.receive(DEADLINE, &mut |_| {}).expect_err("gone"), libc::ENETDOWN, FAR);
        assert_names(&PacketTx::open(far.index, FAR).expect_err("gone"), libc::ENODEV, FAR);
    });
}

/// `cargo test --release --test packet_path -- --ignored --nocapture measure_tx`
#[test]
#[ignore = "a measurement"]
fn measure_tx_rate() {
    in_namespace(|| {
        veth();
        let (far, mut tx) = (interface(FAR), sender(NEAR));
        let frame = frame(&far, 80, 0);
        let total = 2_000_000;
        let start = Clock.now();
        for _ in 0..total {
            if tx.reserve().is_none() {
                tx.flush().expect("flush");
            }
            send(&mut tx, &frame);
        }
        tx.flush().expect("flush");
        let elapsed = Clock.now().since(start);
        println!(
            "{:.0} frames/s, {:?} each",
            f64::from(total) / elapsed.as_secs_f64(),
            elapsed / total
        );
    });
}

/// `cargo test --release --test packet_path -- --ignored --nocapture measure_rx`
#[test]
#[ignore = "a measurement"]
fn measure_rx_latency() {
    in_namespace(|| {
        veth();
        let (far, mut tx) = (interface(FAR), sender(NEAR));
        for retire_ms in [1, 2, 4] {
            let mut rx = receiver(FAR, RxOptions { retire_ms, ..RxOptions::default() });
            let mut latencies = Vec::new();
            let mut lags = Vec::new();
            for number in 0..1000u32 {
                // Out of step with the retire timer.
                let pause =
                    Duration::from_micros(u64::from(number.wrapping_mul(2_654_435_761) % 4000));
                Clock.sleep(pause);
                let idle = rx.receive(Duration::ZERO, &mut |_| {}).expect("receive");
                lags.push(Clock.now().since(idle.complete_until));
                let sent = Clock.now();
                send_many(&mut tx, &far, number..number + 1);
                assert_eq!(collect(&mut rx, 1).len(), 1);
                latencies.push(Clock.now().since(sent));
            }
            latencies.sort();
            lags.sort();
            println!(
                "retire {retire_ms} ms: latency min {:?} median {:?} p99 {:?} max {:?}; complete_until lag median {:?} max {:?}",
                latencies[0], latencies[500], latencies[990], latencies[999], lags[500], lags[999],
            );
        }
    });
}
