//! What the tool tells its user while it works.
//!
//! Progress goes to stderr and results to stdout, so that `cargo xen build hello | tail -1` is the
//! path of the image and the output of `cargo xen run` is the guest's.

use std::sync::atomic::{AtomicBool, Ordering};

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Shows Xen's and dom0's own output too, from now on.
pub fn set_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Whether the user wants to see everything.
pub fn is_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// A line of progress.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { eprintln!("{}", format_args!($($argument)*)) };
}

/// A number of bytes or nanoseconds with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1000), "1,000");
        assert_eq!(grouped(66_912), "66,912");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
