//! The pool: granted pages that data is copied to and from, and that indirect segments lie in.
//!
//! They are granted writable once for each domain that the program runs in, and used last in, first out, so that few are hot. They
//! are zeroed when they are made and hold nothing but what is on the disk, or on its way there. A back end that keeps them mapped
//! can change them at any time: data is copied out before it is looked at.

use alloc::vec::Vec;

use super::super::ErrorKind;
use super::super::protocol::PAGE;
use crate::DomainId;
use crate::gnttab::{self, Granted, ReadWrite};
use crate::shared::SharedMemory;

/// No page.
const NONE: u16 = u16::MAX;
/// Pages of a pool at most: their indices have 16 bits.
pub(super) const MOST: usize = 16_384;

/// Pages that were taken together: a list by way of [`Pool::next`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Run {
    head: u16,
    count: u16,
}

impl Run {
    /// No pages.
    pub(super) const EMPTY: Self = Self { head: NONE, count: 0 };
}

/// The pool of a disk.
#[derive(Debug)]
pub(super) struct Pool {
    /// `None` if the pages could not be granted again after a resume.
    granted: Option<Granted<ReadWrite>>,
    references: Vec<u32>,
    /// The page behind each in its list, that of free pages or a run's.
    next: Vec<u16>,
    head: u16,
    free: usize,
}

impl Pool {
    /// Makes a pool of at most [`MOST`] pages.
    pub(super) async fn new(peer: DomainId, pages: usize) -> Result<Self, gnttab::Error> {
        let pages = pages.min(MOST);
        let granted = Granted::new(peer, pages).await?;
        let references = granted.references().map(|reference| reference.0).collect();
        let mut next: Vec<u16> = (1..=pages as u16).collect();
        if let Some(last) = next.last_mut() {
            *last = NONE;
        }
        Ok(Self { granted: Some(granted), references, next, head: 0, free: pages })
    }

    /// Pages in all.
    pub(super) const fn count(&self) -> usize {
        self.next.len()
    }

    /// Pages that are free.
    pub(super) const fn free(&self) -> usize {
        self.free
    }

    /// Whether the pages can be used.
    pub(super) const fn is_usable(&self) -> bool {
        self.granted.is_some()
    }

    /// Grants the pages, with what is in them, in the domain that the program was resumed in. Their references change.
    pub(super) fn resume(&mut self, peer: DomainId) -> Result<(), ErrorKind> {
        match self.granted.as_ref() {
            Some(granted) if granted.check().is_ok() && granted.peer() == peer => return Ok(()),
            _ => {}
        }
        // Grants of before a resume have ended with it.
        let pages = self.granted.take().and_then(|granted| granted.end().ok()).ok_or(ErrorKind::BufferKept)?;
        let granted = Granted::try_from_pages(peer, pages).map_err(|_| ErrorKind::NotGranted)?;
        self.references.clear();
        self.references.extend(granted.references().map(|reference| reference.0));
        self.granted = Some(granted);
        Ok(())
    }

    /// Takes so many pages, all or none.
    pub(super) fn take(&mut self, count: usize) -> Option<Run> {
        if count > self.free || self.granted.is_none() {
            return None;
        }
        let head = self.head;
        let mut last = NONE;
        for _ in 0..count {
            last = self.head;
            self.head = self.next[usize::from(last)];
        }
        if last != NONE {
            self.next[usize::from(last)] = NONE;
        }
        self.free -= count;
        // No more than `MOST`.
        Some(Run { head: if count == 0 { NONE } else { head }, count: count as u16 })
    }

    /// Takes pages back.
    pub(super) fn give(&mut self, run: Run) {
        let mut last = run.head;
        if last == NONE {
            return;
        }
        while self.next[usize::from(last)] != NONE {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.head;
        self.head = run.head;
        self.free += usize::from(run.count);
    }

    fn pages(&self, run: &Run) -> impl Iterator<Item = usize> {
        let first = Some(run.head).filter(|head| *head != NONE);
        core::iter::successors(first, |page| Some(self.next[usize::from(*page)]).filter(|next| *next != NONE))
            .map(usize::from)
    }

    /// The references of a run's pages, from one on.
    pub(super) fn references(&self, run: &Run, skip: usize) -> impl Iterator<Item = u32> {
        self.pages(run).skip(skip).map(|page| self.references[page])
    }

    fn memory(&self) -> Option<SharedMemory<'_>> {
        self.granted.as_ref().map(Granted::memory)
    }

    /// Copies data into a run, from its beginning.
    pub(super) fn write(&self, run: &Run, data: &[u8]) {
        let Some(memory) = self.memory() else { return };
        for (page, piece) in self.pages(run).zip(data.chunks(PAGE)) {
            memory.write(page * PAGE, piece);
        }
    }

    /// Copies data out of a run, from its beginning.
    pub(super) fn read(&self, run: &Run, data: &mut [u8]) {
        let Some(memory) = self.memory() else { return };
        for (page, piece) in self.pages(run).zip(data.chunks_mut(PAGE)) {
            memory.read(page * PAGE, piece);
        }
    }

    /// Writes eight bytes into a run at a place.
    pub(super) fn write_segments(&self, run: &Run, segments: impl Iterator<Item = [u8; 8]>) {
        let Some(memory) = self.memory() else { return };
        let mut segments = segments;
        for page in self.pages(run) {
            for (slot, segment) in segments.by_ref().take(PAGE / 8).enumerate() {
                memory.write_value(page * PAGE + 8 * slot, &u64::from_le_bytes(segment));
            }
        }
    }
}
