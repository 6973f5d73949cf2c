//! The one place where a hypercall leaves the program: VMCALL or VMMCALL in a unikernel, the simulated Xen elsewhere.
//!
//! No hypercall page is used: it is a page of code that the guest did not write, without landing pads, and current
//! Linux gave it up for that (XSA-466). The boot code chose the instruction by the CPU's vendor.

#[cfg(target_os = "none")]
use core::sync::atomic::{AtomicU64, Ordering};

use crate::abi::xen::Hypercall;
#[cfg(target_os = "none")]
use crate::arch;

/// One argument: a number, or a pointer that keeps its provenance on the way into the simulated Xen.
#[derive(Clone, Copy)]
pub(crate) struct Arg(*mut ());

impl Arg {
    /// An argument that is not used.
    pub(crate) const NONE: Self = Self(core::ptr::null_mut());

    /// A number.
    pub(crate) const fn int(value: u64) -> Self {
        Self(core::ptr::without_provenance_mut(value as usize))
    }

    /// A pointer to a structure that Xen reads.
    pub(crate) const fn input<T>(value: &T) -> Self {
        Self(core::ptr::from_ref(value).cast_mut().cast())
    }

    /// A pointer to a structure that Xen reads and writes.
    pub(crate) const fn inout<T>(value: &mut T) -> Self {
        Self(core::ptr::from_mut(value).cast())
    }

    /// A pointer to bytes that Xen reads.
    pub(crate) const fn bytes(value: &[u8]) -> Self {
        Self(value.as_ptr().cast_mut().cast())
    }

    /// A pointer to structures that Xen reads and writes.
    pub(crate) const fn slice<T>(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr().cast())
    }

    /// The number in this argument.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn as_int(self) -> u64 {
        self.0.addr() as u64
    }

    /// The pointer in this argument.
    #[cfg(not(target_os = "none"))]
    pub(crate) const fn as_ptr<T>(self) -> *mut T {
        self.0.cast()
    }
}

/// Hypercalls so far.
#[cfg(target_os = "none")]
static CALLS: AtomicU64 = AtomicU64::new(0);

/// How many hypercalls were made so far.
#[cfg(target_os = "none")]
pub(crate) fn count() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// How many hypercalls were made so far: none outside of a domain.
#[cfg(not(target_os = "none"))]
pub(crate) fn count() -> u64 {
    crate::sim::machine::if_there(|machine| machine.hypercalls.len() as u64).unwrap_or(0)
}

/// Calls Xen and returns what it left in RAX: a negative error number, or a result of the call.
///
/// # Safety
///
/// Each pointer among the arguments is valid for what this hypercall reads and writes through it, and the call itself
/// takes no memory away from the program that is still in use.
#[cfg(target_os = "none")]
#[inline(never)]
pub(crate) unsafe fn call(number: Hypercall, args: [Arg; 5]) -> i64 {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let result: i64;
    // SAFETY: the caller vouches for the memory that Xen touches, which the block declares by not being `nomem`. All
    // five argument registers are outputs, since Xen may clobber those that a call uses; the two instructions touch
    // no stack. Each is executed only on a CPU of the vendor that has it. They are not reached without Xen: boot
    // looks for it first, and ends where it is absent.
    unsafe {
        if arch::cpu().vmmcall != 0 {
            core::arch::asm!(
                "vmmcall",
                inlateout("rax") number as u64 => result,
                inlateout("rdi") args[0].0 => _,
                inlateout("rsi") args[1].0 => _,
                inlateout("rdx") args[2].0 => _,
                inlateout("r10") args[3].0 => _,
                inlateout("r8") args[4].0 => _,
                options(nostack),
            );
        } else {
            core::arch::asm!(
                "vmcall",
                inlateout("rax") number as u64 => result,
                inlateout("rdi") args[0].0 => _,
                inlateout("rsi") args[1].0 => _,
                inlateout("rdx") args[2].0 => _,
                inlateout("r10") args[3].0 => _,
                inlateout("r8") args[4].0 => _,
                options(nostack),
            );
        }
    }
    result
}

/// Calls the simulated Xen of this thread: an error outside of a domain.
///
/// # Safety
///
/// As in a unikernel: each pointer among the arguments is valid for what this hypercall does with it.
#[cfg(not(target_os = "none"))]
pub(crate) unsafe fn call(number: Hypercall, args: [Arg; 5]) -> i64 {
    if crate::sim::machine::if_there(|_| ()).is_none() {
        return -i64::from(crate::abi::errno::Errno::ESRCH.0);
    }
    // SAFETY: the caller vouches for the pointers, which is all that the simulated Xen asks.
    unsafe { crate::sim::hypercall(number, args) }
}
