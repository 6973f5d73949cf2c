//! Memory that another party writes at the same time: Xen, or a peer that may be hostile.
//!
//! No Rust reference ever covers it. [`SharedMemory`] copies values in and out and has atomics for indices and flags; every
//! index of a peer is validated before it is used. A view of memory borrows from the [`Owner`] of the memory.
//!
//! [`FrontRing`] and [`BackRing`] are the two ends of the request/response ring that the protocols of Xen's devices use, and
//! [`Requests`] finds the request that a response belongs to. They own their memory, and say when the peer is to be notified;
//! to notify, and to wait, is up to who holds the [port](crate::eventchn::Port) beside the ring.
//!
//! Ring entries implement traits of [`zerocopy`], which is re-exported here: integers and arrays of them do, and so do structures
//! that derive them, with zerocopy's feature `derive` and `#[zerocopy(crate = "domu::shared::zerocopy")]`, or with the same
//! version of zerocopy as a dependency.

mod byte_ring;
mod error;
mod handover;
mod info;
mod memory;
pub(crate) mod owner;
mod ring;
mod word;

pub(crate) use byte_ring::{Consumer, Corrupt, Layout, Producer};
pub use error::Error;
pub(crate) use handover::handover;
pub(crate) use info::{INFO, SharedInfo, TimeRecord};
pub use memory::SharedMemory;
pub(crate) use memory::SharedPage;
pub use owner::Owner;
pub use ring::{BackRing, FrontRing, Requests};
pub use word::SharedWord;
pub use zerocopy;
