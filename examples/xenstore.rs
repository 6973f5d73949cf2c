//! Reads what the toolstack has written, writes something, and tells of changes below `data` for a minute, or until there is
//! `data/stop`. In dom0, `xenstore-write /local/domain/N/data/greeting hello` is such a change.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::ToString;
use core::time::Duration;

use domu::time;
use domu::xenstore::{ErrorKind, Xenstore};

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    let store = domain.xenstore();
    log::info!("the toolstack calls me {}", store.read("name").await?);

    // Both at once, and again if somebody else is at it.
    let starts = store
        .transaction(async |nodes| {
            let before = match nodes.read("data/starts").await {
                Ok(value) => value.number::<u32>()?,
                Err(error) if error == ErrorKind::NotFound => 0,
                Err(error) => return Err(error),
            };
            let starts = before + 1;
            nodes.write("data/starts", starts.to_string()).await?;
            Ok(starts)
        })
        .await?;
    log::info!("started {starts} times");

    match time::timeout(Duration::from_secs(60), tell(&store)).await {
        Ok(result) => result,
        Err(time::Elapsed) => Ok(()),
    }
}

async fn tell(store: &Xenstore) -> domu::Result {
    let mut watch = store.watch("data").await?;
    while store.read("data/stop").await.is_err_and(|error| error == ErrorKind::NotFound) {
        let path = watch.next().await?;
        match store.read(&path).await {
            Ok(value) => log::info!("{path} is {value}"),
            Err(error) if error == ErrorKind::NotFound => log::info!("{path} is gone"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
