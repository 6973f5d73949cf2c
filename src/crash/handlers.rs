//! Where crashes arrive: the panic handler, the stack protector's, and the exceptions from `boot/trap.S`.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use super::backtrace::{Backtrace, Start};
use super::report::{Report, Trap, build_id};
use crate::arch::trap::Frame;
use crate::console::emergency;
use crate::lifecycle::{self, Reason};
use crate::memory::{self, Image, Stack};
use crate::{arch, state};

core::arch::global_asm!(include_str!("../../boot/trap.S"), options(att_syntax));

/// Crashes so far: to report one may cause another.
static DEPTH: AtomicU32 = AtomicU32::new(0);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let again =
        |place: &dyn fmt::Display| emergency::say(format_args!("domu: panicked at {place} {WHILE_REPORTING}\n"));
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => report(format_args!("{info}"), None, backtrace(here())),
        // Formatting the message or console output may be what fails: say where, and no more.
        1 => match info.location() {
            Some(place) => again(place),
            None => again(&"an unknown place"),
        },
        _ => {}
    }
    lifecycle::shutdown(Reason::Crash)
}

/// Compiled code calls this when a function's canary has changed. Nothing in that function's frame is to be trusted.
#[unsafe(no_mangle)]
extern "C" fn __stack_chk_fail() -> ! {
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => report(format_args!("stack smashed: a function overran a buffer in its frame"), None, backtrace(here())),
        1 => emergency::say(format_args!("domu: stack smashed {WHILE_REPORTING}\n")),
        _ => {}
    }
    lifecycle::shutdown(Reason::Crash)
}

/// `boot/trap.S` calls this on the stack of the exception.
#[unsafe(no_mangle)]
extern "C" fn domu_trap(frame: &Frame) -> ! {
    let control = arch::control_registers();
    let trap = Trap { frame, control, place: memory::place(control.cr2) };
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => report(
            format_args!("{trap}"),
            Some(&trap),
            backtrace(Start { at: Some(frame.rip), stack: frame.rsp, frame: frame.rbp }),
        ),
        1 => emergency::say(format_args!("domu: {trap} {WHILE_REPORTING}\n")),
        _ => {}
    }
    lifecycle::shutdown(Reason::Crash)
}

const WHILE_REPORTING: &str = "(while reporting a crash)";

fn report(headline: fmt::Arguments<'_>, trap: Option<&Trap<'_>>, backtrace: Backtrace) -> ! {
    let report = Report { headline, trap, backtrace, build_id: build_id(note()) };
    lifecycle::fail(format_args!("{report}"))
}

/// The frame of the handler that this stands in, whose caller is the first of interest.
#[inline(always)]
fn here() -> Start {
    Start { frame: arch::frame_pointer(), ..Start::default() }
}

/// The chain of callers from a frame on, wherever it stands.
fn backtrace(start: Start) -> Backtrace {
    let mut image = Image::get();
    if let Some(state) = state::get() {
        image.main_stack = state.main_stack;
    }
    let stacks = image.trap_stacks.into_iter().chain([image.main_stack]);
    let on_stack = |address: u64| {
        let page = address >> 12;
        // Two words, of which the first is aligned: they are on one stack if the last byte is.
        let last = address.saturating_add(15) >> 12;
        stacks.clone().any(|Stack { frames, .. }| frames.contains(page) && frames.contains(last))
    };
    let is_code = |address: u64| image.code.contains(address >> 12);
    // SAFETY: `walk` reads only where `on_stack` holds, within stacks, which are mapped for the life of the program; what
    // stands there may be anything.
    let read = |address: u64| unsafe { arch::phys(address).cast::<u64>().read_volatile() };
    Backtrace::walk(start, on_stack, is_code, read)
}

/// The linker's note with the build id; empty without one.
fn note() -> &'static [u8] {
    unsafe extern "C" {
        safe static domu_build_id_start: u8;
        safe static domu_build_id_end: u8;
    }
    let (start, end) = (&raw const domu_build_id_start, &raw const domu_build_id_end);
    // SAFETY: the linker script puts the two symbols around a note in the constants, which nothing writes to.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}
