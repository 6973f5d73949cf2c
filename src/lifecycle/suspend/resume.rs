//! What Xen had of the domain, made anew in another one.
//!
//! What a domain that goes on elsewhere has is its memory and its virtual CPU. Everything else that it had from Xen is gone:
//! the page of shared information, how it is interrupted, ports, the timer, the grant table and what was mapped. The rings of
//! the console and of xenstore are empty, and their servers know nothing of what was said before.

use core::fmt;
use core::task::Waker;

use crate::abi::errno::Errno;
use crate::console::CONSOLE;
use crate::eventchn::DELIVERY;
use crate::eventchn::PORTS;
use crate::eventchn::TIMER;
use crate::gnttab::GRANTS;
use crate::gnttab::MAPPED;
use crate::hypercall::XEN;
use crate::hypercall::{self, RingParams, Xen};
use crate::lifecycle::watchdog::WATCHDOGS;
use crate::local::Instance;
use crate::random::RANDOM;
use crate::shared::INFO;
use crate::time::CLOCK;
use crate::time::Instant;
use crate::time::TIMERS;
use crate::xenstore::CONNECTION;

/// What Xen refused, without which the domain cannot go on.
pub(in crate::lifecycle) struct Failure(&'static str, Errno);

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
pub(in crate::lifecycle) fn resume(state: Instance, suspended: Instant) -> Result<(), Failure> {
    let failed = |what| move |errno| Failure(what, errno);

    // 1. What was made before is so from here on.
    state.resumed();

    // 2. The page of shared information, with all ports masked. Before that there is no time.
    INFO.of(state).resume().map_err(failed("the page of shared information"))?;
    CLOCK.of(state).resume(INFO.of(state), suspended);

    // 3. The callback for events, and with it the wall clock; then the interface of events that was chosen.
    hypercall::resume_callback(state).map_err(failed("the callback for events"))?;
    DELIVERY.of(state).resume().map_err(failed("the FIFO interface of events"))?;

    // 4. Ports, of which none is left; the timer's is bound when it is next set. Nor is there a watchdog.
    let waited = PORTS.of(state).resume();
    TIMER.of(state).resume();
    WATCHDOGS.of(state).resume();

    // 5. Grants and mappings, of which none is left either.
    GRANTS.of(state).resume().map_err(failed("the grant table"))?;
    MAPPED.of(state).resume();

    // 6. The Xen and the number that the domain has now, and the CPU's generators of random numbers.
    RANDOM.of(state).resume();
    let leaves = hypercall::Leaves::find();
    let domain = hypercall::domain_id(leaves).map_err(failed("the domain id"))?;
    let mut xen = XEN.of(state).lock();
    *xen = Xen { version: leaves.map_or(xen.version, hypercall::Leaves::version), domain };
    drop(xen);

    // 7. The rings. Watches are registered again by xenstore's task.
    let (console, xenstore) = (RingParams::console(), RingParams::xenstore());
    CONSOLE.of(state).resume(console);
    CONNECTION.of(state).resume(xenstore.filter(|xenstore| xenstore.is_disjoint(console)));

    // 8. Who waits for anything of it looks again.
    waited.for_each(Waker::wake);
    TIMERS.of(state).look_again();
    GRANTS.of(state).reclaim();
    Ok(())
}
