//! Pages whose grant is revoked and restored in place, against peers that do what they want.

use std::sync::Mutex;

use domu::DomainId;
use domu::gnttab::{self, ErrorKind, Granted, ReadOnly, Reference, Revocable, stat};
use domu::lifecycle;
use domu::memory::Pages;
use domu::sim::{Guest, Report, outside};

const PEER: u16 = 3;
const TO: DomainId = DomainId(PEER);

fn run(guest: Guest, main: impl AsyncFnOnce()) -> Report {
    let report = guest.run(async |_| main().await).powered_off();
    assert!(report.granted.is_empty());
    report
}

/// A peer has Xen copy to a page.
fn fill(reference: Reference, offset: usize, bytes: &[u8]) -> bool {
    outside(|peer| peer.copy_to(PEER, reference.0, offset, bytes)).is_ok()
}

#[test]
fn revoked_page_is_read_in_place_and_closed_to_the_peer() {
    let report = run(Guest::new(), async || {
        let mut pages = Revocable::try_new(TO, 4, 2).unwrap();
        assert_eq!((pages.count(), pages.granted(), pages.peer()), (6, 4, TO));
        assert_eq!([0, 3, 4, 5, 6].map(|page| pages.is_private(page)), [false, false, true, true, false]);
        for page in 0..4 {
            assert!(fill(pages.reference(page), 0, &[page as u8 + 1; 4096]));
        }
        assert_eq!(pages.bytes(4096..8192), None, "granted");
        for page in 1..3 {
            pages.revoke(page).unwrap();
            pages.revoke(page).unwrap();
            assert!(!fill(pages.reference(page), 0, &[9]), "closed");
        }
        let bytes = pages.bytes(4096 + 7..3 * 4096).unwrap();
        assert_eq!((bytes.len(), bytes[0], bytes[4088], bytes[4089], bytes[8184]), (8185, 2, 2, 3, 3));
        assert_eq!(pages.bytes(4095..8192), None, "the first page is granted");
        assert_eq!(pages.bytes(8192..12289), None, "page 3 is granted");
        assert_eq!(pages.bytes(16384..24577), None, "beyond the end");
        assert_eq!(pages.bytes(24576..24576).map(<[u8]>::len), Some(0));
        assert!(pages.copy_within(4096..12288, 16384));
        assert!(!pages.copy_within(4096..12288, 8192 + 1), "page 3 is granted");
        assert!(!pages.copy_within(4096..12288, usize::MAX - 9));
        let copied = pages.bytes_mut(16384..24576).unwrap();
        assert_eq!((copied[0], copied[8191]), (2, 3));
        copied.fill(0);
        pages.restore(1).unwrap();
        pages.restore(1).unwrap();
        assert!(fill(pages.reference(1), 0, &[9]), "open");
        assert_eq!(pages.bytes(4096..4097), None);
        // Page 2 is private when all ends.
        let all = pages.end().unwrap();
        assert_eq!((all.bytes()[0], all.bytes()[4096], all.bytes()[8192]), (1, 9, 3));
        assert_eq!((stat().in_use, stat().deferred), (0, 0));
    });
    // Placing the table, and nothing for the pages.
    let grants = report.hypercalls.iter().filter(|call| call.0 == domu::sim::abi::xen::Hypercall::GrantTable).count();
    assert_eq!(grants, 1);
}

#[test]
fn page_in_use_stays_granted() {
    run(Guest::new(), async || {
        let mut pages = Revocable::try_new(TO, 2, 0).unwrap();
        let number = pages.reference(1).0;
        for writable in [false, true] {
            outside(|peer| peer.map(PEER, number, writable)).unwrap();
            assert_eq!(pages.revoke(1).unwrap_err(), ErrorKind::InUse);
            assert!(!pages.is_private(1) && pages.bytes(4096..4097).is_none());
            outside(|peer| peer.unmap(PEER, number, writable));
            pages.revoke(1).unwrap();
            pages.restore(1).unwrap();
        }
        outside(|peer| peer.map(PEER, number, true)).unwrap();
        assert_eq!(pages.end().unwrap_err(), ErrorKind::InUse);
        assert_eq!((stat().deferred, stat().deferred_pages), (1, 2));
        outside(|peer| peer.unmap(PEER, number, true));
        domu::time::sleep(core::time::Duration::from_secs(1)).await;
        assert_eq!(stat().deferred_pages, 0);
    });
}

#[test]
fn page_held_across_a_resume_grants_nothing() {
    let held = Mutex::new(None);
    run(Guest::new(), async || {
        let mut pages = Revocable::try_new(TO, 2, 0).unwrap();
        fill(pages.reference(0), 0, b"before");
        pages.revoke(0).unwrap();
        lifecycle::suspend().await.unwrap();
        assert_eq!(pages.check().unwrap_err(), ErrorKind::BeforeResume);
        assert_eq!(pages.bytes(0..6), Some(&b"before"[..]), "what is lent stays");
        for page in 0..2 {
            assert_eq!(pages.restore(page).unwrap_err(), ErrorKind::BeforeResume);
            assert_eq!(pages.revoke(page).unwrap_err(), ErrorKind::BeforeResume);
            let number = pages.reference(page).0;
            assert!(outside(|peer| peer.map(PEER, number, true)).is_err());
            // A store would grant frame 0 to the peer, or to domain 0.
            assert!(outside(|peer| peer.map(0, number, true)).is_err());
        }
        assert!(outside(|peer| peer.granted()).is_empty());
        let again = pages.end().unwrap();
        let pages = Revocable::try_from_pages(DomainId(4), again, 2).unwrap();
        assert!(outside(|peer| peer.copy_to(4, pages.reference(1).0, 0, b"after")).is_ok());
        *held.lock().unwrap() = Some(pages.end().unwrap().count());
    });
    assert_eq!(*held.lock().unwrap(), Some(2));
}

#[test]
fn impossible_shapes_are_refused() {
    run(Guest::new(), async || {
        let memory = ErrorKind::Memory(domu::memory::Error::NotPages);
        assert_eq!(Revocable::try_new(TO, 0, 4).unwrap_err(), memory);
        assert_eq!(Revocable::try_from_pages(TO, Pages::new(1).unwrap(), 2).unwrap_err(), ErrorKind::TooMany);
        assert_eq!(Revocable::try_new(TO, usize::MAX, 1).unwrap_err(), ErrorKind::TooMany);
        assert_eq!(gnttab::stat().in_use, 0);
    });
}

#[test]
fn read_only_grant_is_written_in_place() {
    run(Guest::new(), async || {
        let mut pool = Granted::<ReadOnly>::try_new(TO, 3).unwrap();
        let mut references = [Reference(0); 5];
        assert_eq!(pool.copy_references(&mut references), 3);
        assert!(pool.references().eq(references[..3].iter().copied()));
        assert_eq!(pool.copy_references(&mut references[..2]), 2);
        pool.bytes_mut()[4096..4099].copy_from_slice(b"abc");
        let mut seen = [0; 4];
        outside(|peer| peer.copy_from(PEER, references[1].0, 0, &mut seen)).unwrap();
        assert_eq!(&seen, b"abc\0");
        assert!(!fill(references[1], 0, b"x"));
    });
}
