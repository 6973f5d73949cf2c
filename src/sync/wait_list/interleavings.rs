//! All interleavings of waiters with those that wake them.
//!
//! Each step under a lock is one step here, and each wake-up, which comes after unlocking, is another. From each state every step
//! that any thread can take is tried, so every order of them has been seen.

use core::fmt::Debug;
use core::task::Waker;
use std::collections::BTreeSet;
use std::format;
use std::string::String;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Wake;
use std::thread;
use std::vec::Vec;

use super::model::{number, waker};
use super::waiters::Mark;
use super::{WaitList, Waiter, WaiterId};

/// What is explored: states, and the steps from each.
trait Explored: Clone + Debug {
    /// The states after each step that can be taken.
    fn steps(&self) -> Vec<Self>;
    /// Checks a state that no thread leaves.
    fn check_end(&self);
}

/// Visits all states; returns how many there are, and how many of them are ends.
fn explore<T: Explored>(start: T) -> (usize, usize) {
    let (mut seen, mut ends, mut open) = (BTreeSet::<String>::new(), 0, Vec::from([start]));
    while let Some(state) = open.pop() {
        if !seen.insert(format!("{state:?}")) {
            continue;
        }
        let next = state.steps();
        if next.is_empty() {
            state.check_end();
            ends += 1;
        }
        open.extend(next);
    }
    (seen.len(), ends)
}

/// A future that waits.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Status {
    /// To be polled: it is new, or was woken.
    Ready,
    Waiting,
    Done,
    Dropped,
}

/// A sender that waits for room.
#[derive(Clone, Debug)]
struct Sender {
    id: Option<WaiterId>,
    units: u32,
    status: Status,
}

/// Senders that wait for room in order, and a receiver that makes room.
#[derive(Clone, Debug)]
struct Room {
    free: u32,
    list: WaitList,
    senders: Vec<Sender>,
    /// Senders in the order in which they registered.
    order: Vec<usize>,
    gives: u32,
    /// Drops, and polls without a wake-up, that are still to be tried.
    drops: u32,
    spurious: u32,
    /// Wakers that were taken under the lock, and are yet to be woken.
    taken: Vec<usize>,
}

impl Room {
    fn new(units: &[u32], gives: u32) -> Self {
        let senders = units.iter().map(|units| Sender { id: None, units: *units, status: Status::Ready }).collect();
        let (drops, spurious) = if cfg!(miri) { (1, 0) } else { (2, 1) };
        let (list, order, taken) = (WaitList::new(), Vec::new(), Vec::new());
        Self { free: 0, list, senders, order, gives, drops, spurious, taken }
    }

    /// Wakes the first sender if it can be served, as each of these steps does at its end.
    fn wake_first(&mut self) {
        let free = self.free;
        self.taken.extend(self.list.wake_first(|units| units <= free).as_ref().map(number));
    }

    fn poll(&mut self, who: usize) {
        let sender = &mut self.senders[who];
        if self.list.first().map(|(first, _)| first) == sender.id && sender.units <= self.free {
            assert!(self.order.first().is_none_or(|first| *first == who), "{who} overtakes");
            self.order.retain(|other| *other != who);
            self.free -= sender.units;
            sender.status = Status::Done;
            if let Some(id) = sender.id {
                drop(self.list.leave(id));
            }
            self.wake_first();
            return;
        }
        if sender.id.is_none() {
            self.order.push(who);
        }
        drop(self.list.register(&mut sender.id, Waiter::foreground(&waker(who)), sender.units));
        sender.status = Status::Waiting;
    }
}

impl Explored for Room {
    fn steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |act: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            act(&mut state);
            next.push(state);
        };
        for who in 0..self.senders.len() {
            let status = self.senders[who].status;
            if status == Status::Ready {
                step(&|state| state.poll(who));
            }
            if status == Status::Waiting && self.spurious > 0 {
                step(&|state| {
                    state.spurious -= 1;
                    state.poll(who);
                });
            }
            if matches!(status, Status::Ready | Status::Waiting) && self.drops > 0 {
                step(&|state| {
                    state.drops -= 1;
                    state.order.retain(|other| *other != who);
                    state.senders[who].status = Status::Dropped;
                    if let Some(id) = state.senders[who].id {
                        drop(state.list.leave(id));
                    }
                    state.wake_first();
                });
            }
        }
        if self.gives > 0 {
            step(&|state| {
                state.gives -= 1;
                state.free += 1;
                state.wake_first();
            });
        }
        for place in 0..self.taken.len() {
            step(&|state| {
                let who = state.taken.remove(place);
                if state.senders[who].status == Status::Waiting {
                    state.senders[who].status = Status::Ready;
                }
            });
        }
        // Budgets need not be used up.
        let idle = self.senders.iter().all(|sender| sender.status != Status::Ready);
        if idle && self.gives == 0 && self.taken.is_empty() {
            self.check_end();
        }
        next
    }

    fn check_end(&self) {
        if let Some(first) = self.order.first() {
            assert!(self.senders[*first].units > self.free, "the wake-up of {first} is lost: {self:?}");
        }
        assert_eq!(self.list.len(), self.order.len());
    }
}

#[test]
fn no_interleaving_loses_a_single_wake_up() {
    // Miri takes minutes for more than the first.
    let all = [(&[1, 1][..], 1), (&[2, 1][..], 3), (&[1, 1, 1][..], 3), (&[2, 1, 1][..], 3)];
    for (units, gives) in all.into_iter().take(if cfg!(miri) { 1 } else { all.len() }) {
        let (states, ends) = explore(Room::new(units, gives));
        assert!(states > 20 && ends > 1, "{units:?}: {states} states, {ends} ends");
    }
}

/// A future that waits for a count beyond the one that it has seen.
#[derive(Clone, Debug)]
struct Watcher {
    id: Option<WaiterId>,
    status: Status,
}

/// Events, each of which wakes all that wait.
#[derive(Clone, Debug)]
struct Events {
    count: u32,
    list: WaitList,
    /// Each waits for the first event, and those that are done for one more.
    watchers: Vec<Watcher>,
    /// Threads that wake: the mark, the waker that was taken, and how many it has taken.
    wakes: Vec<(Option<Mark>, Option<usize>, usize)>,
    again: u32,
    drops: u32,
}

impl Events {
    fn poll(&mut self, who: usize) {
        let watcher = &mut self.watchers[who];
        if self.count > 0 {
            if let Some(id) = watcher.id.take() {
                drop(self.list.leave(id));
            }
            watcher.status = Status::Done;
        } else {
            drop(self.list.register(&mut watcher.id, Waiter::foreground(&waker(who)), 1));
            watcher.status = Status::Waiting;
        }
    }
}

impl Explored for Events {
    fn steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |act: &dyn Fn(&mut Self)| {
            let mut state = self.clone();
            act(&mut state);
            next.push(state);
        };
        for who in 0..self.watchers.len() {
            match self.watchers[who].status {
                Status::Ready => step(&|state| state.poll(who)),
                // It waits for one more event, which never comes, while the wakers are at work.
                Status::Done if self.again > 0 => step(&|state| {
                    state.again -= 1;
                    let id = &mut state.watchers[who].id;
                    drop(state.list.register(id, Waiter::foreground(&waker(who)), 1));
                }),
                Status::Waiting if self.drops > 0 => step(&|state| {
                    state.drops -= 1;
                    let Watcher { id, status } = &mut state.watchers[who];
                    *status = Status::Dropped;
                    if let Some(id) = id.take() {
                        drop(state.list.leave(id));
                    }
                }),
                _ => {}
            }
        }
        for thread in 0..self.wakes.len() {
            match self.wakes[thread] {
                // The event comes.
                (None, ..) => step(&|state| {
                    state.count += 1;
                    let mark = state.list.mark();
                    let taken = state.list.pop(mark).as_ref().map(number);
                    state.wakes[thread] = (Some(mark), taken, 1);
                }),
                // One is woken, and the next taken.
                (Some(mark), Some(who), count) => step(&|state| {
                    if state.watchers[who].status == Status::Waiting {
                        state.watchers[who].status = Status::Ready;
                    }
                    let taken = state.list.pop(mark).as_ref().map(number);
                    assert!(count <= state.watchers.len(), "a wake-up of all takes no more than there were");
                    state.wakes[thread] = (Some(mark), taken, count + 1);
                }),
                (Some(_), None, _) => {}
            }
        }
        let idle = self.watchers.iter().all(|watcher| watcher.status != Status::Ready);
        if idle && self.wakes.iter().all(|(mark, taken, _)| mark.is_some() && taken.is_none()) {
            self.check_end();
        }
        next
    }

    fn check_end(&self) {
        assert!(self.watchers.iter().all(|watcher| watcher.status != Status::Waiting), "an event is lost: {self:?}");
    }
}

#[test]
fn no_interleaving_loses_a_wake_up_of_all() {
    // Miri takes minutes for more.
    let (most, futures) = if cfg!(miri) { (1, 2) } else { (2, 3) };
    for threads in 1..=most {
        let watchers = std::vec![Watcher { id: None, status: Status::Ready }; futures];
        let wakes = Vec::from([(None, None, 0)]).repeat(threads);
        let (states, _) = explore(Events { count: 0, list: WaitList::new(), watchers, wakes, again: 2, drops: 1 });
        assert!(states > 50, "{threads} threads: {states} states");
    }
}

/// Unparks a thread.
struct Unpark(thread::Thread, AtomicUsize);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Release);
        self.0.unpark();
    }
}

#[test]
fn waking_from_any_thread_works() {
    const UNITS: u32 = if cfg!(miri) { 4 } else { 200 };
    let room = Arc::new(Mutex::new((0_u32, WaitList::new())));
    let give = |room: &Mutex<(u32, WaitList)>, units: u32, leaves: Option<WaiterId>| {
        let mut inner = room.lock().unwrap();
        inner.0 += units;
        let own = leaves.and_then(|id| inner.1.leave(id));
        let free = inner.0;
        let next = inner.1.wake_first(|units| units <= free);
        drop(inner);
        drop(own);
        next.into_iter().for_each(Waker::wake);
    };
    let senders: Vec<_> = (1..=2)
        .map(|units| {
            let room = Arc::clone(&room);
            thread::spawn(move || {
                let unpark = Arc::new(Unpark(thread::current(), AtomicUsize::new(0)));
                let waker = Waker::from(Arc::clone(&unpark));
                for _ in 0..UNITS / units {
                    let mut id = None;
                    loop {
                        let wakes = unpark.1.load(Ordering::Acquire);
                        let waiter = Waiter::foreground(&waker);
                        let mut inner = room.lock().unwrap();
                        if inner.1.first().map(|(first, _)| first) == id && inner.0 >= units {
                            inner.0 -= units;
                            break;
                        }
                        let replaced = inner.1.register(&mut id, waiter, units);
                        drop(inner);
                        drop(replaced);
                        while unpark.1.load(Ordering::Acquire) == wakes {
                            thread::park();
                        }
                    }
                    give(&room, 0, id);
                }
            })
        })
        .collect();
    let givers: Vec<_> = (0..2)
        .map(|_| {
            let room = Arc::clone(&room);
            thread::spawn(move || (0..UNITS).for_each(|_| give(&room, 1, None)))
        })
        .collect();
    givers.into_iter().chain(senders).for_each(|thread| thread.join().unwrap());
    let inner = room.lock().unwrap();
    assert_eq!((inner.0, inner.1.len()), (0, 0));
}
