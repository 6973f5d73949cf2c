//! The allocator behind `alloc`: damage ends the domain with a report, exhaustion asks the application first.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;

use super::check::Damage;
use super::hardened::Hardened;
use super::oom;
use crate::{arch, random};

unsafe extern "Rust" {
    /// Ends the domain with a report. Reports stand above the heap, which they describe: the linker joins the two.
    safe fn __domu_heap_damaged(damage: Damage) -> !;
}

static HEAP: Mutex<Hardened> = Mutex::new(Hardened::new());

/// Damage was found: the report is under way, and nothing is allocated or freed any more.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// The heap, as the program's allocator: [`crate::main!`] declares the static.
#[derive(Debug)]
pub struct Allocator;

/// Adds memory.
///
/// # Safety
///
/// The memory is readable and writable, nothing else uses it, and it stays the heap's.
pub unsafe fn claim(start: *mut u8, size: usize) {
    let mut heap = HEAP.lock();
    if heap.accounts().heap == 0 {
        heap.set_key(key());
    }
    // SAFETY: the caller gives this memory away for good, readable and writable.
    unsafe { heap.claim(start, size) };
}

/// Random numbers, or what the CPU has instead: four words that are not independent.
fn key() -> [u64; 4] {
    let mut bytes = [0; 32];
    if random::fill(&mut bytes).is_err() {
        return [(); 4].map(|()| arch::secret());
    }
    let (words, _) = bytes.as_chunks();
    core::array::from_fn(|index| u64::from_ne_bytes(words[index]))
}

/// Whether this heap has memory. Otherwise the program has an allocator of its own.
pub(super) fn is_used() -> bool {
    HEAP.lock().accounts().heap > 0
}

// A call would copy what is returned, which costs more than the look.
#[inline(always)]
pub(super) fn with<T>(look: impl FnOnce(&Hardened) -> T) -> T {
    look(&HEAP.lock())
}

pub(super) fn try_with<T>(look: impl FnOnce(&Hardened) -> T) -> Option<T> {
    HEAP.try_lock().map(|heap| look(&heap))
}

/// Finds room for a block without asking the application to make some, and without counting that there is none.
pub(super) fn find(layout: Layout) -> Option<NonNull<u8>> {
    work(|heap| Ok(heap.find(layout))).flatten()
}

/// Works on the heap, unless it is broken. Damage ends the domain; the heap is free by then.
fn work<T>(work: impl FnOnce(&mut Hardened) -> Result<T, Damage>) -> Option<T> {
    if BROKEN.load(Ordering::Relaxed) {
        return None;
    }
    let result = work(&mut HEAP.lock());
    result.map_err(|damage| fail(damage)).ok()
}

#[cold]
fn fail(damage: Damage) -> ! {
    BROKEN.store(true, Ordering::Relaxed);
    __domu_heap_damaged(damage)
}

// SAFETY: blocks are talc's, of the layout that is asked for, and nobody else's until they are freed; no method unwinds, as a
// unikernel is built without unwinding.
unsafe impl GlobalAlloc for Allocator {
    /// # Safety
    ///
    /// The layout is not empty, as the trait asks.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        loop {
            let before = match work(|heap| Ok(heap.allocate(layout).ok_or_else(|| heap.accounts().free))) {
                Some(Ok(start)) => return start.as_ptr(),
                Some(Err(free)) => free,
                None => return ptr::null_mut(),
            };
            // Again only if there is more room: a handler that promises what it does not do must not hang the domain.
            if !oom::handle(layout) || with(|heap| heap.accounts().free) <= before {
                return ptr::null_mut();
            }
        }
    }

    /// # Safety
    ///
    /// As the trait asks; that it is a block with this layout is checked.
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller no longer uses the block.
        let _ = work(|heap| unsafe { heap.free(start, layout) });
    }

    /// # Safety
    ///
    /// As the trait asks; that it is a block with this layout is checked.
    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the block is the caller's.
        match work(|heap| unsafe { heap.resize(start, layout, size) }) {
            Some(true) => return start,
            Some(false) => {}
            None => return ptr::null_mut(),
        }
        // SAFETY: the caller promises that the new size, which is not zero, makes a layout with the old alignment.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if let Some(new) = NonNull::new(new) {
            // SAFETY: both are blocks of at least that size, and differ; the old one is not used after this.
            unsafe {
                ptr::copy_nonoverlapping(start, new.as_ptr(), layout.size().min(size));
                self.dealloc(start, layout);
            }
        }
        new
    }
}
