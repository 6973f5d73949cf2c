//! Locks, and how many of them are held.
//!
//! A lock is held for a few instructions, never while application code runs, and with interrupts off: on one virtual CPU it is never
//! contended. The count of held locks tells the handler for exhausted memory whether it was called in the middle of one of the
//! crate's own operations, in which application code must not run.

use core::fmt;
use core::ops::{Deref, DerefMut};
#[cfg(target_os = "none")]
use core::sync::atomic::{AtomicUsize, Ordering};

/// Locks that the virtual CPU holds. Not a domain-local: locks are taken before boot has ended, too.
#[cfg(target_os = "none")]
static HELD: AtomicUsize = AtomicUsize::new(0);

#[cfg(test)]
std::thread_local! {
    /// Locks that this thread holds.
    static HELD_HERE: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

/// Locks that this thread holds.
#[cfg(test)]
pub(super) fn held_here() -> usize {
    HELD_HERE.get()
}

/// Whether any lock is held.
#[cfg(all(feature = "allocator", target_os = "none"))]
pub(crate) fn any_held() -> bool {
    HELD.load(Ordering::Relaxed) > 0
}

/// Counts as a held lock until it is dropped.
pub(crate) struct Held(());

impl Held {
    /// Counts one more.
    #[inline]
    pub(crate) fn new() -> Self {
        // The count is this virtual CPU's alone: a load and a store suffice.
        #[cfg(target_os = "none")]
        HELD.store(HELD.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        #[cfg(test)]
        HELD_HERE.set(HELD_HERE.get() + 1);
        Self(())
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        #[cfg(target_os = "none")]
        HELD.store(HELD.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        #[cfg(test)]
        HELD_HERE.set(HELD_HERE.get() - 1);
    }
}

/// A spin lock that is counted while it is held.
pub(crate) struct Mutex<T>(spin::Mutex<T>);

/// Gives access to what a [`Mutex`] protects, until it is dropped.
pub(crate) struct MutexGuard<'a, T> {
    guard: spin::MutexGuard<'a, T>,
    _held: Held,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(spin::Mutex::new(value))
    }

    /// Takes the lock.
    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { guard: self.0.lock(), _held: Held::new() }
    }

    /// Takes the lock, unless it is held.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Some(MutexGuard { guard: self.0.try_lock()?, _held: Held::new() })
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
