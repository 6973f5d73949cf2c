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

pub mod balloon;
#[cfg(all(feature = "allocator", any(target_os = "none", test)))]
mod block;
mod chunk;
mod damage;
#[cfg_attr(
    not(all(feature = "allocator", target_os = "none")),
    expect(dead_code, reason = "only this crate's own heap asks the handler")
)]
pub(crate) mod exhaustion;
mod extents;
mod frames;
#[cfg(all(feature = "allocator", any(target_os = "none", test)))]
mod hardened;
mod heap;
pub(crate) mod holes;
mod image;
mod layout;
mod map;
pub(crate) mod pages;
mod paging;
mod runs;
mod stack;
mod statistics;
mod surplus;
mod tables;

pub use damage::{Damage, DamageKind};
pub use exhaustion::{Handler, on_exhaustion};
pub(crate) use frames::{FrameRange, Frames};
pub(crate) use heap::{claim, put_back, take};
pub(crate) use image::{Image, Stack};
pub(crate) use layout::Layout;
#[cfg(test)]
pub(crate) use layout::Place;
pub(crate) use map::{HIGHEST_FRAME, MapError, MemoryMap, WINDOW};
pub use pages::{Pages, trim};
pub use paging::Protection;
pub(crate) use stack::{MAIN_STACK, fit};
pub use stack::{StackUsage, stack};
#[cfg(target_os = "none")]
pub(crate) use statistics::exhausted;
pub use statistics::{QuickStat, Stat, metrics, quick_stat, stat};
pub(crate) use surplus::give_back;
#[cfg(any(target_os = "none", test))]
pub(crate) use tables::Found;
#[cfg(target_os = "none")]
pub(crate) use tables::find;
pub use tables::{Checked, Error, Violation, protect, self_check};
pub(crate) use tables::{NoRoom, TABLES, Tables};
