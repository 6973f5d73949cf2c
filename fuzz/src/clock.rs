//! The clock: Xen's time record and wall clock, with anything in them, changing between any two reads.

use domu::sim::Guest;
use domu::sim::abi::xen::{shared_info, vcpu_time_info};
use domu::sim::access::fuzz_peer::Kind;
use domu::time;

use crate::input::Input;
use crate::{guest, liar};

/// The clocks never go back, and never overflow. Nothing sleeps: for when a sleep ends Xen is trusted.
pub fn clock(bytes: &[u8]) {
    let input = Input::new(bytes);
    liar::begin(&input, |kind, at| {
        let record = shared_info::VCPU_TIME..=shared_info::VCPU_TIME + vcpu_time_info::TSC_SHIFT;
        let wall = shared_info::WALL_CLOCK_VERSION..=shared_info::WALL_CLOCK_SECONDS_HIGH + 3;
        kind == Kind::SharedInfo && (record.contains(&at) || wall.contains(&at))
    });
    guest(Guest::new().trusted(), async |_| {
        let mut last = time::now();
        for _ in 0..8 {
            let now = time::now();
            assert!(now >= last, "the clock goes back");
            last = now;
            let _ = (time::wall_clock(), now.elapsed());
        }
    });
}
