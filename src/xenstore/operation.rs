//! Operations on xenstore, as errors name them.

use core::fmt;

use crate::abi::xs_wire::MessageType;

/// An operation on xenstore, as an [`Error`](super::Error) names it. Displayed it completes "cannot", as in "read".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// [`Nodes::read`](super::Nodes::read).
    Read,
    /// [`Nodes::directory`](super::Nodes::directory).
    Directory,
    /// [`Nodes::write`](super::Nodes::write).
    Write,
    /// [`Nodes::mkdir`](super::Nodes::mkdir).
    Mkdir,
    /// [`Nodes::remove`](super::Nodes::remove).
    Remove,
    /// [`Nodes::permissions`](super::Nodes::permissions).
    Permissions,
    /// [`Nodes::set_permissions`](super::Nodes::set_permissions).
    SetPermissions,
    /// [`Xenstore::watch`](super::Xenstore::watch).
    Watch,
    /// [`Watch::next`](super::Watch::next).
    WatchEvent,
    /// [`Xenstore::begin`](super::Xenstore::begin).
    Begin,
    /// [`Transaction::commit`](super::Transaction::commit).
    Commit,
    /// [`Transaction::abort`](super::Transaction::abort).
    Abort,
    /// [`Xenstore::home_of`](super::Xenstore::home_of).
    HomeOf,
    /// [`Xenstore::is_introduced`](super::Xenstore::is_introduced).
    IsIntroduced,
    /// [`Xenstore::reset_watches`](super::Xenstore::reset_watches).
    ResetWatches,
    /// [`Xenstore::request`](super::Xenstore::request).
    Request(MessageType),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Directory => "list",
            Self::Write => "write",
            Self::Mkdir => "make",
            Self::Remove => "remove",
            Self::Permissions => "read permissions of",
            Self::SetPermissions => "set permissions of",
            Self::Watch => "watch",
            Self::WatchEvent => "wait for a change of",
            Self::Begin => "begin a transaction",
            Self::Commit => "commit the transaction",
            Self::Abort => "abort the transaction",
            Self::HomeOf => "get the home path of a domain",
            Self::IsIntroduced => "ask whether a domain is introduced",
            Self::ResetWatches => "reset watches",
            Self::Request(ty) => {
                return match ty.name() {
                    Some(name) => write!(f, "send request {name}"),
                    None => write!(f, "send request {}", ty.0),
                };
            }
        })
    }
}
