//! The sections of the image, in frames, as `linker/domu.ld` lays them out.

use crate::memory::FrameRange;

/// Where the parts of the image lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    /// All of it.
    pub(crate) all: FrameRange,
    /// Code.
    pub(crate) text: FrameRange,
    /// Constants.
    pub(crate) constants: FrameRange,
    /// The page below the stack.
    pub(crate) stack_guard: FrameRange,
    /// The tables that `boot/entry.S` made.
    pub(crate) boot_tables: FrameRange,
}

#[cfg(target_os = "none")]
impl Image {
    /// Asks the linker script's symbols.
    pub(crate) fn get() -> Self {
        unsafe extern "C" {
            safe static domu_text_start: u8;
            safe static domu_rodata_start: u8;
            safe static domu_data_start: u8;
            safe static domu_stack_guard: u8;
            safe static domu_stack_bottom: u8;
            safe static domu_boot_tables: u8;
            safe static domu_image_end: u8;
        }
        // Addresses only: some of these bytes are not mapped, and one lies behind the image.
        let range = |start: *const u8, end: *const u8| FrameRange {
            start: (start.addr() >> 12) as u64,
            end: (end.addr() >> 12) as u64,
        };
        Self {
            all: range(&raw const domu_text_start, &raw const domu_image_end),
            text: range(&raw const domu_text_start, &raw const domu_rodata_start),
            constants: range(&raw const domu_rodata_start, &raw const domu_data_start),
            stack_guard: range(&raw const domu_stack_guard, &raw const domu_stack_bottom),
            boot_tables: range(&raw const domu_boot_tables, &raw const domu_image_end),
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
            text: range(0x100, 0x110),
            constants: range(0x110, 0x118),
            stack_guard: range(0x120, 0x121),
            boot_tables: range(0x138, 0x140),
        }
    }
}
