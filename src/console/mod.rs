//! The console: the domain's own for output and input, a log sink on it, and emergency output below both.
//!
//! Nothing here makes the domain wait while it runs: a task that writes more than there is room for awaits the backend, and
//! so does one that reads. Lines of the log are kept, up to 64 KiB, while the ring is full; beyond that whole lines are lost,
//! counted and told of. Only a suspend and an end of the domain wait for what is still to be read, with a bound.
//!
//! A backend that is always ready, with input or with room, keeps nobody else from running, and one that sends events for
//! nothing is looked at once in a millisecond, beyond a few.
//!
//! ```no_run
//! # async fn example(domain: domu::Domain) -> domu::Result {
//! let console = domain.console();
//! console.write_all(b"your name? ").await?;
//! let mut lines = console.lines();
//! let name = lines.next().await?.to_vec();
//! log::info!("hello, {}", name.escape_ascii());
//! # Ok(())
//! # }
//! ```

mod attachment;
pub(crate) mod emergency;
mod gate;
mod input;
pub(crate) mod last;
pub(crate) mod log;
mod patience;
pub(crate) mod rate_limit;
mod ring;
#[cfg(feature = "embedded-io-async")]
mod stream;

use core::fmt;
use core::time::Duration;

use attachment::Device;
pub(crate) use attachment::{Attachment, CONSOLE, Settle};
/// The version whose traits [`Console`] implements.
#[cfg(feature = "embedded-io-async")]
pub use embedded_io_async;
pub use input::{Lines, MAX_LINE};

use crate::causes::write_causes;
use crate::local::Instance;
use crate::{eventchn, time};

/// Error of an operation on the console.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// No console, or none for this operation: a ring with impossible indices at boot is not used, and the hypervisor's console has
    /// no input. On the host also outside of the console's simulated domain.
    Absent,
    /// Timed out: the backend has not read all output. It still arrives if the backend continues.
    Stalled,
    /// Impossible index of the backend; the console stays closed.
    Corrupt,
    /// A line of input exceeded [`MAX_LINE`] and was dropped up to its end.
    LineTooLong,
    /// The event channel port of the console cannot be used; the error is the source.
    Port(eventchn::Error),
    /// Out of memory for a line of input.
    OutOfMemory,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("console: the domain has no console"),
            Self::Stalled => f.write_str("console: timed out; the backend does not read"),
            Self::Corrupt => f.write_str("console: impossible index of the backend; console closed"),
            Self::LineTooLong => write!(f, "console: line of input exceeds {MAX_LINE} bytes"),
            Self::Port(_) => f.write_str("console: cannot use the event channel port"),
            Self::OutOfMemory => f.write_str("console: out of memory for a line of input"),
        }?;
        write_causes(f, self)
    }
}

impl core::error::Error for Error {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Port(error) => Some(error),
            _ => None,
        }
    }
}

/// The console of this domain, as [`Domain::console`](crate::Domain::console) gives it.
///
/// Bytes arrive as they are, in both directions: line ends are the writer's business. Log lines, which end in CR LF, go the
/// same way; one is never cut in two by what others write. The backend is told of output at once if it had read everything
/// before, and else when the turn of the executor ends.
#[doc(alias("xencons_interface", "HVM_PARAM_CONSOLE_PFN"))]
#[derive(Clone, Copy)]
pub struct Console(Instance);

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    pub(crate) const fn new(state: Instance) -> Self {
        Self(state)
    }

    /// Writes bytes, and says how many: as many as there is room for, once there is room. Up to 1024 bytes are written all
    /// at once, so that they arrive in one piece whoever else writes. Lines of the log go first: one that is written faster
    /// than the console is read keeps writers waiting.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Corrupt`], [`Error::Port`]; nothing was written then. A backend that does not read is none:
    /// the task waits, and [`time::timeout`] bounds that.
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped before it was ready has written nothing.
    pub async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.once_possible(|device| device.try_write(bytes)).await
    }

    /// Writes all bytes. More than 1024 may go in several pieces, between which others write.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write), with some of the bytes written before.
    ///
    /// # Cancel safety
    ///
    /// What was written when the future is dropped arrives; how much that is is not known.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write(bytes).await?..];
        }
        Ok(())
    }

    /// Writes bytes without waiting, and says how many were: zero if [`write`](Self::write) would wait.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Corrupt`].
    pub fn try_write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.device(|device| device.try_write(bytes)).map(Option::unwrap_or_default)
    }

    /// Waits until the backend has read everything that was written before, also lines of the log. It is given two seconds,
    /// and a millisecond for each byte.
    ///
    /// # Errors
    ///
    /// [`Error::Stalled`], after which nothing is lost and others may still wait, and also if the domain was resumed elsewhere
    /// meanwhile: then it is not known; [`Error::Absent`], [`Error::Corrupt`], [`Error::Port`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn flush(&self) -> Result<(), Error> {
        let start = self.device(|device| {
            if let Device::Ring(ring) = device {
                ring.wake();
            }
            device.progress()
        })?;
        let limit = patience::STALL_NS + patience::SLOWEST_NS_PER_BYTE * start.unread as u64;
        // What is written meanwhile comes behind that, and is not waited for.
        let generation = self.0.generation();
        let read = self.once_possible(|device| {
            // The indices are those of another ring.
            if self.0.generation() != generation {
                return Err(Error::Stalled);
            }
            let now = device.progress()?;
            Ok((now.unread == 0 || now.read.wrapping_sub(start.read) as usize >= start.unread).then_some(()))
        });
        match time::timeout(Duration::from_nanos(limit), read).await {
            Ok(result) => result,
            Err(time::Elapsed) => self.device(|device| {
                if let Device::Ring(ring) = device
                    && ring.output.consumed() == start.read
                    && self.0.generation() == generation
                {
                    ring.give_up();
                }
                Err(Error::Stalled)
            }),
        }
    }

    /// Reads what was typed, or sent, and says how many bytes that is: at least one, unless `bytes` is empty.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Corrupt`], [`Error::Port`].
    ///
    /// # Cancel safety
    ///
    /// A future that is dropped before it was ready has taken nothing: the bytes are the next reader's.
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.once_possible(|device| device.try_read(bytes)).await
    }

    /// Reads what was typed without waiting, and says how many bytes that is; zero if nothing was.
    ///
    /// # Errors
    ///
    /// [`Error::Absent`], [`Error::Corrupt`].
    pub fn try_read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.device(|device| device.try_read(bytes)).map(Option::unwrap_or_default)
    }

    /// The input in lines, from here on. They are to be kept for as long as lines are read: what has come beyond a line is
    /// in them.
    #[must_use]
    pub const fn lines(&self) -> Lines {
        Lines::new(*self)
    }

    /// Whether a backend serves the console, as far as it says: Xen tells this from version 4.21 on, and before that it looks
    /// as if there were always one.
    #[doc(alias = "connection")]
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.device(|device| Ok(device.is_connected())).unwrap_or(false)
    }

    /// Does something with the device, unless the console belongs to another domain.
    fn device<T>(&self, act: impl FnOnce(&mut Device) -> Result<T, Error>) -> Result<T, Error> {
        if self.0.is_running() { CONSOLE.of(self.0).with(act) } else { Err(Error::Absent) }
    }

    /// Attempts something now, and then after each event of the backend's, until it is possible.
    async fn once_possible<T>(
        &self,
        mut attempt: impl FnMut(&mut Device) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        let state = self.0;
        let pace = CONSOLE.of(state).pace();
        pace.share(state).await;
        // Without the port, which a domain that never waits has no use for.
        if let Some(done) = self.device(&mut attempt)? {
            pace.found(state);
            return Ok(done);
        }
        loop {
            let port = CONSOLE.of(state).port(state)?;
            match port.until_by(pace, || self.device(&mut attempt).transpose()).await {
                Ok(done) => return done,
                // In the new domain the console has another port.
                Err(error) if error == eventchn::ErrorKind::BeforeResume => {}
                Err(error) => return Err(Error::Port(error)),
            }
        }
    }
}

/// Text goes the way of the log's lines: each piece is kept whole while the ring is full, or refused, and nobody waits.
impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match self.device(|device| device.take_whole(text.as_bytes())) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(fmt::Error),
        }
    }
}

fn say_corrupt() {
    emergency::say(format_args!("domu: console closed: its backend shows an impossible index\n"));
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
