//! A request to suspend at each hypercall of a mixed workload: whatever the domain was about to do, it goes on, loses nothing
//! that it was promised, and keeps nothing of the domains that it was.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use domu::eventchn::{self, ErrorKind as PortKind, Port};
use domu::executor::{Task, spawn};
use domu::gnttab::{self, ErrorKind as GrantKind, Granted, Mapping, ReadWrite, Reference};
use domu::memory;
use domu::sim::{Guest, Saved, Store, outside};
use domu::xenstore::{Error as StoreError, ErrorKind as StoreKind};
use domu::{Domain, DomainId, Error, Result, lifecycle, time};

use crate::{MS, SECOND};

const PEER: DomainId = DomainId(3);
/// Resumes of each domain.
const ROUNDS: u64 = if cfg!(miri) { 2 } else { 10 };

/// Whether it is said of something that it is from before a resume, or was cut short by one.
fn is_old(error: &Error) -> bool {
    match error {
        Error::EventChannel(error) => *error == PortKind::BeforeResume,
        Error::Grant(error) => *error == GrantKind::BeforeResume,
        Error::Xenstore(error) => matches!(error.kind(), StoreKind::BeforeResume | StoreKind::Interrupted),
        _ => false,
    }
}

/// Does something over and over until the flag is set; what is from before a resume is made anew.
fn again(over: &Rc<Cell<bool>>, mut act: impl AsyncFnMut() -> Result + 'static) -> Task<Result<u32>> {
    let over = Rc::clone(over);
    spawn(async move {
        let mut old = 0;
        while !over.get() {
            match act().await {
                Ok(()) => {}
                Err(error) if is_old(&error) => old += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(old)
    })
}

/// An event around the domain and back.
async fn events() -> Result {
    let one = eventchn::alloc_unbound(DomainId::SELF)?;
    let other = eventchn::bind_interdomain(DomainId::SELF, one.number())?;
    let mut seen = other.after(0).await?;
    for _ in 0..4 {
        let before = one.count();
        other.notify()?;
        one.after(before).await?;
        one.notify()?;
        seen = other.after(seen).await?;
        time::sleep(MS / 2).await;
    }
    Ok(())
}

/// A page that a peer uses, and keeps for a while.
async fn grants(domain: Domain) -> Result {
    let granted = Granted::<ReadWrite>::new(PEER, 2).await?;
    granted.memory().write(0, b"hello");
    time::sleep(MS).await;
    granted.check()?;
    let reference = granted.references().next().unwrap().0;
    let view = outside(|peer| peer.map(PEER.0, reference, true)).unwrap();
    let generation = domain.generation();
    drop(granted);
    let mut bytes = [0; 5];
    view.read(0, &mut bytes);
    assert_eq!(&bytes, b"hello");
    time::sleep(MS).await;
    // A resume takes it from the peer.
    if domain.generation() == generation {
        outside(|peer| peer.unmap(PEER.0, reference, true));
    }
    Ok(())
}

/// A page of a peer's.
async fn mappings() -> Result {
    let mapping = Mapping::<ReadWrite>::new(PEER, &[Reference(9)]).await?;
    time::sleep(MS).await;
    mapping.check()?;
    mapping.memory().write(0, b"there");
    mapping.unmap()?;
    let mut bytes = [0; 5];
    gnttab::copy::read(PEER, &[Reference(9)], 0, &mut bytes).await?;
    assert_eq!(&bytes, b"there");
    Ok(())
}

/// Values that are there until the domain has another home.
async fn nodes(domain: Domain) -> Result {
    let (store, generation) = (domain.xenstore(), domain.generation());
    let here = |result: Result<_, StoreError>| match result {
        Err(error) if error == StoreKind::NotFound && domain.generation() != generation => Ok(None),
        result => result.map(Some),
    };
    store.write("data/value", generation.to_string()).await?;
    if let Some(value) = here(store.read("data/value").await)? {
        assert_eq!(value.number::<u64>()?, generation);
    }
    let transaction = store.begin().await?;
    transaction.write("data/both", "1").await?;
    transaction.write("data/ends", "1").await?;
    time::sleep(MS / 3).await;
    match transaction.commit().await {
        // By the write of a neighbour's.
        Err(error) if error == StoreKind::Conflict => Ok(()),
        result => Ok(result?),
    }
}

/// A watch that outlives all resumes: what is written with it in force is told.
fn watching(domain: Domain, over: &Rc<Cell<bool>>) -> Task<Result<u32>> {
    let over = Rc::clone(over);
    spawn(async move {
        let store = domain.xenstore();
        let mut watch = store.watch("data/watched").await?;
        watch.next().await?;
        let mut events = 0;
        while !over.get() {
            match store.write("data/watched", "1").await {
                Ok(()) => {}
                Err(error) if error == StoreKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            assert_eq!(watch.next().await?.as_str(), "data/watched");
            events += 1;
            time::sleep(MS).await;
        }
        Ok(events)
    })
}

/// Lines with numbers, and sleeps of the right length.
fn lines(domain: Domain, over: &Rc<Cell<bool>>) -> Task<Result<u32>> {
    let over = Rc::clone(over);
    spawn(async move {
        let mut number = 0;
        while !over.get() {
            domain.console().write_all(format!("<{number}>").as_bytes()).await?;
            number += 1;
            let before = time::now();
            time::sleep(MS).await;
            // The turns of others, and a console that is drained, but no pause of the domain's.
            assert!((MS..100 * MS).contains(&before.elapsed()), "{:?}", before.elapsed());
        }
        Ok(number)
    })
}

/// What is in use when nothing is done.
fn usage(domain: Domain, store: &Store) -> impl PartialEq + core::fmt::Debug + use<> {
    let gnttab::Stat { in_use, free, waiting, deferred, mapped, lost, frames, .. } = gnttab::stat();
    // Which numbers are free is by chance; so many more ports get all that are between those in use.
    let more: Vec<_> = (0..16).map(|_| eventchn::bind_ipi().unwrap()).collect();
    let ports = more.iter().map(Port::number).max();
    drop(more);
    let memory = memory::quick_stat();
    let watches = store.watches(domain.id().0).len();
    (
        in_use,
        free,
        waiting,
        deferred,
        mapped,
        lost,
        frames,
        ports,
        memory.pages,
        watches,
        store.transactions(domain.id().0),
    )
}

/// Runs the workload, and asks to suspend at a hypercall of each round, counted from the resume before.
fn suspended_at(boundary: u32, two_level: bool, server: &Store) {
    let asks = Arc::new(AtomicU32::new(0));
    let (its, dom0, mut made, mut number) = (Arc::clone(&asks), server.clone(), 0, 7);
    let guest = Guest::new().xenstore(server).obedient().saves(|| Saved::Restored(100 * SECOND));
    let guest = if two_level { guest.without_fifo() } else { guest };
    let guest = guest.fault(move |_, _| {
        made += 1;
        if made == boundary + 1 && its.load(Ordering::Relaxed) == 1 {
            its.store(0, Ordering::Relaxed);
            dom0.write(&format!("/local/domain/{number}/control/shutdown"), "suspend");
            number += 1;
        }
        if its.load(Ordering::Relaxed) == 2 {
            its.store(1, Ordering::Relaxed);
            made = 0;
        }
        None
    });
    let report = guest.run(async |domain| -> Result {
        outside(|peer| _ = peer.offer_grant(PEER.0, 9, true));
        let mut used = Vec::new();
        let first = Rc::new(Cell::new(false));
        let (numbers, watched) = (lines(domain, &first), watching(domain, &first));
        for round in 1..=ROUNDS {
            let over = Rc::new(Cell::new(false));
            let tasks = [
                again(&over, events),
                again(&over, move || grants(domain)),
                again(&over, mappings),
                again(&over, move || nodes(domain)),
            ];
            let mut resumes = domain.resumes();
            asks.store(2, Ordering::Relaxed);
            resumes.next().await;
            assert_eq!(domain.generation(), round);
            // All that goes on makes some rounds.
            time::sleep(10 * MS).await;
            over.set(true);
            for task in tasks {
                assert!(task.await? <= 1, "one resume cuts short once");
            }
            while gnttab::stat().deferred > 0 {
                time::sleep(10 * MS).await;
            }
            time::sleep(5 * MS).await;
            used.push(usage(domain, server));
        }
        assert!(used.iter().all(|after| *after == used[0]), "{used:?}");
        first.set(true);
        assert!(watched.await? > ROUNDS as u32);
        let count = numbers.await?;
        domain.console().write_all(format!("<{count}>").as_bytes()).await?;
        assert_eq!(lifecycle::stat().console_bytes_lost, 0);
        Ok(())
    });
    let report = report.powered_off();
    assert_eq!((u64::from(report.resumes), report.granted.len(), report.mapped), (ROUNDS, 0, 0));
    let text = report.console_text();
    let numbers = text.split('<').skip(1).map(|rest| rest.split('>').next().unwrap().parse::<u32>().unwrap());
    assert!(numbers.enumerate().all(|(index, number)| index as u32 == number), "{text}");
}

/// Eleven hundred suspends; two under Miri.
#[test]
fn wherever_the_request_comes_nothing_is_lost_and_nothing_is_kept() {
    for boundary in (0..110).step_by(if cfg!(miri) { 110 } else { 1 }) {
        let server = if boundary % 3 == 0 { Store::oxenstored() } else { Store::new() };
        suspended_at(boundary, boundary % 2 == 0, &server);
    }
}
