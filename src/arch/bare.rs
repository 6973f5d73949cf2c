//! The CPU's face in a unikernel: instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdrand64_step, _rdseed64_step};
use core::ops::Range;

use x86_64::instructions::{hlt, interrupts, port::Port, tlb};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr2, Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::PhysFrame;
use x86_64::{PhysAddr, VirtAddr};

use super::{ControlRegisters, Cpu};

/// EAX, EBX, ECX, EDX of a CPUID leaf. Under Xen each costs an exit.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    // Since Rust 1.94 the function is safe.
    #[allow(unused_unsafe)]
    // SAFETY: every 64-bit CPU has CPUID, which accepts any leaf and accesses no memory.
    let result = unsafe { __cpuid_count(leaf, 0) };
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// The time stamp counter, read after everything before it in the program.
#[inline(always)]
pub(crate) fn read_tsc() -> u64 {
    let (low, high): (u64, u64);
    // SAFETY: every 64-bit CPU has RDTSC and LFENCE, and ring 0 may execute them with any CR4.TSD. RDTSC writes RAX and
    // RDX and clears their upper halves. Without `nomem` the compiler moves no access to memory over the two. This target has
    // no SSE2, so the intrinsic of LFENCE would be a call.
    unsafe { asm!("lfence", "rdtsc", out("rax") low, out("rdx") high, options(nostack, preserves_flags)) };
    high << 32 | low
}

/// A number that nobody else knows, where the CPU has no random ones: mixed of what the stack protector uses, which it does
/// not tell, and of the time.
#[cfg(feature = "allocator")]
pub(crate) fn secret() -> u64 {
    unsafe extern "C" {
        /// In `boot/entry.S`.
        safe static __stack_chk_guard: u64;
    }
    (__stack_chk_guard ^ read_tsc()).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}

/// Writes bytes to one port in a single instruction, which Xen handles in few exits.
pub(crate) fn out_bytes(port: u16, bytes: &[u8]) {
    // SAFETY: the instruction reads `bytes.len()` bytes from the slice, forwards because the direction flag is clear
    // by the ABI. The callers name the debug port and the serial port, which touch no memory.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, readonly),
        );
    }
}

/// Writes a byte to a port.
pub(crate) fn out(port: u16, value: u8) {
    // SAFETY: the callers name registers of the first serial port, which touch no memory.
    unsafe { Port::new(port).write(value) }
}

/// Reads a byte from a port.
pub(crate) fn input(port: u16) -> u8 {
    // SAFETY: the callers name registers of the first serial port, which touch no memory.
    unsafe { Port::new(port).read() }
}

/// Halts until an event is pending; returns at once if one is. Interrupts are on during the halt alone.
pub(crate) fn idle() {
    unsafe extern "C" {
        /// In `boot/trap.S`, beside the handler that ends it.
        safe fn domu_idle();
    }
    domu_idle();
}

/// Stops for good.
pub(crate) fn stop() -> ! {
    loop {
        interrupts::disable();
        hlt();
    }
}

/// Where guest-physical memory is seen: at the same address.
pub(crate) fn phys(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// The frame that a pointer points into.
///
/// Whoever is told the number, Xen, a peer or [`phys`], accesses the memory by it. The pointer's provenance is exposed, so that
/// the compiler knows of that: else it could leave out what is written for them to read, and take for unchanged what they write.
/// For memory that they write to, the pointer has to be one that may be written through.
pub(crate) fn frame_of(pointer: *const u8) -> Option<u64> {
    Some((pointer.expose_provenance() >> 12) as u64)
}

/// The number by which a copy of Xen's names the page that a pointer points into. It is exposed, as by [`frame_of`].
pub(crate) fn copied_frame(pointer: *const u8) -> Option<u64> {
    frame_of(pointer)
}

/// What CPUID said at the entry point.
pub(crate) fn cpu() -> Cpu {
    unsafe extern "C" {
        /// Written by `boot/entry.S` before any Rust runs, and not after.
        safe static domu_cpu: Cpu;
    }
    domu_cpu
}

/// A number from RDRAND, or `None` where the generator has none to give now.
///
/// # Safety
///
/// The CPU has RDRAND.
pub(crate) unsafe fn rdrand() -> Option<u64> {
    let mut value = 0;
    // SAFETY: the caller knows that the CPU has the instruction, which writes to `value` alone.
    (unsafe { _rdrand64_step(&mut value) } == 1).then_some(value)
}

/// A number from RDSEED, or `None` where the generator has none to give now.
///
/// # Safety
///
/// The CPU has RDSEED.
pub(crate) unsafe fn rdseed() -> Option<u64> {
    let mut value = 0;
    // SAFETY: the caller knows that the CPU has the instruction, which writes to `value` alone.
    (unsafe { _rdseed64_step(&mut value) } == 1).then_some(value)
}

/// The control registers as they are.
pub(crate) fn control_registers() -> ControlRegisters {
    ControlRegisters { cr0: Cr0::read_raw(), cr3: Cr3::read().0.start_address().as_u64(), cr4: Cr4::read_raw() }
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    Cr2::read_raw()
}

/// The base of this function's caller's frame: where the chain of frames begins.
#[inline(always)]
pub(crate) fn frame_pointer() -> u64 {
    let frame: u64;
    // SAFETY: reading a register has no effect.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    frame
}

/// Bytes from the base of this function's caller's frame up to an address: how much of a stack that ends there is in use. A
/// distance, which unlike the address of a frame tells nobody where that is.
#[inline(always)]
pub(crate) fn stack_depth(end: u64) -> u64 {
    let mut depth = end;
    // SAFETY: reading a register has no effect.
    unsafe { asm!("sub {}, rbp", inout(reg) depth, options(nomem, nostack)) };
    depth
}

/// Makes the tables at `root` the ones in force, and turns on what protects a kernel and the CPU has.
///
/// # Safety
///
/// The tables map the running code, its stack, its data and everything reached through [`phys`], at the same addresses
/// and with the access that each needs; no leaf is a user page.
pub(crate) unsafe fn activate(root: u64) {
    // SAFETY: the caller vouches for the tables; `root` is page-aligned, as the allocator hands out pages. CR4 keeps what
    // the entry code set; the rest is what CPUID shows, and restrains user mode and user pages, of which there are
    // none. Global pages come last: no translation of the boot tables is global, so the change of CR3 drops all of
    // them. Each access to CR4 costs an exit, hence no reading before.
    unsafe {
        Cr3::write(PhysFrame::containing_address(PhysAddr::new(root)), Cr3Flags::empty());
        Cr4::write_raw(cpu().cr4());
    }
}

/// Lets a function write to the tables in force, which are read-only, then forgets the old translations of `frames`.
///
/// # Safety
///
/// The edit writes to page tables alone, and does not panic. What the tables say afterwards differs for `frames` only,
/// and is as for [`activate`].
pub(crate) unsafe fn edit_tables<T>(frames: Range<u64>, edit: impl FnOnce() -> T) -> T {
    let before = Cr0::read_raw();
    // SAFETY: without WP the kernel may write to read-only pages, which the edit does to tables alone, as the caller
    // promises; nothing else runs meanwhile, as interrupts are off. The caller vouches for the result.
    let result = unsafe {
        Cr0::write_raw(before & !Cr0Flags::WRITE_PROTECT.bits());
        let result = edit();
        Cr0::write_raw(before);
        result
    };
    if frames.end - frames.start <= INVLPG_MAX {
        frames.for_each(|frame| tlb::flush(VirtAddr::new_truncate(frame << 12)));
    } else {
        tlb::flush_all();
        let wanted = cpu().cr4();
        // SAFETY: clearing the flag drops the global translations, and it is set again at once.
        unsafe {
            Cr4::write_raw(wanted & !Cr4Flags::PAGE_GLOBAL.bits());
            Cr4::write_raw(wanted);
        }
    }
    result
}

/// Pages whose translations are dropped one by one; for more it is cheaper to drop all.
const INVLPG_MAX: u64 = 64;
