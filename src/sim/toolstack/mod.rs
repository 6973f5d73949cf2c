//! The toolstack of a simulated domain: the nodes that it makes in xenstore, and what becomes of a domain that suspends itself.

mod device;
pub(super) mod home;
pub(super) mod saved;
