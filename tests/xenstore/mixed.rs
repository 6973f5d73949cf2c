//! Many tasks that do many things at once, against a model.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use domu::executor::spawn;
use domu::sim::Store;
use domu::xenstore::{Error, ErrorKind, Nodes, Xenstore};

use super::{ME, MS, number, run};

/// What tasks have in common: nodes that each changes in transactions, and what they are to hold.
const SHARED: usize = 4;

#[test]
fn fifty_tasks_with_transactions_in_conflict_agree_with_a_model() {
    let (tasks, operations) = (50, 200);
    for (server, seed) in [(Store::new(), 1), (Store::oxenstored(), 2)] {
        server.delay(MS / 20);
        run(&server, async |domain| {
            let store = domain.xenstore();
            for node in 0..SHARED {
                store.write(format!("data/shared/{node}"), "0").await?;
            }
            let sums = Rc::new(RefCell::new([0_u64; SHARED]));
            let all: Vec<_> = (0..tasks)
                .map(|task| {
                    let (store, sums) = (store.clone(), Rc::clone(&sums));
                    spawn(async move { worker(&store, &sums, task, operations, seed).await })
                })
                .collect();
            for task in all {
                task.await?;
            }
            let sums = *sums.borrow();
            for (node, sum) in sums.iter().enumerate() {
                assert_eq!(store.read(format!("data/shared/{node}")).await?.number(), Ok(*sum), "node {node}");
            }
            assert_eq!((server.watches(ME), server.transactions(ME)), (Vec::new(), 0));
            Ok(())
        });
    }
}

async fn worker(
    store: &Xenstore,
    sums: &RefCell<[u64; SHARED]>,
    task: usize,
    operations: usize,
    seed: u64,
) -> Result<(), Error> {
    let mut seed = seed * 1000 + task as u64 + 1;
    let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for _ in 0..operations {
        let path = format!("data/own/{task}/{}", number(&mut seed) % 5);
        match number(&mut seed) % 9 {
            0 => {
                let (from, to) = (number(&mut seed) % SHARED, number(&mut seed) % SHARED);
                let add = async |nodes: &Nodes, node: usize, amount: u64| {
                    let path = format!("data/shared/{node}");
                    let value = nodes.read(&path).await?.number::<u64>()?;
                    nodes.write(&path, (value + amount).to_string()).await
                };
                let done = store.transaction(async |nodes| {
                    add(nodes, from, 1).await?;
                    add(nodes, to, 10).await
                });
                match done.await {
                    Ok(()) => {
                        sums.borrow_mut()[from] += 1;
                        sums.borrow_mut()[to] += 10;
                    }
                    Err(error) if error == ErrorKind::Conflict => {}
                    Err(error) => return Err(error),
                }
            }
            1 | 2 => {
                let value = vec![number(&mut seed) as u8; number(&mut seed) % 1500];
                store.write(&path, &value).await?;
                model.insert(path, value);
            }
            3 => {
                if !model.is_empty() {
                    store.remove(&path).await?;
                    model.remove(&path);
                }
            }
            4 => {
                let mut watch = store.watch(&path).await?;
                watch.next().await?;
                store.write(&path, "watched").await?;
                model.insert(path, b"watched".to_vec());
                watch.next().await?;
            }
            5 => {
                let prefix = format!("data/own/{task}");
                match store.directory(&prefix).await {
                    Ok(names) => {
                        let expected: Vec<_> = model.keys().map(|path| path[prefix.len() + 1..].to_string()).collect();
                        assert_eq!(super::sorted(&names), expected);
                    }
                    Err(error) if error == ErrorKind::NotFound => assert!(model.is_empty()),
                    Err(error) => return Err(error),
                }
            }
            6 => {
                // Given up in the middle.
                let transaction = store.begin().await?;
                transaction.write(&path, "lost").await?;
            }
            _ => match (store.read(&path).await, model.get(&path)) {
                (Ok(value), Some(expected)) => assert_eq!(&*value, expected.as_slice()),
                (Err(error), None) if error == ErrorKind::NotFound => {}
                (value, expected) => panic!("{value:?} instead of {expected:?}"),
            },
        }
    }
    Ok(())
}
