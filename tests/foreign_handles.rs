//! Handles that are used or dropped outside of their simulated domain: in another one, on another thread or later on the same
//! thread. The other domain is not touched, in safe code.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Duration;

use domu::gnttab::copy::Batch;
use domu::gnttab::{ErrorKind, Grant, Granted, Mapping, ReadWrite, Reference, stat};
use domu::lifecycle::{ShutdownRequests, Watchdog, WatchdogError};
use domu::memory::{self, Pages, trim};
use domu::sim::abi::errno::Errno;
use domu::sim::{Guest, Host, Report, Store, outside};
use domu::time::{self, sleep};
use domu::{Domain, DomainId, console, eventchn, executor, xenstore};

const PEER: u16 = 3;
const TO: DomainId = DomainId(PEER);
const ELSEWHERE: ErrorKind = ErrorKind::Refused(Errno::ESRCH);

fn guest() -> Guest {
    Guest::new().memory_mib(8, 8).backed_mib(8)
}

fn run(main: impl AsyncFnOnce(Domain)) -> Report {
    guest().run(async |domain| main(domain).await).powered_off()
}

/// Makes something in one domain, and uses it in another, later on this thread.
fn carry<T>(make: impl AsyncFnOnce(Domain) -> T, elsewhere: impl AsyncFnOnce(T, Domain)) -> Report {
    let kept = RefCell::new(None);
    run(async |domain| *kept.borrow_mut() = Some(make(domain).await));
    let carried = kept.take().unwrap();
    run(async |domain| elsewhere(carried, domain).await)
}

#[test]
fn pages_dropped_in_a_later_domain_stay_in_their_own() {
    carry(
        async |_| Pages::new(1).unwrap(),
        async |foreign, _| {
            let own = Pages::new(1).unwrap();
            let (before, place) = (memory::quick_stat(), foreign.as_ptr());
            drop(foreign);
            assert_eq!(memory::quick_stat(), before);
            let all: Vec<_> = std::iter::from_fn(|| Pages::new(1).ok()).take(64).collect();
            assert!(all.iter().chain([&own]).all(|pages| pages.as_ptr() != place), "it was handed out here");
        },
    );
}

#[test]
fn pages_dropped_by_another_thread_are_not_reused() {
    let channel: Mutex<Option<Pages>> = Mutex::new(None);
    let reports = Host::new()
        .domain(1, guest(), async |_| {
            let pages = Pages::new(1).unwrap();
            let place = pages.frame();
            *channel.lock().unwrap() = Some(pages);
            sleep(Duration::from_millis(10)).await;
            assert_eq!(memory::quick_stat().pages, 4096, "in use until the domain ends");
            let next = Pages::new(1).unwrap();
            assert_ne!(next.frame(), place);
        })
        .domain(2, guest(), async |_| {
            sleep(Duration::from_millis(5)).await;
            let own = Pages::new(1).unwrap();
            drop(channel.lock().unwrap().take());
            assert_eq!(memory::quick_stat().pages, 4096);
            drop(own);
            trim();
            assert_eq!(memory::quick_stat().pages, 0);
            drop(Pages::new(1).unwrap());
        })
        .run();
    reports.into_iter().for_each(|report| drop(report.powered_off()));
}

#[test]
fn pages_of_another_domain_are_not_granted() {
    carry(
        async |_| Pages::new(1).unwrap(),
        async |foreign, _| {
            let place = foreign.as_ptr();
            assert_eq!(
                Granted::<ReadWrite>::try_from_pages(TO, foreign).err().map(|error| error.kind()),
                Some(ELSEWHERE)
            );
            assert_eq!(stat().in_use, 0);
            assert_ne!(Pages::new(1).unwrap().as_ptr(), place);
        },
    );
}

#[test]
fn a_grant_ended_elsewhere_ends_nothing() {
    carry(
        async |_| (Granted::<ReadWrite>::try_new(TO, 2).unwrap(), Granted::<ReadWrite>::try_new(TO, 1).unwrap()),
        async |(ended, dropped), _| {
            let own = Granted::<ReadWrite>::try_new(TO, 1).unwrap();
            assert_eq!((ended.check().map_err(|error| error.kind()), ended.references().len()), (Err(ELSEWHERE), 0));
            let pages = memory::quick_stat().pages;
            assert_eq!(ended.end().err().map(|error| error.kind()), Some(ErrorKind::InUse));
            drop(dropped);
            assert_eq!((stat().in_use, memory::quick_stat().pages), (1, pages));
            let reference = own.references().next().unwrap();
            assert!(outside(|peer| peer.map(PEER, reference.0, true)).is_ok(), "its own is as it was");
            outside(|peer| peer.unmap(PEER, reference.0, true));
        },
    );
}

#[test]
fn references_asked_for_elsewhere_are_an_error() {
    let guest = || guest().grant_frames(1);
    let kept = RefCell::new(None);
    guest()
        .run(async |_| {
            let _all = Granted::<ReadWrite>::try_new(TO, 504).unwrap();
            let mut waits = Box::pin(Granted::<ReadWrite>::new(TO, 1));
            assert!(executor_poll(waits.as_mut()).is_none());
            *kept.borrow_mut() = Some(waits);
        })
        .powered_off();
    let waits = kept.take().unwrap();
    guest().run(async |_| assert_eq!(waits.await.err().map(|error| error.kind()), Some(ELSEWHERE))).powered_off();
}

fn executor_poll<F: Future + ?Sized>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[test]
fn a_mapping_elsewhere_shows_and_frees_nothing() {
    carry(
        async |_| {
            outside(|peer| peer.offer_grant(PEER, 20, true));
            Mapping::<ReadWrite>::new(TO, &[Reference(20)]).await.unwrap()
        },
        async |foreign, _| {
            outside(|peer| peer.offer_grant(PEER, 21, true).write(0, b"first"));
            outside(|peer| peer.offer_grant(PEER, 22, true));
            let first = Mapping::<ReadWrite>::new(TO, &[Reference(21)]).await.unwrap();
            assert_eq!(foreign.check().map_err(|error| error.kind()), Err(ELSEWHERE));
            let read = || foreign.memory().read(0, &mut [0; 5]);
            let panic = catch_unwind(AssertUnwindSafe(read)).expect_err("it reads the page at this address here");
            assert_eq!(panic.downcast_ref(), Some(&"a mapping is used outside of its domain"));
            assert_eq!(foreign.unmap().map_err(|error| error.kind()), Err(ELSEWHERE));
            let second = Mapping::<ReadWrite>::new(TO, &[Reference(22)]).await.unwrap();
            second.memory().write(0, b"SECND");
            let mut bytes = [0; 5];
            first.memory().read(0, &mut bytes);
            assert_eq!((&bytes, stat().mapped), (b"first", 2));
        },
    );
}

#[test]
fn a_batch_submitted_elsewhere_copies_nothing() {
    let grant = Grant { domain: TO, reference: Reference(9) };
    let mut bytes = [0; 8];
    let mut more = [0; 8];
    let mut batch = Batch::new();
    run(async |_| {
        outside(|peer| peer.offer_grant(PEER, 9, true).write(0, b"its page"));
        batch.read(grant, 0, &mut bytes).unwrap();
    });
    run(async |_| {
        outside(|peer| peer.offer_grant(PEER, 9, true).write(0, b"another!"));
        assert_eq!(batch.read(grant, 0, &mut more).map_err(|error| error.kind()), Err(ELSEWHERE));
        assert_eq!(batch.submit().await[0].unwrap_err(), ELSEWHERE);
        assert!(batch.is_empty());
    });
    drop(batch);
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn ports_watchdogs_and_sleeps_elsewhere_touch_nothing() {
    let report = carry(
        async |_| {
            let mut slept = Box::pin(sleep(Duration::from_secs(1)));
            assert!(executor_poll(slept.as_mut()).is_none());
            let watchdog = Watchdog::start(Duration::from_secs(30)).unwrap();
            (eventchn::alloc_unbound(TO).unwrap(), watchdog, slept)
        },
        async |(port, watchdog, slept), _| {
            let refused = eventchn::ErrorKind::Refused(Errno::ESRCH);
            let own = eventchn::alloc_unbound(TO).unwrap();
            assert_eq!(own.number(), port.number(), "so one might be taken for the other");
            assert_eq!((port.notify().map_err(|error| error.kind()), port.count()), (Err(refused), 0));
            assert_eq!(port.binding().unwrap_err(), refused);
            assert_eq!(port.after(0).await.unwrap_err(), refused);
            assert_eq!(watchdog.feed(), Err(WatchdogError::Refused(Errno::ESRCH)));
            drop((port, watchdog));
            assert_eq!(own.binding(), Ok(eventchn::Binding::Unbound(TO)));
            // A sleep of another domain's begins again in this one.
            let before = time::now();
            slept.await;
            assert!(time::now() >= before + Duration::from_millis(900));
        },
    );
    assert!(report.sent.is_empty());
}

#[test]
fn store_and_console_handles_elsewhere_are_absent() {
    let store = Store::new();
    let (kept, written) = (RefCell::new(None), store.clone());
    let one = guest().xenstore(&store).run(async |domain| -> domu::Result {
        written.write("/local/domain/7/data/node", "1");
        let watch = domain.xenstore().watch("data").await?;
        let transaction = domain.xenstore().begin().await?;
        *kept.borrow_mut() = Some((domain, watch, transaction, domain.shutdown_requests()));
        Ok(())
    });
    drop(one.powered_off());
    let (domain, mut watch, transaction, mut requests): (_, xenstore::Watch, _, ShutdownRequests) =
        kept.take().unwrap();
    let report = guest().run(async |own: Domain| {
        assert_eq!(watch.next().await.err().map(|error| error.kind()), Some(xenstore::ErrorKind::Absent));
        assert_eq!(requests.next().await.err().map(|error| error.kind()), Some(xenstore::ErrorKind::Absent));
        assert_eq!(
            domain.xenstore().read("data/node").await.err().map(|error| error.kind()),
            Some(xenstore::ErrorKind::Absent)
        );
        assert_eq!(transaction.commit().await.err().map(|error| error.kind()), Some(xenstore::ErrorKind::Absent));
        assert_eq!(domain.console().write(b"no").await, Err(console::Error::Absent));
        assert_eq!(domain.console().try_read(&mut [0; 4]), Err(console::Error::Absent));
        drop((watch, requests));
        own.console().write_all(b"yes").await.unwrap();
    });
    assert_eq!(report.powered_off().console, b"yes");
}

#[test]
fn a_task_handle_elsewhere_stops_nothing_here() {
    carry(
        async |_| {
            let task = executor::spawn(std::future::pending::<()>());
            executor::yield_now().await;
            [task]
        },
        async |[foreign], _| {
            let own = executor::spawn(async { 7 });
            assert!(!foreign.is_finished());
            drop(foreign);
            assert_eq!(own.await, 7);
        },
    );
}

const SHUTDOWN: &str = "/local/domain/7/control/shutdown";

/// A thread beside that of the domain.
fn elsewhere<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(act).join().unwrap())
}

#[test]
fn stream_made_elsewhere_leaves_the_default_handler() {
    let store = Store::new();
    let report = guest().xenstore(&store).obedient().run(async |domain| {
        let mut foreign = elsewhere(move || {
            let mut requests = domain.shutdown_requests();
            assert_eq!(
                executor_poll(Box::pin(requests.next()).as_mut()),
                Some(Err(xenstore::ErrorKind::Absent.into()))
            );
            requests
        });
        sleep(Duration::from_secs(1)).await;
        store.write(SHUTDOWN, "reboot");
        sleep(Duration::from_secs(100)).await;
        let _ = foreign.next().await;
    });
    assert_eq!(report.end, domu::sim::End::Shutdown(domu::lifecycle::Reason::Reboot), "{}", report.console_text());
}

#[test]
fn stream_dropped_elsewhere_stays_held() {
    let store = Store::new();
    let report = guest().xenstore(&store).obedient().run(async |domain| {
        let (requests, keys) = (domain.shutdown_requests(), domain.sysrq());
        sleep(Duration::from_secs(1)).await;
        elsewhere(move || drop((requests, keys)));
        store.write(SHUTDOWN, "reboot");
        sleep(Duration::from_secs(100)).await;
    });
    report.powered_off();
}

#[test]
fn resumes_polled_elsewhere_wait_for_nothing() {
    #[derive(Default)]
    struct Wakes(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Wakes {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let wakes = std::sync::Arc::new(Wakes::default());
    let report = guest().run(async |domain| -> domu::Result {
        let waker = std::task::Waker::from(wakes.clone());
        let next = elsewhere(move || {
            let mut resumes = domain.resumes();
            let mut next = Box::pin(async move { resumes.next().await });
            assert!(next.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
            next
        });
        domu::lifecycle::suspend().await?;
        drop(next);
        Ok(())
    });
    report.powered_off();
    assert_eq!(wakes.0.load(std::sync::atomic::Ordering::Relaxed), 0);
}
