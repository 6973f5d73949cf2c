//! Extra-info slots: 8 bytes with a type, a flag that another follows, and what the type says.

use core::num::NonZeroU16;

/// Which packets a large packet is divided into.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SegmentationKind {
    /// TCP over IPv4.
    #[doc(alias = "XEN_NETIF_GSO_TYPE_TCPV4")]
    TcpV4,
    /// TCP over IPv6.
    #[doc(alias = "XEN_NETIF_GSO_TYPE_TCPV6")]
    TcpV6,
}

/// How a large packet is divided: one TCP header stands for that of each segment.
#[doc(alias("GSO", "TSO"))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Segmentation {
    /// Bytes of payload in each segment but the last: the MSS.
    pub size: NonZeroU16,
    /// The protocols.
    pub kind: SegmentationKind,
}

/// The flag of an extra-info slot that another follows.
const MORE: u8 = 1;

const TYPE_GSO: u8 = 1;
const TYPE_HASH: u8 = 4;
const TYPE_XDP: u8 = 5;

/// What an extra-info slot says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extra {
    /// The packet is to be divided.
    #[doc(alias = "XEN_NETIF_EXTRA_TYPE_GSO")]
    Segmentation(Segmentation),
    /// A hash of addresses and ports.
    #[doc(alias = "XEN_NETIF_EXTRA_TYPE_HASH")]
    Hash,
    /// Room in front of the data.
    #[doc(alias = "XEN_NETIF_EXTRA_TYPE_XDP")]
    Headroom,
}

impl Extra {
    /// Reads a slot: what it says, and whether another follows. `None` if no back end of a front end that offers segmentation
    /// only may send it.
    #[must_use]
    pub fn decode(slot: &[u8; 8]) -> Option<(Self, bool)> {
        let extra = match slot[0] {
            TYPE_GSO => {
                let size = NonZeroU16::new(u16::from_le_bytes([slot[2], slot[3]]))?;
                let kind = match slot[4] {
                    1 => SegmentationKind::TcpV4,
                    2 => SegmentationKind::TcpV6,
                    _ => return None,
                };
                Self::Segmentation(Segmentation { size, kind })
            }
            TYPE_HASH => Self::Hash,
            TYPE_XDP => Self::Headroom,
            _ => return None,
        };
        Some((extra, slot[1] & MORE != 0))
    }

    /// The slot that says how a packet is divided, which is the last one.
    #[must_use]
    pub const fn encode(segmentation: Segmentation) -> [u8; 8] {
        let [low, high] = segmentation.size.get().to_le_bytes();
        let kind = match segmentation.kind {
            SegmentationKind::TcpV4 => 1,
            SegmentationKind::TcpV6 => 2,
        };
        [TYPE_GSO, 0, low, high, kind, 0, 0, 0]
    }
}
