//! Where `boot/entry.S` enters Rust.

use super::{boot, fail};
use crate::arch;
use crate::domain::Domain;
use crate::memory::Image;

core::arch::global_asm!(include_str!("../../boot/entry.S"), options(att_syntax));

unsafe extern "C" {
    fn domu_start() -> !;
}

pvh::xen_elfnote_phys32_entry!(domu_start);

unsafe extern "Rust" {
    /// Defined by [`main!`](crate::main) in the final binary.
    safe fn __domu_main(domain: Domain) -> !;
}

/// Runs what the link collected in `.init_array`, before main as on other systems.
fn run_constructors() {
    let linked = arch::linked();
    let count = (linked.init_array_end.addr() - linked.init_array.addr()) / size_of::<arch::Constructor>();
    for index in 0..count {
        // SAFETY: the linker script puts only `.init_array` between the two symbols, aligned: an array of pointers to
        // functions without arguments, each to be called once before main. The pointer may read all of it: see
        // `arch::linked`.
        unsafe { linked.init_array.add(index).read()() };
    }
}

#[unsafe(no_mangle)]
extern "C" fn domu_rust_start(start_info: u32) -> ! {
    let stacks = Image::get().trap_stacks.map(|stack| stack.frames.end << 12);
    // SAFETY: entered once, from `boot/entry.S`, whose tables map all of the image but its code and constants read-write;
    // the linker script sets these stacks aside.
    unsafe { arch::descriptors::load(stacks) };
    // SAFETY: the loader's EBX; the entry code touches only the image.
    match unsafe { boot(start_info) } {
        Ok(domain) => {
            run_constructors();
            __domu_main(domain)
        }
        Err(failure) => fail(failure),
    }
}
