//! Disks: the front end of Xen's block protocol.
//!
//! [`protocol`] is the protocol itself, without I/O.

#![forbid(unsafe_code)]

pub mod protocol;
