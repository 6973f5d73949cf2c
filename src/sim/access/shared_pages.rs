//! Memory that both ends of a test share, without domains.

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::boxed::Box;
use std::sync::Arc;

use super::{Access, OBSERVERS, Observer};
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

/// What happens before each access to some memory.
pub(super) struct Watch {
    start: NonNull<u8>,
    action: Box<dyn FnMut(usize)>,
}

impl SharedPages {
    /// Runs something on this thread, and `peer` before each access that it makes to a byte or word of these pages, told by
    /// its offset: so a peer acts between any two of them. A copy is made of words of 8 or 4 bytes, or of bytes
    /// (under Miri always), and told of each. What `peer` accesses itself is not told.
    ///
    /// # Panics
    ///
    /// If one runs on this thread already.
    pub fn with_peer<T>(&self, peer: impl FnMut(usize) + 'static, run: impl FnOnce() -> T) -> T {
        let watch = Watch { start: self.0.start, action: Box::new(peer) };
        let before = OBSERVERS.with(|observers| observers.pages.replace(Some(watch)));
        assert!(before.is_none(), "one at a time");
        let _end = EndOfWatch;
        run()
    }
}

/// Ends the watch, also when what was run has panicked.
struct EndOfWatch;

impl Drop for EndOfWatch {
    fn drop(&mut self) {
        OBSERVERS.with(|observers| drop(observers.pages.take()));
    }
}

impl Observer for Watch {
    fn before(&mut self, access: Access) {
        if self.start == access.start {
            (self.action)(access.offset);
        }
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
