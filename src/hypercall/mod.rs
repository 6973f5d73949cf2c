//! Typed hypercalls: one safe function for each operation that the crate uses, errors as [`Errno`].
//!
//! Only operations that cannot break memory safety are safe here; taking memory away from the domain, or placing
//! pages over it, is `unsafe` and says what the caller owes.

mod detect;
mod events;
mod grants;
mod raw;
mod ring_params;

pub use detect::XenVersion;
pub(crate) use detect::{Leaves, Xen, domain_id, present};
pub(crate) use events::*;
pub(crate) use grants::*;
pub(crate) use raw::{Arg, call, count};
pub(crate) use ring_params::RingParams;

use crate::abi::errno::Errno;
use crate::abi::memory::{AddToPhysmap, E820Entry, MAP_SPACE_SHARED_INFO, MemoryMap, Reservation};
use crate::abi::sched::{Poll, Reason, Shutdown, Watchdog};
use crate::abi::xen::{CONSOLE_IO_WRITE, DomainId, Hypercall};
use crate::abi::{hvm, memory, sched};
use crate::arch;
use crate::local::{Booting, Instance, domain_local, vcpu_local};
use crate::sync::Mutex;
use core::sync::atomic::{AtomicBool, Ordering};

domain_local! {
    /// The version of Xen, and the number of the domain.
    pub(crate) static XEN: Mutex<Xen>;
}

vcpu_local! {
    /// Pending events interrupt a halt of the virtual CPU.
    static CALLBACK: AtomicBool = AtomicBool::new(false);
}

/// Has pending events end a halt. Done when it is first needed: a domain that never waits has no use for it.
pub(crate) fn enable_callback(here: Instance) -> Result<(), Errno> {
    if CALLBACK.of(here).load(Ordering::Relaxed) {
        return Ok(());
    }
    set_callback_vector(arch::CALLBACK_VECTOR)?;
    CALLBACK.of(here).store(true, Ordering::Relaxed);
    Ok(())
}

/// The same after a resume, which has cancelled it.
pub(crate) fn resume_callback(here: Instance) -> Result<(), Errno> {
    CALLBACK.of(here).store(false, Ordering::Relaxed);
    enable_callback(here)
}

/// Makes the locals of this module that are constants.
pub(crate) fn start(booting: &Booting) {
    CALLBACK.start(booting);
}

/// The number of the domain. It changes when the domain is restored or migrated.
pub(crate) fn domain(domain: Instance) -> DomainId {
    XEN.of(domain).lock().domain
}

/// Splits what a hypercall returned into a count and an error.
fn check(result: i64) -> Result<u64, Errno> {
    // Error numbers are small; anything else that is negative was never promised and is kept readable.
    u64::try_from(result).map_err(|_| Errno(i32::try_from(-i128::from(result)).unwrap_or(i32::MAX)))
}

/// Reads a parameter of the own domain.
pub(crate) fn hvm_get_param(index: u32) -> Result<u64, Errno> {
    let mut param = hvm::Param { domid: DomainId::SELF.0, pad: 0, index, value: 0 };
    // SAFETY: Xen reads and writes the structure, which is live and exclusively borrowed for the call.
    let result = unsafe {
        call(Hypercall::Hvm, [Arg::int(hvm::GET_PARAM), Arg::inout(&mut param), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|_| param.value)
}

/// Sleeps until the port is pending or the system time is reached; other causes may end the sleep early.
pub(crate) fn sched_poll(port: u32, deadline_ns: u64) -> Result<(), Errno> {
    let poll = Poll { ports: &raw const port, nr_ports: 1, timeout: deadline_ns };
    // SAFETY: Xen reads the structure and, through it, one port; both are live for the call.
    let result =
        unsafe { call(Hypercall::Sched, [Arg::int(sched::POLL), Arg::input(&poll), Arg::NONE, Arg::NONE, Arg::NONE]) };
    check(result).map(|_| ())
}

/// Ends the domain with a reason. Returns only if Xen refuses, which it has no cause to.
pub(crate) fn sched_shutdown(reason: Reason) -> Errno {
    let shutdown = Shutdown { reason: reason as u32 };
    // SAFETY: Xen reads the structure, which is live for the call.
    let result = unsafe {
        call(Hypercall::Sched, [Arg::int(sched::SHUTDOWN), Arg::input(&shutdown), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).err().unwrap_or(Errno::EINVAL)
}

/// Suspends the domain, and returns in what goes on: true if the toolstack says that it is this one, as nothing came of it or a
/// copy was all that was wanted; false in another, where nothing that Xen had of this one is left but memory and the virtual
/// CPU, or if the toolstack does not say.
///
/// # Safety
///
/// In another domain the page of shared information, the grant table and what was mapped are gone: what is behind them is not
/// accessed before it is made anew, but by types whose accesses find ones then.
pub(crate) unsafe fn sched_suspend() -> Result<bool, Errno> {
    let shutdown = Shutdown { reason: sched::SUSPEND };
    // SAFETY: Xen reads the structure, which is live for the call; what is taken away is the caller's promise.
    let result = unsafe {
        call(Hypercall::Sched, [Arg::int(sched::SHUTDOWN), Arg::input(&shutdown), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|result| result != 0)
}

/// Starts a watchdog, feeds it or stops it, and returns its number if it is a new one.
pub(crate) fn sched_watchdog(id: u32, seconds: u32) -> Result<u32, Errno> {
    let watchdog = Watchdog { id, timeout: seconds };
    // SAFETY: Xen reads the structure, which is live for the call.
    let result = unsafe {
        call(Hypercall::Sched, [Arg::int(sched::WATCHDOG), Arg::input(&watchdog), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    // Xen makes an error of it in 32 bits, of which the register has no sign.
    check(i64::from(result as i32)).map(|id| id as u32)
}

/// Writes text on the hypervisor's console. Only a privileged domain, or any on a debug build of Xen, may.
pub(crate) fn console_io_write(text: &[u8]) -> Result<(), Errno> {
    // SAFETY: Xen reads `text.len()` bytes from the slice, which is live for the call.
    let result = unsafe {
        call(
            Hypercall::ConsoleIo,
            [Arg::int(CONSOLE_IO_WRITE), Arg::int(text.len() as u64), Arg::bytes(text), Arg::NONE, Arg::NONE],
        )
    };
    check(result).map(|_| ())
}

/// The pages that the domain has now, in all of its address space.
pub(crate) fn memory_current_reservation() -> Result<u64, Errno> {
    ask_memory(memory::CURRENT_RESERVATION)
}

/// The pages that the domain may have.
pub(crate) fn memory_maximum_reservation() -> Result<u64, Errno> {
    ask_memory(memory::MAXIMUM_RESERVATION)
}

/// Asks for a number of the own domain's.
fn ask_memory(operation: u64) -> Result<u64, Errno> {
    let domain = DomainId::SELF.0;
    // SAFETY: Xen reads the domain id, which is live for the call.
    let result =
        unsafe { call(Hypercall::Memory, [Arg::int(operation), Arg::input(&domain), Arg::NONE, Arg::NONE, Arg::NONE]) };
    check(result)
}

/// Fills `entries` with the memory map and returns how many there are.
pub(crate) fn memory_map(entries: &mut [E820Entry]) -> Result<usize, Errno> {
    let capacity = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut map = MemoryMap { nr_entries: capacity, buffer: entries.as_mut_ptr() };
    // SAFETY: Xen reads and writes the structure and stores at most `nr_entries` entries behind its pointer, which is
    // the exclusively borrowed slice of at least that length.
    let result = unsafe {
        call(Hypercall::Memory, [Arg::int(memory::MEMORY_MAP), Arg::inout(&mut map), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|_| (map.nr_entries as usize).min(entries.len()))
}

/// Gives extents of 2^`order` pages back to Xen and returns how many were taken, which may be fewer.
///
/// # Safety
///
/// Nothing uses the memory of these extents, now or later: it reads as ones and loses what is written.
pub(crate) unsafe fn memory_decrease_reservation(frames: &[u64], order: u32) -> Result<usize, Errno> {
    // SAFETY: that the memory is unused is the caller's promise.
    unsafe { change_reservation(memory::DECREASE_RESERVATION, frames, order) }
}

/// Asks Xen for zeroed pages in extents of 2^`order`, and returns how many it filled in, which may be fewer: the first.
///
/// # Safety
///
/// There is nothing in these extents: a page that lies there is lost.
pub(crate) unsafe fn memory_populate_physmap(frames: &[u64], order: u32) -> Result<usize, Errno> {
    // SAFETY: that there is nothing is the caller's promise.
    unsafe { change_reservation(memory::POPULATE_PHYSMAP, frames, order) }
}

/// Has Xen do something with extents, and returns with how many it did.
///
/// # Safety
///
/// As the operation asks.
unsafe fn change_reservation(operation: u64, frames: &[u64], order: u32) -> Result<usize, Errno> {
    let reservation = Reservation {
        extent_start: frames.as_ptr(),
        nr_extents: frames.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: DomainId::SELF.0,
    };
    // SAFETY: Xen reads the structure and `nr_extents` frame numbers, both live for the call; it writes no frame number
    // for a domain whose memory it translates. What happens to the memory is the caller's promise.
    let result = unsafe {
        call(Hypercall::Memory, [Arg::int(operation), Arg::input(&reservation), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|done| (done as usize).min(frames.len()))
}

/// Places the page of shared information at a guest-physical frame.
///
/// # Safety
///
/// Nothing uses that frame: a page of RAM that lies there is lost.
pub(crate) unsafe fn memory_map_shared_info(frame: u64) -> Result<(), Errno> {
    let request =
        AddToPhysmap { domid: DomainId::SELF.0, size: 0, space: MAP_SPACE_SHARED_INFO, index: 0, gpfn: frame };
    // SAFETY: Xen reads the structure, which is live for the call; that the frame is unused is the caller's promise.
    let result = unsafe {
        call(
            Hypercall::Memory,
            [Arg::int(memory::ADD_TO_PHYSMAP), Arg::input(&request), Arg::NONE, Arg::NONE, Arg::NONE],
        )
    };
    check(result).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_split_into_counts_and_errors() {
        assert_eq!(check(0), Ok(0));
        assert_eq!(check(7), Ok(7));
        assert_eq!(check(-22), Err(Errno::EINVAL));
        assert_eq!(check(i64::MIN), Err(Errno(i32::MAX)));
    }
}
