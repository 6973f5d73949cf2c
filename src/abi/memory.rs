//! Memory reservation and the guest-physical address space (`memory.h`, `hvm/e820.h`).

/// `XENMEM_decrease_reservation`: give extents back to Xen.
#[doc(alias = "XENMEM_decrease_reservation")]
pub const DECREASE_RESERVATION: u64 = 1;
/// `XENMEM_current_reservation`: how many pages the domain has.
#[doc(alias = "XENMEM_current_reservation")]
pub const CURRENT_RESERVATION: u64 = 3;
/// `XENMEM_maximum_reservation`: how many pages the domain may have.
#[doc(alias = "XENMEM_maximum_reservation")]
pub const MAXIMUM_RESERVATION: u64 = 4;
/// `XENMEM_populate_physmap`: get pages for extents that have none. One that has them loses them.
#[doc(alias = "XENMEM_populate_physmap")]
pub const POPULATE_PHYSMAP: u64 = 6;
/// `XENMEM_add_to_physmap`: place a special page at a frame of the caller's choice.
#[doc(alias = "XENMEM_add_to_physmap")]
pub const ADD_TO_PHYSMAP: u64 = 7;
/// `XENMEM_memory_map`: the memory map, for a domain whose start info holds none.
#[doc(alias = "XENMEM_memory_map")]
pub const MEMORY_MAP: u64 = 9;

/// `XENMAPSPACE_shared_info`: the page of shared information.
#[doc(alias = "XENMAPSPACE_shared_info")]
pub const MAP_SPACE_SHARED_INFO: u32 = 0;
/// `XENMAPSPACE_grant_table`: a page of the grant table.
#[doc(alias = "XENMAPSPACE_grant_table")]
pub const MAP_SPACE_GRANT_TABLE: u32 = 1;

/// `struct xen_memory_reservation`.
#[doc(alias = "xen_memory_reservation")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Reservation {
    /// Array of frame numbers, one for each extent.
    pub extent_start: *const u64,
    /// Entries of that array.
    pub nr_extents: u64,
    /// Pages in each extent, as a power of two.
    pub extent_order: u32,
    /// Placement flags; 0 for a guest.
    pub mem_flags: u32,
    /// The domain.
    pub domid: u16,
}

/// `struct xen_add_to_physmap`.
#[doc(alias = "xen_add_to_physmap")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AddToPhysmap {
    /// The domain.
    pub domid: u16,
    /// Used by ranges only.
    pub size: u16,
    /// Which kind of page, see [`MAP_SPACE_SHARED_INFO`].
    pub space: u32,
    /// Which page of that kind.
    pub index: u64,
    /// Where it shall appear.
    pub gpfn: u64,
}

/// `struct xen_memory_map`.
#[doc(alias = "xen_memory_map")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MemoryMap {
    /// In: entries that fit. Out: entries stored.
    pub nr_entries: u32,
    /// Array of [`E820Entry`].
    pub buffer: *mut E820Entry,
}

/// One entry of the memory map, 20 bytes without padding.
#[doc(alias = "e820entry")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed(4))]
pub struct E820Entry {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// See [`E820_RAM`]; everything else is not RAM.
    pub kind: u32,
}

/// The type of an entry that is usable RAM (`E820_RAM`, `XEN_HVM_MEMMAP_TYPE_RAM`).
pub const E820_RAM: u32 = 1;

/// More entries than Xen ever hands out (`E820MAX` in its toolstack is 128).
pub const MEMORY_MAP_ENTRIES: usize = 128;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

const _: () = assert!(size_of::<Reservation>() == 32);
const _: () = assert!(size_of::<AddToPhysmap>() == 24);
const _: () = assert!(size_of::<MemoryMap>() == 16);
const _: () = assert!(size_of::<E820Entry>() == 20);
