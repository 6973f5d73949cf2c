//! Network interfaces of Xen (vif): the front end that a back end in another domain serves.
//!
//! [`open`] opens an interface and gives its task, which is to be run, and its two halves: a [`Receiver`], which lends
//! received frames in place, and a [`Transmitter`], which sends frames from buffers that are granted once. Neither allocates per
//! frame, and the back end is notified once for each turn of the main loop at most.
//!
//! Network stacks use an interface through `SmoltcpDevice` (feature `smoltcp`) or `EmbassyDriver` (feature
//! `embassy-net-driver`).
//!
//! Whatever the back end sends is checked. A violation of the [`protocol`] closes the interface with an error, and nothing else.

#[cfg(feature = "embassy-net-driver")]
mod embassy;
mod error;
mod frontend;
pub mod protocol;
#[cfg(feature = "smoltcp")]
mod smoltcp;
#[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
mod stack;

#[cfg(feature = "embassy-net-driver")]
pub use embassy::EmbassyDriver;
#[cfg(feature = "smoltcp")]
pub use smoltcp::SmoltcpDevice;

pub use error::Error;
pub use frontend::{
    Checksum, Config, Frame, Handle, Interface, Link, Metadata, Receiver, Statistics, Transmitter, TxChecksum, open,
};
