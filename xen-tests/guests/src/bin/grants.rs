//! Grants that a domain gives, on real Xen, which it needs no second domain for: to itself, as it may copy by them, and to one
//! that is not there.
//!
//! * `grants.first_frame`: the first grant makes the table's first frame, and leaves the toolstack's entries.
//! * `grants.copy`: what is written to a grant is in the page, and what is in the page is read; a read-only one refuses; one
//!   that is over does, too.
//! * `grants.many`: 20,000 references are in use at once, each given once; Xen finds the first and the last page of each run.
//! * `grants.all`: when all are in use, there is an error for that, and another one for more than there will ever be.
//! * `grants.wait`: who waits gets references when there are some, and who does no longer is not in the way.
//! * `grants.none_left`: then all are free again.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::time::Duration;

use domu::executor::spawn;
use domu::gnttab::{ErrorKind, Grant, Granted, ReadOnly, ReadWrite, Reference, copy, stat};
use domu::{Domain, DomainId, time};
use domu_guests::{option, verdict};

domu::main!(main);

/// Grants of `grants.many`, and pages in each.
const RUNS: usize = 200;
const RUN: usize = 100;

/// Entries of a frame of the table, and those at its beginning that are the toolstack's.
const ENTRIES: usize = 512;
const RESERVED: usize = 8;

/// `frames=` is how many frames the table is expected to have at most.
async fn main(domain: Domain) -> domu::Result {
    let mut all = Vec::new();
    verdict(&domain, "grants.first_frame", first_frame(domain.id()));
    verdict(&domain, "grants.copy", copies(&domain).await);
    verdict(&domain, "grants.many", many(&domain, &mut all).await);
    verdict(&domain, "grants.all", fill(domain.id(), &mut all, option(&domain, "frames")));
    verdict(&domain, "grants.wait", wait(DomainId(domain.id().0 + 1), &mut all).await);
    drop(all);
    verdict(&domain, "grants.none_left", expect((stat().in_use, stat().deferred), (0, 0)));
    Ok(())
}

fn expect<T: PartialEq + core::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}; {:?}", stat())) }
}

fn refused(error: impl Display) -> String {
    format!("refused: {error}")
}

fn first_frame(peer: DomainId) -> Result<(), String> {
    expect(stat().frames, 0)?;
    let granted = Granted::<ReadOnly>::try_new(peer, 1).map_err(refused)?;
    expect(stat().frames, 1)?;
    expect(granted.references().all(|reference| reference.0 as usize >= RESERVED), true)
}

async fn copies(domain: &Domain) -> Result<(), String> {
    let mut bytes = [1; 8];
    let granted = Granted::<ReadWrite>::new(domain.id(), 2).await.map_err(refused)?;
    let told: Vec<_> = granted.references().collect();
    copy::read(domain.id(), &told, 4092, &mut bytes).await.map_err(refused)?;
    expect(bytes, [0; 8])?;
    copy::write(domain.id(), &told, 4092, b"by copy!").await.map_err(refused)?;
    granted.memory().read(4092, &mut bytes);
    expect(&bytes, b"by copy!")?;
    let pages = granted.end().map_err(refused)?;
    expect(&pages.bytes()[4092..4100], b"by copy!")?;
    let after = copy::read(domain.id(), &told, 0, &mut bytes).await;
    expect(after.map_err(|error| error.kind()), Err(ErrorKind::NotGranted))?;

    let granted = Granted::<ReadOnly>::new(domain.id(), 1).await.map_err(refused)?;
    let told: Vec<_> = granted.references().collect();
    granted.memory().write(0, b"readonly");
    copy::read(domain.id(), &told, 0, &mut bytes).await.map_err(refused)?;
    expect(&bytes, b"readonly")?;
    expect(copy::write(domain.id(), &told, 0, b"x").await.map_err(|error| error.kind()), Err(ErrorKind::NotGranted))?;

    // Of a batch each copy has its own result.
    let (mut one, mut other) = ([0; 8], [0; 8]);
    let mut batch = copy::Batch::new();
    let grant = |reference| Grant { domain: domain.id(), reference };
    batch.read(grant(Reference(told[0].0 + 100)), 0, &mut one).map_err(refused)?;
    batch.read(grant(told[0]), 0, &mut other).map_err(refused)?;
    let results = batch.submit().await;
    expect((results[0].is_err(), results[1]), (true, Ok(())))?;
    expect(&other, b"readonly")?;
    drop(granted);
    expect((stat().in_use, stat().deferred), (0, 0))
}

async fn many(domain: &Domain, all: &mut Vec<Granted<ReadWrite>>) -> Result<(), String> {
    let mut seen = alloc::vec![false; 64 * ENTRIES];
    for run in 0..RUNS {
        let granted = Granted::<ReadWrite>::try_new(domain.id(), RUN);
        let granted = granted.map_err(|error| format!("run {run}: {error}, {:?}", stat()))?;
        granted.memory().write(0, &[run as u8]);
        granted.memory().write((RUN - 1) * 4096, &[!(run as u8)]);
        for Reference(reference) in granted.references() {
            let seen = seen.get_mut(reference as usize).ok_or("a reference is beyond the table")?;
            expect((reference, core::mem::replace(seen, true)), (reference, false))?;
        }
        all.push(granted);
    }
    expect(stat().in_use as usize, RUNS * RUN)?;
    expect(stat().frames as usize, (RUNS * RUN + RESERVED).div_ceil(ENTRIES))?;
    expect(seen[..RESERVED].contains(&true), false)?;
    for (run, granted) in all.iter().enumerate() {
        let told: Vec<_> = granted.references().collect();
        for (page, expected) in [(0, run as u8), (RUN - 1, !(run as u8))] {
            let mut byte = [0];
            let copied = copy::read(domain.id(), &told[page..=page], 0, &mut byte).await;
            copied.map_err(|error| format!("page {page} of run {run}: {error}"))?;
            expect(byte, [expected])?;
        }
    }
    Ok(())
}

fn fill(peer: DomainId, all: &mut Vec<Granted<ReadWrite>>, frames: Option<u64>) -> Result<(), String> {
    let error = loop {
        match Granted::try_new(peer, 1) {
            Ok(granted) => all.push(granted),
            Err(error) => break error,
        }
    };
    expect(error.kind(), ErrorKind::NoReferences)?;
    let stat = stat();
    expect((stat.free, stat.frames), (0, stat.max_frames))?;
    expect(frames.is_none_or(|frames| u64::from(stat.max_frames) == frames), true)?;
    let most = stat.max_frames as usize * ENTRIES;
    expect(stat.in_use as usize, most - RESERVED)?;
    expect(Granted::<ReadOnly>::try_new(peer, most).map(drop).map_err(|error| error.kind()), Err(ErrorKind::TooMany))
}

async fn wait(peer: DomainId, all: &mut Vec<Granted<ReadWrite>>) -> Result<(), String> {
    const SHORT: Duration = Duration::from_millis(20);
    let none = time::timeout(SHORT, Granted::<ReadOnly>::new(peer, 2)).await;
    expect((none.is_err(), stat().waiting), (true, 0))?;
    let waiting = spawn(async move { Granted::<ReadOnly>::new(peer, 2).await.map(|granted| granted.count()) });
    time::sleep(SHORT).await;
    expect(stat().waiting, 1)?;
    // One is not enough. Who does not wait may have it meanwhile.
    drop(all.pop());
    time::sleep(SHORT).await;
    expect(stat().waiting, 1)?;
    expect(Granted::<ReadOnly>::try_new(peer, 1).map(drop), Ok(()))?;
    drop(all.pop());
    expect(waiting.await, Ok(2))?;
    expect(stat().waiting, 0)
}
