//! What happens when memory runs out.
//!
//! An allocation that can fail (`try_reserve`, the fallible constructors of this crate) returns its error; any other ends the
//! domain, with a report that tells what the heap holds. Before either, the application's handler may free something.

use core::alloc::Layout;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::local;
use crate::local::domain_local;
#[cfg(all(feature = "allocator", target_os = "none"))]
use crate::sync;

domain_local! {
    /// The handler for exhausted memory.
    pub(crate) static EXHAUSTION: Exhaustion = Exhaustion::new();
}

/// Frees what can be spared, and says whether the allocation is worth another attempt.
pub type Handler = fn(Layout) -> bool;

/// What is done when memory runs out.
#[derive(Debug)]
pub(crate) struct Exhaustion {
    /// The application's [`Handler`], if it has set one.
    handler: AtomicPtr<()>,
    /// It is at work: what it allocates itself, and does not get, is not its business.
    busy: AtomicBool,
}

impl Exhaustion {
    /// No handler.
    const fn new() -> Self {
        Self { handler: AtomicPtr::new(core::ptr::null_mut()), busy: AtomicBool::new(false) }
    }
}

/// Sets the function that is called when an allocation finds no room; it replaces an earlier one.
///
/// It runs in the middle of whatever allocates, and must not wait. While this crate allocates with one of its own lists in
/// hand (of tasks, timers, ports, grants), the handler is not asked, so that it may drop what it wants. It may free, for
/// instance drop a cache or call [`trim`](crate::memory::trim). If it returns true and has freed something, the allocation is
/// attempted again.
///
/// Outside of a domain it does nothing.
pub fn on_exhaustion(handler: Handler) {
    if let Some(state) = local::current() {
        EXHAUSTION.of(state).handler.store(handler as *mut (), Ordering::Relaxed);
    }
}

/// Asks the application to free something; says whether it has.
#[cfg(all(feature = "allocator", target_os = "none"))]
pub(super) fn handle(layout: Layout) -> bool {
    let Some(state) = local::current() else { return false };
    let Exhaustion { handler, busy } = &EXHAUSTION.of(state);
    let handler = handler.load(Ordering::Relaxed);
    if handler.is_null() || sync::any_held() || busy.swap(true, Ordering::Relaxed) {
        return false;
    }
    // SAFETY: the pointer is one that `on_exhaustion` has made of a function of this type.
    let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
    let freed = handler(layout);
    busy.store(false, Ordering::Relaxed);
    freed
}
