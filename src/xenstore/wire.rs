//! The codec of xenstore's messages: what a request is made of, what a reply may hold, and messages out of a stream of bytes.
//!
//! Nothing here waits or touches a ring. A request is checked before any of it is sent, as a server ends the connection of
//! who sends too much. What comes from the server may be anything: a payload that makes no sense is the failure of one
//! request, a header that cannot be is the end of the stream, since nobody can tell where the next message begins.

use alloc::vec::Vec;
use core::fmt::{self, Write};

use crate::abi::xs_wire::{HEADER_SIZE, Header, MessageType, PAYLOAD_MAX};

impl Header {
    /// The header as it travels.
    pub(crate) fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        for (place, field) in bytes.as_chunks_mut().0.iter_mut().zip([self.ty.0, self.req_id, self.tx_id, self.len]) {
            *place = field.to_le_bytes();
        }
        bytes
    }

    /// The header that has travelled. Its fields may be anything.
    pub(crate) fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut fields = [0; 4];
        for (field, place) in fields.iter_mut().zip(bytes.as_chunks().0) {
            *field = u32::from_le_bytes(*place);
        }
        let [ty, req_id, tx_id, len] = fields;
        Self { ty: MessageType(ty), req_id, tx_id, len }
    }
}

/// Why a payload cannot be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsendable {
    /// It would be longer than a message may be.
    TooLong,
    /// A NUL stands in what a NUL ends.
    Nul,
    /// There is no memory for it.
    OutOfMemory,
}

/// The payload of a request: strings that each end in a NUL, and at most one value, which comes last.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a string and its NUL.
    pub(crate) fn string(self, text: impl AsRef<[u8]>) -> Result<Self, Unsendable> {
        let text = text.as_ref();
        if text.contains(&0) {
            return Err(Unsendable::Nul);
        }
        self.value(text)?.value(&[0])
    }

    /// Adds a number in decimal, and its NUL.
    pub(crate) fn number(self, number: u64) -> Result<Self, Unsendable> {
        // Twenty digits are the most that there can be.
        let mut digits = heapless::String::<20>::new();
        write!(digits, "{number}").map_err(|fmt::Error| Unsendable::TooLong)?;
        self.string(&digits)
    }

    /// Adds bytes as they are.
    pub(crate) fn value(mut self, bytes: &[u8]) -> Result<Self, Unsendable> {
        if bytes.len() > PAYLOAD_MAX - self.0.len() {
            return Err(Unsendable::TooLong);
        }
        self.0.try_reserve(bytes.len()).map_err(|_| Unsendable::OutOfMemory)?;
        self.0.extend_from_slice(bytes);
        Ok(self)
    }

    /// The bytes to be sent.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The header that belongs before it.
    pub(crate) fn header(&self, ty: MessageType, req_id: u32, tx_id: u32) -> Header {
        // No longer than `PAYLOAD_MAX`.
        Header { ty, req_id, tx_id, len: self.0.len() as u32 }
    }
}

/// A payload that makes no sense as the reply to its request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

/// The strings of a payload, each of which ends in a NUL: a directory, permissions, the path and the token of an event.
pub(crate) fn strings(payload: &[u8]) -> Result<impl Iterator<Item = &[u8]> + Clone, Malformed> {
    let inner = match payload {
        [] => None,
        [inner @ .., 0] => Some(inner),
        _ => return Err(Malformed),
    };
    Ok(inner.into_iter().flat_map(|inner| inner.split(|&byte| byte == 0)))
}

/// The one string of a payload: a path, a number, or the name of an error.
pub(crate) fn string(payload: &[u8]) -> Result<&[u8], Malformed> {
    match payload {
        [text @ .., 0] if !text.contains(&0) => Ok(text),
        _ => Err(Malformed),
    }
}

/// The path and the token of a watch event.
pub(crate) fn event(payload: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut strings = strings(payload)?;
    match (strings.next(), strings.next(), strings.next()) {
        (Some(path), Some(token), None) => Ok((path, token)),
        _ => Err(Malformed),
    }
}

/// A number in decimal, as a transaction's or a directory's generation.
pub(crate) fn number(text: &[u8]) -> Result<u64, Malformed> {
    // `parse` would take a sign.
    match text {
        [b'0'..=b'9', ..] => core::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Malformed),
        _ => Err(Malformed),
    }
}

/// A piece of a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirectoryPart<'a> {
    /// Changes whenever the directory does: pieces of different generations do not belong together.
    pub(crate) generation: u64,
    /// The names, each with its NUL: what the next piece's offset counts.
    pub(crate) names: &'a [u8],
    /// No more follow.
    pub(crate) is_last: bool,
}

/// The reply to DIRECTORY_PART: the generation, names, and an empty one behind the last.
pub(crate) fn directory_part(payload: &[u8]) -> Result<DirectoryPart<'_>, Malformed> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or(Malformed)?;
    let (generation, rest) = payload.split_at(end);
    // The position is one of the payload's, so at least the NUL is left.
    let rest = rest.get(1..).ok_or(Malformed)?;
    let (names, is_last) = match rest {
        [0] => (&rest[..0], true),
        [names @ .., 0] if names.ends_with(&[0]) => (names, true),
        _ => (rest, false),
    };
    // No name is empty or cut off, and a piece without names is the last.
    if rest.is_empty() || strings(names)?.any(<[u8]>::is_empty) {
        return Err(Malformed);
    }
    Ok(DirectoryPart { generation: number(generation)?, names, is_last })
}

/// A header that cannot be: the stream makes no sense from here on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Impossible;

/// Messages out of a stream of bytes, however it is cut. The memory is its own, so that no length a server claims takes any.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes: [u8; HEADER_SIZE + PAYLOAD_MAX],
    filled: usize,
    /// What the header, once it is there, says.
    header: Option<Header>,
}

/// A message of the server's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) header: Header,
    pub(crate) payload: &'a [u8],
}

impl Decoder {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; HEADER_SIZE + PAYLOAD_MAX], filled: 0, header: None }
    }

    /// Bytes of the message at hand, its header included, or at least as many.
    fn end(&self) -> usize {
        HEADER_SIZE + self.header.map_or(0, |header| header.len as usize)
    }

    /// Where the next bytes of the stream belong: never empty. A caller fills some of the beginning, and says how many.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        let end = self.end();
        // The end is within the array, as the length was checked, and what is filled never passes it.
        self.bytes.get_mut(self.filled..end).unwrap_or_default()
    }

    /// Takes note of bytes that were put into the [space](Self::space). Says if they complete a message.
    ///
    /// After an error nothing that follows in the stream means anything.
    pub(crate) fn advance(&mut self, count: usize) -> Result<Option<Message<'_>>, Impossible> {
        self.filled = self.filled.saturating_add(count).min(self.end());
        if self.filled < self.end() {
            return Ok(None);
        }
        let header = match (self.header, self.bytes.first_chunk()) {
            (Some(header), _) => header,
            (None, Some(bytes)) => Header::decode(bytes),
            // The array is longer than a header.
            (None, None) => return Err(Impossible),
        };
        if header.len as usize > PAYLOAD_MAX {
            return Err(Impossible);
        }
        self.header = Some(header);
        if self.filled < self.end() {
            return Ok(None);
        }
        let end = self.end();
        (self.filled, self.header) = (0, None);
        Ok(Some(Message { header, payload: self.bytes.get(HEADER_SIZE..end).unwrap_or_default() }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec;

    use super::*;

    /// A message as it travels.
    fn travelling(ty: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
        let fields = [ty, req_id, tx_id, payload.len() as u32];
        fields.iter().flat_map(|field| field.to_le_bytes()).chain(payload.iter().copied()).collect()
    }

    /// Puts bytes into a decoder in pieces of the sizes given, over and over, and collects what comes out.
    fn decode(mut bytes: &[u8], sizes: &[usize]) -> Result<Vec<(Header, Vec<u8>)>, Impossible> {
        let (mut decoder, mut messages) = (Decoder::new(), Vec::new());
        for size in sizes.iter().copied().cycle() {
            let space = decoder.space();
            assert!(!space.is_empty() && space.len() <= PAYLOAD_MAX);
            let count = size.min(space.len()).min(bytes.len());
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if let Some(Message { header, payload }) = decoder.advance(count)? {
                messages.push((header, payload.to_vec()));
            }
            if bytes.is_empty() {
                break;
            }
        }
        Ok(messages)
    }

    #[test]
    fn a_header_is_four_little_endian_words() {
        let header = Header { ty: MessageType::READ, req_id: 0x0102_0304, tx_id: 0x0506_0708, len: 4096 };
        let bytes = [2, 0, 0, 0, 4, 3, 2, 1, 8, 7, 6, 5, 0, 16, 0, 0];
        assert_eq!((header.encode(), Header::decode(&bytes)), (bytes, header));
    }

    #[test]
    fn a_payload_holds_strings_and_then_a_value() {
        let payload = Payload::new().string("a/b").unwrap().number(0).unwrap().number(u64::MAX).unwrap();
        let payload = payload.value(b"x\0y").unwrap();
        assert_eq!(payload.as_bytes(), b"a/b\x000\x0018446744073709551615\0x\0y");
        let header = payload.header(MessageType::WRITE, 9, 7);
        assert_eq!(header, Header { ty: MessageType::WRITE, req_id: 9, tx_id: 7, len: 30 });
        assert_eq!(Payload::new().string("a\0b"), Err(Unsendable::Nul));
    }

    #[test]
    fn what_is_longer_than_a_message_is_refused() {
        // A path, its NUL and a value of 4096 bytes in all, and one more.
        let path = || Payload::new().string("data/x").unwrap();
        assert_eq!(path().value(&[7; 4089]).unwrap().as_bytes().len(), PAYLOAD_MAX);
        assert_eq!(path().value(&[7; 4090]), Err(Unsendable::TooLong));
        assert_eq!(Payload::new().string(vec![b'a'; PAYLOAD_MAX]), Err(Unsendable::TooLong));
        assert_eq!(Payload::new().string(vec![b'a'; PAYLOAD_MAX - 1]).unwrap().string(""), Err(Unsendable::TooLong));
        assert_eq!(
            Payload::new().value(&vec![0; PAYLOAD_MAX]).unwrap().value(&[]).unwrap().as_bytes().len(),
            PAYLOAD_MAX
        );
    }

    #[test]
    fn strings_end_in_a_nul_each() {
        let all = |payload| strings(payload).map(|strings| strings.map(<[u8]>::to_vec).collect::<Vec<_>>());
        assert_eq!(all(b""), Ok(vec![]));
        assert_eq!(all(b"\0"), Ok(vec![b"".to_vec()]));
        assert_eq!(all(b"a\0bc\0"), Ok(vec![b"a".to_vec(), b"bc".to_vec()]));
        assert_eq!(all(b"a\0\0"), Ok(vec![b"a".to_vec(), b"".to_vec()]));
        assert_eq!(all(b"a\0b"), Err(Malformed));
        assert_eq!((string(b"ENOENT\0"), string(b"a\0b\0")), (Ok(&b"ENOENT"[..]), Err(Malformed)));
        assert_eq!((string(b""), string(b"OK")), (Err(Malformed), Err(Malformed)));
    }

    #[test]
    fn an_event_is_a_path_and_a_token() {
        assert_eq!(event(b"data/x\0tok en\0"), Ok((&b"data/x"[..], &b"tok en"[..])));
        assert_eq!(event(b"data/x\0\0"), Ok((&b"data/x"[..], &b""[..])));
        for malformed in [&b""[..], b"\0", b"data/x\0", b"data/x\0token", b"a\0b\0c\0"] {
            assert_eq!(event(malformed), Err(Malformed), "{malformed:?}");
        }
    }

    #[test]
    fn a_number_is_digits_only() {
        assert_eq!((number(b"0"), number(b"18446744073709551615")), (Ok(0), Ok(u64::MAX)));
        for malformed in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"0x1", b"18446744073709551616", b"\xff"] {
            assert_eq!(number(malformed), Err(Malformed), "{malformed:?}");
        }
    }

    #[test]
    fn a_piece_of_a_directory_says_if_it_is_the_last() {
        let part = |names, is_last| Ok(DirectoryPart { generation: 42, names, is_last });
        assert_eq!(directory_part(b"42\0a\0bc\0"), part(b"a\0bc\0", false));
        assert_eq!(directory_part(b"42\0a\0bc\0\0"), part(b"a\0bc\0", true));
        assert_eq!(directory_part(b"42\0\0"), part(b"", true));
        for malformed in [&b""[..], b"42", b"42\0", b"42\0a", b"x\0a\0", b"\0a\0", b"42\0\0\0", b"42\0a\0\0b\0"] {
            assert_eq!(directory_part(malformed), Err(Malformed), "{malformed:?}");
        }
    }

    #[test]
    fn a_header_that_cannot_be_ends_the_stream() {
        let mut bytes = travelling(16, 1, 0, b"EINVAL\0");
        bytes.extend(travelling(2, 2, 0, &[]));
        for len in [4097, 1 << 31, u32::MAX] {
            let mut bytes = bytes.clone();
            bytes[35..39].copy_from_slice(&u32::to_le_bytes(len));
            assert_eq!(decode(&bytes, &[usize::MAX]), Err(Impossible), "{len}");
        }
        assert_eq!(decode(&bytes, &[usize::MAX]).unwrap().len(), 2);
    }

    #[test]
    fn the_longest_message_arrives_cut_at_every_byte() {
        let mut bytes = travelling(15, 0, 0, &[b'a'; PAYLOAD_MAX]);
        bytes.extend(travelling(2, u32::MAX, 3, b"after"));
        let cuts = if cfg!(miri) { 3..4 } else { 1..bytes.len() };
        for cut in cuts {
            let messages = decode(&bytes, &[cut, usize::MAX]).unwrap();
            assert_eq!(messages.len(), 2, "{cut}");
            assert_eq!(messages[0].1, [b'a'; PAYLOAD_MAX]);
            assert_eq!((messages[1].0.req_id, &*messages[1].1), (u32::MAX, &b"after"[..]));
        }
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// However a stream is cut, the same messages come out.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn a_stream_is_reassembled(
            messages in proptest::collection::vec(
                (any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..8),
            sizes in proptest::collection::vec(1_usize..80, 1..8),
        ) {
            let bytes: Vec<u8> =
                messages.iter().flat_map(|(ty, req_id, tx_id, payload)| travelling(*ty, *req_id, *tx_id, payload)).collect();
            let expected: Vec<_> = messages
                .into_iter()
                .map(|(ty, req_id, tx_id, payload)| {
                    (Header { ty: MessageType(ty), req_id, tx_id, len: payload.len() as u32 }, payload)
                })
                .collect();
            prop_assert_eq!(decode(&bytes, &sizes), Ok(expected));
        }

        /// Whatever bytes come: no panic, and no more space than a message has.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn any_stream_is_survived(
            bytes in proptest::collection::vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..600),
            sizes in proptest::collection::vec(1_usize..80, 1..8),
        ) {
            let _ = decode(&bytes, &sizes);
        }

        /// Whatever a payload holds: an answer or an error, and what is cut is what was there.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn any_payload_is_survived(
            payload in proptest::collection::vec(prop_oneof![Just(0_u8), b'0'..=b'9', Just(b'a'), any::<u8>()], 0..40),
        ) {
            let joined = |strings: Vec<&[u8]>| strings.iter().flat_map(|text| text.iter().copied().chain([0])).collect::<Vec<u8>>();
            if let Ok(strings) = strings(&payload) {
                prop_assert_eq!(joined(strings.collect()), payload.clone());
            }
            if let Ok((path, token)) = event(&payload) {
                prop_assert_eq!(joined(vec![path, token]), payload.clone());
            }
            if let Ok(part) = directory_part(&payload) {
                prop_assert!(payload.len() > part.names.len() && (part.is_last || !part.names.is_empty()));
            }
            let _ = (string(&payload), number(&payload));
        }

        /// What the builder makes is what the splitter takes apart.
        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn strings_return(texts in proptest::collection::vec("[ -~]{0,40}", 1..6)) {
            let payload = texts.iter().try_fold(Payload::new(), |payload, text| payload.string(text)).unwrap();
            let returned: Vec<&[u8]> = strings(payload.as_bytes()).unwrap().collect();
            prop_assert_eq!(returned, texts.iter().map(|text| text.as_bytes()).collect::<Vec<_>>());
        }
    }
}
