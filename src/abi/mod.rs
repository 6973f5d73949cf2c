//! Xen's guest interface as definitions: numbers and layouts, one file per public header.
//!
//! Nothing here has behaviour and nothing is unsafe: the hypercalls that use these layouts are in
//! `crate::hypercall`, and the simulated Xen decodes the same structures. A program finds the types that it needs beside their
//! users, such as `gnttab::Status`; all of them are public in `sim::abi`, for tests on the host. Names are idiomatic; each item carries
//! its C name as a `doc(alias)`. Sizes are asserted where Xen relies on them. The source is `xen/include/public` of
//! the Xen tree, which is under the MIT licence; section names below are its file names.

#![forbid(unsafe_code)]

pub mod console;
pub mod cpuid;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hvm;
pub mod memory;
pub mod sched;
pub mod start_info;
pub mod xen;
pub mod xenbus;
pub mod xs_wire;
