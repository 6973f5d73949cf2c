//! A disk and its driver.
//!
//! [`Disk`] is a handle, of which there may be several, and [`Driver`] the future that connects, reconnects and serves all of
//! them. Both stay on the virtual CPU that opened the disk.

mod config;
mod driver;
mod durability;
mod pool;
mod requests;
mod state;
mod waiters;

use alloc::rc::Rc;
use alloc::string::ToString;
use core::cell::RefCell;
use core::fmt;
use core::future::{Future, poll_fn};
use core::task::Poll;

pub use config::{Buffers, Config, Durability, Info, OnDetach, Stat};
pub use driver::Driver;
pub use durability::{Flushed, Written};

use super::protocol::{DeviceNumber, Geometry};
use super::{DriverError, Error, ErrorKind};
use crate::gnttab::{Granted, ReadOnly, ReadWrite};
use crate::memory::Pages;
use crate::xenstore::Path;
use crate::{Domain, DomainId, xenbus};
use requests::{Copied, Data, Flushing, Lending, wake};
use state::{Lent, State};

/// Which disk to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select<'a> {
    /// By name, such as `xvda`, or by number in decimal.
    Name(&'a str),
    /// By number.
    Number(DeviceNumber),
    /// By order of the numbers, from 0.
    Nth(usize),
}

/// The numbers of the disks that the toolstack has made, in order.
///
/// # Errors
///
/// Those of [`xenbus::frontends`].
///
/// # Cancel safety
///
/// Nothing is lost by dropping the future.
pub async fn disks(domain: Domain) -> Result<alloc::vec::Vec<DeviceNumber>, xenbus::Error> {
    let found = xenbus::frontends(&domain.xenstore(), "vbd").await?;
    let mut numbers: alloc::vec::Vec<_> = found.iter().filter_map(|path| path.name().parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Opens a disk: a handle, and the driver that connects it, which the caller [spawns](crate::executor::spawn) or polls beside other
/// futures. Requests wait until the driver has connected: [`Disk::connected`] waits for that, too.
///
/// A disk may be opened once at a time.
///
/// # Errors
///
/// [`ErrorKind::NotFound`]; [`ErrorKind::OutOfMemory`]; those of [`xenbus::frontends`] and
/// [`xenbus::Frontend::open`].
///
/// # Cancel safety
///
/// Nothing is left behind.
pub async fn open(domain: Domain, select: Select<'_>, config: Config) -> Result<(Disk, Driver), DriverError> {
    let number = match select {
        Select::Number(number) => number,
        Select::Name(name) => name.parse().map_err(|_| ErrorKind::NotFound.of(DeviceNumber(0)))?,
        Select::Nth(index) => {
            let all = disks(domain).await?;
            *all.get(index).ok_or_else(|| ErrorKind::NotFound.of(DeviceNumber(0)))?
        }
    };
    let path = Path::new("device/vbd").and_then(|path| path.join(number.0.to_string()))?;
    let front = match xenbus::Frontend::open(&domain.xenstore(), &path).await {
        Err(error) if error == xenbus::ErrorKind::Gone => return Err(ErrorKind::NotFound.of(number).into()),
        front => front?,
    };
    let peer = front.device().peer();
    let state = State::new(number, peer, config).map_err(|kind| kind.of(number))?;
    let state = Rc::new(RefCell::new(state));
    let driver = Driver::new(domain, Rc::clone(&state), path, front);
    Ok((Disk { state, number }, driver))
}

/// A disk: requests through `&self`, as many at a time as are wanted.
///
/// Positions and lengths are in bytes and multiples of [`sector_size`](Geometry::sector_size). Requests that are in flight at the
/// same time have no order: where it matters, the first is awaited. A clone is another handle of the same disk. When the last is
/// dropped the driver closes the disk and ends.
pub struct Disk {
    state: Rc<RefCell<State>>,
    number: DeviceNumber,
}

/// Pages come back with the result, also that of a failure.
#[derive(Debug)]
pub struct LentError {
    /// What failed.
    pub error: Error,
    /// The pages, unless the back end still uses them. Then they are freed when it is done with them.
    pub pages: Option<Pages>,
}

impl fmt::Display for LentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl core::error::Error for LentError {}

impl From<LentError> for Error {
    fn from(error: LentError) -> Self {
        error.error
    }
}

impl Disk {
    /// The number of the disk.
    #[must_use]
    pub const fn number(&self) -> DeviceNumber {
        self.number
    }

    fn peer(&self) -> DomainId {
        self.state.borrow().peer
    }

    const fn error(&self, kind: ErrorKind) -> Error {
        kind.of(self.number)
    }

    /// What is known of the disk, unless it is not connected at the moment.
    #[must_use]
    pub fn info(&self) -> Option<Info> {
        self.state.borrow().info()
    }

    /// Counts since the disk was opened.
    #[must_use]
    pub fn stat(&self) -> Stat {
        self.state.borrow().stat()
    }

    /// Waits until the disk is connected. A back end may take minutes, or for ever: [`time::timeout`](crate::time::timeout)
    /// bounds it.
    ///
    /// # Errors
    ///
    /// Why it never will be: [`ErrorKind::Gone`], [`ErrorKind::Detached`], [`ErrorKind::Geometry`].
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn connected(&self) -> Result<Info, Error> {
        self.changed(|state| match (state.info(), state.finished()) {
            (Some(info), _) => Some(Ok(info)),
            (None, Some(kind)) => Some(Err(kind)),
            (None, None) => None,
        })
        .await
        .map_err(|kind| self.error(kind))
    }

    /// Waits until the size of the disk is another than `before`, and returns it.
    ///
    /// # Errors
    ///
    /// As [`connected`](Self::connected).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn resized(&self, before: Geometry) -> Result<Geometry, Error> {
        self.changed(|state| match (state.info(), state.finished()) {
            (Some(info), _) if info.geometry != before => Some(Ok(info.geometry)),
            (_, Some(kind)) => Some(Err(kind)),
            _ => None,
        })
        .await
        .map_err(|kind| self.error(kind))
    }

    /// Waits until something is found in the state, which is looked at after each change of the connection.
    async fn changed<T>(&self, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut waiting = Waiting { state: &self.state, ticket: None };
        poll_fn(|context| {
            let mut state = waiting.state.borrow_mut();
            match look(&state) {
                Some(found) => Poll::Ready(found),
                None => {
                    state.wait_for_change(&mut waiting.ticket, context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Reads into a buffer. The data is what it was at one moment of the read for each sector.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misaligned`], [`ErrorKind::OutOfRange`], [`ErrorKind::Failed`], [`ErrorKind::Unsupported`],
    /// [`ErrorKind::Protocol`], [`ErrorKind::Detached`], [`ErrorKind::Gone`]. The buffer's contents are not defined then. A read that
    /// failed is not tried again.
    ///
    /// # Cancel safety
    ///
    /// A part of the buffer may have been filled. What is in flight is answered, and its pages are the driver's until then.
    pub async fn read(&self, position: u64, buffer: &mut [u8]) -> Result<(), Error> {
        Copied::new(&self.state, position, Data::Read(buffer)).await.map(drop).map_err(|kind| self.error(kind))
    }

    /// Writes data. It is **not durable** then: see [`flush`](Self::flush) and [`write_durable`](Self::write_durable).
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); [`ErrorKind::ReadOnly`], [`ErrorKind::FlushFailed`]. After [`Failed`](ErrorKind::Failed) a part of the
    /// data may be on the disk.
    ///
    /// # Cancel safety
    ///
    /// All, nothing or a part may be written, until what is in flight was answered. Requests that overlap it wait for that.
    pub async fn write(&self, position: u64, data: &[u8]) -> Result<Written, Error> {
        let written = Copied::new(&self.state, position, Data::Write(data)).await;
        written.map(|numbers| self.written(numbers)).map_err(|kind| self.error(kind))
    }

    const fn written(&self, (first, last): requests::Numbers) -> Written {
        Written { disk: self.number, first, last }
    }

    /// Gives up the contents of a range, which are not defined then. The range is whole units of the back end's
    /// [granularity](super::protocol::DiscardLimits), and is discarded in one request.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); [`ErrorKind::Misaligned`] with the granularity.
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    #[doc(alias = "trim")]
    pub async fn discard(&self, position: u64, length: u64) -> Result<(), Error> {
        let discarded = Copied::new(&self.state, position, Data::Discard(length)).await;
        discarded.map(drop).map_err(|kind| self.error(kind))
    }

    /// Makes writes durable that completed before: those whose future had returned when this one was first polled, and perhaps
    /// others. Flushes that are waited for at the same time are one request.
    ///
    /// It vouches for its connection alone: see [`Flushed::covers`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::MayBeLost`] once, if a completed write was not flushed when a connection was lost;
    /// [`ErrorKind::FlushUnsupported`]; [`ErrorKind::FlushFailed`]; [`ErrorKind::Detached`], [`ErrorKind::Gone`].
    ///
    /// # Cancel safety
    ///
    /// The flush may still be done.
    #[doc(alias("fsync", "fdatasync", "FLUSH CACHE"))]
    pub async fn flush(&self) -> Result<Flushed, Error> {
        Flushing::new(&self.state).await.map_err(|kind| self.error(kind))
    }

    /// Writes data, waits, flushes, and waits: the data is durable then.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write) and [`flush`](Self::flush). [`ErrorKind::MayBeLost`] says that the connection was lost between
    /// the two.
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write).
    pub async fn write_durable(&self, position: u64, data: &[u8]) -> Result<Flushed, Error> {
        let written = self.write(position, data).await?;
        let flushed = self.flush().await?;
        if flushed.covers(&written) { Ok(flushed) } else { Err(self.error(ErrorKind::MayBeLost)) }
    }

    /// Takes note that a flush has failed, or that writes may be lost: flushes, writes and discards are possible again. Whatever
    /// was written since the last good flush is to be written again.
    pub fn clear_flush_failure(&self) {
        self.state.borrow_mut().ledger.clear_failure();
    }

    /// Reads into whole pages, which are lent to the back end if the disk [lends](Info::lends); else the data is copied.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), with the pages; [`ErrorKind::BufferKept`] and [`ErrorKind::NotGranted`] without.
    ///
    /// # Cancel safety
    ///
    /// The pages are the driver's until the answer, and are freed then.
    pub async fn read_pages(&self, position: u64, pages: Pages) -> Result<Pages, LentError> {
        let mut pages = pages;
        if !self.connected().await.is_ok_and(|info| info.lends) {
            return match self.read(position, pages.bytes_mut()).await {
                Ok(()) => Ok(pages),
                Err(error) => Err(LentError { error, pages: Some(pages) }),
            };
        }
        let length = pages.len() as u64;
        let lent = Granted::<ReadWrite>::from_pages(self.peer(), pages).await.map(Lent::Read);
        let (result, pages) = self.lend(position, length, lent.map_err(|_| ErrorKind::NotGranted)).await;
        match (result, pages) {
            (Ok(_), Some(pages)) => Ok(pages),
            (result, pages) => {
                let kind = result.err().unwrap_or(ErrorKind::BufferKept);
                Err(LentError { error: self.error(kind), pages })
            }
        }
    }

    /// Writes whole pages, as [`read_pages`](Self::read_pages) reads them. It is **not durable** then, as with [`write`](Self::write).
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write), with the pages; [`ErrorKind::BufferKept`] and [`ErrorKind::NotGranted`] without.
    ///
    /// # Cancel safety
    ///
    /// As [`write`](Self::write) and [`read_pages`](Self::read_pages).
    pub async fn write_pages(&self, position: u64, pages: Pages) -> Result<(Written, Pages), LentError> {
        if !self.connected().await.is_ok_and(|info| info.lends) {
            return match self.write(position, pages.bytes()).await {
                Ok(written) => Ok((written, pages)),
                Err(error) => Err(LentError { error, pages: Some(pages) }),
            };
        }
        let length = pages.len() as u64;
        let lent = Granted::<ReadOnly>::from_pages(self.peer(), pages).await.map(Lent::Write);
        let (result, pages) = self.lend(position, length, lent.map_err(|_| ErrorKind::NotGranted)).await;
        match (result, pages) {
            (Ok(numbers), Some(pages)) => Ok((self.written(numbers), pages)),
            (result, pages) => {
                let kind = result.err().unwrap_or(ErrorKind::BufferKept);
                Err(LentError { error: self.error(kind), pages })
            }
        }
    }

    async fn lend(
        &self,
        position: u64,
        length: u64,
        lent: Result<Lent, ErrorKind>,
    ) -> (Result<requests::Numbers, ErrorKind>, Option<Pages>) {
        match lent {
            Ok(lent) => Lending::new(&self.state, position, length, lent).await,
            Err(kind) => (Err(kind), None),
        }
    }
}

impl Clone for Disk {
    fn clone(&self) -> Self {
        self.state.borrow_mut().handles += 1;
        Self { state: Rc::clone(&self.state), number: self.number }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.handles -= 1;
        if state.handles == 0 {
            state.wake_driver();
        }
        drop(state);
        wake(&self.state);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("number", &self.number).finish_non_exhaustive()
    }
}

/// A future that waits for a change.
struct Waiting<'a> {
    state: &'a RefCell<State>,
    ticket: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.state.borrow_mut().stop_waiting(&mut None, &mut self.ticket);
    }
}

/// Whichever of two futures is ready first; the other is dropped.
async fn first_of<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (core::pin::pin!(one), core::pin::pin!(other));
    poll_fn(|context| match one.as_mut().poll(context) {
        Poll::Pending => other.as_mut().poll(context),
        ready => ready,
    })
    .await
}
