//! The other ends of a simulated domain's devices: the console's backend, peers that a test plays, and a block back end.

#[cfg(feature = "block")]
pub mod block;
pub(super) mod console;
#[cfg(feature = "net")]
pub(super) mod net;
pub(super) mod peer;
