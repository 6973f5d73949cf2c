//! Where crashes arrive: the panic handler, the stack protector's, and the exceptions from `boot/trap.S`.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use super::backtrace::{Backtrace, Start};
use super::report::{Headline, Report, Trap, build_id};
use crate::arch::trap::{Frame, PAGE_FAULT};
use crate::lifecycle::{self, Reason};
#[cfg(feature = "allocator")]
use crate::memory::Damage;
use crate::memory::{self, Image, MAIN_STACK, Stack};
use crate::{arch, local};

core::arch::global_asm!(include_str!("../../boot/trap.S"), options(att_syntax));

/// Crashes so far: to report one may cause another.
static DEPTH: AtomicU32 = AtomicU32::new(0);

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let begin = here();
    let place: &dyn fmt::Display = match info.location() {
        Some(place) => place,
        None => &"an unknown place",
    };
    crash(
        |again| lifecycle::say(format_args!("domu: panicked at {place}{again}")),
        // The message is the application's code: the place is out by then.
        || report(Some(&info.message()), None, begin),
    )
}

/// The heap, or a block of it, is damaged; nothing is allocated or freed any more.
#[cfg(feature = "allocator")]
#[unsafe(no_mangle)]
extern "Rust" fn __domu_heap_damaged(damage: Damage) -> ! {
    let begin = here();
    crash(|again| lifecycle::say(format_args!("domu: heap: {damage}{again}")), || report(None, None, begin))
}

/// Compiled code calls this when a function's canary has changed. Nothing in that function's frame is to be trusted.
#[unsafe(no_mangle)]
extern "C" fn __stack_chk_fail() -> ! {
    let begin = here();
    crash(
        |again| lifecycle::say(format_args!("domu: stack smashed: a function overran a buffer in its frame{again}")),
        || report(None, None, begin),
    )
}

/// `boot/trap.S` calls this on the stack of the exception.
#[unsafe(no_mangle)]
extern "C" fn domu_trap(frame: &Frame) -> ! {
    let trap = Trap { frame, control: arch::control_registers(), address: arch::fault_address() };
    crash(
        |again| {
            // The list of what lies where is on the heap, and may be what is broken.
            let look = again.is_empty() && frame.vector == PAGE_FAULT;
            let found = look.then(|| memory::find(trap.address));
            lifecycle::say(format_args!("domu: {}{again}", Headline { trap: &trap, found }));
        },
        || report(None, Some(&trap), Start { at: Some(frame.rip), stack: frame.rsp, frame: frame.rbp }),
    )
}

/// Says what happened, then reports in full, each on both outputs, and ends the domain. A crash on the way says what
/// happened and no more, one on that way nothing, and if not even the end succeeds the CPU stops.
fn crash(headline: impl FnOnce(&'static str), details: impl FnOnce()) -> ! {
    match DEPTH.fetch_add(1, Ordering::Relaxed) {
        0 => {
            headline("");
            details();
            lifecycle::end(Reason::Crash)
        }
        1 => {
            headline(" (while reporting a crash)");
            lifecycle::end(Reason::Crash)
        }
        2 => lifecycle::shutdown(Reason::Crash),
        _ => arch::stop(),
    }
}

fn report(message: Option<&dyn fmt::Display>, trap: Option<&Trap<'_>>, start: Start) {
    let memory = memory::exhausted();
    let report = Report { message, trap, memory, backtrace: backtrace(start), build_id: build_id(note()) };
    lifecycle::say(format_args!("{report}"));
}

/// The frame of the handler that this stands in, whose caller is the first of interest.
#[inline(always)]
fn here() -> Start {
    Start { frame: arch::frame_pointer(), ..Start::default() }
}

/// The chain of callers from a frame on, wherever it stands.
fn backtrace(start: Start) -> Backtrace {
    let mut image = Image::get();
    match local::current() {
        Some(state) => image.main_stack = *MAIN_STACK.of(state),
        // Boot may have cut it, and uses no more than what is left then.
        None => image.shrink_stack(),
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
    let linked = arch::linked();
    // SAFETY: the linker script puts the two symbols around a note in the constants, which nothing writes to. The pointer may
    // read all of it: see `arch::linked`.
    unsafe { core::slice::from_raw_parts(linked.build_id, linked.build_id_end.addr() - linked.build_id.addr()) }
}
