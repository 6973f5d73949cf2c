//! From the entry point to main: the boot order, as straight-line code.
//!
//! `boot/entry.S` has set up 64-bit mode, a stack and protected boot tables. Until the console is connected a failure
//! goes to the emergency output; each one is a [`Failure`] with its message, and ends the domain with the crash reason.

#[cfg(target_os = "none")]
mod entry;
mod loader;

use core::fmt;
use core::ptr::NonNull;

use loader::{Loaded, Physical};
use pvh::start_info::reader::StartInfoReader;

use crate::abi::errno::Errno;
use crate::abi::start_info::Sif;
use crate::console::log::{self, LOG, LogState};
use crate::console::{Attachment, CONSOLE, Settle};
use crate::domain::{Domain, GIVEN, Given, MAX_COMMAND_LINE};
use crate::eventchn::{self, DELIVERY, Delivery, Events, PORTS, TIMER};
use crate::executor::{self, DueTimers, EXECUTOR, HOOKS, Stop, TurnHooks};
use crate::gnttab::{DeferredGrants, GRANTS, MAPPED};
use crate::hypercall::{self, RingParams, XEN, Xen, XenVersion};
use crate::lifecycle::{self, Outcome, SuspendWaiters};
use crate::memory::balloon::{BALLOON, Balloon};
use crate::memory::heap::oom::EXHAUSTION;
use crate::memory::pages::{STORE, Store};
use crate::memory::unpopulated::{HOLES, Holes};
use crate::memory::{
    self, FrameRange, HIGHEST_FRAME, Image, Layout, MAIN_STACK, MapError, MemoryMap, NoRoom, TABLES, Tables, Violation,
};
use crate::options::{Options, Word};
use crate::random::RANDOM;
use crate::shared::{INFO, SharedInfo, SharedPage};
use crate::sync::{Mutex, wait_list};
use crate::time::{CLOCK, TIMERS};
use crate::xenstore::{CONNECTION, Connection};
use crate::{arch, local};

/// Why the domain could not start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    NotOnXen,
    OldXen(XenVersion),
    NoDomainId(Errno),
    NoStartInfo,
    Map(MapError),
    NoMemory,
    SharedInfo(Errno),
    SelfCheck(Violation),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOnXen => f.write_str(
                "not running on Xen: this is a unikernel for a PVH domain of Xen 4.10 or later (xl: type=\"pvh\")",
            ),
            Self::OldXen(version) => write!(f, "Xen {version} is too old: {} or later is needed", XenVersion::OLDEST),
            Self::NoDomainId(errno) => {
                write!(f, "cannot learn the domain id: no CPUID leaf has it, and no event channel: {errno}")
            }
            Self::NoStartInfo => f.write_str("no start info: not booted by the PVH protocol"),
            Self::Map(error) => write!(f, "{error}"),
            Self::NoMemory => f.write_str("too little memory: the image leaves no room to start"),
            Self::SharedInfo(errno) => write!(f, "Xen refused the page of shared information: {errno}"),
            Self::SelfCheck(violation) => write!(f, "memory protection is broken: {violation}"),
        }
    }
}

impl From<NoRoom> for Failure {
    fn from(_: NoRoom) -> Self {
        Self::NoMemory
    }
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Self::SelfCheck(violation)
    }
}

impl From<MapError> for Failure {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Boots, or says why not; then nothing is set up but the emergency output.
///
/// # Safety
///
/// Called once, by the entry code or the simulated machine: `start_info` is what the loader passed, and nothing of
/// what it names has been overwritten.
// Not inlined into the entry, so that its frame of many kilobytes is gone when main runs.
#[inline(never)]
pub(crate) unsafe fn boot(start_info: u32) -> Result<Domain, Failure> {
    // 1. Xen, of a version that has what is used below.
    let leaves = hypercall::Leaves::find().ok_or(Failure::NotOnXen)?;
    let version = leaves.version();
    if version < XenVersion::OLDEST {
        return Err(Failure::OldXen(version));
    }
    let xen = Xen { version, domain: hypercall::domain_id(Some(leaves)).map_err(Failure::NoDomainId)? };

    // 2. The start info. Version 0 has no memory map, which step 3 then asks Xen for.
    // SAFETY: the loader's structure is valid, as the caller promises; the boot tables map it at its own address.
    let reader = unsafe { StartInfoReader::from_paddr(start_info, Physical) }.ok_or(Failure::NoStartInfo)?;
    let raw = reader.raw();

    // 3. Memory: what is RAM, and what of it is taken.
    let mut map = MemoryMap::read(reader.memmap())?;
    let mut free = map.ram.clone();
    // Without a figure there is no surplus to be known: Xen answers this to every domain.
    let reservation = hypercall::memory_current_reservation().unwrap_or(u64::MAX);
    let mut image = Image::get();
    memory::fit(&mut image, map.ram.count().min(reservation));
    let memmap_size = size_of_val(reader.memmap()) as u64;
    let mut complete = true;
    for taken in [
        FrameRange { start: 0, end: 1 },
        image.all,
        FrameRange::touching(u64::from(start_info), size_of_val(raw) as u64),
        FrameRange::touching(raw.memmap_paddr, memmap_size),
    ] {
        complete &= free.remove(taken).is_ok();
    }
    // SAFETY: nothing but the image has been written to since the loader; from here on RAM is given out by `free`.
    let loaded = unsafe { Loaded::read(raw, &map.ram, &mut free) };

    // 4. The frames of the console and of xenstore: mapped by step 6, used by step 8 alone.
    let [console, xenstore] = [RingParams::console(), RingParams::xenstore()].map(|location| {
        location.filter(|location| {
            let frame = FrameRange { start: location.frame, end: location.frame + 1 };
            // RAM that is not free holds the image, or what the loader left: a peer must not write there.
            let used = image.all.overlaps(frame) || map.ram.contains(frame) && !free.contains(frame);
            complete &= free.remove(frame).is_ok();
            location.frame < HIGHEST_FRAME && !used && !map.window.overlaps(frame)
        })
    });
    // What is said to be both's is the console's.
    let xenstore = xenstore.filter(|xenstore| xenstore.is_disjoint(console));

    // 5. RAM that the domain does not have goes back before anything touches it.
    let surplus = memory::give_back(&mut map, &mut free, reservation);

    // 6. The final page tables, held at once against what they are to say.
    let cpu = arch::cpu();
    let rings = console.iter().chain(&xenstore).map(|location| location.frame);
    let mut layout = Layout::new(&image, &map, rings).map_err(|_| MapError::TooLong)?;
    // SAFETY: `free` is RAM that nothing uses, and the tables of the entry code are still in force.
    let mut tables = unsafe { Tables::build(&mut layout, &mut free, cpu) }?;
    // SAFETY: the layout has the image as the boot tables mapped it, with the code that runs here and its stack, and all
    // RAM, special pages and the window read-write at their own addresses: everything that `arch::phys` is asked for.
    unsafe { arch::activate(tables.root()) };
    let checked = tables.check(Some(&layout))?;

    // 7. What Xen shares: a page in the window, where nothing lies.
    // SAFETY: the window is outside of everything that the memory map mentions, and this is its first use.
    unsafe { hypercall::memory_map_shared_info(map.window.start) }.map_err(Failure::SharedInfo)?;
    let page = NonNull::new(arch::phys(map.window.start << 12)).ok_or(Failure::NoMemory)?;
    // SAFETY: the frame was just given to shared_info, is mapped read-write by step 6, and nothing else uses it.
    let info = SharedInfo::new(unsafe { SharedPage::new(page, 1) }, map.window.start);

    // 8. The console.
    let console = match console {
        // SAFETY: the location is what Xen says of this domain, its frame was mapped in step 6, and this is its
        // only use.
        Some(location) => unsafe { Attachment::connect(location) },
        None if raw.flags.contains(Sif::INITDOMAIN) => Attachment::hypervisor(),
        None => Attachment::absent(),
    };

    // 9. The heap: everything that is still free.
    for &range in free.ranges().iter().chain([&image.boot_tables, &image.spare]) {
        // SAFETY: `free` is RAM, mapped by step 6, without anything that boot keeps; the boot tables are no longer in
        // force, and nothing else lies in their pages; the spare part of the stack is far below what was in use of the
        // stack when it was decided, and since step 6 behind its guard page.
        unsafe { memory::claim(range) };
    }
    tables.keep(&layout)?;
    let balloon = Balloon::new(&map)?;
    let holes = Holes::new(&map)?;

    // 10. The domain-locals that are not constants, and with them the log, and xenstore, which is not looked at before somebody uses it.
    let command_line = loaded.command_line.bytes;
    let options = Options::parse(command_line, |_| {});
    let booting = local::begin();
    XEN.set(&booting, Mutex::new(xen));
    GIVEN.set(&booting, Given { command_line, modules: loaded.modules });
    MAIN_STACK.set(&booting, image.main_stack);
    TABLES.set(&booting, Mutex::new(tables));
    EXHAUSTION.start(&booting);
    STORE.set(&booting, Mutex::new(Store::new(map.ram.count())));
    BALLOON.set(&booting, Mutex::new(balloon));
    HOLES.set(&booting, Mutex::new(holes));
    RANDOM.start(&booting);
    INFO.set(&booting, info);
    hypercall::start(&booting);
    DELIVERY.set(&booting, Delivery::new(options.fifo));
    PORTS.start(&booting);
    TIMER.start(&booting);
    CLOCK.start(&booting);
    TIMERS.start(&booting);
    wait_list::start(&booting);
    EXECUTOR.start(&booting);
    HOOKS.start(&booting);
    GRANTS.start(&booting);
    MAPPED.start(&booting);
    CONSOLE.set(&booting, console);
    LOG.set(&booting, LogState::new(options.log_level));
    // SAFETY: as for the console; the frame is another.
    CONNECTION.set(&booting, unsafe { Connection::new(xenstore) });
    lifecycle::start(&booting);
    let state = booting.finish();
    GRANTS.of(state).set_ram(map.ram.count());
    lifecycle::allow_suspend_over_limit(options.suspend_over_limit);
    log::install(options.log_level);

    // 11. What could not be said before.
    Options::parse(command_line, warn_of_unknown_option);
    if loaded.command_line.cut {
        ::log::warn!("the command line is truncated: it has more than {MAX_COMMAND_LINE} bytes");
    }
    for warning in &loaded.warnings {
        ::log::warn!("{warning}");
    }
    if !complete {
        ::log::warn!("free RAM is in too many pieces; some of it is not used");
    }
    if surplus.frames > 0 {
        ::log::info!(
            "{} KiB of RAM are above the domain's reservation; {} KiB were given back to Xen",
            surplus.frames * 4,
            surplus.returned * 4
        );
    }
    if !cpu.no_execute() {
        ::log::warn!("this CPU, or the domain's configuration, has no NX: data is executable");
    }
    if cpu.random_canary == 0 {
        ::log::debug!(
            "no random numbers from the CPU: the stack protector's canary is mixed from the time stamp counter"
        );
    }
    ::log::debug!(
        "Xen {}, domain {}, {} KiB of RAM, {} KiB free at start",
        xen.version,
        xen.domain,
        map.ram.count() * 4,
        free.count() * 4
    );
    ::log::debug!("reservation {reservation} pages, of which {} may lie outside of RAM", map.placed.count());
    ::log::debug!("{} pages mapped by {} KiB of page tables", checked.pages, checked.table_bytes >> 10);
    Ok(Domain(state))
}

fn warn_of_unknown_option(word: Word<'_>) {
    ::log::warn!("not an option of domu, or not a value of it: {}", word.raw().escape_ascii());
}

/// Runs main and ends the domain as it says.
pub(crate) fn run<O: Outcome>(main: impl Future<Output = O>) -> ! {
    let Some(state) = local::current() else { lifecycle::fail(format_args!("domu: main without a domain")) };
    // In this order in each turn; the console comes last, as hooks may write to it.
    let sources = (DueTimers, (DeferredGrants, (Events, (TurnHooks, (Settle, SuspendWaiters)))));
    match executor::run(state, executor::with_exits(main), &sources, eventchn::prepare_halt) {
        Ok(outcome) => outcome.end(),
        Err(Stop::Deadlock) => {
            lifecycle::fail(format_args!("domu: main waits, and nothing is left that could wake it"))
        }
        Err(Stop::NoCallback(errno)) => {
            lifecycle::fail(format_args!("domu: Xen refused the callback for events: {errno}"))
        }
    }
}

/// Says why the domain could not start, and ends it.
pub(crate) fn fail(failure: Failure) -> ! {
    if failure == Failure::NotOnXen {
        // Somebody else's machine: its debug port if it has one, and the port that everybody looks at.
        let message = Line::new(format_args!("domu: {failure}\n"));
        arch::out_bytes(arch::DEBUG_PORT, &message.0);
        arch::serial::write(&message.0);
        arch::stop();
    }
    lifecycle::fail(format_args!("domu: {failure}"))
}

/// One line of text.
struct Line(heapless::Vec<u8, 256>);

impl Line {
    fn new(text: fmt::Arguments<'_>) -> Self {
        let mut line = Self(heapless::Vec::new());
        // The longest message fits.
        let _ = fmt::write(&mut line, text);
        line
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes()).map_err(|_| fmt::Error)
    }
}
