//! The xenstore client against the real server, within one domain. The server's quotas are witnesses that nothing is left
//! behind: 128 watches or fewer, 10 transactions, 1000 nodes.
//!
//! The command line says how many operations there are to be, may have the word `dom0` if dom0 writes to `data/dom0` meanwhile,
//! and `cycles=N`.
//!
//! * `xenstore.read`: what the toolstack has written is read, by relative and absolute paths.
//! * `xenstore.nodes`: nodes are written, listed, removed; values are any bytes; permissions are set and read.
//! * `xenstore.errors`: refusals have types, and what is too long is not sent.
//! * `xenstore.domains`: homes, and who is introduced.
//! * `xenstore.directory`: of what dom0 has made, a listing beyond 4096 bytes is whole, or an error of its own where the server, as dom0 says,
//!   gives no parts.
//! * `xenstore.transactions`: they commit, abort, and end when dropped; more than the server allows wait.
//! * `xenstore.watches`: events arrive, watchers share a watch, and those that ended leave nothing.
//! * `xenstore.dropped`: futures dropped at any moment leave nothing either.
//! * `xenstore.mixed`: 50 tasks at once, with transactions that are in conflict.
//! * `xenstore.cycles`: 40 watchers that come and go so often, or for each 50 operations once, leave no watch and no memory behind.
//! * `xenstore.reset`: the server forgets watches and has them again.
//!
//! With the word `absent` alone: `xenstore.absent`: in a domain without xenstore each operation is an error.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use domu::executor::{spawn, yield_now};
use domu::xenstore::{Access, Error, ErrorKind, MessageType, Names, Permission, Xenstore};
use domu::{Domain, DomainId, memory, time};
use domu_guests::{all_watches, ensure, no_more_memory, number, option, verdict};

domu::main!(main);

async fn main(domain: Domain) -> domu::Result {
    let operations =
        domain.words().find_map(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok()).unwrap_or(1000);
    let cycles_wanted = option(&domain, "cycles").unwrap_or(u64::from(operations / 50));
    let dom0 = domain.words().any(|word| word.raw() == b"dom0");
    let store = domain.xenstore();
    if domain.words().any(|word| word.raw() == b"absent") {
        verdict(&domain, "xenstore.absent", absent(&store).await);
        return Ok(());
    }
    verdict(&domain, "xenstore.read", read(&domain, &store).await);
    verdict(&domain, "xenstore.nodes", nodes(&domain, &store).await);
    verdict(&domain, "xenstore.errors", errors(&store).await);
    verdict(&domain, "xenstore.domains", domains(&domain, &store).await);
    verdict(&domain, "xenstore.directory", directory(&store).await);
    verdict(&domain, "xenstore.transactions", transactions(&store).await);
    verdict(&domain, "xenstore.watches", watches(&store, operations / 2).await);
    verdict(&domain, "xenstore.dropped", dropped(&store).await);
    verdict(&domain, "xenstore.mixed", mixed(&store, operations, dom0).await);
    verdict(&domain, "xenstore.cycles", cycles(&store, cycles_wanted).await);
    verdict(&domain, "xenstore.reset", reset(&store).await);
    Ok(())
}

fn said(error: Error) -> String {
    format!("{error:?}: {error}")
}

fn equal<T: PartialEq + core::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
}

async fn read(domain: &Domain, store: &Xenstore) -> Result<(), String> {
    let id: u16 = store.read("domid").await.map_err(said)?.number().map_err(said)?;
    equal(id, domain.id().0)?;
    let name = store.read("name").await.map_err(said)?;
    let by_home = store.read(format!("/local/domain/{id}/name")).await.map_err(said)?;
    equal(&name, &by_home)?;
    let vm = store.read("vm").await.map_err(said)?;
    store.read(format!("{vm}/uuid")).await.map_err(said)?;
    // More than the server takes at a time.
    let reads: Vec<_> = (0..100)
        .map(|_| {
            let store = store.clone();
            spawn(async move { store.read("name").await })
        })
        .collect();
    for read in reads {
        equal(read.await.map_err(said)?, name.clone())?;
    }
    Ok(())
}

async fn nodes(domain: &Domain, store: &Xenstore) -> Result<(), String> {
    let bytes: Vec<u8> = (0..=255).collect();
    for value in [&b""[..], b"x", &bytes, &vec![b'v'; 1900]] {
        store.write("data/value", value).await.map_err(said)?;
        equal(store.read("data/value").await.map_err(said)?.as_bytes(), value)?;
    }
    store.mkdir("data/a/b").await.map_err(said)?;
    store.mkdir("data/a/b").await.map_err(said)?;
    equal(sorted(&store.directory("data/a").await.map_err(said)?), vec!["b".to_string()])?;
    equal(store.directory("data/a/b").await.map_err(said)?.len(), 0)?;
    let own = Permission { domain: domain.id(), access: Access::None };
    let read = Permission { domain: DomainId(0), access: Access::Both };
    store.set_permissions("data/a", &[own, read]).await.map_err(said)?;
    equal(store.permissions("data/a").await.map_err(said)?, vec![own, read])?;
    store.remove("data/a").await.map_err(said)?;
    equal(store.read("data/a/b").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound))?;
    store.remove("data/value").await.map_err(said)
}

async fn errors(store: &Xenstore) -> Result<(), String> {
    equal(store.read("data/absent").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound))?;
    equal(store.write("/local/domain/0/data/mine", "x").await.map_err(|error| error.kind()), Err(ErrorKind::Denied))?;
    equal(store.write("name", "another").await.map_err(|error| error.kind()), Err(ErrorKind::Denied))?;
    equal(store.read("a//b").await.map_err(|error| error.kind()), Err(ErrorKind::InvalidPath))?;
    let path = "data/long";
    let fits = vec![b'v'; 4096 - path.len() - 1];
    equal(store.write(path, &fits).await.map_err(|error| error.kind()), Err(ErrorKind::Quota))?;
    let beyond = vec![b'v'; 4096 - path.len()];
    equal(store.write(path, &beyond).await.map_err(|error| error.kind()), Err(ErrorKind::TooLong))?;
    match store.watch("@releaseDomain").await {
        // Those who may not are told of nothing but the beginning.
        Ok(_) => {}
        Err(error) if error == ErrorKind::Denied => {}
        watch => return Err(format!("a watch for the privileged: {watch:?}")),
    }
    // The connection is as good as before.
    store.read("name").await.map(|_| ()).map_err(said)
}

async fn domains(domain: &Domain, store: &Xenstore) -> Result<(), String> {
    let home = store.home_of(domain.id()).await.map_err(said)?;
    equal(home.as_str(), &format!("/local/domain/{}", domain.id()))?;
    match store.is_introduced(domain.id()).await {
        Ok(true) => {}
        Err(error) if error == ErrorKind::Denied => {}
        other => return Err(format!("introduced: {other:?}")),
    }
    match store.request(MessageType::INTRODUCE, &[b"999", b"1", b"1"]).await {
        Err(error) if error == ErrorKind::Denied => Ok(()),
        other => Err(format!("a request of the privileged: {other:?}")),
    }
}

fn sorted(names: &Names) -> Vec<String> {
    let mut names: Vec<String> = names.iter().map(str::to_string).collect();
    names.sort();
    names
}

async fn directory(store: &Xenstore) -> Result<(), String> {
    const COUNT: usize = 200;
    let made = store.wait_for("data/ready", |value| value.map(|server| &**server == b"parts"));
    let made = time::timeout(Duration::from_secs(60), made).await;
    let in_parts = made.map_err(|_| "dom0 has made none".to_string())?.map_err(said)?;
    let answered = store.request(MessageType::DIRECTORY_PART, &[b"data", b"0"]).await.is_ok();
    log::info!("the server gives parts of a directory: {answered}");
    equal(answered, in_parts)?;
    let listing = store.directory("data/big").await.map(|names| sorted(&names)).map_err(|error| error.kind());
    let expected = if in_parts { Ok((0..COUNT).map(|i| format!("{i:060}")).collect()) } else { Err(ErrorKind::TooBig) };
    if listing == expected { Ok(()) } else { Err(format!("a listing of {:?}", listing.map(|names| names.len()))) }
}

async fn transactions(store: &Xenstore) -> Result<(), String> {
    store.write("data/t", "old").await.map_err(said)?;
    let transaction = store.begin().await.map_err(said)?;
    transaction.write("data/t", "new").await.map_err(said)?;
    equal(&*transaction.read("data/t").await.map_err(said)?, b"new")?;
    equal(&*store.read("data/t").await.map_err(said)?, b"old")?;
    transaction.commit().await.map_err(said)?;
    equal(&*store.read("data/t").await.map_err(said)?, b"new")?;
    let transaction = store.begin().await.map_err(said)?;
    transaction.write("data/t", "lost").await.map_err(said)?;
    transaction.abort().await.map_err(said)?;
    equal(&*store.read("data/t").await.map_err(said)?, b"new")?;
    for _ in 0..40 {
        let transaction = store.begin().await.map_err(said)?;
        transaction.write("data/t", "lost").await.map_err(said)?;
    }
    equal(&*store.read("data/t").await.map_err(said)?, b"new")?;
    let transaction = store.begin().await.map_err(said)?;
    transaction.read("data/t").await.map_err(said)?;
    transaction.write("data/t", "mine").await.map_err(said)?;
    store.write("data/t", "theirs").await.map_err(said)?;
    equal(transaction.commit().await.map_err(|error| error.kind()), Err(ErrorKind::Conflict))?;
    // Thirty at a time; the server has ten.
    let tasks: Vec<_> = (0..30)
        .map(|_| {
            let store = store.clone();
            spawn(async move {
                let transaction = store.begin().await?;
                transaction.read("data/t").await?;
                time::sleep(Duration::from_millis(5)).await;
                transaction.abort().await
            })
        })
        .collect();
    for task in tasks {
        task.await.map_err(said)?;
    }
    store.remove("data/t").await.map_err(said)
}

async fn watches(store: &Xenstore, watchers: u32) -> Result<(), String> {
    let mut one = store.watch("data/w").await.map_err(said)?;
    let mut other = store.watch("data/w").await.map_err(said)?;
    equal(one.next().await.map_err(said)?.as_str(), "data/w")?;
    equal(other.next().await.map_err(said)?.as_str(), "data/w")?;
    store.write("data/w/below", "1").await.map_err(said)?;
    for watch in [&mut one, &mut other] {
        // The first event of the one may have been for both.
        let mut path = watch.next().await.map_err(said)?;
        if path == "data/w" {
            path = watch.next().await.map_err(said)?;
        }
        equal(path.as_str(), "data/w/below")?;
    }
    drop(other);
    store.remove("data/w").await.map_err(said)?;
    one.next().await.map_err(said)?;
    drop(one);
    // The server's quota tells whether those that ended are gone.
    let first = all_watches(store).await.map_err(said)?.len();
    let second = all_watches(store).await.map_err(said)?.len();
    log::info!("{first} watches are to be had");
    equal(second, first)?;
    for _ in 0..watchers {
        let mut watch = store.watch("data/again").await.map_err(said)?;
        watch.next().await.map_err(said)?;
    }
    let shared: Vec<_> = (0..watchers)
        .map(|_| {
            let store = store.clone();
            spawn(async move { store.watch("data/shared").await?.next().await })
        })
        .collect();
    for task in shared {
        equal(task.await.map_err(said)?.as_str(), "data/shared")?;
    }
    equal(all_watches(store).await.map_err(said)?.len(), first)
}

/// Polls a future so many times, in as many turns, and drops it unless it is ready before.
async fn polls<T>(count: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..count {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        yield_now().await;
    }
    None
}

async fn dropped(store: &Xenstore) -> Result<(), String> {
    let before = all_watches(store).await.map_err(said)?.len();
    for count in 0..200 {
        let count = count % 20;
        polls(count, store.read("name")).await;
        polls(count, store.watch("data/dropped")).await;
        polls(count, async { store.begin().await?.commit().await }).await;
        polls(count, store.transaction(async |nodes| nodes.write("data/dropped", "x").await)).await;
        polls(count, store.wait_for("data/dropped", |_| Some(()))).await;
    }
    equal(all_watches(store).await.map_err(said)?.len(), before)?;
    // All ten transactions are to be had.
    let mut transactions = Vec::new();
    for _ in 0..10 {
        let begun = time::timeout(Duration::from_secs(10), store.begin()).await;
        transactions.push(begun.map_err(|_| "transactions are left".to_string())?.map_err(said)?);
    }
    drop(transactions);
    store.remove("data/dropped").await.map_err(said)
}

async fn mixed(store: &Xenstore, operations: u32, dom0: bool) -> Result<(), String> {
    const TASKS: u32 = 50;
    let allowed = all_watches(store).await.map_err(said)?.len();
    let disturbed = Rc::new(Cell::new(0));
    store.write("data/count", "0").await.map_err(said)?;
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (store, disturbed) = (store.clone(), Rc::clone(&disturbed));
            spawn(async move { worker(&store, task, operations / TASKS, dom0.then_some(&disturbed)).await })
        })
        .collect();
    let mut counted = 0;
    for task in tasks {
        counted += task.await?;
    }
    let found: u32 = store.read("data/count").await.map_err(said)?.number().map_err(said)?;
    let disturbed = disturbed.get();
    log::info!("{counted} transactions of {operations} operations, and dom0 was in the way of {disturbed}");
    equal(found, counted)?;
    ensure(counted > 0 && (disturbed > 0) == dom0, || {
        format!("{counted} transactions, {disturbed} disturbed by dom0")
    })?;
    equal(all_watches(store).await.map_err(said)?.len(), allowed)?;
    store.remove("data/count").await.map_err(said)
}

/// Does many things, some of which others do at the same time; says how often it has counted. If dom0 writes, transactions are
/// counted that were done again and found another value of its then.
async fn worker(store: &Xenstore, task: u32, operations: u32, disturbed: Option<&Cell<u32>>) -> Result<u32, String> {
    let mut seed = u64::from(task) + 1;
    let mut counted = 0;
    let own = format!("data/task/{task}");
    let mut expected = None;
    for operation in 0..operations {
        match number(&mut seed) >> 8 & 7 {
            0 => {
                let last = Cell::new(None);
                let count = async |nodes: &domu::xenstore::Nodes| {
                    if let Some(disturbed) = disturbed {
                        let value = nodes.read("data/dom0").await?;
                        let is_another = last.replace(Some(value.clone())).is_some_and(|last| last != value);
                        disturbed.set(disturbed.get() + u32::from(is_another));
                    }
                    let count: u32 = nodes.read("data/count").await?.number()?;
                    nodes.write("data/count", (count + 1).to_string()).await
                };
                match store.transaction(count).await {
                    Ok(()) => counted += 1,
                    Err(error) if error == ErrorKind::Conflict => {}
                    Err(error) => return Err(said(error)),
                }
            }
            1 | 2 => {
                let value = operation.to_string();
                store.write(&own, &value).await.map_err(said)?;
                expected = Some(value);
            }
            3 => {
                let mut watch = store.watch(&own).await.map_err(said)?;
                watch.next().await.map_err(said)?;
            }
            4 => {
                store.directory("data").await.map_err(said)?;
            }
            _ => {
                let found = store.read(&own).await;
                match (&expected, found) {
                    (Some(expected), Ok(found)) => equal(&*found, expected.as_bytes())?,
                    (None, Err(error)) if error == ErrorKind::NotFound => {}
                    (expected, found) => return Err(format!("{found:?} instead of {expected:?}")),
                }
            }
        }
    }
    if expected.is_some() {
        store.remove(&own).await.map_err(said)?;
    }
    Ok(counted)
}

async fn reset(store: &Xenstore) -> Result<(), String> {
    let mut watch = store.watch("data/r").await.map_err(said)?;
    watch.next().await.map_err(said)?;
    store.reset_watches().await.map_err(said)?;
    // The event of its registration, and one of a change.
    watch.next().await.map_err(said)?;
    store.write("data/r", "x").await.map_err(said)?;
    watch.next().await.map_err(said)?;
    store.remove("data/r").await.map_err(said)
}

async fn cycles(store: &Xenstore, cycles: u64) -> Result<(), String> {
    let mut live = Vec::with_capacity(2);
    let allowed = all_watches(store).await.map_err(said)?.len();
    let start = time::now();
    for count in [2, cycles] {
        for _ in 0..count {
            let watchers: Vec<_> = (0..40)
                .map(|device| {
                    let store = store.clone();
                    spawn(async move { store.watch(format!("data/device/{device}/state")).await?.next().await })
                })
                .collect();
            for watcher in watchers {
                watcher.await.map_err(said)?;
            }
        }
        // What the last ones were sent is answered.
        for _ in 0..40 {
            store.read("name").await.map_err(said)?;
        }
        live.push(memory::quick_stat().live);
    }
    log::info!("{cycles} cycles of 40 watchers took {} ms", start.elapsed().as_millis());
    equal(all_watches(store).await.map_err(said)?.len(), allowed)?;
    no_more_memory(live[0], live[1])
}

async fn absent(store: &Xenstore) -> Result<(), String> {
    equal(store.read("name").await.map_err(|error| error.kind()), Err(ErrorKind::Absent))?;
    equal(store.write("name", "x").await.map_err(|error| error.kind()), Err(ErrorKind::Absent))?;
    equal(store.begin().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Absent))?;
    equal(store.watch("name").await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Absent))
}
