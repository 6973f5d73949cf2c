//! Random numbers from the CPU: RDSEED, or RDRAND where there is none.
//!
//! Under Xen both come from the host's CPU directly. Where it has neither, or does not show them to the domain, there is
//! an error and no substitute: the time and what else a domain sees is known to others. The generator is tested before
//! its first use, because some have been known to give the same number for ever and to call that a success.
//!
//! With the feature `getrandom` the crate of that name works: see the feature's documentation.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch;

/// Why there are no random numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The CPU has neither RDRAND nor RDSEED, or the domain is not shown them.
    Unsupported,
    /// The generator gave nothing in many tries, or always the same.
    Broken,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsupported => "the CPU has no generator of random numbers",
            Self::Broken => "the CPU's generator of random numbers is broken",
        })
    }
}

impl core::error::Error for Error {}

/// A number of 64 random bits.
///
/// # Errors
///
/// [`Error::Unsupported`] and [`Error::Broken`]; both are final for this CPU.
pub fn u64() -> Result<u64, Error> {
    generator()?.next()
}

/// Fills a buffer with random bytes.
///
/// # Errors
///
/// As for [`u64`](self::u64); the buffer's content is then unspecified.
pub fn fill(buffer: &mut [u8]) -> Result<(), Error> {
    let generator = generator()?;
    for chunk in buffer.chunks_mut(8) {
        let bytes = generator.next()?.to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
    Ok(())
}

/// What a domain remembers of its generator.
#[derive(Debug, Default)]
pub(crate) struct Tested(AtomicBool);

/// One that has passed its test.
fn generator() -> Result<Generator, Error> {
    let generator = Generator::of(&arch::cpu()).ok_or(Error::Unsupported)?;
    let tested = crate::state::get().map(|state| &state.random.0);
    if tested.is_none_or(|tested| !tested.load(Ordering::Relaxed)) {
        generator.test()?;
        if let Some(tested) = tested {
            tested.store(true, Ordering::Relaxed);
        }
    }
    Ok(generator)
}

/// An instruction that gives random numbers.
#[derive(Clone, Copy, Debug)]
enum Generator {
    Seed,
    Rand,
}

impl Generator {
    const fn of(cpu: &arch::Cpu) -> Option<Self> {
        match (cpu.rdseed(), cpu.rdrand()) {
            (true, _) => Some(Self::Seed),
            (false, true) => Some(Self::Rand),
            (false, false) => None,
        }
    }

    /// The next number. RDSEED runs dry when it is asked too often, and fills up within microseconds; RDRAND, by Intel's
    /// word, does not fail ten times in a row unless it is broken.
    fn next(self) -> Result<u64, Error> {
        for _ in 0..self.patience() {
            // SAFETY: `of` found the instruction among what the CPU has.
            let value = unsafe {
                match self {
                    Self::Seed => arch::rdseed(),
                    Self::Rand => arch::rdrand(),
                }
            };
            match value {
                Some(value) => return Ok(value),
                None => core::hint::spin_loop(),
            }
        }
        Err(Error::Broken)
    }

    const fn patience(self) -> u32 {
        match self {
            Self::Seed => 10_000,
            Self::Rand => 10,
        }
    }

    /// Looks whether there are different numbers among a few; the chance that a good generator fails is 2^-192.
    fn test(self) -> Result<(), Error> {
        let first = self.next()?;
        for _ in 0..3 {
            if self.next()? != first {
                return Ok(());
            }
        }
        Err(Error::Broken)
    }
}

/// The custom backend of the crate `getrandom`, versions 0.3 and 0.4.
#[cfg(feature = "getrandom")]
mod backend {
    /// Fills `len` bytes at `dest` with random numbers.
    ///
    /// # Safety
    ///
    /// As the crate promises: the bytes are writable, and need not be initialised.
    #[unsafe(no_mangle)]
    unsafe extern "Rust" fn __getrandom_v03_custom(dest: *mut u8, len: usize) -> Result<(), getrandom::Error> {
        // SAFETY: the caller vouches for `len` writable bytes.
        unsafe { dest.write_bytes(0, len) };
        // SAFETY: as before, and by now they are initialised.
        let buffer = unsafe { core::slice::from_raw_parts_mut(dest, len) };
        super::fill(buffer).map_err(|error| match error {
            super::Error::Unsupported => getrandom::Error::UNSUPPORTED,
            super::Error::Broken => getrandom::Error::UNEXPECTED,
        })
    }
}
