//! A chunk: a stretch of the heap that is handed out in runs of pages.
//!
//! `buddy_system_allocator` finds the room. Its lists lie in the free pages themselves, and to free a run it looks through
//! the list of one size: in one chunk that is short. What it does not tell is how large a run it could find now, so that
//! is kept here, a bit for each page.
//!
//! The chunk is aligned to its size, and its description stands in its last page, which is not handed out: so it is found
//! from the address of a run, and the heap's own words behind the chunk have room before the next.

use core::alloc::Layout;
use core::ptr::NonNull;

use buddy_system_allocator::Heap;

use super::frame_runs::Shape;

/// Bytes of a chunk, and in a domain with less than 16 MiB, where that would be much of it.
const LARGE: usize = 2 << 20;
const SMALL: usize = 128 << 10;
/// Frames below which a domain is small.
const SMALL_DOMAIN: u64 = 16 << (20 - 12);

/// Words of a bit for each page of a chunk.
const WORDS: usize = LARGE / 4096 / 64;
/// Sizes of blocks, as powers of two of bytes, up to half a large chunk.
const ORDERS: usize = 21;

/// What is left to the heap at the end of a chunk.
const HEAPS_OWN: usize = 256;

/// How large the chunks of a domain are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChunkSize(usize);

impl ChunkSize {
    /// For a domain with so much RAM.
    pub(super) const fn of_domain(ram_frames: u64) -> Self {
        Self(if ram_frames < SMALL_DOMAIN { SMALL } else { LARGE })
    }

    /// What a chunk takes of the heap.
    pub(super) const fn shape(self) -> Shape {
        Shape { bytes: self.0 - HEAPS_OWN, align: self.0 }
    }

    /// Pages that a chunk hands out.
    pub(super) const fn pages(self) -> usize {
        self.0 / 4096 - 1
    }

    /// The largest run that a chunk can have.
    pub(super) const fn most(self) -> usize {
        self.0 / 4096 / 2
    }

    /// The description of the chunk that a run lies in.
    pub(super) fn chunk_of(self, run: NonNull<u8>) -> Option<NonNull<Chunk>> {
        let describe = |address: usize| (address & !(self.0 - 1)) + self.pages() * 4096;
        NonNull::new(run.as_ptr().map_addr(describe).cast())
    }
}

/// The description of a chunk.
pub(super) struct Chunk {
    start: NonNull<u8>,
    heap: Heap<ORDERS>,
    /// A bit for each free page.
    free: [u64; WORDS],
    /// What [`largest`] says of each of these words.
    rooms: [u8; WORDS],
    /// How many pages are free.
    pub(super) free_pages: usize,
    /// The list that the chunk stands in: its room when it came there.
    pub(super) list: usize,
    /// Neighbours in the list of the chunks with as much room.
    pub(super) next: Option<NonNull<Self>>,
    pub(super) previous: Option<NonNull<Self>>,
}

impl Chunk {
    /// Makes a chunk of memory, and returns its description.
    ///
    /// # Safety
    ///
    /// The memory has the shape of a chunk of this size, can be read and written, and is used by nothing else.
    pub(super) unsafe fn make(start: NonNull<u8>, size: ChunkSize) -> Option<NonNull<Self>> {
        let pages = size.pages();
        let description = size.chunk_of(start)?;
        let mut heap = Heap::empty();
        let first = start.as_ptr().expose_provenance();
        // SAFETY: these pages are the caller's to give; the description lies in the one behind them, aligned as a page
        // is, and fits into what is left of it.
        unsafe {
            heap.add_to_heap(first, first + pages * 4096);
            let (free, rooms) = ([0; WORDS], [0; WORDS]);
            let mut chunk = Self { start, heap, free, rooms, free_pages: 0, list: 0, next: None, previous: None };
            chunk.mark(0, pages, true);
            description.write(chunk);
        }
        Some(description)
    }

    /// Where the chunk starts.
    pub(super) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// How much room there is: zero for none, or one more than the power of two of pages that the largest run has that
    /// [`take`](Self::take) would find now.
    ///
    /// Free neighbours are always one block, so that is the largest aligned block of free pages.
    pub(super) fn room(&self) -> usize {
        let (mut most, mut whole) = (0, 0);
        for (index, &room) in self.rooms.iter().enumerate() {
            most = most.max(room);
            whole |= u64::from(room == WHOLE) << index;
        }
        usize::from(if most == WHOLE { WHOLE - 1 + largest(whole) } else { most })
    }

    /// Hands out a run, if there is room for its power of two; what that has too many is left free.
    pub(super) fn take(&mut self, pages: usize) -> Option<NonNull<u8>> {
        let rounded = pages.next_power_of_two();
        let run = self.heap.alloc(block(rounded)?).ok()?;
        let first = (run.addr().get() - self.start.addr().get()) / 4096;
        self.mark(first, pages, false);
        self.put(first + pages, rounded - pages);
        // With the provenance of all of the chunk, so that its description can be found from it.
        Some(self.start.map_addr(|_| run.addr()))
    }

    /// Takes a run back.
    ///
    /// # Safety
    ///
    /// It was handed out with so many pages, and nobody uses it any more.
    pub(super) unsafe fn give(&mut self, run: NonNull<u8>, pages: usize) {
        let first = (run.addr().get() - self.start.addr().get()) / 4096;
        self.mark(first, pages, true);
        self.put(first, pages);
    }

    /// Makes pages of an allocated block free for the buddies, in the blocks that they are made of.
    fn put(&mut self, mut first: usize, mut pages: usize) {
        while pages > 0 {
            // Aligned to its size, and no larger than what is left.
            let size = (1 << first.trailing_zeros().min(31)).min(1 << pages.ilog2());
            let address = self.start.map_addr(|start| start.saturating_add(first * 4096));
            if let Some(layout) = block(size) {
                // SAFETY: the pages lie in the chunk, and in a block that the buddies have given out as a whole or in
                // such parts: they know blocks by their addresses alone, and merge them as they would have split them.
                unsafe { self.heap.dealloc(address, layout) };
            }
            (first, pages) = (first + size, pages - size);
        }
    }

    fn mark(&mut self, first: usize, pages: usize, free: bool) {
        let end = first + pages;
        let mut at = first;
        while at < end {
            let (index, count) = (at / 64, (end - at).min(64 - at % 64));
            let bits = u64::MAX >> (64 - count) << (at % 64);
            match free {
                true => self.free[index] |= bits,
                false => self.free[index] &= !bits,
            }
            self.rooms[index] = largest(self.free[index]);
            at += count;
        }
        self.free_pages = if free { self.free_pages + pages } else { self.free_pages - pages };
    }
}

/// A block of so many pages, a power of two, for the buddies.
fn block(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages * 4096, 4096).ok()
}

/// What [`largest`] says of a word whose bits are all set.
const WHOLE: u8 = 7;

/// One more than the power of two of the largest aligned run of ones in a word, or zero.
const fn largest(mut ones: u64) -> u8 {
    let mut room = 0;
    while ones != 0 {
        // A one stands for a run of so many, at multiples of that: pairs of them make the next.
        let size = 1_u32 << room;
        room += 1;
        if room == WHOLE {
            break;
        }
        ones &= ones >> size & (u64::MAX / (u64::MAX >> (64 - 2 * size)));
    }
    room
}

const _: () = assert!(size_of::<Chunk>() <= 4096 - HEAPS_OWN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_run_of_a_word() {
        for (word, expected) in [(0, 0), (1, 1), (6, 1), (3, 2), (0xf0, 3), (0x1e, 2), (u64::MAX, WHOLE), (!1, 6)] {
            assert_eq!(largest(word), expected, "{word:#x}");
        }
        for order in 0..7 {
            let run = u64::MAX >> (64 - (1 << order));
            assert_eq!(largest(run), order + 1);
            assert_eq!(largest(run << (63 & (64 - (1 << order)))), order + 1);
        }
    }
}
