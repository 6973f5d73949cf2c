//! The front end: an interface that a back end in another domain serves.

#![forbid(unsafe_code)]

mod config;
mod connection;
mod interface;
mod memory;
mod receive;
mod shared;
mod statistics;
mod transmit;

pub use config::Config;
pub use interface::{Interface, open};
pub use memory::Checksum;
pub use receive::{Frame, Receiver};
pub use shared::{Handle, Link};
pub use statistics::Statistics;
pub use transmit::{Metadata, Transmitter, TxChecksum};
