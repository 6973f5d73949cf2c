//! What the adaptors to network stacks have in common: tokens over the two halves, and what the stack need not do.

#[cfg(feature = "embassy-net-driver")]
use super::frontend::Link;
use super::frontend::{Receiver, Transmitter};
use super::protocol::MIN_BYTES;

/// The largest IP packet where the toolstack names none.
const USUAL_MTU: u16 = 1500;

/// The largest IP packet of an interface.
pub(super) fn mtu(receiver: &Receiver) -> u16 {
    // That of IPv4 at least, and of what smoltcp can do at most.
    receiver.handle().mtu().unwrap_or(USUAL_MTU).clamp(576, 9216)
}

/// The largest frame with IP packets of this length.
pub(super) fn frame_len(mtu: u16) -> usize {
    usize::from(mtu) + MIN_BYTES
}

/// A received frame, for a stack. One that is not consumed is received again.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    pub(super) receiver: &'a mut Receiver,
}

/// Room for a frame, for a stack.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) transmitter: &'a mut Transmitter,
    pub(super) reply: bool,
}

impl Outgoing<'_> {
    pub(super) fn consume<T>(self, len: usize, write: impl FnOnce(&mut [u8]) -> T) -> T {
        self.transmitter.send_or_drop(self.reply, len, write)
    }
}

/// Returns true if the link is up.
#[cfg(feature = "embassy-net-driver")]
pub(super) fn is_up(receiver: &Receiver) -> bool {
    receiver.handle().link() == Link::Up
}
