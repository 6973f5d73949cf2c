//! What protects a unikernel, seen from inside.
//!
//! * `protection.self_check`: the live page tables are as they should be.
//! * `protection.cr4`: SMEP, SMAP, UMIP and global pages are on exactly where CPUID shows them; WP is always on.
//! * `protection.change`: a page of the heap becomes code, runs, and becomes data again; the self-check knows of it.
//! * `protection.reserved`: what is not the program's own cannot be changed.
//! * `protection.canary`: its second byte is zero, and not all of the others are; the line `@canary` tells it.
//! * `protection.stack`: the size is as the command line says (KiB), and a known depth is seen.
//! * `protection.random`: numbers that differ where CPUID shows a generator, the typed error where it does not.
//! * `protection.getrandom`: the same through the crate of that name.
//! * `protection.interrupts`: critical sections clear the interrupt flag, nest, and restore it, whatever it was.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::fmt::Write;
use core::hint::black_box;
use core::ptr::NonNull;

use domu::Domain;
use domu::memory::{self, Error, Protection};
use domu_guests::verdict;

domu::main!(main);

async fn main(domain: Domain) -> domu::Result {
    verdict(&domain, "protection.self_check", self_check());
    verdict(&domain, "protection.cr4", control_registers());
    verdict(&domain, "protection.change", change());
    verdict(&domain, "protection.reserved", reserved());
    verdict(&domain, "protection.canary", canary(&domain));
    verdict(&domain, "protection.stack", stack(&domain));
    verdict(&domain, "protection.random", random());
    verdict(&domain, "protection.getrandom", through_getrandom());
    verdict(&domain, "protection.interrupts", critical_sections());
    Ok(())
}

fn self_check() -> Result<(), String> {
    match memory::self_check() {
        Ok(checked) if checked.pages > 100 && checked.table_bytes >= 6 * 4096 => Ok(()),
        Ok(checked) => Err(format!("it cannot have looked: {checked:?}")),
        Err(violation) => Err(format!("{violation}")),
    }
}

fn control_registers() -> Result<(), String> {
    let (cr0, cr4): (u64, u64);
    // SAFETY: reading control registers changes nothing.
    unsafe { asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack)) };
    let (ebx, ecx) = if __cpuid(0).eax >= 7 { (__cpuid_count(7, 0).ebx, __cpuid_count(7, 0).ecx) } else { (0, 0) };
    let shown = |word: u32, bit: u32| u64::from(word >> bit & 1);
    for (name, bit, expected) in [
        ("PGE", 7, shown(__cpuid(1).edx, 13)),
        ("SMEP", 20, shown(ebx, 7)),
        ("SMAP", 21, shown(ebx, 20)),
        ("UMIP", 11, shown(ecx, 2)),
    ] {
        if cr4 >> bit & 1 != expected {
            return Err(format!("CPUID shows {expected} for {name}, and CR4 is {cr4:#x}"));
        }
    }
    if cr0 >> 16 & 1 == 1 { Ok(()) } else { Err(format!("WP is off: {cr0:#x}")) }
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn change() -> Result<(), String> {
    let said = |error: Error| format!("{error}");
    let mut page = Box::new(Page([0; 4096]));
    // mov eax, 42; ret
    page.0[..6].copy_from_slice(&[0xb8, 42, 0, 0, 0, 0xc3]);
    let memory = NonNull::from(&mut page.0);
    let before = memory::self_check().map_err(|violation| format!("{violation}"))?;
    // SAFETY: the page is this function's own; while it is code it is called and read only.
    unsafe { memory::protect(memory, Protection::ReadExecute) }.map_err(said)?;
    // SAFETY: the bytes are a function of this kind.
    let function = unsafe { core::mem::transmute::<*const u8, extern "C" fn() -> u32>(page.0.as_ptr()) };
    let result = function();
    let during = memory::self_check().map_err(|violation| format!("{violation}"))?;
    // SAFETY: as before.
    unsafe { memory::protect(memory, Protection::ReadWrite) }.map_err(said)?;
    black_box(&mut page.0)[0] = 1;
    match result {
        42 if during.pages >= before.pages => Ok(()),
        _ => Err(format!("{result} instead of 42; {before:?}, then {during:?}")),
    }
}

static CONSTANT: Page = Page([7; 4096]);

fn reserved() -> Result<(), String> {
    let code = (main as fn(Domain) -> _ as usize) & !0xfff;
    let stack = (&raw const code).addr() & !0xfff;
    let idt = {
        let mut pointer = [0_u16; 5];
        // SAFETY: SIDT stores ten bytes, which the array has.
        unsafe { asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack)) };
        usize::from(pointer[1]) | usize::from(pointer[2]) << 16
    };
    for address in [code, stack, idt & !0xfff, CONSTANT.0.as_ptr().addr(), 0xfee0_0000, 0x1000] {
        let start = NonNull::new(core::ptr::with_exposed_provenance_mut(address)).ok_or("null")?;
        // SAFETY: it is refused, and changes nothing.
        let result = unsafe { memory::protect(NonNull::slice_from_raw_parts(start, 4096), Protection::ReadWrite) };
        if result != Err(Error::Reserved) {
            return Err(format!("{address:#x}: {result:?}"));
        }
    }
    Ok(())
}

fn canary(domain: &Domain) -> Result<(), String> {
    unsafe extern "C" {
        safe static __stack_chk_guard: u64;
    }
    // A console that is gone leaves the tool without the line, which it takes for a failure.
    let _ = writeln!(domain.console(), "@canary {:#018x}", __stack_chk_guard);
    match __stack_chk_guard {
        0 => Err("it is zero".into()),
        canary if canary >> 8 & 0xff != 0 => Err(format!("{canary:#x}")),
        canary if canary.count_ones() < 8 => Err(format!("hardly mixed: {canary:#x}")),
        _ => Ok(()),
    }
}

/// Uses more than `depth` bytes of stack, and not many more.
#[inline(never)]
fn descend(depth: usize) -> u8 {
    let page = black_box([1_u8; 1024]);
    let below = if depth > 1024 { descend(depth - 1024) } else { 0 };
    page[depth % 1024].wrapping_add(below)
}

fn stack(domain: &Domain) -> Result<(), String> {
    let expected: usize =
        domain.words().next().and_then(|word| core::str::from_utf8(word.raw()).ok()?.parse().ok()).unwrap_or(0);
    let before = memory::stack();
    let depth = before.size / 4 * 3;
    black_box(descend(depth));
    let after = memory::stack();
    let plausible = before.size == expected << 10
        && (1024..depth).contains(&before.deepest)
        && (depth..depth + depth / 4).contains(&after.deepest);
    // What boot itself used is of interest too.
    log::info!("stack: {} bytes deep at main, {} after a known {depth}", before.deepest, after.deepest);
    if plausible { Ok(()) } else { Err(format!("{before:?}, then {after:?}")) }
}

/// Whether CPUID shows RDRAND or RDSEED.
fn generator_shown() -> bool {
    let leaf7 = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    __cpuid(1).ecx >> 30 & 1 != 0 || leaf7 >> 18 & 1 != 0
}

/// 61 bytes with fewer than 16 different values: less likely than any failure of the machine.
fn plausible(bytes: &[u8; 61]) -> Result<(), String> {
    let different = (0..=255).filter(|value| bytes.contains(value)).count();
    if different >= 16 { Ok(()) } else { Err(format!("{bytes:x?}")) }
}

fn random() -> Result<(), String> {
    let shown = generator_shown();
    let mut bytes = [0; 61];
    match (domu::random::u64(), domu::random::u64(), domu::random::fill(&mut bytes)) {
        (Ok(one), Ok(other), Ok(())) if shown && one != other => plausible(&bytes),
        (Err(domu::random::Error::Unsupported), Err(_), Err(_)) if !shown => Ok(()),
        results => Err(format!("CPUID shows one: {shown}; {results:?}")),
    }
}

fn through_getrandom() -> Result<(), String> {
    let shown = generator_shown();
    let mut bytes = [0; 61];
    match getrandom::fill(&mut bytes) {
        Ok(()) if shown => plausible(&bytes),
        Err(error) if !shown && error == getrandom::Error::new_custom(domu::random::GETRANDOM_UNSUPPORTED) => Ok(()),
        result => Err(format!("CPUID shows one: {shown}; {result:?}")),
    }
}

fn critical_sections() -> Result<(), String> {
    let expect = |when: &str, expected: bool| match interrupts_on() {
        on if on == expected => Ok(()),
        on => Err(format!("interrupts {when}: on is {on}")),
    };
    for on in [false, true] {
        expect("at first", false)?;
        if on {
            // SAFETY: the one source of interrupts is the event callback, whose handler touches nothing but the flag, and
            // which Xen has not been told of: this guest does not wait.
            unsafe { asm!("sti", options(nostack)) };
        }
        let inside = critical_section::with(|_| {
            let inner = critical_section::with(|_| expect("in an inner section", false));
            inner.and_then(|()| expect("after an inner section", false))
        });
        let after = expect("after a section", on);
        // SAFETY: that is how tasks run.
        unsafe { asm!("cli", options(nostack)) };
        inside.and(after)?;
    }
    Ok(())
}

fn interrupts_on() -> bool {
    let flags: u64;
    // SAFETY: it reads the flags by way of the stack, which this target's functions use without a red zone.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem)) };
    flags >> 9 & 1 == 1
}
