//! The requests of the protocol: what each holds, who may send it, and what it is answered.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use crate::abi::xs_wire::{FEATURE_WATCH_DEPTH, Header, MessageType, REL_PATH_MAX};
use crate::sim::xenstored::connection::Watch;
use crate::sim::xenstored::nodes::{Actor, absolute};
use crate::sim::xenstored::tree::{Permission, Refusal, Transaction, View};
use crate::sim::xenstored::{Flavour, Message, Server};

/// Transactions that a domain may have open.
const TRANSACTIONS: usize = 10;
/// Nodes that a transaction may see by C xenstored, and requests that it may be of by oxenstored.
const TRANSACTION: usize = 1024;

impl Flavour {
    /// Watches that a domain may have.
    const fn watches(self) -> usize {
        match self {
            Self::C => 128,
            Self::Ocaml => 100,
        }
    }

    /// Requests whose replies may wait before the server reads no further.
    pub(super) const fn outstanding(self) -> usize {
        match self {
            Self::C => 20,
            Self::Ocaml => 1024,
        }
    }

    /// Bytes of a path below a domain's home, or of one elsewhere.
    pub(super) const fn path(self) -> usize {
        match self {
            Self::C => REL_PATH_MAX,
            Self::Ocaml => 1024,
        }
    }

    /// How much there is of a transaction, of [`TRANSACTION`].
    fn size(self, transaction: &Transaction) -> usize {
        match self {
            Self::C => transaction.touched(),
            Self::Ocaml => transaction.requests,
        }
    }
}

/// The answer to a request, or the name of an error.
type Answer = Result<Vec<u8>, Refusal>;

/// What is answered where there is nothing to say.
fn done(_: ()) -> Vec<u8> {
    Vec::from(b"OK\0")
}

/// The strings of a request, of which each ends in a NUL.
fn strings(payload: &[u8]) -> Result<Vec<&str>, Refusal> {
    let text = core::str::from_utf8(payload).map_err(|_| "EINVAL")?;
    Ok(text.strip_suffix('\0').ok_or("EINVAL")?.split('\0').collect())
}

/// The strings of a request that has so many.
fn exactly<const N: usize>(payload: &[u8]) -> Result<[&str; N], Refusal> {
    strings(payload)?.try_into().map_err(|_| "EINVAL")
}

/// The path, which may be a special one, and what follows its NUL.
fn path_and_rest(payload: &[u8]) -> Result<(&str, &[u8]), Refusal> {
    let end = payload.iter().position(|&byte| byte == 0).ok_or("EINVAL")?;
    Ok((core::str::from_utf8(&payload[..end]).map_err(|_| "EINVAL")?, &payload[end + 1..]))
}

fn absolute_or_special(flavour: Flavour, domain: u16, path: &str) -> Result<String, Refusal> {
    let special = path.starts_with('@') && path.len() <= REL_PATH_MAX;
    if special { Ok(path.to_string()) } else { absolute(flavour, domain, path) }
}

impl Server {
    /// Answers a request.
    pub(super) fn request(&mut self, domain: u16, request: Message) {
        let Message { header: Header { ty, req_id, tx_id, .. }, payload } = request;
        let refusal = self.refuse.as_mut().and_then(|refuse| refuse(ty, &payload));
        let answer = match refusal {
            None => self.answer(domain, ty, tx_id, &payload),
            Some(name) => {
                if ty == MessageType::TRANSACTION_END {
                    self.take_transaction(domain, tx_id);
                }
                Err(name)
            }
        };
        self.log.push((domain, ty, payload));
        // Each of the two servers has an order of its own. The first event of a watch always comes later.
        if self.flavour == Flavour::C && ty != MessageType::WATCH {
            self.flush();
        }
        let (ty, payload) = match answer {
            Ok(payload) => (ty, payload),
            Err(name) => (MessageType::ERROR, format!("{name}\0").into_bytes()),
        };
        self.send(domain, Message::new(ty, req_id, tx_id, payload), true);
    }

    fn take_transaction(&mut self, domain: u16, tx_id: u32) -> Option<Transaction> {
        self.connections.get_mut(&domain)?.transactions.remove(&tx_id)
    }

    fn answer(&mut self, domain: u16, ty: MessageType, tx_id: u32, payload: &[u8]) -> Answer {
        let is_open = |server: &Self| server.connections.get(&domain)?.transactions.get(&tx_id).map(|_| ());
        if tx_id != 0 && is_open(self).is_none() {
            return Err("ENOENT");
        }
        match ty {
            MessageType::WATCH => self.watch(domain, payload).map(done),
            MessageType::UNWATCH => self.unwatch(domain, payload).map(done),
            MessageType::RESET_WATCHES => self.reset(domain).map(done),
            MessageType::TRANSACTION_START => self.start(domain, tx_id),
            MessageType::TRANSACTION_END => self.end(domain, tx_id, payload).map(done),
            MessageType::GET_DOMAIN_PATH => {
                let [number] = exactly(payload)?;
                let number: u16 = number.parse().map_err(|_| "EINVAL")?;
                Ok(format!("/local/domain/{number}\0").into_bytes())
            }
            MessageType::IS_DOMAIN_INTRODUCED if self.flavour == Flavour::C => {
                let [number] = exactly(payload)?;
                let number: u16 = number.parse().map_err(|_| "EINVAL")?;
                let is_introduced = number == 0 || self.connections.contains_key(&number);
                Ok(Vec::from(if is_introduced { b"T\0" } else { b"F\0" }))
            }
            MessageType::CONTROL
            | MessageType::INTRODUCE
            | MessageType::RELEASE
            | MessageType::RESUME
            | MessageType::SET_TARGET
            | MessageType::IS_DOMAIN_INTRODUCED => Err("EACCES"),
            _ => self.nodes(domain, ty, tx_id, payload),
        }
    }

    /// Answers a request about a node, which may be one of a transaction.
    fn nodes(&mut self, domain: u16, ty: MessageType, tx_id: u32, payload: &[u8]) -> Answer {
        let mut transaction = self.take_transaction(domain, tx_id);
        let view = View { tree: &mut self.tree, transaction: transaction.as_mut() };
        let mut actor = Actor { domain, flavour: self.flavour, view, changes: Vec::new() };
        let mut answer = about_node(&mut actor, ty, payload);
        let changes = actor.changes;
        if let Some(transaction) = &mut transaction {
            transaction.requests += 1;
            if self.flavour.size(transaction) > TRANSACTION {
                answer = Err(self.flavour.quota("ENOSPC"));
            }
        }
        if let (Some(connection), Some(transaction)) = (self.connections.get_mut(&domain), transaction) {
            connection.transactions.insert(tx_id, transaction);
        }
        self.fire(changes);
        answer
    }

    fn watch(&mut self, domain: u16, payload: &[u8]) -> Result<(), Refusal> {
        let (path, token, depth) = match strings(payload)?[..] {
            [path, token] => (path, token, None),
            [path, token, depth] if self.features & FEATURE_WATCH_DEPTH != 0 => {
                (path, token, Some(depth.parse().map_err(|_| "EINVAL")?))
            }
            _ => return Err("EINVAL"),
        };
        let absolute = absolute_or_special(self.flavour, domain, path)?;
        let connection = self.connections.get_mut(&domain).ok_or("EINVAL")?;
        let is_there = |watch: &Watch| watch.absolute == absolute && watch.token == token.as_bytes();
        if connection.watches.iter().any(is_there) {
            return Err("EEXIST");
        }
        if connection.watches.len() >= self.flavour.watches() {
            return Err(self.flavour.quota("E2BIG"));
        }
        let (path, token) = (path.to_string(), token.as_bytes().to_vec());
        self.events.push((domain, Message::event(&path, &token)));
        connection.watches.push(Watch { path, absolute, token, depth });
        Ok(())
    }

    fn unwatch(&mut self, domain: u16, payload: &[u8]) -> Result<(), Refusal> {
        let [path, token] = exactly(payload)?;
        let absolute = absolute_or_special(self.flavour, domain, path)?;
        let connection = self.connections.get_mut(&domain).ok_or("EINVAL")?;
        let is_it = |watch: &Watch| watch.absolute == absolute && watch.token == token.as_bytes();
        let index = connection.watches.iter().position(is_it).ok_or("ENOENT")?;
        connection.watches.remove(index);
        Ok(())
    }

    fn reset(&mut self, domain: u16) -> Result<(), Refusal> {
        let connection = self.connections.get_mut(&domain).ok_or("EINVAL")?;
        connection.watches.clear();
        connection.transactions.clear();
        Ok(())
    }

    fn start(&mut self, domain: u16, tx_id: u32) -> Answer {
        if tx_id != 0 {
            return Err("EBUSY");
        }
        let connection = self.connections.get_mut(&domain).ok_or("EINVAL")?;
        if connection.transactions.len() >= TRANSACTIONS {
            return Err(self.flavour.quota("ENOSPC"));
        }
        self.last_transaction += 1;
        connection.transactions.insert(self.last_transaction, Transaction::default());
        Ok(format!("{}\0", self.last_transaction).into_bytes())
    }

    fn end(&mut self, domain: u16, tx_id: u32, payload: &[u8]) -> Result<(), Refusal> {
        let transaction = self.take_transaction(domain, tx_id).ok_or("ENOENT")?;
        match exactly(payload)? {
            ["F"] => Ok(()),
            ["T"] => {
                let changes = transaction.commit(&mut self.tree)?;
                self.fire(changes);
                Ok(())
            }
            _ => Err("EINVAL"),
        }
    }
}

fn about_node(actor: &mut Actor<'_>, ty: MessageType, payload: &[u8]) -> Answer {
    let (flavour, domain) = (actor.flavour, actor.domain);
    match ty {
        MessageType::READ => actor.read(&one_path(flavour, domain, payload)?),
        MessageType::DIRECTORY => actor.directory(&one_path(flavour, domain, payload)?),
        MessageType::DIRECTORY_PART => {
            let [path, offset] = exactly(payload)?;
            let offset = offset.parse().map_err(|_| "EINVAL")?;
            actor.directory_part(&absolute(flavour, domain, path)?, offset)
        }
        MessageType::WRITE => {
            let (path, value) = path_and_rest(payload)?;
            actor.write(&absolute(flavour, domain, path)?, value).map(done)
        }
        MessageType::MKDIR => actor.mkdir(&one_path(flavour, domain, payload)?).map(done),
        MessageType::RM => actor.remove(&one_path(flavour, domain, payload)?).map(done),
        MessageType::GET_PERMS => {
            let [path] = exactly(payload)?;
            let permissions = actor.permissions(&absolute_or_special(flavour, domain, path)?)?;
            Ok(permissions.iter().flat_map(|permission| format!("{permission}\0").into_bytes()).collect())
        }
        MessageType::SET_PERMS => {
            let (path, rest) = path_and_rest(payload)?;
            let permissions: Result<_, _> = strings(rest)?.into_iter().map(Permission::parse).collect();
            actor.set_permissions(&absolute_or_special(flavour, domain, path)?, permissions?).map(done)
        }
        _ => Err("ENOSYS"),
    }
}

fn one_path(flavour: Flavour, domain: u16, payload: &[u8]) -> Result<String, Refusal> {
    let [path] = exactly(payload)?;
    absolute(flavour, domain, path)
}
