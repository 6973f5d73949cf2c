//! The nodes of the store: values, permissions, children, and the generations by which transactions find conflicts.

use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec::Vec;

/// The name of an error.
pub(in crate::sim) type Refusal = &'static str;

/// What somebody wants to do to a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) enum Want {
    Read,
    Write,
    /// Only its owner may.
    Own,
}

/// One permission: what a domain may do. The first of a node names its owner, and what all that are not named may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::sim) struct Permission {
    letter: u8,
    pub(in crate::sim) domain: u16,
}

impl Permission {
    /// From a letter and a number in decimal.
    pub(in crate::sim) fn parse(text: &str) -> Result<Self, Refusal> {
        let domain = text.get(1..).and_then(|number| number.parse().ok()).ok_or("EINVAL")?;
        match text.as_bytes()[0] {
            letter @ (b'n' | b'r' | b'w' | b'b') => Ok(Self { letter, domain }),
            _ => Err("EINVAL"),
        }
    }

    /// Nothing for all but this domain.
    pub(in crate::sim) const fn owner(domain: u16) -> Self {
        Self { letter: b'n', domain }
    }

    /// Reading for this domain.
    pub(in crate::sim) const fn reader(domain: u16) -> Self {
        Self { letter: b'r', domain }
    }

    const fn allows(self, want: Want) -> bool {
        match want {
            Want::Read => matches!(self.letter, b'r' | b'b'),
            Want::Write => matches!(self.letter, b'w' | b'b'),
            Want::Own => false,
        }
    }
}

impl core::fmt::Display for Permission {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}{}", char::from(self.letter), self.domain)
    }
}

/// Whether a domain may do something to a node with these permissions.
pub(in crate::sim) fn may(domain: u16, permissions: &[Permission], want: Want) -> bool {
    let named = permissions.iter().skip(1).find(|permission| permission.domain == domain);
    match permissions.first() {
        _ if domain == 0 => true,
        Some(owner) => owner.domain == domain || named.unwrap_or(owner).allows(want),
        None => false,
    }
}

/// A node.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct Node {
    pub(in crate::sim) value: Vec<u8>,
    pub(in crate::sim) permissions: Vec<Permission>,
    /// Names, in the order in which they were made.
    pub(in crate::sim) children: Vec<String>,
    /// When it was changed last.
    pub(in crate::sim) generation: u64,
}

impl Node {
    fn owner(&self) -> u16 {
        self.permissions.first().map_or(0, |owner| owner.domain)
    }

    /// The names of the children, each with a NUL.
    pub(in crate::sim) fn listing(&self) -> Vec<u8> {
        let mut listing = Vec::new();
        for name in &self.children {
            listing.extend_from_slice(name.as_bytes());
            listing.push(0);
        }
        listing
    }

    /// Bytes of the record that the server keeps: what counts against the quota of a node.
    pub(in crate::sim) fn size(&self) -> usize {
        let names: usize = self.children.iter().map(|name| name.len() + 1).sum();
        20 + 8 * self.permissions.len() + self.value.len() + names
    }
}

/// All nodes by their absolute paths.
#[derive(Default)]
pub(in crate::sim) struct Tree {
    nodes: BTreeMap<String, Node>,
    /// How many nodes a domain owns.
    owned: BTreeMap<u16, usize>,
    /// The last generation that was given to a node.
    generation: u64,
}

impl Tree {
    fn insert(&mut self, path: &str, mut node: Node) {
        self.generation += 1;
        node.generation = self.generation;
        *self.owned.entry(node.owner()).or_default() += 1;
        let before = self.nodes.insert(path.to_string(), node);
        self.forget(before);
    }

    fn remove(&mut self, path: &str) {
        let before = self.nodes.remove(path);
        self.forget(before);
    }

    fn forget(&mut self, node: Option<Node>) {
        if let Some(count) = node.and_then(|node| self.owned.get_mut(&node.owner())) {
            *count -= 1;
        }
    }
}

/// What a transaction has seen of a node, and made of it.
struct Touched {
    /// The generation that the node had; none if there was no node.
    base: Option<u64>,
    node: Option<Node>,
    modified: bool,
}

/// Changes that others do not see yet.
#[derive(Default)]
pub(in crate::sim) struct Transaction {
    nodes: BTreeMap<String, Touched>,
    /// How many requests it was of.
    pub(in crate::sim) requests: usize,
    /// What is to be told to watches then.
    pub(in crate::sim) changes: Vec<Change>,
}

/// Something that watches are told of.
pub(in crate::sim) struct Change {
    pub(in crate::sim) path: String,
    /// Who may read the node, and thus may know.
    pub(in crate::sim) permissions: Vec<Permission>,
    /// Only watches of exactly this path are told: it went with a node above.
    pub(in crate::sim) exact: bool,
}

impl Transaction {
    /// How many nodes it has seen.
    pub(in crate::sim) fn touched(&self) -> usize {
        self.nodes.len()
    }

    /// Makes its changes everybody's, unless somebody else has changed one of the nodes that it has seen.
    pub(in crate::sim) fn commit(self, tree: &mut Tree) -> Result<Vec<Change>, Refusal> {
        let now = |path: &String| tree.nodes.get(path).map(|node| node.generation);
        if self.nodes.iter().any(|(path, touched)| now(path) != touched.base) {
            return Err("EAGAIN");
        }
        for (path, touched) in self.nodes.into_iter().filter(|(_, touched)| touched.modified) {
            match touched.node {
                Some(node) => tree.insert(&path, node),
                None => tree.remove(&path),
            }
        }
        Ok(self.changes)
    }
}

/// The nodes as a transaction sees them, or as they are.
pub(in crate::sim) struct View<'a> {
    pub(in crate::sim) tree: &'a mut Tree,
    pub(in crate::sim) transaction: Option<&'a mut Transaction>,
}

impl View<'_> {
    fn touch<'t>(tree: &Tree, transaction: &'t mut Transaction, path: &str) -> &'t mut Touched {
        transaction.nodes.entry(path.to_string()).or_insert_with(|| {
            let node = tree.nodes.get(path).cloned();
            Touched { base: node.as_ref().map(|node| node.generation), node, modified: false }
        })
    }

    pub(in crate::sim) fn get(&mut self, path: &str) -> Option<&Node> {
        match &mut self.transaction {
            Some(transaction) => Self::touch(self.tree, transaction, path).node.as_ref(),
            None => self.tree.nodes.get(path),
        }
    }

    /// Changes all of a node but its owner, if it is there.
    pub(in crate::sim) fn update(&mut self, path: &str, change: impl FnOnce(&mut Node)) {
        match &mut self.transaction {
            Some(transaction) => {
                let touched = Self::touch(self.tree, transaction, path);
                touched.modified = true;
                touched.node.as_mut().map(change);
            }
            None => {
                self.tree.generation += 1;
                if let Some(node) = self.tree.nodes.get_mut(path) {
                    node.generation = self.tree.generation;
                    change(node);
                }
            }
        }
    }

    /// Puts a node there, or takes it away. Its parent's list is another matter.
    pub(in crate::sim) fn set(&mut self, path: &str, node: Option<Node>) {
        match (&mut self.transaction, node) {
            (Some(transaction), node) => {
                let touched = Self::touch(self.tree, transaction, path);
                (touched.modified, touched.node) = (true, node);
            }
            (None, Some(node)) => self.tree.insert(path, node),
            (None, None) => self.tree.remove(path),
        }
    }

    /// How many nodes a domain owns.
    pub(in crate::sim) fn owned(&self, domain: u16) -> usize {
        let count = self.tree.owned.get(&domain).copied().unwrap_or(0);
        let is_own = |node: Option<&Node>| usize::from(node.is_some_and(|node| node.owner() == domain));
        let touched = self.transaction.iter().flat_map(|transaction| &transaction.nodes);
        let (more, fewer) = touched.fold((0, 0), |(more, fewer), (path, touched)| {
            (more + is_own(touched.node.as_ref()), fewer + is_own(self.tree.nodes.get(path)))
        });
        count + more - fewer
    }

    /// Takes note of something for watches.
    pub(in crate::sim) fn note(&mut self, changes: &mut Vec<Change>, change: Change) {
        match &mut self.transaction {
            Some(transaction) => transaction.changes.push(change),
            None => changes.push(change),
        }
    }
}
