//! The simulated machine: CPUID, the clock, ports and guest-physical memory, and what Xen knows of the domain.

pub(super) mod config;
pub(super) mod events;
pub(super) mod evtchn_send;
mod fifo;
pub(super) mod grants;
pub(crate) mod hypercalls;
mod mappings;
pub(super) mod memory;
mod suspend;

use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::cell::RefCell;
use std::vec::Vec;

use crate::abi::cpuid::{HVM, HVM_DOMID_PRESENT, SIGNATURE, VERSION};
use crate::abi::memory::E820_RAM;
use crate::abi::start_info::{MemmapTableEntry, ModlistEntry, START_MAGIC_VALUE, Sif, StartInfo};
use crate::abi::xen::Hypercall;
use crate::arch::{ControlRegisters, Cpu, DEBUG_PORT};
use crate::local::Instance;
use crate::memory::{FrameRange, HIGHEST_FRAME, Image, Stack};
use crate::shared::SharedPage;
use crate::sim::backends::console::{Backend, Reader};
use crate::sim::machine::events::Events;
use crate::sim::machine::grants::Grants;
use crate::sim::machine::memory::{CONSOLE_FRAME, Memory, STORE_FRAME, XL_EXTRA_PAGES, XL_SPARE_PAGES, placed_address};
use crate::sim::scheduler::{self, Slot, Wait};
use crate::sim::{End, Fault, Guest, Random, Report, Store};
use crate::{MAX_COMMAND_LINE, XenVersion};

/// RAM that has something behind it, from address 0, unless a test asks for more: enough for what boot touches.
pub(crate) const BACKED: u64 = 3 << 20;
/// Where the loader puts the start info, the lists, and the texts and modules behind them.
const START_INFO: u64 = 0x14_0000;
const MEMMAP: u64 = 0x14_1000;
const MODLIST: u64 = 0x14_8000;
const BLOBS: u64 = 0x15_0000;

/// The port of xenstore, as xl's builder allocates it.
pub(crate) const STORE_PORT: u32 = 1;

/// The console's port, as xl's builder allocates it.
pub(crate) const CONSOLE_PORT: u32 = 2;

/// The number of a domain that is not told it.
const DEFAULT_DOMAIN: u16 = 7;

/// The system time when the domain, and with it its time stamp counter, starts.
pub(crate) const START_NS: u64 = 1_000_000_000;

/// The wall clock when the host booted: some day in 2026.
pub(crate) const WALL_CLOCK_NS: u64 = 1_790_000_000_123_456_789;

/// Everything below the domain.
pub(crate) struct Machine {
    pub(crate) memory: Memory,
    pub(crate) map: Vec<(u64, u64, u32)>,
    /// Pages that the domain has, and may have.
    pub(crate) reservation: u64,
    pub(crate) maximum: u64,
    /// Frames of RAM that would be filled in when they are touched.
    pub(crate) unfilled: u64,
    /// Not all of the RAM was there when the domain started.
    partial: bool,
    /// The host has no large pages left.
    pub(crate) fragmented: bool,
    pub(crate) console_frame: u64,
    /// What the parameter says instead of the port.
    pub(crate) console_port_param: Option<u32>,
    pub(crate) initial_domain: bool,
    pub(crate) reader: Option<Reader>,
    /// The store, and the number by which it knows the domain.
    pub(crate) store: Option<(Store, u16)>,
    /// The page of its rings, and what the toolstack says of the domain's memory.
    pub(in crate::sim) store_page: Option<SharedPage>,
    pub(in crate::sim) store_memory: crate::sim::toolstack::home::Memory,
    /// What becomes of the domain when it suspends itself, and how often it went on in another.
    pub(in crate::sim) save: Option<crate::sim::toolstack::saved::Save>,
    pub(in crate::sim) resumes: u32,
    /// How far the system time of the host is ahead of the clock here.
    pub(in crate::sim) ahead_ns: i64,
    pub(crate) fault: Option<Fault>,
    pub(crate) info: Option<SharedPage>,
    pub(crate) clock_ns: u64,
    /// The wall clock at system time zero.
    wall_clock_ns: u64,
    pub(crate) events: Events,
    /// When they end the domain, those that it has.
    pub(crate) watchdogs: [Option<u64>; 2],
    /// It has suspended itself, and does not go on yet.
    pub(in crate::sim) suspended: bool,
    pub(crate) grants: Grants,
    /// Its place among the domains of a host, if it is not alone.
    pub(crate) slot: Option<Slot>,
    pub(crate) hypercalls: Vec<(Hypercall, u64)>,
    pub(crate) given_back: Vec<Range<u64>>,
    /// Bytes of RAM that have something behind them.
    backed: u64,
    /// Frames that are free in the heap.
    heap: Vec<Range<u64>>,
    /// How many of those the domain has taken out of it.
    taken: u64,
    /// Frames of the tables in force.
    tables: Vec<u64>,
    /// Frames of what the loader left: nothing may be placed over them.
    loaded: Vec<Range<u64>>,
    /// Extents that Xen takes back in one call.
    pub(crate) extents_taken: u64,
    pub(crate) hypervisor: Vec<u8>,
    xen: Option<XenVersion>,
    cpuid_base: u32,
    pub(crate) domain: u16,
    /// True if CPUID has the number of the domain.
    pub(crate) tells_domain: bool,
    debug: Vec<u8>,
    serial: Vec<u8>,
    cpu: Cpu,
    /// What RDRAND and RDSEED give.
    random: Random,
    /// What reading the time stamp counter costs.
    look_ns: u64,
    /// The root of the tables in force.
    root: u64,
    #[cfg(fuzzing)]
    trusted: bool,
    /// What a small main stack leaves to the heap.
    spare_stack: FrameRange,
    /// The serial port's data register holds the divisor (DLAB).
    divisor_latch: bool,
}

std::thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

/// Looks at the machine of this thread.
///
/// # Panics
///
/// Outside of a simulated domain.
pub(crate) fn with<T>(look: impl FnOnce(&mut Machine) -> T) -> T {
    MACHINE.with_borrow_mut(|machine| look(machine.as_mut().expect("code of a domain runs in Guest::run only")))
}

/// Looks at the machine of this thread, if there is one.
pub(crate) fn if_there<T>(look: impl FnOnce(&mut Machine) -> T) -> Option<T> {
    MACHINE.with_borrow_mut(|machine| machine.as_mut().map(look))
}

/// Looks at the machine of this thread if there is one, and the domain on it is at work, not the machine itself.
pub(in crate::sim) fn at_work<T>(look: impl FnOnce(&mut Machine) -> T) -> Option<T> {
    MACHINE.with(|machine| machine.try_borrow_mut().ok()?.as_mut().map(look))
}

/// Whether the machine of this thread is itself at work.
pub(in crate::sim) fn is_busy() -> bool {
    MACHINE.with(|machine| machine.try_borrow_mut().is_err())
}

/// Takes the machine off this thread.
pub(in crate::sim) fn take_off() -> Machine {
    MACHINE.take().expect("a thread that runs a domain")
}

/// Puts a machine on this thread.
pub(in crate::sim) fn put_on(machine: Machine) {
    let before = MACHINE.replace(Some(machine));
    assert!(before.is_none(), "this thread runs a simulated domain already");
}

/// The bytes of a structure of the boot protocol.
fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: the structures passed here are made of integers without padding between them.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

impl Machine {
    /// A machine with a guest, loaded.
    pub(in crate::sim) fn new(guest: Guest) -> Self {
        let mut memory = Memory::default();
        memory.back(0, guest.memory.backed);
        let page = memory.back(CONSOLE_FRAME << 12, 4096);
        // A console that is said to lie in RAM does; what stands in the page then is the rings.
        let page = guest.console.frame.and_then(|frame| memory.ram(frame.checked_mul(4096)?)).unwrap_or(page);
        let loaded = Self::load(&memory, &guest);
        let ram: u64 = guest.memory.map.iter().filter(|entry| entry.2 == E820_RAM).map(|entry| entry.1 / 4096).sum();
        let reservation = guest.memory.reservation.unwrap_or(ram + XL_EXTRA_PAGES);
        let console_frame = match guest.console.backend {
            Backend::Absent => 0,
            _ if guest.initial_domain => 0,
            _ => CONSOLE_FRAME,
        };
        // SAFETY: the page is aligned, lives as long as the process, and both ends use `SharedPage`s of it.
        let ring = unsafe { SharedPage::new(page, 1) };
        let reader = (console_frame != 0)
            .then(|| Reader::new(guest.console.backend, ring, guest.console.index, guest.console.consumer_ahead));
        let target = reservation.saturating_sub(XL_EXTRA_PAGES).min(ram);
        let store_memory = crate::sim::toolstack::home::Memory {
            most_kib: ram.saturating_mul(4),
            target_kib: target.saturating_mul(4),
        };
        let store = guest.xenstore.store.clone().filter(|_| !guest.initial_domain);
        // SAFETY: as above.
        let store_page = store.is_some().then(|| unsafe { SharedPage::new(memory.back(STORE_FRAME << 12, 4096), 1) });
        let store = store.zip(store_page).map(|(store, page)| {
            let domain = guest.domain.unwrap_or(DEFAULT_DOMAIN);
            store.introduce(domain, page, guest.xenstore.index, store_memory, START_NS);
            (store, domain)
        });
        let cpu = guest.cpu.cpuid();
        Self {
            memory,
            reservation,
            maximum: guest.memory.maximum.unwrap_or(reservation.saturating_add(XL_SPARE_PAGES)),
            unfilled: (ram + XL_EXTRA_PAGES).saturating_sub(reservation),
            partial: reservation < ram,
            fragmented: guest.memory.fragmented,
            map: guest.memory.map,
            console_port_param: guest.console.port,
            console_frame: guest.console.frame.unwrap_or(console_frame),
            initial_domain: guest.initial_domain,
            reader,
            store,
            store_page,
            store_memory,
            save: guest.toolstack.save,
            resumes: 0,
            ahead_ns: 0,
            fault: guest.xen.fault,
            info: None,
            clock_ns: START_NS,
            wall_clock_ns: WALL_CLOCK_NS,
            watchdogs: [None; 2],
            suspended: false,
            events: Events::new(guest.events),
            grants: Grants::new(guest.grants, guest.initial_domain),
            slot: None,
            hypercalls: Vec::new(),
            given_back: Vec::new(),
            backed: guest.memory.backed,
            heap: Vec::new(),
            taken: 0,
            tables: Vec::new(),
            loaded,
            extents_taken: guest.memory.extents,
            hypervisor: Vec::new(),
            xen: guest.xen.version,
            cpuid_base: guest.xen.cpuid_base,
            domain: guest.domain.unwrap_or(DEFAULT_DOMAIN),
            tells_domain: guest.domain.is_some(),
            debug: Vec::new(),
            serial: Vec::new(),
            cpu,
            random: guest.cpu.random,
            look_ns: guest.cpu.look_ns,
            root: 0,
            #[cfg(fuzzing)]
            trusted: guest.memory.trusted,
            spare_stack: FrameRange { start: 0, end: 0 },
            divisor_latch: false,
        }
    }

    /// Puts the machine on this thread, and returns the address of its start info.
    pub(in crate::sim) fn enter(self) -> u32 {
        put_on(self);
        START_INFO as u32
    }

    /// Takes the guest off this thread.
    pub(crate) fn leave(end: End) -> Report {
        crate::local::forget();
        let _ = crate::sim::access::interleave::end();
        let mut machine = take_off();
        if let Some((store, domain)) = &machine.store {
            store.release(*domain);
        }
        Report {
            end,
            console: machine.reader.map(|reader| reader.received).unwrap_or_default(),
            debug: machine.debug,
            serial: machine.serial,
            hypervisor: machine.hypervisor,
            hypercalls: machine.hypercalls,
            halts: machine.events.halts,
            sent: machine.events.sent,
            granted: machine.grants.granted(),
            mapped: machine.grants.mappings.count(),
            given_back: machine.given_back,
            heap: machine.heap,
            taken: machine.taken,
            resumes: machine.resumes,
            elapsed_ns: machine.clock_ns - START_NS,
        }
    }

    /// Does what a domain builder does after the image is loaded.
    fn load(memory: &Memory, guest: &Guest) -> Vec<Range<u64>> {
        let mut blob = BLOBS;
        let mut kept = Vec::new();
        let mut put = |bytes: &[u8], most: usize| {
            let address = blob;
            memory.write(address, bytes);
            blob += (bytes.len() as u64 + 1).next_multiple_of(4096);
            let frames = FrameRange::touching(address, bytes.len().min(most) as u64);
            kept.push(frames.start..frames.end);
            address
        };
        let mut start_info = StartInfo {
            magic: if guest.loader.magic { START_MAGIC_VALUE } else { 0x1234_5678 },
            version: guest.loader.version,
            ..StartInfo::default()
        };
        if guest.initial_domain {
            start_info.flags = Sif::INITDOMAIN | Sif::PRIVILEGED;
        }
        if let Some(line) = &guest.loader.command_line {
            start_info.cmdline_paddr = put(line, MAX_COMMAND_LINE);
        }
        for (index, (data, line)) in guest.loader.modules.iter().enumerate() {
            let entry = ModlistEntry {
                paddr: put(data, usize::MAX),
                size: data.len() as u64,
                cmdline_paddr: if line.is_empty() { 0 } else { put(line, MAX_COMMAND_LINE) },
                reserved: 0,
            };
            memory.write(MODLIST + 32 * index as u64, bytes_of(&entry));
        }
        if !guest.loader.modules.is_empty() {
            start_info.modlist_paddr = MODLIST;
            start_info.nr_modules = guest.loader.modules.len() as u32;
        }
        if guest.loader.version >= 1 {
            for (index, &(addr, size, ty)) in guest.memory.map.iter().enumerate() {
                let entry = MemmapTableEntry { addr, size, ty, reserved: 0 };
                memory.write(MEMMAP + 24 * index as u64, bytes_of(&entry));
            }
            start_info.memmap_paddr = MEMMAP;
            start_info.memmap_entries = guest.memory.map.len() as u32;
        } else {
            // What follows a structure of version 0 is anything.
            (start_info.memmap_paddr, start_info.memmap_entries) = (0xdead_beef_0000, 0x7fff_ffff);
        }
        if let Some(change) = &guest.loader.change {
            change(&mut start_info);
        }
        memory.write(START_INFO, bytes_of(&start_info));
        // The start info and the lists need not last once they are read. What a changed start info names is not known.
        kept.retain(|range| guest.loader.change.is_none() && !range.is_empty());
        kept
    }

    /// The entry of the memory map that a frame lies in, if only in part. An empty one covers nothing.
    pub(crate) fn shown_at(&self, frame: u64) -> Option<&(u64, u64, u32)> {
        let (first, last) = (frame << 12, frame << 12 | 0xfff);
        self.map.iter().find(|&&(start, size, _)| size > 0 && last >= start && first <= start.saturating_add(size - 1))
    }

    /// The moment of the clock here for a system time of the host's.
    pub(in crate::sim) const fn clock_at(&self, system_time_ns: u64) -> u64 {
        system_time_ns.saturating_add_signed(self.ahead_ns.saturating_neg())
    }

    pub(in crate::sim) fn is_older_than(&self, major: u16, minor: u16) -> bool {
        self.xen.is_some_and(|version| version < XenVersion { major, minor })
    }

    pub(crate) const fn is_xen(&self) -> bool {
        self.xen.is_some()
    }

    /// Gives the console's backend a turn, and marks its port if it raises an event.
    pub(crate) fn backend_turn(&mut self) {
        if self.reader.as_mut().is_some_and(|reader| reader.act(self.clock_ns)) {
            self.raise(self.events.console_port);
        }
    }

    /// The domain has notified xenstored, which has a turn unless it is late.
    pub(crate) fn store_notified(&mut self) {
        if let Some((store, domain)) = &self.store {
            store.notified(*domain, self.clock_ns);
        }
        if self.store_next().is_some_and(|next| next <= self.clock_ns) {
            self.store_turn();
        }
    }

    /// When xenstored has its next turn.
    pub(crate) fn store_next(&self) -> Option<u64> {
        self.store.as_ref().and_then(|(store, domain)| store.next(*domain))
    }

    /// Gives xenstored a turn, and marks its port if it raises an event.
    pub(crate) fn store_turn(&mut self) {
        if self.store.as_ref().is_some_and(|(store, domain)| store.act(*domain, self.clock_ns)) {
            self.raise(self.events.store_port);
        }
    }

    /// Somebody types into the console.
    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        if self.reader.as_mut().is_some_and(|reader| reader.type_in(bytes)) {
            self.raise(self.events.console_port);
        }
    }

    /// Sets the wall clock as dom0 does, for domains that are shown it.
    pub(crate) fn set_wall_clock(&mut self, now_ns: u64) {
        self.wall_clock_ns = now_ns.wrapping_sub(self.clock_ns);
        self.show_wall_clock();
    }

    /// Writes the wall clock into the shared page, once the domain has said how it is interrupted.
    pub(crate) fn show_wall_clock(&self) {
        use crate::abi::xen::shared_info::{
            WALL_CLOCK_NANOSECONDS, WALL_CLOCK_SECONDS, WALL_CLOCK_SECONDS_HIGH, WALL_CLOCK_VERSION,
        };
        let Some(info) = self.info.as_ref().filter(|_| self.events.callback.is_some()) else { return };
        // At system time zero, which is another moment on each host.
        let wall_clock_ns = self.wall_clock_ns.saturating_add_signed(self.ahead_ns.saturating_neg());
        let seconds = wall_clock_ns / 1_000_000_000;
        info.u32(WALL_CLOCK_VERSION).fetch_add(1, Ordering::SeqCst);
        info.u32(WALL_CLOCK_SECONDS).store(seconds as u32, Ordering::SeqCst);
        info.u32(WALL_CLOCK_SECONDS_HIGH).store((seconds >> 32) as u32, Ordering::SeqCst);
        info.u32(WALL_CLOCK_NANOSECONDS).store((wall_clock_ns % 1_000_000_000) as u32, Ordering::SeqCst);
        info.u32(WALL_CLOCK_VERSION).fetch_add(1, Ordering::SeqCst);
    }
}

/// Halts until an event is pending.
pub(crate) fn idle() {
    with(Machine::halt);
    scheduler::wait(&Wait::Halt);
}

/// EAX, EBX, ECX, EDX of a CPUID leaf: zero outside of a domain.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    let leaf = if_there(|machine| {
        let Some(version) = machine.xen else { return [0; 4] };
        match leaf.wrapping_sub(machine.cpuid_base) {
            0 => [machine.cpuid_base + 5, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]],
            VERSION => [u32::from(version.major) << 16 | u32::from(version.minor), 0, 0, 0],
            HVM if machine.tells_domain => [HVM_DOMID_PRESENT, 0, u32::from(machine.domain), 0],
            HVM => [0, 0, 0xffff_ffff, 0],
            _ => [0; 4],
        }
    });
    leaf.unwrap_or_default()
}

/// The time stamp counter: a tick for each nanosecond since the domain started. Zero outside of a domain.
pub(crate) fn read_tsc() -> u64 {
    let ticks = if_there(|machine| {
        machine.clock_ns += machine.look_ns;
        machine.catch_up();
        machine.clock_ns - START_NS
    });
    ticks.unwrap_or(0)
}

/// Writes bytes to a port.
pub(crate) fn out_bytes(port: u16, bytes: &[u8]) {
    bytes.iter().for_each(|&byte| out(port, byte));
}

/// Writes a byte to a port: the debug port and the data register of the first serial port keep it. Outside of a domain there
/// are no ports.
pub(crate) fn out(port: u16, value: u8) {
    let _ = if_there(|machine| match port {
        DEBUG_PORT => machine.debug.push(value),
        0x3f8 if !machine.divisor_latch => machine.serial.push(value),
        0x3fb => machine.divisor_latch = value & 0x80 != 0,
        _ => {}
    });
}

/// Reads a port: the serial port is always ready, everything else is absent.
pub(crate) fn input(port: u16) -> u8 {
    if port == 0x3fd { 0x60 } else { 0xff }
}

/// Stops for good.
///
/// # Panics
///
/// Outside of a simulated domain.
pub(crate) fn stop() -> ! {
    assert!(if_there(|_| ()).is_some(), "a domain is ended outside of a simulated domain");
    crate::sim::end(End::Stopped)
}

/// What is behind an address of shared memory, now: pages of others come and go.
///
/// # Panics
///
/// If nothing is there any more, and outside of the domain that has mapped it: at this address another domain has another page.
pub(crate) fn behind(start: NonNull<u8>, offset: usize, instance: Option<Instance>) -> *mut u8 {
    let Some(start) = placed_address(start.as_ptr()) else { return start.as_ptr().wrapping_add(offset) };
    assert!(instance.is_none_or(Instance::is_running), "a mapping is used outside of its domain");
    let address = start + offset as u64;
    with(|machine| {
        machine.grants.touch(address >> 12, offset % 4096);
        let page = machine.memory.behind(address >> 12);
        let page = page.unwrap_or_else(|| panic!("touched what is mapped no more: {address:#x}"));
        page.as_ptr().wrapping_add((address % 4096) as usize)
    })
}

/// The number by which a copy names the page that a pointer lies in. Here it is one of the host's, not of a domain's, and
/// keeps the pointer's right to the slice. `None` outside of a domain.
pub(crate) fn copied_frame(pointer: *const u8) -> Option<u64> {
    if_there(|machine| machine.grants.mappings.lend(pointer))
}

/// Where guest-physical memory is seen.
///
/// # Panics
///
/// Where there is none, or none any more: in a unikernel that would be the end without a word.
pub(crate) fn phys(address: u64) -> *mut u8 {
    with(|machine| {
        let gone = machine.given_back.iter().any(|range| range.contains(&(address >> 12)));
        assert!(!gone, "touched RAM that was given back: {address:#x}");
        machine.memory.at(address).unwrap_or_else(|| panic!("touched what is not there: {address:#x}"))
    })
}

/// The frame that a pointer points into; none for the host's own memory, where a program's heap is here.
pub(crate) fn frame_of(pointer: *const u8) -> Option<u64> {
    with(|machine| machine.memory.address_of(pointer)).map(|address| address >> 12)
}

/// The control registers as boot has to leave them.
pub(crate) fn control_registers() -> ControlRegisters {
    with(|machine| ControlRegisters { cr0: 0x8001_0033, cr3: machine.root, cr4: machine.cpu.cr4() })
}

/// The frame pointer: here as if the stack had just begun.
pub(crate) fn frame_pointer() -> u64 {
    Image::get().main_stack.frames.end << 12
}

/// How much of a stack is in use: here as if it had just begun.
pub(crate) fn stack_depth(end: u64) -> u64 {
    end.saturating_sub(frame_pointer())
}

/// CPUID of the simulated CPU. Outside of a domain it has no feature.
pub(crate) fn cpu() -> Cpu {
    if_there(|machine| machine.cpu).unwrap_or_default()
}

/// What the guest was given for RDRAND.
///
/// # Safety
///
/// As in a unikernel; here an instruction that the CPU lacks fails the test.
pub(crate) unsafe fn rdrand() -> Option<u64> {
    with(|machine| {
        assert!(machine.cpu.rdrand(), "RDRAND is an invalid opcode here");
        machine.random.next()
    })
}

/// What the guest was given for RDSEED.
///
/// # Safety
///
/// As in a unikernel; here an instruction that the CPU lacks fails the test.
pub(crate) unsafe fn rdseed() -> Option<u64> {
    with(|machine| {
        assert!(machine.cpu.rdseed(), "RDSEED is an invalid opcode here");
        machine.random.next()
    })
}

/// Whether the tables of boot are taken as they are: where a fuzzer looks at something else.
fn is_trusted() -> bool {
    #[cfg(fuzzing)]
    return with(|machine| machine.trusted);
    #[cfg(not(fuzzing))]
    false
}

/// Makes tables the ones in force: looks at every leaf, and holds them against the image and the memory map.
///
/// # Safety
///
/// As in a unikernel; here the looks fail the test instead.
pub(crate) unsafe fn activate(root: u64) {
    with(|machine| machine.root = root);
    // Thousands of entries at each boot: looked at where that does not take seconds. Elsewhere the stack may be a small
    // one, as far as is known.
    if cfg!(miri) || is_trusted() {
        let mut image = Image::get();
        image.shrink_stack();
        return with(|machine| machine.spare_stack = image.spare);
    }
    let leaves = look_at_tables();
    let mut image = Image::get();
    // Collected in the order of addresses.
    let leaf = |frame: u64| {
        let next: usize = leaves.partition_point(|leaf: &Leaf| leaf.frames.end <= frame);
        leaves.get(next).filter(|leaf| leaf.frames.start <= frame)
    };
    let access = |frame| leaf(frame).map(|leaf| (leaf.writable, leaf.executable));
    // Where there is little memory the guard page of the main stack lies higher.
    if access(image.main_stack.guard).is_some() {
        image.shrink_stack();
        with(|machine| machine.spare_stack = image.spare);
    }
    let stacks: Vec<Stack> = image.trap_stacks.into_iter().chain([image.main_stack]).collect();
    for frame in image.all.start..image.all.end {
        let expected = match frame {
            _ if stacks.iter().any(|stack| stack.guard == frame) => None,
            _ if frame < image.code.end => Some((false, true)),
            _ if frame < image.constants.end || image.sealed.contains(frame) => Some((false, false)),
            _ => Some((true, false)),
        };
        assert_eq!(access(frame), expected, "image frame {frame:#x}");
    }
    assert_eq!(access(0), None, "the null page");
    with(|machine| {
        for &frame in &machine.tables {
            assert_eq!(access(frame), Some((false, false)), "the page table in frame {frame:#x}");
        }
        let tables = machine.tables.iter().copied().min().zip(machine.tables.iter().copied().max());
        for &(address, size, kind) in &machine.map {
            let frames = FrameRange::inside(address, size);
            for frame in [frames.start.max(1), frames.end.saturating_sub(1)] {
                let inside = (frames.start..frames.end).contains(&frame) && frame < HIGHEST_FRAME;
                let gone = machine.given_back.iter().any(|range| range.contains(&frame));
                // Spare tables follow the last one in use.
                let in_tables = tables.is_some_and(|(first, last)| (first..last + 7).contains(&frame));
                if inside && !image.all.contains(frame) && frame != 0 && !in_tables {
                    // What an entry of another type covers is mapped with that entry.
                    let placed = machine.map.iter().any(|&(start, length, other)| {
                        other != E820_RAM
                            && FrameRange::touching(start, length).overlaps(FrameRange { start: frame, end: frame + 1 })
                    });
                    let right = match access(frame) {
                        Some(access) => access == (true, false),
                        // RAM above the reservation is not used where Xen did not take it back.
                        None => machine.partial && !gone,
                    };
                    assert!(placed || right, "type {kind}, frame {frame:#x}: {:?}", access(frame));
                }
            }
        }
        if machine.console_frame == CONSOLE_FRAME {
            assert_eq!(access(CONSOLE_FRAME), Some((true, false)), "the console");
        }
    });
}

/// Lets a function write to the tables in force, and looks at what came of it. The CPU marks the tables' own pages dirty,
/// as some of them have been written to.
///
/// # Safety
///
/// As in a unikernel; here the looks fail the test instead.
pub(crate) unsafe fn edit_tables<T>(_: Range<u64>, edit: impl FnOnce() -> T) -> T {
    let result = edit();
    let leaves = look_at_tables();
    let (root, tables) = with(|machine| (machine.root, machine.tables.clone()));
    for frame in tables {
        let mut table = root;
        for level in (1..=4).rev() {
            let index = (frame >> (9 * (level - 1))) % 512;
            // SAFETY: an entry of a table in force, which others too see as an atomic only.
            let entry = unsafe { AtomicU64::from_ptr(phys(table + 8 * index).cast()) };
            if level == 1 || entry.load(Ordering::Relaxed) & 0x80 != 0 {
                entry.fetch_or(0x40, Ordering::Relaxed);
                break;
            }
            table = entry.load(Ordering::Relaxed) & 0x000f_ffff_ffff_f000;
        }
    }
    with(|machine| {
        for &frame in &machine.tables {
            let leaf = leaves.iter().find(|leaf| leaf.frames.contains(&frame));
            let sealed = leaf.is_some_and(|leaf| !leaf.writable && !leaf.executable);
            assert!(sealed, "the page table in frame {frame:#x}: {leaf:x?}");
        }
    });
    result
}

/// Reads the tables in force as the CPU would: no page is writable and executable.
fn look_at_tables() -> Vec<Leaf> {
    let (mut leaves, mut tables) = (Vec::new(), Vec::new());
    visit(with(|machine| machine.root), 4, 0, &mut tables, &mut leaves);
    for leaf in &leaves {
        assert!(!(leaf.writable && leaf.executable), "writable and executable: {leaf:x?}");
    }
    with(|machine| machine.tables = tables);
    leaves
}

/// A page of whatever size.
#[derive(Debug)]
struct Leaf {
    frames: Range<u64>,
    writable: bool,
    executable: bool,
}

/// Collects the tables and leaves below an entry, as the CPU would read them.
fn visit(table: u64, level: u32, first: u64, tables: &mut Vec<u64>, leaves: &mut Vec<Leaf>) {
    tables.push(table >> 12);
    let span = 1_u64 << (9 * (level - 1));
    // SAFETY: a table is a page of RAM, aligned, which nothing writes to while it is looked at.
    let entries = unsafe { phys(table).cast::<[u64; 512]>().read() };
    for (index, entry) in entries.into_iter().enumerate().filter(|(_, entry)| *entry != 0) {
        let frame = first + index as u64 * span;
        let address = entry & 0x000f_ffff_ffff_f000;
        assert!(entry & 1 != 0, "an entry that is not present holds something: {entry:#x}");
        if level == 1 || entry & 0x80 != 0 {
            assert_eq!(address >> 12, frame, "memory is seen at its own address");
            assert_eq!(entry & 0x24, 0x20, "a kernel's page that the CPU need not mark: {entry:#x}");
            leaves.push(Leaf { frames: frame..frame + span, writable: entry & 2 != 0, executable: entry >> 63 == 0 });
        } else {
            visit(address, level - 1, frame, tables, leaves);
        }
    }
}

/// Adds frames to the heap: they must be RAM that nothing else uses.
pub(crate) fn claim(range: FrameRange) {
    let image = Image::get();
    with(|machine| {
        let overlaps = |other: &Range<u64>| range.start < other.end && other.start < range.end;
        let ram = machine.map.iter().filter(|entry| entry.2 == E820_RAM);
        let touched: u64 = ram
            .map(|&(address, size, _)| {
                let ram = FrameRange::inside(address, size);
                range.end.min(ram.end).saturating_sub(range.start.max(ram.start))
            })
            .sum();
        assert!(touched >= range.end - range.start, "the heap is given what is not RAM: {range:x?}");
        assert!(range.start > 0, "the heap is given the null page");
        assert!(!machine.given_back.iter().any(overlaps), "the heap is given what Xen took back: {range:x?}");
        assert!(!machine.heap.iter().any(overlaps), "the heap is given the same twice: {range:x?}");
        assert!(!machine.loaded.iter().any(overlaps), "the heap is given a module or a text: {range:x?}");
        let tables = machine.tables.iter().any(|&frame| overlaps(&(frame..frame + 1)));
        assert!(!tables, "the heap is given a page table: {range:x?}");
        let boot_tables = range.start >= image.boot_tables.start && range.end <= image.boot_tables.end;
        assert!(
            boot_tables || range == machine.spare_stack || !image.all.overlaps(range),
            "the heap is given the image: {range:x?}"
        );
        machine.heap.push(range.start..range.end);
    });
}

/// Looks whether frames may be used for something else: nobody else has access to them.
pub(crate) fn freed(frames: Range<u64>) {
    with(|machine| machine.grants.freed(frames));
}

/// Gives a frame back to the heap.
pub(crate) fn put_back(frame: u64) {
    with(|machine| {
        let free = machine.heap.iter().any(|range| range.contains(&frame));
        assert!(!free, "given back twice: frame {frame:#x}");
        machine.grants.freed(frame..frame + 1);
        machine.heap.push(frame..frame + 1);
        machine.taken -= 1;
    });
}

/// Bytes of the heap: none outside of a domain.
pub(crate) fn heap_bytes() -> usize {
    let bytes = if_there(|machine| machine.heap.iter().map(|range| (range.end - range.start) as usize * 4096).sum());
    bytes.unwrap_or(0)
}

/// Takes frames from the heap for good, aligned to their number.
pub(crate) fn take(frames: u64) -> Option<u64> {
    let start = take_run(frames, frames)?;
    with(|machine| machine.taken += frames);
    Some(start)
}

/// Takes frames from the heap, the first a multiple of `align`: the lowest that there are.
pub(crate) fn take_run(frames: u64, align: u64) -> Option<u64> {
    with(|machine| {
        let first = |range: &Range<u64>| range.start.next_multiple_of(align);
        let backed = machine.backed >> 12;
        let fits = |range: &Range<u64>| first(range) + frames <= range.end.min(backed);
        let index = machine.heap.iter().position(fits)?;
        let range = machine.heap.remove(index);
        let start = first(&range);
        let rest = [range.start..start, start + frames..range.end];
        machine.heap.splice(index..index, rest.into_iter().filter(|rest| !rest.is_empty()));
        Some(start)
    })
}

/// Gives frames back to the heap: they must be there, and not be free already. What they hold is overwritten, as a heap's
/// own words would.
pub(crate) fn release(range: FrameRange) {
    let FrameRange { start, end } = range;
    for frame in start..end {
        // SAFETY: the page is RAM with something behind it, and free from now on.
        unsafe { phys(frame << 12).write_bytes(0x5a, 4096) };
    }
    with(|machine| {
        machine.heap.sort_by_key(|range| range.start);
        let index = machine.heap.partition_point(|other| other.end < start);
        let touching = machine.heap[index..].iter().take_while(|other| other.start <= end).count();
        let overlaps = |other: &Range<u64>| start < other.end && other.start < end;
        assert!(!machine.heap.iter().any(overlaps), "freed twice: {range:x?}");
        machine.grants.freed(start..end);
        let touched = &machine.heap[index..index + touching];
        let first = touched.first().map_or(start, |other| other.start.min(start));
        let last = touched.last().map_or(end, |other| other.end.max(end));
        machine.heap.splice(index..index + touching, core::iter::once(first..last));
    });
}
