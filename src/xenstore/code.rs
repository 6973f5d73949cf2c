//! The errors by which xenstored refuses a request. They travel as names, not as numbers.

use core::fmt;

/// Bytes of an unknown name that are kept. Names are some ten bytes long.
const KEPT: usize = 23;

/// Why xenstored refused a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The request, or a path in it, is malformed.
    #[doc(alias = "EINVAL")]
    Invalid,
    /// The domain may not read, or not write, this node.
    #[doc(alias = "EACCES")]
    Access,
    /// There is a node, or a watch of this path and token, already.
    #[doc(alias = "EEXIST")]
    Exists,
    /// A value was expected and there are children.
    #[doc(alias = "EISDIR")]
    IsDirectory,
    /// There is no such node, transaction or watch.
    #[doc(alias = "ENOENT")]
    NotFound,
    /// The server has no memory left, or none for this domain.
    #[doc(alias = "ENOMEM")]
    NoMemory,
    /// A quota of the domain's is used up, or a value is larger than the quota of a node.
    #[doc(alias = "ENOSPC")]
    NoSpace,
    /// The server failed in what it did, or does not know an error's name.
    #[doc(alias = "EIO")]
    Io,
    /// The node has children.
    #[doc(alias = "ENOTEMPTY")]
    NotEmpty,
    /// The server does not know this request.
    #[doc(alias = "ENOSYS")]
    NotSupported,
    /// The store is not to be written to.
    #[doc(alias = "EROFS")]
    ReadOnly,
    /// Something is in use: a transaction was begun within a transaction.
    #[doc(alias = "EBUSY")]
    Busy,
    /// The transaction is in conflict with another's changes: all of it is to be done again.
    #[doc(alias = "EAGAIN")]
    Again,
    /// The domain is connected already.
    #[doc(alias = "EISCONN")]
    IsConnected,
    /// A reply would be longer than a message may be, or, as an older server says it, a quota is used up.
    #[doc(alias = "E2BIG")]
    TooBig,
    /// A guest may not do this.
    #[doc(alias = "EPERM")]
    NotPermitted,
    /// A quota of the domain's is used up, as oxenstored says it.
    #[doc(alias = "EQUOTA")]
    Quota,
    /// A name that this crate does not know.
    Unknown(UnknownCode),
}

/// All codes that have a name.
const NAMES: [(Code, &str); 17] = [
    (Code::Invalid, "EINVAL"),
    (Code::Access, "EACCES"),
    (Code::Exists, "EEXIST"),
    (Code::IsDirectory, "EISDIR"),
    (Code::NotFound, "ENOENT"),
    (Code::NoMemory, "ENOMEM"),
    (Code::NoSpace, "ENOSPC"),
    (Code::Io, "EIO"),
    (Code::NotEmpty, "ENOTEMPTY"),
    (Code::NotSupported, "ENOSYS"),
    (Code::ReadOnly, "EROFS"),
    (Code::Busy, "EBUSY"),
    (Code::Again, "EAGAIN"),
    (Code::IsConnected, "EISCONN"),
    (Code::TooBig, "E2BIG"),
    (Code::NotPermitted, "EPERM"),
    (Code::Quota, "EQUOTA"),
];

impl Code {
    /// The code with a name, which may end in a NUL as it does in a message.
    pub(crate) fn from_name(name: &[u8]) -> Self {
        let name = name.strip_suffix(&[0]).unwrap_or(name);
        let known = NAMES.iter().find(|(_, known)| known.as_bytes() == name);
        known.map_or_else(|| Self::Unknown(UnknownCode::new(name)), |(code, _)| *code)
    }

    /// The name, as it travels.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Unknown(unknown) => unknown.as_str(),
            // All others have one.
            _ => NAMES.iter().find(|(code, _)| code == self).map_or("", |(_, name)| name),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of an error that this crate does not know: the first 23 bytes, with a question mark for each that is not
/// printable ASCII.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnknownCode {
    text: [u8; KEPT],
    len: u8,
}

impl UnknownCode {
    fn new(name: &[u8]) -> Self {
        let mut text = [0; KEPT];
        for (kept, &byte) in text.iter_mut().zip(name) {
            *kept = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' };
        }
        Self { text, len: name.len().min(KEPT) as u8 }
    }

    /// What is kept of the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Made of ASCII only, and no longer than the array.
        self.text.get(..usize::from(self.len)).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("")
    }
}

impl fmt::Debug for UnknownCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_name_is_a_code_of_its_own() {
        for (code, name) in NAMES {
            assert_eq!((Code::from_name(name.as_bytes()), code.name()), (code, name));
            let terminated: std::vec::Vec<u8> = name.bytes().chain([0]).collect();
            assert_eq!(Code::from_name(&terminated), code);
        }
    }

    #[test]
    fn an_unknown_name_is_kept_as_far_as_it_can_be_shown() {
        assert_eq!(Code::from_name(b"EDOOFUS\0").name(), "EDOOFUS");
        assert_eq!(Code::from_name(b"").name(), "");
        assert_eq!(Code::from_name(b"E\x1b[2J\0\0\xff").name(), "E?[2J???");
        assert_eq!(Code::from_name(&[b'x'; 4096]).name().len(), KEPT);
        assert_ne!(Code::from_name(b"einval"), Code::Invalid);
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        fn any_bytes_have_a_printable_name(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let code = Code::from_name(&name);
            prop_assert!(code.name().len() <= KEPT && code.name().bytes().all(|byte| matches!(byte, b' '..=b'~')));
        }
    }
}
