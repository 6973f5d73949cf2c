//! Page tables: which frames are mapped, how, and with the largest pages that fit.
//!
//! Pure logic over a [`TableMemory`], so that the host tests it against a model. There is no way to ask for a page that
//! is writable and executable: [`Protection`] has no such value.

use x86_64::structures::paging::PageTableFlags as Flags;

use super::frames::FrameRange;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protection {
    /// Read and execute: code.
    Execute,
    /// Read: constants.
    Read,
    /// Read and write: everything else.
    ReadWrite,
}

/// Where tables live: pages taken one by one, seen as arrays of entries.
pub(crate) trait TableMemory {
    /// Takes a page, filled with zeroes, and returns its guest-physical address.
    fn allocate(&mut self) -> Option<u64>;

    /// The table at an address that [`allocate`](Self::allocate) returned.
    fn table(&mut self, address: u64) -> &mut [u64; 512];
}

/// There was no page left for another table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfTables;

/// Page sizes and bits that the CPU offers, from EDX of CPUID leaf 0x80000001.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features(pub(crate) u32);

impl Features {
    /// Pages can be made not executable.
    pub(crate) const fn no_execute(self) -> bool {
        self.0 & 1 << 20 != 0
    }

    /// Pages of 1 GiB exist.
    const fn gigabyte_pages(self) -> bool {
        self.0 & 1 << 26 != 0
    }
}

/// A tree of tables in the making.
pub(crate) struct Mapper<'a, M> {
    memory: &'a mut M,
    features: Features,
    root: u64,
}

/// The level of the root; a leaf of level 1 is 4 KiB, of level 2 is 2 MiB, of level 3 is 1 GiB.
const ROOT_LEVEL: u32 = 4;

impl<'a, M: TableMemory> Mapper<'a, M> {
    /// An empty tree.
    pub(crate) fn new(memory: &'a mut M, features: Features) -> Result<Self, OutOfTables> {
        let root = memory.allocate().ok_or(OutOfTables)?;
        Ok(Self { memory, features, root })
    }

    /// The address of the root table.
    pub(crate) const fn root(&self) -> u64 {
        self.root
    }

    /// Maps frames that are not mapped yet at their own addresses.
    pub(crate) fn map(&mut self, frames: FrameRange, protection: Protection) -> Result<(), OutOfTables> {
        let mut leaf = Flags::PRESENT;
        leaf.set(Flags::WRITABLE, protection == Protection::ReadWrite);
        leaf.set(Flags::NO_EXECUTE, protection != Protection::Execute && self.features.no_execute());
        self.fill(self.root, ROOT_LEVEL, frames, leaf)
    }

    /// Maps the part of a table of some level that `frames` covers.
    fn fill(&mut self, table: u64, level: u32, frames: FrameRange, leaf: Flags) -> Result<(), OutOfTables> {
        let span_bits = 9 * (level - 1);
        let mut start = frames.start;
        while start < frames.end {
            let index = (start >> span_bits) as usize % 512;
            let end = frames.end.min(((start >> span_bits) + 1) << span_bits);
            let whole = end - start == 1 << span_bits;
            if whole && self.leaf_allowed(level) {
                let huge = if level == 1 { Flags::empty() } else { Flags::HUGE_PAGE };
                let table = self.memory.table(table);
                debug_assert_eq!(table[index], 0, "frame {start:#x} is mapped twice");
                table[index] = start << 12 | (leaf | huge).bits();
            } else {
                let child = self.child(table, index)?;
                self.fill(child, level - 1, FrameRange { start, end }, leaf)?;
            }
            start = end;
        }
        Ok(())
    }

    fn leaf_allowed(&self, level: u32) -> bool {
        level <= 2 || level == 3 && self.features.gigabyte_pages()
    }

    /// The table below an entry, made if there is none. Upper levels allow everything, leaves decide.
    fn child(&mut self, table: u64, index: usize) -> Result<u64, OutOfTables> {
        let entry = self.memory.table(table)[index];
        if entry != 0 {
            return Ok(entry & 0x000f_ffff_ffff_f000);
        }
        let child = self.memory.allocate().ok_or(OutOfTables)?;
        self.memory.table(table)[index] = child | (Flags::PRESENT | Flags::WRITABLE).bits();
        Ok(child)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Tables in a vector; the address of a table is its index in pages, counted from 1.
    struct Tables(Vec<[u64; 512]>, usize);

    impl TableMemory for Tables {
        fn allocate(&mut self) -> Option<u64> {
            if self.0.len() == self.1 {
                return None;
            }
            self.0.push([0; 512]);
            Some((self.0.len() as u64) << 12)
        }

        fn table(&mut self, address: u64) -> &mut [u64; 512] {
            &mut self.0[(address >> 12) as usize - 1]
        }
    }

    /// The model's address space: 64 GiB, and less where each step is slow.
    const LAST: u64 = if cfg!(miri) { 1 << 19 } else { 1 << 24 };

    const ALL: Features = Features(u32::MAX);
    const NO_GIGABYTE: Features = Features(1 << 20);
    const NOTHING: Features = Features(0);

    /// The leaf that the CPU would use for a frame, with its level.
    fn walk(tables: &Tables, root: u64, frame: u64) -> Option<(u64, u32)> {
        let mut table = root;
        for level in (1..=ROOT_LEVEL).rev() {
            let span_bits = 9 * (level - 1);
            let entry = tables.0[(table >> 12) as usize - 1][(frame >> span_bits) as usize % 512];
            if entry & 1 == 0 {
                return None;
            }
            if level == 1 || entry & Flags::HUGE_PAGE.bits() != 0 {
                let first = (entry & 0x000f_ffff_ffff_f000) >> 12;
                assert_eq!(first + (frame & ((1 << span_bits) - 1)), frame, "identity");
                return Some((entry, level));
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        None
    }

    fn map(ranges: &[(u64, u64, Protection)], features: Features) -> (Tables, u64) {
        let mut tables = Tables(Vec::new(), 1000);
        let mut mapper = Mapper::new(&mut tables, features).unwrap();
        for &(start, end, protection) in ranges {
            mapper.map(FrameRange { start, end }, protection).unwrap();
        }
        let root = mapper.root();
        (tables, root)
    }

    #[test]
    fn largest_pages_that_fit() {
        let range = [(1, 3 << 18, Protection::ReadWrite)];
        for (features, at_one_gigabyte, tables_used) in [(ALL, 3, 4), (NO_GIGABYTE, 2, 6)] {
            let (tables, root) = map(&range, features);
            assert_eq!(walk(&tables, root, 0), None);
            assert_eq!(walk(&tables, root, 1).unwrap().1, 1);
            assert_eq!(walk(&tables, root, 511).unwrap().1, 1);
            assert_eq!(walk(&tables, root, 512).unwrap().1, 2);
            assert_eq!(walk(&tables, root, 1 << 18).unwrap().1, at_one_gigabyte);
            assert_eq!(walk(&tables, root, (3 << 18) - 1).unwrap().1, at_one_gigabyte);
            assert_eq!(walk(&tables, root, 3 << 18), None);
            assert_eq!(tables.0.len(), tables_used);
        }
    }

    #[test]
    fn protections_become_bits() {
        let ranges = [(1, 2, Protection::Execute), (2, 3, Protection::Read), (3, 4, Protection::ReadWrite)];
        let (tables, root) = map(&ranges, ALL);
        let bits = |frame| Flags::from_bits_retain(walk(&tables, root, frame).unwrap().0);
        assert!(!bits(1).contains(Flags::WRITABLE) && !bits(1).contains(Flags::NO_EXECUTE));
        assert!(!bits(2).contains(Flags::WRITABLE) && bits(2).contains(Flags::NO_EXECUTE));
        assert!(bits(3).contains(Flags::WRITABLE) && bits(3).contains(Flags::NO_EXECUTE));
        // A reserved bit would fault on a CPU without NX.
        let (tables, root) = map(&ranges, NOTHING);
        assert_eq!(walk(&tables, root, 3).unwrap().0 >> 63, 0);
    }

    #[test]
    fn no_memory_for_tables_is_an_error() {
        for limit in 0..4 {
            let mut tables = Tables(Vec::new(), limit);
            let result = Mapper::new(&mut tables, ALL)
                .and_then(|mut mapper| mapper.map(FrameRange { start: 1, end: 2 }, Protection::Read));
            assert_eq!(result, Err(OutOfTables));
        }
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Exactly the frames asked for are mapped, each with its own protection, whatever the ranges.
        #[test]
        fn agrees_with_a_model(
            cuts in proptest::collection::btree_set(
                prop_oneof![0_u64..2000, (0_u64..LAST >> 9).prop_map(|x| x << 9), 0_u64..LAST], 2..20),
            features in prop_oneof![Just(ALL), Just(NO_GIGABYTE), Just(NOTHING)],
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let protections = [None, Some(Protection::Execute), Some(Protection::ReadWrite), Some(Protection::Read)];
            let ranges: Vec<_> = cuts
                .windows(2)
                .enumerate()
                .filter_map(|(i, w)| protections[i % 4].map(|p| (w[0], w[1], p)))
                .collect();
            let mut tables = Tables(Vec::new(), usize::MAX);
            let mut mapper = Mapper::new(&mut tables, features).unwrap();
            for &(start, end, protection) in &ranges {
                mapper.map(FrameRange { start, end }, protection).unwrap();
            }
            let root = mapper.root();
            for &cut in &cuts {
                for frame in [cut.saturating_sub(1), cut, cut + 1] {
                    let expected = ranges.iter().find(|r| (r.0..r.1).contains(&frame)).map(|r| r.2);
                    let found = walk(&tables, root, frame).map(|(entry, _)| {
                        let flags = Flags::from_bits_retain(entry);
                        match (flags.contains(Flags::WRITABLE), flags.contains(Flags::NO_EXECUTE)) {
                            (true, nx) => { assert_eq!(nx, features.no_execute()); Protection::ReadWrite }
                            (false, false) if features.no_execute() => Protection::Execute,
                            (false, true) => Protection::Read,
                            // Without NX, code and constants look alike.
                            (false, false) => expected.unwrap(),
                        }
                    });
                    prop_assert_eq!(found, expected, "frame {:#x}", frame);
                }
            }
        }
    }
}
