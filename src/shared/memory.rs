//! Pages that others write too.
//!
//! A peer, or Xen, may change any byte at any moment, so nothing here gives out a reference to memory: values are copied in
//! and out, once each, and words of up to 64 bits are atomics. What was copied out is private, and does not change between
//! the check and the use.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::word::SharedWord;
use crate::abi::memory::PAGE_SIZE;
#[cfg(not(target_os = "none"))]
use crate::local::Instance;

/// Bytes that are copied word by word at most. The instructions for strings are faster for more, but on many CPUs take
/// tens of cycles to begin, which an entry of a ring is not worth.
const WORDWISE: usize = 128;

/// One or more pages that follow each other and that others write too, read and written by copies and atomics only.
///
/// It is a view: a copy of it shows the same memory, and none lives longer than what [owns](super::Owner) the memory.
/// Offsets are in bytes. One that is wrong panics, as an index of a slice does: it is never a peer's to choose. Those that
/// are constants within the first page cost no check.
#[derive(Clone, Copy, Debug)]
pub struct SharedMemory<'a> {
    start: NonNull<u8>,
    len: usize,
    /// The simulated domain that made it: pages of others are found by its addresses. `None` while the domain boots.
    #[cfg(not(target_os = "none"))]
    instance: Option<Instance>,
    owner: PhantomData<&'a ()>,
}

/// A page of the domain's own or of Xen's that is shared as long as the domain runs.
pub(crate) type SharedPage = SharedMemory<'static>;

// SAFETY: the memory is no thread's own; every access through this type is atomic, or a copy of bytes that tolerates
// concurrent writes (see `write`). A unikernel has one virtual CPU, so that accesses of different sizes do not race with each
// other; on the host all are of one size (see `SharedWord`).
unsafe impl Send for SharedMemory<'_> {}
// SAFETY: as above; no method needs exclusive access to the memory for soundness.
unsafe impl Sync for SharedMemory<'_> {}

impl<'a> SharedMemory<'a> {
    /// A view of so many pages.
    ///
    /// # Safety
    ///
    /// `start` is page-aligned and `pages` is not zero. As long as the view, or a copy of it, is used, the pages are mapped,
    /// and nothing in the program accesses them but through this type: for the whole of `'a`, unless its owner lends it for
    /// less. They are mapped read-write, or nothing that writes is called.
    pub(crate) unsafe fn new(start: NonNull<u8>, pages: usize) -> Self {
        Self {
            start,
            len: pages * PAGE_SIZE as usize,
            #[cfg(not(target_os = "none"))]
            instance: crate::local::current(),
            owner: PhantomData,
        }
    }

    /// The length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "there is always a page")]
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Where the memory is.
    #[cfg(not(target_os = "none"))]
    pub(crate) const fn start(self) -> NonNull<u8> {
        self.start
    }

    /// Whether so many bytes at an offset lie in the memory. There is always a page, which answers for most constants.
    const fn holds(self, offset: usize, size: usize) -> bool {
        const FIRST: usize = PAGE_SIZE as usize;
        offset <= FIRST && size <= FIRST - offset || offset <= self.len && size <= self.len - offset
    }

    /// The address of a word of `size` bytes at an offset.
    fn at(self, offset: usize, size: usize) -> *mut u8 {
        assert!(offset.is_multiple_of(size) && self.holds(offset, size), "no such word in shared memory");
        // SAFETY: just checked.
        unsafe { self.place(offset) }
    }

    /// The address of an offset.
    ///
    /// # Safety
    ///
    /// It lies in the memory.
    unsafe fn place(self, offset: usize) -> *mut u8 {
        #[cfg(not(target_os = "none"))]
        {
            crate::sim::access::before(self.start, offset);
            crate::sim::machine::behind(self.start, offset, self.instance)
        }
        // SAFETY: passed on from the caller.
        #[cfg(target_os = "none")]
        unsafe {
            self.start.as_ptr().add(offset)
        }
    }

    /// The byte at an offset.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory.
    #[must_use]
    pub fn u8(self, offset: usize) -> SharedWord<'a, u8> {
        // SAFETY: the byte lies in the memory, which is mapped as long as `'a`, or who lends the view ends `'a` before;
        // every access to it in this program is by such words. Writes by another domain or by Xen are outside of the language's
        // memory model and act as those of another thread that uses atomics.
        unsafe { SharedWord::<u8>::new(self.at(offset, 1)) }
    }

    /// The 16-bit word at an offset.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory, or the offset is no multiple of 2.
    #[must_use]
    pub fn u16(self, offset: usize) -> SharedWord<'a, u16> {
        // SAFETY: as in `u8`; the word is aligned, since its offset is a multiple of its size and pages are aligned.
        unsafe { SharedWord::<u16>::new(self.at(offset, 2)) }
    }

    /// The 32-bit word at an offset.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory, or the offset is no multiple of 4.
    #[must_use]
    pub fn u32(self, offset: usize) -> SharedWord<'a, u32> {
        // SAFETY: as in `u16`.
        unsafe { SharedWord::<u32>::new(self.at(offset, 4)) }
    }

    /// The 64-bit word at an offset.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory, or the offset is no multiple of 8.
    #[must_use]
    pub fn u64(self, offset: usize) -> SharedWord<'a, u64> {
        // SAFETY: as in `u16`.
        unsafe { SharedWord::<u64>::new(self.at(offset, 8)) }
    }

    /// Copies a value in. Its type has no padding, so that nothing else of this domain's memory goes along.
    ///
    /// # Panics
    ///
    /// If it would not lie in the memory.
    pub fn write_value<T: IntoBytes + Immutable>(self, offset: usize, value: &T) {
        self.write(offset, value.as_bytes());
    }

    /// Copies a value out, once: what is returned is private. Any bytes are a value of its type.
    ///
    /// # Panics
    ///
    /// If it does not lie in the memory.
    #[must_use]
    pub fn read_value<T: FromBytes + IntoBytes>(self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes());
        value
    }

    /// Copies bytes in, each once.
    ///
    /// # Panics
    ///
    /// If they would not lie in the memory.
    #[inline]
    pub fn write(self, offset: usize, bytes: &[u8]) {
        assert!(self.holds(offset, bytes.len()), "a copy must lie in the shared memory");
        match word_size(offset, bytes.len()) {
            8 => bytes.as_chunks().0.iter().enumerate().for_each(|(index, &word)| {
                // SAFETY: the word lies in the memory, as just checked, and is aligned, as its offset is and pages are;
                // else as in `u8`.
                let shared = unsafe { SharedWord::<u64>::new(self.place(offset + 8 * index)) };
                shared.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            }),
            4 => bytes.as_chunks().0.iter().enumerate().for_each(|(index, &word)| {
                // SAFETY: as above.
                let shared = unsafe { SharedWord::<u32>::new(self.place(offset + 4 * index)) };
                shared.store(u32::from_ne_bytes(word), Ordering::Relaxed);
            }),
            _ => self.write_bytes(offset, bytes),
        }
    }

    /// Copies bytes out, each once.
    ///
    /// # Panics
    ///
    /// If they do not lie in the memory.
    #[inline]
    pub fn read(self, offset: usize, bytes: &mut [u8]) {
        assert!(self.holds(offset, bytes.len()), "a copy must lie in the shared memory");
        match word_size(offset, bytes.len()) {
            8 => bytes.as_chunks_mut().0.iter_mut().enumerate().for_each(|(index, word)| {
                // SAFETY: as in `write`.
                let shared = unsafe { SharedWord::<u64>::new(self.place(offset + 8 * index)) };
                *word = shared.load(Ordering::Relaxed).to_ne_bytes();
            }),
            4 => bytes.as_chunks_mut().0.iter_mut().enumerate().for_each(|(index, word)| {
                // SAFETY: as in `write`.
                let shared = unsafe { SharedWord::<u32>::new(self.place(offset + 4 * index)) };
                *word = shared.load(Ordering::Relaxed).to_ne_bytes();
            }),
            _ => self.read_bytes(offset, bytes),
        }
    }

    /// Copies bytes in that lie in the memory.
    #[cfg(target_os = "none")]
    fn write_bytes(self, offset: usize, bytes: &[u8]) {
        // SAFETY: the destination lies in the memory, as the callers check, and the source is a slice; they do not overlap,
        // since no slice lies in shared memory. The instruction is no Rust access, so a concurrent write by another
        // domain costs the bytes their value and nothing else.
        unsafe { copy(self.start.as_ptr().add(offset), bytes.as_ptr(), bytes.len()) };
    }

    /// Copies bytes in, one atomic store each, so that Miri and a peer on another thread can watch.
    #[cfg(not(target_os = "none"))]
    fn write_bytes(self, offset: usize, bytes: &[u8]) {
        for (index, &byte) in bytes.iter().enumerate() {
            self.u8(offset + index).store(byte, Ordering::Relaxed);
        }
    }

    /// Copies bytes out that lie in the memory.
    #[cfg(target_os = "none")]
    fn read_bytes(self, offset: usize, bytes: &mut [u8]) {
        // SAFETY: the source lies in the memory, as the callers check, and the destination is exclusively borrowed; no slice
        // lies in shared memory. As in `write_bytes`, a concurrent write by another domain costs the bytes their value only.
        unsafe { copy(bytes.as_mut_ptr(), self.start.as_ptr().add(offset), bytes.len()) };
    }

    /// Copies bytes out, one atomic load each.
    #[cfg(not(target_os = "none"))]
    fn read_bytes(self, offset: usize, bytes: &mut [u8]) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = self.u8(offset + index).load(Ordering::Relaxed);
        }
    }
}

/// Copies bytes by words of 8 bytes, and the last few by bytes: on CPUs without fast strings of bytes, and under emulation,
/// an eighth of the work.
///
/// # Safety
///
/// The source is mapped, the destination is mapped read-write, and they do not overlap. To the language this is an access by
/// another party: only shared memory and exclusively borrowed memory may be the destination.
#[cfg(target_os = "none")]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: both instructions move `len / 8 * 8 + len % 8 == len` bytes in all, upwards, from and to what the caller names. The
    // direction flag is clear by the ABI, and neither instruction changes a flag.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov rcx, {rest}",
            "rep movsb",
            rest = in(reg) len % 8,
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rcx") len / 8 => _,
            options(nostack, preserves_flags),
        );
    }
}

/// The size of the words that bytes at an offset are copied in. Under Miri it is always bytes, so that it finds what relies on
/// larger ones.
const fn word_size(offset: usize, len: usize) -> usize {
    match offset | len {
        _ if len > WORDWISE || cfg!(miri) => 1,
        both if both.is_multiple_of(8) => 8,
        both if both.is_multiple_of(4) => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;
    use std::panic::catch_unwind;
    use std::vec;

    use crate::shared::Owner;
    use crate::sim::SharedPages;

    #[test]
    fn copies_and_words_show_the_same_bytes() {
        let pages = SharedPages::new(2);
        let (memory, other) = (pages.memory(), pages.clone());
        assert_eq!(memory.len(), 8192);
        memory.write_value(4094, &0x0807_0605_0403_0201_u64.to_le_bytes());
        assert_eq!(memory.u16(4094).load(Ordering::Relaxed), 0x0201);
        assert_eq!(memory.u32(4096).load(Ordering::Relaxed), 0x0605_0403);
        memory.u64(8176).store(u64::MAX, Ordering::Relaxed);
        memory.u8(8191).store(7, Ordering::Relaxed);
        assert_eq!(other.memory().read_value::<[u32; 4]>(8176), [u32::MAX, u32::MAX, 0, 0x0700_0000]);
        // With Miri a byte takes a millisecond.
        let first = if cfg!(miri) { 4080 } else { 0 };
        let mut bytes = vec![1; if cfg!(miri) { 64 } else { 8192 }];
        other.memory().read(first, &mut bytes);
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), if cfg!(miri) { 8 } else { 17 });
        assert_eq!(bytes[4094 - first..][..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    /// Whatever words a copy is made of, the same bytes arrive at the same places, and no others.
    #[test]
    fn copies_by_words_and_by_bytes_agree() {
        let pages = SharedPages::new(1);
        let bytes: [u8; 160] = core::array::from_fn(|index| index as u8 + 1);
        for offset in 4088..=4096 {
            for len in 0..=4096 - offset {
                copy(&pages, offset, &bytes[..len]);
            }
        }
        let lens = [112, 120, 124, 127, 128, 129, 132, 136, 160];
        // With Miri it is bytes all the time, and takes seconds.
        for (offset, len) in (64..=72).flat_map(|offset| lens.map(|len| (offset, len))).filter(|_| !cfg!(miri)) {
            copy(&pages, offset, &bytes[..len]);
        }
    }

    /// Copies bytes in and out, and back to zero.
    fn copy(pages: &SharedPages, offset: usize, bytes: &[u8]) {
        let memory = pages.memory();
        memory.write(offset, bytes);
        let end = offset + bytes.len();
        for at in offset.saturating_sub(8)..(end + 8).min(4096) {
            let expected = if (offset..end).contains(&at) { bytes[at - offset] } else { 0 };
            assert_eq!(memory.u8(at).load(Ordering::Relaxed), expected, "{at} of {offset}..{end}");
        }
        let mut read = vec![0; bytes.len()];
        memory.read(offset, &mut read);
        assert_eq!(read, bytes, "{offset}..{end}");
        memory.write(offset, &vec![0; bytes.len()]);
    }

    #[test]
    fn nothing_outside_is_reached() {
        let pages = SharedPages::new(2);
        let refused = |action: fn(crate::shared::SharedMemory<'_>)| {
            catch_unwind(|| action(pages.memory())).expect_err("it reached what is outside");
        };
        refused(|memory| {
            let _ = memory.u8(8192);
        });
        refused(|memory| {
            let _ = memory.u16(8191);
        });
        refused(|memory| {
            let _ = memory.u32(8190);
        });
        refused(|memory| {
            let _ = memory.u64(8196);
        });
        refused(|memory| {
            let _ = memory.u64(usize::MAX - 7);
        });
        refused(|memory| memory.write(8190, &[0; 3]));
        refused(|memory| memory.write(8188, &[0; 8]));
        refused(|memory| memory.write(usize::MAX - 7, &[0; 8]));
        refused(|memory| memory.read(8184, &mut [0; 16]));
        refused(|memory| memory.write(usize::MAX, &[0; 1]));
        refused(|memory| memory.read(8193, &mut []));
        refused(|memory| {
            let _ = memory.read_value::<[u64; 2]>(8184);
        });
        // And words are aligned.
        refused(|memory| {
            let _ = memory.u16(1);
        });
        refused(|memory| {
            let _ = memory.u64(4);
        });
    }
}
