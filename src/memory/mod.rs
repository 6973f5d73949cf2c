//! Memory: which frames are RAM, which are free, which are holes, how they are protected, and the heap.
//!
//! ```text
//! 0            absent: a null pointer faults
//! 0x1000       free RAM: page tables R--, then heap
//! 1 MiB        the image: code R-X, constants R--, data RW-, descriptor tables R--, .bss RW-, four stacks with an absent
//!              guard page below each, boot tables
//! image end    start info and modules, placed by the domain builder; then free RAM up to `memory`
//! a hole       2 MiB aligned, unpopulated: the windows for shared_info and everything else that is mapped in
//! 0xfc000000   ACPI tables; below 4 GiB the local APIC and Xen's special pages (console, xenstore)
//! 4 GiB        the rest of RAM
//! ```
//!
//! All of it is mapped at its own address, with the largest pages that fit. Nothing is ever mapped over RAM: Xen would
//! take the RAM page away. What boot protects stays so, page tables and descriptor tables included; [`protect`] changes
//! pages of the program's own, and [`self_check`] holds all of it against what it should be.

pub(crate) mod heap;
mod map;
mod page_table;
pub(crate) mod pages;
mod reservation;
mod stack;
mod statistics;
pub(crate) mod unpopulated;

pub use heap::check::{Damage, DamageKind};
pub use heap::oom::{Handler, on_exhaustion};
pub(crate) use heap::{claim, put_back, take};
pub(crate) use map::frame_set::{FrameRange, Frames};
pub(crate) use map::image::{Image, Stack};
pub(crate) use map::{HIGHEST_FRAME, MapError, MemoryMap, WINDOW};
#[cfg(any(target_os = "none", test))]
pub(crate) use page_table::active::Found;
#[cfg(target_os = "none")]
pub(crate) use page_table::active::find;
pub use page_table::active::{Checked, Error, Violation, protect, self_check};
pub(crate) use page_table::active::{NoRoom, TABLES, Tables};
pub(crate) use page_table::address_space::Layout;
#[cfg(test)]
pub(crate) use page_table::address_space::Place;
pub use page_table::mapper::Protection;
pub use pages::{Pages, trim};
pub use reservation::balloon;
pub(crate) use reservation::populate_on_demand::give_back;
pub(crate) use stack::{MAIN_STACK, fit};
pub use stack::{StackUsage, stack};
#[cfg(target_os = "none")]
pub(crate) use statistics::exhausted;
pub use statistics::{QuickStat, Stat, metrics, quick_stat, stat};
