//! Sets of page frames, for the memory map and what is subtracted from it.
//!
//! A memory map has a dozen entries, in no order, of any size. As a sorted list of disjoint ranges it answers every
//! question of boot, without a heap.

use heapless::Vec;

/// Frames from `start` to before `end`. A frame is a guest-physical address divided by 4096.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameRange {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl FrameRange {
    /// The frames that lie in `size` bytes at `address` entirely.
    pub(crate) const fn inside(address: u64, size: u64) -> Self {
        let start = address.div_ceil(4096);
        let end = address.saturating_add(size) / 4096;
        Self { start, end: if end < start { start } else { end } }
    }

    /// The frames that `size` bytes at `address` touch.
    pub(crate) const fn touching(address: u64, size: u64) -> Self {
        let start = address / 4096;
        let end = if size == 0 { start } else { address.saturating_add(size - 1) / 4096 + 1 };
        Self { start, end }
    }

    /// The part that lies below a frame.
    pub(crate) const fn below(self, limit: u64) -> Self {
        let start = if self.start < limit { self.start } else { limit };
        Self { start, end: if self.end < limit { self.end } else { limit } }
    }

    pub(crate) const fn len(self) -> u64 {
        self.end - self.start
    }

    pub(crate) const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether a frame is one of them.
    pub(crate) const fn contains(self, frame: u64) -> bool {
        self.start <= frame && frame < self.end
    }

    /// Whether there are none.
    pub(crate) const fn is_empty(self) -> bool {
        self.start >= self.end
    }
}

/// More ranges than the set can hold. What could not be represented is left out: a set of RAM only becomes smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooManyRanges;

/// Ranges that a set holds at most: twice what a memory map of Xen's has, since each subtraction may split one.
const CAPACITY: usize = 256;

/// Pieces of memory that the heap may be given: those of a set, the boot tables, the spare part of the stack.
#[cfg(all(feature = "allocator", any(target_os = "none", test)))]
pub(in crate::memory) const MAX_RANGES: usize = CAPACITY + 2;

/// A set of frames: disjoint ranges, sorted, none touching the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames(Vec<FrameRange, CAPACITY>);

impl Frames {
    /// The empty set.
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// The ranges, lowest first.
    pub(crate) fn ranges(&self) -> &[FrameRange] {
        &self.0
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|range| range.len()).sum()
    }

    /// Whether all of a range is in the set.
    pub(crate) fn contains(&self, range: FrameRange) -> bool {
        let index = self.0.partition_point(|other| other.end < range.end);
        range.is_empty() || self.0.get(index).is_some_and(|other| other.start <= range.start)
    }

    /// Adds a range.
    pub(crate) fn insert(&mut self, range: FrameRange) -> Result<(), TooManyRanges> {
        if range.is_empty() {
            return Ok(());
        }
        // Everything from `first` to before `last` overlaps or touches the new range and melts into it.
        let first = self.0.partition_point(|other| other.end < range.start);
        let last = self.0.partition_point(|other| other.start <= range.end);
        let Some(melted) = self.0.get(first..last).filter(|melted| !melted.is_empty()) else {
            return self.0.insert(first, range).map_err(|_| TooManyRanges);
        };
        let whole =
            FrameRange { start: melted[0].start.min(range.start), end: melted[melted.len() - 1].end.max(range.end) };
        self.0[first] = whole;
        self.0.drain(first + 1..last);
        Ok(())
    }

    /// Takes a range away. If that splits a range of a full set, the set keeps the larger part of it: the smaller is lost.
    pub(crate) fn remove(&mut self, range: FrameRange) -> Result<(), TooManyRanges> {
        if range.is_empty() {
            return Ok(());
        }
        let first = self.0.partition_point(|other| other.end <= range.start);
        let last = self.0.partition_point(|other| other.start < range.end);
        let Some(cut) = self.0.get(first..last).filter(|cut| !cut.is_empty()) else { return Ok(()) };
        let below = FrameRange { start: cut[0].start, end: range.start };
        let above = FrameRange { start: range.end, end: cut[cut.len() - 1].end };
        self.0.drain(first..last);
        let size = |rest: FrameRange| rest.end.saturating_sub(rest.start);
        let (larger, smaller) = if size(below) > size(above) { (below, above) } else { (above, below) };
        let mut result = Ok(());
        for rest in [larger, smaller].into_iter().filter(|rest| !rest.is_empty()) {
            let index = self.0.partition_point(|other| other.start < rest.start);
            result = result.and(self.0.insert(index, rest).map_err(|_| TooManyRanges));
        }
        result
    }

    /// Takes all frames of another set away.
    pub(crate) fn remove_all(&mut self, other: &Self) -> Result<(), TooManyRanges> {
        other.0.iter().try_for_each(|&range| self.remove(range))
    }

    /// Takes `count` adjacent frames out of the lowest range that has them, and returns the first.
    pub(crate) fn take(&mut self, count: u64) -> Option<u64> {
        let index = self.0.iter().position(|range| range.len() >= count)?;
        let range = &mut self.0[index];
        let start = range.start;
        range.start += count;
        if range.is_empty() {
            self.0.remove(index);
        }
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange { start, end }
    }

    #[test]
    fn bytes_round_inwards_or_outwards() {
        assert_eq!(FrameRange::inside(0x1001, 0x2fff), range(2, 4));
        assert_eq!(FrameRange::inside(0x1001, 0x10), range(2, 2));
        assert_eq!(FrameRange::inside(0xfc00_8000, 64).len(), 0);
        assert_eq!(FrameRange::touching(0xfc00_8000, 64), range(0xfc008, 0xfc009));
        assert_eq!(FrameRange::touching(0x1fff, 2), range(1, 3));
        assert_eq!(FrameRange::touching(0x1000, 0).len(), 0);
        // An entry that runs past the end of the address space does not wrap.
        assert_eq!(FrameRange::inside(u64::MAX - 0xffff, u64::MAX).end, u64::MAX / 4096);
    }

    #[test]
    fn full_set_refuses_and_stays_valid() {
        let mut set = Frames::new();
        for i in 0..CAPACITY as u64 {
            set.insert(range(i * 4, i * 4 + 3)).unwrap();
        }
        assert_eq!(set.insert(range(1 << 20, 2 << 20)), Err(TooManyRanges));
        assert_eq!(set.remove(range(1, 2)), Err(TooManyRanges));
        assert!(!set.ranges().iter().any(|r| r.start <= 1 && r.end > 1));
        assert!(set.ranges().is_sorted_by_key(|r| r.start));
    }

    #[test]
    fn full_set_keeps_the_larger_part_of_a_split() {
        for (cut, larger) in
            [(range(10, 11), range(11, 100)), (range(90, 91), range(0, 90)), (range(50, 60), range(0, 50))]
        {
            let mut set = Frames::new();
            set.insert(range(0, 100)).unwrap();
            for i in 1..CAPACITY as u64 {
                set.insert(range(1000 * i, 1000 * i + 1)).unwrap();
            }
            assert_eq!(set.remove(cut), Err(TooManyRanges));
            assert_eq!((set.ranges()[0], set.ranges().len()), (larger, CAPACITY));
            assert!(set.ranges().is_sorted_by_key(|r| r.start));
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Remove(u64, u64),
        Take(u64),
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// The set agrees with a set of single frames after any sequence of operations.
        #[test]
        #[cfg_attr(miri, ignore = "a third of a minute; the set has no unsafe code")]
        fn agrees_with_a_model(steps in proptest::collection::vec(
            prop_oneof![
                (0_u64..60, 0_u64..9).prop_map(|(a, n)| Step::Insert(a, a + n)),
                (0_u64..60, 0_u64..9).prop_map(|(a, n)| Step::Remove(a, a + n)),
                (1_u64..6).prop_map(Step::Take),
            ], 0..40)) {
            let mut set = Frames::new();
            let mut model = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Insert(a, b) => { set.insert(range(a, b)).unwrap(); model.extend(a..b); }
                    Step::Remove(a, b) => { set.remove(range(a, b)).unwrap(); model.retain(|f| !(a..b).contains(f)); }
                    Step::Take(n) => match set.take(n) {
                        Some(start) => for frame in start..start + n { prop_assert!(model.remove(&frame)); },
                        None => prop_assert!(!model.iter().any(|&f| (f..f + n).all(|g| model.contains(&g)))),
                    },
                }
                let frames: BTreeSet<u64> = set.ranges().iter().flat_map(|r| r.start..r.end).collect();
                prop_assert_eq!(&frames, &model);
                prop_assert_eq!(set.count(), model.len() as u64);
                for start in 0..60 {
                    let asked = range(start, start + 3);
                    prop_assert_eq!(set.contains(asked), (start..start + 3).all(|frame| model.contains(&frame)));
                }
                prop_assert!(set.ranges().windows(2).all(|w| w[0].end < w[1].start));
                prop_assert!(set.ranges().iter().all(|r| r.start < r.end));
            }
        }
    }
}
