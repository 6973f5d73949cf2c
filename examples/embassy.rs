//! Crates of the embassy project, unchanged: a task of `embassy-executor` sends through a channel of `embassy-sync`, with
//! the clock of `embassy-time`, to main, which is run by this crate's executor.

#![no_std]
#![no_main]

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::channel::Channel;
use embassy_time::{Duration, Instant, Ticker, Timer, with_timeout};

domu::main!(main);

const PERIOD: Duration = Duration::from_millis(10);

const COUNT: u32 = 3;

static READINGS: Channel<CriticalSectionRawMutex, u32, 2> = Channel::new();

#[embassy_executor::task]
async fn sensor() {
    let mut ticker = Ticker::every(PERIOD);
    for reading in 1..=COUNT {
        ticker.next().await;
        READINGS.send(reading).await;
    }
}

async fn main(_: domu::Domain) -> domu::Result {
    let start = Instant::now();
    let tasks = domu::executor::spawn(domu::embassy::run(|spawner| match sensor() {
        Ok(task) => spawner.spawn(task),
        Err(error) => log::error!("the task was not started: {error}"),
    }));
    for _ in 1..=COUNT {
        let reading = READINGS.receive().await;
        let periods = start.elapsed().as_ticks() / PERIOD.as_ticks();
        log::info!("reading {reading}, at least {periods} periods after the start");
    }
    if let Err(timeout) = with_timeout(5 * PERIOD, READINGS.receive()).await {
        log::info!("no reading for five periods: {timeout:?}");
    }
    Timer::after(PERIOD).await;
    drop(tasks);
    Ok(())
}
