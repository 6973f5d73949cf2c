//! What an interface counts.

use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! statistics {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counts of an interface since it was opened, through all its connections.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)+
        }

        /// The same, as they are counted.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)+
        }

        impl Counters {
            pub(super) fn read(&self) -> Statistics {
                Statistics { $($name: self.$name.0.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

statistics! {
    /// Frames that were handed to the consumer.
    rx_frames,
    /// Their bytes.
    rx_bytes,
    /// Slots that received frames took.
    rx_slots,
    /// Received frames that the back end had joined.
    rx_segmented,
    /// Received frames with a blank checksum.
    rx_blank,
    /// Received frames whose checksum was verified here.
    rx_verified,
    /// Received frames that were dropped for a wrong checksum.
    rx_bad_checksum,
    /// Received frames that were dropped as a piece had failed, or was empty, or the whole too short.
    rx_failed,
    /// Bytes that were copied to make received frames one slice.
    rx_gathered_bytes,
    /// Frames that were sent.
    tx_frames,
    /// Their bytes.
    tx_bytes,
    /// Sent frames that the back end divides.
    tx_segmented,
    /// Sent frames whose checksum was left blank.
    tx_blank,
    /// Sent frames whose checksum was computed here although that was left to the driver.
    tx_software_checksums,
    /// Slots of sent frames that the back end has refused or dropped.
    tx_failed,
    /// Frames of a network stack that were dropped, as the link went down or no buffer is large enough.
    tx_dropped,
    /// How often a sender found no room.
    tx_full,
    /// Notifications of the back end.
    notifications,
    /// How often a wait for the back end was resumed.
    wake_ups,
    /// Connections.
    connections,
}

/// A count that one task at a time changes.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(super) fn add(&self, count: usize) {
        // One writer at a time: a load and a store suffice.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count as u64), Ordering::Relaxed);
    }
}
