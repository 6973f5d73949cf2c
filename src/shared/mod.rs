//! Memory that another party writes at the same time: Xen, or a peer that may be hostile.
//!
//! No Rust reference ever covers it. [`SharedMemory`] copies values in and out and has atomics for indices and flags; every
//! index of a peer is validated before it is used. A view of memory borrows from the [`Owner`] of the memory.

mod byte_ring;
mod info;
mod memory;
pub(crate) mod owner;

pub(crate) use byte_ring::{Consumer, Corrupt, Layout, Producer};
pub(crate) use info::{SharedInfo, TimeRecord};
pub use memory::SharedMemory;
pub(crate) use memory::SharedPage;
pub use owner::Owner;
