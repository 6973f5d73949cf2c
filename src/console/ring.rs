//! The ring of the console: output with a backlog for the log behind it, input, and one notification for what belongs
//! together.
//!
//! Nothing here waits; who waits is a task, in [`super`], or the end of a domain, in [`super::patience`]. The backend is told
//! of output at once if it had read all that was there before, and otherwise, as of input that was taken, at the end of the
//! turn, once: it may be about to look anyway, and a daemon that is told too often stops listening for a while.

use alloc::collections::VecDeque;

use super::Error;
use super::patience::Patience;
use crate::abi::console::{CONNECTED, CONNECTION, IN, IN_CONS, IN_PROD, IN_SIZE, OUT, OUT_CONS, OUT_PROD, OUT_SIZE};
use crate::eventchn::PolledPort;
use crate::hypercall::RingParams;
use crate::shared::{Consumer, Corrupt, Layout, Producer, SharedPage};

const OUTPUT: Layout = Layout { data: OUT, size: OUT_SIZE, producer: OUT_PROD, consumer: OUT_CONS };
const INPUT: Layout = Layout { data: IN, size: IN_SIZE, producer: IN_PROD, consumer: IN_CONS };

/// Bytes that are written all at once. Half of the ring: what needs all of it would wait for ever behind a busy log.
const WHOLE: usize = OUT_SIZE as usize / 2;

/// Bytes of log lines that are kept for a ring that is full. Miri takes minutes for as many.
const BACKLOG: usize = if cfg!(miri) { 8 << 10 } else { 64 << 10 };

/// How far the backend has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Its index.
    pub(super) read: u32,
    /// What was written and it has yet to read, in bytes.
    pub(super) unread: usize,
}

/// The ring and what is known of its backend.
#[derive(Debug)]
pub(crate) struct Ring {
    page: SharedPage,
    frame: u64,
    pub(super) output: Producer,
    input: Consumer,
    pub(super) port: PolledPort,
    /// Log lines that did not fit into the ring. What comes after them waits until they are in it.
    backlog: VecDeque<u8>,
    /// The backend is to be told of something.
    owes_notification: bool,
    pub(super) patience: Patience,
    /// The backend showed an impossible index: nothing is written or read any more.
    corrupt: bool,
}

impl Ring {
    /// Joins the ring in a page.
    pub(super) fn attach(page: SharedPage, location: RingParams) -> Result<Self, Corrupt> {
        let output = Producer::attach(page, OUTPUT)?;
        Ok(Self {
            page,
            frame: location.frame,
            patience: Patience::new(&output),
            output,
            input: Consumer::attach(page, INPUT)?,
            port: PolledPort::new(location.port),
            backlog: VecDeque::new(),
            owes_notification: false,
            corrupt: false,
        })
    }

    /// Whether that is the page it has, to which its address is mapped.
    pub(super) const fn is_at(&self, location: RingParams) -> bool {
        self.frame == location.frame
    }

    /// Joins the ring again, which a resume has cleared, in the page that it was in; what waits behind it stays.
    pub(super) fn resume(&mut self, location: RingParams) -> Result<(), Corrupt> {
        let ring = Self::attach(self.page, location)?;
        let backlog = core::mem::take(&mut self.backlog);
        *self = Self { backlog, ..ring };
        Ok(())
    }

    /// Whether a backend serves the ring, as far as it says.
    pub(super) fn is_connected(&self) -> bool {
        self.page.u8(CONNECTION).load(core::sync::atomic::Ordering::Relaxed) == CONNECTED
    }

    /// Tells the backend that there is something to read, or room. One that is gone shows in the indices: they stop.
    pub(super) fn notify(&mut self) {
        self.owes_notification = false;
        let _ = self.port.notify();
    }

    /// Puts as many bytes into the ring as fit.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let unread = self.read_pending()?;
        Ok(self.append(bytes, unread))
    }

    /// Reads how many bytes the backend has yet to read.
    pub(super) fn read_pending(&mut self) -> Result<u32, Error> {
        self.check(|ring| ring.output.read_pending())
    }

    /// Puts as many bytes into the ring as fit; `unread` are the bytes pending at the look before. A backend that had read
    /// everything is notified at once.
    fn append(&mut self, bytes: &[u8], unread: u32) -> usize {
        let count = self.output.append(bytes);
        match count {
            0 => {}
            _ if unread == 0 => self.notify(),
            _ => self.owes_notification = true,
        }
        count
    }

    /// Writes bytes: up to [`WHOLE`] all of them, of more what fits; or none if the ring is to have room first.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        if !self.pump()? {
            return Ok(None);
        }
        let unread = self.read_pending()?;
        let needed = if bytes.len() <= WHOLE { bytes.len() } else { 1 };
        if ((OUT_SIZE - unread) as usize) < needed {
            return Ok(None);
        }
        Ok(Some(self.append(bytes, unread)))
    }

    /// Takes a line of the log, or another text, whole, behind others that wait, or not at all; says whether it did.
    pub(super) fn take_whole(&mut self, text: &[u8]) -> Result<bool, Error> {
        // Behind a backlog nothing goes into the ring: as if it were full.
        let unread = if self.pump()? { self.read_pending()? } else { OUT_SIZE };
        let rest = text.len().saturating_sub((OUT_SIZE - unread) as usize);
        if rest > BACKLOG - self.backlog.len() || self.backlog.try_reserve(rest).is_err() {
            return Ok(false);
        }
        let count = if unread < OUT_SIZE { self.append(text, unread) } else { 0 };
        self.backlog.extend(&text[count..]);
        Ok(true)
    }

    /// Moves what waits into the ring; says whether nothing is left.
    pub(super) fn pump(&mut self) -> Result<bool, Error> {
        while !self.backlog.is_empty() {
            // Borrowed by itself, as the ring is needed whole.
            let mut backlog = core::mem::take(&mut self.backlog);
            let count = self.push(backlog.as_slices().0)?;
            backlog.drain(..count);
            self.backlog = backlog;
            if count == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Ends a turn: moves what there is room for, and tells the backend if that was put off.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        self.pump()?;
        if self.owes_notification {
            self.notify();
        }
        Ok(())
    }

    /// Gives the memory of a backlog back once it is empty: a burst of lines is rare. Not done on the way to an end, when the
    /// heap may be what is broken, or in use.
    pub(super) fn release(&mut self) {
        if self.backlog.is_empty() {
            self.backlog = VecDeque::new();
        }
    }

    /// Whether [`settle`](Self::settle) or [`release`](Self::release) have something to do.
    pub(super) fn is_unsettled(&self) -> bool {
        self.owes_notification || self.backlog.capacity() > 0
    }

    /// Whether lines wait for room in the ring.
    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// How much the backend has read so far, as its index, and how many bytes it has yet to read.
    pub(super) fn progress(&mut self) -> Result<Progress, Error> {
        let unread = self.read_pending()? as usize + self.backlog.len();
        Ok(Progress { read: self.output.consumed(), unread })
    }

    /// Takes input, if there is any.
    pub(super) fn try_read(&mut self, bytes: &mut [u8]) -> Result<Option<usize>, Error> {
        let count = self.check(|ring| ring.input.pop(bytes))?;
        self.owes_notification |= count > 0;
        Ok((count > 0).then_some(count))
    }

    /// Runs an operation on the ring, and closes the console for good if the backend turns out to lie.
    pub(super) fn check<T>(&mut self, operation: impl FnOnce(&mut Self) -> Result<T, Corrupt>) -> Result<T, Error> {
        if self.corrupt {
            return Err(Error::Corrupt);
        }
        operation(self).map_err(|Corrupt| {
            self.corrupt = true;
            self.owes_notification = false;
            self.backlog.clear();
            super::say_corrupt();
            Error::Corrupt
        })
    }
}
