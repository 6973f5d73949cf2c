//! The descriptor tables: GDT, TSS and IDT, at symbols of `boot/trap.S` in pages that become read-only.
//!
//! Every exception runs on a stack of its own, whatever the stack pointer held: NMI and machine check on the second, the
//! double fault on the third, all others on the first. So an overflow of the main stack, and even one of a stack for
//! exceptions, still has a place to be reported from.

use x86_64::instructions::tables::{lgdt, lidt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::{PrivilegeLevel, VirtAddr};

use super::CALLBACK_VECTOR;
use super::trap::{gate, stack};

/// Entries of the IDT: the exceptions, and the callback for events.
const VECTORS: usize = CALLBACK_VECTOR as usize + 1;

/// Bytes of a stub in `boot/trap.S`.
const STUB_SIZE: usize = 16;

unsafe extern "C" {
    static mut domu_idt: [[u64; 2]; VECTORS];
    static mut domu_tss: TaskStateSegment;
    static mut domu_gdt: [u64; 5];
    safe static domu_trap_stubs: u8;
    safe static domu_callback: u8;
}

/// Fills the tables and loads them: from here on every exception is reported.
///
/// # Safety
///
/// Called once, while the tables are still writable. `stacks` are the upper ends of three stacks that nothing else
/// uses.
pub(crate) unsafe fn load(stacks: [u64; 3]) {
    let mut tss = TaskStateSegment::new();
    let mut entries = [VirtAddr::zero(); 7];
    entries[..3].copy_from_slice(&stacks.map(VirtAddr::new_truncate));
    tss.interrupt_stack_table = entries;
    let stubs = (&raw const domu_trap_stubs).addr();
    let mut idt: [[u64; 2]; VECTORS] =
        core::array::from_fn(|vector| gate((stubs + STUB_SIZE * vector) as u64, stack(vector as u64)));
    // On the stack of the halt that it interrupts.
    idt[usize::from(CALLBACK_VECTOR)] = gate((&raw const domu_callback).addr() as u64, 0);
    let (tss_at, idt_at, gdt_at) = (&raw mut domu_tss, &raw mut domu_idt, &raw mut domu_gdt);
    // SAFETY: only the address is used, of memory that is there for the life of the program.
    let tss_descriptor = unsafe { Descriptor::tss_segment_unchecked(tss_at) };
    let segments = [Descriptor::kernel_code_segment(), Descriptor::kernel_data_segment(), tss_descriptor];
    let mut gdt = [0; 5];
    for (index, segment) in segments.into_iter().enumerate() {
        match segment {
            Descriptor::UserSegment(word) => gdt[1 + index] = word,
            // The last one, and the only one of two words.
            Descriptor::SystemSegment(low, high) => [gdt[1 + index], gdt[2 + index]] = [low, high],
        }
    }
    let pointer = |base: usize, size: usize| DescriptorTablePointer {
        base: VirtAddr::new_truncate(base as u64),
        limit: (size - 1) as u16,
    };
    // SAFETY: the symbols name memory of these sizes, aligned for these types, which is written here before the CPU is
    // told of it and only read by the CPU after. The new GDT has the same code and data segments at the same places as
    // the one that the entry code loaded, so the segment registers stay valid; its third segment is the TSS, not in use
    // yet.
    unsafe {
        tss_at.write(tss);
        idt_at.write(idt);
        gdt_at.write(gdt);
        lgdt(&pointer(gdt_at.addr(), size_of_val(&gdt)));
        load_tss(SegmentSelector::new(3, PrivilegeLevel::Ring0));
        lidt(&pointer(idt_at.addr(), size_of_val(&idt)));
    }
}
