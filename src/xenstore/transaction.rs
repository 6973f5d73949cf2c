//! Transactions: many reads and writes that happen at once, or not at all.

use core::fmt;
use core::ops::{AsyncFnMut, Deref};
use core::time::Duration;

use super::connection::TransactionId;
use super::nodes::Nodes;
use super::wire::Payload;
use super::{Error, ErrorKind, Operation, Xenstore};
use crate::abi::xs_wire::MessageType;
use crate::xenstore::CONNECTION;
use crate::{arch, time};

/// How often a transaction that is in conflict with others' is begun.
pub const MAX_ATTEMPTS: u32 = 64;

/// The longest pause before it is begun again: that of the first time is up to a millisecond, and each after it up to twice
/// as long.
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// A transaction. Its methods read and write what was there when it began, and what it has written itself; nobody else sees
/// that before [`commit`](Self::commit).
///
/// Dropping it ends it without its changes. The domain may have ten at a time: who begins one more waits until another ends,
/// for ever if he holds all ten.
pub struct Transaction {
    nodes: Nodes,
    id: TransactionId,
}

impl Transaction {
    /// Makes the changes, all at once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Conflict`] if others have changed what it has read or written; [`ErrorKind::NotFound`] if the server has
    /// forgotten it; [`ErrorKind::BeforeResume`]; [`ErrorKind::Quota`]; those of a connection. None of the changes was made, but for
    /// [`ErrorKind::Malformed`], [`ErrorKind::Broken`] and [`ErrorKind::Interrupted`], after which that is not known.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the transaction: with its changes if the server was asked already, without them otherwise.
    #[doc(alias = "XS_TRANSACTION_END")]
    pub async fn commit(self) -> Result<(), Error> {
        self.end("T").await.map_err(|kind| kind.of(Operation::Commit))
    }

    /// Ends it without its changes, and waits until the server has. Dropping does the same, and does not wait.
    ///
    /// # Errors
    ///
    /// As for [`commit`](Self::commit), without a conflict.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the transaction as well.
    pub async fn abort(self) -> Result<(), Error> {
        self.end("F").await.map_err(|kind| kind.of(Operation::Abort))
    }

    async fn end(self, how: &str) -> Result<(), ErrorKind> {
        self.nodes.obeyed(MessageType::TRANSACTION_END, Ok(Payload::new().string(how)?)).await
    }

    /// Returns true if it was begun before the last resume.
    fn is_old(&self) -> bool {
        self.id.generation != self.nodes.state.generation()
    }

    /// Whether the server has refused something of it because of others' changes.
    fn is_in_conflict(&self) -> bool {
        CONNECTION.of(self.nodes.state).is_in_conflict(self.id.begun_by)
    }
}

impl Deref for Transaction {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // Nothing is done if its end is on the way. Dropped outside of its domain, it stays open until that domain ends.
        if self.nodes.state.is_running() {
            CONNECTION.of(self.nodes.state).abort(self.id.begun_by);
        }
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl Xenstore {
    /// Begins a transaction. [`transaction`](Self::transaction) is easier where others may interfere.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Quota`] if the server has too many of this domain's; those of a connection.
    ///
    /// # Cancel safety
    ///
    /// A transaction that the server has begun for a future that was dropped is ended.
    #[doc(alias("XS_TRANSACTION_START", "xs_transaction_start"))]
    pub async fn begin(&self) -> Result<Transaction, Error> {
        self.start().await.map_err(|kind| kind.of(Operation::Begin))
    }

    async fn start(&self) -> Result<Transaction, ErrorKind> {
        let state = self.state;
        let call = self.call(MessageType::TRANSACTION_START, Payload::new().string("")?)?;
        let begun_by = call.ticket;
        call.await?;
        let id = TransactionId { begun_by, generation: state.generation() };
        Ok(Transaction { nodes: Nodes { state, transaction: Some(id) }, id })
    }

    /// Runs a closure in a transaction, and makes its changes if it succeeds. After a conflict with others' changes all of it
    /// is done again, up to [`MAX_ATTEMPTS`] times in all, with a pause before each. The closure reads through what it is
    /// given, and does nothing else that must not be done twice.
    ///
    /// If the domain is [resumed](crate::lifecycle#suspend-and-resume) before the commit was sent, nothing was changed,
    /// and all of it is done again in the new domain. A closure that writes ports or grant references compares
    /// [`Domain::generation`](crate::Domain::generation) with that in which they were made, as they are gone after a resume.
    ///
    /// ```no_run
    /// # async fn example(domain: domu::Domain) -> domu::Result {
    /// let store = domain.xenstore();
    /// let count = store
    ///     .transaction(async |nodes| {
    ///         let count = nodes.read("data/count").await?.number::<u32>()?;
    ///         nodes.write("data/count", (count + 1).to_string()).await?;
    ///         Ok::<_, domu::xenstore::Error>(count)
    ///     })
    ///     .await?;
    /// # let _ = count;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The closure's, after which nothing is changed; those of [`begin`](Self::begin) and [`commit`](Transaction::commit):
    /// [`ErrorKind::Conflict`], and [`ErrorKind::BeforeResume`], after the last attempt only; [`ErrorKind::Interrupted`] if the domain was
    /// resumed before the answer to a commit, so that it is not known whether the changes were made.
    ///
    /// # Cancel safety
    ///
    /// As for [`commit`](Transaction::commit).
    pub async fn transaction<T, E: From<Error>>(
        &self,
        mut body: impl AsyncFnMut(&Nodes) -> Result<T, E>,
    ) -> Result<T, E> {
        let (mut attempts, mut pause) = (1, Duration::from_millis(1));
        loop {
            let failed = match self.begin().await {
                Ok(transaction) => match body(&transaction).await {
                    Ok(output) => match transaction.commit().await {
                        Ok(()) => return Ok(output),
                        Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::BeforeResume) => {
                            E::from(error)
                        }
                        Err(error) => return Err(error.into()),
                    },
                    // Some servers do not wait for the end to refuse. One from before a resume is gone with any error.
                    Err(error) if transaction.is_in_conflict() || transaction.is_old() => error,
                    Err(error) => return Err(error),
                },
                // The server of before has forgotten it.
                Err(error) if error == ErrorKind::Interrupted => E::from(ErrorKind::BeforeResume.of(Operation::Begin)),
                Err(error) => return Err(error.into()),
            };
            if attempts == MAX_ATTEMPTS {
                return Err(failed);
            }
            attempts += 1;
            time::sleep(some_of(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// A part of a pause, by chance, so that those who were in conflict are not so again.
fn some_of(pause: Duration) -> Duration {
    // The counter's low bits are as good as random for this.
    let chance = arch::read_tsc().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Duration::from_nanos(((u128::from(chance) * pause.as_nanos()) >> 32) as u64)
}
