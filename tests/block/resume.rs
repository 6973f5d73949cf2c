//! Suspend with requests in flight: saved and restored, and cancelled.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use domu::lifecycle::{self, Resumption};
use domu::sim::Saved;

use super::*;

const NEXT_FRONT_END: &str = "/local/domain/8/device/vbd/51712";
const NEXT_BACK_END: &str = "/local/domain/3/backend/vbd/8/51712";

/// Each of 64 requests completes once, and with the right data, though the back end of the new domain takes fewer segments.
#[test]
fn requests_are_issued_again_after_a_resume() {
    for (delay, stuck) in [(0, false), (3, false), (3, true)] {
        let (disk, store, finished) = (back::Disk::new(4096, 1), Store::new(), Arc::new(AtomicU32::new(0)));
        attach(&store);
        let (served, its, count) = (&disk, &store, &finished);
        let reports = Host::new()
            .domain(FRONT, Guest::new().xenstore(its), async move |domain: Domain| -> domu::Result {
                let (disk, driver) = open(domain, Config { depth: 64, ..Config::default() }).await;
                let before = disk.write(4000 * 512, &[1; 512]).await.unwrap();
                // The first back end does not answer this one, so the quiesce before the suspend runs out of time.
                let held = spawn({
                    let disk = disk.clone();
                    async move { if stuck { disk.read(4095 * 512, &mut [0; 512]).await } else { Ok(()) } }
                });
                time::sleep(Duration::from_millis(1)).await;
                let tasks: Vec<_> = (0..64u64)
                    .map(|index| {
                        let (disk, count) = (disk.clone(), Arc::clone(count));
                        spawn(async move {
                            let data = pattern(index, index, 512 * 30);
                            let _ = disk.write(index * 512 * 32, &data).await.unwrap();
                            let mut read = vec![0; data.len()];
                            disk.read(index * 512 * 32, &mut read).await.unwrap();
                            assert!(read == data);
                            count.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                    .collect();
                time::sleep(Duration::from_millis(delay)).await;
                its.dom0(|dom0| {
                    dom0.make_device_end(NEXT_FRONT_END, 8, ("backend", NEXT_BACK_END, BACK));
                    dom0.make_device_end(NEXT_BACK_END, BACK, ("frontend", NEXT_FRONT_END, 8));
                    dom0.write(&format!("{NEXT_BACK_END}/online"), "1");
                });
                assert_eq!(lifecycle::suspend().await?, Resumption::Restored);
                remove(its);
                for task in tasks {
                    task.await;
                }
                assert_eq!(count.load(Ordering::Relaxed), 64);
                held.await.unwrap();
                let lost = kind(disk.flush().await);
                assert_eq!(lost, stuck.then_some(ErrorKind::MayBeLost));
                assert_eq!(disk.flush().await.unwrap().covers(&before), !stuck);
                let stat = disk.stat();
                assert_eq!((stat.connections, stat.in_flight, stat.pool_free), (2, 0, 352));
                drop(disk);
                ended(driver).await.unwrap();
                its.dom0(|dom0| {
                    dom0.remove(NEXT_FRONT_END);
                    dom0.remove(NEXT_BACK_END);
                });
                Ok(())
            })
            .domain(BACK, Guest::new().xenstore(its), async move |domain: Domain| -> domu::Result {
                let slow = Duration::from_micros(200);
                let lie: back::Lie =
                    Box::new(|request, response| if request.sector == 4095 { vec![] } else { vec![response] });
                let mut first = Options { delay: slow, lie: Some(lie), ..Options::default() };
                back::serve(domain, DomainId(FRONT), XVDA, served, &mut first).await?;
                let mut second =
                    Options { indirect: 0, persistent: false, order: 0, delay: slow, ..Options::default() };
                back::serve(domain, DomainId(8), XVDA, served, &mut second).await
            })
            .run();
        for report in &reports {
            assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}{}", report.debug_text(), report.console_text());
        }
    }
}

#[test]
fn cancelled_suspend_continues() {
    let (disk, store) = (back::Disk::new(4096, 1), Store::new());
    attach(&store);
    let (served, its) = (&disk, &store);
    let guest = Guest::new().xenstore(its).saves(|| Saved::Cancelled(Duration::from_millis(5)));
    let reports = Host::new()
        .domain(FRONT, guest, async move |domain: Domain| -> domu::Result {
            let (disk, driver) = open(domain, Config::default()).await;
            let written = disk.write(0, &[1; 512]).await.unwrap();
            assert_eq!(lifecycle::suspend().await?, Resumption::Cancelled);
            assert!(disk.flush().await.unwrap().covers(&written));
            assert_eq!(disk.stat().connections, 1);
            drop(disk);
            ended(driver).await.unwrap();
            remove(its);
            Ok(())
        })
        .domain(BACK, Guest::new().xenstore(its), async move |domain: Domain| -> domu::Result {
            back::serve(domain, DomainId(FRONT), XVDA, served, &mut Options::default()).await
        })
        .run();
    for report in &reports {
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}{}", report.debug_text(), report.console_text());
    }
}
