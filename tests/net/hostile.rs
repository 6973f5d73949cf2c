//! Back ends that break the protocol: the interface is closed with an error, and nothing else of the domain suffers. Tests
//! are named after the advisory whose mistake they look for, where there is one.

use std::sync::Mutex;

use domu::gnttab;
use domu::net::protocol::{RxFlags, RxResponse, TxFlags, TxResponse, TxStatus, Violation};
use domu::net::{Error, Metadata};
use domu::sim::{Host, NetPeer, make_vif};
use domu::xenbus::{self, Backend, ErrorKind};
use domu::{DomainId, eventchn, time};

use super::*;

/// Frames that the front end sends at first.
const SENT: u32 = 3;

/// A frame that the front end receives unless it is dropped.
fn frame() -> [u8; 60] {
    let mut frame = [7; 60];
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn response(id: u16, offset: u16, status: i16, flags: RxFlags) -> [u8; 8] {
    RxResponse { id, offset, flags, status }.encode()
}

fn answer(id: u16) -> [u8; 4] {
    TxResponse { id, status: TxStatus::Okay }.encode()
}

/// Runs a back end's attack against a front end that sends some frames and receives until the interface ends or is removed. Returns
/// how many frames it had received by then, and the end. Another task's timers keep their times, and nothing is left.
fn attack(attack: impl AsyncFnOnce(&mut NetPeer) -> domu::Result + Send) -> (u64, Error) {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    let end = Mutex::new(None);
    let remove = || {
        store.dom0(|dom0| {
            dom0.remove("/local/domain/7/device/vif");
            dom0.remove("/local/domain/3/backend/vif");
        });
    };
    let reports = Host::new()
        .domain(BACK, guest(&store), async |domain: Domain| -> domu::Result {
            let path = Path::new("backend/vif/7/0")?;
            let mut back = Backend::open(&domain.xenstore(), &path).await?;
            let mut peer = NetPeer::connect(&mut back).await?;
            while peer.requests()[0] < SENT {
                time::sleep(MS).await;
            }
            attack(&mut peer).await?;
            time::sleep(150 * MS).await;
            drop(peer);
            remove();
            match back.close().await {
                Err(error) if *error.kind() == ErrorKind::Gone => Ok(()),
                result => Ok(result?),
            }
        })
        .domain(ONE, guest(&store), async |domain: Domain| -> domu::Result {
            let timers = executor::spawn(async {
                let mut worst = Duration::ZERO;
                for _ in 0..40 {
                    let due = time::now() + MS;
                    time::sleep(MS).await;
                    worst = worst.max(time::now() - due);
                }
                worst
            });
            let (mut receiver, mut transmitter, handle) = open(domain, Config::small()).await?;
            for _ in 0..SENT {
                transmitter.send(60, Metadata::default(), |buffer| buffer.copy_from_slice(&frame())).await?;
            }
            let error = loop {
                match receiver.receive().await {
                    Ok(received) => {
                        // While it is lent it stays what it is.
                        assert_eq!(received.bytes(), frame());
                        time::sleep(4 * MS).await;
                        assert_eq!(received.bytes(), frame());
                    }
                    Err(error) => break error,
                }
                // So that completions are looked at.
                let _ = transmitter.try_send(60, Metadata::default(), |buffer| buffer.copy_from_slice(&frame()));
            };
            *end.lock().unwrap() = Some((handle.statistics().rx_frames, error));
            assert!(timers.await < MS, "timers are late");
            time::sleep(Duration::from_secs(7)).await;
            drop((receiver, transmitter, handle));
            time::sleep(Duration::from_secs(2)).await;
            assert_eq!((gnttab::stat().in_use, gnttab::stat().deferred), (0, 0));
            assert!(eventchn::alloc_unbound(DomainId(BACK))?.number() < 8, "ports are left");
            Ok(())
        })
        .run();
    for report in reports {
        report.powered_off();
    }
    end.into_inner().unwrap().unwrap()
}

/// Sends a good frame, so that the front end looks at its completions too.
async fn good(peer: &mut NetPeer, number: u32) -> domu::Result {
    let request = peer.rx_request(number);
    peer.fill(request.reference, 0, &frame()).await?;
    peer.respond_rx(response(request.id, 0, 60, RxFlags::DATA_VALIDATED));
    Ok(())
}

fn violation(end: (u64, Error)) -> Violation {
    match end.1 {
        Error::Violation(violation) => violation,
        error => panic!("{error}"),
    }
}

#[test]
fn honest_frames_pass_until_removal() {
    let end = attack(async |peer| {
        for number in 0..20 {
            good(peer, number).await?;
        }
        peer.publish([0, 0])
    });
    assert_eq!(end, (20, Error::Closed));
}

#[test]
fn impossible_indices_close_the_interface() {
    for beyond in [[0, 33], [0, u32::MAX], [0, 1 << 31]] {
        assert_eq!(violation(attack(async |peer| peer.publish(beyond))), Violation::Index);
    }
}

#[test]
fn responses_to_others_requests_close_the_interface() {
    let end = attack(async |peer| {
        peer.respond_rx(response(1, 0, 60, RxFlags::empty()));
        peer.publish([0, 0])
    });
    assert_eq!(violation(end), Violation::WrongId(0, 1));
}

#[test]
fn pieces_beyond_their_page_close_the_interface() {
    for (offset, status) in [(4090, 60), (0, 4097), (u16::MAX, i16::MAX)] {
        let end = attack(async |peer| {
            peer.respond_rx(response(0, offset, status, RxFlags::empty()));
            peer.publish([0, 0])
        });
        assert_eq!(violation(end), Violation::BeyondPage(offset, status));
    }
}

#[test]
fn packet_cut_off_closes_the_interface() {
    let end = attack(async |peer| {
        peer.respond_rx(response(0, 0, 60, RxFlags::MORE_DATA));
        peer.publish([0, 0])
    });
    assert_eq!(violation(end), Violation::CutOff);
}

#[test]
fn xsa448_zero_length_piece_costs_its_packet() {
    let end = attack(async |peer| {
        peer.respond_rx(response(0, 0, 60, RxFlags::MORE_DATA));
        peer.respond_rx(response(1, 0, 0, RxFlags::empty()));
        good(peer, 2).await?;
        peer.publish([0, 0])
    });
    assert_eq!(end, (1, Error::Closed));
}

#[test]
fn packet_with_a_failed_piece_is_dropped() {
    let end = attack(async |peer| {
        peer.respond_rx(response(0, 0, 60, RxFlags::MORE_DATA));
        peer.respond_rx(response(1, 0, -1, RxFlags::MORE_DATA));
        peer.respond_rx(response(2, 0, 9, RxFlags::empty()));
        good(peer, 3).await?;
        peer.publish([0, 0])
    });
    assert_eq!(end, (1, Error::Closed));
}

#[test]
fn xsa396_late_answer_closes_the_interface() {
    let end = attack(async |peer| {
        let id = peer.tx_request(0).id;
        // Twice the same.
        peer.respond_tx(answer(id));
        peer.respond_tx(answer(id));
        good(peer, 0).await?;
        good(peer, 1).await?;
        peer.publish([0, 0])
    });
    assert!(matches!(violation(end), Violation::NotInFlight(_)));
}

#[test]
fn xsa396_early_answer_closes_the_interface() {
    for response in [answer(999), answer(15), TxResponse { id: 0, status: TxStatus::Null }.encode()] {
        let end = attack(async |peer| {
            assert_eq!(peer.tx_request(0).flags, TxFlags::empty());
            peer.respond_tx(response);
            good(peer, 0).await?;
            good(peer, 1).await?;
            peer.publish([0, 0])
        });
        assert!(matches!(violation(end), Violation::NotInFlight(_)));
    }
}

#[test]
fn xsa396_page_kept_mapped_closes_the_interface() {
    let end = attack(async |peer| {
        let mapping = peer.map(peer.rx_request(0).reference).await?;
        peer.respond_rx(response(0, 0, 60, RxFlags::empty()));
        peer.publish([0, 0])?;
        time::sleep(20 * MS).await;
        drop(mapping);
        Ok(())
    });
    assert_eq!(violation(end), Violation::PageInUse);
}

#[test]
fn xsa155_lent_frame_cannot_be_changed() {
    let end = attack(async |peer| {
        let request = peer.rx_request(0);
        good(peer, 0).await?;
        peer.publish([0, 0])?;
        // The front end has taken it by then, and holds it.
        time::sleep(MS).await;
        for _ in 0..4 {
            assert!(peer.fill(request.reference, 0, &[9; 60]).await.is_err(), "the page is revoked");
            time::sleep(MS / 2).await;
        }
        Ok(())
    });
    assert_eq!(end, (1, Error::Closed));
}

#[test]
fn xsa403_pages_show_nothing_but_zeroes_and_frames() {
    attack(async |peer| {
        let reference = peer.tx_request(0).reference;
        let mut page = [1; 4096];
        gnttab::copy::read(DomainId(ONE), &[gnttab::Reference(reference)], 0, &mut page).await?;
        assert_eq!(page.iter().filter(|&&byte| byte != 0).count() % 60, 0);
        assert!(peer.fill(reference, 0, &[1]).await.is_err(), "it is for reading only");
        let area = peer.rx_request(5).reference;
        gnttab::copy::read(DomainId(ONE), &[gnttab::Reference(area)], 0, &mut page).await?;
        assert_eq!(page, [0; 4096]);
        Ok(())
    });
}

#[test]
fn xsa391_storm_of_events_delays_no_timer() {
    let end = attack(async |peer| {
        for _ in 0..20_000 {
            peer.notify()?;
        }
        Ok(())
    });
    assert_eq!(end, (0, Error::Closed));
}

#[test]
fn storm_of_failed_packets_delays_no_timer() {
    let end = attack(async |peer| {
        for number in 0..2_000_u32 {
            while peer.requests()[1].wrapping_sub(number) == 0 {
                executor::yield_now().await;
            }
            let id = (number % 32) as u16;
            peer.respond_rx(response(id, 0, -1, RxFlags::empty()));
            peer.publish([0, 0])?;
        }
        Ok(())
    });
    assert_eq!(end, (0, Error::Closed));
}

#[test]
fn xsa465_removal_before_setup_ends_the_interface() {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    let report = guest(&store).run(async |domain: Domain| -> domu::Result {
        let path = Path::new("device/vif/0")?;
        let (interface, mut receiver, transmitter) = net::open(&domain.xenstore(), &path, Config::small()).await?;
        let task = executor::spawn(interface.run());
        assert!(time::timeout(10 * MS, receiver.receive()).await.is_err());
        store.dom0(|dom0| dom0.remove("/local/domain/7/device/vif"));
        assert_eq!(task.await, Ok(()));
        assert_eq!(receiver.receive().await.err(), Some(Error::Closed));
        drop((receiver, transmitter));
        assert_eq!(gnttab::stat().in_use, 0);
        assert!(xenbus::frontends(&domain.xenstore(), "vif").await?.is_empty());
        Ok(())
    });
    report.powered_off();
}
