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
//!     seen = port.after(seen).await?;
//!     // Look at what is shared with the peer, then tell it.
//!     port.notify()?;
//! }
//! # }
//! ```
//!
//! A port whose event nobody has taken note of stays masked until somebody does, so a peer that sends without end costs
//! one delivery for each time that its waiter runs, and starves nobody. Nor does one that has something there whenever the
//! domain looks, where that is done in [`Port::until`].
//!
//! Xen has two interfaces for delivery. When the domain first needs a port it takes the newer one, *FIFO*, which has
//! [priorities](Priority) and 131,072 ports, and *two-level*, with 4096, where Xen does not offer that or the command line
//! says `domu.fifo=off`. [`abi`] tells which it is; how many ports the domain may have is up to the toolstack.
//!
//! Should Xen agree to FIFO and then have no memory for the first ports, no port is to be had until it has. As long, nobody is
//! woken by an event: sleeps end in time, but the domain does not halt for them, and a write that the console has no room for
//! fails.

mod again;
mod delivery;
mod error;
mod fifo;
mod pace;
mod polled;
mod port;
mod priority;
mod table;
mod timer;
mod two_level;

pub use delivery::{Abi, abi};
pub(crate) use delivery::{DELIVERY, Delivery};
pub use error::{Error, ErrorKind, Object};
pub(crate) use pace::Pace;
pub(crate) use polled::PolledPort;
pub use port::{After, Binding, Port, alloc_unbound, bind_interdomain, bind_ipi, bind_virq};
pub use priority::Priority;
pub(crate) use table::{Events, PORTS, prepare_halt};
pub(crate) use timer::TIMER;

pub use crate::abi::event_channel::virq;
