//! Who owns memory that is shared with a peer.

use super::SharedMemory;

/// What owns shared memory and keeps it mapped as long as it lives, such as pages that are granted to a peer, or that a peer
/// has granted. A ring owns its memory by it: neither outlives the other.
///
/// Only this crate's types implement it, since soundness depends on what it promises.
///
/// # Safety
///
/// [`memory`](Self::memory) gives the same pages each time. They are mapped read-write as long as the value lives, wherever
/// it is moved to, and all accesses to them in the program meanwhile go through [`SharedMemory`].
pub unsafe trait Owner: Sealed {
    /// The memory.
    fn memory(&self) -> SharedMemory<'_>;
}

/// Keeps implementations of [`Owner`] in this crate: its path is not public.
pub trait Sealed {}
