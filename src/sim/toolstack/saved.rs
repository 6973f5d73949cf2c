//! What becomes of a simulated domain that suspends itself, as a test chooses.

use core::time::Duration;
use std::boxed::Box;

/// What becomes of a domain that suspends itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Saved {
    /// It goes on where it was, after so long.
    Cancelled(Duration),
    /// It goes on in a domain of the next number, after so long.
    Restored(Duration),
    /// It goes on in a domain of the next number, after so long, on a host that has been up for so long.
    Moved(Duration, Duration),
}

/// Says what becomes of the domain when it suspends itself, each time.
pub(crate) type Save = Box<dyn FnMut() -> Saved + Send>;
