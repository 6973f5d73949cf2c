//! The end of a ring that sends requests and takes responses.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{End, REQUESTS, RESPONSES, entry_size};
use crate::shared::{Error, Owner};

/// The front end of a ring of requests `Req` and responses `Rsp`, in the memory of an owner `M`.
///
/// ```
/// # use domu::shared::{BackRing, FrontRing};
/// # let pages = domu::sim::SharedPages::new(1);
/// # let mut back = BackRing::<[u64; 2], u64, _>::attach(pages.clone())?;
/// let mut ring = FrontRing::<[u64; 2], u64, _>::new(pages);
/// ring.push(&[1, 2])?;
/// ring.push(&[3, 4])?;
/// if ring.publish() {
///     // Notify the peer, once for both.
/// }
/// # while let Some([a, b]) = back.poll_request()? { back.push(&(a + b))?; }
/// # back.publish();
/// while let Some(response) = ring.poll_response()? {
///     assert!(response == 3 || response == 7);
/// }
/// // There is none left: the peer notifies of the next.
/// # Ok::<(), domu::shared::Error>(())
/// ```
///
/// Responses come in any order: [`Requests`](super::Requests) tells to which request each belongs.
#[doc(alias("front_ring", "RING_IDX"))]
#[derive(Debug)]
pub struct FrontRing<Req, Rsp, M> {
    end: End<M>,
    entries: PhantomData<fn(Req) -> Rsp>,
}

impl<Req, Rsp, M: Owner> FrontRing<Req, Rsp, M> {
    const ENTRY: usize = entry_size::<Req, Rsp>();

    /// Makes a ring in memory that no peer uses yet.
    #[doc(alias("SHARED_RING_INIT", "FRONT_RING_INIT"))]
    #[must_use]
    pub fn new(memory: M) -> Self {
        Self::starting_at(memory, 0)
    }

    /// Makes a ring whose indices start anywhere, which peers that follow the protocol do not notice. Tests start them shortly
    /// before they wrap.
    #[doc(alias = "FRONT_RING_ATTACH")]
    #[must_use]
    pub fn starting_at(memory: M, index: u32) -> Self {
        for direction in [REQUESTS, RESPONSES] {
            memory.memory().u32(direction.producer).store(index, Ordering::Relaxed);
            memory.memory().u32(direction.event).store(index.wrapping_add(1), Ordering::Relaxed);
        }
        Self { end: End::new(memory, Self::ENTRY, REQUESTS, RESPONSES, index), entries: PhantomData }
    }

    /// How many requests the ring has room for.
    #[doc(alias = "RING_SIZE")]
    #[must_use]
    pub const fn size(&self) -> u32 {
        self.end.size
    }

    /// How many requests can be pushed now: each response that is taken makes room for one.
    #[doc(alias = "RING_FREE_REQUESTS")]
    #[must_use]
    pub const fn room(&self) -> u32 {
        self.end.size - self.end.produced.wrapping_sub(self.end.taken)
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

    /// Writes a request, which the peer does not see before [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if there is no [`room`](Self::room), [`Error::Corrupt`] once the ring is.
    #[doc(alias = "RING_GET_REQUEST")]
    pub fn push(&mut self, request: &Req) -> Result<(), Error>
    where
        Req: IntoBytes + Immutable,
    {
        self.end.usable()?;
        if self.room() == 0 {
            return Err(Error::Full);
        }
        self.end.put(request);
        Ok(())
    }

    /// Shows the peer what was pushed, and says whether it is to be notified: it is not if it is busy with the ring, as it
    /// looks for more before it waits.
    #[doc(alias = "RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")]
    #[must_use = "the peer may wait for a notification"]
    pub fn publish(&mut self) -> bool {
        self.end.publish()
    }

    /// Takes a response. None says that the peer has been asked to notify of the next one, and that it had not come by then,
    /// so that the port can be waited for: [`Port::until`](crate::eventchn::Port::until) does both.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] if the peer shows more responses than there are requests, or takes some back. No method of the ring
    /// does anything from then on.
    #[doc(alias("RING_FINAL_CHECK_FOR_RESPONSES", "RING_COPY_RESPONSE"))]
    pub fn poll_response(&mut self) -> Result<Option<Rsp>, Error>
    where
        Rsp: FromBytes + IntoBytes,
    {
        let in_flight = self.end.published.wrapping_sub(self.end.taken);
        self.end.take(in_flight)
    }

    /// How many published requests have no response that was taken.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.end.published.wrapping_sub(self.end.taken)
    }

    /// The slot that the next [`push`](Self::push) writes, below [`size`](Self::size).
    #[must_use]
    pub const fn next_slot(&self) -> u32 {
        self.end.slot(self.end.produced)
    }

    /// Takes a response, with the slot it stands in: that of a request which the back end has taken. In protocols that answer
    /// in order, such as the receive ring of a network interface, that is the request it answers. No notification is asked
    /// for, so `None` is no reason to wait: see [`request_notification`](Self::request_notification).
    ///
    /// For responses that are looked for in any case, as those to transmitted packets before the next packet. The peer then
    /// has no reason to notify, and an unasked notification costs both domains.
    ///
    /// # Errors
    ///
    /// As [`poll_response`](Self::poll_response).
    #[doc(alias("RING_HAS_UNCONSUMED_RESPONSES", "RING_COPY_RESPONSE"))]
    pub fn next_response(&mut self) -> Result<Option<(u32, Rsp)>, Error>
    where
        Rsp: FromBytes + IntoBytes,
    {
        let in_flight = self.in_flight();
        self.end.take_unarmed(in_flight)
    }

    /// Asks the peer to notify once when `count` responses more than were taken are published, and returns true if there is a
    /// response now. `count` is held between 1 and the requests [in flight](Self::in_flight), as the peer can publish no more.
    ///
    /// After `false` the port can be waited for. After `true` the peer may or may not notify, so responses are to be taken
    /// before the wait: until there is none if `count` is 1. With a larger `count` fewer than that may be left: the notification
    /// still comes when the rest is published.
    ///
    /// # Errors
    ///
    /// As [`poll_response`](Self::poll_response).
    #[doc(alias("RING_FINAL_CHECK_FOR_RESPONSES", "rsp_event"))]
    pub fn request_notification(&mut self, count: u32) -> Result<bool, Error> {
        let in_flight = self.in_flight();
        self.end.arm(in_flight, count.min(in_flight).max(1))
    }
}
