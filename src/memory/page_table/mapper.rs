//! Page tables: which frames are mapped, how, and with the largest pages that fit.
//!
//! Pure logic over a [`TableMemory`], so that the host tests it against a model. There is no way to ask for a page that
//! is writable and executable: [`Protection`] has no such value.
//!
//! Every entry is made as the CPU would leave it after use: accessed, and dirty if it can be written to. So the CPU has
//! nothing to mark there, but for tables that it sees written to while they are read-only. Entries are atomic for its
//! sake.

use core::sync::atomic::{AtomicU64, Ordering};

use x86_64::structures::paging::PageTableFlags as Flags;

use crate::arch::Cpu;
use crate::memory::map::frame_set::FrameRange;

/// What may be done with a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Protection {
    /// Nothing: every access faults.
    Absent,
    /// Read and execute: code.
    ReadExecute,
    /// Read: constants.
    Read,
    /// Read and write: everything else.
    ReadWrite,
}

/// Where tables live: pages taken one by one, seen as arrays of 512 entries.
pub(crate) trait TableMemory {
    /// Takes a page, filled with zeroes, and returns its guest-physical address.
    fn allocate(&mut self) -> Option<u64>;

    /// The table at an address that [`allocate`](Self::allocate) returned.
    fn table(&self, address: u64) -> &[AtomicU64; 512];
}

/// There was no page left for another table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfTables;

/// The level of the root; a leaf of level 1 is 4 KiB, of level 2 is 2 MiB, of level 3 is 1 GiB.
const ROOT_LEVEL: u32 = 4;

/// The part of an entry that is an address.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Frames that one entry of a table of some level covers, as a power of two.
const fn span_bits(level: u32) -> u32 {
    9 * (level - 1)
}

/// Whether an entry of a table of some level maps memory itself.
const fn is_leaf(level: u32, entry: u64) -> bool {
    level == 1 || entry & Flags::HUGE_PAGE.bits() != 0
}

/// Whether the CPU has pages of the size of a level.
const fn leaf_allowed(level: u32, cpu: &Cpu) -> bool {
    level <= 2 || level == 3 && cpu.gigabyte_pages()
}

/// The flags of a leaf with some protection; none for an absent one.
fn leaf_flags(protection: Protection, cpu: &Cpu) -> u64 {
    if protection == Protection::Absent {
        return 0;
    }
    let mut flags = Flags::PRESENT | Flags::ACCESSED;
    flags.set(Flags::WRITABLE | Flags::DIRTY, protection == Protection::ReadWrite);
    flags.set(Flags::NO_EXECUTE, protection != Protection::ReadExecute && cpu.no_execute());
    flags.set(Flags::GLOBAL, cpu.global_pages());
    flags.bits()
}

/// The flags of an entry that is a table: upper levels allow everything, leaves decide.
const TABLE_FLAGS: u64 = Flags::PRESENT.bits() | Flags::WRITABLE.bits() | Flags::ACCESSED.bits();

/// A tree of tables.
pub(crate) struct Mapper<'a, M> {
    memory: &'a mut M,
    cpu: Cpu,
    root: u64,
}

impl<'a, M: TableMemory> Mapper<'a, M> {
    /// An empty tree.
    pub(crate) fn new(memory: &'a mut M, cpu: Cpu) -> Result<Self, OutOfTables> {
        let root = memory.allocate().ok_or(OutOfTables)?;
        Ok(Self { memory, cpu, root })
    }

    /// A tree made before.
    pub(crate) const fn at(memory: &'a mut M, cpu: Cpu, root: u64) -> Self {
        Self { memory, cpu, root }
    }

    /// The address of the root table.
    pub(crate) const fn root(&self) -> u64 {
        self.root
    }

    /// Maps frames at their own addresses, whatever they were.
    ///
    /// Takes at most [`MOST_SPLIT`] tables where what is mapped now covers the range and its neighbours.
    pub(crate) fn map(&mut self, frames: FrameRange, protection: Protection) -> Result<(), OutOfTables> {
        self.fill(self.root, ROOT_LEVEL, frames, leaf_flags(protection, &self.cpu))
    }

    /// Maps the part of a table of some level that `frames` covers.
    fn fill(&mut self, table: u64, level: u32, frames: FrameRange, flags: u64) -> Result<(), OutOfTables> {
        let bits = span_bits(level);
        let mut start = frames.start;
        while start < frames.end {
            let index = (start >> bits) as usize % 512;
            let whole = if start.is_multiple_of(1 << bits) { (frames.end - start) >> bits } else { 0 };
            if leaf_allowed(level, &self.cpu) && whole > 0 {
                let last = 512.min(index + whole as usize);
                let done = fill_leaves(&self.memory.table(table)[index..last], level, start, flags);
                start += (done as u64) << bits;
                if done > 0 {
                    continue;
                }
            }
            let end = frames.end.min(((start >> bits) + 1) << bits);
            if flags != 0 || self.memory.table(table)[index].load(Ordering::Relaxed) != 0 {
                let child = self.child(table, level, index)?;
                self.fill(child, level - 1, FrameRange { start, end }, flags)?;
            }
            start = end;
        }
        Ok(())
    }

    /// The table below an entry, made if there is none; a leaf becomes a table of smaller ones.
    fn child(&mut self, table: u64, level: u32, index: usize) -> Result<u64, OutOfTables> {
        let entry = self.memory.table(table)[index].load(Ordering::Relaxed);
        if entry != 0 && !is_leaf(level, entry) {
            return Ok(entry & ADDRESS);
        }
        let child = self.memory.allocate().ok_or(OutOfTables)?;
        if entry != 0 {
            let flags = entry & !ADDRESS & !Flags::HUGE_PAGE.bits();
            fill_leaves(self.memory.table(child), level - 1, (entry & ADDRESS) >> 12, flags);
        }
        // The CPU may look as soon as the entry is there: the table below comes first.
        self.memory.table(table)[index].store(child | TABLE_FLAGS, Ordering::Release);
        Ok(child)
    }

    /// Visits all that is mapped, in the order of addresses: pages that follow each other and differ in their addresses
    /// alone are one run, with its first leaf and the number of pages. Tables are followed where `is_table` knows them;
    /// others, and those with flags that no table here has, are given to `look` as they are.
    pub(crate) fn visit<E>(
        &self,
        is_table: impl Fn(u64) -> bool,
        mut look: impl FnMut(FrameRange, Entry, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        self.visit_table(self.root, ROOT_LEVEL, 0, &is_table, &mut look)
    }

    fn visit_table<E>(
        &self,
        table: u64,
        level: u32,
        first: u64,
        is_table: &impl Fn(u64) -> bool,
        look: &mut impl FnMut(FrameRange, Entry, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let bits = span_bits(level);
        let entries = self.memory.table(table);
        let mut index = 0;
        while index < entries.len() {
            let entry = entries[index].load(Ordering::Relaxed);
            let start = index;
            index += 1;
            if entry == 0 {
                continue;
            }
            let frame = first + ((start as u64) << bits);
            let step = 1 << (bits + 12);
            if !is_leaf(level, entry) && entry & !ADDRESS == TABLE_FLAGS && is_table(entry & ADDRESS) {
                self.visit_table(entry & ADDRESS, level - 1, frame, is_table, look)?;
                continue;
            }
            let mut next = entry.wrapping_add(step);
            while index < entries.len() && entries[index].load(Ordering::Relaxed) == next {
                index += 1;
                next = next.wrapping_add(step);
            }
            let pages = (index - start) as u64;
            look(FrameRange { start: frame, end: frame + (pages << bits) }, Entry { entry, level }, pages)?;
        }
        Ok(())
    }
}

/// Makes entries of a table of some level leaves, the first for the frame given, and returns how many: up to the first
/// that is a table. Without flags they become absent.
fn fill_leaves(entries: &[AtomicU64], level: u32, first: u64, flags: u64) -> usize {
    let huge = if level > 1 && flags != 0 { Flags::HUGE_PAGE.bits() } else { 0 };
    let (mut leaf, step) = match flags {
        0 => (0, 0),
        _ => (first << 12 | flags | huge, 1 << (span_bits(level) + 12)),
    };
    let mut done = 0;
    for entry in entries {
        let before = entry.load(Ordering::Relaxed);
        if before != 0 && !is_leaf(level, before) {
            break;
        }
        entry.store(leaf, Ordering::Relaxed);
        leaf += step;
        done += 1;
    }
    done
}

/// Tables that [`Mapper::map`] may take where everything is mapped already: two at each of the levels that have leaves
/// to split.
pub(crate) const MOST_SPLIT: u64 = 4;

/// An entry of a table of some level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    entry: u64,
    level: u32,
}

impl Entry {
    /// The first frame that it maps.
    pub(crate) const fn frame(self) -> u64 {
        (self.entry & ADDRESS) >> 12
    }

    pub(crate) const fn writable(self) -> bool {
        self.entry & Flags::WRITABLE.bits() != 0
    }

    pub(crate) const fn executable(self) -> bool {
        self.entry & Flags::NO_EXECUTE.bits() == 0
    }

    /// Whether it is the leaf that a mapper makes for a frame: to the last bit, but for the mark that a change of tables
    /// leaves on the read-only pages that they are in.
    pub(crate) fn is(self, frame: u64, protection: Protection, cpu: &Cpu) -> bool {
        let huge = if self.level > 1 { Flags::HUGE_PAGE.bits() } else { 0 };
        let mark = if protection == Protection::Read { Flags::DIRTY.bits() } else { 0 };
        self.entry & !mark == frame << 12 | leaf_flags(protection, cpu) | huge
    }

    /// The entry as it stands in the table.
    pub(crate) const fn bits(self) -> u64 {
        self.entry
    }
}

/// How many tables mapping these ranges takes; they come in order and do not overlap.
pub(crate) fn tables_needed(mappings: impl Iterator<Item = (FrameRange, Protection)>, cpu: &Cpu) -> u64 {
    // The root, and for each level below it the table that was counted last.
    let (mut count, mut last) = (1, [None; ROOT_LEVEL as usize]);
    for (frames, _) in mappings {
        for level in 2..=ROOT_LEVEL {
            // A table below an entry of this level, wherever that is no leaf.
            let bits = span_bits(level);
            let (first, end) = (frames.start >> bits, ((frames.end - 1) >> bits) + 1);
            let leaves = leaf_allowed(level, cpu);
            let whole = FrameRange { start: frames.start.div_ceil(1 << bits), end: frames.end >> bits };
            let mut need = |entry: u64| {
                if last[level as usize - 1] != Some(entry) {
                    last[level as usize - 1] = Some(entry);
                    count += 1;
                }
            };
            if !leaves {
                (first..end).for_each(need);
            } else {
                [first, end - 1].into_iter().filter(|&entry| !whole.contains(entry)).for_each(&mut need);
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Tables in a vector; the address of a table is its index in pages, counted from 1.
    struct Tables(Vec<[AtomicU64; 512]>, usize);

    impl TableMemory for Tables {
        fn allocate(&mut self) -> Option<u64> {
            if self.0.len() == self.1 {
                return None;
            }
            self.0.push([const { AtomicU64::new(0) }; 512]);
            Some((self.0.len() as u64) << 12)
        }

        fn table(&self, address: u64) -> &[AtomicU64; 512] {
            &self.0[(address >> 12) as usize - 1]
        }
    }

    /// The model's address space: 64 GiB, and less where each step is slow.
    const LAST: u64 = if cfg!(miri) { 1 << 19 } else { 1 << 24 };

    const ALL: Cpu = Cpu {
        extended_edx: u32::MAX,
        leaf1_edx: u32::MAX,
        leaf1_ecx: 0,
        leaf7_ebx: 0,
        leaf7_ecx: 0,
        vmmcall: 0,
        random_canary: 0,
        reserved: 0,
        entry_tsc: 0,
    };
    const NO_GIGABYTE: Cpu = Cpu { extended_edx: 1 << 20, ..ALL };
    const NOTHING: Cpu = Cpu { extended_edx: 0, leaf1_edx: 0, ..ALL };

    /// The leaf that the CPU would use for a frame, with its level.
    fn walk(tables: &Tables, root: u64, frame: u64) -> Option<(u64, u32)> {
        let mut table = root;
        for level in (1..=ROOT_LEVEL).rev() {
            let bits = span_bits(level);
            let entry = tables.table(table)[(frame >> bits) as usize % 512].load(Ordering::Relaxed);
            if entry & 1 == 0 {
                assert_eq!(entry, 0);
                return None;
            }
            if is_leaf(level, entry) {
                let first = (entry & ADDRESS) >> 12;
                assert_eq!(first + (frame & ((1 << bits) - 1)), frame, "identity");
                return Some((entry, level));
            }
            table = entry & ADDRESS;
        }
        None
    }

    fn map(ranges: &[(FrameRange, Protection)], cpu: Cpu) -> (Tables, u64) {
        let mut tables = Tables(Vec::new(), usize::MAX);
        let mut mapper = Mapper::new(&mut tables, cpu).unwrap();
        for &(frames, protection) in ranges {
            mapper.map(frames, protection).unwrap();
        }
        let root = mapper.root();
        (tables, root)
    }

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange { start, end }
    }

    /// What a walk finds, as a protection.
    fn protection(tables: &Tables, root: u64, frame: u64) -> Protection {
        let Some((entry, level)) = walk(tables, root, frame) else { return Protection::Absent };
        let leaf = Entry { entry, level };
        assert_eq!(entry & Flags::USER_ACCESSIBLE.bits(), 0);
        match (leaf.writable(), leaf.executable()) {
            (true, true) => panic!("writable and executable"),
            (true, false) => Protection::ReadWrite,
            (false, true) => Protection::ReadExecute,
            (false, false) => Protection::Read,
        }
    }

    #[test]
    fn largest_pages_that_fit() {
        let ranges = [(range(1, 3 << 18), Protection::ReadWrite)];
        for (cpu, at_one_gigabyte, tables_used) in [(ALL, 3, 4), (NO_GIGABYTE, 2, 6)] {
            let (tables, root) = map(&ranges, cpu);
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
        let protections = [Protection::ReadExecute, Protection::Read, Protection::ReadWrite];
        let ranges: Vec<_> = protections.iter().zip(1..).map(|(&p, frame)| (range(frame, frame + 1), p)).collect();
        let (tables, root) = map(&ranges, ALL);
        let bits = |frame| walk(&tables, root, frame).unwrap().0 & !ADDRESS;
        // Present, accessed and global; dirty if writable, so that the CPU never has to mark it.
        assert_eq!(bits(1), 0x121);
        assert_eq!(bits(2), 0x121 | 1 << 63);
        assert_eq!(bits(3), 0x163 | 1 << 63);
        // On a CPU without NX and global pages these bits are reserved, or do nothing.
        let (tables, root) = map(&ranges, NOTHING);
        assert_eq!(walk(&tables, root, 3).unwrap().0 & !ADDRESS, 0x63);
    }

    #[test]
    fn no_memory_for_tables_is_an_error() {
        for limit in 0..4 {
            let mut tables = Tables(Vec::new(), limit);
            let result = Mapper::new(&mut tables, ALL).and_then(|mut mapper| mapper.map(range(1, 2), Protection::Read));
            assert_eq!(result, Err(OutOfTables));
        }
    }

    #[test]
    fn a_large_page_is_split_for_one_small_one() {
        for (cpu, most) in [(ALL, 2), (NO_GIGABYTE, 1)] {
            let (mut tables, root) = map(&[(range(0, 4 << 18), Protection::ReadWrite)], cpu);
            let before = tables.0.len();
            Mapper::at(&mut tables, cpu, root).map(range(0x50005, 0x50006), Protection::Read).unwrap();
            assert_eq!(tables.0.len(), before + most);
            for frame in [0x50004, 0x50006, 0x4ffff, 0x50200, 0x40000, 0x7ffff, 0x80000] {
                assert_eq!(protection(&tables, root, frame), Protection::ReadWrite, "{frame:#x}");
            }
            assert_eq!(protection(&tables, root, 0x50005), Protection::Read);
            // Changed back, it needs nothing more.
            Mapper::at(&mut tables, cpu, root).map(range(0x50000, 0x50200), Protection::ReadWrite).unwrap();
            assert_eq!(tables.0.len(), before + most);
            assert_eq!(protection(&tables, root, 0x50005), Protection::ReadWrite);
        }
    }

    const PROTECTIONS: [Protection; 4] =
        [Protection::Absent, Protection::ReadExecute, Protection::ReadWrite, Protection::Read];

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Exactly the frames asked for are mapped, each with its own protection, whatever the ranges; counting tables
        /// beforehand gives what is used; and changes afterwards change what they name, with a bounded number of
        /// tables each.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn agrees_with_a_model(
            cuts in proptest::collection::btree_set(
                prop_oneof![0_u64..2000, (0_u64..LAST >> 9).prop_map(|x| x << 9), 0_u64..LAST], 2..20),
            cpu in prop_oneof![Just(ALL), Just(NO_GIGABYTE)],
            changes in proptest::collection::vec((any::<prop::sample::Index>(), 1_u64..700, 0_usize..4), 0..4),
        ) {
            let cuts: Vec<u64> = cuts.into_iter().collect();
            let all: Vec<_> =
                cuts.windows(2).enumerate().map(|(i, w)| (range(w[0], w[1]), PROTECTIONS[i % 4])).collect();
            let mapped: Vec<_> = all.iter().copied().filter(|(_, p)| *p != Protection::Absent).collect();
            let (mut tables, root) = map(&mapped, cpu);
            prop_assert_eq!(tables_needed(mapped.iter().copied(), &cpu), tables.0.len() as u64);
            let mut edges: Vec<u64> = cuts.iter().flat_map(|&cut| [cut.saturating_sub(1), cut, cut + 1]).collect();
            let mut done: Vec<(FrameRange, Protection)> = Vec::new();
            for (at, length, to) in changes.into_iter().filter(|_| !mapped.is_empty()) {
                let (inside, _) = mapped[at.index(mapped.len())];
                let changed = range(inside.start, inside.end.min(inside.start + length));
                let before = tables.0.len();
                Mapper::at(&mut tables, cpu, root).map(changed, PROTECTIONS[to]).unwrap();
                prop_assert!((tables.0.len() - before) as u64 <= MOST_SPLIT);
                done.push((changed, PROTECTIONS[to]));
                edges.extend([changed.start, changed.end - 1, changed.end]);
            }
            for frame in edges {
                let expected = done.iter().rev().chain(&all).find(|(frames, _)| frames.contains(frame));
                let expected = expected.map_or(Protection::Absent, |(_, protection)| *protection);
                prop_assert_eq!(protection(&tables, root, frame), expected, "frame {:#x}", frame);
            }
            // Visiting finds the same, in order and whole.
            let mut visited = Vec::new();
            let mapper = Mapper::at(&mut tables, cpu, root);
            let _ = mapper.visit::<()>(|_| true, |frames, leaf, pages| {
                assert!(leaf.frame() == frames.start && frames.len() % pages == 0);
                visited.push((frames, leaf));
                Ok(())
            });
            prop_assert!(visited.windows(2).all(|w| w[0].0.end <= w[1].0.start));
            for frame in cuts.iter().flat_map(|&cut| [cut.saturating_sub(1), cut]) {
                let run = visited.iter().find(|(frames, _)| frames.contains(frame));
                let found = run.map(|(_, leaf)| (leaf.writable(), leaf.executable()));
                let walked = walk(&tables, root, frame).map(|(entry, level)| {
                    let leaf = Entry { entry, level };
                    (leaf.writable(), leaf.executable())
                });
                prop_assert_eq!(found, walked, "frame {:#x}", frame);
            }
        }
    }
}
