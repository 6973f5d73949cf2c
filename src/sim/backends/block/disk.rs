//! A disk with a volatile cache.

use std::boxed::Box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec;
use std::vec::Vec;

use crate::block::protocol::SECTOR;

/// Bytes of a sector.
const BYTES: usize = SECTOR as usize;

/// When the power is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PowerCut {
    /// Requests that are carried out before.
    pub after: u64,
    /// The request that is carried out then is answered, or not.
    pub answers: bool,
}

#[derive(Debug)]
struct Inner {
    /// What is on stable storage.
    durable: Vec<u8>,
    /// What later reads see.
    current: Vec<u8>,
    /// Writes since the last flush, in order: the first sector, and the data.
    pending: Vec<(usize, Vec<u8>)>,
    physical: usize,
    random: u64,
    cut: Option<PowerCut>,
    is_cut: bool,
    ignores_flushes: bool,
    requests: u64,
    flushes: u64,
}

impl Inner {
    /// A number below a limit (xorshift).
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % limit.max(1) as u64) as usize
    }
}

/// A disk. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    /// A disk of so many sectors of 512 bytes, filled with zeroes. `seed` decides what a power cut loses.
    #[must_use]
    pub fn new(sectors: usize, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            durable: vec![0; sectors * BYTES],
            current: vec![0; sectors * BYTES],
            pending: Vec::new(),
            physical: 1,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            cut: None,
            is_cut: false,
            ignores_flushes: false,
            requests: 0,
            flushes: 0,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sectors that are written whole or not at all, 1 unless this says otherwise.
    pub fn set_physical_sectors(&self, sectors: usize) {
        self.inner().physical = sectors;
    }

    /// Has the power cut at a moment. `None` never does.
    pub fn set_power_cut(&self, cut: Option<PowerCut>) {
        self.inner().cut = cut;
    }

    /// A disk that answers flushes and does nothing.
    pub fn ignore_flushes(&self) {
        self.inner().ignores_flushes = true;
    }

    /// Whether the power was cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.inner().is_cut
    }

    /// Requests carried out, and flushes among them.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.requests, inner.flushes)
    }

    /// The size in sectors.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.inner().current.len() / BYTES
    }

    /// Another size. What lies beyond is gone.
    pub fn resize(&self, sectors: usize) {
        let mut inner = self.inner();
        inner.durable.resize(sectors * BYTES, 0);
        inner.current.resize(sectors * BYTES, 0);
        inner.pending.retain(|(first, data)| first + data.len() / BYTES <= sectors);
    }

    /// The contents as later reads see them; after a power cut, what it has left.
    #[must_use]
    pub fn contents(&self) -> Box<[u8]> {
        self.inner().current.clone().into_boxed_slice()
    }

    /// Begins a request: whether there is power for it, and whether it is answered. At the moment of the cut some unflushed
    /// writes are on the disk and some are not, in any order, and some are there in part.
    pub(super) fn begin(&self) -> (bool, bool) {
        let inner = self.inner();
        if inner.is_cut {
            return (false, false);
        }
        let is_last = inner.cut.is_some_and(|cut| inner.requests >= cut.after);
        (true, !is_last || inner.cut.is_some_and(|cut| cut.answers))
    }

    /// Ends a request.
    pub(super) fn end(&self) {
        let mut inner = self.inner();
        inner.requests += 1;
        if inner.cut.is_some_and(|cut| inner.requests > cut.after) {
            cut_power(&mut inner);
        }
    }

    pub(super) fn read(&self, sector: u64, data: &mut [u8]) {
        let from = sector as usize * BYTES;
        data.copy_from_slice(&self.inner().current[from..from + data.len()]);
    }

    pub(super) fn write(&self, sector: u64, data: &[u8]) {
        let (from, mut inner) = (sector as usize * BYTES, self.inner());
        inner.current[from..from + data.len()].copy_from_slice(data);
        inner.pending.push((sector as usize, data.to_vec()));
    }

    pub(super) fn flush(&self) {
        let mut inner = self.inner();
        inner.flushes += 1;
        if inner.ignores_flushes {
            return;
        }
        for (first, data) in core::mem::take(&mut inner.pending) {
            inner.durable[first * BYTES..][..data.len()].copy_from_slice(&data);
        }
    }
}

/// What is unflushed arrives in any order, whole, in part or not at all.
fn cut_power(inner: &mut Inner) {
    inner.is_cut = true;
    let mut pending = core::mem::take(&mut inner.pending);
    while !pending.is_empty() {
        let index = inner.below(pending.len());
        let (first, data) = pending.swap_remove(index);
        let kind = inner.below(3);
        let unit = inner.physical;
        let mut at = 0;
        while at < data.len() / BYTES {
            // To the end of the physical sector.
            let count = (unit - (first + at) % unit).min(data.len() / BYTES - at);
            let arrives = match kind {
                0 => false,
                1 => true,
                _ => inner.below(2) == 0,
            };
            if arrives {
                let place = (first + at) * BYTES;
                let piece = &data[at * BYTES..(at + count) * BYTES];
                inner.durable[place..place + piece.len()].copy_from_slice(piece);
            }
            at += count;
        }
    }
    inner.current = inner.durable.clone();
}
