//! Parameters of an HVM or PVH domain (`hvm/hvm_op.h`, `hvm/params.h`).

/// `HVMOP_get_param`.
#[doc(alias = "HVMOP_get_param")]
pub const GET_PARAM: u64 = 1;

/// `HVM_PARAM_CONSOLE_PFN`: the frame of the console ring.
#[doc(alias = "HVM_PARAM_CONSOLE_PFN")]
pub const CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`: the port of the console.
#[doc(alias = "HVM_PARAM_CONSOLE_EVTCHN")]
pub const CONSOLE_EVTCHN: u32 = 18;

/// `struct xen_hvm_param`.
#[doc(alias = "xen_hvm_param")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Param {
    /// The domain.
    pub domid: u16,
    /// Padding of the C structure.
    pub pad: u16,
    /// Which parameter.
    pub index: u32,
    /// Its value, in or out.
    pub value: u64,
}

const _: () = assert!(size_of::<Param>() == 16);
