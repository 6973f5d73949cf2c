//! The state of this domain, behind one accessor.
//!
//! In a unikernel it is a static that boot fills once. On the host each simulated domain has its own, and the thread
//! that runs a domain sees that one, so that tests run in parallel and one test can run several domains. Besides it
//! the crate has few statics that change, none of which a test needs more than one of: the heap, which an attribute
//! wants to be one, the last words, which must be at a symbol, and two counters that run before there is a state and
//! after it is broken: of hypercalls, and of crashes.

#[cfg(target_os = "none")]
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

use crate::abi::xen::DomainId;
use crate::console::Attachment;
use crate::console::log::LogState;
use crate::domain::Module;
use crate::executor::Executor;
use crate::hypercall::Xen;
use crate::instance::Instance;
use crate::memory::{Exhaustion, Stack, Tables, balloon, holes, pages};
use crate::shared::SharedInfo;
use crate::{eventchn, gnttab, lifecycle, random, time, xenstore};

/// Modules that are kept; `xl` passes one, its `ramdisk`.
pub(crate) const MAX_MODULES: usize = 16;

/// Everything that a domain is.
pub(crate) struct State {
    pub(crate) instance: Instance,
    /// How often the domain was resumed elsewhere: what of Xen's was made under another number is gone.
    pub(crate) generation: AtomicU64,
    pub(crate) xen: Mutex<Xen>,
    pub(crate) command_line: &'static [u8],
    pub(crate) modules: heapless::Vec<Module, MAX_MODULES>,
    pub(crate) exhaustion: Exhaustion,
    pub(crate) main_stack: Stack,
    pub(crate) tables: Mutex<Tables>,
    pub(crate) pages: Mutex<pages::Store>,
    pub(crate) balloon: Mutex<balloon::Balloon>,
    pub(crate) holes: Mutex<holes::Holes>,
    pub(crate) info: SharedInfo,
    pub(crate) console: Attachment,
    pub(crate) xenstore: xenstore::Connection,
    pub(crate) lifecycle: lifecycle::Lifecycle,
    pub(crate) log: LogState,
    pub(crate) random: random::Memory,
    pub(crate) executor: Executor,
    pub(crate) timers: time::Timers,
    pub(crate) delivery: eventchn::Delivery,
    pub(crate) events: eventchn::Table,
    pub(crate) grants: gnttab::Grants,
    pub(crate) mapped: gnttab::Mapped,
    pub(crate) clock: time::Clock,
}

impl State {
    /// The number of the domain. It changes when the domain is restored or migrated.
    pub(crate) fn domain(&self) -> DomainId {
        self.xen.lock().domain
    }

    /// How often the domain was resumed elsewhere.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether this is the domain that runs here. A test on the host may keep a handle of one that has ended, or use it in
    /// another.
    pub(crate) fn is_running(&self) -> bool {
        self.instance.is_current()
    }
}

#[cfg(target_os = "none")]
impl State {
    /// Whether the code that runs has something of the state in hand: on one virtual CPU nobody else can. Code of the
    /// application's that is called then must not come back.
    #[cfg_attr(not(feature = "allocator"), expect(dead_code, reason = "only this crate's own heap asks"))]
    pub(crate) fn is_at_work(&self) -> bool {
        #[cfg(feature = "embassy-executor")]
        if crate::embassy::is_locked() {
            return true;
        }
        self.timers.is_locked()
            || self.events.is_locked()
            || self.grants.is_locked()
            || self.executor.is_locked()
            || self.delivery.is_locked()
            || self.console.is_locked()
            || self.xenstore.is_locked()
            || self.lifecycle.is_locked()
            || self.tables.is_locked()
            || self.balloon.is_locked()
            || self.pages.is_locked()
            || self.holes.is_locked()
            || self.xen.is_locked()
    }
}

#[cfg(target_os = "none")]
static STATE: spin::Once<State> = spin::Once::new();

/// The state, once boot has made it.
#[cfg(target_os = "none")]
pub(crate) fn get() -> Option<&'static State> {
    STATE.get()
}

/// The state of a domain, if that runs here.
pub(crate) fn of(instance: Instance) -> Option<&'static State> {
    get().filter(|_| instance.is_current())
}

/// Keeps the state for the life of the domain. Boot does this once.
#[cfg(target_os = "none")]
pub(crate) fn install(state: State) -> &'static State {
    // Not to be dropped if there is one already: code for a domain's end, which nothing else has a use for.
    let state = ManuallyDrop::new(state);
    STATE.call_once(|| ManuallyDrop::into_inner(state))
}

#[cfg(not(target_os = "none"))]
pub(crate) use crate::sim::state::{get, install, next_instance};
