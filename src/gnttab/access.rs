//! What may be done with a page by the domain that it is granted to, be it a peer or this one: types, so that a page that may
//! only be read is not taken for one that may be written.

use core::fmt::Debug;

/// The page may be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOnly {}

/// The page may be read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadWrite {}

mod sealed {
    pub trait Access {
        const READ_ONLY: bool;
    }
}

/// [`ReadOnly`] or [`ReadWrite`].
pub trait Access: sealed::Access + Copy + Debug + Send + Sync + 'static {}

impl Access for ReadOnly {}
impl Access for ReadWrite {}

impl sealed::Access for ReadOnly {
    const READ_ONLY: bool = true;
}

impl sealed::Access for ReadWrite {
    const READ_ONLY: bool = false;
}
