//! Every interleaving of the steps by which Xen sends an event with those by which a domain waits for it.

use domu::DomainId;
use domu::eventchn::{self, Abi};
use domu::sim::access::interleave;
use domu::time;

use crate::{BOTH, MS, on, run};

/// All choices of places for the steps of an event, each at or behind the one before: before each of so many accesses, and
/// when the domain halts. Miri takes a second for a wait, and has a few choices from all over.
fn places(abi: Abi, accesses: usize) -> Vec<Vec<usize>> {
    let steps = match abi {
        Abi::TwoLevel => interleave::TWO_LEVEL_STEPS,
        Abi::Fifo => interleave::FIFO_STEPS,
        other => unreachable!("{other:?}"),
    };
    let mut all = vec![Vec::new()];
    for _ in 0..steps {
        let longer = |before: Vec<usize>| {
            let first = before.last().copied().unwrap_or(0);
            let places = (first..accesses).step_by(if cfg!(miri) { 4 } else { 1 }).chain([interleave::HALT]);
            places.map(move |next| [before.as_slice(), &[next]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    let stride = if cfg!(miri) { all.len().div_ceil(7) } else { 1 };
    all.into_iter().skip(stride / 2).step_by(stride).collect()
}

/// Ends a race. The domain must have halted within the accesses that there were places for: else there would be interleavings
/// that nobody has tried.
fn end_race(accesses: usize) {
    let before = interleave::before_halt().unwrap_or(0);
    assert!(before <= accesses, "{before} accesses before the halt, of which {accesses} were tried");
    let all = interleave::end();
    assert!(all < 60, "{all} accesses: a loop?");
}

#[test]
fn no_interleaving_loses_an_event() {
    for abi in BOTH {
        run(on(abi), async |_| {
            const ACCESSES: usize = 2;
            for choice in places(abi, ACCESSES) {
                let port = eventchn::alloc_unbound(DomainId(1))?;
                interleave::begin(port.number(), &choice);
                assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
                end_race(ACCESSES);
            }
            Ok(())
        });
    }
}

#[test]
fn no_interleaving_loses_an_event_beside_another() {
    // While the event of one port is delivered, one of another comes: in the same word of the bitmaps, or in another; by
    // queues, in the same queue.
    for (abi, distance, accesses) in [(Abi::TwoLevel, 1, 11), (Abi::TwoLevel, 70, 11), (Abi::Fifo, 1, 18)] {
        run(on(abi), async move |_| {
            let ports = (0..=distance).map(|_| eventchn::bind_ipi()).collect::<Result<Vec<_>, _>>()?;
            let (one, other) = (&ports[0], &ports[distance]);
            for (seen, choice) in (0..).zip(places(abi, accesses)) {
                one.notify()?;
                interleave::begin(other.number(), &choice);
                assert_eq!(one.after(seen).await, Ok(seen + 1), "{choice:?}");
                assert_eq!(other.after(seen).await, Ok(seen + 1), "{choice:?}");
                end_race(accesses);
            }
            Ok(())
        });
    }
}

#[test]
fn no_interleaving_loses_an_event_behind_another() {
    // The second event of a port may come before, while and after the first is delivered, and the port unmasked again. The
    // two may become one, but only if the second came before the first was taken.
    for (abi, accesses) in BOTH.into_iter().zip([11, 16]) {
        run(on(abi), async move |_| {
            // The first halt binds the timer's port, of whose accesses there are to be none later.
            time::sleep(MS).await;
            let (mut became_one, choices) = (0, places(abi, accesses));
            for choice in &choices {
                let port = eventchn::bind_ipi()?;
                port.notify()?;
                // The accesses up to here are none of the race's.
                interleave::begin(port.number(), choice);
                assert_eq!(port.after(0).await, Ok(1));
                let coalesced = interleave::coalesced();
                // Whoever has seen the first waits for the second.
                let start = time::now();
                let second = time::timeout(10 * MS, port.after(1)).await;
                end_race(accesses);
                // The timer's event would bring a lost one along.
                let in_time = second.is_err() || start.elapsed() < 5 * MS;
                assert!(in_time, "{choice:?}: the second event came with the timer");
                if second.is_err() {
                    became_one += 1;
                    assert!(coalesced, "{choice:?}: the second event came behind the first, and is lost");
                }
                assert!(port.count() <= 2, "{choice:?}: an event is counted twice");
            }
            assert!(became_one > 0 && became_one < choices.len());
            Ok(())
        });
    }
}
