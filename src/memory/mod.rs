//! Memory: which frames are RAM, which are free, which are holes, and the heap.
//!
//! ```text
//! 0            absent: a null pointer faults
//! 0x1000       free RAM: page tables, then heap
//! 1 MiB        the image: text R-X, constants R--, data and .bss RW-, guard page (absent), stack, boot tables
//! image end    start info and modules, placed by the domain builder; then free RAM up to `memory`
//! a hole       2 MiB aligned, unpopulated: the window for shared_info and everything else that is mapped in
//! 0xfc000000   ACPI tables; below 4 GiB the local APIC and Xen's special pages (console, xenstore)
//! 4 GiB        the rest of RAM
//! ```
//!
//! All of it is mapped at its own address. Nothing is ever mapped over RAM: Xen would take the RAM page away.

mod frames;
mod heap;
mod map;
pub(crate) mod paging;
mod surplus;

pub(crate) use frames::{FrameRange, Frames};
pub(crate) use heap::claim;
pub(crate) use map::{Early, HIGHEST_FRAME, MapError, MemoryMap};
pub(crate) use surplus::{Surplus, give_back};
