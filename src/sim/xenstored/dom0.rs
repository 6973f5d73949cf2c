//! Dom0 at work on the store: the toolstack, and the back ends that a test plays.

use std::string::String;
use std::vec::Vec;

use crate::sim::xenstored::tree::{Permission, Refusal};
use crate::sim::xenstored::{Server, nodes};

/// Dom0, whom nothing is refused that makes sense.
pub struct Dom0<'a>(pub(super) &'a mut Server);

impl core::fmt::Debug for Dom0<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Dom0").finish_non_exhaustive()
    }
}

impl Dom0<'_> {
    /// Sets a value, and makes the node if need be.
    ///
    /// # Panics
    ///
    /// If the path is none.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) {
        let path = self.absolute(path);
        self.0.actor(0, |actor| actor.write(&path, value.as_ref())).expect("dom0 may write");
    }

    /// A value, if there is the node.
    #[must_use]
    pub fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        self.0.actor(0, |actor| actor.read(path)).ok()
    }

    /// Removes a node and what is below, if it is there.
    pub fn remove(&mut self, path: &str) {
        // What is not there need not be removed.
        let _: Result<(), Refusal> = self.0.actor(0, |actor| actor.remove(path));
    }

    /// The names of a node's children; none if there is no such node.
    #[must_use]
    pub fn list(&mut self, path: &str) -> Vec<String> {
        let listed = self.0.actor(0, |actor| Ok(actor.view.get(path).map(|node| node.children.clone())));
        listed.ok().flatten().unwrap_or_default()
    }

    /// Permissions as they travel, such as `["n0", "r7"]`: the first names the owner, and what all others may do.
    ///
    /// # Panics
    ///
    /// If there is no such node, or a permission is none.
    pub fn set_permissions(&mut self, path: &str, permissions: &[&str]) {
        let permissions: Result<Vec<_>, _> = permissions.iter().map(|text| Permission::parse(text)).collect();
        let permissions = permissions.expect("a permission is a letter and a domain");
        self.0.actor(0, |actor| actor.set_permissions(path, permissions)).expect("there is the node");
    }

    /// A path of a test's.
    fn absolute(&self, path: &str) -> String {
        assert!(path.starts_with('/'), "dom0 has no home: {path}");
        nodes::absolute(self.0.flavour, 0, path).unwrap_or_else(|_| panic!("no path: {path}"))
    }
}
