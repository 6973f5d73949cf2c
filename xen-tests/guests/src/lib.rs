//! What the test guests share: verdict lines, one for each case, which `cargo xen` reads from the console.
//!
//! `@ok CASE` and `@fail CASE: why` are written raw, past the log and its level, so that nothing silences a verdict.

#![no_std]

extern crate alloc;

pub mod disk;

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{Debug, Write};
use core::ptr;
use core::time::Duration;

use domu::xenstore::{self, Watch, Xenstore};
use domu::{Domain, time};

/// Bytes that may be in use more after something was done many times than after it was done first: lists of the crate's have
/// room for as much as was in them at once, which is by chance, and one grows by up to 900 bytes. What is lost each time
/// is a block, of 64 bytes at least: twenty times are more than this.
pub const BY_CHANCE: usize = 1024;

/// Writes a verdict line for a case.
pub fn verdict(domain: &Domain, case: &str, result: Result<(), String>) {
    let mut line = domain.console();
    // A console that is gone leaves the case without a verdict, which the tool takes for a failure.
    let _ = match result {
        Ok(()) => writeln!(line, "@ok {case}"),
        Err(why) => writeln!(line, "@fail {case}: {why}"),
    };
}

/// What an error says of itself, to those who know the code.
pub fn said(error: impl Debug) -> String {
    format!("{error:?}")
}

/// A failure, unless something holds.
pub fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

/// What comes within half a minute.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    time::timeout(Duration::from_secs(30), future).await.map_err(|_| format!("{what}: nothing comes of it"))
}

/// A failure if more bytes are in use than before, beyond what is so [by chance](BY_CHANCE).
pub fn no_more_memory(before: usize, after: usize) -> Result<(), String> {
    ensure(after <= before + BY_CHANCE, || format!("{before} bytes in use have become {after}"))
}

/// As many watches as the server allows, of different paths: its quota is witness of those that were left behind.
///
/// # Errors
///
/// What the server says before it says that there are no more.
pub async fn all_watches(store: &Xenstore) -> Result<Vec<Watch>, xenstore::Error> {
    let mut watches = Vec::new();
    while watches.len() < 2000 {
        match store.watch(format!("data/watched/{}", watches.len())).await {
            Ok(watch) => watches.push(watch),
            Err(error) if error == xenstore::ErrorKind::Quota => break,
            Err(error) => return Err(error),
        }
    }
    Ok(watches)
}

/// A number that the command line gives, as `KEY=NUMBER`.
#[must_use]
pub fn option(domain: &Domain, key: &str) -> Option<u64> {
    let value: String = domain.words().find_map(|word| word.value_of(key))?.map(char::from).collect();
    value.parse().ok()
}

/// A number that looks random, and the next seed: an xorshift generator.
pub fn number(seed: &mut u64) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed as usize
}

/// Bytes in a page.
const PAGE: usize = 4096;

/// All memory that the heap gives out: a chain of blocks, each of which holds its own link, so that no other memory is
/// needed to remember it.
pub struct AllMemory {
    first: *mut Block,
    /// Bytes that were given out.
    pub total: usize,
}

struct Block {
    next: *mut Block,
    size: usize,
}

impl AllMemory {
    /// Allocates until nothing is left, the largest blocks first, and writes to each page its own address.
    #[must_use]
    pub fn take() -> Self {
        let mut all = Self { first: ptr::null_mut(), total: 0 };
        let mut size = 1 << 30;
        while size >= PAGE {
            let Ok(layout) = Layout::from_size_align(size, PAGE) else { break };
            // SAFETY: the layout is not empty.
            let start = unsafe { alloc(layout) };
            if start.is_null() {
                size /= 2;
                continue;
            }
            for offset in (PAGE / 2..size).step_by(PAGE) {
                // SAFETY: the block has `size` bytes; the word lies in the middle of one of its pages.
                unsafe { start.add(offset).cast::<usize>().write(start.addr() + offset) };
            }
            let block = start.cast::<Block>();
            // SAFETY: the block is larger than a `Block`, aligned to a page, and nothing else knows it.
            unsafe { block.write(Block { next: all.first, size }) };
            all.first = block;
            all.total += size;
        }
        all
    }

    /// Looks whether every page still holds its own address: two blocks that share memory do not.
    ///
    /// # Errors
    ///
    /// The first page that does not, and what it holds.
    pub fn verify(&self) -> Result<(), String> {
        let mut block = self.first;
        while !block.is_null() {
            // SAFETY: each link of the chain is a block of this structure, which is not freed before `drop`.
            let Block { next, size } = unsafe { block.read() };
            for offset in (PAGE / 2..size).step_by(PAGE) {
                // SAFETY: as in `take`, which also wrote there.
                let found = unsafe { block.cast::<u8>().add(offset).cast::<usize>().read_volatile() };
                let expected = block.addr() + offset;
                if found != expected {
                    return Err(format!("{found:#x} at {expected:#x}"));
                }
            }
            block = next;
        }
        Ok(())
    }
}

impl Drop for AllMemory {
    fn drop(&mut self) {
        while !self.first.is_null() {
            // SAFETY: each block was allocated by `take` with this layout, and is freed once, after it was read.
            unsafe {
                let Block { next, size } = self.first.read();
                dealloc(self.first.cast(), Layout::from_size_align_unchecked(size, PAGE));
                self.first = next;
            }
        }
    }
}
