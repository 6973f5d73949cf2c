//! The request/response ring that device protocols of Xen are made of, and its two ends.
//!
//! The front end puts requests into a ring of entries, the back end takes them and puts its responses into the places of
//! requests that it took. One or more pages hold a header of 64 bytes and, behind it, as many entries as fit, rounded down
//! to a power of two; an entry has room for a request or a response. Indices are 32 bits wide, run freely and wrap at 2^32;
//! an index modulo the ring's size is a place.
//!
//! | offset | word | written by | says |
//! |---|---|---|---|
//! | 0 | req_prod | front | requests before this one are there |
//! | 4 | req_event | back | to be notified when this request has been published |
//! | 8 | rsp_prod | back | responses before this one are there |
//! | 12 | rsp_event | front | to be notified when this response has been published |
//!
//! Each direction works alike:
//!
//! ```text
//!   producer                                  consumer
//!   1. write entries                          a. read prod            (Acquire)
//!   2. write prod            (Release)        b. read the entries, once each
//!   3. full barrier                           c. none left: write event, the next index
//!   4. read event                             d. full barrier
//!   5. event is among the new ones: notify    e. read prod again: none left: wait for a notification
//! ```
//!
//! *The entries are there.* 2 pairs with a, so that who sees an index sees what lies before it. 1 overwrites nothing that is
//! to be read yet: a request goes where the front end took a response from, and a response where the back end took a request
//! from, and either has told so by an index, with its own 2.
//!
//! *No wake-up is lost.* Of two full barriers one is the first. If it is the producer's, e sees the new index. If it is the
//! consumer's, 4 sees the new event, which is among the new indices, and 5 notifies. This is why c to e, the *final check*, are
//! part of finding nothing here: there is no other way to find that.
//!
//! *The peer is believed nothing.* What was published is kept here and never read back. The peer's index is used when it is
//! possible, that is, not before what was taken, and not beyond what the other direction allows: there are no responses
//! without a published request, and no requests beyond the ring's size from the last published response. Else the ring is
//! corrupt, for good. The peer's event is compared, and can only cost it a notification, or us one hypercall for each batch.

#![forbid(unsafe_code)]

mod back;
mod front;
mod requests;

use core::sync::atomic::{Ordering, fence};

pub use back::BackRing;
pub use front::FrontRing;
pub use requests::Requests;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Error, Owner};
use crate::abi::memory::PAGE_SIZE;

/// Where the words of one direction lie.
#[derive(Clone, Copy, Debug)]
struct Direction {
    producer: usize,
    event: usize,
}

const REQUESTS: Direction = Direction { producer: 0, event: 4 };
const RESPONSES: Direction = Direction { producer: 8, event: 12 };

/// Bytes before the first entry.
const HEADER: usize = 64;

/// The bytes of an entry, as of a C union of both types.
const fn entry_size<Req, Rsp>() -> usize {
    let size = if size_of::<Req>() > size_of::<Rsp>() { size_of::<Req>() } else { size_of::<Rsp>() };
    let align = if align_of::<Req>() > align_of::<Rsp>() { align_of::<Req>() } else { align_of::<Rsp>() };
    let size = size.next_multiple_of(align);
    assert!(size > 0 && size <= PAGE_SIZE as usize - HEADER, "an entry has a size, and fits into a page");
    size
}

/// One end of a ring: a producer of one direction, and a consumer of the other.
#[derive(Debug)]
struct End<M> {
    memory: M,
    /// Entries, a power of two.
    size: u32,
    /// Bytes from one entry to the next.
    stride: usize,
    output: Direction,
    input: Direction,
    /// The index behind the last entry that was written.
    produced: u32,
    /// The index we published last.
    published: u32,
    /// The index of the next entry to be taken.
    taken: u32,
    /// The peer's index when it was last looked at: possible, and not before `taken`.
    shown: u32,
    /// The event that we wrote last.
    event: Option<u32>,
    /// The peer's index was impossible.
    corrupt: bool,
}

impl<M: Owner> End<M> {
    /// An end where both directions stand at an index.
    fn new(memory: M, stride: usize, output: Direction, input: Direction, index: u32) -> Self {
        let entries = (memory.memory().len() - HEADER) / stride;
        let size = 1 << u32::try_from(entries).unwrap_or(u32::MAX).ilog2();
        let (produced, published, taken, shown) = (index, index, index, index);
        Self { memory, size, stride, output, input, produced, published, taken, shown, event: None, corrupt: false }
    }

    /// The number of the slot that an index stands for.
    const fn slot(&self, index: u32) -> u32 {
        index & (self.size - 1)
    }

    /// Where an entry lies.
    const fn place(&self, index: u32) -> usize {
        HEADER + self.slot(index) as usize * self.stride
    }

    /// Writes the next entry, which has a place: the caller has seen to that.
    fn put<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.memory.memory().write_value(self.place(self.produced), value);
        self.produced = self.produced.wrapping_add(1);
    }

    /// Publishes what was written, and says whether the peer is to be notified.
    fn publish(&mut self) -> bool {
        let count = self.produced.wrapping_sub(self.published);
        if count == 0 || self.corrupt {
            return false;
        }
        let memory = self.memory.memory();
        memory.u32(self.output.producer).store(self.produced, Ordering::Release);
        self.published = self.produced;
        fence(Ordering::SeqCst);
        let event = memory.u32(self.output.event).load(Ordering::Relaxed);
        self.produced.wrapping_sub(event) < count
    }

    /// Takes the next entry. `most` is how many there can be at most. If there is none, the peer has been asked to notify
    /// of the next.
    fn take<T: FromBytes + IntoBytes>(&mut self, most: u32) -> Result<Option<T>, Error> {
        if self.shown == self.taken && !self.look(most)? && !self.final_check(most)? {
            return Ok(None);
        }
        let value = self.memory.memory().read_value(self.place(self.taken));
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(value))
    }

    /// Takes the next entry and returns it with its slot. The peer is not asked to notify.
    fn take_unarmed<T: FromBytes + IntoBytes>(&mut self, most: u32) -> Result<Option<(u32, T)>, Error> {
        if self.shown == self.taken && !self.look(most)? {
            return Ok(None);
        }
        let slot = self.slot(self.taken);
        let value = self.memory.memory().read_value(self.place(self.taken));
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((slot, value)))
    }

    /// Asks the peer to notify when it has published `count` entries more than were taken. Returns true if an entry can be
    /// taken now.
    ///
    /// This is steps c to e of the module's diagram with a later event. The argument is the same: if e does not see an index
    /// at or beyond the event, 4 sees the event, and it is among the new indices when the peer publishes past it.
    fn arm(&mut self, most: u32, count: u32) -> Result<bool, Error> {
        let event = self.taken.wrapping_add(count);
        if self.event != Some(event) {
            self.usable()?;
            self.memory.memory().u32(self.input.event).store(event, Ordering::Relaxed);
            self.event = Some(event);
            fence(Ordering::SeqCst);
        }
        self.look(most)
    }

    /// Looks at the peer's index; says whether there is an entry to take.
    fn look(&mut self, most: u32) -> Result<bool, Error> {
        self.usable()?;
        let shown = self.memory.memory().u32(self.input.producer).load(Ordering::Acquire);
        // One that moved behind what was taken is far ahead, modulo 2^32. One that moved behind what it was is nearer.
        let ahead = shown.wrapping_sub(self.taken);
        if ahead > most || ahead < self.shown.wrapping_sub(self.taken) {
            self.corrupt = true;
            return Err(Error::Corrupt);
        }
        self.shown = shown;
        Ok(shown != self.taken)
    }

    /// Asks to be notified of the next entry, and looks whether it is there by now.
    fn final_check(&mut self, most: u32) -> Result<bool, Error> {
        let event = self.taken.wrapping_add(1);
        if self.event == Some(event) {
            // It was asked before, and the look that was just made came after that.
            return Ok(false);
        }
        self.memory.memory().u32(self.input.event).store(event, Ordering::Relaxed);
        self.event = Some(event);
        fence(Ordering::SeqCst);
        self.look(most)
    }

    /// Fails if the ring is corrupt.
    const fn usable(&self) -> Result<(), Error> {
        if self.corrupt { Err(Error::Corrupt) } else { Ok(()) }
    }
}
