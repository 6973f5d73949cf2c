//! Hypercall numbers, domain ids and the shared information page (`xen.h`, `arch-x86/xen.h`).

use core::fmt;

/// The number of a hypercall.
#[doc(alias = "__HYPERVISOR_")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[repr(u32)]
pub enum Hypercall {
    /// Memory reservation and the guest-physical address space.
    #[doc(alias = "__HYPERVISOR_memory_op")]
    Memory = 12,
    /// The timer of a virtual CPU.
    #[doc(alias = "__HYPERVISOR_set_timer_op")]
    SetTimer = 15,
    /// Text to the hypervisor's own console.
    #[doc(alias = "__HYPERVISOR_console_io")]
    ConsoleIo = 18,
    /// Grant tables.
    #[doc(alias = "__HYPERVISOR_grant_table_op")]
    GrantTable = 20,
    /// Yield, poll, shutdown.
    #[doc(alias = "__HYPERVISOR_sched_op")]
    Sched = 29,
    /// Event channels.
    #[doc(alias = "__HYPERVISOR_event_channel_op")]
    EventChannel = 32,
    /// Parameters of an HVM or PVH domain.
    #[doc(alias = "__HYPERVISOR_hvm_op")]
    Hvm = 34,
}

/// The number of a domain. It changes when the domain is restored or migrated.
#[doc(alias = "domid_t")]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u16);

impl DomainId {
    /// The calling domain, where an operation accepts it in place of its number.
    #[doc(alias = "DOMID_SELF")]
    pub const SELF: Self = Self(0x7ff0);
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SELF => f.write_str("self"),
            Self(id) => write!(f, "{id}"),
        }
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainId({self})")
    }
}

/// `CONSOLEIO_write`: the only operation of the console hypercall that a guest needs.
#[doc(alias = "CONSOLEIO_write")]
pub const CONSOLE_IO_WRITE: u64 = 0;

/// Byte offsets in the page of `struct shared_info`, 64-bit layout.
pub mod shared_info {
    /// `vcpu_info[0].evtchn_upcall_pending`, one byte.
    #[doc(alias = "evtchn_upcall_pending")]
    pub const UPCALL_PENDING: usize = 0;
    /// `vcpu_info[0].evtchn_pending_sel`, eight bytes.
    #[doc(alias = "evtchn_pending_sel")]
    pub const PENDING_SELECTOR: usize = 8;
    /// `vcpu_info[0].time`, see [`vcpu_time_info`](super::vcpu_time_info).
    pub const VCPU_TIME: usize = 32;
    /// `evtchn_pending`, 64 words of eight bytes.
    #[doc(alias = "evtchn_pending")]
    pub const PENDING: usize = 2048;
    /// `evtchn_mask`, 64 words of eight bytes.
    #[doc(alias = "evtchn_mask")]
    pub const MASK: usize = 2560;
    /// `wc_version`, four bytes; odd while Xen writes the wall clock.
    #[doc(alias = "wc_version")]
    pub const WALL_CLOCK_VERSION: usize = 3072;
    /// `wc_sec`, four bytes: the low half of the seconds since 1970 at system time zero.
    #[doc(alias = "wc_sec")]
    pub const WALL_CLOCK_SECONDS: usize = 3076;
    /// `wc_nsec`, four bytes.
    #[doc(alias = "wc_nsec")]
    pub const WALL_CLOCK_NANOSECONDS: usize = 3080;
    /// `wc_sec_hi`, four bytes: the high half of the seconds.
    #[doc(alias = "wc_sec_hi")]
    pub const WALL_CLOCK_SECONDS_HIGH: usize = 3084;
    /// Words in each of the two bitmaps.
    pub const WORDS: usize = 64;
}

/// Byte offsets in `struct vcpu_time_info`.
pub mod vcpu_time_info {
    /// Version, four bytes; odd while Xen writes.
    pub const VERSION: usize = 0;
    /// TSC when the system time was taken, eight bytes.
    #[doc(alias = "tsc_timestamp")]
    pub const TSC_TIMESTAMP: usize = 8;
    /// Nanoseconds since the host booted, eight bytes.
    #[doc(alias = "system_time")]
    pub const SYSTEM_TIME: usize = 16;
    /// Scale from TSC ticks to nanoseconds, 32-bit fraction, four bytes.
    #[doc(alias = "tsc_to_system_mul")]
    pub const TSC_TO_SYSTEM_MUL: usize = 24;
    /// Shift of the tick difference before scaling, one signed byte.
    #[doc(alias = "tsc_shift")]
    pub const TSC_SHIFT: usize = 28;
}
