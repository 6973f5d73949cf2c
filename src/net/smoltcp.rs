//! The device of `smoltcp`.

use core::future::poll_fn;
use core::task::Poll;

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::Error;
use super::frontend::{Handle, Receiver, Transmitter};
use super::stack::{Incoming, Outgoing, frame_len, mtu};

/// A network interface as a device of `smoltcp`.
///
/// The stack neither computes nor verifies checksums of TCP and UDP: the driver does, or leaves it to the back end. The
/// checksum of a fragmented datagram that nobody has verified stays unverified. [`ready`](Self::ready) waits for
/// something to do.
///
/// Received frames are lent in place, and a token that is not consumed leaves its frame for the next one. Frames are received
/// only while a reply can be sent, for which some buffers are kept.
#[derive(Debug)]
pub struct SmoltcpDevice {
    receiver: Receiver,
    transmitter: Transmitter,
    mtu: u16,
    /// The stack had something to send and found no room.
    blocked: bool,
}

impl SmoltcpDevice {
    /// Joins the halves of an interface, with the MTU that the toolstack says, or 1,500.
    #[must_use]
    pub fn new(receiver: Receiver, transmitter: Transmitter) -> Self {
        let mtu = mtu(&receiver);
        Self { receiver, transmitter, mtu, blocked: false }
    }

    /// Sets the largest IP packet, in bytes.
    #[must_use]
    pub fn with_mtu(self, mtu: u16) -> Self {
        Self { mtu, ..self }
    }

    /// A view of the interface.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.receiver.handle()
    }

    /// Returns true if the stack found no room for a frame at its last attempt. Then the delay that it names is zero, although
    /// it can do nothing before [`ready`](Self::ready).
    #[must_use]
    pub const fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Waits until there is a frame to receive, or, if the stack found no room for a frame, room.
    ///
    /// # Errors
    ///
    /// Why the interface has ended.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping the future.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let len = frame_len(self.mtu);
        poll_fn(|context| {
            let room =
                if self.blocked { self.transmitter.poll_room(context, len, false, false)? } else { Poll::Pending };
            if room.is_ready() {
                self.blocked = false;
                return Poll::Ready(Ok(()));
            }
            self.receiver.poll_peek(context)
        })
        .await
    }
}

impl phy::Device for SmoltcpDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // An interface that has ended has neither: `ready` says why.
        if !self.transmitter.has_room(frame_len(self.mtu), false, true).unwrap_or(false) {
            self.blocked = true;
            return None;
        }
        if !self.receiver.peek().unwrap_or(false) {
            return None;
        }
        let outgoing = Outgoing { transmitter: &mut self.transmitter, reply: true };
        Some((RxToken(Incoming { receiver: &mut self.receiver }), TxToken(outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        if !self.transmitter.has_room(frame_len(self.mtu), false, false).unwrap_or(false) {
            self.blocked = true;
            return None;
        }
        Some(TxToken(Outgoing { transmitter: &mut self.transmitter, reply: false }))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = frame_len(self.mtu);
        capabilities.checksum.tcp = Checksum::None;
        capabilities.checksum.udp = Checksum::None;
        capabilities
    }
}

/// A received frame.
#[derive(Debug)]
pub struct RxToken<'a>(Incoming<'a>);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F>(self, consume: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        match self.0.receiver.frame() {
            Some(frame) => consume(frame.bytes()),
            None => consume(&[]),
        }
    }
}

/// Room for a frame.
#[derive(Debug)]
pub struct TxToken<'a>(Outgoing<'a>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F>(self, len: usize, write: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        self.0.consume(len, write)
    }
}
