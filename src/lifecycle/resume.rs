//! What Xen had of the domain, made anew in another one.
//!
//! What a domain that goes on elsewhere has is its memory and its virtual CPU. Everything else that it had from Xen is gone:
//! the page of shared information, how it is interrupted, ports, the timer, the grant table and what was mapped. The rings of
//! the console and of xenstore are empty, and their servers know nothing of what was said before.

use core::fmt;
use core::sync::atomic::Ordering;
use core::task::Waker;

use crate::abi::errno::Errno;
use crate::eventchn::Location;
use crate::hypercall::{self, Xen};
use crate::state::State;
use crate::time::Instant;

/// What Xen refused, without which the domain cannot go on.
pub(super) struct Failure(&'static str, Errno);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(what, errno) = self;
        write!(f, "Xen refused {what} after a resume: {errno}")
    }
}

/// Makes all of it anew, once the domain runs elsewhere. Each module knows what it needs; this alone knows the order.
///
/// Nothing is locked, as a task calls it. Wakers are the application's code: they are called when all that was Xen's is there
/// again.
pub(super) fn resume(state: &'static State, suspended: Instant) -> Result<(), Failure> {
    let failed = |what| move |errno| Failure(what, errno);

    // 1. What was made before is so from here on.
    state.generation.fetch_add(1, Ordering::Relaxed);

    // 2. The page of shared information, with all ports masked. Before that there is no time.
    state.info.resume().map_err(failed("the page of shared information"))?;
    state.clock.resume(&state.info, suspended);

    // 3. The callback for events, and with it the wall clock; then the interface of events that was chosen.
    state.executor.resume(state);
    state.delivery.resume().map_err(failed("the FIFO interface of events"))?;

    // 4. Ports, of which none is left; the timer's is bound when it is next set. Nor is there a watchdog.
    let waited = state.events.resume();
    state.timers.resume();
    state.lifecycle.watchdogs.resume();

    // 5. Grants and mappings, of which none is left either.
    state.grants.resume().map_err(failed("the grant table"))?;
    state.mapped.resume();

    // 6. The Xen and the number that the domain has now, and the CPU's generators of random numbers.
    state.random.resume();
    let domain = hypercall::domain_id().map_err(failed("the domain id"))?;
    let mut xen = state.xen.lock();
    *xen = Xen { version: hypercall::version().unwrap_or(xen.version), domain };
    drop(xen);

    // 7. The rings. Watches are registered again by xenstore's task.
    let (console, xenstore) = (Location::console(), Location::xenstore());
    state.console.resume(console);
    state.xenstore.resume(xenstore.filter(|xenstore| xenstore.is_apart(console)));

    // 8. Who waits for anything of it looks again.
    waited.for_each(Waker::wake);
    state.timers.look_again();
    state.grants.reclaim();
    Ok(())
}
