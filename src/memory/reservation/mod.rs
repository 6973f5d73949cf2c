//! Extents: how the frames of a range go to Xen, and come from it, in few hypercalls.
//!
//! Extents of 2 MiB where they fit, so that Xen need not split its own large pages, and single frames elsewhere. Xen may do
//! fewer than it is asked for; what it did is then exactly known, since it does them in order.

pub mod balloon;
pub(super) mod populate_on_demand;

use heapless::Vec;

use crate::abi::errno::Errno;
use crate::hypercall;
use crate::memory::map::frame_set::FrameRange;

/// Extents in one hypercall.
const BATCH: usize = 128;

/// Frames in an extent of 2 MiB, and its order.
pub(super) const LARGE: u64 = 1 << LARGE_ORDER;
const LARGE_ORDER: u32 = 9;

/// Gives a range to Xen, and returns how many frames it took: the first ones.
///
/// # Safety
///
/// Nothing uses the memory, until it is populated again.
pub(in crate::memory) unsafe fn decrease(range: FrameRange) -> u64 {
    // SAFETY: passed on from the caller.
    each(range, false, |extents, order| unsafe { hypercall::memory_decrease_reservation(extents, order) })
}

/// Asks Xen for memory in a range, and returns how many frames it filled in: the first ones. They are zeroed.
///
/// # Safety
///
/// There is nothing in the range, and never was, or all of it went to Xen.
pub(in crate::memory) unsafe fn populate(range: FrameRange) -> u64 {
    // SAFETY: passed on from the caller.
    each(range, false, |extents, order| unsafe { hypercall::memory_populate_physmap(extents, order) })
}

/// As [`populate`], but from the end downwards: it is the last frames of the range that are filled in.
///
/// # Safety
///
/// As for [`populate`].
pub(in crate::memory) unsafe fn populate_down(range: FrameRange) -> u64 {
    // SAFETY: passed on from the caller.
    each(range, true, |extents, order| unsafe { hypercall::memory_populate_physmap(extents, order) })
}

/// Makes calls for all extents of a range, upwards or downwards, until one does nothing; returns how many frames are done.
fn each(range: FrameRange, down: bool, mut call: impl FnMut(&[u64], u32) -> Result<usize, Errno>) -> u64 {
    let (mut rest, mut large) = (range, true);
    while !rest.is_empty() {
        let edge = if down { rest.end } else { rest.start };
        let order = if large && edge.is_multiple_of(LARGE) && rest.len() >= LARGE { LARGE_ORDER } else { 0 };
        // Single frames up to where an extent of 2 MiB may begin.
        let frames = match order {
            0 if large && down => rest.len().min(edge - (edge - 1) / LARGE * LARGE),
            0 if large => rest.len().min((edge / LARGE + 1) * LARGE - edge),
            _ => rest.len(),
        };
        let step = 1 << order;
        let extent = |index| if down { edge - (index + 1) * step } else { edge + index * step };
        let batch: Vec<u64, BATCH> = (0..frames / step).map(extent).take(BATCH).collect();
        let done = call(&batch, order).unwrap_or_else(|errno| {
            ::log::debug!("Xen refused {} extents of order {order} at frame {edge:#x}: {errno}", batch.len());
            0
        }) as u64;
        match down {
            true => rest.end -= done * step,
            false => rest.start += done * step,
        }
        match (done, order) {
            (0, 0) => break,
            // Xen may still have single frames.
            (0, _) => large = false,
            _ => {}
        }
    }
    range.len() - rest.len()
}
