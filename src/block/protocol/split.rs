//! Transfers that are larger than a request.
//!
//! The data of a transfer begins at the start of its first page and fills each page but the last.

use super::{PAGE, SECTORS_PER_PAGE, Sectors, Segment};

/// A request's part of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The first page, counted from the transfer's.
    pub page: usize,
    /// How many pages, at least one.
    pub pages: usize,
    /// The sectors of the part.
    pub sectors: Sectors,
}

/// The part of a transfer that begins at a page and has at most `most` pages, of which there must be one. `None` behind the
/// last page.
#[must_use]
pub fn split(transfer: Sectors, page: usize, most: usize) -> Option<Part> {
    let skip = (page as u64).checked_mul(SECTORS_PER_PAGE)?;
    let left = transfer.count().checked_sub(skip).filter(|left| *left > 0)?;
    let count = left.min(most.max(1) as u64 * SECTORS_PER_PAGE);
    let pages = count.div_ceil(SECTORS_PER_PAGE) as usize;
    Some(Part { page, pages, sectors: transfer.part(skip, count) })
}

impl Part {
    /// The length in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.sectors.count() as usize * (PAGE / SECTORS_PER_PAGE as usize)
    }
}

/// The segments of a part, by the references of its pages.
pub fn segments(part: Part, references: impl Iterator<Item = u32>) -> impl Iterator<Item = Segment> {
    let mut left = part.sectors.count();
    references.take(part.pages).map(move |reference| {
        let sectors = left.min(SECTORS_PER_PAGE);
        left -= sectors;
        // A part has a sector in each of its pages.
        Segment { reference, first: 0, last: (sectors.max(1) - 1) as u8 }
    })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::{Geometry, RawGeometry};
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..Default::default() })]

        /// Whatever the limits are, and though they change in the middle, each sector is in one segment.
        #[test]
        fn parts_cover_a_transfer_once(first in 0..1000u64, count in 1..5000u64, limits in prop::collection::vec(1..600usize, 1..4)) {
            let raw = RawGeometry { sectors: 1 << 20, sector_size: 512, physical_sector_size: None, info: 0 };
            let transfer = Sectors::new(first, count, Geometry::new(raw).unwrap()).unwrap();
            let (mut page, mut sector, mut turn) = (0, first, 0);
            while let Some(part) = split(transfer, page, limits[turn % limits.len()]) {
                prop_assert_eq!(part.sectors.first(), sector);
                prop_assert!(part.pages >= 1 && part.pages <= limits[turn % limits.len()]);
                let segments: Vec<_> = segments(part, (page as u32)..).collect();
                prop_assert_eq!(segments.len(), part.pages);
                prop_assert_eq!(segments.iter().map(|segment| segment.sectors()).sum::<u64>(), part.sectors.count());
                for (index, segment) in segments.iter().enumerate() {
                    prop_assert_eq!(segment.reference as usize, page + index);
                    prop_assert!(segment.last <= 7 && (segment.last == 7 || index + 1 == segments.len()));
                }
                prop_assert_eq!(part.bytes() as u64, part.sectors.count() * 512);
                sector += part.sectors.count();
                page += part.pages;
                turn += 1;
            }
            prop_assert_eq!(sector, first + count);
        }
    }
}
