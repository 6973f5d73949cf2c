//! Grant tables, version 1: pages that a domain lets others map or copy (`grant_table.h`).

/// Entries that the toolstack fills in before the domain starts (`GNTTAB_NR_RESERVED_ENTRIES`).
#[doc(alias = "GNTTAB_NR_RESERVED_ENTRIES")]
pub const RESERVED_ENTRIES: u32 = 8;
/// Bytes in an entry: flags of 16 bits, the domain that may use it, then the frame of 32 bits.
#[doc(alias = "grant_entry_v1_t")]
pub const ENTRY_SIZE: usize = 8;
/// Entries in a page of the table.
pub const ENTRIES_PER_FRAME: u32 = (super::memory::PAGE_SIZE as usize / ENTRY_SIZE) as u32;

/// Offset of the flags in an entry, to be written last.
pub const ENTRY_FLAGS: usize = 0;
/// Offset of the domain's id in an entry.
pub const ENTRY_DOMAIN: usize = 2;
/// Offset of the frame's number in an entry.
pub const ENTRY_FRAME: usize = 4;

bitflags::bitflags! {
    /// Flags of an entry (`GTF_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Flags: u16 {
        /// The domain may map the frame, and copy from and to it.
        #[doc(alias = "GTF_permit_access")]
        const PERMIT_ACCESS = 1;
        /// But not write to it.
        #[doc(alias = "GTF_readonly")]
        const READ_ONLY = 1 << 2;
        /// Xen's: it is mapped, or being copied from.
        #[doc(alias = "GTF_reading")]
        const READING = 1 << 3;
        /// Xen's: it is mapped writable, or being copied to.
        #[doc(alias = "GTF_writing")]
        const WRITING = 1 << 4;
    }
}

/// `GNTTABOP_map_grant_ref`: place pages of other domains.
#[doc(alias = "GNTTABOP_map_grant_ref")]
pub const MAP_GRANT_REF: u64 = 0;
/// `GNTTABOP_unmap_grant_ref`: take them away again.
#[doc(alias = "GNTTABOP_unmap_grant_ref")]
pub const UNMAP_GRANT_REF: u64 = 1;
/// `GNTTABOP_copy`: copy from and to pages of other domains.
#[doc(alias = "GNTTABOP_copy")]
pub const COPY: u64 = 5;
/// `GNTTABOP_query_size`: how large the table is, and may be.
#[doc(alias = "GNTTABOP_query_size")]
pub const QUERY_SIZE: u64 = 6;

/// Map for the CPU (`GNTMAP_host_map`).
#[doc(alias = "GNTMAP_host_map")]
pub const MAP_HOST: u32 = 1 << 1;
/// Map read-only (`GNTMAP_readonly`).
#[doc(alias = "GNTMAP_readonly")]
pub const MAP_READ_ONLY: u32 = 1 << 2;

/// The source of a copy is a grant (`GNTCOPY_source_gref`).
#[doc(alias = "GNTCOPY_source_gref")]
pub const COPY_SOURCE_GRANT: u16 = 1 << 0;
/// The destination of a copy is a grant (`GNTCOPY_dest_gref`).
#[doc(alias = "GNTCOPY_dest_gref")]
pub const COPY_DESTINATION_GRANT: u16 = 1 << 1;

/// What Xen says of one operation of a batch (`GNTST_*`): negative for errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Status(pub i16);

impl Status {
    /// Done.
    #[doc(alias = "GNTST_okay")]
    pub const OKAY: Self = Self(0);
    /// Refused for a reason without a number of its own.
    #[doc(alias = "GNTST_general_error")]
    pub const GENERAL_ERROR: Self = Self(-1);
    /// There is no such domain.
    #[doc(alias = "GNTST_bad_domain")]
    pub const BAD_DOMAIN: Self = Self(-2);
    /// The reference is no grant, or none to this domain.
    #[doc(alias = "GNTST_bad_gntref")]
    pub const BAD_REFERENCE: Self = Self(-3);
    /// There is no such mapping.
    #[doc(alias = "GNTST_bad_handle")]
    pub const BAD_HANDLE: Self = Self(-4);
    /// The address cannot be mapped at.
    #[doc(alias = "GNTST_bad_virt_addr")]
    pub const BAD_VIRTUAL_ADDRESS: Self = Self(-5);
    /// As the last, for a device.
    #[doc(alias = "GNTST_bad_dev_addr")]
    pub const BAD_DEVICE_ADDRESS: Self = Self(-6);
    /// There is no room in the IOMMU.
    #[doc(alias = "GNTST_no_device_space")]
    pub const NO_DEVICE_SPACE: Self = Self(-7);
    /// The grant allows less than was asked for.
    #[doc(alias = "GNTST_permission_denied")]
    pub const PERMISSION_DENIED: Self = Self(-8);
    /// The page cannot be used so.
    #[doc(alias = "GNTST_bad_page")]
    pub const BAD_PAGE: Self = Self(-9);
    /// A copy reaches beyond a page.
    #[doc(alias = "GNTST_bad_copy_arg")]
    pub const BAD_COPY_ARGUMENT: Self = Self(-10);
    /// The frame's number does not fit.
    #[doc(alias = "GNTST_address_too_big")]
    pub const ADDRESS_TOO_BIG: Self = Self(-11);
    /// The page is not there now: try again.
    #[doc(alias = "GNTST_eagain")]
    pub const AGAIN: Self = Self(-12);
    /// Xen's own records of mappings are full.
    #[doc(alias = "GNTST_no_space")]
    pub const NO_SPACE: Self = Self(-13);
}

/// `struct gnttab_map_grant_ref`.
#[doc(alias = "gnttab_map_grant_ref")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MapGrantRef {
    /// Guest-physical address to place the page at; nothing lies there.
    pub host_addr: u64,
    /// See [`MAP_HOST`].
    pub flags: u32,
    /// The grant reference.
    pub reference: u32,
    /// Whose.
    pub dom: u16,
    /// Out.
    pub status: Status,
    /// Out: what to unmap it by.
    pub handle: u32,
    /// Out: for devices.
    pub dev_bus_addr: u64,
}

/// `struct gnttab_unmap_grant_ref`.
#[doc(alias = "gnttab_unmap_grant_ref")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// Where it was placed.
    pub host_addr: u64,
    /// For devices; 0.
    pub dev_bus_addr: u64,
    /// What the mapping gave.
    pub handle: u32,
    /// Out.
    pub status: Status,
}

/// One side of a copy: `struct gnttab_copy_ptr`.
#[doc(alias = "gnttab_copy_ptr")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CopySide {
    /// A grant reference, in the low 32 bits, or a frame of the own domain's.
    pub place: u64,
    /// Whose; `DOMID_SELF` for a frame.
    pub domid: u16,
    /// Byte in the page.
    pub offset: u16,
}

/// `struct gnttab_copy`.
#[doc(alias = "gnttab_copy")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GrantCopy {
    /// From where.
    pub source: CopySide,
    /// To where.
    pub dest: CopySide,
    /// Bytes; neither side reaches beyond its page.
    pub len: u16,
    /// See [`COPY_SOURCE_GRANT`].
    pub flags: u16,
    /// Out.
    pub status: Status,
}

/// `struct gnttab_query_size`.
#[doc(alias = "gnttab_query_size")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct QuerySize {
    /// Whose table.
    pub dom: u16,
    /// Out: pages of the table.
    pub nr_frames: u32,
    /// Out: pages that it may grow to.
    pub max_nr_frames: u32,
    /// Out.
    pub status: Status,
}

const _: () = assert!(size_of::<MapGrantRef>() == 32);
const _: () = assert!(size_of::<UnmapGrantRef>() == 24);
const _: () = assert!(size_of::<GrantCopy>() == 40);
const _: () = assert!(size_of::<QuerySize>() == 16);
