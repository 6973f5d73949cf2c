//! Unpopulated guest-physical space: where pages of Xen's and of other domains are placed.
//!
//! It is handed out from windows of 2 MiB, in holes that the memory map leaves, so that nothing is ever mapped over RAM,
//! and the lowest first, as a save of the domain walks up to the highest frame in use. Boot maps the first window, and
//! takes its first frame for the page of shared information. Another one is mapped, in one entry of the page tables, when
//! no window has room; it stays. In between nothing edits page tables: a frame with nothing behind it reads as ones.

use alloc::vec::Vec;
use core::fmt;

use crate::local;
use crate::local::Instance;
use crate::local::domain_local;
use crate::memory::TABLES;
use crate::memory::map::WINDOW;
use crate::memory::page_table::address_space::Place;
use crate::memory::{Error, FrameRange, MemoryMap, NoRoom};
use crate::sync::Mutex;

domain_local! {
    /// Unpopulated guest-physical space.
    pub(crate) static HOLES: Mutex<Holes>;
}

/// Frames of unpopulated space that follow each other, read-write and not executable.
///
/// The user removes what is placed there before dropping this, or leaks it: the frames go to the next user. A drop
/// outside of the hole's domain does nothing.
pub(crate) struct Hole(FrameRange, Instance);

impl Hole {
    /// Takes so many frames, the lowest that there are.
    ///
    /// # Errors
    ///
    /// [`Error::NoSpace`] for none, more than a window has, or if the memory map has no hole left;
    /// [`Error::OutOfMemory`] if there is none to map a window with; [`Error::Busy`] from the handler for that.
    pub(crate) fn new(count: u64) -> Result<Self, Error> {
        let state = local::current().ok_or(Error::NoSpace)?;
        if count == 0 || count > WINDOW {
            return Err(Error::NoSpace);
        }
        if let Some(frames) = HOLES.of(state).lock().take(count) {
            return Ok(Self(frames, state));
        }
        // The heap, and with it perhaps the application, is asked while nothing is locked.
        let known = HOLES.of(state).lock().windows.len();
        let mut list = Vec::new();
        list.try_reserve_exact(known + 1).map_err(|_| Error::OutOfMemory)?;
        loop {
            let window = HOLES.of(state).lock().next_window().ok_or(Error::NoSpace)?;
            let mut tables = TABLES.of(state).try_lock().ok_or(Error::Busy)?;
            let result = tables.add(window, Place::Window);
            drop(tables);
            let mut holes = HOLES.of(state).lock();
            match result {
                Ok(()) if list.capacity() > holes.windows.len() => {
                    holes.adopt(window, list);
                    return holes.take(count).map(|frames| Self(frames, state)).ok_or(Error::NoSpace);
                }
                // Somebody else has added one meanwhile, in a handler: this one is mapped, and not used.
                Ok(()) => return Err(Error::Busy),
                // Something lies there although the map does not say so: the console of another toolstack.
                Err(Error::Reserved) => holes.skip(window),
                Err(error) => return Err(error),
            }
        }
    }

    /// The frames.
    pub(crate) const fn frames(&self) -> FrameRange {
        self.0
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        if let Some(state) = self.1.if_running() {
            HOLES.of(state).lock().give(self.0);
        }
    }
}

/// Words of a bit for each frame of a window.
const WORDS: usize = WINDOW as usize / 64;

/// A window.
struct Window {
    start: u64,
    /// A bit for each frame that is free.
    free: [u64; WORDS],
}

/// All windows, and where more can be.
pub(crate) struct Holes {
    windows: Vec<Window>,
    /// What is left of the holes, in whole windows, lowest first.
    rest: heapless::Vec<FrameRange, { crate::memory::map::HOLES }>,
}

impl fmt::Debug for Holes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holes").field("windows", &self.windows.len()).finish()
    }
}

impl Holes {
    /// The first window, which boot has mapped, without its first frame.
    pub(crate) fn new(map: &MemoryMap) -> Result<Self, NoRoom> {
        let mut holes = Self { windows: Vec::new(), rest: map.holes.clone() };
        let mut list = Vec::new();
        list.try_reserve_exact(1).map_err(|_| NoRoom)?;
        holes.adopt(map.window, list);
        let shared_info = holes.take(1);
        debug_assert_eq!(shared_info.map(|frames| frames.start), Some(map.window.start));
        Ok(holes)
    }

    /// Takes so many frames, the lowest that a window has in one piece.
    fn take(&mut self, count: u64) -> Option<FrameRange> {
        let found = self.windows.iter_mut().find_map(|window| Some((window.find(count)?, window)));
        let (start, window) = found?;
        let frames = FrameRange { start: window.start + start, end: window.start + start + count };
        window.mark(frames, false);
        Some(frames)
    }

    fn give(&mut self, frames: FrameRange) {
        let window = self.windows.iter_mut().find(|window| window.frames().contains(frames.start));
        if let Some(window) = window {
            window.mark(frames, true);
        }
    }

    /// Where another window can be.
    fn next_window(&self) -> Option<FrameRange> {
        self.rest.first().map(|hole| FrameRange { start: hole.start, end: hole.start + WINDOW })
    }

    /// Gives up a place for a window.
    fn skip(&mut self, window: FrameRange) {
        if let Some(hole) = self.rest.first_mut().filter(|hole| hole.start == window.start) {
            hole.start = window.end;
            if hole.is_empty() {
                self.rest.remove(0);
            }
        }
    }

    /// Adds a window; they come lowest first. The list is empty, and has room for it and all others.
    fn adopt(&mut self, window: FrameRange, mut list: Vec<Window>) {
        self.skip(window);
        list.append(&mut self.windows);
        list.push(Window { start: window.start, free: [u64::MAX; WORDS] });
        self.windows = list;
    }
}

impl Window {
    const fn frames(&self) -> FrameRange {
        FrameRange { start: self.start, end: self.start + WINDOW }
    }

    /// The first of so many free frames that follow each other, counted from the start of the window.
    fn find(&self, count: u64) -> Option<u64> {
        let mut start = 0;
        loop {
            let first = self.next(start, true)?;
            let end = self.next(first, false).unwrap_or(WINDOW);
            if end - first >= count {
                return Some(first);
            }
            start = end;
        }
    }

    /// The first frame that is free, or that is not, from one on.
    fn next(&self, from: u64, free: bool) -> Option<u64> {
        let mut at = from;
        while at < WINDOW {
            let word = self.free[at as usize / 64];
            let rest = if free { word } else { !word } >> (at % 64);
            if rest != 0 {
                return Some(at + u64::from(rest.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn mark(&mut self, frames: FrameRange, free: bool) {
        for frame in frames.start - self.start..frames.end - self.start {
            let bit = 1 << (frame % 64);
            match free {
                true => self.free[frame as usize / 64] |= bit,
                false => self.free[frame as usize / 64] &= !bit,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;

    use crate::memory::self_check;
    use crate::sim::{Guest, xl_map};

    fn run(guest: Guest, main: impl FnOnce()) {
        guest.run(async |_| main()).powered_off();
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a minute to boot a domain, and nothing here is unsafe")]
    fn the_lowest_frames_come_first_and_come_again() {
        run(Guest::new(), || {
            // Above 16 MiB of RAM, and the page of shared information.
            let holes: Vec<_> = [1, 3, 2].into_iter().map(|count| Hole::new(count).unwrap().frames()).collect();
            assert!(holes.iter().all(|frames| frames.start == 0x1001), "each is given back at once");
            let (one, three, two) = (Hole::new(1).unwrap(), Hole::new(3).unwrap(), Hole::new(2).unwrap());
            assert_eq!(three.frames(), FrameRange { start: 0x1002, end: 0x1005 });
            assert_eq!(two.frames().start, 0x1005);
            drop(three);
            assert_eq!(Hole::new(4).unwrap().frames().start, 0x1007);
            assert_eq!(Hole::new(2).unwrap().frames().start, 0x1002);
            drop((one, two));
            assert_eq!(Hole::new(511).unwrap().frames(), FrameRange { start: 0x1001, end: 0x1200 });
            for count in [0, 513, u64::MAX] {
                assert_eq!(Hole::new(count).err(), Some(Error::NoSpace));
            }
        });
        assert_eq!(Hole::new(1).err(), Some(Error::NoSpace), "outside of a domain");
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes, as each window is looked at; the same code runs in the other tests")]
    fn windows_are_added_in_holes_of_the_map_alone() {
        const MORE: usize = 40;
        // In large ones there is little room below 4 GiB.
        for mib in [16, 6144] {
            run(Guest::new().memory_mib(mib, mib), move || {
                let before = self_check().unwrap();
                let again: BTreeSet<_> = (0..MORE).map(|_| Hole::new(512).unwrap().frames().start).collect();
                assert_eq!(again.len(), 1, "each is given back at once, so one more window is enough");
                assert_eq!(self_check().unwrap().pages, before.pages + 1);
                let all: Vec<_> = (0..MORE).map(|_| Hole::new(512).unwrap()).collect();
                assert_eq!(self_check().unwrap().pages, before.pages + MORE as u64);
                let frames: Vec<_> = all.iter().map(Hole::frames).collect();
                assert!(frames.windows(2).all(|two| two[0].end <= two[1].start), "{frames:x?}");
                for (address, size, _) in xl_map(mib) {
                    let taken = FrameRange::touching(address, size);
                    assert!(frames.iter().all(|frames| !frames.overlaps(taken)), "over {taken:x?}");
                }
                let local_apic = FrameRange { start: 0xfee00, end: 0xfee01 };
                assert!(frames.iter().all(|frames| !frames.overlaps(local_apic)));
                // The first window has had room all the time.
                assert!(Hole::new(511).unwrap().frames().end < frames[0].start + 512);
            });
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a minute to boot a domain, and nothing here is unsafe")]
    fn a_map_without_another_hole_is_an_error() {
        // One window.
        let map = [(0, 3 << 20, 1), (6 << 20, u64::MAX, 2)];
        run(Guest::new().memory_map(&map), || {
            let one = Hole::new(511).unwrap();
            assert_eq!(Hole::new(1).err(), Some(Error::NoSpace));
            drop(one);
            assert!(Hole::new(1).is_ok());
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a minute to boot a domain, and nothing here is unsafe")]
    fn a_place_that_is_taken_although_the_map_does_not_say_so_is_passed_over() {
        run(Guest::new(), || {
            let unknown = FrameRange { start: 0x1200, end: 0x1400 };
            TABLES.of(local::current().unwrap()).lock().add(unknown, Place::Special).unwrap();
            assert_eq!(Hole::new(512).unwrap().frames().start, 0x1400);
            assert!(self_check().is_ok());
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a minute to boot a domain, and nothing here is unsafe")]
    fn random_operations_agree_with_a_model() {
        run(Guest::new(), || {
            let (mut held, mut taken, mut number) = (Vec::new(), BTreeSet::new(), 1_u64);
            for _ in 0..if cfg!(miri) { 20 } else { 20_000 } {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let random = number >> 33;
                if random % 5 < 2 && !held.is_empty() {
                    let hole: Hole = held.swap_remove(random as usize / 5 % held.len());
                    (hole.frames().start..hole.frames().end).for_each(|frame| assert!(taken.remove(&frame)));
                    continue;
                }
                if taken.len() > 900 {
                    held.clear();
                    taken.clear();
                }
                let count = random / 5 % 30 + 1;
                let hole = Hole::new(count).unwrap();
                let FrameRange { start, end } = hole.frames();
                assert_eq!(end - start, count);
                // It is the lowest: in the windows below, no so many are free.
                let fits = |first: u64| {
                    first / 512 == (first + count - 1) / 512 && (first..first + count).all(|f| !taken.contains(&f))
                };
                assert_eq!((0x1001..start).find(|&first| fits(first)), None);
                assert!((start..end).all(|frame| taken.insert(frame)));
                held.push(hole);
            }
        });
    }
}
