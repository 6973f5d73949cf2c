//! The memory map of the domain: RAM, what is placed elsewhere, and what of the RAM is free.

pub(super) mod frame_set;
pub(super) mod image;

use core::fmt;

use crate::abi::errno::Errno;
use crate::abi::memory::{E820_RAM, E820Entry, MEMORY_MAP_ENTRIES};
use crate::abi::start_info::MemmapTableEntry;
use crate::hypercall;
use crate::memory::map::frame_set::{FrameRange, Frames, TooManyRanges};

/// The local APIC's page, which no map mentions.
const LOCAL_APIC: FrameRange = FrameRange { start: 0xfee00, end: 0xfee01 };

/// Frames in the window of unpopulated space: 2 MiB, so that Xen need not split a large page of RAM for it.
pub(crate) const WINDOW: u64 = 512;

/// Holes that are known, the lowest ones; a map of `xl`'s has three that are large enough.
pub(super) const HOLES: usize = 8;

/// No frame from this on is looked at: page tables of four levels map 48 bits, of which no host populates more than 46.
pub(crate) const HIGHEST_FRAME: u64 = 1 << (46 - 12);

/// Why there is no usable memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MapError {
    /// The start info holds none, and Xen refused the hypercall.
    Refused(Errno),
    /// It has more entries than any Xen makes.
    TooLong,
    /// It names no RAM.
    NoRam,
    /// There is no hole for what Xen shares.
    NoHole,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "Xen refused the memory map: {errno}"),
            Self::TooLong => write!(f, "the memory map has more than {MEMORY_MAP_ENTRIES} entries"),
            Self::NoRam => f.write_str("the memory map names no RAM"),
            Self::NoHole => f.write_str("the memory map leaves no hole for shared pages"),
        }
    }
}

/// What the map says, in frames.
#[derive(Debug)]
pub(crate) struct MemoryMap {
    /// Usable RAM, in whole frames.
    pub(crate) ram: Frames,
    /// RAM of the map that Xen has: what boot gave back. A surplus is in one piece, or in two around 4 GiB.
    pub(crate) absent: heapless::Vec<FrameRange, HOLES>,
    /// Everything else that the map mentions: special pages, ACPI tables. Never RAM, even where entries overlap.
    pub(crate) placed: Frames,
    /// Unpopulated space for pages of others.
    pub(crate) window: FrameRange,
    /// Where there is more of it: whole windows, lowest first.
    pub(crate) holes: heapless::Vec<FrameRange, HOLES>,
}

impl MemoryMap {
    /// Takes the map of the start info, or asks Xen where the start info has none (version 0).
    pub(crate) fn read(start_info: &[MemmapTableEntry]) -> Result<Self, MapError> {
        if start_info.len() > MEMORY_MAP_ENTRIES {
            return Err(MapError::TooLong);
        }
        if !start_info.is_empty() {
            return Self::new(start_info.iter().map(|entry| (entry.addr, entry.size, entry.ty)));
        }
        let mut entries = [E820Entry::default(); MEMORY_MAP_ENTRIES + 1];
        let count = hypercall::memory_map(&mut entries).map_err(MapError::Refused)?;
        // Xen stores what fits and does not say that there was more.
        if count == entries.len() {
            return Err(MapError::TooLong);
        }
        Self::new(entries[..count].iter().map(|entry| (entry.addr, entry.size, entry.kind)))
    }

    /// Sorts entries of address, size in bytes, and type into frames.
    fn new(entries: impl Iterator<Item = (u64, u64, u32)>) -> Result<Self, MapError> {
        let (mut ram, mut placed, mut mentioned) = (Frames::new(), Frames::new(), Frames::new());
        let too_long = |TooManyRanges| MapError::TooLong;
        for (address, size, kind) in entries {
            let touched = FrameRange::touching(address, size).below(HIGHEST_FRAME);
            mentioned.insert(touched).map_err(too_long)?;
            match kind {
                E820_RAM => ram.insert(FrameRange::inside(address, size).below(HIGHEST_FRAME)),
                _ => placed.insert(touched),
            }
            .map_err(too_long)?;
        }
        ram.remove_all(&placed).map_err(too_long)?;
        if ram.count() == 0 {
            return Err(MapError::NoRam);
        }
        let mut holes = find_holes(&mentioned).map_err(too_long)?;
        let first = holes.first_mut().ok_or(MapError::NoHole)?;
        let window = FrameRange { start: first.start, end: first.start + WINDOW };
        first.start = window.end;
        holes.retain(|hole| !hole.is_empty());
        Ok(Self { ram, absent: heapless::Vec::new(), placed, window, holes })
    }
}

/// The lowest holes, as far as there is room for windows in them: a save of the domain walks up to the highest frame in use.
fn find_holes(mentioned: &Frames) -> Result<heapless::Vec<FrameRange, HOLES>, TooManyRanges> {
    let mut holes = Frames::new();
    holes.insert(FrameRange { start: WINDOW, end: HIGHEST_FRAME })?;
    holes.remove_all(mentioned)?;
    holes.remove(LOCAL_APIC)?;
    let windows =
        |hole: &FrameRange| FrameRange { start: hole.start.next_multiple_of(WINDOW), end: hole.end / WINDOW * WINDOW };
    Ok(holes.ranges().iter().map(windows).filter(|hole| !hole.is_empty()).take(HOLES).collect())
}

#[cfg(test)]
impl MemoryMap {
    /// A map for the tests of other modules.
    pub(crate) fn for_test(entries: std::vec::Vec<(u64, u64, u32)>) -> Self {
        Self::new(entries.into_iter()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::xl_map;

    const MIB: u64 = 1 << 20;

    #[test]
    fn maps_of_real_guests() {
        for (mib, window) in [(2, 0x200), (16, 0x1000), (512, 0x20000), (6144, 0xfc200)] {
            let map = MemoryMap::new(xl_map(mib).into_iter()).unwrap();
            assert_eq!(map.ram.count(), mib * 256);
            assert_eq!(map.placed.count(), 8 + 9);
            assert_eq!(map.window, FrameRange { start: window, end: window + WINDOW }, "{mib} MiB");
        }
    }

    #[test]
    fn reserved_wins_over_ram() {
        let map = MemoryMap::new([(0, 16 * MIB, 1), (0x1800, 0x1000, 2)].into_iter()).unwrap();
        assert_eq!(map.ram.count(), 16 * 256 - 2);
        assert_eq!(map.ram.ranges()[0], FrameRange { start: 0, end: 1 });
    }

    #[test]
    fn useless_maps_are_errors() {
        assert_eq!(MemoryMap::new([(0x800, 0x1000, 1)].into_iter()).unwrap_err(), MapError::NoRam);
        assert_eq!(MemoryMap::new([(0, u64::MAX, 1)].into_iter()).unwrap_err(), MapError::NoHole);
    }

    #[test]
    fn a_frame_that_ram_touches_is_no_hole() {
        let map = MemoryMap::new([(0, 2 * MIB + 1, 1)].into_iter()).unwrap();
        assert_eq!(map.ram.count(), 512);
        assert_eq!(map.window.start, 1024);
    }

    #[test]
    #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
    fn a_map_in_too_many_pieces_is_refused() {
        let pieces = |count| (0..count).map(|i| (i * 0x4000, 0x2000, 1));
        assert_eq!(MemoryMap::new(pieces(128)).unwrap().ram.count(), 256);
        assert_eq!(MemoryMap::new(pieces(400)).unwrap_err(), MapError::TooLong);
    }
}
