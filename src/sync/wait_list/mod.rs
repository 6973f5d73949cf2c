//! Wait lists: the wakers of futures that wait, for all modules.
//!
//! | type | for |
//! |---|---|
//! | [`Waiters`] | slots of waiters, each found by its [`WaiterId`]; memory for many lists |
//! | [`Queue`] | a list within [`Waiters`], in order of arrival |
//! | [`WaitList`] | one queue with slots of its own |
//! | [`Deadlines`] | waiters in order of their deadlines |
//! | [`WaitCell`] | at most one waiter |
//!
//! A list has no lock of its own. It is part of what the caller's lock protects, so that the state and the waiter change in one
//! step, and a wake-up between a look and a registration cannot be lost. Wakers are the application's code, which may call the
//! crate again: the lists move them, and never clone, wake or drop one. A caller clones a waker before it locks
//! ([`Waiter::new`]), and wakes or drops what it gets back after it has unlocked.
//!
//! - A waiter that registers again replaces its waker and keeps its place.
//! - To wake all, the caller takes the waiters that were there at its [mark](Waiters::mark) one at a time, each under the lock: a
//!   waker that registers anew cannot prolong the loop.
//! - A single wake-up is for the first waiter, which keeps its place until it is served or [leaves](WaitList::leave); leaving
//!   passes the wake-up on to the next one that can be served.
//! - Slots are reused: waiting allocates only when more wait than ever before, and the memory of many goes when the last leaves.
//! - [Closing](Waiters::close) takes all waiters out, and makes their ids invalid: the owner of the list answers them with its error.
//!
//! A waiter is in the foreground or in the [background](in_background). Each set counts those in the foreground
//! ([`Waiters::has_foreground`]): the main loop goes on while one of them may be woken. Background waiters are ignored by it.

#![cfg_attr(not(test), forbid(unsafe_code))]

mod background;
mod cell;
mod deadlines;
mod list;
mod queue;
mod waiters;

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;

pub(crate) use background::{as_background, in_background, is_background, start};
pub(crate) use cell::WaitCell;
pub(crate) use deadlines::Deadlines;
pub(crate) use list::WaitList;
pub(crate) use queue::Queue;
pub(crate) use waiters::{Waiter, WaiterId, Waiters};
