//! The client of xenstore as a whole: a server that answers in any order, or twice, or what nobody asked for, whose page says
//! anything, and tasks that give up at any moment.

use std::collections::VecDeque;
use std::time::Duration;

use domu::executor::{Task, activity, spawn, yield_now};
use domu::sim::abi::xs_wire::{
    CONNECTION, ERROR, FEATURE_ERROR, FEATURE_RECONNECTION, MessageType, REQ_CONS, RSP_PROD, SERVER_FEATURES,
};
use domu::sim::access::fuzz_peer::{self, Kind};
use domu::sim::{Guest, Store};
use domu::xenstore::{Access, Error, Permission, Xenstore};
use domu::{Domain, DomainId, time};

use crate::input::Input;
use crate::xenstored::{Request, Server, message, message_of_length, turns};
use crate::{guest, liar};

/// Tasks at a time: more than the server takes requests, or has transactions for.
const MOST: usize = 40;
/// Turns in which all that was asked for must be done with an honest server.
const ROUNDS: usize = 200;

/// Does something with the store, and says so if it waits for others to do something.
async fn act(store: Xenstore, what: u8, input: Input) -> Result<(), Error> {
    let path = format!("n{}", input.u8() % 8);
    match what % 12 {
        0 => store.read(path).await.map(|_| ()),
        1 => store.write(path, vec![b'v'; input.below(4096)]).await,
        2 => store.directory(path).await.map(|_| ()),
        3 => store.permissions(path).await.map(|_| ()),
        4 => store.set_permissions(path, &[Permission { domain: DomainId(7), access: Access::None }]).await,
        5 => store.reset_watches().await,
        6 => time::timeout(Duration::from_micros(input.u8().into()), store.remove(path)).await.unwrap_or(Ok(())),
        7 => store.begin().await.map(drop),
        8 => {
            let transaction = store.begin().await?;
            transaction.write(path, b"value").await?;
            if input.flag() { transaction.commit().await } else { transaction.abort().await }
        }
        9 => {
            let change = async |nodes: &domu::xenstore::Nodes| {
                let value = nodes.read(&path).await?;
                nodes.write(&path, value.as_bytes()).await
            };
            store.transaction(change).await
        }
        10 => store.wait_for(path, |value| value?.number::<u8>().ok()).await.map(|_| ()),
        _ => {
            let mut watch = store.watch(path).await?;
            loop {
                watch.next().await?;
            }
        }
    }
}

/// Whether it may go on for ever.
const fn is_endless(what: u8) -> bool {
    what % 12 >= 10
}

const NAMES: [&str; 8] = ["ENOENT", "EACCES", "EEXIST", "ENOSPC", "E2BIG", "EAGAIN", "EINVAL", "EDOOFUS"];

/// A server, and what it still owes.
struct Liar {
    server: Server,
    owed: Vec<Request>,
    /// Tokens of watches.
    tokens: Vec<Vec<u8>>,
    outgoing: VecDeque<u8>,
    transactions: u32,
    /// Where it is in the stream, or in the ring, the domain cannot know any more.
    lost: bool,
}

impl Liar {
    fn listen(&mut self) {
        let requests = self.server.requests();
        let watches = requests.iter().filter(|request| request.ty == MessageType::WATCH);
        self.tokens.extend(watches.map(|request| request.string(1).to_vec()));
        self.owed.extend(requests);
    }

    /// Sends something, behind what there was no room for yet.
    fn send(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
        let count = self.server.write(self.outgoing.make_contiguous());
        self.outgoing.drain(..count);
    }

    /// What an honest server says to a request.
    fn honest(&mut self, request: &Request) -> Vec<u8> {
        match request.ty {
            MessageType::TRANSACTION_START => {
                self.transactions += 1;
                message(request.ty, request.id, format!("{}\0", self.transactions).as_bytes())
            }
            MessageType::READ => message(request.ty, request.id, b"12"),
            MessageType::DIRECTORY => message(request.ty, request.id, b"a\0b\0"),
            MessageType::GET_PERMS => message(request.ty, request.id, b"n7\0"),
            MessageType::DIRECTORY_PART => message(request.ty, request.id, b"1\0last\0\0"),
            ty => message(ty, request.id, b"OK\0"),
        }
    }

    fn answer(&mut self, input: &Input) {
        self.listen();
        let chosen = input.below(self.owed.len());
        let what = input.u8();
        let bytes = match what % 16 {
            0 => {
                let path = format!("n{}/{}", input.u8() % 8, input.u8() % 32);
                let token = self.tokens.get(input.below(self.tokens.len() + 1)).cloned().unwrap_or_default();
                message(MessageType::WATCH_EVENT, 0, &[path.as_bytes(), b"\0", &token, b"\0"].concat())
            }
            1 => message(MessageType::WATCH_EVENT, input.u32(), &input.bytes(20)),
            2 => message(MessageType((input.u8() % 32).into()), input.u8().into(), &input.bytes(20)),
            3 if what & 0x70 == 0 => {
                self.lost = true;
                message_of_length(MessageType::READ, input.u8().into(), input.number() as u32, &input.bytes(20))
            }
            _ if self.owed.is_empty() => Vec::new(),
            4 if what & 0x10 == 0 => self.honest_of(chosen),
            // A listing in parts, or one of them.
            4 => self.part(chosen, input),
            5 | 6 => {
                let request = self.owed.swap_remove(chosen);
                let name = NAMES[usize::from(input.u8()) % NAMES.len()];
                message(MessageType::ERROR, request.id, format!("{name}\0").as_bytes())
            }
            7 => {
                let (ty, id) = (MessageType((input.u8() % 32).into()), self.owed[chosen].id);
                // An event answers nothing.
                if ty != MessageType::WATCH_EVENT {
                    self.owed.swap_remove(chosen);
                }
                message(ty, id, &input.bytes(20))
            }
            8 => {
                let request = self.owed.swap_remove(chosen);
                message(request.ty, request.id, format!("{}\0", input.u8() % 16).as_bytes())
            }
            9 => {
                let request = self.owed.swap_remove(chosen);
                message(request.ty, request.id, &vec![b'x'; input.below(4097)])
            }
            _ => {
                let bytes = self.honest_of(chosen);
                self.owed.swap_remove(chosen);
                bytes
            }
        };
        self.send(&bytes);
    }

    /// Has the oldest request for a listing be answered in parts, or answers with a part: of a generation that may change, with
    /// names or without, and perhaps not the last. The input decides how many of them are not the last.
    fn part(&mut self, chosen: usize, input: &Input) -> Vec<u8> {
        let listings = [MessageType::DIRECTORY, MessageType::DIRECTORY_PART];
        let Some(index) = self.owed.iter().position(|request| listings.contains(&request.ty)) else {
            return self.honest_of(chosen);
        };
        let request = self.owed.swap_remove(index);
        if request.ty == MessageType::DIRECTORY {
            return message(MessageType::ERROR, request.id, b"E2BIG\0");
        }
        let how = input.u8();
        let mut payload = format!("{}\0", how & 1).into_bytes();
        match how >> 1 & 7 {
            // No names, which is no part.
            0 => {}
            // Cut off.
            1 => payload.extend(b"name\0cut"),
            // The last.
            2 => payload.extend(b"name\0\0"),
            // As long as can be: the limit is reached soon.
            3 | 4 => payload.extend(b"a\0".repeat((4096 - payload.len()) / 2)),
            _ => payload.extend(b"name\0".repeat(1 + usize::from(how >> 4))),
        }
        message(request.ty, request.id, &payload)
    }

    /// Breaks the connection so often, and makes the next whenever the domain asks for it. The domain must not spin in between.
    async fn flap(&mut self, times: u8) {
        self.lost = true;
        self.server.set(SERVER_FEATURES, FEATURE_RECONNECTION);
        let before = activity().turns;
        let mut broken = 0;
        for _ in 0..u32::from(times) * 4 {
            self.server.set(RSP_PROD, 0x7fff_0000);
            self.server.notify();
            time::sleep(Duration::from_millis(10)).await;
            if self.server.is_asked_anew() {
                broken += 1;
                self.server.connect();
                self.owed.clear();
                self.outgoing.clear();
            }
        }
        // 20 turns for each look and for each connection are plenty.
        let turns = activity().turns - before;
        assert!(turns <= 20 * (u64::from(times) * 4 + broken) + 1000, "{turns} turns for {broken} connections");
    }

    fn honest_of(&mut self, index: usize) -> Vec<u8> {
        let Request { ty, id, ref payload } = self.owed[index];
        let request = Request { ty, id, payload: payload.clone() };
        self.honest(&request)
    }

    /// Is honest until nothing is asked for any more, and nothing read of what is said.
    async fn settle(&mut self) {
        let (mut quiet, mut before) = (0, None);
        for _ in 0..ROUNDS {
            if self.server.is_asked_anew() {
                self.server.connect();
                self.owed.clear();
                self.outgoing.clear();
            }
            self.listen();
            while let Some(request) = self.owed.pop() {
                let bytes = self.honest(&request);
                self.outgoing.extend(bytes);
            }
            self.send(&[]);
            let now = Some(self.server.progress());
            quiet = if now == before && !self.server.is_asked_anew() { quiet + 1 } else { 0 };
            before = now;
            // Three are longer than the longest back-off of the client.
            time::sleep(Duration::from_millis(400)).await;
            turns().await;
            if quiet > 2 {
                return;
            }
        }
        panic!("the domain asks without an end");
    }
}

/// Whatever the server does, each task comes to an end once it is honest, or the connection is over; and when all have, or were
/// stopped, the client keeps nothing of them.
pub fn xenstore_client(bytes: &[u8]) {
    let input = Input::new(bytes);
    let store = Store::new();
    store.stop();
    let setup = Guest::new().trusted().command_line("domu.log=off").xenstore(&store).xenstore_index(input.u32());
    let lies = input.u8().is_multiple_of(4);
    let gives_up = input.flag();
    if lies {
        liar::begin(&input, |kind, _| kind == Kind::Xenstore);
    }
    guest(setup, |domain| talk(domain, input, lies, gives_up));
}

async fn talk(domain: Domain, input: Input, lies: bool, gives_up: bool) {
    let store = domain.xenstore();
    let server = Server::new(u32::from(input.u8() % 4));
    let (owed, tokens, outgoing) = (Vec::new(), Vec::new(), VecDeque::new());
    let mut liar = Liar { server, owed, tokens, outgoing, transactions: 0, lost: lies };
    let mut tasks: Vec<(u8, Task<Result<(), Error>>)> = Vec::new();
    while !input.is_over() {
        let chosen = input.below(tasks.len());
        match input.u8() % 16 {
            0..=4 if tasks.len() < MOST => {
                let what = input.u8();
                tasks.push((what, spawn(act(store.clone(), what, input.clone()))));
            }
            5 if !tasks.is_empty() => drop(tasks.swap_remove(chosen)),
            6 if !tasks.is_empty() => drop(tasks.swap_remove(chosen).1.abort().await),
            7 => time::sleep(Duration::from_micros(input.u8().into())).await,
            8 | 9 => yield_now().await,
            11 if input.u8().is_multiple_of(8) => liar.flap(input.u8() % 32).await,
            10 if input.u8().is_multiple_of(4) => {
                liar.lost = true;
                let word = input.number() as u32;
                match input.u8() % 8 {
                    0 => liar.server.set(CONNECTION, word % 3),
                    1 => liar.server.set(ERROR, word),
                    2 => liar.server.set(SERVER_FEATURES, word),
                    3 => liar.server.set(SERVER_FEATURES, FEATURE_RECONNECTION | FEATURE_ERROR),
                    4 => liar.server.set(REQ_CONS, word),
                    5 => liar.server.set(RSP_PROD, word),
                    _ => liar.server.connect(),
                }
                liar.server.notify();
            }
            _ => liar.answer(&input),
        }
    }
    if gives_up {
        tasks.clear();
    }
    if liar.lost {
        // It cannot be gone on with.
        liar.server.set(SERVER_FEATURES, FEATURE_RECONNECTION);
        liar.outgoing.clear();
        liar.server.break_connection().await;
        liar.server.connect();
        liar.owed.clear();
    }
    liar.settle().await;
    for (what, task) in &tasks {
        assert!(task.is_finished() || is_endless(*what), "{what} hangs");
    }
    tasks.clear();
    liar.settle().await;
    assert!(fuzz_peer::xenstore_is_clean(), "something is kept");
}
