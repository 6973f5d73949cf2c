//! Checksums against a plain model, and of frames of any bytes.

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// RFC 1071, word by word.
fn model(bytes: &[u8]) -> u16 {
    let mut total = 0_u32;
    for pair in bytes.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A frame with a payload, whose checksum is zero.
fn frame(protocol: Protocol, ipv6: bool, tags: usize, options: bool, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for _ in 0..tags {
        frame.extend([0x81, 0, 0, 9]);
    }
    let header = if protocol == Protocol::Tcp { 20 } else { 8 };
    let len = (header + payload.len()) as u16;
    let number = if protocol == Protocol::Tcp { 6 } else { 17 };
    if ipv6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        let extra = if options { 8 } else { 0 };
        frame.extend((len + extra).to_be_bytes());
        frame.extend([if options { 0 } else { number }, 64]);
        frame.extend((0..32).map(|byte| byte * 7));
        frame.extend([number, 0, 1, 4, 0, 0, 0, 0].iter().take(extra.into()));
    } else {
        let words = if options { 6 } else { 5 };
        frame.extend([0x08, 0, 0x40 | words, 0]);
        frame.extend((len + u16::from(words) * 4).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, number, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([1, 1, 1, 1].iter().take(if options { 4 } else { 0 }));
    }
    let start = frame.len();
    frame.extend(vec![0; header]);
    if protocol == Protocol::Tcp {
        frame[start + 12] = 0x50;
    } else {
        frame[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    (protocol, any::<bool>(), 0_usize..3, any::<bool>(), payload)
        .prop_map(|(protocol, ipv6, tags, options, payload)| frame(protocol, ipv6, tags, options, &payload))
}

proptest! {
    #![proptest_config(crate::sim::proptest_config())]

    #[test]
    fn sum_is_that_of_the_model(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        // Both zeroes of ones' complement are one.
        prop_assert_eq!(sum(&bytes) % u16::MAX, model(&bytes) % u16::MAX);
    }

    #[test]
    fn filled_frames_verify_and_damage_shows(mut frame in frames(), padding in 0_usize..9, at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let segment = find(&frame).unwrap();
        frame.extend(vec![0xee; padding]);
        prop_assert_eq!(find(&frame), Some(segment), "padding is not the segment's");
        make_blank(&mut frame, &segment);
        prop_assert_eq!(u16_at(&frame, segment.field()), Some(segment.pseudo));
        // Who continues from the field, as a network card does, comes to the same.
        let continued = !sum(&frame[segment.start..segment.end]);
        prop_assert!(complete(&mut frame));
        let filled = u16_at(&frame, segment.field()).unwrap();
        prop_assert_eq!(filled % u16::MAX, continued % u16::MAX);
        prop_assert_ne!((segment.protocol, filled), (Protocol::Udp, 0));
        prop_assert_eq!(verify(&frame), Verdict::Good);
        let at = segment.start + at.index(segment.end - segment.start);
        frame[at] ^= 1_u8 << bit;
        let is_field = (segment.field()..segment.field() + 2).contains(&at);
        prop_assert!(verify(&frame) == Verdict::Bad || is_field && segment.protocol == Protocol::Udp);
    }

    #[test]
    fn any_bytes_are_judged(mut bytes in prop::collection::vec(any::<u8>(), 0..120), frame in frames(), cut in any::<prop::sample::Index>()) {
        let _ = verify(&bytes);
        complete(&mut bytes);
        let cut = cut.index(frame.len());
        prop_assert_eq!(find(&frame[..cut]), None, "the length says more");
        let mut mixed = frame;
        mixed[14..].iter_mut().zip(&bytes).for_each(|(byte, other)| *byte ^= other & 0x11);
        complete(&mut mixed);
    }
}

#[test]
fn fragments_and_other_protocols_are_never_touched() {
    let good = frame(Protocol::Udp, false, 0, false, b"data");
    for (at, value) in [(20, 0x20), (21, 1), (23, 1), (23, 2), (14, 0x44), (14, 0x65), (12, 9)] {
        let mut other = good.clone();
        other[at] = value;
        assert_eq!((find(&other), verify(&other)), (None, Verdict::Absent), "{at} {value}");
        let before = other.clone();
        assert!(!complete(&mut other));
        assert_eq!(before, other);
    }
    let three_tags = frame(Protocol::Udp, false, 3, false, b"data");
    assert_eq!(find(&three_tags), None);
    let mut udp6 = frame(Protocol::Udp, true, 0, false, b"data");
    assert_eq!(verify(&udp6), Verdict::Bad, "no checksum over IPv6");
    assert_eq!(verify(&good), Verdict::Absent, "no checksum over IPv4");
    udp6[20] = 44;
    assert_eq!(find(&udp6), None, "a fragment");
}
