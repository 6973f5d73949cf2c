//! A domain whose memory target changes, and that is saved then.
//!
//! With `follow` on the command line it follows the target, down to 8 MiB. It says `@memory HELD LIMIT` (KiB) whenever one of
//! them changes, writes `data/advertised` in each domain that it becomes, says `@resumed NUMBER`, and ends with the verdict
//! `target.runs` when `data/end` is written.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::ToString;
use core::time::Duration;

use domu::executor::spawn;
use domu::memory::balloon;
use domu::{Domain, lifecycle, time, xenstore};
use domu_guests::verdict;

domu::main!(main);

async fn main(domain: Domain) -> domu::Result {
    if domain.words().any(|word| word.raw() == b"follow") {
        spawn(async move {
            let Err(error) = lifecycle::follow_memory_target(domain, 8 << 20).await;
            log::error!("memory target not followed: {error}");
        })
        .detach();
    }
    spawn(advertise(domain)).detach();
    let (store, mut last) = (domain.xenstore(), (0, 0));
    loop {
        let now = (balloon::held()? >> 10, balloon::limit()? >> 10);
        if now != last {
            domain.console().write_all(format!("@memory {} {}\n", now.0, now.1).as_bytes()).await?;
            last = now;
        }
        match store.read("data/end").await {
            Ok(_) => break,
            Err(error) if matches!(error.kind(), xenstore::ErrorKind::NotFound | xenstore::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
        time::sleep(Duration::from_millis(200)).await;
    }
    verdict(&domain, "target.runs", Ok(()));
    Ok(())
}

/// Writes a node of the domain's own again after each resume.
async fn advertise(domain: Domain) {
    let mut resumes = domain.resumes();
    loop {
        let generation = domain.generation();
        let store = domain.xenstore();
        let written =
            store.transaction(async |nodes| nodes.write("data/advertised", generation.to_string()).await).await;
        if let Err(error) = written {
            log::warn!("data/advertised: {error}");
        }
        while domain.generation() == generation {
            resumes.next().await;
        }
        let _ = domain.console().write_all(format!("@resumed {}\n", domain.generation()).as_bytes()).await;
    }
}
