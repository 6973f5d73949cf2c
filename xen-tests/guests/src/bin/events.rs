//! Event channels, timers and tasks on real Xen, within one domain, by the interface for events that is in force.
//!
//! The command line says how many events there are to be and, if the domain is to have ports up to a number only, how many
//! it gets at least. With `virq` on it there is one case alone:
//!
//! * `events.virq`: the virtual interrupt for debugging comes, which Xen raises at the key `q`.
//!
//! With `own_id` on it there is one case, too:
//!
//! * `events.own_id`: Xen's CPUID leaves end before the one with the domain id, and boot knows the id all the same.
//!
//! Without them, these:
//!
//! * `events.fifo` or `events.two_level`: the interface is that, as the command line asks for.
//! * `events.self`: the number of events that the command line names go between two ports of this domain, none is lost.
//! * `events.bind`: bindings, their states and errors are as documented.
//! * `events.many`: as many ports as there are to be had, up to 6000, each with an event.
//! * `events.priority`: of two ports that are pending the one of the higher priority is delivered first; without priorities
//!   there is an error.
//! * `time.sleep`: sleeps of several lengths are not too short; how late they are is logged.
//! * `time.order`: sleeps end in the order of their deadlines, and a far one can be given up.
//! * `time.busy`: a task that always yields delays a timer by no more than a turn.
//! * `time.wall`: the wall clock is plausible, and moves with the monotonic one.
//! * `idle.halts`: an idle domain does not turn.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use domu::eventchn::{self, Abi, Binding, Priority, virq};
use domu::executor::{activity, spawn, yield_now};
use domu::{Domain, DomainId, time};
use domu_guests::{ensure, verdict};

domu::main!(main);

/// The first of Xen's CPUID leaves; EAX is the highest of them. Leaf 4 has the domain id.
const XEN_LEAVES: u32 = 0x4000_0000;

const MS: Duration = Duration::from_millis(1);

async fn main(domain: Domain) -> domu::Result {
    if domain.words().any(|word| word.raw() == b"virq") {
        verdict(&domain, "events.virq", debug_key().await);
        return Ok(());
    }
    if domain.words().any(|word| word.raw() == b"own_id") {
        verdict(&domain, "events.own_id", own_id(&domain));
        return Ok(());
    }
    let mut numbers = domain.words().map_while(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok());
    let (events, ports) = (numbers.next().unwrap_or(1000), numbers.next().unwrap_or(900));
    verdict(&domain, "events.self", to_itself(events).await);
    let two_level = eventchn::abi() == Abi::TwoLevel;
    let off = domain.words().any(|word| word.raw() == b"domu.fifo=off");
    let right = off == two_level;
    verdict(
        &domain,
        if two_level { "events.two_level" } else { "events.fifo" },
        if right { Ok(()) } else { Err("not what was asked for".into()) },
    );
    verdict(&domain, "events.bind", bindings().await);
    verdict(&domain, "events.many", many(ports as usize).await);
    verdict(&domain, "events.priority", priority().await);
    verdict(&domain, "time.sleep", sleeps().await);
    verdict(&domain, "time.order", order().await);
    verdict(&domain, "time.busy", busy().await);
    verdict(&domain, "time.wall", wall().await);
    verdict(&domain, "idle.halts", idle().await);
    Ok(())
}

fn said(error: eventchn::Error) -> String {
    format!("{error}")
}

async fn to_itself(events: u64) -> Result<(), String> {
    let one = Rc::new(eventchn::alloc_unbound(DomainId::SELF).map_err(said)?);
    let other = eventchn::bind_interdomain(DomainId::SELF, one.number()).map_err(said)?;
    let answering = Rc::clone(&one);
    let answers = spawn(async move {
        let mut seen = 0;
        while seen < events {
            seen = answering.after(seen).await.map_err(said)?;
            answering.notify().map_err(said)?;
        }
        Ok::<u64, String>(seen)
    });
    // The first comes with the binding.
    let mut seen = other.after(0).await.map_err(said)?;
    for _ in 0..events {
        other.notify().map_err(said)?;
        seen = other.after(seen).await.map_err(said)?;
    }
    let received = answers.await?;
    if (seen, received) == (events + 1, events) { Ok(()) } else { Err(format!("{seen} and {received} of {events}")) }
}

/// Logs the id that boot learned, where no CPUID leaf has it.
fn own_id(domain: &Domain) -> Result<(), String> {
    let highest = core::arch::x86_64::__cpuid(XEN_LEAVES).eax;
    ensure(highest < XEN_LEAVES + 4, || format!("the highest leaf is {highest:#x}"))?;
    log::info!("domain id {}", domain.id());
    Ok(())
}

async fn debug_key() -> Result<(), String> {
    let port = eventchn::bind_virq(virq::DEBUG).map_err(said)?;
    log::info!("waiting for the virtual interrupt");
    let seen = port.after(0).await.map_err(said)?;
    ensure(seen == 1 && port.binding() == Ok(Binding::Virq(virq::DEBUG)), || {
        format!("{seen} events, {:?}", port.binding())
    })
}

async fn bindings() -> Result<(), String> {
    let ipi = eventchn::bind_ipi().map_err(said)?;
    if ipi.binding() != Ok(Binding::Ipi) {
        return Err(format!("{:?}", ipi.binding()));
    }
    let number = ipi.number();
    drop(ipi);
    let one = eventchn::alloc_unbound(DomainId::SELF).map_err(said)?;
    if one.number() != number {
        return Err(format!("port {} instead of {number}, which was closed", one.number()));
    }
    let other = eventchn::bind_interdomain(DomainId::SELF, one.number()).map_err(said)?;
    drop(one);
    match other.binding() {
        Ok(Binding::Unbound(_)) => {}
        binding => return Err(format!("the peer is gone, and there is {binding:?}")),
    }
    other.notify().map_err(said)?;
    match eventchn::bind_interdomain(DomainId::SELF, 1000) {
        Err(error) if error == eventchn::ErrorKind::NoPeer => Ok(()),
        result => Err(format!("{result:?}")),
    }
}

/// Ports that are enough. The first domain may have all, and Xen looks through those in use for one that is free.
const MOST: usize = 6000;

async fn many(least: usize) -> Result<(), String> {
    let mut ports = Vec::new();
    let mut end = None;
    while end.is_none() && ports.len() < MOST {
        match eventchn::bind_ipi() {
            Ok(port) => ports.push(port),
            Err(error) => end = Some(error),
        }
    }
    if end.is_some_and(|error| error != eventchn::ErrorKind::NoPort) || ports.len() < least {
        return Err(format!("{end:?} after {} ports", ports.len()));
    }
    for port in &ports {
        port.notify().map_err(said)?;
    }
    for port in &ports {
        if port.after(0).await.map_err(said)? != 1 {
            return Err(format!("port {} has {} events", port.number(), port.count()));
        }
    }
    // Nothing comes twice.
    yield_now().await;
    yield_now().await;
    if let Some(port) = ports.iter().find(|port| port.count() != 1) {
        return Err(format!("port {} has {} events", port.number(), port.count()));
    }
    log::info!("{} ports, the last is {}", ports.len(), ports[ports.len() - 1].number());
    Ok(())
}

async fn priority() -> Result<(), String> {
    let order = Rc::new(RefCell::new(Vec::new()));
    let mut ports = Vec::new();
    for number in [Priority::LOWEST.number(), 8, 7, 6, Priority::HIGHEST.number()] {
        let port = Rc::new(eventchn::bind_ipi().map_err(said)?);
        match (port.set_priority(Priority::new(number).unwrap_or_default()), eventchn::abi()) {
            (Ok(()), Abi::Fifo) => {}
            (Err(error), Abi::TwoLevel) if error == eventchn::ErrorKind::NoPriorities => return Ok(()),
            (result, abi) => return Err(format!("{result:?} with {abi:?}")),
        }
        let (order, waiting) = (Rc::clone(&order), Rc::clone(&port));
        let task = spawn(async move {
            let mut seen = 0;
            while let Ok(count) = waiting.after(seen).await {
                seen = count;
                order.borrow_mut().push(number);
            }
        });
        ports.push((port, task));
    }
    yield_now().await;
    // Once into the queues of Xen, and once while the ports are masked, as nobody has taken note of the first.
    for (port, _) in &ports {
        port.notify().map_err(said)?;
    }
    yield_now().await;
    for (port, _) in &ports {
        port.notify().map_err(said)?;
    }
    // Note is taken in the reverse order, which is not that of the second deliveries.
    if ports.iter().any(|(port, _)| port.count() != 1) {
        return Err("an event is not delivered within a turn".into());
    }
    for _ in 0..4 {
        yield_now().await;
    }
    let order = order.borrow();
    if *order == [0, 6, 7, 8, 15, 0, 6, 7, 8, 15] { Ok(()) } else { Err(format!("{order:?}")) }
}

async fn sleeps() -> Result<(), String> {
    for (length, times) in [(Duration::from_micros(1), 20), (Duration::from_micros(100), 20), (MS, 20), (20 * MS, 5)] {
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for _ in 0..times {
            let deadline = time::now() + length;
            time::sleep_until(deadline).await;
            let now = time::now();
            if now < deadline {
                return Err(format!("{:?} too early", deadline - now));
            }
            (least, most) = (least.min(now - deadline), most.max(now - deadline));
        }
        log::info!("sleeps of {length:?} were {least:?} to {most:?} late");
    }
    // A deadline that is now, and a far one that is never asked for, as another is earlier. Those of a microsecond have passed
    // when Xen is asked, or nearly; `time::idle_2` has the farthest.
    time::sleep(Duration::ZERO).await;
    let far = time::timeout(10 * MS, time::sleep(Duration::from_secs(1 << 40))).await;
    if far.is_err() { Ok(()) } else { Err("a sleep of millennia is over".into()) }
}

async fn order() -> Result<(), String> {
    let (order, start) = (Rc::new(RefCell::new(Vec::new())), time::now());
    let tasks: Vec<_> = [30_u32, 10, 20, 5]
        .into_iter()
        .map(|delay| {
            let order = Rc::clone(&order);
            spawn(async move {
                time::sleep_until(start + delay * MS).await;
                order.borrow_mut().push(delay);
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    let order = order.borrow();
    if *order == [5, 10, 20, 30] { Ok(()) } else { Err(format!("{order:?}")) }
}

async fn busy() -> Result<(), String> {
    // When the sleep is over, and the turn in which a task of that turn sees it first.
    let (deadline, due) = (Rc::new(Cell::new(time::now())), Rc::new(Cell::new(None)));
    let (its, seen) = (Rc::clone(&deadline), Rc::clone(&due));
    let task = spawn(async move {
        loop {
            if seen.get().is_none() && time::now() >= its.get() {
                seen.set(Some(activity().turns));
            }
            yield_now().await;
        }
    });
    // The domain may be kept waiting for all of a sleep, and then has no turns in it.
    let mut most = 0;
    for _ in 0..20 {
        let before = activity();
        deadline.set(time::now() + 5 * MS);
        due.set(None);
        time::sleep_until(deadline.get()).await;
        let (late, after) = (deadline.get().elapsed(), activity());
        let (turns, halts) = (after.turns - before.turns, after.halts - before.halts);
        log::info!("{late:?} late after {turns} turns of a busy task");
        if halts > 0 {
            return Err(format!("{halts} halts beside a busy task"));
        }
        let behind = due.get().map_or(0, |due| after.turns - due);
        if behind > 1 {
            return Err(format!("{behind} turns late"));
        }
        most = most.max(turns);
        if most > 20 {
            break;
        }
    }
    drop(task);
    if most > 20 { Ok(()) } else { Err(format!("{most} turns at most")) }
}

async fn wall() -> Result<(), String> {
    // The domain may be kept waiting between any two looks: the moment of one to the wall clock lies between two others.
    let look = || (time::now(), time::wall_clock(), time::now());
    let first = look();
    time::sleep(20 * MS).await;
    let last = look();
    let (wall, moved) = (last.1, last.1.saturating_sub(first.1));
    let passed = (last.0 - first.2, last.2 - first.0);
    let close = passed.0 < moved + MS && moved < passed.1 + MS;
    // Some year of this century, in seconds.
    let plausible = (946_684_800..4_102_444_800).contains(&wall.as_secs());
    if close && plausible { Ok(()) } else { Err(format!("{wall:?}, moved {moved:?} in {passed:?}")) }
}

async fn idle() -> Result<(), String> {
    let before = activity();
    time::sleep(500 * MS).await;
    let after = activity();
    // To sleep, and the end of it; a little more if the timer was early.
    match (after.turns - before.turns, after.halts - before.halts) {
        (..=4, 1..=3) => Ok(()),
        (turns, halts) => Err(format!("{turns} turns, {halts} halts in an idle half second")),
    }
}
