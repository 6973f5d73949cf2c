//! The page of shared information: whether events are pending, and the time of this vCPU.

use core::sync::atomic::{AtomicBool, Ordering, fence};

use super::SharedPage;
use crate::abi::errno::Errno;
use crate::abi::xen::{shared_info as offset, vcpu_time_info as time};
use crate::hypercall;
use crate::local::domain_local;

domain_local! {
    /// The page of shared information.
    pub(crate) static INFO: SharedInfo;
}

/// The shared information page, once Xen has placed it.
#[derive(Debug)]
pub(crate) struct SharedInfo {
    page: SharedPage,
    frame: u64,
    /// The last bounded wait for the time record's version lock failed.
    time_stuck: AtomicBool,
    /// The same of the wall clock's.
    wall_clock_stuck: AtomicBool,
}

/// Attempts to read under a version lock before it is taken for one that nothing releases: a tenth of a second and more. Later
/// reads make one attempt each, until one succeeds: a caller that polls the clock is not held up at each read.
const ATTEMPTS: u32 = if cfg!(test) { 1_000 } else { 10_000_000 };

/// A consistent copy of the vCPU's time record.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TimeRecord {
    pub(crate) tsc_timestamp: u64,
    pub(crate) system_time_ns: u64,
    pub(crate) tsc_to_system_mul: u32,
    pub(crate) tsc_shift: i8,
}

impl SharedInfo {
    /// Takes over the page that Xen has placed at a frame.
    pub(crate) fn new(page: SharedPage, frame: u64) -> Self {
        let info = Self { page, frame, time_stuck: AtomicBool::new(false), wall_clock_stuck: AtomicBool::new(false) };
        info.mask_all();
        info
    }

    /// Masks all ports: they start unmasked, and nothing here waits for an interrupt.
    fn mask_all(&self) {
        for word in 0..offset::WORDS {
            self.page.u64(offset::MASK + 8 * word).store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Whether Xen's page is where it was placed. In another domain nothing is there, which reads as ones, as no time does.
    pub(crate) fn is_there(&self) -> bool {
        let field = |at| self.page.u64(offset::VCPU_TIME + at).load(Ordering::Relaxed);
        [time::TSC_TIMESTAMP, time::SYSTEM_TIME].into_iter().any(|at| field(at) != u64::MAX)
    }

    /// Has Xen place its page at the same frame again, after a resume. Until then the memory there reads as ones: a version
    /// lock would never be free.
    pub(crate) fn resume(&self) -> Result<(), Errno> {
        // SAFETY: the frame is this page's, and nothing else's; nothing lies there now.
        unsafe { hypercall::memory_map_shared_info(self.frame) }?;
        self.time_stuck.store(false, Ordering::Relaxed);
        self.wall_clock_stuck.store(false, Ordering::Relaxed);
        self.mask_all();
        Ok(())
    }

    /// The page itself, for the event channels' part of it.
    pub(crate) const fn page(&self) -> &SharedPage {
        &self.page
    }

    /// Whether an event was raised since the last [`take_upcall`](Self::take_upcall).
    pub(crate) fn upcall_pending(&self) -> bool {
        self.page.u8(offset::UPCALL_PENDING).load(Ordering::SeqCst) != 0
    }

    /// Takes note of an upcall. What was raised before it is to be looked for now: what is raised from here on sets it anew.
    pub(crate) fn take_upcall(&self) {
        self.page.u8(offset::UPCALL_PENDING).swap(0, Ordering::SeqCst);
    }

    /// Has the next turn look for events, as Xen does when it raises one.
    pub(crate) fn set_upcall(&self) {
        self.page.u8(offset::UPCALL_PENDING).store(1, Ordering::SeqCst);
    }

    /// Repeats an attempt to read under a version lock, up to the bound and while the page is in place. A crash between a suspend
    /// and Xen's placing the page again reads ones, an odd version, for ever.
    fn retry<T>(&self, stuck: &AtomicBool, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        // One vCPU: relaxed accesses suffice.
        let most = if stuck.load(Ordering::Relaxed) { 1 } else { ATTEMPTS };
        for _ in 0..most {
            if let Some(value) = attempt() {
                stuck.store(false, Ordering::Relaxed);
                return Some(value);
            }
            if !self.is_there() {
                return None;
            }
        }
        stuck.store(true, Ordering::Relaxed);
        None
    }

    /// Reads the wall clock under its version lock: seconds and nanoseconds since 1970 at system time zero. `None` if the lock
    /// is never free.
    pub(crate) fn read_wall_clock(&self) -> Option<(u64, u32)> {
        let version = self.page.u32(offset::WALL_CLOCK_VERSION);
        self.retry(&self.wall_clock_stuck, || {
            // Xen makes the version odd while dom0 sets the time, which takes it moments.
            let before = version.load(Ordering::Acquire);
            let field = |at| self.page.u32(at).load(Ordering::Relaxed);
            let seconds =
                u64::from(field(offset::WALL_CLOCK_SECONDS_HIGH)) << 32 | u64::from(field(offset::WALL_CLOCK_SECONDS));
            let nanoseconds = field(offset::WALL_CLOCK_NANOSECONDS);
            fence(Ordering::Acquire);
            (before & 1 == 0 && version.load(Ordering::Relaxed) == before).then_some((seconds, nanoseconds))
        })
    }

    /// Reads the time record under its version lock, with the time stamp counter of the same moment. `None` if the lock is never
    /// free.
    pub(crate) fn read_time(&self, read_tsc: impl Fn() -> u64) -> Option<(TimeRecord, u64)> {
        // Xen makes the version odd while it writes, on this CPU's behalf: the loop ends with its update.
        self.retry(&self.time_stuck, || self.try_read_time(&read_tsc))
    }

    /// Reads the time record and the time stamp counter once; `None` if Xen wrote the record during the read.
    #[inline(always)]
    pub(crate) fn try_read_time(&self, read_tsc: impl Fn() -> u64) -> Option<(TimeRecord, u64)> {
        let page = self.page;
        let version = page.u32(offset::VCPU_TIME + time::VERSION);
        // An odd version, which marks a record that is being written, is made even and so never matches.
        let before = version.load(Ordering::Acquire) & !1;
        let field = |at| page.u64(offset::VCPU_TIME + at).load(Ordering::Relaxed);
        let record = TimeRecord {
            tsc_timestamp: field(time::TSC_TIMESTAMP),
            system_time_ns: field(time::SYSTEM_TIME),
            tsc_to_system_mul: page.u32(offset::VCPU_TIME + time::TSC_TO_SYSTEM_MUL).load(Ordering::Relaxed),
            tsc_shift: page.u8(offset::VCPU_TIME + time::TSC_SHIFT).load(Ordering::Relaxed).cast_signed(),
        };
        let tsc = read_tsc();
        fence(Ordering::Acquire);
        (version.load(Ordering::Relaxed) == before).then_some((record, tsc))
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::time::Duration;
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::sim::access::script;
    use crate::sim::{Backend, Guest, Saved, outside};
    use crate::{lifecycle, local, time as clocks};

    fn run(main: impl AsyncFnOnce(&SharedInfo)) {
        Guest::new()
            .run(async |_| {
                // From here on Xen gives the wall clock.
                let _ = clocks::wall_clock();
                main(INFO.of(local::current().expect("it runs"))).await;
            })
            .powered_off();
    }

    #[test]
    fn a_wall_clock_that_is_set_while_it_is_read_is_old_or_new() {
        run(async |info| {
            let mut old = info.read_wall_clock().expect("the lock is free");
            // The word of its version, and three fields; what comes then comes behind them.
            for place in 0..5 {
                // All fields differ.
                let now_ns = [1_000_000_000_100_000_000, 5_000_000_000_900_000_000][place % 2];
                script::begin(vec![(place, Box::new(move |outside| outside.set_wall_clock(now_ns)))]);
                let found = info.read_wall_clock().expect("the lock comes free");
                script::end().1.into_iter().for_each(|(_, act)| outside(act));
                let new = info.read_wall_clock().expect("the lock is free");
                assert_eq!(found, if place < 4 { new } else { old }, "{place}");
                assert_ne!(new, old);
                old = new;
            }
        });
    }

    #[test]
    fn a_wall_clock_that_is_being_set_is_waited_for() {
        run(async |info| {
            let old = info.read_wall_clock();
            let change = |outside: &mut crate::sim::Outside<'_>| {
                let page = outside.info();
                page.u32(offset::WALL_CLOCK_SECONDS).fetch_xor(0xdead, Ordering::SeqCst);
                page.u32(offset::WALL_CLOCK_VERSION).fetch_add(1, Ordering::SeqCst);
            };
            outside(change);
            script::begin(vec![(14, Box::new(change))]);
            assert_eq!(info.read_wall_clock(), old);
            let (accesses, later) = script::end();
            assert!(accesses > 14 && later.is_empty(), "{accesses}");
        });
    }

    /// Has Xen write a time record of this number alone; but for the end, if it is to last.
    fn write_time(page: SharedPage, value: u8, lasts: bool) {
        let at = |field| offset::VCPU_TIME + field;
        page.u32(at(time::VERSION)).fetch_add(1, Ordering::SeqCst);
        page.u64(at(time::TSC_TIMESTAMP)).store(value.into(), Ordering::SeqCst);
        page.u64(at(time::SYSTEM_TIME)).store(value.into(), Ordering::SeqCst);
        page.u32(at(time::TSC_TO_SYSTEM_MUL)).store(value.into(), Ordering::SeqCst);
        page.u8(at(time::TSC_SHIFT)).store(value, Ordering::SeqCst);
        page.u32(at(time::VERSION)).fetch_add(u32::from(!lasts), Ordering::SeqCst);
    }

    #[test]
    fn a_time_record_that_is_written_while_it_is_read_is_read_again() {
        run(async |info| {
            let reads = Cell::new(0);
            // The counter is read behind the fields.
            let read = info.read_time(|| {
                reads.set(reads.get() + 1);
                if reads.get() == 1 {
                    outside(|outside| write_time(outside.info(), 5, false));
                }
                reads.get()
            });
            let (record, tsc) = read.expect("a record");
            assert_eq!((record.tsc_timestamp, record.system_time_ns, tsc), (5, 5, 2));
            assert_eq!((record.tsc_to_system_mul, record.tsc_shift), (5, 5));
        });
    }

    #[test]
    fn a_time_record_that_is_behind_the_last_does_not_turn_the_clock_back() {
        run(async |_| {
            let before = clocks::now();
            outside(|outside| write_time(outside.info(), 1, false));
            assert_eq!((clocks::now(), clocks::now()), (before, before));
        });
    }

    #[test]
    fn one_attempt_fails_while_a_record_is_written() {
        run(async |info| {
            assert!(info.try_read_time(|| 1).is_some());
            let read = info.try_read_time(|| {
                outside(|outside| write_time(outside.info(), 7, false));
                1
            });
            assert!(read.is_none(), "written while it was read: {read:?}");
            outside(|outside| write_time(outside.info(), 8, true));
            let read = info.try_read_time(|| 1);
            assert!(read.is_none(), "the version was odd: {read:?}");
            outside(|outside| {
                outside.info().u32(offset::VCPU_TIME + time::VERSION).fetch_add(1, Ordering::SeqCst);
            });
            let (record, tsc) = info.try_read_time(|| 9).expect("the version is even");
            assert_eq!((record.tsc_timestamp, record.tsc_shift, tsc), (8, 8, 9));
        });
    }

    #[test]
    fn version_lock_never_free_stops_the_clock() {
        run(async |info| {
            let now = clocks::now();
            outside(hold_locks);
            let reads = Cell::new(0);
            let read = info.read_time(|| {
                reads.set(reads.get() + 1);
                7
            });
            assert!(read.is_none(), "{read:?}");
            assert_eq!((reads.get(), info.read_wall_clock()), (ATTEMPTS, None));
            assert_eq!((clocks::now(), clocks::wall_clock()), (now, Duration::ZERO));
        });
    }

    /// Has Xen hold both version locks from here on.
    fn hold_locks(outside: &mut crate::sim::Outside<'_>) {
        let page = outside.info();
        page.u32(offset::VCPU_TIME + time::VERSION).fetch_or(1, Ordering::SeqCst);
        page.u32(offset::WALL_CLOCK_VERSION).fetch_or(1, Ordering::SeqCst);
    }

    #[test]
    fn stuck_lock_stops_the_clock_after_a_resume() {
        const SECOND: Duration = Duration::from_secs(1);
        // The new host runs for longer than the old one, or for less: the offset to its clock has either sign.
        for uptime in [10_000 * 3600 * SECOND, Duration::from_nanos(1)] {
            Guest::new()
                .saves(move || Saved::Moved(SECOND, uptime))
                .run(async |_| {
                    lifecycle::suspend().await.expect("a resume");
                    let before = clocks::now();
                    outside(hold_locks);
                    assert_eq!((clocks::now(), clocks::now()), (before, before), "{uptime:?}");
                    let info = INFO.of(local::current().expect("it runs"));
                    let words: Vec<u64> =
                        (0..512).map(|word| info.page.u64(8 * word).swap(u64::MAX, Ordering::SeqCst)).collect();
                    assert_eq!((clocks::now(), clocks::now()), (before, before), "{uptime:?}, no page");
                    for (index, word) in words.into_iter().enumerate() {
                        info.page.u64(8 * index).store(word, Ordering::SeqCst);
                    }
                })
                .powered_off();
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of looks at a stalled console take Miri half an hour")]
    fn domain_with_stuck_locks_ends_in_bounded_time() {
        // The backend reads nothing, so the domain waits for it, by the clock, when it ends.
        let report = Guest::new().backend(Backend::StopsAfter(0)).run(async |domain| {
            domain.console().write(b"unread").await.expect("room");
            outside(hold_locks);
        });
        // A look at the clock takes 1 µs here.
        assert!(report.elapsed_ns < 1_000_000_000, "{} ms", report.elapsed_ns / 1_000_000);
        report.powered_off();
    }

    #[test]
    fn freed_lock_is_waited_for_again() {
        run(async |info| {
            outside(hold_locks);
            let reads = Cell::new(0);
            let read = || {
                reads.set(reads.get() + 1);
                reads.get()
            };
            for expected in [ATTEMPTS, ATTEMPTS + 1, ATTEMPTS + 2].map(u64::from) {
                assert!(info.read_time(read).is_none());
                assert_eq!(reads.get(), expected);
            }
            outside(|outside| write_time(outside.info(), 6, false));
            outside(|outside| {
                outside.info().u32(offset::VCPU_TIME + time::VERSION).fetch_and(!1, Ordering::SeqCst);
            });
            assert!(info.read_time(read).is_some());
            outside(hold_locks);
            reads.set(0);
            assert!(info.read_time(read).is_none());
            assert_eq!(reads.get(), u64::from(ATTEMPTS));
        });
    }

    #[test]
    fn absent_page_stops_the_clock_at_once() {
        run(async |info| {
            let now = clocks::now();
            outside(|outside| {
                let page = outside.info();
                for word in 0..512 {
                    page.u64(8 * word).store(u64::MAX, Ordering::SeqCst);
                }
            });
            let reads = Cell::new(0);
            let read = info.read_time(|| {
                reads.set(reads.get() + 1);
                7
            });
            assert!(read.is_none(), "{read:?}");
            assert_eq!((reads.get(), info.read_wall_clock(), clocks::now()), (1, None, now));
            // The domain ends in the usual way.
            outside(|outside| {
                let page = outside.info();
                (0..512).for_each(|word| page.u64(8 * word).store(0, Ordering::SeqCst));
            });
        });
    }

    #[test]
    fn a_time_record_that_is_being_written_is_waited_for() {
        run(async |info| {
            let reads = Cell::new(0);
            outside(|outside| write_time(outside.info(), 3, true));
            let read = info.read_time(|| {
                reads.set(reads.get() + 1);
                if reads.get() == 3 {
                    outside(|outside| {
                        let page = outside.info();
                        page.u32(offset::VCPU_TIME + time::VERSION).fetch_sub(1, Ordering::SeqCst);
                        write_time(page, 6, false);
                    });
                }
                reads.get()
            });
            let (record, tsc) = read.expect("a record");
            assert_eq!((record.tsc_timestamp, record.system_time_ns, tsc), (6, 6, 4));
        });
    }
}
