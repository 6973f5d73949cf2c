//! Looks at both clocks every 100 ms, while dom0 sets its own, until something is typed.
//!
//! Each time it says `@clock MONOTONIC WALL SLEPT`, in nanoseconds.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::Cell;
use core::fmt::Write;
use core::time::Duration;

use domu::executor::spawn;
use domu::time;

domu::main!(main);

async fn main(domain: domu::Domain) -> Result<(), &'static str> {
    let mut console = domain.console();
    let over = Rc::new(Cell::new(false));
    let typed = Rc::clone(&over);
    let reader = spawn(async move {
        // Without a console there is nobody to tell anything either.
        let _ = console.read(&mut [0]).await;
        typed.set(true);
    });
    while !over.get() {
        let start = time::now();
        time::sleep(Duration::from_millis(100)).await;
        let (now, wall) = (time::now(), time::wall_clock());
        let slept = (now - start).as_nanos();
        writeln!(console, "@clock {} {} {slept}", now.as_nanos(), wall.as_nanos())
            .map_err(|_| "the console does not take a line")?;
    }
    drop(reader);
    Ok(())
}
