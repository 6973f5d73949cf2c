//! What both ends of a device have in common: the two states, of which each end sets its own and watches the other's.
//!
//! Nothing here goes by events alone. An event says only that it is time to look, and each wait looks before it waits for one:
//! states that come too fast are skipped, a storm of them costs what it costs to look, and a wait that was dropped has lost
//! nothing.
//!
//! This end's own state is watched too. That the device disappears shows there, as does that the toolstack has made it anew,
//! and the way in which it asks a back end to close: it sets that end's state to Closing.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use super::device::{self, Device, Role};
use super::{Error, ErrorKind, State};
use crate::time;
use crate::xenstore::{self, Path, Value, Watch, Xenstore};

/// What one end tells the other beside its state: names of nodes and their values.
pub type Details<'a> = [(&'a str, &'a dyn Display)];

/// State and steps common to a [`Frontend`](super::Frontend) and a [`Backend`](super::Backend). Its methods are documented in
/// [`methods`](super::methods).
#[derive(Debug)]
pub(super) struct End {
    store: Xenstore,
    role: Role,
    device: Device,
    own: Watch,
    peer: Watch,
    /// The state of this end, as it was set or found last.
    state: State,
    /// The state that may have been set instead, by a future that was dropped.
    next: Option<State>,
    /// Somebody else has set this end's state, to have it closed.
    asked: bool,
    /// This end's directory is to be looked at.
    own_changed: bool,
}

/// Whether an end that is in this state may use what the other has given it. States of the future may mean that as well.
fn is_active(state: Option<State>) -> bool {
    state.is_some_and(|state| {
        !matches!(state, State::UNKNOWN | State::INITIALISING | State::INIT_WAIT | State::CLOSING | State::CLOSED)
    })
}

/// Whether an end in this state is yet to be closed.
pub(super) fn is_open(state: Option<State>) -> bool {
    is_active(state) || state == Some(State::CLOSING)
}

/// Whether an end in this state has ended a connection, or is about to, or is gone.
pub(super) fn is_closing(state: Option<State>) -> bool {
    matches!(state, None | Some(State::CLOSING | State::CLOSED))
}

/// Whether a back end in this state waits for a front end.
fn has_begun(state: Option<State>) -> bool {
    matches!(state, Some(State::INITIALISING | State::INIT_WAIT))
}

/// How long a back end that has begun again has for its answer to a front end that closes. Those of Linux and QEMU answer.
const ANSWER: Duration = Duration::from_secs(5);

impl End {
    pub(super) async fn open(store: &Xenstore, path: Path, role: Role) -> Result<Self, ErrorKind> {
        let device = Device::find(store, path, role).await?;
        let mut own = store.watch(device.path().join("state")?).await?;
        let mut peer = store.watch(device.peer_path().join("state")?).await?;
        // The first events, which tell nothing.
        own.next().await?;
        peer.next().await?;
        let state = device::read_state(store, own.path()).await?.ok_or(ErrorKind::Gone)?;
        // Whatever happened before there were watches is found by the first look.
        Ok(Self { store: store.clone(), role, device, own, peer, state, next: None, asked: false, own_changed: true })
    }

    /// The error of an operation on this end's device.
    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        kind.at(self.device.path().as_str())
    }

    pub(super) const fn device(&self) -> &Device {
        &self.device
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    pub(super) async fn peer_state(&self) -> Result<Option<State>, ErrorKind> {
        device::read_state(&self.store, self.peer.path()).await
    }

    pub(super) async fn wait_for<T>(
        &mut self,
        mut accept: impl FnMut(Option<State>) -> Option<T>,
    ) -> Result<T, ErrorKind> {
        self.wait(|peer, _| accept(peer)).await
    }

    /// As [`wait_for`](Self::wait_for), also with whether this end was asked to close.
    pub(super) async fn wait<T>(
        &mut self,
        mut accept: impl FnMut(Option<State>, bool) -> Option<T>,
    ) -> Result<T, ErrorKind> {
        loop {
            self.look_at_own().await?;
            let peer = self.peer_state().await?;
            if let Some(accepted) = accept(peer, self.asked) {
                return Ok(accepted);
            }
            self.changed().await?;
        }
    }

    pub(super) async fn read(&self, name: &str) -> Result<Value, ErrorKind> {
        match self.store.read(self.device.peer_path().join(name)?).await {
            // So it is when all that is above is gone too.
            Err(error) if error == xenstore::ErrorKind::Denied && self.peer_state().await?.is_none() => {
                Err(ErrorKind::Closed)
            }
            value => Ok(value?),
        }
    }

    pub(super) async fn feature<T>(&self, name: &str, default: T, most: T) -> Result<T, ErrorKind>
    where
        T: Copy + Into<i128> + TryFrom<i128>,
    {
        let number = match self.read(name).await {
            Ok(value) => value.number::<i128>().map_err(|error| self.of_feature(error.kind(), name))?,
            Err(ErrorKind::Xenstore(error)) if error == xenstore::ErrorKind::NotFound => return Ok(default),
            Err(error) => return Err(error),
        };
        T::try_from(number.min(most.into()))
            .map_err(|_| self.of_feature(xenstore::ErrorKind::InvalidValue, name).into())
    }

    /// The error of a value that the other end has published.
    fn of_feature(&self, kind: xenstore::ErrorKind, name: &str) -> xenstore::Error {
        match self.device.peer_path().join(name) {
            Ok(path) => kind.at(xenstore::Operation::Read, path.as_str()),
            Err(_) => kind.into(),
        }
    }

    pub(super) async fn until_closing(&mut self) -> Result<(), ErrorKind> {
        self.wait(|peer, asked| (asked || !is_active(peer)).then_some(())).await
    }

    pub(super) async fn close(&mut self) -> Result<(), ErrorKind> {
        let state = self.settle().await?;
        if state != State::CLOSED {
            self.set(State::CLOSING, &[]).await?;
            // The front end is the first to be closed.
            self.until_done(if self.role == Role::Front { is_active } else { is_open }).await?;
            if self.role == Role::Front && state != State::INITIALISING {
                // A back end that has begun again may have yet to see that this end was connected, and would take what that told
                // it for the next connection.
                if let Ok(answer) = time::timeout(ANSWER, self.until_done(has_begun)).await {
                    answer?;
                }
            }
            self.set(State::CLOSED, &[]).await?;
        }
        self.until_done(is_open).await
    }

    /// Waits until the other end is not busy any more. One whose state is nonsense does nothing in order, and is not waited
    /// for.
    async fn until_done(&mut self, busy: fn(Option<State>) -> bool) -> Result<(), ErrorKind> {
        match self.wait(|peer, _| (!busy(peer)).then_some(())).await {
            Err(ErrorKind::InvalidState) => Ok(()),
            result => result,
        }
    }

    /// Makes ready to begin: an end that was in use, perhaps by a program that ran in this domain before, is closed first.
    pub(super) async fn begin(&mut self) -> Result<(), ErrorKind> {
        let state = self.settle().await?;
        if is_active(Some(state)) || state == State::CLOSING {
            self.close().await?;
        }
        self.asked = false;
        Ok(())
    }

    /// Whether the toolstack wants a back end to serve whoever comes next: it says `online` as long as it does.
    pub(super) async fn is_kept(&self) -> Result<bool, ErrorKind> {
        let online = device::read(&self.store, &self.device.path().join("online")?).await?;
        Ok(online.is_none_or(|online| online != *"0"))
    }

    /// Sets this end's state, and its details, all at once. Nothing is written for a device that is gone: that would make
    /// its directory anew, or be denied.
    pub(super) async fn set(&mut self, state: State, details: &Details<'_>) -> Result<(), ErrorKind> {
        let entry = |(name, value): &(&str, &dyn Display)| Ok((self.device.path().join(name)?, value.to_string()));
        let mut entries: Vec<(Path, String)> = details.iter().map(entry).collect::<Result<_, xenstore::Error>>()?;
        entries.push((self.own.path().clone(), state.0.to_string()));
        loop {
            let known = self.settle().await?;
            if self.asked && !is_closing(Some(state)) {
                return Err(ErrorKind::Closed);
            }
            self.next = Some(state);
            let (path, generation) = (self.own.path(), self.store.generation());
            let set = self.store.transaction(async |nodes| {
                // The details are ports and references of the domain before.
                if self.store.generation() != generation {
                    return Err(xenstore::Error::from(xenstore::ErrorKind::BeforeResume).into());
                }
                let found = device::read_state(nodes, path).await?.ok_or(ErrorKind::Gone)?;
                if !self.device.is_linked(nodes).await? {
                    return Err(ErrorKind::Gone);
                }
                // Writing what is there already would be an event for nothing.
                if found == known && (found != state || !details.is_empty()) {
                    for (path, value) in &entries {
                        nodes.write(path, value).await?;
                    }
                }
                Ok(found)
            });
            let found = match set.await {
                // A directory that is removed between two steps of a transaction cannot be made anew.
                Err(ErrorKind::Xenstore(error))
                    if matches!(error.kind(), xenstore::ErrorKind::Denied | xenstore::ErrorKind::NotFound) =>
                {
                    return Err(device::read_state(&self.store, path).await?.map_or(ErrorKind::Gone, |_| error.into()));
                }
                found => found?,
            };
            if found == known {
                (self.state, self.next) = (state, None);
                return Ok(());
            }
            self.judge(found)?;
        }
    }

    /// This end's state, for sure, if a future that set it was dropped. The server obeys in order, so what that asked for has
    /// been done if it ever will be.
    pub(super) async fn settle(&mut self) -> Result<State, ErrorKind> {
        if self.next.is_some() {
            let found = device::read_state(&self.store, self.own.path()).await?.ok_or(ErrorKind::Gone)?;
            self.judge(found)?;
        }
        Ok(self.state)
    }

    /// Takes note of this end's state as it was found.
    fn judge(&mut self, found: State) -> Result<(), ErrorKind> {
        if found != self.state && self.next != Some(found) {
            if !is_closing(Some(found)) {
                return Err(ErrorKind::Gone);
            }
            self.asked = true;
        }
        (self.state, self.next) = (found, None);
        Ok(())
    }

    /// Looks whether this end is still what it was, if that may have changed.
    async fn look_at_own(&mut self) -> Result<(), ErrorKind> {
        if self.own_changed {
            let found = device::read_state(&self.store, self.own.path()).await?.ok_or(ErrorKind::Gone)?;
            self.judge(found)?;
            if !self.device.is_linked(&self.store).await? {
                return Err(ErrorKind::Gone);
            }
            self.own_changed = false;
        }
        Ok(())
    }

    /// Waits until either end may have changed.
    async fn changed(&mut self) -> Result<(), ErrorKind> {
        poll_fn(|context| {
            let own = pin!(self.own.next()).poll(context).map_ok(|_| ());
            let peer = pin!(self.peer.next()).poll(context).map_ok(|_| ());
            self.own_changed |= own.is_ready();
            match (own, peer) {
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                _ => Poll::Ready(Ok(())),
            }
        })
        .await
    }
}
