//! Requests of the toolstack in the nodes `control/shutdown` and `control/sysrq`.

pub(super) mod claim;
pub(super) mod default_handler;
mod node;
mod received;
pub(super) mod requests;
mod stream;
pub(super) mod sysrq;
