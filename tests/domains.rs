//! Several domains on one simulated host: our code at both ends of event channels.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domu::eventchn::{self, Binding, Error, ErrorKind, Port, Priority};
use domu::executor::{spawn, yield_now};
use domu::lifecycle::{self, Reason};
use domu::sim::abi::errno::Errno;
use domu::sim::{Backend, End, Guest, Host, Report};
use domu::time::{self, Elapsed, Sleep};
use domu::{Domain, DomainId};

const MS: Duration = Duration::from_millis(1);

/// The first port that a domain makes: the console and the timer have those before.
const FIRST: u32 = 4;

/// How many schedules are tried: under Miri one, as it takes seconds there to boot a domain.
const SEEDS: u64 = if cfg!(miri) { 1 } else { 300 };

/// Binds to a port that the peer has or will have.
async fn connect(peer: u16, port: u32) -> Result<Port, Error> {
    loop {
        match eventchn::bind_interdomain(DomainId(peer), port) {
            Err(error) if error == ErrorKind::NoPeer => time::sleep(MS).await,
            bound => return bound,
        }
    }
}

/// Runs domains whose mains must come to their ends.
fn run(host: Host<'_>) -> Vec<Report> {
    host.run().into_iter().map(Report::powered_off).collect()
}

/// Two domains that answer each other so many times.
fn ping_pong<'a>(host: Host<'a>, rounds: u64) -> Host<'a> {
    host.domain(1, Guest::new(), async move |_| -> domu::Result {
        let port = eventchn::alloc_unbound(DomainId(2))?;
        for round in 0..rounds {
            assert_eq!(port.after(round).await, Ok(round + 1));
            port.notify()?;
        }
        Ok(())
    })
    .domain(2, Guest::new(), async move |_| -> domu::Result {
        let port = connect(1, FIRST).await?;
        // The one that comes with the binding.
        assert_eq!(port.after(0).await, Ok(1));
        for round in 1..=rounds {
            port.notify()?;
            assert_eq!(port.after(round).await, Ok(round + 1));
        }
        Ok(())
    })
}

#[test]
fn every_event_of_a_ping_pong_arrives_once() {
    const ROUNDS: u64 = if cfg!(miri) { 5 } else { 30 };
    let events = |reports: Vec<Report>| {
        assert_eq!(reports[0].sent, [(2, FIRST)].repeat(ROUNDS as usize));
        assert_eq!(reports[1].sent, [(1, FIRST)].repeat(ROUNDS as usize));
    };
    if !cfg!(miri) {
        events(run(ping_pong(Host::new(), ROUNDS)));
    }
    for seed in 0..SEEDS {
        events(run(ping_pong(Host::new().seed(seed), ROUNDS)));
    }
}

#[test]
fn a_seed_is_a_schedule() {
    let trace = |host| format!("{:?}", run(ping_pong(host, 5)));
    assert_eq!(trace(Host::new()), trace(Host::new()));
    let mut traces: Vec<_> = (0..if cfg!(miri) { 2 } else { 20 }).map(|seed| trace(Host::new().seed(seed))).collect();
    assert_eq!(traces[0], trace(Host::new().seed(0)));
    let seeds = traces.len();
    traces.sort();
    traces.dedup();
    assert!(traces.len() > seeds / 2, "{} schedules of {seeds} seeds", traces.len());
}

/// Sends events in bursts while it receives those of its peer: `made` counts what it sends, before each event.
async fn exchange(port: Port, made: &AtomicU64, peers: &AtomicU64, events: u64, burst: u64) -> domu::Result {
    let (mut seen, mut sent) = (0, 0);
    while sent < events || peers.load(Ordering::SeqCst) < events {
        for _ in 0..burst.min(events - sent) {
            made.fetch_add(1, Ordering::SeqCst);
            port.notify()?;
            sent += 1;
        }
        // What has been counted is announced by an event that comes after: a wait ends, or everything has been seen.
        if sent == events && peers.load(Ordering::SeqCst) < events {
            seen = port.after(seen).await.unwrap();
        } else {
            yield_now().await;
            seen = port.count();
        }
    }
    Ok(())
}

/// Two domains that send each other so many events, in bursts, without waiting for answers.
fn exchange_events(host: Host<'_>, events: u64, bursts: [u64; 2]) -> Vec<Report> {
    let (one, two) = (AtomicU64::new(0), AtomicU64::new(0));
    let reports = run(host
        .domain(1, Guest::new(), async |_| -> domu::Result {
            let port = eventchn::alloc_unbound(DomainId(2))?;
            // The peer is there, so that what is sent is not swallowed.
            port.after(0).await.unwrap();
            exchange(port, &one, &two, events, bursts[0]).await
        })
        .domain(2, Guest::new(), async |_| -> domu::Result {
            exchange(connect(1, FIRST).await?, &two, &one, events, bursts[1]).await
        }));
    assert_eq!([one, two].map(AtomicU64::into_inner), [events; 2]);
    reports
}

#[test]
fn no_schedule_loses_an_event_among_many() {
    // Nothing but the events ends the waits: one that is lost leaves both asleep, which fails the test.
    for seed in 0..SEEDS {
        exchange_events(Host::new().seed(seed), if cfg!(miri) { 10 } else { 60 }, [1 + seed % 3, 1 + seed % 5]);
    }
}

#[test]
fn a_hundred_thousand_events() {
    // Half of them with an answer each, for which the threads take turns; half in bursts, which coalesce.
    const HALF: u64 = if cfg!(miri) { 20 } else { 25_000 };
    let answered = run(ping_pong(Host::new(), HALF));
    let burst = exchange_events(Host::new().seed(0), HALF, [7, 5]);
    let sent = |reports: &[Report]| reports.iter().map(|report| report.sent.len() as u64).sum::<u64>();
    assert_eq!(sent(&answered), 2 * HALF);
    // The last one may go to a port whose peer has counted it already, and ended.
    assert!((2 * HALF - 1..=2 * HALF).contains(&sent(&burst)), "{}", sent(&burst));
}

#[test]
fn several_channels_of_three_domains_do_not_mix() {
    const EACH: u32 = 3;
    for seed in 0..SEEDS / 10 + 1 {
        let client = |number: u16| {
            async move |_: Domain| -> domu::Result {
                let mut ports = Vec::new();
                for index in 0..EACH {
                    let port = connect(1, FIRST + EACH * u32::from(number - 2) + index).await?;
                    assert_eq!(port.after(0).await, Ok(1));
                    ports.push(port);
                }
                // Each channel has as many rounds as its index says, in turns.
                for round in 1..=u64::from(EACH) {
                    for port in &ports[round as usize - 1..] {
                        port.notify()?;
                        assert_eq!(port.after(round).await, Ok(round + 1));
                    }
                }
                Ok(())
            }
        };
        run(Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async |_| -> domu::Result {
                let peers = (0..2 * EACH).map(|index| DomainId(2 + (index / EACH) as u16));
                let ports = peers.map(eventchn::alloc_unbound).collect::<Result<Vec<_>, _>>()?;
                let tasks: Vec<_> = (0..)
                    .zip(ports)
                    .map(|(index, port)| {
                        spawn(async move {
                            let rounds = u64::from(index % EACH + 1);
                            for round in 0..rounds {
                                assert_eq!(port.after(round).await, Ok(round + 1));
                                port.notify()?;
                            }
                            Ok::<_, Error>(())
                        })
                    })
                    .collect();
                for task in tasks {
                    task.await?;
                }
                Ok(())
            })
            .domain(2, Guest::new(), client(2))
            .domain(3, Guest::new(), client(3)));
    }
}

#[test]
fn a_peer_that_vanishes_leaves_an_unbound_port() {
    type Main = fn(Port) -> domu::Result;
    let ways: [(Main, Reason); 3] = [
        (|_| Ok(()), Reason::Poweroff),
        (|_| Err(Error::from(ErrorKind::NoPort).into()), Reason::Crash),
        (|_| lifecycle::end(Reason::Reboot), Reason::Reboot),
    ];
    // Miri need not see all ways.
    for (seed, (way, reason)) in (0..).zip(ways).skip(if cfg!(miri) { 2 } else { 0 }) {
        let reports = Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async |_| -> domu::Result {
                let port = eventchn::alloc_unbound(DomainId(2))?;
                let mut seen = 0;
                let waited = loop {
                    match time::timeout(50 * MS, port.after(seen)).await {
                        Ok(count) => seen = count.unwrap(),
                        late => break late,
                    }
                };
                assert_eq!((waited, seen), (Err(Elapsed), 3));
                assert_eq!(port.binding(), Ok(Binding::Unbound(DomainId(2))));
                assert_eq!(port.notify(), Ok(()));
                assert_eq!(eventchn::bind_interdomain(DomainId(2), FIRST).unwrap_err(), ErrorKind::NoPeer);
                Ok(())
            })
            .domain(2, Guest::new(), async move |_| -> domu::Result {
                let port = connect(1, FIRST).await?;
                for _ in 0..3 {
                    port.notify()?;
                    time::sleep(2 * MS).await;
                }
                way(port)
            })
            .run();
        assert_eq!(reports[1].end, End::Shutdown(reason));
        assert_eq!(reports[0].end, End::Shutdown(Reason::Poweroff), "{}", reports[0].debug_text());
        assert!(reports[0].sent.is_empty(), "what is sent on an unbound port goes nowhere");
    }
}

#[test]
fn a_port_that_its_peer_has_closed_is_for_the_peer_again() {
    run(Host::new()
        .domain(1, Guest::new(), async |_| -> domu::Result {
            let port = eventchn::alloc_unbound(DomainId(2))?;
            assert_eq!(port.after(0).await, Ok(1));
            assert_eq!(port.binding(), Ok(Binding::Interdomain(DomainId(2), FIRST)));
            assert_eq!(port.after(1).await, Ok(2));
            Ok(())
        })
        .domain(2, Guest::new(), async |_| -> domu::Result {
            let first = connect(1, FIRST).await?;
            first.notify()?;
            time::sleep(MS).await;
            drop(first);
            let second = eventchn::bind_interdomain(DomainId(1), FIRST)?;
            assert_eq!(second.binding(), Ok(Binding::Interdomain(DomainId(1), FIRST)));
            second.notify()?;
            Ok(())
        }));
}

#[test]
fn ports_are_bound_by_whom_they_are_for_and_once() {
    let reports = run(Host::new()
        .domain(1, Guest::new(), async |domain| -> domu::Result {
            assert_eq!(domain.id(), DomainId(1));
            let port = eventchn::alloc_unbound(DomainId(2))?;
            time::sleep(20 * MS).await;
            // Refused ones have changed nothing, and made no event.
            assert_eq!((port.binding(), port.count()), (Ok(Binding::Interdomain(DomainId(2), FIRST)), 0));
            // Nor can it be bound from here.
            assert_eq!(eventchn::bind_interdomain(DomainId(1), FIRST).unwrap_err(), ErrorKind::NoPeer);
            Ok(())
        })
        .domain(2, Guest::new(), async |_| -> domu::Result {
            time::sleep(10 * MS).await;
            let bind = |domain, port| eventchn::bind_interdomain(DomainId(domain), port);
            // No such port, a port of the toolstack's, no such domain, and itself.
            for (domain, port) in [(1, FIRST + 1), (1, 2), (1, u32::MAX), (9, FIRST), (2, FIRST)] {
                assert_eq!(bind(domain, port).unwrap_err(), ErrorKind::NoPeer, "port {port} of domain {domain}");
            }
            let bound = bind(1, FIRST)?;
            assert_eq!((bound.number(), bound.count()), (FIRST, 0));
            assert_eq!(bind(1, FIRST).unwrap_err(), ErrorKind::NoPeer, "bound already");
            // The event that comes with the binding is there at once, though only a turn of the main loop delivers it.
            yield_now().await;
            yield_now().await;
            assert_eq!(bound.count(), 1);
            time::sleep(20 * MS).await;
            Ok(())
        })
        .domain(3, Guest::new(), async |_| -> domu::Result {
            // Before the one it is for has bound it, and after.
            for _ in 0..2 {
                time::sleep(8 * MS).await;
                assert_eq!(eventchn::bind_interdomain(DomainId(1), FIRST).unwrap_err(), ErrorKind::NoPeer);
            }
            Ok(())
        }));
    assert!(reports.iter().all(|report| report.sent.is_empty()));
}

#[test]
fn a_storm_from_one_domain_starves_nobody() {
    // Under Miri it is short, and of few events: whoever makes it looks long at the clock.
    const ROUNDS: u64 = if cfg!(miri) { 1 } else { 30 };
    let look = if cfg!(miri) { MS / 20 } else { MS / 1000 };
    for seed in 0..SEEDS.min(10) {
        let over = AtomicU64::new(0);
        let reports = run(Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async |_| -> domu::Result {
                let (storm, ignored) = (eventchn::alloc_unbound(DomainId(2))?, eventchn::alloc_unbound(DomainId(2))?);
                let quiet = eventchn::alloc_unbound(DomainId(3))?;
                let handled = Rc::new(Cell::new(0));
                let count = Rc::clone(&handled);
                spawn(async move {
                    loop {
                        count.set(storm.after(count.get()).await.unwrap());
                    }
                })
                .detach();
                // The peer's first event.
                assert_eq!(quiet.after(0).await, Ok(1));
                for round in 1..=ROUNDS {
                    quiet.notify()?;
                    let answer = time::timeout(20 * MS, quiet.after(round)).await;
                    assert_eq!(answer, Ok(Ok(round + 1)));
                }
                over.store(1, Ordering::SeqCst);
                assert!(handled.get() > ROUNDS, "{} events of the storm", handled.get());
                assert_eq!(ignored.count(), 1, "of which nobody took note");
                Ok(())
            })
            .domain(2, Guest::new().clock_look(look), async |_| -> domu::Result {
                let (storm, ignored) = (connect(1, FIRST).await?, connect(1, FIRST + 1).await?);
                let start = time::now();
                while over.load(Ordering::SeqCst) == 0 {
                    assert!(start.elapsed() < 1000 * MS, "the others sleep through it");
                    storm.notify()?;
                    ignored.notify()?;
                }
                Ok(())
            })
            .domain(3, Guest::new(), async |_| -> domu::Result {
                // The storm is in full course by then.
                time::sleep(5 * MS).await;
                let port = connect(1, FIRST + 2).await?;
                assert_eq!(port.after(0).await, Ok(1));
                for round in 1..=ROUNDS + 1 {
                    port.notify()?;
                    if time::timeout(100 * MS, port.after(round)).await.is_err() {
                        assert_eq!(round, ROUNDS + 1, "the peer has ended, and not before");
                    }
                }
                Ok(())
            }));
        assert!(reports[1].sent.len() > 60);
    }
}

#[test]
fn timers_and_peers_of_the_test_share_one_clock() {
    for seed in 0..if cfg!(miri) { 1 } else { 30 } {
        let order = Mutex::new(Vec::new());
        let ticks = async |domain: u64, period: u32, count| -> domu::Result {
            let mut interval = time::interval(period * MS);
            for _ in 0..count {
                interval.tick().await;
                order.lock().unwrap().push((time::now(), domain));
            }
            Ok(())
        };
        let played = Guest::new().offer_port(9, 5).after(11 * MS, |outside| outside.notify(FIRST));
        let reports = run(Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async |_| ticks(1, 3, 5).await)
            .domain(2, Guest::new(), async |_| ticks(2, 4, 5).await)
            .domain(3, played, async |_| -> domu::Result {
                let port = eventchn::bind_interdomain(DomainId(9), 5)?;
                assert_eq!(port.after(0).await, Ok(1));
                assert_eq!(port.after(1).await, Ok(2));
                order.lock().unwrap().push((time::now(), 3));
                Ok(())
            }));
        let order = order.into_inner().unwrap();
        let times: Vec<_> = order.iter().map(|(when, _)| *when).collect();
        assert!(times.is_sorted(), "{order:?}");
        // At 3 4 6 8 9 11 12 12 15 16 20 ms: those of one moment in either order.
        let mut who: Vec<_> = order.iter().map(|(_, who)| *who).collect();
        who[6..8].sort();
        assert_eq!(who, [1, 2, 1, 2, 1, 3, 1, 2, 1, 2, 2]);
        assert!((20_000_000..22_000_000).contains(&reports[1].elapsed_ns), "{} ns", reports[1].elapsed_ns);
    }
}

#[test]
fn a_domain_that_polls_lets_others_run() {
    let reports = run(Host::new()
        // Its end polls for two seconds.
        .domain(1, Guest::new().backend(Backend::StopsAfter(0)), async |domain| -> domu::Result {
            domain.console().write_all(b"nobody reads it").await?;
            Ok(())
        })
        .domain(2, Guest::new(), async |_| -> domu::Result {
            for _ in 0..5 {
                time::sleep(100 * MS).await;
            }
            Ok(())
        }));
    assert!(reports[0].elapsed_ns > 2_000_000_000 && reports[1].elapsed_ns < 600_000_000);
}

#[test]
fn a_domain_that_only_looks_lets_others_run() {
    let told = AtomicU64::new(0);
    run(Host::new()
        .domain(1, Guest::new(), async |_| -> domu::Result {
            while told.load(Ordering::SeqCst) == 0 {
                yield_now().await;
            }
            Ok(())
        })
        .domain(2, Guest::new(), async |_| -> domu::Result {
            // Short, since each step of the other takes little of it.
            time::sleep(MS / 50).await;
            told.store(1, Ordering::SeqCst);
            Ok(())
        }));
}

/// What the test fails with.
fn failure(host: Host<'_>) -> String {
    let payload = catch_unwind(AssertUnwindSafe(|| host.run())).unwrap_err();
    payload.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn a_panic_in_one_domain_ends_the_test() {
    for seed in 0..if cfg!(miri) { 1 } else { 50 } {
        let host = Host::new()
            .seed(seed)
            .domain(1, Guest::new(), async |_| -> domu::Result {
                let port = eventchn::alloc_unbound(DomainId(3))?;
                spawn(async move {
                    port.after(1).await.unwrap();
                })
                .await;
                Ok(())
            })
            .domain(2, Guest::new(), async |_| -> domu::Result {
                // Miri is slow enough without one that never rests.
                while !cfg!(miri) {
                    yield_now().await;
                }
                std::future::pending().await
            })
            .domain(3, Guest::new(), async |_| -> domu::Result {
                let port = connect(1, FIRST).await?;
                port.notify()?;
                assert_eq!(port.number(), 17, "seen by the test");
                Ok(())
            })
            .domain(4, Guest::new().backend(Backend::StopsAfter(0)), async |domain| -> domu::Result {
                domain.console().write_all(b"nobody reads it").await?;
                time::sleep(1000 * MS).await;
                Ok(())
            });
        let failure = failure(host);
        assert!(failure.starts_with("domain 3: ") && failure.contains("seen by the test"), "{failure}");
    }
}

#[test]
fn domains_that_nothing_will_wake_are_told() {
    let wait = async |_: Domain| -> domu::Result {
        eventchn::bind_ipi()?.after(0).await?;
        Ok(())
    };
    let ends = async |_: Domain| -> domu::Result { Ok(()) };
    let host = Host::new().domain(5, Guest::new(), wait).domain(6, Guest::new(), ends).domain(7, Guest::new(), wait);
    let told = "the domains sleep for ever: domain 5 halts without a timer, domain 7 halts without a timer";
    assert_eq!(failure(host), told);
}

#[test]
fn a_domain_that_does_not_boot_is_no_business_of_the_others() {
    let reports = Host::new()
        .domain(1, Guest::new().without_start_info(), async |_| ())
        .domain(2, Guest::new(), async |_| time::sleep(MS).await)
        .run();
    let ends = [Reason::Crash, Reason::Poweroff].map(End::Shutdown);
    assert_eq!([reports[0].end, reports[1].end], ends);
}

/// What a test keeps of a domain.
type Kept = Rc<RefCell<Option<(Port, Pin<Box<Sleep>>)>>>;

/// Runs a guest whose main makes a port and begins a sleep, which are kept, or held against those that were kept before.
fn keep_or_compare(kept: &Kept, polled: bool) {
    let kept = Rc::clone(kept);
    Guest::new()
        .run(async move |_| -> domu::Result {
            let (port, mut sleep) = (eventchn::bind_ipi()?, Box::pin(time::sleep(5 * MS)));
            let Some((old_port, mut old_sleep)) = kept.take() else {
                assert_eq!(time::timeout(MS, sleep.as_mut()).await, Err(Elapsed));
                kept.replace(Some((port, sleep)));
                return Ok(());
            };
            let sleeper = spawn(sleep);
            yield_now().await;
            // Those of the domain before have the same number, and the same deadline.
            assert_eq!(old_port.number(), port.number());
            assert_eq!(old_port.notify().map_err(|error| error.kind()), Err(ErrorKind::Refused(Errno::ESRCH)));
            assert_eq!(old_port.binding().map_err(|error| error.kind()), Err(ErrorKind::Refused(Errno::ESRCH)));
            assert_eq!(
                old_port.set_priority(Priority::HIGHEST).map_err(|error| error.kind()),
                Err(ErrorKind::Refused(Errno::ESRCH))
            );
            drop(old_port);
            assert_eq!(port.binding(), Ok(Binding::Ipi));
            if polled {
                assert_eq!(time::timeout(MS, old_sleep.as_mut()).await, Err(Elapsed));
            }
            drop(old_sleep);
            assert_eq!(time::timeout(10 * MS, sleeper).await, Ok(()));
            Ok(())
        })
        .powered_off();
}

#[test]
fn what_is_kept_of_a_domain_does_nothing_to_the_next() {
    let kept = Rc::new(RefCell::new(None));
    for polled in [false, true] {
        if !cfg!(miri) || polled {
            keep_or_compare(&kept, polled);
            keep_or_compare(&kept, polled);
        }
    }
    keep_or_compare(&kept, false);
    // Nor is there a domain to be asked now.
    drop(kept);
}
