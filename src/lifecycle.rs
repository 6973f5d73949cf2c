//! The ends of a domain.
//!
//! | what happens | reason that the toolstack sees |
//! |---|---|
//! | main returns `Ok` | poweroff |
//! | [`end`] is called with a reason | that reason |
//! | main returns `Err`, or anything panics | crash, after the message went to the emergency output and the console |
//!
//! Before each of them the console is flushed, with a bound: a dead backend delays an end by seconds, and does not
//! prevent it.

use core::fmt;

pub use crate::abi::sched::Reason;
use crate::console::{emergency, log};
use crate::{arch, hypercall, state};

/// Ends the domain: the console is flushed, then the toolstack is told the reason and acts by its configuration
/// (`on_poweroff`, `on_reboot`, `on_crash`).
///
/// Nothing is dropped: what is in memory goes with the domain.
#[doc(alias = "SCHEDOP_shutdown")]
pub fn end(reason: Reason) -> ! {
    if let Some(state) = state::get()
        && let Some(mut output) = state.console.try_lock()
    {
        // A console that is gone or stalled must not keep the domain from ending.
        let _ = output.flush(&state.info);
    }
    shutdown(reason)
}

/// Ends the domain with the crash reason and a message: in one burst on the emergency output, then on the console.
pub(crate) fn fail(message: fmt::Arguments<'_>) -> ! {
    emergency::say(format_args!("{message}\n"));
    // No code of the application runs while the console is in use, so a failure finds it free; should it be this
    // crate's own failure, the message stays with the emergency output.
    if let Some(state) = state::get()
        && !state.console.is_locked()
    {
        log::write_line(state, message);
    }
    end(Reason::Crash)
}

/// Tells Xen, and stops should it ever return.
fn shutdown(reason: Reason) -> ! {
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

/// Panics, and broken stacks: the failures that the language and the compiler report.
#[cfg(target_os = "none")]
mod panic {
    use core::panic::PanicInfo;
    use core::sync::atomic::{AtomicU32, Ordering};

    use super::{Reason, emergency, fail, shutdown};

    /// Failures so far: reporting one may cause another.
    static DEPTH: AtomicU32 = AtomicU32::new(0);

    #[panic_handler]
    fn panic(info: &PanicInfo<'_>) -> ! {
        match DEPTH.fetch_add(1, Ordering::Relaxed) {
            0 => fail(format_args!("domu: {info}")),
            // Formatting the message or console output may be what fails: say where, and no more.
            1 => match info.location() {
                Some(place) => emergency::say(format_args!("domu: panicked while reporting a failure, at {place}\n")),
                None => emergency::say(format_args!("domu: panicked while reporting a failure\n")),
            },
            _ => {}
        }
        shutdown(Reason::Crash)
    }

    /// Compiled code calls this when a function's canary has changed. Nothing on the stack is to be trusted.
    #[unsafe(no_mangle)]
    extern "C" fn __stack_chk_fail() -> ! {
        match DEPTH.fetch_add(1, Ordering::Relaxed) {
            0 => fail(format_args!("domu: stack smashed: a function overran its buffer")),
            _ => shutdown(Reason::Crash),
        }
    }
}
