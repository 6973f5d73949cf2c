//! Choices of the application, and facts of a connected disk.

use super::super::protocol::{Features, Geometry};

/// Which memory requests use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Buffers {
    /// The driver's pool, and a copy, if the back end keeps granted pages mapped or the toolstack says that it is not trusted;
    /// else [`read_pages`](super::Disk::read_pages) and [`write_pages`](super::Disk::write_pages) lend the caller's pages.
    ///
    /// Measured with Linux at both ends, lending saves the guest 21 % for large requests and costs dom0 2.6 times as much.
    #[default]
    Auto,
    /// The pool in any case.
    Pool,
    /// Lend pages: the back end is asked not to keep them. Refused for a back end that is not trusted.
    Lend,
}

/// What happens when the toolstack detaches the disk (`xl block-detach`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDetach {
    /// New requests fail with [`Detached`](super::super::ErrorKind::Detached); those in flight are waited for, then the disk is closed.
    #[default]
    Drain,
    /// The disk stays in use until its last handle is dropped; `xl block-detach` fails after ten seconds meanwhile.
    Refuse,
}

/// How a disk is used: what is not set is left as `..Config::default()`, as more may come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// Requests in flight, 32 by default and at most 512, rounded up to a power of two: above 32 the ring has several pages, if
    /// the back end takes as many.
    pub depth: u32,
    /// Pages of the pool, 352 by default (11 for each of 32 requests), from 16 to 16,384.
    pub pool_pages: usize,
    /// Which memory requests use.
    pub buffers: Buffers,
    /// What a detach does.
    pub on_detach: OnDetach,
    /// Use a disk with sectors above 512 bytes read-write although the back end may not count in units of 512 bytes. Back
    /// ends disagree there; only those that publish `feature-persistent` (Linux) are known to follow the header.
    pub trust_large_sectors: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            depth: 32,
            pool_pages: 352,
            buffers: Buffers::Auto,
            on_detach: OnDetach::Drain,
            trust_large_sectors: false,
        }
    }
}

/// What makes completed writes durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// A flush.
    Flush,
    /// An empty barrier, which flushes what was complete before.
    Barrier,
    /// Nothing: the disk has no volatile cache, or the back end has no way to flush it. [`Disk::flush`](super::Disk::flush) fails.
    Unknown,
}

/// What is known of a connected disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Info {
    /// Size, sector sizes and flags.
    pub geometry: Geometry,
    /// What the back end offers.
    pub features: Features,
    /// Whether writes are possible: neither is the disk read-only, nor is it unknown in which units the back end counts.
    pub writable: bool,
    /// Whether `read_pages` and `write_pages` lend their pages.
    pub lends: bool,
    /// What makes writes durable.
    pub durability: Durability,
    /// Requests that the ring has room for.
    pub ring_entries: u32,
}

/// Counts since the disk was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Stat {
    /// Requests that were put into the ring, flushes among them.
    pub requests: u64,
    /// Responses.
    pub responses: u64,
    /// Flushes and empty barriers among the requests.
    pub flushes: u64,
    /// Responses with an error.
    pub errors: u64,
    /// Notifications sent.
    pub notifications: u64,
    /// Connections made.
    pub connections: u64,
    /// Requests issued again after a connection was lost.
    pub reissued: u64,
    /// Connections that ended because the back end broke the protocol.
    pub protocol_errors: u64,
    /// Lent buffers that the back end kept.
    pub buffers_kept: u64,
    /// Transfers in the driver's hands, answered or not, now.
    pub in_flight: usize,
    /// Among them those whose future was dropped.
    pub orphaned: usize,
    /// Pages of the pool that are free now.
    pub pool_free: usize,
}
