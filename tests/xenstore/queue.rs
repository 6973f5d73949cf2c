//! Requests that overlap, and how many of them.

use std::rc::Rc;

use domu::executor::{Task, spawn, yield_now};
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{Guest, Store};
use domu::time;
use domu::xenstore::{Error, Xenstore};
use proptest::prelude::*;

use super::{MS, count, notifications, run, run_guest};

fn spawn_reads(store: &Xenstore, count: usize) -> Vec<Task<Result<Vec<u8>, Error>>> {
    let read = |index| {
        let store = store.clone();
        spawn(async move { store.read(format!("data/n/{index}")).await.map(|value| value.into_bytes()) })
    };
    (0..count).map(read).collect()
}

fn fill(server: &Store, count: usize) {
    server.dom0(|dom0| (0..count).for_each(|i| dom0.write(&format!("/local/domain/7/data/n/{i}"), i.to_string())));
}

async fn all_right(reads: Vec<Task<Result<Vec<u8>, Error>>>) {
    for (index, read) in reads.into_iter().enumerate() {
        assert_eq!(read.await.unwrap(), index.to_string().into_bytes());
    }
}

#[test]
fn overlapping_reads_share_notifications() {
    let reads = 32;
    let one_by_one = run(&Store::new(), async |domain| {
        let store = domain.xenstore();
        for _ in 0..reads {
            store.read("name").await?;
        }
        Ok(())
    });
    let server = Store::new();
    let together = run(&server, async |domain| {
        fill(&server, reads);
        all_right(spawn_reads(&domain.xenstore(), reads)).await;
        Ok(())
    });
    // One for each request, which tells of the room that the reply before has left too; and one at the end.
    assert!(notifications(&one_by_one) <= reads + 2, "{}", notifications(&one_by_one));
    assert!(notifications(&together) <= 8, "{}", notifications(&together));
}

#[test]
fn no_more_than_twenty_requests_are_with_the_server_and_the_rest_wait_in_order() {
    let server = Store::new();
    server.delay(5 * MS);
    run(&server, async |domain| {
        fill(&server, 100);
        let reads = spawn_reads(&domain.xenstore(), 100);
        all_right(reads).await;
        let order: Vec<_> = server.log().into_iter().map(|(_, _, payload)| payload).collect();
        let expected: Vec<_> = (0..100).map(|i| format!("data/n/{i}\0").into_bytes()).collect();
        assert_eq!(order, expected);
        Ok(())
    });
    // As many replies as are held back at once show how many requests were there.
    let server = Store::new();
    let (mut held, mut most) = (Vec::new(), 0);
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let noted = seen.clone();
    server.tamper(move |_, message| {
        held.push(message);
        most = most.max(held.len());
        noted.store(most, std::sync::atomic::Ordering::Relaxed);
        if held.len() == 20 { held.drain(..).rev().collect() } else { Vec::new() }
    });
    run(&server, async |domain| {
        fill(&server, 60);
        all_right(spawn_reads(&domain.xenstore(), 60)).await;
        Ok(())
    });
    assert_eq!(seen.load(std::sync::atomic::Ordering::Relaxed), 20);
}

#[test]
fn replies_in_any_order_find_their_requests() {
    let server = Store::new();
    let mut held = Vec::new();
    let mut seed = 1;
    server.tamper(move |_, message| {
        held.push(message);
        let out = if held.len() >= 10 { 10 } else { 0 };
        (0..out).map(|_| held.swap_remove(super::number(&mut seed) % held.len())).collect()
    });
    run(&server, async |domain| {
        fill(&server, 200);
        all_right(spawn_reads(&domain.xenstore(), 200)).await;
        Ok(())
    });
}

#[test]
fn a_server_that_stops_keeps_those_waiting_who_do_not_bound_it() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        server.stop();
        assert_eq!(time::timeout(50 * MS, store.read("name")).await, Err(time::Elapsed));
        // Far more than it takes: those that were dropped leave nothing in the queue.
        for _ in 0..100 {
            assert_eq!(time::timeout(MS, store.read("name")).await, Err(time::Elapsed));
        }
        server.behave();
        store.read("name").await?;
        Ok(())
    });
    // What was sent is answered and thrown away, and what was not is withdrawn.
    assert!(count(&server, MessageType::READ) <= 21, "{}", count(&server, MessageType::READ));
}

#[test]
fn a_main_that_waits_for_nothing_is_noticed_after_xenstore_was_used() {
    let report = Guest::new().run(async |domain| {
        domain.xenstore().read("name").await.unwrap();
        std::future::pending::<()>().await;
    });
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
}

#[test]
fn a_connection_that_is_yet_to_be_made_is_waited_for() {
    let server = Store::new().connects_after(30 * MS);
    let report = run(&server, async |domain| {
        let store = domain.xenstore();
        let watch = store.watch("data/x");
        let (name, watch) = (store.read("name").await, watch.await);
        name?;
        watch?.next().await?;
        Ok(())
    });
    assert!(report.elapsed_ns >= 30_000_000);
}

#[test]
fn requests_of_a_turn_go_with_one_notification() {
    let server = Store::new();
    let report = run(&server, async |domain| {
        let store = Rc::new(domain.xenstore());
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let store = Rc::clone(&store);
                spawn(async move { store.read("name").await.map(|_| ()) })
            })
            .collect();
        // The second is for the room that the replies have left.
        for task in tasks {
            task.await?;
        }
        yield_now().await;
        Ok(())
    });
    assert!(notifications(&report) <= 2, "{}", notifications(&report));
    assert_eq!(server.error(7), None);
}

proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 40, failure_persistence: None, ..Default::default() })]

    /// Messages of all sizes over rings of 1024 bytes that wrap anywhere, cut anywhere.
    #[test]
    fn messages_cut_anywhere_arrive_whole(index: u32, pace in 1_u32..1100, sizes in proptest::collection::vec(0_usize..1900, 1..8)) {
        let server = Store::new();
        server.pace(pace);
        run_guest(Guest::new().xenstore(&server).xenstore_index(index), async |domain| {
            let store = domain.xenstore();
            let tasks: Vec<_> = sizes.iter().enumerate().map(|(number, &size)| {
                let (store, path) = (store.clone(), format!("data/{number}"));
                let value: Vec<u8> = (0..size).map(|i| (i * 7 + number) as u8).collect();
                spawn(async move {
                    store.write(&path, &value).await?;
                    Ok::<_, Error>(store.read(&path).await?.into_bytes() == value)
                })
            }).collect();
            for task in tasks {
                assert!(task.await?);
            }
            Ok(())
        });
    }
}
