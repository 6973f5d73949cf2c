//! Runs of frames from the heap: what pages, page tables' frames and the balloon are cut from.
//!
//! A run is a block of the heap whose place matters. The heap keeps its own words behind a block, never inside: so the
//! frames of a run may go to Xen, as long as they are back before the heap has the run again.

use core::ptr::NonNull;

/// What a run takes of the heap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::memory) struct Shape {
    /// In bytes; not zero.
    pub(in crate::memory) bytes: usize,
    /// In bytes: a power of two, a page at least.
    pub(in crate::memory) align: usize,
}

impl Shape {
    /// So many whole frames, at any frame.
    pub(in crate::memory) const fn frames(frames: usize) -> Self {
        Self { bytes: frames << 12, align: 4096 }
    }
}

#[cfg(target_os = "none")]
mod heap {
    use core::alloc::Layout;

    use super::{NonNull, Shape};

    /// Takes a run, if there is room for one.
    pub(in crate::memory) fn take(shape: Shape) -> Option<NonNull<u8>> {
        // A run is not empty.
        crate::memory::heap::find(Layout::from_size_align(shape.bytes, shape.align).ok()?)
    }

    /// Gives a run back.
    ///
    /// # Safety
    ///
    /// It was taken in this shape, or shrunk to it, all of it is there, and nobody uses it any more.
    pub(in crate::memory) unsafe fn release(start: NonNull<u8>, shape: Shape) {
        // SAFETY: `take` made the same layout, which was valid, and the caller vouches for the rest.
        unsafe { alloc::alloc::dealloc(start.as_ptr(), Layout::from_size_align_unchecked(shape.bytes, shape.align)) };
    }

    /// Gives the end of a run back; says whether that was possible. The rest is not looked at.
    ///
    /// # Safety
    ///
    /// The run has this shape, and the caller no longer uses what is behind `bytes`, which is there, and less than it
    /// was, and not zero.
    pub(in crate::memory) unsafe fn shrink(start: NonNull<u8>, shape: Shape, bytes: usize) -> bool {
        // Another allocator may copy the block, part of which may not be there.
        if !cfg!(feature = "allocator") {
            return false;
        }
        // SAFETY: as in `release`; and the new size is not zero. A block of the heap that becomes smaller stays where it
        // is, so that nothing is copied.
        unsafe {
            let layout = Layout::from_size_align_unchecked(shape.bytes, shape.align);
            alloc::alloc::realloc(start.as_ptr(), layout, bytes) == start.as_ptr()
        }
    }
}

#[cfg(not(target_os = "none"))]
mod heap {
    use super::{NonNull, Shape};
    use crate::memory::FrameRange;
    use crate::sim::machine;

    const fn frames(bytes: usize) -> u64 {
        bytes.div_ceil(4096) as u64
    }

    /// Takes a run of the simulated machine's RAM.
    pub(in crate::memory) fn take(shape: Shape) -> Option<NonNull<u8>> {
        let start = machine::take_run(frames(shape.bytes), frames(shape.align))?;
        NonNull::new(machine::phys(start << 12))
    }

    /// Gives a run back.
    ///
    /// # Safety
    ///
    /// As in a unikernel; here the simulated machine looks whether all of it is there.
    pub(in crate::memory) unsafe fn release(start: NonNull<u8>, shape: Shape) {
        if let Some(first) = machine::frame_of(start.as_ptr()) {
            machine::release(FrameRange { start: first, end: first + frames(shape.bytes) });
        }
    }

    /// Gives the end of a run back.
    ///
    /// # Safety
    ///
    /// As in a unikernel.
    pub(in crate::memory) unsafe fn shrink(start: NonNull<u8>, shape: Shape, bytes: usize) -> bool {
        if let Some(first) = machine::frame_of(start.as_ptr()) {
            machine::release(FrameRange { start: first + frames(bytes), end: first + frames(shape.bytes) });
        }
        true
    }
}

pub(in crate::memory) use heap::{release, shrink, take};
