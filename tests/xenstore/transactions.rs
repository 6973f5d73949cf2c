//! Transactions.

use std::cell::Cell;

use domu::executor::spawn;
use domu::sim::Store;
use domu::sim::abi::xs_wire::MessageType;
use domu::time;
use domu::xenstore::{Error, ErrorKind, MAX_ATTEMPTS, Transaction};

use super::{ME, MS, count, run};

#[test]
fn changes_are_seen_when_committed_and_never_when_not() {
    for server in [Store::new(), Store::oxenstored()] {
        run(&server, async |domain| {
            let store = domain.xenstore();
            store.write("data/t", "old").await?;
            let transaction = store.begin().await?;
            transaction.write("data/t", "new").await?;
            assert_eq!(transaction.read("data/t").await?, "new");
            assert_eq!(store.read("data/t").await?, "old");
            transaction.commit().await?;
            assert_eq!(store.read("data/t").await?, "new");
            let transaction = store.begin().await?;
            transaction.write("data/t", "lost").await?;
            transaction.abort().await?;
            let transaction = store.begin().await?;
            transaction.write("data/t", "lost").await?;
            drop(transaction);
            assert_eq!(store.read("data/t").await?, "new");
            assert_eq!(server.transactions(ME), 0);
            Ok(())
        });
    }
}

#[test]
fn a_body_that_fails_leaves_no_transaction_behind() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        for _ in 0..30 {
            let done = store.transaction(async |nodes| {
                nodes.write("data/t", "lost").await?;
                nodes.read("data/absent").await
            });
            assert_eq!(done.await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        }
        assert_eq!(store.read("data/t").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        assert_eq!(server.transactions(ME), 0);
        Ok(())
    });
}

#[test]
fn more_than_ten_transactions_wait_their_turn_and_none_fails() {
    let server = Store::new();
    run(&server, async |domain| {
        let tasks: Vec<_> = (0..40)
            .map(|_| {
                let (store, server) = (domain.xenstore(), server.clone());
                spawn(async move {
                    let transaction = store.begin().await?;
                    time::sleep(MS).await;
                    assert!(server.transactions(ME) <= 10);
                    transaction.read("name").await?;
                    transaction.commit().await
                })
            })
            .collect();
        for task in tasks {
            task.await?;
        }
        assert_eq!(server.transactions(ME), 0);
        Ok(())
    });
}

#[test]
fn a_conflict_is_done_again_with_pauses_and_a_bound() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        store.write("data/t", "0").await?;
        let (runs, start) = (Cell::new(0), time::now());
        let done = store
            .transaction(async |nodes| {
                runs.set(runs.get() + 1);
                let value: u32 = nodes.read("data/t").await?.number()?;
                if runs.get() < 4 {
                    server.write("/local/domain/7/data/t", (10 * runs.get()).to_string());
                }
                nodes.write("data/t", (value + 1).to_string()).await
            })
            .await;
        assert_eq!((done, runs.get()), (Ok(()), 4));
        assert_eq!(store.read("data/t").await?, "31");
        assert!((MS..20 * MS).contains(&start.elapsed()), "the first pauses are short");
        let (start, mut moments) = (time::now(), Vec::new());
        runs.set(0);
        let done = store.transaction(async |nodes| {
            runs.set(runs.get() + 1);
            moments.push(start.elapsed());
            nodes.read("data/t").await?;
            server.write("/local/domain/7/data/t", runs.get().to_string());
            nodes.write("data/t", "mine").await
        });
        assert_eq!(done.await.map_err(|error| error.kind()), Err(ErrorKind::Conflict));
        assert_eq!(runs.get(), MAX_ATTEMPTS);
        // By chance, up to 1, 2, 4, 8 ms and so on, and 64 ms in the end.
        let (early, late) = (moments[4], *moments.last().unwrap() - moments[4]);
        assert!(early < 16 * MS && late > 500 * MS, "{moments:?}");
        assert!(moments.windows(2).all(|pair| pair[1] - pair[0] < 65 * MS), "{moments:?}");
        assert_eq!(server.transactions(ME), 0);
        Ok(())
    });
}

#[test]
fn a_conflict_inside_of_the_body_is_done_again_too() {
    let server = Store::new();
    run(&server, async |domain| {
        let mut left = 3;
        server.refuse(move |ty, _| {
            let refuse = ty == MessageType::WRITE && left > 0;
            left -= u32::from(refuse);
            refuse.then_some("EAGAIN")
        });
        let store = domain.xenstore();
        store.transaction(async |nodes| nodes.write("data/t", "x").await).await?;
        assert_eq!(store.read("data/t").await?, "x");
        // Outside of a transaction it is an error like others.
        server.refuse(|ty, _| (ty == MessageType::READ).then_some("EAGAIN"));
        assert_eq!(store.read("data/t").await.map_err(|error| error.kind()), Err(ErrorKind::Conflict));
        Ok(())
    });
}

#[test]
fn quota_errors_of_all_servers_are_one() {
    for name in ["EQUOTA", "ENOSPC", "E2BIG"] {
        let server = Store::new();
        run(&server, async |domain| {
            let store = domain.xenstore();
            server.refuse(move |_, _| Some(name));
            assert_eq!(store.begin().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Quota));
            assert_eq!(store.write("data/x", "").await.map_err(|error| error.kind()), Err(ErrorKind::Quota));
            assert_eq!(store.watch("data/x").await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Quota));
            server.behave();
            // Those that were refused take no place of the ten.
            for _ in 0..12 {
                server.refuse(move |ty, _| (ty == MessageType::TRANSACTION_START).then_some(name));
                assert_eq!(store.begin().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Quota));
            }
            server.behave();
            let all: Vec<Transaction> = futures(&store).await?;
            assert_eq!(server.transactions(ME), 10);
            drop(all);
            Ok(())
        });
    }
}

async fn futures(store: &domu::xenstore::Xenstore) -> Result<Vec<Transaction>, Error> {
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(store.begin().await?);
    }
    Ok(all)
}

#[test]
fn a_transaction_of_a_connection_that_broke_touches_none_of_the_next() {
    let server = Store::oxenstored();
    run(&server, async |domain| {
        let store = domain.xenstore();
        let old = store.begin().await?;
        old.write("data/t", "lost").await?;
        super::faults::break_connection(&server);
        assert_eq!(store.read("name").await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        let new = store.begin().await?;
        new.write("data/u", "kept").await?;
        assert_eq!(old.read("data/t").await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        assert_eq!(old.commit().await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        new.commit().await?;
        assert_eq!(store.read("data/u").await?, "kept");
        assert_eq!(count(&server, MessageType::TRANSACTION_END), 1);
        Ok(())
    });
}
