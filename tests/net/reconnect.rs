//! Connections that end and begin again: by the back end, and by a resume while the consumer has a packet.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use domu::net::protocol::{RxFlags, RxRequest, RxResponse};
use domu::sim::{Host, NetPeer, make_vif, outside};
use domu::xenbus::{Backend, ErrorKind};
use domu::{gnttab, lifecycle, time};

use super::*;

#[test]
fn reconnect_uses_the_same_pages() {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    let counts = Mutex::new(Vec::new());
    let reports = Host::new()
        .domain(BACK, guest(&store), async |domain: Domain| -> domu::Result {
            let path = Path::new("backend/vif/7/0")?;
            let mut back = Backend::open(&domain.xenstore(), &path).await?;
            let mut references = Vec::new();
            for _ in 0..3 {
                let mut peer = NetPeer::connect(&mut back).await?;
                let request = peer.rx_request(0);
                references.push((request, peer.requests()[1]));
                peer.fill(request.reference, 0, &[0x55; 60]).await?;
                peer.respond_rx(RxResponse { id: 0, offset: 0, flags: RxFlags::DATA_VALIDATED, status: 60 }.encode());
                peer.publish([0, 0])?;
                time::sleep(20 * MS).await;
                drop(peer);
                back.close().await?;
            }
            assert_eq!(references, [references[0]; 3], "the same grants, all posted");
            store.dom0(|dom0| {
                dom0.remove("/local/domain/7/device/vif");
                dom0.remove("/local/domain/3/backend/vif");
            });
            match back.close().await {
                Err(error) if *error.kind() == ErrorKind::Gone => Ok(()),
                result => Ok(result?),
            }
        })
        .domain(ONE, guest(&store), async |domain: Domain| -> domu::Result {
            // The transmit half is never called: that holds nothing up.
            let (mut receiver, _transmitter, handle) = open(domain, Config::small()).await?;
            while let Ok(frame) = receiver.receive().await {
                assert_eq!(frame.bytes(), [0x55; 60]);
                counts.lock().unwrap().push(gnttab::stat().in_use);
            }
            assert_eq!(handle.statistics().connections, 3);
            assert_eq!((gnttab::stat().in_use, gnttab::stat().deferred), (0, 0));
            Ok(())
        })
        .run();
    for report in reports {
        report.powered_off();
    }
    let counts = counts.into_inner().unwrap();
    assert_eq!(counts, [counts[0]; 3]);
}

/// What a back end does with its state, as dom0 sees it.
fn answer(store: &Store, front: u16) {
    store.dom0(|dom0| {
        let back = format!("/local/domain/3/backend/vif/{front}/0");
        let state = match dom0.read(&format!("/local/domain/{front}/device/vif/0/state")).as_deref() {
            Some(b"1") => "2",
            Some(b"4") => "4",
            Some(b"5") => "5",
            Some(b"6") => "6",
            _ => return,
        };
        if dom0.read(&format!("{back}/state")).is_some_and(|now| now != state.as_bytes()) {
            dom0.write(&format!("{back}/feature-rx-copy"), "1");
            dom0.write(&format!("{back}/state"), state);
        }
    });
}

/// Puts a frame into the ring of the connection, as a back end does.
fn deliver(store: &Store, front: u16, bytes: &[u8]) {
    let node = format!("/local/domain/{front}/device/vif/0/rx-ring-ref");
    let reference = store.dom0(|dom0| dom0.read(&node)).unwrap();
    let reference: u32 = String::from_utf8(reference).unwrap().parse().unwrap();
    outside(|peer| {
        let ring = peer.map(BACK, reference, true).unwrap();
        let mut slot = [0; 8];
        ring.read(64, &mut slot);
        let request = RxRequest::decode(&slot);
        peer.copy_to(BACK, request.reference, 0, bytes).unwrap();
        let response =
            RxResponse { id: request.id, offset: 0, flags: RxFlags::DATA_VALIDATED, status: bytes.len() as i16 };
        ring.write(64, &response.encode());
        ring.write(8, &1_u32.to_le_bytes());
        peer.unmap(BACK, reference, true);
    });
}

#[test]
fn packet_lent_across_a_resume_grants_nothing() {
    let store = Store::new();
    make_vif(&store, ONE, BACK, 0);
    let report = guest(&store).run(async |domain: Domain| -> domu::Result {
        let running = Rc::new(RefCell::new(true));
        let (its, its_store) = (Rc::clone(&running), store.clone());
        let back = executor::spawn(async move {
            while *its.borrow() {
                answer(&its_store, ONE);
                answer(&its_store, OTHER);
                time::sleep(5 * MS).await;
            }
        });
        let (mut receiver, _transmitter, handle) = open(domain, Config::small()).await?;
        deliver(&store, ONE, &[0x55; 100]);
        let frame = receiver.try_receive()?.expect("it is there");
        assert_eq!(frame.bytes(), [0x55; 100]);
        // The domain goes on as the next one, for which the toolstack has made the device anew.
        make_vif(&store, OTHER, BACK, 0);
        lifecycle::suspend().await.expect("it is resumed");
        assert_eq!(frame.bytes(), [0x55; 100], "what is lent stays");
        assert!(outside(|peer| peer.granted()).is_empty());
        drop(frame);
        assert!(outside(|peer| peer.granted()).is_empty(), "nothing is granted by giving it back");
        for _ in 0..3000 {
            if handle.statistics().connections == 2 {
                break;
            }
            time::sleep(10 * MS).await;
        }
        assert_eq!(handle.statistics().connections, 2);
        deliver(&store, OTHER, &[0x66; 100]);
        assert_eq!(receiver.try_receive()?.expect("it is there").bytes(), [0x66; 100]);
        *running.borrow_mut() = false;
        back.await;
        Ok(())
    });
    report.powered_off();
}
