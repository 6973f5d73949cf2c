//! What has a number, in the order of the numbers.
//!
//! Numbers count up, so what is new goes behind the rest, and what is oldest mostly goes first: a queue that is searched by
//! halves. What goes from its middle moves some of the rest, of which there is little: a server takes 20 requests at a time,
//! and has a hundred watches. A tree would cost ten times the code.

use alloc::collections::VecDeque;

/// Room for so many is kept when the last has gone.
const KEPT: usize = 32;

/// Values by their numbers, each of which is given once.
#[derive(Debug)]
pub(super) struct Numbered<T>(VecDeque<(u64, T)>);

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Numbered<T> {
    fn find(&self, number: u64) -> Result<usize, usize> {
        self.0.binary_search_by_key(&number, |(number, _)| *number)
    }

    /// Adds a value, by a number that no other has.
    pub(super) fn insert(&mut self, number: u64, value: T) {
        let place = self.find(number).unwrap_or_else(|place| place);
        self.0.insert(place, (number, value));
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.find(number).ok()?;
        self.0.get_mut(place).map(|(_, value)| value)
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let place = self.find(number).ok()?;
        self.take(place).map(|(_, value)| value)
    }

    /// Takes the one with the lowest number out.
    pub(super) fn pop_first(&mut self) -> Option<(u64, T)> {
        self.take(0)
    }

    fn take(&mut self, place: usize) -> Option<(u64, T)> {
        let taken = self.0.remove(place);
        if self.0.is_empty() && self.0.capacity() > KEPT {
            self.0 = VecDeque::new();
        }
        taken
    }

    pub(super) fn retain(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        self.0.retain(|(_, value)| wanted(value));
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.0.iter_mut().map(|(number, value)| (*number, value))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut().map(|(_, value)| value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use super::*;

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Numbers in any order, given once: it is what a map is.
        #[test]
        fn it_is_a_map(steps in proptest::collection::vec((0..5, 0_u64..16), 0..60)) {
            let (mut numbered, mut model) = (Numbered::default(), BTreeMap::new());
            for (step, (what, number)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        if model.insert(number, step).is_none() {
                            numbered.insert(number, step);
                        } else {
                            *numbered.get_mut(number).unwrap() = step;
                        }
                    }
                    2 => prop_assert_eq!(numbered.remove(number), model.remove(&number)),
                    3 => prop_assert_eq!(numbered.pop_first(), model.pop_first()),
                    _ => {
                        numbered.retain(|step| step % 3 != 0);
                        model.retain(|_, step| *step % 3 != 0);
                    }
                }
                prop_assert_eq!(numbered.get_mut(number).copied(), model.get(&number).copied());
                let all: Vec<_> = numbered.iter_mut().map(|(number, step)| (number, *step)).collect();
                prop_assert_eq!(all, model.clone().into_iter().collect::<Vec<_>>());
                prop_assert_eq!((numbered.len(), numbered.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    #[test]
    fn what_many_took_is_given_back_with_the_last() {
        let mut numbered = Numbered::default();
        (0..1000).for_each(|number| numbered.insert(number, ()));
        assert!(numbered.0.capacity() >= 1000);
        while numbered.pop_first().is_some() {}
        assert_eq!(numbered.0.capacity(), 0);
        numbered.insert(1000, ());
        let few = numbered.0.capacity();
        assert_eq!((numbered.remove(1000), numbered.0.capacity()), (Some(()), few));
    }
}
