//! The end of a ring that takes requests and sends responses.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{End, REQUESTS, RESPONSES, entry_size};
use crate::shared::{Error, Owner};

/// The back end of a ring of requests `Req` and responses `Rsp`, in the memory of an owner `M`: see [`FrontRing`].
///
/// What a request says is the peer's word, and is to be checked: it is private from when it was taken, so that it stays as
/// it was.
///
/// [`FrontRing`]: super::FrontRing
#[doc(alias("back_ring", "RING_IDX"))]
#[derive(Debug)]
pub struct BackRing<Req, Rsp, M> {
    end: End<M>,
    entries: PhantomData<fn(Rsp) -> Req>,
}

impl<Req, Rsp, M: Owner> BackRing<Req, Rsp, M> {
    const ENTRY: usize = entry_size::<Req, Rsp>();

    /// Joins a ring that the peer has made, behind the last response. All requests from there on are taken, also those that
    /// another back end took before.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if there are more requests than the ring has room for.
    #[doc(alias("BACK_RING_INIT", "BACK_RING_ATTACH"))]
    pub fn attach(memory: M) -> Result<Self, Error> {
        let index = memory.memory().u32(RESPONSES.producer).load(Ordering::Relaxed);
        let mut end = End::new(memory, Self::ENTRY, RESPONSES, REQUESTS, index);
        end.look(end.size)?;
        Ok(Self { end, entries: PhantomData })
    }

    /// How many requests the ring has room for.
    #[doc(alias = "RING_SIZE")]
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.end.size
    }

    /// How many requests were taken and have no response yet.
    #[must_use]
    pub const fn unanswered(&self) -> u32 {
        self.end.taken.wrapping_sub(self.end.produced)
    }

    /// What owns the memory.
    #[must_use]
    pub const fn memory(&self) -> &M {
        &self.end.memory
    }

    /// Ends this end of the ring, and keeps the memory. The peer may still use it.
    #[must_use]
    pub fn into_memory(self) -> M {
        self.end.memory
    }

    /// Takes a request. None says that the peer has been asked to notify of the next one, and that it had not come by then,
    /// so that the port can be waited for: [`Port::until`](crate::eventchn::Port::until) does both.
    ///
    /// A peer that sends a request for each response that it gets keeps this going without end. `until` has other tasks run now
    /// and then; who calls this in a loop of its own, and answers within it, takes [`size`](Self::size) requests at most before
    /// it waits by `until` again, or yields.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if the peer shows more requests than the ring has room for, or takes some back. No method of the
    /// ring does anything from then on.
    #[doc(alias("RING_FINAL_CHECK_FOR_REQUESTS", "RING_COPY_REQUEST", "RING_REQUEST_PROD_OVERFLOW"))]
    pub fn poll_request(&mut self) -> Result<Option<Req>, Error>
    where
        Req: FromBytes + IntoBytes,
    {
        let unpublished = self.end.taken.wrapping_sub(self.end.published);
        self.end.take(self.end.size - unpublished)
    }

    /// Writes a response, in any order, which the peer does not see before [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// [`Error::NoRequest`] if every request that was taken has one, [`Error::Corrupt`] once the ring is.
    #[doc(alias = "RING_GET_RESPONSE")]
    pub fn push(&mut self, response: &Rsp) -> Result<(), Error>
    where
        Rsp: IntoBytes + Immutable,
    {
        self.end.usable()?;
        if self.unanswered() == 0 {
            return Err(Error::NoRequest);
        }
        self.end.put(response);
        Ok(())
    }

    /// Shows the peer what was pushed, and says whether it is to be notified: it is not if it is busy with the ring, as it
    /// looks for more before it waits.
    #[doc(alias = "RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")]
    #[must_use = "the peer may wait for a notification"]
    pub fn publish(&mut self) -> bool {
        self.end.publish()
    }
}
