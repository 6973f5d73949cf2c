//! Peers that lie, and storms.

use domu::sim::abi::xs_wire::MessageType;
use domu::time::{self, timeout};
use domu::xenbus::Backend;

use super::*;

#[test]
fn a_back_end_elsewhere_is_refused() {
    let elsewhere = [
        ("/local/domain/3/backend/vif/7/1", "3"),
        ("/local/domain/3/backend/vif/8/0", "3"),
        ("/local/domain/3/backend/vif/7/0", "4"),
        ("/local/domain/3/backend/vif/7/0/x", "3"),
        ("/local/domain/3/data/vif/7/0", "3"),
        ("/local/domain/07/backend/vif/7/0", "7"),
        ("/local/domain/3", "3"),
        ("backend/vif/7/0", "3"),
        ("device/vif/0", "7"),
        ("@releaseDomain", "3"),
        ("/", "3"),
        ("", "3"),
        ("no path", "3"),
        (BACK_END, "-1"),
        (BACK_END, "65539"),
        (BACK_END, ""),
        (BACK_END, "three"),
        ("/local/domain/32752/backend/vif/7/0", "32752"),
    ];
    let store = Store::new();
    make(&store, 0);
    run(&store, async |domain| {
        for (path, id) in elsewhere {
            store.dom0(|dom0| {
                dom0.write(&format!("{FRONT_END}/backend"), path);
                dom0.write(&format!("{FRONT_END}/backend-id"), id);
            });
            let opened = Frontend::open(&domain.xenstore(), &front_end()).await;
            assert_eq!(kind(opened), Some(ErrorKind::Misplaced), "{path} {id}");
        }
        store.write(&format!("{FRONT_END}/backend"), [0xff; 100]);
        assert_eq!(kind(Frontend::open(&domain.xenstore(), &front_end()).await), Some(ErrorKind::Misplaced));
        // A disk whose back end is of another class.
        store.dom0(|dom0| {
            dom0.write(&format!("{FRONT_END}/backend"), "/local/domain/0/backend/qdisk/7/0");
            dom0.write(&format!("{FRONT_END}/backend-id"), "0");
        });
        Frontend::open(&domain.xenstore(), &front_end()).await?;
        check_nothing_left(&store, domain).await;
        Ok(())
    });
}

#[test]
fn a_front_end_elsewhere_is_refused() {
    let store = Store::new();
    let back_end = "/local/domain/7/backend/vif/9/0";
    run(&store, async |domain| {
        let path = Path::new("backend/vif/9/0").unwrap();
        for (front, id, right) in [
            ("/local/domain/9/device/vif/0", "9", true),
            ("/local/domain/9/device/vif/1", "9", false),
            ("/local/domain/8/device/vif/0", "8", false),
            ("/local/domain/8/device/vif/0", "9", false),
            ("/local/domain/9/data/vif/0", "9", false),
            ("/local/domain/7/device/vif/0", "7", false),
        ] {
            store.dom0(|dom0| dom0.make_device_end(back_end, 7, ("frontend", front, 9)));
            store.write(&format!("{back_end}/frontend-id"), id);
            let opened = Backend::open(&domain.xenstore(), &path).await;
            assert_eq!(kind(opened), (!right).then_some(ErrorKind::Misplaced), "{front} {id}");
        }
        assert_eq!(xenbus::backends(&domain.xenstore(), "vif").await?, [path]);
        Ok(())
    });
}

#[test]
fn a_state_that_is_nonsense_is_an_error_that_closing_survives() {
    for nonsense in ["", "x", "-1", "4 4", "4294967296", "99999999999999999999999999999999999999999999", "\u{664}"] {
        let store = Store::new();
        make(&store, 0);
        serve(&store, 0);
        run(&store, async |domain| {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            let state = format!("{BACK_END}/state");
            store.write(&state, nonsense);
            assert_eq!(front.peer_state().await.unwrap_err(), ErrorKind::InvalidState, "{nonsense}");
            assert_eq!(front.prepare().await.unwrap_err(), ErrorKind::InvalidState);
            store.write(&state, "2");
            front.prepare().await?;
            front.connect(State::CONNECTED, &[]).await?;
            store.write(&state, nonsense);
            assert_eq!(front.until_closing().await.unwrap_err(), ErrorKind::InvalidState);
            store.refuse(|_, _| None);
            front.close().await?;
            assert_eq!(front.state(), State::CLOSED);
            Ok(())
        });
    }
}

#[test]
fn features_are_bounded_and_nonsense_is_an_error() {
    let store = Store::new();
    make(&store, 0);
    run(&store, async |domain| {
        let front = Frontend::open(&domain.xenstore(), &front_end()).await?;
        let feature = format!("{BACK_END}/feature");
        assert_eq!(front.feature("feature", 3u32, 8).await?, 3);
        let missing = front.read("feature").await;
        assert!(
            missing.as_ref().is_err_and(|error| is_of_xenstore(error, xenstore::ErrorKind::NotFound)),
            "{missing:?}"
        );
        for (text, number) in [("0", 0), ("8", 8), ("9", 8), ("0x2", 2), ("4294967296", 8), (&"9".repeat(30), 8)] {
            store.write(&feature, text);
            assert_eq!(front.feature("feature", 3u32, 8).await?, number, "{text}");
        }
        store.write(&feature, u64::MAX.to_string());
        assert_eq!(front.feature("feature", 0, u64::MAX).await?, u64::MAX);
        for text in ["", "-1", "yes", "1.5", &"9".repeat(2000)] {
            store.write(&feature, text);
            let invalid = front.feature("feature", 3u32, 8).await;
            assert!(
                invalid.as_ref().is_err_and(|error| is_of_xenstore(error, xenstore::ErrorKind::InvalidValue)),
                "{text}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_storm_of_states_costs_a_look_each_and_is_survived() {
    let store = Store::new();
    make(&store, 0);
    let state = format!("{BACK_END}/state");
    let (mut guest, storms) = (Guest::new().xenstore(&store), 2000u32);
    for i in 0..storms {
        let (dom0, state) = (store.clone(), state.clone());
        // Two changes each time: what is in between cannot be seen.
        guest = guest.after(10 * MS + i * MS / 20, move |_| {
            dom0.write(&state, (i % 9).to_string());
            dom0.write(&state, ["1", "4", "0", "77", "6"][i as usize % 5]);
        });
    }
    let report = guest.run(async |domain| -> domu::Result {
        let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
        assert_eq!(timeout(200 * MS, front.prepare()).await, Err(time::Elapsed));
        let requests = store.log().len();
        assert!(requests < 2 * storms as usize + 100, "{requests} requests");
        // All is quiet, and so is this domain.
        let before = store.log().len();
        assert_eq!(timeout(Duration::from_secs(100), front.until_closing()).await, Ok(Ok(())));
        assert_eq!(timeout(Duration::from_secs(100), front.prepare()).await, Err(time::Elapsed));
        assert!(store.log().len() - before < 10);
        serve(&store, 0);
        store.write(&state, "2");
        front.prepare().await?;
        front.connect(State::CONNECTED, &[]).await?;
        Ok(())
    });
    check(&report);
    assert!(report.halts < u64::from(storms) * 4 + 200, "{} halts", report.halts);
}

#[test]
fn a_back_end_that_flaps_is_connected_to_once_a_round() {
    // Connects at once, and closes at once.
    let store = Store::new();
    make(&store, 0);
    let state = format!("{BACK_END}/state");
    store.write(&state, "2");
    store.react(&format!("{FRONT_END}/state"), move |dom0, path| match dom0.read(path).as_deref() {
        Some(b"1") => dom0.write(&state, "2"),
        Some(b"3" | b"4") => {
            dom0.write(&state, "4");
            dom0.write(&state, "6");
        }
        _ => dom0.write(&state, "6"),
    });
    run(&store, async |domain| {
        let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
        for _ in 0..100 {
            front.prepare().await?;
            assert_eq!(front.connect(State::INITIALISED, &[]).await.unwrap_err(), ErrorKind::Closed);
            front.close().await?;
        }
        let transactions = store.log().iter().filter(|(_, ty, _)| *ty == MessageType::TRANSACTION_START).count();
        assert!(transactions <= 402, "{transactions}");
        drop(front);
        check_nothing_left(&store, domain).await;
        Ok(())
    });
}

#[test]
fn a_server_that_refuses_leaves_nothing_behind() {
    for refused in [
        MessageType::READ,
        MessageType::WRITE,
        MessageType::WATCH,
        MessageType::TRANSACTION_START,
        MessageType::TRANSACTION_END,
    ] {
        let store = Store::new();
        make(&store, 0);
        serve(&store, 0);
        run(&store, async |domain| {
            // Each request of its kind in turn, until the life goes through.
            for nth in 0.. {
                store.dom0(|dom0| {
                    make_front_end(dom0, 0);
                    make_back_end(dom0, 0);
                });
                let mut left = nth;
                store.refuse(move |ty, _| {
                    if ty != refused {
                        return None;
                    }
                    left -= 1;
                    (left == -1).then_some("EIO")
                });
                let life = async {
                    let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
                    front.prepare().await?;
                    front.connect(State::CONNECTED, &[("ring-ref", &1)]).await?;
                    front.close().await
                };
                let result = timeout(100 * MS, life).await;
                store.behave();
                check_nothing_left(&store, domain).await;
                match result {
                    Ok(Ok(())) => break,
                    Ok(Err(error))
                        if matches!(error.kind(), ErrorKind::Xenstore(error)
                            if matches!(error.kind(), xenstore::ErrorKind::Refused(_))) => {}
                    other => panic!("{refused:?} {nth}: {other:?}"),
                }
            }
            Ok(())
        });
    }
}

#[test]
fn whatever_the_other_end_says_a_front_end_connects_when_it_makes_sense_again() {
    for seed in 1..50 {
        let store = Store::new();
        make(&store, 0);
        let mut guest = Guest::new().xenstore(&store);
        let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed);
        for moment in 0..40 {
            let (dom0, mut random) = (store.clone(), number(&mut random) as u64 | 1);
            guest = guest.after(moment * MS, move |_| {
                let state = format!("{BACK_END}/state");
                for _ in 0..number(&mut random) % 3 {
                    match number(&mut random) % 16 {
                        0 => dom0.remove(BACK_END),
                        1 => dom0.remove("/local/domain/3"),
                        2 => dom0.write(&state, "x"),
                        3 => dom0.write(&state, ""),
                        4 => dom0.write(&format!("{FRONT_END}/state"), "5"),
                        any => dom0.write(&state, (any - 5).to_string()),
                    }
                }
            });
        }
        let makes_sense = store.clone();
        guest = guest.after(50 * MS, move |_| {
            serve(&makes_sense, 0);
            makes_sense.dom0(|dom0| {
                // What was written after it was removed may be for nobody to read.
                dom0.remove(BACK_END);
                make_back_end(dom0, 0);
                dom0.write(&format!("{BACK_END}/state"), "2");
                answer(dom0, 0);
            });
        });
        let report = guest.run(async |domain| -> domu::Result {
            let mut front = Frontend::open(&domain.xenstore(), &front_end()).await?;
            let mut rounds = 0;
            let now = time::now();
            let connected = loop {
                rounds += 1;
                let life = async {
                    front.prepare().await?;
                    front.connect(State::CONNECTED, &[("ring-ref", &rounds)]).await?;
                    if now.elapsed() > 60 * MS {
                        return Ok::<_, Error>(true);
                    }
                    front.until_closing().await?;
                    Ok(false)
                };
                match timeout(number(&mut random) as u32 % 8 * MS + MS, life).await {
                    Ok(Ok(true)) => break true,
                    // As a driver should, before it begins again.
                    Ok(Ok(false)) => time::sleep(MS).await,
                    Ok(Err(error)) if matches!(error.kind(), ErrorKind::Closed | ErrorKind::InvalidState) => {
                        time::sleep(MS).await;
                    }
                    Err(time::Elapsed) => {}
                    Ok(Err(error)) => panic!("seed {seed}: {error}"),
                }
                if let Ok(Err(error)) = timeout(number(&mut random) as u32 % 4 * MS, front.close()).await {
                    panic!("seed {seed}: {error}");
                }
                if now.elapsed() > 1000 * MS {
                    break false;
                }
            };
            assert!(connected, "seed {seed}: {:?}, {:?}", front.state(), front.peer_state().await);
            assert!(rounds < 70, "seed {seed}: {rounds} rounds");
            drop(front);
            time::sleep(MS).await;
            check_nothing_left(&store, domain).await;
            Ok(())
        });
        check(&report);
    }
}

/// A number that looks random.
fn number(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 8) as usize
}
