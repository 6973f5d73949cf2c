//! Internet checksums of TCP and UDP in Ethernet frames.
//!
//! A *blank* checksum field holds the folded sum of the pseudo-header: addresses, protocol and length, not complemented. Who
//! completes it adds the bytes of the segment to what is there. Only TCP and UDP over IPv4 and IPv6 can be blank, never
//! fragments.

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Where a frame has its TCP or UDP segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// The protocol.
    pub protocol: Protocol,
    /// IPv6, and not IPv4.
    pub is_ipv6: bool,
    /// The frame has VLAN tags.
    pub is_tagged: bool,
    /// The offset of the segment's first byte.
    pub start: usize,
    /// The offset behind its last byte. Padding may follow.
    pub end: usize,
    /// The folded sum of the pseudo-header.
    pub pseudo: u16,
}

impl Segment {
    /// The offset of the checksum.
    #[must_use]
    pub const fn field(&self) -> usize {
        self.start
            + match self.protocol {
                Protocol::Tcp => 16,
                Protocol::Udp => 6,
            }
    }
}

/// What verifying a frame found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The checksum is right.
    Good,
    /// The checksum is wrong.
    Bad,
    /// Neither TCP nor UDP, a fragment, or UDP over IPv4 without a checksum.
    Absent,
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Most VLAN tags, and most IPv6 extension headers, that are looked behind.
const MOST_TAGS: usize = 2;
const MOST_HEADERS: usize = 4;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Adds in ones' complement.
const fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + carry as u16
}

/// The folded ones' complement sum of bytes, as numbers of 16 bits in network order. A last odd byte is the higher half.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on the order of bytes, but for a swap at the end (RFC 1071, section 2).
    let (words, rest) = bytes.as_chunks::<8>();
    let (mut low, mut high) = (0_u64, 0_u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & 0xffff_ffff;
        high += word >> 32;
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_ne_bytes(last);
    low += last & 0xffff_ffff;
    high += last >> 32;
    let mut total = u128::from(low) + u128::from(high);
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::from_be(total as u16)
}

/// Finds the TCP or UDP segment of a frame. `None` for other protocols, fragments, and what is too short.
#[must_use]
pub fn find(frame: &[u8]) -> Option<Segment> {
    let (mut at, mut kind) = (14, u16_at(frame, 12)?);
    let mut tags = 0;
    while matches!(kind, VLAN | QINQ) && tags < MOST_TAGS {
        kind = u16_at(frame, at + 2)?;
        (at, tags) = (at + 4, tags + 1);
    }
    let (protocol, start, end, addresses) = match kind {
        IPV4 => ipv4(frame, at)?,
        IPV6 => ipv6(frame, at)?,
        _ => return None,
    };
    let (number, least, protocol) = match protocol {
        6 => (6, 20, Protocol::Tcp),
        17 => (17, 8, Protocol::Udp),
        _ => return None,
    };
    let len = end.checked_sub(start).filter(|&len| len >= least)?;
    // A jumbogram is longer; no frame here is.
    let len = u16::try_from(len).ok()?;
    let pseudo = add(add(sum(addresses), number), len);
    Some(Segment { protocol, is_ipv6: kind == IPV6, is_tagged: tags > 0, start, end, pseudo })
}

/// Protocol, start, end and addresses of an IPv4 packet that is no fragment.
fn ipv4(frame: &[u8], at: usize) -> Option<(u8, usize, usize, &[u8])> {
    let header = frame.get(at..at + 20)?;
    let header_len = usize::from(header[0] & 15) * 4;
    let end = at + usize::from(u16_at(header, 2)?);
    // More fragments, or not the first.
    let is_fragment = u16_at(header, 6)? & 0x3fff != 0;
    if header[0] >> 4 != 4 || header_len < 20 || is_fragment || end > frame.len() {
        return None;
    }
    Some((header[9], at + header_len, end, &header[12..20]))
}

/// The same of an IPv6 packet, behind its extension headers.
fn ipv6(frame: &[u8], at: usize) -> Option<(u8, usize, usize, &[u8])> {
    let header = frame.get(at..at + 40)?;
    let end = at + 40 + usize::from(u16_at(header, 4)?);
    if header[0] >> 4 != 6 || end > frame.len() {
        return None;
    }
    let (mut next, mut start) = (header[6], at + 40);
    for _ in 0..MOST_HEADERS {
        // Hop-by-hop and destination options. Behind a routing header the destination may be another.
        if !matches!(next, 0 | 60) {
            break;
        }
        let [following, len] = *frame.get(start..start + 2)?.first_chunk::<2>()?;
        (next, start) = (following, start + 8 + usize::from(len) * 8);
    }
    Some((next, start, end, &header[8..40]))
}

/// Writes the sum of the pseudo-header, as a blank checksum field has it.
pub fn make_blank(frame: &mut [u8], segment: &Segment) {
    write(frame, segment, segment.pseudo);
}

/// Writes the checksum of a segment, whatever its field holds: also that of a blank one.
pub fn fill(frame: &mut [u8], segment: &Segment) {
    write(frame, segment, 0);
    let total = !add(sum(&frame[segment.start..segment.end]), segment.pseudo);
    // Zero is no checksum for UDP.
    let total = if total == 0 && segment.protocol == Protocol::Udp { u16::MAX } else { total };
    write(frame, segment, total);
}

/// Writes the checksum of a frame whose field is blank. Returns false, and changes nothing, if it cannot be blank.
#[doc(alias = "skb_checksum_help")]
pub fn complete(frame: &mut [u8]) -> bool {
    let Some(segment) = find(frame) else { return false };
    fill(frame, &segment);
    true
}

fn write(frame: &mut [u8], segment: &Segment, value: u16) {
    // The segment is at least as long as its header.
    frame[segment.field()..segment.field() + 2].copy_from_slice(&value.to_be_bytes());
}

/// Verifies the checksum of a frame.
#[must_use]
pub fn verify(frame: &[u8]) -> Verdict {
    let Some(segment) = find(frame) else { return Verdict::Absent };
    if segment.protocol == Protocol::Udp && u16_at(frame, segment.field()) == Some(0) {
        // Allowed over IPv4 alone.
        return if segment.is_ipv6 { Verdict::Bad } else { Verdict::Absent };
    }
    let total = add(sum(&frame[segment.start..segment.end]), segment.pseudo);
    if total == u16::MAX { Verdict::Good } else { Verdict::Bad }
}

#[cfg(test)]
mod tests;
