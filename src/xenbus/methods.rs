//! The methods that both ends of a device have, with their documentation once.

/// Gives a tuple struct around an [`End`](super::end::End) the end's public methods.
///
/// Not by `Deref`: a mutable reference to the `End` inside could be swapped with that of the other role.
macro_rules! end_methods {
    ($end:ident) => {
        impl $end {
            /// Where the two ends are.
            #[must_use]
            pub const fn device(&self) -> &Device {
                self.0.device()
            }

            /// The state of this end, as it was set or found last.
            #[must_use]
            pub const fn state(&self) -> State {
                self.0.state()
            }

            /// The state of the other end; none if it is not there.
            ///
            /// # Errors
            ///
            /// [`ErrorKind::InvalidState`]; those of a [`read`](crate::xenstore::Nodes::read).
            ///
            /// # Cancel safety
            ///
            /// Nothing is lost by dropping the future.
            #[doc(alias = "xenbus_read_driver_state")]
            pub async fn peer_state(&self) -> Result<Option<State>, Error> {
                self.0.peer_state().await.map_err(|kind| self.0.error(kind))
            }

            /// Waits until the state of the other end, or that it is not there, is accepted, and returns what `accept`
            /// makes of it. States that follow each other fast are not all seen.
            ///
            /// The other end may let this wait for ever: [`time::timeout`](crate::time::timeout) bounds it.
            ///
            /// # Errors
            ///
            /// [`ErrorKind::Gone`], [`ErrorKind::InvalidState`]; those of a [`read`](crate::xenstore::Nodes::read) and of
            /// [`Watch::next`](crate::xenstore::Watch::next).
            ///
            /// # Cancel safety
            ///
            /// Nothing is lost by dropping the future: the next wait begins by looking.
            #[doc(alias = "wait_state")]
            pub async fn wait_for<T>(&mut self, accept: impl FnMut(Option<State>) -> Option<T>) -> Result<T, Error> {
                self.0.wait_for(accept).await.map_err(|kind| self.0.error(kind))
            }

            /// A value that the other end has published.
            ///
            /// # Errors
            ///
            /// [`ErrorKind::Closed`] if the other end is gone with its domain; those of a
            /// [`read`](crate::xenstore::Nodes::read), [`NotFound`](crate::xenstore::ErrorKind::NotFound) among them.
            ///
            /// # Cancel safety
            ///
            /// Nothing is lost by dropping the future.
            pub async fn read(&self, name: &str) -> Result<Value, Error> {
                self.0.read(name).await.map_err(|kind| self.0.error(kind))
            }

            /// A number that the other end has published, such as a feature, of which 1 is yes: `default` if there is
            /// none, and at most `most`, however large it is.
            ///
            /// # Errors
            ///
            /// [`InvalidValue`](crate::xenstore::ErrorKind::InvalidValue) of what is no number, or negative where it cannot
            /// be, and those of [`read`](Self::read).
            ///
            /// # Cancel safety
            ///
            /// Nothing is lost by dropping the future.
            #[doc(alias = "xenbus_read_unsigned")]
            pub async fn feature<T>(&self, name: &str, default: T, most: T) -> Result<T, Error>
            where
                T: Copy + Into<i128> + TryFrom<i128>,
            {
                self.0.feature(name, default, most).await.map_err(|kind| self.0.error(kind))
            }

            /// Waits until this connection is to end: the other end closes, has begun again or has disappeared, or the
            /// toolstack wants this one to close. The next step is [`close`](Self::close).
            ///
            /// # Errors
            ///
            /// [`ErrorKind::Gone`], which is an end as well; those of [`wait_for`](Self::wait_for).
            ///
            /// # Cancel safety
            ///
            /// Nothing is lost by dropping the future.
            pub async fn until_closing(&mut self) -> Result<(), Error> {
                self.0.until_closing().await.map_err(|kind| self.0.error(kind))
            }

            /// Closes this end, and waits until the other uses nothing of it any more: it has closed too, has begun
            /// again, or has disappeared. One that has begun again is given five seconds to answer, as it may have yet
            /// to look. A front end ends its grants after this; a back end unmaps what it has mapped before, as front
            /// ends take a back end that is closed at its word.
            ///
            /// An end that is closed already, or was never connected, may be closed as well. A peer that does not close
            /// keeps this waiting: [`time::timeout`](crate::time::timeout) bounds that, and grants that it still uses
            /// are kept back until it is done.
            ///
            /// # Errors
            ///
            /// [`ErrorKind::Gone`]: there is nothing left to be closed. Those of a
            /// [transaction](crate::xenstore::Xenstore::transaction), of a [`read`](crate::xenstore::Nodes::read) and
            /// of [`Watch::next`](crate::xenstore::Watch::next).
            ///
            /// # Cancel safety
            ///
            /// An end whose closing was dropped is closing, or closed; it can be closed again.
            pub async fn close(&mut self) -> Result<(), Error> {
                self.0.close().await.map_err(|kind| self.0.error(kind))
            }
        }
    };
}

pub(super) use end_methods;
