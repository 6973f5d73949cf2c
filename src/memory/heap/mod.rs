//! The heap of a unikernel: all RAM that boot leaves free, for `alloc`. The host has one of its own.
//!
//! It is a static, because the attribute asks for one; everything else of a domain is a domain-local. [`crate::main!`] makes it the
//! program's allocator, or gives the RAM to one of the program's own. Then this heap stays empty, and so do its statistics.

#[cfg(all(feature = "allocator", any(target_os = "none", test)))]
mod canary;
pub(super) mod check;
#[cfg(all(target_os = "none", feature = "allocator"))]
pub(crate) mod global;
#[cfg(all(feature = "allocator", any(target_os = "none", test)))]
mod hardened;
#[cfg_attr(
    not(all(feature = "allocator", target_os = "none")),
    expect(dead_code, reason = "only this crate's own heap asks the handler")
)]
pub(crate) mod oom;

use self::check::{Accounts, Damage, Walked};
#[cfg(all(target_os = "none", feature = "allocator"))]
use self::hardened::Hardened;
use crate::memory::map::frame_set::FrameRange;

#[cfg(target_os = "none")]
unsafe extern "Rust" {
    /// Takes RAM for the program's `#[global_allocator]`: defined by [`crate::main!`].
    fn __domu_claim_memory(start: *mut u8, size: usize);
}

/// Adds frames to the heap, to the piece that ends where they begin, if there is one.
///
/// # Safety
///
/// They are RAM, mapped read-write, and used by nothing else from now on.
#[cfg(target_os = "none")]
pub(crate) unsafe fn claim(range: FrameRange) {
    let (start, size) = (crate::arch::phys(range.start << 12), (range.len() << 12) as usize);
    // SAFETY: the caller gives this memory away for good; it does not contain the null page, which is never RAM here.
    // A range too small for the allocator's bookkeeping is refused and stays unused, which is harmless.
    unsafe { __domu_claim_memory(start, size) };
}

/// Adds frames to the heap: here the simulated machine checks that they may be.
///
/// # Safety
///
/// As in a unikernel.
#[cfg(not(target_os = "none"))]
pub(crate) unsafe fn claim(range: FrameRange) {
    if !range.is_empty() {
        crate::sim::machine::claim(range);
    }
}

/// Finds room for a block, for those who look for what can be had: that there is none is no failure.
#[cfg(target_os = "none")]
pub(super) fn find(layout: core::alloc::Layout) -> Option<core::ptr::NonNull<u8>> {
    #[cfg(feature = "allocator")]
    if global::is_used() {
        return global::find(layout);
    }
    // SAFETY: the callers' layouts are not empty.
    core::ptr::NonNull::new(unsafe { alloc::alloc::alloc(layout) })
}

/// Takes so many adjacent frames from the heap for good, aligned to their number, a power of two.
#[cfg(target_os = "none")]
pub(crate) fn take(frames: u64) -> Option<u64> {
    let size = (frames as usize) << 12;
    let layout = core::alloc::Layout::from_size_align(size, size).ok()?;
    // SAFETY: the size is not zero.
    let start = unsafe { alloc::alloc::alloc(layout) };
    if start.is_null() { None } else { crate::arch::frame_of(start) }
}

/// Takes frames from the heap: here from those that the simulated machine was given.
#[cfg(not(target_os = "none"))]
pub(crate) fn take(frames: u64) -> Option<u64> {
    crate::sim::machine::take(frames)
}

/// Gives a frame back to the heap.
///
/// # Safety
///
/// It was taken by [`take`] of one frame, and nothing uses it any more.
#[cfg(target_os = "none")]
pub(crate) unsafe fn put_back(frame: u64) {
    const PAGE: usize = crate::abi::memory::PAGE_SIZE as usize;
    let Ok(layout) = core::alloc::Layout::from_size_align(PAGE, PAGE) else { return };
    // SAFETY: `take(1)` allocated it with this layout, and the caller no longer uses it.
    unsafe { alloc::alloc::dealloc(crate::arch::phys(frame << 12), layout) }
}

/// Gives a frame back to the heap of the simulated machine.
///
/// # Safety
///
/// As in a unikernel.
#[cfg(not(target_os = "none"))]
pub(crate) unsafe fn put_back(frame: u64) {
    crate::sim::machine::put_back(frame);
}

/// What the heap counts.
#[cfg(all(target_os = "none", feature = "allocator"))]
pub(super) fn accounts() -> Accounts {
    global::with(Hardened::accounts)
}

/// What the heap counts, unless it is in use.
#[cfg(all(target_os = "none", feature = "allocator"))]
pub(super) fn try_accounts() -> Option<Accounts> {
    global::try_with(Hardened::accounts)
}

/// What the heap counts: nothing.
#[cfg(all(target_os = "none", not(feature = "allocator")))]
pub(super) fn try_accounts() -> Option<Accounts> {
    None
}

/// What the heap counts: the application's allocator tells nothing.
#[cfg(all(target_os = "none", not(feature = "allocator")))]
pub(super) fn accounts() -> Accounts {
    Accounts::default()
}

/// What the heap counts: the simulated machine knows what it was given; what a program allocates is the host's.
#[cfg(not(target_os = "none"))]
pub(super) fn accounts() -> Accounts {
    let bytes = crate::sim::machine::heap_bytes();
    Accounts { heap: bytes, free: bytes, ..Accounts::default() }
}

/// Walks over the heap, if it is this crate's.
pub(super) fn walk() -> Option<Result<Walked, Damage>> {
    #[cfg(all(target_os = "none", feature = "allocator"))]
    return global::with(|heap| (heap.accounts().heap > 0).then(|| heap.walk()));
    #[cfg(not(all(target_os = "none", feature = "allocator")))]
    None
}
