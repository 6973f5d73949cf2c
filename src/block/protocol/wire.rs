//! Ring entries: requests, responses and the segments of an indirect page (`struct blkif_request` and its relatives).
//!
//! Requests are encoded into zeroed bytes, so padding tells a peer nothing. A request that is decoded comes from a private copy of
//! a ring entry, so each field is read once.

use core::fmt;

/// Bytes of a request (`x86_64-abi`).
pub const REQUEST_SIZE: usize = 112;
/// Bytes of a response (`x86_64-abi`).
pub const RESPONSE_SIZE: usize = 16;
/// Segments that a request itself holds at most.
#[doc(alias = "BLKIF_MAX_SEGMENTS_PER_REQUEST")]
pub const SEGMENTS: usize = 11;
/// Pages of segments that an indirect request names at most.
#[doc(alias = "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST")]
pub const INDIRECT_PAGES: usize = 8;
/// Segments that one such page holds.
pub const INDIRECT_SEGMENTS: usize = 512;

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Operation {
    /// Read sectors.
    #[doc(alias = "BLKIF_OP_READ")]
    Read = 0,
    /// Write sectors.
    #[doc(alias = "BLKIF_OP_WRITE")]
    Write = 1,
    /// Complete all earlier writes, and flush, before this write and all later ones.
    #[doc(alias = "BLKIF_OP_WRITE_BARRIER")]
    Barrier = 2,
    /// Make completed writes durable.
    #[doc(alias = "BLKIF_OP_FLUSH_DISKCACHE")]
    Flush = 3,
    /// Give up the contents of sectors.
    #[doc(alias = "BLKIF_OP_DISCARD")]
    Discard = 5,
}

/// The operation of an indirect request, whose own operation is within.
#[doc(alias = "BLKIF_OP_INDIRECT")]
const INDIRECT: u8 = 6;

impl Operation {
    /// The operation with a number of the header.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Read),
            1 => Some(Self::Write),
            2 => Some(Self::Barrier),
            3 => Some(Self::Flush),
            5 => Some(Self::Discard),
            _ => None,
        }
    }

    /// Whether the request changes the disk.
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Barrier | Self::Discard)
    }
}

/// A piece of a page: sectors of 512 bytes from `first` to `last`, both included.
#[doc(alias = "blkif_request_segment")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Segment {
    /// The grant reference of the page.
    pub reference: u32,
    /// The first sector within the page, 0 to 7.
    pub first: u8,
    /// The last sector within the page, 0 to 7.
    pub last: u8,
}

impl Segment {
    /// The segment as it lies in a request and in an indirect page.
    #[must_use]
    pub const fn encode(self) -> [u8; 8] {
        let [a, b, c, d] = self.reference.to_le_bytes();
        [a, b, c, d, self.first, self.last, 0, 0]
    }

    /// The segment in eight bytes.
    ///
    /// # Errors
    ///
    /// [`Malformed::Segment`] if its sectors are not within a page, in order.
    pub const fn decode(bytes: [u8; 8]) -> Result<Self, Malformed> {
        let [a, b, c, d, first, last, ..] = bytes;
        if first > last || last > 7 {
            return Err(Malformed::Segment);
        }
        Ok(Self { reference: u32::from_le_bytes([a, b, c, d]), first, last })
    }

    /// Sectors of the segment, one to eight.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.last as u64 - self.first as u64 + 1
    }
}

/// A request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What it asks for.
    pub operation: Operation,
    /// The device's number in xenstore, of which 16 bits fit.
    pub handle: u16,
    /// Returned in the response.
    pub id: u64,
    /// The first sector, in units of 512 bytes.
    pub sector: u64,
    /// The data.
    pub payload: Payload,
}

/// The data of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload {
    /// Segments in the request itself; a flush has none.
    Direct {
        /// The segments, of which the first `count` count.
        segments: [Segment; SEGMENTS],
        /// Segments in use.
        count: u8,
    },
    /// Segments in granted pages of [`INDIRECT_SEGMENTS`] each.
    Indirect {
        /// The grant references of these pages.
        references: [u32; INDIRECT_PAGES],
        /// Segments in all.
        count: u16,
    },
    /// A discard of sectors.
    Discard {
        /// Sectors of 512 bytes.
        sectors: u64,
        /// Whether the contents are to become unreadable.
        secure: bool,
    },
}

impl Payload {
    /// No data, as a flush has.
    pub const NONE: Self = Self::Direct { segments: [Segment { reference: 0, first: 0, last: 0 }; SEGMENTS], count: 0 };

    /// Segments in the request itself, at most [`SEGMENTS`]. More are left out.
    #[must_use]
    pub fn direct(from: impl IntoIterator<Item = Segment>) -> Self {
        let (mut segments, mut count) = ([Segment::default(); SEGMENTS], 0);
        for (place, segment) in segments.iter_mut().zip(from) {
            *place = segment;
            count += 1;
        }
        Self::Direct { segments, count }
    }
}

/// A request that no back end carries out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// An operation that the header does not define, or that may not be indirect.
    Operation(u8),
    /// More segments than a request may have, or none where it needs some.
    Count(u16),
    /// Sectors of a segment that are not in order, or not within a page.
    Segment,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation(number) => write!(f, "unknown operation {number}"),
            Self::Count(count) => write!(f, "invalid number of segments ({count})"),
            Self::Segment => f.write_str("invalid sectors in a segment"),
        }
    }
}

impl core::error::Error for Malformed {}

/// Writes bytes at a place.
fn put<const N: usize>(entry: &mut [u8; REQUEST_SIZE], at: usize, bytes: [u8; N]) {
    entry[at..at + N].copy_from_slice(&bytes);
}

/// Reads bytes at a place, which is a constant within the entry.
fn get<const N: usize>(entry: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&entry[at..at + N]);
    bytes
}

impl Request {
    /// The request as it lies in the ring. Bytes without a meaning are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_SIZE] {
        let mut entry = [0; REQUEST_SIZE];
        put(&mut entry, 0, [self.operation as u8]);
        put(&mut entry, 8, self.id.to_le_bytes());
        put(&mut entry, 16, self.sector.to_le_bytes());
        match &self.payload {
            Payload::Direct { segments, count } => {
                put(&mut entry, 1, [*count]);
                put(&mut entry, 2, self.handle.to_le_bytes());
                for (index, segment) in segments.iter().take(usize::from(*count)).enumerate() {
                    put(&mut entry, 24 + 8 * index, segment.encode());
                }
            }
            Payload::Indirect { references, count } => {
                put(&mut entry, 0, [INDIRECT, self.operation as u8]);
                put(&mut entry, 2, count.to_le_bytes());
                put(&mut entry, 24, self.handle.to_le_bytes());
                let pages = usize::from(*count).div_ceil(INDIRECT_SEGMENTS);
                for (index, reference) in references.iter().take(pages).enumerate() {
                    put(&mut entry, 28 + 4 * index, reference.to_le_bytes());
                }
            }
            Payload::Discard { sectors, secure } => {
                put(&mut entry, 1, [u8::from(*secure)]);
                put(&mut entry, 2, self.handle.to_le_bytes());
                put(&mut entry, 24, sectors.to_le_bytes());
            }
        }
        entry
    }

    /// The request in a private copy of a ring entry, for a back end that takes up to `most_indirect` indirect segments.
    ///
    /// # Errors
    ///
    /// [`Malformed`], with which the request is answered by an error.
    pub fn decode(entry: &[u8; REQUEST_SIZE], most_indirect: u16) -> Result<Self, Malformed> {
        let [number, second] = get(entry, 0);
        let (id, sector) = (Self::id_of(entry), u64::from_le_bytes(get(entry, 16)));
        let handle = u16::from_le_bytes(get(entry, if number == INDIRECT { 24 } else { 2 }));
        if number == INDIRECT {
            let count = u16::from_le_bytes(get(entry, 2));
            let inner = Operation::from_number(second);
            let Some(operation @ (Operation::Read | Operation::Write)) = inner else {
                return Err(Malformed::Operation(second));
            };
            if count == 0 || count > most_indirect || usize::from(count) > INDIRECT_PAGES * INDIRECT_SEGMENTS {
                return Err(Malformed::Count(count));
            }
            let references = core::array::from_fn(|index| u32::from_le_bytes(get(entry, 28 + 4 * index)));
            return Ok(Self { operation, handle, id, sector, payload: Payload::Indirect { references, count } });
        }
        let operation = Operation::from_number(number).ok_or(Malformed::Operation(number))?;
        let payload = if operation == Operation::Discard {
            Payload::Discard { sectors: u64::from_le_bytes(get(entry, 24)), secure: second & 1 != 0 }
        } else {
            let needs_data = matches!(operation, Operation::Read | Operation::Write);
            if usize::from(second) > SEGMENTS || needs_data && second == 0 {
                return Err(Malformed::Count(u16::from(second)));
            }
            let mut segments = [Segment::default(); SEGMENTS];
            for (index, segment) in segments.iter_mut().take(usize::from(second)).enumerate() {
                *segment = Segment::decode(get(entry, 24 + 8 * index))?;
            }
            Payload::Direct { segments, count: second }
        };
        Ok(Self { operation, handle, id, sector, payload })
    }

    /// The id in an entry, whatever else it holds.
    #[must_use]
    pub fn id_of(entry: &[u8; REQUEST_SIZE]) -> u64 {
        u64::from_le_bytes(get(entry, 8))
    }

    /// The number of the operation that a response to an entry carries, whatever else it holds: of an indirect request the inner
    /// one.
    #[must_use]
    pub fn operation_of(entry: &[u8; REQUEST_SIZE]) -> u8 {
        if entry[0] == INDIRECT { entry[1] } else { entry[0] }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It was done.
    #[doc(alias = "BLKIF_RSP_OKAY")]
    Okay,
    /// It failed, perhaps after a part of it was done. So is every status that the header does not define.
    #[doc(alias = "BLKIF_RSP_ERROR")]
    Error,
    /// The back end does not carry out this operation.
    #[doc(alias = "BLKIF_RSP_EOPNOTSUPP")]
    Unsupported,
}

/// A response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The number of the request's operation.
    pub operation: u8,
    /// How it ended.
    pub status: Status,
}

impl Response {
    /// The response as it lies in the ring, without a byte that is not zero and has no meaning.
    #[must_use]
    pub fn encode(&self) -> [u8; RESPONSE_SIZE] {
        let status: i16 = match self.status {
            Status::Okay => 0,
            Status::Error => -1,
            Status::Unsupported => -2,
        };
        let mut entry = [0; RESPONSE_SIZE];
        entry[..8].copy_from_slice(&self.id.to_le_bytes());
        entry[8] = self.operation;
        entry[10..12].copy_from_slice(&status.to_le_bytes());
        entry
    }

    /// The response in a private copy of a ring entry. Any bytes are one.
    #[must_use]
    pub fn decode(entry: &[u8; RESPONSE_SIZE]) -> Self {
        let status = match i16::from_le_bytes(get(entry, 10)) {
            0 => Status::Okay,
            -2 => Status::Unsupported,
            _ => Status::Error,
        };
        Self { id: u64::from_le_bytes(get(entry, 0)), operation: entry[8], status }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment() -> impl Strategy<Value = Segment> {
        (any::<u32>(), 0..8u8, 0..8u8).prop_map(|(reference, a, b)| Segment {
            reference,
            first: a.min(b),
            last: a.max(b),
        })
    }

    fn request() -> impl Strategy<Value = Request> {
        let data = prop_oneof![Just(Operation::Read), Just(Operation::Write), Just(Operation::Barrier)];
        let direct = (data, prop::collection::vec(segment(), 1..=SEGMENTS))
            .prop_map(|(operation, segments)| (operation, Payload::direct(segments)));
        let indirect = (any::<bool>(), 1..=4096u16, any::<[u32; 8]>()).prop_map(|(writes, count, mut references)| {
            references[usize::from(count).div_ceil(INDIRECT_SEGMENTS)..].fill(0);
            (if writes { Operation::Write } else { Operation::Read }, Payload::Indirect { references, count })
        });
        let discard = (any::<u64>(), any::<bool>())
            .prop_map(|(sectors, secure)| (Operation::Discard, Payload::Discard { sectors, secure }));
        let flush = Just((Operation::Flush, Payload::NONE));
        let what = prop_oneof![direct, indirect, discard, flush];
        (what, any::<u16>(), any::<u64>(), any::<u64>())
            .prop_map(|((operation, payload), handle, id, sector)| Request { operation, handle, id, sector, payload })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 8 } else { 512 }, ..Default::default() })]

        #[test]
        fn encoded_request_decodes_to_itself(request in request()) {
            let entry = request.encode();
            prop_assert_eq!(Request::decode(&entry, 4096), Ok(request));
            prop_assert_eq!(Request::operation_of(&entry), request.operation as u8);
        }

        #[test]
        fn any_entry_decodes_within_limits(entry in any::<[u8; 8]>(), rest in any::<u64>(), most in any::<u16>()) {
            let mut bytes = [0; REQUEST_SIZE];
            bytes[..8].copy_from_slice(&entry);
            bytes[24..32].copy_from_slice(&rest.to_le_bytes());
            match Request::decode(&bytes, most).map(|request| request.payload) {
                Ok(Payload::Indirect { count, .. }) => prop_assert!(count > 0 && count <= most && count <= 4096),
                Ok(Payload::Direct { count, .. }) => prop_assert!(usize::from(count) <= SEGMENTS),
                Ok(Payload::Discard { .. }) => prop_assert_eq!(bytes[0], 5),
                Err(_) => {}
            }
        }

        #[test]
        fn any_response_decodes(id in any::<u64>(), operation in any::<u8>(), status in any::<i16>()) {
            let mut entry = [0xff; RESPONSE_SIZE];
            entry[..8].copy_from_slice(&id.to_le_bytes());
            entry[8] = operation;
            entry[10..12].copy_from_slice(&status.to_le_bytes());
            let expected = match status { 0 => Status::Okay, -2 => Status::Unsupported, _ => Status::Error };
            prop_assert_eq!(Response::decode(&entry), Response { id, operation, status: expected });
        }
    }

    /// XSA-216: padding of entries held the back end's stack.
    #[test]
    fn xsa_216_padding_is_zero() {
        let response = Response { id: u64::MAX, operation: 0xff, status: Status::Error }.encode();
        assert_eq!((response[9], &response[12..]), (0, &[0; 4][..]));
        let whole = Segment { reference: u32::MAX, first: 7, last: 7 };
        let request = Request {
            operation: Operation::Write,
            handle: u16::MAX,
            id: u64::MAX,
            sector: u64::MAX,
            payload: Payload::direct([whole]),
        };
        let entry = request.encode();
        assert_eq!((&entry[4..8], &entry[30..]), (&[0; 4][..], &[0; 82][..]));
    }

    /// The layout of the header, by offsets that were printed from it.
    #[test]
    fn layout_is_that_of_the_header() {
        let segment = Segment { reference: 0x0102_0304, first: 1, last: 6 };
        let base = Request {
            operation: Operation::Read,
            handle: 0xabcd,
            id: 0x1112_1314_1516_1718,
            sector: 0x2122_2324_2526_2728,
            payload: Payload::direct([segment; 2]),
        };
        let entry = base.encode();
        assert_eq!(entry[..4], [0, 2, 0xcd, 0xab]);
        assert_eq!(entry[8..16], base.id.to_le_bytes());
        assert_eq!(entry[16..24], base.sector.to_le_bytes());
        assert_eq!(entry[32..40], [4, 3, 2, 1, 1, 6, 0, 0]);
        let payload = Payload::Indirect { references: [9, 8, 7, 6, 5, 4, 3, 2], count: 513 };
        let entry = Request { payload, ..base }.encode();
        assert_eq!(entry[..4], [6, 0, 1, 2]);
        assert_eq!(entry[24..26], [0xcd, 0xab]);
        assert_eq!(entry[28..40], [9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0], "two pages hold 513 segments");
        let payload = Payload::Discard { sectors: 0x3132, secure: true };
        let entry = Request { operation: Operation::Discard, payload, ..base }.encode();
        assert_eq!((entry[0], entry[1], &entry[24..32]), (5, 1, &0x3132u64.to_le_bytes()[..]));
    }

    #[test]
    fn segment_outside_its_page_is_malformed() {
        assert_eq!(Segment::decode([0, 0, 0, 0, 0, 8, 0, 0]), Err(Malformed::Segment));
        assert_eq!(Segment::decode([0, 0, 0, 0, 3, 2, 0, 0]), Err(Malformed::Segment));
        assert_eq!(Segment::decode([1, 0, 0, 0, 7, 7, 9, 9]).map(Segment::sectors), Ok(1));
    }
}
