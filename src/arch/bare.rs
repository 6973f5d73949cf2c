//! The CPU's face in a unikernel: instructions.

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _mm_lfence, _rdtsc};

use x86_64::PhysAddr;
use x86_64::instructions::{hlt, interrupts, port::Port};
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

/// EAX, EBX, ECX, EDX of a CPUID leaf. Under Xen each costs an exit.
pub(crate) fn cpuid(leaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, 0);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// The time stamp counter, read after everything before it in the program.
pub(crate) fn read_tsc() -> u64 {
    // SAFETY: every 64-bit CPU has RDTSC and LFENCE, and ring 0 may execute them whatever CR4.TSD says.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
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

/// Makes the tables at `root` the ones in force.
///
/// # Safety
///
/// They map the running code, its stack, its data and everything reached through [`phys`], at the same addresses and
/// with the access that each needs.
pub(crate) unsafe fn activate(root: u64) {
    // SAFETY: the caller vouches for the tables; `root` is page-aligned, as the allocator hands out pages.
    unsafe { Cr3::write(PhysFrame::containing_address(PhysAddr::new(root)), Cr3Flags::empty()) }
}
