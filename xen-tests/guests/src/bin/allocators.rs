//! Prices allocators against each other, in instructions: the clock of the emulated machine counts them.
//!
//! Each has memory of its own and the same work: blocks of 16 to 2015 bytes fill it up to a number, every second one is freed,
//! and then the same random allocations and frees are timed one by one. All of it is done three times, and of each operation
//! the least counts: interrupts of Xen's own hit others each time. The command line names the numbers of blocks.
//! `@price ALLOCATOR BLOCKS MEAN_ALLOCATE WORST_ALLOCATE MEAN_FREE WORST_FREE`, and `@payload ALLOCATOR PERCENT` of 32 MiB.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::cell::Cell;
use core::fmt::Write;
use core::ptr;

use buddy_system_allocator::LockedHeap;
use dlmalloc::Dlmalloc;
use domu::Domain;
use domu::memory::{Pages, quick_stat};
use domu_guests::number;
use spin::Mutex;
use talc::{TalcLock, source::Manual};

domu::main!(main);

async fn main(domain: Domain) -> Result<(), core::fmt::Error> {
    let mut console = domain.console();
    let words = domain.words().filter_map(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok());
    for blocks in words {
        for line in [
            with_memory(size_for(blocks), |_, _| price("domu", &Global, blocks)),
            with_memory(size_for(blocks), |start, size| price("talc", &talc(start, size), blocks)),
            with_memory(size_for(blocks), |start, size| price("dlmalloc", &dlmalloc(start, size), blocks)),
        ] {
            writeln!(console, "{line}")?;
        }
        // It walks over its lists for each free: with more blocks that takes hours.
        if blocks <= 20_000 {
            let line = with_memory(size_for(blocks) * 2, |start, size| price("buddy", &buddy(start, size), blocks));
            writeln!(console, "{line}")?;
        }
        writeln!(console, "{}", price_pages(blocks))?;
    }
    const PAYLOAD: usize = 32 << 20;
    for line in [
        payload_of_the_heap(PAYLOAD),
        with_memory(PAYLOAD, |start, size| payload("talc", &talc(start, size), size)),
        with_memory(PAYLOAD, |start, size| payload("dlmalloc", &dlmalloc(start, size), size)),
        with_memory(PAYLOAD, |start, size| payload("buddy", &buddy(start, size), size)),
    ] {
        writeln!(console, "{line}")?;
    }
    Ok(())
}

/// What so many blocks need, with room to spare.
const fn size_for(blocks: usize) -> usize {
    blocks * 1400 + (1 << 20)
}

/// The heap of the domain.
struct Global;

// SAFETY: everything is the global allocator's.
unsafe impl GlobalAlloc for Global {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        unsafe { alloc::alloc::alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { alloc::alloc::dealloc(start, layout) }
    }
}

type Talc = TalcLock<Mutex<()>, Manual>;

fn talc(start: *mut u8, size: usize) -> Talc {
    let talc = Talc::new(Manual);
    // SAFETY: the memory is the allocator's for as long as it lives.
    let _ = unsafe { talc.lock().claim(start, size) };
    talc
}

fn buddy(start: *mut u8, size: usize) -> LockedHeap<32> {
    let buddy = LockedHeap::new();
    // SAFETY: the memory is the allocator's for as long as it lives.
    unsafe { buddy.lock().init(start.addr(), size) };
    buddy
}

/// dlmalloc asks for its memory: it is given all of it at once.
struct Memory(Cell<Option<(*mut u8, usize)>>);

// SAFETY: the guest has one thread.
unsafe impl Send for Memory {}

// SAFETY: the memory is handed out once, and never taken back.
unsafe impl dlmalloc::Allocator for Memory {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        match self.0.take() {
            Some((start, all)) if size <= all => (start, all, 0),
            _ => (ptr::null_mut(), 0, 0),
        }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        false
    }

    fn page_size(&self) -> usize {
        4096
    }
}

struct LockedDlmalloc(Mutex<Dlmalloc<Memory>>);

fn dlmalloc(start: *mut u8, size: usize) -> LockedDlmalloc {
    LockedDlmalloc(Mutex::new(Dlmalloc::new_with_allocator(Memory(Cell::new(Some((start, size)))))))
}

// SAFETY: dlmalloc keeps the promises, behind a lock.
unsafe impl GlobalAlloc for LockedDlmalloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the size is not zero, as the caller promises.
        unsafe { self.0.lock().malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.lock().free(start, layout.size(), layout.align()) }
    }
}

/// Lends an allocator memory from the heap, a multiple of 2 MiB.
fn with_memory(size: usize, work: impl FnOnce(*mut u8, usize) -> String) -> String {
    let size = size.next_multiple_of(2 << 20);
    let Ok(layout) = Layout::from_size_align(size, 1 << 21) else { return "@fail no such layout".into() };
    // SAFETY: the layout is not empty.
    let start = unsafe { alloc::alloc::alloc(layout) };
    if start.is_null() {
        return format!("@fail no memory: {size} bytes");
    }
    let line = work(start, size);
    // SAFETY: just allocated with this layout; the allocator that used it is gone.
    unsafe { alloc::alloc::dealloc(start, layout) };
    line
}

fn layout(seed: &mut u64) -> Layout {
    // SAFETY: the alignment is a power of two, and the size small.
    unsafe { Layout::from_size_align_unchecked(16 + number(seed) % 2000, 8) }
}

fn now() -> u64 {
    // SAFETY: every 64-bit CPU has RDTSC and LFENCE.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// What something takes, less what looking at the clock takes.
fn timed<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let start = now();
    let empty = now() - start;
    let start = now();
    let result = work();
    ((now() - start).saturating_sub(empty), result)
}

/// Operations that are timed.
const TIMED: usize = 10_000;

/// The least that each operation took.
struct Prices(Vec<u64>);

impl Prices {
    fn new() -> Self {
        Self(alloc::vec![u64::MAX; TIMED])
    }

    fn add(&mut self, index: usize, ticks: u64) {
        self.0[index] = self.0[index].min(ticks);
    }

    fn mean_and_worst(&self) -> (u64, u64) {
        (self.0.iter().sum::<u64>() / TIMED as u64, self.0.iter().copied().max().unwrap_or(0))
    }
}

fn price(name: &str, heap: &dyn GlobalAlloc, blocks: usize) -> String {
    let take = |layout: Layout| {
        // SAFETY: the layout is not empty.
        let start = unsafe { heap.alloc(layout) };
        (!start.is_null()).then_some((start, layout))
    };
    // SAFETY: allocated by `take` with this layout, and forgotten.
    price_of(name, blocks, take, |(start, layout)| unsafe { heap.dealloc(start, layout) })
}

/// The same for single pages of [`Pages`], which are zeroed when they are taken.
fn price_pages(blocks: usize) -> String {
    price_of("pages", blocks, |_| Pages::new(1).ok(), drop)
}

fn price_of<B>(name: &str, blocks: usize, take: impl Fn(Layout) -> Option<B>, give: impl Fn(B)) -> String {
    let (mut allocate, mut free) = (Prices::new(), Prices::new());
    for _ in 0..3 {
        if let Err(why) = round(blocks, &take, &give, &mut allocate, &mut free) {
            return format!("@fail {name}: {why}");
        }
    }
    let (allocate, free) = (allocate.mean_and_worst(), free.mean_and_worst());
    format!("@price {name} {blocks} {} {} {} {}", allocate.0, allocate.1, free.0, free.1)
}

fn round<B>(
    count: usize,
    take: impl Fn(Layout) -> Option<B>,
    give: impl Fn(B),
    allocate: &mut Prices,
    free: &mut Prices,
) -> Result<(), String> {
    let mut seed = 88_172_645_463_325_252;
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        match take(layout(&mut seed)) {
            Some(block) => blocks.push(block),
            None => return Err(format!("full after {} of {count} blocks", blocks.len())),
        }
    }
    let mut kept = Vec::with_capacity(count);
    for (index, block) in blocks.into_iter().enumerate() {
        if index % 2 == 0 { give(block) } else { kept.push(block) }
    }
    for operation in 0..TIMED {
        let layout = layout(&mut seed);
        let (ticks, block) = timed(|| take(layout));
        let block = block.ok_or("full while it was timed")?;
        allocate.add(operation, ticks);
        let index = number(&mut seed) % kept.len();
        let old = core::mem::replace(&mut kept[index], block);
        free.add(operation, timed(|| give(old)).0);
    }
    kept.into_iter().for_each(give);
    Ok(())
}

/// How much of some memory the blocks have when no more fit.
fn payload(name: &str, heap: &dyn GlobalAlloc, size: usize) -> String {
    let (mut seed, mut bytes) = (3, 0);
    loop {
        let layout = layout(&mut seed);
        // SAFETY: the layout is not empty. The blocks go with the memory.
        if unsafe { heap.alloc(layout) }.is_null() {
            return format!("@payload {name} {}.{}", bytes * 100 / size, bytes * 1000 / size % 10);
        }
        bytes += layout.size();
    }
}

/// The same for the domain's heap: all of it but for so much is taken away first.
fn payload_of_the_heap(size: usize) -> String {
    let mut others: Vec<Vec<u8>> = Vec::with_capacity(64);
    while quick_stat().free > size {
        let mut other = Vec::new();
        let excess = quick_stat().free - size;
        let Some(piece) = [excess, excess / 2, excess / 4]
            .into_iter()
            .find(|&piece| piece > 0 && other.try_reserve_exact(piece).is_ok())
        else {
            break;
        };
        if piece < 4096 || others.len() == others.capacity() {
            break;
        }
        others.push(other);
    }
    let free = quick_stat().free;
    let mut blocks = Vec::new();
    if blocks.try_reserve_exact(free / 900).is_err() {
        return "@fail domu: no memory for a list".into();
    }
    let (free, live) = (quick_stat().free, quick_stat().live);
    let mut seed = 3;
    loop {
        let layout = layout(&mut seed);
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc::alloc::alloc(layout) };
        if start.is_null() {
            break;
        }
        blocks.push((start, layout));
    }
    let bytes = quick_stat().live - live;
    for (start, layout) in blocks.drain(..) {
        // SAFETY: allocated above with this layout.
        unsafe { alloc::alloc::dealloc(start, layout) };
    }
    format!("@payload domu {}.{}", bytes * 100 / free, bytes * 1000 / free % 10)
}
