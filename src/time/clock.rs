//! The clock of the host, as Xen's time record and the time stamp counter give it, and the wall clock upon it.

use crate::arch;
use crate::shared::{SharedInfo, TimeRecord};

/// Nanoseconds of Xen's system time, which counts from the boot of the host. Deadlines of hypercalls are given in it.
pub(crate) fn system_time_ns(info: &SharedInfo) -> u64 {
    let (record, tsc) = info.read_time(arch::read_tsc);
    at(&record, tsc)
}

/// Nanoseconds since 1970. Read anew each time: dom0 may set the clock, and the host drifts.
pub(crate) fn wall_clock_ns(info: &SharedInfo) -> u128 {
    let (seconds, nanoseconds) = info.read_wall_clock();
    u128::from(seconds) * 1_000_000_000 + u128::from(nanoseconds) + u128::from(system_time_ns(info))
}

/// The system time at a value of the time stamp counter.
fn at(record: &TimeRecord, tsc: u64) -> u64 {
    // The difference is signed and wraps: a domain's counter starts at zero, and the record may be older than that. A
    // counter behind its record was read on another CPU: no time has passed.
    let ticks = tsc.wrapping_sub(record.tsc_timestamp).cast_signed().max(0).cast_unsigned();
    record.system_time_ns.saturating_add(scale(ticks, record.tsc_to_system_mul, record.tsc_shift))
}

/// Ticks to nanoseconds: shifted, then multiplied by a 32-bit fraction, in 128 bits so that nothing is lost.
fn scale(ticks: u64, mul: u32, shift: i8) -> u64 {
    let distance = u32::from(shift.unsigned_abs());
    let shifted = match shift {
        0.. => u128::from(ticks).checked_shl(distance.min(64)),
        _ => u128::from(ticks).checked_shr(distance),
    };
    let product = shifted.unwrap_or(0).saturating_mul(u128::from(mul)) >> 32;
    u64::try_from(product).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_scales() {
        // 2.6 GHz: 2600 ticks are 1000 ns, with the fraction that Xen computes.
        let mul = ((1_000_000_000_u128 << 32) / 2_600_000_000) as u32;
        assert!((999..=1000).contains(&scale(2600, mul, 0)));
        // 1 GHz is the fraction one half, shifted by one.
        assert_eq!(scale(123_456_789, 1 << 31, 1), 123_456_789);
        assert_eq!(scale(8, u32::MAX, -1), 3);
        assert_eq!(scale(u64::MAX, u32::MAX, 127), u64::MAX);
        assert_eq!(scale(u64::MAX, u32::MAX, -128), 0);
    }

    /// Seen on Xen 4.17 with native TSC: the record was taken before the counter of the domain began.
    #[test]
    fn a_record_older_than_the_counter() {
        let record = TimeRecord {
            tsc_timestamp: 18_446_744_072_994_919_515,
            system_time_ns: 8_760_206_961,
            tsc_to_system_mul: 4_294_967_269,
            tsc_shift: 0,
        };
        let (first, later) = (at(&record, 128_510_424), at(&record, 130_490_194));
        assert_eq!(first, 8_760_206_961 + 843_142_519);
        assert!((1_979_769..=1_979_770).contains(&(later - first)));
        // Read on a CPU whose counter is behind.
        assert_eq!(at(&record, record.tsc_timestamp - 5), record.system_time_ns);
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        fn never_overflows_and_never_goes_backwards(a: u64, b: u64, mul: u32, shift: i8) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(scale(low, mul, shift) <= scale(high, mul, shift));
        }
    }
}
