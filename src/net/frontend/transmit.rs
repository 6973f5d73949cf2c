//! The transmit half: frames into buffers that are granted once, and their completions.
//!
//! A buffer is written again when every slot of it is answered. Completions are looked for before a frame is sent, and asked for
//! when a sender has to wait.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::poll_fn;
use core::task::{Context, Poll};

use super::config::{HALF_PAGE, RUN_PAGES};
use super::connection::{Connection, Offer, Side};
use super::memory::{Tx, half_page};
use super::receive::WaitSlot;
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
    epoch: u32,
    /// Half pages, and slots of the ring, that only replies may use.
    reserve: usize,
    held: Option<(Box<Tx>, Arc<Connection>)>,
    wait: WaitSlot,
}

impl Transmitter {
    pub(super) fn new(shared: Arc<Shared>, reserve: usize) -> Self {
        let epoch = shared.epoch().wrapping_sub(1);
        Self { shared, epoch, reserve, held: None, wait: WaitSlot::default() }
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
        self.sync()?;
        self.shared.register(Side::Transmit, context);
        let mut waited = false;
        loop {
            if self.has_room(len, segmented, reply)? {
                return Poll::Ready(Ok(()));
            }
            let Some((tx, _)) = &mut self.held else { return Poll::Pending };
            if !waited {
                self.shared.counters.tx_full.add(1);
                waited = true;
            }
            if let Some(wait) = &mut self.wait.0
                && wait.as_mut().poll(context).is_ready()
            {
                self.wait.0 = None;
            }
            match tx.ring.request_notification(1) {
                Ok(false) => return Poll::Pending,
                Ok(true) => {}
                Err(_) => return Poll::Ready(Err(self.fail(Violation::Index))),
            }
        }
    }

    /// Returns true if a frame of `len` bytes can be sent now.
    pub(in crate::net) fn has_room(&mut self, len: usize, segmented: bool, reply: bool) -> Result<bool, Error> {
        self.sync()?;
        self.reap()?;
        let reserve = if reply { 0 } else { self.reserve };
        Ok(self.held.as_ref().is_some_and(|(tx, _)| tx.has_room(len, segmented, reserve)))
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
        if !self.has_room(len, metadata.segmentation.is_some(), reply)? {
            let Some((tx, _)) = &self.held else { return Err(Error::Down) };
            self.shared.counters.tx_full.add(1);
            return Err(if len > HALF_PAGE && tx.run_slots.is_empty() {
                Error::InvalidLength(len)
            } else {
                Error::Full
            });
        }
        let Some((tx, connection)) = &mut self.held else { return Err(Error::Down) };
        let output = tx.send(connection.offer, len, metadata, &self.shared.counters, write)?;
        if tx.ring.publish() {
            self.shared.notify(Side::Transmit);
        }
        Ok(output)
    }

    fn sync(&mut self) -> Result<(), Error> {
        let epoch = self.shared.epoch();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.wait.0 = None;
            self.shared.exchange(&mut self.held, false);
            if let Some((_, connection)) = &self.held {
                self.wait.0 = Some(connection.wait(Side::Transmit, &self.shared));
            } else if let Some(error) = self.shared.ended() {
                self.epoch = epoch.wrapping_sub(1);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes all completions.
    fn reap(&mut self) -> Result<(), Error> {
        let Some((tx, connection)) = &mut self.held else { return Ok(()) };
        match tx.reap(&self.shared.counters) {
            Ok(found) => {
                if found {
                    connection.found(Side::Transmit);
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

impl Drop for Transmitter {
    fn drop(&mut self) {
        self.shared.exchange(&mut self.held, true);
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
