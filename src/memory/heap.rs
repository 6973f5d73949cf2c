//! The heap: all RAM that boot leaves free, for `alloc`. The host has one of its own.

#[cfg(target_os = "none")]
use spin::Mutex;
#[cfg(target_os = "none")]
use talc::{TalcLock, source::Manual};

use super::frames::FrameRange;

/// A static of its own, because the attribute asks for one; everything else of a domain is in [`crate::state`].
#[cfg(target_os = "none")]
#[global_allocator]
static HEAP: TalcLock<Mutex<()>, Manual> = TalcLock::new(Manual);

/// Adds frames to the heap.
///
/// # Safety
///
/// They are RAM, mapped read-write, and used by nothing else from now on.
#[cfg(target_os = "none")]
pub(crate) unsafe fn claim(range: FrameRange) {
    let (start, size) = (crate::arch::phys(range.start << 12), (range.len() << 12) as usize);
    // SAFETY: the caller gives this memory away for good; it does not contain the null page, which is never RAM here.
    // A range too small for the allocator's bookkeeping is refused and stays unused, which is harmless.
    let _ = unsafe { HEAP.lock().claim(start, size) };
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
