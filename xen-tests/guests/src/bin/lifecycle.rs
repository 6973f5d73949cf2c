//! What the toolstack does to a domain, and how it ends. The command line says which:
//!
//! * `obey`: waits, and leaves the rest to the crate;
//! * `stream`: takes each request and key, and says `@request` and `@key`; reboots or powers off when it is asked to;
//! * `finish_poweroff`, `finish_reboot`, `return_reboot`: ends by itself, with something left to be done;
//! * `ticks`: says `@tick` ten times a second;
//! * `starve`: does not feed its watchdog; `spin`: neither, as it computes;
//! * `feed`: cases `watchdog.third`, and `watchdog.fed` when it has outlived it; `feed_on`: does so for ever.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use core::time::Duration;

use domu::lifecycle::{self, Reason, ShutdownRequest, Watchdog, WatchdogError};
use domu::{Domain, executor, time};
use domu_guests::verdict;

domu::main!(main);

const SECOND: Duration = Duration::from_secs(1);

async fn main(domain: Domain) -> domu::Result<Reason> {
    executor::at_exit(async {
        time::sleep(SECOND / 10).await;
        log::info!("said farewell");
    });
    match domain.command_line() {
        b"obey" => {
            log::info!("ready");
            loop {
                time::sleep(3600 * SECOND).await;
            }
        }
        b"stream" => stream(domain).await,
        b"finish_poweroff" => lifecycle::finish(Reason::Poweroff).await,
        b"finish_reboot" => lifecycle::finish(Reason::Reboot).await,
        b"return_reboot" => Ok(Reason::Reboot),
        b"ticks" => {
            let mut ticks = time::interval(SECOND / 10);
            loop {
                ticks.tick().await;
                domain.console().write_all(b"@tick\n").await?;
            }
        }
        b"starve" => {
            let _watchdog = Watchdog::start(2 * SECOND)?;
            time::sleep(60 * SECOND).await;
            Ok(Reason::Poweroff)
        }
        b"spin" => {
            let _watchdog = Watchdog::start(2 * SECOND)?;
            let start = time::now();
            while start.elapsed() < 60 * SECOND {}
            Ok(Reason::Poweroff)
        }
        b"feed_on" => {
            let watchdog = Watchdog::start(2 * SECOND)?;
            log::info!("ready");
            loop {
                time::sleep(SECOND / 2).await;
                watchdog.feed()?;
            }
        }
        b"feed" => feed(&domain).await,
        line => panic!("no such test: {}", line.escape_ascii()),
    }
}

async fn stream(domain: Domain) -> domu::Result<Reason> {
    let (mut requests, mut keys) = (domain.shutdown_requests(), domain.sysrq());
    executor::spawn(async move {
        while let Ok(key) = keys.next().await {
            log::info!("@key {}", key.escape_ascii());
        }
    })
    .detach();
    log::info!("ready");
    loop {
        let request = requests.next().await?;
        log::info!("@request {request:?}");
        match request {
            // The first time it is not convenient.
            ShutdownRequest::Halt => log::info!("not now"),
            other => {
                if let Some(reason) = other.reason() {
                    return Ok(reason);
                }
            }
        }
    }
}

/// A watchdog that is fed keeps quiet, and one that is dropped too.
async fn feed(domain: &Domain) -> domu::Result<Reason> {
    let watchdog = Watchdog::start(2 * SECOND)?;
    let other = Watchdog::start(600 * SECOND)?;
    let third = Watchdog::start(600 * SECOND);
    let result = match &third {
        Err(WatchdogError::TooMany) => Ok(()),
        other => Err(format!("a third watchdog: {other:?}")),
    };
    verdict(domain, "watchdog.third", result);
    drop((other, third));
    for _ in 0..8 {
        time::sleep(SECOND / 2).await;
        watchdog.feed()?;
    }
    drop(watchdog);
    time::sleep(3 * SECOND).await;
    // The place is free again.
    drop(Watchdog::start(600 * SECOND)?);
    verdict(domain, "watchdog.fed", Ok(()));
    Ok(Reason::Poweroff)
}
