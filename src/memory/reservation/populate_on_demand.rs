//! RAM that the map shows but the domain does not have.
//!
//! With `maxmem` above `memory` the map describes `maxmem`, and Xen fills pages in on first touch until what was
//! granted is used up; the next touch kills the domain without a word. So the difference is found before anything
//! touches it, taken out of the map's RAM and given back. The [balloon](super::balloon) may ask for it later.

use crate::memory::map::MemoryMap;
use crate::memory::map::frame_set::{FrameRange, Frames};
use crate::memory::reservation;

/// Frames outside of RAM that the reservation may count, at most. The toolstack fills the special pages and the ACPI tables,
/// all of which the map mentions: 17 frames in a guest of `xl`'s. Longer entries are not filled.
const MOST_PLACED: u64 = 64;

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
    let populated = reservation.saturating_sub(map.placed.count().min(MOST_PLACED));
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
        // SAFETY: the range was taken out of the free RAM of a domain that has not touched it: nothing lies there, and
        // nothing will be placed there, since both sets have lost it.
        let returned = unsafe { reservation::decrease(range) };
        surplus.returned += returned;
        // What the list cannot hold is not asked for again.
        if returned > 0 {
            let _ = map.absent.push(FrameRange { start: range.start, end: range.start + returned });
        }
    }
    surplus
}
