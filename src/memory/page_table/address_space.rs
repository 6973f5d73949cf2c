//! What lies where: every part of the address space by name, and with the protection that follows from it.
//!
//! One list serves all that must agree: the page tables are made from it, the self-check holds them against it, and the
//! report of a page fault looks up its address in it.

use core::fmt;

use heapless::Vec;

use super::mapper::Protection;
use crate::memory::map::image::{Image, Stack};
use crate::memory::{FrameRange, MemoryMap};

/// What a part of the address space is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    NullPage,
    Code,
    Constants,
    Sealed,
    Data,
    /// The page below a stack: the main one, or the one of this number for exceptions.
    Guard(Option<u8>),
    Stack(Option<u8>),
    PageTables,
    Ram,
    /// Put there by Xen or the toolstack.
    Special,
    /// The window for pages of others.
    Window,
}

impl Place {
    /// What may be done there, unless `memory::protect` was told otherwise.
    pub(crate) const fn protection(self) -> Protection {
        match self {
            Self::NullPage | Self::Guard(_) => Protection::Absent,
            Self::Code => Protection::ReadExecute,
            Self::Constants | Self::Sealed | Self::PageTables => Protection::Read,
            Self::Data | Self::Stack(_) | Self::Ram | Self::Special | Self::Window => Protection::ReadWrite,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |number: &Option<u8>| match number {
            None => "main stack",
            Some(1) => "exception stack",
            Some(2) => "NMI stack",
            _ => "double fault stack",
        };
        match self {
            Self::NullPage => f.write_str("null page"),
            Self::Code => f.write_str("code"),
            Self::Constants => f.write_str("read-only data"),
            Self::Sealed => f.write_str("descriptor tables, read-only after boot"),
            Self::Data => f.write_str("data"),
            Self::Guard(number) => write!(f, "guard page below the {}: stack overflow", name(number)),
            Self::Stack(number) => f.write_str(name(number)),
            Self::PageTables => f.write_str("page tables, read-only after boot"),
            Self::Ram => f.write_str("heap, or other RAM"),
            Self::Special => f.write_str("special page of Xen's or the toolstack's"),
            Self::Window => f.write_str("window for shared pages"),
        }
    }
}

/// A part of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Region {
    pub(crate) frames: FrameRange,
    pub(crate) place: Place,
    pub(crate) protection: Protection,
}

impl Region {
    /// Whether another one begins where this ends, and is the same otherwise.
    fn continues_as(&self, next: &Self) -> bool {
        (self.frames.end, self.place, self.protection) == (next.frames.start, next.place, next.protection)
    }
}

/// The list has no room, or no memory, for more regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TooManyRegions;

/// Regions that boot can have: those of the memory map, and some for the image.
const CAPACITY: usize = 288;

/// The list as boot makes it: sorted, without overlaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout(Vec<Region, CAPACITY>);

impl Layout {
    /// Lays out a domain with the rings that the toolstack has made, but for its page tables. What comes first wins where
    /// parts overlap.
    pub(crate) fn new(
        image: &Image,
        map: &MemoryMap,
        rings: impl IntoIterator<Item = u64>,
    ) -> Result<Self, TooManyRegions> {
        let mut layout = Self::default();
        for (frames, place) in parts(image) {
            layout.add(frames, place)?;
        }
        for frame in rings {
            layout.add(FrameRange { start: frame, end: frame + 1 }, Place::Special)?;
        }
        layout.add(map.window, Place::Window)?;
        map.placed.ranges().iter().try_for_each(|&range| layout.add(range, Place::Special))?;
        // What the domain does not have is mapped too, for the day that it does: see the balloon.
        map.ram.ranges().iter().chain(&map.absent).try_for_each(|&range| layout.add(range, Place::Ram))?;
        Ok(layout)
    }

    /// Adds those frames of a range that are in no region yet.
    fn add(&mut self, range: FrameRange, place: Place) -> Result<(), TooManyRegions> {
        let mut start = range.start;
        let mut index = self.0.partition_point(|region| region.frames.end <= start);
        while start < range.end {
            let (next, after) = match self.0.get(index) {
                Some(region) => (region.frames.start.min(range.end), region.frames.end),
                None => (range.end, range.end),
            };
            if start < next {
                let region = Region { frames: FrameRange { start, end: next }, place, protection: place.protection() };
                self.0.insert(index, region).map_err(|_| TooManyRegions)?;
                index += 1;
            }
            index += 1;
            start = after;
        }
        Ok(())
    }

    /// Makes a part of a region the place of the page tables.
    pub(crate) fn place_tables(&mut self, range: FrameRange) -> Result<(), TooManyRegions> {
        let index = self.0.partition_point(|region| region.frames.end < range.end);
        let Some(region) = self.0.get_mut(index) else { return Ok(()) };
        let (before, after) = (
            Region { frames: FrameRange { start: region.frames.start, end: range.start }, ..*region },
            Region { frames: FrameRange { start: range.end, end: region.frames.end }, ..*region },
        );
        *region = Region { frames: range, place: Place::PageTables, protection: Place::PageTables.protection() };
        for (index, piece) in [(index + 1, after), (index, before)] {
            if !piece.frames.is_empty() {
                self.0.insert(index, piece).map_err(|_| TooManyRegions)?;
            }
        }
        Ok(())
    }

    /// The regions, lowest first.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.0
    }
}

/// What the image takes, and page 0; where parts overlap, the first is right.
fn parts(image: &Image) -> [(FrameRange, Place); 15] {
    const fn guard(stack: &Stack) -> FrameRange {
        FrameRange { start: stack.guard, end: stack.guard + 1 }
    }
    let [exceptions, nmi, double_fault] = &image.trap_stacks;
    [
        (FrameRange { start: 0, end: 1 }, Place::NullPage),
        (image.code, Place::Code),
        (image.constants, Place::Constants),
        (image.sealed, Place::Sealed),
        (guard(exceptions), Place::Guard(Some(1))),
        (exceptions.frames, Place::Stack(Some(1))),
        (guard(nmi), Place::Guard(Some(2))),
        (nmi.frames, Place::Stack(Some(2))),
        (guard(double_fault), Place::Guard(Some(3))),
        (double_fault.frames, Place::Stack(Some(3))),
        (guard(&image.main_stack), Place::Guard(None)),
        (image.main_stack.frames, Place::Stack(None)),
        (image.boot_tables, Place::Ram),
        (image.spare, Place::Ram),
        (image.all, Place::Data),
    ]
}

/// What lies in a frame, as far as the image alone tells.
#[cfg(any(target_os = "none", test))]
pub(super) fn place_in_image(image: &Image, frame: u64) -> Option<Place> {
    parts(image).into_iter().find(|(frames, _)| frames.contains(frame)).map(|(_, place)| place)
}

/// Hands out all regions in order, those in `range` changed: what lies across its ends is cut there, and neighbours that
/// do not differ any more become one.
pub(crate) fn replace(
    regions: &[Region],
    range: FrameRange,
    change: impl Fn(Region) -> Region,
    mut put: impl FnMut(Region),
) {
    let mut last: Option<Region> = None;
    for region in regions {
        let FrameRange { start, end } = region.frames;
        let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
        let inside = Region { frames: FrameRange { start: from, end: to }, ..*region };
        let pieces = [
            Region { frames: FrameRange { start, end: from }, ..*region },
            if from < to { change(inside) } else { inside },
            Region { frames: FrameRange { start: to, end }, ..*region },
        ];
        for piece in pieces.into_iter().filter(|piece| !piece.frames.is_empty()) {
            match &mut last {
                Some(last) if last.continues_as(&piece) => last.frames.end = piece.frames.end,
                _ => last.replace(piece).into_iter().for_each(&mut put),
            }
        }
    }
    last.into_iter().for_each(put);
}

/// The region that a frame is in.
pub(crate) fn find(regions: &[Region], frame: u64) -> Option<&Region> {
    let index = regions.partition_point(|region| region.frames.end <= frame);
    regions.get(index).filter(|region| region.frames.start <= frame)
}

/// What is to be mapped, lowest first: neighbours of the same protection are one, so that pages are as large as can be.
pub(crate) fn mappings(regions: &[Region]) -> impl Iterator<Item = (FrameRange, Protection)> + Clone + '_ {
    let mapped = regions.iter().filter(|region| region.protection != Protection::Absent);
    let mut rest = mapped.map(|region| (region.frames, region.protection)).peekable();
    core::iter::from_fn(move || {
        let (mut frames, protection) = rest.next()?;
        while let Some((next, _)) = rest.next_if(|(next, other)| next.start == frames.end && *other == protection) {
            frames.end = next.end;
        }
        Some((frames, protection))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> FrameRange {
        FrameRange { start, end }
    }

    #[test]
    fn a_guest_of_xls_is_laid_out() {
        let map = MemoryMap::for_test(crate::sim::xl_map(16));
        let mut layout = Layout::new(&Image::get(), &map, [0xfefff]).unwrap();
        layout.place_tables(range(1, 9)).unwrap();
        let place = |frame| find(layout.regions(), frame).map(|region| region.place);
        assert_eq!(place(0), Some(Place::NullPage));
        assert_eq!(place(8), Some(Place::PageTables));
        assert_eq!(place(9), Some(Place::Ram));
        assert_eq!(place(0x100), Some(Place::Code));
        assert_eq!(place(0x110), Some(Place::Data));
        assert_eq!(place(0x115), Some(Place::Sealed));
        assert_eq!(place(0x119), Some(Place::Guard(Some(2))));
        assert_eq!(place(0x11d), Some(Place::Guard(None)));
        assert_eq!(place(0x137), Some(Place::Stack(None)));
        assert_eq!(place(0x138), Some(Place::Ram));
        assert_eq!(place(0xfff), Some(Place::Ram));
        assert_eq!(place(0x1000), Some(Place::Window));
        assert_eq!(place(0x1200), None);
        assert_eq!(place(0xfefff), Some(Place::Special));
        assert_eq!(place(u64::MAX), None);
        // Before there is a list, the image alone is asked.
        for frame in 0..0x140 {
            let known = place_in_image(&Image::get(), frame);
            assert!(known.is_none() || place(frame) == known || place(frame) == Some(Place::PageTables), "{frame:#x}");
        }
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// The first region that claims a frame has it; replacing changes exactly the range; mappings cover what is
        /// mapped, with as few pieces as can be.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn agrees_with_a_model(
            parts in proptest::collection::vec((0_u64..60, 0_u64..20, 0_usize..4), 0..12),
            (change_start, change_length) in (0_u64..60, 1_u64..9),
            (region, offset, length) in (any::<prop::sample::Index>(), 0_u64..20, 1_u64..9),
        ) {
            let places = [Place::Code, Place::Ram, Place::Data, Place::NullPage];
            let (mut layout, mut model) = (Layout::default(), BTreeMap::new());
            for (start, length, place) in parts {
                layout.add(range(start, start + length), places[place]).unwrap();
                for frame in start..start + length {
                    model.entry(frame).or_insert(places[place]);
                }
            }
            if !layout.regions().is_empty() {
                // Tables are put into one region.
                let inside = layout.regions()[region.index(layout.regions().len())].frames;
                let start = (inside.start + offset).min(inside.end - 1);
                let tables = range(start, inside.end.min(start + length));
                layout.place_tables(tables).unwrap();
                model.extend((tables.start..tables.end).map(|frame| (frame, Place::PageTables)));
            }
            for frame in 0..90 {
                prop_assert_eq!(find(layout.regions(), frame).map(|region| region.place), model.get(&frame).copied());
            }
            let found: Vec<_> = mappings(layout.regions()).collect();
            let mut mapped = BTreeMap::new();
            for (frames, protection) in &found {
                mapped.extend((frames.start..frames.end).map(|frame| (frame, *protection)));
            }
            let expected = model.iter().map(|(frame, place)| (*frame, place.protection()));
            let expected = expected.filter(|(_, protection)| *protection != Protection::Absent).collect();
            prop_assert_eq!(mapped, expected);
            prop_assert!(found.windows(2).all(|w| w[0].0.end < w[1].0.start || w[0].1 != w[1].1));
            // A change changes its range, and undoing it leaves no trace.
            let changed = range(change_start, change_start + change_length);
            let apply = |regions: &[Region], protection: Option<Protection>| {
                let mut result = Vec::new();
                let change = |region: Region| {
                    Region { protection: protection.unwrap_or(region.place.protection()), ..region }
                };
                replace(regions, changed, change, |region| result.push(region));
                result
            };
            let merged = apply(layout.regions(), None);
            let after = apply(&merged, Some(Protection::Read));
            for frame in 0..90 {
                let now = find(&after, frame).map(|region| region.protection);
                let expected = model.get(&frame).map(|place| {
                    if changed.contains(frame) { Protection::Read } else { place.protection() }
                });
                prop_assert_eq!(now, expected);
            }
            prop_assert!(after.len() <= merged.len() + 2);
            prop_assert_eq!(apply(&after, None), merged);
        }
    }
}
