//! The xenstored of a simulated host: the tree, its rules and quotas, and a server that can be told to misbehave.
//!
//! Each [`Guest`](super::Guest) has a store of its own, as `xl create` leaves it, unless a test gives it one. That is a
//! [`Store`], a handle by which the test plays dom0, before, while and after the domain runs, and looks at what the server
//! knows. Domains of a [`Host`](super::Host) that have the same store see each other's nodes.
//!
//! ```
//! use domu::sim::{Guest, Store};
//! use core::time::Duration;
//!
//! let store = Store::new();
//! let dom0 = store.clone();
//! Guest::new()
//!     .xenstore(&store)
//!     .after(Duration::from_secs(1), move |_| dom0.write("/local/domain/7/control/shutdown", "poweroff"))
//!     .run(async |_| domu::time::sleep(Duration::from_secs(2)).await);
//! assert_eq!(store.read("/local/domain/7/control/shutdown").as_deref(), Some(&b"poweroff"[..]));
//! assert_eq!(store.read("/local/domain/7/name").as_deref(), Some(&b"guest7"[..]));
//! ```
//!
//! The server has a turn for a domain when the domain notifies it, and, as soon as the domain's virtual CPU comes to it, after
//! the test or another domain has caused something that the domain is to hear of. In a turn it does all that there is to do,
//! unless it was told to be [late](Store::delay), [slow](Store::pace) or [stopped](Store::stop). What it says can be changed,
//! dropped, doubled and put into another order by [`Store::tamper`], what it answers by [`Store::refuse`], and the words of
//! the ring's page by [`Store::set_word`].
//!
//! Not simulated: limits of memory and of the rate of writes, and how oxenstored merges transactions: conflicts are found as
//! C xenstored finds them, by the nodes that a transaction has seen.

pub(super) mod connection;
mod dom0;
mod nodes;
mod requests;
mod server_loop;
#[cfg(test)]
mod tests;
pub(super) mod tree;

use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::{String, ToString};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

use connection::Connection;
pub use dom0::Dom0;
use tree::{Permission, Refusal, Tree, View};

use crate::abi::xs_wire::{FEATURE_RECONNECTION, Header, MessageType};
use crate::sim::toolstack::home::Memory;

/// Which of the two servers is simulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flavour {
    C,
    Ocaml,
}

impl Flavour {
    /// The error for a quota that is used up, of which C xenstored has several.
    const fn quota(self, c: Refusal) -> Refusal {
        match self {
            Self::C => c,
            Self::Ocaml => "EQUOTA",
        }
    }
}

/// A message from the server to a domain. Its header's length may be a lie, and its payload any bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// What follows it.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message with its true length.
    #[must_use]
    pub fn new(ty: MessageType, req_id: u32, tx_id: u32, payload: impl Into<Vec<u8>>) -> Self {
        let payload = payload.into();
        Self { header: Header { ty, req_id, tx_id, len: payload.len() as u32 }, payload }
    }

    /// An event of a watch.
    #[must_use]
    pub fn event(path: &str, token: impl AsRef<[u8]>) -> Self {
        let payload: Vec<u8> = path.bytes().chain([0]).chain(token.as_ref().iter().copied()).chain([0]).collect();
        Self::new(MessageType::WATCH_EVENT, 0, 0, payload)
    }
}

type Tamper = Box<dyn FnMut(u16, Message) -> Vec<Message> + Send>;
type Refuse = Box<dyn FnMut(MessageType, &[u8]) -> Option<&'static str> + Send>;
type Reaction = Box<dyn FnMut(&mut Dom0<'_>, &str) + Send>;

/// The server.
pub(in crate::sim) struct Server {
    flavour: Flavour,
    pub(in crate::sim) features: u32,
    pub(in crate::sim) tree: Tree,
    /// The roots are there.
    pub(in crate::sim) planted: bool,
    /// Domains whose homes are to be made before anybody looks.
    pub(in crate::sim) homes: Vec<(u16, Memory)>,
    pub(in crate::sim) connections: BTreeMap<u16, Connection>,
    last_transaction: u32,
    /// Requests that came whole: who, what, and its payload.
    log: Vec<(u16, MessageType, Vec<u8>)>,
    tamper: Option<Tamper>,
    refuse: Option<Refuse>,
    /// What dom0 does when something changes at or below a path.
    reactions: Vec<(String, Reaction)>,
    /// Paths that have changed, and for which those are still to be run.
    changed: VecDeque<String>,
    /// Events that are still to be sent.
    events: Vec<(u16, Message)>,
    delay_ns: u64,
    pace: Option<u32>,
    stopped: bool,
    /// How long a connection takes to be made; none if it is there when the domain starts.
    pub(in crate::sim) connects_after_ns: Option<u64>,
}

/// A simulated xenstored, in the hands of a test. A clone is another handle to the same.
///
/// Paths are absolute. What a test does by this handle it does as dom0: no permission or quota stands in its way.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Server>>);

impl core::fmt::Debug for Store {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// C xenstored as of Xen 4.17: it offers no features.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Flavour::C, 0)
    }

    /// oxenstored: it offers reconnection, says EQUOTA, has no DIRECTORY_PART, and lets a domain have 100 watches.
    #[must_use]
    pub fn oxenstored() -> Self {
        Self::with(Flavour::Ocaml, FEATURE_RECONNECTION)
    }

    fn with(flavour: Flavour, features: u32) -> Self {
        Self(Arc::new(Mutex::new(Server {
            flavour,
            features,
            tree: Tree::default(),
            planted: false,
            homes: Vec::new(),
            connections: BTreeMap::new(),
            last_transaction: 0,
            log: Vec::new(),
            tamper: None,
            refuse: None,
            reactions: Vec::new(),
            changed: VecDeque::new(),
            events: Vec::new(),
            delay_ns: 0,
            pace: None,
            stopped: false,
            connects_after_ns: None,
        })))
    }

    /// Offers other features, to domains that start from now on: bits of [`xs_wire`](crate::sim::abi::xs_wire).
    #[must_use]
    pub fn features(self, features: u32) -> Self {
        self.lock().features = features;
        self
    }

    /// Lets domains that start from now on find a connection that is yet to be made, as without dom0, which takes so long.
    #[must_use]
    pub fn connects_after(self, delay: core::time::Duration) -> Self {
        self.lock().connects_after_ns = Some(delay.as_nanos() as u64);
        self
    }

    /// The server, with nodes or without: most domains of tests never look.
    fn bare(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        let mut server = self.bare();
        server.plant();
        server
    }

    /// Does several things as dom0, which no domain can come between.
    pub fn dom0<T>(&self, act: impl FnOnce(&mut Dom0<'_>) -> T) -> T {
        let mut server = self.lock();
        let result = act(&mut Dom0(&mut server));
        server.settle();
        result
    }

    /// Sets a value, and makes the node if need be.
    ///
    /// # Panics
    ///
    /// If the path is none.
    pub fn write(&self, path: &str, value: impl AsRef<[u8]>) {
        self.dom0(|dom0| dom0.write(path, value));
    }

    /// A value, if there is the node.
    #[must_use]
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.dom0(|dom0| dom0.read(path))
    }

    /// Removes a node and what is below, if it is there.
    pub fn remove(&self, path: &str) {
        self.dom0(|dom0| dom0.remove(path));
    }

    /// The names of a node's children; none if there is no such node.
    #[must_use]
    pub fn list(&self, path: &str) -> Vec<String> {
        self.dom0(|dom0| dom0.list(path))
    }

    /// Permissions as they travel, such as `["n0", "r7"]`: the first names the owner, and what all others may do.
    ///
    /// # Panics
    ///
    /// If there is no such node, or a permission is none.
    pub fn set_permissions(&self, path: &str, permissions: &[&str]) {
        self.dom0(|dom0| dom0.set_permissions(path, permissions));
    }

    /// Permissions as they travel, if there is the node.
    #[must_use]
    pub fn permissions(&self, path: &str) -> Option<Vec<String>> {
        let permissions = self.lock().actor(0, |actor| actor.permissions(path)).ok()?;
        Some(permissions.iter().map(Permission::to_string).collect())
    }

    /// Raises the events of a special path, `@introduceDomain` or `@releaseDomain`.
    pub fn fire(&self, special: &str) {
        let mut server = self.lock();
        server.fire_special(special);
        server.settle();
    }

    /// Lets dom0 do something whenever something changes at a path or below, as a back end does: the function is told
    /// what has changed. It must not use a handle, but what it is given.
    pub fn react(&self, path: &str, reaction: impl FnMut(&mut Dom0<'_>, &str) + Send + 'static) {
        self.lock().reactions.push((path.to_string(), Box::new(reaction)));
    }

    /// A domain's watches: path and token, in the order of their registration.
    #[must_use]
    pub fn watches(&self, domain: u16) -> Vec<(String, Vec<u8>)> {
        let server = self.lock();
        let watches = server.connections.get(&domain).into_iter().flat_map(|connection| &connection.watches);
        watches.map(|watch| (watch.path.clone(), watch.token.clone())).collect()
    }

    /// How many transactions of a domain's are open.
    #[must_use]
    pub fn transactions(&self, domain: u16) -> usize {
        self.lock().connections.get(&domain).map_or(0, |connection| connection.transactions.len())
    }

    /// Requests that came whole, in order: the domain, the type, and the payload.
    #[must_use]
    pub fn log(&self) -> Vec<(u16, MessageType, Vec<u8>)> {
        self.lock().log.clone()
    }

    /// Why the server serves a domain no more, as [`ERROR`](crate::sim::abi::xs_wire::ERROR) would say it.
    #[must_use]
    pub fn error(&self, domain: u16) -> Option<u32> {
        self.lock().connections.get(&domain).and_then(|connection| connection.error)
    }

    /// Passes each message from now on, with the domain that it is for, through a function, and sends what that returns
    /// instead. It must not use a handle.
    pub fn tamper(&self, tamper: impl FnMut(u16, Message) -> Vec<Message> + Send + 'static) {
        self.lock().tamper = Some(Box::new(tamper));
    }

    /// Refuses requests from now on where a function of type and payload names an error, which may be one that nobody knows.
    /// A transaction that was to end has ended then. It must not use a handle.
    pub fn refuse(&self, refuse: impl FnMut(MessageType, &[u8]) -> Option<&'static str> + Send + 'static) {
        self.lock().refuse = Some(Box::new(refuse));
    }

    /// Sends and answers as it should from now on: the end of [`tamper`](Self::tamper), [`refuse`](Self::refuse),
    /// [`delay`](Self::delay), [`pace`](Self::pace) and [`stop`](Self::stop).
    pub fn behave(&self) {
        let mut server = self.lock();
        (server.tamper, server.refuse, server.pace, server.delay_ns) = (None, None, None, 0);
        server.stopped = false;
        server.wake_all();
    }

    /// Has its turns so long after it was notified from now on.
    pub fn delay(&self, delay: core::time::Duration) {
        self.lock().delay_ns = delay.as_nanos() as u64;
    }

    /// Reads, and writes, no more than so many bytes in a turn from now on, and has a turn each ten microseconds.
    pub fn pace(&self, bytes: u32) {
        self.lock().pace = Some(bytes);
    }

    /// Does nothing at all from now on.
    pub fn stop(&self) {
        self.lock().stopped = true;
    }

    /// Sends a message to a domain, as it is.
    pub fn send(&self, domain: u16, message: &Message) {
        let mut server = self.lock();
        if let Some(connection) = server.connections.get_mut(&domain) {
            connection.send(message, false);
            connection.due_ns = Some(0);
        }
    }

    /// Overwrites a word of the ring's page, by its offset, and raises an event: an index that cannot be, a state, an error.
    pub fn set_word(&self, domain: u16, offset: usize, word: u32) {
        let mut server = self.lock();
        if let Some(connection) = server.connections.get_mut(&domain) {
            connection.words.push((offset, word));
            connection.due_ns = Some(0);
        }
    }
}

impl Server {
    /// Does something to nodes outside of a transaction, for a domain, and tells of what has changed.
    pub(in crate::sim) fn actor<T>(
        &mut self,
        domain: u16,
        act: impl FnOnce(&mut nodes::Actor<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let view = View { tree: &mut self.tree, transaction: None };
        let mut actor = nodes::Actor { domain, flavour: self.flavour, view, changes: Vec::new() };
        let result = act(&mut actor);
        let changes = actor.changes;
        self.fire(changes);
        result
    }

    fn wake_all(&mut self) {
        for connection in self.connections.values_mut() {
            connection.due_ns = Some(0);
        }
    }
}
