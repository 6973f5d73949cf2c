//! What can be done with nodes, within a transaction and without one.

use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use super::calls::{Answer, Ticket};
use super::code::Code;
use super::connection::TransactionId;
use super::error::{Error, ErrorKind};
use super::names::Names;
use super::operation::Operation;
use super::path;
use super::permissions::Permission;
use super::value::Value;
use super::wire::{self, Payload};
use crate::abi::xs_wire::MessageType;
use crate::local::Instance;
use crate::xenstore::CONNECTION;

/// How often a listing in parts is begun, because the directory has changed between two parts.
const MAX_LISTINGS: usize = 16;
/// Requests for the parts of one listing. A server fills each message of 4,096 bytes with whole names, so that the largest
/// listing takes fewer than that.
const MAX_PARTS: usize = 256;

/// The nodes of the store: as they are now, in [`Xenstore`](super::Xenstore), or as a [`Transaction`](super::Transaction)
/// has read and written them.
///
/// # Cancel safety
///
/// Of all methods: dropping the future withdraws the request if the server does not have it yet. One that it has is obeyed,
/// as if the future had been awaited, and its answer is thrown away.
///
/// # Errors
///
/// Of all methods: [`ErrorKind::InvalidPath`] and [`ErrorKind::TooLong`], and nothing was sent; [`ErrorKind::Absent`]; [`ErrorKind::Denied`];
/// [`ErrorKind::Quota`], in a transaction also for reads; [`ErrorKind::Conflict`], in a transaction; [`ErrorKind::Malformed`];
/// [`ErrorKind::Broken`]; [`ErrorKind::Interrupted`]; [`ErrorKind::BeforeResume`], in a transaction; [`ErrorKind::OutOfMemory`];
/// [`ErrorKind::Port`]; [`ErrorKind::Refused`]. Others are said with the method. A server that does not answer is none: the task waits,
/// and [`time::timeout`](crate::time::timeout) bounds that.
pub struct Nodes {
    pub(super) state: Instance,
    pub(super) transaction: Option<TransactionId>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("in_transaction", &self.transaction.is_some()).finish()
    }
}

impl Nodes {
    /// The value of a node.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`].
    #[doc(alias("XS_READ", "xs_read"))]
    pub async fn read(&self, path: impl AsRef<str>) -> Result<Value, Error> {
        let path = path.as_ref();
        self.ask_of(MessageType::READ, path).await.map(Value::new).map_err(|kind| kind.at(Operation::Read, path))
    }

    /// The names of the nodes below a node, in the server's order.
    ///
    /// A listing that is too long for one message is asked for in parts, from the beginning if the directory has changed
    /// between two: C xenstored can do that. A listing takes at most 16 attempts of 256 requests.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`]; [`ErrorKind::TooBig`] of a server that gives no parts, such as oxenstored; [`ErrorKind::ListingTooLong`]
    /// beyond [`MAX_LISTING`](super::MAX_LISTING) or 256 parts; [`ErrorKind::Conflict`] if a listing in parts was overtaken by
    /// changes each time.
    #[doc(alias("XS_DIRECTORY", "XS_DIRECTORY_PART", "xs_directory"))]
    pub async fn directory(&self, path: impl AsRef<str>) -> Result<Names, Error> {
        let path = path.as_ref();
        self.list(path).await.map_err(|kind| kind.at(Operation::Directory, path))
    }

    async fn list(&self, path: &str) -> Result<Names, ErrorKind> {
        match self.ask_of(MessageType::DIRECTORY, path).await {
            // E2BIG is among those that fold into this one.
            Err(ErrorKind::Quota) => {}
            listing => return Names::whole(listing?),
        }
        let mut names = Names::default();
        for _ in 0..MAX_LISTINGS {
            if self.directory_in_parts(path, &mut names).await? {
                return Ok(names);
            }
        }
        Err(ErrorKind::Conflict)
    }

    /// Fetches a listing in parts. Returns false if the directory has changed meanwhile.
    async fn directory_in_parts(&self, path: &str, names: &mut Names) -> Result<bool, ErrorKind> {
        names.clear();
        let mut generation = None;
        for _ in 0..MAX_PARTS {
            let payload = Payload::new().string(path)?.number(names.bytes() as u64)?;
            let answer = match self.ask(MessageType::DIRECTORY_PART, payload).await {
                Err(ErrorKind::Refused(Code::Invalid | Code::NotSupported)) if generation.is_none() => {
                    return Err(ErrorKind::TooBig);
                }
                answer => answer?,
            };
            let part = wire::directory_part(&answer)?;
            if *generation.get_or_insert(part.generation) != part.generation {
                return Ok(false);
            }
            names.append(part.names)?;
            if part.is_last {
                return Ok(true);
            }
        }
        Err(ErrorKind::ListingTooLong)
    }

    /// Sets the value of a node. The node, and those above it, are made if they are not there.
    ///
    /// Path and value have 4095 bytes together; servers allow some 2000 for a value.
    #[doc(alias("XS_WRITE", "xs_write"))]
    pub async fn write(&self, path: impl AsRef<str>, value: impl AsRef<[u8]>) -> Result<(), Error> {
        let path = path.as_ref();
        let payload = path::check(path).and_then(|()| Ok(Payload::new().string(path)?.value(value.as_ref())?));
        self.obeyed(MessageType::WRITE, payload).await.map_err(|kind| kind.at(Operation::Write, path))
    }

    /// Makes a node with an empty value, and those above it, unless they are there.
    #[doc(alias("XS_MKDIR", "xs_mkdir"))]
    pub async fn mkdir(&self, path: impl AsRef<str>) -> Result<(), Error> {
        let path = path.as_ref();
        self.ask_of(MessageType::MKDIR, path).await.map(|_| ()).map_err(|kind| kind.at(Operation::Mkdir, path))
    }

    /// Removes a node and all that is below.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if the node above is not there either; that the node itself is not is no error.
    #[doc(alias("XS_RM", "xs_rm"))]
    pub async fn remove(&self, path: impl AsRef<str>) -> Result<(), Error> {
        let path = path.as_ref();
        self.ask_of(MessageType::RM, path).await.map(|_| ()).map_err(|kind| kind.at(Operation::Remove, path))
    }

    /// Who may read and write a node; the first entry is the owner's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`].
    #[doc(alias("XS_GET_PERMS", "xs_get_permissions"))]
    pub async fn permissions(&self, path: impl AsRef<str>) -> Result<Vec<Permission>, Error> {
        let path = path.as_ref();
        let answer = self.ask_of(MessageType::GET_PERMS, path).await;
        answer.and_then(|answer| Permission::decode_all(&answer)).map_err(|kind| kind.at(Operation::Permissions, path))
    }

    /// Sets who may read and write a node; the first entry is the owner's, who must be the one that it was. Servers allow
    /// five.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`].
    #[doc(alias("XS_SET_PERMS", "xs_set_permissions"))]
    pub async fn set_permissions(&self, path: impl AsRef<str>, permissions: &[Permission]) -> Result<(), Error> {
        let path = path.as_ref();
        let payload = path::check(path).and_then(|()| {
            permissions.iter().try_fold(Payload::new().string(path)?, |payload, entry| entry.encode(payload))
        });
        self.obeyed(MessageType::SET_PERMS, payload).await.map_err(|kind| kind.at(Operation::SetPermissions, path))
    }

    /// Asks the server something about a path.
    async fn ask_of(&self, ty: MessageType, path: &str) -> Answer {
        path::check(path)?;
        self.ask(ty, Payload::new().string(path)?).await
    }

    /// Has the server do something that has no answer but that it did.
    pub(super) async fn obeyed(&self, ty: MessageType, payload: Result<Payload, ErrorKind>) -> Result<(), ErrorKind> {
        self.ask(ty, payload?).await.map(|_| ())
    }

    /// Asks the server something.
    pub(super) async fn ask(&self, ty: MessageType, payload: Payload) -> Answer {
        self.call(ty, payload)?.await
    }

    /// The same, with the request's ticket.
    pub(super) fn call(&self, ty: MessageType, payload: Payload) -> Result<Call, ErrorKind> {
        let ticket = CONNECTION.of(self.state).submit(self.state, ty, self.transaction, payload)?;
        Ok(Call { state: self.state, ticket, answered: false })
    }
}

/// The answer to a request.
pub(super) struct Call {
    state: Instance,
    pub(super) ticket: Ticket,
    answered: bool,
}

impl Future for Call {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        if !self.state.is_running() {
            return Poll::Ready(Err(ErrorKind::Absent));
        }
        let answer = CONNECTION.of(self.state).poll_answer(self.ticket, context.waker());
        self.answered = answer.is_ready();
        answer
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered && self.state.is_running() {
            CONNECTION.of(self.state).abandon(self.ticket);
        }
    }
}
