//! What Xen tells through CPUID (`arch-x86/cpuid.h`).

/// The first place to look for Xen's leaves; others follow in steps of [`BASE_STEP`] below [`BASE_END`].
#[doc(alias = "XEN_CPUID_FIRST_LEAF")]
pub const BASE_FIRST: u32 = 0x4000_0000;
/// Distance between two places.
pub const BASE_STEP: u32 = 0x100;
/// Where the search ends.
pub const BASE_END: u32 = 0x4001_0000;

/// The signature in EBX, ECX, EDX of Xen's first leaf: `XenVMMXenVMM`.
#[doc(alias = "XEN_CPUID_SIGNATURE_EBX")]
pub const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];

/// Offset of the leaf with Xen's version in EAX: major << 16 | minor.
pub const VERSION: u32 = 1;
/// Offset of the leaf about HVM and PVH domains.
#[doc(alias = "XEN_CPUID_LEAF")]
pub const HVM: u32 = 4;
/// In EAX of [`HVM`]: ECX holds the domain id.
#[doc(alias = "XEN_HVM_CPUID_DOMID_PRESENT")]
pub const HVM_DOMID_PRESENT: u32 = 1 << 4;
