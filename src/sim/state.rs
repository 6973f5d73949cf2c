//! The state of the domain that this thread runs.

use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU32, Ordering};
use std::boxed::Box;
use std::cell::Cell;
use std::sync::Mutex;
use std::vec::Vec;

use crate::state::State;

std::thread_local! {
    static CURRENT: Cell<Option<&'static State>> = const { Cell::new(None) };
}

/// All states ever made: they live as long as the process, and a leak checker finds them here.
static ALL: Mutex<Vec<&'static State>> = Mutex::new(Vec::new());

/// Simulated domains that were booted so far.
static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// A number that no other simulated domain of this process has.
///
/// # Panics
///
/// When there are no more.
pub(crate) fn next_instance() -> NonZeroU32 {
    let before = INSTANCES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
    let next = before.ok().and_then(|before| NonZeroU32::new(before + 1));
    next.expect("2^32 - 1 simulated domains in one process")
}

/// The state, once boot has made it.
pub(crate) fn get() -> Option<&'static State> {
    CURRENT.get()
}

/// Keeps the state of the domain that this thread runs.
pub(crate) fn install(state: State) -> &'static State {
    let state: &'static State = Box::leak(Box::new(state));
    ALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(state);
    CURRENT.set(Some(state));
    state
}

/// Frees the states of all domains.
///
/// # Safety
///
/// There are none, and nobody uses what was theirs.
#[cfg(fuzzing)]
pub(super) unsafe fn reclaim() {
    let all = core::mem::take(&mut *ALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    for state in all {
        // SAFETY: it was a box before it was leaked, and nobody uses it, as the caller promises.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(state).cast_mut()) });
    }
}

/// The thread leaves its domain.
pub(crate) fn forget() {
    CURRENT.set(None);
}
