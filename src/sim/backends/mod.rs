//! The other ends of a simulated domain's devices: the console's backend, and peers that a test plays.

pub(super) mod console;
#[cfg(feature = "net")]
pub(super) mod net;
pub(super) mod peer;
