//! What completed writes and flushes promise.

use domu::block::Durability;
use domu::block::protocol::{Operation, Status};

use super::*;

/// A back end that answers an operation with a status.
fn answers(operation: Operation, status: Status) -> back::Lie {
    Box::new(move |request, response| {
        let status = if request.operation == operation { status } else { response.status };
        vec![domu::block::protocol::Response { status, ..response }]
    })
}

#[test]
fn waiting_flushes_are_merged() {
    let disk = back::Disk::new(1024, 1);
    let options = || Options { delay: Duration::from_millis(1), ..Options::default() };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        disk.connected().await.unwrap();
        for _ in 0..3 {
            let tasks: Vec<_> = (0..20u64)
                .map(|index| {
                    let disk = disk.clone();
                    spawn(async move { disk.write_durable(index * 512, &[1; 512]).await })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
        }
        let flushes = disk.stat().flushes;
        assert!((3..30).contains(&flushes), "{flushes} flushes of 60 writes");
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn flush_covers_what_completed_before_it() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, Options::default, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        let first = disk.write(0, &[1; 512]).await.unwrap();
        let flushed = disk.flush().await.unwrap();
        let second = disk.write(0, &[2; 512]).await.unwrap();
        assert!(flushed.covers(&first) && !flushed.covers(&second));
        let flushes = disk.stat().flushes;
        let flushed = disk.flush().await.unwrap();
        assert!(flushed.covers(&first) && flushed.covers(&second));
        // Nothing is left to be flushed.
        assert!(disk.flush().await.unwrap().covers(&second));
        assert_eq!(disk.stat().flushes, flushes + 1);
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn lost_connection_is_reported_once() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, Options::default, async |domain, store| {
        let (disk, driver) = open(domain, Config::default()).await;
        for is_flushed in [false, true] {
            let written = disk.write(0, &[1; 512]).await.unwrap();
            if is_flushed {
                assert!(disk.flush().await.unwrap().covers(&written));
            }
            let connections = disk.stat().connections;
            store.write(&format!("{BACK_END}/state"), "5");
            while disk.stat().connections == connections || disk.info().is_none() {
                time::sleep(Duration::from_millis(10)).await;
            }
            let result = disk.flush().await;
            assert_eq!(kind(result), (!is_flushed).then_some(ErrorKind::MayBeLost));
            let later = disk.write(512, &[1; 512]).await.unwrap();
            let flushed = disk.flush().await.unwrap();
            assert!(flushed.covers(&later) && flushed.covers(&written) == is_flushed);
        }
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn failed_flush_poisons_until_it_is_cleared() {
    let disk = back::Disk::new(1024, 1);
    let options = || Options { lie: Some(answers(Operation::Flush, Status::Error)), ..Options::default() };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        let _ = disk.write(0, &[1; 512]).await.unwrap();
        for _ in 0..2 {
            assert_eq!(kind(disk.flush().await), Some(ErrorKind::FlushFailed));
            assert_eq!(kind(disk.write(0, &[1; 512]).await), Some(ErrorKind::FlushFailed));
            assert_eq!(kind(disk.discard(0, 4096).await), Some(ErrorKind::FlushFailed));
            disk.read(0, &mut [0; 512]).await.unwrap();
        }
        disk.clear_flush_failure();
        let _ = disk.write(0, &[1; 512]).await.unwrap();
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn unsupported_flush_is_switched_off_and_reported() {
    for barrier in [false, true] {
        let disk = back::Disk::new(1024, 1);
        let options = move || Options {
            barrier,
            lie: Some(answers(Operation::Flush, Status::Unsupported)),
            ..Options::default()
        };
        run(Host::new(), &disk, options, async move |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            let written = disk.write(0, &[1; 512]).await.unwrap();
            assert_eq!(disk.info().unwrap().durability, Durability::Flush);
            assert_eq!(kind(disk.flush().await), Some(ErrorKind::FlushUnsupported));
            if barrier {
                assert_eq!(disk.info().unwrap().durability, Durability::Barrier);
                assert!(disk.flush().await.unwrap().covers(&written));
            } else {
                assert_eq!(disk.info().unwrap().durability, Durability::Unknown);
                assert_eq!(kind(disk.write_durable(0, &[1; 512]).await), Some(ErrorKind::FlushUnsupported));
            }
            drop(disk);
            ended(driver).await.unwrap();
        });
    }
}

#[test]
fn refused_empty_barrier_leaves_durability_unknown() {
    let disk = back::Disk::new(1024, 1);
    let lie = || Some(answers(Operation::Barrier, Status::Error));
    run(
        Host::new(),
        &disk,
        || Options { flush: false, lie: lie(), ..Options::default() },
        async |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            assert_eq!(disk.connected().await.unwrap().durability, Durability::Barrier);
            assert_eq!(kind(disk.write_durable(0, &[1; 512]).await), Some(ErrorKind::FlushUnsupported));
            assert_eq!(disk.info().unwrap().durability, Durability::Unknown);
            drop(disk);
            ended(driver).await.unwrap();
        },
    );
}

#[test]
fn without_flush_and_barrier_durability_is_unknown() {
    let disk = back::Disk::new(1024, 1);
    run(
        Host::new(),
        &disk,
        || Options { flush: false, barrier: false, ..Options::default() },
        async |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            assert_eq!(disk.connected().await.unwrap().durability, Durability::Unknown);
            assert_eq!(kind(disk.flush().await), Some(ErrorKind::FlushUnsupported));
            assert_eq!(disk.stat().requests, 0);
            drop(disk);
            ended(driver).await.unwrap();
        },
    );
}
