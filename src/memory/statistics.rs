//! How much memory there is, and what it is used for.
//!
//! All figures are in bytes, and exact at every moment: they are updated with each operation. The predecessor's `Memory.stat`
//! counts words of 8 bytes: its `heap_words` are [`total`](QuickStat::total), `live_words` [`live`](QuickStat::live), and
//! `free_words` [`free`](QuickStat::free), which goes down and up again with use, so that thresholds on it mean something.

use crate::arch;
use crate::local::{self, Instance};
use crate::memory::MAIN_STACK;
use crate::memory::balloon::BALLOON;
use crate::memory::heap;
use crate::memory::heap::check::{Accounts, Damage, Walked};
use crate::memory::pages::{self, Usage};

/// What memory is used for, in bytes: what [`quick_stat`] copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct QuickStat {
    /// The domain's RAM, without what it has [given](super::balloon) to Xen.
    pub total: usize,
    /// What of it is the heap's; the rest are the image, stacks, page tables, modules.
    pub heap: usize,
    /// In blocks in use, as their owners asked for.
    pub live: usize,
    /// The most that was taken of the heap, for blocks and to be given to Xen.
    pub peak: usize,
    /// Left to be allocated, in however many pieces. What is neither live nor free are the heap's own records: some 40 bytes
    /// a block.
    pub free: usize,
    /// Blocks in use.
    pub blocks: usize,
    /// Allocations that found no room.
    pub failed: u64,
    /// In [`Pages`](super::Pages), which count as one block of `live` for each chunk that they lie in.
    pub pages: usize,
    /// In those chunks and in no run of pages; what [`trim`](super::trim) gives back is of these.
    pub spare_pages: usize,
    /// In use of the main stack now.
    pub stack: usize,
}

/// What a walk over the heap has found, as [`stat`] tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stat {
    /// What the accounts say; the walk has found the same.
    pub quick: QuickStat,
    /// Pieces that the free memory is in.
    pub gaps: usize,
    /// The largest of them, in bytes.
    pub largest: usize,
}

/// What memory is used for: a copy of fields, some dozens of instructions however large the heap, to be called as often as is
/// useful. Zero outside of a domain, and for the heap's part on the host and under an allocator of the application's own.
#[must_use]
pub fn quick_stat() -> QuickStat {
    let Some(state) = local::current() else { return QuickStat::default() };
    let (total, given) = BALLOON.of(state).lock().has_and_given();
    assemble(state, total, given, heap::accounts(), pages::usage(state))
}

// Called once in a program that does not crash: a call would copy all of it.
#[inline(always)]
fn assemble(state: Instance, total: usize, given: usize, accounts: Accounts, pages: Usage) -> QuickStat {
    let stack = MAIN_STACK.of(state).frames;
    let depth = arch::stack_depth(stack.end << 12);
    QuickStat {
        total,
        // A crash can run on the stack of an exception, which lies elsewhere.
        stack: if depth <= stack.len() << 12 { depth as usize } else { 0 },
        // What was given to Xen are blocks of the balloon's.
        heap: accounts.heap.saturating_sub(given),
        live: accounts.live.saturating_sub(given),
        peak: accounts.peak,
        free: accounts.free,
        blocks: accounts.blocks,
        failed: accounts.failed,
        pages: (pages.used + pages.apart) << 12,
        spare_pages: pages.free << 12,
    }
}

/// Looks at every block of the heap, and holds the accounts against what it finds. The cost follows the number of blocks: for
/// diagnostics, not for hot paths.
///
/// # Errors
///
/// What is damaged. The heap can be trusted no longer then.
pub fn stat() -> Result<Stat, Damage> {
    let quick = quick_stat();
    let accounts = heap::accounts();
    let Some(walked) = heap::walk() else { return Ok(Stat { quick, ..Stat::default() }) };
    let walked = walked?;
    agree(&accounts, &walked)?;
    Ok(Stat { quick, gaps: walked.gaps, largest: walked.largest })
}

/// What memory is used for, if an allocation has failed; nothing if that is in use by what a crash has interrupted.
#[cfg(target_os = "none")]
pub(crate) fn exhausted() -> Option<QuickStat> {
    let state = local::current()?;
    let accounts = heap::try_accounts().filter(|accounts| accounts.failed > 0)?;
    let (total, given) = BALLOON.of(state).try_lock()?.has_and_given();
    Some(assemble(state, total, given, accounts, pages::try_usage(state)?))
}

/// The accounts and a walk tell the same.
pub(super) fn agree(accounts: &Accounts, walked: &Walked) -> Result<(), Damage> {
    let same = (accounts.live, accounts.free, accounts.blocks, accounts.gaps)
        == (walked.live, walked.free, walked.blocks, walked.gaps);
    if same {
        Ok(())
    } else {
        Err(Damage { address: 0, size: 0, kind: crate::memory::heap::check::DamageKind::Structure })
    }
}

/// The statistics by name, for a task that reports them.
pub fn metrics() -> impl Iterator<Item = (&'static str, u64)> {
    let stat = quick_stat();
    [
        ("total", stat.total as u64),
        ("heap", stat.heap as u64),
        ("live", stat.live as u64),
        ("peak", stat.peak as u64),
        ("free", stat.free as u64),
        ("blocks", stat.blocks as u64),
        ("failed", stat.failed),
        ("pages", stat.pages as u64),
        ("spare_pages", stat.spare_pages as u64),
        ("stack", stat.stack as u64),
    ]
    .into_iter()
}
