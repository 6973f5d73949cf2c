//! The handover of memory between this domain and one that Xen lets write to it.
//!
//! Memory that a peer writes while no Rust reference covers it, and that is read by ordinary references afterwards, changes
//! without any access that the compiler sees. An empty `asm!` block that is given the memory's pointer stands for these
//! writes: to the language it may read and write whatever the pointer reaches, as a call of a foreign function may. So what
//! was written before is in memory when the peer gets it, and no value that was read before is used afterwards.

/// Passes memory from one side to the other, and returns the pointer by which the new side uses it.
///
/// Miri, which runs no assembly, sees the writes themselves: the simulated Xen's, through an exposed pointer.
#[inline]
pub(crate) fn handover(pointer: *mut u8) -> *mut u8 {
    #[cfg(miri)]
    return pointer;
    #[cfg(not(miri))]
    {
        let mut pointer = pointer;
        // SAFETY: the block has no instruction: registers, flags and the stack stay as they are, and memory too. The constraint
        // makes the compiler assume that memory is read and written.
        unsafe { core::arch::asm!("/* {0} */", inout(reg) pointer, options(nostack, preserves_flags)) };
        pointer
    }
}
