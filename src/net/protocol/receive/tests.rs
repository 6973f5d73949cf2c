//! Packets of any shape, against a model that puts their pieces one behind the other.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::MAX_RX_BYTES;
use super::*;

/// A packet as a back end may send it: pieces by offset and length, and how many extra infos.
fn shapes() -> impl Strategy<Value = (usize, usize, Vec<(u16, u16)>, usize)> {
    let whole = (0_usize..3).prop_map(|_| (0_u16, 4096_u16));
    let any_piece = (0_u16..4096).prop_flat_map(|offset| (Just(offset), 1..=4096 - offset));
    let short = (0_u16..9).prop_flat_map(|offset| (Just(offset), 1_u16..200));
    let pieces = prop::collection::vec(prop_oneof![4 => whole, 1 => any_piece, 1 => short], 1..=MAX_RX_SLOTS);
    (prop_oneof![Just(32_usize), Just(256)], 0_usize..256, pieces, 0_usize..=3)
}

fn response(slot: usize, offset: u16, len: i16, flags: RxFlags) -> [u8; 8] {
    RxResponse { id: slot as u16, offset, flags, status: len }.encode()
}

const EXTRAS: [[u8; 8]; 3] = [[1, 1, 0xb4, 5, 1, 0, 0, 0], [4, 1, 1, 1, 9, 9, 9, 9], [5, 1, 0, 1, 0, 0, 0, 0]];

/// Feeds a packet to an assembler, its last slot excepted if it is cut off.
fn feed(
    assembler: &mut Assembler,
    slots: usize,
    first: usize,
    pieces: &[(u16, u16)],
    extras: usize,
) -> Result<Packet, Violation> {
    let mut slot = first;
    let mut done = false;
    let mut step = |bytes: &dyn Fn(usize) -> [u8; 8]| {
        let at = slot % slots;
        slot += 1;
        done = assembler.slot(at, &bytes(at))?;
        Ok(())
    };
    for (index, &(offset, len)) in pieces.iter().enumerate() {
        let mut flags = RxFlags::empty();
        flags.set(RxFlags::MORE_DATA, index + 1 < pieces.len());
        flags.set(RxFlags::EXTRA_INFO, index == 0 && extras > 0);
        step(&|at| response(at, offset, len as i16, flags))?;
        for number in (0..extras).filter(|_| index == 0) {
            step(&|_| {
                let mut bytes = EXTRAS[number];
                bytes[1] = u8::from(number + 1 < extras);
                bytes
            })?;
        }
    }
    assert!(done, "a complete packet");
    Ok(assembler.packet().clone())
}

proptest! {
    #![proptest_config(crate::sim::proptest_config())]

    #[test]
    fn any_packet_becomes_one_slice((slots, first, pieces, extras) in shapes()) {
        let total: usize = pieces.iter().map(|&(_, len)| usize::from(len)).sum();
        let mut assembler = Assembler::new(slots, MAX_RX_BYTES);
        let result = feed(&mut assembler, slots, first, &pieces, extras);
        if total > MAX_RX_BYTES {
            prop_assert_eq!(result, Err(Violation::TooLarge));
            return Ok(());
        }
        let packet = result.unwrap();
        prop_assert!(assembler.is_between());
        prop_assert_eq!((packet.first, packet.slots, packet.len), (first % slots, pieces.len() + extras, total));
        prop_assert_eq!(packet.failed, total < MIN_BYTES);
        prop_assert_eq!(packet.segmentation.is_some(), extras > 0);
        let pages = slots + MAX_RX_BYTES / PAGE;
        let mut area: Vec<u8> = vec![0; pages * PAGE];
        let mut expected = Vec::new();
        for piece in packet.pieces() {
            for (at, byte) in area.iter_mut().enumerate().skip(piece.start).take(piece.len) {
                *byte = (at / PAGE * 31 + at * 7) as u8 | 1;
            }
            expected.extend_from_slice(&area[piece.start..piece.start + piece.len]);
        }
        let own = |page: usize| page >= slots || (page + slots - packet.first) % slots < packet.slots;
        let mut copied = 0;
        let start = packet.gather(slots, |Move { from, len, to }| {
            for page in to / PAGE..=(to + len - 1) / PAGE {
                assert!(own(page), "page {page} is not the packet's");
            }
            area.copy_within(from..from + len, to);
            copied += len;
        });
        prop_assert_eq!(&area[start..start + total], &*expected);
        prop_assert!(copied < total || total == 0, "at least the largest piece stays");
    }

    #[test]
    fn any_slots_are_judged(slots in prop::collection::vec((any::<[u8; 8]>(), any::<bool>()), 1..60)) {
        let mut assembler = Assembler::new(32, MAX_RX_BYTES);
        for (number, (mut bytes, own_id)) in slots.into_iter().enumerate() {
            if own_id {
                bytes[..2].copy_from_slice(&((number % 32) as u16).to_le_bytes());
            }
            match assembler.slot(number, &bytes) {
                Ok(true) => {
                    let packet = assembler.packet();
                    prop_assert!(packet.len <= MAX_RX_BYTES && packet.slots <= MAX_RX_SLOTS + MAX_EXTRAS);
                    packet.gather(32, |copy| assert!(copy.to + copy.len <= (32 + 17) * PAGE));
                }
                Ok(false) => {}
                Err(_) => break,
            }
        }
    }
}

/// How the segments of a dom0 arrive: the copies that close the gap behind the first page.
#[test]
fn extra_behind_first_page_costs_one_page() {
    let moves = |first| {
        let mut assembler = Assembler::new(256, MAX_RX_BYTES);
        let packet = feed(&mut assembler, 256, first, &[(0, 4096), (0, 4096), (0, 4096), (0, 100)], 1).unwrap();
        let mut moves = Vec::new();
        let start = packet.gather(256, |copy| moves.push(copy));
        (start, moves)
    };
    let page = |from: usize, to: usize, len| Move { from: from * PAGE, len, to: to * PAGE };
    assert_eq!(moves(10), (11 * PAGE, vec![page(10, 11, 4096)]));
    // The extra info is in slot 0: the first page goes there.
    assert_eq!(moves(255), (0, vec![page(255, 0, 4096)]));
    // It is in slot 255: what is behind the end goes behind the area.
    assert_eq!(moves(254), (254 * PAGE, vec![page(0, 255, 4096), page(1, 256, 4096), page(2, 257, 100)]));
}

#[test]
fn xsa448_zero_length_piece_drops_the_packet() {
    let mut assembler = Assembler::new(32, MAX_RX_BYTES);
    assert_eq!(assembler.slot(0, &response(0, 0, 100, RxFlags::MORE_DATA)), Ok(false));
    assert_eq!(assembler.slot(1, &response(1, 0, 0, RxFlags::empty())), Ok(true));
    let packet = assembler.packet();
    assert!(packet.failed && packet.slots == 2);
}

#[test]
fn packet_with_one_failed_piece_is_dropped() {
    let mut assembler = Assembler::new(32, MAX_RX_BYTES);
    assert_eq!(assembler.slot(5, &response(5, 0, 4096, RxFlags::MORE_DATA)), Ok(false));
    assert_eq!(assembler.slot(6, &response(6, 9999, -1, RxFlags::MORE_DATA)), Ok(false));
    assert_eq!(assembler.slot(7, &response(7, 0, 9, RxFlags::empty())), Ok(true));
    let packet = assembler.packet();
    assert!(packet.failed && packet.slots == 3 && packet.first == 5);
}

#[test]
fn violations_are_named() {
    let first = |bytes: [u8; 8]| Assembler::new(32, MAX_RX_BYTES).slot(3, &bytes);
    assert_eq!(first(response(4, 0, 60, RxFlags::empty())), Err(Violation::WrongId(3, 4)));
    assert_eq!(first(response(3, 4090, 7, RxFlags::empty())), Err(Violation::BeyondPage(4090, 7)));
    assert_eq!(first(response(3, 0, 4097, RxFlags::empty())), Err(Violation::BeyondPage(0, 4097)));
    assert_eq!(
        first(response(3, u16::MAX, i16::MAX, RxFlags::empty())),
        Err(Violation::BeyondPage(u16::MAX, i16::MAX))
    );
    for bad in
        [[0; 8], [2, 0, 0, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 9, 0, 3, 0, 0, 0]]
    {
        let mut assembler = Assembler::new(32, MAX_RX_BYTES);
        assembler.slot(0, &response(0, 0, 60, RxFlags::EXTRA_INFO)).unwrap();
        assert_eq!(assembler.slot(1, &bad), Err(Violation::BadExtra(bad[0])));
    }
    let mut assembler = Assembler::new(32, MAX_RX_BYTES);
    assembler.slot(0, &response(0, 0, 60, RxFlags::EXTRA_INFO)).unwrap();
    assembler.slot(1, &EXTRAS[1]).unwrap();
    assert_eq!(assembler.slot(2, &EXTRAS[1]), Err(Violation::BadExtra(4)), "twice");
    let mut assembler = Assembler::new(32, MAX_RX_BYTES);
    let endless = (0..40).map(|slot| assembler.slot(slot, &response(slot % 32, 0, -1, RxFlags::MORE_DATA)));
    assert_eq!(endless.last(), Some(Err(Violation::TooLarge)));
}
