//! Crashes in the way that the first word of its command line names: each of them is to end with the crash reason and a report.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;
use core::hint::black_box;
use core::ptr;

use domu::Domain;
use domu::memory::{self, Protection};

domu::main!(main);

unsafe extern "C" {
    safe static domu_trap_stacks: u8;
    safe static domu_abs_trap_stack_stride: u8;
}

async fn main(domain: Domain) -> Result<(), &'static str> {
    match domain.words().next().map_or(b"".as_slice(), |word| word.raw()) {
        b"write_code" => write(code()),
        b"write_constant" => write(CONSTANT.as_ptr().addr()),
        b"write_idt" => write(idt()),
        b"write_page_table" => write(page_table()),
        b"write_canary" => write(canary()),
        b"write_protected" => write(protected_page()),
        b"execute_constant" => execute(CONSTANT.as_ptr().addr()),
        b"execute_data" => execute((&raw const DATA).addr()),
        b"execute_heap" => execute(Box::leak(Box::new(RETURN)).as_ptr().addr()),
        b"execute_stack" => execute(black_box(&RETURN.map(black_box)).as_ptr().addr()),
        b"read_null" => read(0),
        b"read_hole" => read(0x7fff_0000_1234),
        b"jump_null" => execute(0),
        b"overflow" => recurse(0),
        b"overflow_exception_stack" => overflow_exception_stack(0),
        b"overflow_nmi_stack" => overflow_exception_stack(1),
        b"smash" => smash(),
        b"heap_overrun" => heap_overrun(),
        b"heap_freed_twice" => heap_freed_twice(),
        b"heap_foreign" => heap_foreign(),
        b"divide" => divide(),
        b"undefined" => undefined(),
        b"breakpoint" => breakpoint(),
        b"non_canonical" => read(0x8000_0000_0000_0000),
        b"double_fault" => double_fault(),
        b"wait_for_nmi" => wait_for_nmi(&domain),
        b"panic" => panics(),
        b"panic_while_panicking" => panic!("{}", Bomb(|| panic!("inside"))),
        b"trap_while_panicking" => panic!("{}", Bomb(|| read(0))),
        _ => return Err("the command line names no crash"),
    }
    Err("it has not crashed")
}

/// A function that returns, as bytes.
const RETURN: [u8; 16] = [0xc3; 16];
static CONSTANT: [u8; 16] = RETURN;
static mut DATA: [u8; 16] = RETURN;

/// Does something when it is formatted, as the message of a panic.
struct Bomb(fn());

impl fmt::Display for Bomb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("before")?;
        (self.0)();
        f.write_str("after")
    }
}

#[inline(never)]
fn write(address: usize) {
    // SAFETY: none: the address is not to be written to, and the CPU is to say so.
    unsafe { asm!("mov byte ptr [{}], 0xc3", in(reg) address, options(nostack)) }
}

#[inline(never)]
fn read(address: usize) {
    // SAFETY: none: there is nothing at the address, and the CPU is to say so.
    unsafe { asm!("mov {0}, [{0}]", inout(reg) address => _, options(nostack, readonly)) }
}

#[inline(never)]
fn execute(address: usize) {
    // SAFETY: none: what lies there is no code, and the CPU is to say so. Should it be executed, it returns.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) }
}

/// A block of the heap, and one byte more.
#[inline(never)]
fn heap_overrun() {
    let mut block = alloc::vec![1_u8; 100].into_boxed_slice();
    // SAFETY: none: the byte is not the block's, and the heap is to say so.
    unsafe { block.as_mut_ptr().add(100).write(black_box(2)) };
    drop(black_box(block));
}

#[inline(never)]
fn heap_freed_twice() {
    let block = Box::into_raw(black_box(Box::new([0_u8; 100])));
    // SAFETY: none: the second time the block is not the program's, and the heap is to say so.
    unsafe {
        drop(Box::from_raw(block));
        drop(Box::from_raw(black_box(block)));
    }
}

/// A variable of the stack is no block.
#[inline(never)]
fn heap_foreign() {
    let mut variable = [0_u8; 100];
    // SAFETY: none: the heap is to say so.
    drop(unsafe { Box::from_raw(black_box(&raw mut variable)) });
}

/// A page of the heap that was made read-only.
fn protected_page() -> usize {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let page = Box::leak(Box::new(Page([0; 4096])));
    // SAFETY: the page is leaked, and nobody but the failing write touches it again.
    match unsafe { memory::protect(ptr::NonNull::from(&mut page.0), Protection::Read) } {
        Ok(()) => page.0.as_ptr().addr(),
        Err(error) => panic!("{error}"),
    }
}

fn code() -> usize {
    smash as fn() as usize
}

/// The address that SIDT gives.
fn idt() -> usize {
    pointer_of_idt().1 as usize
}

fn pointer_of_idt() -> (u16, u64) {
    let mut pointer = [0_u16; 5];
    // SAFETY: SIDT stores ten bytes, which the array has.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack)) };
    let base = pointer[1..].iter().rev().fold(0, |base, &word| base << 16 | u64::from(word));
    (pointer[0], base)
}

/// The address of the root table.
fn page_table() -> usize {
    let root: usize;
    // SAFETY: reading CR3 changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) root, options(nomem, nostack)) };
    root & !0xfff
}

fn canary() -> usize {
    unsafe extern "C" {
        safe static __stack_chk_guard: u64;
    }
    (&raw const __stack_chk_guard).addr()
}

#[expect(unconditional_recursion, reason = "to the end of the stack")]
#[inline(never)]
fn recurse(depth: usize) {
    let frame = black_box([depth; 32]);
    recurse(frame[depth % 32] + 1);
    black_box(frame);
}

/// Pushes to one of the stacks for exceptions until it ends.
fn overflow_exception_stack(index: usize) {
    let stride = (&raw const domu_abs_trap_stack_stride).addr();
    let top = (&raw const domu_trap_stacks).addr() + (index + 1) * stride;
    // SAFETY: none: the stack pointer is led astray, and does not come back.
    unsafe { asm!("mov rsp, {}", "2: push rax", "jmp 2b", in(reg) top, options(noreturn)) }
}

/// Writes beyond its buffer, over the canary and what lies behind it.
#[inline(never)]
fn smash() {
    let mut buffer = [0_u8; 16];
    let start = black_box(buffer.as_mut_ptr());
    for index in 0..black_box(64) {
        // SAFETY: none: it leaves the buffer behind, and the canary is to tell.
        unsafe { start.add(index).write_volatile(0x41) };
    }
    black_box(&buffer);
}

#[inline(never)]
fn divide() {
    // SAFETY: none: a division by zero, which the CPU reports.
    unsafe { asm!("xor ecx, ecx", "div ecx", out("ecx") _, inout("eax") 1 => _, inout("edx") 0 => _, options(nostack)) }
}

fn undefined() {
    // SAFETY: the instruction does nothing but raise the exception.
    unsafe { asm!("ud2", options(nostack)) }
}

fn breakpoint() {
    // SAFETY: the instruction does nothing but raise the exception.
    unsafe { asm!("int3", options(nostack)) }
}

/// Loads an IDT that has a gate for the double fault alone, and then faults.
fn double_fault() {
    let (limit, base) = pointer_of_idt();
    // SAFETY: the IDT in force is memory of this size, which nobody writes to.
    let gates = unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance::<[u64; 2]>(base as usize), 32) };
    let mut copy: Vec<[u64; 2]> = gates.to_vec();
    for (vector, gate) in copy.iter_mut().enumerate() {
        if vector != 8 {
            *gate = [0, 0];
        }
    }
    let base = copy.leak().as_ptr().addr() as u64;
    let pointer = [limit, base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16];
    // SAFETY: the table lives for ever, and has the one gate that is going to be used.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack)) };
    read(0);
}

#[inline(never)]
fn panics() {
    panic!("as the command line asks")
}

/// Until somebody sends one.
fn wait_for_nmi(domain: &Domain) {
    let _ = domain.console().try_write(b"@waiting\n");
    loop {
        core::hint::spin_loop();
    }
}
