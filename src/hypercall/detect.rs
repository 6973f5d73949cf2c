//! Is there a Xen below, and what does it say of itself and of this domain.

use core::fmt;

use crate::abi::cpuid::{BASE_END, BASE_FIRST, BASE_STEP, HVM, HVM_DOMID_PRESENT, SIGNATURE, VERSION};
use crate::abi::xen::DomainId;
use crate::arch;

/// A version of Xen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct XenVersion {
    /// The part before the point.
    pub major: u16,
    /// The part after the point.
    pub minor: u16,
}

impl XenVersion {
    /// The oldest one that this crate runs on.
    pub const OLDEST: Self = Self { major: 4, minor: 10 };
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What Xen's CPUID leaves say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Xen {
    pub(crate) version: XenVersion,
    /// Absent on versions that do not tell.
    pub(crate) domain: Option<DomainId>,
}

/// Whether Xen is there: cheap where it is, and usable before anything else is set up.
pub(crate) fn present() -> bool {
    base().is_some()
}

/// The first of Xen's leaves. They move when the domain also has Viridian leaves.
fn base() -> Option<u32> {
    (BASE_FIRST..BASE_END).step_by(BASE_STEP as usize).find(|&base| arch::cpuid(base)[1..] == SIGNATURE)
}

/// Reads the leaves, if Xen is there.
pub(crate) fn detect() -> Option<Xen> {
    let base = base()?;
    let [version, ..] = arch::cpuid(base + VERSION);
    let [features, _, domid, _] = arch::cpuid(base + HVM);
    Some(Xen {
        version: XenVersion { major: (version >> 16) as u16, minor: version as u16 },
        domain: (features & HVM_DOMID_PRESENT != 0).then_some(DomainId(domid as u16)),
    })
}
