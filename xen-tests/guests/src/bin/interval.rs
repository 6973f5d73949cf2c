//! Three intervals of 100 ms, one for each behavior after missed ticks, while dom0 pauses the domain, until something is typed.
//!
//! It says `@ticking` once all have ticked three times, and at the end `@tick BEHAVIOR DUE TAKEN` for each tick, in nanoseconds
//! from the start.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt::Write;
use core::time::Duration;

use domu::executor::spawn;
use domu::time::{self, Instant, MissedTickBehavior};

domu::main!(main);

const PERIOD: Duration = Duration::from_millis(100);

async fn main(domain: domu::Domain) -> Result<(), &'static str> {
    let (mut console, start) = (domain.console(), time::now());
    let intervals = [MissedTickBehavior::Burst, MissedTickBehavior::Delay, MissedTickBehavior::Skip].map(|behavior| {
        let ticks = Rc::new(RefCell::new(Vec::<(Instant, Instant)>::new()));
        let its = Rc::clone(&ticks);
        let task = spawn(async move {
            let mut interval = time::interval(PERIOD);
            interval.set_missed_tick_behavior(behavior);
            loop {
                let due = interval.tick().await;
                its.borrow_mut().push((due, time::now()));
            }
        });
        (behavior, ticks, task)
    });
    while intervals.iter().any(|(_, ticks, _)| ticks.borrow().len() < 3) {
        time::sleep(PERIOD / 2).await;
    }
    let full = |_| "the console does not take a line";
    writeln!(console, "@ticking").map_err(full)?;
    console.read(&mut [0]).await.map_err(|_| "no console")?;
    for (behavior, ticks, task) in intervals {
        drop(task);
        for (due, taken) in ticks.take() {
            let (due, taken) = (due - start, taken - start);
            let line = alloc::format!("@tick {behavior:?} {} {}\n", due.as_nanos(), taken.as_nanos());
            console.write_all(line.as_bytes()).await.map_err(|_| "no console")?;
        }
    }
    Ok(())
}
