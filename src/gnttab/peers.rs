//! Per-peer account of grants: how many there are, and how many pages those keep whose grant has ended.
//!
//! A peer that maps each ring it is given and never unmaps it costs the domain a ring for each connection. The account bounds
//! that: a peer with too many deferred pages is granted no more of them.
//!
//! There is an entry for each peer with a grant. It is made with the peer's first grant, so that ending a grant takes no
//! memory, and removed with the last.

use alloc::vec::Vec;

use super::ErrorKind;
use crate::abi::xen::DomainId;
use crate::memory;

/// The account of a peer.
#[derive(Debug)]
struct Peer {
    domain: DomainId,
    /// Grants that have not ended, and deferred ones.
    grants: u32,
    /// Pages of deferred grants.
    deferred: u32,
}

/// The accounts of all peers that have a grant, by domain ID.
#[derive(Debug)]
pub(super) struct Peers(Vec<Peer>);

impl Peers {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    fn find(&self, domain: DomainId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&domain, |peer| peer.domain)
    }

    fn get_mut(&mut self, domain: DomainId) -> Option<&mut Peer> {
        let index = self.find(domain).ok()?;
        self.0.get_mut(index)
    }

    /// Pages of the peer's deferred grants.
    pub(super) fn deferred(&self, domain: DomainId) -> u32 {
        self.find(domain).map_or(0, |index| self.0[index].deferred)
    }

    /// Pages of all deferred grants.
    pub(super) fn all_deferred(&self) -> u32 {
        self.0.iter().map(|peer| peer.deferred).sum()
    }

    /// Counts a new grant.
    pub(super) fn add(&mut self, domain: DomainId) -> Result<(), ErrorKind> {
        match self.find(domain) {
            Ok(index) => self.0[index].grants += 1,
            Err(index) => {
                self.0.try_reserve(1).map_err(|_| memory::Error::OutOfMemory)?;
                self.0.insert(index, Peer { domain, grants: 1, deferred: 0 });
            }
        }
        Ok(())
    }

    /// Counts a deferred grant with this number of pages.
    pub(super) fn defer(&mut self, domain: DomainId, pages: u32) {
        if let Some(peer) = self.get_mut(domain) {
            peer.deferred += pages;
        }
    }

    /// The pages of a deferred grant are free.
    pub(super) fn release(&mut self, domain: DomainId, pages: u32) {
        if let Some(peer) = self.get_mut(domain) {
            peer.deferred -= pages;
        }
    }

    /// A grant is gone.
    pub(super) fn remove(&mut self, domain: DomainId) {
        let Ok(index) = self.find(domain) else { return };
        self.0[index].grants -= 1;
        if self.0[index].grants == 0 {
            self.0.remove(index);
        }
    }
}
