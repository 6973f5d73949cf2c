//! Parameters of an HVM or PVH domain (`hvm/hvm_op.h`, `hvm/params.h`).

/// `HVMOP_set_param`.
#[doc(alias = "HVMOP_set_param")]
pub const SET_PARAM: u64 = 0;
/// `HVMOP_get_param`.
#[doc(alias = "HVMOP_get_param")]
pub const GET_PARAM: u64 = 1;

/// `HVM_PARAM_CALLBACK_IRQ`: how pending events interrupt a virtual CPU.
#[doc(alias = "HVM_PARAM_CALLBACK_IRQ")]
pub const CALLBACK_IRQ: u32 = 0;
/// The value of that parameter for a vector: type 2 in the highest byte, the vector in the lowest.
#[doc(alias = "HVM_PARAM_CALLBACK_TYPE_VECTOR")]
pub const CALLBACK_VECTOR: u64 = 2 << 56;
/// `HVM_PARAM_STORE_PFN`: the frame of the ring to xenstore.
#[doc(alias = "HVM_PARAM_STORE_PFN")]
pub const STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`: the port of xenstore.
#[doc(alias = "HVM_PARAM_STORE_EVTCHN")]
pub const STORE_EVTCHN: u32 = 2;
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
