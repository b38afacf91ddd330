//! Frames that are lent and come back, or not.

use super::*;
use proptest::prelude::*;

const TX_OCTETS: u64 = FRAME_OCTETS as u64;
const TX_FRAMES: u32 = 32;
const LAYOUTS: [FrameLayout; 2] = [FrameLayout::Chunks, FrameLayout::Packed];

/// Four frames to receive into, and 32 to send from.
fn ledgers(layout: FrameLayout) -> (RxLedger, TxLedger) {
    let (_, rx, tx) = Umem::map(layout, 4, TX_FRAMES, "a test").unwrap().split();
    (rx, tx)
}

/// Where those begin that are sent.
fn tx_start(layout: FrameLayout) -> u64 {
    layout.octets(4, 0) as u64
}

fn desc(addr: u64, len: u32) -> libc::xdp_desc {
    libc::xdp_desc { addr, len, options: 0 }
}

#[test]
fn a_packet_goes_out_and_comes_back() {
    for layout in LAYOUTS {
        let (_, mut tx) = ledgers(layout);
        let mut frames = tx.issue();
        assert_eq!(frames.len(), TX_FRAMES as usize);
        assert!(tx.issue().is_empty(), "one token a frame");
        let mut frame = frames.pop().unwrap();
        let index = frame.index();
        tx.octets_mut(&mut frame)[..5].copy_from_slice(b"hello");
        let sent = tx.lend_packet(frame, 5);
        let last = tx_start(layout) + u64::from(TX_FRAMES - 1) * TX_OCTETS;
        assert_eq!((sent.addr, sent.len), (last, 5));
        let mut back = tx.take_back(sent.addr).unwrap();
        assert_eq!(&tx.octets_mut(&mut back)[..5], b"hello");
        assert_eq!(back.index(), index);
    }
}

#[test]
fn no_frame_reaches_into_the_next_chunk() {
    let (_, mut tx) = ledgers(FrameLayout::Chunks);
    for frame in tx.issue() {
        let sent = tx.lend_packet(frame, FRAME_OCTETS);
        let end = sent.addr + u64::from(sent.len) - 1;
        assert_eq!(sent.addr / CHUNK as u64, end / CHUNK as u64);
    }
}

/// Of an unaligned UMEM the kernel takes no frame with less than a chunk behind its beginning
/// (xp_check_unaligned).
#[test]
fn a_chunk_fits_behind_every_packed_frame() {
    let (umem, mut rx, _) = Umem::map(FrameLayout::Packed, 512, 256, "a test").unwrap().split();
    for frame in rx.issue() {
        assert!(rx.lend(frame) + CHUNK as u64 <= umem.registration().len);
    }
}

#[test]
fn a_share_is_split_with_its_tokens() {
    for layout in LAYOUTS {
        let (_, mut tx) = ledgers(layout);
        let first = (tx_start(layout) / TX_OCTETS) as u32;
        let last = first + TX_FRAMES - 1;
        let mut free = tx.issue();
        let lent = free.pop().unwrap();
        assert!(tx.split_off(30, &mut free).is_none(), "the last frame is in use");
        free.push(lent);
        let kept = tx.lend_packet(free.remove(0), 1).addr;
        let (mut other, given) = tx.split_off(30, &mut free).unwrap();
        free.insert(0, tx.take_back(kept).unwrap());
        let indices = |frames: &[Free]| frames.iter().map(Free::index).collect::<Vec<_>>();
        assert_eq!(indices(&free), (first..last - 1).collect::<Vec<_>>());
        assert_eq!(indices(&given), [last - 1, last]);
        assert!(other.issue().is_empty(), "one token a frame");
        assert_eq!(tx.range().end, u64::from(last - 1) * TX_OCTETS);
        assert_eq!(other.range().end, u64::from(last + 1) * TX_OCTETS);
        let sent = other.lend_packet(given.into_iter().next().unwrap(), 1);
        assert!(tx.take_back(sent.addr).is_none(), "of the other share");
        let back: Vec<_> = other.take_back(sent.addr).into_iter().collect();
        assert_eq!(indices(&back), [last - 1]);
        assert!(other.take_back(sent.addr).is_none(), "twice");
    }
}

#[test]
fn a_batch_comes_back_in_its_order_or_one_by_one() {
    let (_, mut tx) = ledgers(FrameLayout::Chunks);
    let mut free = tx.issue();
    let lend = |tx: &mut TxLedger, free: &mut Vec<Free>, count: usize| -> Vec<u64> {
        free.drain(..count).map(|frame| tx.lend_packet(frame, 1).addr).collect()
    };
    let indices = |frames: &[Free]| frames.iter().map(Free::index).collect::<Vec<_>>();
    let all = indices(&free);
    let batch = lend(&mut tx, &mut free, 5);
    // The first three, and then others than those that are next.
    assert!(tx.take_back_in_order(batch[..3].iter().copied(), &mut free));
    assert_eq!(indices(&free[27..]), all[..3]);
    for wrong in [&[batch[4], batch[3]][..], &batch[2..3], &[batch[3], batch[4], batch[0]]] {
        assert!(!tx.take_back_in_order(wrong.iter().copied(), &mut free), "{wrong:?}");
    }
    assert_eq!(free.len(), 30);
    // One by one they come back in any order, each once.
    let back = [batch[4], batch[3], batch[4], batch[0]].map(|addr| tx.take_back(addr));
    assert_eq!(back.map(|frame| frame.is_some()), [true, true, false, false]);
    // One by one, and then in order: what is left of an older batch is not in it.
    let older = lend(&mut tx, &mut free, 2);
    assert!(tx.take_back(older[1]).is_some());
    let newer = lend(&mut tx, &mut free, 2);
    assert!(!tx.take_back_in_order([older[0], newer[0]].into_iter(), &mut free));
    assert!(tx.take_back_in_order(newer.iter().copied(), &mut free));
    assert!(tx.take_back(newer[0]).is_none(), "twice");
    assert!(tx.take_back(older[0]).is_some());
}

#[test]
fn what_was_not_lent_cannot_be_taken() {
    let (mut rx, mut tx) = ledgers(FrameLayout::Chunks);
    let chunk = CHUNK as u64;
    let addrs: Vec<_> = rx.issue().into_iter().map(|frame| rx.lend(frame)).collect();
    assert_eq!(addrs, [0, chunk, 2 * chunk, 3 * chunk]);
    let longest = FrameLayout::Chunks.packet_octets();
    for (addr, len) in [
        (4 * chunk, 1), // the other share
        (6 * chunk, 1), // past the UMEM
        (u64::MAX, 1),
        (chunk + 256, longest + 1), // past its frame
        (chunk, u32::MAX),
    ] {
        assert!(rx.take_packet(desc(addr, len)).is_err(), "{addr} {len}");
    }
    let continued = libc::xdp_desc { options: libc::XDP_PKT_CONTD, ..desc(0, 1) };
    assert!(rx.take_packet(continued).is_err());
    let packet = rx.take_packet(desc(chunk + 256, longest)).unwrap();
    assert_eq!(rx.octets(&packet).len(), longest as usize);
    assert!(rx.take_packet(desc(chunk, 1)).is_err(), "twice");
    assert!(tx.take_back(5 * chunk).is_none(), "never lent");
    assert!(tx.take_back(0).is_none(), "of the other share");
}

#[test]
fn a_packed_packet_is_found_by_its_offset() {
    let (mut rx, _) = ledgers(FrameLayout::Packed);
    let frames = 2 * HEADROOM as u64;
    let addrs: Vec<_> = rx.issue().into_iter().map(|frame| rx.lend(frame)).collect();
    assert_eq!(addrs, [0, frames, 2 * frames, 3 * frames]);
    let at = |base: u64, offset: u64| base | offset << OFFSET_SHIFT;
    let longest = FrameLayout::Packed.packet_octets();
    for (addr, len) in [
        (at(0, 256), longest + 1),    // into its neighbour
        (at(4 * frames, 256), 1),     // the other share
        (at(0, 4 * frames + 256), 1), // the other share, by its offset
        (at((1 << OFFSET_SHIFT) - 1, 0xffff), 1),
    ] {
        assert!(rx.take_packet(desc(addr, len)).is_err(), "{addr:#x} {len}");
    }
    let packet = rx.take_packet(desc(at(frames, 256), longest)).unwrap();
    assert_eq!(rx.octets(&packet).len(), longest as usize);
    assert_eq!(packet.free().index(), 1);
}

proptest! {
    /// Whatever is lent, and whatever the kernel says has come back.
    #[test]
    fn a_frame_comes_back_if_and_only_if_it_is_lent(
        turns in prop::collection::vec((0..8_usize, any::<bool>(), prop::collection::vec(0..40_u64, 0..8)), 1..20),
    ) {
        let (_, mut tx) = ledgers(FrameLayout::Packed);
        let first = tx.range().start;
        let mut free = tx.issue();
        let mut lent: Vec<u64> = Vec::new();
        for (count, in_order, places) in turns {
            let count = count.min(free.len());
            lent.extend(free.drain(..count).map(|frame| tx.lend_packet(frame, 1).addr));
            // What the kernel gives back: the oldest, or anything.
            let back: Vec<u64> = match in_order {
                true => lent.iter().copied().take(places.len()).collect(),
                false => places.iter().map(|place| first + place * TX_OCTETS).collect(),
            };
            let before = free.len();
            if tx.take_back_in_order(back.iter().copied(), &mut free) {
                let taken = free[before..].iter().map(|frame| u64::from(frame.index()) * TX_OCTETS);
                prop_assert_eq!(taken.collect::<Vec<_>>(), back.clone());
                lent.retain(|addr| !back.contains(addr));
            } else {
                prop_assert_eq!(free.len(), before);
                for addr in back {
                    let frame = tx.take_back(addr);
                    let at = lent.iter().position(|lent| *lent == addr);
                    prop_assert_eq!(frame.is_some(), at.is_some());
                    if let Some(at) = at {
                        lent.remove(at);
                    }
                    free.extend(frame);
                }
            }
            prop_assert_eq!(free.len() + lent.len(), TX_FRAMES as usize);
        }
    }

    #[test]
    fn arbitrary_descriptors_stay_inside(
        packed: bool,
        addr in prop_oneof![any::<u64>(), 0..8 * CHUNK as u64],
        offset in prop_oneof![Just(0), any::<u16>(), 0..3000_u16],
        len in prop_oneof![any::<u32>(), 0..3000_u32],
    ) {
        let layout = if packed { FrameLayout::Packed } else { FrameLayout::Chunks };
        let (mut rx, _) = ledgers(layout);
        for frame in rx.issue() {
            rx.lend(frame);
        }
        let addr = addr | if packed { u64::from(offset) << OFFSET_SHIFT } else { 0 };
        if let Ok(packet) = rx.take_packet(desc(addr, len)) {
            prop_assert!(layout.resolve(addr) + u64::from(len) <= tx_start(layout));
            prop_assert_eq!(rx.octets(&packet).len(), len as usize);
        }
    }
}
