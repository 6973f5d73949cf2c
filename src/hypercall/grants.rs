//! The hypercalls for grant tables.

use super::{Arg, call, check};
use crate::abi::errno::Errno;
use crate::abi::grant_table::{
    COPY, GrantCopy, MAP_GRANT_REF, MapGrantRef, QUERY_SIZE, QuerySize, Status, UNMAP_GRANT_REF, UnmapGrantRef,
};
use crate::abi::memory::{ADD_TO_PHYSMAP, AddToPhysmap, MAP_SPACE_GRANT_TABLE};
use crate::abi::xen::{DomainId, Hypercall};

/// An operation on a batch of structures, each of which has a status of its own.
///
/// # Safety
///
/// The structures are those of the operation: [`QuerySize`] for `QUERY_SIZE`, [`MapGrantRef`] for `MAP_GRANT_REF`,
/// [`UnmapGrantRef`] for `UNMAP_GRANT_REF`, and [`GrantCopy`] for `COPY`. The pages they name meet that function's conditions:
/// nothing lies [where a page is mapped](grant_map), nobody uses [what is unmapped](grant_unmap), and own frames that are
/// [copied](grant_copy) from or to are the caller's to read, or to write.
unsafe fn operation<T>(number: u64, batch: &mut [T]) -> Result<(), Errno> {
    // SAFETY: Xen reads and writes so many structures, which are live and exclusively borrowed for the call; that they
    // belong to the operation is the caller's promise.
    let result = unsafe {
        call(
            Hypercall::GrantTable,
            [Arg::int(number), Arg::slice(batch), Arg::int(batch.len() as u64), Arg::NONE, Arg::NONE],
        )
    };
    check(result).map(|_| ())
}

/// Pages of the domain's grant table: those that it has, and may have.
pub(crate) fn grant_table_size() -> Result<(u32, u32), Errno> {
    let mut query = [QuerySize { dom: DomainId::SELF.0, ..QuerySize::default() }];
    // SAFETY: the structure belongs to the operation, which changes no memory.
    unsafe { operation(QUERY_SIZE, &mut query) }?;
    match query[0].status {
        Status::OKAY => Ok((query[0].nr_frames, query[0].max_nr_frames)),
        _ => Err(Errno::EINVAL),
    }
}

/// Places a page of the grant table at a guest-physical frame; the table grows up to it.
///
/// # Safety
///
/// There is nothing at that frame: a page that lies there is lost.
pub(crate) unsafe fn grant_table_map(index: u32, frame: u64) -> Result<(), Errno> {
    let request = AddToPhysmap {
        domid: DomainId::SELF.0,
        size: 0,
        space: MAP_SPACE_GRANT_TABLE,
        index: index.into(),
        gpfn: frame,
    };
    // SAFETY: Xen reads the structure, which is live for the call; that the frame is unused is the caller's promise.
    let result = unsafe {
        call(Hypercall::Memory, [Arg::int(ADD_TO_PHYSMAP), Arg::input(&request), Arg::NONE, Arg::NONE, Arg::NONE])
    };
    check(result).map(|_| ())
}

/// Places pages of other domains. Each has its own status.
///
/// # Safety
///
/// Each address is that of a page of unpopulated space, of the caller's own: a page that lies there is lost. What appears there
/// is written by others at any time: nothing but `SharedMemory` may access it. It faults on a write if it is mapped read-only.
pub(crate) unsafe fn grant_map(batch: &mut [MapGrantRef]) -> Result<(), Errno> {
    // SAFETY: the structures belong to the operation; that nothing lies at the addresses is the caller's promise.
    unsafe { operation(MAP_GRANT_REF, batch) }
}

/// Takes pages of other domains away again. Each has its own status.
///
/// # Safety
///
/// Nothing uses the memory of these mappings, now or later.
pub(crate) unsafe fn grant_unmap(batch: &mut [UnmapGrantRef]) -> Result<(), Errno> {
    // SAFETY: the structures belong to the operation; that nothing uses the memory is the caller's promise.
    unsafe { operation(UNMAP_GRANT_REF, batch) }
}

/// Copies from and to pages of other domains. Each copy has its own status.
///
/// # Safety
///
/// What a copy reads of frames of the own domain's nothing writes during the call, and what it writes there nothing else uses.
/// (Pages that the domain grants may be named by their references, and are accessed by `SharedMemory` alone.)
pub(crate) unsafe fn grant_copy(batch: &mut [GrantCopy]) -> Result<(), Errno> {
    // SAFETY: the structures belong to the operation; that the own frames may be copied from or to is the caller's promise.
    unsafe { operation(COPY, batch) }
}
