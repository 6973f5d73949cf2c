//! The table that Xen reads: its pages, placed as they are needed, and what is written to its entries.
//!
//! An entry is given to the peer by its flags: they are written last, when the rest of it and the page that it names are as
//! the peer may see them. It is taken back by a compare-exchange of the flags, which fails if Xen has set READING or WRITING
//! meanwhile: then the peer has the page mapped, or is copying, and may use it until it says that it has done:
//!
//! | this domain | Xen, for the peer |
//! |---|---|
//! | 1. reads flags | 1. exchanges flags for flags with READING, if they permit the access |
//! | 2. exchanges what was read, if neither bit was in it, for 0 | 2. maps the page, or copies |
//! | | 3. clears READING when the last mapping is gone |
//!
//! Both exchanges are of one word, so one of them comes first. If ours does, Xen's fails and finds no permission. If Xen's
//! does, ours fails. The word is that of the flags and the domain, as for Xen: what the entry says of them changes at once.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::ErrorKind;
use crate::abi::errno::Errno;
use crate::abi::grant_table::{ENTRIES_PER_FRAME, ENTRY_FLAGS, ENTRY_FRAME, ENTRY_SIZE, Flags, RESERVED_ENTRIES};
use crate::abi::xen::DomainId;
use crate::memory::unpopulated::Hole;
use crate::shared::{SharedPage, SharedWord};
use crate::{arch, hypercall, memory};

/// What an entry permits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit {
    pub(super) peer: DomainId,
    /// The page.
    pub(super) frame: u32,
    pub(super) read_only: bool,
}

/// The place of an entry. Pages of the table stay where they are as long as the domain runs, also after a resume.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryPlace {
    page: SharedPage,
    pub(super) reference: u32,
    at: u16,
}

impl EntryPlace {
    /// The word of flags and domain.
    #[inline]
    pub(super) fn word(self) -> SharedWord<'static, u32> {
        self.page.u32(usize::from(self.at) + ENTRY_FLAGS)
    }
}

/// The pages of the table that are placed, and how many there may be.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) pages: Vec<SharedPage>,
    /// Where each page is placed.
    frames: Vec<u64>,
    most: Option<u32>,
}

impl Table {
    pub(super) const fn new() -> Self {
        Self { pages: Vec::new(), frames: Vec::new(), most: None }
    }

    /// How many pages are placed.
    pub(super) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// How many pages there may be, as far as Xen was asked.
    pub(super) fn known_most(&self) -> u32 {
        self.most.unwrap_or(0)
    }

    /// How many pages there may be. Xen is asked once.
    pub(super) fn most(&mut self) -> Result<u32, ErrorKind> {
        if let Some(most) = self.most {
            return Ok(most);
        }
        let (_, most) = hypercall::grant_table_size().map_err(ErrorKind::Refused)?;
        // References are numbers of 32 bits.
        let most = most.min(u32::MAX / ENTRIES_PER_FRAME);
        self.most = Some(most);
        Ok(most)
    }

    /// Places one more page: the lowest that is not placed, so that nothing is left half done if Xen refuses another one.
    pub(super) fn grow(&mut self) -> Result<(), ErrorKind> {
        self.pages.try_reserve(1).map_err(|_| memory::Error::OutOfMemory)?;
        self.frames.try_reserve(1).map_err(|_| memory::Error::OutOfMemory)?;
        let hole = Hole::new(1)?;
        let frame = hole.frames().start;
        // SAFETY: the frame is a hole, which nothing else uses: nothing lies there.
        unsafe { hypercall::grant_table_map(self.pages(), frame) }.map_err(ErrorKind::Refused)?;
        // It stays there for ever.
        core::mem::forget(hole);
        let page = NonNull::new(arch::phys(frame << 12)).ok_or(ErrorKind::BadAddress)?;
        // SAFETY: the page was just placed, in a hole that is mapped read-write and given up for it; nothing else accesses it.
        self.pages.push(unsafe { SharedPage::new(page, 1) });
        self.frames.push(frame);
        Ok(())
    }

    /// Places all pages again, after a resume: the last first, so that Xen's table grows once. No entry permits anything.
    pub(super) fn resume(&mut self) -> Result<(), Errno> {
        // Another Xen, with another limit: who waits is judged by it.
        self.most = None;
        let _ = self.most();
        (0..self.pages()).zip(&self.frames).rev().try_for_each(|(index, &frame)| {
            // SAFETY: the frame was given up for this page, and nothing lies there now.
            unsafe { hypercall::grant_table_map(index, frame) }
        })
    }

    /// The page of an entry, and the entry's offset in it.
    fn entry(&self, reference: u32) -> Option<(SharedPage, usize)> {
        let page = *self.pages.get((reference / ENTRIES_PER_FRAME) as usize)?;
        Some((page, (reference % ENTRIES_PER_FRAME) as usize * ENTRY_SIZE))
    }

    /// The place of an entry, for who switches its permission.
    pub(super) fn place(&self, reference: u32) -> Option<EntryPlace> {
        let (page, at) = self.entry(reference)?;
        Some(EntryPlace { page, reference, at: at as u16 })
    }

    /// Whether an entry of a page that was just placed is there to be used. The first ones are the toolstack's; of the
    /// others some may still be what a boot loader has left in use.
    pub(super) fn is_usable(&self, reference: u32) -> bool {
        let is_clear =
            |(page, at): (SharedPage, usize)| flags(page.u32(at + ENTRY_FLAGS).load(Ordering::Relaxed)).is_empty();
        reference >= RESERVED_ENTRIES && self.entry(reference).is_some_and(is_clear)
    }

    /// Lets the peer access a page. What was written to the page before is there when the peer looks.
    pub(super) fn permit(&self, reference: u32, permit: Permit) {
        let Some((page, at)) = self.entry(reference) else { return };
        page.u32(at + ENTRY_FRAME).store(permit.frame, Ordering::Relaxed);
        page.u32(at + ENTRY_FLAGS).store(permission(permit.peer, permit.read_only), Ordering::Release);
    }

    /// Takes the access back, unless the page is in use by the peer. Says whether it is taken back: what the peer wrote is
    /// there then, and no more comes.
    #[must_use = "a page that the peer still has in use must not be used for anything else"]
    pub(super) fn end(&self, reference: u32) -> bool {
        let Some((page, at)) = self.entry(reference) else { return true };
        // Asked for twice, so that the simulated Xen can come between.
        let word = || page.u32(at + ENTRY_FLAGS);
        let seen = word().load(Ordering::Relaxed);
        if flags(seen).intersects(Flags::READING | Flags::WRITING) {
            return false;
        }
        // Both ways: what this domain did to the page comes before, what it does with the page now comes after. If the flags
        // are not what they were, Xen has set a bit meanwhile: a peer that maps and unmaps without end keeps nobody here.
        word().compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// The word of flags and domain that lets a peer access a page.
pub(super) fn permission(peer: DomainId, read_only: bool) -> u32 {
    let mut flags = Flags::PERMIT_ACCESS;
    flags.set(Flags::READ_ONLY, read_only);
    u32::from(peer.0) << 16 | u32::from(flags.bits())
}

/// The flags in the first word of an entry.
const fn flags(word: u32) -> Flags {
    Flags::from_bits_retain(word as u16)
}

/// A frame's number as version 1 of the table has it: 32 bits, which is 16 TiB of memory.
pub(super) fn frame_number(frame: u64) -> Result<u32, ErrorKind> {
    u32::try_from(frame).map_err(|_| ErrorKind::FrameTooHigh)
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU8, AtomicU32};
    use core::time::Duration;
    use std::boxed::Box;
    use std::sync::Arc;
    use std::vec;

    use super::*;
    use crate::abi::memory::ADD_TO_PHYSMAP;
    use crate::abi::xen::Hypercall;
    use crate::gnttab::GRANTS;
    use crate::gnttab::{Granted, ReadOnly, ReadWrite, stat};

    use crate::sim::access::script;
    use crate::sim::{Guest, Outside, outside};
    use crate::time::sleep;

    const PEER: u16 = 3;

    fn run(guest: Guest, main: impl AsyncFnOnce()) {
        let report = guest.run(async |_| main().await).powered_off();
        assert!(report.granted.is_empty());
    }

    /// What a peer does at a moment, and whether it has the page mapped then.
    #[derive(Clone, Default)]
    struct Peer(Arc<AtomicU8>);

    impl Peer {
        fn map(&self, number: u32, writable: bool) -> Box<dyn FnOnce(&mut Outside<'_>) + Send> {
            let Self(mapped) = self.clone();
            Box::new(move |peer| {
                let result = peer.map(PEER, number, writable);
                mapped.store(u8::from(result.is_ok()), Ordering::Relaxed);
            })
        }

        fn unmap(&self, number: u32, writable: bool) -> Box<dyn FnOnce(&mut Outside<'_>) + Send> {
            let Self(mapped) = self.clone();
            Box::new(move |peer| {
                if mapped.swap(0, Ordering::Relaxed) == 1 {
                    peer.unmap(PEER, number, writable);
                }
            })
        }

        fn has_mapped(&self) -> bool {
            self.0.load(Ordering::Relaxed) == 1
        }
    }

    #[test]
    fn no_step_of_a_peers_gets_between_the_look_at_an_entry_and_its_end() {
        // The load is number 0, the exchange number 1, and what comes as number 2 is behind both.
        let places = (0..3).flat_map(|map| (map..3).map(move |unmap| (map, unmap)));
        run(Guest::new(), async || {
            let choices = places.flat_map(|places| [(places, false), (places, true)]);
            // Miri has a third of them.
            for ((map, unmap), writable) in choices.step_by(if cfg!(miri) { 3 } else { 1 }) {
                let granted = Granted::<ReadWrite>::try_new(DomainId(PEER), 1).unwrap();
                let number = granted.references().next().unwrap().0;
                let peer = Peer::default();
                script::begin(vec![(map, peer.map(number, writable)), (unmap, peer.unmap(number, writable))]);
                let result = granted.end();
                let (accesses, later) = script::end();
                // The exchange is not tried if the bit is seen before.
                let seen = map == 0 && unmap > 0;
                assert_eq!(accesses, if seen { 1 } else { 2 }, "{map} {unmap}");
                assert_eq!(result.is_err(), peer.has_mapped(), "{map} {unmap}");
                let ended = result.is_ok();
                later.into_iter().for_each(|(_, act)| outside(act));
                assert!(!ended || !peer.has_mapped(), "mapped after the end: {map} {unmap}");
                drop(result);
                outside(peer.unmap(number, writable));
                sleep(Duration::from_secs(1)).await;
                assert_eq!((stat().deferred, stat().in_use), (0, 0));
            }
        });
    }

    #[test]
    fn a_peer_that_maps_again_while_it_is_looked_at_keeps_the_page() {
        let (mut kept, mut too_late) = (0, 0);
        run(Guest::new(), async || {
            for place in (0..).step_by(if cfg!(miri) { 2 } else { 1 }) {
                let granted = Granted::<ReadOnly>::try_new(DomainId(PEER), 1).unwrap();
                let number = granted.references().next().unwrap().0;
                let peer = Peer::default();
                outside(peer.map(number, false));
                drop(granted);
                assert_eq!(stat().deferred, 1);
                // It lets go, and takes again at some place of the next look.
                outside(peer.unmap(number, false));
                script::begin(vec![(place, peer.map(number, false))]);
                sleep(Duration::from_secs(1)).await;
                let (_, later) = script::end();
                assert_eq!(stat().deferred, u32::from(peer.has_mapped()), "{place}");
                *if peer.has_mapped() { &mut kept } else { &mut too_late } += 1;
                outside(peer.unmap(number, false));
                sleep(Duration::from_secs(1)).await;
                assert_eq!((stat().deferred, stat().in_use), (0, 0));
                if !later.is_empty() {
                    break;
                }
            }
        });
        assert!(
            kept >= if cfg!(miri) { 1 } else { 2 } && too_late > 0,
            "before the look at the entry, and before the exchange: {kept}, {too_late}"
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "a minute: it grants hundreds of pages; the same code runs in the other tests")]
    fn what_a_boot_loader_has_left_in_use_stays_as_it_is() {
        run(Guest::new().backed_mib(8).grant_frames(1), async || {
            let hole = Hole::new(1).unwrap();
            let first = hole.frames().start;
            // SAFETY: the hole is this test's.
            unsafe { hypercall::grant_table_map(0, first) }.unwrap();
            // SAFETY: the page is aligned, and accessed by this type only.
            let page = unsafe { SharedPage::new(NonNull::new(arch::phys(first << 12)).unwrap(), 1) };
            let left = u32::from((Flags::PERMIT_ACCESS | Flags::READING).bits());
            for reference in [9, 511] {
                page.u32(8 * reference).store(left, Ordering::Relaxed);
            }
            // It is placed elsewhere now. That there are fewer than it seemed is known then.
            assert_eq!(Granted::<ReadWrite>::new(DomainId(PEER), 504).await.unwrap_err(), ErrorKind::TooMany);
            let granted = Granted::<ReadWrite>::try_new(DomainId(PEER), 502).unwrap();
            assert!(granted.references().all(|reference| ![9, 511].contains(&reference.0)));
            assert_eq!((stat().in_use, stat().free), (502, 0));
            let too_many = Granted::<ReadWrite>::try_new(DomainId(PEER), 503);
            assert_eq!(too_many.unwrap_err(), ErrorKind::TooMany);
            drop(granted);
            let pages = GRANTS.of(crate::local::current().unwrap()).entries();
            for reference in [9, 511] {
                assert_eq!(pages[0].u32(8 * reference).swap(0, Ordering::Relaxed), left);
            }
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "a minute: it has thousands of references; the same code runs in the other tests")]
    fn growth_that_xen_refuses_midway_keeps_what_it_has_and_loses_no_space() {
        let allowed = Arc::new(AtomicU32::new(u32::MAX));
        let left = Arc::clone(&allowed);
        let fault = move |number, operation| {
            let places = (number, operation) == (Hypercall::Memory, ADD_TO_PHYSMAP);
            let refused =
                places && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
            refused.then_some(Errno::ENOMEM)
        };
        run(Guest::new().grant_frames(4).fault(fault), async || {
            let grants = GRANTS.of(crate::local::current().unwrap());
            let next_place = || Hole::new(1).unwrap().frames().start;
            let first = next_place();
            for (more, frames) in [(1, 1), (0, 1), (0, 1), (1, 2), (0, 2), (1, 3)] {
                allowed.store(more, Ordering::Relaxed);
                assert_eq!(grants.try_take(2000).unwrap_err(), ErrorKind::Refused(Errno::ENOMEM));
                assert_eq!((stat().frames, stat().free, stat().in_use), (frames, frames * 512 - 8, 0));
                assert_eq!(next_place(), first + u64::from(frames));
            }
            allowed.store(u32::MAX, Ordering::Relaxed);
            grants.give(grants.try_take(2000).unwrap());
            assert_eq!((stat().frames, next_place()), (4, first + 4));
        });
    }

    #[test]
    fn frames_beyond_32_bits_are_refused() {
        assert_eq!(frame_number(u64::from(u32::MAX)), Ok(u32::MAX));
        for frame in [1 << 32, u64::MAX] {
            assert_eq!(frame_number(frame), Err(ErrorKind::FrameTooHigh));
        }
    }
}
