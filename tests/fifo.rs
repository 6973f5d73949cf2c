//! Xen's FIFO interface for event channels on the simulated Xen: when it is used, priorities, many ports, and its refusals.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use domu::eventchn::{self, Abi, After, Error, ErrorKind, Port, Priority};
use domu::executor::{activity, spawn, yield_now};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::event_channel::{EXPAND_ARRAY, INIT_CONTROL};
use domu::sim::abi::xen::Hypercall;
use domu::sim::access::interleave;
use domu::sim::{Backend, Guest, Report};
use domu::{Domain, DomainId, time};

const MS: Duration = Duration::from_millis(1);

/// Runs a guest whose main must come to its end.
fn run<F: Future<Output = domu::Result>>(guest: Guest, main: impl FnOnce(Domain) -> F) -> Report {
    guest.run(main).powered_off()
}

/// How often a guest has called an operation on event channels.
fn calls(report: &Report, operation: u64) -> usize {
    report.calls(Hypercall::EventChannel, operation)
}

#[test]
fn it_is_chosen_with_the_first_port_and_costs_nothing_before() {
    let report = run(Guest::new(), async |domain| {
        assert_eq!((eventchn::abi(), eventchn::abi().ports()), (Abi::TwoLevel, 4096));
        domain.console().write_all(b"no port\n").await?;
        Ok(())
    });
    assert_eq!(calls(&report, INIT_CONTROL), 0);
    let report = run(Guest::new(), async |_| {
        let _port = eventchn::bind_ipi()?;
        assert_eq!((eventchn::abi(), eventchn::abi().ports()), (Abi::Fifo, 131_072));
        let _port = eventchn::bind_ipi()?;
        Ok(())
    });
    assert_eq!((calls(&report, INIT_CONTROL), calls(&report, EXPAND_ARRAY)), (1, 1));
}

#[test]
fn without_it_the_two_level_interface_does_without_priorities() {
    let refused = [Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::ENOMEM];
    let refusing = refused.map(|errno| {
        let fault =
            move |call, operation| (call == Hypercall::EventChannel && operation == INIT_CONTROL).then_some(errno);
        Guest::new().fault(fault)
    });
    let guests = [Guest::new().without_fifo(), Guest::new().command_line("domu.fifo=off")];
    for guest in guests.into_iter().chain(refusing) {
        let report = run(guest, async |_| {
            let port = eventchn::bind_ipi()?;
            assert_eq!(eventchn::abi(), Abi::TwoLevel);
            assert_eq!(
                port.set_priority(Priority::HIGHEST).map_err(|error| error.kind()),
                Err(ErrorKind::NoPriorities)
            );
            port.notify()?;
            assert_eq!(port.after(0).await, Ok(1));
            Ok(())
        });
        // The page that was meant for it is the heap's again.
        assert_eq!((calls(&report, EXPAND_ARRAY), report.taken), (0, 0));
    }
}

/// Refuses the expansion of this number.
fn refusing_expansion(number: usize, errno: Errno) -> Guest {
    let mut seen = 0;
    Guest::new().port_limit(3000).fault(move |call, operation| {
        seen += usize::from(call == Hypercall::EventChannel && operation == EXPAND_ARRAY);
        if call == Hypercall::EventChannel && operation == EXPAND_ARRAY && seen == number { Some(errno) } else { None }
    })
}

#[test]
fn a_page_that_is_refused_costs_one_port_and_is_asked_for_again() {
    // Once Xen has agreed to the interface, there is no way back: the first port fails, and the next has its page.
    let refusals = [(Errno::ENOMEM, ErrorKind::OutOfMemory), (Errno::EINVAL, ErrorKind::Refused(Errno::EINVAL))];
    for (errno, error) in refusals.into_iter().take(if cfg!(miri) { 1 } else { 2 }) {
        let report = run(refusing_expansion(2, errno), async |_| {
            // The first page was there when the interface was chosen.
            let mut ports = Vec::new();
            let refused = loop {
                match eventchn::bind_ipi() {
                    Ok(port) => ports.push(port),
                    Err(error) => break error,
                }
            };
            assert_eq!((refused.kind(), ports.last().map(Port::number)), (error, Some(1023)));
            let port = eventchn::bind_ipi()?;
            assert_eq!(port.number(), 1024);
            port.notify()?;
            assert_eq!(port.after(0).await, Ok(1));
            Ok(())
        });
        // The control block and two pages of words.
        assert_eq!((calls(&report, EXPAND_ARRAY), report.taken), (3, 3));
    }
    // Refused when it is chosen: the first port asks again.
    let report = run(refusing_expansion(1, Errno::ENOMEM), async |_| {
        let port = eventchn::bind_ipi()?;
        port.notify()?;
        assert_eq!(port.after(0).await, Ok(1));
        Ok(())
    });
    assert_eq!(calls(&report, EXPAND_ARRAY), 2);
    // Refused for ever: the error is told, and the domain has its console and the time.
    let never =
        |call, operation| (call == Hypercall::EventChannel && operation == EXPAND_ARRAY).then_some(Errno::ENOMEM);
    // Who waits awake turns until then, and each turn asks for the page: for Miri some dozen times.
    let look = if cfg!(miri) { MS / 20 } else { MS / 1000 };
    let report = run(Guest::new().clock_look(look).fault(never), async |domain| {
        for _ in 0..10 {
            assert_eq!(eventchn::bind_ipi().unwrap_err(), ErrorKind::OutOfMemory);
        }
        let start = time::now();
        time::sleep(MS).await;
        assert!((MS..2 * MS).contains(&start.elapsed()));
        domain.console().write_all(b"still here\n").await?;
        Ok(())
    });
    assert_eq!(report.console, b"still here\n");
    // The control block alone; and the timer, which has no port, is waited for awake.
    assert_eq!((report.taken, report.halts), (1, 0));
}

#[test]
fn a_task_that_waits_for_the_console_chooses_it_and_is_woken_as_by_the_other() {
    // The toolstack has made the port. It is waited for by tasks, and polled at the end: each wait ends by an event, none at
    // once.
    let waits = |line: &str, abi| {
        let guest = Guest::new().backend(Backend::Trickles(100)).command_line(line);
        let report = run(guest, async |domain| {
            let writer = spawn(async move { domain.console().write_all(&[b'x'; 5000]).await });
            assert_eq!(eventchn::abi(), Abi::TwoLevel);
            yield_now().await;
            yield_now().await;
            assert_eq!((eventchn::abi(), writer.is_finished()), (abi, false));
            let _port = eventchn::bind_ipi()?;
            writer.await?;
            Ok(())
        });
        assert_eq!(report.console.len(), 5000);
        let polls = report.calls(Hypercall::Sched, 3);
        assert!(polls > 5 && report.halts > 5, "{polls} polls, {} halts", report.halts);
        (polls, report.halts, report.elapsed_ns)
    };
    let (fifo, two_level) = (waits("", Abi::Fifo), waits("domu.fifo=off", Abi::TwoLevel));
    assert_eq!((fifo.0, fifo.1), (two_level.0, two_level.1));
    assert!(fifo.2.abs_diff(two_level.2) < 1_000_000);
}

#[test]
fn a_console_that_is_only_polled_has_its_word_even_if_no_port_could_be_bound() {
    let polls = |line: &str| {
        let guest = Guest::new().backend(Backend::Trickles(100)).command_line(line).port_limit(3);
        let report = run(guest, async |domain| {
            assert_eq!(eventchn::bind_ipi().unwrap_err(), ErrorKind::NoPort);
            domain.console().write_all(&[b'x'; 1500]).await?;
            Ok(())
        });
        assert_eq!((report.console.len(), report.halts), (1500, 0));
        report.calls(Hypercall::Sched, 3)
    };
    assert_eq!(polls(""), polls("domu.fifo=off"));
}

/// Starts a task that notes each event of a port.
fn note(order: &Rc<RefCell<Vec<u32>>>, port: &Rc<Port>) {
    let (order, port) = (Rc::clone(order), Rc::clone(port));
    spawn(async move {
        let mut seen = 0;
        loop {
            seen = port.after(seen).await.unwrap();
            order.borrow_mut().push(port.number());
        }
    })
    .detach();
}

#[test]
fn the_higher_priority_is_delivered_first() {
    run(Guest::new(), async |_| {
        assert_eq!(Priority::new(16), None);
        assert_eq!((Priority::default(), Priority::DEFAULT.number()), (Priority::new(7).unwrap(), 7));
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut ports = Vec::new();
        // Bound in the reverse order of their priorities.
        for number in [15, 9, 8, 7, 2, 0] {
            let port = Rc::new(eventchn::bind_ipi()?);
            port.set_priority(Priority::new(number).unwrap())?;
            note(&order, &port);
            ports.push(port);
        }
        yield_now().await;
        let numbers: Vec<u32> = ports.iter().rev().map(|port| port.number()).collect();
        // In the first round each event is put into its queue by Xen. In the others they come while nobody has taken note of
        // the ones before: the ports are masked.
        for round in 0..3 {
            for _ in 0..=round {
                ports.iter().try_for_each(|port| port.notify())?;
            }
            if round > 0 {
                // They are delivered, and come again, before the tasks run.
                yield_now().await;
                ports.iter().try_for_each(|port| port.notify())?;
            }
            if round == 2 {
                // Note is taken of them in the order of their numbers.
                assert!(ports.iter().all(|port| port.count() > 0));
            }
            for _ in 0..4 {
                yield_now().await;
            }
            let seen = order.take();
            assert_eq!(seen, numbers.repeat(if round == 0 { 1 } else { 2 }), "round {round}");
        }
        // Of one priority: first come, first served.
        for port in &ports {
            port.set_priority(Priority::LOWEST)?;
        }
        ports.iter().rev().try_for_each(|port| port.notify())?;
        yield_now().await;
        yield_now().await;
        assert_eq!(order.take(), numbers);
        Ok(())
    });
}

#[test]
fn a_number_is_not_used_again_before_its_queue_was_read_and_has_no_past_then() {
    run(Guest::new(), async |_| {
        let quiet = eventchn::bind_ipi()?;
        for behind in [false, true] {
            let first = eventchn::bind_ipi()?;
            let number = first.number();
            // In its queue, alone or with another behind it, and closed there: the number is not to be had.
            first.notify()?;
            if behind {
                quiet.notify()?;
            }
            drop(first);
            let second = eventchn::bind_ipi()?;
            assert_eq!(second.number(), number + 1);
            if behind {
                assert_eq!(quiet.after(0).await, Ok(1));
            }
            yield_now().await;
            // The queue has been read.
            let third = eventchn::bind_ipi()?;
            assert_eq!((third.number(), third.count()), (number, 0));
            assert_eq!(time::timeout(MS, third.after(0)).await, Err(time::Elapsed));
            third.notify()?;
            assert_eq!(third.after(0).await, Ok(1));
        }
        Ok(())
    });
}

#[test]
fn ports_that_are_closed_in_their_queue_are_free_in_the_next_turn() {
    run(Guest::new().port_limit(10), async |_| {
        for _ in 0..3 {
            // Six are left, beside the timer's and those that are never given out.
            let error = (0..7).find_map(|_| eventchn::bind_ipi().and_then(|port| port.notify()).err());
            assert_eq!(error.map(|error| error.kind()), Some(ErrorKind::NoPort));
            yield_now().await;
        }
        assert_eq!(eventchn::bind_ipi()?.number(), 4);
        Ok(())
    });
}

#[test]
fn all_ports_that_there_are_work() {
    // Beyond what Xen has at most, whatever the toolstack says; Miri has a few on their second page.
    const PORTS: u32 = if cfg!(miri) { 1030 } else { 131_072 };
    let limit = if cfg!(miri) { PORTS } else { u32::MAX };
    let report = run(Guest::new().port_limit(limit), async |_| {
        let mut ports = Vec::new();
        let error = loop {
            match eventchn::bind_ipi() {
                Ok(port) => ports.push(port),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), ports.len()), (ErrorKind::NoPort, PORTS as usize - 4));
        for port in &ports {
            port.notify()?;
        }
        let turns = activity().turns;
        for port in &ports {
            assert_eq!(port.after(0).await, Ok(1));
        }
        // All of them are delivered in one turn.
        assert!(activity().turns - turns <= 3);
        Ok(())
    });
    assert_eq!(calls(&report, EXPAND_ARRAY) as u32, PORTS.div_ceil(1024));
}

/// Notes its port when it is woken, and raises an event on another one.
struct Note {
    port: Arc<Port>,
    raises: Option<Arc<Port>>,
    order: Arc<Mutex<Vec<u32>>>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.order.lock().unwrap().push(self.port.number());
        self.raises.iter().for_each(|port| port.notify().unwrap());
    }
}

/// Has the delivery of the next event after so many noted within its turn, as tasks would not see it.
fn note_delivery(note: Note, after: &mut Pin<Box<After<'_>>>) {
    assert!(after.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::new(note)))).is_pending());
}

#[test]
fn a_higher_priority_overtakes_what_is_being_delivered() {
    run(Guest::new(), async |_| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let urgent = Arc::new(eventchn::bind_ipi()?);
        urgent.set_priority(Priority::HIGHEST)?;
        let late = (0..4).map(|_| eventchn::bind_ipi().map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        late.iter().try_for_each(|port| port.set_priority(Priority::LOWEST))?;
        let mut waits: Vec<_> = late.iter().chain([&urgent]).map(|port| Box::pin(port.after(0))).collect();
        for (port, wait) in late.iter().chain([&urgent]).zip(&mut waits) {
            // The second of those that are delivered raises the urgent event.
            let raises = Arc::ptr_eq(port, &late[1]).then(|| Arc::clone(&urgent));
            note_delivery(Note { port: Arc::clone(port), raises, order: Arc::clone(&order) }, wait);
        }
        late.iter().try_for_each(|port| port.notify())?;
        let turns = activity().turns;
        yield_now().await;
        assert_eq!(activity().turns - turns, 1, "all within a turn");
        let expected: Vec<_> = [&late[0], &late[1], &urgent, &late[2], &late[3]].map(|port| port.number()).into();
        assert_eq!(*order.lock().unwrap(), expected);
        Ok(())
    });
}

#[test]
fn a_number_that_is_used_again_has_the_default_priority() {
    run(Guest::new(), async |_| {
        let order = Arc::new(Mutex::new(Vec::new()));
        let first = Arc::new(eventchn::bind_ipi()?);
        let before = eventchn::bind_ipi()?;
        before.set_priority(Priority::HIGHEST)?;
        let number = before.number();
        drop(before);
        let second = Arc::new(eventchn::bind_ipi()?);
        assert_eq!(second.number(), number);
        let ports = [first, second];
        // Once by the queue of Xen's, and once by our list, as the events come while nobody has taken note of those before.
        for seen in [0, 1] {
            let mut waits: Vec<_> = ports.iter().map(|port| Box::pin(port.after(seen))).collect();
            for (port, wait) in ports.iter().zip(&mut waits) {
                note_delivery(Note { port: Arc::clone(port), raises: None, order: Arc::clone(&order) }, wait);
            }
            ports.iter().try_for_each(|port| port.notify())?;
            yield_now().await;
            ports.iter().try_for_each(|port| port.notify())?;
        }
        assert_eq!(*order.lock().unwrap(), [ports[0].number(), number].repeat(2));
        Ok(())
    });
}

/// What storms wait for: kept, as a wait that is dropped is over.
static WAITS: Mutex<Vec<Pin<Box<dyn Waits>>>> = Mutex::new(Vec::new());

/// A wait for an event.
trait Waits: Future<Output = Result<u64, Error>> + Send {}

impl<F: Future<Output = Result<u64, Error>> + Send> Waits for F {}

/// Raises an event on its port when it is woken, and waits again at once, within the turn of the delivery.
struct Storm {
    port: &'static Port,
    /// The event comes while the port is masked: it is listed here, and not put into its queue by Xen.
    masked: bool,
    order: Arc<Mutex<Vec<u32>>>,
}

impl Storm {
    fn start(port: &'static Port, masked: bool, order: &Arc<Mutex<Vec<u32>>>) {
        let order = Arc::clone(order);
        Arc::new(Self { port, masked, order }).wake();
    }
}

impl Wake for Storm {
    fn wake(self: Arc<Self>) {
        self.order.lock().unwrap().push(self.port.number());
        if self.masked {
            self.port.notify().unwrap();
        }
        let seen = self.port.count();
        if !self.masked {
            self.port.notify().unwrap();
        }
        let mut after = Box::pin(self.port.after(seen));
        let _ = after.as_mut().poll(&mut Context::from_waker(&Waker::from(self)));
        WAITS.lock().unwrap().push(after);
    }
}

#[test]
fn what_is_listed_and_what_is_queued_take_turns() {
    run(Guest::new(), async |_| {
        let order = Arc::new(Mutex::new(Vec::new()));
        for masked in [true, false] {
            Storm::start(Box::leak(Box::new(eventchn::bind_ipi()?)), masked, &order);
        }
        yield_now().await;
        order.lock().unwrap().clear();
        yield_now().await;
        let order = order.lock().unwrap();
        assert!(order.len() >= 8 && order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
        Ok(())
    });
}

#[test]
fn a_waker_that_raises_its_own_event_does_not_hold_a_turn() {
    for line in ["", "domu.fifo=off"] {
        run(Guest::new().command_line(line), async |_| {
            let quiet = eventchn::bind_ipi()?;
            // Two of them, so that their queue is never empty.
            let storms = [eventchn::bind_ipi()?, eventchn::bind_ipi()?].map(|port| &*Box::leak(Box::new(port)));
            // Unmasked before they are raised: Xen puts each behind the other.
            storms.into_iter().for_each(|port| Storm::start(port, false, &Arc::default()));
            for seen in 0..if cfg!(miri) { 5 } else { 20 } {
                quiet.notify()?;
                assert_eq!(quiet.after(seen).await, Ok(seen + 1));
            }
            // It has the same turns.
            assert!(storms.iter().all(|port| port.count() >= if cfg!(miri) { 3 } else { 10 }));
            time::sleep(if cfg!(miri) { MS / 20 } else { MS }).await;
            Ok(())
        });
    }
}

/// How often a producer is at work between a look and a wait, by either interface.
const ROUNDS: u32 = if cfg!(miri) { 20 } else { 100_000 };
const MANY_ROUNDS: u32 = 10_000_000;

/// A producer that raises an event somewhere between the look and the wait, and now and then one beside it.
fn produce(line: &str, steps: usize, rounds: u32) {
    run(Guest::new().command_line(line), async |_| {
        let (port, other) = (eventchn::alloc_unbound(DomainId(1))?, eventchn::bind_ipi()?);
        let (mut random, mut seen, mut others) = (0x2545_f491_4f6c_dd1d_u64, 0, 0);
        for round in 0..rounds {
            let places: Vec<usize> = (0..steps)
                .scan(0, |place, _| {
                    // An xorshift generator: the steps are near to each other, most often, and far at times.
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    *place += [0, 0, 1, 1, 2, 3, 5, 8][random as usize % 8];
                    Some(*place)
                })
                .collect();
            if random & 1 << 40 == 0 {
                other.notify()?;
                others += 1;
            }
            assert_eq!(port.count(), seen);
            interleave::begin(port.number(), &places);
            seen = port.after(seen).await.unwrap();
            let _ = interleave::end();
            assert_eq!((seen, port.count()), (u64::from(round) + 1, u64::from(round) + 1), "{places:?}");
            if others > 0 {
                assert_eq!(other.after(others - 1).await, Ok(others), "{places:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_producer_between_the_look_and_the_wait_is_never_missed_by_two_level() {
    produce("domu.fifo=off", interleave::TWO_LEVEL_STEPS, ROUNDS);
}

#[test]
#[ignore = "ten million rounds take a minute, optimised; `cargo xen test --all` has them"]
fn a_producer_is_not_missed_in_ten_million_rounds_by_two_level() {
    produce("domu.fifo=off", interleave::TWO_LEVEL_STEPS, MANY_ROUNDS);
}

#[test]
#[ignore = "ten million rounds take a minute, optimised; `cargo xen test --all` has them"]
fn a_producer_is_not_missed_in_ten_million_rounds_by_fifo() {
    produce("", interleave::FIFO_STEPS, MANY_ROUNDS);
}

#[test]
fn a_producer_between_the_look_and_the_wait_is_never_missed_by_fifo() {
    produce("", interleave::FIFO_STEPS, ROUNDS);
}
