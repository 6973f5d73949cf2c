//! Random numbers from the CPU: RDSEED, or RDRAND where there is none.
//!
//! Under Xen both come from the host's CPU directly. Where it has neither, or does not show them to the domain, there is
//! an error and no substitute: the time and what else a domain sees is known to others. What a generator gives is tested
//! before its first use and each time, because some have been known to give the same number for ever, and to call that a
//! success.
//!
//! # The crate `getrandom`
//!
//! The feature `getrandom` provides the custom backend of that crate, versions 0.3 and 0.4. The final binary also selects it, in
//! its `.cargo/config.toml`; without that, `getrandom` does not compile for the bare target:
//!
//! ```toml
//! [target.x86_64-unknown-none]
//! rustflags = ["--cfg", 'getrandom_backend="custom"']
//! ```
//!
//! The errors of this backend are `getrandom::Error::new_custom(number)`, which that crate displays as a number; a warning in the
//! log, whose rate is limited, names the cause. The numbers are 1 (`GETRANDOM_UNSUPPORTED`) for [`Error::Unsupported`]: the CPU
//! has neither RDRAND nor RDSEED; and 2 (`GETRANDOM_BROKEN`) for [`Error::Broken`].

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch;
use crate::local::domain_local;

domain_local! {
    /// The state of the test of the generators.
    pub(crate) static RANDOM: Memory = Memory::new();
}

/// Error of the random number generators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The CPU has neither RDRAND nor RDSEED, or they are hidden from the domain (`cpuid` in the configuration).
    Unsupported,
    /// RDRAND and RDSEED return nothing in all attempts, or a constant.
    Broken,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "random: the CPU has neither RDRAND nor RDSEED (cpuid)",
            Self::Broken => "random: RDRAND and RDSEED fail, or return a constant",
        })
    }
}

impl core::error::Error for Error {}

/// The number of the custom error by which the crate `getrandom` reports [`Error::Unsupported`]: neither RDRAND nor RDSEED.
#[cfg(feature = "getrandom")]
pub const GETRANDOM_UNSUPPORTED: u16 = 1;

/// The number of the custom error by which the crate `getrandom` reports [`Error::Broken`].
#[cfg(feature = "getrandom")]
pub const GETRANDOM_BROKEN: u16 = 2;

/// A number of 64 random bits.
///
/// # Errors
///
/// [`Error::Unsupported`], which is final for this CPU, and [`Error::Broken`].
pub fn u64() -> Result<u64, Error> {
    generators()?.next()
}

/// Fills a buffer with random bytes.
///
/// # Errors
///
/// As for [`u64`](self::u64); the buffer's content is then unspecified.
pub fn fill(buffer: &mut [u8]) -> Result<(), Error> {
    let generators = generators()?;
    for chunk in buffer.chunks_mut(8) {
        let bytes = generators.next()?.to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    Ok(())
}

/// State of a domain's generators. It holds no number that was given out: memory may be read later.
#[derive(Debug)]
pub(crate) struct Memory {
    tested: AtomicBool,
}

impl Memory {
    /// The generators have yet to be tested.
    const fn new() -> Self {
        Self { tested: AtomicBool::new(false) }
    }

    /// Has the generators tested again after a resume: the CPU may be another.
    pub(crate) fn resume(&self) {
        self.tested.store(false, Ordering::Relaxed);
    }
}

/// The generators of this CPU, which have passed their test.
fn generators() -> Result<Generators, Error> {
    let memory = crate::local::current().map(|state| RANDOM.of(state));
    let generators = Generators { cpu: arch::cpu(), last: Cell::new(0) };
    if !generators.cpu.rdseed() && !generators.cpu.rdrand() {
        return Err(Error::Unsupported);
    }
    // Some generators are known to give the same number for ever; four that differ rule that out. Later one
    // is enough, which is not given to anybody: the next has to differ from it.
    let tested = memory.is_some_and(|memory| memory.tested.load(Ordering::Relaxed));
    for _ in 0..if tested { 1 } else { 4 } {
        generators.next()?;
    }
    if let Some(memory) = memory {
        memory.tested.store(true, Ordering::Relaxed);
    }
    Ok(generators)
}

struct Generators {
    cpu: arch::Cpu,
    /// The last number, for the time of one call.
    last: Cell<u64>,
}

impl Generators {
    /// The next number: from RDSEED, or from RDRAND where that has none to give. RDSEED runs dry when it is asked often,
    /// by other domains too, and fills up within microseconds. RDRAND, by Intel's word, does not fail ten times in a row
    /// unless it is broken.
    fn next(&self) -> Result<u64, Error> {
        const SEED_TRIES: u32 = 1_000;
        const RAND_TRIES: u32 = 10;
        let seed = if self.cpu.rdseed() { SEED_TRIES } else { 0 };
        let rand = if self.cpu.rdrand() { RAND_TRIES } else { 0 };
        for number in 0..seed + rand {
            // SAFETY: each instruction is tried only if CPUID shows it.
            let value = unsafe { if number < seed { arch::rdseed() } else { arch::rdrand() } };
            match value.filter(|value| self.believes(*value)) {
                Some(value) => return Ok(value),
                None => core::hint::spin_loop(),
            }
        }
        Err(Error::Broken)
    }

    /// Whether a number may be random: all zeroes, all ones and the last one again are what broken generators give, and a
    /// good one gives each of them once in 2^64 times.
    fn believes(&self, value: u64) -> bool {
        let last = self.last.replace(value);
        value != 0 && value != u64::MAX && value != last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_no_room_for_a_number() {
        assert_eq!(size_of::<Memory>(), size_of::<bool>());
    }
}
