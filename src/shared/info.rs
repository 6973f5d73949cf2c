//! The page of shared information: pending events, and the time of this vCPU.

use core::sync::atomic::{Ordering, fence};

use super::page::SharedPage;
use crate::abi::xen::{shared_info as offset, vcpu_time_info as time};

/// The shared information page, once Xen has placed it.
#[derive(Debug)]
pub(crate) struct SharedInfo(SharedPage);

/// A consistent copy of the vCPU's time record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeRecord {
    pub(crate) tsc_timestamp: u64,
    pub(crate) system_time_ns: u64,
    pub(crate) tsc_to_system_mul: u32,
    pub(crate) tsc_shift: i8,
}

impl SharedInfo {
    /// Takes the page over and masks all ports: they start unmasked, and nothing here waits for an interrupt.
    pub(crate) fn new(page: SharedPage) -> Self {
        for word in 0..offset::WORDS {
            page.u64(offset::MASK + 8 * word).store(u64::MAX, Ordering::Relaxed);
        }
        Self(page)
    }

    /// Forgets that a port is pending, so that the next event on it can be noticed.
    pub(crate) fn clear_pending(&self, port: u32) {
        let word = self.0.u64(offset::PENDING + 8 * (port as usize / 64));
        word.fetch_and(!(1 << (port % 64)), Ordering::SeqCst);
    }

    /// Whether Xen has raised an event since the last [`take_upcall`](Self::take_upcall).
    pub(crate) fn upcall_pending(&self) -> bool {
        self.0.u8(offset::UPCALL_PENDING).load(Ordering::SeqCst) != 0
    }

    /// Takes note of an upcall, and returns the words of the bitmaps that may have pending ports, as bits.
    ///
    /// | Xen, for an event | here |
    /// |---|---|
    /// | 1. sets the port's pending bit | 1. clears upcall_pending |
    /// | 2. sets the word's bit in the selector | 2. swaps the selector with zero |
    /// | 3. sets upcall_pending | 3. reads and clears pending bits |
    ///
    /// Each step is sequentially consistent. An event whose third step comes before our first has its bits seen by our
    /// second and third; one whose third step comes later leaves upcall_pending set, and is seen in the next turn.
    pub(crate) fn take_upcall(&self) -> u64 {
        self.0.u8(offset::UPCALL_PENDING).swap(0, Ordering::SeqCst);
        self.0.u64(offset::PENDING_SELECTOR).swap(0, Ordering::SeqCst)
    }

    /// Takes the ports of a word that are pending and not masked: they are masked and no longer pending.
    pub(crate) fn take_ports(&self, word: usize) -> u64 {
        // Looked up for each access, since the simulated Xen may act before each look-up.
        let pending = || self.0.u64(offset::PENDING + 8 * word);
        let mask = || self.0.u64(offset::MASK + 8 * word);
        let unmasked = !mask().load(Ordering::SeqCst);
        let ready = pending().load(Ordering::SeqCst) & unmasked;
        if ready != 0 {
            mask().fetch_or(ready, Ordering::SeqCst);
            pending().fetch_and(!ready, Ordering::SeqCst);
        }
        ready
    }

    /// Keeps events on a port from being taken.
    pub(crate) fn mask(&self, port: u32) {
        self.0.u64(offset::MASK + 8 * (port as usize / 64)).fetch_or(1 << (port % 64), Ordering::SeqCst);
    }

    /// Lets events on a port be taken again. One that came meanwhile is raised anew, as Xen would, but without asking it:
    /// the port notifies the only virtual CPU.
    pub(crate) fn unmask(&self, port: u32) {
        let (word, bit) = (port as usize / 64, 1_u64 << (port % 64));
        self.0.u64(offset::MASK + 8 * word).fetch_and(!bit, Ordering::SeqCst);
        if self.0.u64(offset::PENDING + 8 * word).load(Ordering::SeqCst) & bit != 0 {
            self.0.u64(offset::PENDING_SELECTOR).fetch_or(1 << word, Ordering::SeqCst);
            self.0.u8(offset::UPCALL_PENDING).store(1, Ordering::SeqCst);
        }
    }

    /// Reads the wall clock under its version lock: seconds and nanoseconds since 1970 at system time zero.
    pub(crate) fn read_wall_clock(&self) -> (u64, u32) {
        let version = self.0.u32(offset::WALL_CLOCK_VERSION);
        loop {
            // Xen makes the version odd while dom0 sets the time, which takes it moments.
            let before = version.load(Ordering::Acquire);
            let field = |at| self.0.u32(at).load(Ordering::Relaxed);
            let seconds =
                u64::from(field(offset::WALL_CLOCK_SECONDS_HIGH)) << 32 | u64::from(field(offset::WALL_CLOCK_SECONDS));
            let nanoseconds = field(offset::WALL_CLOCK_NANOSECONDS);
            fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                return (seconds, nanoseconds);
            }
        }
    }

    /// Reads the time record under its version lock, with the time stamp counter of the same moment.
    pub(crate) fn read_time(&self, read_tsc: impl Fn() -> u64) -> (TimeRecord, u64) {
        let version = self.0.u32(offset::VCPU_TIME + time::VERSION);
        loop {
            // Xen makes the version odd while it writes, on this CPU's behalf: the loop ends with its update.
            let before = version.load(Ordering::Acquire);
            let field = |at| self.0.u64(offset::VCPU_TIME + at).load(Ordering::Relaxed);
            let record = TimeRecord {
                tsc_timestamp: field(time::TSC_TIMESTAMP),
                system_time_ns: field(time::SYSTEM_TIME),
                tsc_to_system_mul: self.0.u32(offset::VCPU_TIME + time::TSC_TO_SYSTEM_MUL).load(Ordering::Relaxed),
                tsc_shift: self.0.u8(offset::VCPU_TIME + time::TSC_SHIFT).load(Ordering::Relaxed).cast_signed(),
            };
            let tsc = read_tsc();
            fence(Ordering::Acquire);
            if before & 1 == 0 && version.load(Ordering::Relaxed) == before {
                return (record, tsc);
            }
        }
    }
}
