//! Pages: runs of whole, zeroed pages for rings, grants and device buffers.
//!
//! Chunks are taken from the heap when there is no room, and given back when they are whole; the one that became whole
//! last is kept until [`trim`], so that a run which comes and goes does not take a chunk each time. Chunks stand in lists by
//! the largest run that they have room for, so none is ever tried in vain: to find one costs a look at a word of bits, and
//! the lists are changed in a few steps, whatever number of chunks there is. Of those with room the fullest kind is chosen,
//! so that others become whole.
//!
//! What is larger than half a chunk comes from the heap directly, as does a run for which the heap has room, but not for a
//! chunk.

mod chunk;
pub(super) mod frame_runs;

use core::fmt;
use core::ptr::NonNull;

use self::chunk::{Chunk, ChunkSize};
use self::frame_runs::Shape;
use crate::arch;
use crate::local::domain_local;
use crate::local::{self, Instance};
use crate::memory::Error;
use crate::sync::Mutex;

domain_local! {
    /// The page runs of the domain.
    pub(crate) static STORE: Mutex<Store>;
}

/// One or more whole pages that follow each other, zeroed when they are made: what peers are given access to.
///
/// A ring, a grant or a buffer for a device needs memory whose place is known and which shares no page with anything else:
/// a peer sees whole pages, whatever else lies in them. The memory is the domain's own until it is granted, and may be used
/// as any other; once a peer can write to it, no Rust reference may cover it any more.
///
/// Dropping frees the pages. On the host, dropping them outside of their simulated domain does nothing: they stay in use
/// there.
pub struct Pages {
    start: NonNull<u8>,
    frame: u64,
    count: usize,
    in_chunk: bool,
    instance: Instance,
}

// SAFETY: the memory is the value's own, and belongs to no thread.
unsafe impl Send for Pages {}
// SAFETY: shared, the memory can only be read.
unsafe impl Sync for Pages {}

impl Pages {
    /// Takes so many pages, and fills them with zeroes.
    ///
    /// # Errors
    ///
    /// [`Error::NotPages`] for none at all, [`Error::OutOfMemory`] if there are not so many in one piece, or no domain.
    pub fn new(count: usize) -> Result<Self, Error> {
        if count == 0 {
            return Err(Error::NotPages);
        }
        let state = local::current().ok_or(Error::OutOfMemory)?;
        let store = STORE.of(state);
        let size = store.lock().size;
        // The heap is not asked while the store is locked: it may run the application's code when it is exhausted.
        let mut run = None;
        if count <= size.most() {
            run = store.lock().take(count);
            if run.is_none()
                && let Some(start) = frame_runs::take(size.shape())
            {
                let mut store = store.lock();
                // SAFETY: the run was taken in this shape, and is used by nothing else.
                unsafe { store.adopt(start) };
                run = store.take(count);
            }
        }
        let in_chunk = run.is_some();
        let run = run.or_else(|| {
            let bytes = count.checked_mul(4096)?;
            let run = frame_runs::take(Shape { bytes, align: 4096 })?;
            store.lock().usage.apart += count;
            Some(run)
        });
        let start = run.ok_or(Error::OutOfMemory)?;
        // SAFETY: the run has so many pages, and nobody else knows it.
        unsafe { start.write_bytes(0, count * 4096) };
        // This exposes the pointer: a peer will read the zeroes by the frame's number, so they must be in memory by then.
        let frame = arch::frame_of(start.as_ptr()).ok_or(Error::OutOfMemory)?;
        Ok(Self { start, frame, count, in_chunk, instance: state })
    }

    /// The length in pages.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "there is always a page")]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count * 4096
    }

    /// The first page's frame number, its guest-physical address divided by 4096. Those of the others follow.
    #[doc(alias("gfn", "mfn", "pfn"))]
    #[must_use]
    pub const fn frame(&self) -> u64 {
        self.frame
    }

    /// The domain whose RAM they are.
    pub(crate) const fn instance(&self) -> Instance {
        self.instance
    }

    /// Where the pages are.
    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Where the pages are.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The memory.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        // SAFETY: all of it is initialised and the value's own, and lives as long as the value does.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    /// The memory, to be written to.
    #[must_use]
    pub const fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`; and the value is borrowed exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("frame", &self.frame).field("count", &self.count).finish()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // Another domain's store and heap know nothing of these pages.
        let Some(state) = self.instance.if_running() else { return };
        #[cfg(not(target_os = "none"))]
        crate::sim::machine::freed(self.frame..self.frame + self.count as u64);
        let mut store = STORE.of(state).lock();
        if self.in_chunk {
            // SAFETY: the run came from the store with so many pages, and its owner is gone.
            let whole = unsafe { store.give(self.start, self.count) };
            drop(store);
            if let Some((start, shape)) = whole {
                // SAFETY: the chunk was taken in this shape, and no page of it is in use.
                unsafe { frame_runs::release(start, shape) };
            }
        } else {
            store.usage.apart -= self.count;
            drop(store);
            // SAFETY: the run was taken in this shape, and its owner is gone.
            unsafe { frame_runs::release(self.start, Shape::frames(self.count)) };
        }
    }
}

/// Gives chunks that no page is in use of back to the heap, and returns how much that was, in bytes.
///
/// The rest of the heap has nothing to give: what is freed is free there at once.
#[doc(alias = "malloc_trim")]
pub fn trim() -> usize {
    let Some(state) = local::current() else { return 0 };
    let Some((start, shape)) = STORE.of(state).lock().take_whole() else { return 0 };
    // SAFETY: the chunk was taken in this shape, and no page of it is in use.
    unsafe { frame_runs::release(start, shape) };
    shape.bytes
}

/// What the store counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usage {
    /// Chunks.
    pub(crate) chunks: usize,
    /// Pages of chunks that are in use.
    pub(crate) used: usize,
    /// Pages of chunks that are free.
    pub(crate) free: usize,
    /// Pages that came from the heap directly.
    pub(crate) apart: usize,
    /// What chunks take of the heap, in bytes.
    pub(crate) chunk_bytes: usize,
}

/// What pages take of the heap, and how much of that is in use: a copy of fields.
pub(super) fn usage(state: Instance) -> Usage {
    STORE.of(state).lock().usage
}

/// The same, unless pages are being taken or given back.
#[cfg(target_os = "none")]
pub(super) fn try_usage(state: Instance) -> Option<Usage> {
    STORE.of(state).try_lock().map(|store| store.usage)
}

/// Kinds of room that a chunk can have: none, or a run of up to 256 pages.
const KINDS: usize = 10;

/// All chunks.
pub(crate) struct Store {
    size: ChunkSize,
    /// The first chunk with each kind of room.
    lists: [Option<NonNull<Chunk>>; KINDS],
    /// A bit for each list that is not empty.
    occupied: u32,
    /// A chunk that is kept although it is whole. It is in its list too.
    whole: Option<NonNull<Chunk>>,
    usage: Usage,
}

// SAFETY: the pointers are to chunks, which are the store's own, and belong to no thread.
unsafe impl Send for Store {}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.usage.fmt(f)
    }
}

impl Store {
    /// An empty store, for a domain with so much RAM.
    pub(crate) const fn new(ram_frames: u64) -> Self {
        Self {
            size: ChunkSize::of_domain(ram_frames),
            lists: [None; KINDS],
            occupied: 0,
            whole: None,
            usage: Usage { chunks: 0, used: 0, free: 0, apart: 0, chunk_bytes: 0 },
        }
    }

    /// Makes a chunk of memory.
    ///
    /// # Safety
    ///
    /// As for [`Chunk::make`].
    unsafe fn adopt(&mut self, start: NonNull<u8>) {
        // SAFETY: passed on from the caller.
        let Some(chunk) = (unsafe { Chunk::make(start, self.size) }) else { return };
        self.usage.chunks += 1;
        self.usage.free += self.size.pages();
        self.usage.chunk_bytes += self.size.shape().bytes;
        // SAFETY: the chunk was just made, and is in no list.
        unsafe { self.insert(chunk) };
    }

    /// Hands out a run, of at most half a chunk, if a chunk has room for it.
    fn take(&mut self, count: usize) -> Option<NonNull<u8>> {
        let least = count.next_power_of_two().ilog2() + 1;
        let kind = least + (self.occupied >> least).trailing_zeros();
        let mut chunk = (*self.lists.get(kind as usize)?)?;
        // SAFETY: what stands in a list is a chunk of the store's, which nothing else looks at meanwhile.
        let run = unsafe {
            let run = chunk.as_mut().take(count);
            self.list_again(chunk);
            run
        }?;
        self.usage.used += count;
        self.usage.free -= count;
        self.whole.take_if(|whole| *whole == chunk);
        Some(run)
    }

    /// Takes a run back. If that leaves a chunk to be given to the heap, returns it.
    ///
    /// # Safety
    ///
    /// As for [`Chunk::give`]; the run came from [`take`](Self::take).
    unsafe fn give(&mut self, run: NonNull<u8>, count: usize) -> Option<(NonNull<u8>, Shape)> {
        let mut chunk = self.size.chunk_of(run)?;
        self.usage.used -= count;
        self.usage.free += count;
        // SAFETY: the run lies in a chunk of the store's, as the caller says, which is in its list, and which nothing else
        // looks at meanwhile.
        unsafe {
            chunk.as_mut().give(run, count);
            if chunk.as_ref().free_pages == self.size.pages() {
                if self.whole.is_some() {
                    self.remove(chunk);
                    return Some(self.forget(chunk));
                }
                self.whole = Some(chunk);
            }
            self.list_again(chunk);
        }
        None
    }

    /// The chunk that is kept although no page of it is in use.
    fn take_whole(&mut self) -> Option<(NonNull<u8>, Shape)> {
        let chunk = self.whole.take()?;
        // SAFETY: it is a chunk of the store's, in its list.
        unsafe {
            self.remove(chunk);
            Some(self.forget(chunk))
        }
    }

    /// Strikes a chunk off the accounts.
    ///
    /// # Safety
    ///
    /// It is a chunk of the store's, whole, and no longer in a list.
    unsafe fn forget(&mut self, chunk: NonNull<Chunk>) -> (NonNull<u8>, Shape) {
        let shape = self.size.shape();
        self.usage.chunks -= 1;
        self.usage.free -= self.size.pages();
        self.usage.chunk_bytes -= shape.bytes;
        // SAFETY: passed on from the caller.
        (unsafe { chunk.as_ref() }.start(), shape)
    }

    /// Puts a chunk whose room may have changed into the list of that.
    ///
    /// # Safety
    ///
    /// It is a chunk of the store's, in a list.
    unsafe fn list_again(&mut self, chunk: NonNull<Chunk>) {
        // SAFETY: passed on from the caller; when it is inserted it is in no list.
        unsafe {
            if chunk.as_ref().room() != chunk.as_ref().list {
                self.remove(chunk);
                self.insert(chunk);
            }
        }
    }

    /// Puts a chunk into the list of its room.
    ///
    /// # Safety
    ///
    /// It is a chunk of the store's, in no list.
    unsafe fn insert(&mut self, mut chunk: NonNull<Chunk>) {
        // SAFETY: passed on from the caller; and what stands in a list is another chunk of the store's.
        unsafe {
            let kind = chunk.as_ref().room();
            let first = self.lists[kind].replace(chunk);
            (chunk.as_mut().list, chunk.as_mut().previous, chunk.as_mut().next) = (kind, None, first);
            if let Some(mut first) = first {
                first.as_mut().previous = Some(chunk);
            }
            self.occupied |= 1 << kind;
        }
    }

    /// Takes a chunk out of its list.
    ///
    /// # Safety
    ///
    /// It is a chunk of the store's, in a list.
    unsafe fn remove(&mut self, chunk: NonNull<Chunk>) {
        // SAFETY: passed on from the caller; its neighbours are chunks of the store's, too.
        unsafe {
            let Chunk { list, next, previous, .. } = *chunk.as_ref();
            if let Some(mut next) = next {
                next.as_mut().previous = previous;
            }
            if let Some(mut previous) = previous {
                previous.as_mut().next = next;
                return;
            }
            self.lists[list] = next;
            if next.is_none() {
                self.occupied &= !(1 << list);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn now() -> Usage {
        usage(local::current().unwrap())
    }

    use crate::sim::Guest;

    fn run(guest: Guest, main: impl FnOnce()) {
        guest.run(async |_| main()).powered_off();
    }

    #[test]
    #[cfg_attr(
        miri,
        ignore = "minutes: it boots domains and fills their memory; tests/memory.rs has the same code in less"
    )]
    fn runs_share_chunks_and_whole_chunks_go_back() {
        // Two kinds of domains: 31 and 511 pages in a chunk.
        for (mib, pages, bytes) in [(15, 31, (128 << 10) - 256), (16, 511, (2 << 20) - 256)] {
            run(Guest::new().memory_mib(mib, mib).backed_mib(mib), || {
                let expected = |chunks, used, apart| {
                    let chunk_bytes = chunks * bytes;
                    Usage { chunks, used, free: chunks * pages - used, apart, chunk_bytes }
                };
                assert_eq!(now(), Usage::default());
                let three = Pages::new(3).unwrap();
                assert_eq!(now(), expected(1, 3, 0));
                let half = Pages::new(pages.div_ceil(2)).unwrap();
                assert_eq!(now(), expected(1, 3 + half.count(), 0));
                let apart = Pages::new(half.count() + 1).unwrap();
                assert_eq!(now(), expected(1, 3 + half.count(), apart.count()));
                // The rest of the chunk, to its last page.
                let rest: Vec<_> = (0..pages - 3 - half.count()).map(|_| Pages::new(1).unwrap()).collect();
                assert_eq!(now(), expected(1, pages, apart.count()));
                let more = Pages::new(1).unwrap();
                assert_eq!(now(), expected(2, pages + 1, apart.count()));
                assert_eq!(trim(), 0, "no chunk is whole");
                drop((rest, three, half, apart));
                assert_eq!(now(), expected(2, 1, 0), "one is kept");
                drop(more);
                assert_eq!(now(), expected(1, 0, 0), "and not another");
                assert_eq!((trim(), now(), trim()), (bytes, Usage::default(), 0));
            });
        }
    }

    #[test]
    #[cfg_attr(
        miri,
        ignore = "minutes: it boots domains and fills their memory; tests/memory.rs has the same code in less"
    )]
    fn the_fullest_chunk_with_room_is_chosen() {
        run(Guest::new().memory_mib(15, 15).backed_mib(8), || {
            let mut all: Vec<_> = (0..31 * 4).map(|_| Pages::new(1).unwrap()).collect();
            assert_eq!(now().chunks, 4);
            // Room for eight in the second chunk, for one in the third.
            let chunk = |pages: &Pages| pages.frame() / 32;
            let (second, third) = (chunk(&all[31]), chunk(&all[62]));
            all.retain(|page| chunk(page) != second || page.frame() % 32 >= 8);
            all.retain(|page| chunk(page) != third || page.frame() % 32 != 5);
            let (one, eight) = (Pages::new(1).unwrap(), Pages::new(8).unwrap());
            assert_eq!((chunk(&one), one.frame() % 32), (third, 5));
            assert_eq!((chunk(&eight), eight.frame() % 32), (second, 0));
            assert_eq!(now(), Usage { chunks: 4, used: 124, free: 0, apart: 0, chunk_bytes: 4 * ((128 << 10) - 256) });
        });
    }
}
