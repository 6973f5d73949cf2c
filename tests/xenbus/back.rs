//! A back end against scripted front ends and toolstacks.

use domu::sim::abi::xs_wire::MessageType;
use domu::time::{self, timeout};
use domu::xenbus::Backend;

use super::*;

// The domain of the tests serves another.
const FRONT_END: &str = "/local/domain/9/device/vif/0";
const BACK_END: &str = "/local/domain/7/backend/vif/9/0";

fn path() -> Path {
    Path::new("backend/vif/9/0").unwrap()
}

fn make_device(dom0: &mut Dom0<'_>) {
    dom0.make_device_end(FRONT_END, 9, ("backend", BACK_END, 7));
    dom0.make_device_end(BACK_END, 7, ("frontend", FRONT_END, 9));
    dom0.write(&format!("{BACK_END}/online"), "1");
}

/// A front end that connects, again and again, as long as it has its directory.
fn connects(store: &Store) {
    let look = |dom0: &mut Dom0<'_>, _: &str| {
        let front = format!("{FRONT_END}/state");
        let (Some(now), back) = (dom0.read(&front), dom0.read(&format!("{BACK_END}/state"))) else { return };
        let states: &[&str] = match (back.as_deref(), &now[..]) {
            (Some(b"2"), b"1") => &["4"],
            // What is written first cannot be read any more.
            (Some(b"5"), b"1" | b"3" | b"4") => &["5", "6"],
            (Some(b"5"), b"5") => &["6"],
            // Not before it finds the other end closed.
            (Some(b"6"), b"6") => &["1"],
            _ => &[],
        };
        states.iter().for_each(|state| dom0.write(&front, state));
    };
    store.react(&format!("{BACK_END}/state"), look);
    store.react(&format!("{FRONT_END}/state"), look);
}

/// Serves a device until it is gone.
async fn serve_device(domain: Domain) -> Error {
    let life = async {
        let mut back = Backend::open(&domain.xenstore(), &path()).await?;
        loop {
            back.prepare(&[("feature-sg", &1)]).await?;
            let connected = async {
                back.accept().await?;
                back.connect(&[("sectors", &2048)]).await?;
                let _ = timeout(3 * MS, back.until_closing()).await;
                Ok(())
            };
            match connected.await {
                Err(error) if error != ErrorKind::Closed => return Err(error),
                _ => back.close().await?,
            }
        }
    };
    let Err::<std::convert::Infallible, _>(error) = life.await;
    error
}

#[test]
fn a_back_end_answers_a_front_end_that_closes_in_any_state() {
    // Firewall issues 56, 127 and 230: front ends of Windows close before they connect, and wait for the answer.
    for begins in ["1", "4"] {
        for closes in [&["5", "6"][..], &["6"], &["5"]] {
            let store = Store::new();
            store.dom0(make_device);
            let (front, back) = (format!("{FRONT_END}/state"), format!("{BACK_END}/state"));
            run(&store, async |domain| {
                let server = domu::executor::spawn(serve_device(domain));
                store.write(&front, begins);
                time::sleep(MS).await;
                assert_eq!(store.read(&back).unwrap(), if begins == "4" { b"4" } else { b"2" });
                for state in closes {
                    store.write(&front, state);
                    time::sleep(10 * MS).await;
                    assert_eq!(store.read(&back).unwrap(), state.as_bytes(), "{begins} {closes:?}");
                }
                store.write(&front, "1");
                time::sleep(10 * MS).await;
                assert_eq!(store.read(&back).as_deref(), Some(&b"2"[..]), "again");
                store.remove(BACK_END);
                assert_eq!(server.await, ErrorKind::Gone);
                check_nothing_left(&store, domain).await;
                Ok(())
            });
        }
    }
}

#[test]
fn the_toolstack_detaches_the_device_at_any_moment() {
    for moment in (0..120).map(|i| i * MS / 2) {
        for asks in [true, false] {
            let store = Store::new();
            store.dom0(make_device);
            connects(&store);
            store.delay(MS);
            let remove = |dom0: &mut Dom0<'_>| {
                dom0.remove(FRONT_END);
                dom0.remove(BACK_END);
            };
            let (asker, remover) = (store.clone(), store.clone());
            // As libxl does it: it asks, removes the device when the back end is closed, and does not wait for ever.
            let guest = Guest::new().xenstore(&store).after(moment, move |_| {
                asker.dom0(|dom0| {
                    if asks {
                        dom0.write(&format!("{BACK_END}/online"), "0");
                        dom0.write(&format!("{BACK_END}/state"), "5");
                    } else {
                        remove(dom0);
                    }
                });
            });
            if asks {
                store.react(&format!("{BACK_END}/state"), move |dom0, path| {
                    let offline = dom0.read(&format!("{BACK_END}/online")).as_deref() == Some(b"0");
                    if offline && dom0.read(path).as_deref() == Some(b"6") {
                        remove(dom0);
                    }
                });
            }
            let report = guest
                .after(moment + 10_000 * MS, move |_| {
                    remover.dom0(|dom0| {
                        assert_eq!(dom0.read(BACK_END), None, "at {moment:?}: not closed");
                    });
                })
                .run(async |domain| -> domu::Result {
                    assert_eq!(serve_device(domain).await, ErrorKind::Gone, "at {moment:?}");
                    time::sleep(5 * MS).await;
                    check_nothing_left(&store, domain).await;
                    assert_eq!(store.read(BACK_END), None, "made anew");
                    Ok(())
                });
            check(&report);
        }
    }
}

#[test]
fn a_back_end_that_is_to_be_removed_stays_closed_although_the_front_end_begins_again() {
    for moment in (0..40).map(|i| i * 3 * MS) {
        let store = Store::new();
        store.dom0(make_device);
        connects(&store);
        store.delay(MS);
        let (asks, looks) = (store.clone(), store.clone());
        let report = Guest::new()
            .xenstore(&store)
            .after(moment, move |_| {
                asks.dom0(|dom0| {
                    dom0.write(&format!("{BACK_END}/online"), "0");
                    dom0.write(&format!("{BACK_END}/state"), "5");
                });
            })
            // A toolstack that is told of states reads them when it has the time.
            .after(moment + 200 * MS, move |_| {
                looks.dom0(|dom0| {
                    let state = dom0.read(&format!("{BACK_END}/state"));
                    assert_eq!(state.as_deref(), Some(&b"6"[..]), "at {moment:?}");
                    dom0.remove(FRONT_END);
                    dom0.remove(BACK_END);
                });
            })
            .run(async |domain| -> domu::Result {
                assert_eq!(serve_device(domain).await, ErrorKind::Gone, "at {moment:?}");
                check_nothing_left(&store, domain).await;
                Ok(())
            });
        check(&report);
    }
}

#[test]
fn the_front_ends_domain_dies_at_any_moment_and_comes_back() {
    for moment in (0..80).map(|i| i * MS / 2) {
        let store = Store::new();
        store.dom0(make_device);
        connects(&store);
        store.delay(MS);
        let (dies, comes_back, ends) = (store.clone(), store.clone(), store.clone());
        let report = Guest::new()
            .xenstore(&store)
            .after(moment, move |_| dies.remove("/local/domain/9"))
            .after(moment + 50 * MS, move |_| {
                comes_back.dom0(|dom0| {
                    assert_ne!(dom0.read(&format!("{BACK_END}/state")).as_deref(), Some(&b"4"[..]), "at {moment:?}");
                    dom0.make_device_end(FRONT_END, 9, ("backend", BACK_END, 7));
                });
            })
            .after(moment + 200 * MS, move |_| ends.remove(BACK_END))
            .run(async |domain| -> domu::Result {
                let server = domu::executor::spawn(serve_device(domain));
                time::sleep(moment + 80 * MS).await;
                let connected = |(_, ty, payload): &&(u16, _, Vec<u8>)| {
                    *ty == MessageType::WRITE && payload.ends_with(b"sectors\x002048")
                };
                let connections = store.log().iter().filter(connected).count();
                assert!(connections >= 1, "at {moment:?}: {connections}");
                assert_eq!(server.await, ErrorKind::Gone, "at {moment:?}");
                check_nothing_left(&store, domain).await;
                Ok(())
            });
        check(&report);
    }
}
