//! Locks, wait lists and giving way, for the crate's own code.

mod lock;
pub(crate) mod wait_list;
mod yield_now;

#[cfg(test)]
mod unlocked_wakers;

#[cfg(all(feature = "allocator", target_os = "none"))]
pub(crate) use lock::any_held;
pub(crate) use lock::{Held, Mutex};
pub use yield_now::yield_now;
