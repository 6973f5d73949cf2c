//! Is there a Xen below, and what does it say of itself and of this domain.

use core::fmt;

use super::{event_alloc_unbound, event_close, event_status};
use crate::abi::cpuid::{BASE_END, BASE_FIRST, BASE_STEP, HVM, HVM_DOMID_PRESENT, SIGNATURE, VERSION};
use crate::abi::errno::Errno;
use crate::abi::event_channel::status;
use crate::abi::xen::DomainId;
use crate::arch;

/// A version of Xen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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

/// The version of Xen and the id of this domain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Xen {
    pub(crate) version: XenVersion,
    pub(crate) domain: DomainId,
}

/// Whether Xen is there: cheap where it is, and usable before anything else is set up.
pub(crate) fn present() -> bool {
    Leaves::find().is_some()
}

/// Xen's CPUID leaves. Reading one is an exit to Xen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaves {
    base: u32,
}

impl Leaves {
    /// Looks for the first of them. They move when the domain also has Viridian leaves.
    pub(crate) fn find() -> Option<Self> {
        let mut bases = (BASE_FIRST..BASE_END).step_by(BASE_STEP as usize);
        bases.find(|&base| arch::cpuid(base)[1..] == SIGNATURE).map(|base| Self { base })
    }

    /// The version of Xen.
    pub(crate) fn version(self) -> XenVersion {
        let [version, ..] = arch::cpuid(self.base + VERSION);
        XenVersion { major: (version >> 16) as u16, minor: version as u16 }
    }
}

/// The id of this domain, from CPUID or, where that leaf is absent, from an event channel.
///
/// An older Xen lacks the leaf, and so does a domain whose toolstack limits the leaves (`maxhvleaf`). Xen resolves
/// `DOMID_SELF` when a port is allocated, and the status of the port has the number.
///
/// # Errors
///
/// Xen allocates no port.
pub(crate) fn domain_id(leaves: Option<Leaves>) -> Result<DomainId, Errno> {
    if let Some(Leaves { base }) = leaves
        && let [features, _, domid, _] = arch::cpuid(base + HVM)
        && features & HVM_DOMID_PRESENT != 0
    {
        return Ok(DomainId(domid as u16));
    }
    let port = event_alloc_unbound(DomainId::SELF)?;
    let bound = event_status(port);
    event_close(port)?;
    match bound? {
        unbound if unbound.status == status::UNBOUND => Ok(DomainId(unbound.bound[0] as u16)),
        _ => Err(Errno::EINVAL),
    }
}
