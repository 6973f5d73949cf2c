//! What is done before the domain is suspended, and what is lost if that takes too long.

use core::fmt::Write;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use domu::console;
use domu::executor::spawn;
use domu::lifecycle::{self, Reason, Resumption, stat};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Backend, End, Guest, Saved, Store};
use domu::xenstore::ErrorKind;
use domu::{eventchn, time};

use crate::{MS, SECOND};

/// HVMOP_get_param.
const GET_PARAM: u64 = 1;

/// How often a message that holds a text was sent to the server.
fn asked(store: &Store, text: &str) -> usize {
    store.log().iter().filter(|(_, _, payload)| payload.windows(text.len()).any(|part| part == text.as_bytes())).count()
}

#[test]
fn answers_that_are_due_are_awaited_and_requests_that_come_meanwhile_wait() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        domain.xenstore().write("data/first", "0").await?;
        store.delay(SECOND);
        let nodes = domain.xenstore();
        let early = spawn(async move { nodes.write("data/early", "1").await });
        let nodes = domain.xenstore();
        let late = spawn(async move {
            time::sleep(500 * MS).await;
            nodes.write("data/late", "1").await
        });
        time::sleep(100 * MS).await;
        let before = time::now();
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        assert!(before.elapsed() < SECOND, "it was answered: {:?}", before.elapsed());
        assert_eq!(early.await, Ok(()));
        assert_eq!(store.read("/local/domain/7/data/early").as_deref(), Some(&b"1"[..]));
        assert_eq!(late.await, Ok(()));
        assert_eq!(store.read("/local/domain/7/data/late"), None, "it was held back");
        assert_eq!(store.read("/local/domain/8/data/late").as_deref(), Some(&b"1"[..]));
        assert_eq!((asked(&store, "early"), asked(&store, "late"), stat().interrupted), (1, 1, 0));
        Ok(())
    });
    report.powered_off();
}

#[test]
fn a_request_that_is_not_answered_in_time_is_interrupted_and_not_sent_again() {
    for stopped in [false, true] {
        let store = Store::new();
        let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
            domain.xenstore().write("data/first", "0").await?;
            if stopped {
                store.stop()
            } else {
                store.delay(30 * SECOND)
            };
            let open: Vec<_> = (0..30)
                .map(|number| {
                    let nodes = domain.xenstore();
                    spawn(async move { nodes.write(format!("data/open{number}_"), "1").await })
                })
                .collect();
            let nodes = domain.xenstore();
            let begin = spawn(async move { nodes.begin().await.err().map(|error| error.kind()) });
            time::sleep(MS).await;
            let before = time::now();
            assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
            assert!((5 * SECOND..5 * SECOND + MS).contains(&before.elapsed()), "{:?}", before.elapsed());
            assert_eq!(stat().interrupted, 20, "the server has so many at a time");
            store.delay(Duration::ZERO);
            store.behave();
            let mut interrupted = 0;
            for (number, open) in open.into_iter().enumerate() {
                let result = open.await;
                interrupted += usize::from(result.as_ref().is_err_and(|error| *error == ErrorKind::Interrupted));
                assert!(asked(&store, &format!("open{number}_")) <= 1);
                // Those that it did not have yet have gone to the new one.
                assert_eq!(result.is_ok(), store.read(&format!("/local/domain/8/data/open{number}_")).is_some());
            }
            assert!([(19, Some(ErrorKind::Interrupted)), (20, None)].contains(&(interrupted, begin.await)));
            Ok(())
        });
        report.powered_off();
    }
}

#[test]
fn what_was_written_arrives_once_and_in_order() {
    for backend in [Backend::Drains, Backend::Trickles(100), Backend::Wakes(3)] {
        let report = Guest::new().backend(backend).run(async |domain| -> domu::Result {
            let mut console = domain.console();
            let writing = spawn(async move {
                for number in 0..1000 {
                    domain.console().write_all(format!("<{number}>").as_bytes()).await?;
                }
                Ok::<_, domu::Error>(())
            });
            for round in 0..5 {
                // More than the ring has room for: it waits in memory.
                for line in 0..50 {
                    writeln!(console, "{round}: a line {line:080}").unwrap();
                }
                lifecycle::suspend().await?;
            }
            writing.await?;
            assert_eq!(stat().console_bytes_lost, 0);
            Ok(())
        });
        let report = report.powered_off();
        let text = report.console_text();
        let numbers = text.split('<').skip(1).map(|rest| rest.split('>').next().unwrap().parse::<u32>().unwrap());
        assert!(numbers.eq(0..1000), "{text}");
        let lines = text.lines().filter(|line| line.contains(": a line ")).count();
        assert_eq!((report.resumes, lines), (5, 250));
    }
}

#[test]
fn a_console_that_nobody_reads_costs_seconds_and_is_counted() {
    let report = Guest::new().backend(Backend::Idle).run(async |domain| -> domu::Result {
        let mut console = domain.console();
        for _ in 0..100 {
            writeln!(console, "{:099}", 0).unwrap();
        }
        let waiting = spawn(async move { domain.console().write_all(b"end").await });
        time::sleep(MS).await;
        let before = time::now();
        lifecycle::suspend().await?;
        assert!(before.elapsed() < 3 * SECOND, "{:?}", before.elapsed());
        assert_eq!(stat().console_bytes_lost, 2048);
        assert!(time::timeout(SECOND, waiting).await.is_err(), "nobody reads here either");
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}

#[test]
fn a_console_that_the_new_domain_does_not_have_is_closed_and_said_so() {
    let restored = Arc::new(AtomicBool::new(false));
    let has_none = Arc::clone(&restored);
    let guest = Guest::new()
        .backend(Backend::Idle)
        .saves(move || {
            restored.store(true, Ordering::Relaxed);
            Saved::Restored(SECOND)
        })
        .fault(move |call, operation| {
            ((call, operation) == (Hypercall::Hvm, GET_PARAM) && has_none.load(Ordering::Relaxed))
                .then_some(Errno::EPERM)
        });
    let report = guest.run(async |domain| -> domu::Result {
        let waiting = spawn(async move { domain.console().write_all(&[b'.'; 4096]).await });
        time::sleep(MS).await;
        lifecycle::suspend().await?;
        assert_eq!(waiting.await, Err(console::Error::Absent));
        assert!(!domain.console().is_connected());
        Ok(())
    });
    let said = report.powered_off().debug_text();
    assert_eq!(said, "domu: console closed: it is not where it was before the resume\n");
}

/// A waker that writes to the log.
struct Loud;

impl Wake for Loud {
    fn wake(self: Arc<Self>) {
        log::info!("woken");
    }
}

#[test]
fn a_waker_that_logs_is_called_when_the_console_is_there_again() {
    let report = Guest::new().run(async |_| -> domu::Result {
        log::info!("before");
        let port = eventchn::bind_ipi()?;
        let waker = Waker::from(Arc::new(Loud));
        let mut context = Context::from_waker(&waker);
        let (mut event, mut sleep) = (pin!(port.after(0)), pin!(time::sleep(100 * SECOND)));
        assert!(event.as_mut().poll(&mut context).is_pending() && sleep.as_mut().poll(&mut context).is_pending());
        lifecycle::suspend().await?;
        assert_eq!(event.await.map_err(|error| error.kind()), Err(eventchn::ErrorKind::BeforeResume));
        Ok(())
    });
    let report = report.powered_off();
    assert_eq!((report.debug_text().as_str(), report.console_text().matches("woken").count()), ("", 2));
}

#[test]
fn a_wait_for_a_resume_that_was_given_up_keeps_no_domain_from_its_end() {
    let report = Guest::new().run(async |domain| {
        let mut resumes = domain.resumes();
        assert_eq!(time::timeout(MS, resumes.next()).await, Err(time::Elapsed));
        pending::<()>().await;
        drop(resumes);
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"));
}
