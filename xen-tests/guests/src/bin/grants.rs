//! Grants that a domain gives, on real Xen: to itself, which copies by them.
//!
//! * `grants.copy`: what is written to a grant is in the page, and what is in the page is read; a read-only one refuses; one
//!   that is over does, too.
//! * `grants.many`: as many references as the command line says are in use at once, by pages in runs of 100; Xen finds the
//!   first and the last page of each run.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use domu::Domain;
use domu::gnttab::{Error, Granted, ReadOnly, ReadWrite, copy, stat};
use domu_guests::verdict;

domu::main!(main);

/// Pages in a grant.
const RUN: usize = 100;

async fn main(domain: Domain) -> domu::Result {
    let references =
        domain.words().next().and_then(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok()).unwrap_or(2_000);
    verdict(&domain, "grants.copy", copies(&domain).await);
    verdict(&domain, "grants.many", many(&domain, references).await);
    log::info!("{:?}", stat());
    Ok(())
}

fn expect<T: PartialEq + core::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
}

async fn copies(domain: &Domain) -> Result<(), String> {
    let refused = |error| format!("refused: {error}");
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
    expect(after, Err(Error::NotGranted))?;

    let granted = Granted::<ReadOnly>::new(domain.id(), 1).await.map_err(refused)?;
    let told: Vec<_> = granted.references().collect();
    granted.memory().write(0, b"readonly");
    copy::read(domain.id(), &told, 0, &mut bytes).await.map_err(refused)?;
    expect(&bytes, b"readonly")?;
    expect(copy::write(domain.id(), &told, 0, b"x").await, Err(Error::NotGranted))?;
    drop(granted);
    expect((stat().in_use, stat().deferred), (0, 0))
}

async fn many(domain: &Domain, references: usize) -> Result<(), String> {
    let mut all = Vec::new();
    for run in 0..references / RUN {
        let granted = Granted::<ReadWrite>::try_new(domain.id(), RUN);
        let granted = granted.map_err(|error| format!("run {run}: {error}, {:?}", stat()))?;
        granted.memory().write(0, &[run as u8]);
        granted.memory().write((RUN - 1) * 4096, &[!(run as u8)]);
        all.push(granted);
    }
    expect(stat().in_use as usize, references)?;
    for (run, granted) in all.iter().enumerate() {
        let told: Vec<_> = granted.references().collect();
        for (page, expected) in [(0, run as u8), (RUN - 1, !(run as u8))] {
            let mut byte = [0];
            let copied = copy::read(domain.id(), &told[page..=page], 0, &mut byte).await;
            copied.map_err(|error| format!("page {page} of run {run}: {error}"))?;
            expect(byte, [expected])?;
        }
    }
    drop(all);
    expect((stat().in_use, stat().deferred), (0, 0))
}
