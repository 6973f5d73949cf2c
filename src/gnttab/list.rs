//! Lists of references, through one array of links: those that are free, and those of each grant.
//!
//! A reference is in one list at a time, so its link is all that any list needs of it, and moving a list costs no memory. The
//! links are the domain's own: the table that Xen sees is never read to learn what is free.

use alloc::vec::Vec;

use super::ErrorKind;
use crate::abi::grant_table::ENTRIES_PER_FRAME;
use crate::memory;

/// No reference: the end of a list.
const END: u32 = u32::MAX;
const BLOCK: usize = ENTRIES_PER_FRAME as usize;

/// References of one owner, in order. No copy can be had of it, so what was given back is not given back again.
#[derive(Debug)]
#[must_use = "references that are dropped are lost"]
pub(super) struct Chain {
    first: u32,
    last: u32,
    len: u32,
}

impl Chain {
    pub(super) const EMPTY: Self = Self { first: END, last: END, len: 0 };

    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// The first reference.
    pub(super) const fn first(&self) -> Option<u32> {
        if self.len == 0 { None } else { Some(self.first) }
    }
}

/// The links of all references, and those that are free.
#[derive(Debug)]
pub(super) struct Lists {
    /// One block for each page of the table.
    blocks: Vec<Vec<u32>>,
    free: Chain,
    /// References that were ever free.
    known: u32,
}

impl Lists {
    pub(super) const fn new() -> Self {
        Self { blocks: Vec::new(), free: Chain::EMPTY, known: 0 }
    }

    /// How many are free.
    pub(super) const fn free(&self) -> u32 {
        self.free.len
    }

    /// How many there are, free or not.
    pub(super) const fn known(&self) -> u32 {
        self.known
    }

    /// Makes room for the references of one more page of the table.
    pub(super) fn reserve(&mut self) -> Result<Vec<u32>, ErrorKind> {
        let no_memory = |_| ErrorKind::Memory(memory::Error::OutOfMemory);
        self.blocks.try_reserve(1).map_err(no_memory)?;
        let mut block = Vec::new();
        block.try_reserve_exact(BLOCK).map_err(no_memory)?;
        block.resize(BLOCK, END);
        Ok(block)
    }

    /// Adds the references of one more page of the table, those that may be used, behind the free ones: the lowest first.
    pub(super) fn adopt(&mut self, block: Vec<u32>, usable: impl Fn(u32) -> bool) {
        let start = self.blocks.len() * BLOCK;
        self.blocks.push(block);
        for reference in (start..start + BLOCK).map(|reference| reference as u32) {
            if usable(reference) {
                let mut free = core::mem::replace(&mut self.free, Chain::EMPTY);
                self.push(&mut free, reference);
                self.free = free;
                self.known += 1;
            }
        }
    }

    /// Takes so many free references, or none. Costs as many steps.
    pub(super) fn take(&mut self, count: u32) -> Option<Chain> {
        if count > self.free.len {
            return None;
        }
        let Some(steps) = count.checked_sub(1) else { return Some(Chain::EMPTY) };
        let mut last = self.free.first;
        for _ in 0..steps {
            last = self.next(last)?;
        }
        let taken = Chain { first: self.free.first, last, len: count };
        let rest = self.next(last);
        self.free = match rest {
            Some(first) => Chain { first, last: self.free.last, len: self.free.len - count },
            None => Chain::EMPTY,
        };
        self.link(last, END);
        Some(taken)
    }

    /// Gives references back, all in one step. They are taken next: what was used last is near.
    pub(super) fn give(&mut self, chain: Chain) {
        if chain.len == 0 {
            return;
        }
        self.link(chain.last, self.free.first);
        let last = if self.free.len == 0 { chain.last } else { self.free.last };
        self.free = Chain { first: chain.first, last, len: self.free.len + chain.len };
    }

    /// Takes the first reference out of a list, as a list of its own.
    pub(super) fn pop(&self, chain: &mut Chain) -> Option<Chain> {
        let first = chain.first()?;
        *chain = match self.next(first).filter(|_| chain.len > 1) {
            Some(next) => Chain { first: next, last: chain.last, len: chain.len - 1 },
            None => Chain::EMPTY,
        };
        Some(Chain { first, last: first, len: 1 })
    }

    /// Puts a reference, a list of its own until now, behind the others of a list.
    pub(super) fn append(&mut self, chain: &mut Chain, one: Chain) {
        if let Some(reference) = one.first() {
            self.push(chain, reference);
        }
    }

    fn push(&mut self, chain: &mut Chain, reference: u32) {
        self.link(reference, END);
        if chain.len == 0 {
            chain.first = reference;
        } else {
            self.link(chain.last, reference);
        }
        (chain.last, chain.len) = (reference, chain.len + 1);
    }

    /// The one behind a reference in its list.
    pub(super) fn next(&self, reference: u32) -> Option<u32> {
        let next = *self.blocks.get(reference as usize / BLOCK)?.get(reference as usize % BLOCK)?;
        (next != END).then_some(next)
    }

    fn link(&mut self, reference: u32, next: u32) {
        let block = self.blocks.get_mut(reference as usize / BLOCK);
        if let Some(link) = block.and_then(|block| block.get_mut(reference as usize % BLOCK)) {
            *link = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn references(lists: &Lists, chain: &Chain) -> Vec<u32> {
        let all: Vec<_> = core::iter::successors(chain.first(), |&reference| lists.next(reference)).collect();
        assert_eq!((all.len() as u32, all.last().copied().unwrap_or(END)), (chain.len(), chain.last));
        all
    }

    fn grow(lists: &mut Lists, pages: u32) {
        for _ in 0..pages {
            let block = lists.reserve().unwrap();
            lists.adopt(block, |reference| reference >= 8);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grow(u32),
        Take(u32),
        Give(usize),
        /// Gives some of a list back, each by itself, and keeps every `n`th.
        Sift(usize, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (1_u32..if cfg!(miri) { 2 } else { 3 }).prop_map(Step::Grow),
            6 => prop_oneof![0_u32..5, 0_u32..300].prop_map(Step::Take),
            4 => any::<usize>().prop_map(Step::Give),
            3 => (any::<usize>(), 2_u32..5).prop_map(|(index, n)| Step::Sift(index, n)),
        ]
    }

    const STEPS: usize = if cfg!(miri) { 5 } else { 60 };

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        fn each_reference_is_in_one_list_whatever_is_done(steps in prop::collection::vec(step(), 1..STEPS)) {
            let (mut lists, mut held, mut free) = (Lists::new(), Vec::new(), BTreeSet::new());
            let mut pages = 0;
            for step in steps {
                match step {
                    Step::Grow(more) => {
                        grow(&mut lists, more);
                        free.extend((pages * 512).max(8)..(pages + more) * 512);
                        pages += more;
                    }
                    Step::Take(count) => match lists.take(count) {
                        Some(chain) => {
                            let taken = references(&lists, &chain);
                            prop_assert_eq!(taken.len(), count as usize);
                            prop_assert!(taken.iter().all(|reference| free.remove(reference)));
                            held.push(chain);
                        }
                        None => prop_assert!(free.len() < count as usize, "all or nothing"),
                    },
                    Step::Give(_) | Step::Sift(..) if held.is_empty() => {}
                    Step::Give(index) => {
                        let chain = held.swap_remove(index % held.len());
                        free.extend(references(&lists, &chain));
                        lists.give(chain);
                    }
                    Step::Sift(index, n) => {
                        let mut chain = held.swap_remove(index % held.len());
                        for number in 0..chain.len() {
                            let one = lists.pop(&mut chain).unwrap();
                            if number % n == 0 {
                                lists.append(&mut chain, one);
                            } else {
                                prop_assert!(free.insert(one.first().unwrap()));
                                lists.give(one);
                            }
                        }
                        held.push(chain);
                    }
                }
                prop_assert_eq!(lists.free() as usize, free.len());
            }
            let listed: BTreeSet<_> = references(&lists, &lists.free).into_iter().collect();
            prop_assert_eq!(&listed, &free);
            let used: usize = held.iter().map(|chain| references(&lists, chain).len()).sum();
            prop_assert_eq!(used + free.len(), lists.known() as usize);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
    fn the_lowest_come_first_and_reserved_ones_never() {
        let mut lists = Lists::new();
        assert!(lists.take(1).is_none());
        assert_eq!(lists.take(0).unwrap().len(), 0);
        grow(&mut lists, 2);
        let all = lists.take(1024 - 8).unwrap();
        assert_eq!(references(&lists, &all), (8..1024).collect::<Vec<_>>());
        assert!(lists.take(1).is_none());
        lists.give(all);
        lists.give(Chain::EMPTY);
        assert_eq!((lists.free(), lists.known()), (1016, 1016));
    }
}
