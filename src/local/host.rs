//! Domain-locals on the host: a slot for each local in each simulated domain.
//!
//! Slots live as long as the process, as statics do in a unikernel, so that a waker may be called on any thread and at any time. A
//! fuzzer, which runs many domains, frees them between two of its cases.

use core::any::Any;
use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::vec::Vec;

/// Locals that the crate may declare.
const MOST: usize = 64;

/// The values of one domain.
struct Slots {
    values: [OnceLock<Box<dyn Any + Send + Sync>>; MOST],
    /// Slots in the order in which they were filled.
    order: Mutex<Vec<usize>>,
}

impl Drop for Slots {
    fn drop(&mut self) {
        let order = core::mem::take(&mut *self.order.lock().unwrap_or_else(PoisonError::into_inner));
        order.into_iter().rev().for_each(|index| drop(self.values[index].take()));
    }
}

/// All slots ever made: a leak checker finds them here.
static ALL: Mutex<Vec<Instance>> = Mutex::new(Vec::new());

std::thread_local! {
    static CURRENT: Cell<Option<Instance>> = const { Cell::new(None) };
}

/// A simulated domain.
#[derive(Clone, Copy)]
pub(crate) struct Instance(&'static Slots);

impl Instance {
    /// Whether it is the domain that runs on this thread. A test may keep a handle of one that has ended, or pass it to another.
    pub(crate) fn is_running(self) -> bool {
        current() == Some(self)
    }

    /// The domain, if it runs on this thread.
    pub(crate) fn if_running(self) -> Option<Self> {
        Some(self).filter(|domain| domain.is_running())
    }

    /// The value in a slot, which is filled if it is empty and there is something to fill it with.
    fn get<T: Send + Sync + 'static>(self, index: usize, init: Option<fn() -> T>) -> Option<&'static T> {
        let slot = &self.0.values[index];
        let value = match (slot.get(), init) {
            (Some(value), _) => value,
            (None, Some(init)) => slot.get_or_init(|| {
                self.0.order.lock().unwrap_or_else(PoisonError::into_inner).push(index);
                Box::new(init())
            }),
            (None, None) => return None,
        };
        value.downcast_ref()
    }
}

impl PartialEq for Instance {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Eq for Instance {}

impl core::fmt::Debug for Instance {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Instance").field(&core::ptr::from_ref(self.0)).finish()
    }
}

/// The domain that this thread runs, once its boot has ended.
pub(crate) fn current() -> Option<Instance> {
    CURRENT.get()
}

/// Takes the domain from this thread.
pub(crate) fn forget() {
    CURRENT.set(None);
}

/// Frees the locals of all domains.
///
/// # Safety
///
/// No domain runs, and nothing of any is used again.
#[cfg(fuzzing)]
pub(crate) unsafe fn reclaim() {
    let all = core::mem::take(&mut *ALL.lock().unwrap_or_else(PoisonError::into_inner));
    for Instance(slots) in all {
        // SAFETY: `begin` has leaked a box, and the caller promises that nothing uses it any more.
        drop(unsafe { Box::from_raw(core::ptr::from_ref(slots).cast_mut()) });
    }
}

/// A domain whose locals are being set.
pub(crate) struct Booting(Instance);

/// Begins a domain.
pub(super) fn begin() -> Booting {
    let slots = Slots { values: [const { OnceLock::new() }; MOST], order: Mutex::new(Vec::new()) };
    let instance = Instance(Box::leak(Box::new(slots)));
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(instance);
    Booting(instance)
}

impl Booting {
    /// All locals are set: from here on the domain is [`current`] on this thread.
    pub(crate) fn finish(self) -> Instance {
        CURRENT.set(Some(self.0));
        self.0
    }
}

/// The place of a local among the slots, given to it when it is first used.
struct Index(OnceLock<usize>);

impl Index {
    fn get(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        *self.0.get_or_init(|| NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A local with a constant initial value.
pub(crate) struct DomainLocal<T> {
    index: Index,
    init: fn() -> T,
}

impl<T: Send + Sync + 'static> DomainLocal<T> {
    pub(crate) const fn new(init: fn() -> T) -> Self {
        Self { index: Index(OnceLock::new()), init }
    }

    /// Makes the value of a domain that boots.
    pub(crate) fn start(&'static self, booting: &Booting) {
        booting.0.get(self.index.get(), Some(self.init));
    }

    /// A domain's value.
    pub(crate) fn of(&'static self, domain: Instance) -> &'static T {
        domain.get(self.index.get(), Some(self.init)).expect("a slot has the type of its local")
    }
}

/// A local that boot sets.
pub(crate) struct BootLocal<T> {
    index: Index,
    kind: PhantomData<fn() -> T>,
}

impl<T: Send + Sync + 'static> BootLocal<T> {
    pub(crate) const fn new() -> Self {
        Self { index: Index(OnceLock::new()), kind: PhantomData }
    }

    /// Sets the value, once.
    pub(crate) fn set(&'static self, booting: &Booting, value: T) -> &'static T {
        let (slots, index) = (booting.0.0, self.index.get());
        slots.order.lock().unwrap_or_else(PoisonError::into_inner).push(index);
        slots.values[index].get_or_init(|| Box::new(value)).downcast_ref().expect("a slot has the type of its local")
    }

    /// A domain's value.
    pub(crate) fn of(&'static self, domain: Instance) -> &'static T {
        domain.get(self.index.get(), None).expect("boot sets every local")
    }
}
