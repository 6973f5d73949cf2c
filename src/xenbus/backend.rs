//! The back end of a device: the end of the domain that serves it.

use super::device::{Device, Role};
use super::end::{Details, End, is_closing};
use super::methods::end_methods;
use super::{Error, ErrorKind, State};
use crate::xenstore::{Path, Value, Xenstore};

/// The back end of a device, through all its connections: [`prepare`](Self::prepare), [`accept`](Self::accept),
/// [`connect`](Self::connect), [`until_closing`](Self::until_closing), [`close`](Self::close), and again.
///
/// Dropping it ends its watches, and changes nothing else: a connection that is to end properly is closed first.
#[derive(Debug)]
pub struct Backend(End);

impl Backend {
    /// Finds a device by its directory, such as `backend/vif/7/0`, and watches both ends: two watches of those that the
    /// server allows. Waits until the toolstack has said where the front end is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gone`] if there is no such device; [`ErrorKind::Misplaced`]; [`ErrorKind::InvalidState`]; those of a
    /// [transaction](Xenstore::transaction) and of [`watch`](Xenstore::watch).
    ///
    /// # Cancel safety
    ///
    /// Nothing is left behind.
    pub async fn open(store: &Xenstore, device: &Path) -> Result<Self, Error> {
        let end = End::open(store, device.clone(), Role::Back).await;
        end.map(Self).map_err(|kind| kind.at(device.as_str()))
    }

    /// Begins a connection, the first or the next: tells the front end what is offered. After a connection that has ended it
    /// waits until the front end begins another. One that was left open is closed first; so it is when the toolstack asks this end
    /// to close, before it removes the device: this then waits for that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gone`]; [`ErrorKind::InvalidState`]; those of [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future; the connection can be begun again.
    pub async fn prepare(&mut self, details: &Details<'_>) -> Result<(), Error> {
        prepare(&mut self.0, details).await.map_err(|kind| self.0.error(kind))
    }

    /// Waits until the front end has told its details, which can be [read](Self::read) then.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the front end closes; [`ErrorKind::Gone`]; [`ErrorKind::InvalidState`]; those of
    /// [`wait_for`](Self::wait_for).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn accept(&mut self) -> Result<(), Error> {
        accept(&mut self.0).await.map_err(|kind| self.0.error(kind))
    }

    /// Tells the front end that it is served, with the rest of the details, such as the size of a disk.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the front end is closing, or gone, or the toolstack wants this end to close; [`ErrorKind::Gone`];
    /// [`ErrorKind::InvalidState`]; those of a [transaction](Xenstore::transaction) and of [`wait_for`](Self::wait_for).
    ///
    /// # Cancel safety
    ///
    /// The front end may be connected when the future is dropped: the next step is [`close`](Self::close).
    pub async fn connect(&mut self, details: &Details<'_>) -> Result<(), Error> {
        connect(&mut self.0, details).await.map_err(|kind| self.0.error(kind))
    }
}

/// See [`Backend::prepare`].
async fn prepare(end: &mut End, details: &Details<'_>) -> Result<(), ErrorKind> {
    loop {
        end.begin().await?;
        if end.state() == State::CLOSED {
            // The toolstack removes the device when it finds it closed, whatever the front end wants, if it has said so.
            let kept = end.is_kept().await?;
            let begun = end.wait(|peer, asked| match peer {
                _ if asked => Some(false),
                Some(State::INITIALISING) if kept => Some(true),
                _ => None,
            });
            if !begun.await? {
                continue;
            }
        }
        match end.set(State::INIT_WAIT, details).await {
            Err(ErrorKind::Closed) => {}
            result => return result,
        }
    }
}

/// See [`Backend::accept`].
async fn accept(end: &mut End) -> Result<(), ErrorKind> {
    end.wait(|peer, asked| match peer {
        _ if asked => Some(Err(ErrorKind::Closed)),
        Some(State::INITIALISED | State::CONNECTED) => Some(Ok(())),
        Some(State::CLOSING | State::CLOSED) => Some(Err(ErrorKind::Closed)),
        _ => None,
    })
    .await?
}

/// See [`Backend::connect`].
async fn connect(end: &mut End, details: &Details<'_>) -> Result<(), ErrorKind> {
    if is_closing(end.peer_state().await?) {
        return Err(ErrorKind::Closed);
    }
    end.set(State::CONNECTED, details).await
}

end_methods!(Backend);
