//! The receive half: packets out of the ring, lent one at a time.
//!
//! A slot of the ring uses the page of its number in the area. The page is revoked when its response is taken, before a byte of
//! it is read, and restored when the packet goes back: see [`Revocable`](crate::gnttab::Revocable).

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::task::{Context, Poll};

use super::connection::{Live, Side};
use super::memory::{Checksum, Lent, Rx};
use super::shared::{Handle, Shared};
use crate::gnttab;
use crate::net::Error;
use crate::net::protocol::checksum::{Verdict, verify};
use crate::net::protocol::{Move, RxFlags, RxRequest, Segmentation, Violation};

/// Packets that are dropped before others have their turn.
const DROPS_IN_A_POLL: u32 = 64;

/// The half of an interface that receives.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    verify: bool,
    /// Checked out, during a call and while a packet is lent.
    held: Option<Box<Rx>>,
    /// The packet that is lent was not handed out yet.
    peeked: bool,
}

impl Receiver {
    pub(super) fn new(shared: Arc<Shared>, verify: bool) -> Self {
        Self { shared, verify, held: None, peeked: false }
    }

    /// A view of the interface.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Receives a frame, and waits for it, through reconnects.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn receive(&mut self) -> Result<Frame<'_>, Error> {
        poll_fn(|context| self.poll_ready(context)).await?;
        self.frame().ok_or(Error::Down)
    }

    /// Receives a frame if there is one.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    pub fn try_receive(&mut self) -> Result<Option<Frame<'_>>, Error> {
        Ok(if self.peek()? { self.frame() } else { None })
    }

    /// Receives a frame, or has the task woken when there is one or the link changes.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    pub fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame<'_>, Error>> {
        match self.poll_ready(context) {
            Poll::Ready(Ok(())) => Poll::Ready(self.frame().ok_or(Error::Down)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Begins a call: checks the ring out, unless a packet is lent.
    fn enter(&mut self) -> Result<(), Error> {
        if self.held.is_some() && self.shared.has_ended() {
            self.give_back();
            self.leave();
        }
        if self.held.is_none() {
            self.held = self.shared.check_out()?;
        }
        Ok(())
    }

    /// Ends a call: checks the ring in, unless a packet is lent.
    fn leave(&mut self) {
        if let Some(rx) = self.held.take_if(|rx| rx.lent.is_none()) {
            self.shared.check_in(rx);
        }
    }

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.shared.register(Side::Receive, context);
        self.enter()?;
        let ready = self.poll_ring(context);
        self.leave();
        ready
    }

    fn poll_ring(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.peeked {
            return Poll::Ready(Ok(()));
        }
        let mut drops = 0;
        loop {
            match self.take_packet()? {
                Some(true) => return Poll::Ready(Ok(())),
                Some(false) => {
                    drops += 1;
                    if drops == DROPS_IN_A_POLL {
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                None => {}
            }
            let Some(rx) = &mut self.held else { return Poll::Pending };
            if let Some(live) = &mut rx.live {
                live.poll_wait(context);
            }
            // What came before the wait saw an event.
            match rx.ring.request_notification(1) {
                Ok(false) => return Poll::Pending,
                Ok(true) => {}
                Err(_) => return Poll::Ready(Err(self.fail(Violation::Index))),
            }
        }
    }

    /// Makes the next packet the one that [`frame`](Self::frame) hands out; says whether there is one. It stays so until it is
    /// handed out.
    pub(in crate::net) fn peek(&mut self) -> Result<bool, Error> {
        self.enter()?;
        let next = self.next();
        self.peeked = next == Ok(true);
        self.leave();
        next
    }

    /// The same, or has the task woken when there is one or the link changes.
    #[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
    pub(in crate::net) fn poll_peek(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let ready = self.poll_ready(context);
        self.peeked = ready == Poll::Ready(Ok(()));
        ready
    }

    /// Takes the next packet that is to be lent; says whether there is one.
    fn next(&mut self) -> Result<bool, Error> {
        if self.peeked {
            return Ok(true);
        }
        for _ in 0..DROPS_IN_A_POLL {
            match self.take_packet()? {
                Some(false) => {}
                other => return Ok(other.is_some()),
            }
        }
        Ok(false)
    }

    /// Takes the next packet: true if it is lent, false if it was dropped.
    fn take_packet(&mut self) -> Result<Option<bool>, Error> {
        self.give_back();
        let Some(rx) = &mut self.held else { return Ok(None) };
        match rx.take_packet() {
            Ok(true) => {
                rx.live.iter().for_each(Live::found);
                let lent = rx.lend(&self.shared, self.verify);
                rx.lent = Some(lent);
                let lend = rx.lent.as_ref().is_some_and(|lent| !lent.range.is_empty());
                if !lend {
                    self.give_back();
                }
                Ok(Some(lend))
            }
            Ok(false) => Ok(None),
            Err(violation) => Err(self.fail(violation)),
        }
    }

    #[cold]
    fn fail(&mut self, violation: Violation) -> Error {
        self.shared.fail(violation);
        Error::Violation(violation)
    }

    /// Gives the packet that was lent last back.
    fn give_back(&mut self) {
        self.peeked = false;
        let Some(rx) = &mut self.held else { return };
        if rx.lent.is_some() && rx.give_back() {
            self.shared.notify(Side::Receive);
        }
    }

    pub(in crate::net) fn frame(&mut self) -> Option<Frame<'_>> {
        let held = self.held.as_ref()?;
        held.lent.as_ref()?;
        self.peeked = false;
        Some(Frame { receiver: self })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.give_back();
        self.leave();
    }
}

impl Rx {
    /// Takes the slots of the next packet; says whether there is one. After a resume there is none.
    fn take_packet(&mut self) -> Result<bool, Violation> {
        let slots = self.area.granted();
        loop {
            let Some((slot, bytes)) = self.ring.next_response().map_err(|_| Violation::Index)? else {
                // Whole packets are published.
                return if self.assembler.is_between() { Ok(false) } else { Err(Violation::CutOff) };
            };
            let slot = slot as usize % slots;
            match self.area.revoke(slot) {
                Ok(()) => {}
                Err(error) if error == gnttab::ErrorKind::InUse => return Err(Violation::PageInUse),
                Err(_) => return Ok(false),
            }
            if self.assembler.slot(slot, &bytes)? {
                return Ok(true);
            }
        }
    }

    /// Makes a packet one slice; an empty one is to be dropped.
    fn lend(&mut self, shared: &Shared, verify_it: bool) -> Lent {
        let (counters, packet) = (&shared.counters, self.assembler.packet());
        counters.rx_slots.add(packet.slots);
        let mut lent = Lent {
            first: packet.first,
            slots: packet.slots,
            range: 0..0,
            checksum: Checksum::Unverified,
            segmentation: packet.segmentation,
            written: false,
        };
        if packet.failed {
            counters.rx_failed.add(1);
            return lent;
        }
        let area = &mut self.area;
        let start = packet.gather(area.granted(), |Move { from, len, to }| {
            // Both are pages of the packet or spare ones, which are private.
            if area.copy_within(from..from + len, to) {
                counters.rx_gathered_bytes.add(len);
            }
        });
        let range = start..start + packet.len;
        if packet.flags.contains(RxFlags::CHECKSUM_BLANK) {
            lent.checksum = Checksum::Blank;
            counters.rx_blank.add(1);
        } else if packet.flags.contains(RxFlags::DATA_VALIDATED) {
            lent.checksum = Checksum::Verified;
        } else if verify_it {
            match self.area.bytes(range.clone()).map(verify) {
                Some(Verdict::Good) => {
                    counters.rx_verified.add(1);
                    lent.checksum = Checksum::Verified;
                }
                Some(Verdict::Bad) => {
                    counters.rx_bad_checksum.add(1);
                    return lent;
                }
                _ => {}
            }
        }
        counters.rx_frames.add(1);
        counters.rx_bytes.add(packet.len);
        counters.rx_segmented.add(usize::from(packet.segmentation.is_some()));
        lent.range = range;
        lent
    }

    /// Gives the pages of the packet that was lent back, and says whether the back end is to be notified.
    fn give_back(&mut self) -> bool {
        let Some(lent) = self.lent.take() else { return false };
        if lent.written
            && let Some(bytes) = self.area.bytes_mut(lent.range)
        {
            bytes.fill(0);
        }
        let slots = self.area.granted();
        for slot in lent.first..lent.first + lent.slots {
            let slot = slot % slots;
            let request = RxRequest { id: slot as u16, reference: self.area.reference(slot).0 };
            // After a resume the page stays private, and the ring is not used any more. A corrupt ring takes nothing.
            if self.area.restore(slot).is_err() || self.ring.push(&request.encode()).is_err() {
                return false;
            }
        }
        self.ring.publish()
    }
}

/// A received frame, lent until it is dropped: this domain alone has access to it. One that is forgotten goes back at
/// the next call. To keep the data, copy them.
#[derive(Debug)]
pub struct Frame<'a> {
    receiver: &'a mut Receiver,
}

impl Frame<'_> {
    fn lent(&self) -> Option<(&Rx, &Lent)> {
        let rx = self.receiver.held.as_deref()?;
        Some((rx, rx.lent.as_ref()?))
    }

    /// The frame, from its Ethernet header on.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.lent().and_then(|(rx, lent)| rx.area.bytes(lent.range.clone())).unwrap_or(&[])
    }

    /// The frame, to be changed in place. It is zeroed before the pages go back to the back end, which can read them then.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes_mut_zeroed(true)
    }

    /// The same, and whether it is zeroed.
    pub(in crate::net) fn bytes_mut_zeroed(&mut self, zero: bool) -> &mut [u8] {
        let Some(rx) = self.receiver.held.as_mut() else { return &mut [] };
        let Some(lent) = rx.lent.as_mut() else { return &mut [] };
        lent.written |= zero;
        rx.area.bytes_mut(lent.range.clone()).unwrap_or(&mut [])
    }

    /// What is known of its checksum.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.lent().map_or(Checksum::Unverified, |(_, lent)| lent.checksum)
    }

    /// How it was put together, if it is one of several TCP segments.
    #[must_use]
    pub fn segmentation(&self) -> Option<Segmentation> {
        self.lent().and_then(|(_, lent)| lent.segmentation)
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        self.receiver.give_back();
        self.receiver.leave();
    }
}
