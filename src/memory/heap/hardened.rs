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

use super::canary::{Key, UNIT, outer};
use super::check::{Accounts, Damage, DamageKind, Walked};
use crate::memory::map::frame_set::MAX_RANGES;

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
        Self { talc: Talc::new(Manual), key: Key([0; 4]), arenas: Vec::new(), live: 0, peak: 0, blocks: 0, failed: 0 }
    }

    /// Chooses the secret that marks blocks. There must be no block yet.
    pub(crate) const fn set_key(&mut self, key: [u64; 4]) {
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
mod tests {
    use std::boxed::Box;
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::memory::statistics::agree;

    const KEY: [u64; 4] = [0x0123_4567_89ab_cdef, 0xf1e2_d3c4_b5a6_9788, 0x2545_f491_4f6c_dd1d, 0x9fb2_1c65_1e98_df25];

    /// A heap with memory of its own.
    struct Heap {
        heap: Hardened,
        /// Reached by raw pointers alone until the heap is gone.
        memory: Vec<*mut [u128]>,
    }

    impl Drop for Heap {
        fn drop(&mut self) {
            // SAFETY: `new` has made a pointer of each box; the heap is not used any more.
            self.memory.iter().for_each(|&piece| drop(unsafe { Box::from_raw(piece) }));
        }
    }

    impl Heap {
        fn new(sizes: &[usize]) -> Self {
            let mut heap = Hardened::new();
            heap.set_key(KEY);
            let mut memory = Vec::new();
            for &size in sizes {
                // More than the heap is given: pieces that follow each other would become one, which on the host they are not.
                let piece = Box::into_raw(vec![0_u128; size / 16 + 4].into_boxed_slice());
                // SAFETY: the piece lives as long as the heap, and nothing else looks at it.
                unsafe { heap.claim(piece.cast(), size) };
                memory.push(piece);
            }
            Self { heap, memory }
        }

        fn agree(&self) -> Accounts {
            let accounts = self.heap.accounts();
            agree(&accounts, &self.heap.walk().unwrap()).unwrap();
            accounts
        }
    }

    /// A block in the hands of a test.
    #[derive(Clone, Copy)]
    struct Block {
        start: NonNull<u8>,
        layout: Layout,
        byte: u8,
    }

    impl Block {
        fn fill(&self, from: usize) {
            for offset in from..self.layout.size() {
                // SAFETY: the block has so many bytes and is the test's.
                unsafe { self.start.as_ptr().add(offset).write(self.byte) };
            }
        }

        fn verify(&self, to: usize) {
            for offset in 0..to {
                // SAFETY: as above.
                let found = unsafe { self.start.as_ptr().add(offset).read() };
                assert_eq!(found, self.byte, "byte {offset} of {}", self.layout.size());
            }
        }
    }

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    /// Numbers that look random, the same each time.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % limit as u64) as usize
        }
    }

    /// Random operations: no block is another's, none moves or changes by itself, and the accounts always agree with a walk.
    fn random_operations(steps: usize, seed: u64) {
        let mut heap = Heap::new(&[1 << 20, 4096, 1 << 18]);
        let start = heap.agree();
        let (mut blocks, mut live, mut numbers) = (Vec::<Block>::new(), 0, Numbers(seed));
        for step in 0..steps {
            let size = match numbers.below(20) {
                0 => 1 + numbers.below(50_000),
                1..4 => 1 + numbers.below(16),
                _ => 1 + numbers.below(2000),
            };
            let byte = step as u8;
            match numbers.below(if live < 600_000 { 8 } else { 14 }) {
                0..4 => {
                    let layout = layout(size, 1 << [0, 3, 3, 4, 6, 12][numbers.below(6)]);
                    let Some(start) = heap.heap.allocate(layout) else { continue };
                    assert!(start.addr().get().is_multiple_of(layout.align()));
                    let block = Block { start, layout, byte };
                    block.fill(0);
                    live += size;
                    blocks.push(block);
                }
                4..6 if !blocks.is_empty() => {
                    let index = numbers.below(blocks.len());
                    let block = &mut blocks[index];
                    // SAFETY: the block is the test's.
                    if unsafe { heap.heap.resize(block.start.as_ptr(), block.layout, size) }.unwrap() {
                        let kept = block.layout.size().min(size);
                        block.verify(kept);
                        live = live - block.layout.size() + size;
                        block.layout = layout(size, block.layout.align());
                        block.fill(kept);
                    } else {
                        assert!(size > block.layout.size(), "a block can always become smaller");
                    }
                }
                _ if !blocks.is_empty() => {
                    let block = blocks.swap_remove(numbers.below(blocks.len()));
                    block.verify(block.layout.size());
                    live -= block.layout.size();
                    // SAFETY: the block is the test's, which forgets it.
                    unsafe { heap.heap.free(block.start.as_ptr(), block.layout) }.unwrap();
                }
                _ => {}
            }
            let accounts = heap.heap.accounts();
            assert_eq!((accounts.live, accounts.blocks), (live, blocks.len()));
            if step % 1000 == 0 {
                heap.agree();
            }
        }
        for block in blocks {
            block.verify(block.layout.size());
            // SAFETY: as above.
            unsafe { heap.heap.free(block.start.as_ptr(), block.layout) }.unwrap();
        }
        let end = heap.agree();
        assert_eq!(end, Accounts { peak: end.peak, failed: end.failed, ..start });
    }

    #[test]
    fn random_operations_agree_with_a_model() {
        if cfg!(miri) {
            return random_operations(40, 7);
        }
        for seed in 1..6 {
            random_operations(60_000, seed);
        }
    }

    #[test]
    #[ignore = "ten million operations take minutes; `cargo xen test --all` runs it"]
    fn ten_million_operations_agree_with_a_model() {
        random_operations(10_000_000, 42);
    }

    /// Damage to a block of each size and alignment is found when it is freed or resized, and says what it is.
    #[test]
    fn damage_is_found_and_named() {
        for (size, align) in [(1, 1), (7, 1), (8, 8), (24, 8), (40, 16), (100, 4), (5000, 8), (4096, 4096)] {
            let mut heap = Heap::new(&[1 << 16]);
            let layout = layout(size, align);
            let block = heap.heap.allocate(layout).unwrap().as_ptr();
            let named = |kind| Err(Damage { address: block.addr(), size, kind });
            // One byte behind the end.
            // SAFETY: the byte lies in the heap.
            let byte = unsafe { block.add(size) };
            // SAFETY: as above.
            unsafe { *byte = !*byte };
            // SAFETY: the block is the test's, here and below.
            unsafe {
                assert_eq!(heap.heap.free(block, layout), named(DamageKind::Overrun));
                assert_eq!(heap.heap.resize(block, layout, 3).map(|_| ()), named(DamageKind::Overrun));
                assert!(heap.heap.walk().is_err());
                *byte = !*byte;
                heap.agree();
                heap.heap.free(block, layout).unwrap();
                // Small blocks have their marks where the gap's records are.
                let kind = heap.heap.free(block, layout).unwrap_err().kind;
                let expected = if size < 32 { DamageKind::Foreign } else { DamageKind::FreedTwice };
                assert!(kind == expected || kind == DamageKind::Foreign, "{size}: {kind:?}");
                assert!(size < 32 || kind == DamageKind::FreedTwice, "{size}: {kind:?}");
            }
            heap.agree();
        }
    }

    /// The marks of a block: its canary, and the word with its size.
    fn marks(block: *mut u8, layout: Layout) -> (u64, u64) {
        let outer = outer(layout).unwrap().size();
        // SAFETY: both lie in the outer block, which is the heap's.
        unsafe {
            (
                block.add(layout.size()).cast::<u64>().read_unaligned(),
                block.add(outer - 8).cast::<u64>().read_unaligned(),
            )
        }
    }

    /// Marks that are known, with the addresses and sizes that they are for, give no other mark away: not by the formulas
    /// that they once had, of which one mark gave the key, nor by a difference, a ratio, or the complement.
    #[test]
    fn leaked_marks_predict_no_others() {
        let mut heap = Heap::new(&[1 << 16]);
        let layouts = [layout(100, 8), layout(100, 8), layout(104, 8), layout(104, 8)];
        let blocks = layouts.map(|layout| heap.heap.allocate(layout).unwrap().as_ptr());
        let leaked: Vec<_> = blocks.iter().zip(layouts).map(|(&block, layout)| marks(block, layout)).collect();
        let old_canary = |key: u64, block: *mut u8, size: usize| {
            (key ^ block.addr() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ size as u64 ^ key
        };
        for ((&block, layout), &(canary, word)) in blocks.iter().zip(layouts).zip(&leaked) {
            let end = block.addr() + outer(layout).unwrap().size() + 8;
            let key = (word ^ layout.size() as u64 ^ (end as u64).wrapping_mul(0xd6e8_feb8_6659_fd93)).rotate_right(32);
            assert_ne!(old_canary(key, block, layout.size()), canary, "the size word gives the key away");
        }
        // The fourth from the first three, if either address or size went in linearly.
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|index| leaked[index].0);
        assert_ne!(first ^ second ^ third, fourth);
        assert_ne!(second.wrapping_sub(first).wrapping_add(third), fourth);
        assert_ne!(second.wrapping_mul(third), first.wrapping_mul(fourth));
        // SAFETY: the block is the test's, and its memory stays the heap's.
        unsafe { heap.heap.free(blocks[1], layouts[1]) }.unwrap();
        let (freed, _) = marks(blocks[1], layouts[1]);
        assert!(freed != second && freed != !second, "the canary of a freed block tells that of one in use");
    }

    /// The size that a block had before it was resized is no longer one to free it with, wherever the old marks lie now.
    #[test]
    fn the_old_size_of_a_block_is_foreign() {
        for (old, new) in [(100, 80), (2000, 600), (600, 2000), (64, 63), (33, 4000)] {
            let mut heap = Heap::new(&[1 << 16]);
            let start = heap.agree();
            let block = heap.heap.allocate(layout(old, 8)).unwrap().as_ptr();
            // SAFETY: the block is the test's, and the heap looks before it believes.
            unsafe {
                assert!(heap.heap.resize(block, layout(old, 8), new).unwrap());
                assert!(heap.heap.free(block, layout(old, 8)).is_err(), "{old} to {new}");
                assert!(heap.heap.resize(block, layout(old, 8), 10).is_err());
                heap.agree();
                heap.heap.free(block, layout(new, 8)).unwrap();
            }
            assert_eq!(heap.agree(), Accounts { peak: old.max(new), ..start });
        }
    }

    /// Memory that continues a piece becomes one with it.
    #[test]
    fn a_piece_grows_by_what_follows_it() {
        let mut heap = Hardened::new();
        let mut memory = vec![0_u128; 4096].into_boxed_slice();
        let start = memory.as_mut_ptr().cast::<u8>();
        let start = start.wrapping_add(start.align_offset(4096));
        // SAFETY: the pieces are apart, the heap's alone, and live as long as it.
        unsafe {
            heap.claim(start, 16 << 10);
            let block = heap.allocate(layout(14 << 10, 8));
            assert!(block.is_some() && heap.allocate(layout(14 << 10, 8)).is_none());
            heap.claim(start.add(16 << 10), 16 << 10);
            assert!(heap.allocate(layout(14 << 10, 8)).is_some());
        }
        agree(&heap.accounts(), &heap.walk().unwrap()).unwrap();
        assert_eq!(heap.accounts().gaps, 1);
    }

    #[test]
    fn what_is_no_block_is_foreign() {
        let mut heap = Heap::new(&[1 << 16]);
        let ours = heap.heap.allocate(layout(100, 8)).unwrap().as_ptr();
        let mut elsewhere = [0_u8; 256];
        let kind = |result: Result<(), Damage>| result.unwrap_err().kind;
        // SAFETY: the heap looks before it believes.
        unsafe {
            assert_eq!(kind(heap.heap.free(elsewhere.as_mut_ptr(), layout(100, 8))), DamageKind::Foreign);
            assert_eq!(kind(heap.heap.free(ours.add(8), layout(92, 8))), DamageKind::Foreign);
            assert_eq!(kind(heap.heap.free(ours.add(32), layout(68, 8))), DamageKind::Foreign);
            assert_eq!(kind(heap.heap.free(ours, layout(99, 8))), DamageKind::Foreign);
            assert_eq!(kind(heap.heap.free(ours, layout(1 << 40, 8))), DamageKind::Foreign);
            assert_eq!(kind(heap.heap.free(core::ptr::null_mut(), layout(8, 8))), DamageKind::Foreign);
            heap.heap.free(ours, layout(100, 8)).unwrap();
        }
    }

    #[test]
    fn exhaustion_is_counted_and_everything_comes_back() {
        let mut heap = Heap::new(&[1 << 18]);
        let start = heap.agree();
        let mut blocks = Vec::new();
        while let Some(block) = heap.heap.allocate(layout(1000, 8)) {
            blocks.push(block);
        }
        let full = heap.agree();
        assert_eq!((full.failed, full.live, full.peak), (1, blocks.len() * 1000, blocks.len() * 1000));
        assert!(full.free < 2000 && full.live > full.heap / 100 * 94, "{full:?}");
        // Freed in any order, all of it is one piece again.
        while !blocks.is_empty() {
            let block = blocks.swap_remove(blocks.len() / 3);
            // SAFETY: the block is the test's.
            unsafe { heap.heap.free(block.as_ptr(), layout(1000, 8)) }.unwrap();
        }
        assert_eq!(heap.agree(), Accounts { peak: full.peak, failed: 1, ..start });
        assert_eq!(heap.heap.walk().unwrap().largest, start.free);
        assert_eq!(heap.heap.allocate(layout(usize::MAX / 2 - 7, 1)), None);
        assert_eq!(heap.heap.allocate(layout(1, 1 << 40)), None);
    }

    #[test]
    fn a_mixed_load_fills_the_heap() {
        if cfg!(miri) {
            return;
        }
        let mut heap = Heap::new(&[32 << 20]);
        let mut numbers = Numbers(3);
        while heap.heap.allocate(layout(16 + numbers.below(2000), 8)).is_some() {}
        let accounts = heap.agree();
        assert!(accounts.live > accounts.heap / 100 * 94, "{accounts:?}");
    }

    #[test]
    fn memory_too_small_is_left_alone() {
        let heap = Heap::new(&[1 << 16, 16, 48]);
        assert!(heap.agree().heap <= (1 << 16) + 48);
        assert_eq!(Heap::new(&[64]).agree(), Accounts::default());
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Whatever words stand where marks should be, looking at them ends.
        #[test]
        fn damaged_records_are_survived(words in proptest::collection::vec(any::<u64>(), 1..40), at in 0_usize..4000) {
            let mut heap = Heap::new(&[1 << 16]);
            let blocks: Vec<_> = (1..20).map(|size| heap.heap.allocate(layout(size * 20, 8)).unwrap()).collect();
            for (index, &word) in words.iter().enumerate() {
                // SAFETY: inside of the heap.
                unsafe { blocks[0].as_ptr().add(at + 8 * index).cast::<u64>().write_unaligned(word) };
            }
            let _ = heap.heap.walk();
            for (block, size) in blocks.into_iter().zip(1..) {
                // Only looked at: the damage may be anywhere.
                let _ = heap.heap.check(block.as_ptr(), layout(size * 20, 8));
            }
        }
    }
}
