//! Saved, restored, migrated and left as it was, under load: numbers on the console, values in xenstore, a disk in dom0 that is
//! connected again and again, an event channel and granted pages that are made anew when they are from before a resume.
//!
//! The command line says `resumes=NUMBER` or `cancels=NUMBER`, after how many it ends. It says `@resumed NUMBER` and
//! `@cancelled NUMBER`, and writes the wall clock to `data/wall` ten times a second. Cases: `suspend.load`, that nothing failed
//! but by a resume; `suspend.usage`, that what is in use after each is the same; `suspend.idle`, that the domain sleeps then.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;

use domu::executor::{Task, spawn};
use domu::gnttab::{self, Granted, ReadOnly};
use domu::lifecycle::Resumption;
use domu::xenbus::{self, Frontend};
use domu::xenstore::Path;
use domu::{Domain, DomainId, Error, eventchn, executor, memory, time, xenstore};
use domu_guests::disk::{Disk, SECTOR};
use domu_guests::{BY_CHANCE, all_watches, ensure, option, verdict};

domu::main!(main);

/// More lists than elsewhere have room by chance here. Ten resumes show what is lost in each, if it is a few blocks.
const ROOM: usize = 2 * BY_CHANCE;

const MS: Duration = Duration::from_millis(1);

async fn main(domain: Domain) -> domu::Result {
    let (resumes, cancels) = (option(&domain, "resumes").unwrap_or(0), option(&domain, "cancels").unwrap_or(0));
    // Somebody always waits for input, so that the console's port is in use after each resume.
    let reading = spawn(async move { domain.console().read(&mut [0; 8]).await });
    let going_on = (spawn(numbers(domain)), spawn(clock(domain)), reading);
    let mut outcomes = domain.resumes();
    let (mut result, mut used, mut cancelled) = (Ok(()), Vec::with_capacity(16), 0);
    log::info!("ready");
    // Sectors that were written and read again, by which the connections are judged.
    let sectors = Rc::new(Cell::new(0));
    while result.is_ok() && (domain.generation() < resumes || cancelled < cancels) {
        let over = Rc::new(Cell::new(false));
        let (counted, before) = (Rc::clone(&sectors), sectors.get());
        let load = [
            again(domain, &over, move || values(domain)),
            again(domain, &over, events),
            again(domain, &over, move || grants(domain)),
            again(domain, &over, move || disk(domain, Rc::clone(&counted))),
        ];
        let outcome = outcomes.next().await;
        // What goes on does so for a while.
        time::sleep(500 * MS).await;
        over.set(true);
        for task in load {
            let old = task.await;
            // A resume cuts each short once at most, a cancelled one none.
            let most = u32::from(outcome == Resumption::Restored);
            result = result.and(old.and_then(|old| if old <= most { Ok(()) } else { Err(format!("{old} were old")) }));
        }
        if sectors.get() == before {
            result = result.and(Err("the disk was not used".into()));
        }
        time::sleep(1500 * MS).await;
        used.push(usage(domain).await);
        let said = match outcome {
            Resumption::Restored => format!("@resumed {}", domain.generation()),
            _ => {
                cancelled += 1;
                format!("@cancelled {cancelled}")
            }
        };
        domain.console().write_all(format!("{said} {:?}\n", used.last()).as_bytes()).await?;
    }
    verdict(&domain, "suspend.load", result);
    let same = used.first().zip(used.last()).is_some_and(|(first, last)| {
        used.iter().all(|usage| usage.exactly == first.exactly) && last.live <= first.live + ROOM
    });
    verdict(&domain, "suspend.usage", if same { Ok(()) } else { Err(format!("{used:?}")) });
    drop(going_on);
    let before = executor::activity().halts;
    time::sleep(5000 * MS).await;
    let halts = executor::activity().halts - before;
    // It was halted, and hardly anything ended that.
    verdict(&domain, "suspend.idle", ensure((1..=3).contains(&halts), || format!("{halts} halts")));
    Ok(())
}

/// Numbers on the console, one after the other.
async fn numbers(domain: Domain) -> domu::Result {
    let mut ticks = time::interval(100 * MS);
    for number in 0_u64.. {
        ticks.tick().await;
        domain.console().write_all(format!("@n {number}\n").as_bytes()).await?;
    }
    Ok(())
}

/// The time for dom0, whose clock it is to be.
async fn clock(domain: Domain) -> domu::Result {
    let store = domain.xenstore();
    loop {
        match store.write("data/wall", time::wall_clock().as_secs().to_string()).await {
            Ok(()) => {}
            Err(error) if error == xenstore::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        time::sleep(100 * MS).await;
    }
}

/// Does something over and over, which says whether it found what it should, until the flag is set; counts how often a resume
/// has cut it short.
fn again<F>(domain: Domain, over: &Rc<Cell<bool>>, mut act: impl FnMut() -> F + 'static) -> Task<Result<u32, String>>
where
    F: Future<Output = domu::Result<bool>> + 'static,
{
    let over = Rc::clone(over);
    spawn(async move {
        let mut old = 0;
        while !over.get() {
            let generation = domain.generation();
            match act().await {
                Ok(true) => {}
                Ok(false) => return Err("something is not what it was".into()),
                Err(Error::EventChannel(error)) if error == eventchn::ErrorKind::BeforeResume => old += 1,
                Err(Error::Grant(error)) if error == gnttab::ErrorKind::BeforeResume => old += 1,
                Err(Error::Xenstore(error))
                    if matches!(error.kind(), xenstore::ErrorKind::BeforeResume | xenstore::ErrorKind::Interrupted) =>
                {
                    old += 1
                }
                // The device of before is gone, or is another.
                Err(Error::Device(_)) if domain.generation() != generation => old += 1,
                Err(error) => return Err(format!("{error}")),
            }
        }
        Ok(old)
    })
}

/// Values, which are there until the domain has another home.
async fn values(domain: Domain) -> domu::Result<bool> {
    let (store, generation) = (domain.xenstore(), domain.generation());
    store.write("data/generation", generation.to_string()).await?;
    let found = store.read("data/generation").await;
    time::sleep(100 * MS).await;
    // Else the home is another by now.
    Ok(domain.generation() != generation || found?.number::<u64>()? == generation)
}

/// Events from the domain to itself.
async fn events() -> domu::Result<bool> {
    let one = eventchn::alloc_unbound(DomainId::SELF)?;
    let other = eventchn::bind_interdomain(DomainId::SELF, one.number())?;
    let mut seen = other.after(0).await?;
    for _ in 0..20 {
        one.notify()?;
        seen = other.after(seen).await?;
        time::sleep(10 * MS).await;
    }
    Ok(true)
}

/// A page that the domain grants itself, and has copied.
async fn grants(domain: Domain) -> domu::Result<bool> {
    let granted = Granted::<ReadOnly>::new(domain.id(), 1).await?;
    let number = time::now().as_nanos();
    granted.memory().write(0, &number.to_le_bytes());
    time::sleep(20 * MS).await;
    granted.check()?;
    let references: Vec<_> = granted.references().collect();
    let mut copy = [0; 8];
    gnttab::copy::read(domain.id(), &references, 0, &mut copy).await?;
    granted.end()?;
    Ok(u64::from_le_bytes(copy) == number)
}

/// A disk, on which sectors are written and read again.
async fn disk(domain: Domain, sectors: Rc<Cell<u64>>) -> domu::Result<bool> {
    let store = domain.xenstore();
    let mut watch = store.watch(Path::new("device/vbd")?).await?;
    let mut front = loop {
        if let Some(path) = xenbus::frontends(&store, "vbd").await?.first() {
            break Frontend::open(&store, path).await?;
        }
        watch.next().await?;
    };
    let mut disk = Disk::connect(&mut front).await?;
    for number in 0..10 {
        let written = [time::now().as_nanos() as u8; SECTOR];
        disk.write(number, &written).await?;
        if disk.read(number).await? != written {
            return Ok(false);
        }
        sectors.set(sectors.get() + 1);
        time::sleep(10 * MS).await;
    }
    front.close().await?;
    disk.end()?;
    Ok(true)
}

/// What is in use while there is no load.
#[derive(Debug)]
struct Usage {
    live: usize,
    /// Pages, references, those of them that are kept back, ports, and watches that are to be had.
    exactly: (usize, u32, u32, Option<u32>, Option<usize>),
}

/// Looks at memory at several moments, as what goes on takes a little now and then.
async fn usage(domain: Domain) -> Usage {
    let watches = all_watches(&domain.xenstore()).await.ok().map(|watches| watches.len());
    let mut live = usize::MAX;
    for _ in 0..50 {
        time::sleep(7 * MS).await;
        live = live.min(memory::quick_stat().live);
    }
    let grants = gnttab::stat();
    // Which numbers are free is by chance; so many more ports get all that are between those in use, and the next.
    let more: Vec<_> = (0..16).map_while(|_| eventchn::bind_ipi().ok()).collect();
    let ports = more.last().map(|last| last.number() - more.len() as u32);
    drop(more);
    Usage { live, exactly: (memory::quick_stat().pages, grants.in_use, grants.deferred, ports, watches) }
}
