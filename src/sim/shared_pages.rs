//! Memory that both ends of a test share, without domains.

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::Arc;

use crate::shared::owner::Sealed;
use crate::shared::{Owner, SharedMemory};

/// Pages that follow each other, zeroed; each clone owns the same ones, for the other end of a ring.
#[derive(Clone, Debug)]
pub struct SharedPages(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is no thread's own, and is accessed by atomics only.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl SharedPages {
    /// Makes so many pages.
    ///
    /// # Panics
    ///
    /// For none at all, and for more than there are.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let size = count.checked_mul(4096).filter(|&size| size > 0).expect("a number of pages");
        let layout = Layout::from_size_align(size, 4096).expect("a number of pages");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Self(Arc::new(Allocation { start, layout }))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by this layout; the last owner goes, and no view outlives it.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Sealed for SharedPages {}

// SAFETY: the allocation is page-aligned, is freed after its last owner, and is reached through `memory` only.
unsafe impl Owner for SharedPages {
    fn memory(&self) -> SharedMemory<'_> {
        // SAFETY: as above, for as long as `self` is borrowed.
        unsafe { SharedMemory::new(self.0.start, self.0.layout.size() / 4096) }
    }
}
