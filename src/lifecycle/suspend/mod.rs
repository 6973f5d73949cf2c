//! Suspending the domain.

pub(super) mod resume;
pub(super) mod resumes;
pub(super) mod suspend_evtchn;

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use self::resumes::{Resumption, SUSPENDS};
use self::suspend_evtchn::CHANNEL;
use crate::abi::errno::Errno;
use crate::causes::write_causes;
use crate::console::CONSOLE;
use crate::console::emergency;
use crate::console::rate_limit::log_limited;
use crate::executor::HOOKS;
use crate::lifecycle::control::claim::COUNTS;
use crate::lifecycle::control::claim::count_many;
use crate::lifecycle::control::requests;
use crate::lifecycle::watchdog::WATCHDOGS;
use crate::lifecycle::{Reason, shutdown};
use crate::local::{self, Instance};
use crate::shared::INFO;
use crate::time::CLOCK;
use crate::time::TIMERS;
use crate::xenstore::CONNECTION;
use crate::{executor, hypercall, time};

/// How long the answers of xenstore that are due are waited for. The toolstack has patience for a minute.
const LIMIT: Duration = Duration::from_secs(5);

/// Error of a suspend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SuspendError {
    /// Another task is suspending the domain.
    Busy,
    /// No toolstack to resume the domain: it has no xenstore.
    NoToolstack,
    /// The domain holds more memory than its limit, in bytes, so that a restore would fail. An error only where
    /// [`allow_suspend_over_limit`] says so.
    OverLimit {
        /// The memory that Xen counts as the domain's: [`balloon::held`](crate::memory::balloon::held).
        held: u64,
        /// The memory that it may have: [`balloon::limit`](crate::memory::balloon::limit).
        limit: u64,
    },
    /// Refused by Xen, whose error number is the source.
    Refused(Errno),
}

impl fmt::Display for SuspendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("suspend refused: another one is in progress"),
            Self::NoToolstack => {
                f.write_str("suspend refused: no toolstack to resume the domain, as it has no xenstore")
            }
            Self::OverLimit { held, limit } => write!(
                f,
                "suspend refused: a restore would fail, as the domain holds {} KiB and its limit is {} KiB (xl mem-set)",
                held >> 10,
                limit >> 10
            ),
            Self::Refused(_) => f.write_str("suspend refused by Xen"),
        }?;
        write_causes(f, self)
    }
}

impl core::error::Error for SuspendError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Refused(errno) => Some(errno),
            _ => None,
        }
    }
}

/// Lets others suspend the domain when it is dropped.
struct Busy(&'static AtomicBool);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Suspends the domain, as the toolstack asks by [`Suspend`](super::ShutdownRequest::Suspend), and returns when it goes on. The
/// toolstack does the rest; without one that has asked, nobody lets the domain go on.
///
/// Nothing runs, and no time passes on the [monotonic clock](crate::time), in between. Before it, answers that xenstore owes are
/// awaited for five seconds at most, while requests that come meanwhile wait, and the console is drained, with a bound.
///
/// A toolstack restores the domain within its memory limit. If the domain [holds](crate::memory::balloon::held) more than its
/// [limit](crate::memory::balloon::limit), after `xl mem-set`, a restore fails and the domain is lost: that is warned of in the
/// log, or an error after [`allow_suspend_over_limit`]. [`lifecycle::follow_memory_target`](crate::lifecycle::follow_memory_target) keeps
/// the domain within the limit.
///
/// If Xen refuses what the domain cannot go on without in its new place, such as its grant table, the domain crashes.
///
/// # Errors
///
/// [`SuspendError`].
///
/// # Cancel safety
///
/// If the future is dropped before it is ready, the domain was not suspended.
#[doc(alias("SCHEDOP_shutdown", "SHUTDOWN_suspend"))]
pub async fn suspend() -> Result<Resumption, SuspendError> {
    let state = local::current().ok_or(SuspendError::Refused(Errno::ESRCH))?;
    // An initial domain would take the host down.
    if !CONNECTION.of(state).is_there() {
        return Err(SuspendError::NoToolstack);
    }
    let suspends = SUSPENDS.of(state);
    if suspends.busy.swap(true, Ordering::Relaxed) {
        return Err(SuspendError::Busy);
    }
    let busy = Busy(&suspends.busy);
    check_limit(state, suspends.refuses_over_limit.load(Ordering::Relaxed))?;
    // Kept until this returns, or the future is dropped.
    let _quiet = HOOKS.of(state).quiesce().await;
    let held = CONNECTION.of(state).hold();
    // Those that stay open are counted if they come to nothing.
    let _ = time::timeout(LIMIT, held.answered()).await;
    // Tasks see the answers that came: an acknowledged request to suspend is kept by then, and discarded below.
    executor::yield_now().await;
    let open = held.open() as u64;
    let unread = CONSOLE.of(state).quiesce(INFO.of(state));
    let resumption = suspend_now(state)?;
    if resumption == Resumption::Restored {
        let counts = COUNTS.of(state);
        count_many(&counts.interrupted, open);
        count_many(&counts.console_bytes_lost, unread);
    }
    // This suspend answers a request that arrived during it.
    CHANNEL.of(state).answer();
    requests::NODE.suspended(state);
    drop(held);
    drop(busy);
    HOOKS.of(state).suspended();
    suspends.tell(resumption);
    Ok(resumption)
}

/// Sets whether the domain is suspended although it holds more memory than its limit, so that a restore would fail; it is unless
/// this, or the option `domu.suspend-over-limit=off`, says otherwise.
///
/// If not, [`suspend`] returns [`SuspendError::OverLimit`] then, and the domain continues. The toolstack is not told:
/// `xl save` gives up after a minute. Copies (`xl save -c`) and migrations are refused as well.
///
/// Does nothing outside of a domain.
pub fn allow_suspend_over_limit(allowed: bool) {
    if let Some(state) = local::current() {
        SUSPENDS.of(state).allow_over_limit(allowed);
    }
}

/// Compares what the domain holds with its limit, within which the toolstack would restore it.
fn check_limit(state: Instance, refuses: bool) -> Result<(), SuspendError> {
    let (Ok(held), Ok(limit)) = (hypercall::memory_current_reservation(), hypercall::memory_maximum_reservation())
    else {
        return Ok(());
    };
    if held <= limit {
        return Ok(());
    }
    if refuses {
        return Err(SuspendError::OverLimit { held: held << 12, limit: limit << 12 });
    }
    log_limited!(
        suspend of state,
        Warn,
        "a restore will fail: the domain holds {} KiB and its limit is {} KiB (xl mem-set)",
        held << 2,
        limit << 2
    );
    Ok(())
}

fn suspend_now(state: Instance) -> Result<Resumption, SuspendError> {
    // Only a domain that has said how it is interrupted is told that its suspend was cancelled.
    hypercall::enable_callback(state).map_err(SuspendError::Refused)?;
    let suspended = time::now_in(state);
    // SAFETY: nothing runs before `resume` has made all of it anew but `resume` itself, which accesses none of it before, and the
    // look at the page of shared information, an access of a type that finds ones. What stays away, mappings, is accessed so too.
    let result = unsafe { hypercall::sched_suspend() }.map_err(SuspendError::Refused);
    // The page tells, not the word of the toolstack's: that of Xen 4.14 for one does not say that a suspend was cancelled.
    if result.is_ok() && !INFO.of(state).is_there() {
        if let Err(failure) = resume::resume(state, suspended) {
            // There may be no clock, by which the console would be waited for.
            emergency::say(format_args!("domu: {failure}\n"));
            shutdown(Reason::Crash);
        }
        log_limited!(suspend of state, Info, "resumed as domain {}", hypercall::domain(state));
        return Ok(Resumption::Restored);
    }
    CLOCK.of(state).resume(INFO.of(state), suspended);
    if result.is_ok() {
        WATCHDOGS.of(state).feed();
        TIMERS.of(state).look_again();
    }
    CONSOLE.of(state).go_on(state);
    result.map(|_| Resumption::Cancelled)
}
