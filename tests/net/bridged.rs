//! Two front ends, bridged by a back end that is honest, but for what it loses, mixes up and keeps back.

use std::sync::Mutex;

use domu::net::protocol::checksum::{Verdict, verify};
use domu::net::{Checksum, Metadata, TxChecksum};
use domu::sim::{Host, NetBackend, make_vif};
use domu::time;

use super::*;

/// A UDP frame with a number and a payload that follows from it, without a checksum.
fn udp(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0; 42 + len];
    frame[..12].copy_from_slice(&[0xff; 12]);
    frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, ((28 + len) >> 8) as u8, (28 + len) as u8]);
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 17]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame[34..40].copy_from_slice(&[0, 9, 0, 9, ((8 + len) >> 8) as u8, (8 + len) as u8]);
    frame[42..46].copy_from_slice(&number.to_le_bytes());
    for (at, byte) in frame[46..].iter_mut().enumerate() {
        *byte = (number as usize * 13 + at * 7) as u8;
    }
    frame
}

const OFFLOAD: Metadata = {
    let mut metadata = Metadata { checksum: TxChecksum::Offload, segmentation: None };
    metadata.segmentation = None;
    metadata
};

/// Sends numbered frames one way, counts those that arrive, and compares each.
fn one_way(
    backend: NetBackend,
    config: Config,
    lens: &'static [usize],
    count: u32,
) -> (Vec<u32>, net::Statistics, net::Statistics) {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    make_vif(&store, OTHER, BACK, 0);
    let (seen, done) = (Mutex::new(Vec::new()), Mutex::new((Default::default(), Default::default())));
    let reports = Host::new()
        .domain(BACK, Guest::new().xenstore(&store).memory_mib(16, 16).backed_mib(16), {
            async move |domain: Domain| backend.serve(domain, &[(ONE, 0), (OTHER, 0)]).await
        })
        .domain(ONE, guest(&store), async |domain: Domain| -> domu::Result {
            let (_receiver, mut transmitter, handle) = open(domain, config).await?;
            assert_eq!((handle.mac().to_string().as_str(), handle.mtu()), ("00:16:3e:00:00:07", Some(1500)));
            time::sleep(20 * MS).await;
            for number in 0..count {
                let frame = udp(number, lens[number as usize % lens.len()]);
                transmitter.send(frame.len(), OFFLOAD, |buffer| buffer.copy_from_slice(&frame)).await?;
                if number % 64 == 63 {
                    // The other end is given time: nothing says when it has read.
                    time::sleep(MS).await;
                }
            }
            time::sleep(200 * MS).await;
            done.lock().unwrap().0 = handle.statistics();
            Ok(())
        })
        .domain(OTHER, guest(&store), async |domain: Domain| -> domu::Result {
            let (mut receiver, _transmitter, handle) = open(domain, config).await?;
            while let Ok(frame) = time::timeout(100 * MS, receiver.receive()).await {
                let frame = frame?;
                let mut bytes = frame.bytes().to_vec();
                if frame.checksum() == Checksum::Blank {
                    assert!(net::protocol::checksum::complete(&mut bytes));
                } else {
                    assert_eq!(frame.checksum(), Checksum::Verified);
                }
                assert_eq!(verify(&bytes), Verdict::Good);
                let number = u32::from_le_bytes(bytes[42..46].try_into().unwrap());
                bytes[40..42].fill(0);
                assert_eq!(bytes, udp(number, lens[number as usize % lens.len()]));
                seen.lock().unwrap().push(number);
            }
            done.lock().unwrap().1 = handle.statistics();
            // The toolstack removes both interfaces, and the back end ends.
            store.dom0(|dom0| {
                for front in [ONE, OTHER] {
                    dom0.remove(&format!("/local/domain/{front}/device/vif"));
                    dom0.remove(&format!("/local/domain/3/backend/vif/{front}"));
                }
            });
            Ok(())
        })
        .run();
    for report in reports {
        report.powered_off();
    }
    let (sent, received) = done.into_inner().unwrap();
    (seen.into_inner().unwrap(), sent, received)
}

#[test]
fn frames_arrive_whole_and_in_order() {
    let (seen, sent, received) = one_way(NetBackend::default(), Config::new(), &[4, 60, 1472], 300);
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    assert_eq!((sent.tx_frames, sent.tx_blank, sent.tx_failed), (300, 300, 0));
    assert_eq!((received.rx_frames, received.rx_blank, received.rx_bytes), (300, 300, sent.tx_bytes));
    assert!(sent.notifications < 60, "{sent:?}");
}

#[test]
fn every_set_of_features_carries_frames() {
    for bits in 0..32_u32 {
        let on = |bit: u32| bits & 1 << bit != 0;
        let mut backend = NetBackend::default();
        (backend.scatter, backend.segmentation, backend.ipv6_checksum) = (on(0), on(0) && on(1), on(1));
        (backend.split, backend.blank, backend.validated) = (on(2), on(3), on(4));
        let config = if on(4) { Config::small() } else { Config::new() };
        let (seen, _, received) = one_way(backend, config, &[4, 1472], 40);
        assert_eq!(seen, (0..40).collect::<Vec<_>>(), "{backend:?}");
        assert_eq!(received.rx_verified, if on(3) || on(4) { 0 } else { 40 });
    }
}

#[test]
fn large_frames_of_any_pieces_are_one_slice() {
    for pieces in [(4096, 0), (4000, 96), (1500, 7), (4095, 1)] {
        let mut backend = NetBackend::default();
        backend.pieces = pieces;
        let lens: &[usize] = if pieces.0 < 4000 { &[9000, 4, 20_000] } else { &[9000, 60_000, 4, 65_480] };
        let (seen, _, received) = one_way(backend, Config::new(), lens, 60);
        assert_eq!(seen, (0..60).collect::<Vec<_>>(), "{pieces:?}");
        assert!(received.rx_gathered_bytes > 0, "some wrap");
    }
}

#[test]
fn loss_reordering_stalls_and_late_answers_damage_nothing() {
    let mut backend = NetBackend::default();
    (backend.loss, backend.reorder, backend.late) = (5, true, 40);
    backend.stall = (7, 3 * MS);
    let (mut seen, sent, _) = one_way(backend, Config::small(), &[4, 1472, 600], 300);
    assert!(seen.len() > 150 && seen.len() < 290, "{}", seen.len());
    assert!(!seen.is_sorted(), "some overtake");
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 150);
    assert!(sent.tx_full > 0, "16 buffers are few");
}
