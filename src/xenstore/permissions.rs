//! Who may read and write a node.

use alloc::vec::Vec;

use super::ErrorKind;
use super::wire::{self, Payload};
use crate::abi::xen::DomainId;

/// What a domain may do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Access {
    /// Nothing.
    None,
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    Both,
}

const LETTERS: [(Access, u8); 4] =
    [(Access::None, b'n'), (Access::Read, b'r'), (Access::Write, b'w'), (Access::Both, b'b')];

/// An entry of a node's permissions. The first entry names the owner, who may do everything, and what domains may do that no
/// other entry names.
#[doc(alias = "xs_permissions")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Permission {
    /// Who.
    pub domain: DomainId,
    /// What.
    pub access: Access,
}

impl Permission {
    /// Adds an entry to a payload.
    pub(super) fn encode(self, payload: Payload) -> Result<Payload, ErrorKind> {
        let letter = LETTERS.iter().find(|(access, _)| *access == self.access).map_or(b'n', |(_, letter)| *letter);
        Ok(payload.value(&[letter])?.number(u64::from(self.domain.0))?)
    }

    /// The entry that a text is.
    fn decode(text: &[u8]) -> Result<Self, ErrorKind> {
        let (letter, number) = text.split_first().ok_or(ErrorKind::Malformed)?;
        let (access, _) = LETTERS.iter().find(|(_, known)| known == letter).ok_or(ErrorKind::Malformed)?;
        let number = u16::try_from(wire::number(number)?).map_err(|_| ErrorKind::Malformed)?;
        Ok(Self { domain: DomainId(number), access: *access })
    }

    /// All entries of a payload.
    pub(super) fn decode_all(payload: &[u8]) -> Result<Vec<Self>, ErrorKind> {
        let entries = wire::strings(payload)?;
        let mut permissions = Vec::new();
        permissions.try_reserve_exact(entries.clone().count()).map_err(|_| ErrorKind::OutOfMemory)?;
        for entry in entries {
            permissions.push(Self::decode(entry)?);
        }
        Ok(permissions)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entries_are_letters_and_numbers() {
        let entries = [(7, Access::None), (0, Access::Both), (5, Access::Read), (0x7ff4, Access::Write)]
            .map(|(domain, access)| Permission { domain: DomainId(domain), access });
        let payload = entries.iter().try_fold(Payload::new(), |payload, entry| entry.encode(payload)).unwrap();
        assert_eq!(payload.as_bytes(), b"n7\0b0\0r5\0w32756\0");
        assert_eq!(Permission::decode_all(payload.as_bytes()).unwrap(), entries);
        for wrong in [&b"n7"[..], b"\0", b"n\0", b"x7\0", b"n-1\0", b"n65536\0", b"7\0", b"n7\0\0"] {
            assert_eq!(Permission::decode_all(wrong), Err(ErrorKind::Malformed), "{}", wrong.escape_ascii());
        }
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        fn any_payload_is_judged(payload: Vec<u8>) {
            if let Ok(entries) = Permission::decode_all(&payload) {
                let again = entries.iter().try_fold(Payload::new(), |payload, entry| entry.encode(payload)).unwrap();
                prop_assert_eq!(Permission::decode_all(again.as_bytes()).unwrap(), entries);
            }
        }
    }
}
