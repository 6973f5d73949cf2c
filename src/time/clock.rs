//! The clock of the host, as Xen's time record and the time stamp counter give it, and the wall clock upon it.

use crate::arch;
use crate::shared::{SharedInfo, TimeRecord};

/// Nanoseconds of Xen's system time, which counts from the boot of the host. Deadlines of hypercalls are given in it. `None` if
/// the version lock of the time record is never free.
pub(crate) fn system_time_ns(info: &SharedInfo) -> Option<u64> {
    let (record, tsc) = info.read_time(arch::read_tsc)?;
    Some(at(&record, tsc))
}

/// Nanoseconds since 1970. Read anew each time: dom0 may set the clock, and the host drifts. `None` if a version lock is never
/// free.
pub(crate) fn wall_clock_ns(info: &SharedInfo) -> Option<u128> {
    let (seconds, nanoseconds) = info.read_wall_clock()?;
    Some(u128::from(seconds) * 1_000_000_000 + u128::from(nanoseconds) + u128::from(system_time_ns(info)?))
}

/// The system time at a value of the time stamp counter.
fn at(record: &TimeRecord, tsc: u64) -> u64 {
    // The difference is signed and wraps: a domain's counter starts at zero, and the record may be older than that. A
    // counter behind its record was read on another CPU: no time has passed.
    let ticks = tsc.wrapping_sub(record.tsc_timestamp).cast_signed().max(0).cast_unsigned();
    record.system_time_ns.saturating_add(scale(ticks, record.tsc_to_system_mul, record.tsc_shift))
}

/// System time in one attempt, without a loop; `None` if Xen wrote the record during the read, or where only [`at`] is exact.
#[inline(always)]
pub(super) fn try_system_time_ns(info: &SharedInfo) -> Option<u64> {
    let (record, tsc) = info.try_read_time(arch::read_tsc)?;
    try_at(&record, tsc)
}

/// [`at`] with 64-bit operands; `None` for a counter behind its record, an overflow, or a shift that no CPU has.
#[inline(always)]
fn try_at(record: &TimeRecord, tsc: u64) -> Option<u64> {
    // A negative difference is one that `try_scale` refuses.
    let ticks = tsc.wrapping_sub(record.tsc_timestamp);
    record.system_time_ns.checked_add(try_scale(ticks, record.tsc_to_system_mul, record.tsc_shift)?)
}

/// [`scale`] by one multiplication of 64-bit operands; `None` for 2^63 ticks and more, and for a shift that no CPU has.
#[inline(always)]
fn try_scale(ticks: u64, mul: u32, shift: i8) -> Option<u64> {
    // Twice the ticks, so that one right shift does for CPUs of 0.5 to 1 GHz, with a left shift by one, too.
    let doubled = ticks.checked_mul(2)?;
    let right = 1_u8.wrapping_sub(shift.cast_unsigned());
    // The product has 96 bits at most, so its upper part has 64.
    (right < 64).then(|| ((u128::from(doubled >> right) * u128::from(mul)) >> 32) as u64)
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
    use core::sync::atomic::Ordering;
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::abi::xen::{shared_info, vcpu_time_info};
    use crate::shared::SharedPage;
    use crate::sim::{Guest, outside};
    use crate::time::now;

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

    /// Writes a time record, as Xen does.
    fn write(page: SharedPage, record: &TimeRecord) {
        let field = |offset| shared_info::VCPU_TIME + offset;
        page.u64(field(vcpu_time_info::TSC_TIMESTAMP)).store(record.tsc_timestamp, Ordering::SeqCst);
        page.u64(field(vcpu_time_info::SYSTEM_TIME)).store(record.system_time_ns, Ordering::SeqCst);
        page.u32(field(vcpu_time_info::TSC_TO_SYSTEM_MUL)).store(record.tsc_to_system_mul, Ordering::SeqCst);
        page.u8(field(vcpu_time_info::TSC_SHIFT)).store(record.tsc_shift.cast_unsigned(), Ordering::SeqCst);
    }

    /// Words of every size, and those around powers of two.
    fn any_word() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (any::<u64>(), 0..64_u32).prop_map(|(word, bits)| word >> bits),
            (0..64_u32, -2..=2_i64).prop_map(|(bit, offset)| (1_u64 << bit).wrapping_add_signed(offset)),
        ]
    }

    #[test]
    fn fast_path_takes_the_clocks_of_real_cpus() {
        for (khz, shift) in
            [(600_000, 1), (1_000_000, 1), (1_000_001, 0), (2_600_000, -1), (3_900_000, -1), (5_700_000, -2)]
        {
            let hz = u128::from(khz * 1000_u64);
            let halved = if shift > 0 { hz << shift } else { hz >> -shift };
            let mul = u32::try_from((1_000_000_000 << 32) / halved).unwrap();
            for seconds in [0, 1, 3600, 86_400 * 365] {
                let ticks = u64::try_from(hz * seconds).unwrap();
                let found = try_scale(ticks, mul, shift).expect("the fast path");
                assert_eq!(found, scale(ticks, mul, shift), "{khz} kHz, {seconds} s");
                let expected = u64::try_from(seconds * 1_000_000_000).unwrap();
                assert!(found.abs_diff(expected) <= 1 + (expected >> 30), "{khz} kHz, {seconds} s: {found} ns");
            }
        }
    }

    #[test]
    fn inputs_at_the_limits_of_the_fast_path() {
        const MOST: u64 = u64::MAX >> 1;
        for (ticks, mul, shift) in
            [(MOST, u32::MAX, 1), (MOST, u32::MAX, 0), (MOST, u32::MAX, -1), (MOST, u32::MAX, -62), (0, 0, 1)]
        {
            assert_eq!(try_scale(ticks, mul, shift), Some(scale(ticks, mul, shift)), "{ticks} {mul} {shift}");
        }
        for (ticks, shift) in [(MOST + 1, 0), (u64::MAX, -1), (1, 2), (1, -63), (1, i8::MIN), (1, i8::MAX)] {
            assert_eq!(try_scale(ticks, 1, shift), None, "{ticks} {shift}");
        }
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        fn fast_scale_of_any_input_is_exact(ticks in any_word(), mul: u32, shift: i8) {
            let (fast, exact) = (try_scale(ticks, mul, shift), scale(ticks, mul, shift));
            prop_assert!(fast.is_none_or(|fast| fast == exact), "{fast:?} is not {exact}");
            prop_assert_eq!(fast.is_some(), ticks < 1 << 63 && (-62..=1).contains(&shift));
        }

        #[test]
        fn fast_time_of_any_record_is_exact(
            tsc_timestamp in any_word(), system_time_ns in any_word(), tsc_to_system_mul: u32, tsc_shift: i8,
            distance in any_word(),
        ) {
            let record = TimeRecord { tsc_timestamp, system_time_ns, tsc_to_system_mul, tsc_shift };
            let tsc = tsc_timestamp.wrapping_add(distance);
            let (fast, exact) = (try_at(&record, tsc), at(&record, tsc));
            prop_assert!(fast.is_none_or(|fast| fast == exact), "{fast:?} is not {exact}");
            prop_assert!(exact >= system_time_ns);
            // An hour on any CPU up to 8 GHz takes the fast path.
            let is_usual = distance < 3600 * 8_000_000_000 && (-3..=1).contains(&tsc_shift) && system_time_ns < 1 << 62;
            prop_assert!(fast.is_some() || !is_usual);
        }

        /// Both paths follow each other here, in any order.
        #[test]
        fn clock_follows_any_records_and_never_goes_back(
            records in prop::collection::vec((any_word(), any_word(), any::<u32>(), any::<i8>()), 1..20),
        ) {
            let guest = Guest::new().clock_look(Duration::ZERO);
            let report = guest.run(async move |_| {
                let mut last = now();
                for (tsc_timestamp, system_time_ns, tsc_to_system_mul, tsc_shift) in records {
                    let record = TimeRecord { tsc_timestamp, system_time_ns, tsc_to_system_mul, tsc_shift };
                    outside(|outside| write(outside.info(), &record));
                    let found = now();
                    assert_eq!(found.as_nanos(), at(&record, arch::read_tsc()).max(last.as_nanos()), "{record:?}");
                    last = found;
                }
            });
            report.powered_off();
        }

        #[test]
        fn never_overflows_and_never_goes_backwards(a: u64, b: u64, mul: u32, shift: i8) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(scale(low, mul, shift) <= scale(high, mul, shift));
        }
    }
}
