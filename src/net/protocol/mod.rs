//! The protocol of network interfaces: layouts, flags, the shape of packets in the rings, and checksums.
//!
//! Nothing here does I/O: functions take bytes that were copied out of a ring, and return what they mean or why they are
//! wrong. The source of each layout is Xen's public header `io/netif.h`.

#![forbid(unsafe_code)]

pub mod checksum;
mod ethernet;
mod extra;
mod receive;
mod transmit;

pub use ethernet::{MacAddress, ParseMacError};
pub use extra::{Extra, Segmentation, SegmentationKind};
pub use receive::{Assembler, Move, Packet, Piece, RxFlags, RxRequest, RxResponse, Violation};
pub use transmit::{TxFlags, TxRequest, TxResponse, TxStatus};

/// Bytes of a page, which no slot crosses.
pub const PAGE: usize = 4096;

/// The most slots of a packet that every back end takes, without extra-info slots.
#[doc(alias = "XEN_NETIF_NR_SLOTS_MIN")]
pub const MAX_TX_SLOTS: usize = 18;

/// The most data slots of a received packet: those that may be sent, and one for a first piece of its own.
pub const MAX_RX_SLOTS: usize = MAX_TX_SLOTS + 1;

/// The most extra-info slots of a packet: there are four types that a back end may send, each at most once.
pub const MAX_EXTRAS: usize = 4;

/// The most bytes of a received packet: an IP packet of 65,535 bytes, its Ethernet header, and VLAN tags, in whole pages.
pub const MAX_RX_BYTES: usize = 17 * PAGE;

/// The most bytes of a transmitted packet, whose length is a number of 16 bits.
pub const MAX_TX_BYTES: usize = 65_535;

/// The fewest bytes of a packet: its Ethernet header.
pub const MIN_BYTES: usize = 14;
