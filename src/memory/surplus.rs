//! RAM that the map shows but the domain does not have.
//!
//! With `maxmem` above `memory` the map describes `maxmem`, and Xen fills pages in on first touch until what was
//! granted is used up; the next touch kills the domain without a word. So the difference is found before anything
//! touches it, taken out of the map and given back.

use heapless::Vec;

use super::frames::{FrameRange, Frames};
use super::map::MemoryMap;
use crate::hypercall;

/// Frames that the reservation counts although the map does not show them as RAM: special pages, ACPI tables and what
/// else the toolstack populates, 16 in a guest of `xl`'s. An allowance, since asking for exact figures is a privilege.
const SLACK: u64 = 64;

/// Extents in one hypercall.
const BATCH: usize = 128;

/// Frames in an extent of 2 MiB, and its order.
const LARGE: u64 = 1 << LARGE_ORDER;
const LARGE_ORDER: u32 = 9;

/// What was found and done, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Surplus {
    /// Taken out of the map.
    pub(crate) frames: u64,
    /// Of these, taken back by Xen.
    pub(crate) returned: u64,
}

/// Removes from `free` and from the map's RAM what exceeds `reservation`, the highest frames first, and gives it back.
pub(crate) fn give_back(map: &mut MemoryMap, free: &mut Frames, reservation: u64) -> Surplus {
    let populated = reservation.saturating_sub(SLACK);
    let ram = map.ram.count();
    let mut surplus = Surplus::default();
    // A domain with all its RAM has a reservation somewhat above it.
    if reservation >= ram {
        return surplus;
    }
    let excess = ram - populated;
    while surplus.frames < excess {
        let Some(&highest) = free.ranges().last() else { break };
        let count = highest.len().min(excess - surplus.frames);
        let range = FrameRange { start: highest.end - count, end: highest.end };
        // Taking the upper end off a range never splits it, so neither set can overflow; a frame whose removal failed
        // would be absent from the set all the same.
        let _ = free.remove(range);
        let _ = map.ram.remove(range);
        surplus.frames += count;
        surplus.returned += decrease(range);
    }
    surplus
}

/// Gives a range back in extents as large as they fit, and returns how many frames Xen took.
fn decrease(range: FrameRange) -> u64 {
    let aligned = FrameRange {
        start: range.start.next_multiple_of(LARGE).min(range.end),
        end: (range.end / LARGE * LARGE).max(range.start),
    };
    if aligned.start >= aligned.end {
        return decrease_extents(range, 0);
    }
    decrease_extents(FrameRange { start: range.start, end: aligned.start }, 0)
        + decrease_extents(aligned, LARGE_ORDER)
        + decrease_extents(FrameRange { start: aligned.end, end: range.end }, 0)
}

fn decrease_extents(range: FrameRange, order: u32) -> u64 {
    let mut returned = 0;
    let mut next = range.start;
    while next < range.end {
        let batch: Vec<u64, BATCH> = (next..range.end).step_by(1 << order).take(BATCH).collect();
        // SAFETY: the range was taken out of the free RAM of a domain that has not touched it: nothing lies there,
        // and nothing will be placed there, since both sets have lost it.
        let done = unsafe { hypercall::memory_decrease_reservation(&batch, order) }.unwrap_or(0);
        returned += (done as u64) << order;
        if done < batch.len() {
            break;
        }
        next += (batch.len() as u64) << order;
    }
    returned
}
