//! The transmit half: frames into buffers that are granted once, and their completions.
//!
//! A buffer is written again when every slot of it is answered. Completions are looked for before a frame is sent, and asked for
//! when a sender has to wait.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::task::{Context, Poll};

use super::config::{HALF_PAGE, RUN_PAGES};
use super::connection::{Live, Offer, Side};
use super::memory::{Tx, half_page};
use super::shared::{Handle, Shared};
use super::statistics::Counters;
use crate::net::Error;
use crate::net::protocol::checksum::{fill, find, make_blank};
use crate::net::protocol::{
    Extra, MAX_TX_BYTES, MIN_BYTES, PAGE, Segmentation, SegmentationKind, TxFlags, TxRequest, TxResponse, TxStatus,
    Violation,
};

/// Who writes the TCP or UDP checksum of a frame that is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TxChecksum {
    /// The sender has written it.
    #[default]
    Complete,
    /// The driver, or the back end: the field may hold anything. Frames that carry neither TCP nor UDP, and fragments, are
    /// sent as they are.
    Offload,
}

/// What is to be done with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// Its checksum.
    pub checksum: TxChecksum,
    /// How it is to be divided, if it is a large one. The checksum is to be [`TxChecksum::Offload`] then.
    pub segmentation: Option<Segmentation>,
}

/// The half of an interface that sends.
#[derive(Debug)]
pub struct Transmitter {
    shared: Arc<Shared>,
    /// Half pages, and slots of the ring, that only replies may use.
    reserve: usize,
    /// Checked out during a call.
    held: Option<Box<Tx>>,
}

impl Transmitter {
    pub(super) fn new(shared: Arc<Shared>, reserve: usize) -> Self {
        Self { shared, reserve, held: None }
    }

    /// A view of the interface.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Sends a frame of `len` bytes, which `write` writes; waits for a buffer, and for the link.
    ///
    /// The buffer may hold an earlier frame: all of it is to be written.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidLength`], [`Error::NoSegmentation`]; why the interface has ended.
    ///
    /// # Cancel safety
    ///
    /// The frame is sent when the future is ready, and not before.
    pub async fn send<T>(
        &mut self,
        len: usize,
        metadata: Metadata,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        poll_fn(|context| self.poll_room(context, len, metadata.segmentation.is_some(), false)).await?;
        self.try_send_as(false, len, metadata, write)
    }

    /// Sends a frame if there is a buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::Down`], and those of [`send`](Self::send).
    pub fn try_send<T>(
        &mut self,
        len: usize,
        metadata: Metadata,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        self.try_send_as(false, len, metadata, write)
    }

    /// Sends a reply to a frame that was received, with a buffer that may be one of those kept for replies.
    ///
    /// # Errors
    ///
    /// As [`try_send`](Self::try_send).
    pub fn try_reply<T>(
        &mut self,
        len: usize,
        metadata: Metadata,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        self.try_send_as(true, len, metadata, write)
    }

    /// Ready when a frame of `len` bytes can be sent, or replied with; else the task is woken when it can.
    pub(in crate::net) fn poll_room(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        segmented: bool,
        reply: bool,
    ) -> Poll<Result<(), Error>> {
        self.shared.register(Side::Transmit, context);
        self.call(|half| half.poll_ring(context, len, segmented, reply))?
    }

    /// Returns true if a frame of `len` bytes can be sent now.
    #[cfg(feature = "smoltcp")]
    pub(in crate::net) fn has_room(&mut self, len: usize, segmented: bool, reply: bool) -> Result<bool, Error> {
        self.call(|half| half.find_room(len, segmented, reply))?
    }

    /// Makes a call with the ring checked out.
    fn call<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> Result<T, Error> {
        self.held = self.shared.check_out()?;
        let output = call(self);
        if let Some(tx) = self.held.take() {
            self.shared.check_in(tx);
        }
        Ok(output)
    }

    fn poll_ring(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        segmented: bool,
        reply: bool,
    ) -> Poll<Result<(), Error>> {
        let mut waited = false;
        loop {
            if self.find_room(len, segmented, reply)? {
                return Poll::Ready(Ok(()));
            }
            let Some(tx) = &mut self.held else { return Poll::Pending };
            if !waited {
                self.shared.counters.tx_full.add(1);
                waited = true;
            }
            if let Some(live) = &mut tx.live {
                live.poll_wait(context);
            }
            match tx.ring.request_notification(1) {
                Ok(false) => return Poll::Pending,
                Ok(true) => {}
                Err(_) => return Poll::Ready(Err(self.fail(Violation::Index))),
            }
        }
    }

    fn find_room(&mut self, len: usize, segmented: bool, reply: bool) -> Result<bool, Error> {
        self.reap()?;
        let reserve = if reply { 0 } else { self.reserve };
        Ok(self.held.as_ref().is_some_and(|tx| tx.has_room(len, segmented, reserve)))
    }

    /// Sends a frame for a network stack, which cannot be told of errors: it is dropped and counted then.
    #[cfg(any(feature = "smoltcp", feature = "embassy-net-driver"))]
    pub(in crate::net) fn send_or_drop<T>(&mut self, reply: bool, len: usize, write: impl FnOnce(&mut [u8]) -> T) -> T {
        let metadata = Metadata { checksum: TxChecksum::Offload, segmentation: None };
        let mut write = Some(write);
        let sent = self.try_send_as(reply, len, metadata, |buffer| write.take().map(|write| write(buffer)));
        if let Ok(Some(output)) = sent {
            return output;
        }
        self.shared.counters.tx_dropped.add(1);
        match write {
            // The stack's closure runs exactly once, on a buffer that goes nowhere.
            Some(write) => write(&mut alloc::vec![0; len]),
            None => unreachable!("without segmentation no error follows the write"),
        }
    }

    fn try_send_as<T>(
        &mut self,
        reply: bool,
        len: usize,
        metadata: Metadata,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        if !(MIN_BYTES..=MAX_TX_BYTES).contains(&len) {
            return Err(Error::InvalidLength(len));
        }
        self.call(|half| half.send_now(reply, len, metadata, write))?
    }

    fn send_now<T>(
        &mut self,
        reply: bool,
        len: usize,
        metadata: Metadata,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        let room = self.find_room(len, metadata.segmentation.is_some(), reply)?;
        let Some(tx) = &mut self.held else { return Err(Error::Down) };
        if !room {
            self.shared.counters.tx_full.add(1);
            return Err(if len > HALF_PAGE && tx.run_slots.is_empty() {
                Error::InvalidLength(len)
            } else {
                Error::Full
            });
        }
        let offer = tx.live.as_ref().map(|live| live.connection.offer).unwrap_or_default();
        let output = tx.send(offer, len, metadata, &self.shared.counters, write)?;
        if tx.ring.publish() {
            self.shared.notify(Side::Transmit);
        }
        Ok(output)
    }

    /// Takes all completions.
    fn reap(&mut self) -> Result<(), Error> {
        let Some(tx) = &mut self.held else { return Ok(()) };
        match tx.reap(&self.shared.counters) {
            Ok(found) => {
                if found {
                    tx.live.iter().for_each(Live::found);
                }
                Ok(())
            }
            Err(violation) => Err(self.fail(violation)),
        }
    }

    #[cold]
    fn fail(&mut self, violation: Violation) -> Error {
        self.shared.fail(violation);
        Error::Violation(violation)
    }
}

impl Tx {
    /// Half pages, whose ids are below those of the runs' slots.
    fn half_pages(&self) -> usize {
        self.in_flight.len() - self.run_slots.len() * RUN_PAGES
    }

    fn has_room(&self, len: usize, segmented: bool, reserve: usize) -> bool {
        let slots = if len <= HALF_PAGE { 1 } else { len.div_ceil(PAGE) } + usize::from(segmented);
        let buffer = if len <= HALF_PAGE { self.halves.len() > reserve } else { !self.runs.is_empty() };
        buffer && self.ring.room() as usize >= slots + reserve
    }

    /// Takes all completions; says whether there were any.
    fn reap(&mut self, counters: &Counters) -> Result<bool, Violation> {
        let mut found = false;
        while let Some((_, bytes)) = self.ring.next_response().map_err(|_| Violation::Index)? {
            found = true;
            let response = TxResponse::decode(&bytes).ok_or(Violation::UnknownStatus)?;
            let id = response.id;
            if response.status == TxStatus::Null {
                // Its id means nothing.
                self.extras = self.extras.checked_sub(1).ok_or(Violation::NotInFlight(id))?;
                continue;
            }
            counters.tx_failed.add(usize::from(response.status != TxStatus::Okay));
            let in_flight = self.in_flight.get_mut(usize::from(id)).filter(|in_flight| **in_flight);
            *in_flight.ok_or(Violation::NotInFlight(id))? = false;
            match usize::from(id).checked_sub(self.half_pages()) {
                None => self.halves.push(id),
                Some(slot) => {
                    let run = slot / RUN_PAGES;
                    self.run_slots[run] -= 1;
                    if self.run_slots[run] == 0 {
                        self.runs.push(run as u16);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Sends a frame, for which there is room.
    fn send<T>(
        &mut self,
        offer: Offer,
        len: usize,
        metadata: Metadata,
        counters: &Counters,
        write: impl FnOnce(&mut [u8]) -> T,
    ) -> Result<T, Error> {
        let is_half = len <= HALF_PAGE;
        let slots = if is_half { 1 } else { len.div_ceil(PAGE) };
        if slots > 1 && !offer.scatter {
            return Err(Error::InvalidLength(len));
        }
        if metadata.segmentation.is_some_and(|segmentation| {
            let kind = usize::from(segmentation.kind == SegmentationKind::TcpV6);
            !offer.segmentation[kind] || metadata.checksum == TxChecksum::Complete
        }) {
            return Err(Error::NoSegmentation);
        }
        let (first_id, page, offset, start) = if is_half {
            let id = *self.halves.last().ok_or(Error::Full)?;
            let (page, offset, start) = half_page(id);
            (id, page, offset, start)
        } else {
            let run = usize::from(*self.runs.last().ok_or(Error::Full)?);
            let page = self.half_pages() / 2 + run * RUN_PAGES;
            ((self.half_pages() + run * RUN_PAGES) as u16, page, 0, page * PAGE)
        };
        let frame = &mut self.pool.bytes_mut()[start..start + len];
        let output = write(frame);
        let mut flags = TxFlags::empty();
        if metadata.checksum == TxChecksum::Offload
            && let Some(segment) = find(frame)
        {
            if !segment.is_tagged && (!segment.is_ipv6 || offer.ipv6_checksum) {
                make_blank(frame, &segment);
                flags = TxFlags::CHECKSUM_BLANK | TxFlags::DATA_VALIDATED;
                counters.tx_blank.add(1);
            } else {
                fill(frame, &segment);
                counters.tx_software_checksums.add(1);
            }
        }
        if metadata.segmentation.is_some() && flags.is_empty() {
            return Err(Error::NoSegmentation);
        }
        // The buffer is the back end's from here on.
        if is_half {
            self.halves.pop();
        } else if let Some(run) = self.runs.pop() {
            self.run_slots[usize::from(run)] = slots as u8;
        }
        for slot in 0..slots {
            let (id, here) = (first_id + slot as u16, (len - slot * PAGE).min(PAGE));
            let mut slot_flags = if slot == 0 { flags } else { TxFlags::empty() };
            slot_flags.set(TxFlags::MORE_DATA, slot + 1 < slots);
            slot_flags.set(TxFlags::EXTRA_INFO, slot == 0 && metadata.segmentation.is_some());
            let request = TxRequest {
                reference: self.references[page + slot].0,
                offset: offset as u16,
                flags: slot_flags,
                id,
                size: if slot == 0 { len as u16 } else { here as u16 },
            };
            self.in_flight[usize::from(id)] = true;
            self.ring.push(&request.encode())?;
            if let Some(segmentation) = metadata.segmentation.filter(|_| slot == 0) {
                let mut extra = [0; 12];
                extra[..8].copy_from_slice(&Extra::encode(segmentation));
                self.ring.push(&extra)?;
                self.extras += 1;
                counters.tx_segmented.add(1);
            }
        }
        counters.tx_frames.add(1);
        counters.tx_bytes.add(len);
        Ok(output)
    }
}
