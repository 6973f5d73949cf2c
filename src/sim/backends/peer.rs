//! Domains whose part a test plays: what they do with grants of the domain, and what they grant to it.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::BTreeMap;

use crate::abi::grant_table::Status;
use crate::shared::SharedPage;
use crate::sim::machine::events::Outside;
use crate::sim::machine::memory;
use crate::sim::machine::with;

/// Does something around the domain that this thread runs, now. See also [`Guest::after`](crate::sim::Guest::after).
///
/// # Panics
///
/// Outside of a simulated domain.
pub fn outside<T>(act: impl FnOnce(&mut Outside<'_>) -> T) -> T {
    with(|machine| act(&mut Outside(machine)))
}

/// A page that a peer of the test's has: one that it grants, or has mapped.
#[derive(Clone, Copy, Debug)]
pub struct PeerPage(SharedPage);

impl PeerPage {
    /// Takes a page of a simulated domain's.
    pub(in crate::sim) fn new(page: NonNull<u8>) -> Self {
        // SAFETY: the page is aligned and lives as long as the process. Whoever else has it accesses it as shared memory,
        // or not while a peer may.
        Self(unsafe { SharedPage::new(page, 1) })
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.0.read(offset, bytes);
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    /// A byte.
    #[must_use]
    pub fn byte(&self, offset: usize) -> u8 {
        self.0.u8(offset).load(Ordering::SeqCst)
    }
}

/// A domain whose part the test plays.
#[derive(Default)]
pub(crate) struct Peer {
    /// What it grants, by reference.
    grants: BTreeMap<u32, Offer>,
    /// What it has mapped: references, and whether writable.
    maps: BTreeMap<(u32, bool), u32>,
    /// It has ended.
    ended: bool,
}

/// A grant of such a domain's.
struct Offer {
    page: SharedPage,
    writable: bool,
    /// How often it is in use.
    uses: u32,
}

impl Peer {
    /// What it has mapped is of a domain that is gone.
    pub(in crate::sim) fn forget_maps(&mut self) {
        self.maps.clear();
    }

    pub(in crate::sim) fn pin(&mut self, reference: u32, write: bool) -> Result<NonNull<u8>, Status> {
        if self.ended {
            return Err(Status::BAD_DOMAIN);
        }
        let offer = self.grants.get_mut(&reference).ok_or(Status::BAD_REFERENCE)?;
        if write && !offer.writable {
            return Err(Status::GENERAL_ERROR);
        }
        offer.uses += 1;
        Ok(offer.page.start())
    }

    pub(in crate::sim) fn unpin(&mut self, reference: u32, _: bool) {
        let offer = self.grants.get_mut(&reference).expect("a grant in use is kept");
        offer.uses -= 1;
    }
}

impl Outside<'_> {
    /// A peer grants a zeroed page of its own to the domain, by a reference.
    pub fn offer_grant(&mut self, peer: u16, reference: u32, writable: bool) -> PeerPage {
        let page = memory::page();
        let peer = self.0.grants.peers.entry(peer).or_default();
        let before = peer.grants.insert(reference, Offer { page, writable, uses: 0 });
        assert!(before.is_none_or(|before| before.uses == 0), "reference {reference} of the peer's is in use");
        PeerPage(page)
    }

    /// How often the domain uses a grant of a peer's: maps it, that is.
    #[must_use]
    pub fn uses(&self, peer: u16, reference: u32) -> u32 {
        let peer = self.0.grants.peers.get(&peer);
        peer.and_then(|peer| peer.grants.get(&reference)).map_or(0, |offer| offer.uses)
    }

    /// A peer maps a grant of the domain's, and keeps it until [`unmap`](Self::unmap).
    ///
    /// # Errors
    ///
    /// As Xen refuses it.
    pub fn map(&mut self, peer: u16, reference: u32, writable: bool) -> Result<PeerPage, Status> {
        let page = self.0.pin(reference, peer, writable)?;
        *self.0.grants.peers.entry(peer).or_default().maps.entry((reference, writable)).or_default() += 1;
        Ok(PeerPage::new(page))
    }

    /// A peer gives back what it has mapped.
    ///
    /// # Panics
    ///
    /// If it has not.
    pub fn unmap(&mut self, peer: u16, reference: u32, writable: bool) {
        let maps = self.0.grants.peers.get_mut(&peer).and_then(|peer| peer.maps.get_mut(&(reference, writable)));
        let maps = maps.filter(|maps| **maps > 0).expect("the peer has this mapped");
        *maps -= 1;
        self.0.unpin(reference, writable);
    }

    /// A peer has Xen copy from a grant of the domain's.
    ///
    /// # Errors
    ///
    /// As Xen refuses it.
    pub fn copy_from(&mut self, peer: u16, reference: u32, offset: usize, bytes: &mut [u8]) -> Result<(), Status> {
        let page = PeerPage::new(self.0.pin(reference, peer, false)?);
        page.read(offset, bytes);
        self.0.unpin(reference, false);
        Ok(())
    }

    /// A peer has Xen copy to a grant of the domain's.
    ///
    /// # Errors
    ///
    /// As Xen refuses it.
    pub fn copy_to(&mut self, peer: u16, reference: u32, offset: usize, bytes: &[u8]) -> Result<(), Status> {
        let page = PeerPage::new(self.0.pin(reference, peer, true)?);
        page.write(offset, bytes);
        self.0.unpin(reference, true);
        Ok(())
    }

    /// A peer ends: what it has mapped is given back, and there is no such domain any more.
    pub fn end_peer(&mut self, peer: u16) {
        let its = self.0.grants.peers.entry(peer).or_default();
        its.ended = true;
        for ((reference, writable), count) in core::mem::take(&mut its.maps) {
            (0..count).for_each(|_| self.0.unpin(reference, writable));
        }
    }

    /// How many pages of others the domain has mapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.0.grants.mappings.count()
    }

    /// References that the domain grants to somebody, without those that the toolstack has filled in.
    #[must_use]
    pub fn granted(&mut self) -> std::vec::Vec<u32> {
        self.0.grants.granted()
    }
}
