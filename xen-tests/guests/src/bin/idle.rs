//! Does nothing until something is typed, and tells what its main loop did meanwhile: `@idle`, then `@turns N`.

#![no_std]
#![no_main]

use core::fmt::Write;
use core::time::Duration;

use domu::executor::activity;
use domu::time;

domu::main!(main);

async fn main(domain: domu::Domain) -> Result<(), &'static str> {
    let mut console = domain.console();
    writeln!(console, "@idle").map_err(|_| "the console does not take a line")?;
    // Until its backend has read that, and said so.
    time::sleep(Duration::from_secs(1)).await;
    let before = activity();
    // A timer is set meanwhile, as far ahead as can be, which is no reason to wake up.
    match time::timeout(Duration::MAX, console.read(&mut [0])).await {
        Ok(Ok(_)) => {}
        _ => return Err("nothing was typed"),
    }
    let turns = activity().turns - before.turns;
    writeln!(console, "@turns {turns}").map_err(|_| "the console does not take a line")
}
