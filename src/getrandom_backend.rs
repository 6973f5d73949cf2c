//! The custom backend of the crate `getrandom`, versions 0.3 and 0.4.

use crate::console::rate_limit::log_limited;
use crate::random::{self, Error, GETRANDOM_BROKEN, GETRANDOM_UNSUPPORTED};

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
    random::fill(buffer).map_err(report)
}

/// Logs an error, which `getrandom` displays as a number, and returns that number.
#[cold]
fn report(error: Error) -> getrandom::Error {
    if let Some(state) = crate::local::current() {
        log_limited!(random of state, Warn, "getrandom: {error}");
    }
    getrandom::Error::new_custom(match error {
        Error::Unsupported => GETRANDOM_UNSUPPORTED,
        Error::Broken => GETRANDOM_BROKEN,
    })
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;
    use crate::sim::{Guest, Random};

    /// The result of the backend, and the log.
    fn fill(random: Random) -> (Result<(), getrandom::Error>, String) {
        let mut result = Ok(());
        let report = Guest::new().random(random).run(async |_| {
            for _ in 0..20 {
                let mut bytes = [0; 8];
                // SAFETY: the bytes are writable.
                result = unsafe { __getrandom_v03_custom(bytes.as_mut_ptr(), bytes.len()) };
            }
        });
        (result, report.console_text())
    }

    #[test]
    fn cpu_without_generator_is_a_custom_error() {
        let (result, log) = fill(Random::Absent);
        assert_eq!(result, Err(getrandom::Error::new_custom(GETRANDOM_UNSUPPORTED)));
        assert_eq!(log.matches("getrandom: random: the CPU has neither RDRAND nor RDSEED").count(), 10, "{log}");
    }

    #[test]
    fn broken_generator_is_another_custom_error() {
        let (result, log) = fill(Random::Stuck(0));
        assert_eq!(result, Err(getrandom::Error::new_custom(GETRANDOM_BROKEN)));
        assert!(log.contains("getrandom: random: RDRAND and RDSEED fail"), "{log}");
    }
}
