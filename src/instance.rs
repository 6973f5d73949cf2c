//! The identity of a domain, which each handle remembers.
//!
//! A unikernel is one domain, so this costs nothing there: the type has no size and each comparison is a constant. On the
//! host a program runs many simulated domains, on several threads and one after the other. A handle that was moved out of
//! its domain must not touch another one: its use there is an error, its drop does nothing, and what it holds stays with its
//! domain until the process ends, as the domain's memory does.

#[cfg(not(target_os = "none"))]
use core::num::NonZeroU32;

/// One domain, from its boot to its end. No two simulated domains of a process are equal, whatever their numbers.
///
/// A resume elsewhere does not change it: see [`State::generation`](crate::state::State::generation).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Instance(#[cfg(not(target_os = "none"))] NonZeroU32);

impl Instance {
    /// The identity of a domain that boots.
    #[cfg(target_os = "none")]
    pub(crate) const fn new() -> Self {
        Self()
    }

    /// The identity of a domain that boots.
    ///
    /// # Panics
    ///
    /// After 2^32 - 1 simulated domains.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn new() -> Self {
        Self(crate::state::next_instance())
    }

    /// Whether this is the domain that runs here.
    #[cfg(target_os = "none")]
    pub(crate) const fn is_current(self) -> bool {
        true
    }

    /// Whether this is the domain that runs here, on this thread.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn is_current(self) -> bool {
        crate::state::get().is_some_and(|state| state.instance == self)
    }
}
