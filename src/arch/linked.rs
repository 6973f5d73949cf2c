//! Symbols of `linker/domu.ld`, read from one table in `boot/symbols.S`.
//!
//! A direct reference from Rust would be one more error of a link without the script.

/// A constructor in `.init_array`.
pub(crate) type Constructor = unsafe extern "C" fn();

/// The table. Most entries are addresses, some are numbers of bytes; `boot/symbols.S` has the same order.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) text_start: u64,
    pub(crate) rodata_start: u64,
    pub(crate) data_start: u64,
    pub(crate) sealed_start: u64,
    pub(crate) sealed_end: u64,
    pub(crate) trap_stacks: u64,
    /// Bytes from one of these stacks to the next.
    pub(crate) trap_stack_stride: u64,
    pub(crate) stack_guard: u64,
    pub(crate) stack_bottom: u64,
    pub(crate) stack_top: u64,
    /// Bytes of the stack that a small domain keeps.
    pub(crate) small_stack_bytes: u64,
    pub(crate) boot_tables: u64,
    pub(crate) image_end: u64,
    /// The linker's note with the build id, and its end. Both are equal without one.
    pub(crate) build_id: *const u8,
    pub(crate) build_id_end: *const u8,
    /// The array of constructors, and its end.
    pub(crate) init_array: *const Constructor,
    pub(crate) init_array_end: *const Constructor,
}

// SAFETY: the pointers are to constants of the image.
unsafe impl Sync for Linked {}

core::arch::global_asm!(
    include_str!("../../boot/symbols.S"),
    // No bytes. A negative number is an error: the table is as long as `Linked`.
    ".skip {size} - (.Ldomu_linked_end - domu_linked)",
    ".skip (.Ldomu_linked_end - domu_linked) - {size}",
    size = const size_of::<Linked>(),
    options(att_syntax)
);

/// The linker script's symbols.
///
/// The pointers are values of a static that Rust does not define. Each has the provenance of what the linker has placed at its
/// symbol: for the start of the note or of the array, all bytes up to the symbol of its end. No Rust object lies there.
pub(crate) fn linked() -> &'static Linked {
    // SAFETY: `boot/symbols.S` defines this symbol once, aligned to 8 bytes, as one word for each field; the assembler compares
    // the sizes. Every bit pattern is a value of each field. The words lie in the constants: the linker writes them, and nothing
    // does at run time.
    unsafe extern "C" {
        /// In `boot/symbols.S`, filled in by the linker.
        safe static domu_linked: Linked;
    }
    &domu_linked
}
