//! Critical sections of a unikernel: one virtual CPU with its interrupts off.
//!
//! Interrupts are on during the halt alone, so the flag that is saved is clear in all but programs that set it themselves.

use critical_section::RawRestoreState;
use x86_64::instructions::interrupts;

struct InterruptsOff;

critical_section::set_impl!(InterruptsOff);

// SAFETY: a unikernel runs on one virtual CPU, and code is interrupted there only while the flag is set: from `acquire` to
// the `release` that restores the flag nothing else runs. The state of an inner section is a clear flag, which its release
// leaves so. The instructions that change the flag are barriers to the compiler; where `release` changes nothing, nothing
// could interrupt before `acquire` either.
unsafe impl critical_section::Impl for InterruptsOff {
    /// # Safety
    ///
    /// None is needed here: only the flag is changed.
    unsafe fn acquire() -> RawRestoreState {
        let on = interrupts::are_enabled();
        interrupts::disable();
        on
    }

    /// # Safety
    ///
    /// The flag is what the last `acquire` has saved, as the trait asks.
    unsafe fn release(on: RawRestoreState) {
        if on {
            interrupts::enable();
        }
    }
}
