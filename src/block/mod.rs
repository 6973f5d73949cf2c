//! Disks: the front end of Xen's block protocol.
//!
//! [`open`] gives a [`Disk`] and its [`Driver`]. [`protocol`] is the protocol itself, without I/O.

#![forbid(unsafe_code)]

mod error;
mod frontend;
pub mod protocol;

pub use error::{DriverError, Error, ErrorKind};
pub use frontend::{
    Buffers, Config, Disk, Driver, Durability, Flushed, Info, LentError, OnDetach, Select, Stat, Written, disks, open,
};
