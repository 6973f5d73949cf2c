//! A domain with 64 MiB that may become larger: uses all it has, gives, takes back, and grows when it is allowed to.
//!
//! * `balloon.all`: allocates until nothing is left, which is most of 64 MiB; the next allocation is an error, and nothing
//!   else.
//! * `balloon.pages`: the same in pages, which all come back.
//! * `balloon.refused`: more than the toolstack allows is an error, too.
//! * `balloon.gives`, `balloon.takes_back`: 16 MiB, each for long enough that dom0 sees it; what was kept is unharmed.
//! * `balloon.cycles`: a thousand times, after which there is as much as before.
//! * `balloon.grows`: asks dom0 for more by a line on the console, waits for it, and uses all of 128 MiB.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use domu::memory::{self, Error, Pages, balloon};
use domu::{Domain, time};
use domu_guests::{AllMemory, verdict};

domu::main!(main);

const MIB: u64 = 1 << 20;

async fn main(domain: Domain) -> domu::Result {
    verdict(&domain, "balloon.all", all(64));
    verdict(&domain, "balloon.pages", pages());
    verdict(&domain, "balloon.refused", refused());
    let kept = Pages::new(300)?;
    let given = balloon::give(16 * MIB);
    time::sleep(Duration::from_secs(3)).await;
    verdict(&domain, "balloon.gives", expect(given, Ok(16 * MIB)));
    let back = balloon::take_back(16 * MIB);
    time::sleep(Duration::from_secs(3)).await;
    verdict(&domain, "balloon.takes_back", expect(back, Ok(16 * MIB)).and_then(|()| zeroed(&kept)));
    verdict(&domain, "balloon.cycles", cycles().and_then(|()| zeroed(&kept)));
    drop(kept);
    verdict(&domain, "balloon.grows", grows(&domain).await);
    Ok(())
}

fn expect<T: PartialEq + core::fmt::Debug>(found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{found:?}, not {expected:?}")) }
}

fn zeroed(pages: &Pages) -> Result<(), String> {
    if pages.bytes().iter().all(|byte| *byte == 0) { Ok(()) } else { Err("pages have changed".into()) }
}

/// All memory can be used, and that is most of so many MiB.
fn all(mib: usize) -> Result<(), String> {
    let all = AllMemory::take();
    let mut more = Vec::<u8>::new();
    if more.try_reserve(1 << 20).is_ok() {
        return Err("there is a MiB left".into());
    }
    // Image, stack, tables and the allocator's own words: less than a MiB, and a sixteenth of what there is.
    let least = (mib << 20) - (mib << 16) - (1 << 20);
    if all.total < least || all.total > mib << 20 {
        return Err(format!("{} bytes of {mib} MiB", all.total));
    }
    all.verify()
}

fn pages() -> Result<(), String> {
    let fill = || {
        let mut all = Vec::new();
        while let Ok(page) = Pages::new(1) {
            if zeroed(&page).is_err() || all.try_reserve(1).is_err() {
                return None;
            }
            all.push(page);
        }
        Some(all.len())
    };
    let (first, again) = (fill(), fill());
    memory::trim();
    match first {
        Some(count) if count > 62 * 256 * 15 / 16 => expect(again, first),
        _ => Err(format!("{first:?} pages")),
    }
}

/// What the toolstack leaves above 64 MiB is a MiB at most; what is beyond that is refused.
fn refused() -> Result<(), String> {
    let limit = balloon::limit().map_err(|error| format!("the limit: {error}"))?;
    let absent = balloon::absent();
    if absent < 192 * MIB || limit > 66 * MIB {
        return Err(format!("{absent} bytes are absent, {limit} allowed"));
    }
    let more = balloon::take_back(u64::MAX).unwrap_or(0);
    if more > 2 * MIB {
        return Err(format!("{more} bytes more were given"));
    }
    expect(balloon::take_back(4096), Err(Error::Refused))?;
    expect(balloon::absent(), absent - more)
}

fn cycles() -> Result<(), String> {
    let before = AllMemory::take().total;
    for cycle in 0..1000 {
        let bytes = (1 + cycle * 37 % 1500) * 4096;
        expect(balloon::give(bytes), Ok(bytes))?;
        expect(balloon::take_back(bytes / 8192 * 4096), Ok(bytes / 8192 * 4096))?;
        let rest = balloon::given();
        expect(balloon::take_back(rest), Ok(rest))?;
    }
    expect(AllMemory::take().total, before)
}

async fn grows(domain: &Domain) -> Result<(), String> {
    let limit = balloon::limit().unwrap_or(0);
    domain.console().write_all(b"more, please\n").await.map_err(|error| format!("{error}"))?;
    for _ in 0..300 {
        if balloon::limit().is_ok_and(|now| now > limit) {
            expect(balloon::aim(128 << 10), Ok(128 << 10))?;
            time::sleep(Duration::from_secs(3)).await;
            memory::self_check().map_err(|violation| format!("{violation}"))?;
            return all(128);
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    Err("nobody allowed more".into())
}
