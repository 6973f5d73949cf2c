//! Event channels (`event_channel.h`).

/// `EVTCHNOP_send`.
#[doc(alias = "EVTCHNOP_send")]
pub const SEND: u64 = 4;

/// `struct evtchn_send`.
#[doc(alias = "evtchn_send")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Send {
    /// The local port.
    pub port: u32,
}

/// Ports of the two-level interface; port 0 is never valid.
#[doc(alias = "EVTCHN_2L_NR_CHANNELS")]
pub const TWO_LEVEL_PORTS: u32 = 4096;

const _: () = assert!(size_of::<Send>() == 4);
