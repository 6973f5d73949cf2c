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
//! does, ours fails, and finds the bit.

use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use super::Error;
use crate::abi::grant_table::{
    ENTRIES_PER_FRAME, ENTRY_DOMAIN, ENTRY_FLAGS, ENTRY_FRAME, ENTRY_SIZE, Flags, RESERVED_ENTRIES,
};
use crate::abi::xen::DomainId;
use crate::memory::holes::Hole;
use crate::shared::SharedPage;
use crate::{arch, hypercall, memory};

/// Pages of the table that are placed at once, at most: a hole has so many.
pub(super) const AT_ONCE: u32 = 64;

/// So often the flags may change under a look at them. They change when the peer maps and unmaps: one that does so without
/// end has the page in use.
const LOOKS: usize = 8;

/// What an entry permits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permit {
    pub(super) peer: DomainId,
    /// The page.
    pub(super) frame: u32,
    pub(super) read_only: bool,
}

/// The pages of the table that are placed, and how many there may be.
#[derive(Debug, Default)]
pub(super) struct Table {
    pages: Vec<SharedPage>,
    most: Option<u32>,
}

impl Table {
    /// How many pages are placed.
    pub(super) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// How many pages there may be, as far as Xen was asked.
    pub(super) fn known_most(&self) -> u32 {
        self.most.unwrap_or(0)
    }

    /// How many pages there may be. Xen is asked once.
    pub(super) fn most(&mut self) -> Result<u32, Error> {
        if let Some(most) = self.most {
            return Ok(most);
        }
        let (_, most) = hypercall::grant_table_size().map_err(Error::Refused)?;
        // References are numbers of 32 bits.
        let most = most.min(u32::MAX / ENTRIES_PER_FRAME);
        self.most = Some(most);
        Ok(most)
    }

    /// Places so many more pages, up to [`AT_ONCE`].
    pub(super) fn grow(&mut self, count: u32) -> Result<(), Error> {
        self.pages.try_reserve(count as usize).map_err(|_| memory::Error::OutOfMemory)?;
        let hole = Hole::new(count.into())?;
        let (first, known) = (hole.frames().start, self.pages());
        // The highest first: Xen's table grows once, up to it.
        for index in (0..count).rev() {
            // SAFETY: the frames are of a hole, which nothing else uses: nothing lies there.
            if let Err(errno) = unsafe { hypercall::grant_table_map(known + index, first + u64::from(index)) } {
                if index + 1 < count {
                    // What was placed stays there.
                    core::mem::forget(hole);
                }
                return Err(Error::Refused(errno));
            }
        }
        for index in 0..u64::from(count) {
            let Some(page) = NonNull::new(arch::phys((first + index) << 12)) else { break };
            // SAFETY: the page was just placed in a hole, which is mapped read-write and given up below, for ever; nothing
            // else accesses it.
            self.pages.push(unsafe { SharedPage::new(page, 1) });
        }
        core::mem::forget(hole);
        Ok(())
    }

    /// The page of an entry, and the entry's offset in it.
    fn entry(&self, reference: u32) -> Option<(SharedPage, usize)> {
        let page = *self.pages.get((reference / ENTRIES_PER_FRAME) as usize)?;
        Some((page, (reference % ENTRIES_PER_FRAME) as usize * ENTRY_SIZE))
    }

    /// Whether an entry of a page that was just placed is there to be used. The first ones are the toolstack's; of the
    /// others some may still be what a boot loader has left in use.
    pub(super) fn is_usable(&self, reference: u32) -> bool {
        let is_clear = |(page, at): (SharedPage, usize)| page.u16(at + ENTRY_FLAGS).load(Ordering::Relaxed) == 0;
        reference >= RESERVED_ENTRIES && self.entry(reference).is_some_and(is_clear)
    }

    /// Lets the peer access a page. What was written to the page before is there when the peer looks.
    pub(super) fn permit(&self, reference: u32, permit: Permit) {
        let Some((page, at)) = self.entry(reference) else { return };
        let mut flags = Flags::PERMIT_ACCESS;
        flags.set(Flags::READ_ONLY, permit.read_only);
        page.u16(at + ENTRY_DOMAIN).store(permit.peer.0, Ordering::Relaxed);
        page.u32(at + ENTRY_FRAME).store(permit.frame, Ordering::Relaxed);
        page.u16(at + ENTRY_FLAGS).store(flags.bits(), Ordering::Release);
    }

    /// Takes the access back, unless the page is in use by the peer. Says whether it is taken back: what the peer wrote is
    /// there then, and no more comes.
    #[must_use = "a page that the peer still has in use must not be used for anything else"]
    pub(super) fn end(&self, reference: u32) -> bool {
        let Some((page, at)) = self.entry(reference) else { return true };
        let flags = page.u16(at + ENTRY_FLAGS);
        let mut seen = flags.load(Ordering::Relaxed);
        for _ in 0..LOOKS {
            if Flags::from_bits_retain(seen).intersects(Flags::READING | Flags::WRITING) {
                return false;
            }
            // Both ways: what this domain did to the page comes before, what it does with the page now comes after.
            match flags.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }
}

/// A frame's number as version 1 of the table has it: 32 bits, which is 16 TiB of memory.
pub(super) fn frame_number(frame: u64) -> Result<u32, Error> {
    u32::try_from(frame).map_err(|_| Error::FrameTooHigh)
}
