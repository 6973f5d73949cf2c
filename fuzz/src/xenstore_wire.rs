//! Xenstore's stream of replies: any bytes, cut anywhere, against a model of what they mean.

use domu::executor::{Task, spawn};
use domu::sim::abi::xs_wire::{FEATURE_RECONNECTION, HEADER_SIZE, MessageType, PAYLOAD_MAX};
use domu::sim::access::fuzz_peer;
use domu::sim::{Guest, Store};
use domu::xenstore::{Access, Error, ErrorKind, Xenstore};
use domu::{Domain, DomainId};

use crate::guest;
use crate::input::Input;
use crate::xenstored::{Request, Server, message, message_of_length, turns};

/// Requests of a case: the server has all of them at a time.
const MOST: usize = 20;
/// Bytes at a time: no more messages than the client takes in one turn.
const AT_ONCE: usize = 1000;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    List,
    Permissions,
    Introduced,
    Home,
    Write,
    Request,
    Watch,
    Begin,
}

const KINDS: [Kind; 9] = [
    Kind::Read,
    Kind::List,
    Kind::Permissions,
    Kind::Introduced,
    Kind::Home,
    Kind::Write,
    Kind::Request,
    Kind::Watch,
    Kind::Begin,
];

/// What has come of it, as the bytes of a reply that means the same.
type Outcome = Result<Vec<u8>, Error>;

/// Asks for something, with a number that the server finds in the request.
async fn ask(store: Xenstore, kind: Kind, number: usize) -> Outcome {
    let path = format!("n{number}");
    let about = DomainId(number as u16);
    Ok(match kind {
        Kind::Read => store.read(path).await?.into_bytes(),
        Kind::List => store.directory(path).await?.iter().flat_map(|name| name.bytes().chain([0])).collect(),
        Kind::Permissions => store.permissions(path).await?.iter().flat_map(entry).collect(),
        Kind::Introduced => if store.is_introduced(about).await? { b"T\0" } else { b"F\0" }.to_vec(),
        Kind::Home => store.home_of(about).await?.as_str().bytes().chain([0]).collect(),
        Kind::Write => store.write(path, b"value").await.map(|()| Vec::new())?,
        Kind::Request => store.request(MessageType::CONTROL, &[path.as_bytes()]).await?,
        Kind::Watch => store.watch(path).await.map(|_| Vec::new())?,
        Kind::Begin => store.begin().await.map(|_| Vec::new())?,
    })
}

fn entry(permission: &domu::xenstore::Permission) -> Vec<u8> {
    let letter = match permission.access {
        Access::None => 'n',
        Access::Read => 'r',
        Access::Write => 'w',
        Access::Both => 'b',
        other => unreachable!("{other:?}"),
    };
    format!("{letter}{}\0", permission.domain.0).into_bytes()
}

/// The strings of a payload, if each ends in a NUL.
fn strings(payload: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings: Vec<&[u8]> = payload.split(|&byte| byte == 0).collect();
    strings.pop().filter(|rest| rest.is_empty()).map(|_| strings)
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-_@".contains(&byte))
}

/// A number of at most so much.
fn number(text: &[u8], most: u64) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()?;
    (number <= most).then_some(number)
}

/// What a reply of the right type means: none if that is nothing.
fn meaning(kind: Kind, payload: &[u8]) -> Option<Vec<u8>> {
    let all = || Some(payload.to_vec());
    let single = || strings(payload).filter(|strings| strings.len() == 1).map(|strings| strings[0]);
    match kind {
        Kind::Read | Kind::Request => all(),
        Kind::Write | Kind::Watch => Some(Vec::new()),
        Kind::List => all().filter(|_| strings(payload).is_some_and(|names| names.into_iter().all(is_name))),
        Kind::Permissions => strings(payload)?.into_iter().try_fold(Vec::new(), |mut entries, text| {
            let (letter, rest) = text.split_first().filter(|(letter, _)| b"nrwb".contains(letter))?;
            let number = number(rest, u64::from(u16::MAX))?;
            entries.extend([*letter].into_iter().chain(format!("{number}\0").into_bytes()));
            Some(entries)
        }),
        Kind::Introduced => all().filter(|payload| payload == b"T\0" || payload == b"F\0"),
        Kind::Home => {
            let names = single()?.strip_prefix(b"/")?;
            let right = names.is_empty() || names.split(|&byte| byte == b'/').all(is_name);
            all().filter(|payload| right && payload.len() <= 3073)
        }
        Kind::Begin => number(single()?, u64::from(u32::MAX)).filter(|&number| number > 0).map(|_| Vec::new()),
    }
}

/// Whether an error is what a server has named.
fn is_named(error: ErrorKind, name: &[u8]) -> bool {
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    match name {
        b"ENOENT" => error == ErrorKind::NotFound,
        b"EACCES" | b"EPERM" => error == ErrorKind::Denied,
        b"EEXIST" => error == ErrorKind::Exists,
        b"EQUOTA" | b"ENOSPC" | b"E2BIG" => error == ErrorKind::Quota,
        b"EAGAIN" => error == ErrorKind::Conflict,
        _ => {
            let shown = name.iter().take(23).map(|&byte| if matches!(byte, b' '..=b'~') { byte as char } else { '?' });
            matches!(error, ErrorKind::Refused(code) if code.name() == shown.collect::<String>())
        }
    }
}

/// What a call must come to.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Expected {
    /// It has had no answer.
    Nothing,
    /// An answer of the right type.
    Reply(Vec<u8>),
    /// One that names an error.
    Refusal(Vec<u8>),
    /// One of another type.
    Malformed,
    /// The connection broke before there was any.
    Broken,
}

struct Call {
    kind: Kind,
    task: Task<Outcome>,
    expected: Expected,
}

impl Call {
    /// The connection breaks.
    fn lose(&mut self, offers: bool) {
        // Watches and transactions are lost with it until somebody has learnt of them; a watch is asked for again where there
        // will be another.
        let lost = match (self.kind, &self.expected) {
            (Kind::Begin, _) | (Kind::Watch, Expected::Reply(_)) => true,
            (Kind::Watch, Expected::Refusal(name)) => !offers || is_named(ErrorKind::Exists, name),
            (Kind::Watch, _) => !offers,
            _ => false,
        };
        if lost && !self.task.is_finished() {
            self.expected = Expected::Nothing;
        }
        if self.expected == Expected::Nothing && !(offers && self.kind == Kind::Watch) {
            self.expected = Expected::Broken;
        }
    }

    /// Holds what has come against what must.
    async fn judge(self) {
        let Self { kind, task, expected } = self;
        assert!(task.is_finished(), "{kind:?} hangs, after {expected:?}");
        let got = task.await;
        let right = match (&expected, &got) {
            (Expected::Nothing, _) => false,
            // It asks for parts then, which may lead anywhere.
            (Expected::Refusal(name), _) if kind == Kind::List && is_named(ErrorKind::Quota, name) => true,
            (Expected::Refusal(name), Ok(_)) => kind == Kind::Watch && is_named(ErrorKind::Exists, name),
            (Expected::Refusal(name), Err(error)) => is_named(error.kind(), name),
            // Not the number of another.
            (Expected::Reply(_), Err(error)) if kind == Kind::Begin && *error == ErrorKind::Malformed => true,
            (Expected::Reply(payload), _) => {
                got.as_ref().map_err(|error| error.kind())
                    == meaning(kind, payload).as_ref().ok_or(ErrorKind::Malformed)
            }
            (Expected::Malformed, _) => got.as_ref().is_err_and(|error| *error == ErrorKind::Malformed),
            (Expected::Broken, _) => got.as_ref().is_err_and(|error| *error == ErrorKind::Broken),
        };
        assert!(right, "{kind:?}, after {expected:?}: {got:?}");
    }
}

/// The server, and what it knows of what it has said.
struct Model {
    server: Server,
    calls: Vec<Call>,
    /// Requests that have no answer, each with the call that waits for it, if one does.
    open: Vec<(Request, Option<usize>)>,
    begun: usize,
    /// What was said of a message that is not whole.
    said: Vec<u8>,
    broken: bool,
    /// A new connection is offered.
    offers: bool,
}

impl Model {
    /// Asks for something more.
    fn call(&mut self, store: &Xenstore, kind: Kind) {
        let task = spawn(ask(store.clone(), kind, self.calls.len()));
        self.calls.push(Call { kind, task, expected: Expected::Nothing });
    }

    /// Makes the new connection that the domain wants.
    fn connect(&mut self) {
        assert!(self.server.is_asked_anew(), "no new connection is asked for");
        self.server.connect();
        self.said.clear();
        self.open.clear();
        self.broken = false;
    }

    fn listen(&mut self) {
        for request in self.server.requests() {
            let calls: Vec<Kind> = self.calls.iter().map(|call| call.kind).collect();
            let named = || {
                let digits = request.string(0).strip_prefix(b"n").unwrap_or(request.string(0));
                number(digits, calls.len() as u64 - 1).map(|number| number as usize)
            };
            let call = match request.ty {
                MessageType::TRANSACTION_START => {
                    self.begun += 1;
                    (0..calls.len()).filter(|&call| calls[call] == Kind::Begin).nth(self.begun - 1)
                }
                MessageType::TRANSACTION_END | MessageType::UNWATCH | MessageType::DIRECTORY_PART => None,
                _ => named(),
            };
            self.open.push((request, call));
        }
    }

    /// Whether the domain listens: not when nothing is owed to it.
    fn is_heard(&self) -> bool {
        !self.broken && !self.open.is_empty()
    }

    /// Sends bytes in pieces, and takes note of what they mean.
    async fn say(&mut self, bytes: &[u8], input: &Input) {
        let mut rest = bytes;
        while !rest.is_empty() && self.is_heard() {
            let size = match input.u8() {
                size if size & 0x80 == 0 && !input.is_over() => 1 + usize::from(size),
                _ => AT_ONCE,
            };
            let count = self.server.write(&rest[..size.min(rest.len())]);
            assert!(count > 0, "the domain does not listen");
            self.said.extend_from_slice(&rest[..count]);
            rest = &rest[count..];
            self.understand();
            turns().await;
            self.listen();
        }
    }

    /// What is left of the message that was begun.
    fn missing(&self) -> usize {
        let length = self.said.get(12..HEADER_SIZE).map_or(0, |length| u32::from_le_bytes(length.try_into().unwrap()));
        (HEADER_SIZE + length as usize).saturating_sub(self.said.len())
    }

    fn understand(&mut self) {
        while self.said.len() >= HEADER_SIZE {
            let field = |at: usize| u32::from_le_bytes(self.said[at..at + 4].try_into().unwrap());
            let (ty, id, length) = (MessageType(field(0)), field(4), field(12) as usize);
            if length > PAYLOAD_MAX {
                self.broken = true;
                let offers = self.offers;
                self.calls.iter_mut().for_each(|call| call.lose(offers));
                return;
            }
            if self.missing() > 0 {
                return;
            }
            let payload = self.said[HEADER_SIZE..HEADER_SIZE + length].to_vec();
            self.said.drain(..HEADER_SIZE + length);
            if ty == MessageType::WATCH_EVENT {
                continue;
            }
            let Some(index) = self.open.iter().position(|(request, _)| request.id == id) else { continue };
            let (request, call) = self.open.remove(index);
            if let Some(call) = call {
                self.calls[call].expected = match ty {
                    MessageType::ERROR => Expected::Refusal(payload),
                    _ if ty == request.ty => Expected::Reply(payload),
                    _ => Expected::Malformed,
                };
            }
        }
    }
}

/// A payload that may make sense.
fn payload(input: &Input) -> Vec<u8> {
    match input.u8() % 8 {
        0 => b"T\0".to_vec(),
        1 => format!("{}\0", input.number()).into_bytes(),
        2 => b"a\0b-c\0D_9@\0".to_vec(),
        3 => format!("n7\0r{}\0", input.u16()).into_bytes(),
        4 => b"/local/domain/7\0".to_vec(),
        5 => vec![input.u8(); input.below(PAYLOAD_MAX + 1)],
        _ => input.bytes(40),
    }
}

const NAMES: [&str; 10] =
    ["ENOENT", "EACCES", "EPERM", "EEXIST", "EQUOTA", "ENOSPC", "E2BIG", "EAGAIN", "EINVAL", "EDOOFUS"];

/// Something for the stream.
fn some(input: &Input, model: &Model) -> Vec<u8> {
    let chosen = input.below(model.open.len());
    let (ty, id) = model.open.get(chosen).map_or((MessageType::READ, 7), |(request, _)| (request.ty, request.id));
    match input.u8() % 16 {
        0 => {
            message(MessageType::ERROR, id, &[NAMES[usize::from(input.u8()) % NAMES.len()].as_bytes(), b"\0"].concat())
        }
        1 => message(MessageType::ERROR, id, &input.bytes(30)),
        2 => message(MessageType((input.u8() % 32).into()), id, &payload(input)),
        3 => message(ty, input.u32(), &payload(input)),
        4 => message(MessageType::WATCH_EVENT, id, format!("n0\0{}\0", input.u8() % 32).as_bytes()),
        5 => message(MessageType::WATCH_EVENT, id, &input.bytes(40)),
        6 => input.bytes(60),
        7 => message_of_length(ty, id, input.number() as u32, &payload(input)),
        8 => message_of_length(ty, id, input.u8().into(), &payload(input)),
        _ => message(ty, id, &payload(input)),
    }
}

/// Requests of all kinds, and a server that is the input. Each request comes to what its reply means, whatever is said to others;
/// a header that cannot be ends the connection, and every request with it. Nothing of them is kept.
pub fn xenstore_wire(bytes: &[u8]) {
    let input = Input::new(bytes);
    let store = Store::new();
    store.stop();
    let setup = Guest::new().trusted().command_line("domu.log=off").xenstore(&store).xenstore_index(input.u32());
    guest(setup, |domain| talk(domain, input));
}

async fn talk(domain: Domain, input: Input) {
    let offers = input.flag();
    let store = domain.xenstore();
    let server = Server::new(u32::from(offers) * FEATURE_RECONNECTION);
    let mut model =
        Model { server, calls: Vec::new(), open: Vec::new(), begun: 0, said: Vec::new(), broken: false, offers };
    for _ in 0..=input.below(MOST) {
        model.call(&store, KINDS[usize::from(input.u8()) % KINDS.len()]);
    }
    turns().await;
    model.listen();
    while !input.is_over() && model.is_heard() {
        let next = some(&input, &model);
        model.say(&next, &input).await;
    }
    // The message at hand is ended.
    while model.missing() > 0 && !model.said.is_empty() && model.is_heard() {
        model.say(&vec![0; model.missing()], &input).await;
    }
    if model.broken && offers {
        model.connect();
        model.call(&store, Kind::Read);
        turns().await;
        model.listen();
    }
    // Each request is answered, and what it leads to.
    while model.is_heard() {
        let id = model.open[0].0.id;
        model.say(&message(MessageType::ERROR, id, b"EIO\0"), &input).await;
    }
    turns().await;
    for call in model.calls {
        call.judge().await;
    }
    turns().await;
    assert!(fuzz_peer::xenstore_is_clean(), "something is kept");
    if model.broken {
        assert_eq!(
            store.read("name").await.map_err(|error| error.kind()),
            Err(ErrorKind::Broken),
            "it is broken for good"
        );
    }
}
