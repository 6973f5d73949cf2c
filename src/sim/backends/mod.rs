//! The other ends of a simulated domain's devices: the console's backend, and peers that a test plays.

pub(super) mod console;
pub(super) mod peer;
