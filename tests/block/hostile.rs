//! Back ends that lie.

use domu::block::protocol::{GeometryError, Response, Status};

use super::*;

/// Uses a disk whose back end breaks the protocol at its third response, once.
fn broken(lie: fn(Response) -> Vec<Response>) {
    let disk = back::Disk::new(1024, 1);
    let options = move || {
        let mut count = 0;
        let lie: back::Lie = Box::new(move |_, response| {
            count += 1;
            if count == 3 { lie(response) } else { vec![response] }
        });
        Options { lie: Some(lie), ..Options::default() }
    };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        let tasks: Vec<_> = (0..16u64)
            .map(|index| {
                let disk = disk.clone();
                spawn(async move { disk.read(index * 512, &mut [0; 512]).await })
            })
            .collect();
        let mut failed = 0;
        for task in tasks {
            match kind(task.await) {
                None => {}
                Some(kind) => {
                    assert_eq!(kind, ErrorKind::Protocol);
                    failed += 1;
                }
            }
        }
        assert!(failed > 0, "nothing failed");
        // The next connection works.
        disk.read(0, &mut [0; 512]).await.unwrap();
        let stat = disk.stat();
        assert_eq!((stat.protocol_errors, stat.in_flight, stat.pool_free), (1, 0, 352));
        drop(disk);
        ended(driver).await.unwrap();
    });
}

#[test]
fn response_to_no_request_ends_the_connection() {
    broken(|response| vec![Response { id: response.id + 1000, ..response }]);
    broken(|response| vec![Response { id: u64::MAX, ..response }]);
}

#[test]
fn second_response_ends_the_connection() {
    broken(|response| vec![response, response]);
}

#[test]
fn response_of_another_operation_ends_the_connection() {
    broken(|response| vec![Response { operation: 1, ..response }]);
}

#[test]
fn senseless_geometry_fails_requests() {
    for (sectors, error) in [
        ("18446744073709551615", Some(GeometryError::TooLarge(u64::MAX))),
        ("-1", None),
        ("many", None),
        ("99999999999999999999999", None),
    ] {
        let disk = back::Disk::new(1024, 1);
        let options = move || Options { sectors: Some(sectors.into()), ..Options::default() };
        run(Host::new(), &disk, options, async move |domain, _| {
            let (disk, driver) = open(domain, Config::default()).await;
            let connected = kind(disk.connected().await).unwrap();
            assert_eq!(connected, error.map_or(ErrorKind::Gone, ErrorKind::Geometry), "{sectors}");
            assert_eq!(kind(disk.read(0, &mut [0; 512]).await), Some(connected));
            assert!(ended(driver).await.is_err());
        });
    }
}

#[test]
fn failed_requests_are_errors_of_their_own() {
    let disk = back::Disk::new(1024, 1);
    let options = || {
        let lie: back::Lie = Box::new(|request, response| {
            let status = if request.sector % 2 == 1 { Status::Error } else { response.status };
            vec![Response { status, ..response }]
        });
        Options { lie: Some(lie), ..Options::default() }
    };
    run(Host::new(), &disk, options, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        for sector in 0..8 {
            let result = kind(disk.read(sector * 512, &mut [0; 512]).await);
            assert_eq!(result, (sector % 2 == 1).then_some(ErrorKind::Failed));
        }
        assert_eq!(disk.stat().requests, 8, "no read is tried again");
        drop(disk);
        ended(driver).await.unwrap();
    });
}

/// XSA-391: events without a response slow down who sends them.
#[test]
fn xsa_391_storm_of_events_starves_nobody() {
    let served = back::Disk::new(1024, 1);
    run(Host::new(), &served, Options::default, async |domain, _| {
        let (disk, driver) = open(domain, Config::default()).await;
        disk.connected().await.unwrap();
        let port = {
            let text = domain.xenstore().read("device/vbd/51712/event-channel").await.unwrap();
            text.number::<u32>().unwrap()
        };
        let storm = spawn(async move {
            for _ in 0..10_000 {
                domu::sim::outside(|outside| outside.notify(port));
                domu::executor::yield_now().await;
            }
        });
        let before = time::now();
        for sector in 0..100 {
            disk.read(sector * 512, &mut [0; 512]).await.unwrap();
        }
        assert!(before.elapsed() < Duration::from_secs(1));
        storm.await;
        drop(disk);
        ended(driver).await.unwrap();
    });
}
