//! The page that a domain and xenstored share: a ring of requests, a ring of replies, and the state of the connection.
//!
//! How the rings' indices are ordered stands in [`shared`](crate::shared). The words beside them are the server's, but for
//! one: of the state of the connection the domain writes that it wants a new one. The word of features is never written.

use core::sync::atomic::Ordering;

use super::wire::{Decoder, Impossible, Message, Payload};
use crate::abi::xs_wire::{
    CONNECTION, ERROR, ERROR_NONE, FEATURE_ERROR, FEATURE_RECONNECTION, HEADER_SIZE, Header, RECONNECT, REQ, REQ_CONS,
    REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use crate::shared::{Consumer, Corrupt, Layout, Producer, SharedPage};

const REQUESTS: Layout = Layout { data: REQ, size: RING_SIZE, producer: REQ_PROD, consumer: REQ_CONS };
const REPLIES: Layout = Layout { data: RSP, size: RING_SIZE, producer: RSP_PROD, consumer: RSP_CONS };

/// The connection makes no sense any more.
impl From<Corrupt> for Impossible {
    fn from(_: Corrupt) -> Self {
        Self
    }
}

/// The page, before and between connections: nothing but the state of the connection is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page(SharedPage);

impl Page {
    pub(super) const fn new(page: SharedPage) -> Self {
        Self(page)
    }

    /// Joins the rings where their indices stand, unless the server has yet to make the connection.
    pub(super) fn join(self) -> Result<Option<Link>, Impossible> {
        if self.0.u32(CONNECTION).load(Ordering::Acquire) == RECONNECT {
            return Ok(None);
        }
        Ok(Some(Link {
            page: self,
            old_error: self.0.u32(ERROR).load(Ordering::Relaxed),
            requests: Producer::attach(self.0, REQUESTS)?,
            replies: Consumer::attach(self.0, REPLIES)?,
            decoder: Decoder::new(),
            sending: None,
        }))
    }

    /// The features that the server offers, now.
    fn offers(self, feature: u32) -> bool {
        self.0.u32(SERVER_FEATURES).load(Ordering::Relaxed) & feature != 0
    }

    /// True if the server offers new connections.
    pub(super) fn offers_anew(self) -> bool {
        self.offers(FEATURE_RECONNECTION)
    }

    /// Asks for a new connection, if the server offers that. It is to be notified then.
    pub(super) fn ask_anew(self) -> bool {
        let offered = self.offers_anew();
        if offered {
            self.0.u32(CONNECTION).store(RECONNECT, Ordering::Release);
        }
        offered
    }
}

/// A message on its way into the ring.
#[derive(Debug)]
struct Sending {
    header: [u8; HEADER_SIZE],
    payload: Payload,
    /// Bytes of both that are in the ring.
    sent: usize,
}

impl Sending {
    /// What is not in the ring yet, or its beginning: empty when all is.
    fn rest(&self) -> &[u8] {
        match self.header.get(self.sent..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => self.payload.as_bytes().get(self.sent - HEADER_SIZE..).unwrap_or_default(),
        }
    }
}

/// A connection. After an [`Impossible`] it is to be given up.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) page: Page,
    /// What the server said of the connection before this one, if it has not taken that back.
    old_error: u32,
    requests: Producer,
    replies: Consumer,
    decoder: Decoder,
    sending: Option<Sending>,
}

impl Link {
    /// Looks whether the server still serves the connection, as far as it says, and tells how far it has read.
    pub(super) fn check(&mut self) -> Result<(), Impossible> {
        self.requests.read_pending()?;
        let error = self.page.0.u32(ERROR).load(Ordering::Relaxed);
        let failed = self.page.offers(FEATURE_ERROR) && error != ERROR_NONE && error != self.old_error;
        if failed { Err(Impossible) } else { Ok(()) }
    }

    /// Takes a piece of what the server has sent, and says how many bytes it is, and which message it completes.
    pub(super) fn receive(&mut self) -> Result<(usize, Option<Message<'_>>), Impossible> {
        let count = self.replies.pop(self.decoder.space())?;
        Ok((count, self.decoder.advance(count)?))
    }

    /// Whether the message before is whole in the ring, so that the next may be [started](Self::start).
    pub(super) const fn is_free(&self) -> bool {
        self.sending.is_none()
    }

    /// Begins to send a message.
    pub(super) fn start(&mut self, header: Header, payload: Payload) {
        self.sending = Some(Sending { header: header.encode(), payload, sent: 0 });
    }

    /// Puts as much of the message into the ring as fits, and returns the number of bytes. The room is that of the last
    /// [check](Self::check).
    pub(super) fn send(&mut self) -> usize {
        let mut total = 0;
        while let Some(sending) = &mut self.sending {
            let rest = sending.rest();
            if rest.is_empty() {
                self.sending = None;
                break;
            }
            let count = self.requests.append(rest);
            if count == 0 {
                break;
            }
            sending.sent += count;
            total += count;
        }
        total
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::boxed::Box;
    use std::ptr::NonNull;
    use std::vec::Vec;

    use proptest::prelude::*;
    use proptest::test_runner::Config;

    use super::*;
    use crate::abi::xs_wire::{CONNECTED, MessageType};

    #[repr(align(4096))]
    struct Memory(#[expect(dead_code, reason = "reached by a raw pointer")] [u8; 4096]);

    /// The memory of a page, given back at the end.
    pub(in crate::xenstore) struct Shared(NonNull<Memory>);

    impl Shared {
        /// A page of zeroes, which is to be used no longer than its memory.
        pub(in crate::xenstore) fn new() -> (Self, SharedPage) {
            let memory = NonNull::from(Box::leak(Box::new(Memory([0; 4096]))));
            // SAFETY: the page is aligned and lives as long as the test, and all accesses go through `SharedPage`s.
            (Self(memory), unsafe { SharedPage::new(memory.cast(), 1) })
        }
    }

    impl Drop for Shared {
        fn drop(&mut self) {
            // SAFETY: it was a box, and the test that has used the page is at its end.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }

    fn word(page: SharedPage, offset: usize) -> u32 {
        page.u32(offset).load(Ordering::Relaxed)
    }

    #[test]
    fn of_the_page_only_requests_and_own_indices_are_written() {
        let (_memory, page) = Shared::new();
        // What the server has written, and what lies around, behind the buffers; the rings stand anywhere.
        for offset in (2048..4096).step_by(4) {
            page.u32(offset).store(0x5a5a_0000 | offset as u32, Ordering::Relaxed);
        }
        for offset in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS] {
            page.u32(offset).store(1000, Ordering::Relaxed);
        }
        page.u32(SERVER_FEATURES).store(FEATURE_ERROR | 0xff00, Ordering::Relaxed);
        page.u32(CONNECTION).store(CONNECTED, Ordering::Relaxed);
        page.u32(ERROR).store(ERROR_NONE, Ordering::Relaxed);
        let before: Box<[_]> = (2048..4096).step_by(4).map(|offset| (offset, word(page, offset))).collect();
        let mut link = Page::new(page).join().unwrap().unwrap();
        let payload = Payload::new().string("name").unwrap();
        link.start(payload.header(MessageType::READ, 1, 0), payload);
        assert_eq!((link.send(), link.is_free()), (21, true));
        assert!(matches!(link.receive(), Ok((0, None))));
        assert_eq!(link.check(), Ok(()));
        for (offset, before) in before {
            let expected = if offset == REQ_PROD { 1021 } else { before };
            assert_eq!(word(page, offset), expected, "at {offset}");
        }
        // Without an offer the state of the connection is left alone too.
        assert!(!Page::new(page).ask_anew());
        assert_eq!(word(page, CONNECTION), CONNECTED);
        page.u32(SERVER_FEATURES).store(FEATURE_RECONNECTION, Ordering::Relaxed);
        assert!(Page::new(page).ask_anew());
        assert_eq!((word(page, CONNECTION), word(page, SERVER_FEATURES)), (RECONNECT, FEATURE_RECONNECTION));
        assert!(matches!(Page::new(page).join(), Ok(None)), "until the server says so");
    }

    #[test]
    fn an_error_of_the_servers_is_one_where_it_offers_to_tell_and_until_the_next_connection() {
        let (_memory, page) = Shared::new();
        let mut link = Page::new(page).join().unwrap().unwrap();
        page.u32(ERROR).store(3, Ordering::Relaxed);
        assert_eq!(link.check(), Ok(()));
        page.u32(SERVER_FEATURES).store(FEATURE_ERROR, Ordering::Relaxed);
        assert_eq!(link.check(), Err(Impossible));
        // One that does not take it back serves the next all the same.
        let mut next = Page::new(page).join().unwrap().unwrap();
        assert_eq!(next.check(), Ok(()));
        page.u32(ERROR).store(1, Ordering::Relaxed);
        assert_eq!(next.check(), Err(Impossible));
        page.u32(REQ_CONS).store(7, Ordering::Relaxed);
        assert!(Page::new(page).join().is_err());
    }

    /// The server's end of the page's rings, which stand anywhere.
    struct Server {
        page: SharedPage,
        read: u32,
        written: u32,
    }

    impl Server {
        fn new(page: SharedPage, start: u32) -> Self {
            for offset in [REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS] {
                page.u32(offset).store(start, Ordering::Relaxed);
            }
            Self { page, read: start, written: start }
        }

        /// Writes what there is room for, and says how much that is.
        fn write(&mut self, bytes: &[u8]) -> usize {
            let room = RING_SIZE - self.written.wrapping_sub(word(self.page, RSP_CONS));
            let bytes = &bytes[..bytes.len().min(room as usize)];
            let place = (self.written % RING_SIZE) as usize;
            let (head, tail) = bytes.split_at(bytes.len().min(RING_SIZE as usize - place));
            self.page.write(RSP + place, head);
            self.page.write(RSP, tail);
            self.written = self.written.wrapping_add(bytes.len() as u32);
            self.page.u32(RSP_PROD).store(self.written, Ordering::Relaxed);
            bytes.len()
        }

        /// Reads at most so many bytes.
        fn read(&mut self, most: usize) -> Vec<u8> {
            let there = word(self.page, REQ_PROD).wrapping_sub(self.read) as usize;
            let mut bytes = std::vec![0; there.min(most)];
            let place = (self.read % RING_SIZE) as usize;
            let first = bytes.len().min(RING_SIZE as usize - place);
            let (head, tail) = bytes.split_at_mut(first);
            self.page.read(REQ + place, head);
            self.page.read(REQ, tail);
            self.read = self.read.wrapping_add(bytes.len() as u32);
            self.page.u32(REQ_CONS).store(self.read, Ordering::Relaxed);
            bytes
        }
    }

    /// A short message, an empty one, and one that no ring holds at once.
    fn messages() -> [(Header, Payload); 3] {
        let values = [&b"a\0b"[..], b"", &[7; RING_SIZE as usize + 100]];
        let mut number = 0;
        values.map(|value| {
            number += 1;
            let payload = Payload::new().value(value).unwrap();
            (payload.header(MessageType::READ, number, 0), payload)
        })
    }

    proptest! {
        #![proptest_config(Config { cases: if cfg!(miri) { 1 } else { 2 }, ..crate::sim::proptest_config() })]

        #[test]
        fn messages_pass_the_ring_cut_at_every_byte(start in prop_oneof![any::<u32>(), Just(u32::MAX - 600)]) {
            let (_memory, page) = Shared::new();
            let stream: Vec<u8> =
                messages().iter().flat_map(|(header, payload)| [&header.encode(), payload.as_bytes()].concat()).collect();
            for cut in if cfg!(miri) { 17..18 } else { 1..stream.len() } {
                let mut server = Server::new(page, start);
                let mut link = Page::new(page).join().unwrap().unwrap();
                let (mut got, mut read) = (Vec::new(), Vec::new());
                for mut piece in [&stream[..cut], &stream[cut..]] {
                    while !piece.is_empty() {
                        piece = &piece[server.write(piece)..];
                        loop {
                            let (count, message) = link.receive().unwrap();
                            got.extend(message.map(|message| (message.header, message.payload.to_vec())));
                            if count == 0 {
                                break;
                            }
                        }
                    }
                }
                let expected = messages().map(|(header, payload)| (header, payload.as_bytes().to_vec()));
                prop_assert_eq!(&got[..], &expected[..], "cut at {}", cut);
                // The other way: the server reads up to the cut first.
                for (header, payload) in messages() {
                    link.start(header, payload);
                    loop {
                        link.check().unwrap();
                        link.send();
                        if link.is_free() {
                            break;
                        }
                        let most = cut.checked_sub(read.len()).filter(|&most| most > 0).unwrap_or(usize::MAX);
                        read.extend(server.read(most));
                    }
                }
                read.extend(server.read(usize::MAX));
                prop_assert!(read == stream, "cut at {}", cut);
            }
        }
    }
}
