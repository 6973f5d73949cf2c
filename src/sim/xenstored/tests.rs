//! The server by itself, against a client that knows the page and nothing else: each rule once.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::boxed::Box;
use std::format;
use std::ptr::NonNull;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use super::*;
use crate::abi::xs_wire::{
    CONNECTED, CONNECTION, ERROR, ERROR_PROTOCOL, ERROR_RING_INDEX, FEATURE_ERROR, FEATURE_WATCH_DEPTH, RECONNECT, REQ,
    REQ_CONS, REQ_PROD, RSP, RSP_CONS, RSP_PROD, SERVER_FEATURES,
};
use crate::shared::SharedPage;
use MessageType as Ty;

#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "reached by raw pointers")] [u8; 4096]);

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
        store.introduce(domain, page, index, 65536, 0);
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

#[test]
fn a_value_is_bytes_and_its_node_is_made_with_those_above() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::READ, "domid\0"), text("7"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/7/name\0"), text("guest7"));
    assert_eq!(client.ask(Ty::WRITE, "data/a/b/c\0x\0y"), ok());
    assert_eq!(client.ask(Ty::READ, "data/a/b/c\0"), text("x|y"));
    assert_eq!(client.ask(Ty::READ, "data/a/b\0"), text(""));
    assert_eq!(client.ask(Ty::WRITE, "data/a/b/c\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/a/b/c\0"), text(""));
    assert_eq!(client.ask(Ty::READ, "data/none\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::DIRECTORY, "data/a\0"), text("b|"));
    assert_eq!(client.ask(Ty::DIRECTORY, "data/a/b/c\0"), text(""));
    assert_eq!(store.read("/local/domain/7/data/a/b/c"), Some(vec![]));
}

#[test]
fn a_node_is_made_once_and_goes_with_what_is_below() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WRITE, "data/x\0value"), ok());
    assert_eq!(client.ask(Ty::MKDIR, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x\0"), text("value"));
    assert_eq!(client.ask(Ty::MKDIR, "data/x/y/z\0"), ok());
    assert_eq!(client.ask(Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y/z\0"), error("ENOENT"));
    // What is not there is removed, unless it could not be there.
    assert_eq!(client.ask(Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::RM, "data/x/y\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::RM, "/\0"), error("EINVAL"));
    assert_eq!(store.list("/local/domain/7/data"), [""; 0]);
}

#[test]
fn paths_and_payloads_are_checked() {
    let mut client = Client::new(&Store::new());
    for path in ["", "data/", "data//x", "/local/", "data/ü", "data/a b", "data/a.b"] {
        assert_eq!(client.ask(Ty::READ, format!("{path}\0")), error("EINVAL"), "{path}");
    }
    for payload in [&b""[..], b"data", b"data\0x", b"data\0\0", b"\xff\0"] {
        assert_eq!(client.ask(Ty::READ, payload), error("EINVAL"), "{payload:?}");
    }
    let long = |length: usize| format!("data/{}\0", "x".repeat(length - 5));
    assert_eq!(client.ask(Ty::READ, long(2048)), error("ENOENT"));
    assert_eq!(client.ask(Ty::READ, long(2049)), error("EINVAL"));
    assert_eq!(client.ask(Ty::READ, format!("/{}\0", "x".repeat(3072))), error("EINVAL"));
    assert_eq!(client.ask(Ty(20), "\0"), error("ENOSYS"));
    assert_eq!(client.ask(Ty(99), ""), error("ENOSYS"));
}

#[test]
fn permissions_say_who_may_what() {
    let store = Store::new();
    let (mut client, mut other) = (Client::new(&store), Client::at(&store, 8, 0));
    // The toolstack's nodes are to be read, others' are not even known.
    assert_eq!(client.ask(Ty::WRITE, "domid\x008"), error("EACCES"));
    assert_eq!(client.ask(Ty::WRITE, "new\x008"), error("EACCES"));
    assert_eq!(client.ask(Ty::READ, "none\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/8/name\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/8/none\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::DIRECTORY, "/local/domain\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::GET_PERMS, "domid\0"), text("n0|r7|"));
    // What a guest makes is its own, and it says who else may use it.
    assert_eq!(client.ask(Ty::WRITE, "data/x\0mine"), ok());
    assert_eq!(client.ask(Ty::GET_PERMS, "data/x\0"), text("n7|"));
    let path = "/local/domain/7/data/x\0";
    assert_eq!(other.ask(Ty::READ, path), error("EACCES"));
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r8\0"), ok());
    assert_eq!(other.ask(Ty::READ, path), text("mine"));
    assert_eq!(other.ask(Ty::WRITE, format!("{path}ours")), error("EACCES"));
    assert_eq!(other.ask(Ty::SET_PERMS, format!("{path}n8\0")), error("EACCES"));
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0b7\0"), ok());
    assert_eq!(other.ask(Ty::WRITE, format!("{path}ours")), ok());
    assert_eq!(store.permissions("/local/domain/7/data/x"), Some(vec!["b7".to_string()]));
    store.set_permissions("/local/domain/7/data/x", &["n7", "w8"]);
    assert_eq!(other.ask(Ty::READ, path), error("EACCES"));
    assert_eq!(other.ask(Ty::WRITE, format!("{path}again")), ok());
    // A guest cannot give a node away, and must say something that makes sense.
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n8\0"), error("EPERM"));
    for permission in ["x7", "r", "r-1", "r65536", ""] {
        assert_eq!(client.ask(Ty::SET_PERMS, format!("data/x\0{permission}\0")), error("EINVAL"), "{permission}");
    }
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r1\0r2\0r3\0r4\0"), ok());
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r1\0r2\0r3\0r4\0r5\0"), error("ENOSPC"));
}

#[test]
fn what_is_dom0s_is_refused() {
    let mut client = Client::new(&Store::new());
    for ty in [Ty::CONTROL, Ty::INTRODUCE, Ty::RELEASE, Ty::RESUME, Ty::SET_TARGET] {
        assert_eq!(client.ask(ty, "8\x001\x001\0"), error("EACCES"), "{ty}");
    }
    assert_eq!(client.ask(Ty::GET_DOMAIN_PATH, "8\0"), text("/local/domain/8|"));
    assert_eq!(client.ask(Ty::GET_DOMAIN_PATH, "x\0"), error("EINVAL"));
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "7\0"), text("T|"));
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "8\0"), text("F|"));
    assert_eq!(client.ask(Ty::SET_FEATURE, "7\x001\0"), error("ENOSYS"));
    let mut client = Client::new(&Store::oxenstored());
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "7\0"), error("EACCES"));
}

#[test]
fn a_large_directory_comes_in_parts() {
    let store = Store::new();
    let mut client = Client::new(&store);
    let count = if cfg!(miri) { 80 } else { 5000 };
    let names: Vec<String> = (0..count).map(|number| format!("{number:060}")).collect();
    store.dom0(|dom0| names.iter().for_each(|name| dom0.write(&format!("/local/domain/7/device/{name}"), "")));
    store.remove("/local/domain/7/device/suspend");
    assert_eq!(client.ask(Ty::DIRECTORY, "device\0"), error("E2BIG"));
    let (mut listed, mut generations) = (String::new(), Vec::new());
    loop {
        let part = client.ask(Ty::DIRECTORY_PART, format!("device\0{}\0", listed.len())).unwrap();
        assert!(part.len() <= 4096);
        let (generation, rest) = part.split_once('|').unwrap();
        generations.push(generation.to_string());
        listed.push_str(rest);
        if listed.ends_with("||") {
            break;
        }
    }
    assert!(generations.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(listed.trim_end_matches('|').split('|').collect::<Vec<_>>(), names);
    // Behind the end there is the end; a change shows in the generation.
    let end = client.ask(Ty::DIRECTORY_PART, "device\x00999999\0").unwrap();
    assert_eq!(end, format!("{}||", generations[0]));
    store.write("/local/domain/7/device/more", "");
    assert_ne!(client.ask(Ty::DIRECTORY_PART, "device\x00999999\0").unwrap(), end);
    let mut client = Client::new(&Store::oxenstored());
    assert_eq!(client.ask(Ty::DIRECTORY_PART, "device\x000\0"), error("ENOSYS"));
}

#[test]
fn a_directory_of_4096_bytes_is_one_message() {
    let store = Store::new();
    let mut client = Client::new(&store);
    (0..64).for_each(|number| store.write(&format!("/local/domain/7/platform/x/{number:063}"), ""));
    assert_eq!(client.ask(Ty::DIRECTORY, "platform/x\0").unwrap().len(), 4096);
    store.write("/local/domain/7/platform/x/y", "");
    assert_eq!(client.ask(Ty::DIRECTORY, "platform/x\0"), error("E2BIG"));
}

#[test]
fn a_watch_fires_at_once_and_then_for_what_is_below() {
    let store = Store::new();
    let mut client = Client::new(&store);
    let id = client.send(Ty::WATCH, 0, b"data\0rel\0");
    let messages = client.messages();
    assert_eq!((messages[0].header.ty, messages[0].header.req_id), (Ty::WATCH, id));
    assert_eq!(Client::event(&messages[1]), "data rel");
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/7/data/x\0abs\0"), ok());
    assert_eq!(client.events(), ["/local/domain/7/data/x abs"]);
    assert_eq!(client.ask(Ty::WATCH, "data/none\0none\0"), ok());
    assert_eq!(client.events(), ["data/none none"]);
    store.write("/local/domain/7/data/x/y", "1");
    client.wait(0);
    assert_eq!(client.events(), ["data/x/y rel", "/local/domain/7/data/x/y abs"]);
    // A change of permissions is one; what only begins alike is not below.
    store.set_permissions("/local/domain/7/data/x", &["n7"]);
    store.write("/local/domain/7/data/xx", "");
    client.wait(0);
    assert_eq!(client.events(), ["data/x rel", "/local/domain/7/data/x abs", "data/xx rel"]);
    assert_eq!(client.ask(Ty::MKDIR, "data/x\0"), ok());
    assert!(client.events().is_empty());
    // Each of a pair of path and token is one; a token may be any text, or none.
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/7/data\0rel\0"), error("EEXIST"));
    assert_eq!(client.ask(Ty::WATCH, "data\0\0"), ok());
    assert_eq!(client.events(), ["data "]);
    assert_eq!(store.watches(7).len(), 4);
    assert_eq!(client.ask(Ty::UNWATCH, "data\0rel\0"), ok());
    assert_eq!(client.ask(Ty::UNWATCH, "data\0rel\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
    store.write("/local/domain/7/data/x", "");
    client.wait(0);
    assert!(client.events().is_empty() && store.watches(7).is_empty());
}

#[test]
fn a_watch_below_what_is_removed_is_told_its_own_path() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/data/a/b/c", "");
    for watch in ["data/a/b/c", "data", "data/a/b/none"] {
        assert_eq!(client.ask(Ty::WATCH, format!("{watch}\0t\0")), ok());
    }
    client.events();
    store.remove("/local/domain/7/data/a");
    client.wait(0);
    assert_eq!(client.events(), ["data/a t", "data/a/b/c t"]);
}

#[test]
fn events_are_for_who_may_read() {
    let store = Store::new();
    let (mut client, mut other) = (Client::new(&store), Client::at(&store, 8, 0));
    assert_eq!(other.ask(Ty::WATCH, "/local/domain/7/data\0t\0"), ok());
    assert_eq!(other.ask(Ty::WATCH, "@releaseDomain\0t\0"), ok());
    assert_eq!(other.events(), ["/local/domain/7/data t", "@releaseDomain t"]);
    assert_eq!(client.ask(Ty::WRITE, "data/secret\0"), ok());
    assert_eq!(client.ask(Ty::WRITE, "data/open\0"), ok());
    store.fire("@releaseDomain");
    other.wait(0);
    assert!(other.events().is_empty());
    assert_eq!(client.ask(Ty::SET_PERMS, "data/open\0r7\0"), ok());
    store.set_permissions("@releaseDomain", &["r0"]);
    store.fire("@introduceDomain");
    drop(client);
    other.wait(0);
    assert_eq!(other.events(), ["/local/domain/7/data/open t", "@releaseDomain t", "@releaseDomain t"]);
}

#[test]
fn a_watch_has_a_depth_where_that_is_offered() {
    let mut client = Client::new(&Store::new());
    assert_eq!(client.ask(Ty::WATCH, "data\0t\x001\0"), error("EINVAL"));
    drop(client);
    let store = Store::new().features(FEATURE_WATCH_DEPTH);
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\x001\0"), ok());
    client.events();
    store.write("/local/domain/7/data/a", "");
    store.write("/local/domain/7/data/a/b", "");
    client.wait(0);
    assert_eq!(client.events(), ["data/a t"]);
}

#[test]
fn each_server_has_its_order_of_events_and_replies() {
    for (store, events_first) in [(Store::new(), true), (Store::oxenstored(), false)] {
        let mut client = Client::new(&store);
        assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
        client.messages();
        client.send(Ty::WRITE, 0, b"data/x\0");
        let types: Vec<Ty> = client.messages().iter().map(|message| message.header.ty).collect();
        let expected = if events_first { [Ty::WATCH_EVENT, Ty::WRITE] } else { [Ty::WRITE, Ty::WATCH_EVENT] };
        assert_eq!(types, expected);
    }
}

#[test]
fn a_transaction_is_seen_when_it_is_committed() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
    client.events();
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::WRITE, "data/x/y\x001"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.ask_in(id, Ty::DIRECTORY, "data\0"), text("x|"));
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), error("ENOENT"));
    assert!(client.events().is_empty());
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.events(), ["data/x/y t"]);
    // It is gone, as is one that was dropped.
    assert_eq!(client.ask_in(id, Ty::READ, "data\0"), error("ENOENT"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x/y\0"), error("ENOENT"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "F\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.ask(Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
    assert!(client.events().is_empty());
}

#[test]
fn a_transaction_in_conflict_is_to_be_done_again() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/data/x", "0");
    let cases: [(&[u8], &str); 4] =
        [(b"data/x\0", "/data/x"), (b"data/y\0", "/data/y"), (b"data\0", "/data/z"), (b"data/x\0", "/data")];
    for (number, (read, written)) in cases.into_iter().enumerate() {
        let id = client.start().unwrap();
        let _ = client.ask_in(id, Ty::READ, read);
        assert_eq!(client.ask_in(id, Ty::WRITE, format!("drivers/d\0{number}")), ok());
        store.write(&format!("/local/domain/7{written}"), "1");
        // The last one has seen the node below only.
        let expected = if number < 3 { error("EAGAIN") } else { ok() };
        assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), expected, "{number}");
        assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
        let value = store.read("/local/domain/7/drivers/d");
        assert_eq!(value.is_some(), number == 3);
    }
    // What it has read it reads again, whatever others do.
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), text("1"));
    store.write("/local/domain/7/data/x", "2");
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), text("1"));
    assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), error("ENOENT"));
}

#[test]
fn quotas_are_refused_in_the_words_of_each_server() {
    for (store, watches, names) in [
        (Store::new(), 128, ["E2BIG", "ENOSPC", "ENOSPC", "ENOSPC"]),
        (Store::oxenstored(), 100, ["EQUOTA", "EQUOTA", "E2BIG", "EQUOTA"]),
    ] {
        let mut client = Client::new(&store);
        (0..watches).for_each(|number| assert_eq!(client.ask(Ty::WATCH, format!("data\0{number}\0")), ok()));
        assert_eq!(client.ask(Ty::WATCH, "data\0more\0"), error(names[0]));
        assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
        let ids: Vec<u32> = (0..10).map(|_| client.start().unwrap()).collect();
        assert_eq!(client.start(), Err(names[1].to_string()));
        assert_eq!(client.ask_in(ids[0], Ty::TRANSACTION_START, "\0"), error("EBUSY"));
        assert_eq!(client.ask_in(ids[3], Ty::TRANSACTION_END, "F\0"), ok());
        assert_eq!(client.start().map(|_| ()), Ok(()));
        // A message as long as can be is refused for what it holds.
        let mut longest = b"data/x\0".to_vec();
        longest.resize(4096, b'v');
        assert_eq!(client.ask(Ty::WRITE, &longest), error(names[2]));
        longest.truncate(2007);
        assert_eq!(client.ask(Ty::WRITE, &longest), ok());
        if cfg!(miri) {
            continue;
        }
        // A directory of the guest's is a node, too, in one of them.
        let mut count = 0;
        let refused = loop {
            match client.ask(Ty::MKDIR, format!("data/d{}/n{count}\0", count / 100)) {
                Ok(_) => count += 1,
                Err(name) => break name,
            }
        };
        assert_eq!(refused, names[3]);
        // The thirteen of the toolstack's, one value, and ten directories count.
        assert_eq!(count, 1000 - 13 - 1 - 10);
    }
}

#[test]
fn the_server_reads_no_further_while_twenty_replies_wait() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/platform/long", "x".repeat(1000));
    // The first reply fills the ring.
    for _ in 0..22 {
        client.send(Ty::READ, 0, b"platform/long\0");
    }
    assert_eq!(client.word(REQ_PROD).wrapping_sub(client.word(REQ_CONS)), 30);
    assert_eq!(store.log().len(), 21);
    let replies: Vec<u32> = client.messages().iter().map(|message| message.header.req_id).collect();
    assert_eq!(replies, (1..=22).collect::<Vec<_>>());
}

#[test]
fn indices_may_stand_anywhere() {
    for index in [1, u32::MAX - 20, u32::MAX / 3 - 5, 1 << 31] {
        let mut client = Client::at(&Store::new(), 7, index);
        assert_eq!(client.word(REQ_CONS), index);
        for _ in 0..if cfg!(miri) { 2 } else { 100 } {
            assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
        }
    }
}

#[test]
fn who_sends_the_impossible_is_served_no_more() {
    for offered in [0, FEATURE_ERROR] {
        let store = Store::new().features(offered);
        let mut client = Client::new(&store);
        assert_eq!((client.word(SERVER_FEATURES), client.word(ERROR)), (offered, 0));
        let mut header = [0; 16];
        header[12..].copy_from_slice(&4097_u32.to_le_bytes());
        client.put(&header);
        assert_eq!(store.error(7), Some(ERROR_PROTOCOL));
        assert_eq!(client.word(ERROR), if offered == 0 { 0 } else { ERROR_PROTOCOL });
        client.send(Ty::READ, 0, b"name\0");
        assert!(client.messages().is_empty());
        for offset in [REQ_PROD, RSP_CONS] {
            let mut client = Client::new(&store);
            client.page.u32(offset).store(1025, Ordering::Release);
            client.notify();
            assert_eq!(store.error(7), Some(ERROR_RING_INDEX));
        }
    }
}

#[test]
fn a_connection_begins_anew_where_that_is_offered() {
    let store = Store::oxenstored();
    let mut client = Client::at(&store, 7, 77);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
    client.start().unwrap();
    client.messages();
    // Half a request, and an index that cannot be.
    client.put(&[2, 0, 0, 0, 1]);
    client.page.u32(RSP_CONS).store(1 << 20, Ordering::Release);
    client.notify();
    assert_eq!(store.error(7), Some(ERROR_RING_INDEX));
    client.page.u32(CONNECTION).store(RECONNECT, Ordering::Release);
    client.notify();
    let words = [CONNECTION, REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS, ERROR].map(|offset| client.word(offset));
    assert_eq!(words, [0; 6]);
    assert!(store.watches(7).is_empty() && store.transactions(7) == 0 && store.error(7).is_none());
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
    drop(client);
    // Elsewhere the word is nobody's.
    let mut client = Client::new(&Store::new());
    client.page.u32(CONNECTION).store(RECONNECT, Ordering::Release);
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
    assert_eq!(client.word(CONNECTION), RECONNECT);
}

#[test]
fn a_connection_may_be_made_after_the_domain() {
    let mut client = Client::new(&Store::new().connects_after(Duration::from_micros(5)));
    assert_eq!(client.word(CONNECTION), RECONNECT);
    client.wait(4_999);
    assert_eq!((client.word(CONNECTION), client.raised), (RECONNECT, 0));
    client.wait(5_000);
    assert_eq!((client.word(CONNECTION), client.raised), (CONNECTED, 1));
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
}

#[test]
fn a_server_may_be_late_slow_and_silent() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.delay(Duration::from_nanos(50));
    client.send(Ty::READ, 0, b"name\0");
    client.wait(49);
    assert!(client.messages().is_empty() && client.raised == 0);
    client.wait(50);
    assert_eq!(client.messages().len(), 1);
    store.behave();
    store.pace(1);
    let raised = client.raised;
    client.send(Ty::READ, 0, b"name\0");
    client.wait(1_000_000);
    // 21 bytes there and 22 back, of which the first goes in the turn of the last of those.
    assert_eq!(client.raised - raised, 21 + 22 - 1);
    assert_eq!(client.messages().len(), 1);
    store.behave();
    store.stop();
    client.send(Ty::READ, 0, b"name\0");
    client.wait(1_000_000_000);
    assert!(client.messages().is_empty());
    store.behave();
    client.wait(1_000_000_000);
    assert_eq!(client.messages().len(), 1);
}

#[test]
fn a_server_may_say_anything() {
    let store = Store::new();
    let mut client = Client::new(&store);
    // Another number, a length that is none, nothing at all, and twice what was held back.
    let (mut count, mut kept) = (0, None);
    store.tamper(move |domain, mut message| {
        assert_eq!(domain, 7);
        count += 1;
        match count {
            1 => message.header.req_id = 99,
            2 => message.header.len = 2,
            3 => return vec![],
            4 => {
                kept = Some(message);
                return vec![];
            }
            _ => return [message].into_iter().chain(kept.clone()).chain(kept.take()).collect(),
        }
        vec![message]
    });
    let ids: Vec<u32> = (0..5).map(|_| client.send(Ty::READ, 0, b"domid\0")).collect();
    client.take();
    let bytes = core::mem::take(&mut client.received);
    // All replies are 17 bytes; the second claims 18, and so on.
    assert_eq!(bytes.len(), 5 * 17);
    assert_eq!((bytes[4], bytes[17 + 12]), (99, 2));
    let numbers: Vec<u32> = bytes[34..].chunks(17).map(|message| u32::from(message[4])).collect();
    assert_eq!(numbers, [ids[4], ids[3], ids[3]]);
    store.behave();
    store.refuse(|ty, payload| (ty == Ty::READ && payload == b"name\0").then_some("EWEIRD"));
    assert_eq!(client.ask(Ty::READ, "name\0"), error("EWEIRD"));
    assert_eq!(client.ask(Ty::READ, "domid\0"), text("7"));
    // The end of a transaction that is refused is its end all the same.
    let id = client.start().unwrap();
    store.refuse(|ty, _| (ty == Ty::TRANSACTION_END).then_some("EAGAIN"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("EAGAIN"));
    assert_eq!(store.transactions(7), 0);
    // Messages that nobody asked for, and words of the page.
    store.send(7, &Message::event("data", "unknown"));
    store.set_word(7, RSP_PROD, 5000);
    let raised = client.raised;
    client.wait(0);
    assert_eq!((client.word(RSP_PROD), client.raised), (5000, raised + 1));
}

#[test]
fn dom0_reacts_as_a_back_end_does() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/0/backend/vif/7/0/state", "2");
    store.set_permissions("/local/domain/0/backend/vif/7/0/state", &["n0", "r7"]);
    store.react("/local/domain/7/data/state", |dom0, path| {
        let state = dom0.read(path).unwrap_or_default();
        if state == b"3" {
            dom0.write("/local/domain/0/backend/vif/7/0/state", "4");
        }
    });
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/0/backend/vif/7/0/state\0t\0"), ok());
    client.events();
    assert_eq!(client.ask(Ty::WRITE, "data/state\x003"), ok());
    assert_eq!(client.events(), ["/local/domain/0/backend/vif/7/0/state t"]);
    assert_eq!(client.ask(Ty::READ, "/local/domain/0/backend/vif/7/0/state\0"), text("4"));
}
