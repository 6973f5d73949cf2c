//! What surrounds a block of the heap, so that damage shows and the heap can be walked.
//!
//! ```text
//! start           start + size     + 8                  end - 16   end - 8    end
//! | the caller's  | canary         | up to 31 unused    | size     | talc's   |
//! ```
//!
//! The canary stands right behind the caller's bytes, so that the first one written past them changes it. Both words depend on
//! keys that are drawn at boot, and on where they are: neither can be guessed, nor copied from another block. One that leaks,
//! of a block whose address and size are known, does not give the keys away. On a CPU without RDRAND and RDSEED the four words
//! of the key are the stack protector's guard mixed with four readings of the time stamp counter, some cycles apart: they are
//! not independent, and one that leaks tells of the others. A freed block has another canary. The size stands at a fixed distance from the end, where a walk from the end of the heap
//! downwards finds it: talc's own word at the end of each chunk tells blocks from gaps.

use core::alloc::Layout;

use super::check::{Damage, DamageKind};

/// The unit of talc's chunks, in bytes.
pub(super) const UNIT: usize = talc::base::CHUNK_UNIT;
/// Bytes of the canary, of the size, and of talc's word.
const WORD: usize = 8;

/// What a block of the caller's takes of talc, so that it fills its chunks exactly. None if it is too large for any heap.
pub(super) fn outer(layout: Layout) -> Option<Layout> {
    let chunk = layout.size().checked_add(3 * WORD)?.checked_next_multiple_of(UNIT)?;
    Layout::from_size_align(chunk - WORD, layout.align()).ok()
}

/// The secret that marks blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key(pub(super) [u64; 4]);

/// Both halves of a product as one word: each bit depends on all bits of both factors, and neither half alone is seen.
const fn fold(left: u64, right: u64) -> u64 {
    let product = left as u128 * right as u128;
    product as u64 ^ (product >> 64) as u64
}

impl Key {
    /// The canary of a block. Two words of the key stand against one that leaks.
    fn canary(self, start: *mut u8, size: usize) -> u64 {
        fold(self.0[0] ^ start.addr() as u64, self.0[1] ^ size as u64)
    }

    /// The canary of a freed block, from which that of a block in use there cannot be told.
    fn freed(self, start: *mut u8, size: usize) -> u64 {
        fold(self.0[3] ^ start.addr() as u64, self.0[0] ^ size as u64)
    }

    /// What the size of a block that ends before this address is combined with.
    fn mask(self, end: usize) -> u64 {
        fold(self.0[2] ^ end as u64, self.0[3])
    }

    /// Marks a block as in use.
    ///
    /// # Safety
    ///
    /// `start` is a block of talc's with the layout [`outer`] of one of `size` bytes.
    pub(super) unsafe fn mark(self, start: *mut u8, size: usize, outer: usize) {
        let end = start.addr() + outer + WORD;
        // SAFETY: the canary lies behind `size` bytes, and the size in the last of `outer` bytes, which are all the block's;
        // `outer` has room for both. The end of a chunk is aligned, the canary need not be.
        unsafe {
            start.add(size).cast::<u64>().write_unaligned(self.canary(start, size));
            start.add(outer - WORD).cast::<u64>().write(size as u64 ^ self.mask(end));
        }
    }

    /// Whether a block is in use, of that size, and unharmed.
    ///
    /// # Safety
    ///
    /// `outer` bytes at `start`, which is a multiple of the unit, can be read: the heap's memory.
    pub(super) unsafe fn check(self, start: *mut u8, size: usize, outer: usize) -> Result<(), Damage> {
        // SAFETY: both words lie in `outer` bytes, as in `mark`.
        let (canary, noted) =
            unsafe { (start.add(size).cast::<u64>().read_unaligned(), start.add(outer - WORD).cast::<u64>().read()) };
        let expected = self.canary(start, size);
        let is_noted = noted ^ self.mask(start.addr() + outer + WORD) == size as u64;
        let kind = match is_noted {
            true if canary == expected => return Ok(()),
            true => DamageKind::Overrun,
            false if canary == self.freed(start, size) => DamageKind::FreedTwice,
            false => DamageKind::Foreign,
        };
        Err(Damage { address: start.addr(), size, kind })
    }

    /// Marks a block as freed, where talc's records will not lie over the mark.
    ///
    /// # Safety
    ///
    /// As for [`mark`](Self::mark).
    pub(super) unsafe fn unmark(self, start: *mut u8, size: usize, outer: usize) {
        // SAFETY: as in `mark`. The size loses its meaning too: a walk, or another free, must not take it for a block.
        unsafe {
            start.add(size).cast::<u64>().write_unaligned(self.freed(start, size));
            start.add(outer - WORD).cast::<u64>().write(0);
        }
    }

    /// The block whose chunk ends here: where it starts, its size, and what it takes of talc.
    ///
    /// # Safety
    ///
    /// All from `base` to `end` can be read, and `end` is a multiple of the unit.
    pub(super) unsafe fn block_below(self, base: *mut u8, end: *mut u8) -> Result<(*mut u8, usize, usize), Damage> {
        let damage = Damage { address: end.addr(), size: 0, kind: DamageKind::Structure };
        let room = end.addr() - base.addr();
        if room < UNIT {
            return Err(damage);
        }
        // SAFETY: a unit lies below the end.
        let size = unsafe { end.sub(2 * WORD).cast::<u64>().read() } ^ self.mask(end.addr());
        let size = usize::try_from(size).map_err(|_| damage)?;
        let outer = Layout::from_size_align(size, 1).ok().and_then(outer).ok_or(damage)?.size();
        if outer + WORD > room {
            return Err(damage);
        }
        // SAFETY: so much lies below the end, as just checked, and is read only.
        unsafe {
            let start = end.sub(outer + WORD);
            self.check(start, size, outer)?;
            Ok((start, size, outer))
        }
    }
}
