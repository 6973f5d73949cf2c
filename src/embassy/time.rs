//! The driver of `embassy-time`: this crate's clock and timers, with a tick for each nanosecond.
//!
//! Its futures are polled with whatever waker there is, ask for the same moment at each poll, and tell nobody when they are
//! dropped. `Timers::set_earliest` is made for such waiters.

use core::task::Waker;

use crate::time::TIMERS;
use crate::{local, time};

struct Driver;

embassy_time_driver::time_driver_impl!(static DRIVER: Driver = Driver);

impl embassy_time_driver::Driver for Driver {
    fn now(&self) -> u64 {
        time::now().as_nanos()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        // Outside of a domain there is nobody to wake it.
        if let Some(state) = local::current() {
            TIMERS.of(state).set_earliest(at, waker);
        }
    }
}
