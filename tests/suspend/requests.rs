//! The toolstack's request, by whom it is obeyed, and what the domain does in its new home.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use domu::executor::spawn;
use domu::lifecycle::{self, Resumption, ShutdownRequest, SuspendError};
use domu::sim::abi::xs_wire::{MessageType, RSP_PROD};
use domu::sim::{End, Guest, Saved, Store, outside};
use domu::{DomainId, executor, time};

use crate::{MS, SECOND, SHUTDOWN, obedient};

fn lines(text: &str, wanted: &str) -> usize {
    text.lines().filter(|line| line.contains(wanted)).count()
}

#[test]
fn resumed_domain_without_cpuid_leaf_learns_its_id() {
    let report = obedient(&Store::new()).domain(None).run(async |domain| -> domu::Result {
        assert_eq!(domain.id(), DomainId(7));
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        assert_eq!(domain.id(), DomainId(8));
        Ok(())
    });
    report.powered_off();
}

#[test]
fn a_domain_that_obeys_is_suspended_and_goes_on_as_often_as_it_is_asked() {
    for store in [Store::new(), Store::oxenstored()] {
        let report = obedient(&store).run(async |domain| -> domu::Result {
            let store = &store;
            for number in 7..10_u16 {
                time::sleep(SECOND).await;
                let home = format!("/local/domain/{number}/control");
                assert_eq!(store.read(&format!("{home}/feature-suspend")).as_deref(), Some(&b"1"[..]));
                assert_eq!((domain.id(), domain.generation()), (DomainId(number), u64::from(number) - 7));
                assert_eq!(store.watches(number).len(), 2, "requests and keys");
                store.write(&format!("{home}/shutdown"), "suspend");
                time::sleep(SECOND).await;
                assert_eq!(store.read(&format!("{home}/shutdown")).as_deref(), Some(&b""[..]), "acknowledged");
            }
            // It waits for nothing else, and costs nothing.
            let before = executor::activity().halts;
            time::sleep(100 * SECOND).await;
            assert_eq!(executor::activity().halts - before, 1);
            assert_eq!((lifecycle::stat().suspends, lifecycle::stat().interrupted), (3, 0));
            store.write("/local/domain/10/control/shutdown", "poweroff");
            time::sleep(100 * SECOND).await;
            panic!("it was asked to end")
        });
        let report = report.powered_off();
        assert_eq!((report.resumes, lines(&report.console_text(), "resumed as domain")), (3, 3));
        assert_eq!(lines(&report.console_text(), "WARN"), 0, "{}", report.console_text());
    }
}

/// The toolstack asks by an event, on the channel that it finds named.
fn ring(store: &Store, number: u16) -> u32 {
    let node = format!("/local/domain/{number}/device/suspend/event-channel");
    let port = String::from_utf8(store.read(&node).unwrap()).unwrap().parse().unwrap();
    outside(|dom0| {
        dom0.bind(0, port);
        dom0.notify(port);
    });
    port
}

/// The channel is named in each home, and what is asked for by it comes as the other requests do.
#[test]
fn a_suspend_may_be_asked_for_by_an_event() {
    let (store, mut count) = (Store::new(), 0);
    let guest = obedient(&store).saves(move || {
        count += 1;
        if count == 2 { Saved::Cancelled(SECOND) } else { Saved::Restored(SECOND) }
    });
    let report = guest.run(async |domain| -> domu::Result {
        time::sleep(SECOND).await;
        ring(&store, 7);
        time::sleep(SECOND).await;
        assert_eq!((domain.generation(), store.watches(8).len()), (1, 2));
        // The next is cancelled, and the channel is as good as before for the one after it.
        let port = ring(&store, 8);
        time::sleep(SECOND).await;
        assert_eq!((domain.generation(), lifecycle::stat().suspends), (1, 2));
        outside(|dom0| dom0.unbind(0, port));
        ring(&store, 8);
        time::sleep(SECOND).await;
        assert_eq!((domain.generation(), lifecycle::stat().suspends), (2, 3));
        // Nothing of it is left: several events before the suspend are one request.
        let mut requests = domain.shutdown_requests();
        let port = ring(&store, 9);
        outside(|dom0| dom0.notify(port));
        assert_eq!(requests.next().await?, ShutdownRequest::Suspend);
        outside(|dom0| dom0.notify(port));
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        assert!(time::timeout(100 * SECOND, requests.next()).await.is_err());
        // A word and an event are two.
        time::sleep(SECOND).await;
        ring(&store, 10);
        store.write("/local/domain/10/control/shutdown", "reboot");
        assert_eq!(requests.next().await?, ShutdownRequest::Suspend);
        assert_eq!(requests.next().await?, ShutdownRequest::Reboot);
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 3);
}

/// As by a toolstack that has waited for its minute: there would be nobody to let the domain go on.
#[test]
fn what_was_asked_by_an_event_and_given_up_is_not_done() {
    let store = Store::new();
    let report = obedient(&store).run(async |domain| -> domu::Result {
        let requests = domain.shutdown_requests();
        time::sleep(SECOND).await;
        let port = ring(&store, 7);
        time::sleep(60 * SECOND).await;
        outside(|dom0| dom0.unbind(0, port));
        drop(requests);
        time::sleep(60 * SECOND).await;
        assert_eq!((domain.generation(), lifecycle::stat().requests), (0, 0));
        ring(&store, 7);
        time::sleep(SECOND).await;
        assert_eq!(domain.generation(), 1);
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}

/// Polls a future in each turn until it is dropped after this number of polls; returns its output.
async fn polled<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        // Each look at the clock takes some time, in which the server works.
        let _ = time::now();
        context.waker().wake_by_ref();
        future.as_mut().poll(context).map(Some)
    })
    .await
}

#[test]
fn dropped_next_loses_no_event_of_the_channel() {
    for polls in 0..4 {
        let store = Store::new();
        let report = obedient(&store).run(async |domain| -> domu::Result {
            let mut requests = domain.shutdown_requests();
            assert!(time::timeout(SECOND, requests.next()).await.is_err());
            ring(&store, 7);
            if let Some(request) = polled(polls, requests.next()).await {
                assert_eq!((request?, lifecycle::suspend().await?), (ShutdownRequest::Suspend, Resumption::Restored));
            }
            // Else it is done beside main.
            drop(requests);
            time::sleep(SECOND).await;
            assert_eq!((domain.generation(), lifecycle::stat().suspends), (1, 1), "{polls} polls");
            Ok(())
        });
        report.powered_off();
    }
}

/// A request that was acknowledged for a receiver that was dropped: a suspend answers the one to suspend, and no other.
#[test]
fn kept_request_survives_a_suspend_it_did_not_ask_for() {
    for saved in [Saved::Cancelled(SECOND), Saved::Restored(SECOND)] {
        for (word, expected) in [("suspend", None), ("reboot", Some(ShutdownRequest::Reboot))] {
            let store = Store::new();
            let report = Guest::new().xenstore(&store).saves(move || saved).run(async |domain| -> domu::Result {
                let mut requests = domain.shutdown_requests();
                assert!(time::timeout(SECOND, requests.next()).await.is_err());
                store.write(SHUTDOWN, word);
                {
                    let mut next = pin!(requests.next());
                    poll_fn(|context| {
                        if store.read(SHUTDOWN).as_deref() == Some(b"") {
                            return Poll::Ready(());
                        }
                        let _ = time::now();
                        context.waker().wake_by_ref();
                        assert!(next.as_mut().poll(context).is_pending());
                        Poll::Pending
                    })
                    .await;
                }
                lifecycle::suspend().await?;
                let next = time::timeout(SECOND, requests.next()).await.ok().transpose()?;
                assert_eq!(next, expected, "{word} {saved:?}");
                assert!(time::timeout(SECOND, requests.next()).await.is_err());
                // The next is not taken for the one of before.
                store.write(&format!("/local/domain/{}/control/shutdown", domain.id().0), word);
                assert_eq!(requests.next().await?.reason(), expected.and_then(|request| request.reason()));
                Ok(())
            });
            report.powered_off();
        }
    }
}

/// Suspends the domain this number of turns after a request was written, while a task receives. Returns true once the request is
/// received earlier than that.
fn suspend_after(turns: usize, word: &'static str, saved: Saved, was_read: &mut u32) -> bool {
    let (store, mut early) = (Store::new(), false);
    let report = Guest::new().xenstore(&store).saves(move || saved).run(async |domain| -> domu::Result {
        let received = Rc::new(RefCell::new(Vec::new()));
        let (mut requests, sink) = (domain.shutdown_requests(), Rc::clone(&received));
        let _receiving = spawn(async move {
            while let Ok(request) = requests.next().await {
                sink.borrow_mut().push(request);
            }
        });
        time::sleep(SECOND).await;
        let reads = || {
            let is_read = |(number, ty, path): &&(u16, MessageType, Vec<u8>)| {
                (*number, *ty) == (7, MessageType::READ) && path.starts_with(b"control/shutdown")
            };
            store.log().iter().filter(is_read).count()
        };
        let before = reads();
        store.write(SHUTDOWN, word);
        for _ in 0..turns {
            // Each look at the clock takes some time, in which the server works.
            let _ = time::now();
            executor::yield_now().await;
        }
        early = !received.borrow().is_empty();
        lifecycle::suspend().await?;
        // Nothing else has run since.
        let is_read = reads() > before;
        *was_read += u32::from(is_read && received.borrow().is_empty());
        let is_received = !received.borrow().is_empty();
        time::sleep(10 * SECOND).await;
        let is_due = match (is_received, is_read) {
            (true, _) => true,
            (false, true) => word != "suspend",
            (false, false) => matches!(saved, Saved::Cancelled(_)),
        };
        let text = format!("{word} {saved:?} after {turns} turns, read: {is_read}");
        assert_eq!(received.borrow().len(), usize::from(is_due), "{text}");
        Ok(())
    });
    report.powered_off();
    early
}

fn suspend_at_each_step(word: &'static str, saved: Saved) {
    let mut was_read = 0;
    let steps = (0..200).take_while(|&turns| !suspend_after(turns, word, saved, &mut was_read)).count();
    assert!((5..200).contains(&steps) && was_read > 3, "{steps} steps, {was_read} with the request read");
}

#[test]
fn request_read_before_resume_is_received() {
    suspend_at_each_step("reboot", Saved::Restored(SECOND));
    suspend_at_each_step("reboot", Saved::Cancelled(SECOND));
}

#[test]
fn suspend_request_read_before_suspend_is_dropped() {
    suspend_at_each_step("suspend", Saved::Restored(SECOND));
    suspend_at_each_step("suspend", Saved::Cancelled(SECOND));
}

#[test]
fn default_handler_listens_again_after_resume() {
    for is_refused in [true, false] {
        let store = Store::new();
        let report = obedient(&store).run(async |_| -> domu::Result {
            if is_refused {
                store.refuse(|ty, _| (ty == MessageType::WATCH).then_some("ENOSPC"));
            }
            time::sleep(SECOND).await;
            if !is_refused {
                store.set_word(7, RSP_PROD, 12345);
            }
            time::sleep(SECOND).await;
            store.behave();
            assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
            time::sleep(SECOND).await;
            ring(&store, 8);
            time::sleep(SECOND).await;
            store.write("/local/domain/9/control/shutdown", "reboot");
            time::sleep(100 * SECOND).await;
            Ok(())
        });
        assert_eq!(report.end, End::Shutdown(lifecycle::Reason::Reboot), "{}", report.console_text());
        assert_eq!(report.resumes, 2);
    }
}

/// What a store refuses once is tried again, and what it refuses for good leaves the word.
#[test]
fn a_store_that_lets_no_channel_be_named_has_the_word() {
    let store = Store::new();
    let report = obedient(&store).run(async |domain| -> domu::Result {
        const NODE: &str = "/local/domain/7/device/suspend/event-channel";
        store.set_permissions(NODE, &["n0", "r7"]);
        time::sleep(SECOND).await;
        assert_eq!(store.read(NODE).as_deref(), Some(&b""[..]));
        store.write(SHUTDOWN, "suspend");
        time::sleep(SECOND).await;
        assert_eq!(domain.generation(), 1);
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}

#[test]
fn a_domain_that_nobody_would_let_go_on_is_not_suspended() {
    let report = Guest::new().without_xenstore().run(async |_| {
        assert_eq!(lifecycle::suspend().await, Err(SuspendError::NoToolstack));
    });
    assert_eq!(report.powered_off().resumes, 0);
}

#[test]
fn a_program_that_listens_decides_when() {
    let store = Store::new();
    let dom0 = store.clone();
    let guest = obedient(&store).after(SECOND, move |_| dom0.write(SHUTDOWN, "suspend"));
    let report = guest.run(async |domain| -> domu::Result {
        let mut requests = domain.shutdown_requests();
        assert_eq!(requests.next().await?, ShutdownRequest::Suspend);
        assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
        time::sleep(SECOND).await;
        assert_eq!(domain.generation(), 0);
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        // The stream goes on in the new home.
        store.write("/local/domain/8/control/shutdown", "reboot");
        assert_eq!(requests.next().await?, ShutdownRequest::Reboot);
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}

#[test]
fn one_suspend_at_a_time_and_one_that_is_dropped_is_none() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        store.delay(SECOND);
        let read = spawn(async move { domain.xenstore().read("name").await });
        time::sleep(MS).await;
        {
            let mut first = pin!(lifecycle::suspend());
            assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(lifecycle::suspend().await, Err(SuspendError::Busy));
        }
        // Nothing is held back any more.
        assert_eq!(domain.xenstore().read("domid").await?, "7");
        assert_eq!(read.await?, "guest7");
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}

#[test]
fn a_xen_that_refuses_leaves_the_domain_as_it_was() {
    use domu::sim::abi::errno::Errno;
    use domu::sim::abi::sched::SHUTDOWN as OPERATION;
    use domu::sim::abi::xen::Hypercall;
    let mut left = 1;
    let guest = Guest::new().saves(|| Saved::Cancelled(SECOND)).fault(move |call, operation| {
        let refused = (call, operation) == (Hypercall::Sched, OPERATION) && left > 0;
        left -= u32::from(refused);
        refused.then_some(Errno::EPERM)
    });
    let report = guest.run(async |domain| -> domu::Result {
        let mut resumes = domain.resumes();
        assert_eq!(lifecycle::suspend().await, Err(SuspendError::Refused(Errno::EPERM)));
        assert_eq!(domain.xenstore().read("domid").await?, "7");
        assert_eq!(lifecycle::suspend().await?, Resumption::Cancelled);
        assert_eq!(resumes.next().await, Resumption::Cancelled);
        Ok(())
    });
    report.powered_off();
}

/// Without these the domain cannot go on, and says so.
#[test]
fn what_the_new_xen_refuses_is_told() {
    use domu::eventchn;
    use domu::gnttab::{Granted, ReadOnly};
    use domu::sim::abi::errno::Errno;
    use domu::sim::abi::event_channel::INIT_CONTROL;
    use domu::sim::abi::memory::ADD_TO_PHYSMAP;
    use domu::sim::abi::xen::Hypercall;
    for (refused, before, text) in [
        ((Hypercall::EventChannel, INIT_CONTROL), 1, "Xen refused the FIFO interface of events after a resume"),
        ((Hypercall::Memory, ADD_TO_PHYSMAP), 2, "Xen refused the page of shared information after a resume"),
        ((Hypercall::Memory, ADD_TO_PHYSMAP), 3, "Xen refused the grant table after a resume"),
    ] {
        let mut made = 0;
        let guest = Guest::new().fault(move |call, operation| {
            made += u32::from((call, operation) == refused);
            ((call, operation) == refused && made == before + 1).then_some(Errno::ENOMEM)
        });
        let report = guest.run(async |_| -> domu::Result {
            let port = eventchn::bind_ipi()?;
            let granted = Granted::<ReadOnly>::new(DomainId(3), 1).await?;
            // A unikernel that ends drops nothing.
            core::mem::forget((port, granted));
            lifecycle::suspend().await?;
            Ok(())
        });
        assert_eq!(report.end, domu::sim::End::Shutdown(lifecycle::Reason::Crash));
        assert!(report.debug_text().contains(text), "{}", report.debug_text());
    }
}

#[test]
fn a_main_may_wait_for_nothing_but_a_suspend() {
    let store = Store::new();
    let dom0 = store.clone();
    let guest = obedient(&store).after(SECOND, move |_| dom0.write(SHUTDOWN, "suspend"));
    let report = guest.run(async |domain| assert_eq!(domain.resumes().next().await, Resumption::Restored));
    assert_eq!(report.powered_off().resumes, 1);
}

#[test]
fn what_may_be_asked_for_is_said_in_the_new_home_also_if_it_is_left_again_in_vain() {
    let (store, mut first) = (Store::new(), true);
    let guest = obedient(&store).saves(move || match core::mem::take(&mut first) {
        true => Saved::Restored(SECOND),
        false => Saved::Cancelled(SECOND),
    });
    let report = guest.run(async |_| -> domu::Result {
        time::sleep(SECOND).await;
        assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
        assert_eq!(lifecycle::suspend().await?, Resumption::Cancelled);
        time::sleep(SECOND).await;
        for feature in ["poweroff", "reboot", "suspend"] {
            let node = format!("/local/domain/8/control/feature-{feature}");
            assert_eq!(store.read(&node).as_deref(), Some(&b"1"[..]), "{feature}");
        }
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 1);
}
