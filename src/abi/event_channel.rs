//! Event channels (`event_channel.h`).

/// `EVTCHNOP_bind_interdomain`.
#[doc(alias = "EVTCHNOP_bind_interdomain")]
pub const BIND_INTERDOMAIN: u64 = 0;
/// `EVTCHNOP_bind_virq`.
#[doc(alias = "EVTCHNOP_bind_virq")]
pub const BIND_VIRQ: u64 = 1;
/// `EVTCHNOP_close`.
#[doc(alias = "EVTCHNOP_close")]
pub const CLOSE: u64 = 3;
/// `EVTCHNOP_send`.
#[doc(alias = "EVTCHNOP_send")]
pub const SEND: u64 = 4;
/// `EVTCHNOP_status`.
#[doc(alias = "EVTCHNOP_status")]
pub const STATUS: u64 = 5;
/// `EVTCHNOP_alloc_unbound`.
#[doc(alias = "EVTCHNOP_alloc_unbound")]
pub const ALLOC_UNBOUND: u64 = 6;
/// `EVTCHNOP_bind_ipi`.
#[doc(alias = "EVTCHNOP_bind_ipi")]
pub const BIND_IPI: u64 = 7;

/// `EVTCHNOP_init_control`.
#[doc(alias = "EVTCHNOP_init_control")]
pub const INIT_CONTROL: u64 = 11;
/// `EVTCHNOP_expand_array`.
#[doc(alias = "EVTCHNOP_expand_array")]
pub const EXPAND_ARRAY: u64 = 12;
/// `EVTCHNOP_set_priority`.
#[doc(alias = "EVTCHNOP_set_priority")]
pub const SET_PRIORITY: u64 = 13;

/// `struct evtchn_send`, and `struct evtchn_close`: a port of the own domain.
#[doc(alias("evtchn_send", "evtchn_close"))]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnSend {
    /// The local port.
    pub port: u32,
}

/// `struct evtchn_alloc_unbound`.
#[doc(alias = "evtchn_alloc_unbound")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AllocUnbound {
    /// The domain that the port belongs to.
    pub dom: u16,
    /// The domain that may bind to it.
    pub remote_dom: u16,
    /// The port, out.
    pub port: u32,
}

/// `struct evtchn_bind_interdomain`.
#[doc(alias = "evtchn_bind_interdomain")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindInterdomain {
    /// The peer.
    pub remote_dom: u16,
    /// Padding of the C structure.
    pub pad: u16,
    /// Its port.
    pub remote_port: u32,
    /// The port here, out.
    pub local_port: u32,
}

/// `struct evtchn_bind_virq`.
#[doc(alias = "evtchn_bind_virq")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindVirq {
    /// A number of [`virq`].
    pub virq: u32,
    /// The virtual CPU.
    pub vcpu: u32,
    /// The port, out.
    pub port: u32,
}

/// `struct evtchn_bind_ipi`.
#[doc(alias = "evtchn_bind_ipi")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindIpi {
    /// The virtual CPU.
    pub vcpu: u32,
    /// The port, out.
    pub port: u32,
}

/// `struct evtchn_status`.
#[doc(alias = "evtchn_status")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    /// The domain.
    pub dom: u16,
    /// Padding of the C structure.
    pub pad: u16,
    /// Its port.
    pub port: u32,
    /// A number of [`status`], out.
    pub status: u32,
    /// The virtual CPU that it notifies, out.
    pub vcpu: u32,
    /// What it is bound to, out: a domain and its port, a domain alone, or a VIRQ.
    pub bound: [u32; 2],
}

/// `struct evtchn_init_control`.
#[doc(alias = "evtchn_init_control")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct InitControl {
    /// The frame of the control block.
    pub control_gfn: u64,
    /// Where in the frame it begins.
    pub offset: u32,
    /// The virtual CPU that it is for.
    pub vcpu: u32,
    /// Bits of a link to a port, out.
    pub link_bits: u8,
    /// Padding of the C structure.
    pub pad: [u8; 7],
}

/// `struct evtchn_expand_array`.
#[doc(alias = "evtchn_expand_array")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ExpandArray {
    /// The frame of the next page of event words.
    pub array_gfn: u64,
}

/// `struct evtchn_set_priority`.
#[doc(alias = "evtchn_set_priority")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SetPriority {
    /// The local port.
    pub port: u32,
    /// 0, the highest, to 15.
    pub priority: u32,
}

/// States of a port (`EVTCHNSTAT_*`).
#[doc(alias = "EVTCHNSTAT_")]
pub mod status {
    /// It is not in use.
    #[doc(alias = "EVTCHNSTAT_closed")]
    pub const CLOSED: u32 = 0;
    /// It waits for a peer.
    #[doc(alias = "EVTCHNSTAT_unbound")]
    pub const UNBOUND: u32 = 1;
    /// It has a peer.
    #[doc(alias = "EVTCHNSTAT_interdomain")]
    pub const INTERDOMAIN: u32 = 2;
    /// It has a VIRQ.
    #[doc(alias = "EVTCHNSTAT_virq")]
    pub const VIRQ: u32 = 4;
    /// It is this domain's own.
    #[doc(alias = "EVTCHNSTAT_ipi")]
    pub const IPI: u32 = 5;
}

/// Virtual interrupts (`VIRQ_*`, `xen.h`).
#[doc(alias = "VIRQ_")]
pub mod virq {
    /// The timer of a virtual CPU.
    #[doc(alias = "VIRQ_TIMER")]
    pub const TIMER: u32 = 0;
    /// Asked for with `xl debug-keys q`, of all domains.
    #[doc(alias = "VIRQ_DEBUG")]
    pub const DEBUG: u32 = 1;
    /// A domain has ended, or wants the toolstack's attention: for the domain in which that runs.
    #[doc(alias = "VIRQ_DOM_EXC")]
    pub const DOM_EXC: u32 = 3;
}

/// Ports of the two-level interface; port 0 is never valid.
#[doc(alias = "EVTCHN_2L_NR_CHANNELS")]
pub const TWO_LEVEL_PORTS: u32 = 4096;

const _: () =
    assert!(size_of::<EvtchnSend>() == 4 && size_of::<AllocUnbound>() == 8 && size_of::<BindInterdomain>() == 12);
/// The FIFO interface: bits of an event word, and byte offsets in the control block.
#[doc(alias = "EVTCHN_FIFO_")]
pub mod fifo {
    /// The port has an event.
    #[doc(alias = "EVTCHN_FIFO_PENDING")]
    pub const PENDING: u32 = 1 << 31;
    /// The port is not put into a queue.
    #[doc(alias = "EVTCHN_FIFO_MASKED")]
    pub const MASKED: u32 = 1 << 30;
    /// The port is in a queue.
    #[doc(alias = "EVTCHN_FIFO_LINKED")]
    pub const LINKED: u32 = 1 << 29;
    /// Xen is about to change the link: the port may not be unmasked.
    #[doc(alias = "EVTCHN_FIFO_BUSY")]
    pub const BUSY: u32 = 1 << 28;
    /// The next port in the queue; zero at its end.
    #[doc(alias = "EVTCHN_FIFO_LINK_MASK")]
    pub const LINK: u32 = (1 << 17) - 1;
    /// `ready`, four bytes: priorities whose queue is no longer empty.
    pub const READY: usize = 0;
    /// `head`, four bytes for each priority: the first port of its queue.
    pub const HEAD: usize = 8;
    /// Bytes of the control block, which begins at a multiple of eight.
    pub const CONTROL_SIZE: u32 = 72;
    /// Priorities, from 0, the highest.
    #[doc(alias = "EVTCHN_FIFO_MAX_QUEUES")]
    pub const PRIORITIES: usize = 16;
    /// What a port has unless it is given another.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_DEFAULT")]
    pub const PRIORITY_DEFAULT: u8 = 7;
    /// Event words in a page.
    pub const WORDS: usize = 1024;
    /// Ports of the interface; port 0 is never valid.
    #[doc(alias = "EVTCHN_FIFO_NR_CHANNELS")]
    pub const PORTS: u32 = 1 << 17;
}

const _: () = assert!(size_of::<InitControl>() == 24 && size_of::<ExpandArray>() == 8 && size_of::<SetPriority>() == 8);
const _: () = assert!(size_of::<BindVirq>() == 12 && size_of::<BindIpi>() == 8 && size_of::<Status>() == 24);
