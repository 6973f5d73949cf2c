//! What can be done to nodes: the rules about paths, permissions and quotas, and what watches are told.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::abi::xs_wire::{ABS_PATH_MAX, PAYLOAD_MAX};
use crate::sim::xenstored::Flavour;
use crate::sim::xenstored::tree::{Change, Node, Permission, Refusal, View, Want, may};

/// Nodes that a domain may own.
const NODES: usize = 1000;
/// Bytes of a node.
const NODE_SIZE: usize = 2048;
/// Permissions of a node.
const PERMISSIONS: usize = 5;

/// The absolute path that a domain means.
pub(super) fn absolute(flavour: Flavour, domain: u16, path: &str) -> Result<String, Refusal> {
    let home = format!("/local/domain/{domain}/");
    let whole = if path.starts_with('/') { path.to_string() } else { format!("{home}{path}") };
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    let relative = whole.strip_prefix(&home).unwrap_or(&whole);
    let too_long = whole.len() > ABS_PATH_MAX || (domain != 0 && relative.len() > flavour.path());
    let slashes = whole.contains("//") || (whole.ends_with('/') && whole != "/");
    if path.is_empty() || too_long || slashes || !whole.bytes().all(is_valid) {
        return Err("EINVAL");
    }
    Ok(whole)
}

/// Whether a path is another, or below it.
pub(super) fn is_below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The path above, and the last name.
fn split(path: &str) -> (&str, &str) {
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some(parts) => parts,
        // A special one.
        None => ("", path),
    }
}

/// A domain, or dom0, at work on nodes.
pub(in crate::sim) struct Actor<'a> {
    pub(super) domain: u16,
    pub(super) flavour: Flavour,
    pub(super) view: View<'a>,
    /// What has changed outside of a transaction.
    pub(super) changes: Vec<Change>,
}

impl Actor<'_> {
    /// The node, for who may do this to it. Where there is none, only who might is told so.
    fn node(&mut self, path: &str, want: Want) -> Result<&Node, Refusal> {
        let found = self.view.get(path).map(|node| node.permissions.clone());
        if let Some(permissions) = found {
            let allowed = may(self.domain, &permissions, want);
            return self.view.get(path).filter(|_| allowed).ok_or("EACCES");
        }
        let mut above = path;
        while !above.is_empty() && above != "/" {
            above = split(above).0;
            if let Some(node) = self.view.get(above) {
                return Err(if may(self.domain, &node.permissions, want) { "ENOENT" } else { "EACCES" });
            }
        }
        Err("ENOENT")
    }

    pub(super) fn read(&mut self, path: &str) -> Result<Vec<u8>, Refusal> {
        Ok(self.node(path, Want::Read)?.value.clone())
    }

    pub(super) fn directory(&mut self, path: &str) -> Result<Vec<u8>, Refusal> {
        let listing = self.node(path, Want::Read)?.listing();
        if listing.len() > PAYLOAD_MAX { Err("E2BIG") } else { Ok(listing) }
    }

    /// As many names from an offset on as fit behind the generation, and an empty one behind the last.
    pub(super) fn directory_part(&mut self, path: &str, offset: usize) -> Result<Vec<u8>, Refusal> {
        if self.flavour == Flavour::Ocaml {
            return Err("ENOSYS");
        }
        let node = self.node(path, Want::Read)?;
        let mut part = format!("{}\0", node.generation).into_bytes();
        let listing = node.listing();
        let mut rest = listing.get(offset..).unwrap_or_default().split_inclusive(|&byte| byte == 0).peekable();
        while let Some(name) = rest.next_if(|name| part.len() + name.len() < PAYLOAD_MAX) {
            part.extend(name);
        }
        if rest.peek().is_none() {
            part.push(0);
        }
        Ok(part)
    }

    pub(super) fn permissions(&mut self, path: &str) -> Result<Vec<Permission>, Refusal> {
        Ok(self.node(path, Want::Read)?.permissions.clone())
    }

    pub(in crate::sim) fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Refusal> {
        let mut node = match self.node(path, Want::Write) {
            Ok(node) => Node { value: value.to_vec(), ..node.clone() },
            Err("ENOENT") => Node { value: value.to_vec(), ..Node::default() },
            Err(refusal) => return Err(refusal),
        };
        self.check_size(&node)?;
        if node.permissions.is_empty() {
            node = self.make(path, node)?;
        } else {
            self.view.update(path, |old| old.value = value.to_vec());
        }
        self.note(path, node.permissions, false);
        Ok(())
    }

    pub(super) fn mkdir(&mut self, path: &str) -> Result<(), Refusal> {
        match self.node(path, Want::Write) {
            Ok(_) => Ok(()),
            Err("ENOENT") => {
                let node = self.make(path, Node::default())?;
                self.note(path, node.permissions, false);
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Makes a node, and those above that are missing, with the permissions of the one above. A guest owns what it makes.
    fn make(&mut self, path: &str, node: Node) -> Result<Node, Refusal> {
        let (above, name) = split(path);
        if self.view.get(above).is_none() {
            self.make(above, Node::default())?;
        }
        if self.domain != 0 && self.view.owned(self.domain) >= NODES {
            return Err(self.flavour.quota("ENOSPC"));
        }
        let parent = self.view.get(above).ok_or("ENOENT")?;
        if self.domain != 0 && self.flavour == Flavour::C && parent.size() + name.len() >= NODE_SIZE {
            return Err("ENOSPC");
        }
        let mut permissions = parent.permissions.clone();
        if let (Some(owner), true) = (permissions.first_mut(), self.domain != 0) {
            owner.domain = self.domain;
        }
        self.view.update(above, |parent| parent.children.push(name.to_string()));
        let node = Node { permissions, ..node };
        self.view.set(path, Some(node.clone()));
        Ok(node)
    }

    fn check_size(&self, node: &Node) -> Result<(), Refusal> {
        match self.flavour {
            _ if self.domain == 0 => Ok(()),
            Flavour::C if node.size() >= NODE_SIZE => Err("ENOSPC"),
            Flavour::Ocaml if node.value.len() > NODE_SIZE => Err("E2BIG"),
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, path: &str) -> Result<(), Refusal> {
        if path == "/" {
            return Err("EINVAL");
        }
        let (above, name) = split(path);
        match self.node(path, Want::Write) {
            Ok(_) => {}
            // It is gone, as was wanted, if it could have been there.
            Err("ENOENT") => return self.view.get(above).map(|_| ()).ok_or("ENOENT"),
            Err(refusal) => return Err(refusal),
        }
        self.view.update(above, |above| above.children.retain(|child| child != name));
        let mut gone = std::vec![path.to_string()];
        while let Some(next) = gone.pop() {
            let Some(node) = self.view.get(&next).cloned() else { continue };
            gone.extend(node.children.iter().rev().map(|child| format!("{next}/{child}")));
            self.view.set(&next, None);
            self.note(&next, node.permissions, next != path);
        }
        Ok(())
    }

    pub(in crate::sim) fn set_permissions(&mut self, path: &str, permissions: Vec<Permission>) -> Result<(), Refusal> {
        let node = self.node(path, Want::Own)?.clone();
        if self.domain != 0 && permissions.len() > PERMISSIONS {
            return Err(self.flavour.quota("ENOSPC"));
        }
        match permissions.first() {
            None => return Err("EINVAL"),
            Some(owner) if self.domain != 0 && owner.domain != self.domain => return Err("EPERM"),
            Some(_) => {}
        }
        let node = Node { permissions, ..node };
        self.view.set(path, Some(node.clone()));
        self.note(path, node.permissions, false);
        Ok(())
    }

    fn note(&mut self, path: &str, permissions: Vec<Permission>, exact: bool) {
        self.view.note(&mut self.changes, Change { path: path.to_string(), permissions, exact });
    }
}
