//! What allocates and what does not, counted by an allocator of the test's own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use domu::DomainId;
use domu::eventchn;
use domu::executor::{spawn, yield_now};
use domu::gnttab::{Granted, ReadWrite, stat};
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{Guest, Message, Store, outside};
use domu::time::{self, sleep};
use domu::xenstore::{ErrorKind, MAX_LISTING};

/// The system's allocator, counting what a thread allocates, and the bytes that it has.
struct Counting;

std::thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is the system's allocator's; the counts are numbers of the thread's own, without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        BYTES.set(BYTES.get().wrapping_add(layout.size()));
        PEAK.set(PEAK.get().max(BYTES.get()));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // Allocations of another thread may be freed here.
        BYTES.set(BYTES.get().saturating_sub(layout.size()));
        // SAFETY: the block came from `alloc`, and thus from the system.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs something in a domain that is notified each millisecond on its first port, and returns what it has allocated.
fn allocated(what: impl AsyncFnOnce(&eventchn::Port)) -> u64 {
    let count = Cell::new(0);
    let mut guest = Guest::new();
    for moment in 1..40 {
        guest = guest.after(Duration::from_millis(moment), |outside| outside.notify(4));
    }
    guest
        .run(async |_| {
            let port = eventchn::alloc_unbound(DomainId(5)).unwrap();
            assert_eq!(port.number(), 4);
            // The first wait makes the list of waiters.
            let seen = port.after(0).await.unwrap();
            port.after(seen).await.unwrap();
            let before = COUNT.get();
            what(&port).await;
            count.set(COUNT.get() - before);
        })
        .powered_off();
    count.get()
}

#[test]
fn an_event_to_an_idle_domain_allocates_nothing() {
    let count = allocated(async |port| {
        for _ in 0..20 {
            port.after(port.count()).await.unwrap();
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn a_yield_allocates_nothing_and_a_task_once() {
    let yields = async |_: &eventchn::Port| {
        for _ in 0..100 {
            yield_now().await;
        }
    };
    assert_eq!(allocated(yields), 0);
    // Once for the task; the ready queue may grow.
    let count = allocated(async |_| spawn(async {}).await);
    assert!((1..=2).contains(&count), "{count}");
}

#[test]
fn waking_many_tasks_at_once_allocates_nothing() {
    const TASKS: usize = if cfg!(miri) { 20 } else { 300 };
    let count = Cell::new(u64::MAX);
    Guest::new()
        .run(async |_| {
            let (port, woken) = (Rc::new(eventchn::bind_ipi().unwrap()), Rc::new(Cell::new(0)));
            for _ in 0..TASKS {
                let (port, woken) = (Rc::clone(&port), Rc::clone(&woken));
                spawn(async move {
                    port.after(0).await.unwrap();
                    woken.set(woken.get() + 1);
                })
                .detach();
                // One after the other, so that the queue is never long.
                yield_now().await;
            }
            // What the simulated machine notes of the hypercall is none of it.
            port.notify().unwrap();
            let before = COUNT.get();
            for _ in 0..3 {
                yield_now().await;
            }
            let after = COUNT.get();
            assert_eq!(woken.get(), TASKS);
            count.set(after - before);
        })
        .powered_off();
    assert_eq!(count.get(), 0);
}

#[test]
fn tasks_that_have_ended_leave_no_room_behind() {
    // The queue has room for those that there are, not for all that ever were.
    let count = allocated(async |_| {
        for _ in 0..100 {
            spawn(async {}).await;
        }
    });
    assert!((100..=102).contains(&count), "{count}");
}

#[test]
fn what_becomes_of_a_grant_after_its_owner_allocates_nothing() {
    const PAGES: usize = 3;
    let count = Cell::new(u64::MAX);
    Guest::new()
        .run(async |_| {
            let peer = DomainId(3);
            let mut all: Vec<_> = (0..40).map(|_| Granted::<ReadWrite>::try_new(peer, PAGES).unwrap()).collect();
            let mapped: Vec<_> = all.iter().flat_map(|granted| granted.references().nth(1)).collect();
            assert!(mapped.iter().all(|reference| outside(|peer| peer.map(3, reference.0, true)).is_ok()));
            // One that the peer does not use.
            let free = Granted::<ReadWrite>::try_new(peer, PAGES).unwrap();
            let before = COUNT.get();
            let free = free.end();
            all.drain(..).for_each(drop);
            let ended = COUNT.get() - before;
            assert!(free.is_ok());
            assert_eq!((stat().deferred, stat().in_use), (40, 40));
            mapped.iter().for_each(|reference| outside(|peer| peer.unmap(3, reference.0, true)));
            sleep(Duration::from_secs(1)).await;
            assert_eq!((stat().deferred, stat().in_use), (0, 0));
            count.set(ended);
        })
        .powered_off();
    assert_eq!(count.get(), 0);
}

/// The store never ends its listing.
#[test]
fn an_endless_listing_takes_bounded_memory() {
    let server = Store::new();
    server.refuse(|ty, _| match ty {
        MessageType::DIRECTORY => Some("E2BIG"),
        // Answered below.
        MessageType::DIRECTORY_PART => Some("EIO"),
        _ => None,
    });
    server.tamper(|_, message| match &message.payload[..] {
        b"EIO\0" => {
            let payload = [&b"1\0"[..], &b"a\0".repeat(2045)].concat();
            vec![Message::new(MessageType::DIRECTORY_PART, message.header.req_id, 0, payload)]
        }
        _ => vec![message],
    });
    let peak = Cell::new(0);
    Guest::new()
        .xenstore(&server)
        .run(async |domain| {
            let store = domain.xenstore();
            store.read("name").await.unwrap();
            let before = BYTES.get();
            PEAK.set(before);
            // One that never comes to an end has time enough to take all memory.
            let names = time::timeout(Duration::from_secs(3600), store.directory("data")).await;
            peak.set(PEAK.get() - before);
            assert_eq!(names.unwrap().unwrap_err(), ErrorKind::ListingTooLong);
        })
        .powered_off();
    // The listing, as it grows to its limit, and the simulated server's own.
    assert!(peak.get() <= 2 * MAX_LISTING + (64 << 10), "{} bytes", peak.get());
}
