//! A front end against scripted back ends and toolstacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use domu::eventchn;
use domu::executor::spawn;
use domu::gnttab::{self, Granted, ReadWrite};
use domu::lifecycle;
use domu::time::{self, timeout};

use super::*;

/// A life of a network interface, as a driver has it, with a page and a port for each connection. How many connections there
/// were, and why it ended.
async fn drive(domain: Domain, connections: &AtomicUsize) -> Result<(), domu::Error> {
    let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
    loop {
        front.prepare().await?;
        let peer = front.device().peer();
        let ring = Granted::<ReadWrite>::new(peer, 1).await?;
        let port = eventchn::alloc_unbound(peer)?;
        assert!(port.number() < 8, "ports are left");
        let references: Vec<_> = ring.references().collect();
        match front.connect(State::CONNECTED, &[("ring-ref", &references[0]), ("event-channel", &port.number())]).await
        {
            Ok(()) => {
                connections.fetch_add(1, Ordering::Relaxed);
                let _ = timeout(3 * MS, front.until_closing()).await;
            }
            Err(error) if error == ErrorKind::Closed => {}
            Err(error) => return Err(error.into()),
        }
        front.close().await?;
    }
}

/// A driver's life that something happens to at a moment, and that ends when the toolstack removes the device.
fn lives(flavour: fn() -> Store, moment: Duration, act: impl Fn(&mut Dom0<'_>) + Send + 'static) -> usize {
    let store = flavour();
    serve(&store, 0);
    make(&store, 0);
    // One that has just begun looks at what its front end has said.
    store.react(&format!("{BACK_END}/state"), |dom0, path| {
        if dom0.read(path).as_deref() == Some(b"2") {
            answer(dom0, 0);
        }
    });
    store.write(&format!("{BACK_END}/state"), "2");
    store.delay(MS);
    let (dom0, connections) = (store.clone(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    let last = store.clone();
    let report = Guest::new()
        .xenstore(&store)
        .after(moment, move |_| dom0.dom0(|dom0| act(dom0)))
        .after(moment + 200 * MS, move |_| {
            last.dom0(|dom0| {
                dom0.remove(FRONT_END);
                dom0.remove(BACK_END);
            });
        })
        .run(async |domain| -> domu::Result {
            match drive(domain, &count).await {
                Err(domu::Error::Device(error)) if error == ErrorKind::Gone => {}
                other => panic!("at {moment:?}: {other:?}"),
            }
            assert_eq!(gnttab::stat().deferred, 0);
            check_nothing_left(&store, domain).await;
            // Not made anew by this end; and of one that the toolstack has made anew nothing is changed.
            if store.read(FRONT_END).is_some() {
                assert_eq!(store.list(FRONT_END), ["backend", "backend-id", "state"], "at {moment:?}");
                assert_eq!(
                    store.read(&format!("{FRONT_END}/backend")).as_deref(),
                    Some(&b"/local/domain/0/backend/vif/7/0"[..])
                );
                assert_eq!(store.read(&format!("{FRONT_END}/state")).as_deref(), Some(&b"1"[..]));
            }
            Ok(())
        });
    check(&report);
    connections.load(Ordering::Relaxed)
}

/// Moments of a life, from before its first request to the second connection.
fn moments() -> impl Iterator<Item = Duration> {
    (0..120).map(|i| i * MS / 2)
}

#[test]
fn the_toolstack_removes_the_device_at_any_moment() {
    for moment in moments() {
        lives(Store::new, moment, |dom0| {
            dom0.remove(FRONT_END);
            dom0.remove(BACK_END);
        });
    }
    for moment in moments().step_by(5) {
        lives(Store::oxenstored, moment, |dom0| dom0.remove(FRONT_END));
    }
}

#[test]
fn the_device_is_removed_and_made_anew_at_any_moment() {
    for moment in moments().step_by(2) {
        lives(Store::new, moment, |dom0| {
            dom0.remove(FRONT_END);
            dom0.remove(BACK_END);
            make_front_end(dom0, 0);
            make_back_end(dom0, 0);
            dom0.write(&format!("{FRONT_END}/backend"), "/local/domain/0/backend/vif/7/0");
            dom0.write(&format!("{FRONT_END}/backend-id"), "0");
        });
    }
}

#[test]
fn the_back_ends_domain_dies_at_any_moment_and_comes_back() {
    let all: usize = moments()
        .map(|moment| {
            // All of its home goes, so that xenstore denies what is asked about it.
            let dies = lives(Store::new, moment, |dom0| dom0.remove("/local/domain/3"));
            let comes_back = lives(Store::new, moment, |dom0| {
                dom0.remove("/local/domain/3");
                make_back_end(dom0, 0);
                dom0.write(&format!("{BACK_END}/state"), "2");
            });
            assert!(comes_back >= 1 && comes_back > dies, "at {moment:?}: {dies}, {comes_back}");
            comes_back
        })
        .sum();
    assert!(all > 240);
}

#[test]
fn states_that_are_skipped_lead_to_the_same_end() {
    // What the back end does, instead of InitWait, and instead of Connected.
    for (before, after) in [("2", "6"), ("2", "5"), ("3", "6"), ("3", "4"), ("2", "4")] {
        let store = Store::new();
        make(&store, 0);
        let state = format!("{BACK_END}/state");
        store.react(&format!("{FRONT_END}/state"), {
            let state = state.clone();
            move |dom0, path| match dom0.read(path).as_deref() {
                Some(b"3") => dom0.write(&state, after),
                // Straight to the end, or begins again.
                Some(b"5") => dom0.write(&state, if after == "6" { "6" } else { "1" }),
                _ => {}
            }
        });
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            assert_eq!(timeout(5 * MS, front.prepare()).await, Err(time::Elapsed));
            // Closed since earlier, gone, or no state at all: what is waited for may come still.
            for early in ["6", "0", "77", "4"] {
                store.write(&state, early);
                assert_eq!(timeout(5 * MS, front.prepare()).await, Err(time::Elapsed));
            }
            store.remove(&state);
            assert_eq!(timeout(5 * MS, front.prepare()).await, Err(time::Elapsed));
            store.write(&state, before);
            front.prepare().await?;
            let expected = if after == "4" { None } else { Some(ErrorKind::Closed) };
            assert_eq!(kind(front.connect(State::INITIALISED, &[]).await), expected);
            front.close().await?;
            drop(front);
            check_nothing_left(&store, domain).await;
            Ok(())
        });
    }
}

#[test]
fn any_end_of_the_other_is_the_end_of_a_connection() {
    for end in ["5", "6", "1", "2", "0", ""] {
        let store = Store::new();
        serve(&store, 0);
        make(&store, 0);
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            let state = format!("{BACK_END}/state");
            store.write(&state, "2");
            front.prepare().await?;
            front.connect(State::CONNECTED, &[]).await?;
            // None of these ends it.
            for other in ["7", "8", "4", "99"] {
                store.write(&state, other);
                assert_eq!(timeout(5 * MS, front.until_closing()).await, Err(time::Elapsed));
            }
            if end.is_empty() {
                store.remove(BACK_END)
            } else {
                store.write(&state, end)
            }
            front.until_closing().await?;
            front.close().await?;
            assert_eq!(store.read(&format!("{FRONT_END}/state")).as_deref(), Some(&b"6"[..]));
            Ok(())
        });
    }
}

#[test]
fn a_wait_for_a_back_end_that_does_nothing_can_be_bounded_and_gone_on_with() {
    for moment in (0..60).map(|i| i * MS / 2) {
        let store = Store::new();
        make(&store, 0);
        store.delay(MS);
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            let state = format!("{BACK_END}/state");
            store.write(&state, "2");
            let life = async |front: &mut Frontend| {
                front.prepare().await?;
                front.connect(State::INITIALISED, &[("ring-ref", &9)]).await
            };
            assert_eq!(timeout(moment, life(&mut front)).await, Err(time::Elapsed));
            // Dropped at that moment; so is the closing.
            assert_eq!(timeout(moment / 2, front.close()).await.unwrap_or(Ok(())), Ok(()));
            serve(&store, 0);
            front.close().await?;
            assert_eq!(store.read(&format!("{FRONT_END}/state")).as_deref(), Some(&b"6"[..]));
            life(&mut front).await?;
            assert_eq!(front.state(), State::CONNECTED);
            drop(front);
            time::sleep(5 * MS).await;
            check_nothing_left(&store, domain).await;
            Ok(())
        });
    }
}

#[test]
fn a_device_that_is_not_whole_yet_is_waited_for() {
    // Net-xen issues 106 and 107: `backend-id` was read once, before it was there.
    let store = Store::new();
    run(&store, async |domain| {
        let xenstore = domain.xenstore();
        assert_eq!(kind(Frontend::open(&xenstore, &front_end()).await), Some(ErrorKind::Gone));
        store.write(&format!("{FRONT_END}/state"), "1");
        store.write(&format!("{FRONT_END}/backend"), BACK_END);
        assert!(timeout(5 * MS, Frontend::open(&xenstore, &front_end())).await.is_err());
        check_nothing_left(&store, domain).await;
        let writer = store.clone();
        let task = domu::executor::spawn(async move {
            time::sleep(5 * MS).await;
            writer.write(&format!("{FRONT_END}/backend-id"), "3");
        });
        let front = Frontend::open(&xenstore, &front_end()).await?;
        assert_eq!(front.device().peer_path().as_str(), BACK_END);
        drop(task);
        store.remove(FRONT_END);
        assert_eq!(kind(Frontend::open(&xenstore, &front_end()).await), Some(ErrorKind::Gone));
        Ok(())
    });
}

#[test]
fn a_connection_that_another_program_left_is_closed_first() {
    for left in ["3", "4", "5", "6"] {
        let store = Store::new();
        make(&store, 0);
        serve(&store, 0);
        let state = format!("{FRONT_END}/state");
        store.write(&state, left);
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            front.prepare().await?;
            front.connect(State::INITIALISED, &[]).await?;
            Ok(())
        });
        let written: Vec<_> = store
            .log()
            .into_iter()
            .filter(|(_, ty, payload)| {
                *ty == domu::sim::abi::xs_wire::MessageType::WRITE && payload.starts_with(b"device/")
            })
            .filter_map(|(_, _, payload)| payload.last().map(|byte| char::from(*byte)))
            .collect();
        let closing: &[char] = match left {
            "5" => &['6'],
            "6" => &[],
            _ => &['5', '6'],
        };
        assert_eq!(written, [closing, &['1', '3', '4']].concat(), "{left}");
    }
}

/// As Linux does when a driver leaves a back end and comes back: it says that it begins, and only then sees that its front end
/// is connected, by when that has closed. What of such a back end's states may come at any moment may not be waited for.
#[test]
fn a_back_end_that_begins_again_may_take_the_last_connection_for_the_next() {
    for late in ["4", "5"] {
        let store = Store::new();
        make(&store, 0);
        let state = format!("{BACK_END}/state");
        store.write(&state, "2");
        let own = state.clone();
        store.react(&format!("{FRONT_END}/state"), move |dom0, path| {
            let next = match (dom0.read(path).as_deref(), dom0.read(&own).as_deref()) {
                // It does not look at a front end that begins while it is connected itself.
                (Some(b"1"), Some(b"6")) => "2",
                (Some(b"3" | b"4"), Some(b"2")) => "4",
                (Some(b"5"), Some(b"4")) => "5",
                (Some(b"6"), Some(b"4" | b"5")) => "6",
                _ => return,
            };
            dom0.write(&own, next);
        });
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            for again in [true, false] {
                timeout(100 * MS, front.prepare()).await.unwrap_or_else(|_| panic!("{late}: it waits for ever"))?;
                front.connect(State::INITIALISED, &[("ring-ref", &8)]).await?;
                if again {
                    store.write(&state, "2");
                    front.until_closing().await?;
                }
                front.close().await?;
                if again {
                    store.write(&state, late);
                }
            }
            Ok(())
        });
    }
}

#[test]
fn a_back_end_that_begins_again_is_given_time_to_see_that_the_last_connection_is_over() {
    for time in (1..40).step_by(3).map(|i| i * MS) {
        let store = Store::new();
        make(&store, 0);
        let state = format!("{BACK_END}/state");
        store.write(&state, "2");
        let looks = Arc::new(AtomicBool::new(true));
        let is_looking = Arc::clone(&looks);
        store.react(&format!("{FRONT_END}/state"), move |dom0, _| {
            if is_looking.load(Ordering::Relaxed) {
                answer(dom0, 0);
            }
        });
        let (rebound, late, looks_again) = (store.clone(), store.clone(), Arc::clone(&looks));
        let (looks_away, own) = (Arc::clone(&looks), state.clone());
        let guest = Guest::new().xenstore(&store).after(20 * MS, move |_| {
            looks_away.store(false, Ordering::Relaxed);
            rebound.write(&own, "2");
        });
        let guest = guest.after(20 * MS + time, move |_| {
            looks_again.store(true, Ordering::Relaxed);
            late.dom0(|dom0| {
                dom0.write(&state, "4");
                answer(dom0, 0);
            });
        });
        let report = guest.run(async |domain| -> domu::Result {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            front.prepare().await?;
            front.connect(State::INITIALISED, &[("ring-ref", &8)]).await?;
            front.until_closing().await?;
            front.close().await?;
            front.prepare().await?;
            assert!(looks.load(Ordering::Relaxed), "{time:?}: it is connected to before it looks");
            front.connect(State::INITIALISED, &[("ring-ref", &9)]).await?;
            Ok(())
        });
        check(&report);
    }
}

#[test]
fn devices_come_and_go_and_are_listed() {
    let store = Store::new();
    run(&store, async |domain| {
        let xenstore = domain.xenstore();
        let mut watch = xenstore.watch("device/vif").await?;
        watch.next().await?;
        assert_eq!(xenbus::frontends(&xenstore, "vif").await?, Vec::<Path>::new());
        assert_eq!(xenbus::backends(&xenstore, "vif").await?, Vec::<Path>::new());
        for id in [0, 1, 5] {
            make(&store, id);
        }
        watch.next().await?;
        let names: Vec<_> = xenbus::frontends(&xenstore, "vif").await?.iter().map(Path::to_string).collect();
        assert_eq!(names, ["device/vif/0", "device/vif/1", "device/vif/5"]);
        store.remove("/local/domain/7/device/vif");
        watch.next().await?;
        assert_eq!(xenbus::frontends(&xenstore, "vif").await?, Vec::<Path>::new());
        let invalid = xenbus::frontends(&xenstore, "a b").await;
        assert!(invalid.is_err_and(|error| is_of_xenstore(&error, xenstore::ErrorKind::InvalidPath)));
        Ok(())
    });
}

#[test]
fn a_hundred_cycles_of_forty_front_ends_leave_nothing() {
    let store = Store::new();
    for id in 0..40 {
        serve(&store, id);
        make(&store, id);
        store.write(&format!("/local/domain/3/backend/vif/7/{id}/state"), "2");
    }
    run(&store, async |domain| {
        let devices = xenbus::frontends(&domain.xenstore(), "vif").await?;
        for cycle in 0..100 {
            let mut fronts = Vec::new();
            for device in &devices {
                fronts.push(Frontend::open(&domain.xenstore(), device).await?);
            }
            assert_eq!(store.watches(FRONT).len(), 80);
            // One of them has a life, and one loses it on the way.
            let (whole, cut) = (cycle % 40, (cycle + 1) % 40);
            fronts[whole].prepare().await?;
            fronts[whole].connect(State::CONNECTED, &[("ring-ref", &8)]).await?;
            fronts[whole].close().await?;
            let _ = timeout(Duration::from_micros(cycle as u64), fronts[cut].prepare()).await;
        }
        time::sleep(MS).await;
        check_nothing_left(&store, domain).await;
        Ok(())
    });
}

/// The domain is resumed while the details are written. They name ports and references that are gone.
#[test]
fn details_from_before_a_resume_are_not_written() {
    let mut stale = 0;
    for tenths in 0..60 {
        let store = Store::new();
        serve(&store, 0);
        make(&store, 0);
        store.dom0(|dom0| dom0.make_device_end("/local/domain/8/device/vif/0", 8, ("backend", BACK_END, BACK)));
        let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            front.prepare().await?;
            store.delay(2 * MS);
            let connecting = spawn(async move { front.connect(State::INITIALISED, &[("ring-ref", &9)]).await });
            time::sleep(tenths * MS / 10).await;
            lifecycle::suspend().await?;
            let result = time::timeout(100 * MS, connecting).await;
            let is_stale = |error: &Error| is_of_xenstore(error, xenstore::ErrorKind::BeforeResume);
            stale += u32::from(matches!(&result, Ok(Err(error)) if is_stale(error)));
            assert_eq!(store.read("/local/domain/8/device/vif/0/ring-ref"), None, "{tenths}: {result:?}");
            Ok(())
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
    }
    assert!(stale > 10, "{stale}");
}
