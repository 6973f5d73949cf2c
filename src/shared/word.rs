//! Words of shared memory.

#[cfg(target_os = "none")]
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32};
use core::sync::atomic::{AtomicU64, Ordering};

mod sealed {
    /// A size of words.
    pub trait Word: Copy + core::fmt::Debug {
        /// Its atomic.
        #[cfg(target_os = "none")]
        type Atomic: core::fmt::Debug + 'static;
    }
}
pub(crate) use sealed::Word;

/// A word of shared memory, by its place: an atomic of 8, 16, 32 or 64 bits.
///
/// In a unikernel each method is the instruction that the atomic of this size has. On the host all sizes are made of atomics
/// of 64 bits: the language has no meaning for two threads that access the same bytes in different sizes at the same time,
/// and the two ends of a ring may do so.
#[derive(Debug)]
pub struct SharedWord<'a, T: Word> {
    #[cfg(target_os = "none")]
    atomic: &'a T::Atomic,
    /// The aligned word of 64 bits that it is a part of.
    #[cfg(not(target_os = "none"))]
    whole: &'a AtomicU64,
    /// The number of its lowest bit.
    #[cfg(not(target_os = "none"))]
    shift: u32,
    #[cfg(not(target_os = "none"))]
    value: core::marker::PhantomData<T>,
}

// Derived, these would ask the atomic to be `Copy`.
impl<T: Word> Copy for SharedWord<'_, T> {}

impl<T: Word> Clone for SharedWord<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

macro_rules! words {
    ($($value:ident $atomic:ident),+) => {$(
        impl Word for $value {
            #[cfg(target_os = "none")]
            type Atomic = $atomic;
        }

        impl<'a> SharedWord<'a, $value> {
            /// The word at an address.
            ///
            /// # Safety
            ///
            /// The address is a multiple of the word's size. For `'a` it lies in whole pages that stay mapped, which the program
            /// accesses by `SharedWord`s only, and in a unikernel by the string instructions of `SharedMemory::write_bytes` and
            /// `read_bytes`. These are no Rust accesses: to the language they are those of another domain, whose accesses
            /// race with these atomics in any case. It costs the bytes their value and nothing else.
            pub(super) unsafe fn new(at: *mut u8) -> Self {
                // SAFETY: the caller's promise.
                #[cfg(target_os = "none")]
                return Self { atomic: unsafe { $atomic::from_ptr(at.cast()) } };
                #[cfg(not(target_os = "none"))]
                {
                    let within = at.addr() % 8;
                    // SAFETY: the aligned word around the address lies in the same page; the rest is the caller's promise.
                    let whole = unsafe { AtomicU64::from_ptr(at.wrapping_sub(within).cast()) };
                    // The host's bytes are in the order of x86, as the protocols' are.
                    Self { whole, shift: 8 * within as u32, value: core::marker::PhantomData }
                }
            }

            /// Reads the word.
            #[inline]
            #[must_use]
            pub fn load(self, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.load(order);
                #[cfg(not(target_os = "none"))]
                self.part(self.whole.load(order))
            }

            /// Writes the word.
            #[inline]
            pub fn store(self, value: $value, order: Ordering) {
                #[cfg(target_os = "none")]
                self.atomic.store(value, order);
                #[cfg(not(target_os = "none"))]
                if $value::BITS == 64 {
                    self.whole.store(value as u64, order);
                } else {
                    self.update(order, |_| value);
                }
            }

            /// Writes the word, and returns what was there.
            #[inline]
            pub fn swap(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.swap(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |_| value)
            }

            /// Adds to the word, which wraps around, and returns what was there.
            #[inline]
            pub fn fetch_add(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.fetch_add(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |before| before.wrapping_add(value))
            }

            /// Subtracts from the word, which wraps around, and returns what was there.
            #[inline]
            pub fn fetch_sub(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.fetch_sub(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |before| before.wrapping_sub(value))
            }

            /// Clears the bits that `value` has not, and returns what was there.
            #[inline]
            pub fn fetch_and(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.fetch_and(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |before| before & value)
            }

            /// Sets the bits that `value` has, and returns what was there.
            #[inline]
            pub fn fetch_or(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.fetch_or(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |before| before | value)
            }

            /// Inverts the bits that `value` has, and returns what was there.
            #[inline]
            pub fn fetch_xor(self, value: $value, order: Ordering) -> $value {
                #[cfg(target_os = "none")]
                return self.atomic.fetch_xor(value, order);
                #[cfg(not(target_os = "none"))]
                self.update(order, |before| before ^ value)
            }

            /// Writes the word if it is `current`, and returns what was there.
            ///
            /// # Errors
            ///
            /// The word's actual value.
            #[inline]
            pub fn compare_exchange(
                self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                #[cfg(target_os = "none")]
                return self.atomic.compare_exchange(current, new, success, failure);
                #[cfg(not(target_os = "none"))]
                {
                    let mut whole = self.whole.load(failure);
                    while self.part(whole) == current {
                        match self.whole.compare_exchange(whole, self.with(whole, new), success, failure) {
                            Ok(_) => return Ok(current),
                            Err(other) => whole = other,
                        }
                    }
                    Err(self.part(whole))
                }
            }

            /// Writes the result of `change`, retries if the word changed in between, and returns the previous value.
            ///
            /// # Errors
            ///
            /// The word's value, when `change` returns `None`.
            #[inline]
            pub fn fetch_update(
                self,
                success: Ordering,
                failure: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut before = self.load(failure);
                while let Some(after) = change(before) {
                    match self.compare_exchange(before, after, success, failure) {
                        Err(other) => before = other,
                        done => return done,
                    }
                }
                Err(before)
            }

            /// Replaces the word by what `change` makes of it, and returns what was there.
            #[cfg(not(target_os = "none"))]
            fn update(self, order: Ordering, change: impl Fn($value) -> $value) -> $value {
                let mut whole = self.whole.load(Ordering::Relaxed);
                loop {
                    let before = self.part(whole);
                    let after = self.with(whole, change(before));
                    match self.whole.compare_exchange(whole, after, order, Ordering::Relaxed) {
                        Ok(_) => return before,
                        Err(other) => whole = other,
                    }
                }
            }

            /// The word, out of the one that it is a part of.
            #[cfg(not(target_os = "none"))]
            const fn part(self, whole: u64) -> $value {
                (whole >> self.shift) as $value
            }

            /// The word that this is a part of, with another value here.
            #[cfg(not(target_os = "none"))]
            const fn with(self, whole: u64, value: $value) -> u64 {
                whole & !(($value::MAX as u64) << self.shift) | (value as u64) << self.shift
            }
        }
    )+};
}

words!(u8 AtomicU8, u16 AtomicU16, u32 AtomicU32, u64 AtomicU64);

#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

    use crate::shared::Owner;
    use crate::sim::SharedPages;

    #[test]
    fn operations_change_their_word_alone() {
        let pages = SharedPages::new(1);
        let memory = pages.memory();
        memory.u64(8).store(u64::MAX, Relaxed);
        let byte = memory.u8(9);
        assert_eq!((byte.swap(7, Relaxed), byte.fetch_add(255, Relaxed), byte.load(Relaxed)), (255, 7, 6));
        assert_eq!((byte.fetch_sub(7, Relaxed), byte.fetch_xor(0xf0, Relaxed)), (6, 255));
        assert_eq!((byte.fetch_or(0x30, Relaxed), byte.fetch_and(0x0f, Relaxed)), (0x0f, 0x3f));
        assert_eq!(byte.compare_exchange(0x10, 1, AcqRel, Acquire), Err(0x0f));
        assert_eq!(byte.compare_exchange(0x0f, 0, AcqRel, Acquire), Ok(0x0f));
        assert_eq!(memory.u64(8).load(Acquire), 0xffff_ffff_ffff_00ff);
        memory.u16(10).store(0x1234, Release);
        memory.u32(12).store(0x5678_9abc, Release);
        assert_eq!(memory.u64(8).load(Relaxed), 0x5678_9abc_1234_00ff);
        assert_eq!((memory.u64(0).load(Relaxed), memory.u64(16).load(Relaxed)), (0, 0));
        assert_eq!([8, 9, 10, 15].map(|at| memory.u8(at).load(Relaxed)), [0xff, 0, 0x34, 0x56]);
    }
}
