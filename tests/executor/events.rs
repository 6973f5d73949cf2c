//! Event channels: who is woken, by what, and at what cost.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use domu::DomainId;
use domu::eventchn::{self, Abi, Binding, ErrorKind};
use domu::executor::{activity, spawn, yield_now};
use domu::sim::abi::event_channel::virq;
use domu::time::{self, Elapsed};

use crate::{BOTH, MS, on, run};

#[test]
fn events_are_counted_whenever_they_come() {
    for abi in BOTH {
        let report = run(on(abi).offer_port(3, 17), async |_| {
            let port = eventchn::bind_interdomain(DomainId(3), 17)?;
            assert_eq!(port.binding(), Ok(Binding::Interdomain(DomainId(3), 17)));
            // The one that comes with the binding.
            assert_eq!(port.after(0).await, Ok(1));
            port.notify()?;
            Ok(())
        });
        assert_eq!(report.sent, [(3, 17)]);
    }
}

#[test]
fn an_event_wakes_an_idle_domain_once_and_costs_no_hypercall() {
    for abi in BOTH {
        let guest = on(abi).after(5 * MS, |outside| outside.notify(4)).after(9 * MS, |outside| outside.notify(4));
        let report = run(guest, async |_| {
            let port = eventchn::alloc_unbound(DomainId(5))?;
            assert_eq!((port.number(), port.binding()), (4, Ok(Binding::Unbound(DomainId(5)))));
            assert_eq!(port.after(0).await, Ok(1));
            let before = activity();
            assert_eq!(port.after(1).await, Ok(2));
            let after = activity();
            assert_eq!((after.halts - before.halts, after.turns - before.turns), (1, 2));
            Ok(())
        });
        assert_eq!(report.halts, 2);
        // Boot's six, the timer's port, the port, its status, the callback, closing the port, and the end; beside them
        // FIFO's two pages, or that it is refused.
        let pages = if abi == Abi::Fifo { 2 } else { 1 };
        assert_eq!(report.hypercalls.len(), 12 + pages, "{:?}", report.hypercalls);
    }
}

#[test]
fn an_event_between_two_waits_is_not_lost() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let port = eventchn::bind_ipi()?;
            let mut seen = 0;
            for _ in 0..100 {
                port.notify()?;
                yield_now().await;
                seen = port.after(seen).await.unwrap();
            }
            assert_eq!((seen, port.count()), (100, 100));
            // A wait that was given up takes nothing away.
            assert_eq!(time::timeout(MS, port.after(seen)).await, Err(Elapsed));
            port.notify()?;
            assert_eq!(port.after(seen).await, Ok(101));
            Ok(())
        });
    }
}

#[test]
fn several_wait_for_one_port() {
    for abi in BOTH {
        run(on(abi).after(MS, |outside| outside.notify(4)), async |_| {
            let port = Rc::new(eventchn::alloc_unbound(DomainId(1))?);
            let tasks: Vec<_> = (0..3)
                .map(|_| {
                    let port = Rc::clone(&port);
                    spawn(async move { port.after(0).await })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await, Ok(1));
            }
            Ok(())
        });
    }
}

#[test]
fn who_gives_up_a_wait_takes_nothing_from_others() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let port = Rc::new(eventchn::bind_ipi()?);
            for given_up in [[0, 1], [0, 2], [1, 2]] {
                let seen = port.count();
                let mut tasks: Vec<_> = (0..3)
                    .map(|_| {
                        let port = Rc::clone(&port);
                        Some(spawn(async move { port.after(seen).await }))
                    })
                    .collect();
                // All wait.
                yield_now().await;
                for index in given_up {
                    tasks[index] = None;
                }
                yield_now().await;
                port.notify()?;
                for task in tasks.into_iter().flatten() {
                    assert_eq!(task.await, Ok(seen + 1));
                }
            }
            Ok(())
        });
    }
}

#[test]
fn who_is_woken_finds_all_that_came_in_the_turn() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let ports = [Rc::new(eventchn::bind_ipi()?), Rc::new(eventchn::bind_ipi()?)];
            let tasks = [0, 1].map(|mine| {
                let ports = ports.clone();
                spawn(async move {
                    ports[mine].after(0).await.unwrap();
                    ports.map(|port| port.count())
                })
            });
            yield_now().await;
            for port in &ports {
                port.notify()?;
            }
            for task in tasks {
                assert_eq!(task.await, [1, 1]);
            }
            Ok(())
        });
    }
}

#[test]
fn a_storm_from_one_port_starves_nobody() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let storm = Rc::new(eventchn::bind_ipi()?);
            let quiet = eventchn::bind_ipi()?;
            // Whoever handles it sends the next one: it is pending in every turn.
            let again = Rc::clone(&storm);
            spawn(async move {
                let mut seen = 0;
                loop {
                    let _ = again.notify();
                    seen = again.after(seen).await.unwrap();
                }
            })
            .detach();
            for round in 0..if cfg!(miri) { 5 } else { 50 } {
                quiet.notify()?;
                let turns = activity().turns;
                assert_eq!(quiet.after(round).await, Ok(round + 1));
                assert!(activity().turns - turns <= 3);
            }
            time::sleep(if cfg!(miri) { MS / 10 } else { MS }).await;
            // One that nobody takes note of is delivered once, however often it is sent.
            let ignored = eventchn::bind_ipi()?;
            for _ in 0..10 {
                ignored.notify()?;
                yield_now().await;
                yield_now().await;
            }
            assert_eq!(ignored.count(), 1);
            assert_eq!(ignored.after(1).await, Ok(2), "what came meanwhile");
            // Whoever asks for the count has taken note, too.
            ignored.notify()?;
            yield_now().await;
            yield_now().await;
            assert_eq!(ignored.count(), 3);
            Ok(())
        });
    }
}

#[test]
fn a_domain_talks_to_itself() {
    for abi in BOTH {
        run(on(abi), async |domain| {
            let one = eventchn::alloc_unbound(DomainId::SELF)?;
            let other = eventchn::bind_interdomain(DomainId::SELF, one.number())?;
            assert_eq!(other.after(0).await, Ok(1));
            let (mut seen, mut answered) = (0, 1);
            for _ in 0..200 {
                other.notify()?;
                seen = one.after(seen).await.unwrap();
                one.notify()?;
                answered = other.after(answered).await.unwrap();
            }
            assert_eq!((seen, answered), (200, 201));
            drop(one);
            // The peer is gone: its end is unbound, and what is sent is swallowed.
            assert_eq!(other.binding(), Ok(Binding::Unbound(domain.id())));
            other.notify()?;
            Ok(())
        });
    }
}

#[test]
fn what_xen_refuses_is_an_error() {
    for abi in BOTH {
        run(on(abi).port_limit(7), async |_| {
            assert_eq!(eventchn::bind_interdomain(DomainId(9), 1).unwrap_err(), ErrorKind::NoPeer);
            let ports = [eventchn::bind_ipi()?, eventchn::bind_ipi()?, eventchn::bind_virq(1)?];
            assert_eq!(eventchn::bind_ipi().unwrap_err(), ErrorKind::NoPort);
            assert_eq!(ports[2].notify().unwrap_err(), ErrorKind::Refused(domu::sim::abi::errno::Errno::EINVAL));
            drop(ports);
            let debug = eventchn::bind_virq(1)?;
            assert_eq!(eventchn::bind_virq(1).unwrap_err(), ErrorKind::NoInterrupt);
            assert_eq!(debug.binding(), Ok(Binding::Virq(1)));
            Ok(())
        });
    }
}

#[test]
fn a_virtual_interrupt_arrives() {
    for abi in BOTH {
        run(on(abi).after(5 * MS, |outside| outside.raise_virq(virq::DEBUG)), async |_| {
            let port = eventchn::bind_virq(virq::DEBUG)?;
            assert_eq!(port.after(0).await, Ok(1));
            Ok(())
        });
    }
}

#[test]
fn a_number_that_is_used_again_has_no_past() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let first = eventchn::bind_ipi()?;
            let number = first.number();
            first.notify()?;
            yield_now().await;
            first.notify()?;
            drop(first);
            let second = eventchn::bind_ipi()?;
            assert_eq!((second.number(), second.count()), (number, 0));
            assert_eq!(time::timeout(MS, second.after(0)).await, Err(Elapsed));
            Ok(())
        });
    }
}

#[test]
fn many_ports_work() {
    const LIMIT: u32 = if cfg!(miri) { 200 } else { 4096 };
    for abi in BOTH {
        run(on(abi).port_limit(LIMIT), async |_| {
            let mut ports = Vec::new();
            let end = loop {
                match eventchn::bind_ipi() {
                    Ok(port) => ports.push(port),
                    Err(error) => break error,
                }
            };
            assert_eq!((ports.len() as u32, end.kind()), (LIMIT - 4, ErrorKind::NoPort));
            for port in &ports {
                port.notify()?;
            }
            for port in &ports {
                assert_eq!(port.after(0).await, Ok(1));
            }
            Ok(())
        });
    }
}

#[test]
fn events_and_timers_come_to_a_busy_domain_in_their_order() {
    const UNIT: Duration = Duration::from_micros(if cfg!(miri) { 100 } else { 1000 });
    for abi in BOTH {
        let guest = on(abi).after(9 * UNIT, |outside| outside.notify(4)).after(5 * UNIT, |outside| outside.notify(5));
        run(guest, async |_| {
            let (late, early) = (eventchn::alloc_unbound(DomainId(1))?, eventchn::alloc_unbound(DomainId(1))?);
            let busy = spawn(async {
                loop {
                    // Time passes on the simulated clock when somebody looks at it.
                    let _ = time::now();
                    yield_now().await;
                }
            });
            let start = time::now();
            assert_eq!(early.after(0).await, Ok(1));
            assert!((4 * UNIT..6 * UNIT).contains(&start.elapsed()) && late.count() == 0);
            assert_eq!(late.after(0).await, Ok(1));
            time::sleep(UNIT).await;
            assert_eq!(activity().halts, 0);
            drop(busy);
            Ok(())
        });
    }
}

/// A waker that owns what waits with it: dropping the waker drops a sleep and a port.
struct Owner(std::sync::Mutex<Option<Box<dyn std::any::Any + Send>>>);

impl std::task::Wake for Owner {
    fn wake(self: std::sync::Arc<Self>) {}
}

#[test]
fn a_waker_may_own_what_waits() {
    for abi in BOTH {
        run(on(abi), async |_| {
            let port = eventchn::bind_ipi()?;
            let (mut sleep, mut after) = (Box::pin(time::sleep(MS)), Box::pin(port.after(0)));
            let owner = std::sync::Arc::new(Owner(std::sync::Mutex::new(None)));
            let waker = std::task::Waker::from(std::sync::Arc::clone(&owner));
            let mut context = std::task::Context::from_waker(&waker);
            let mut owned = Box::pin(time::sleep(1000 * MS));
            assert!(owned.as_mut().poll(&mut context).is_pending());
            assert!(sleep.as_mut().poll(&mut context).is_pending() && after.as_mut().poll(&mut context).is_pending());
            *owner.0.lock().unwrap() = Some(Box::new(owned));
            drop((waker, owner));
            // The last waker, and with it the sleep that it owns, goes where another takes its place.
            poll_fn(|context| {
                assert!(after.as_mut().poll(context).is_pending());
                sleep.as_mut().poll(context)
            })
            .await;
            Ok(())
        });
    }
}
