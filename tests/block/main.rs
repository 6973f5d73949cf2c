//! Disks on the simulated Xen: the front end against a back end in another domain, with a toolstack that the test plays.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for the tests that Miri does not run"))]

#[cfg(not(miri))]
mod durability;
#[cfg(not(miri))]
mod hostile;
#[cfg(not(miri))]
mod life;
#[cfg(not(miri))]
mod power;
#[cfg(not(miri))]
mod requests;
#[cfg(not(miri))]
mod resume;

use std::sync::Mutex;
use std::time::Duration;

use domu::block::protocol::DeviceNumber;
use domu::block::{self, Config, Disk, DriverError, Error, ErrorKind, Select};
use domu::executor::{Task, spawn};
use domu::lifecycle::Reason;
use domu::sim::backends::block::{self as back, Options};
use domu::sim::{End, Guest, Host, Report, Store};
use domu::{Domain, DomainId, eventchn, gnttab, time};

/// The domain of the front end, and that of the back end.
const FRONT: u16 = 7;
const BACK: u16 = 3;
const XVDA: DeviceNumber = DeviceNumber(51_712);

const FRONT_END: &str = "/local/domain/7/device/vbd/51712";
const BACK_END: &str = "/local/domain/3/backend/vbd/7/51712";

/// Makes the disk.
fn attach(store: &Store) {
    store.dom0(|dom0| {
        dom0.make_device_end(FRONT_END, FRONT, ("backend", BACK_END, BACK));
        dom0.make_device_end(BACK_END, BACK, ("frontend", FRONT_END, FRONT));
        dom0.write(&format!("{BACK_END}/online"), "1");
    });
}

/// Asks for the disk to be closed, as `xl block-detach` does.
fn ask_to_detach(store: &Store) {
    store.dom0(|dom0| {
        dom0.write(&format!("{BACK_END}/online"), "0");
        dom0.write(&format!("{BACK_END}/state"), "5");
    });
}

/// Removes the disk's directories.
fn remove(store: &Store) {
    store.dom0(|dom0| {
        dom0.remove(FRONT_END);
        dom0.remove(BACK_END);
    });
}

type Driver = Task<Result<(), DriverError>>;

/// Opens the disk, and spawns its driver.
async fn open(domain: Domain, config: Config) -> (Disk, Driver) {
    let (disk, driver) = block::open(domain, Select::Name("xvda"), config).await.unwrap();
    (disk, spawn(driver.run()))
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Waits until the driver ends, within bounds.
async fn ended(driver: Driver) -> Result<(), DriverError> {
    time::timeout(Duration::from_secs(60), driver).await.expect("the driver ends")
}

/// Runs a front end against a back end that serves `disk`. All that the front end was given is given back then.
fn run<F: Future<Output = ()>>(
    host: Host<'_>,
    disk: &back::Disk,
    options: impl FnOnce() -> Options + Send,
    main: impl FnOnce(Domain, Store) -> F + Send,
) -> Vec<Report> {
    let store = Store::new();
    attach(&store);
    let (of_front, of_back) = (&store, &store);
    let reports = host
        .domain(FRONT, Guest::new().xenstore(of_front), async move |domain: Domain| -> domu::Result {
            main(domain, of_front.clone()).await;
            remove(of_front);
            // What a back end had mapped is given back when it has seen that.
            let given_back = async {
                while gnttab::stat().in_use > 0 {
                    time::sleep(Duration::from_millis(50)).await;
                }
            };
            let given_back = time::timeout(Duration::from_secs(20), given_back).await;
            assert!(given_back.is_ok(), "grants are left: {:?}", gnttab::stat());
            assert!(eventchn::alloc_unbound(DomainId(BACK))?.number() < 8, "ports are left");
            domain.xenstore().read("name").await?;
            assert!(of_front.watches(FRONT).is_empty(), "watches are left");
            Ok(())
        })
        .domain(BACK, Guest::new().xenstore(of_back), async move |domain: Domain| -> domu::Result {
            let mut options = options();
            back::serve(domain, DomainId(FRONT), XVDA, disk, &mut options).await
        })
        .run();
    for report in &reports {
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}{}", report.debug_text(), report.console_text());
    }
    reports
}

/// Data that differs for each sector and seed.
fn pattern(seed: u64, sector: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    for (index, chunk) in data.chunks_mut(8).enumerate() {
        let word =
            (sector * 64 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
    data
}
