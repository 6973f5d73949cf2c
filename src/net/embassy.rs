//! The driver of `embassy-net`.

use core::task::Context;

use embassy_net_driver::{self as driver, Capabilities, Checksum, HardwareAddress, LinkState};

use super::frontend::{Handle, Receiver, Transmitter};
use super::stack::{Incoming, Outgoing, frame_len, is_up, mtu};

/// A network interface as a driver of `embassy-net`.
///
/// The stack neither computes nor verifies checksums of TCP and UDP: the driver does, or leaves it to the back end. The
/// checksum of a fragmented datagram that nobody has verified stays unverified.
///
/// The trait hands received frames out as `&mut [u8]`. What a stack writes there, the back end could read once the pages are its
/// own again, so they are zeroed before. `embassy-net` writes nothing there, and may do [without](Self::without_zeroing).
#[derive(Debug)]
pub struct EmbassyDriver {
    receiver: Receiver,
    transmitter: Transmitter,
    mtu: u16,
    zero: bool,
}

impl EmbassyDriver {
    /// Joins the halves of an interface, with the MTU that the toolstack says, or 1,500.
    #[must_use]
    pub fn new(receiver: Receiver, transmitter: Transmitter) -> Self {
        let mtu = mtu(&receiver);
        Self { receiver, transmitter, mtu, zero: true }
    }

    /// Sets the largest IP packet, in bytes.
    #[must_use]
    pub fn with_mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// Leaves received frames as they are when they go back to the back end: for a stack that writes no secrets into them.
    #[must_use]
    pub fn without_zeroing(self) -> Self {
        Self { zero: false, ..self }
    }

    /// A view of the interface.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.receiver.handle()
    }
}

impl driver::Driver for EmbassyDriver {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, context: &mut Context<'_>) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // Without a frame the task is woken by the next; without room for a reply, by a completion. An interface that has
        // ended wakes nobody, and its link is down.
        if self.transmitter.poll_room(context, frame_len(self.mtu), false, true).is_pending() {
            return None;
        }
        if !matches!(self.receiver.poll_peek(context), core::task::Poll::Ready(Ok(()))) {
            return None;
        }
        let outgoing = Outgoing { transmitter: &mut self.transmitter, reply: true };
        Some((RxToken(Incoming { receiver: &mut self.receiver }, self.zero), TxToken(outgoing)))
    }

    fn transmit(&mut self, context: &mut Context<'_>) -> Option<TxToken<'_>> {
        match self.transmitter.poll_room(context, frame_len(self.mtu), false, false) {
            core::task::Poll::Ready(Ok(())) => {
                Some(TxToken(Outgoing { transmitter: &mut self.transmitter, reply: false }))
            }
            _ => None,
        }
    }

    fn link_state(&mut self, context: &mut Context<'_>) -> LinkState {
        // The receive half is woken when the link changes.
        let _ = self.receiver.poll_peek(context);
        if is_up(&self.receiver) { LinkState::Up } else { LinkState::Down }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = frame_len(self.mtu);
        capabilities.checksum.tcp = Checksum::None;
        capabilities.checksum.udp = Checksum::None;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.receiver.handle().mac().0)
    }
}

/// A received frame.
#[derive(Debug)]
pub struct RxToken<'a>(Incoming<'a>, bool);

impl driver::RxToken for RxToken<'_> {
    fn consume<R, F>(self, consume: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        match self.0.receiver.frame() {
            Some(mut frame) => consume(frame.bytes_mut_zeroed(self.1)),
            None => consume(&mut []),
        }
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct TxToken<'a>(Outgoing<'a>);

impl driver::TxToken for TxToken<'_> {
    fn consume<R, F>(self, len: usize, write: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        self.0.consume(len, write)
    }
}
