//! Logs and writes more than the console's ring takes, in numbered lines, while nobody reads it.
//!
//! First come 200 lines of the log, which are kept; then as many written ones as the command line says, which wait. Another
//! task wakes up every 20 ms meanwhile. At the end it tells in milliseconds how long the longest line had to wait, and that
//! task between two times: `@waited N`, `@gap N`.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use core::cell::Cell;
use core::fmt::Write;
use core::time::Duration;

use domu::executor::spawn;
use domu::time;

domu::main!(main);

async fn main(domain: domu::Domain) -> domu::Result {
    let lines = domain.words().next().and_then(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok()).unwrap_or(0);
    let gap = Rc::new(Cell::new(Duration::ZERO));
    let longest = Rc::clone(&gap);
    let other = spawn(async move {
        let mut last = time::now();
        loop {
            time::sleep(Duration::from_millis(20)).await;
            let now = time::now();
            longest.set(longest.get().max(now - last));
            last = now;
        }
    });
    for number in 0..200 {
        log::info!("@log {number}");
    }
    let (mut console, mut waited) = (domain.console(), Duration::ZERO);
    for number in 0_u32..lines {
        let start = time::now();
        console.write_all(format!("@line {number}\n").as_bytes()).await?;
        waited = waited.max(start.elapsed());
    }
    drop(other);
    console.flush().await?;
    // What does not fit is missing, and noticed.
    let _ = writeln!(console, "@waited {}\n@gap {}", waited.as_millis(), gap.get().as_millis());
    Ok(())
}
