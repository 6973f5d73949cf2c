//! What a simulated domain does with grants of others: mapping, unmapping and copying.
//!
//! A page that is mapped is the peer's own: what one end writes the other sees.

use core::ptr::NonNull;
use std::vec::Vec;

use crate::abi::grant_table::{
    COPY, COPY_DESTINATION_GRANT, COPY_SOURCE_GRANT, CopySide, GrantCopy, MAP_GRANT_REF, MAP_HOST, MAP_READ_ONLY,
    MapGrantRef, Status, UNMAP_GRANT_REF, UnmapGrantRef,
};
use crate::abi::xen::DomainId;
use crate::sim::machine::Machine;

/// What a domain has mapped.
#[derive(Default)]
pub(crate) struct Mappings {
    /// By handle.
    all: Vec<Option<Mapping>>,
    /// Handles that are free.
    free: Vec<u32>,
    /// Memory of the program that was named in copies: pieces of the host's, which have no frames here.
    lent: Vec<Lent>,
}

#[derive(Clone, Copy)]
struct Mapping {
    domain: u16,
    reference: u32,
    frame: u64,
    write: bool,
}

/// Where a page of the host's would begin that a slice of the program's lies in.
struct Lent(*mut u8);

// SAFETY: who has the pointer, with the machine that it belongs to, is alone in using it, while the program that lent the
// slice waits for the copy.
unsafe impl Send for Lent {}

/// What stands for a frame of memory that was lent: no frame has such a number.
const LENT: u64 = 1 << 50;

/// One side of a copy.
struct Side {
    page: *mut u8,
    /// The grant that is to be let go of: whose it is, and its reference.
    grant: Option<(u16, u32)>,
}

impl Mappings {
    /// How many there are.
    pub(in crate::sim) fn count(&self) -> usize {
        self.all.len() - self.free.len()
    }

    /// A number by which a copy may name the page that a pointer lies in.
    pub(in crate::sim) fn lend(&mut self, pointer: *const u8) -> u64 {
        self.lent.push(Lent(pointer.wrapping_sub(pointer.addr() % 4096).cast_mut()));
        LENT + self.lent.len() as u64 - 1
    }
}

impl Machine {
    /// What the test says of an operation.
    fn grant_fault(&mut self, operation: u64, number: u32) -> Result<(), Status> {
        match self.grants.fault.as_mut().and_then(|fault| fault(operation, number)) {
            Some(Status::OKAY) | None => Ok(()),
            Some(status) => Err(status),
        }
    }

    /// Uses a grant, of whomever.
    fn use_grant(&mut self, domain: u16, reference: u32, write: bool) -> Result<NonNull<u8>, Status> {
        let own = self.number_of(DomainId::SELF.0);
        if domain == own {
            return self.pin(reference, own, write);
        }
        if let Some(peer) = self.grants.peers.get_mut(&domain) {
            return peer.pin(reference, write);
        }
        let at_peer = self.slot.as_ref().and_then(|slot| slot.peer(domain, |peer| peer.pin(reference, own, write)));
        at_peer.unwrap_or(Err(Status::BAD_DOMAIN))
    }

    /// Lets go of a grant. If its domain has ended there is nothing to do.
    fn let_go(&mut self, domain: u16, reference: u32, write: bool) {
        if domain == self.number_of(DomainId::SELF.0) {
            self.unpin(reference, write);
        } else if let Some(peer) = self.grants.peers.get_mut(&domain) {
            peer.unpin(reference, write);
        } else if let Some(slot) = &self.slot {
            let _ = slot.peer(domain, |peer| peer.unpin(reference, write));
        }
    }

    pub(in crate::sim) fn map_grant(&mut self, request: &mut MapGrantRef) {
        request.status = match self.try_map(request) {
            Ok(handle) => {
                request.handle = handle;
                Status::OKAY
            }
            Err(status) => status,
        };
    }

    fn try_map(&mut self, request: &MapGrantRef) -> Result<u32, Status> {
        self.grant_fault(MAP_GRANT_REF, request.reference)?;
        let write = match request.flags {
            MAP_HOST => true,
            flags if flags == MAP_HOST | MAP_READ_ONLY => false,
            _ => return Err(Status::GENERAL_ERROR),
        };
        if request.dom == DomainId::SELF.0 {
            return Err(Status::BAD_DOMAIN);
        }
        assert_ne!(request.dom, self.domain, "a domain maps its own grant: its page is lost");
        assert!(request.host_addr.is_multiple_of(4096), "a grant is mapped at {:#x}", request.host_addr);
        let (domain, reference, frame) = (request.dom, request.reference, request.host_addr >> 12);
        let page = self.use_grant(domain, reference, write)?;
        self.place(frame, page, "a grant");
        let mappings = &mut self.grants.mappings;
        let handle = mappings.free.pop().unwrap_or(mappings.all.len() as u32);
        if handle as usize == mappings.all.len() {
            mappings.all.push(None);
        }
        mappings.all[handle as usize] = Some(Mapping { domain, reference, frame, write });
        Ok(handle)
    }

    pub(in crate::sim) fn unmap_grant(&mut self, request: &mut UnmapGrantRef) {
        request.status = match self.grant_fault(UNMAP_GRANT_REF, request.handle) {
            Ok(()) => {
                self.unmap(request.handle, request.host_addr);
                Status::OKAY
            }
            Err(status) => status,
        };
    }

    fn unmap(&mut self, handle: u32, address: u64) {
        let mappings = &mut self.grants.mappings;
        let mapping = mappings.all.get_mut(handle as usize).and_then(Option::take);
        let mapping = mapping.unwrap_or_else(|| panic!("handle {handle} is unmapped twice, or was never mapped"));
        assert_eq!(mapping.frame << 12, address, "handle {handle} is mapped elsewhere");
        mappings.free.push(handle);
        self.memory.remove(mapping.frame);
        self.let_go(mapping.domain, mapping.reference, mapping.write);
    }

    pub(in crate::sim) fn copy_grant(&mut self, request: &mut GrantCopy) {
        request.status = self.try_copy(request).err().unwrap_or(Status::OKAY);
    }

    fn try_copy(&mut self, request: &GrantCopy) -> Result<(), Status> {
        let GrantCopy { source, dest, len, flags, .. } = *request;
        let (from, to) = (flags & COPY_SOURCE_GRANT != 0, flags & COPY_DESTINATION_GRANT != 0);
        self.grant_fault(COPY, if from { source.place as u32 } else { dest.place as u32 })?;
        let beyond = |side: &CopySide| u32::from(side.offset) + u32::from(len) > 4096;
        if beyond(&source) || beyond(&dest) {
            return Err(Status::BAD_COPY_ARGUMENT);
        }
        let read = self.copy_side(&source, from, false)?;
        let result = self.copy_side(&dest, to, true).inspect(|written| {
            let from = read.page.wrapping_add(source.offset.into());
            let to = written.page.wrapping_add(dest.offset.into());
            // SAFETY: each is in a page that lives as long as the process, or so many bytes of a slice that the program
            // lent for this copy; the domains, one of which runs at a time, access it as the copy does or not at all.
            unsafe { core::ptr::copy(from, to, len.into()) };
        });
        if let Some((domain, reference)) = read.grant {
            self.let_go(domain, reference, false);
        }
        if let Some((domain, reference)) = result?.grant {
            self.let_go(domain, reference, true);
        }
        Ok(())
    }

    fn copy_side(&mut self, side: &CopySide, is_grant: bool, write: bool) -> Result<Side, Status> {
        if is_grant {
            let (domain, reference) = (self.number_of(side.domid), side.place as u32);
            let page = self.use_grant(domain, reference, write)?.as_ptr();
            return Ok(Side { page, grant: Some((domain, reference)) });
        }
        if side.domid != DomainId::SELF.0 {
            return Err(Status::PERMISSION_DENIED);
        }
        let lent = side.place.checked_sub(LENT).and_then(|index| self.grants.mappings.lent.get(index as usize));
        let page = lent.map(|lent| lent.0).or_else(|| self.ram(side.place).map(NonNull::as_ptr));
        Ok(Side { page: page.ok_or(Status::BAD_PAGE)?, grant: None })
    }

    /// What becomes of a domain's mappings when it has ended, or goes on elsewhere: Xen takes them away.
    pub(in crate::sim) fn end_mappings(&mut self) {
        for handle in 0..self.grants.mappings.all.len() {
            if let Some(mapping) = self.grants.mappings.all[handle] {
                self.unmap(handle as u32, mapping.frame << 12);
                self.memory.leave_ones(mapping.frame);
            }
        }
    }
}
