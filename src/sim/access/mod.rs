//! Observers of the accesses that a simulated domain makes to shared memory: peers that act between any two of them.

#[cfg(fuzzing)]
pub mod fuzz_peer;
pub mod interleave;
pub(super) mod shared_pages;
