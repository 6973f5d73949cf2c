//! Acts of a peer at places that a unit test chooses.

use std::vec::Vec;

use super::{Access, OBSERVERS, Observer};
use crate::sim::machine::events::Action;
use crate::sim::outside;

/// Accesses so far, and the acts that come before later ones.
#[derive(Default)]
pub(crate) struct Script {
    accesses: usize,
    acts: Vec<(usize, Action)>,
}

/// Does each of these acts before the access of its number that the domain makes to shared pages, from now on.
pub(crate) fn begin(acts: Vec<(usize, Action)>) {
    OBSERVERS.with(|observers| observers.script.set(Some(Script { accesses: 0, acts })));
}

/// The number of accesses so far, and the acts that were left.
pub(crate) fn end() -> (usize, Vec<(usize, Action)>) {
    let Script { accesses, acts } = OBSERVERS.with(|observers| observers.script.take()).unwrap_or_default();
    (accesses, acts)
}

impl Observer for Script {
    fn before(&mut self, _: Access) {
        let (now, later): (Vec<_>, _) =
            core::mem::take(&mut self.acts).into_iter().partition(|(place, _)| *place <= self.accesses);
        now.into_iter().for_each(|(_, act)| outside(act));
        self.acts = later;
        self.accesses += 1;
    }
}
