//! Futures that are dropped at any moment.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use domu::executor::yield_now;
use domu::sim::Store;
use domu::sim::abi::xs_wire::MessageType;
use domu::time;
use domu::xenstore::{Error, Xenstore};

use super::{ME, MS, count, run};

/// Polls a future so many times, in as many turns, and drops it unless it is ready before.
async fn polls<T>(count: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..count {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        // So that time passes too, and a server that takes some has its turn.
        yield_now().await;
        time::sleep(MS / 1000).await;
    }
    None
}

/// After some time nothing is left at the server.
async fn nothing_is_left(server: &Store, store: &Xenstore) -> Result<(), Error> {
    time::sleep(20 * MS).await;
    store.read("name").await?;
    store.read("name").await?;
    assert_eq!((server.watches(ME), server.transactions(ME)), (Vec::new(), 0));
    // And all ten transactions are to be had.
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(time::timeout(100 * MS, store.begin()).await.unwrap()?);
    }
    Ok(())
}

#[test]
fn at_every_await_point_nothing_is_left() {
    let most = 60;
    // Answered at once, and a few turns later.
    for delay in [None, Some(MS / 100)] {
        let server = Store::new();
        run(&server, async |domain| {
            if let Some(delay) = delay {
                server.delay(delay);
            }
            let store = domain.xenstore();
            let mut finished = [0; 6];
            for count in 0..most {
                let done = [
                    polls(count, store.read("name")).await.is_some(),
                    polls(count, store.write("data/x", "y")).await.is_some(),
                    polls(count, store.watch("data/w")).await.is_some(),
                    polls(count, async { store.begin().await?.commit().await }).await.is_some(),
                    polls(count, store.transaction(async |nodes| nodes.write("data/t", "x").await)).await.is_some(),
                    polls(count, store.wait_for("data/t", |_| Some(()))).await.is_some(),
                ];
                for (finished, done) in finished.iter_mut().zip(done) {
                    *finished += usize::from(done);
                }
            }
            assert!(finished.iter().all(|&finished| finished > 0 && finished < most), "{finished:?}");
            nothing_is_left(&server, &store).await?;
            Ok(())
        });
    }
}

#[test]
fn what_was_not_sent_is_withdrawn_and_what_was_is_answered_to_nobody() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        // Dropped before the task that sends has had its turn.
        assert!(polls(1, async { poll_once(store.write("data/x", "1")).await }).await.is_some());
        store.read("name").await?;
        assert_eq!((count(&server, MessageType::WRITE), server.read("/local/domain/7/data/x")), (0, None));
        // Dropped after.
        server.delay(MS);
        assert_eq!(polls(3, store.write("data/x", "2")).await, None);
        assert_eq!(store.read("data/x").await?, "2");
        Ok(())
    });
}

/// Polls once, without a turn, and drops the future.
async fn poll_once<T>(future: impl Future<Output = T>) -> bool {
    let mut future = pin!(future);
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await
}

#[test]
fn a_commit_that_is_dropped_commits_wholly_or_not_at_all() {
    for count in 0..12 {
        let server = Store::new();
        run(&server, async |domain| {
            let store = domain.xenstore();
            let transaction = store.begin().await?;
            transaction.write("data/a", "1").await?;
            transaction.write("data/b", "1").await?;
            server.delay(MS / 50);
            polls(count, transaction.commit()).await;
            server.behave();
            nothing_is_left(&server, &store).await?;
            let read = |path| server.read(path);
            assert_eq!(read("/local/domain/7/data/a"), read("/local/domain/7/data/b"));
            Ok(())
        });
    }
}

#[test]
fn a_transaction_dropped_while_all_are_taken_does_not_keep_a_place() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let mut all = Vec::new();
        for _ in 0..10 {
            all.push(store.begin().await?);
        }
        for _ in 0..50 {
            assert!(polls(3, store.begin()).await.is_none());
        }
        all.pop();
        all.push(time::timeout(10 * MS, store.begin()).await.unwrap()?);
        drop(all);
        nothing_is_left(&server, &store).await?;
        Ok(())
    });
}
