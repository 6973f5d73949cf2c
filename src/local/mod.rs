//! Domain-locals: the state of a domain, owned by the modules that use it.
//!
//! In a unikernel a domain-local is a static. On the host each simulated domain has its own value of it, and a thread sees those
//! of the domain that it runs: tests run in parallel, and one test can run several domains. [`domain_local!`] declares one that is
//! initialised by a constant, or set once by boot; [`vcpu_local!`] one that belongs to a virtual CPU. There is one virtual CPU today,
//! so both kinds have one value; what is declared by the second must not be reached from another vCPU once there are several.
//!
//! An [`Instance`] names a running domain. It is what [`current`] returns once boot has ended, and what handles keep: on the host
//! a handle of a domain that has ended, or of another one, is recognised by it.

#[cfg(not(target_os = "none"))]
mod host;
#[cfg(target_os = "none")]
mod unikernel;

use core::sync::atomic::{AtomicU64, Ordering};

#[cfg(not(target_os = "none"))]
use host as kind;
#[cfg(target_os = "none")]
use unikernel as kind;

#[cfg(not(target_os = "none"))]
pub(crate) use host::forget;
#[cfg(all(fuzzing, not(target_os = "none")))]
pub(crate) use host::reclaim;
pub(crate) use kind::{BootLocal, Booting, DomainLocal, Instance, current};

/// Declares domain-locals: with an initial value, which is a constant, or without, for boot to [set](BootLocal::set).
macro_rules! domain_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty $(= $value:expr)?;)+) => {
        $($crate::local::domain_local!(@one $(#[$attribute])* $visibility $name: $type $(= $value)?);)+
    };
    (@one $(#[$attribute:meta])* $visibility:vis $name:ident: $type:ty = $value:expr) => {
        $(#[$attribute])*
        $visibility static $name: $crate::local::DomainLocal<$type> = {
            #[cfg(target_os = "none")]
            {
                $crate::local::DomainLocal::new($value)
            }
            #[cfg(not(target_os = "none"))]
            {
                $crate::local::DomainLocal::new(|| $value)
            }
        };
    };
    (@one $(#[$attribute:meta])* $visibility:vis $name:ident: $type:ty) => {
        $(#[$attribute])*
        $visibility static $name: $crate::local::BootLocal<$type> = $crate::local::BootLocal::new();
    };
}

/// Declares locals of a virtual CPU, each with an initial value.
macro_rules! vcpu_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $value:expr;)+) => {
        $($crate::local::domain_local!(@one $(#[$attribute])* $visibility $name: $type = $value);)+
    };
}

pub(crate) use {domain_local, vcpu_local};

domain_local! {
    /// How often the domain was resumed elsewhere.
    static GENERATION: AtomicU64 = AtomicU64::new(0);
}

/// Begins a domain, whose locals boot then [starts](DomainLocal::start) and [sets](BootLocal::set), in its order. Boot does this once.
pub(crate) fn begin() -> Booting {
    let booting = kind::begin();
    GENERATION.start(&booting);
    booting
}

impl Instance {
    /// How often the domain was resumed elsewhere: its incarnation. Ports, grants, mappings and transactions of an earlier one are
    /// gone.
    #[inline]
    pub(crate) fn generation(self) -> u64 {
        GENERATION.of(self).load(Ordering::Relaxed)
    }

    /// Counts a resume: whatever was made before belongs to an earlier incarnation.
    pub(crate) fn resumed(self) {
        GENERATION.of(self).fetch_add(1, Ordering::Relaxed);
    }
}
