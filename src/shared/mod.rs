//! Memory that another party writes at the same time: Xen, or a peer that may be hostile.
//!
//! No Rust reference ever covers it. Bytes are copied in and out, indices and flags are atomics, and every index of
//! a peer is validated before it is used.

mod byte_ring;
mod info;
mod page;

pub(crate) use byte_ring::{Consumer, Corrupt, Layout, Producer};
pub(crate) use info::{SharedInfo, TimeRecord};
pub(crate) use page::SharedPage;
