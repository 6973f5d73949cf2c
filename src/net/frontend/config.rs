//! How large an interface is, and what it does besides moving frames.

use crate::net::Error;
use crate::net::protocol::{MAX_EXTRAS, MAX_RX_BYTES, MAX_RX_SLOTS, PAGE};

/// Bytes of a transmit buffer for frames of the usual size.
pub(super) const HALF_PAGE: usize = 2048;

/// Pages of a run, which holds a frame of any size.
pub(super) const RUN_PAGES: usize = 17;

/// The most bytes that an interface without large frames receives in one: pages of 9,018 bytes.
const SMALL_RX_BYTES: usize = 3 * PAGE;

/// Memory and checks of an interface. The [default](Self::new) takes 1.9 MiB, [`small`](Self::small) 252 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    pub(super) receive_slots: usize,
    pub(super) half_pages: usize,
    pub(super) runs: usize,
    pub(super) large_receive: bool,
    pub(super) verify_checksums: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

impl Config {
    /// 256 receive slots of a page each, 256 transmit buffers of half a page, 4 of 17 pages, and large frames received.
    #[must_use]
    pub const fn new() -> Self {
        Self { receive_slots: 256, half_pages: 256, runs: 4, large_receive: true, verify_checksums: true }
    }

    /// 32 receive slots, 16 transmit buffers of half a page, one of 17 pages, and no large frames received.
    #[must_use]
    pub const fn small() -> Self {
        Self { receive_slots: 32, half_pages: 16, runs: 1, large_receive: false, verify_checksums: true }
    }

    /// Sets the number of receive slots: 32, 64, 128 or 256.
    #[must_use]
    pub const fn receive_slots(self, slots: usize) -> Self {
        Self { receive_slots: slots, ..self }
    }

    /// Sets the number of transmit buffers of half a page: an even number from 4 to 256.
    #[must_use]
    pub const fn half_pages(self, buffers: usize) -> Self {
        Self { half_pages: buffers, ..self }
    }

    /// Sets the number of transmit buffers of 17 pages, for frames of more than 2,048 bytes: up to 64.
    #[must_use]
    pub const fn runs(self, buffers: usize) -> Self {
        Self { runs: buffers, ..self }
    }

    /// Sets whether the back end may join TCP segments to frames of up to 64 KiB, which takes 56 KiB more.
    #[doc(alias("GRO", "LRO", "feature-gso-tcpv4"))]
    #[must_use]
    pub const fn large_receive(self, large: bool) -> Self {
        Self { large_receive: large, ..self }
    }

    /// Sets whether checksums that nobody has verified are verified, and frames with wrong ones dropped. Then a network stack
    /// need not verify any, but for those of fragmented packets.
    #[must_use]
    pub const fn verify_checksums(self, verify: bool) -> Self {
        Self { verify_checksums: verify, ..self }
    }

    /// The most bytes of a received frame.
    pub(super) const fn most_received(&self) -> usize {
        if self.large_receive { MAX_RX_BYTES } else { SMALL_RX_BYTES }
    }

    /// Pages of the receive area that are never granted: those behind the last slot.
    pub(super) const fn spare_pages(&self) -> usize {
        self.most_received() / PAGE
    }

    /// Pages of the transmit buffers.
    pub(super) const fn pool_pages(&self) -> usize {
        self.half_pages / 2 + self.runs * RUN_PAGES
    }

    /// All pages, those of the rings among them.
    pub(super) const fn pages(&self) -> usize {
        self.receive_slots + self.spare_pages() + self.pool_pages() + 2
    }

    /// Transmit buffers that are kept for replies.
    pub(super) const fn reserve(&self) -> usize {
        let part = self.half_pages / 16;
        if part < 2 { 2 } else { part }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let slots = self.receive_slots;
        if !slots.is_power_of_two() || slots > 256 || slots <= MAX_RX_SLOTS + MAX_EXTRAS {
            return Err(Error::InvalidConfig("receive_slots"));
        }
        if !(4..=256).contains(&self.half_pages) || !self.half_pages.is_multiple_of(2) {
            return Err(Error::InvalidConfig("half_pages"));
        }
        if self.runs > 64 { Err(Error::InvalidConfig("runs")) } else { Ok(()) }
    }
}

const _: () = assert!(Config::new().pages() * PAGE <= 2 << 20);
const _: () = assert!(Config::small().pages() * PAGE <= 256 << 10);
