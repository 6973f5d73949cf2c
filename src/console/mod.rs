//! The console: output to the domain's own, a log sink on it, and emergency output below both.
//!
//! Output is lossless while the backend drains and bounded when it does not: a writer that finds the ring full waits
//! only as long as the backend makes progress, and a backend that has been given up costs nothing until it moves again.

pub(crate) mod emergency;
pub(crate) mod last;
pub(crate) mod log;
mod output;

use core::fmt;

pub(crate) use output::{Location, Output};

use crate::state::State;

/// Why output did not reach the console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The domain has no console.
    Absent,
    /// The backend has stopped reading. The first `written` bytes are in the ring and will arrive if it goes on.
    Stalled {
        /// Bytes that were accepted.
        written: usize,
    },
    /// The backend showed an impossible index; the console is closed for good. The first `written` bytes went before.
    Corrupt {
        /// Bytes that were accepted.
        written: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("the domain has no console"),
            Self::Stalled { written } => write!(f, "the console stalled after {written} bytes"),
            Self::Corrupt { written } => write!(f, "the console's backend is corrupt, after {written} bytes"),
        }
    }
}

impl core::error::Error for Error {}

/// The console of this domain, as [`Domain::console`](crate::Domain::console) gives it.
///
/// What is written arrives byte for byte: line ends are the writer's business. Log lines, which end in CR LF, go the
/// same way; a log line that fits into the ring (2048 bytes) is never cut in two.
#[derive(Clone, Copy, Debug)]
pub struct Console(&'static State);

impl Console {
    pub(crate) const fn new(state: &'static State) -> Self {
        Self(state)
    }

    /// Writes all bytes, waiting for the backend to make room.
    ///
    /// The whole domain waits. A backend has a credit of two seconds, which waiting uses up and each byte that it reads
    /// restores by a millisecond; when the credit is gone a write to a full ring fails at once, until the backend reads
    /// again. So a dead console costs two seconds once, and a live one that reads a kilobyte a second or more loses
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Stalled`] and [`Error::Corrupt`] say how many bytes were accepted; a caller that wants to go on
    /// continues from there. [`Error::Absent`] if there is no console.
    pub fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.0.console.lock().write(&self.0.info, bytes)
    }

    /// Waits until the backend has read everything, within the same bound.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write), with zero bytes written.
    pub fn flush(&self) -> Result<(), Error> {
        self.0.console.lock().flush(&self.0.info)
    }
}

/// Hands out a text in pieces, each LF as CR LF unless a CR stands there already: as a terminal wants the lines of the
/// log and of crashes. `last` is the byte before the text, and then its last.
fn crlf(text: &str, last: &mut u8, mut put: impl FnMut(&[u8]) -> fmt::Result) -> fmt::Result {
    for piece in text.as_bytes().split_inclusive(|&byte| byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(body) => {
                put(body)?;
                let carriage_return = *body.last().unwrap_or(last) == b'\r';
                put(if carriage_return { b"\n" } else { b"\r\n" })?;
            }
            None => put(piece)?,
        }
        *last = *piece.last().unwrap_or(last);
    }
    Ok(())
}

/// Text, as [`Console::write`] writes bytes; its errors lose their detail.
impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write(text.as_bytes()).map_err(|_| fmt::Error)
    }
}
