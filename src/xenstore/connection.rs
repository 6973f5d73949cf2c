//! The client of a domain: who wants what of the server, and the one task that speaks with it.
//!
//! The task is started by the first request. In its turn it takes what the server has sent, hands it out, sends what there is
//! room for, and notifies the server once. As the rest of the executor it runs after those who ask, so what they ask for in
//! one turn goes together; and the room that replies leave is told of together with the requests that they lead to. It waits
//! for the server's port only while the server owes something, an answer or the events of a watch: so a domain that has
//! nothing left to wait for is still noticed.
//!
//! If a server breaks one connection after the other, the task backs off: it asks for the first at once, and for each further
//! one after a pause that doubles. Requests wait until then.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::ptr::NonNull;
use core::task::{Poll, Waker};

use crate::sync::Mutex;
use crate::sync::wait_list::{WaitCell, as_background, is_background};

use super::ErrorKind;
use super::backoff::Backoff;
use super::calls::{Answer, Calls, Effect, Owner, Ticket};
use super::link::{Link, Page};
use super::path::Path;
use super::watches::{WatcherId, Watches};
use super::wire::{Impossible, Payload};
use crate::abi::xs_wire::MessageType;
use crate::arch;
use crate::console::rate_limit::log_limited;
use crate::eventchn::{PolledPort, Port};
use crate::executor::{spawn, yield_now};
use crate::hypercall::RingParams;
use crate::local::Instance;
use crate::local::domain_local;
use crate::shared::SharedPage;
use crate::time::{self, Instant};

domain_local! {
    /// The connection to xenstored.
    pub(crate) static CONNECTION: Connection;
}

/// Pieces of the server's that are taken in one turn: some 30 messages. More wait for the next, as others do for theirs.
const MOST_PIECES: usize = 64;

/// What the domain knows of xenstore.
pub(crate) struct Connection {
    /// Where the page is, if there is one.
    frame: Option<u64>,
    inner: Mutex<Inner>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("frame", &self.frame).finish_non_exhaustive()
    }
}

/// Whether there is a server.
#[derive(Debug)]
enum Stage {
    /// It has yet to make the connection.
    Waiting(Page),
    /// It has broken several connections: it is asked for the next after a pause.
    BackingOff(Page),
    /// It serves.
    Connected(Box<Link>),
    /// There is none, or it is not to be spoken with any more.
    Failed(ErrorKind),
}

#[derive(Debug)]
struct Inner {
    page: Option<Page>,
    port: Option<PolledPort>,
    stage: Stage,
    calls: Calls,
    watches: Watches,
    backoff: Backoff,
    /// The server is to be notified.
    owes: bool,
    task: Task,
    /// Nothing more is sent, as the domain is about to be suspended.
    held: bool,
    /// Woken when all answers that are due have come.
    drained: WaitCell,
}

/// The task that speaks with the server.
#[derive(Debug)]
enum Task {
    /// Not yet started.
    None,
    /// It waits, or is about to.
    Waits(WaitCell),
    /// It is going to look.
    Looks,
}

impl Task {
    /// Has it look, and gives back what it was doing.
    const fn look(&mut self) -> Self {
        core::mem::replace(self, Self::Looks)
    }

    /// Wakes it if it waits.
    fn wake(self) {
        if let Self::Waits(mut cell) = self
            && let Some(waker) = cell.take()
        {
            waker.wake();
        }
    }
}

/// What the task is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    /// Look again soon.
    Again,
    /// Wait for the server, or somebody here.
    Server,
    /// The same, while nobody waits for what comes.
    Background,
    /// Wait for somebody here.
    Nobody,
}

/// What a turn of the task came to.
struct Turn {
    next: Next,
    /// Something was received, or sent.
    moved: bool,
    /// The connection has broken.
    broken: bool,
    /// Until when the next connection is to wait, if it is.
    pause: Option<Instant>,
}

/// What was exchanged with the server.
#[derive(Default)]
struct Exchanged {
    received: bool,
    /// There is more to be received.
    more: bool,
    sent: bool,
}

/// A transaction: the request that began it, and how often the domain had been resumed by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TransactionId {
    pub(super) begun_by: Ticket,
    pub(super) generation: u64,
}

impl Connection {
    /// Takes the page of xenstore over, if there is one. Nothing in it is looked at before the first request.
    ///
    /// # Safety
    ///
    /// The location is this domain's, its frame is mapped read-write, and nothing else uses it.
    pub(crate) unsafe fn new(location: Option<RingParams>) -> Self {
        let page = location.and_then(|location| NonNull::new(arch::phys(location.frame << 12)));
        // SAFETY: a frame is page-aligned; the rest is the caller's promise.
        let page = page.map(|page| Page::new(unsafe { SharedPage::new(page, 1) }));
        let inner = Inner {
            page,
            port: location.map(|location| PolledPort::new(location.port)),
            stage: page.map_or(Stage::Failed(ErrorKind::Absent), Stage::Waiting),
            calls: Calls::default(),
            watches: Watches::default(),
            backoff: Backoff::default(),
            owes: false,
            task: Task::None,
            held: false,
            drained: WaitCell::new(),
        };
        Self { frame: location.map(|location| location.frame), inner: Mutex::new(inner) }
    }

    /// Whether the domain has a store.
    pub(crate) const fn is_there(&self) -> bool {
        self.frame.is_some()
    }

    /// Whether nothing is kept of what was asked for.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_clean(&self) -> bool {
        let inner = self.inner.lock();
        inner.watches.count() == 0 && inner.calls.is_empty()
    }

    /// Asks the server something, within the transaction that a request began.
    pub(super) fn submit(
        &self,
        state: Instance,
        ty: MessageType,
        transaction: Option<TransactionId>,
        payload: Payload,
    ) -> Result<Ticket, ErrorKind> {
        self.ask(state, |inner| {
            if transaction.is_some_and(|transaction| transaction.generation != state.generation()) {
                return Err(ErrorKind::BeforeResume);
            }
            // One that nobody has ended is gone only with its connection.
            let number = |id: TransactionId| inner.calls.transaction(id.begun_by).ok_or(ErrorKind::Broken);
            let transaction = transaction.map_or(Ok(0), number)?;
            Ok(inner.calls.submit(ty, transaction, payload, Owner::Future, is_background(state)))
        })
    }

    /// Adds a watcher of a path.
    pub(super) fn watch(&self, state: Instance, path: &Path) -> Result<WatcherId, ErrorKind> {
        self.ask(state, |inner| {
            let connected = matches!(inner.stage, Stage::Connected(_));
            inner.watches.add(path, connected, is_background(state), &mut inner.calls)
        })
    }

    /// Puts something down for the task, and sees to it that it looks.
    fn ask<T>(&self, state: Instance, ask: impl FnOnce(&mut Inner) -> Result<T, ErrorKind>) -> Result<T, ErrorKind> {
        // One of a domain that has ended, which a test has kept.
        if !state.is_running() {
            return Err(ErrorKind::Absent);
        }
        let mut inner = self.inner.lock();
        if let Stage::Failed(error) = inner.stage {
            return Err(error);
        }
        let asked = ask(&mut inner);
        let task = inner.task.look();
        drop(inner);
        match task {
            Task::None => spawn(serve(state)).detach(),
            task => task.wake(),
        }
        asked
    }

    /// Has the task look, if there is one.
    fn look(&self) {
        let mut inner = self.inner.lock();
        let task = if matches!(inner.task, Task::None) { Task::None } else { inner.task.look() };
        drop(inner);
        task.wake();
    }

    /// Changes something without waiting for it; gives back what is to be dropped while nothing is locked.
    fn tell<T>(&self, tell: impl FnOnce(&mut Inner) -> T) {
        let mut inner = self.inner.lock();
        let dropped = tell(&mut inner);
        // There may be something to end, or room for another transaction.
        let task = if inner.calls.is_waiting() { inner.task.look() } else { Task::Looks };
        drop(inner);
        drop(dropped);
        task.wake();
    }

    /// Nobody waits for a request any more.
    pub(super) fn abandon(&self, ticket: Ticket) {
        self.tell(|inner| inner.calls.abandon(ticket));
    }

    /// A transaction is dropped.
    pub(super) fn abort(&self, transaction: Ticket) {
        self.tell(|inner| inner.calls.abort(transaction));
    }

    /// A watcher goes away.
    pub(super) fn unwatch(&self, id: WatcherId) {
        self.tell(|inner| inner.watches.remove(id, &mut inner.calls));
    }

    /// Whether a request within a transaction was refused because of others' changes.
    pub(super) fn is_in_conflict(&self, transaction: Ticket) -> bool {
        self.inner.lock().calls.is_in_conflict(transaction)
    }

    /// The answer to a request.
    pub(super) fn poll_answer(&self, ticket: Ticket, waker: &Waker) -> Poll<Answer> {
        self.poll(waker, |inner, waker| inner.calls.poll(ticket, waker))
    }

    /// Whether the server has a watch.
    pub(super) fn poll_registered(&self, id: WatcherId, waker: &Waker) -> Poll<Result<(), ErrorKind>> {
        self.poll(waker, |inner, waker| inner.watches.poll_registered(id, waker))
    }

    /// What has changed for a watcher.
    pub(super) fn poll_changed(&self, id: WatcherId, waker: &Waker) -> Poll<Result<Path, ErrorKind>> {
        self.poll(waker, |inner, waker| inner.watches.poll_changed(id, waker))
    }

    /// Looks for something, with a waker for when it is not there. Wakers are the application's code: cloned and dropped
    /// while nothing is locked.
    fn poll<T>(&self, waker: &Waker, look: impl FnOnce(&mut Inner, Waker) -> (Option<T>, Option<Waker>)) -> Poll<T> {
        let waker = waker.clone();
        let mut inner = self.inner.lock();
        let (found, dropped) = look(&mut inner, waker);
        drop(inner);
        drop(dropped);
        found.map_or(Poll::Pending, Poll::Ready)
    }
}

/// Suspend and resume.
impl Connection {
    /// Sends no more requests, until what is returned is dropped.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.inner.lock().held = true;
        Held(self)
    }

    /// Begins to speak with the server of the new domain. A page elsewhere is none: nothing is mapped to it.
    pub(crate) fn resume(&self, location: Option<RingParams>) {
        let location = location.filter(|location| Some(location.frame) == self.frame);
        let mut woken = Vec::new();
        let mut inner = self.inner.lock();
        inner.port = location.map(|location| PolledPort::new(location.port));
        match inner.page.filter(|_| location.is_some()) {
            Some(page) => inner.stage = Stage::Waiting(page),
            None => inner.fail(ErrorKind::Absent, &mut woken),
        }
        inner.owes = false;
        inner.backoff = Backoff::default();
        let Inner { calls, watches, .. } = &mut *inner;
        calls.interrupt(&mut woken);
        watches.ask_again(false, calls);
        drop(inner);
        woken.drain(..).for_each(Waker::wake);
        self.look();
    }
}

/// Keeps requests from being sent.
pub(crate) struct Held<'a>(&'a Connection);

impl Held<'_> {
    /// Waits until the server has answered all that it has.
    pub(crate) async fn answered(&self) {
        poll_fn(|context| {
            let waker = context.waker().clone();
            let mut inner = self.0.inner.lock();
            let is_over = inner.is_quiet();
            let before = inner.drained.register(waker);
            drop(inner);
            drop(before);
            if is_over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// How many futures wait for an answer of the server's.
    pub(crate) fn open(&self) -> usize {
        self.0.inner.lock().calls.awaited()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.held = false;
        let before = inner.drained.take();
        drop(inner);
        drop(before);
        self.0.look();
    }
}

/// The task of a domain that speaks with its server: as long as there is one, on its port of before and after each resume.
async fn serve(state: Instance) {
    let connection = CONNECTION.of(state);
    loop {
        let port = connection.inner.lock().port;
        match port.ok_or(ErrorKind::Absent).and_then(|port| Port::adopt(port, state).map_err(ErrorKind::Port)) {
            Ok(port) => speak(state, &port).await,
            Err(error) => {
                if let ErrorKind::Port(error) = error {
                    log::warn!("xenstore: no connection: {error:#}");
                }
                let mut woken = Vec::new();
                let mut inner = connection.inner.lock();
                inner.fail(error, &mut woken);
                let before = core::mem::replace(&mut inner.task, Task::None);
                drop(inner);
                drop(before);
                woken.drain(..).for_each(Waker::wake);
                return;
            }
        }
    }
}

/// Speaks with the server until the port is from before a resume.
async fn speak(state: Instance, port: &Port) {
    let connection = CONNECTION.of(state);
    let (mut woken, mut by_event) = (Vec::new(), false);
    while port.is_current() {
        // Counted before the look: an event that comes after it ends the wait.
        let seen = port.count();
        let mut inner = connection.inner.lock();
        // Requests from here on are for the next turn.
        let before = core::mem::replace(&mut inner.task, Task::Waits(WaitCell::new()));
        let Turn { next, moved, broken, pause } = inner.turn(state, port, &mut woken);
        drop(inner);
        drop(before);
        if broken {
            log_limited!(xenstore of state, Warn, "xenstore: protocol error from xenstored; connection closed");
        }
        woken.drain(..).for_each(Waker::wake);
        let came = core::mem::take(&mut by_event);
        if moved {
            // The server sends several events for a message.
            port.pace().made_up();
        } else if came || broken {
            port.pace().empty(state).await;
        }
        if next == Next::Again {
            yield_now().await;
            continue;
        }
        let mut event = pin!(port.after(seen));
        // Events are not waited for in a pause.
        let sleep_until = |until| time::sleep_until(until).mark_background(next == Next::Background);
        let mut sleep = pause.map(sleep_until);
        let has_come = poll_fn(|context| {
            let mut look = || match &mut sleep {
                Some(sleep) => Pin::new(sleep).poll(context).is_ready(),
                None => event.as_mut().poll(context).is_ready(),
            };
            let has_come = match next {
                Next::Server => look(),
                Next::Background => as_background(state, look),
                Next::Nobody | Next::Again => false,
            };
            if has_come {
                return Poll::Ready(true);
            }
            let waker = context.waker().clone();
            let mut inner = connection.inner.lock();
            // Without a cell the task was asked to look.
            let (replaced, result) = match &mut inner.task {
                Task::Waits(cell) => (cell.register(waker), Poll::Pending),
                Task::None | Task::Looks => (None, Poll::Ready(false)),
            };
            drop(inner);
            drop(replaced);
            result
        })
        .await;
        by_event = has_come && pause.is_none();
    }
}

impl Inner {
    /// Speaks with the server.
    fn turn(&mut self, state: Instance, port: &Port, woken: &mut Vec<Waker>) -> Turn {
        let exchanged = self.exchange(state, woken);
        let broken = exchanged.is_err();
        let Exchanged { received, more, sent } = exchanged.unwrap_or_else(|Impossible| {
            self.give_up(state, woken);
            Exchanged { sent: true, ..Exchanged::default() }
        });
        if self.held && self.is_quiet() {
            woken.extend(self.drained.take());
        }
        // Those who were woken may have more to ask: they run before this does again.
        let soon = more || self.owes && !sent && !woken.is_empty();
        if self.owes && !soon {
            self.owes = false;
            // A server that is gone owes its answers for ever.
            let _ = port.notify();
        }
        let next = if soon {
            Next::Again
        } else if matches!(self.stage, Stage::Failed(_)) || !(self.calls.is_busy() || self.watches.any()) {
            Next::Nobody
        } else if self.calls.has_foreground() || self.watches.has_foreground() {
            Next::Server
        } else {
            Next::Background
        };
        // A connection that breaks is as good as an event that brings nothing.
        Turn { next, moved: !broken && (received || sent), broken, pause: self.pause() }
    }

    /// Until when the next connection is to wait, if it is.
    fn pause(&self) -> Option<Instant> {
        match self.stage {
            // It was looked at before in this turn, by a clock that runs on.
            Stage::BackingOff(_) => self.backoff.until(),
            Stage::Waiting(_) | Stage::Connected(_) | Stage::Failed(_) => None,
        }
    }

    /// Whether the server has all of each request that it has part of, and owes no answer.
    fn is_quiet(&self) -> bool {
        self.calls.sent() == 0
    }

    /// Takes what the server has sent and sends what there is to be sent.
    fn exchange(&mut self, state: Instance, woken: &mut Vec<Waker>) -> Result<Exchanged, Impossible> {
        if let Stage::BackingOff(page) = self.stage {
            if self.backoff.pause(|| time::now_in(state)).is_some() {
                return Ok(Exchanged::default());
            }
            if !page.ask_anew() {
                return Err(Impossible);
            }
            (self.stage, self.owes) = (Stage::Waiting(page), true);
        }
        if let Stage::Waiting(page) = self.stage {
            let Some(link) = page.join()? else { return Ok(Exchanged::default()) };
            self.stage = Stage::Connected(Box::new(link));
            self.watches.ask_again(true, &mut self.calls);
        }
        let Self { stage: Stage::Connected(link), calls, watches, backoff, owes, held, .. } = self else {
            return Ok(Exchanged::default());
        };
        link.check()?;
        let (mut received, mut more) = (false, true);
        for _ in 0..MOST_PIECES {
            let (count, message) = link.receive()?;
            if count == 0 {
                more = false;
                break;
            }
            (*owes, received) = (true, true);
            let Some(message) = message else { continue };
            if message.header.ty == MessageType::WATCH_EVENT {
                watches.event(message.payload, woken);
                continue;
            }
            let sent = calls.sent();
            let effect = calls.reply(&message, woken);
            if calls.sent() < sent {
                backoff.replied(|| time::now_in(state));
            }
            match effect {
                Some(Effect::Watch(token, result)) => watches.registered(token, result, calls, woken),
                Some(Effect::Reset) => watches.ask_again(true, calls),
                None => {}
            }
        }
        let mut sent = link.send();
        while !*held && link.is_free() && calls.start_next(link) {
            sent += link.send();
        }
        *owes |= sent > 0;
        Ok(Exchanged { received, more, sent: sent > 0 })
    }

    /// Ends the connection, for all who wait for an answer; watches go on with the next, if the server offers one.
    fn give_up(&mut self, state: Instance, woken: &mut Vec<Waker>) {
        let page = match &self.stage {
            Stage::Waiting(page) | Stage::BackingOff(page) => *page,
            Stage::Connected(link) => link.page,
            Stage::Failed(_) => return,
        };
        let now = time::now_in(state);
        self.backoff.broken(now);
        let pauses = self.backoff.pause(|| now).is_some();
        if !(if pauses { page.offers_anew() } else { page.ask_anew() }) {
            self.fail(ErrorKind::Broken, woken);
            return;
        }
        self.owes |= !pauses;
        self.calls.fail_all(ErrorKind::Broken, woken);
        self.watches.ask_again(false, &mut self.calls);
        self.stage = if pauses { Stage::BackingOff(page) } else { Stage::Waiting(page) };
    }

    /// Ends the connection for good.
    fn fail(&mut self, error: ErrorKind, woken: &mut Vec<Waker>) {
        self.stage = Stage::Failed(error);
        self.calls.fail_all(error, woken);
        self.watches.fail_all(error, woken);
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;
    use std::format;
    use std::vec::Vec;

    use crate::sim::{Guest, Store};
    use crate::time;

    /// The client keeps nothing of what has ended: the memory that it takes follows what is in use.
    #[test]
    #[cfg_attr(miri, ignore = "minutes, most of them the server's; there is nothing unsafe in it")]
    fn a_thousand_cycles_of_forty_watchers_leave_no_memory() {
        let server = Store::new();
        Guest::new()
            .xenstore(&server)
            .run(async |domain| -> crate::Result {
                let store = domain.xenstore();
                for cycle in 0..1000 {
                    let mut watches = Vec::new();
                    for device in 0..40 {
                        let path = format!("data/device/{device}/state");
                        watches.push(store.watch(&path).await?);
                        // Some are given up before the server has answered.
                        let gone = time::timeout(Duration::from_nanos(cycle % 3), store.watch(format!("{path}/gone")));
                        let _ = gone.await;
                    }
                    for watch in &mut watches {
                        watch.next().await?;
                    }
                }
                store.read("name").await?;
                assert!(super::CONNECTION.of(domain.0).is_clean());
                assert_eq!(server.watches(7), []);
                Ok(())
            })
            .powered_off();
    }
}
