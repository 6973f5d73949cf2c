//! The crate's front end of a disk that Linux serves in dom0, of 32 MiB. For the rest dom0 does what it says, each time with a
//! line `@WORD`.
//!
//! * `block.connected`: the disk is opened by name, and says what Linux offers.
//! * `block.verified`: data of all sizes, many requests at a time, is read as it was written, with the pool and with lent pages.
//! * `block.durable`: flushes complete, and those that wait together are merged.
//! * `block.resized`, unless the command line has `fixed`: after `@grow` a request shows the new size.
//! * `block.rebound`: after `@rebind` requests in flight are issued again, each once.
//! * `block.detached`: after `@detach` requests in flight are answered, and the driver ends.
//! * `block.nothing_left`: no grant is in use.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use core::time::Duration;

use domu::block::{self, Buffers, Config, Disk, Durability, ErrorKind, Select};
use domu::executor::{Task, spawn};
use domu::memory::Pages;
use domu::{Domain, gnttab, time};
use domu_guests::{ensure, said, soon, verdict};

domu::main!(main);

type Result<T = ()> = core::result::Result<T, String>;
type Driver = Task<core::result::Result<(), block::DriverError>>;

const SIZE: u64 = 32 << 20;

async fn main(domain: Domain) -> Result {
    let judge = |step: &str, result: Result| {
        verdict(&domain, &format!("block.{step}"), result.clone());
        result
    };
    let opened = open(domain, Buffers::Auto).await;
    judge("connected", opened.as_ref().map(drop).map_err(Clone::clone))?;
    let (disk, driver) = opened?;
    let verified = verified(&disk).await;
    drop(disk);
    soon("the driver's end", driver).await?.map_err(said)?;
    let (disk, driver) = open(domain, Buffers::Lend).await?;
    judge(
        "verified",
        async {
            verified?;
            lent(&disk).await
        }
        .await,
    )?;
    judge("durable", durable(&disk).await)?;
    if !domain.words().any(|word| word.raw() == b"fixed") {
        judge("resized", resized(domain, &disk).await)?;
    }
    judge("rebound", rebound(domain, &disk).await)?;
    judge("detached", detached(domain, disk, driver).await)?;
    judge("nothing_left", nothing_left().await)
}

/// Waits until there is a disk, and opens it.
async fn open(domain: Domain, buffers: Buffers) -> Result<(Disk, Driver)> {
    let opened = async {
        loop {
            match block::open(domain, Select::Name("xvda"), Config { buffers, depth: 64, ..Config::default() }).await {
                Err(block::DriverError::Disk(error)) if error == ErrorKind::NotFound => {
                    time::sleep(Duration::from_millis(50)).await;
                }
                opened => return opened,
            }
        }
    };
    let (disk, driver) = soon("a disk", opened).await?.map_err(said)?;
    let driver = spawn(driver.run());
    let info = soon("a connection", disk.connected()).await?.map_err(said)?;
    log::info!("{info:?}");
    ensure(info.geometry.bytes() == SIZE && info.geometry.sector_size() == 512 && info.writable, || {
        said(info.geometry.bytes())
    })?;
    ensure(info.lends == (buffers == Buffers::Lend), || "lending is not as asked".into())?;
    ensure(info.durability == Durability::Flush && info.features.indirect_segments >= 256, || format!("{info:?}"))?;
    Ok((disk, driver))
}

/// Fills a buffer by position and generation.
fn fill(data: &mut [u8], position: u64, generation: u64) {
    for (index, word) in data.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let value = (position / 8 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ generation;
        *word = value.to_le_bytes();
    }
}

/// Sixteen tasks, each in a part of its own, write and read at random.
async fn verified(disk: &Disk) -> Result {
    let tasks: Vec<_> = (0..16u64)
        .map(|task| {
            let disk = disk.clone();
            spawn(async move { work(&disk, task * (SIZE / 16), SIZE / 16, task + 1).await })
        })
        .collect();
    for task in tasks {
        soon("the requests", task).await??;
    }
    let stat = disk.stat();
    log::info!("{stat:?}");
    ensure(stat.errors == 0 && stat.in_flight == 0, || format!("{stat:?}"))
}

async fn work(disk: &Disk, start: u64, length: u64, seed: u64) -> Result {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = move |limit: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % limit
    };
    for generation in 0..12 {
        let sectors = 1 << next(10);
        let position = start + 512 * next(length / 512 - sectors);
        let mut data = vec![0; 512 * sectors as usize];
        fill(&mut data, position, generation);
        let _ = disk.write(position, &data).await.map_err(said)?;
        let mut read = vec![0; data.len()];
        disk.read(position, &mut read).await.map_err(said)?;
        ensure(read == data, || format!("{sectors} sectors at {position} differ"))?;
    }
    Ok(())
}

async fn lent(disk: &Disk) -> Result {
    for (generation, count) in [1, 11, 12, 256, 300].into_iter().enumerate() {
        let mut pages = Pages::new(count).map_err(said)?;
        fill(pages.bytes_mut(), 4096, generation as u64);
        let (_, mut pages) = disk.write_pages(4096, pages).await.map_err(said)?;
        let data = pages.bytes().to_vec();
        pages.bytes_mut().fill(0);
        let pages = disk.read_pages(4096, pages).await.map_err(said)?;
        ensure(pages.bytes() == data, || format!("{count} lent pages differ"))?;
    }
    Ok(())
}

async fn durable(disk: &Disk) -> Result {
    let before = disk.stat().flushes;
    let tasks: Vec<_> = (0..16u64)
        .map(|task| {
            let disk = disk.clone();
            spawn(async move { disk.write_durable(task * 4096, &[task as u8; 4096]).await })
        })
        .collect();
    for task in tasks {
        soon("a flush", task).await?.map_err(said)?;
    }
    let flushes = disk.stat().flushes - before;
    log::info!("16 durable writes took {flushes} flushes");
    ensure((1..=16).contains(&flushes), || said(flushes))
}

/// Tells dom0 what to do.
fn tell(domain: Domain, word: &str) -> Result {
    writeln!(domain.console(), "@{word}").map_err(said)
}

async fn resized(domain: Domain, disk: &Disk) -> Result {
    let before = soon("a connection", disk.connected()).await?.map_err(said)?.geometry;
    tell(domain, "grow")?;
    let larger = async {
        loop {
            disk.read(0, &mut [0; 512]).await.map_err(said)?;
            let waiting = time::timeout(Duration::from_millis(200), disk.resized(before));
            if let Ok(geometry) = waiting.await {
                return geometry.map_err(said);
            }
        }
    };
    let larger = soon("the new size", larger).await??;
    ensure(larger.bytes() == 2 * SIZE, || said(larger.bytes()))?;
    let _ = disk.write(2 * SIZE - 512, &[1; 512]).await.map_err(said)?;
    Ok(())
}

async fn rebound(domain: Domain, disk: &Disk) -> Result {
    disk.flush().await.map_err(said)?;
    let before = disk.stat();
    tell(domain, "rebind")?;
    let mut generation = 100;
    while disk.stat().connections == before.connections {
        let tasks: Vec<_> = (0..16u64)
            .map(|task| {
                let disk = disk.clone();
                spawn(async move { work(&disk, task * (SIZE / 16), SIZE / 16, task + generation).await })
            })
            .collect();
        for task in tasks {
            soon("the requests", task).await??;
        }
        generation += 100;
    }
    let stat = disk.stat();
    log::info!("{stat:?}");
    match disk.flush().await {
        Ok(_) => Ok(()),
        // Writes had completed and were not flushed when the connection was lost: reported once.
        Err(error) if error == ErrorKind::MayBeLost => disk.flush().await.map(drop).map_err(said),
        Err(error) => Err(said(error)),
    }
}

async fn detached(domain: Domain, disk: Disk, driver: Driver) -> Result {
    tell(domain, "detach")?;
    let end = async {
        let mut position = 0;
        loop {
            match disk.write(position % SIZE, &[1; 4096]).await {
                Ok(_) => position += 4096,
                Err(error) => return error,
            }
        }
    };
    let error = soon("the detach", end).await?;
    ensure(matches!(error.kind(), ErrorKind::Detached | ErrorKind::Gone), || said(error))?;
    soon("the driver's end", driver).await?.map_err(said)
}

/// Waits until no grant is in use.
async fn nothing_left() -> Result {
    let none = async {
        while gnttab::stat().in_use > 0 {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the end of grants", none).await.map_err(|_| said(gnttab::stat()))
}
