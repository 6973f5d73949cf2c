//! The watches that the server has for this domain, and for each of them those here who want its events.
//!
//! Watchers of one path share one watch of the server's, which gives a domain 128. Its token is a number that no other watch
//! has had, so that an event that was on its way when a watch ended, or when its path got another, finds nobody. Events name
//! paths; how many are kept for a watcher that does not fetch them is limited, and beyond that all of them are one: an event
//! of the watched path itself, which says that anything at it or below may have changed.

use alloc::vec::Vec;
use core::task::Waker;

use super::ErrorKind;
use super::calls::{Calls, Owner, Ticket};
use super::numbered::Numbered;
use super::path::{self, Path};
use super::wire::{self, Payload};
use crate::abi::xs_wire::MessageType;
use crate::sync::wait_list::{WaiterId, Waiters};

/// Paths that are kept for a watcher, each of up to 3072 bytes.
const MOST_PATHS: usize = 16;

/// The number of a watch of the server's.
pub(super) type Token = u64;

/// A watcher: its watch, and its waiter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WatcherId {
    token: Token,
    waiter: WaiterId,
}

/// What happened since a watcher last looked.
#[derive(Debug, Default)]
struct Changes {
    /// At the watched path itself, or too much: it stands for all below.
    all: bool,
    /// In the order in which they changed.
    below: Vec<Path>,
}

impl Changes {
    /// Takes note of a change, at a path below the watched one or at that itself.
    fn add(&mut self, below: Option<&str>) {
        if self.all || below.is_some_and(|path| self.below.iter().any(|known| known == path)) {
            return;
        }
        // An invalid path stands for all paths, as does a path that there is no memory for.
        match below.and_then(|path| Path::try_copy(path).ok()) {
            Some(path) if self.below.len() < MOST_PATHS && self.below.try_reserve(1).is_ok() => {
                self.below.push(path);
            }
            _ => {
                self.below.clear();
                self.all = true;
            }
        }
    }

    fn take(&mut self, watched: &Path) -> Option<Path> {
        if core::mem::take(&mut self.all) {
            return Some(watched.clone());
        }
        if self.below.is_empty() { None } else { Some(self.below.remove(0)) }
    }
}

/// What is kept of a watcher, by the number of its waiter.
#[derive(Debug)]
struct Watcher {
    waiter: WaiterId,
    changes: Changes,
}

/// How far the server has come with a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It is asked for it.
    Asked(Ticket),
    /// It has it.
    Registered,
    /// It is to be asked again, on the next connection.
    Forgotten,
    /// It has refused it.
    Failed(ErrorKind),
}

#[derive(Debug)]
struct Watched {
    path: Path,
    stage: Stage,
    watchers: Numbered<Watcher>,
}

impl Watched {
    /// Something happened: at a path below, or at the path itself.
    fn tell(&mut self, below: Option<&str>, waiters: &mut Waiters, woken: &mut Vec<Waker>) {
        for watcher in self.watchers.values_mut() {
            watcher.changes.add(below);
            woken.extend(waiters.take_waker(watcher.waiter));
        }
    }

    /// Whether a new watcher of a path may share it. One that is about to end, or that the server has refused, is not shared:
    /// the watcher has one of its own.
    fn can_be_joined(&self, path: &Path) -> bool {
        !self.watchers.is_empty() && !matches!(self.stage, Stage::Failed(_)) && self.path == *path
    }

    /// Whether all of its watchers are in the background.
    fn is_background(&self, waiters: &Waiters) -> bool {
        self.watchers.values().all(|watcher| waiters.is_background(watcher.waiter))
    }

    fn wake(&self, waiters: &mut Waiters, woken: &mut Vec<Waker>) {
        woken.extend(self.watchers.values().filter_map(|watcher| waiters.take_waker(watcher.waiter)));
    }
}

/// All watches of a domain.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_token: Numbered<Watched>,
    /// A waiter for each watcher, also while it waits for nothing.
    waiters: Waiters,
}

/// What a request about a watch says.
fn payload(path: &Path, token: Token) -> Result<Payload, ErrorKind> {
    Ok(Payload::new().string(path.as_str())?.number(token)?)
}

impl Watches {
    /// Whether there is anything that an event could be for.
    pub(super) fn any(&self) -> bool {
        !self.by_token.is_empty()
    }

    /// Whether there is a watcher that is not in the background.
    pub(super) const fn has_foreground(&self) -> bool {
        self.waiters.has_foreground()
    }

    /// How many there are that anything is kept of.
    #[cfg(any(test, fuzzing))]
    pub(super) fn count(&self) -> usize {
        self.by_token.len()
    }

    /// Adds a watcher of a path. The first has the server asked, unless that has no connection now; each begins with an
    /// event.
    pub(super) fn add(
        &mut self,
        path: &Path,
        connected: bool,
        background: bool,
        calls: &mut Calls,
    ) -> Result<WatcherId, ErrorKind> {
        let joined = self.by_token.iter_mut().find(|(_, watched)| watched.can_be_joined(path)).map(|(token, _)| token);
        let waiter = self.waiters.join(background);
        let number = waiter.sequence();
        let token = match joined {
            Some(token) => token,
            None => {
                let asked = connected.then(|| ask(path, number, background, calls)).transpose();
                let stage = match asked {
                    Ok(asked) => asked.map_or(Stage::Forgotten, Stage::Asked),
                    Err(error) => {
                        // It has no waker yet.
                        let _ = self.waiters.leave(waiter);
                        return Err(error);
                    }
                };
                self.by_token.insert(number, Watched { path: path.clone(), stage, watchers: Numbered::default() });
                number
            }
        };
        if let Some(watched) = self.by_token.get_mut(token) {
            let mut watcher = Watcher { waiter, changes: Changes::default() };
            // The server's first event may have come and gone.
            watcher.changes.all = watched.stage == Stage::Registered;
            watched.watchers.insert(number, watcher);
        }
        Ok(WatcherId { token, waiter })
    }

    /// A watcher goes away, and with the last the server's watch. That the server has ended it is not waited for, and whether
    /// it wanted to is nobody's business. Gives back what is to be dropped while nothing is locked.
    pub(super) fn remove(&mut self, id: WatcherId, calls: &mut Calls) -> Option<Waker> {
        let watched = self.by_token.get_mut(id.token)?;
        watched.watchers.remove(id.waiter.sequence())?;
        if watched.watchers.is_empty() {
            match watched.stage {
                // The answer comes first: see `registered`.
                Stage::Asked(ticket) if !calls.withdraw(ticket) => {}
                stage => {
                    if stage == Stage::Registered {
                        end(&watched.path, id.token, calls);
                    }
                    self.by_token.remove(id.token);
                }
            }
        }
        self.waiters.leave(id.waiter)
    }

    /// Whether the server has a watcher's watch; or none yet, and its waker is kept, and the one before given back.
    pub(super) fn poll_registered(
        &mut self,
        id: WatcherId,
        waker: Waker,
    ) -> (Option<Result<(), ErrorKind>>, Option<Waker>) {
        match self.find(id).map(|(stage, ..)| stage) {
            Some(Stage::Registered) => (Some(Ok(())), Some(waker)),
            Some(Stage::Failed(error)) => (Some(Err(error)), Some(waker)),
            Some(Stage::Asked(_) | Stage::Forgotten) | None => self.register(id, waker),
        }
    }

    /// What has changed for a watcher; or nothing yet, and its waker is kept, and the one before given back.
    pub(super) fn poll_changed(
        &mut self,
        id: WatcherId,
        waker: Waker,
    ) -> (Option<Result<Path, ErrorKind>>, Option<Waker>) {
        match self.find(id).map(|(stage, path, watcher)| (watcher.changes.take(path), stage)) {
            Some((Some(path), _)) => (Some(Ok(path)), Some(waker)),
            Some((None, Stage::Failed(error))) => (Some(Err(error)), Some(waker)),
            Some((None, _)) | None => self.register(id, waker),
        }
    }

    /// Registers a watcher's waker. Each watcher has a waiter until it goes away.
    fn register<T>(&mut self, id: WatcherId, waker: Waker) -> (Option<Result<T, ErrorKind>>, Option<Waker>) {
        match self.waiters.register(id.waiter, waker) {
            Ok(replaced) => (None, replaced),
            Err(waker) => (Some(Err(ErrorKind::Broken)), Some(waker)),
        }
    }

    fn find(&mut self, id: WatcherId) -> Option<(Stage, &Path, &mut Watcher)> {
        let watched = self.by_token.get_mut(id.token)?;
        Some((watched.stage, &watched.path, watched.watchers.get_mut(id.waiter.sequence())?))
    }

    /// The server has answered a request for a watch.
    pub(super) fn registered(
        &mut self,
        token: Token,
        result: Result<(), ErrorKind>,
        calls: &mut Calls,
        woken: &mut Vec<Waker>,
    ) {
        let Some(watched) = self.by_token.get_mut(token) else { return };
        if watched.watchers.is_empty() {
            if result.is_ok() {
                end(&watched.path, token, calls);
            }
            self.by_token.remove(token);
            return;
        }
        match result {
            Ok(()) => watched.stage = Stage::Registered,
            // The token is of this domain alone, so the watch is its own, and fires no first event now.
            Err(ErrorKind::Exists) => {
                watched.stage = Stage::Registered;
                watched.tell(None, &mut self.waiters, woken);
            }
            Err(error) => watched.stage = Stage::Failed(error),
        }
        watched.wake(&mut self.waiters, woken);
    }

    /// The server has sent an event. One of a watch that has ended is for nobody; one that makes no sense may be for anybody.
    pub(super) fn event(&mut self, payload: &[u8], woken: &mut Vec<Waker>) {
        let Some((path, token)) =
            wire::event(payload).ok().and_then(|(path, token)| Some((path, wire::number(token).ok()?)))
        else {
            self.by_token.values_mut().for_each(|watched| watched.tell(None, &mut self.waiters, woken));
            return;
        };
        let Some(watched) = self.by_token.get_mut(token) else { return };
        // A path that is not below the watched one, whatever the server means by it, stands for all.
        let below = core::str::from_utf8(path)
            .ok()
            .filter(|path| path::below(path, watched.path.as_str()).is_some_and(|names| !names.is_empty()));
        watched.tell(below, &mut self.waiters, woken);
    }

    /// The server has forgotten all watches: it is asked for those that are wanted, now or on its next connection.
    pub(super) fn ask_again(&mut self, connected: bool, calls: &mut Calls) {
        self.by_token.retain(|watched| !watched.watchers.is_empty());
        for (token, watched) in self.by_token.iter_mut() {
            watched.stage = match watched.stage {
                Stage::Failed(error) => Stage::Failed(error),
                _ if !connected => Stage::Forgotten,
                // Asked after the server forgot.
                Stage::Asked(ticket) => Stage::Asked(ticket),
                _ => ask(&watched.path, token, watched.is_background(&self.waiters), calls)
                    .map_or_else(Stage::Failed, Stage::Asked),
            };
        }
    }

    /// There will be no more events.
    pub(super) fn fail_all(&mut self, error: ErrorKind, woken: &mut Vec<Waker>) {
        self.by_token.retain(|watched| !watched.watchers.is_empty());
        for watched in self.by_token.values_mut() {
            watched.stage = Stage::Failed(error);
            watched.wake(&mut self.waiters, woken);
        }
    }
}

/// Has the server asked for a watch.
fn ask(path: &Path, token: Token, background: bool, calls: &mut Calls) -> Result<Ticket, ErrorKind> {
    Ok(calls.submit(MessageType::WATCH, 0, payload(path, token)?, Owner::Watch(token), background))
}

/// Has the server end a watch.
fn end(path: &Path, token: Token, calls: &mut Calls) {
    // Without memory for the request the watch stays, and its events find nobody.
    if let Ok(payload) = payload(path, token) {
        calls.submit(MessageType::UNWATCH, 0, payload, Owner::Nobody, false);
    }
}
