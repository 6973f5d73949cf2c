//! Xenstore: the host's tree of small values, by which a domain and its toolstack tell each other what they want.
//!
//! [`Domain::xenstore`](crate::Domain::xenstore) gives a [`Xenstore`], whose methods read and write nodes. Paths that do not
//! begin with a slash are below the domain's home, `/local/domain/` and its number.
//!
//! ```no_run
//! # async fn example(domain: domu::Domain) -> domu::Result {
//! let store = domain.xenstore();
//! log::info!("the toolstack calls me {}", store.read("name").await?);
//! store.write("data/greeting", "hello").await?;
//! let mut watch = store.watch("control/shutdown").await?;
//! loop {
//!     watch.next().await?;
//!     log::info!("asked for: {}", store.read("control/shutdown").await?);
//! }
//! # }
//! ```
//!
//! Tasks may ask at the same time; their requests overlap. The server takes 20 requests of a domain at a time, and has ten
//! transactions for it: more wait here, in order. A request waits for its answer as long as it takes, unless it is
//! [bounded](crate::time::timeout).
//!
//! An answer that makes no sense is an error of its request. When the server breaks the protocol itself, or says that it
//! has given up, every request that waits fails with [`ErrorKind::Broken`]; if it offers to begin anew, as oxenstored does, the
//! next request goes by a new connection, on which watches are registered again.

mod backoff;
mod calls;
mod code;
mod connection;
mod domains;
mod error;
mod link;
mod names;
mod nodes;
mod numbered;
mod operation;
mod path;
mod permissions;
mod transaction;
mod value;
mod watch;
mod watches;
pub(crate) mod wire;

use core::fmt;
use core::ops::Deref;

pub use code::{Code, UnknownCode};
pub(crate) use connection::{CONNECTION, Connection};
pub use error::{Error, ErrorKind};
pub(crate) use error::{copy, write_path};
pub use names::{MAX_LISTING, Names, NamesIntoIter, NamesIter};
pub use nodes::Nodes;
pub use operation::Operation;
pub use path::Path;
pub use permissions::{Access, Permission};
pub use transaction::{MAX_ATTEMPTS, Transaction};
pub use value::Value;
pub use watch::Watch;

pub use crate::abi::xs_wire::MessageType;
use crate::local::Instance;

/// Xenstore, as [`Domain::xenstore`](crate::Domain::xenstore) gives it: its [`Nodes`], transactions, watches, and what it
/// knows of domains.
pub struct Xenstore(Nodes);

impl Xenstore {
    pub(crate) const fn new(state: Instance) -> Self {
        Self(Nodes { state, transaction: None })
    }

    /// Number of resumes of the domain.
    pub(crate) fn generation(&self) -> u64 {
        self.0.state.generation()
    }
}

impl Clone for Xenstore {
    fn clone(&self) -> Self {
        Self::new(self.0.state)
    }
}

impl Deref for Xenstore {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.0
    }
}

impl fmt::Debug for Xenstore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xenstore").finish_non_exhaustive()
    }
}
