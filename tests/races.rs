//! Events on their way while the domain changes the port: its priority, or that there is one. By FIFO, on the simulated Xen.

use std::time::Duration;

use domu::DomainId;
use domu::eventchn::{self, Port, Priority};
use domu::executor::yield_now;
use domu::sim::Guest;
use domu::sim::access::interleave;
use domu::time;

const MS: Duration = Duration::from_millis(1);

/// Choices of places for the steps of an event, each at or behind the one before: before each of so many accesses, and when
/// the domain halts. The steps are in three groups, split in any way, and each group comes at once: more groups are tried
/// with less around them, by `tests/executor/races.rs`. Miri takes a second for a wait, and has a few choices from all over.
fn places(accesses: usize) -> impl Iterator<Item = [usize; interleave::FIFO_STEPS]> {
    let place = move |first: usize| (first..accesses).step_by(if cfg!(miri) { 4 } else { 1 }).chain([interleave::HALT]);
    let splits = (1..interleave::FIFO_STEPS)
        .flat_map(|first| (first..=interleave::FIFO_STEPS).map(move |second| (first, second)));
    let all = splits.flat_map(move |(first, second)| {
        place(0).flat_map(move |a| {
            place(a).flat_map(move |b| {
                place(b).map(move |c| {
                    core::array::from_fn(|step| {
                        if step < first {
                            a
                        } else if step < second {
                            b
                        } else {
                            c
                        }
                    })
                })
            })
        })
    });
    all.step_by(if cfg!(miri) { 99 } else { 1 })
}

/// Runs a domain with a port that nobody has taken note of: who does accesses the words of events.
fn run(main: impl AsyncFn(&Port) -> domu::Result) {
    Guest::new()
        .run(async |_| -> domu::Result {
            time::sleep(MS).await;
            main(&eventchn::bind_ipi()?).await
        })
        .powered_off();
}

/// Has an event of a port delivered, and not noted.
async fn deliver(port: &Port) -> domu::Result {
    port.notify()?;
    yield_now().await;
    Ok(())
}

/// Ends a race, in which steps were put before so many accesses.
fn end_race(accesses: usize) {
    let before = interleave::before_halt().unwrap_or(0);
    assert!(before <= accesses, "{before} accesses before the halt, of which {accesses} were tried");
    let _ = interleave::end();
}

#[test]
fn no_interleaving_loses_an_event_while_the_priority_changes() {
    const ACCESSES: usize = 16;
    run(async |look| {
        for choice in places(ACCESSES) {
            let port = eventchn::alloc_unbound(DomainId(1))?;
            deliver(look).await?;
            interleave::begin(port.number(), &choice);
            let _ = look.count();
            // Xen may have looked at the priority before: the port is in the queue of the one, and listed by the other.
            port.set_priority(Priority::HIGHEST)?;
            assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
            end_race(ACCESSES);
            yield_now().await;
            assert_eq!(port.count(), 1, "{choice:?}: counted twice");
        }
        Ok(())
    });
}

#[test]
fn no_interleaving_loses_an_event_behind_one_of_another_priority() {
    const ACCESSES: usize = 26;
    run(async |look| {
        let [before, behind, other] = [eventchn::bind_ipi()?, eventchn::bind_ipi()?, eventchn::bind_ipi()?];
        other.set_priority(Priority::LOWEST)?;
        for (seen, choice) in (0..).zip(places(ACCESSES)) {
            let port = eventchn::bind_ipi()?;
            deliver(look).await?;
            // In the middle of its queue, while the next event goes into another.
            [&before, &port, &behind, &other].into_iter().try_for_each(Port::notify)?;
            interleave::begin(port.number(), &choice);
            let _ = look.count();
            port.set_priority(Priority::LOWEST)?;
            assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
            let coalesced = interleave::coalesced();
            let start = time::now();
            let second = time::timeout(10 * MS, port.after(1)).await;
            end_race(ACCESSES);
            // The timer's event would bring a lost one along.
            let came = second.is_ok() && start.elapsed() < 5 * MS;
            assert!(came || second.is_err() && coalesced, "{choice:?}: the second event is lost");
            assert!(port.count() <= 2, "{choice:?}: an event is counted twice");
            assert_eq!([&before, &behind, &other].map(Port::count), [seen + 1; 3], "{choice:?}");
        }
        Ok(())
    });
}

#[test]
fn no_interleaving_brings_an_event_of_a_closed_port_or_loses_that_of_another() {
    const ACCESSES: usize = 16;
    run(async |look| {
        let [before, behind] = [eventchn::bind_ipi()?, eventchn::bind_ipi()?];
        for (seen, choice) in (0..).zip(places(ACCESSES)) {
            let port = eventchn::bind_ipi()?;
            let number = port.number();
            deliver(look).await?;
            before.notify()?;
            interleave::begin(number, &choice);
            let _ = look.count();
            drop(port);
            let _ = interleave::end();
            behind.notify()?;
            assert_eq!(behind.after(seen).await, Ok(seen + 1), "{choice:?}");
            assert_eq!(before.count(), seen + 1, "{choice:?}");
            // The queue has been read, and the number is free again.
            let port = eventchn::bind_ipi()?;
            assert_eq!((port.number(), port.count()), (number, 0), "{choice:?}");
            yield_now().await;
            assert_eq!(port.count(), 0, "{choice:?}: an event of the port before");
            port.notify()?;
            assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
        }
        Ok(())
    });
}

#[test]
fn no_interleaving_loses_an_event_while_its_page_of_words_is_added() {
    // Each choice takes a page, of which there are 127 beside the first. The steps are in two groups: before each access from
    // when the page is given to Xen.
    const WORDS: u32 = 1024;
    const ACCESSES: usize = 20;
    let place = |first: usize| (first..ACCESSES).chain([interleave::HALT]);
    let choices = (1..interleave::FIFO_STEPS).flat_map(|split| {
        place(0).flat_map(move |a| place(a).map(move |b| core::array::from_fn(|step| if step < split { a } else { b })))
    });
    let choices: Vec<[usize; interleave::FIFO_STEPS]> = choices.collect();
    // Miri has a page alone.
    let stride = choices.len().div_ceil(if cfg!(miri) { 1 } else { 127 });
    let guest = Guest::new().port_limit(u32::MAX).offer_port(9, 5);
    guest
        .run(async |_| -> domu::Result {
            time::sleep(MS).await;
            let mut ports = Vec::new();
            for choice in choices.iter().skip(stride / 2).step_by(stride) {
                while ports.last().is_none_or(|port: &Port| port.number() % WORDS != WORDS - 1) {
                    ports.push(eventchn::bind_ipi()?);
                }
                interleave::begin(ports.len() as u32 + 4, choice);
                let port = eventchn::bind_interdomain(DomainId(9), 5)?;
                assert_eq!(port.number() % WORDS, 0);
                // The first event comes with the binding.
                assert_eq!(port.after(0).await, Ok(1), "{choice:?}");
                let coalesced = interleave::coalesced();
                let start = time::now();
                let second = time::timeout(10 * MS, port.after(1)).await;
                end_race(ACCESSES);
                let came = second.is_ok() && start.elapsed() < 5 * MS;
                assert!(came || second.is_err() && coalesced, "{choice:?}: the second event is lost");
                assert!(port.count() <= 2, "{choice:?}: an event is counted twice");
                ports.push(port);
            }
            Ok(())
        })
        .powered_off();
}
