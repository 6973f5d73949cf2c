//! Report of a heap check: statistics and damage. Compiled without an allocator too.

use core::fmt;

/// What is wrong with a block that a caller gives back, or that a walk comes upon.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Damage {
    /// The block's address.
    pub address: usize,
    /// Its size in bytes, as the caller said, or as far as it is known.
    pub size: usize,
    /// What is wrong.
    pub kind: DamageKind,
}

/// What is wrong with a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum DamageKind {
    /// Bytes behind it were written to.
    Overrun,
    /// It was freed before.
    FreedTwice,
    /// The heap has never given it out, at least not with this size; or it was freed before and its place is in use again.
    Foreign,
    /// A walk finds what cannot be: bytes far behind a block were written to, or a block that was freed.
    Structure,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, size, kind } = self;
        match kind {
            DamageKind::Overrun => write!(f, "written past the end of the block of {size} bytes at {address:#018x}"),
            DamageKind::FreedTwice => write!(f, "the block of {size} bytes at {address:#018x} is freed twice"),
            DamageKind::Foreign => write!(f, "no block of {size} bytes at {address:#018x} is in use"),
            DamageKind::Structure => write!(f, "the heap's own records are damaged at {address:#018x}"),
        }
    }
}

impl core::error::Error for Damage {}

/// What the heap counts, in bytes where nothing else is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Accounts {
    /// Given to the heap.
    pub(crate) heap: usize,
    /// In blocks in use, as their owners asked for.
    pub(crate) live: usize,
    /// The most that `live` has been.
    pub(crate) peak: usize,
    /// In gaps.
    pub(crate) free: usize,
    /// Blocks in use.
    pub(crate) blocks: usize,
    /// Gaps.
    pub(crate) gaps: usize,
    /// Allocations that failed.
    pub(crate) failed: u64,
}

/// What a walk has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Walked {
    pub(crate) live: usize,
    pub(crate) free: usize,
    pub(crate) blocks: usize,
    pub(crate) gaps: usize,
    /// The largest gap.
    pub(crate) largest: usize,
}
