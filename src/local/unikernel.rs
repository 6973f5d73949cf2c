//! Domain-locals of a unikernel: statics.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::Once;

/// Boot has set all locals.
static BOOTED: AtomicBool = AtomicBool::new(false);

/// The domain: there is one, so nothing has to be kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Instance(());

impl Instance {
    /// Whether it is the domain that runs here: always.
    #[inline]
    pub(crate) const fn is_running(self) -> bool {
        true
    }

    /// The domain, if it runs here: always.
    #[inline]
    pub(crate) const fn if_running(self) -> Option<Self> {
        Some(self)
    }
}

/// The domain, once boot has ended.
#[inline]
pub(crate) fn current() -> Option<Instance> {
    BOOTED.load(Ordering::Acquire).then_some(Instance(()))
}

/// A domain whose locals are being set.
pub(crate) struct Booting(Instance);

/// Begins the domain.
pub(super) const fn begin() -> Booting {
    Booting(Instance(()))
}

impl Booting {
    /// All locals are set: from here on the domain is [`current`].
    pub(crate) fn finish(self) -> Instance {
        BOOTED.store(true, Ordering::Release);
        self.0
    }
}

/// A local with a constant initial value.
pub(crate) struct DomainLocal<T>(T);

impl<T> DomainLocal<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }

    /// Makes the value of a domain that boots: the linker has.
    #[inline]
    pub(crate) const fn start(&'static self, _: &Booting) {}

    /// The domain's value.
    #[inline]
    pub(crate) const fn of(&'static self, _: Instance) -> &'static T {
        &self.0
    }
}

/// A local that boot sets.
pub(crate) struct BootLocal<T>(Once<T>);

impl<T> BootLocal<T> {
    pub(crate) const fn new() -> Self {
        Self(Once::new())
    }

    /// Sets the value, once.
    pub(crate) fn set(&'static self, _: &Booting, value: T) -> &'static T {
        // Not to be dropped if there is one already: code for a domain's end, which nothing else has a use for.
        let value = ManuallyDrop::new(value);
        self.0.call_once(|| ManuallyDrop::into_inner(value))
    }

    /// The domain's value.
    #[inline]
    pub(crate) fn of(&'static self, _: Instance) -> &'static T {
        match self.0.get() {
            Some(value) => value,
            None => unset(),
        }
    }
}

/// An [`Instance`] exists only after boot, which sets every local.
#[cold]
fn unset() -> ! {
    panic!("boot has not set a domain-local")
}
