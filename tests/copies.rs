//! Copying from and to pages of peers: with peers whose part the test plays, and between two domains of a simulated host.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::patient;
use domu::DomainId;
use domu::gnttab::copy::{self, Batch, SEGMENTS};
use domu::gnttab::{Error, ErrorKind, Grant, Granted, ReadOnly, ReadWrite, Reference, stat};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::grant_table::{COPY, Status};
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Guest, Host, PeerPage, Report, outside};
use domu::time::{self, timeout};

/// A domain whose part the test plays.
const PEER: DomainId = DomainId(3);

/// What a test's guest is, unless it says otherwise.
const OWN: DomainId = DomainId(7);

fn run(guest: Guest, main: impl AsyncFnOnce()) -> Report {
    guest.run(async |_| main().await).powered_off()
}

/// How often Xen was called to copy.
fn calls(report: &Report) -> usize {
    report.calls(Hypercall::GrantTable, COPY)
}

fn offer(reference: u32) -> PeerPage {
    outside(|outside| outside.offer_grant(PEER.0, reference, true))
}

const fn grant(reference: u32) -> Grant {
    Grant { domain: PEER, reference: Reference(reference) }
}

/// Memory that begins so many bytes behind the beginning of a page.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new(offset: usize, len: usize) -> Self {
        let bytes = vec![0; len + 2 * 4096];
        let start = bytes.as_ptr().align_offset(4096) + offset;
        Self { bytes, start }
    }

    fn slice(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + len]
    }
}

/// The results without the grants that their errors name.
fn kinds(results: &[Result<(), Error>]) -> Vec<Result<(), ErrorKind>> {
    results.iter().map(|result| result.map_err(|error| error.kind())).collect()
}

#[test]
fn copies_of_a_whole_batch_are_one_hypercall() {
    const LEN: usize = if cfg!(miri) { 20 } else { 1000 };
    let copies = if cfg!(miri) { 3 } else { 32 };
    let report = run(Guest::new(), async || {
        // Each slice reaches into another page, so that each copy has two segments.
        let mut buffers: Vec<_> = (0..copies).map(|_| Buffer::new(4096 - LEN / 3, LEN)).collect();
        let pages: Vec<_> = (0..copies).map(|index| offer(8 + index)).collect();
        for (page, byte) in pages.iter().zip(1..) {
            page.write(100, &[byte; LEN]);
        }
        let mut batch = Batch::new();
        for (buffer, reference) in buffers.iter_mut().zip(8..) {
            batch.read(grant(reference), 100, buffer.slice(LEN)).unwrap();
        }
        assert_eq!(batch.len(), copies as usize);
        assert!(batch.submit().await.iter().all(Result::is_ok));
        for (buffer, byte) in buffers.iter_mut().zip(1..) {
            let mut expected = vec![0; buffer.bytes.len()];
            expected[buffer.start..buffer.start + LEN].fill(byte);
            assert!(buffer.bytes == expected);
        }
        let mut batch = Batch::new();
        for (buffer, reference) in buffers.iter_mut().zip(8..) {
            batch.write(grant(reference), 100 + 2 * LEN, buffer.slice(LEN)).unwrap();
        }
        assert!(batch.submit().await.iter().all(Result::is_ok));
        for (page, byte) in pages.iter().zip(1..) {
            let mut bytes = [0; 100 + 3 * LEN + 50];
            page.read(0, &mut bytes);
            let mut expected = [0; 100 + 3 * LEN + 50];
            expected[100..100 + LEN].fill(byte);
            expected[100 + 2 * LEN..100 + 3 * LEN].fill(byte);
            assert!(bytes == expected);
        }
    });
    assert_eq!(calls(&report), 2);
}

#[test]
fn a_full_batch_takes_no_more_and_stays_as_it_is() {
    let report = run(Guest::new(), async || {
        let page = offer(8);
        let mut whole = Buffer::new(0, 8);
        let mut split = Buffer::new(4095, 2);
        let mut batch = Batch::new();
        for _ in 0..SEGMENTS - 1 {
            batch.write(grant(8), 0, &[1]).unwrap();
        }
        assert_eq!(batch.read(grant(8), 0, split.slice(2)).map_err(|error| error.kind()), Err(ErrorKind::BatchFull));
        assert_eq!(batch.len(), SEGMENTS - 1);
        assert_eq!(batch.read(grant(8), 0, whole.slice(8)), Ok(()));
        assert_eq!(batch.write(grant(8), 0, &[1]).map_err(|error| error.kind()), Err(ErrorKind::BatchFull));
        assert_eq!(batch.submit().await.len(), SEGMENTS);
        assert_eq!(whole.slice(8), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(split.slice(2), [0, 0]);
        // Copies of nothing take room, too.
        let mut batch = Batch::new();
        (0..SEGMENTS).for_each(|_| batch.write(grant(8), 0, &[]).unwrap());
        assert_eq!(batch.write(grant(8), 0, &[2]).map_err(|error| error.kind()), Err(ErrorKind::BatchFull));
        assert!(batch.submit().await.iter().all(Result::is_ok));
        assert_eq!(page.byte(0), 1);
    });
    assert_eq!(calls(&report), 1);
}

#[test]
fn each_copy_has_its_own_result() {
    let report = run(Guest::new(), async || {
        let page = offer(8);
        page.write(0, b"good");
        outside(|outside| outside.offer_grant(PEER.0, 9, false)).write(0, b"seen");
        let (mut one, mut two, mut three, mut four) = (Buffer::new(4094, 4), [0; 4], [0; 4], [0; 4]);
        let mut five = [0; 4];
        let nobody = Grant { domain: DomainId(99), reference: Reference(8) };
        let mut batch = Batch::new();
        // The second one is split, with a failure on either side.
        batch.read(nobody, 0, &mut two).unwrap();
        batch.read(grant(8), 0, one.slice(4)).unwrap();
        batch.write(grant(9), 0, b"lost").unwrap();
        batch.read(grant(9), 0, &mut three).unwrap();
        batch.read(grant(10), 4092, &mut four).unwrap();
        batch.write(grant(8), 4096, b"").unwrap();
        let results = batch.submit().await;
        let expected =
            [Err(ErrorKind::NoDomain), Ok(()), Err(ErrorKind::NotGranted), Ok(()), Err(ErrorKind::NoReference), Ok(())];
        assert_eq!(kinds(&results), expected);
        let named: Vec<_> = results.iter().filter_map(|result| result.err()?.reference()).collect();
        assert_eq!(named.len(), 3, "each error names its reference");
        // It is empty, and may be used again before anybody looks at the slices.
        assert!(batch.is_empty());
        batch.read(grant(8), 0, &mut five).unwrap();
        assert_eq!(batch.submit().await[..], [Ok(())]);
        assert_eq!(&five, b"good");
        assert_eq!((&*one.slice(4), &two, &three), (&b"good"[..], &[0; 4], b"seen"));
        assert!(Batch::new().submit().await.is_empty());
        assert_eq!(stat().mapped, 0);
    });
    assert_eq!(calls(&report), 2, "a batch of nothing costs nothing");
}

#[test]
fn every_status_is_told() {
    let status = Arc::new(Mutex::new(Status::OKAY));
    let its = Arc::clone(&status);
    let guest = Guest::new().grant_fault(move |operation, _| (operation == COPY).then(|| *its.lock().unwrap()));
    run(guest, async || {
        let _ = offer(8);
        let mut errors = Vec::new();
        for number in [-1, -2, -3, -8, -9, -10, -13, -99] {
            *status.lock().unwrap() = Status(number);
            let result = copy::write(PEER, &[Reference(8)], 0, b"x").await;
            errors.push(result.unwrap_err().kind());
        }
        let expected = [
            ErrorKind::NotGranted,
            ErrorKind::NoDomain,
            ErrorKind::NoReference,
            ErrorKind::Denied,
            ErrorKind::BadPage,
            ErrorKind::BeyondPage,
            ErrorKind::NoRecords,
            ErrorKind::Status(Status(-99)),
        ];
        assert_eq!(errors, expected);
    });
}

#[test]
fn no_copy_reaches_beyond_its_page() {
    run(Guest::new(), async || {
        let _ = offer(8);
        let mut bytes = [0; 4096];
        let mut batch = Batch::new();
        assert_eq!(batch.write(grant(8), 1, &bytes).map_err(|error| error.kind()), Err(ErrorKind::BeyondPage));
        assert_eq!(batch.write(grant(8), 4097, &[]).map_err(|error| error.kind()), Err(ErrorKind::BeyondPage));
        assert_eq!(batch.write(grant(8), usize::MAX, &[0]).map_err(|error| error.kind()), Err(ErrorKind::BeyondPage));
        assert!(batch.is_empty());
        let two = [Reference(8); 2];
        assert_eq!(
            copy::read(PEER, &two, 4097, &mut bytes).await.map_err(|error| error.kind()),
            Err(ErrorKind::BeyondPage)
        );
        assert_eq!(copy::read(PEER, &two, 4096, &mut bytes).await, Ok(()));
        assert_eq!(
            copy::read(PEER, &[], 0, &mut bytes).await.map_err(|error| error.kind()),
            Err(ErrorKind::BeyondPage)
        );
        assert_eq!(copy::write(PEER, &[], 0, &[]).await, Ok(()));
    });
}

#[test]
fn a_page_that_is_not_there_is_tried_again_alone() {
    let (guest, asked) = patient(COPY, 2);
    let report = run(guest, async || {
        let pages = [8, 9, 10].map(offer);
        let mut data = Buffer::new(0, 3);
        data.slice(3).copy_from_slice(b"abc");
        assert_eq!(copy::write(PEER, &[8, 9, 10].map(Reference), 4095, data.slice(3)).await, Ok(()));
        assert_eq!((pages[0].byte(4095), pages[1].byte(0), pages[1].byte(1), pages[2].byte(0)), (b'a', b'b', b'c', 0));
    });
    assert_eq!(calls(&report), 3);
    assert_eq!(asked.load(Ordering::Relaxed), 2 + 2);
}

#[test]
fn patience_ends() {
    let (guest, _) = patient(COPY, u32::MAX);
    let report = run(guest, async || {
        let pages = [8, 9, 10].map(offer);
        let mut batch = Batch::new();
        (8..11).for_each(|reference| batch.write(grant(reference), 0, &[1]).unwrap());
        let began = time::now();
        assert_eq!(kinds(&batch.submit().await), [Ok(()), Err(ErrorKind::Unavailable), Ok(())]);
        assert!((Duration::from_secs(1)..Duration::from_millis(1100)).contains(&began.elapsed()));
        assert_eq!(pages.map(|page| page.byte(0)), [1, 0, 1]);
    });
    assert_eq!(calls(&report), 11);
}

#[test]
fn a_future_that_is_dropped_copies_nothing_later() {
    let (guest, _) = patient(COPY, 3);
    let report = run(guest, async || {
        let pages = [8, 9].map(offer);
        let mut batch = Batch::new();
        (8..10).for_each(|reference| batch.write(grant(reference), 0, &[1]).unwrap());
        assert!(timeout(Duration::from_millis(2), batch.submit()).await.is_err());
        time::sleep(Duration::from_secs(1)).await;
        assert_eq!([0, 1].map(|page: usize| pages[page].byte(0)), [1, 0]);
        // What was not done may be done after all, and what was is not done again.
        pages[0].write(0, &[9]);
        assert_eq!(batch.submit().await[..], [Ok(()), Ok(())]);
        assert_eq!(pages.map(|page| page.byte(0)), [9, 1]);
    });
    assert_eq!(calls(&report), 4);
}

#[test]
fn a_hypercall_that_is_refused_is_an_error_of_each_copy() {
    let guest = Guest::new().fault(|hypercall, _| (hypercall == Hypercall::GrantTable).then_some(Errno::ENOSYS));
    let report = run(guest, async || {
        let mut bytes = [0; 2];
        let (one, two) = bytes.split_at_mut(1);
        let mut batch = Batch::new();
        batch.read(grant(8), 0, one).unwrap();
        batch.read(grant(9), 0, two).unwrap();
        assert_eq!(kinds(&batch.submit().await), [Err(ErrorKind::Refused(Errno::ENOSYS)); 2]);
    });
    assert_eq!(calls(&report), 1, "it is not tried again");
}

#[test]
fn the_own_grants_may_be_copied_from_and_to() {
    run(Guest::new(), async || {
        let granted = Granted::<ReadWrite>::try_new(OWN, 2).unwrap();
        let references: Vec<_> = granted.references().collect();
        for domain in [OWN, DomainId::SELF] {
            granted.memory().write(4090, b"over the edge");
            let mut bytes = [0; 13];
            assert_eq!(copy::read(domain, &references, 4090, &mut bytes).await, Ok(()));
            assert_eq!(bytes, *b"over the edge");
            assert_eq!(copy::write(domain, &references, 4090, b"and back").await, Ok(()));
            assert_eq!(granted.memory().read_value::<[u8; 13]>(4090), *b"and back edge");
        }
        assert!(granted.end().is_ok(), "a copy leaves nothing in use");
        let only = Granted::<ReadOnly>::try_new(OWN, 1).unwrap();
        let references: Vec<_> = only.references().collect();
        assert_eq!(
            copy::write(OWN, &references, 0, b"x").await.map_err(|error| error.kind()),
            Err(ErrorKind::NotGranted)
        );
    });
}

#[test]
fn two_domains_copy_both_ways() {
    const LEN: usize = if cfg!(miri) { 9_000 } else { 300_000 };
    // The first page has but the beginning.
    const AT: usize = 4096 - 30;
    let pages = LEN.div_ceil(4096) + 1;
    let (told, done) = (Mutex::new(None), AtomicU32::new(0));
    let byte = |index: usize| (index % 251) as u8;
    let reports = Host::new()
        .domain(1, Guest::new().backed_mib(8), async |_| {
            let granted = Granted::<ReadWrite>::new(DomainId(2), pages).await.unwrap();
            let data: Vec<u8> = (0..LEN).map(byte).collect();
            granted.memory().write(AT, &data);
            *told.lock().unwrap() = Some(granted.references().collect::<Vec<_>>());
            while done.load(Ordering::SeqCst) == 0 {
                time::sleep(Duration::from_millis(1)).await;
            }
            let mut data = vec![0; LEN];
            granted.memory().read(AT + 1, &mut data);
            assert!(data.iter().enumerate().all(|(index, found)| *found == !byte(index)));
            assert_eq!(granted.memory().read_value::<u8>(AT), byte(0));
            assert!(granted.end().is_ok());
        })
        .domain(2, Guest::new(), async |_| {
            let references = loop {
                if let Some(references) = told.lock().unwrap().take() {
                    break references;
                }
                time::sleep(Duration::from_millis(1)).await;
            };
            let mut data = vec![0; LEN];
            copy::read(DomainId(1), &references, AT, &mut data).await.unwrap();
            assert!(data.iter().enumerate().all(|(index, found)| *found == byte(index)));
            data.iter_mut().for_each(|byte| *byte = !*byte);
            copy::write(DomainId(1), &references, AT + 1, &data).await.unwrap();
            done.store(1, Ordering::SeqCst);
        })
        .run();
    let reports: Vec<_> = reports.into_iter().map(Report::powered_off).collect();
    // Each page is two segments at most, and there is room for 62 at least in a batch.
    let most = 2 * (2 * pages).div_ceil(SEGMENTS - 2);
    assert!(calls(&reports[1]) <= most, "{} of {most}", calls(&reports[1]));
}
