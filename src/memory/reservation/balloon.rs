//! Ballooning: memory of the heap that goes to Xen, and comes back; explicit, and off unless the application calls it.
//!
//! ```
//! # use domu::memory::balloon;
//! # domu::sim::Guest::new().backed_mib(16).run(async |_| -> domu::Result {
//! let given = balloon::give(4 << 20)?; // 4 MiB less, in `xl list` too
//! balloon::take_back(given)?;
//! # Ok(())
//! # });
//! ```
//!
//! What is given is taken from the heap first, in blocks as large as can be had, so that what stays in the heap is in large
//! pieces as well. A block comes back from its end: frames that Xen fills in again return to the heap at once, the rest of
//! the block stays out. So two numbers tell exactly which frames of a block are Xen's, whatever Xen did of what it was asked.
//!
//! A domain with `maxmem` above `memory` can also become larger than it was at boot, where the toolstack allows it
//! (`xl mem-set`). The frames that boot gave back are mapped from boot on, although there is nothing behind them: an access
//! would read ones, as it does for any frame that is out. So to become larger needs no memory for page tables.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

use crate::local::domain_local;
use crate::memory::pages::frame_runs::{self, Shape};
use crate::memory::{Error, FrameRange, MemoryMap, NoRoom, heap, reservation};
use crate::sync::Mutex;
use crate::{arch, hypercall, local};

domain_local! {
    /// Memory that Xen was given, and may give back.
    pub(crate) static BALLOON: Mutex<Balloon>;
}

/// A block of the heap, the first frames of which are Xen's. The others of it, if any, are of no use to anybody until
/// the block goes back as a whole.
#[derive(Debug)]
struct Block {
    start: NonNull<u8>,
    first: u64,
    shape: Shape,
    /// Frames that are Xen's.
    out: u64,
}

/// What the domain could have and does not.
#[derive(Default)]
pub(crate) struct Balloon {
    /// Frames of RAM that the memory map shows.
    ram: u64,
    blocks: Vec<Block>,
    /// Frames of all blocks that are Xen's.
    given: u64,
    /// What boot gave back, lowest first.
    surplus: Vec<FrameRange>,
    /// Frames of all of that.
    lacking: u64,
}

// SAFETY: the pointers are to memory that the balloon owns, or the heap; nothing of it belongs to a thread.
unsafe impl Send for Balloon {}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon").field("given", &self.given).field("absent", &self.absent()).finish()
    }
}

impl Balloon {
    /// A balloon that knows what boot gave back.
    pub(crate) fn new(map: &MemoryMap) -> Result<Self, NoRoom> {
        let mut surplus = Vec::new();
        surplus.try_reserve_exact(map.absent.len()).map_err(|_| NoRoom)?;
        surplus.extend_from_slice(&map.absent);
        surplus.sort_unstable_by_key(|range: &FrameRange| range.start);
        let lacking = surplus.iter().map(|range| range.len()).sum();
        Ok(Self { ram: map.ram.count() + lacking, surplus, lacking, ..Self::default() })
    }

    /// Bytes of RAM that the domain has, and bytes of the heap that are Xen's.
    pub(in crate::memory) fn has_and_given(&self) -> (usize, usize) {
        (((self.ram - self.absent()) << 12) as usize, (self.given << 12) as usize)
    }

    fn absent(&self) -> u64 {
        self.given + self.lacking
    }

    /// Gives so many frames, or as many as there are; how many, and why not more.
    fn give(&mut self, frames: u64) -> (u64, Result<(), Error>) {
        let (mut given, mut most) = (0, frames);
        while given < frames {
            let size = most.min(frames - given);
            let (size, align) = if size < reservation::LARGE {
                (size, 4096)
            } else {
                (size / reservation::LARGE * reservation::LARGE, (reservation::LARGE as usize) << 12)
            };
            let shape = Shape { bytes: (size as usize) << 12, align };
            // First the place to remember it.
            let block = self.blocks.try_reserve(1).ok().and_then(|()| frame_runs::take(shape));
            let Some((start, first)) = block.and_then(|start| Some((start, arch::frame_of(start.as_ptr())?))) else {
                if size <= 1 {
                    return (given, Err(Error::OutOfMemory));
                }
                most = size / 2;
                continue;
            };
            // SAFETY: the run is the balloon's, and nothing looks at it until it is populated again.
            let out = unsafe { reservation::decrease(FrameRange { start: first, end: first + size }) };
            (given, self.given) = (given + out, self.given + out);
            let mut block = Block { start, first, shape, out };
            if out > 0 && out == size {
                self.blocks.push(block);
                continue;
            }
            // SAFETY: what Xen did not take is still there, and nobody uses it.
            if !unsafe { block.shrink() } {
                self.blocks.push(block);
            }
            return (given, Err(Error::Refused));
        }
        (given, Ok(()))
    }

    /// Takes back so many frames, or as many as Xen allows and there are; how many, and why not more.
    fn take_back(&mut self, frames: u64) -> (u64, Result<(), Error>) {
        let mut back = 0;
        while let Some(block) = self.blocks.last_mut() {
            let wanted = block.out.min(frames - back);
            if wanted == 0 {
                return (back, Ok(()));
            }
            let end = block.first + block.out;
            // SAFETY: all of this is Xen's.
            let done = unsafe { reservation::populate_down(FrameRange { start: end - wanted, end }) };
            block.out -= done;
            (back, self.given) = (back + done, self.given - done);
            // SAFETY: what lies behind the frames that are still out is there again, and nobody uses it.
            if done > 0 && unsafe { block.shrink() } {
                self.blocks.pop();
            }
            if done < wanted {
                return (back, Err(Error::Refused));
            }
        }
        // The list has been as long as there were blocks.
        self.blocks = Vec::new();
        // An allocator of the application's own is given memory by boot alone.
        if !cfg!(any(feature = "allocator", not(target_os = "none"))) {
            return (back, Err(Error::Refused));
        }
        while let Some(range) = self.surplus.first_mut() {
            let wanted = range.len().min(frames - back);
            if wanted == 0 {
                return (back, Ok(()));
            }
            let start = range.start;
            // SAFETY: boot gave this to Xen, and it was not populated since.
            let done = unsafe { reservation::populate(FrameRange { start, end: start + wanted }) };
            (back, self.lacking) = (back + done, self.lacking - done);
            range.start += done;
            if range.is_empty() {
                self.surplus.remove(0);
            }
            if done > 0 {
                // SAFETY: it is RAM now, mapped read-write since boot, and used by nothing.
                unsafe { heap::claim(FrameRange { start, end: start + done }) };
            }
            if done < wanted {
                return (back, Err(Error::Refused));
            }
        }
        (back, Ok(()))
    }
}

impl Block {
    /// Gives the heap what is behind the frames that are out; says whether that was all of the block.
    ///
    /// # Safety
    ///
    /// That memory is there, and nobody uses it.
    unsafe fn shrink(&mut self) -> bool {
        let bytes = (self.out as usize) << 12;
        // SAFETY: the block was taken in this shape, or shrunk to it; the rest is the caller's promise.
        unsafe {
            if bytes == 0 {
                frame_runs::release(self.start, self.shape);
                return true;
            }
            if bytes < self.shape.bytes && frame_runs::shrink(self.start, self.shape, bytes) {
                self.shape.bytes = bytes;
            }
        }
        false
    }
}

/// Does something with the balloon, and tells how many bytes it came to: an error only if there are none.
fn with(bytes: u64, work: impl FnOnce(&mut Balloon, u64) -> (u64, Result<(), Error>)) -> Result<u64, Error> {
    let state = local::current().ok_or(Error::OutOfMemory)?;
    let (frames, result) = work(&mut *BALLOON.of(state).try_lock().ok_or(Error::Busy)?, bytes >> 12);
    if frames == 0 { result.map(|()| 0) } else { Ok(frames << 12) }
}

/// Gives memory of the heap to Xen, and returns how many bytes: what was asked for in whole pages, or less if the heap has
/// less, or Xen takes less.
///
/// Extents of 2 MiB are given where there are any. The heap keeps nothing in reserve: an application that gives all there is
/// cannot allocate afterwards.
///
/// # Errors
///
/// If nothing was given: [`Error::OutOfMemory`] as no page is free, [`Error::Refused`] by Xen, [`Error::Busy`] from the
/// handler for exhausted memory while the balloon is at work.
#[doc(alias = "XENMEM_decrease_reservation")]
pub fn give(bytes: u64) -> Result<u64, Error> {
    with(bytes, Balloon::give)
}

/// Takes memory from Xen for the heap, and returns how many bytes: what was asked for in whole pages, or less if Xen allows
/// less or the domain [lacks](absent) less.
///
/// First comes what was given last, then what the domain did not have at boot. The memory is zeroed.
///
/// # Errors
///
/// If nothing came: [`Error::Refused`] as the domain may not have more, or the host has no more; [`Error::Busy`] from the
/// handler for exhausted memory while the balloon is at work.
#[doc(alias = "XENMEM_populate_physmap")]
pub fn take_back(bytes: u64) -> Result<u64, Error> {
    with(bytes, Balloon::take_back)
}

/// Follows a target for the RAM of the domain, in KiB, as xenstore has it in `memory/target`, and returns what the domain
/// has then: that, or as near to it as it could get.
///
/// The pages of Xen and of the toolstack, which are no RAM, do not count here, as they do not in the target: a domain
/// with `memory = 64` has 65536 KiB. Nothing follows a target unless the application calls this, or
/// [`lifecycle::follow_memory_target`](crate::lifecycle::follow_memory_target).
///
/// # Errors
///
/// As for [`give`] and [`take_back`], if nothing changed and something was to.
#[doc(alias = "memory/target")]
pub fn aim(kib: u64) -> Result<u64, Error> {
    let state = local::current().ok_or(Error::OutOfMemory)?;
    let has = || BALLOON.of(state).try_lock().map(|balloon| (balloon.ram - balloon.absent()) * 4).ok_or(Error::Busy);
    let now = has()?;
    match kib.checked_sub(now) {
        None => give((now - kib) << 10)?,
        // More than there is address space for is as good as all that there is.
        Some(more) => take_back(more.saturating_mul(1024))?,
    };
    has()
}

/// Bytes of the heap that were [given](give) to Xen and are not back.
#[must_use]
pub fn given() -> u64 {
    local::current().map_or(0, |state| BALLOON.of(state).lock().given << 12)
}

/// Bytes of RAM that the domain could have, by its memory map, and has not: what was given, and what it has not had since
/// boot.
#[must_use]
pub fn absent() -> u64 {
    local::current().map_or(0, |state| BALLOON.of(state).lock().absent() << 12)
}

/// Bytes that Xen counts as the domain's now, the pages of Xen and of the toolstack included: to be compared with the
/// [`limit`].
///
/// # Errors
///
/// [`Error::Refused`] if Xen does not tell.
#[doc(alias = "XENMEM_current_reservation")]
pub fn held() -> Result<u64, Error> {
    // Outside of a domain there is no Xen.
    local::current().ok_or(Error::Refused)?;
    hypercall::memory_current_reservation().map(|pages| pages << 12).map_err(|_| Error::Refused)
}

/// How many bytes Xen lets the domain have now, the pages of Xen and of the toolstack included: `xl mem-max`, and
/// `xl mem-set`, change it.
///
/// # Errors
///
/// [`Error::Refused`] if Xen does not tell.
#[doc(alias = "XENMEM_maximum_reservation")]
pub fn limit() -> Result<u64, Error> {
    hypercall::memory_maximum_reservation().map(|pages| pages << 12).map_err(|_| Error::Refused)
}
