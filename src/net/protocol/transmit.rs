//! Slots of the transmit ring.

use bitflags::bitflags;

bitflags! {
    /// Flags of a transmitted slot. Bits 0 and 1 mean the opposite on the receive ring.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TxFlags: u16 {
        /// The TCP or UDP checksum is blank: its field holds the sum of the pseudo-header.
        #[doc(alias = "NETTXF_csum_blank")]
        const CHECKSUM_BLANK = 1;
        /// The data are known to be good.
        #[doc(alias = "NETTXF_data_validated")]
        const DATA_VALIDATED = 2;
        /// A further slot of the packet follows.
        #[doc(alias = "NETTXF_more_data")]
        const MORE_DATA = 4;
        /// An extra-info slot follows.
        #[doc(alias = "NETTXF_extra_info")]
        const EXTRA_INFO = 8;
    }
}

/// A request of the transmit ring: 12 bytes.
#[doc(alias = "netif_tx_request")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxRequest {
    /// The grant of the page with the data.
    pub reference: u32,
    /// Where in the page they begin.
    pub offset: u16,
    /// The packet's flags in its first slot; later only [`TxFlags::MORE_DATA`] counts.
    pub flags: TxFlags,
    /// Comes back with the response.
    pub id: u16,
    /// In the first slot the length of the whole packet, in later ones their own.
    pub size: u16,
}

impl TxRequest {
    /// The bytes of the slot.
    #[must_use]
    pub const fn encode(&self) -> [u8; 12] {
        let reference = self.reference.to_le_bytes();
        let [offset, flags] = [self.offset.to_le_bytes(), self.flags.bits().to_le_bytes()];
        let [id, size] = [self.id.to_le_bytes(), self.size.to_le_bytes()];
        [
            reference[0],
            reference[1],
            reference[2],
            reference[3],
            offset[0],
            offset[1],
            flags[0],
            flags[1],
            id[0],
            id[1],
            size[0],
            size[1],
        ]
    }

    /// Reads a slot, with flags that are not known.
    #[must_use]
    pub const fn decode(slot: &[u8; 12]) -> Self {
        Self {
            reference: u32::from_le_bytes([slot[0], slot[1], slot[2], slot[3]]),
            offset: u16::from_le_bytes([slot[4], slot[5]]),
            flags: TxFlags::from_bits_retain(u16::from_le_bytes([slot[6], slot[7]])),
            id: u16::from_le_bytes([slot[8], slot[9]]),
            size: u16::from_le_bytes([slot[10], slot[11]]),
        }
    }
}

/// What became of a transmitted slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TxStatus {
    /// Sent.
    #[doc(alias = "NETIF_RSP_OKAY")]
    Okay,
    /// Refused.
    #[doc(alias = "NETIF_RSP_ERROR")]
    Error,
    /// Dropped.
    #[doc(alias = "NETIF_RSP_DROPPED")]
    Dropped,
    /// The answer to an extra-info slot, whose id means nothing.
    #[doc(alias = "NETIF_RSP_NULL")]
    Null,
}

/// A response of the transmit ring: 4 bytes.
#[doc(alias = "netif_tx_response")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TxResponse {
    /// That of the request.
    pub id: u16,
    /// What became of it.
    pub status: TxStatus,
}

impl TxResponse {
    /// Reads a response. `None` if its status is unknown.
    #[must_use]
    pub const fn decode(slot: &[u8; 4]) -> Option<Self> {
        let status = match i16::from_le_bytes([slot[2], slot[3]]) {
            0 => TxStatus::Okay,
            -1 => TxStatus::Error,
            -2 => TxStatus::Dropped,
            1 => TxStatus::Null,
            _ => return None,
        };
        Some(Self { id: u16::from_le_bytes([slot[0], slot[1]]), status })
    }

    /// The bytes of the response.
    #[must_use]
    pub const fn encode(&self) -> [u8; 4] {
        let status: i16 = match self.status {
            TxStatus::Okay => 0,
            TxStatus::Error => -1,
            TxStatus::Dropped => -2,
            TxStatus::Null => 1,
        };
        let (id, status) = (self.id.to_le_bytes(), status.to_le_bytes());
        [id[0], id[1], status[0], status[1]]
    }
}
