//! Both ends of a ring at the same time: no wake-up is lost, whatever is interleaved with what.
//!
//! First each half of our code against a peer that is a list of steps, which come before any of our accesses to the memory:
//! all choices are tried. These tests find out peers that leave out a part of the protocol, so they would find out us. Then
//! both our ends on two threads, where also the order in which each sees the other's writes is the machine's to choose: Miri's
//! weak memory shows a missing barrier, by one seed of a few: `MIRIFLAGS=-Zmiri-many-seeds=0..16`. Last, in two domains that
//! wait by ports, on many schedules.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use domu::lifecycle::Reason;
use domu::shared::{BackRing, FrontRing, Owner};
use domu::sim::{End, Guest, Host, Report, SharedPages};
use domu::{DomainId, eventchn, executor, time};

const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const ENTRIES: usize = 64;

const MS: Duration = Duration::from_millis(1);

/// The first port that a domain makes: the console and the timer have those before.
const FIRST: u32 = 4;

/// A step of a peer's, in order.
trait Script: 'static {
    /// Does the next step; says whether there was one.
    fn step(&mut self, pages: &SharedPages) -> bool;
}

/// The steps of a peer, each before the access of its number, or when nothing else is left to be done.
struct Race<S> {
    script: S,
    places: Vec<usize>,
    done: usize,
    accesses: usize,
}

impl<S: Script> Race<S> {
    fn access(&mut self, pages: &SharedPages) {
        while self.places.get(self.done).is_some_and(|&place| place <= self.accesses) {
            self.done += 1;
            self.script.step(pages);
        }
        self.accesses += 1;
    }
}

/// Runs `main` for all choices of places, each at or behind the one before, for so many steps among so many accesses.
fn for_all_places(steps: usize, accesses: usize, mut main: impl FnMut(Vec<usize>)) {
    fn choose(places: &mut Vec<usize>, steps: usize, accesses: usize, main: &mut impl FnMut(Vec<usize>)) {
        if places.len() == steps {
            return main(places.clone());
        }
        for place in places.last().copied().unwrap_or(0)..=accesses {
            places.push(place);
            choose(places, steps, accesses, main);
            places.pop();
        }
    }
    if cfg!(miri) {
        // It takes as long for a few as the others need for all.
        return (1..3).for_each(|apart| main((0..steps).map(|step| step * apart).collect()));
    }
    choose(&mut Vec::new(), steps, accesses, &mut main);
}

fn load(pages: &SharedPages, offset: usize) -> u32 {
    pages.memory().u32(offset).load(Ordering::SeqCst)
}

fn store(pages: &SharedPages, offset: usize, value: u32) {
    pages.memory().u32(offset).store(value, Ordering::SeqCst);
}

/// A front end that sends requests one by one, each in three steps.
struct Producer {
    /// It looks at the event before it has published, as it seems to who leaves out the barrier.
    hasty: bool,
    event: u32,
    step: u32,
    notified: bool,
}

/// How many it sends.
const SENT: u32 = 2;

impl Script for Producer {
    fn step(&mut self, pages: &SharedPages) -> bool {
        let (number, step) = (self.step / 3, self.step % 3);
        if number == SENT {
            return false;
        }
        match (step, self.hasty) {
            (0, _) => pages.memory().u8(ENTRIES + number as usize).store(number as u8 + 1, Ordering::SeqCst),
            (1, false) | (2, true) => store(pages, REQ_PROD, number + 1),
            _ => self.event = load(pages, REQ_EVENT),
        }
        // One request at a time: the event is among the new indices if it is the new index.
        if step == 2 && self.event == number + 1 {
            self.notified = true;
        }
        self.step += 1;
        true
    }
}

/// Consumes until all is quiet; `poll` returns None to wait. Returns what arrived, and how many accesses there were.
fn consume(
    places: Vec<usize>,
    hasty: bool,
    poll: impl FnOnce(&SharedPages) -> Box<dyn FnMut() -> Option<u8>>,
) -> (Vec<u8>, usize) {
    let pages = SharedPages::new(1);
    // Somebody made the ring.
    drop(FrontRing::<u8, u8, _>::new(pages.clone()));
    let script = Producer { hasty, event: 0, step: 0, notified: false };
    let race = Rc::new(RefCell::new(Race { script, places, done: 0, accesses: 0 }));
    let mut poll = poll(&pages);
    let (shared, memory) = (race.clone(), pages.clone());
    let received = pages.with_peer(
        move |_| {
            // Not for what the peer itself does.
            if let Ok(mut race) = shared.try_borrow_mut() {
                race.access(&memory);
            }
        },
        || {
            let mut received = Vec::new();
            loop {
                while let Some(request) = poll() {
                    received.push(request);
                }
                // It waits: what the peer has yet to do, it does now, until a notification comes.
                let memory = pages.clone();
                let mut race = race.borrow_mut();
                while !race.script.notified {
                    race.done += 1;
                    if !race.script.step(&memory) {
                        return received;
                    }
                }
                race.script.notified = false;
            }
        },
    );
    let accesses = race.borrow().accesses;
    (received, accesses)
}

fn our_consumer(pages: &SharedPages) -> Box<dyn FnMut() -> Option<u8>> {
    let mut ring = BackRing::<u8, u8, _>::attach(pages.clone()).unwrap();
    Box::new(move || ring.poll_request().unwrap())
}

/// A consumer that asks for an event without another look.
fn consumer_without_final_check(pages: &SharedPages) -> Box<dyn FnMut() -> Option<u8>> {
    let (pages, mut taken) = (pages.clone(), 0);
    Box::new(move || {
        if load(&pages, REQ_PROD) == taken {
            store(&pages, REQ_EVENT, taken + 1);
            return None;
        }
        taken += 1;
        Some(pages.memory().u8(ENTRIES + taken as usize - 1).load(Ordering::SeqCst))
    })
}

#[test]
fn no_interleaving_with_a_producer_loses_a_wake_up() {
    const ACCESSES: usize = 14;
    let steps = 3 * SENT as usize;
    for_all_places(steps, ACCESSES, |places| {
        let (received, accesses) = consume(places.clone(), false, our_consumer);
        assert_eq!(received, [1, 2], "{places:?}");
        assert!(accesses <= ACCESSES, "{accesses} accesses, of which {ACCESSES} were tried");
    });
    if cfg!(miri) {
        return;
    }
    let (mut found, mut others) = (0, 0);
    for_all_places(steps, ACCESSES, |places| {
        found += usize::from(consume(places.clone(), false, consumer_without_final_check).0 != [1, 2]);
        others += usize::from(consume(places, true, our_consumer).0 != [1, 2]);
    });
    assert!(found > 0, "a consumer without the final check goes unnoticed");
    assert!(others > 0, "a producer without the barrier goes unnoticed");
}

/// A back end that takes requests, a step for each access.
struct Consumer {
    /// It leaves out the final check.
    hasty: bool,
    step: u32,
    shown: u32,
    taken: u32,
    waits: bool,
    received: Vec<u8>,
}

impl Script for Consumer {
    fn step(&mut self, pages: &SharedPages) -> bool {
        if self.waits {
            return false;
        }
        match self.step {
            0 | 2 => {
                self.shown = load(pages, REQ_PROD);
                self.waits = self.shown == self.taken && self.step == 2;
                self.step = if self.shown == self.taken { 1 } else { 3 };
            }
            1 => {
                store(pages, REQ_EVENT, self.taken + 1);
                self.waits = self.hasty;
                self.step = 2;
            }
            _ => {
                self.received.push(pages.memory().u8(ENTRIES + self.taken as usize).load(Ordering::SeqCst));
                self.taken += 1;
                self.step = if self.taken == self.shown { 0 } else { 3 };
            }
        }
        true
    }
}

/// Publishes a batch of one and one of two requests; `publish` says whether the peer is notified.
fn produce(places: Vec<usize>, hasty: bool) -> (Vec<u8>, usize) {
    let pages = SharedPages::new(1);
    let mut ring = FrontRing::<u8, u8, _>::new(pages.clone());
    let script = Consumer { hasty, step: 0, shown: 0, taken: 0, waits: false, received: Vec::new() };
    let race = Rc::new(RefCell::new(Race { script, places, done: 0, accesses: 0 }));
    let (shared, memory) = (race.clone(), pages.clone());
    let notify = || {
        let script = &mut race.borrow_mut().script;
        if script.waits {
            (script.waits, script.step) = (false, 0);
        }
    };
    pages.with_peer(
        move |_| {
            // Not for what the peer itself does.
            if let Ok(mut race) = shared.try_borrow_mut() {
                race.access(&memory);
            }
        },
        || {
            for batch in [&[1_u8][..], &[2, 3]] {
                for request in batch {
                    ring.push(request).unwrap();
                }
                if ring.publish() {
                    notify();
                }
            }
        },
    );
    let mut race = race.borrow_mut();
    while race.script.step(&pages) {}
    (race.script.received.clone(), race.accesses)
}

#[test]
fn no_interleaving_with_a_consumer_loses_a_wake_up() {
    const ACCESSES: usize = 7;
    const STEPS: usize = 9;
    for_all_places(STEPS, ACCESSES, |places| {
        let (received, accesses) = produce(places.clone(), false);
        assert_eq!(received, [1, 2, 3], "{places:?}");
        assert!(accesses <= ACCESSES, "{accesses} accesses, of which {ACCESSES} were tried");
    });
    if cfg!(miri) {
        return;
    }
    let mut found = 0;
    for_all_places(STEPS, ACCESSES, |places| found += usize::from(produce(places, true).0 != [1, 2, 3]));
    assert!(found > 0, "a consumer without the final check goes unnoticed");
}

/// The end of an event channel, in each direction with its pending bit: events that were sent before somebody looks are one.
/// As with Xen's, who sends one that is pending already changes the bit all the same, so that who clears it sees what was
/// written before.
struct Port {
    to_peer: (Arc<AtomicBool>, SyncSender<()>),
    from_peer: (Arc<AtomicBool>, Receiver<()>),
}

impl Port {
    fn pair() -> (Self, Self) {
        let directions = [(); 2].map(|()| (Arc::<AtomicBool>::default(), sync_channel(1)));
        let [first, second] = directions.map(|(pending, (to, from))| ((Arc::clone(&pending), to), (pending, from)));
        (Self { to_peer: first.0, from_peer: second.1 }, Self { to_peer: second.0, from_peer: first.1 })
    }

    fn notify(&self) {
        let (pending, wake) = &self.to_peer;
        if !pending.swap(true, Ordering::AcqRel) {
            // The peer may be done.
            let _ = wake.send(());
        }
    }

    fn wait(&self) {
        let (pending, woken) = &self.from_peer;
        woken.recv_timeout(Duration::from_secs(20)).expect("a wake-up is lost");
        pending.swap(false, Ordering::AcqRel);
    }
}

#[test]
fn our_ends_on_two_threads_exchange_everything_and_wake_each_other() {
    let total: u32 = if cfg!(miri) { 50 } else { 100_000 };
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<[u32; 2], u32, _>::starting_at(pages.clone(), u32::MAX - 9);
    let mut back = BackRing::<[u32; 2], u32, _>::attach(pages).unwrap();
    let (port, peers_port) = Port::pair();
    let server = thread::spawn(move || {
        let mut served = 0;
        while served < total {
            let Some([number, square]) = back.poll_request().unwrap() else {
                if back.publish() {
                    peers_port.notify();
                }
                // Its own responses may have kept it from seeing what came: `poll_request` was the final check.
                peers_port.wait();
                continue;
            };
            assert_eq!((number, square), (served, served.wrapping_mul(served)));
            back.push(&!number).unwrap();
            served += 1;
            // Batches of different sizes.
            if number % 5 != 0 && back.publish() {
                peers_port.notify();
            }
        }
        if back.publish() {
            peers_port.notify();
        }
    });
    let (mut sent, mut answered) = (0_u32, 0_u32);
    while answered < total {
        while sent < total && front.room() > front.size() - 1 - sent % 3 {
            front.push(&[sent, sent.wrapping_mul(sent)]).unwrap();
            sent += 1;
        }
        if front.publish() {
            port.notify();
        }
        match front.poll_response().unwrap() {
            Some(response) => {
                assert_eq!(response, !answered);
                answered += 1;
            }
            None => port.wait(),
        }
    }
    server.join().unwrap();
}

/// Binds to the port that domain 1 has or will have for domain 2, and tells it.
async fn connect() -> Result<eventchn::Port, eventchn::Error> {
    loop {
        match eventchn::bind_interdomain(DomainId(1), FIRST) {
            Err(error) if error == eventchn::ErrorKind::NoPeer => time::sleep(MS).await,
            bound => {
                let port = bound?;
                return port.notify().map(|()| port);
            }
        }
    }
}

fn run(host: Host<'_>) -> Vec<Report> {
    let reports = host.run();
    for report in &reports {
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
    }
    reports
}

/// Nothing but events ends a wait here: one that is lost leaves both domains asleep, which fails the test.
#[test]
fn no_schedule_of_two_domains_loses_a_wake_up() {
    const TOTAL: u32 = if cfg!(miri) { 4 } else { 60 };
    for seed in 0..if cfg!(miri) { 1 } else { 100 } {
        let pages = SharedPages::new(1);
        let mut front = FrontRing::<[u32; 2], u32, _>::starting_at(pages.clone(), u32::MAX - 20);
        let mut back = BackRing::<[u32; 2], u32, _>::attach(pages).unwrap();
        let reports = run(Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async move |_| -> domu::Result {
                let port = eventchn::alloc_unbound(DomainId(2))?;
                // The peer is there, so that what is sent is not swallowed.
                port.after(0).await.unwrap();
                let (mut sent, mut answered) = (0, 0);
                while answered < TOTAL {
                    while sent < TOTAL && sent - answered < 1 + sent % 4 {
                        front.push(&[sent, sent * sent])?;
                        sent += 1;
                    }
                    if front.publish() {
                        port.notify()?;
                    }
                    assert_eq!(port.until(|| front.poll_response().transpose()).await??, !answered);
                    answered += 1;
                }
                Ok(())
            })
            .domain(2, Guest::new(), async move |_| -> domu::Result {
                let port = connect().await?;
                let mut served = 0;
                while served < TOTAL {
                    let mut next = Some(port.until(|| back.poll_request().transpose()).await??);
                    while let Some([number, square]) = next {
                        assert_eq!((number, square), (served, served * served));
                        back.push(&!number)?;
                        served += 1;
                        next = back.poll_request()?;
                    }
                    if back.publish() {
                        port.notify()?;
                    }
                }
                Ok(())
            }));
        // One for each of the ends' batches at most, and the front end waits for some.
        let sent: Vec<usize> = reports.iter().map(|report| report.sent.len()).collect();
        assert!((1..=TOTAL as usize).contains(&sent[0]) && (1..=TOTAL as usize + 1).contains(&sent[1]), "{sent:?}");
    }
}

/// What else there is in a storm of events that bring nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Storm {
    Bare,
    /// A request with each 32nd event.
    WithRequests,
    /// The waiter gives up after a while, and waits anew.
    WithTimeouts,
}

/// A peer that sends events without end, and next to nothing that they tell of, has the domain look once in a millisecond; what
/// it sends at last is found.
#[test]
fn a_storm_of_events_is_counted_and_slows_down_who_makes_it() {
    const EVENTS: u32 = if cfg!(miri) { 200 } else { 2000 };
    const APART: Duration = Duration::from_micros(20);
    for storm in [Storm::Bare, Storm::WithRequests, Storm::WithTimeouts] {
        let pages = SharedPages::new(1);
        let mut front = FrontRing::<u8, u8, _>::new(pages.clone());
        let mut back = BackRing::<u8, u8, _>::attach(pages).unwrap();
        run(Host::new()
            .domain(1, Guest::new(), async move |_| -> domu::Result {
                let port = eventchn::alloc_unbound(DomainId(2))?;
                port.after(0).await.unwrap();
                for event in 0..EVENTS {
                    if storm == Storm::WithRequests && event % 32 == 31 {
                        front.push(&1)?;
                        let _ = front.publish();
                    }
                    port.notify()?;
                    time::sleep(APART).await;
                }
                front.push(&7)?;
                let _ = front.publish();
                Ok(port.notify()?)
            })
            .domain(2, Guest::new(), async move |_| -> domu::Result {
                let port = connect().await?;
                let patience = if storm == Storm::WithTimeouts { 5 * MS } else { Duration::MAX };
                let mut found = 0;
                loop {
                    match time::timeout(patience, port.until(|| back.poll_request().transpose())).await {
                        Ok(request) if request?? == 7 => break,
                        Ok(_) => found += 1,
                        Err(time::Elapsed) => {}
                    }
                }
                assert_eq!(found, if storm == Storm::WithRequests { u64::from(EVENTS) / 32 } else { 0 });
                let millis = u64::from(EVENTS) * 25 / 1000;
                assert!((32..=66 + millis + found).contains(&port.spurious()), "{storm:?}: {}", port.spurious());
                Ok(())
            }));
    }
}

/// Events that bring nothing, but come rarely or with requests that are found, delay nobody.
#[test]
fn a_few_events_that_bring_nothing_delay_nobody() {
    const MANY: u32 = if cfg!(miri) { 20 } else { 200 };
    let pages = SharedPages::new(1);
    let mut front = FrontRing::<u64, u8, _>::new(pages.clone());
    let mut back = BackRing::<u64, u8, _>::attach(pages).unwrap();
    run(Host::new()
        .domain(1, Guest::new(), async move |_| -> domu::Result {
            let port = eventchn::alloc_unbound(DomainId(2))?;
            port.after(0).await.unwrap();
            for _ in 0..MANY {
                port.notify()?;
                time::sleep(2 * MS).await;
            }
            for _ in 0..MANY {
                front.push(&time::now().as_nanos())?;
                let _ = front.publish();
                port.notify()?;
                time::sleep(MS / 20).await;
                port.notify()?;
                time::sleep(MS / 20).await;
            }
            Ok(())
        })
        .domain(2, Guest::new(), async move |_| -> domu::Result {
            let port = connect().await?;
            for number in 0..MANY {
                let sent = port.until(|| back.poll_request().transpose()).await??;
                let late = Duration::from_nanos(time::now().as_nanos() - sent);
                assert!(late < MS / 2, "request {number} came after {late:?}");
            }
            assert!(port.spurious() > u64::from(MANY) * 3 / 2, "{}", port.spurious());
            Ok(())
        }));
}

/// A front end on another CPU has the next request there whenever we look: other tasks and timers have their turn all the same.
#[test]
fn a_peer_that_always_has_a_request_starves_nobody() {
    const REQUESTS: u32 = if cfg!(miri) { 400 } else { 2000 };
    let pages = SharedPages::new(1);
    let _front = FrontRing::<u8, u8, _>::new(pages.clone());
    let mut back = BackRing::<u8, u8, _>::attach(pages.clone()).unwrap();
    let memory = pages.clone();
    let served = Rc::new(Cell::new(0));
    let peer = move |offset| {
        if offset == REQ_PROD {
            let answered = load(&memory, RSP_PROD);
            memory.memory().u32(REQ_PROD).store(answered + 1, Ordering::SeqCst);
        }
    };
    pages
        .clone()
        .with_peer(peer, || {
            Guest::new().run(async |_| -> domu::Result {
                let port = eventchn::bind_ipi()?;
                let count = served.clone();
                let other = executor::spawn(async move {
                    let mut turns = vec![];
                    for _ in 0..if cfg!(miri) { 1 } else { 4 } {
                        executor::yield_now().await;
                        turns.push(count.get());
                        time::sleep(Duration::from_nanos(1)).await;
                        turns.push(count.get());
                    }
                    turns
                });
                for _ in 0..REQUESTS {
                    let _ = port.until(|| back.poll_request().transpose()).await??;
                    back.push(&0)?;
                    let _ = back.publish();
                    served.set(served.get() + 1);
                }
                // Had nobody had a turn, it would not be done.
                assert!(other.is_finished(), "{} requests without a pause", served.get());
                let turns = other.await;
                assert!(turns.is_sorted_by(|one, next| next - one <= 64), "{turns:?}");
                Ok(())
            })
        })
        .powered_off();
}
