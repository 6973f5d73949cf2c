//! Requests of all kinds and sizes.

use domu::block::{Buffers, Durability};
use domu::memory::Pages;

use super::*;

/// Writes and reads at many positions and sizes, and reads all of it again.
async fn use_disk(disk: &Disk, sectors: u64) {
    let sizes = [1, 2, 7, 8, 9, 88, 89, 700, 2049];
    for (index, size) in sizes.into_iter().enumerate() {
        let position = (index as u64 * 37) % (sectors - size);
        let data = pattern(index as u64, position, size as usize * 512);
        let _ = disk.write(position * 512, &data).await.unwrap();
        let mut read = vec![0; data.len()];
        disk.read(position * 512, &mut read).await.unwrap();
        assert!(read == data, "{size} sectors at {position}");
    }
}

#[test]
fn written_data_is_read_with_any_back_end() {
    for (persistent, indirect, order) in
        [(true, 256, 4), (false, 256, 0), (true, 0, 0), (false, 0, 4), (false, 4096, 1)]
    {
        let disk = back::Disk::new(4096, 1);
        let options = || Options { persistent, indirect, order, ..Options::default() };
        run(Host::new(), &disk, options, async |domain, _| {
            let config = Config { depth: 64, ..Config::default() };
            let (disk, driver) = open(domain, config).await;
            let info = disk.connected().await.unwrap();
            assert_eq!((info.geometry.sectors(), info.durability), (4096, Durability::Flush));
            assert_eq!(info.features.segments(), usize::from(indirect).max(11));
            assert_eq!(info.ring_entries, if order == 0 { 32 } else { 64 });
            assert_eq!(info.lends, !persistent);
            use_disk(&disk, 4096).await;
            let stat = disk.stat();
            assert_eq!((stat.requests, stat.errors, stat.in_flight, stat.pool_free), (stat.responses, 0, 0, 352));
            drop(disk);
            ended(driver).await.unwrap();
        });
        assert!(disk.contents()[37 * 512..][..512] == pattern(1, 37, 512));
    }
}

#[test]
fn many_requests_in_flight_complete_once() {
    for seed in 0..8 {
        let disk = back::Disk::new(8192, 1);
        run(Host::new().seed(seed), &disk, Options::default, async move |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            let tasks: Vec<_> = (0..100u64)
                .map(|task| {
                    let disk = disk.clone();
                    spawn(async move {
                        for round in 0..3 {
                            let data = pattern(round, task, 512 * (1 + task as usize % 12));
                            let _ = disk.write(task * 40 * 512, &data).await.unwrap();
                            let mut read = vec![0; data.len()];
                            disk.read(task * 40 * 512, &mut read).await.unwrap();
                            assert!(read == data);
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            drop(disk);
            ended(driver).await.unwrap();
        });
    }
}

#[test]
fn batch_of_requests_costs_one_notification() {
    let disk = back::Disk::new(256, 1);
    let options = || Options { batch: 32, delay: Duration::from_micros(10), ..Options::default() };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        disk.connected().await.unwrap();
        let tasks: Vec<_> = (0..32u64)
            .map(|task| {
                let disk = disk.clone();
                spawn(async move { disk.read(task * 512, &mut [0; 512]).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await;
        }
        let stat = disk.stat();
        assert_eq!((stat.requests, stat.notifications), (32, 1));
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn invalid_requests_fail_before_the_ring() {
    let disk = back::Disk::new(64, 1);
    let options = || Options { discard: Some((8192, 4096)), ..Options::default() };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        for (position, length) in [(1, 512), (0, 511), (0, 0), (256, 512)] {
            let read = disk.read(position, &mut vec![0; length]).await;
            assert_eq!(kind(read), Some(ErrorKind::Misaligned(512)));
        }
        assert_eq!(kind(disk.write(63 * 512, &[0; 1024]).await), Some(ErrorKind::OutOfRange));
        assert_eq!(kind(disk.write(u64::MAX - 511, &[0; 512]).await), Some(ErrorKind::OutOfRange));
        for (position, length) in [(0, 8192), (4096, 4096), (4608, 8192)] {
            assert_eq!(kind(disk.discard(position, length).await), Some(ErrorKind::Misaligned(8192)));
        }
        assert_eq!(disk.stat().requests, 0);
        disk.discard(4096, 16_384).await.unwrap();
        let mut read = vec![0; 32_768];
        disk.read(0, &mut read).await.unwrap();
        let discarded: Vec<_> = read.chunks(512).map(|sector| sector == [0xdd; 512]).collect();
        assert_eq!(discarded, (0..64).map(|sector| (8..40).contains(&sector)).collect::<Vec<_>>());
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn read_only_disk_refuses_writes() {
    let disk = back::Disk::new(64, 1);
    run(
        Host::new(),
        &disk,
        || Options { info: 4, ..Options::default() },
        async |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            assert!(!disk.connected().await.unwrap().writable);
            assert_eq!(kind(disk.write(0, &[0; 512]).await), Some(ErrorKind::ReadOnly));
            assert_eq!(kind(disk.discard(0, 4096).await), Some(ErrorKind::ReadOnly));
            disk.read(0, &mut [0; 512]).await.unwrap();
            assert_eq!(disk.stat().requests, 1);
            drop(disk);
            ended(driver).await.unwrap();
        },
    );
}

#[test]
fn large_sectors_follow_the_header() {
    for trust in [false, true] {
        let disk = back::Disk::new(4096, 1);
        let options = || Options { sector_size: 4096, persistent: false, ..Options::default() };
        // A back end that does not say whether it keeps pages may count otherwise.
        let store_key = format!("{BACK_END}/feature-persistent");
        run(Host::new(), &disk, options, async move |domain, store| {
            store.react(&store_key, {
                let key = store_key.clone();
                move |dom0, _| {
                    if dom0.read(&key).is_some() {
                        dom0.remove(&key);
                    }
                }
            });
            let (disk, driver) = open(domain, Config { trust_large_sectors: trust, ..config() }).await;
            let info = disk.connected().await.unwrap();
            assert_eq!((info.geometry.sector_size(), info.writable), (4096, trust));
            assert_eq!(kind(disk.read(512, &mut [0; 4096]).await), Some(ErrorKind::Misaligned(4096)));
            if trust {
                let data = pattern(1, 1, 4096 * 20);
                let _ = disk.write(4096 * 3, &data).await.unwrap();
                let mut read = vec![0; data.len()];
                disk.read(4096 * 3, &mut read).await.unwrap();
                assert!(read == data);
            }
            drop(disk);
            ended(driver).await.unwrap();
        });
    }
}

fn config() -> Config {
    Config::default()
}

#[test]
fn lent_pages_come_back_with_the_result() {
    for buffers in [Buffers::Auto, Buffers::Lend, Buffers::Pool] {
        let disk = back::Disk::new(4096, 1);
        run(Host::new(), &disk, Options::default, async move |domain, _| {
            let (disk, driver) = open(domain, Config { buffers, ..config() }).await;
            let info = disk.connected().await.unwrap();
            // Once both ends keep pages none can be lent.
            assert_eq!(info.lends, buffers == Buffers::Lend);
            let mut pages = Pages::new(100).unwrap();
            let data = pattern(9, 5, pages.len());
            pages.bytes_mut().copy_from_slice(&data);
            let (_, pages) = disk.write_pages(5 * 512, pages).await.unwrap();
            let outside = disk.write_pages(4000 * 512, pages).await.unwrap_err();
            assert!(outside.error == ErrorKind::OutOfRange);
            let mut pages = outside.pages.expect("the pages come back");
            pages.bytes_mut().fill(0);
            let pages = disk.read_pages(5 * 512, pages).await.unwrap();
            assert!(pages.bytes() == data);
            drop(disk);
            ended(driver).await.unwrap();
        });
    }
}

#[test]
fn dropped_future_keeps_its_buffer_until_the_answer() {
    for buffers in [Buffers::Lend, Buffers::Pool] {
        let disk = back::Disk::new(4096, 1);
        let options = || Options { delay: Duration::from_millis(100), ..Options::default() };
        run(Host::new(), &disk, options, async move |domain, _| {
            let (disk, driver) = open(domain, Config { buffers, ..config() }).await;
            disk.connected().await.unwrap();
            let mut pages = Pages::new(1).unwrap();
            pages.bytes_mut().fill(7);
            let write = disk.write_pages(0, pages);
            assert!(time::timeout(Duration::from_millis(1), write).await.is_err());
            let stat = disk.stat();
            assert_eq!((stat.in_flight, stat.orphaned), (1, 1));
            // A request that overlaps what may still be written waits for it; another does not.
            let mut other = [1; 512];
            let mut overlapping = [1; 512];
            disk.read(8 * 512, &mut other).await.unwrap();
            disk.read(7 * 512, &mut overlapping).await.unwrap();
            assert_eq!((other[0], overlapping[0]), (0, 7));
            assert_eq!((disk.stat().in_flight, disk.stat().orphaned, disk.stat().pool_free), (0, 0, 352));
            drop(disk);
            ended(driver).await.unwrap();
        });
    }
}

#[test]
fn unanswered_requests_hold_their_buffers_only() {
    let disk = back::Disk::new(4096, 1);
    let options = || {
        let lie: back::Lie = Box::new(|request, response| if request.sector < 64 { vec![] } else { vec![response] });
        Options { lie: Some(lie), ..Options::default() }
    };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, config()).await;
        disk.connected().await.unwrap();
        for sector in 0..20 {
            let read = time::timeout(Duration::from_millis(10), disk.write(sector * 512, &[0; 512])).await;
            assert!(read.is_err());
        }
        let blocked = spawn({
            let disk = disk.clone();
            async move { time::timeout(Duration::from_secs(1), disk.read(0, &mut [0; 512])).await.is_err() }
        });
        use_disk_from(&disk, 64).await;
        assert!(blocked.await);
        assert_eq!(disk.stat().orphaned, 20);
        drop(disk);
        // The driver waits for answers that never come, as long as it is let.
        assert!(time::timeout(Duration::from_secs(30), driver).await.is_err());
    });
}

async fn use_disk_from(disk: &Disk, first: u64) {
    for index in 0..50 {
        let data = pattern(index, index, 8192);
        let _ = disk.write((first + index * 16) * 512, &data).await.unwrap();
        let mut read = vec![0; 8192];
        disk.read((first + index * 16) * 512, &mut read).await.unwrap();
        assert!(read == data);
    }
}
