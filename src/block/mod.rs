//! Disks: the front end of Xen's block protocol.
//!
//! [`open`] gives a [`Disk`], through which any number of requests may be in flight, and its [`Driver`], which connects it and
//! connects it again. [`protocol`] is the protocol itself, without I/O.
//!
//! ```no_run
//! use domu::block::{self, Config, Select};
//!
//! # async fn example(domain: domu::Domain) -> domu::Result {
//! let (disk, driver) = block::open(domain, Select::Name("xvda"), Config::default()).await?;
//! domu::executor::spawn(driver.run()).detach();
//! let mut data = vec![0; 4096];
//! disk.read(0, &mut data).await?;
//! let written = disk.write(4096, &data).await?;
//! assert!(disk.flush().await?.covers(&written));
//! # Ok(())
//! # }
//! ```
//!
//! # Durability
//!
//! A completed write is **not durable**. A flush makes durable what had completed before it was sent, on its connection:
//! [`Flushed::covers`] tells. [`ErrorKind::MayBeLost`] reports once that a connection was lost with completed writes unflushed,
//! [`ErrorKind::FlushFailed`] that writes since the last good flush are suspect, and [`ErrorKind::FlushUnsupported`] that the back end
//! cannot tell. [docs/durability.md](https://docs.rs/crate/domu/latest/source/docs/durability.md) has it all on one page.
//!
//! # Buffers
//!
//! Data is copied to and from a pool of pages that stay granted, or [`read_pages`](Disk::read_pages) and
//! [`write_pages`](Disk::write_pages) lend whole pages, which come back with the result. Once both ends have agreed that granted
//! pages stay mapped, none can be lent: see [`Buffers`]. Futures that are dropped leave their buffers with the driver until the
//! answer.
//!
//! # Units
//!
//! Positions and lengths are in bytes, and multiples of the [sector size](protocol::Geometry::sector_size). The protocol counts in
//! units of 512 bytes whatever that is; back ends differ for larger sectors, so a disk with these is read-only unless its
//! back end is known to follow the header: see [`Config::trust_large_sectors`].

#![forbid(unsafe_code)]

mod error;
mod frontend;
pub mod protocol;

pub use error::{DriverError, Error, ErrorKind};
pub use frontend::{
    Buffers, Config, Disk, Driver, Durability, Flushed, Info, LentError, OnDetach, Select, Stat, Written, disks, open,
};
