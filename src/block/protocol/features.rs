//! What a back end offers, as it publishes it.

use super::wire::{INDIRECT_PAGES, INDIRECT_SEGMENTS};
use super::{Geometry, SECTOR, SEGMENTS, Sectors};

/// What the back end has published: numbers, not yet checked. A node that is not there is the default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawFeatures {
    /// `feature-persistent`.
    pub persistent: bool,
    /// `feature-flush-cache`.
    pub flush: bool,
    /// `feature-barrier`.
    pub barrier: bool,
    /// `feature-discard`.
    pub discard: bool,
    /// `discard-granularity`, in bytes; 0 if it is not there.
    pub discard_granularity: u64,
    /// `discard-alignment`, in bytes.
    pub discard_alignment: u64,
    /// `discard-secure`.
    pub discard_secure: bool,
    /// `feature-max-indirect-segments`.
    pub max_indirect_segments: u64,
}

/// Where discards begin and end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscardLimits {
    /// Bytes of which a discard is a multiple.
    pub granularity: u64,
    /// The position of the first such unit, in bytes, less than the granularity.
    pub alignment: u64,
    /// Whether a secure discard is offered.
    pub secure: bool,
}

impl DiscardLimits {
    /// Whether these are whole units.
    #[must_use]
    pub const fn accepts(self, sectors: Sectors) -> bool {
        let (position, length) = (sectors.first() * SECTOR, sectors.count() * SECTOR);
        position >= self.alignment
            && (position - self.alignment).is_multiple_of(self.granularity)
            && length.is_multiple_of(self.granularity)
    }
}

/// What a back end offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// It keeps granted pages mapped.
    pub persistent: bool,
    /// It has a flush.
    pub flush: bool,
    /// It has a barrier.
    pub barrier: bool,
    /// It discards, with these limits.
    pub discard: Option<DiscardLimits>,
    /// Segments of an indirect request, at most 4096. None without indirect requests.
    pub indirect_segments: u16,
}

impl Features {
    /// Takes what a back end has published. Limits of a discard that no disk has switch it off: there a discard that is carried
    /// out in part could not be told from one that is not.
    #[must_use]
    pub fn new(raw: RawFeatures, geometry: Geometry) -> Self {
        let sector_size = u64::from(geometry.sector_size());
        let granularity = if raw.discard_granularity == 0 { sector_size } else { raw.discard_granularity };
        let sensible = granularity.is_multiple_of(sector_size) && raw.discard_alignment.is_multiple_of(sector_size);
        let discard = (raw.discard && sensible).then_some(DiscardLimits {
            granularity,
            alignment: raw.discard_alignment % granularity,
            secure: raw.discard_secure,
        });
        let most = (INDIRECT_PAGES * INDIRECT_SEGMENTS) as u64;
        Self {
            persistent: raw.persistent,
            flush: raw.flush,
            barrier: raw.barrier,
            discard,
            indirect_segments: raw.max_indirect_segments.min(most) as u16,
        }
    }

    /// Segments of a request at most, at least 11.
    #[must_use]
    pub const fn segments(self) -> usize {
        if self.indirect_segments as usize > SEGMENTS { self.indirect_segments as usize } else { SEGMENTS }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::RawGeometry;
    use super::*;

    fn disk(sector_size: u64) -> Geometry {
        Geometry::new(RawGeometry { sectors: 1 << 20, sector_size, physical_sector_size: None, info: 0 }).unwrap()
    }

    #[test]
    fn discard_covers_whole_units_only() {
        let raw =
            RawFeatures { discard: true, discard_granularity: 4096, discard_alignment: 1024, ..RawFeatures::default() };
        let limits = Features::new(raw, disk(512)).discard.unwrap();
        let accepts = |position, length| limits.accepts(Sectors::of_bytes(position, length, disk(512)).unwrap());
        assert!(accepts(1024, 4096) && accepts(1024 + 8192, 8192));
        assert!(!accepts(0, 4096) && !accepts(512, 4096) && !accepts(1024, 512) && !accepts(1024, 4608));
    }

    #[test]
    fn senseless_discard_limits_switch_it_off() {
        for (granularity, alignment) in [(513, 0), (512, 100), (2048, 0)] {
            let raw = RawFeatures {
                discard: true,
                discard_granularity: granularity,
                discard_alignment: alignment,
                ..RawFeatures::default()
            };
            let sector_size = if granularity == 2048 { 4096 } else { 512 };
            assert_eq!(Features::new(raw, disk(sector_size)).discard, None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..Default::default() })]

        #[test]
        fn any_numbers_give_usable_limits(granularity in any::<u64>(), alignment in any::<u64>(), segments in any::<u64>()) {
            let raw = RawFeatures {
                discard: true,
                discard_granularity: granularity,
                discard_alignment: alignment,
                max_indirect_segments: segments,
                ..RawFeatures::default()
            };
            let features = Features::new(raw, disk(512));
            prop_assert!((SEGMENTS..=4096).contains(&features.segments()));
            if let Some(limits) = features.discard {
                prop_assert!(limits.alignment < limits.granularity);
                let _ = limits.accepts(Sectors::of_bytes(512, 512, disk(512)).unwrap());
            }
        }
    }
}
