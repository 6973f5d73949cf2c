//! The front end of a device: the end of the domain that uses it.

use super::device::{Device, Role};
use super::end::{Details, End, is_closing, is_open};
use super::methods::end_methods;
use super::{Error, ErrorKind, State};
use crate::xenstore::{Path, Value, Xenstore};

/// The front end of a device, through all its connections: [`prepare`](Self::prepare), [`connect`](Self::connect),
/// [`until_closing`](Self::until_closing), [`close`](Self::close), and again.
///
/// Dropping it ends its watches, and changes nothing else: a connection that is to end properly is closed first.
///
/// A front end cannot be swapped with a back end:
///
/// ```compile_fail,E0614
/// # use domu::xenbus::{Backend, Frontend};
/// fn swap(front: &mut Frontend, back: &mut Backend) {
///     core::mem::swap(&mut **front, &mut **back);
/// }
/// ```
#[derive(Debug)]
pub struct Frontend(End);

impl Frontend {
    /// Finds a device by its directory, such as `device/vif/0`, and watches both ends: two watches of those that the server
    /// allows. Waits until the toolstack has said where the back end is.
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
        let end = End::open(store, device.clone(), Role::Front).await;
        end.map(Self).map_err(|kind| kind.at(device.as_str()))
    }

    /// Begins a connection, the first or the next, and waits until the back end is ready for details: what it offers can be
    /// read then. A connection that was left open, by whoever used the device before, is closed first.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Gone`]; [`ErrorKind::InvalidState`]; those of [`close`](Self::close).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future; the connection can be begun again.
    pub async fn prepare(&mut self) -> Result<(), Error> {
        prepare(&mut self.0).await.map_err(|kind| self.0.error(kind))
    }

    /// Tells the back end this end's details, such as references and ports, together with a state, and waits until it has
    /// connected; then this end is Connected as well.
    ///
    /// The state is what the device's protocol wants with the details: [`State::INITIALISED`] of disks, [`State::CONNECTED`] of
    /// network interfaces.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Closed`] if the back end does not want to, or is gone; [`ErrorKind::Gone`]; [`ErrorKind::InvalidState`]; those of a
    /// [transaction](Xenstore::transaction) and of [`wait_for`](Self::wait_for).
    ///
    /// # Cancel safety
    ///
    /// The details may have been told when the future is dropped: the next step is [`close`](Self::close).
    pub async fn connect(&mut self, state: State, details: &Details<'_>) -> Result<(), Error> {
        connect(&mut self.0, state, details).await.map_err(|kind| self.0.error(kind))
    }
}

/// See [`Frontend::prepare`].
async fn prepare(end: &mut End) -> Result<(), ErrorKind> {
    let mut closed = false;
    loop {
        end.begin().await?;
        match end.set(State::INITIALISING, &[]).await {
            Err(ErrorKind::Closed) => continue,
            result => result?,
        }
        let ready = end.wait(|peer, asked| match peer {
            _ if asked => Some(false),
            Some(State::INIT_WAIT | State::INITIALISED) => Some(true),
            // It has taken the last connection for this one, after it had begun again, or it wants none. Some then do not
            // look at a front end that begins. Once is enough: one that flaps costs a look each time.
            peer if is_open(peer) && !closed => Some(false),
            // It is closed since the last connection, or not there yet.
            _ => None,
        });
        if ready.await? {
            return Ok(());
        }
        end.close().await?;
        closed = true;
    }
}

/// See [`Frontend::connect`].
async fn connect(end: &mut End, state: State, details: &Details<'_>) -> Result<(), ErrorKind> {
    end.set(state, details).await?;
    end.wait(|peer, asked| match peer {
        Some(State::CONNECTED) if !asked => Some(Ok(())),
        _ if asked || is_closing(peer) => Some(Err(ErrorKind::Closed)),
        _ => None,
    })
    .await??;
    end.set(State::CONNECTED, &[]).await
}

end_methods!(Frontend);
