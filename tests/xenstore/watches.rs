//! Watches.

use std::time::Duration;

use domu::executor::spawn;
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{Message, Store};
use domu::time;
use domu::xenstore::{ErrorKind, Watch};

use super::{ME, MS, count, run};

const HOME: &str = "/local/domain/7";

/// Whether there is no event for a while.
async fn quiet(watch: &mut Watch) -> bool {
    time::timeout(5 * MS, watch.next()).await == Err(time::Elapsed)
}

#[test]
fn a_watch_tells_of_its_beginning_and_of_changes_below() {
    for server in [Store::new(), Store::oxenstored()] {
        run(&server, async |domain| {
            let store = domain.xenstore();
            let mut relative = store.watch("data/w").await?;
            let mut absolute = store.watch(format!("{HOME}/data/w")).await?;
            assert_eq!(relative.next().await?, "data/w");
            assert_eq!(absolute.next().await?, format!("{HOME}/data/w").as_str());
            assert!(quiet(&mut relative).await && quiet(&mut absolute).await);
            server.write(&format!("{HOME}/data/w/a/b"), "1");
            assert_eq!(relative.next().await?, "data/w/a/b");
            assert_eq!(absolute.next().await?, format!("{HOME}/data/w/a/b").as_str());
            assert!(quiet(&mut relative).await);
            server.remove(&format!("{HOME}/data"));
            assert_eq!(relative.next().await?, "data/w", "what is above is gone");
            server.write(&format!("{HOME}/data/wide"), "1");
            assert!(quiet(&mut relative).await, "another node");
            Ok(())
        });
    }
}

#[test]
fn watchers_of_a_path_share_the_servers_watch() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut watches = Vec::new();
        for _ in 0..300 {
            watches.push(store.watch("data/w").await?);
        }
        assert_eq!(server.watches(ME).len(), 1);
        for watch in &mut watches {
            assert_eq!(watch.next().await?, "data/w");
        }
        server.write(&format!("{HOME}/data/w/x"), "1");
        for watch in &mut watches {
            assert_eq!(watch.next().await?, "data/w/x");
        }
        watches.truncate(1);
        store.read("name").await?;
        assert_eq!(server.watches(ME).len(), 1);
        watches.clear();
        store.read("name").await?;
        assert_eq!(server.watches(ME).len(), 0);
        assert_eq!((count(&server, MessageType::WATCH), count(&server, MessageType::UNWATCH)), (1, 1));
        Ok(())
    });
}

#[test]
fn a_thousand_cycles_of_forty_watchers_leave_nothing() {
    let cycles = 1000;
    for server in [Store::new(), Store::oxenstored()] {
        run(&server, async |domain| {
            for _ in 0..cycles {
                let mut watches = Vec::new();
                for device in 0..40 {
                    watches.push(domain.xenstore().watch(format!("data/device/{device}/state")).await?);
                }
                for watch in &mut watches {
                    watch.next().await?;
                }
                assert_eq!(server.watches(ME).len(), 40);
            }
            domain.xenstore().read("name").await?;
            assert_eq!(server.watches(ME).len(), 0);
            Ok(())
        });
    }
}

#[test]
fn a_slow_watcher_keeps_a_bounded_number_of_paths_and_then_one_for_all() {
    let server = Store::new();
    run(&server, async |domain| {
        let mut watch = domain.xenstore().watch("data").await?;
        watch.next().await?;
        for i in 0..16 {
            for _ in 0..3 {
                server.write(&format!("{HOME}/data/{i}"), "1");
            }
        }
        time::sleep(MS).await;
        for i in 0..16 {
            assert_eq!(watch.next().await?, *format!("data/{i}"), "each path once, in the order of their changes");
        }
        assert!(quiet(&mut watch).await);
        for i in 0..200 {
            server.write(&format!("{HOME}/data/{i}"), "1");
        }
        time::sleep(10 * MS).await;
        assert_eq!(watch.next().await?, "data");
        assert!(quiet(&mut watch).await);
        Ok(())
    });
}

#[test]
fn an_event_of_a_watch_that_ended_finds_nobody() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut one = store.watch("data/w").await?;
        one.next().await?;
        let (path, token) = server.watches(ME).remove(0);
        drop(one);
        let mut other = store.watch("data/w").await?;
        other.next().await?;
        // The server had this under way.
        server.send(ME, &Message::event(&path, &token));
        assert!(quiet(&mut other).await);
        assert_ne!(server.watches(ME)[0].1, token);
        server.send(ME, &Message::event("data/w", "no number"));
        assert_eq!(other.next().await?, "data/w", "an event that makes no sense may be for anybody");
        server.send(ME, &Message::event("elsewhere", &server.watches(ME)[0].1));
        assert_eq!(other.next().await?, "data/w", "a path that is not watched stands for all");
        Ok(())
    });
}

#[test]
fn an_unwatch_that_fails_is_nobodys_business() {
    // Firewall issue 35: ENOENT of an unwatch ended the program.
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        for name in ["ENOENT", "EINVAL", "EIO"] {
            server.refuse(move |ty, _| (ty == MessageType::UNWATCH).then_some(name));
            let mut watch = store.watch(format!("data/{name}")).await?;
            watch.next().await?;
            drop(watch);
            store.read("name").await?;
        }
        Ok(())
    });
}

#[test]
fn the_quota_of_watches_is_an_error_and_those_that_end_make_room() {
    // Firewall issue 155: the 65th restart of a client found no watch left.
    for (server, quota) in [(Store::new(), 128), (Store::oxenstored(), 100)] {
        run(&server, async |domain| {
            let store = domain.xenstore();
            for _ in 0..3 {
                let mut watches = Vec::new();
                let refused = loop {
                    match store.watch(format!("data/{}", watches.len())).await {
                        Ok(watch) => watches.push(watch),
                        Err(error) => break error,
                    }
                };
                assert_eq!((watches.len(), refused.kind()), (quota, ErrorKind::Quota));
                // One more of a path that is watched needs none.
                store.watch("data/0").await?.next().await?;
            }
            Ok(())
        });
    }
}

#[test]
fn special_paths_tell_those_whom_the_toolstack_lets() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut watch = store.watch("@releaseDomain").await?;
        assert_eq!(watch.next().await?, "@releaseDomain");
        server.fire("@releaseDomain");
        assert!(quiet(&mut watch).await);
        server.set_permissions("@releaseDomain", &["n0", "r7"]);
        server.fire("@releaseDomain");
        assert_eq!(watch.next().await?, "@releaseDomain");
        Ok(())
    });
}

#[test]
fn a_value_is_waited_for() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let waiting = spawn(async move {
            store.wait_for("data/state", |value| value?.number::<u32>().ok().filter(|state| *state >= 4)).await
        });
        for state in ["1", "none", "2", "4"] {
            time::sleep(MS).await;
            assert!(!waiting.is_finished());
            server.write(&format!("{HOME}/data/state"), state);
        }
        assert_eq!(waiting.await, Ok(4));
        domain.xenstore().read("name").await?;
        assert_eq!(server.watches(ME).len(), 0);
        let gone = domain.xenstore();
        let waiting = spawn(async move { gone.wait_for("data/state", |value| value.is_none().then_some(())).await });
        time::sleep(MS).await;
        server.remove(&format!("{HOME}/data/state"));
        assert_eq!(waiting.await, Ok(()));
        Ok(())
    });
}

#[test]
fn watches_that_the_server_is_told_to_forget_come_again() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut watch = store.watch("data/w").await?;
        watch.next().await?;
        store.reset_watches().await?;
        assert_eq!(watch.next().await?, "data/w");
        assert_eq!(server.watches(ME).len(), 1);
        server.write(&format!("{HOME}/data/w/x"), "");
        assert_eq!(watch.next().await?, "data/w/x");
        Ok(())
    });
}

#[test]
fn the_server_is_asked_once_when_many_begin_to_watch_and_all_learn_of_a_refusal() {
    let server = Store::new();
    server.delay(Duration::from_millis(3));
    server.refuse(|ty, payload| (ty == MessageType::WATCH && payload.starts_with(b"@")).then_some("EACCES"));
    run(&server, async |domain| {
        let watch = |path: &'static str| {
            let store = domain.xenstore();
            spawn(async move { store.watch(path).await?.next().await })
        };
        let (good, bad): (Vec<_>, Vec<_>) = (0..20).map(|_| (watch("data/w"), watch("@releaseDomain"))).unzip();
        for task in good {
            assert_eq!(task.await?, "data/w");
        }
        for task in bad {
            assert_eq!(task.await.map_err(|error| error.kind()), Err(ErrorKind::Denied));
        }
        assert_eq!(count(&server, MessageType::WATCH), 2);
        Ok(())
    });
}
