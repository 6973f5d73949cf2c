//! The sections of the image, in frames, as `linker/domu.ld` lays them out.

use crate::memory::FrameRange;

/// A stack, which grows down to its guard page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stack {
    /// The frame below it, which is not mapped.
    pub(crate) guard: u64,
    /// Its memory.
    pub(crate) frames: FrameRange,
}

/// Where the parts of the image lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    /// All of it.
    pub(crate) all: FrameRange,
    /// Code.
    pub(crate) code: FrameRange,
    /// Constants.
    pub(crate) constants: FrameRange,
    /// What boot writes, and nobody after: descriptor tables, the stack protector's canary.
    pub(crate) sealed: FrameRange,
    /// The stacks for exceptions, in the order of the TSS.
    pub(crate) trap_stacks: [Stack; 3],
    /// The stack of everything else.
    pub(crate) main_stack: Stack,
    /// Pages that a small domain's main stack keeps.
    pub(crate) small_stack_pages: u64,
    /// What it does not keep.
    pub(crate) spare: FrameRange,
    /// The tables that `boot/entry.S` made.
    pub(crate) boot_tables: FrameRange,
}

impl Image {
    /// Where the three stacks for exceptions end, with guard pages between them.
    const fn trap_stacks(start: u64, stride: u64) -> [Stack; 3] {
        const fn stack(guard: u64, stride: u64) -> Stack {
            Stack { guard, frames: FrameRange { start: guard + 1, end: guard + stride } }
        }
        [stack(start, stride), stack(start + stride, stride), stack(start + 2 * stride, stride)]
    }

    /// Cuts the main stack to what a small domain keeps: the guard page moves up, and the memory below it is spare.
    pub(crate) const fn shrink_stack(&mut self) {
        let Stack { guard, frames } = self.main_stack;
        if frames.len() > self.small_stack_pages {
            let start = frames.end - self.small_stack_pages;
            self.main_stack = Stack { guard: start - 1, frames: FrameRange { start, end: frames.end } };
            self.spare = FrameRange { start: guard, end: start - 1 };
        }
    }
}

#[cfg(target_os = "none")]
impl Image {
    /// Asks the linker script's symbols.
    pub(crate) fn get() -> Self {
        let linked = crate::arch::linked();
        let range = |start: u64, end: u64| FrameRange { start: start >> 12, end: end >> 12 };
        Self {
            all: range(linked.text_start, linked.image_end),
            code: range(linked.text_start, linked.rodata_start),
            constants: range(linked.rodata_start, linked.data_start),
            sealed: range(linked.sealed_start, linked.sealed_end),
            trap_stacks: Self::trap_stacks(linked.trap_stacks >> 12, linked.trap_stack_stride >> 12),
            main_stack: Stack { guard: linked.stack_guard >> 12, frames: range(linked.stack_bottom, linked.stack_top) },
            small_stack_pages: linked.small_stack_bytes >> 12,
            spare: FrameRange { start: 0, end: 0 },
            boot_tables: range(linked.boot_tables, linked.image_end),
        }
    }
}

#[cfg(not(target_os = "none"))]
impl Image {
    /// What the simulated machine claims to have loaded at 1 MiB.
    pub(crate) const fn get() -> Self {
        const fn range(start: u64, end: u64) -> FrameRange {
            FrameRange { start, end }
        }
        Self {
            all: range(0x100, 0x140),
            code: range(0x100, 0x108),
            constants: range(0x108, 0x110),
            sealed: range(0x114, 0x116),
            trap_stacks: Self::trap_stacks(0x117, 2),
            main_stack: Stack { guard: 0x11d, frames: range(0x11e, 0x138) },
            small_stack_pages: 16,
            spare: range(0, 0),
            boot_tables: range(0x138, 0x140),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_cut_from_below_once() {
        let mut image = Image::get();
        for _ in 0..2 {
            image.shrink_stack();
            assert_eq!(image.spare, FrameRange { start: 0x11d, end: 0x127 });
            assert_eq!(image.main_stack, Stack { guard: 0x127, frames: FrameRange { start: 0x128, end: 0x138 } });
        }
    }
}
