//! Transactions that are done again in the new domain, and nodes of its own that the domain writes there again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use domu::executor::spawn;
use domu::lifecycle::{self, Resumption};
use domu::sim::{Guest, Saved, Store};
use domu::xenstore::{Error, ErrorKind};
use domu::{executor, time};

use crate::{MS, SECOND, obedient};

const HOME: &str = "/local/domain/8/data";

/// The suspend comes at any moment of a transaction: before it begins, in the closure, before and after its commit.
#[test]
fn transaction_across_a_resume_is_done_again() {
    let (mut again, mut before) = (0, 0);
    for tenths in 0..90 {
        let store = Store::new();
        let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
            domain.xenstore().write("data/first", "0").await?;
            store.delay(2 * MS);
            let (attempts, nodes) = (Rc::new(Cell::new(0)), domain.xenstore());
            let counted = Rc::clone(&attempts);
            let transaction = spawn(async move {
                nodes
                    .transaction(async |nodes| {
                        counted.set(counted.get() + 1);
                        nodes.write("data/one", "1").await?;
                        nodes.write("data/other", "1").await
                    })
                    .await
            });
            time::sleep(tenths * MS / 10).await;
            assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
            assert_eq!(transaction.await, Ok(()), "suspended after {tenths}");
            let values = |home: &str| ["one", "other"].map(|name| store.read(&format!("{home}/{name}")));
            let (old, new) = (values("/local/domain/7/data"), values(HOME));
            let written = [const { Some([b'1']) }; 2].map(|value| value.map(Vec::from));
            // In one of the two domains, and there all of it.
            if new == written {
                assert_eq!(old, [None, None], "suspended after {tenths}");
                again += u32::from(attempts.get() == 2);
            } else {
                assert_eq!((old, new, attempts.get()), (written, [None, None], 1), "suspended after {tenths}");
                before += 1;
            }
            assert_eq!(store.transactions(8), 0);
            Ok(())
        });
        report.powered_off();
    }
    assert!(again > 10 && before > 0, "{again} {before}");
}

/// The old server may have committed.
#[test]
fn commit_without_an_answer_stays_interrupted() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        let nodes = domain.xenstore();
        let mut attempts = 0;
        nodes.write("data/first", "0").await?;
        let server = store.clone();
        let suspending = spawn(async {
            time::sleep(SECOND).await;
            lifecycle::suspend().await
        });
        let result = nodes
            .transaction(async |nodes| {
                attempts += 1;
                nodes.write("data/one", "1").await?;
                server.delay(30 * SECOND);
                Ok::<_, Error>(())
            })
            .await;
        assert_eq!((result.map_err(|error| error.kind()), attempts), (Err(ErrorKind::Interrupted), 1));
        assert_eq!(suspending.await?, Resumption::Restored);
        Ok(())
    });
    report.powered_off();
}

/// The closure's own error counts, if it gives up each time; and there is a bound.
#[test]
fn transaction_that_fails_again_is_an_error() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        let (nodes, attempts) = (domain.xenstore(), Rc::new(RefCell::new(Vec::new())));
        let seen = Rc::clone(&attempts);
        let result = nodes
            .transaction(async |nodes| {
                seen.borrow_mut().push(domain.generation());
                if domain.generation() == 0 {
                    lifecycle::suspend().await.map_err(|_| ErrorKind::OutOfMemory)?;
                }
                nodes.read("data/missing").await
            })
            .await;
        assert_eq!((result.map_err(|error| error.kind()), attempts.take()), (Err(ErrorKind::NotFound), vec![0, 1]));
        // Suspended in each attempt.
        let mut attempts = 0;
        let result: Result<(), Error> = nodes
            .transaction(async |_| {
                attempts += 1;
                lifecycle::suspend().await.map_err(|_| ErrorKind::OutOfMemory)?;
                Ok(())
            })
            .await;
        assert_eq!(
            (result.map_err(|error| error.kind()), attempts),
            (Err(ErrorKind::BeforeResume), domu::xenstore::MAX_ATTEMPTS)
        );
        Ok(())
    });
    report.powered_off();
}

/// As in the documentation of `lifecycle`. A suspend that is cancelled writes nothing.
#[test]
fn own_nodes_are_written_again_after_a_resume() {
    let (store, mut saves) = (Store::new(), 0);
    let guest = obedient(&store).saves(move || {
        saves += 1;
        if saves == 2 { Saved::Cancelled(SECOND) } else { Saved::Restored(SECOND) }
    });
    let report = guest.run(async |domain| -> domu::Result {
        let (suspends, writes) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (seen, counted) = (Rc::clone(&suspends), Rc::clone(&writes));
        executor::after_suspend(move || seen.set(seen.get() + 1));
        spawn(async move {
            let mut resumes = domain.resumes();
            loop {
                let generation = domain.generation();
                let store = domain.xenstore();
                let written = store.transaction(async |nodes| nodes.write("data/greeting", "hello").await).await;
                assert_eq!(written, Ok(()));
                counted.set(counted.get() + 1);
                while domain.generation() == generation {
                    resumes.next().await;
                }
            }
        })
        .detach();
        time::sleep(SECOND).await;
        for (number, written) in [(7, 2), (8, 2), (8, 3)] {
            store.write(&format!("/local/domain/{number}/control/shutdown"), "suspend");
            time::sleep(SECOND).await;
            assert_eq!(writes.get(), written);
        }
        assert_eq!((domain.generation(), suspends.get()), (2, 3));
        for number in 7..10 {
            assert_eq!(store.read(&format!("/local/domain/{number}/data/greeting")).as_deref(), Some(&b"hello"[..]));
        }
        Ok(())
    });
    assert_eq!(report.powered_off().resumes, 2);
}
