//! A unikernel with an allocator of its own: a test puts it in the place of the README's, with the feature `allocator` on and off.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;

use domu::memory::{Pages, quick_stat};
use spin::Mutex;
use talc::{TalcLock, source::Manual};

#[global_allocator]
static HEAP: TalcLock<Mutex<()>, Manual> = TalcLock::new(Manual);

/// # Safety
///
/// The memory is the allocator's from now on.
unsafe fn claim(start: *mut u8, size: usize) {
    // What is too small for its records is of no use.
    // SAFETY: passed on from the caller.
    let _ = unsafe { HEAP.lock().claim(start, size) };
}

// SAFETY: `claim` takes any memory that nothing else uses.
domu::main!(main, claim_memory = unsafe claim);

async fn main(_: domu::Domain) -> domu::Result {
    let block = vec![7_u8; 5 << 20];
    let pages = Pages::new(16)?;
    // The accounts of the crate's own heap are those of nobody here.
    assert!(quick_stat().heap == 0 && quick_stat().total > block.len());
    log::info!("{} bytes and {} zeroed pages of an allocator of its own", block.len(), pages.count());
    assert!(block.iter().all(|&byte| byte == 7) && pages.bytes().iter().all(|&byte| byte == 0));
    Ok(())
}
