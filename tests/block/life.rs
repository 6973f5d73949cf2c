//! A disk's life: detach, restart of its back end, and another size.

use domu::block::OnDetach;

use super::*;

/// Writes to each of some places, all at the same time, and reads them again.
fn writers(disk: &Disk, count: u64) -> Vec<Task<Result<(), Error>>> {
    (0..count)
        .map(|index| {
            let disk = disk.clone();
            spawn(async move {
                let data = pattern(index, index, 2048);
                let _ = disk.write(index * 2048, &data).await?;
                let mut read = vec![0; data.len()];
                disk.read(index * 2048, &mut read).await?;
                assert!(read == data);
                Ok(())
            })
        })
        .collect()
}

fn slow() -> Options {
    Options { delay: Duration::from_millis(2), ..Options::default() }
}

#[test]
fn detach_drains_requests_in_flight() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, slow, async |domain, store| {
        let (disk, driver) = open(domain, Config::default()).await;
        disk.connected().await.unwrap();
        let tasks: Vec<_> = (0..16u64)
            .map(|index| {
                let disk = disk.clone();
                spawn(async move { disk.write(index * 512, &[7; 512]).await })
            })
            .collect();
        time::sleep(Duration::from_millis(5)).await;
        ask_to_detach(&store);
        for task in tasks {
            let _ = task.await.unwrap();
        }
        assert_eq!(kind(disk.read(0, &mut [0; 512]).await), Some(ErrorKind::Detached));
        ended(driver).await.unwrap();
        assert_eq!(kind(disk.flush().await), Some(ErrorKind::Detached));
    });
    assert!(disk.contents()[..16 * 512] == [7; 16 * 512]);
}

#[test]
fn refused_detach_leaves_the_disk_in_use() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, Options::default, async |domain, store| {
        let (disk, driver) = open(domain, Config { on_detach: OnDetach::Refuse, ..Config::default() }).await;
        disk.connected().await.unwrap();
        ask_to_detach(&store);
        time::sleep(Duration::from_secs(20)).await;
        for task in writers(&disk, 20) {
            task.await.unwrap();
        }
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn removed_disk_fails_requests() {
    let disk = back::Disk::new(1024, 1);
    let options = || Options { lie: Some(Box::new(|_, _| vec![])), ..Options::default() };
    run(Host::new(), &disk, options, async |domain, store| {
        let (disk, driver) = open(domain, Config::default()).await;
        disk.connected().await.unwrap();
        let tasks = writers(&disk, 40);
        time::sleep(Duration::from_millis(5)).await;
        remove(&store);
        for task in tasks {
            assert_eq!(kind(task.await), Some(ErrorKind::Gone));
        }
        ended(driver).await.unwrap();
        assert_eq!(kind(disk.connected().await), Some(ErrorKind::Gone));
        assert_eq!(kind(disk.read(0, &mut [0; 512]).await), Some(ErrorKind::Gone));
    });
}

#[test]
fn absent_disk_is_not_found() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, Options::default, async |domain, _| {
        assert_eq!(block::disks(domain).await.unwrap(), [XVDA]);
        for select in [Select::Name("xvdb"), Select::Name("nonsense"), Select::Nth(1), Select::Number(DeviceNumber(7))]
        {
            let error = block::open(domain, select, Config::default()).await.err();
            assert!(matches!(error, Some(DriverError::Disk(error)) if error == ErrorKind::NotFound));
        }
        let (disk, driver) = block::open(domain, Select::Nth(0), Config::default()).await.unwrap();
        assert_eq!(disk.number(), XVDA);
        // Never connected.
        drop((disk, driver));
    });
}

#[test]
fn requests_survive_twenty_restarts_of_the_back_end() {
    let disk = back::Disk::new(1024, 1);
    run(Host::new(), &disk, slow, async |domain, store| {
        let (disk, driver) = open(domain, Config::default()).await;
        for _ in 0..20 {
            disk.connected().await.unwrap();
            let tasks = writers(&disk, 64);
            time::sleep(Duration::from_millis(20)).await;
            // The back end closes the connection and begins again.
            store.write(&format!("{BACK_END}/state"), "5");
            for task in tasks {
                task.await.unwrap();
            }
        }
        let stat = disk.stat();
        assert_eq!((stat.connections, stat.in_flight, stat.pool_free), (21, 0, 352));
        assert!(stat.reissued > 0, "{stat:?}");
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn resize_is_seen_at_the_next_request() {
    let served = back::Disk::new(1024, 1);
    let its = &served;
    run(Host::new(), &served, Options::default, async move |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        let before = disk.connected().await.unwrap().geometry;
        assert_eq!(kind(disk.write(1024 * 512, &[7; 512]).await), Some(ErrorKind::OutOfRange));
        its.resize(2048);
        disk.read(0, &mut [0; 512]).await.unwrap();
        let larger = disk.resized(before).await.unwrap();
        assert_eq!(larger.sectors(), 2048);
        let _ = disk.write(2047 * 512, &[7; 512]).await.unwrap();
        // Smaller, while requests are in flight that are split: an error, or done.
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let disk = disk.clone();
                spawn(async move { disk.read(0, &mut vec![0; 2048 * 512]).await })
            })
            .collect();
        its.resize(64);
        for task in tasks {
            let result = kind(task.await);
            assert!(matches!(result, None | Some(ErrorKind::Failed | ErrorKind::OutOfRange)), "{result:?}");
        }
        assert_eq!(disk.resized(larger).await.unwrap().sectors(), 64);
        assert_eq!(kind(disk.read(64 * 512, &mut [0; 512]).await), Some(ErrorKind::OutOfRange));
        disk.read(63 * 512, &mut [0; 512]).await.unwrap();
        drop(disk);
        ended(driver).await.unwrap();
    });
}
