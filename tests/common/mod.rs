//! What the tests of mapping and of copying share: both try again what a peer's host has not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use domu::sim::Guest;
use domu::sim::abi::grant_table::Status;

/// A guest to whom the page of reference 9 is not there for so many attempts at an operation on grants; and how often it was
/// asked for pages.
pub fn patient(operation: u64, attempts: u32) -> (Guest, Arc<AtomicU32>) {
    let (asked, counter) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
    let its = Arc::clone(&asked);
    let guest = Guest::new().grant_fault(move |made, reference| {
        if made != operation {
            return None;
        }
        its.fetch_add(1, Ordering::Relaxed);
        let missing = reference == 9 && counter.fetch_add(1, Ordering::Relaxed) < attempts;
        missing.then_some(Status::AGAIN)
    });
    (guest, asked)
}
