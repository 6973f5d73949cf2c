//! Test support: a simulated Xen for the host, on which a test boots and scripts the same program.
//!
//! This module exists on the host only, not in a unikernel. Use it to test drivers and applications with `cargo test`, without
//! Xen. It is not a part of the interface that a unikernel is built on, and is less stable: a minor release may rename its items
//! and change how the simulated parties behave. [`Guest`], its `run` and `look`, [`Host`], [`Report`], [`outside`], [`Store`] and
//! [`SharedPages`] change only with a line in the change log that says how to adapt. Everything else, [`abi`] and [`access`] among
//! it, serves this crate's own tests and may change in any release.
//!
//! [`Guest`] describes a domain and its surroundings, [`Guest::run`] boots it through the same steps as a unikernel and
//! runs a main function, and [`Report`] is what the outside saw. Hypercalls decode the same structures that Xen does.
//! Misuse is punished: touching RAM that the domain does not have, or mapping over RAM, fails the test.
//!
//! ```
//! use domu::lifecycle::Reason;
//! use domu::sim::{End, Guest};
//!
//! let report = Guest::new().run(async |domain| -> domu::Result {
//!     domain.console().write_all(b"hello\n").await?;
//!     Ok(())
//! });
//! assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
//! assert_eq!(report.console, b"hello\n");
//! ```
//!
//! [`Host`] runs several domains that talk to each other by event channels and grants. [`outside`] plays the part of a peer.
//! [`Store`] is the xenstored, by which a test plays dom0.
//!
//! Each thread has a machine of its own, so tests run in parallel. The memory of a simulated domain lives until the
//! process ends, since what it hands out is `'static` in a unikernel.

/// Xen's guest interface as definitions, for tests that count or refuse hypercalls or look at shared pages.
pub mod abi {
    pub use crate::abi::*;
}

pub mod access;
pub mod backends;
pub(crate) mod machine;
mod scheduler;
mod toolstack;
mod xenstored;

use core::cell::RefCell;
use core::ops::Range;
use std::any::Any;
use std::boxed::Box;
use std::format;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::string::{String, ToString};
use std::vec::Vec;

pub use access::shared_pages::SharedPages;
pub use backends::console::Backend;
#[cfg(feature = "net")]
pub use backends::net::{NetBackend, NetPeer, make_vif};
pub use backends::peer::{PeerPage, outside};
use machine::Machine;
use machine::config::{
    ConsoleConfig, CpuConfig, EventsConfig, GrantsConfig, LoaderConfig, MemoryConfig, ToolstackConfig, XenConfig,
    XenstoreConfig,
};
pub use machine::events::Outside;
pub use machine::grants::GrantFault;
pub(crate) use machine::hypercalls::hypercall;
use machine::memory;
#[cfg(test)]
pub(crate) use machine::memory::xl_map;
pub use scheduler::host::Host;
pub use toolstack::saved::Saved;
pub use xenstored::{Dom0, Message, Store};

use crate::abi::errno::Errno;
use crate::abi::grant_table::Status;
use crate::abi::start_info::StartInfo;
use crate::abi::xen::Hypercall;
use crate::lifecycle::{self, Outcome, Reason};
use crate::{Domain, XenVersion, boot};

/// How a simulated domain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum End {
    /// It told Xen a reason.
    Shutdown(Reason),
    /// It stopped the CPU for good.
    Stopped,
}

/// What the outside saw of a domain.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// What the console's backend read.
    pub console: Vec<u8>,
    /// What went to the debug port.
    pub debug: Vec<u8>,
    /// What went to the first serial port.
    pub serial: Vec<u8>,
    /// What went to the hypervisor's console.
    pub hypervisor: Vec<u8>,
    /// Each hypercall with its operation, in order.
    pub hypercalls: Vec<(Hypercall, u64)>,
    /// How often the domain has halted.
    pub halts: u64,
    /// Events that were sent to ports of peers: domain and port.
    pub sent: Vec<(u16, u32)>,
    /// References that were granted at the end, without those of the toolstack's.
    pub granted: Vec<u32>,
    /// How many pages of others were mapped at the end.
    pub mapped: usize,
    /// Frames given back to Xen, and not filled in again.
    pub given_back: Vec<Range<u64>>,
    /// Frames that are free in the heap.
    pub heap: Vec<Range<u64>>,
    /// How many frames the domain has taken out of the heap for good.
    pub taken: u64,
    /// How often the domain was resumed in another.
    pub resumes: u32,
    /// Nanoseconds that passed on the simulated clock.
    pub elapsed_ns: u64,
}

impl Report {
    /// The report, of a domain that must have powered off.
    ///
    /// # Panics
    ///
    /// If it ended otherwise, with what it said on the debug port.
    #[expect(clippy::must_use_candidate, reason = "the check alone may be what is wanted")]
    #[track_caller]
    pub fn powered_off(self) -> Self {
        assert_eq!(self.end, End::Shutdown(Reason::Poweroff), "{}", self.debug_text());
        self
    }

    /// How often the domain has made a hypercall with this operation.
    #[must_use]
    pub fn calls(&self, call: Hypercall, operation: u64) -> usize {
        self.hypercalls.iter().filter(|made| **made == (call, operation)).count()
    }

    /// The console as text.
    #[must_use]
    pub fn console_text(&self) -> String {
        String::from_utf8_lossy(&self.console).into_owned()
    }

    /// The debug port as text.
    #[must_use]
    pub fn debug_text(&self) -> String {
        String::from_utf8_lossy(&self.debug).into_owned()
    }
}

/// Decides about a hypercall and its operation before Xen does: an error is its answer.
pub type Fault = Box<dyn FnMut(Hypercall, u64) -> Option<Errno> + Send>;

/// A domain to be run, and its surroundings.
pub struct Guest {
    /// Its number, if CPUID tells it.
    domain: Option<u16>,
    /// It is dom0.
    initial_domain: bool,
    memory: MemoryConfig,
    loader: LoaderConfig,
    xen: XenConfig,
    cpu: CpuConfig,
    console: ConsoleConfig,
    events: EventsConfig,
    grants: GrantsConfig,
    xenstore: XenstoreConfig,
    toolstack: ToolstackConfig,
}

/// What a CPU's generator of random numbers gives.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Random {
    /// Numbers that differ.
    Works,
    /// Nothing so many times, then numbers that differ.
    Dry(u32),
    /// The same number for ever, and calls it a success.
    Stuck(u64),
    /// The CPU has none.
    Absent,
    #[doc(hidden)]
    Sequence(u64),
}

impl Random {
    /// What the instruction gives next.
    pub(crate) fn next(&mut self) -> Option<u64> {
        match self {
            Self::Works | Self::Dry(0) => {
                *self = Self::Sequence(0);
                self.next()
            }
            // Sixteen numbers, no byte of which is zero.
            Self::Sequence(index) => {
                *index += 1;
                let base = if *index % 2 == 1 { 0x0123_4567_89ab_cdef } else { 0xfedc_ba98_7654_3210 };
                Some(base ^ ((*index / 2) << 61))
            }
            Self::Dry(times) => {
                *times -= 1;
                None
            }
            Self::Stuck(value) => Some(*value),
            Self::Absent => None,
        }
    }
}

impl core::fmt::Debug for Guest {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Guest").field("domain", &self.domain).field("xen", &self.xen.version).finish_non_exhaustive()
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

impl Guest {
    /// A PVH domain of 16 MiB on Xen 4.17 with a console that is read at once, as `xl create` makes it.
    #[must_use]
    pub fn new() -> Self {
        Self {
            domain: Some(7),
            initial_domain: false,
            memory: MemoryConfig::default(),
            loader: LoaderConfig::default(),
            xen: XenConfig::default(),
            cpu: CpuConfig::default(),
            console: ConsoleConfig::default(),
            events: EventsConfig::default(),
            grants: GrantsConfig::default(),
            xenstore: XenstoreConfig::default(),
            toolstack: ToolstackConfig::default(),
        }
    }

    /// Takes the page tables of boot as they are: to look at them costs more than all the rest.
    #[cfg(fuzzing)]
    #[must_use]
    pub const fn trusted(mut self) -> Self {
        self.memory.trusted = true;
        self
    }

    /// Lets the domain have ports below a number, as `max_event_channels` does.
    #[must_use]
    pub const fn port_limit(mut self, limit: u32) -> Self {
        self.events.port_limit = limit;
        self
    }

    /// Runs on a Xen that has event channels by the two-level interface only.
    #[must_use]
    pub const fn without_fifo(mut self) -> Self {
        self.events.fifo = false;
        self
    }

    /// Lets the domain's grant table have so many pages, as `max_grant_frames` does.
    #[must_use]
    pub const fn grant_frames(mut self, frames: u32) -> Self {
        self.grants.frames = frames;
        self
    }

    /// Lets a function give single operations on grants a status.
    #[must_use]
    pub fn grant_fault(mut self, fault: impl FnMut(u64, u32) -> Option<Status> + Send + 'static) -> Self {
        self.grants.fault = Some(Box::new(fault));
        self
    }

    /// Offers a port of another domain, whose end the test plays, to be bound.
    #[must_use]
    pub fn offer_port(mut self, domain: u16, port: u32) -> Self {
        self.events.offered.push((domain, port));
        self
    }

    /// Lets something happen around the domain, so long after its start.
    #[must_use]
    pub fn after(
        mut self,
        delay: core::time::Duration,
        action: impl FnOnce(&mut Outside<'_>) + Send + 'static,
    ) -> Self {
        self.events.after(delay, Box::new(action));
        self
    }

    /// Lets each look at the clock take so long: 1 µs unless told. Whoever spins until a deadline looks less often then.
    #[must_use]
    pub const fn clock_look(mut self, takes: core::time::Duration) -> Self {
        self.cpu.look_ns = takes.as_nanos() as u64;
        self
    }

    /// Chooses what RDRAND and RDSEED give.
    #[must_use]
    pub const fn random(mut self, random: Random) -> Self {
        self.cpu.random = random;
        self
    }

    /// Runs on a CPU without pages of 1 GiB, RDSEED, SMEP, SMAP and UMIP.
    #[must_use]
    pub const fn poor_cpu(mut self) -> Self {
        self.cpu.rich = false;
        self
    }

    /// Shows `maxmem` MiB of RAM, of which Xen fills in only `memory` MiB.
    #[must_use]
    pub fn memory_mib(mut self, memory: u64, maxmem: u64) -> Self {
        self.memory.map = memory::xl_map(maxmem);
        self.memory.reservation = Some(memory * 256 + memory::XL_EXTRA_PAGES);
        self
    }

    /// Puts something behind so many MiB of RAM, from address 0: what the domain takes from its heap lies there. Three,
    /// unless a test asks for more.
    #[must_use]
    pub const fn backed_mib(mut self, mib: u64) -> Self {
        self.memory.backed = mib << 20;
        self
    }

    /// Replaces the memory map by entries of address, size and type.
    #[must_use]
    pub fn memory_map(mut self, entries: &[(u64, u64, u32)]) -> Self {
        self.memory.map = entries.to_vec();
        self
    }

    /// Sets the pages that Xen says the domain has.
    #[must_use]
    pub const fn reservation(mut self, pages: u64) -> Self {
        self.memory.reservation = Some(pages);
        self
    }

    /// Lets the domain have so many pages at most. Without, it is 240 more than it has: less than a MiB.
    #[must_use]
    pub const fn maximum(mut self, pages: u64) -> Self {
        self.memory.maximum = Some(pages);
        self
    }

    /// Runs on a host without large pages: Xen fills in single ones only.
    #[must_use]
    pub const fn fragmented_host(mut self) -> Self {
        self.memory.fragmented = true;
        self
    }

    /// Passes a command line.
    #[must_use]
    pub fn command_line(mut self, line: impl AsRef<[u8]>) -> Self {
        self.loader.command_line = Some(line.as_ref().to_vec());
        self
    }

    /// Adds a module with its command line.
    #[must_use]
    pub fn module(mut self, data: impl AsRef<[u8]>, line: impl AsRef<[u8]>) -> Self {
        self.loader.modules.push((data.as_ref().to_vec(), line.as_ref().to_vec()));
        self
    }

    /// Uses a version of the start info; version 0 has no memory map.
    #[must_use]
    pub const fn start_info_version(mut self, version: u32) -> Self {
        self.loader.version = version;
        self
    }

    /// Passes something that is no start info.
    #[must_use]
    pub const fn without_start_info(mut self) -> Self {
        self.loader.magic = false;
        self
    }

    /// Runs on another version of Xen, or, with `None`, on none.
    #[must_use]
    pub const fn xen(mut self, version: Option<XenVersion>) -> Self {
        self.xen.version = version;
        self
    }

    /// Moves Xen's CPUID leaves, as a domain with Viridian leaves has them.
    #[must_use]
    pub const fn cpuid_base(mut self, base: u32) -> Self {
        self.xen.cpuid_base = base;
        self
    }

    /// Sets the domain id. With `None` it is 7, and CPUID does not have it.
    #[must_use]
    pub const fn domain(mut self, id: Option<u16>) -> Self {
        self.domain = id;
        self
    }

    /// Makes it the initial domain, which has no console ring and may use the hypervisor's.
    #[must_use]
    pub const fn initial_domain(mut self) -> Self {
        self.initial_domain = true;
        self
    }

    /// Chooses what reads the console.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.console.backend = backend;
        self
    }

    /// Overrides the console's frame in the domain's parameters.
    #[must_use]
    pub const fn console_param(mut self, frame: u64) -> Self {
        self.console.frame = Some(frame);
        self
    }

    /// Overrides the console's port in the domain's parameters.
    #[must_use]
    pub const fn console_port_param(mut self, port: u32) -> Self {
        self.console.port = Some(port);
        self
    }

    /// Gives the domain a store that the test has in its hands, or that other domains of a host share.
    #[must_use]
    pub fn xenstore(mut self, store: &Store) -> Self {
        self.xenstore.store = Some(store.clone());
        self
    }

    /// Runs without a store.
    #[must_use]
    pub fn without_xenstore(mut self) -> Self {
        self.xenstore.store = None;
        self
    }

    /// Obeys the toolstack beside main, as [`main!`](crate::main!) has a unikernel do: see [`lifecycle`]. Without, xenstore
    /// and the domain's ports see what the test does, and nothing else.
    #[must_use]
    pub const fn obedient(mut self) -> Self {
        self.toolstack.obedient = true;
        self
    }

    /// Says what becomes of the domain each time it suspends itself. Else it goes on in another after three seconds.
    #[must_use]
    pub fn saves(mut self, save: impl FnMut() -> Saved + Send + 'static) -> Self {
        self.toolstack.save = Some(Box::new(save));
        self
    }

    /// Lets the indices of xenstore's rings start elsewhere than at zero.
    #[must_use]
    pub const fn xenstore_index(mut self, index: u32) -> Self {
        self.xenstore.index = index;
        self
    }

    /// Lets the console ring's indices start elsewhere than at zero.
    #[must_use]
    pub const fn console_index(mut self, index: u32) -> Self {
        self.console.index = index;
        self
    }

    /// Shows a consumer index that is so far ahead of the producer's when the console is joined.
    #[must_use]
    pub const fn console_consumer_ahead(mut self, bytes: u32) -> Self {
        self.console.consumer_ahead = bytes;
        self
    }

    /// Lets Xen take back, and fill in, at most so many extents in one call.
    #[must_use]
    pub const fn extents_taken(mut self, extents: u64) -> Self {
        self.memory.extents = extents;
        self
    }

    /// Lets a function change the start info before the domain sees it.
    #[must_use]
    pub fn start_info(mut self, change: impl Fn(&mut StartInfo) + Send + 'static) -> Self {
        self.loader.change = Some(Box::new(change));
        self
    }

    /// Lets a function answer hypercalls with errors.
    #[must_use]
    pub fn fault(mut self, fault: impl FnMut(Hypercall, u64) -> Option<Errno> + Send + 'static) -> Self {
        self.xen.fault = Some(Box::new(fault));
        self
    }

    /// Boots the domain, runs main, and reports what came of it.
    ///
    /// # Panics
    ///
    /// If the thread is inside of a simulated domain already.
    pub fn run<O: Outcome, F: Future<Output = O>>(self, main: impl FnOnce(Domain) -> F) -> Report {
        let obedient = self.toolstack.obedient;
        self.run_never(|domain| {
            if obedient {
                lifecycle::obey();
            }
            boot::run(main(domain))
        })
    }

    /// Boots the domain, has main look at it, and tells what came of it, and what was seen if it came so far.
    ///
    /// # Panics
    ///
    /// As [`run`](Self::run).
    pub fn look<T>(self, look: impl FnOnce(Domain) -> T) -> (Report, Option<T>) {
        let seen = RefCell::new(None);
        let slot = &seen;
        let report = self.run(|domain| async move { *slot.borrow_mut() = Some(look(domain)) });
        (report, seen.into_inner())
    }

    fn run_never(self, program: impl FnOnce(Domain) -> Never) -> Report {
        let end = execute(Machine::new(self), program).unwrap_or_else(|panic| {
            // What the panic handler does in a unikernel.
            let outcome = catch_unwind(|| lifecycle::fail(format_args!("domu: panicked: {panic}")));
            ended(outcome).unwrap_or(End::Stopped)
        });
        Machine::leave(end)
    }
}

/// What a program that ends its domain "returns".
enum Never {}

/// Puts a machine on this thread, boots the domain and runs its program: how it ended, or the message of a panic. The
/// machine stays on the thread.
fn execute(machine: Machine, program: impl FnOnce(Domain) -> Never) -> Result<End, String> {
    let start_info = machine.enter();
    ended(catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the machine has just written a start info there, and nothing has touched its memory since.
        match unsafe { boot::boot(start_info) } {
            Ok(domain) => {
                program(domain);
            }
            Err(failure) => boot::fail(failure),
        }
    })))
}

/// The end that a domain came to, or the message of a panic.
fn ended<T>(outcome: Result<T, Box<dyn Any + Send>>) -> Result<End, String> {
    let Err(payload) = outcome else { return Ok(End::Stopped) };
    match payload.downcast::<End>() {
        Ok(end) => Ok(*end),
        Err(payload) => Err(payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| format!("{payload:?}"))),
    }
}

/// Leaves the domain: what no return from a hypercall does.
pub(crate) fn end(end: End) -> ! {
    resume_unwind(Box::new(end))
}

/// Runs a unikernel's program on the host: arguments become the command line, the console goes to standard output.
/// Returns the number of the shutdown reason.
#[doc(hidden)]
pub fn run_program(program: impl FnOnce(Domain) -> core::convert::Infallible) -> i32 {
    use std::io::Write;
    let line: Vec<String> = std::env::args().skip(1).collect();
    let report = Guest::new().command_line(line.join(" ")).run_never(|domain| match program(domain) {});
    let mut out = std::io::stdout();
    // Without a standard output there is nobody to tell.
    let _ = out.write_all(&report.console).and_then(|()| out.write_all(&report.debug)).and_then(|()| out.flush());
    match report.end {
        End::Shutdown(reason) => reason as i32,
        End::Stopped => 1,
    }
}

/// How property tests run: a few cases under Miri, which is slow and has no file system to keep failures in.
#[cfg(test)]
pub(crate) fn proptest_config() -> proptest::test_runner::Config {
    let config = proptest::test_runner::Config { failure_persistence: None, ..Default::default() };
    if cfg!(miri) { proptest::test_runner::Config { cases: 2, ..config } } else { config }
}
