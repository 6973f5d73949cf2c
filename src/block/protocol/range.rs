//! Ranges of a disk, in sectors.

use super::{Geometry, SECTOR};

/// A range that a disk has: sectors of 512 bytes, at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sectors {
    first: u64,
    count: u64,
}

/// A range that a disk does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeError {
    /// Its position or length is not a multiple of the sector size, in bytes, or it is empty.
    Misaligned(u32),
    /// It does not end within the disk.
    OutOfRange,
}

impl Sectors {
    /// The sectors of a range in bytes.
    ///
    /// # Errors
    ///
    /// [`RangeError`].
    pub fn of_bytes(position: u64, length: u64, geometry: Geometry) -> Result<Self, RangeError> {
        let size = u64::from(geometry.sector_size());
        if length == 0 || !position.is_multiple_of(size) || !length.is_multiple_of(size) {
            return Err(RangeError::Misaligned(geometry.sector_size()));
        }
        let range = Self { first: position / SECTOR, count: length / SECTOR };
        if range.is_within(geometry) { Ok(range) } else { Err(RangeError::OutOfRange) }
    }

    /// Sectors as a request names them, if a disk has them.
    #[must_use]
    pub fn new(first: u64, count: u64, geometry: Geometry) -> Option<Self> {
        let range = Self { first, count };
        (count > 0 && range.is_within(geometry)).then_some(range)
    }

    fn is_within(self, geometry: Geometry) -> bool {
        self.first.checked_add(self.count).is_some_and(|end| end <= geometry.sectors())
    }

    /// The first sector.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.first
    }

    /// How many there are.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Whether two ranges have a sector in common.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        // Neither end overflows: a disk has both ranges.
        self.first < other.first + other.count && other.first < self.first + self.count
    }

    /// A part of the range: so many sectors behind so many others.
    ///
    /// # Panics
    ///
    /// If the range has not so many.
    #[must_use]
    pub fn part(self, skip: u64, count: u64) -> Self {
        assert!(skip <= self.count && count <= self.count - skip, "a part lies within its range");
        Self { first: self.first + skip, count }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RawGeometry;
    use super::*;

    fn disk(sectors: u64, sector_size: u64) -> Geometry {
        Geometry::new(RawGeometry { sectors, sector_size, physical_sector_size: None, info: 0 }).unwrap()
    }

    #[test]
    fn range_outside_or_unaligned_is_an_error() {
        let small = disk(16, 4096);
        assert_eq!(Sectors::of_bytes(0, 8192, small).map(|range| (range.first(), range.count())), Ok((0, 16)));
        for (position, length) in [(512, 4096), (0, 512), (0, 0), (4096, 0), (1, 1)] {
            assert_eq!(Sectors::of_bytes(position, length, small), Err(RangeError::Misaligned(4096)));
        }
        for (position, length) in [(8192, 4096), (0, 12_288), (u64::MAX - 4095, 4096), (4096, u64::MAX - 4095)] {
            assert_eq!(Sectors::of_bytes(position, length, small), Err(RangeError::OutOfRange));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..Default::default() })]

        #[test]
        fn ranges_overlap_as_sets_do(a in 0..20u64, b in 1..8u64, c in 0..20u64, d in 1..8u64) {
            let disk = disk(32, 512);
            let (one, other) = (Sectors::new(a, b, disk).unwrap(), Sectors::new(c, d, disk).unwrap());
            let common = (a..a + b).any(|sector| (c..c + d).contains(&sector));
            prop_assert_eq!(one.overlaps(other), common);
            prop_assert_eq!(other.overlaps(one), common);
        }

        #[test]
        fn any_range_is_within_or_refused(position in any::<u64>(), length in any::<u64>(), sectors in 0..1u64 << 40) {
            let disk = disk(sectors, 512);
            for (position, length) in [(position, length), (position & !511, length & !511)] {
                if let Ok(range) = Sectors::of_bytes(position, length, disk) {
                    prop_assert!(range.first() * 512 == position && range.count() * 512 == length);
                    prop_assert!(u128::from(position) + u128::from(length) <= u128::from(disk.bytes()));
                }
            }
        }
    }
}
