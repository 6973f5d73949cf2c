//! The main stack: its size, and how deep it has been.

use crate::local::domain_local;
use crate::memory::Stack;
use crate::memory::map::image::Image;
use crate::{arch, local};

domain_local! {
    /// The stack of main.
    pub(crate) static MAIN_STACK: Stack;
}

/// The main stack, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StackUsage {
    /// What there is: set at link time, 256 KiB unless `domu_stack_size` says otherwise; 64 KiB in a domain with less
    /// than 4 MiB of memory.
    pub size: usize,
    /// What has been in use at most.
    pub deepest: usize,
}

/// How large the main stack is, and how deep it has been.
///
/// The depth is where the stack is no longer zero, as the domain builder made it: what was reserved there and not
/// written to, or written to with zeroes only, does not count, and under a loader that does not clear memory all of it
/// does. The cost follows what was never used, 8 bytes a step, and
/// is for diagnostics, not for hot paths.
#[must_use]
pub fn stack() -> StackUsage {
    let Some(state) = local::current() else { return StackUsage { size: 0, deepest: 0 } };
    let frames = MAIN_STACK.of(state).frames;
    let words = (frames.len() << 12) as usize / 8;
    let start = arch::phys(frames.start << 12).cast::<u64>();
    // SAFETY: the range is the main stack, which is mapped for the life of the domain. Its lower part is in use by
    // nobody, and the reads stop at the first word that was ever written to: volatile, as the compiler knows nothing of
    // them.
    let unused = (0..words).take_while(|&word| unsafe { start.add(word).read_volatile() } == 0).count();
    StackUsage { size: words * 8, deepest: (words - unused) * 8 }
}

/// Decides about the main stack's size for a domain with so much RAM.
pub(crate) fn fit(image: &mut Image, ram_frames: u64) {
    /// Below 4 MiB a quarter of a mebibyte is too much of all memory.
    const SMALL: u64 = 4 << (20 - 12);
    /// Frames that boot may yet use of the stack before the new guard page is in force.
    const MARGIN: u64 = 4;
    let in_use = arch::stack_depth(image.main_stack.frames.end << 12).div_ceil(4096);
    if ram_frames < SMALL && in_use + MARGIN < image.small_stack_pages {
        image.shrink_stack();
    }
}
