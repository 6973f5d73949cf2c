//! The heap on real Xen.
//!
//! * `heap.figures`: what statistics say at rest fits together, and the heap's own records take a hundredth at most.
//! * `heap.random`: as many random operations as the command line names; statistics and a walk agree after each thousand.
//! * `heap.large`: one allocation takes three quarters of the free memory, then three take a quarter each; everything returns.
//! * `heap.contiguous`: after all that, 64 adjacent pages are found.
//! * `heap.handler`: the handler is asked when memory runs out, and what it frees is used.
//! * last, with the word `exhaust`, an allocation that cannot fail does.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::hint::black_box;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use domu::Domain;
use domu::memory::{self, QuickStat};
use domu_guests::{ensure, number, verdict};

domu::main!(main);

async fn main(domain: Domain) -> domu::Result {
    let steps =
        domain.words().next().and_then(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok()).unwrap_or(10_000);
    verdict(&domain, "heap.figures", figures());
    verdict(&domain, "heap.large", large());
    verdict(&domain, "heap.random", random(steps));
    verdict(&domain, "heap.contiguous", contiguous());
    verdict(&domain, "heap.handler", handler());
    for (name, value) in memory::metrics() {
        log::info!("{name}: {value}");
    }
    if domain.words().any(|word| word.raw() == b"exhaust") {
        log::info!("{}", black_box(alloc::vec![0_u8; 1 << 40]).len());
    }
    Ok(())
}

/// Accounts and a walk agree.
fn agreed() -> Result<QuickStat, String> {
    match memory::stat() {
        Ok(stat) if stat.largest <= stat.quick.free && stat.quick.live <= stat.quick.peak => Ok(stat.quick),
        Ok(stat) => Err(format!("{stat:?}")),
        Err(damage) => Err(format!("{damage}")),
    }
}

/// What is in use now is what was.
fn unchanged(before: QuickStat) -> Result<(), String> {
    let now = agreed()?;
    let same = (now.live, now.free, now.blocks, now.heap) == (before.live, before.free, before.blocks, before.heap);
    if same { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
}

fn figures() -> Result<(), String> {
    let stat = agreed()?;
    let QuickStat { total, heap, live, free, .. } = stat;
    ensure(heap < total && heap > total / 2, || format!("a heap of {heap} in {total}"))?;
    let own = heap - live - free;
    ensure(own <= heap / 100, || format!("{own} of {heap} are for records"))?;
    let (stack, deeper) = (memory::quick_stat().stack, deep());
    ensure((4096..8192).contains(&(deeper - stack)), || format!("{stack} and {deeper} of the stack in use"))?;
    let known = [
        ("total", total),
        ("heap", heap),
        ("live", live),
        ("free", free),
        ("blocks", stat.blocks),
        ("pages", stat.pages),
    ];
    for (name, value) in known {
        let told = memory::metrics().find(|(told, _)| *told == name).map(|(_, value)| value);
        ensure(told == Some(value as u64), || format!("{name} is told to be {told:?} and is {value}"))?;
    }
    Ok(())
}

/// What is in use of the stack from some way down.
#[inline(never)]
fn deep() -> usize {
    let mut frame = [1_u8; 4096];
    black_box(&mut frame);
    let stack = memory::quick_stat().stack;
    black_box(&mut frame);
    stack
}

fn large() -> Result<(), String> {
    let before = agreed()?;
    for (count, part) in [(1, 75), (3, 25)] {
        let mut blocks: [Vec<u8>; 3] = Default::default();
        for block in &mut blocks[..count] {
            let size = before.free / 100 * part;
            block.try_reserve_exact(size).map_err(|error| format!("{count} of {size}: {error}"))?;
        }
        if agreed()?.live < before.live + before.free / 100 * 70 {
            return Err("the blocks are not counted".into());
        }
        drop(blocks);
        unchanged(before)?;
    }
    Ok(())
}

fn random(steps: usize) -> Result<(), String> {
    const SLOTS: usize = 4096;
    let before = agreed()?;
    let mut slots: Vec<Vec<u8>> = Vec::new();
    slots.resize_with(SLOTS, Vec::new);
    let mut seed = 88_172_645_463_325_252;
    for step in 0..steps {
        let (slot, size) = (number(&mut seed) % SLOTS, 16 + number(&mut seed) % 2000);
        let block = &mut slots[slot];
        match number(&mut seed) % 4 {
            0 => *block = Vec::new(),
            1 => block.shrink_to(size / 2),
            _ => {
                // A failure is a full heap, and no harm.
                let _ = block.try_reserve_exact(size);
            }
        }
        if step % 1000 == 0 {
            agreed()?;
        }
    }
    // Every second one goes, so that what is free is in pieces.
    slots.iter_mut().step_by(2).for_each(|block| *block = Vec::new());
    let in_pieces = contiguous();
    drop(slots);
    unchanged(before)?;
    in_pieces
}

fn contiguous() -> Result<(), String> {
    let Ok(layout) = Layout::from_size_align(64 * 4096, 4096) else { return Err("no such layout".into()) };
    // SAFETY: the layout is not empty.
    let block = unsafe { alloc::alloc::alloc(layout) };
    if block.is_null() {
        return Err(format!("64 pages are not found: {:?}", memory::stat()));
    }
    // SAFETY: just allocated with this layout.
    unsafe { alloc::alloc::dealloc(block, layout) };
    Ok(())
}

/// What the handler can spare.
static SPARE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static SPARE_SIZE: AtomicUsize = AtomicUsize::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);

fn free_the_spare(_: Layout) -> bool {
    ASKED.fetch_add(1, Ordering::Relaxed);
    let spare = SPARE.swap(core::ptr::null_mut(), Ordering::Relaxed);
    if !spare.is_null() {
        // SAFETY: `handler` has leaked a vector of this capacity.
        drop(unsafe { Vec::from_raw_parts(spare, 0, SPARE_SIZE.load(Ordering::Relaxed)) });
    }
    // Promised in any case: an allocation must not be attempted for ever.
    true
}

fn handler() -> Result<(), String> {
    let before = agreed()?;
    let mut spare = Vec::<u8>::new();
    spare.try_reserve_exact(before.free / 2).map_err(|error| format!("{error}"))?;
    SPARE_SIZE.store(spare.capacity(), Ordering::Relaxed);
    SPARE.store(core::mem::ManuallyDrop::new(spare).as_mut_ptr(), Ordering::Relaxed);
    memory::on_exhaustion(free_the_spare);
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(before.free / 4 * 3).map_err(|error| format!("with a spare: {error}"))?;
    if block.try_reserve_exact(before.free).is_ok() {
        return Err("more than there is was given".into());
    }
    drop(block);
    match ASKED.load(Ordering::Relaxed) {
        2 => unchanged(before),
        asked => Err(format!("the handler was asked {asked} times")),
    }
}
