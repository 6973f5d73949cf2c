//! The server by itself, against a client that knows the page and nothing else: each rule once.
//!
//! Under Miri each byte of a ring takes a millisecond; what is left out there has no unsafe code.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "for what is left out"))]

mod domain;
#[cfg(not(miri))]
mod nodes;
#[cfg(not(miri))]
mod ring;
#[cfg(not(miri))]
mod transactions;
#[cfg(not(miri))]
mod watches;

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::boxed::Box;
use std::format;
use std::ptr::NonNull;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use crate::abi::xs_wire::{
    CONNECTED, CONNECTION, ERROR, ERROR_PROTOCOL, ERROR_RING_INDEX, FEATURE_ERROR, FEATURE_WATCH_DEPTH, RECONNECT, REQ,
    REQ_CONS, REQ_PROD, RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use crate::shared::SharedPage;
use crate::sim::xenstored::*;
use MessageType as Ty;

#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "reached by raw pointers")] [u8; 4096]);

/// A domain with a ring, driven by hand.
struct Client {
    store: Store,
    domain: u16,
    page: SharedPage,
    now_ns: u64,
    last_id: u32,
    received: Vec<u8>,
    /// How many events were raised.
    raised: usize,
    memory: NonNull<Page>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.store.release(self.domain);
        // SAFETY: allocated by `at` as a box of this type; the server's end is gone, as is ours.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

impl Client {
    fn at(store: &Store, domain: u16, index: u32) -> Self {
        let memory = NonNull::from(Box::leak(Box::new(Page([0; 4096]))));
        // SAFETY: the page is aligned and lives until both ends are dropped; all accesses go through `SharedPage`.
        let page = unsafe { SharedPage::new(memory.cast(), 1) };
        store.introduce(domain, page, index, Memory { most_kib: 65536, target_kib: 32768 }, 0);
        let store = store.clone();
        Self { store, domain, page, now_ns: 0, last_id: 0, received: Vec::new(), raised: 0, memory }
    }

    fn new(store: &Store) -> Self {
        Self::at(store, 7, 0)
    }

    fn word(&self, offset: usize) -> u32 {
        self.page.u32(offset).load(Ordering::Acquire)
    }

    /// Lets the server act until nothing more happens before a moment.
    fn wait(&mut self, until_ns: u64) {
        while let Some(next) = self.store.next(self.domain).filter(|next| *next <= until_ns) {
            self.now_ns = self.now_ns.max(next);
            self.raised += usize::from(self.store.act(self.domain, self.now_ns));
        }
        self.now_ns = self.now_ns.max(until_ns);
    }

    fn notify(&mut self) {
        self.store.notified(self.domain, self.now_ns);
        self.wait(self.now_ns);
    }

    /// Puts bytes into the ring as there is room, and takes what comes meanwhile.
    fn put(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let produced = self.word(REQ_PROD);
            while produced.wrapping_sub(self.word(REQ_CONS)) == 1024 {
                self.notify();
                assert!(self.take() || produced.wrapping_sub(self.word(REQ_CONS)) < 1024, "the server does not read");
            }
            self.page.u8(REQ + (produced % 1024) as usize).store(byte, Ordering::Relaxed);
            self.page.u32(REQ_PROD).store(produced.wrapping_add(1), Ordering::Release);
        }
        self.notify();
    }

    /// Takes what is in the ring; says if it was anything.
    fn take(&mut self) -> bool {
        let (produced, mut consumed) = (self.word(RSP_PROD), self.word(RSP_CONS));
        let some = produced != consumed;
        while produced != consumed {
            self.received.push(self.page.u8(RSP + (consumed % 1024) as usize).load(Ordering::Relaxed));
            consumed = consumed.wrapping_add(1);
        }
        self.page.u32(RSP_CONS).store(consumed, Ordering::Release);
        if some {
            self.notify();
        }
        some
    }

    /// Sends a request, and returns its number.
    fn send(&mut self, ty: Ty, tx_id: u32, payload: &[u8]) -> u32 {
        self.last_id += 1;
        let header = [ty.0, self.last_id, tx_id, payload.len() as u32];
        let bytes: Vec<u8> =
            header.iter().flat_map(|field| field.to_le_bytes()).chain(payload.iter().copied()).collect();
        self.put(&bytes);
        self.last_id
    }

    /// All messages that have come whole.
    fn messages(&mut self) -> Vec<Message> {
        while self.take() {}
        let mut messages = Vec::new();
        while let Some(header) = self.received.first_chunk::<16>() {
            let field = |index: usize| u32::from_le_bytes(header[index..index + 4].try_into().unwrap());
            let (ty, req_id, tx_id, len) = (Ty(field(0)), field(4), field(8), field(12) as usize);
            if self.received.len() < 16 + len {
                break;
            }
            let rest = self.received.split_off(16 + len);
            let payload = core::mem::replace(&mut self.received, rest).split_off(16);
            messages.push(Message::new(ty, req_id, tx_id, payload));
        }
        messages
    }

    /// The events that have come: paths and tokens.
    fn events(&mut self) -> Vec<String> {
        self.messages().iter().map(Self::event).collect()
    }

    fn event(message: &Message) -> String {
        assert_eq!((message.header.ty, message.header.req_id, message.header.tx_id), (Ty::WATCH_EVENT, 0, 0));
        let text = String::from_utf8(message.payload.clone()).unwrap();
        text.strip_suffix('\0').unwrap().replace('\0', " ")
    }

    /// Sends a request within a transaction and waits for its reply, which is text or the name of an error.
    fn ask_in(&mut self, tx_id: u32, ty: Ty, payload: impl AsRef<[u8]>) -> Result<String, String> {
        let id = self.send(ty, tx_id, payload.as_ref());
        let mut messages = self.messages();
        let index = messages.iter().position(|message| message.header.ty != Ty::WATCH_EVENT).expect("a reply");
        let reply = messages.remove(index);
        assert_eq!((reply.header.req_id, reply.header.tx_id), (id, tx_id));
        // What came beside it is looked at later.
        for message in messages.iter().rev() {
            let Header { ty, req_id, tx_id, len } = message.header;
            let header = [ty.0, req_id, tx_id, len].into_iter().flat_map(u32::to_le_bytes);
            let bytes: Vec<u8> = header.chain(message.payload.iter().copied()).collect();
            self.received.splice(..0, bytes);
        }
        let text = String::from_utf8(reply.payload).unwrap();
        match reply.header.ty {
            Ty::ERROR => Err(text.strip_suffix('\0').unwrap().to_string()),
            replied => {
                assert_eq!(replied, ty);
                Ok(text.replace('\0', "|"))
            }
        }
    }

    fn ask(&mut self, ty: Ty, payload: impl AsRef<[u8]>) -> Result<String, String> {
        self.ask_in(0, ty, payload)
    }

    fn start(&mut self) -> Result<u32, String> {
        self.ask(Ty::TRANSACTION_START, "\0").map(|id| id.strip_suffix('|').unwrap().parse().unwrap())
    }
}

fn ok() -> Result<String, String> {
    Ok("OK|".to_string())
}

fn text(text: &str) -> Result<String, String> {
    Ok(text.to_string())
}

fn error(name: &str) -> Result<String, String> {
    Err(name.to_string())
}
