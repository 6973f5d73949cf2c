//! Requests: those that wait for their turn, those that the server has, and the answers that nobody has fetched yet.
//!
//! A server takes 20 requests of a domain at a time and then stops reading the ring, and has 10 transactions for it. More
//! wait here, the oldest first, so that none fails. Each has a ticket, which counts up for ever; the number by which the
//! server's reply finds it is another, and is not used again before that reply.

use alloc::vec::Vec;
use core::task::Waker;

use super::ErrorKind;
use super::code::Code;
use super::link::Link;
use super::numbered::Numbered;
use super::wire::{self, Message, Payload};
use crate::abi::xs_wire::{Header, MessageType};
use crate::sync::wait_list::{WaiterId, Waiters};

/// Requests that the server has at a time.
#[doc(alias = "quota_req_outstanding")]
pub(super) const MOST_SENT: usize = 20;
/// Transactions that are open at a time.
pub(super) const MOST_TRANSACTIONS: usize = 10;

/// The number of a request, and its waiter.
pub(super) type Ticket = WaiterId;
/// The answer to one.
pub(super) type Answer = Result<Vec<u8>, ErrorKind>;

/// Who is to learn of the answer.
#[derive(Debug)]
pub(super) enum Owner {
    /// A future.
    Future,
    /// The watch of this token.
    Watch(u64),
    /// Nobody any more.
    Nobody,
}

/// A request that waits for its turn.
#[derive(Debug)]
struct Request {
    ticket: Ticket,
    ty: MessageType,
    transaction: u32,
    payload: Payload,
    owner: Owner,
}

/// A request that the server has, or a part of it.
#[derive(Debug)]
struct Sent {
    id: u32,
    ticket: Ticket,
    ty: MessageType,
    transaction: u32,
    owner: Owner,
}

/// A transaction that nobody has ended.
#[derive(Debug)]
struct Open {
    /// The ticket of the request that began it, by which it is known here: a server may give its own number again.
    ticket: Ticket,
    id: u32,
    /// A request within it was refused because of others' changes.
    conflict: bool,
    /// It was begun in the background, as its end is.
    background: bool,
}

/// What a reply means to others than who waits for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The watch of this token is registered, or why not.
    Watch(u64, Result<(), ErrorKind>),
    /// The server has forgotten all watches.
    Reset,
}

/// All requests of a connection.
#[derive(Debug, Default)]
pub(super) struct Calls {
    waiting: Numbered<Request>,
    /// Transactions that are to begin when there is room for one more.
    starting: Numbered<Request>,
    sent: Vec<Sent>,
    answered: Numbered<(MessageType, Answer)>,
    /// A waiter for each request that has no answer yet.
    waiters: Waiters,
    open: Vec<Open>,
    /// Transactions that the server has, or is asked for: at most [`MOST_TRANSACTIONS`].
    transactions: usize,
    next_id: u32,
}

impl Calls {
    /// Takes a request in: of somebody, or one in the background.
    pub(super) fn submit(
        &mut self,
        ty: MessageType,
        transaction: u32,
        payload: Payload,
        owner: Owner,
        background: bool,
    ) -> Ticket {
        let ticket = self.waiters.join(background);
        let queue = if ty == MessageType::TRANSACTION_START { &mut self.starting } else { &mut self.waiting };
        queue.insert(ticket.sequence(), Request { ticket, ty, transaction, payload, owner });
        ticket
    }

    /// The answer to a request, or none yet: then its waker is kept, and the one before is given back.
    pub(super) fn poll(&mut self, ticket: Ticket, waker: Waker) -> (Option<Answer>, Option<Waker>) {
        match self.waiters.register(ticket, waker) {
            Ok(replaced) => (None, replaced),
            // A future that polls has not abandoned its request, which has an answer then.
            Err(waker) => {
                let answer = self.answered.remove(ticket.sequence());
                (Some(answer.map_or(Err(ErrorKind::Broken), |(_, answer)| answer)), Some(waker))
            }
        }
    }

    /// Takes a request back that the server does not have yet; says whether that is so.
    pub(super) fn withdraw(&mut self, ticket: Ticket) -> bool {
        let withdrawn = self.waiting.remove(ticket.sequence()).is_some();
        if withdrawn {
            // No future waits for the answer to a watch.
            let _ = self.waiters.leave(ticket);
        }
        withdrawn
    }

    /// Nobody waits for a request any more: one that the server does not have yet is withdrawn, the answer to any other is
    /// thrown away. Gives back what is to be dropped while nothing is locked.
    pub(super) fn abandon(&mut self, ticket: Ticket) -> Option<Waker> {
        let number = ticket.sequence();
        if self.starting.remove(number).is_some() {
            return self.waiters.leave(ticket);
        }
        if let Some(request) = self.waiting.remove(number) {
            if request.ty == MessageType::TRANSACTION_START {
                self.transactions -= 1;
            }
            return self.waiters.leave(ticket);
        }
        if let Some((ty, answer)) = self.answered.remove(number) {
            if ty == MessageType::TRANSACTION_START && answer.is_ok() {
                self.abort(ticket);
            }
            return None;
        }
        let sent = self.sent.iter_mut().find(|sent| sent.ticket == ticket)?;
        sent.owner = Owner::Nobody;
        self.waiters.take_waker(ticket)
    }

    /// Ends the transaction that a request began, without its changes, unless its end is on the way.
    pub(super) fn abort(&mut self, begun_by: Ticket) {
        if let Some((id, background)) = self.open(begun_by).map(|open| (open.id, open.background))
            && let Ok(payload) = Payload::new().string("F")
        {
            self.submit(MessageType::TRANSACTION_END, id, payload, Owner::Nobody, background);
        }
    }

    fn open(&self, begun_by: Ticket) -> Option<&Open> {
        self.open.iter().find(|open| open.ticket == begun_by)
    }

    /// The server's number for the transaction that a request began, if nobody has ended it.
    pub(super) fn transaction(&self, begun_by: Ticket) -> Option<u32> {
        self.open(begun_by).map(|open| open.id)
    }

    /// Whether a request within a transaction was refused because of others' changes.
    pub(super) fn is_in_conflict(&self, begun_by: Ticket) -> bool {
        self.open(begun_by).is_some_and(|open| open.conflict)
    }

    /// Whether the server owes an answer, or is to be sent something.
    pub(super) fn is_busy(&self) -> bool {
        self.is_waiting() || !self.sent.is_empty()
    }

    /// Whether one of these requests is not in the background.
    pub(super) const fn has_foreground(&self) -> bool {
        self.waiters.has_foreground()
    }

    /// How many requests the server has yet to answer.
    pub(super) fn sent(&self) -> usize {
        self.sent.len()
    }

    /// How many of these a future waits for.
    pub(super) fn awaited(&self) -> usize {
        self.sent.iter().filter(|sent| matches!(sent.owner, Owner::Future)).count()
    }

    /// Whether there is something to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        !(self.waiting.is_empty() && self.starting.is_empty())
    }

    /// Whether nothing is kept of any request.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        !self.is_busy() && self.answered.is_empty() && self.open.is_empty() && self.transactions == 0
    }

    /// Gives the next request that may be sent to the link, which is free; says whether there was one.
    pub(super) fn start_next(&mut self, link: &mut Link) -> bool {
        if self.sent.len() >= MOST_SENT {
            return false;
        }
        while self.transactions < MOST_TRANSACTIONS
            && let Some((number, request)) = self.starting.pop_first()
        {
            self.transactions += 1;
            self.waiting.insert(number, request);
        }
        let Some((_, request)) = self.waiting.pop_first() else { return false };
        let Request { ticket, ty, transaction, payload, owner } = request;
        if ty == MessageType::TRANSACTION_END {
            self.open.retain(|open| open.id != transaction);
        }
        let id = self.unused_id();
        link.start(payload.header(ty, id, transaction), payload);
        self.sent.push(Sent { id, ticket, ty, transaction, owner });
        true
    }

    /// The next number that no request has which the server has yet to answer.
    fn unused_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            if !self.sent.iter().any(|sent| sent.id == id) {
                return id;
            }
        }
    }

    /// Hands a reply to whom it is for. One that nobody has asked for is none.
    pub(super) fn reply(&mut self, message: &Message<'_>, woken: &mut Vec<Waker>) -> Option<Effect> {
        let Header { ty, req_id, .. } = message.header;
        let index = self.sent.iter().position(|sent| sent.id == req_id)?;
        let sent = self.sent.swap_remove(index);
        let answer = match ty {
            MessageType::ERROR => Err(ErrorKind::from(Code::from_name(message.payload))),
            _ if ty == sent.ty => copy(message.payload),
            _ => Err(ErrorKind::Malformed),
        };
        self.conclude(sent, answer, woken)
    }

    fn conclude(&mut self, sent: Sent, answer: Answer, woken: &mut Vec<Waker>) -> Option<Effect> {
        let Sent { ticket, ty, transaction, owner, .. } = sent;
        let background = self.waiters.is_background(ticket);
        woken.extend(self.waiters.leave(ticket));
        let answer = match ty {
            MessageType::TRANSACTION_START => {
                answer.and_then(|payload| self.begun(ticket, &payload, background).map(|()| payload))
            }
            _ => answer,
        };
        match ty {
            MessageType::TRANSACTION_START if answer.is_err() => self.transactions -= 1,
            MessageType::TRANSACTION_END => self.transactions -= 1,
            _ => {}
        }
        if answer == Err(ErrorKind::Conflict)
            && let Some(open) = self.open.iter_mut().find(|open| open.id == transaction)
        {
            open.conflict = true;
        }
        let reset = ty == MessageType::RESET_WATCHES && answer.is_ok();
        let mut effect = reset.then_some(Effect::Reset);
        match (owner, ty, answer) {
            (Owner::Watch(token), MessageType::WATCH, answer) => {
                effect = Some(Effect::Watch(token, answer.map(|_| ())))
            }
            (Owner::Nobody, MessageType::TRANSACTION_START, Ok(_)) => self.abort(ticket),
            (Owner::Future, _, answer) => self.answered.insert(ticket.sequence(), (ty, answer)),
            _ => {}
        }
        effect
    }

    /// A transaction has begun.
    fn begun(&mut self, ticket: Ticket, payload: &[u8], background: bool) -> Result<(), ErrorKind> {
        let id = transaction_id(payload)?;
        // The server must not give the same to two.
        if self.open.iter().any(|open| open.id == id) {
            return Err(ErrorKind::Malformed);
        }
        self.open.push(Open { ticket, id, conflict: false, background });
        Ok(())
    }

    /// Ends a request that is in no list any more with an error.
    fn fail(&mut self, (ticket, ty, owner): (Ticket, MessageType, Owner), error: ErrorKind, woken: &mut Vec<Waker>) {
        woken.extend(self.waiters.leave(ticket));
        if let Owner::Future = owner {
            self.answered.insert(ticket.sequence(), (ty, Err(error)));
        }
    }

    /// Ends all requests with an error, as the server has forgotten them, and its transactions.
    pub(super) fn fail_all(&mut self, error: ErrorKind, woken: &mut Vec<Waker>) {
        for Sent { ticket, ty, owner, .. } in core::mem::take(&mut self.sent) {
            self.fail((ticket, ty, owner), error, woken);
        }
        while let Some((_, Request { ticket, ty, owner, .. })) =
            self.waiting.pop_first().or_else(|| self.starting.pop_first())
        {
            self.fail((ticket, ty, owner), error, woken);
        }
        // Nobody has learnt of these transactions yet, and nobody is to take them for some of the next connection.
        for (_, answer) in self.answered.values_mut().filter(|(ty, _)| *ty == MessageType::TRANSACTION_START) {
            *answer = Err(error);
        }
        self.open.clear();
        self.transactions = 0;
    }
}

/// After a resume.
impl Calls {
    /// Ends the requests that the server of before has, and those within its transactions. The others go to the new one, which
    /// knows no watches: what was to be said of those is forgotten.
    pub(super) fn interrupt(&mut self, woken: &mut Vec<Waker>) {
        let (mut waiting, starting) = (core::mem::take(&mut self.waiting), core::mem::take(&mut self.starting));
        self.fail_all(ErrorKind::Interrupted, woken);
        self.starting = starting;
        while let Some((number, request)) = waiting.pop_first() {
            match request.ty {
                _ if request.transaction != 0 => {
                    self.fail((request.ticket, request.ty, request.owner), ErrorKind::BeforeResume, woken);
                }
                MessageType::WATCH | MessageType::UNWATCH => woken.extend(self.waiters.leave(request.ticket)),
                ty => {
                    self.transactions += usize::from(ty == MessageType::TRANSACTION_START);
                    self.waiting.insert(number, request);
                }
            }
        }
    }
}

/// The number of a transaction, from the reply that begins it. Zero stands for none.
fn transaction_id(payload: &[u8]) -> Result<u32, ErrorKind> {
    let number = wire::number(wire::string(payload)?)?;
    u32::try_from(number).ok().filter(|&id| id != 0).ok_or(ErrorKind::Malformed)
}

/// A payload of its own for an answer.
fn copy(payload: &[u8]) -> Answer {
    let mut answer = Vec::new();
    answer.try_reserve_exact(payload.len()).map_err(|_| ErrorKind::OutOfMemory)?;
    answer.extend_from_slice(payload);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::abi::xs_wire::{HEADER_SIZE, REQ_CONS, REQ_PROD};
    use crate::shared::SharedPage;
    use crate::xenstore::link::{Page, tests::Shared};

    /// A page, and a link to a server that reads everything and answers nothing.
    fn link() -> (Shared, SharedPage, Link) {
        let (memory, page) = Shared::new();
        (memory, page, Page::new(page).join().unwrap().unwrap())
    }

    /// Sends all that may be sent, and returns the numbers of the requests.
    fn send(calls: &mut Calls, page: SharedPage, link: &mut Link) -> Vec<u32> {
        let mut ids = vec![];
        while calls.start_next(link) {
            link.check().unwrap();
            link.send();
            assert!(link.is_free(), "small messages fit");
            ids.push(calls.sent.last().unwrap().id);
            let produced = page.u32(REQ_PROD).load(core::sync::atomic::Ordering::Relaxed);
            assert!(produced >= HEADER_SIZE as u32);
            page.u32(REQ_CONS).store(produced, core::sync::atomic::Ordering::Relaxed);
        }
        ids
    }

    fn reply(ty: MessageType, req_id: u32, payload: &[u8]) -> Message<'_> {
        Message { header: Header { ty, req_id, tx_id: 0, len: payload.len() as u32 }, payload }
    }

    fn read(calls: &mut Calls) -> Ticket {
        calls.submit(MessageType::READ, 0, Payload::new(), Owner::Future, false)
    }

    #[test]
    fn a_number_is_not_used_again_before_its_reply() {
        let ((_memory, page, mut link), mut calls, mut woken) = (link(), Calls::default(), Vec::new());
        let abandoned = read(&mut calls);
        assert_eq!(send(&mut calls, page, &mut link), [0]);
        calls.abandon(abandoned);
        // All numbers have been used once.
        calls.next_id = u32::MAX;
        let (one, other) = (read(&mut calls), read(&mut calls));
        assert_eq!(send(&mut calls, page, &mut link), [u32::MAX, 1]);
        assert!(calls.reply(&reply(MessageType::READ, 0, b"late"), &mut woken).is_none());
        assert!(calls.poll(one, Waker::noop().clone()).0.is_none());
        assert!(calls.reply(&reply(MessageType::READ, 1, b"1"), &mut woken).is_none());
        assert_eq!(calls.poll(other, Waker::noop().clone()).0, Some(Ok(b"1".to_vec())));
        read(&mut calls);
        assert_eq!(send(&mut calls, page, &mut link), [2]);
    }

    #[test]
    fn twenty_requests_and_ten_transactions_are_sent_and_more_wait_in_order() {
        let ((_memory, page, mut link), mut calls, mut woken) = (link(), Calls::default(), Vec::new());
        let start =
            |calls: &mut Calls| calls.submit(MessageType::TRANSACTION_START, 0, Payload::new(), Owner::Future, false);
        let starts: Vec<_> = (0..12).map(|_| start(&mut calls)).collect();
        let reads: Vec<_> = (0..15).map(|_| read(&mut calls)).collect();
        assert_eq!(send(&mut calls, page, &mut link).len(), MOST_SENT);
        let tickets: Vec<_> = calls.sent.iter().map(|sent| sent.ticket).collect();
        assert_eq!(tickets, [&starts[..10], &reads[..10]].concat());
        // One begins, and one is refused: that makes room for one more.
        calls.reply(&reply(MessageType::TRANSACTION_START, 0, b"1\0"), &mut woken);
        calls.reply(&reply(MessageType::ERROR, 1, b"EIO\0"), &mut woken);
        assert_eq!(send(&mut calls, page, &mut link).len(), 2);
        assert_eq!(calls.sent.iter().filter(|sent| sent.ticket == starts[10]).count(), 1);
        assert_eq!((calls.transactions, calls.starting.len(), calls.open.len()), (10, 1, 1));
        // One that begins for nobody is ended.
        calls.abandon(starts[2]);
        calls.reply(&reply(MessageType::TRANSACTION_START, 2, b"2\0"), &mut woken);
        assert!(
            calls
                .waiting
                .values()
                .any(|request| request.ty == MessageType::TRANSACTION_END && request.transaction == 2)
        );
        calls.fail_all(ErrorKind::Broken, &mut woken);
        assert!(!calls.is_busy() && calls.open.is_empty());
        // Also of one whose number has come, and that nobody has fetched.
        assert_eq!(calls.poll(starts[0], Waker::noop().clone()).0, Some(Err(ErrorKind::Broken)));
        assert_eq!(calls.transactions, 0);
    }
}
