//! Paths of nodes, checked once: what the server would refuse never leaves the domain.

use alloc::borrow::ToOwned;
use alloc::string::String;
use core::borrow::Borrow;
use core::fmt;

use super::{Error, ErrorKind};
use crate::abi::xs_wire::{ABS_PATH_MAX, REL_PATH_MAX};

/// The path of a node: names of letters, digits, `-`, `_` and `@`, separated by single slashes.
///
/// One that begins with a slash is absolute and has up to 3072 bytes. Any other is below the domain's home,
/// `/local/domain/` and its number, and has up to 2048. Of the special paths `@introduceDomain` and `@releaseDomain` those are
/// told whom the toolstack lets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(String);

impl Path {
    /// Checks a path.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPath`].
    pub fn new(path: impl AsRef<str> + Into<String>) -> Result<Self, Error> {
        check(path.as_ref()).map_err(|kind| kind.with_path(path.as_ref()))?;
        Ok(Self(path.into()))
    }

    /// The path of something below: a name, or several.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidPath`], also if what comes of it is too long; [`ErrorKind::OutOfMemory`].
    pub fn join(&self, below: impl AsRef<str>) -> Result<Self, Error> {
        let separator = if self.0 == "/" { "" } else { "/" };
        Self::concat([self.as_str(), separator, below.as_ref()])
    }

    /// The path of a text that a peer has sent.
    pub(super) fn try_copy(path: &str) -> Result<Self, ErrorKind> {
        Self::concat([path, "", ""]).map_err(|error| error.kind())
    }

    /// The path that pieces of text make, in memory that is asked for fallibly.
    fn concat(pieces: [&str; 3]) -> Result<Self, Error> {
        let mut path = String::new();
        path.try_reserve_exact(pieces.iter().map(|piece| piece.len()).sum()).map_err(|_| ErrorKind::OutOfMemory)?;
        pieces.iter().for_each(|piece| path.push_str(piece));
        match check(&path) {
            Ok(()) => Ok(Self(path)),
            Err(kind) => Err(Error::of_path(kind, path)),
        }
    }

    /// The path of the node above; none of the root, of a special path and of a relative path of one name.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self.0.rsplit_once('/')? {
            ("", "") => None,
            ("", _) => Some(Self("/".to_owned())),
            (parent, _) => Some(Self(parent.to_owned())),
        }
    }

    /// The last name; empty of the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Whether it does not depend on where the domain's home is. A special path does not either.
    #[must_use]
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with(['/', '@'])
    }

    /// What remains of it below another: the names, or nothing if they are the same.
    #[must_use]
    pub fn below(&self, above: &Self) -> Option<&str> {
        below(&self.0, &above.0)
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for Path {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The order and equality of paths are those of their texts.
impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Path {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Path {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl TryFrom<&str> for Path {
    type Error = Error;

    fn try_from(path: &str) -> Result<Self, Error> {
        Self::new(path)
    }
}

impl TryFrom<String> for Path {
    type Error = Error;

    fn try_from(path: String) -> Result<Self, Error> {
        Self::new(path)
    }
}

/// Whether a text is a path.
pub(super) fn check(path: &str) -> Result<(), ErrorKind> {
    let (names, limit) = match path.strip_prefix('/') {
        // The root.
        Some("") => return Ok(()),
        Some(names) => (names, ABS_PATH_MAX),
        None => (path, REL_PATH_MAX),
    };
    let right = path.len() <= limit && names.split('/').all(is_name);
    right.then_some(()).ok_or(ErrorKind::InvalidPath)
}

/// Whether a text can be the name of a node.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_@".contains(&byte))
}

/// What remains of a path below another, without a slash at its beginning.
pub(super) fn below<'a>(path: &'a str, above: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(above)?;
    if rest.is_empty() || above == "/" { Some(rest) } else { rest.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_what_the_server_takes() {
        for right in
            ["/", "/a", "/local/domain/7/device/vif/0", "name", "a-b_c@D9/0", "@releaseDomain", "@introduceDomain/7"]
        {
            assert_eq!(Path::new(right).map(|path| path == *right), Ok(true), "{right}");
        }
        for wrong in ["", "//", "/a/", "a/", "a//b", "//a", "a b", "a\0", "ä", "a.b", "a:b", "a\n"] {
            assert_eq!(Path::new(wrong), Err(ErrorKind::InvalidPath.with_path(wrong)), "{wrong:?}");
        }
    }

    #[test]
    fn lengths_are_limited_by_kind() {
        let text = "a".repeat(4000);
        assert!(Path::new(&text[..2048]).is_ok() && Path::new(&text[..2049]).is_err());
        let absolute = ["/", &text].concat();
        assert!(Path::new(&absolute[..3072]).is_ok() && Path::new(&absolute[..3073]).is_err());
    }

    #[test]
    fn paths_are_joined_and_taken_apart() {
        let path = Path::new("device").unwrap().join("vif/0").unwrap();
        assert_eq!((path.as_str(), path.name(), path.is_absolute()), ("device/vif/0", "0", false));
        assert_eq!(path.parent().unwrap(), "device/vif");
        assert_eq!(Path::new("device").unwrap().parent(), None);
        let root = Path::new("/").unwrap();
        assert_eq!(root.join("vm").unwrap(), "/vm");
        assert_eq!((root.parent(), root.join("vm").unwrap().parent()), (None, Some(root.clone())));
        assert_eq!(path.join("").unwrap_err(), ErrorKind::InvalidPath);
        assert_eq!(path.join("/a").unwrap_err(), ErrorKind::InvalidPath);
        let device = Path::new("device").unwrap();
        assert_eq!((path.below(&device), device.below(&device), device.below(&path)), (Some("vif/0"), Some(""), None));
        assert_eq!(Path::new("device2").unwrap().below(&device), None);
        assert_eq!(Path::new("/vm/x").unwrap().below(&root), Some("vm/x"));
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        #[test]
        #[cfg_attr(miri, ignore = "seconds, and nothing here is unsafe")]
        fn what_is_joined_comes_apart(names in proptest::collection::vec("[a-zA-Z0-9_@-]{1,8}", 1..6), root: bool) {
            let mut path = Path::new(if root { "/" } else { "home" }).unwrap();
            let start = path.clone();
            for name in &names {
                let next = path.join(name).unwrap();
                prop_assert_eq!((next.parent().unwrap(), next.name()), (path, name.as_str()));
                path = next;
            }
            prop_assert_eq!(path.below(&start).unwrap(), names.join("/"));
        }

        #[test]
        fn any_text_is_judged(text in ".{0,20}") {
            let by_rule = text.trim_start_matches('/').split('/').all(|name| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_@".contains(c))
            }) && !text.starts_with("//");
            prop_assert_eq!(Path::new(text.as_str()).is_ok(), by_rule || text == "/");
        }
    }
}
