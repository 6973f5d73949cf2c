//! The heap against a model, against damage, and its accounts against a walk.

use std::boxed::Box;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::statistics::agree;
use super::*;

/// A heap with memory of its own.
struct Heap {
    heap: Hardened,
    /// Where it is the only one to look: the boxes themselves are not moved.
    _memory: Vec<Box<[u128]>>,
}

impl Heap {
    fn new(sizes: &[usize]) -> Self {
        let mut heap = Hardened::new();
        heap.set_key(0x0123_4567_89ab_cdef);
        let mut memory = Vec::new();
        for &size in sizes {
            let mut piece = vec![0_u128; size / 16].into_boxed_slice();
            // SAFETY: the piece lives as long as the heap, and nothing else looks at it.
            unsafe { heap.claim(piece.as_mut_ptr().cast(), size) };
            memory.push(piece);
        }
        Self { heap, _memory: memory }
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
        return random_operations(300, 7);
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
