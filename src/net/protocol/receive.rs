//! Slots of the receive ring, and the packets that they make up.
//!
//! The page of a slot is that of its number in an area of consecutive pages, so the pieces of a packet lie in memory in
//! their order. Three things make them apart: pages of extra-info slots, pieces that do not fill their page, and the end of
//! the area. [`Packet::gather`] tells which bytes to copy so that the packet is one slice.

use core::fmt;

use bitflags::bitflags;
use heapless::Vec;

use super::{Extra, MAX_EXTRAS, MAX_RX_SLOTS, MIN_BYTES, PAGE, Segmentation};

bitflags! {
    /// Flags of a received slot. Bits 0 and 1 mean the opposite on the transmit ring.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct RxFlags: u16 {
        /// The data are known to be good.
        #[doc(alias = "NETRXF_data_validated")]
        const DATA_VALIDATED = 1;
        /// The TCP or UDP checksum is blank: its field holds the sum of the pseudo-header.
        #[doc(alias = "NETRXF_csum_blank")]
        const CHECKSUM_BLANK = 2;
        /// A further slot of the packet follows.
        #[doc(alias = "NETRXF_more_data")]
        const MORE_DATA = 4;
        /// An extra-info slot follows.
        #[doc(alias = "NETRXF_extra_info")]
        const EXTRA_INFO = 8;
        /// A form of segmentation that is not negotiated.
        #[doc(alias = "NETRXF_gso_prefix")]
        const GSO_PREFIX = 16;
    }
}

/// A request of the receive ring: 8 bytes.
#[doc(alias = "netif_rx_request")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxRequest {
    /// Comes back with the response.
    pub id: u16,
    /// The grant of the page.
    pub reference: u32,
}

impl RxRequest {
    /// The bytes of the slot. The padding is zero.
    #[must_use]
    pub const fn encode(&self) -> [u8; 8] {
        let (id, reference) = (self.id.to_le_bytes(), self.reference.to_le_bytes());
        [id[0], id[1], 0, 0, reference[0], reference[1], reference[2], reference[3]]
    }

    /// Reads a slot.
    #[must_use]
    pub const fn decode(slot: &[u8; 8]) -> Self {
        Self {
            id: u16::from_le_bytes([slot[0], slot[1]]),
            reference: u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]),
        }
    }
}

/// A response of the receive ring: 8 bytes.
#[doc(alias = "netif_rx_response")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RxResponse {
    /// That of the request.
    pub id: u16,
    /// Where in the page the data begin.
    pub offset: u16,
    /// The packet's flags in its first slot; later only [`RxFlags::MORE_DATA`] counts.
    pub flags: RxFlags,
    /// The bytes of this piece, or an error, which is negative.
    pub status: i16,
}

impl RxResponse {
    /// Reads a response, with flags that are not known.
    #[must_use]
    pub const fn decode(slot: &[u8; 8]) -> Self {
        Self {
            id: u16::from_le_bytes([slot[0], slot[1]]),
            offset: u16::from_le_bytes([slot[2], slot[3]]),
            flags: RxFlags::from_bits_retain(u16::from_le_bytes([slot[4], slot[5]])),
            status: i16::from_le_bytes([slot[6], slot[7]]),
        }
    }

    /// The bytes of the response.
    #[must_use]
    pub const fn encode(&self) -> [u8; 8] {
        let [id, offset] = [self.id.to_le_bytes(), self.offset.to_le_bytes()];
        let [flags, status] = [self.flags.bits().to_le_bytes(), self.status.to_le_bytes()];
        [id[0], id[1], offset[0], offset[1], flags[0], flags[1], status[0], status[1]]
    }
}

/// What a back end sent that the protocol does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Violation {
    /// An index of a ring that is impossible.
    Index,
    /// A response on the receive ring to another request than that of its slot: slot and id.
    WrongId(u16, u16),
    /// A piece that does not lie in its page: offset and length.
    BeyondPage(u16, i16),
    /// A packet of more slots, or of more bytes, than there can be.
    TooLarge,
    /// A packet whose last slot is missing.
    CutOff,
    /// An extra-info slot of this type that is unknown, doubled or wrong.
    BadExtra(u8),
    /// A transmit response to a request that is not in flight: invented, or answered before.
    NotInFlight(u16),
    /// A transmit response with an unknown status.
    UnknownStatus,
    /// A page of a response that the back end still has in use.
    PageInUse,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index => f.write_str("impossible ring index"),
            Self::WrongId(slot, id) => write!(f, "receive response with id {id} in slot {slot}"),
            Self::BeyondPage(offset, len) => write!(f, "piece of {len} bytes at offset {offset} crosses its page"),
            Self::TooLarge => f.write_str("packet with too many slots or bytes"),
            Self::CutOff => f.write_str("packet whose last slot is missing"),
            Self::BadExtra(kind) => write!(f, "invalid extra-info slot of type {kind}"),
            Self::NotInFlight(id) => write!(f, "transmit response with id {id}, which is not in flight"),
            Self::UnknownStatus => f.write_str("transmit response with an unknown status"),
            Self::PageInUse => f.write_str("page of a response still in use by the back end"),
        }
    }
}

impl core::error::Error for Violation {}

/// A piece of a packet: where its bytes lie in the area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The offset of its first byte.
    pub start: usize,
    /// How many there are, not zero.
    pub len: usize,
}

/// Bytes to be copied within the area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Move {
    /// The offset of the first byte.
    pub from: usize,
    /// How many.
    pub len: usize,
    /// The offset they go to.
    pub to: usize,
}

/// A packet, of which all slots are there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Its first slot.
    pub first: usize,
    /// How many slots it has, extra-info slots among them.
    pub slots: usize,
    /// The flags of its first slot.
    pub flags: RxFlags,
    /// How it was put together, if it is a large one.
    pub segmentation: Option<Segmentation>,
    /// A piece failed, is empty, or the packet has no Ethernet header: it is dropped.
    pub failed: bool,
    /// All bytes.
    pub len: usize,
    pieces: Vec<Piece, MAX_RX_SLOTS>,
}

impl Packet {
    const fn new() -> Self {
        let (first, slots, flags) = (0, 0, RxFlags::empty());
        Self { first, slots, flags, segmentation: None, failed: false, len: 0, pieces: Vec::new() }
    }

    /// Its pieces, in order. None has failed if the packet has not.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Has the bytes of a packet that has not failed copied until they are one slice, and returns its offset in an area of
    /// this many slots with room for the largest packet behind them. Each copy may overlap itself, and they are to be made in this order.
    ///
    /// Only pages of the packet's slots and those behind the last slot are written.
    pub fn gather(&self, area_slots: usize, mut copy: impl FnMut(Move)) -> usize {
        let pieces = &*self.pieces;
        let Some(first) = pieces.first() else { return 0 };
        // Most packets have one piece, or pieces that follow each other.
        if pieces.windows(2).all(|pair| pair[0].start + pair[0].len == pair[1].start) {
            return first.start;
        }
        // Pieces in front of the end of the area, and behind its beginning.
        let head = pieces.iter().take_while(|piece| piece.start >= first.start).count();
        let (head, tail) = pieces.split_at(head);
        let bytes = |pieces: &[Piece]| pieces.iter().map(|piece| piece.len).sum::<usize>();
        if let Some(second) = tail.first() {
            // Slots of extra infos at the beginning of the area leave room in front of the tail.
            let before_area = self.first + self.slots - area_slots;
            let room = if second.start / PAGE < before_area { second.start } else { 0 };
            if bytes(head) <= room && bytes(head) < bytes(tail) {
                let start = gather_run(tail, 0, &mut copy);
                let mut to = start;
                for piece in head.iter().rev() {
                    to -= piece.len;
                    copy(Move { from: piece.start, len: piece.len, to });
                }
                return to;
            }
        }
        // The longest of those in front of the end stays. If there is a tail, that is behind all of them.
        let anchor = (0..head.len()).max_by_key(|&index| head[index].len).unwrap_or(0);
        let start = gather_run(head, anchor, &mut copy);
        let mut to = start + bytes(head);
        for piece in tail {
            copy(Move { from: piece.start, len: piece.len, to });
            to += piece.len;
        }
        start
    }
}

/// Has pieces in ascending order moved to one of them, and returns where the first is then.
///
/// Those in front of the anchor move up, the last first, and those behind it move down, the first first: so each goes
/// to where nothing is that has not moved yet.
fn gather_run(pieces: &[Piece], anchor: usize, copy: &mut impl FnMut(Move)) -> usize {
    let (front, rest) = pieces.split_at(anchor);
    let Some((anchor, behind)) = rest.split_first() else { return 0 };
    let mut to = anchor.start + anchor.len;
    for piece in behind {
        if piece.start != to {
            copy(Move { from: piece.start, len: piece.len, to });
        }
        to += piece.len;
    }
    let mut start = anchor.start;
    for piece in front.iter().rev() {
        start -= piece.len;
        if piece.start != start {
            copy(Move { from: piece.start, len: piece.len, to: start });
        }
    }
    start
}

/// What the next slot of a packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expect {
    First,
    Extra,
    Data,
}

/// Puts packets together, slot by slot.
#[derive(Debug)]
pub struct Assembler {
    /// Slots of the area: a power of two.
    slots: usize,
    /// The most bytes of a packet.
    most: usize,
    expect: Expect,
    /// More data follow the extra infos.
    more: bool,
    /// Extra infos so far.
    extras: Vec<Extra, MAX_EXTRAS>,
    packet: Packet,
}

impl Assembler {
    /// Puts packets of up to `most` bytes together in an area of this many slots, which are a power of two and more than a packet
    /// can have.
    ///
    /// # Panics
    ///
    /// If they are not.
    #[must_use]
    pub const fn new(slots: usize, most: usize) -> Self {
        assert!(slots.is_power_of_two() && slots > MAX_RX_SLOTS + MAX_EXTRAS, "a packet fits into the area");
        Self { slots, most, expect: Expect::First, more: false, extras: Vec::new(), packet: Packet::new() }
    }

    /// The packet whose last slot was taken last.
    #[must_use]
    pub const fn packet(&self) -> &Packet {
        &self.packet
    }

    /// Returns true between packets: no further slot is expected.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.expect == Expect::First
    }

    /// Takes the slot with this number: the number of the request it answers. Returns true if it is the last of its
    /// [`packet`](Self::packet).
    ///
    /// # Errors
    ///
    /// The connection is to be closed after each.
    pub fn slot(&mut self, slot: usize, bytes: &[u8; 8]) -> Result<bool, Violation> {
        let slot = slot % self.slots;
        if self.expect == Expect::First {
            let packet = &mut self.packet;
            (packet.first, packet.slots, packet.len) = (slot, 0, 0);
            (packet.segmentation, packet.failed) = (None, false);
            packet.pieces.clear();
            self.extras.clear();
        }
        self.packet.slots += 1;
        if self.expect == Expect::Extra {
            self.extra(bytes)?
        } else {
            self.data(slot, RxResponse::decode(bytes))?
        }
        if self.expect != Expect::First {
            return Ok(false);
        }
        self.packet.failed |= self.packet.len < MIN_BYTES;
        Ok(true)
    }

    fn data(&mut self, slot: usize, response: RxResponse) -> Result<(), Violation> {
        if usize::from(response.id) != slot {
            return Err(Violation::WrongId(slot as u16, response.id));
        }
        match usize::try_from(response.status) {
            // An error of this piece; its offset means nothing.
            Err(_) | Ok(0) => self.packet.failed = true,
            Ok(len) => {
                let offset = usize::from(response.offset);
                if len > PAGE || offset > PAGE - len {
                    return Err(Violation::BeyondPage(response.offset, response.status));
                }
                self.packet.len += len;
                let piece = Piece { start: slot * PAGE + offset, len };
                if self.packet.len > self.most || self.packet.pieces.push(piece).is_err() {
                    return Err(Violation::TooLarge);
                }
            }
        }
        if self.packet.slots > MAX_RX_SLOTS + MAX_EXTRAS {
            return Err(Violation::TooLarge);
        }
        let more = response.flags.contains(RxFlags::MORE_DATA);
        if self.expect == Expect::First {
            self.packet.flags = response.flags;
            self.packet.failed |= response.flags.contains(RxFlags::GSO_PREFIX);
            self.more = more;
            if response.flags.contains(RxFlags::EXTRA_INFO) {
                self.expect = Expect::Extra;
                return Ok(());
            }
        }
        self.expect = if more { Expect::Data } else { Expect::First };
        Ok(())
    }

    fn extra(&mut self, bytes: &[u8; 8]) -> Result<(), Violation> {
        let bad = Violation::BadExtra(bytes[0]);
        let (extra, another) = Extra::decode(bytes).ok_or(bad)?;
        let same = |other: &Extra| core::mem::discriminant(other) == core::mem::discriminant(&extra);
        if self.extras.iter().any(same) || self.extras.push(extra).is_err() {
            return Err(bad);
        }
        if let Extra::Segmentation(segmentation) = extra {
            self.packet.segmentation = Some(segmentation);
        }
        self.expect = match (another, self.more) {
            (true, _) => Expect::Extra,
            (false, true) => Expect::Data,
            (false, false) => Expect::First,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
