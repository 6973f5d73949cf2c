//! The block protocol without I/O: layouts, limits, and the arithmetic of sectors.
//!
//! Everything here is a function of its arguments, so that a front end, a back end and a fuzz target share it. The source is the
//! public header `io/blkif.h`; the layout is that of `x86_64-abi` (`io/protocols.h`).

#![forbid(unsafe_code)]

mod features;
mod geometry;
mod number;
mod range;
mod split;
mod wire;

pub use features::{DiscardLimits, Features, RawFeatures};
pub use geometry::{Geometry, GeometryError, RawGeometry};
pub use number::{DeviceNumber, ParseNumberError};
pub use range::{RangeError, Sectors};
pub use split::{Part, segments, split};
pub use wire::{
    INDIRECT_PAGES, INDIRECT_SEGMENTS, Malformed, Operation, Payload, REQUEST_SIZE, RESPONSE_SIZE, Request, Response,
    SEGMENTS, Segment, Status,
};

/// Bytes of a sector, the unit in which the protocol counts. See [`Geometry::sector_size`] for a disk's own.
pub const SECTOR: u64 = 512;

/// Bytes of a page, which is the most that one segment covers.
pub const PAGE: usize = 4096;

/// Sectors of a page.
pub const SECTORS_PER_PAGE: u64 = PAGE as u64 / SECTOR;
