//! The life of a domain: what its toolstack asks of it, and its ends.
//!
//! | what happens | reason that the toolstack sees |
//! |---|---|
//! | main returns `Ok` | poweroff, or the [`Reason`] that it returns |
//! | `xl shutdown`, `xl reboot` | poweroff, reboot |
//! | [`finish`] or [`end`] is called with a reason | that reason |
//! | main returns `Err` | crash, after the message went to the emergency output and the console |
//! | a panic, an exception of the CPU, a smashed stack | crash, after a report with registers and backtrace went there |
//! | a [`Watchdog`] is not fed | watchdog |
//!
//! Before each of them but the last the console is flushed, with a bound: a dead backend delays an end by seconds, and does
//! not prevent it. (Not after a crash inside of the console's own code; then the emergency output alone has the report.)
//!
//! A toolstack asks by words in xenstore. [`main!`](crate::main!) starts tasks beside main that obey them, once main waits: they
//! say that the domain can be shut down, do what was left for [`at_exit`](crate::executor::at_exit), and end the domain. They
//! are woken by the toolstack alone, keep no main from ending, and are nothing that could wake it: one that waits for nothing else
//! is still told so. The feature `shutdown`, on by default, leaves them out when it is off. A program that holds a stream of [`ShutdownRequests`] decides for itself instead:
//!
//! ```no_run
//! use domu::lifecycle::{self, Reason, ShutdownRequest};
//!
//! # async fn example(domain: domu::Domain) -> domu::Result {
//! let mut requests = domain.shutdown_requests();
//! loop {
//!     match requests.next().await? {
//!         ShutdownRequest::Reboot => lifecycle::finish(Reason::Reboot).await,
//!         ShutdownRequest::Poweroff => break Ok(()),
//!         // It was acknowledged, so it is to be done.
//!         ShutdownRequest::Suspend => {
//!             lifecycle::suspend().await?;
//!         }
//!         other => log::info!("not now: {other:?}"),
//!     }
//! }
//! # }
//! ```
//!
//! # Suspend and resume
//!
//! By `xl save`, `xl restore` and `xl migrate` a domain goes on in another domain, here or on another host, as if nothing had
//! happened, but for what it had from Xen and its peers. It is [suspended](suspend()) by the same tasks, or by the program, and
//! learns what came of it from [`Domain::resumes`](crate::Domain::resumes). If the suspend was cancelled, or was for a copy,
//! nothing has changed. Else:
//!
//! | of before | in the new domain |
//! |---|---|
//! | ports | closed: their use, and waits for their events, fail with [`BeforeResume`](crate::eventchn::ErrorKind::BeforeResume) |
//! | grants | ended: their pages are the domain's own, [`Granted::end`](crate::gnttab::Granted::end) returns them, [`Granted::check`](crate::gnttab::Granted::check) tells; those that were kept back are free |
//! | mappings, copies that wait for a page | gone: [`Mapping::check`](crate::gnttab::Mapping::check) and copies fail with [`BeforeResume`](crate::gnttab::ErrorKind::BeforeResume) |
//! | transactions of xenstore | gone: [`BeforeResume`](crate::xenstore::ErrorKind::BeforeResume) |
//! | nodes that the program wrote in its home | missing: the program writes them again, see below |
//! | a request that xenstore has not answered in time | [`Interrupted`](crate::xenstore::ErrorKind::Interrupted); those that it did not have yet are sent to the new one |
//! | watches | go on, each with an event |
//! | the console | goes on; output that its backend has not read in time is lost, and counted; input that nobody had read is lost. One that is not in the same page is closed |
//! | sleeps, timeouts, intervals | go on: the [monotonic clock](crate::time) has stood still |
//! | the wall clock | is right, and [`sleep_until_wall_clock`](crate::time::sleep_until_wall_clock) looks at it again |
//! | a [`Watchdog`] | begins anew when it is fed; by itself, if the suspend was cancelled |
//! | [`Domain::id`](crate::Domain::id), the version of Xen | those of the new place |
//!
//! A [transaction that is run as a closure](crate::xenstore::Xenstore::transaction) is done again in the new domain.
//!
//! The new domain has a new home in xenstore, as the toolstack makes it: `data/`, `attr/` and everything else that the program
//! wrote before is missing there. Watches get an event and find the nodes gone. This crate writes its own nodes again; a program
//! does that for its nodes with a task such as this one:
//!
//! ```no_run
//! use domu::{Domain, executor};
//!
//! /// Writes the nodes that others look for, in each domain that this one becomes.
//! async fn advertise(domain: Domain) {
//!     // Made before the first write: no resume is missed.
//!     let mut resumes = domain.resumes();
//!     loop {
//!         let generation = domain.generation();
//!         let store = domain.xenstore();
//!         let written = store
//!             .transaction(async |nodes| {
//!                 nodes.write("data/service/name", "echo").await?;
//!                 nodes.write("data/service/version", "1").await
//!             })
//!             .await;
//!         // `Interrupted` means that the domain was resumed during the request; the next pass writes them.
//!         if let Err(error) = written {
//!             log::warn!("service not advertised: {error}");
//!         }
//!         // A cancelled suspend leaves the nodes as they were.
//!         while domain.generation() == generation {
//!             resumes.next().await;
//!         }
//!     }
//! }
//!
//! # async fn example(domain: Domain) {
//! executor::spawn(advertise(domain)).detach();
//! # }
//! ```
//!
//! [`executor::after_suspend`](crate::executor::after_suspend) is for what has to happen before any task runs, and cannot wait
//! for xenstore.
//!
//! A toolstack restores a domain within its memory limit, which `xl mem-set` lowers. A domain that holds more by then, as nothing in it
//! [follows the target](crate::lifecycle::follow_memory_target), is saved and cannot be restored: that is warned of, or
//! [refused](allow_suspend_over_limit). The warning comes with the suspend, not when the target falls: only
//! `follow_memory_target` watches `memory/target`. A watch by default would cost each domain a task, requests at boot and after
//! each resume, and a turn for each change, also where the domain is never saved. A program that wants an earlier warning
//! watches that node, and compares [`balloon::held`](crate::memory::balloon::held) with
//! [`balloon::limit`](crate::memory::balloon::limit).
//!
//! Who talks to a peer connects anew when he sees such an error. Who keeps secrets in memory, such as the state of a generator
//! of random numbers, has a function called [after each suspend](crate::executor::after_suspend).

mod control;
mod memory_target;
mod suspend;
mod watchdog;

use core::fmt;
use core::future::pending;

pub use control::claim::{Stat, stat};
pub(crate) use control::default_handler::obey;
pub use control::requests::{ShutdownRequest, ShutdownRequests};
pub use control::sysrq::SysRq;
pub use memory_target::follow_memory_target;
pub(crate) use suspend::resumes::SuspendWaiters;
pub use suspend::resumes::{Resumes, Resumption};
pub use suspend::{SuspendError, allow_suspend_over_limit, suspend};
pub use watchdog::{Watchdog, WatchdogError};

use control::claim::{COUNTS, KEYS, REQUESTS};
use suspend::resumes::SUSPENDS;
use suspend::suspend_evtchn::CHANNEL;
use watchdog::WATCHDOGS;

pub use crate::abi::sched::Reason;
use crate::console::CONSOLE;
use crate::console::{emergency, last};
use crate::executor::{run_exits, spawn};
use crate::local::Booting;
use crate::shared::INFO;
use crate::{arch, hypercall, local};

/// Makes the locals of this module.
pub(crate) fn start(booting: &Booting) {
    REQUESTS.start(booting);
    KEYS.start(booting);
    CHANNEL.start(booting);
    SUSPENDS.start(booting);
    WATCHDOGS.start(booting);
    COUNTS.start(booting);
}

/// Ends the domain: the console is flushed, then the toolstack is told the reason and acts by its configuration
/// (`on_poweroff`, `on_reboot`, `on_crash`).
///
/// Nothing is dropped: what is in memory goes with the domain.
///
/// # Panics
///
/// On the host, outside of a simulated domain: there is nothing to end, and the function does not return.
#[doc(alias = "SCHEDOP_shutdown")]
pub fn end(reason: Reason) -> ! {
    if let Some(state) = local::current() {
        last::write_missing(state);
        CONSOLE.of(state).finish(INFO.of(state));
    }
    shutdown(reason)
}

/// Ends the domain when what was left for the end of main is done, which has a bound: see
/// [`at_exit`](crate::executor::at_exit). Main and the tasks go on meanwhile; what main returns then does not count any more.
///
/// # Panics
///
/// Outside of a domain, where there is nothing to be ended.
///
/// # Cancel safety
///
/// Once it has been polled the domain ends, also if the future is dropped.
#[doc(alias = "SCHEDOP_shutdown")]
pub async fn finish(reason: Reason) -> ! {
    spawn(async move {
        run_exits().await;
        end(reason)
    })
    .detach();
    pending().await
}

/// Ends the domain with the crash reason and a message.
pub(crate) fn fail(message: fmt::Arguments<'_>) -> ! {
    say(message);
    end(Reason::Crash)
}

/// Says something that nothing silences: in one burst on the emergency output, then on the console.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    emergency::say(format_args!("{message}\n"));
    if let Some(state) = local::current() {
        last::write(state, message);
    }
}

/// Tells Xen, and stops should it ever return.
pub(crate) fn shutdown(reason: Reason) -> ! {
    let errno = hypercall::sched_shutdown(reason);
    emergency::say(format_args!("domu: Xen refused the end of the domain: {errno}\n"));
    arch::stop()
}

/// The return types of main: `()`, [`Reason`], and a `Result` of either whose error implements [`Display`](fmt::Display).
///
/// This trait is sealed: only this crate implements it.
///
/// ```compile_fail,E0277
/// struct Mine;
/// impl domu::lifecycle::Outcome for Mine {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the result of a domain's main function",
    label = "main returns `{Self}`",
    note = "main returns `()`, `domu::lifecycle::Reason`, `Result<(), E>` or `Result<Reason, E>`, where `E: Display`"
)]
pub trait Outcome: sealed::Outcome {}

impl<E: fmt::Display> Outcome for Result<(), E> {}
impl<E: fmt::Display> Outcome for Result<Reason, E> {}
impl Outcome for Reason {}
impl Outcome for () {}

mod sealed {
    /// Keeps implementations of [`Outcome`](super::Outcome) in this crate.
    pub trait Outcome {
        /// Ends the domain accordingly.
        fn end(self) -> !;
    }
}

impl<E: fmt::Display> sealed::Outcome for Result<(), E> {
    fn end(self) -> ! {
        match self {
            Ok(()) => end(Reason::Poweroff),
            Err(error) => fail(format_args!("domu: main failed: {error:#}")),
        }
    }
}

impl<E: fmt::Display> sealed::Outcome for Result<Reason, E> {
    fn end(self) -> ! {
        match self {
            Ok(reason) => end(reason),
            Err(error) => fail(format_args!("domu: main failed: {error:#}")),
        }
    }
}

impl sealed::Outcome for Reason {
    fn end(self) -> ! {
        end(self)
    }
}

impl sealed::Outcome for () {
    fn end(self) -> ! {
        end(Reason::Poweroff)
    }
}
