//! A page that others write too.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// One shared page, read and written by copies and atomics only. A copy of it is another view of the same page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SharedPage(NonNull<u8>);

// SAFETY: the page is no thread's own; every access through this type is atomic, or a copy of bytes that tolerates
// concurrent writes (see `write`).
unsafe impl Send for SharedPage {}
// SAFETY: as above; no method needs exclusive access to the page for soundness.
unsafe impl Sync for SharedPage {}

/// Bytes in the page.
const SIZE: usize = 4096;

impl SharedPage {
    /// Takes a page over.
    ///
    /// # Safety
    ///
    /// `page` is page-aligned, mapped read-write for the rest of the program, and nothing in the program accesses it
    /// but through this type.
    pub(crate) const unsafe fn new(page: NonNull<u8>) -> Self {
        Self(page)
    }

    /// The address of `size` bytes at an offset. All offsets are constants of the interface, so the checks vanish.
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(size) && offset + size <= SIZE, "no such field in a shared page");
        #[cfg(not(target_os = "none"))]
        crate::sim::race::access(*self, offset);
        // SAFETY: the offset lies in the page, as just checked.
        unsafe { self.0.as_ptr().add(offset) }
    }

    /// The byte at an offset.
    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: the byte lies in the page, which is mapped for the rest of the program; every access to it in this
        // program is atomic. Writes by another domain or by Xen are outside of the language's memory model and
        // act as those of another thread that uses atomics.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1)) }
    }

    /// The 32-bit word at an offset.
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u8`; the word is aligned, since its offset is a multiple of its size in an aligned page.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    /// The 64-bit word at an offset.
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u32`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Copies bytes into the page.
    #[cfg(target_os = "none")]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= SIZE && bytes.len() <= SIZE - offset, "a copy must lie in the page");
        // SAFETY: the destination lies in the page, as just checked, and the source is a slice; they do not overlap,
        // since no slice lies in a shared page. The instruction is no Rust access, so a concurrent write by another
        // domain costs the bytes their value and nothing else. The direction flag is clear by the ABI.
        unsafe {
            core::arch::asm!(
                "rep movsb",
                inout("rdi") self.0.as_ptr().add(offset) => _,
                inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies bytes into the page, one atomic store each, so that Miri and a peer on another thread can watch.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= SIZE && bytes.len() <= SIZE - offset, "a copy must lie in the page");
        for (index, &byte) in bytes.iter().enumerate() {
            self.u8(offset + index).store(byte, core::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Copies bytes out of the page.
    #[cfg(target_os = "none")]
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset <= SIZE && bytes.len() <= SIZE - offset, "a copy must lie in the page");
        // SAFETY: the source lies in the page, as just checked, and the destination is exclusively borrowed; no slice lies in
        // a shared page. As in `write`, a concurrent write by another domain costs the bytes their value only.
        unsafe {
            core::arch::asm!(
                "rep movsb",
                inout("rdi") bytes.as_mut_ptr() => _,
                inout("rsi") self.0.as_ptr().add(offset) => _,
                inout("rcx") bytes.len() => _,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Copies bytes out of the page, one atomic load each.
    #[cfg(not(target_os = "none"))]
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(offset <= SIZE && bytes.len() <= SIZE - offset, "a copy must lie in the page");
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.u8(offset + index).load(core::sync::atomic::Ordering::Relaxed);
        }
    }
}
