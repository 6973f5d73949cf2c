//! Pages of peers, mapped in: with peers whose part the test plays, and between two domains of a simulated host.

mod common;
#[path = "common/keep.rs"]
mod keep;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::patient;
use domu::gnttab::{ErrorKind, Grant, Granted, Mapping, ReadOnly, ReadWrite, Reference, stat};
use domu::shared::Owner;
use domu::sim::abi::errno::Errno;
use domu::sim::abi::grant_table::{MAP_GRANT_REF, Status, UNMAP_GRANT_REF};
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Guest, Host, Report, outside};
use domu::time::{self, timeout};
use domu::{DomainId, memory};
use keep::keep;

/// Domains whose part the test plays.
const PEER: DomainId = DomainId(3);
const OTHER: DomainId = DomainId(4);

/// What a test's guest is, unless it says otherwise.
const OWN: DomainId = DomainId(7);

fn run(guest: Guest, main: impl AsyncFnOnce()) -> Report {
    guest.run(async |_| main().await).powered_off()
}

/// How often a hypercall on grants was made.
fn calls(report: &Report, operation: u64) -> usize {
    report.calls(Hypercall::GrantTable, operation)
}

/// A page of a peer's whose first byte says which it is.
fn offer(peer: DomainId, references: &[Reference]) {
    for reference in references {
        outside(|outside| outside.offer_grant(peer.0, reference.0, true)).write(0, &[reference.0 as u8]);
    }
}

/// So many references, in no order; the number is no multiple of 7.
fn references(count: u32) -> Vec<Reference> {
    (0..count).map(|index| Reference(8 + (index * 7 + count / 2) % count)).collect()
}

#[test]
fn any_number_of_pages_is_mapped_and_unmapped_in_batches() {
    let counts = if cfg!(miri) { &[33][..] } else { &[1, 2, 31, 32, 33, 64, 65, 512] };
    for &count in counts {
        let report = run(Guest::new(), async || {
            let references = references(count);
            offer(PEER, &references);
            let mapping = Mapping::<ReadWrite>::new(PEER, &references).await.unwrap();
            assert_eq!((mapping.count(), stat().mapped), (references.len(), count));
            let memory = mapping.memory();
            for (index, reference) in references.iter().enumerate() {
                assert_eq!(memory.u8(4096 * index).load(Ordering::Relaxed), reference.0 as u8);
            }
            // Bytes that lie in two pages reach both.
            if count > 1 {
                memory.write(4094, b"word");
                assert_eq!(memory.read_value::<[u8; 4]>(4094), *b"word");
            }
            drop(mapping);
            assert_eq!((outside(|outside| outside.mapped()), stat().mapped, stat().lost), (0, 0, 0));
        });
        assert_eq!(calls(&report, MAP_GRANT_REF), count.div_ceil(32) as usize);
        assert_eq!(calls(&report, UNMAP_GRANT_REF), count.div_ceil(32) as usize);
    }
}

#[test]
fn both_ends_see_the_same_memory() {
    run(Guest::new(), async || {
        let page = outside(|outside| outside.offer_grant(3, 8, true));
        let writable = Mapping::<ReadWrite>::new(PEER, &[Reference(8)]).await.unwrap();
        let readable = Mapping::<ReadOnly>::new(PEER, &[Reference(8)]).await.unwrap();
        assert_eq!(outside(|outside| outside.uses(3, 8)), 2);
        writable.memory().write(10, b"here");
        let mut bytes = [0; 4];
        page.read(10, &mut bytes);
        assert_eq!(bytes, *b"here");
        page.write(10, b"there");
        assert_eq!(readable.read_value::<[u8; 5]>(10), *b"there");
        readable.read(11, &mut bytes);
        assert_eq!(bytes, *b"here");
        assert_eq!(writable.unmap(), Ok(()));
        assert_eq!(outside(|outside| outside.uses(3, 8)), 1);
        // Where the first one was there is room again.
        let owner = Mapping::<ReadWrite>::new(PEER, &[Reference(8)]).await.unwrap();
        assert_eq!(Owner::memory(&owner).read_value::<[u8; 5]>(10), *b"there");
    });
}

#[test]
fn pages_of_several_peers_follow_each_other() {
    run(Guest::new(), async || {
        offer(PEER, &[Reference(8), Reference(9)]);
        offer(OTHER, &[Reference(100)]);
        let grants =
            [(PEER, 9), (OTHER, 100), (PEER, 8)].map(|(domain, number)| Grant { domain, reference: Reference(number) });
        let mapping = Mapping::<ReadWrite>::gather(&grants).await.unwrap();
        let first = |page: usize| mapping.memory().read_value::<u8>(4096 * page);
        assert_eq!([0, 1, 2].map(first), [9, 100, 8]);
        outside(|outside| outside.end_peer(OTHER.0));
        assert_eq!(first(1), 100, "what a domain leaves stays while it is mapped");
        drop(mapping);
        let gone = Mapping::<ReadOnly>::gather(&grants).await;
        assert_eq!(gone.err().map(|error| error.kind()), Some(ErrorKind::NoDomain));
        assert_eq!(stat().mapped, 0);
    });
}

#[test]
fn what_is_refused_is_an_error_and_leaves_nothing() {
    run(Guest::new(), async || {
        offer(PEER, &[Reference(8)]);
        outside(|outside| outside.offer_grant(3, 9, false));
        let write = async |peer, references: &[u32]| {
            let references: Vec<_> = references.iter().copied().map(Reference).collect();
            Mapping::<ReadWrite>::new(peer, &references).await.err().map(|error| error.kind())
        };
        assert_eq!(write(OWN, &[8]).await, Some(ErrorKind::OwnDomain));
        assert_eq!(write(DomainId::SELF, &[8]).await, Some(ErrorKind::OwnDomain));
        assert_eq!(write(OTHER, &[8]).await, Some(ErrorKind::NoDomain));
        assert_eq!(write(PEER, &[8, 10]).await, Some(ErrorKind::NoReference));
        assert_eq!(write(PEER, &[8, 9]).await, Some(ErrorKind::NotGranted));
        let error = Mapping::<ReadWrite>::new(PEER, &[8, 10].map(Reference)).await.unwrap_err();
        assert_eq!((error.domain(), error.reference()), (Some(PEER), Some(Reference(10))));
        assert!(Mapping::<ReadOnly>::new(PEER, &[Reference(9)]).await.is_ok());
        for count in [0, 513] {
            let none = Some(ErrorKind::Memory(memory::Error::NoSpace));
            assert_eq!(write(PEER, &vec![8; count]).await, none);
        }
        let grants = [PEER, OWN].map(|domain| Grant { domain, reference: Reference(8) });
        assert_eq!(
            Mapping::<ReadWrite>::gather(&grants).await.err().map(|error| error.kind()),
            Some(ErrorKind::OwnDomain)
        );
        assert_eq!((outside(|outside| outside.mapped()), stat().mapped, stat().lost), (0, 0, 0));
    });
    // Nothing can be said without a domain.
    let mut outside_of_all = Box::pin(Mapping::<ReadOnly>::new(PEER, &[Reference(8)]));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = Future::poll(outside_of_all.as_mut(), &mut context);
    let std::task::Poll::Ready(Err(error)) = polled else { panic!("{polled:?}") };
    assert!(matches!(error.kind(), ErrorKind::Refused(_)), "{error}");
}

#[test]
fn a_failure_at_any_page_undoes_the_others() {
    const COUNT: u32 = 40;
    let all: Vec<u32> = (0..COUNT).collect();
    for &failing in if cfg!(miri) { &[33] } else { &all[..] } {
        // Each status of Xen's, but for the one that asks for patience; and one that nobody knows.
        let status = Status([-1, -2, -3, -4, -5, -6, -7, -8, -9, -10, -11, -13, -14, 1][failing as usize % 14]);
        let report = run(
            Guest::new().grant_fault(move |operation, reference| {
                (operation == MAP_GRANT_REF && reference == 8 + failing).then_some(status)
            }),
            async || {
                let references: Vec<_> = (8..8 + COUNT).map(Reference).collect();
                offer(PEER, &references);
                let error = Mapping::<ReadWrite>::new(PEER, &references).await.err();
                assert!(error.is_some_and(|error| error != ErrorKind::Unavailable), "{status:?}: {error:?}");
                assert_eq!((outside(|outside| outside.mapped()), stat().mapped, stat().lost), (0, 0, 0));
                // The space is free again: all of it but one page fits into the window of 512 with that of Xen's.
                let rest: Vec<_> = references.into_iter().filter(|reference| reference.0 != 8 + failing).collect();
                assert!(Mapping::<ReadWrite>::new(PEER, &rest).await.is_ok());
            },
        );
        // The first attempt goes as far as the batch with the failure, and what is undone is undone at once.
        let first = failing as usize / 32 + 1;
        assert_eq!(calls(&report, MAP_GRANT_REF), first + 2);
        assert_eq!(calls(&report, UNMAP_GRANT_REF), first + 2);
    }
}

#[test]
fn a_page_that_is_not_there_is_tried_again_alone() {
    let (guest, asked) = patient(MAP_GRANT_REF, 3);
    let report = run(guest, async || {
        offer(PEER, &[8, 9, 10].map(Reference));
        let began = time::now();
        let mapping = Mapping::<ReadWrite>::new(PEER, &[8, 9, 10].map(Reference)).await.unwrap();
        assert!((Duration::from_millis(7)..Duration::from_millis(20)).contains(&began.elapsed()));
        assert_eq!([0, 4096, 8192].map(|offset| mapping.memory().read_value::<u8>(offset)), [8, 9, 10]);
    });
    assert_eq!((calls(&report, MAP_GRANT_REF), calls(&report, UNMAP_GRANT_REF)), (4, 1));
    assert_eq!(asked.load(Ordering::Relaxed), 3 + 3);
}

#[test]
fn patience_ends() {
    let (guest, _) = patient(MAP_GRANT_REF, u32::MAX);
    let report = run(guest, async || {
        offer(PEER, &[8, 9, 10].map(Reference));
        let began = time::now();
        let mapping = Mapping::<ReadWrite>::new(PEER, &[8, 9, 10].map(Reference)).await;
        assert_eq!(mapping.err().map(|error| error.kind()), Some(ErrorKind::Unavailable));
        assert!((Duration::from_secs(1)..Duration::from_millis(1100)).contains(&began.elapsed()));
        assert_eq!((outside(|outside| outside.mapped()), stat().mapped, stat().lost), (0, 0, 0));
    });
    assert_eq!((calls(&report, MAP_GRANT_REF), calls(&report, UNMAP_GRANT_REF)), (11, 1));
}

#[test]
fn a_future_that_is_dropped_leaves_nothing_mapped() {
    let (guest, _) = patient(MAP_GRANT_REF, u32::MAX);
    let report = run(guest, async || {
        offer(PEER, &[8, 9, 10].map(Reference));
        let pages = [8, 9, 10].map(Reference);
        let mut mapping = Box::pin(Mapping::<ReadWrite>::new(PEER, &pages));
        assert!(timeout(Duration::from_millis(5), mapping.as_mut()).await.is_err());
        assert_eq!((outside(|outside| outside.mapped()), stat().mapped), (2, 2));
        drop(mapping);
        assert_eq!((outside(|outside| outside.mapped()), stat().mapped, stat().lost), (0, 0, 0));
    });
    assert_eq!(calls(&report, UNMAP_GRANT_REF), 1);
}

#[test]
fn a_hypercall_that_is_refused_is_an_error() {
    let fail = |operation: u64| {
        move |hypercall, op: u64| (hypercall == Hypercall::GrantTable && op == operation).then_some(Errno::ENOSYS)
    };
    run(Guest::new().fault(fail(MAP_GRANT_REF)), async || {
        offer(PEER, &[Reference(8)]);
        let mapping = Mapping::<ReadWrite>::new(PEER, &[Reference(8)]).await;
        assert_eq!(mapping.err().map(|error| error.kind()), Some(ErrorKind::Refused(Errno::ENOSYS)));
        assert_eq!((stat().mapped, stat().lost), (0, 0));
    });
    let report = run(Guest::new().fault(fail(UNMAP_GRANT_REF)), async || {
        offer(PEER, &[Reference(8)]);
        let mapping = Mapping::<ReadWrite>::new(PEER, &[Reference(8)]).await.unwrap();
        assert_eq!(mapping.unmap().map_err(|error| error.kind()), Err(ErrorKind::Refused(Errno::ENOSYS)));
        assert_eq!((stat().mapped, stat().lost), (1, 1));
    });
    assert_eq!(report.mapped, 1);
}

#[test]
fn space_that_xen_does_not_clear_is_never_used_again() {
    let refused = Arc::new(AtomicU32::new(1));
    let its = Arc::clone(&refused);
    let guest = Guest::new().grant_fault(move |operation, handle| {
        let refused = operation == UNMAP_GRANT_REF && handle == 2 && its.swap(0, Ordering::Relaxed) == 1;
        refused.then_some(Status::GENERAL_ERROR)
    });
    let report = run(guest, async || {
        let pages = [8, 9, 10, 11].map(Reference);
        offer(PEER, &pages);
        // The first frame of the window is Xen's.
        let before = Mapping::<ReadWrite>::new(PEER, &pages).await.unwrap();
        assert_eq!(before.unmap().map_err(|error| error.kind()), Err(ErrorKind::NotGranted));
        assert_eq!((stat().mapped, stat().lost, outside(|outside| outside.mapped())), (1, 4, 1));
        // Placed over what is still there it would fail the test.
        let all: Vec<_> = (0..507).map(|index| pages[index % 4]).collect();
        drop(Mapping::<ReadWrite>::new(PEER, &all).await.unwrap());
        assert_eq!((stat().mapped, stat().lost), (1, 4));
    });
    assert_eq!(report.mapped, 1);
}

#[test]
fn space_that_is_used_up_is_an_error_and_comes_back() {
    // One window, and no more.
    let map = [(0, 3 << 20, 1), (6 << 20, u64::MAX, 2)];
    run(Guest::new().memory_map(&map), async || {
        offer(PEER, &[Reference(8)]);
        let many = async |count| Mapping::<ReadOnly>::new(PEER, &vec![Reference(8); count]).await;
        let most = many(500).await.unwrap();
        assert_eq!(many(12).await.err().map(|error| error.kind()), Some(ErrorKind::Memory(memory::Error::NoSpace)));
        let rest = many(11).await.unwrap();
        drop(most);
        assert_eq!(many(500).await.unwrap().count(), 500);
        drop(rest);
        for count in 1..=64 {
            assert_eq!(many(count).await.map(|mapping| mapping.count()), Ok(count));
        }
    });
}

/// What two mains of a host tell each other, as a toolstack would.
#[derive(Default)]
struct Told(Mutex<Option<Vec<Reference>>>);

impl Told {
    fn tell(&self, granted: &Granted<ReadWrite>) {
        *self.0.lock().unwrap() = Some(granted.references().collect());
    }

    /// Waits for references.
    async fn hear(&self) -> Vec<Reference> {
        loop {
            let told = self.0.lock().unwrap().take();
            if let Some(references) = told {
                return references;
            }
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[test]
fn two_domains_share_from_one_to_a_thousand_pages() {
    let counts = if cfg!(miri) { &[2][..] } else { &[1, 2, 33, 512, 1000] };
    for &count in counts {
        let (told, done) = (Told::default(), AtomicU32::new(0));
        let guest = || if cfg!(miri) { Guest::new() } else { Guest::new().backed_mib(12) };
        let reports = Host::new()
            .domain(1, guest(), async |_| {
                let granted = Granted::<ReadWrite>::new(DomainId(2), count).await.unwrap();
                let memory = granted.memory();
                (0..count).for_each(|page| memory.write_value(4096 * page, &(page as u64)));
                told.tell(&granted);
                while done.load(Ordering::SeqCst) == 0 {
                    time::sleep(Duration::from_millis(1)).await;
                }
                assert!((0..count).all(|page| memory.read_value::<u64>(4096 * page + 8) == 3 * page as u64));
                // The other end has unmapped: the memory is this domain's alone again.
                assert_eq!(granted.end().map(|pages| pages.count()), Ok(count));
            })
            .domain(2, guest(), async |_| {
                let references = told.hear().await;
                let mut page = 0;
                for piece in references.chunks(Mapping::<ReadWrite>::MAX_PAGES) {
                    let mapping = Mapping::<ReadWrite>::new(DomainId(1), piece).await.unwrap();
                    for index in 0..mapping.count() {
                        assert_eq!(mapping.memory().read_value::<u64>(4096 * index), page);
                        mapping.memory().write_value(4096 * index + 8, &(3 * page));
                        page += 1;
                    }
                }
                assert_eq!((page as usize, stat().mapped), (count, 0));
                done.store(1, Ordering::SeqCst);
            })
            .run();
        let reports: Vec<_> = reports.into_iter().map(Report::powered_off).collect();
        assert!(reports.iter().all(|report| report.granted.is_empty() && report.mapped == 0));
        assert_eq!(calls(&reports[1], MAP_GRANT_REF), count.div_ceil(32));
    }
}

#[test]
fn a_peer_that_is_gone_leaves_what_is_mapped_and_nothing_else() {
    let (told, mapped) = (Told::default(), AtomicU32::new(0));
    let reports = Host::new()
        .domain(1, Guest::new(), async |_| {
            let granted = Granted::<ReadWrite>::new(DomainId(2), 2).await.unwrap();
            granted.memory().write(4096, b"still here");
            told.tell(&granted);
            while mapped.load(Ordering::SeqCst) == 0 {
                time::sleep(Duration::from_millis(1)).await;
            }
        })
        .domain(2, Guest::new(), async |_| {
            let references = told.hear().await;
            let mapping = Mapping::<ReadWrite>::new(DomainId(1), &references).await.unwrap();
            mapped.store(1, Ordering::SeqCst);
            time::sleep(Duration::from_millis(50)).await;
            assert_eq!(mapping.memory().read_value::<[u8; 10]>(4096), *b"still here");
            mapping.memory().write(0, b"nobody reads this");
            let again = Mapping::<ReadOnly>::new(DomainId(1), &references).await;
            assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::NoDomain));
            assert_eq!(mapping.unmap(), Ok(()));
        })
        .run();
    let reports: Vec<_> = reports.into_iter().map(Report::powered_off).collect();
    assert!(reports[0].elapsed_ns < reports[1].elapsed_ns);
}

#[test]
fn a_domain_that_ends_lets_go_of_what_it_has_mapped() {
    let told = Told::default();
    let reports = Host::new()
        .domain(1, Guest::new(), async |_| {
            let granted = Granted::<ReadWrite>::new(DomainId(2), 1).await.unwrap();
            told.tell(&granted);
            time::sleep(Duration::from_millis(50)).await;
            assert!(granted.end().is_ok(), "who had it mapped has ended");
        })
        .domain(2, Guest::new(), async |_| {
            let mapping = Mapping::<ReadWrite>::new(DomainId(1), &told.hear().await).await.unwrap();
            // It never drops it.
            keep(mapping);
        })
        .run();
    let _: Vec<_> = reports.into_iter().map(Report::powered_off).collect();
}
