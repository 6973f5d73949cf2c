//! The heap: talc, which finds room in bounded time, under checks that it does not make, and with exact accounts.
//!
//! An operation costs the same whatever number of blocks there is: talc keeps gaps in classes of sizes, the marks around
//! a block are found from its address and size, and the accounts are updated with each operation. There are two exceptions. A
//! block that must be aligned to more than 32 bytes may have to look at several gaps of one class. And when no gap of a larger
//! class is left, which is just before exhaustion, the gaps of the block's own class are looked at one by one.

use core::alloc::Layout;
use core::ptr::NonNull;

use heapless::Vec;
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

use super::block::{Damage, DamageKind, Key, UNIT, outer};
use super::frames::MAX_RANGES;

/// In builds with debug assertions memory is filled with these, to show what is read before it was written, or after it was
/// freed.
const FRESH: u8 = 0xa5;
const FREED: u8 = 0x5a;

/// Memory that the heap was given: what lies in it begins at `base`.
#[derive(Clone, Copy, Debug)]
struct Arena {
    base: *mut u8,
    end: *mut u8,
}

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

/// A heap.
pub(crate) struct Hardened {
    talc: Talc<Manual, DefaultBinning>,
    key: Key,
    arenas: Vec<Arena, MAX_RANGES>,
    live: usize,
    peak: usize,
    blocks: usize,
    failed: u64,
}

// SAFETY: the pointers are to memory that the heap owns; nothing in it belongs to a thread.
unsafe impl Send for Hardened {}

impl Hardened {
    /// A heap without memory, to be given a key before its first block.
    pub(crate) const fn new() -> Self {
        Self { talc: Talc::new(Manual), key: Key(0), arenas: Vec::new(), live: 0, peak: 0, blocks: 0, failed: 0 }
    }

    /// Chooses the secret that marks blocks. There must be no block yet.
    pub(crate) const fn set_key(&mut self, key: u64) {
        self.key = Key(key);
    }

    /// Takes memory; what is too small to be of use, or one piece too many, is left alone.
    ///
    /// # Safety
    ///
    /// The memory can be read and written, and is the heap's from now on.
    pub(crate) unsafe fn claim(&mut self, start: *mut u8, size: usize) {
        // Memory that continues what is there becomes one with it.
        if let Some(arena) = self.arenas.iter_mut().find(|arena| arena.end.addr() == start.addr() && size >= UNIT)
            && let Some(end) = NonNull::new(arena.end)
        {
            // SAFETY: the heap ends there, as talc said; the caller gives what follows away for good.
            arena.end = unsafe { self.talc.extend(end, arena.end.wrapping_add(size)) }.as_ptr();
            return;
        }
        if self.arenas.is_full() {
            return;
        }
        // SAFETY: the caller gives this memory away for good.
        let Some(end) = (unsafe { self.talc.claim(start, size) }) else { return };
        // Measured from the memory's start, whose provenance covers it.
        let length = end.addr().get() - start.addr();
        // SAFETY: the end lies in the memory that was claimed, and a gap reaches up to it, if there is one: talc's word
        // there is its size.
        let base = unsafe {
            let end = start.add(length);
            match end.sub(8).cast::<usize>().read() {
                allocated if allocated & 1 != 0 => end,
                gap => end.sub(gap),
            }
        };
        // There is room, as looked at above.
        let _ = self.arenas.push(Arena { base, end: start.wrapping_add(length) });
    }

    /// Finds room for a block; that there is none is counted.
    pub(crate) fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let found = self.find(layout);
        self.failed += u64::from(found.is_none());
        found
    }

    /// Finds room for a block, if there is any.
    pub(crate) fn find(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let outer = outer(layout)?;
        // SAFETY: the outer layout is never empty.
        let start = unsafe { self.talc.try_allocate(outer) }?;
        if cfg!(debug_assertions) {
            // SAFETY: the block has that many bytes, and nobody else knows it.
            unsafe { start.write_bytes(FRESH, layout.size()) };
        }
        // SAFETY: talc has just given the block with that layout.
        unsafe { self.key.mark(start.as_ptr(), layout.size(), outer.size()) };
        self.blocks += 1;
        self.account(0, layout.size());
        Some(start)
    }

    /// Takes a block back.
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more. That it is one, with this layout, is checked.
    pub(crate) unsafe fn free(&mut self, start: *mut u8, layout: Layout) -> Result<(), Damage> {
        let outer = self.check(start, layout)?;
        // SAFETY: the block is one of that layout, as its marks show; it is freed once, as this changes them.
        unsafe {
            if cfg!(debug_assertions) {
                start.write_bytes(FREED, layout.size());
            }
            self.key.unmark(start, layout.size(), outer.size());
            self.talc.deallocate(start, outer);
        }
        self.blocks -= 1;
        self.account(layout.size(), 0);
        Ok(())
    }

    /// Changes the size of a block where it is; says whether that was possible.
    ///
    /// # Safety
    ///
    /// The block is the caller's. That it is one, with this layout, is checked.
    pub(crate) unsafe fn resize(&mut self, start: *mut u8, layout: Layout, size: usize) -> Result<bool, Damage> {
        let old = self.check(start, layout)?;
        let Some(new) = Layout::from_size_align(size, layout.align()).ok().and_then(outer) else { return Ok(false) };
        // SAFETY: the block is one of that layout, as its marks show, and the new size is not zero. What the old marks were
        // must not pass for a block later.
        unsafe {
            self.key.unmark(start, layout.size(), old.size());
            if !self.talc.try_realloc_in_place(start, old, new.size()) {
                self.key.mark(start, layout.size(), old.size());
                return Ok(false);
            }
        }
        // SAFETY: it has the new layout now.
        unsafe { self.key.mark(start, size, new.size()) };
        self.account(layout.size(), size);
        Ok(true)
    }

    /// Holds a block against its marks, and returns its outer layout.
    fn check(&self, start: *mut u8, layout: Layout) -> Result<Layout, Damage> {
        let foreign = Damage { address: start.addr(), size: layout.size(), kind: DamageKind::Foreign };
        let outer = outer(layout).ok_or(foreign)?;
        let end = start.addr().saturating_add(outer.size() + 8);
        let inside = |arena: &&Arena| arena.base.addr() <= start.addr() && end <= arena.end.addr();
        if !start.addr().is_multiple_of(UNIT) || self.arenas.iter().find(inside).is_none() {
            return Err(foreign);
        }
        // SAFETY: so many bytes lie in an arena.
        unsafe { self.key.check(start, layout.size(), outer.size()) }?;
        Ok(outer)
    }

    const fn account(&mut self, before: usize, after: usize) {
        self.live = self.live - before + after;
        if self.live > self.peak {
            self.peak = self.live;
        }
    }

    /// What the heap counts: a copy of fields.
    pub(crate) fn accounts(&self) -> Accounts {
        let talc = self.talc.counters();
        Accounts {
            heap: talc.claimed_bytes,
            live: self.live,
            peak: self.peak,
            free: talc.available_bytes,
            blocks: self.blocks,
            gaps: talc.fragment_count,
            failed: self.failed,
        }
    }

    /// Looks at every block and every gap. The cost follows their number.
    pub(crate) fn walk(&self) -> Result<Walked, Damage> {
        let mut walked = Walked::default();
        for &Arena { base, end } in &self.arenas {
            let mut end = end;
            while end.addr() > base.addr() {
                let damage = Damage { address: end.addr(), size: 0, kind: DamageKind::Structure };
                // SAFETY: a chunk, of a unit at least, ends here, with talc's word: a gap's size, or, odd, the flags of a block.
                let word = unsafe { end.sub(8).cast::<usize>().read() };
                if word & 1 == 0 {
                    if word == 0 || word > end.addr() - base.addr() || !word.is_multiple_of(UNIT) {
                        return Err(damage);
                    }
                    walked.gaps += 1;
                    walked.free += word;
                    walked.largest = walked.largest.max(word);
                    // SAFETY: it lies above the base.
                    end = unsafe { end.sub(word) };
                } else {
                    // SAFETY: all from the base to here is the heap's.
                    let (start, size, _) = unsafe { self.key.block_below(base, end) }?;
                    walked.blocks += 1;
                    walked.live += size;
                    end = start;
                }
            }
        }
        Ok(walked)
    }
}

#[cfg(test)]
mod tests;
