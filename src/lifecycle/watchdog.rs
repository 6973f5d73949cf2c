//! Xen's watchdog: an end for a domain that has stopped to work.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use crate::abi::errno::Errno;
use crate::causes::write_causes;
use crate::hypercall;
use crate::local::domain_local;
use crate::local::{self, Instance};

domain_local! {
    /// The watchdogs that Xen has.
    pub(super) static WATCHDOGS: Watchdogs = Watchdogs::new();
}

/// Ends the domain with the reason [`Watchdog`](super::Reason::Watchdog) unless it is fed in time: then `xl` acts by
/// `on_watchdog`. A domain has two at most.
///
/// Feed it where the program shows that it works, and not in a task that does nothing else: that one would still run when the
/// others wait for what never comes. Xen counts on while the domain waits, and also while `xl pause` has it paused: one that
/// is paused for longer has come to its end. Dropping it stops it; the end of main does not, as nothing is dropped then.
///
/// ```no_run
/// # use core::time::Duration;
/// # async fn serve_one() -> domu::Result { Ok(()) }
/// # async fn example() -> domu::Result {
/// let watchdog = domu::lifecycle::Watchdog::start(Duration::from_secs(30))?;
/// loop {
///     serve_one().await?;
///     watchdog.feed()?;
/// }
/// # }
/// ```
#[doc(alias = "SCHEDOP_watchdog")]
#[must_use = "a watchdog is stopped when it is dropped"]
pub struct Watchdog {
    id: AtomicU32,
    /// That of the domain that it was started in.
    generation: AtomicU64,
    seconds: u32,
    state: Instance,
}

/// Those that Xen has.
#[derive(Debug)]
pub(super) struct Watchdogs {
    /// How many seconds each is for, by its number, which begins with one; zero where there is none.
    seconds: [AtomicU32; MOST],
}

/// So many a domain has at most.
#[doc(alias = "NR_DOMAIN_WATCHDOG_TIMERS")]
const MOST: usize = 2;

impl Watchdogs {
    /// No watchdog.
    pub(super) const fn new() -> Self {
        Self { seconds: [const { AtomicU32::new(0) }; MOST] }
    }

    fn note(&self, id: u32, seconds: u32) {
        if let Some(slot) = (id as usize).checked_sub(1).and_then(|index| self.seconds.get(index)) {
            slot.store(seconds, Ordering::Relaxed);
        }
    }

    /// Feeds all: Xen has counted on while the domain could not, and what came to its end in a suspend that was cancelled
    /// watches nothing any more.
    pub(super) fn feed(&self) {
        for (id, slot) in (1..).zip(&self.seconds) {
            let seconds = slot.load(Ordering::Relaxed);
            if seconds > 0 {
                // Who feeds it next is told if it is refused.
                let _ = hypercall::sched_watchdog(id, seconds);
            }
        }
    }

    /// Forgets all, after a resume elsewhere.
    pub(super) fn resume(&self) {
        self.seconds.iter().for_each(|slot| slot.store(0, Ordering::Relaxed));
    }
}

/// Error of a watchdog.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WatchdogError {
    /// The domain has two watchdogs already, the most that Xen allows.
    #[doc(alias = "ENOSPC")]
    TooMany,
    /// A time of zero, or of more than 2^32 - 1 seconds.
    InvalidTime,
    /// Another error of Xen, which is the source.
    Refused(Errno),
}

impl fmt::Display for WatchdogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => f.write_str("watchdog: the domain has two already"),
            Self::InvalidTime => f.write_str("watchdog: invalid time (1 to 4294967295 s)"),
            Self::Refused(_) => f.write_str("watchdog: refused by Xen"),
        }?;
        write_causes(f, self)
    }
}

impl core::error::Error for WatchdogError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Refused(errno) => Some(errno),
            _ => None,
        }
    }
}

impl Watchdog {
    /// Starts a watchdog that is to be fed each so many seconds; a part of one counts as a whole.
    ///
    /// # Errors
    ///
    /// [`WatchdogError`].
    pub fn start(time: Duration) -> Result<Self, WatchdogError> {
        let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
        let seconds = u32::try_from(seconds).ok().filter(|&seconds| seconds > 0).ok_or(WatchdogError::InvalidTime)?;
        // It is a domain that has one.
        let state = local::current().ok_or(WatchdogError::Refused(Errno::ESRCH))?;
        let id = begin(state, seconds).map_err(|errno| match errno {
            Errno::ENOSPC => WatchdogError::TooMany,
            errno => WatchdogError::Refused(errno),
        })?;
        Ok(Self { id: AtomicU32::new(id), generation: AtomicU64::new(state.generation()), seconds, state })
    }

    /// Lets the time begin anew. After a resume it begins with this: nobody is watched before. After a suspend that was
    /// cancelled it has begun anew already.
    ///
    /// # Errors
    ///
    /// [`WatchdogError::Refused`].
    pub fn feed(&self) -> Result<(), WatchdogError> {
        if self.state.is_running() && !self.is_current() {
            let id = begin(self.state, self.seconds).map_err(WatchdogError::Refused)?;
            self.id.store(id, Ordering::Relaxed);
            self.generation.store(self.state.generation(), Ordering::Relaxed);
            return Ok(());
        }
        self.set(self.seconds)
    }

    /// Whether Xen has it: not if the domain was resumed elsewhere since.
    fn is_current(&self) -> bool {
        self.generation.load(Ordering::Relaxed) == self.state.generation()
    }

    fn set(&self, seconds: u32) -> Result<(), WatchdogError> {
        if !self.state.is_running() {
            return Err(WatchdogError::Refused(Errno::ESRCH));
        }
        hypercall::sched_watchdog(self.id.load(Ordering::Relaxed), seconds).map(|_| ()).map_err(WatchdogError::Refused)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // A watchdog that Xen does not stop ends the domain in time; so does one dropped outside of its domain.
        if self.state.is_running() && self.is_current() {
            let _ = self.set(0);
            WATCHDOGS.of(self.state).note(self.id.load(Ordering::Relaxed), 0);
        }
    }
}

/// Has Xen begin to count in the domain that this is now, and returns the number of the watchdog.
fn begin(state: Instance, seconds: u32) -> Result<u32, Errno> {
    let id = hypercall::sched_watchdog(0, seconds)?;
    WATCHDOGS.of(state).note(id, seconds);
    Ok(id)
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog").field("id", &self.id).field("seconds", &self.seconds).finish_non_exhaustive()
    }
}
