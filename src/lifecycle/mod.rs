//! The ends of a domain.
//!
//! | what happens | reason that the toolstack sees |
//! |---|---|
//! | main returns `Ok` | poweroff |
//! | [`end`] is called with a reason | that reason |
//! | main returns `Err` | crash, after the message went to the emergency output and the console |
//! | a [`Watchdog`] is not fed | watchdog |
//! | a panic, an exception of the CPU, a smashed stack | crash, after a report with registers and backtrace went there |
//!
//! Before each of them the console is flushed, with a bound: a dead backend delays an end by seconds, and does not
//! prevent it. (Not after a crash inside of the console's own code; then the emergency output alone has the report.)

mod watchdog;

use core::fmt;

pub use watchdog::{Watchdog, WatchdogError};

pub use crate::abi::sched::Reason;
use crate::console::{emergency, last};
use crate::{arch, hypercall, state};

/// Ends the domain: the console is flushed, then the toolstack is told the reason and acts by its configuration
/// (`on_poweroff`, `on_reboot`, `on_crash`).
///
/// Nothing is dropped: what is in memory goes with the domain.
#[doc(alias = "SCHEDOP_shutdown")]
pub fn end(reason: Reason) -> ! {
    if let Some(state) = state::get() {
        last::write_missing(state);
        state.console.finish(&state.info);
    }
    shutdown(reason)
}

/// Ends the domain with the crash reason and a message.
pub(crate) fn fail(message: fmt::Arguments<'_>) -> ! {
    say(message);
    end(Reason::Crash)
}

/// Says something that nothing silences: in one burst on the emergency output, then on the console.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    emergency::say(format_args!("{message}\n"));
    if let Some(state) = state::get() {
        last::write(state, message);
    }
}

/// Tells Xen, and stops should it ever return.
pub(crate) fn shutdown(reason: Reason) -> ! {
    let errno = hypercall::sched_shutdown(reason);
    emergency::say(format_args!("domu: Xen refused the end of the domain: {errno}\n"));
    arch::stop()
}

/// What main may return.
pub trait Outcome {
    /// Ends the domain accordingly.
    #[doc(hidden)]
    fn end(self) -> !;
}

impl<E: fmt::Display> Outcome for Result<(), E> {
    fn end(self) -> ! {
        match self {
            Ok(()) => end(Reason::Poweroff),
            Err(error) => fail(format_args!("domu: main failed: {error}")),
        }
    }
}

impl Outcome for () {
    fn end(self) -> ! {
        end(Reason::Poweroff)
    }
}
