//! Event channels: ports to notify a peer on, and to wait for one.
//!
//! A [`Port`] is one end of a channel, to a port of another domain or of this one, or a virtual interrupt. Events carry
//! nothing and coalesce: many that a peer sends before this domain looks may be delivered as one. So waiting is by count,
//! not by edge: [`Port::count`] is how many were delivered so far, and [`Port::after`] waits until there are more than a
//! number that was seen before. An event between two waits is never lost, whoever waits when.
//!
//! ```no_run
//! # async fn example(peer: domu::DomainId, peers_port: u32) -> domu::Result {
//! let port = domu::eventchn::bind_interdomain(peer, peers_port)?;
//! let mut seen = 0;
//! loop {
//!     seen = port.after(seen).await;
//!     // Look at what is shared with the peer, then tell it.
//!     port.notify()?;
//! }
//! # }
//! ```
//!
//! A port whose event nobody has taken note of stays masked until somebody does, so a peer that sends without end costs
//! one delivery for each time that its waiter runs, and starves nobody.

mod polled;
mod port;
mod table;

use core::fmt;

pub(crate) use polled::PolledPort;
pub use port::{After, Binding, Port, alloc_unbound, bind_interdomain, bind_ipi, bind_virq};
pub(crate) use table::Table;

use crate::abi::errno::Errno;

/// Why an operation on a port failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// All ports that the domain may have are in use; `xl` allows 1023 unless `max_event_channels` says otherwise.
    NoPort,
    /// The peer has no such port, or it is not for this domain.
    NoPeer,
    /// The virtual interrupt is bound already, or not for this domain.
    NoInterrupt,
    /// There is no memory to keep the port.
    OutOfMemory,
    /// Another error of Xen's.
    Refused(Errno),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPort => f.write_str("no event channel port is free"),
            Self::NoPeer => f.write_str("the peer has no such port, or not for this domain"),
            Self::NoInterrupt => f.write_str("the virtual interrupt is bound already, or not for this domain"),
            Self::OutOfMemory => f.write_str("no memory for an event channel port"),
            Self::Refused(errno) => write!(f, "Xen refused an operation on event channels: {errno}"),
        }
    }
}

impl core::error::Error for Error {}
