//! Devices: how a front end in one domain and a back end in another find each other in xenstore, connect, and part.
//!
//! Each end of a device has a directory in xenstore, with a [`State`] that it sets and the other watches, and the toolstack
//! makes and removes both. [`frontends`] and [`backends`] list the devices of this domain; a [`Frontend`] or a [`Backend`] is
//! one end, for as long as the toolstack keeps the device, and goes through as many connections as there are:
//!
//! | front end | its state | back end | its state |
//! |---|---|---|---|
//! | [`prepare`](Frontend::prepare) | Initialising | [`prepare`](Backend::prepare), with what it offers | InitWait |
//! | [`connect`](Frontend::connect), with its details | Initialised or Connected | [`accept`](Backend::accept) | |
//! | | Connected | [`connect`](Backend::connect) | Connected |
//! | [`until_closing`](Frontend::until_closing), [`close`](Frontend::close) | Closing, Closed | the same | Closing, Closed |
//!
//! Either end may skip states, close at any time or disappear with its domain: [`ErrorKind::Closed`] and [`ErrorKind::Gone`] say so, and
//! what belongs to a connection ends with the values that own it. After the first this end can close and begin again; the second
//! is the end of it.
//!
//! Every wait is for a peer that may never do its part: [`time::timeout`](crate::time::timeout) bounds each of them, and
//! whatever it drops can be gone on with. A peer that closes as soon as it has connected could keep this end busy: whoever
//! begins again by himself pauses before.
//!
//! A front end makes a ring of each size once and uses it for each connection, as below. A back end that maps rings and never
//! unmaps them then has one of each size, whatever sizes it asks for and however often. A front end that makes a ring for each
//! connection loses one to such a peer each time, until it is refused more:
//! [`gnttab::deferred_limit`](crate::gnttab::deferred_limit). A refusal is no reason to end: the peer may free pages later.
//!
//! ```no_run
//! use core::fmt::Display;
//! use core::time::Duration;
//! use domu::gnttab::{self, Granted, ReadWrite};
//! use domu::xenbus::{ErrorKind, Frontend, State};
//! use domu::{eventchn, time};
//!
//! # async fn serve(_: &Granted<ReadWrite>, _: &eventchn::Port, _: &mut Frontend) {}
//! # async fn example(domain: domu::Domain) -> domu::Result {
//! let store = domain.xenstore();
//! let mut disk = Frontend::open(&store, &domu::xenstore::Path::new("device/vbd/51712")?).await?;
//! // A ring of each order, once a connection has used it.
//! let mut kept: [Option<Granted<ReadWrite>>; 5] = Default::default();
//! loop {
//!     match disk.prepare().await {
//!         Err(error) if error == ErrorKind::Gone => return Ok(()),
//!         result => result?,
//!     }
//!     let order: u32 = disk.feature("max-ring-page-order", 0, 4).await?;
//!     // The ring of an earlier connection, unless it is from before a resume. `FrontRing::new` resets its indices, and
//!     // `FrontRing::into_memory` gives it back.
//!     let ring = match kept[order as usize].take().filter(|ring| ring.check().is_ok()) {
//!         Some(ring) => ring,
//!         None => match Granted::new(disk.device().peer(), 1 << order).await {
//!             Err(error) if error == gnttab::ErrorKind::TooManyDeferred => {
//!                 time::sleep(Duration::from_secs(1)).await;
//!                 continue;
//!             }
//!             result => result?,
//!         },
//!     };
//!     let port = eventchn::alloc_unbound(disk.device().peer())?;
//!     let names: Vec<String> = (0..ring.count()).map(|page| format!("ring-ref{page}")).collect();
//!     let references: Vec<_> = ring.references().collect();
//!     let number = port.number();
//!     let mut details: Vec<(&str, &dyn Display)> = vec![("event-channel", &number), ("ring-page-order", &order)];
//!     details.extend(names.iter().zip(&references).map(|(name, reference)| (&**name, reference as &dyn Display)));
//!     match disk.connect(State::INITIALISED, &details).await {
//!         // Until `disk.until_closing()`, which it waits for beside its work, is ready.
//!         Ok(()) => serve(&ring, &port, &mut disk).await,
//!         Err(error) if error == ErrorKind::Closed => time::sleep(Duration::from_millis(100)).await,
//!         Err(error) => return Err(error.into()),
//!     }
//!     let _ = time::timeout(Duration::from_secs(5), disk.close()).await;
//!     kept[order as usize] = Some(ring);
//! }
//! # }
//! ```

#![forbid(unsafe_code)]

mod backend;
mod device;
mod end;
mod error;
mod frontend;
mod methods;

pub use backend::Backend;
pub use device::{Device, MAX_DEVICES, backends, frontends};
pub use end::Details;
pub use error::{Error, ErrorKind};
pub use frontend::Frontend;

pub use crate::abi::xenbus::State;
