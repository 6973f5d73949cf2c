//! The names of a node's children, kept in the one buffer in which they came.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::iter::FusedIterator;
use core::str::{self, SplitTerminator};

use super::ErrorKind;
use super::path;
use super::wire;

/// Largest listing that [`Nodes::directory`](super::Nodes::directory) accepts: 256 KiB, each name with the NUL that ends it.
///
/// It holds the 32,752 domains that Xen can have below `/local/domain` (192 KiB), and the 1,000 nodes that C xenstored lets a
/// domain own, with names of 255 bytes.
#[doc(alias = "XS_DIRECTORY_PART")]
pub const MAX_LISTING: usize = 256 << 10;

/// The names of a node's children, in the server's order, as [`Nodes::directory`](super::Nodes::directory) returns them.
///
/// All names share one buffer, so that a listing takes as much memory as it has bytes.
///
/// ```no_run
/// # async fn example(store: domu::xenstore::Xenstore) -> domu::Result {
/// let names = store.directory("device").await?;
/// for class in &names {
///     log::info!("a device class: {class}");
/// }
/// if names.contains("vif") {
///     log::info!("there is a network interface");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Valid names, each followed by a NUL.
    text: String,
    count: usize,
}

impl Names {
    /// The number of names.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Returns true if the node has no children.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Returns true if a name is among them. Takes time in proportion to the length of the listing.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|known| known == name)
    }

    /// The names, in the server's order.
    #[must_use]
    pub fn iter(&self) -> NamesIter<'_> {
        NamesIter { names: self.text.split_terminator('\0'), left: self.count }
    }

    /// The names of a listing that came in one message.
    pub(super) fn whole(listing: Vec<u8>) -> Result<Self, ErrorKind> {
        let count = count(&listing)?;
        let text = String::from_utf8(listing).map_err(|_| ErrorKind::Malformed)?;
        Ok(Self { text, count })
    }

    /// Appends the names of one part of a listing. The buffer never exceeds [`MAX_LISTING`].
    pub(super) fn append(&mut self, part: &[u8]) -> Result<(), ErrorKind> {
        let count = count(part)?;
        let part = str::from_utf8(part).map_err(|_| ErrorKind::Malformed)?;
        let needed = self.text.len() + part.len();
        if needed > MAX_LISTING {
            return Err(ErrorKind::ListingTooLong);
        }
        if needed > self.text.capacity() {
            let capacity = needed.max(2 * self.text.capacity()).min(MAX_LISTING);
            self.text.try_reserve_exact(capacity - self.text.len()).map_err(|_| ErrorKind::OutOfMemory)?;
        }
        self.text.push_str(part);
        self.count += count;
        Ok(())
    }

    /// Removes all names, and keeps the buffer.
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.count = 0;
    }

    /// The length of the listing in bytes, which is the offset of its next part.
    pub(super) const fn bytes(&self) -> usize {
        self.text.len()
    }
}

/// Checks the names of a listing, and counts them.
fn count(listing: &[u8]) -> Result<usize, ErrorKind> {
    let is_valid = |name: &[u8]| str::from_utf8(name).is_ok_and(path::is_name);
    wire::strings(listing)?.try_fold(0, |count, name| is_valid(name).then_some(count + 1)).ok_or(ErrorKind::Malformed)
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a str;
    type IntoIter = NamesIter<'a>;

    fn into_iter(self) -> NamesIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Names`].
#[derive(Clone, Debug)]
pub struct NamesIter<'a> {
    names: SplitTerminator<'a, char>,
    left: usize,
}

impl<'a> Iterator for NamesIter<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let name = self.names.next()?;
        self.left -= 1;
        Some(name)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

/// Each name as a string of its own.
impl IntoIterator for Names {
    type Item = String;
    type IntoIter = NamesIntoIter;

    fn into_iter(self) -> NamesIntoIter {
        NamesIntoIter { text: self.text, start: 0, left: self.count }
    }
}

/// Owning iterator over [`Names`]. It keeps the listing's buffer until it is dropped, and allocates each name.
#[derive(Clone, Debug)]
pub struct NamesIntoIter {
    /// All names, as in [`Names`].
    text: String,
    /// The offset of the next name.
    start: usize,
    left: usize,
}

impl Iterator for NamesIntoIter {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let (name, _) = self.text.get(self.start..)?.split_once('\0')?;
        self.start += name.len() + 1;
        self.left -= 1;
        Some(name.into())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for NamesIntoIter {}
impl FusedIterator for NamesIntoIter {}
impl ExactSizeIterator for NamesIter<'_> {}
impl FusedIterator for NamesIter<'_> {}

#[cfg(test)]
mod tests {
    use std::format;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn names_are_iterated_in_order() {
        let names = Names::whole(b"vif\0vbd\0console\0".to_vec()).unwrap();
        assert_eq!(names.iter().collect::<Vec<_>>(), ["vif", "vbd", "console"]);
        assert_eq!((names.len(), names.iter().len(), names.is_empty()), (3, 3, false));
        assert!(names.contains("vbd") && !names.contains("v") && !names.contains(""));
        assert_eq!(format!("{names:?}"), r#"["vif", "vbd", "console"]"#);
        let none = Names::whole(Vec::new()).unwrap();
        assert_eq!((none.len(), none.iter().next(), none.is_empty()), (0, None, true));
        assert_eq!(none, Names::default());
    }

    #[test]
    fn owned_names_outlive_the_listing() {
        let names = Names::whole(b"vif\0vbd\0console\0".to_vec()).unwrap();
        let mut owned = names.clone().into_iter();
        assert_eq!((owned.next().as_deref(), owned.len()), (Some("vif"), 2));
        assert_eq!(owned.collect::<Vec<String>>(), ["vbd", "console"]);
        let mut none = Names::default().into_iter();
        assert_eq!((none.len(), none.next(), none.next()), (0, None, None));
        assert_eq!(names.len(), 3);
    }

    #[test]
    fn malformed_names_are_refused() {
        for listing in [&b"a"[..], b"\0", b"a\0\0", b"a/b\0", b"\xff\0"] {
            assert_eq!(Names::whole(listing.to_vec()), Err(ErrorKind::Malformed), "{}", listing.escape_ascii());
            assert_eq!(Names::default().append(listing), Err(ErrorKind::Malformed), "{}", listing.escape_ascii());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "a listing of 256 KiB takes Miri many minutes")]
    fn append_stops_at_the_limit() {
        let mut names = Names::default();
        let part = b"a\0".repeat(1024);
        for _ in 0..MAX_LISTING / part.len() {
            names.append(&part).unwrap();
            assert!(names.text.capacity() <= MAX_LISTING);
        }
        assert_eq!((names.bytes(), names.len()), (MAX_LISTING, MAX_LISTING / 2));
        assert_eq!(names.append(b"a\0"), Err(ErrorKind::ListingTooLong));
        assert_eq!(names.bytes(), MAX_LISTING);
        names.clear();
        assert_eq!((names.bytes(), names.len(), names.iter().next()), (0, 0, None));
    }
}
