//! Grants that a domain gives, on the simulated Xen, with peers that do what they want.

#[path = "common/keep.rs"]
mod keep;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use domu::DomainId;
use domu::executor::{self, spawn, yield_now};
use domu::gnttab::{
    Error, ErrorKind, Granted, Mapping, ReadOnly, ReadWrite, Reference, Stat, deferred_limit, deferred_pages,
    set_deferred_limit, stat,
};
use domu::lifecycle::{self, Reason};
use domu::memory::{self, Pages};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::grant_table::{QUERY_SIZE, Status};
use domu::sim::abi::xen::Hypercall;
use domu::sim::{End, Guest, Host, Report, outside};
use domu::time::{now, sleep, timeout};
use keep::keep;

/// A peer whose part the test plays.
const PEER: u16 = 3;
const TO: DomainId = DomainId(PEER);
/// `XENMEM_add_to_physmap`.
const ADD_TO_PHYSMAP: u64 = 7;

/// They belong to no thread.
const _: () = {
    const fn goes_anywhere<T: Send + Sync>() {}
    goes_anywhere::<(Granted<ReadOnly>, Granted<ReadWrite>)>();
    goes_anywhere::<(Mapping<ReadOnly>, Mapping<ReadWrite>)>();
};

fn run(guest: Guest, main: impl AsyncFnOnce()) -> Report {
    let report = guest.run(async |_| main().await).powered_off();
    assert_eq!(report.mapped, 0);
    report
}

/// A domain of so many MiB, all of which are there.
fn guest(mib: u64) -> Guest {
    Guest::new().memory_mib(mib, mib).backed_mib(mib)
}

fn read_write(pages: usize) -> Result<Granted<ReadWrite>, Error> {
    Granted::try_new(TO, pages)
}

fn numbers(granted: &Granted<ReadWrite>) -> Vec<u32> {
    granted.references().map(|reference| reference.0).collect()
}

/// Whether a peer can map a grant now.
fn can_map(reference: u32) -> bool {
    let mapped = outside(|peer| peer.map(PEER, reference, false)).is_ok();
    if mapped {
        outside(|peer| peer.unmap(PEER, reference, false));
    }
    mapped
}

/// Every page that can be had.
fn all_pages() -> Vec<Pages> {
    std::iter::from_fn(|| Pages::new(1).ok()).collect()
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|context| {
        Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[test]
fn grants_that_nobody_uses_cost_nothing_and_the_first_asks_xen_once() {
    let is_grants = |call: &&(Hypercall, u64)| call.0 == Hypercall::GrantTable;
    let places = |report: &Report| report.calls(Hypercall::Memory, ADD_TO_PHYSMAP);
    let before = run(Guest::new(), async || assert_eq!(stat(), Stat::default()));
    assert_eq!(before.hypercalls.iter().filter(is_grants).count(), 0);
    let report = run(Guest::new(), async || {
        let granted = Granted::<ReadWrite>::new(TO, 2).await.unwrap();
        assert_eq!((numbers(&granted), granted.peer(), granted.count()), (vec![8, 9], TO, 2));
        assert_eq!(granted.references().len(), 2);
        let now = stat();
        assert_eq!((now.in_use, now.free, now.frames, now.max_frames), (2, 502, 1, 64));
        assert!(granted.end().is_ok());
        for _ in 0..20 {
            drop(read_write(1).unwrap());
        }
        assert_eq!((stat().in_use, stat().free), (0, 504));
    });
    assert_eq!(report.hypercalls.iter().filter(is_grants).count(), 1);
    assert!(report.hypercalls.contains(&(Hypercall::GrantTable, QUERY_SIZE)));
    assert_eq!(places(&report) - places(&before), 1);
    assert_eq!(report.granted, []);
}

#[test]
fn references_are_read_and_written_as_decimals() {
    assert_eq!("4294967295".parse(), Ok(Reference(u32::MAX)));
    assert_eq!(Reference(12).to_string(), "12");
    for text in ["", "-1", "4294967296", "0x8", " 8"] {
        assert!(text.parse::<Reference>().is_err(), "{text:?}");
    }
    assert_eq!((Reference::CONSOLE, Reference::XENSTORE), (Reference(0), Reference(1)));
}

#[test]
fn a_peer_reads_and_writes_what_it_may() {
    run(Guest::new(), async || {
        let granted = read_write(2).unwrap();
        granted.memory().write(4090, b"over the edge");
        let view: Vec<_> =
            granted.references().map(|reference| outside(|peer| peer.map(PEER, reference.0, true)).unwrap()).collect();
        let mut bytes = [0; 13];
        view[0].read(4090, &mut bytes[..6]);
        view[1].read(0, &mut bytes[6..]);
        assert_eq!(&bytes, b"over the edge");
        view[1].write(4095, b"!");
        let mut last = [0];
        granted.memory().read(8191, &mut last);
        assert_eq!(&last, b"!");
        numbers(&granted).into_iter().for_each(|number| outside(|peer| peer.unmap(PEER, number, true)));
        let first = numbers(&granted)[0];
        // What the peer wrote is there when the grant is at its end, and it can do nothing more.
        outside(|peer| peer.copy_to(PEER, first, 1, b"copied")).unwrap();
        let pages = granted.end().unwrap();
        assert_eq!(pages.bytes()[1..7], *b"copied");
        assert!(!can_map(first));
        assert_eq!(outside(|peer| peer.copy_to(PEER, first, 0, b"x")), Err(Status::GENERAL_ERROR));

        let granted = Granted::<ReadOnly>::new(TO, 1).await.unwrap();
        granted.memory().write(0, b"read");
        let number = granted.references().next().unwrap().0;
        assert!(outside(|peer| peer.map(PEER, number, true)).is_err());
        assert_eq!(outside(|peer| peer.copy_to(PEER, number, 0, b"x")), Err(Status::GENERAL_ERROR));
        assert!(outside(|peer| peer.map(PEER + 1, number, false)).is_err(), "another domain");
        let mut bytes = [0; 4];
        outside(|peer| peer.copy_from(PEER, number, 0, &mut bytes)).unwrap();
        assert_eq!(&bytes, b"read");
        assert!(granted.end().is_ok());
    });
}

#[test]
fn msa01_a_peer_sees_zeroes_where_other_data_was() {
    const COUNT: usize = if cfg!(miri) { 4 } else { 400 };
    run(guest(8), async || {
        let mut used: Vec<_> = (0..COUNT).map(|_| Pages::new(1).unwrap()).collect();
        used.iter_mut().for_each(|page| page.bytes_mut().fill(0xa5));
        drop(used);
        for pages in [1, 3, COUNT - 4] {
            let granted = read_write(pages.max(1)).unwrap();
            for number in numbers(&granted) {
                let mut bytes = [1; 4096];
                outside(|peer| peer.copy_from(PEER, number, 0, &mut bytes)).unwrap();
                assert_eq!(bytes, [0; 4096]);
            }
            granted.memory().write(0, &[0x5a; 4096]);
        }
    });
}

#[test]
fn prepared_pages_are_granted_with_what_is_in_them() {
    run(guest(4).grant_frames(1), async || {
        let page = |text: &[u8]| {
            let mut pages = Pages::new(2).unwrap();
            pages.bytes_mut()[4090..4090 + text.len()].copy_from_slice(text);
            pages
        };
        let pages = page(b"waited for");
        let frame = pages.frame();
        let waited = Granted::<ReadOnly>::from_pages(TO, pages).await.unwrap();
        let tried = Granted::<ReadOnly>::try_from_pages(TO, page(b"granted now")).unwrap();
        for (granted, text) in [(&waited, &b"waited for"[..]), (&tried, b"granted now")] {
            let mut bytes = [0; 8192];
            for (reference, bytes) in granted.references().zip(bytes.chunks_mut(4096)) {
                outside(|peer| peer.copy_from(PEER, reference.0, 0, bytes)).unwrap();
            }
            assert_eq!(&bytes[4090..4090 + text.len()], text);
            assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), text.len());
        }
        // They are the same pages.
        let pages = waited.end().unwrap();
        assert_eq!((pages.frame(), &pages.bytes()[4090..4100]), (frame, &b"waited for"[..]));
        drop((pages, tried));
        // Without references they are free again.
        let all = read_write(504).unwrap();
        let free = all_pages().len();
        let pages = Pages::new(2).unwrap();
        assert_eq!(Granted::<ReadOnly>::try_from_pages(TO, pages).unwrap_err(), ErrorKind::NoReferences);
        let pages = Pages::new(2).unwrap();
        let mut waits = Box::pin(Granted::<ReadOnly>::from_pages(TO, pages));
        assert!(poll_once(&mut waits).await.is_none());
        drop(waits);
        assert_eq!(all_pages().len(), free);
        drop(all);
        assert_eq!((stat().waiting, stat().in_use), (0, 0));
    });
}

#[test]
#[cfg_attr(miri, ignore = "not done in five minutes: it takes each page of the domain four times; msa01 takes some")]
fn msa02_a_page_that_the_peer_has_mapped_is_used_for_nothing_else() {
    run(guest(if cfg!(miri) { 2 } else { 4 }), async || {
        for dropped in [false, true] {
            let granted = read_write(1).unwrap();
            let number = numbers(&granted)[0];
            let view = outside(|peer| peer.map(PEER, number, true)).unwrap();
            let start = now();
            if dropped {
                drop(granted);
            } else {
                assert_eq!(granted.end().unwrap_err(), ErrorKind::InUse);
            }
            assert!(now() - start < Duration::from_millis(1), "at once");
            let before = stat();
            assert_eq!((before.in_use, before.deferred), (1, 1));
            // Whatever is taken now is not that page. (The simulated Xen looks at that, too.)
            let mut pages = all_pages();
            pages.iter_mut().for_each(|page| page.bytes_mut().fill(0x11));
            view.write(0, &[0xee; 4096]);
            assert!(pages.iter().all(|page| *page.bytes() == [0x11; 4096]));
            drop(pages);
            sleep(Duration::from_secs(5)).await;
            assert_eq!(stat().deferred, 1);
            outside(|peer| peer.unmap(PEER, number, true));
            sleep(Duration::from_secs(1)).await;
            let after = stat();
            assert_eq!((after.in_use, after.deferred, after.reclaimed), (0, 0, before.reclaimed + 1));
            assert!(!can_map(number));
            // Then it is used for something else.
            let mut pages = all_pages();
            pages.iter_mut().for_each(|page| page.bytes_mut().fill(0x22));
            assert_eq!(view.byte(4095), 0x22);
        }
    });
}

#[test]
fn msa00_a_reference_is_not_given_out_again_while_the_peer_uses_it() {
    run(guest(8).grant_frames(1), async || {
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, false)).unwrap();
        drop(granted);
        let others = read_write(503).unwrap();
        assert!(!numbers(&others).contains(&number));
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::NoReferences);
        outside(|peer| peer.unmap(PEER, number, false));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(numbers(&read_write(1).unwrap()), [number]);
    });
}

#[test]
fn what_the_peer_does_not_use_is_taken_back_at_once() {
    run(Guest::new(), async || {
        let granted = read_write(5).unwrap();
        let all = numbers(&granted);
        for number in [all[1], all[3]] {
            let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        }
        assert_eq!(granted.end().unwrap_err(), ErrorKind::InUse);
        for number in [all[0], all[2], all[4]] {
            assert!(!can_map(number), "{number}");
        }
        assert_eq!((stat().in_use, stat().deferred), (2, 2));
        outside(|peer| peer.unmap(PEER, all[3], true));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((stat().in_use, stat().deferred, stat().reclaimed), (1, 1, 1));
        outside(|peer| peer.unmap(PEER, all[1], true));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((stat().in_use, stat().deferred, stat().reclaimed), (0, 0, 2));
    });
}

#[test]
fn what_a_peer_had_that_died_comes_back() {
    run(Guest::new(), async || {
        let granted: Vec<_> = (0..10).map(|_| read_write(2).unwrap()).collect();
        for number in granted.iter().flat_map(numbers) {
            let _ = outside(|peer| peer.map(PEER, number, number % 2 == 0)).unwrap();
        }
        drop(granted);
        assert_eq!(stat().deferred, 20);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(stat().deferred, 20);
        outside(|peer| peer.end_peer(PEER));
        sleep(Duration::from_secs(1)).await;
        let stat = stat();
        assert_eq!((stat.in_use, stat.deferred, stat.reclaimed), (0, 0, 20));
    });
}

#[test]
fn thousands_of_deferred_pages_come_back_within_a_second_by_bounded_turns() {
    const SINGLE: usize = if cfg!(miri) { 60 } else { 3000 };
    run(guest(32), async || {
        let single: Vec<_> = (0..SINGLE).map(|_| read_write(1).unwrap()).collect();
        let run = read_write(SINGLE / 3).unwrap();
        let all: Vec<_> = single.iter().chain([&run]).flat_map(numbers).collect();
        for &number in &all {
            let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        }
        drop((single, run));
        // At times that differ, the shortest among them.
        for wait in [0, 1, 30, 700, 2000] {
            sleep(Duration::from_millis(wait)).await;
            assert_eq!(stat().deferred as usize, all.len());
        }
        let turns = executor::activity().turns;
        all.iter().for_each(|&number| outside(|peer| peer.unmap(PEER, number, true)));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((stat().deferred, stat().in_use, stat().reclaimed as usize), (0, 0, all.len()));
        // Each turn looks at some of them.
        let turns = executor::activity().turns - turns;
        assert!(turns as usize > all.len() / 200, "{turns}");
    });
}

#[test]
fn an_idle_domain_wakes_for_deferred_pages_alone_and_ever_less_often() {
    run(Guest::new(), async || {
        let halts = |before: executor::Activity| executor::activity().halts - before.halts;
        drop(read_write(1).unwrap());
        let before = executor::activity();
        sleep(Duration::from_secs(100)).await;
        assert_eq!(halts(before), 1);
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        drop(granted);
        let before = executor::activity();
        sleep(Duration::from_secs(100)).await;
        // After 1, 2, 4 ms and so on, then each 512 ms.
        assert!((190..215).contains(&halts(before)), "{}", halts(before));
        outside(|peer| peer.unmap(PEER, number, true));
        sleep(Duration::from_secs(1)).await;
        let before = executor::activity();
        sleep(Duration::from_secs(100)).await;
        assert_eq!(halts(before), 1);
    });
}

#[test]
fn deferred_pages_of_all_ages_are_looked_at_together() {
    const COUNT: u32 = if cfg!(miri) { 20 } else { 200 };
    let report = run(guest(4), async || {
        let all: Vec<_> = (0..COUNT).map(|_| read_write(1).unwrap()).collect();
        let used: Vec<_> = all.iter().flat_map(numbers).collect();
        assert!(used.iter().all(|&number| outside(|peer| peer.map(PEER, number, true)).is_ok()));
        for granted in all {
            drop(granted);
            sleep(Duration::from_micros(3_700)).await;
        }
        let before = executor::activity();
        sleep(Duration::from_secs(100)).await;
        let halts = executor::activity().halts - before.halts;
        // As for one.
        assert!((190..215).contains(&halts), "{halts}");
        used.iter().for_each(|&number| outside(|peer| peer.unmap(PEER, number, true)));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((stat().deferred, stat().reclaimed), (0, u64::from(COUNT)));
    });
    let timers = report.hypercalls.iter().filter(|call| call.0 == Hypercall::SetTimer).count();
    assert!(timers < 2_000, "{timers}");
}

#[test]
fn a_domain_ends_at_once_whatever_peers_have_in_use() {
    let report = run(Guest::new(), async || {
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        drop(granted);
        executor::at_exit(async { assert_eq!(stat().deferred, 1) });
    });
    assert!(report.elapsed_ns < 1_000_000_000, "{}", report.elapsed_ns);
    assert_eq!(report.granted.len(), 1);
}

#[test]
fn a_main_that_nothing_can_wake_is_told_although_pages_are_deferred() {
    let report = Guest::new().run(async |_| {
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        drop(granted);
        std::future::pending::<()>().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
}

#[test]
fn who_waits_for_references_gets_those_that_a_peer_gives_back() {
    let guest = guest(4).grant_frames(1);
    let guest = guest.after(Duration::from_secs(3), |outside| outside.unmap(PEER, 8, true));
    run(guest, async || {
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        let others = read_write(503).unwrap();
        drop(granted);
        // Nothing else is left to wake main.
        let start = now();
        let again = Granted::<ReadWrite>::new(TO, 1).await.unwrap();
        assert_eq!(numbers(&again), [number]);
        assert!((2900..4000).contains(&(now() - start).as_millis()));
        drop(others);
    });
}

#[test]
fn twenty_thousand_references_are_in_use_at_once() {
    // For Miri it is the sixteenth part.
    const FRAMES: u32 = if cfg!(miri) { 4 } else { 64 };
    const RUN: usize = if cfg!(miri) { 60 } else { 1000 };
    const REFERENCES: usize = 512 * FRAMES as usize - 8;
    let report = run(guest(if cfg!(miri) { 16 } else { 160 }).grant_frames(FRAMES), async || {
        let mut all: Vec<_> = (0..20).map(|_| Granted::<ReadWrite>::try_new(TO, RUN).unwrap()).collect();
        let frames = (8 + 20 * RUN).div_ceil(512) as u32;
        assert_eq!((stat().in_use as usize, stat().frames, stat().max_frames), (20 * RUN, frames, FRAMES));
        let mut seen: Vec<_> = all.iter().flat_map(numbers).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), seen.first(), seen.last()), (20 * RUN, Some(&8), Some(&(20 * RUN as u32 + 7))));
        // The first and the last are what they are said to be.
        for granted in [&all[0], &all[19]] {
            granted.memory().write((RUN - 1) * 4096, b"last");
            let mut bytes = [0; 4];
            let last = *numbers(granted).last().unwrap();
            outside(|peer| peer.copy_from(PEER, last, 0, &mut bytes)).unwrap();
            assert_eq!(&bytes, b"last");
        }
        all.extend((0..12).map(|_| read_write(RUN).unwrap()));
        all.push(read_write(REFERENCES - 32 * RUN).unwrap());
        assert_eq!((stat().in_use as usize, stat().free, stat().frames), (REFERENCES, 0, FRAMES));
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::NoReferences);
        let mut waiting = pin!(Granted::<ReadWrite>::new(TO, 1));
        assert!(poll_once(&mut waiting).await.is_none());
        assert_eq!(stat().waiting, 1);
        all.pop();
        assert!(poll_once(&mut waiting).await.unwrap().is_ok());
        drop(all);
        assert_eq!((stat().in_use, stat().free as usize, stat().waiting), (0, REFERENCES, 0));
    });
    assert_eq!(report.granted, []);
    // One hypercall for each page of the table.
    let placed = report.calls(Hypercall::Memory, ADD_TO_PHYSMAP);
    assert_eq!(placed, FRAMES as usize + 1);
}

#[test]
fn what_can_never_be_had_is_an_error_and_no_wait() {
    run(guest(4).grant_frames(1), async || {
        let refused = async |pages| {
            let waited = timeout(Duration::ZERO, Granted::<ReadWrite>::new(TO, pages)).await.unwrap().unwrap_err();
            assert_eq!(waited, read_write(pages).unwrap_err());
            assert_eq!(waited.domain(), Some(TO));
            waited.kind()
        };
        assert_eq!(refused(0).await, ErrorKind::Memory(memory::Error::NotPages));
        for pages in [505, 1 << 32, usize::MAX] {
            assert_eq!(refused(pages).await, ErrorKind::TooMany);
        }
        assert!(read_write(504).is_ok());
        // References are there, memory is not: nothing is kept.
        let mut pages = all_pages();
        assert_eq!(refused(2).await, ErrorKind::Memory(memory::Error::OutOfMemory));
        pages.pop();
        assert!(read_write(1).is_ok());
        assert_eq!((stat().in_use, stat().waiting), (0, 0));
    });
    assert_eq!(read_write(1).unwrap_err(), ErrorKind::Refused(Errno::ESRCH), "outside of a domain");
}

#[test]
fn what_xen_refuses_is_an_error_and_may_succeed_later() {
    std::thread_local! {
        static REFUSE: Cell<Option<(Hypercall, u64)>> = const { Cell::new(None) };
    }
    let fault = |number, operation| (REFUSE.get() == Some((number, operation))).then_some(Errno::ENOMEM);
    run(guest(4).fault(fault), async || {
        for call in [(Hypercall::GrantTable, QUERY_SIZE), (Hypercall::Memory, ADD_TO_PHYSMAP)] {
            REFUSE.set(Some(call));
            assert_eq!(read_write(1).unwrap_err(), ErrorKind::Refused(Errno::ENOMEM));
            assert_eq!(Granted::<ReadWrite>::new(TO, 1).await.unwrap_err(), ErrorKind::Refused(Errno::ENOMEM));
            assert_eq!((stat().frames, stat().free, stat().waiting), (0, 0, 0));
        }
        REFUSE.set(None);
        let granted = read_write(504).unwrap();
        REFUSE.set(Some((Hypercall::Memory, ADD_TO_PHYSMAP)));
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::Refused(Errno::ENOMEM));
        // What there is is still to be had.
        drop(granted);
        assert!(read_write(504).is_ok());
    });
}

#[test]
fn who_waits_is_served_in_turn_and_not_overtaken() {
    run(guest(4).grant_frames(1), async || {
        let mut held: Vec<_> = (0..4).map(|_| read_write(1).unwrap()).collect();
        held.push(read_write(500).unwrap());
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        // The first wants more than the others together, and more than is free for some time.
        for (name, pages) in [(1, 3), (2, 1), (3, 1), (4, 2)] {
            let order = Rc::clone(&order);
            tasks.push(spawn(async move {
                let granted = Granted::<ReadWrite>::new(TO, pages).await.unwrap();
                order.borrow_mut().push(name);
                granted
            }));
            yield_now().await;
        }
        yield_now().await;
        assert_eq!(stat().waiting, 4);
        for expected in [&[][..], &[], &[1], &[1, 2]] {
            held.remove(0);
            // Free, but not for everybody, if it is enough for the first.
            assert_eq!(
                read_write(1).err().map(|error| error.kind()),
                (!expected.is_empty()).then_some(ErrorKind::NoReferences)
            );
            for _ in 0..5 {
                yield_now().await;
            }
            assert_eq!(*order.borrow(), expected);
        }
        // All that wait now have enough, one after the other.
        drop(held);
        for task in tasks {
            drop(task.await);
        }
        assert_eq!(*order.borrow(), [1, 2, 3, 4]);
        assert_eq!((stat().waiting, stat().in_use), (0, 0));
    });
}

#[test]
fn a_peer_holds_up_those_who_wait_for_what_it_has_and_nobody_else() {
    run(guest(8).grant_frames(1), async || {
        let granted = read_write(1).unwrap();
        let number = numbers(&granted)[0];
        let _ = outside(|peer| peer.map(PEER, number, true)).unwrap();
        drop(granted);
        let mut all = Box::pin(Granted::<ReadWrite>::new(TO, 504));
        assert!(timeout(Duration::from_secs(5), &mut all).await.is_err());
        // Who comes behind may go away after a while; who does not wait finds all others.
        assert!(timeout(Duration::from_secs(5), Granted::<ReadWrite>::new(TO, 1)).await.is_err());
        assert_eq!((stat().waiting, stat().free), (1, 503));
        assert_eq!(read_write(503).unwrap().count(), 503);
        assert_eq!(read_write(504).unwrap_err(), ErrorKind::NoReferences);
        assert_eq!(read_write(505).unwrap_err(), ErrorKind::TooMany);
        drop(all);
        drop(timeout(Duration::ZERO, Granted::<ReadWrite>::new(TO, 1)).await.expect("nobody is in front"));
        // What is enough for the first is left to it, when it was woken and has not run yet.
        let held = read_write(100).unwrap();
        let mut most = Box::pin(Granted::<ReadWrite>::new(TO, 500));
        assert!(poll_once(&mut most).await.is_none());
        drop(held);
        assert_eq!(read_write(4).unwrap_err(), ErrorKind::NoReferences);
        assert_eq!(read_write(3).unwrap().count(), 3);
        assert_eq!(timeout(Duration::ZERO, most).await.expect("it is its turn").unwrap().count(), 500);
        outside(|peer| peer.unmap(PEER, number, true));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((stat().waiting, stat().in_use), (0, 0));
    });
}

#[test]
fn a_waiter_that_goes_away_lets_the_next_go_on() {
    run(guest(4).grant_frames(1), async || {
        let (one, rest) = (read_write(2).unwrap(), read_write(502).unwrap());
        let mut first = Box::pin(Granted::<ReadWrite>::new(TO, 3));
        let mut second = Box::pin(Granted::<ReadWrite>::new(TO, 2));
        let mut third = Box::pin(Granted::<ReadWrite>::new(TO, 1));
        assert!(poll_once(&mut first).await.is_none());
        let second = spawn(async move { second.as_mut().await.unwrap() });
        yield_now().await;
        assert!(poll_once(&mut third).await.is_none());
        assert_eq!(stat().waiting, 3);
        drop(one);
        yield_now().await;
        assert!(!second.is_finished(), "two are free, but the first wants three");
        // In front, and in the middle of the queue.
        drop(first);
        drop(timeout(Duration::from_secs(1), second).await.expect("it is woken"));
        assert_eq!(stat().waiting, 1);
        // One that was woken, and goes away before it has taken what is there.
        let taken = read_write(2);
        assert_eq!(taken.unwrap_err(), ErrorKind::NoReferences, "the third is in front");
        let fourth = spawn(async { Granted::<ReadWrite>::new(TO, 2).await.unwrap() });
        yield_now().await;
        drop(third);
        drop(timeout(Duration::from_secs(1), fourth).await.expect("it is woken"));
        drop(rest);
        assert_eq!((stat().waiting, stat().in_use), (0, 0));
    });
}

#[test]
fn two_that_want_most_of_the_table_do_not_keep_each_other_waiting() {
    const ROUNDS: usize = if cfg!(miri) { 2 } else { 50 };
    run(guest(4).grant_frames(1), async || {
        let task = || {
            spawn(async {
                for _ in 0..ROUNDS {
                    let granted = Granted::<ReadWrite>::new(TO, 300).await.unwrap();
                    yield_now().await;
                    drop(granted);
                }
            })
        };
        for task in [task(), task(), task()] {
            timeout(Duration::from_secs(10), task).await.expect("nobody waits for ever");
        }
        assert_eq!((stat().waiting, stat().in_use), (0, 0));
    });
}

/// Two domains, on a schedule: the first grants runs of pages to the second one and ends that at any moment; the second one
/// maps what it is told of, writes to it, and unmaps it after a while, or ends. Tells how many grants were free when they were
/// ended, and how many not.
fn share(seed: u64, dies: bool) -> (u32, u32) {
    let (free, in_use) = (AtomicU32::new(0), AtomicU32::new(0));
    let (told, over) = (Mutex::new(None::<Vec<Reference>>), AtomicBool::new(false));
    let rounds: &[usize] = if cfg!(miri) { &[1, 2] } else { &[1, 16, 100, 3] };
    let moment = |round: usize| Duration::from_micros((seed * 7919 + round as u64 * 104_729) % 300);
    let give = async |_| {
        let before = stat();
        // Up to 117 pages are deferred at a time here, which is more than a domain of 4 MiB allows a peer.
        set_deferred_limit(Some(u32::MAX));
        for (round, &pages) in rounds.iter().enumerate() {
            let granted = Granted::<ReadWrite>::new(DomainId(2), pages).await.unwrap();
            *told.lock().unwrap() = Some(granted.references().collect());
            sleep(moment(round)).await;
            let end = granted.end();
            let count = if end.is_ok() { &free } else { &in_use };
            count.fetch_add(1, Ordering::Relaxed);
            if let Ok(pages) = end {
                // The peer has written all that it writes, or nothing.
                assert!(
                    pages.bytes().chunks(4096).all(|page| page[..64] == [page[0]; 64] && page[0] == pages.bytes()[0])
                );
            }
            told.lock().unwrap().take();
        }
        over.store(true, Ordering::Relaxed);
        let wait = async {
            while stat().deferred > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(2), wait).await.expect("the peer is done with all of it");
        assert_eq!((stat().in_use, before.in_use), (0, 0));
    };
    let take = async |_| {
        while !over.load(Ordering::Relaxed) {
            let references = told.lock().unwrap().take();
            let Some(references) = references else {
                sleep(Duration::from_micros(20)).await;
                continue;
            };
            // It may be too late.
            let Ok(mapping) = Mapping::<ReadWrite>::new(DomainId(1), &references).await else { continue };
            (0..mapping.count()).for_each(|page| mapping.memory().write(page * 4096, &[7; 64]));
            sleep(Duration::from_micros(seed % 500)).await;
            if dies {
                keep(mapping);
            }
        }
    };
    let reports = Host::new().seed(seed).domain(1, guest(4), give).domain(2, Guest::new(), take).run();
    for report in reports {
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "seed {seed}: {}", report.debug_text());
        assert_eq!(report.granted, [], "seed {seed}");
    }
    (free.into_inner(), in_use.into_inner())
}

#[test]
fn two_domains_share_pages_on_any_schedule_and_the_counters_return() {
    let counts: Vec<_> = (0..if cfg!(miri) { 1 } else { 30 }).map(|seed| share(seed, false)).collect();
    let (free, in_use) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    assert!(cfg!(miri) || free > 10 && in_use > 10, "both happen: {free}, {in_use}");
}

#[test]
fn a_domain_that_ends_with_pages_mapped_gives_them_back() {
    let in_use: u32 = (0..if cfg!(miri) { 1 } else { 10 }).map(|seed| share(seed, true).1).sum();
    assert!(cfg!(miri) || in_use > 10, "{in_use}");
}

/// A peer maps all pages of a grant and never unmaps them; then the grant is ended.
fn pin(peer: u16, pages: usize) -> Result<Vec<u32>, Error> {
    let granted = Granted::<ReadWrite>::try_new(DomainId(peer), pages)?;
    let references = numbers(&granted);
    for &reference in &references {
        let _view = outside(|outside| outside.map(peer, reference, true)).unwrap();
    }
    assert_eq!(granted.end().err().map(|error| error.kind()), Some(ErrorKind::InUse));
    Ok(references)
}

#[test]
fn a_peer_that_never_unmaps_is_refused_at_the_limit() {
    run(guest(16), async || {
        let free = || memory::quick_stat().free;
        let (before, mut connections) = (free(), 0);
        let (first, error) = {
            let first = pin(PEER, 16).unwrap();
            let error = loop {
                connections += 1;
                match pin(PEER, 16) {
                    Ok(_) => assert!(connections < 243, "it has all memory"),
                    Err(error) => break error,
                }
            };
            (first, error)
        };
        assert_eq!((error.kind(), connections), (ErrorKind::TooManyDeferred, 16));
        // A sixteenth of 4096 pages, and what the chunks take that they lie in.
        assert_eq!((deferred_limit(), deferred_pages(TO), stat().deferred_pages), (256, 256, 256));
        assert!(before - free() <= 3 << 20, "{} bytes", before - free());
        assert_eq!((stat().refused, stat().deferred, stat().in_use), (1, 256, 256));
        // The form that waits is refused as well, at once.
        let waits = poll_once(&mut Box::pin(Granted::<ReadWrite>::new(TO, 1))).await;
        assert_eq!(waits.unwrap().err().map(|error| error.kind()), Some(ErrorKind::TooManyDeferred));
        let prepared = Granted::<ReadOnly>::try_from_pages(TO, Pages::new(1).unwrap());
        assert_eq!(prepared.err().map(|error| error.kind()), Some(ErrorKind::TooManyDeferred));
        assert_eq!(stat().refused, 3);
        // Others are not affected.
        let other = Granted::<ReadWrite>::try_new(DomainId(PEER + 1), 257).unwrap();
        assert_eq!(deferred_pages(other.peer()), 0);
        drop(other);
        // Pages that the peer has unmapped make room.
        first.iter().for_each(|&reference| outside(|outside| outside.unmap(PEER, reference, true)));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((deferred_pages(TO), stat().deferred_pages, stat().reclaimed), (240, 240, 16));
        pin(PEER, 16).unwrap();
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::TooManyDeferred);
        outside(|outside| outside.end_peer(PEER));
        sleep(Duration::from_secs(1)).await;
        assert_eq!((deferred_pages(TO), stat().deferred_pages, stat().in_use), (0, 0, 0));
    });
}

#[test]
fn one_page_in_use_counts_the_whole_grant_as_deferred() {
    run(Guest::new(), async || {
        set_deferred_limit(Some(6));
        let granted = read_write(6).unwrap();
        let last = numbers(&granted)[5];
        let _view = outside(|outside| outside.map(PEER, last, false)).unwrap();
        drop(granted);
        assert_eq!((stat().deferred, stat().deferred_pages), (1, 6));
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::TooManyDeferred);
        set_deferred_limit(Some(7));
        assert_eq!((deferred_limit(), read_write(9).unwrap().count()), (7, 9));
        outside(|outside| outside.unmap(PEER, last, false));
        sleep(Duration::from_secs(1)).await;
        set_deferred_limit(Some(0));
        assert_eq!(read_write(9).unwrap().count(), 9, "nothing is deferred");
        set_deferred_limit(None);
        // A domain of 16 MiB.
        assert_eq!((deferred_limit(), stat().deferred_pages), (256, 0));
    });
}

#[test]
fn waiting_peer_at_the_limit_is_refused() {
    run(guest(16).grant_frames(1), async || {
        set_deferred_limit(Some(2));
        let kept = read_write(2).unwrap();
        let all = read_write(502).unwrap();
        let mut waits = Box::pin(Granted::<ReadWrite>::new(TO, 1));
        assert!(poll_once(&mut waits).await.is_none());
        let _view = outside(|outside| outside.map(PEER, numbers(&kept)[0], false)).unwrap();
        drop(kept);
        drop(all);
        assert_eq!(waits.await.err().map(|error| error.kind()), Some(ErrorKind::TooManyDeferred));
        assert_eq!((stat().in_use, stat().waiting, stat().refused), (1, 0, 1), "its reference is free again");
        outside(|outside| outside.end_peer(PEER));
        sleep(Duration::from_secs(1)).await;
        assert_eq!(stat().in_use, 0);
    });
}

#[test]
fn a_resume_frees_what_a_peer_at_the_limit_had() {
    run(Guest::new(), async || {
        set_deferred_limit(Some(4));
        pin(PEER, 4).unwrap();
        assert_eq!(read_write(1).unwrap_err(), ErrorKind::TooManyDeferred);
        lifecycle::suspend().await.unwrap();
        assert_eq!((deferred_pages(TO), stat().deferred_pages, stat().refused), (0, 0, 1));
        assert_eq!(read_write(1).unwrap().count(), 1);
    });
}
