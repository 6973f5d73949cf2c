//! Guest-physical memory of a simulated domain: some RAM with something behind it, and single pages.

use core::ops::Range;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use crate::abi::memory::PAGE_SIZE;
use crate::shared::SharedPage;

const MIB: u64 = 1 << 20;

/// Bytes in a page of the second size.
const LARGE_PAGE: u64 = 2 * MIB;

/// Where xl's builder puts the console ring.
pub(crate) const CONSOLE_FRAME: u64 = 0xfefff;

/// Where it puts the ring to xenstore.
pub(crate) const STORE_FRAME: u64 = 0xfeffc;

/// Pages beyond RAM that the reservation of xl's guests counts.
pub(crate) const XL_EXTRA_PAGES: u64 = 16;

/// Pages that xl lets a guest have beyond those.
pub(crate) const XL_SPARE_PAGES: u64 = 240;

/// The memory map that xl's builder shows for so many MiB: unsorted, with a sub-page entry.
pub(crate) fn xl_map(mib: u64) -> Vec<(u64, u64, u32)> {
    let low = (mib * MIB).min(0xfc00_0000);
    let mut map = std::vec![
        (0, low, 1),
        (0xfeff_8000, 0x8000, 2),
        (0xfc00_8000, 64, 3),
        (0xfc00_0000, 0x1000, 3),
        (0xfc00_1000, 0x7000, 3),
    ];
    if mib * MIB > low {
        map.push((1 << 32, mib * MIB - low, 1));
    }
    map
}

/// A stretch of guest-physical memory.
struct Region {
    start: u64,
    size: u64,
    memory: NonNull<u8>,
}

// SAFETY: the memory lives as long as the process, and is no thread's own; who has the region, with the machine that it
// belongs to, is alone in using this pointer.
unsafe impl Send for Region {}

/// Keeps what is leaked reachable, for a leak checker.
struct Kept(#[cfg_attr(not(fuzzing), expect(dead_code, reason = "held, not read"))] NonNull<[u8]>);

// SAFETY: the pointer is never used, but to free the memory when nothing else uses it.
unsafe impl Send for Kept {}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

/// A page of Xen's or of another domain's. It lives as long as the process.
struct Placed(NonNull<u8>);

// SAFETY: as for `Region`.
unsafe impl Send for Placed {}

/// Frees the memory of all domains.
///
/// # Safety
///
/// There are none, and nobody uses what was theirs.
#[cfg(fuzzing)]
pub(in crate::sim) unsafe fn reclaim() {
    for Kept(memory) in KEPT.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        // SAFETY: it was a box before it was leaked, and nobody uses it, as the caller promises.
        drop(unsafe { Box::from_raw(memory.as_ptr()) });
    }
}

/// The memory behind guest-physical addresses. It is never freed: a unikernel's memory is `'static`.
#[derive(Default)]
pub(crate) struct Memory {
    regions: Vec<Region>,
    /// Pages of others, by frame.
    placed: BTreeMap<u64, Placed>,
    /// Frames where such a page was when the domain was suspended: who looks there finds ones.
    ones: BTreeMap<u64, Placed>,
}

/// What a pointer to a page of others' is marked with. It has nothing behind it: pages that follow each other there need not
/// do so in the host's memory, so each access finds its page anew ([`Memory::behind`]), or finds that it is gone.
const PLACED: usize = 1 << 56;

/// The guest-physical address that a pointer to a page of others' stands for.
pub(crate) fn placed_address(pointer: *const u8) -> Option<u64> {
    (pointer.addr() & PLACED != 0).then_some((pointer.addr() & !PLACED) as u64)
}

/// Zeroed memory that lives as long as the process.
fn leak(size: u64, align: u64) -> NonNull<u8> {
    // The host fills zeroed memory in when it is touched, unless it has to align it itself.
    let whole = NonNull::from(Box::leak(std::vec![0_u8; (size + align - 1) as usize].into_boxed_slice()));
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).push(Kept(whole));
    let offset = whole.cast::<u8>().as_ptr().align_offset(align as usize);
    // SAFETY: the address that is aligned is at most `align - 1` bytes into the allocation, which has so many more.
    unsafe { whole.cast().add(offset) }
}

/// A zeroed page of Xen's, or of a domain that the test plays.
pub(crate) fn page() -> SharedPage {
    // SAFETY: the page is aligned and lives as long as the process; all ends use `SharedPage`s of it.
    unsafe { SharedPage::new(leak(PAGE_SIZE, PAGE_SIZE), 1) }
}

/// Overwrites a page of Xen's or of a ring, while the domain is suspended or waits for Xen to place it. As plain memory: that is
/// done before what comes then, whatever the sizes of the words that it is accessed by.
pub(in crate::sim) fn refill(page: SharedPage, byte: u8) {
    // SAFETY: the page is there as long as the process, and this thread alone runs.
    unsafe { page.start().as_ptr().write_bytes(byte, PAGE_SIZE as usize) };
}

impl Memory {
    /// Puts zeroed pages at an address, and returns the host's view of the first, which is aligned as that address is, up to
    /// the size of a large page.
    pub(crate) fn back(&mut self, start: u64, size: u64) -> NonNull<u8> {
        let size = size.next_multiple_of(PAGE_SIZE);
        let align = 1 << start.trailing_zeros().min(if size < LARGE_PAGE { 12 } else { LARGE_PAGE.trailing_zeros() });
        let memory = leak(size, align);
        self.regions.push(Region { start, size, memory });
        memory
    }

    /// Shows a page of somebody else's at a frame that has nothing behind it.
    pub(crate) fn place(&mut self, frame: u64, page: NonNull<u8>) {
        self.ones.remove(&frame);
        self.placed.insert(frame, Placed(page));
    }

    /// Takes it away again.
    pub(crate) fn remove(&mut self, frame: u64) {
        self.placed.remove(&frame);
    }

    /// Takes it away, and leaves nothing there, which reads as ones.
    pub(crate) fn leave_ones(&mut self, frame: u64) {
        self.placed.remove(&frame);
        let ones = page();
        refill(ones, 0xff);
        self.ones.insert(frame, Placed(ones.start()));
    }

    /// The page of somebody else's at a frame.
    pub(crate) fn behind(&self, frame: u64) -> Option<NonNull<u8>> {
        self.placed.get(&frame).or_else(|| self.ones.get(&frame)).map(|page| page.0)
    }

    /// Fills those of some frames that have something behind them. The cost follows these: a map may show any number.
    pub(crate) fn fill(&self, frames: &Range<u64>, byte: u8) {
        for region in &self.regions {
            let first = region.start.max(frames.start * PAGE_SIZE);
            let end = (region.start + region.size).min(frames.end * PAGE_SIZE);
            if first < end {
                // SAFETY: so much of the region is in the range, and the domain does not use it now.
                unsafe {
                    region
                        .memory
                        .as_ptr()
                        .add((first - region.start) as usize)
                        .write_bytes(byte, (end - first) as usize);
                }
            }
        }
    }

    /// The host's view of a guest-physical address, if there is something behind it.
    pub(crate) fn at(&self, address: u64) -> Option<*mut u8> {
        if self.placed.contains_key(&(address / PAGE_SIZE)) {
            return Some(core::ptr::without_provenance_mut(PLACED | address as usize));
        }
        self.ram(address).map(NonNull::as_ptr)
    }

    /// The host's view of the domain's own memory.
    pub(crate) fn ram(&self, address: u64) -> Option<NonNull<u8>> {
        let region = self.regions.iter().find(|region| address.wrapping_sub(region.start) < region.size)?;
        // SAFETY: the offset is below the region's size, so the result points into its allocation.
        Some(unsafe { region.memory.add((address - region.start) as usize) })
    }

    /// The guest-physical address that a pointer of the host's stands for.
    pub(crate) fn address_of(&self, pointer: *const u8) -> Option<u64> {
        let offset = |region: &Region| pointer.addr().wrapping_sub(region.memory.as_ptr().addr()) as u64;
        let own = self.regions.iter().find(|region| offset(region) < region.size);
        own.map(|region| region.start + offset(region)).or_else(|| placed_address(pointer))
    }

    /// Copies bytes to an address.
    ///
    /// # Panics
    ///
    /// If there is no memory for them.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        let fits = |region: &&Region| {
            let offset = address.wrapping_sub(region.start);
            offset < region.size && bytes.len() as u64 <= region.size - offset
        };
        let region = self.regions.iter().find(fits);
        let region = region.unwrap_or_else(|| panic!("the simulated machine has no memory at {address:#x}"));
        // SAFETY: so many bytes of the region follow, as `fits` found, and the source is a slice of the test's own.
        unsafe {
            let to = region.memory.as_ptr().add((address - region.start) as usize);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}
