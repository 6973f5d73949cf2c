//! Wait lists against models.

use core::task::{RawWaker, RawWakerVTable, Waker};
use std::vec::Vec;

use proptest::prelude::*;

use super::waiters::{KEPT, Mark};
use super::{Deadlines, Queue, Waiter, WaiterId, Waiters};

/// A waker that is known by a number.
pub(super) fn waker(number: usize) -> Waker {
    const VTABLE: RawWakerVTable = RawWakerVTable::new(|data| RawWaker::new(data, &VTABLE), |_| {}, |_| {}, |_| {});
    // SAFETY: the functions use no data; the pointer is a number alone.
    unsafe { Waker::from_raw(RawWaker::new(core::ptr::without_provenance(number), &VTABLE)) }
}

/// The number of a waker.
pub(super) fn number(waker: &Waker) -> usize {
    waker.data().addr()
}

fn waiter(number: usize, background: bool) -> Waiter {
    Waiter::foreground(&waker(number)).mark(background)
}

fn numbers(wakers: Option<Waker>) -> Option<usize> {
    wakers.as_ref().map(number)
}

/// A waiter as the model knows it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    id: WaiterId,
    waker: Option<usize>,
    background: bool,
    value: u64,
}

/// A step with the lists.
#[derive(Clone, Debug)]
enum Step {
    /// One of the waiters registers, in a queue if it is in none.
    Register {
        who: usize,
        queue: usize,
        background: bool,
        value: u64,
    },
    Leave {
        who: usize,
    },
    /// Marks the end of a queue, for later steps.
    Mark,
    Pop {
        queue: usize,
    },
    TakeWaker {
        who: usize,
    },
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8_usize, 0..2_usize, any::<bool>(), 0..4_u64)
            .prop_map(|(who, queue, background, value)| Step::Register { who, queue, background, value }),
        3 => (0..8_usize).prop_map(|who| Step::Leave { who }),
        1 => Just(Step::Mark),
        3 => (0..2_usize).prop_map(|queue| Step::Pop { queue }),
        2 => (0..8_usize).prop_map(|who| Step::TakeWaker { who }),
        1 => Just(Step::Close),
    ]
}

proptest! {
    #![proptest_config(crate::sim::proptest_config())]

    /// Two queues with common slots do what two lists do.
    #[test]
    fn queues_match_a_model(steps in proptest::collection::vec(step(), 0..80)) {
        let (mut waiters, mut queues) = (Waiters::new(), [Queue::new(), Queue::new()]);
        let mut model: [Vec<Known>; 2] = [Vec::new(), Vec::new()];
        let mut ids: [(usize, Option<WaiterId>); 8] = [(0, None); 8];
        let (mut mark, mut marked): (Mark, Option<WaiterId>) = (waiters.mark(), None);
        let (mut newest, mut most) = (None, 0);
        for (count, step) in steps.into_iter().enumerate() {
            let name = count + 1;
            match step {
                Step::Register { who, queue, background, value } => {
                    let (of, id) = &mut ids[who];
                    let known = model[*of].iter_mut().find(|known| Some(known.id) == *id);
                    if let Some(known) = known {
                        let replaced = queues[*of].register(&mut waiters, id, waiter(name, background), value);
                        prop_assert_eq!(numbers(replaced), known.waker.replace(name));
                        known.background = background;
                    } else {
                        *of = queue;
                        let replaced = queues[queue].register(&mut waiters, id, waiter(name, background), value);
                        prop_assert_eq!(numbers(replaced), None);
                        let id = id.expect("a registration has an id");
                        prop_assert!(newest < Some(id), "ids are given once, in order");
                        newest = Some(id);
                        model[queue].push(Known { id, waker: Some(name), background, value });
                    }
                }
                Step::Leave { who } => {
                    let (of, Some(id)) = ids[who] else { continue };
                    let place = model[of].iter().position(|known| known.id == id);
                    let known = place.map(|place| model[of].remove(place));
                    prop_assert_eq!(numbers(queues[of].leave(&mut waiters, id)), known.and_then(|known| known.waker));
                }
                Step::Mark => (mark, marked) = (waiters.mark(), newest),
                Step::Pop { queue } => {
                    let is_due = model[queue].first().is_some_and(|known| Some(known.id) <= marked);
                    let known = is_due.then(|| model[queue].remove(0));
                    let popped = queues[queue].pop(&mut waiters, mark);
                    prop_assert_eq!(numbers(popped), known.and_then(|known| known.waker));
                }
                Step::TakeWaker { who } => {
                    let (of, Some(id)) = ids[who] else { continue };
                    let known = model[of].iter_mut().find(|known| known.id == id);
                    prop_assert_eq!(numbers(waiters.take_waker(id)), known.and_then(|known| known.waker.take()));
                }
                Step::Close => {
                    let all: usize = model.iter().map(Vec::len).sum();
                    prop_assert_eq!(waiters.close().len(), all);
                    queues = [Queue::new(), Queue::new()];
                    model = [Vec::new(), Vec::new()];
                }
            }
            let all = || model.iter().flatten();
            most = most.max(all().count());
            prop_assert_eq!(waiters.len(), all().count());
            prop_assert_eq!(waiters.has_foreground(), all().any(|known| !known.background));
            prop_assert!(waiters.slots() <= most, "a slot for each waiter at most");
            for (queue, model) in queues.iter().zip(&model) {
                let first = model.first().map(|known| (known.id, known.value));
                prop_assert_eq!(queue.first(&waiters), first);
            }
            prop_assert!(all().all(|known| waiters.is_background(known.id) == known.background));
        }
        // What is left comes out in order.
        for (queue, model) in queues.iter_mut().zip(model) {
            for known in model {
                prop_assert_eq!(queue.first(&waiters).map(|(id, _)| id), Some(known.id));
                let mark = waiters.mark();
                prop_assert_eq!(numbers(queue.pop(&mut waiters, mark)), known.waker);
            }
        }
        prop_assert!(waiters.len() == 0 && !waiters.has_foreground());
    }

    /// Deadlines come in the order of time, and of arrival among equal ones.
    #[test]
    fn deadlines_match_a_model(steps in proptest::collection::vec((0..4, 0..12_usize, 0..6_u64, any::<bool>()), 0..120)) {
        let (mut deadlines, mut model) = (Deadlines::new(), Vec::<Known>::new());
        let mut ids: [Option<WaiterId>; 12] = [None; 12];
        for (count, (what, who, moment, background)) in steps.into_iter().enumerate() {
            let (name, id) = (count + 1, &mut ids[who]);
            let place = model.iter().position(|known| Some(known.id) == *id);
            match (what, place) {
                (0 | 1, Some(place)) => {
                    let replaced = deadlines.register(id, waiter(name, background), moment);
                    prop_assert_eq!(numbers(replaced), model[place].waker.replace(name));
                    model[place].background = background;
                }
                (0 | 1, None) => {
                    prop_assert!(deadlines.register(id, waiter(name, background), moment).is_none());
                    let id = id.expect("a registration has an id");
                    model.push(Known { id, waker: Some(name), background, value: moment });
                    model.sort_by_key(|known| (known.value, known.id));
                }
                (2, _) => {
                    let known = place.map(|place| model.remove(place));
                    let left = id.and_then(|id| deadlines.leave(id));
                    prop_assert_eq!(numbers(left), known.and_then(|known| known.waker));
                }
                _ => {
                    let is_due = model.first().is_some_and(|known| known.value <= moment);
                    let known = is_due.then(|| model.remove(0));
                    let popped = deadlines.pop(moment).map(|(id, waker)| (id, numbers(waker)));
                    prop_assert_eq!(popped, known.map(|known| (known.id, known.waker)));
                }
            }
            prop_assert_eq!(deadlines.first(), model.first().map(|known| known.value));
            prop_assert_eq!(deadlines.len(), model.len());
            prop_assert_eq!(deadlines.has_foreground(), model.iter().any(|known| !known.background));
        }
        for known in model {
            let popped = deadlines.pop(u64::MAX).map(|(id, waker)| (id, numbers(waker)));
            prop_assert_eq!(popped, Some((known.id, known.waker)));
        }
        prop_assert!(deadlines.pop(u64::MAX).is_none());
    }
}

#[test]
fn memory_of_many_goes_with_the_last() {
    let (mut waiters, mut queue) = (Waiters::new(), Queue::new());
    let mut ids: Vec<Option<WaiterId>> = (0..100).map(|_| None).collect();
    for round in 0..3 {
        for (name, id) in ids.iter_mut().enumerate() {
            *id = None;
            assert!(queue.register(&mut waiters, id, waiter(name, false), 0).is_none());
        }
        assert_eq!(waiters.slots(), 100, "round {round}");
        // From the middle to both ends.
        for place in (0..50).rev() {
            for place in [place, 99 - place] {
                let left = queue.leave(&mut waiters, ids[place].unwrap());
                assert_eq!(numbers(left), Some(place));
            }
        }
        assert_eq!((waiters.len(), waiters.capacity()), (0, 0));
    }
    // The memory of few stays, so that waiting again takes none.
    for _ in 0..100 {
        let mut id = None;
        assert!(queue.register(&mut waiters, &mut id, waiter(1, false), 0).is_none());
        assert!((1..=KEPT).contains(&waiters.capacity()));
        assert_eq!(numbers(queue.leave(&mut waiters, id.unwrap())), Some(1));
    }
    assert_eq!(waiters.slots(), 1);
}

#[test]
fn stale_id_names_no_later_waiter() {
    let (mut waiters, mut queue) = (Waiters::new(), Queue::new());
    let mut old = None;
    assert!(queue.register(&mut waiters, &mut old, waiter(1, false), 0).is_none());
    let old = old.unwrap();
    assert_eq!(waiters.close().len(), 1);
    let (mut queue, mut new) = (Queue::new(), None);
    assert!(queue.register(&mut waiters, &mut new, waiter(2, false), 0).is_none());
    assert!(queue.leave(&mut waiters, old).is_none() && waiters.take_waker(old).is_none());
    assert!(waiters.register(old, waker(3)).is_err());
    assert_eq!(numbers(waiters.take_waker(new.unwrap())), Some(2));
}
