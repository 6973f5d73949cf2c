//! Writes what the domain uses below `data/stats` each second, for the toolstack to look at: memory in bytes, turns and halts
//! of the main loop, pages that peers hold. In dom0, `xenstore-ls /local/domain/N/data/stats` shows it, and `xl shutdown`
//! ends it; a number on its command line ends it after so many seconds, which without one are 600.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::ToString;
use core::time::Duration;

use domu::xenstore::{Error, Nodes, Xenstore};
use domu::{executor, gnttab, lifecycle, memory, time};

domu::main!(main);

const PERIOD: Duration = Duration::from_secs(1);

async fn main(domain: domu::Domain) -> domu::Result {
    let rounds = core::str::from_utf8(domain.command_line()).ok().and_then(|line| line.parse().ok()).unwrap_or(600);
    let store = domain.xenstore();
    // Whoever reads them is not to take the last ones for the domain's, when it is gone.
    let at_end = store.clone();
    executor::at_exit(async move {
        if let Err(error) = at_end.remove("data/stats").await {
            log::warn!("what was written below data/stats stays: {error}");
        }
    });
    let mut seconds = time::interval(PERIOD);
    for round in 0..rounds {
        seconds.tick().await;
        publish(&store).await?;
        if round == 0 {
            log::info!("statistics are below data/stats");
        }
    }
    Ok(())
}

/// Writes all of them at once: who reads them in a transaction sees those of one moment.
async fn publish(store: &Xenstore) -> Result<(), Error> {
    store
        .transaction(async |nodes| {
            for (name, value) in memory::metrics() {
                write(nodes, "memory", name, value).await?;
            }
            let (activity, grants) = (executor::activity(), gnttab::stat());
            write(nodes, "events", "turns", activity.turns).await?;
            write(nodes, "events", "halts", activity.halts).await?;
            write(nodes, "grants", "deferred", grants.deferred as u64).await?;
            write(nodes, "toolstack", "requests", lifecycle::stat().requests).await
        })
        .await
}

async fn write(nodes: &Nodes, group: &str, name: &str, value: u64) -> Result<(), Error> {
    nodes.write(["data/stats/", group, "/", name].concat(), value.to_string()).await
}
