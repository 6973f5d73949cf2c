//! What the crate's own code waits and locks with.

mod lock;
mod yield_now;

#[cfg(all(feature = "allocator", target_os = "none"))]
pub(crate) use lock::any_held;
pub(crate) use lock::{Held, Mutex};
pub use yield_now::yield_now;
