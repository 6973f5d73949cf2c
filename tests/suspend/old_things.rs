//! What was made before: each has an error of its own, none does harm, and all can be made anew.

use std::cell::Cell;
use std::rc::Rc;
use std::task::{Context, Waker};

use domu::eventchn::{self, ErrorKind as PortKind};
use domu::executor::{self, spawn};
use domu::gnttab::copy::Batch;
use domu::gnttab::{self, ErrorKind as GrantKind, Grant, Granted, Mapping, ReadOnly, ReadWrite, Reference, stat};
use domu::lifecycle::{self, Resumption, Watchdog};
use domu::sim::{Guest, Saved, Store, outside};
use domu::xenstore::ErrorKind as StoreKind;
use domu::{DomainId, XenVersion, time};

use crate::{MS, SECOND};

const PEER: DomainId = DomainId(3);

#[test]
fn each_thing_of_before_fails_in_its_own_way_and_is_made_again() {
    let report = Guest::new().offer_port(PEER.0, 5).run(async |domain| -> domu::Result {
        let mut resumes = domain.resumes();
        let hooks = Rc::new(Cell::new(0));
        let seen = Rc::clone(&hooks);
        executor::after_suspend(move || seen.set(seen.get() + 1));
        outside(|outside| _ = outside.offer_grant(PEER.0, 9, true));

        let port = Rc::new(eventchn::bind_interdomain(PEER, 5)?);
        let waits = [port.after(1)].map(|_| {
            let port = Rc::clone(&port);
            spawn(async move { port.after(1).await })
        });
        let until = Rc::clone(&port);
        let until = spawn(async move { until.until(|| None::<()>).await });
        let granted = Granted::<ReadWrite>::new(PEER, 2).await?;
        granted.memory().write(0, b"mine");
        let kept_back = Granted::<ReadWrite>::new(PEER, 1).await?;
        let reference = kept_back.references().next().unwrap().0;
        let _view = outside(|outside| outside.map(PEER.0, reference, true)).unwrap();
        drop(kept_back);
        assert_eq!((stat().deferred, stat().in_use), (1, 3));
        let mapping = Mapping::<ReadOnly>::new(PEER, &[Reference(9)]).await?;
        let store = domain.xenstore();
        let transaction = store.begin().await?;
        transaction.write("data/lost", "1").await?;
        let mut watch = store.watch("data").await?;
        watch.next().await?;
        let watchdog = Watchdog::start(60 * SECOND)?;
        time::sleep(MS).await;
        assert_eq!((domain.id(), domain.generation()), (DomainId(7), 0));

        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        assert_eq!((domain.id(), domain.generation(), hooks.get()), (DomainId(8), 1, 1));
        assert_eq!(resumes.next().await, Resumption::Restored);

        assert_eq!(port.notify().map_err(|error| error.kind()), Err(PortKind::BeforeResume));
        assert_eq!(port.binding().err().map(|error| error.kind()), Some(PortKind::BeforeResume));
        assert_eq!(port.after(0).await.map_err(|error| error.kind()), Err(PortKind::BeforeResume));
        assert_eq!(port.until(|| Some(())).await.map_err(|error| error.kind()), Err(PortKind::BeforeResume));
        for wait in waits {
            assert_eq!(wait.await.map_err(|error| error.kind()), Err(PortKind::BeforeResume));
        }
        assert_eq!(until.await.map_err(|error| error.kind()), Err(PortKind::BeforeResume));
        assert_eq!(granted.check().map_err(|error| error.kind()), Err(GrantKind::BeforeResume));
        assert_eq!((granted.references().len(), granted.count()), (0, 2));
        assert_eq!((stat().deferred, stat().in_use, stat().reclaimed, stat().mapped), (0, 2, 1, 0));
        assert_eq!(&granted.end()?.bytes()[..4], b"mine");
        assert_eq!(stat().in_use, 0);
        assert_eq!(mapping.check().map_err(|error| error.kind()), Err(GrantKind::BeforeResume));
        assert_eq!(mapping.read_value::<u32>(0), u32::MAX, "there is nothing");
        assert_eq!(mapping.unmap().map_err(|error| error.kind()), Err(GrantKind::BeforeResume));
        assert_eq!(
            transaction.write("data/lost", "2").await.map_err(|error| error.kind()),
            Err(StoreKind::BeforeResume)
        );
        assert_eq!(transaction.commit().await.map_err(|error| error.kind()), Err(StoreKind::BeforeResume));
        assert_eq!(store.read("data/lost").await.map_err(|error| error.kind()), Err(StoreKind::NotFound));
        assert_eq!(watch.next().await?.as_str(), "data");
        watchdog.feed()?;

        // The numbers are new ones, and those of before do not stand in their way.
        let again = eventchn::bind_interdomain(PEER, 5)?;
        assert_eq!(again.number(), port.number(), "of the same number, in another domain");
        drop(port);
        again.notify()?;
        assert_eq!(again.after(0).await, Ok(1));
        outside(|outside| outside.notify(again.number()));
        assert_eq!(again.after(1).await, Ok(2));
        let granted = Granted::<ReadOnly>::new(PEER, 1).await?;
        let reference = granted.references().next().unwrap().0;
        granted.memory().write(1, b"anew");
        let view = outside(|outside| outside.map(PEER.0, reference, false)).unwrap();
        assert_eq!(view.byte(1), b'a');
        outside(|outside| outside.unmap(PEER.0, reference, false));
        let mapping = Mapping::<ReadWrite>::new(PEER, &[Reference(9)]).await?;
        mapping.memory().write(0, b"there");
        mapping.unmap()?;
        store.transaction(async |nodes| nodes.write("data/kept", "1").await).await?;
        watch.next().await?;
        assert_eq!(store.read("domid").await?, "8");
        Ok(())
    });
    let report = report.powered_off();
    assert_eq!((report.resumes, report.granted, report.mapped), (1, vec![], 0));
}

#[test]
fn a_batch_filled_before_a_resume_copies_nothing() {
    let report = Guest::new().run(async |_| -> domu::Result {
        let grant = Grant { domain: PEER, reference: Reference(9) };
        outside(|outside| outside.offer_grant(PEER.0, 9, true)).write(0, b"old page");
        let (mut first, mut second, mut third) = ([0; 8], [0; 8], [0; 8]);
        let mut batch = Batch::new();
        batch.read(grant, 0, &mut first)?;
        lifecycle::suspend().await?;
        // Domain 3 of the new host is another, with a page of its own by that reference.
        outside(|outside| outside.offer_grant(PEER.0, 9, true)).write(0, b"other's!");
        assert_eq!(batch.read(grant, 0, &mut second).map_err(|error| error.kind()), Err(GrantKind::BeforeResume));
        assert_eq!(batch.submit().await[0].unwrap_err(), GrantKind::BeforeResume);
        batch.read(grant, 0, &mut third)?;
        assert_eq!(*batch.submit().await, [Ok(())]);
        assert_eq!((first, second, &third), ([0; 8], [0; 8], b"other's!"));
        Ok(())
    });
    drop(report.powered_off());
}

#[cfg(not(miri))]
#[test]
fn nothing_changes_when_the_suspend_is_cancelled() {
    // The toolstack of the older one does not say that it was.
    cancelled_on(17);
    cancelled_on(14);
}

#[cfg(not(miri))]
fn cancelled_on(minor: u16) {
    let guest =
        Guest::new().xen(Some(XenVersion { major: 4, minor })).offer_port(PEER.0, 5).saves(|| Saved::Cancelled(SECOND));
    let report = guest.run(async |domain| -> domu::Result {
        let mut resumes = domain.resumes();
        let hooks = Rc::new(Cell::new(0));
        let seen = Rc::clone(&hooks);
        executor::after_suspend(move || seen.set(seen.get() + 1));
        outside(|outside| _ = outside.offer_grant(PEER.0, 9, true));
        let port = eventchn::bind_interdomain(PEER, 5)?;
        let mut wait = Box::pin(port.after(1));
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let granted = Granted::<ReadWrite>::new(PEER, 1).await?;
        let reference = granted.references().next().unwrap().0;
        let mapping = Mapping::<ReadWrite>::new(PEER, &[Reference(9)]).await?;
        let store = domain.xenstore();
        let transaction = store.begin().await?;
        transaction.write("data/kept", "1").await?;
        let mut watch = store.watch("data").await?;
        watch.next().await?;
        let before = time::now();
        assert_eq!(lifecycle::suspend().await?, Resumption::Cancelled);
        assert!(before.elapsed() < MS, "the clock stands still: {:?}", before.elapsed());
        assert_eq!((domain.id(), domain.generation(), hooks.get()), (DomainId(7), 0, 1));
        assert_eq!(resumes.next().await, Resumption::Cancelled);
        port.notify()?;
        outside(|outside| outside.notify(port.number()));
        assert_eq!(wait.await, Ok(2));
        assert_eq!((granted.check(), mapping.check()), (Ok(()), Ok(())));
        outside(|outside| outside.map(PEER.0, reference, true).map(|_| outside.unmap(PEER.0, reference, true)))
            .unwrap();
        transaction.commit().await?;
        assert_eq!(watch.next().await?.as_str(), "data/kept");
        let before = time::now();
        time::sleep(SECOND).await;
        assert!((SECOND..SECOND + MS).contains(&before.elapsed()));
        granted.end()?;
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 0);
}

#[cfg(not(miri))]
#[test]
fn a_copy_that_waits_for_a_page_does_not_find_another_one_after_a_resume() {
    let guest = Guest::new().grant_fault(|_, _| Some(domu::sim::abi::grant_table::Status::AGAIN));
    guest
        .run(async |_| -> domu::Result {
            outside(|outside| _ = outside.offer_grant(PEER.0, 9, true));
            let copy = spawn(async {
                let mut bytes = [0; 8];
                gnttab::copy::read(PEER, &[Reference(9)], 0, &mut bytes).await
            });
            let map = spawn(async { Mapping::<ReadOnly>::new(PEER, &[Reference(9)]).await.err() });
            time::sleep(100 * MS).await;
            lifecycle::suspend().await?;
            assert_eq!(copy.await.map_err(|error| error.kind()), Err(GrantKind::BeforeResume));
            assert_eq!(map.await.map(|error| error.kind()), Some(GrantKind::BeforeResume));
            Ok(())
        })
        .powered_off();
}

/// Two domains of a host: the peer of one that goes on elsewhere finds its port unbound, and is found again.
#[cfg(not(miri))]
#[test]
fn a_peer_on_the_host_is_connected_again() {
    let store = Store::new();
    let front = store.clone();
    let reports = domu::sim::Host::new()
        .domain(1, Guest::new().xenstore(&store), async move |domain| -> domu::Result {
            for round in 0..3_u32 {
                let port = eventchn::alloc_unbound(DomainId(20))?;
                let granted = Granted::<ReadWrite>::new(DomainId(20), 1).await?;
                let reference = granted.references().next().unwrap();
                let told = format!("{round} {} {} {}", domain.id(), port.number(), reference);
                front.write("/tool/meeting", &told);
                port.until(|| (granted.memory().read_value::<u32>(0) == round + 100).then_some(())).await?;
                lifecycle::suspend().await?;
                assert_eq!(port.notify().map_err(|error| error.kind()), Err(PortKind::BeforeResume));
            }
            front.write("/tool/meeting", "over");
            Ok(())
        })
        .domain(20, Guest::new().xenstore(&store), {
            let store = store.clone();
            async move |_| -> domu::Result {
                let mut last = String::new();
                loop {
                    let told = store.read("/tool/meeting").unwrap_or_default();
                    let told = String::from_utf8(told).unwrap();
                    if told == "over" {
                        return Ok(());
                    }
                    if told != last && !told.is_empty() {
                        let numbers: Vec<u32> = told.split(' ').map(|number| number.parse().unwrap()).collect();
                        let [round, domain, port, reference] = numbers[..] else { panic!("{told}") };
                        let domain = DomainId(domain as u16);
                        let port = eventchn::bind_interdomain(domain, port)?;
                        let mapping = Mapping::<ReadWrite>::new(domain, &[Reference(reference)]).await?;
                        mapping.memory().write(0, &(round + 100).to_le_bytes());
                        port.notify()?;
                        last = told;
                        // It keeps what it has for a while.
                        time::sleep(10 * SECOND).await;
                        assert!(matches!(port.binding(), Ok(eventchn::Binding::Unbound(_))));
                        mapping.unmap()?;
                    }
                    time::sleep(MS).await;
                }
            }
        })
        .run();
    assert_eq!(reports[0].resumes, 3);
}
