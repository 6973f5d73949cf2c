//! A ring of bytes in a shared page, seen by the side that produces (the console's output, xenstore's requests) or that
//! consumes (the console's input, xenstore's answers).
//!
//! Indices are 32 bits wide, run freely and wrap at 2^32; an index modulo the ring's size is a place in the buffer.
//! Each side keeps its own index here and never reads it back; the other index is the peer's, who may lie.
//!
//! ```text
//!   producer                                  consumer
//!   1. read cons           (Acquire)          a. read prod           (Acquire)
//!   2. write bytes         (after 1)          b. read bytes          (after a)
//!   3. write prod          (Release)          c. write cons          (Release)
//!   4. notify, when the batch is complete     d. notify
//! ```
//!
//! 1 pairs with c: bytes are overwritten only after they were read. 3 pairs with a: the consumer sees the bytes of every
//! index that it sees. 4 and d are hypercalls and thereby full barriers: the peer that wakes sees 3, or c. Waiting, for room
//! or for bytes, works the other way round: take note of the port's events, then look at the peer's index; a notification
//! that comes in between ends the wait that follows.

use core::sync::atomic::Ordering;

use super::page::SharedPage;

/// Where a ring lies in its page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Offset of the buffer.
    pub(crate) data: usize,
    /// Bytes in the buffer, a power of two.
    pub(crate) size: u32,
    /// Offset of the producer index.
    pub(crate) producer: usize,
    /// Offset of the consumer index.
    pub(crate) consumer: usize,
}

/// The peer's index is impossible: it claims bytes that were never produced, or takes back bytes it consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Corrupt;

/// The producing side of a ring.
#[derive(Debug)]
pub(crate) struct Producer {
    page: SharedPage,
    layout: Layout,
    /// The index we published last.
    produced: u32,
    /// The last index of the peer that was possible.
    consumed: u32,
}

impl Producer {
    /// Joins a ring where its indices stand: they need not start at zero.
    pub(crate) fn attach(page: SharedPage, layout: Layout) -> Result<Self, Corrupt> {
        let produced = page.u32(layout.producer).load(Ordering::Relaxed);
        let consumed = page.u32(layout.consumer).load(Ordering::Acquire);
        if produced.wrapping_sub(consumed) > layout.size {
            return Err(Corrupt);
        }
        Ok(Self { page, layout, produced, consumed })
    }

    /// The last index of the peer that was possible.
    pub(crate) const fn consumed(&self) -> u32 {
        self.consumed
    }

    /// Reads how many bytes the peer has yet to consume.
    pub(crate) fn read_pending(&mut self) -> Result<u32, Corrupt> {
        let consumed = self.page.u32(self.layout.consumer).load(Ordering::Acquire);
        let newly = consumed.wrapping_sub(self.consumed);
        let pending = self.produced.wrapping_sub(self.consumed);
        // Monotonic and not past what was produced: the only indices that an honest peer can show.
        let rest = pending.checked_sub(newly).ok_or(Corrupt)?;
        self.consumed = consumed;
        Ok(rest)
    }

    /// Copies as many bytes as fit, publishes them and returns their number. The caller notifies.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let room = (self.layout.size - self.read_pending()?) as usize;
        let count = room.min(bytes.len());
        let place = (self.produced & (self.layout.size - 1)) as usize;
        let (head, tail) = bytes[..count].split_at(count.min(self.layout.size as usize - place));
        self.page.write(self.layout.data + place, head);
        self.page.write(self.layout.data, tail);
        // `count` is at most the ring's size and thus fits.
        self.produced = self.produced.wrapping_add(count as u32);
        self.page.u32(self.layout.producer).store(self.produced, Ordering::Release);
        Ok(count)
    }
}

/// The consuming side of a ring.
#[derive(Debug)]
pub(crate) struct Consumer {
    page: SharedPage,
    layout: Layout,
    /// The index we published last.
    consumed: u32,
    /// The last index of the peer that was possible.
    produced: u32,
}

impl Consumer {
    /// Joins a ring where its indices stand; what lies in it already is there to be read.
    pub(crate) fn attach(page: SharedPage, layout: Layout) -> Result<Self, Corrupt> {
        let consumed = page.u32(layout.consumer).load(Ordering::Relaxed);
        let mut consumer = Self { page, layout, consumed, produced: consumed };
        consumer.read_available().map(|_| consumer)
    }

    /// Reads how many bytes the peer has produced that were not taken yet.
    fn read_available(&mut self) -> Result<u32, Corrupt> {
        let produced = self.page.u32(self.layout.producer).load(Ordering::Acquire);
        let available = produced.wrapping_sub(self.consumed);
        // Monotonic and not beyond the ring: the only indices that an honest peer can show.
        if available > self.layout.size || available < self.produced.wrapping_sub(self.consumed) {
            return Err(Corrupt);
        }
        self.produced = produced;
        Ok(available)
    }

    /// Takes as many bytes as there are room and bytes for, gives their places back and returns their number. The caller
    /// notifies.
    pub(crate) fn pop(&mut self, bytes: &mut [u8]) -> Result<usize, Corrupt> {
        let count = (self.read_available()? as usize).min(bytes.len());
        let place = (self.consumed & (self.layout.size - 1)) as usize;
        let (head, tail) = bytes[..count].split_at_mut(count.min(self.layout.size as usize - place));
        self.page.read(self.layout.data + place, head);
        self.page.read(self.layout.data, tail);
        // `count` is at most the ring's size and thus fits.
        self.consumed = self.consumed.wrapping_add(count as u32);
        self.page.u32(self.layout.consumer).store(self.consumed, Ordering::Release);
        Ok(count)
    }
}

/// Each side against another that is written from the header's description, not from our code; last, both against each
/// other.
#[cfg(test)]
mod tests;
