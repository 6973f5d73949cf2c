//! Values of nodes: bytes, mostly text, often a number.

use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::ops::Deref;

use super::{Error, ErrorKind};

/// The value of a node, as bytes. Displayed it is text, with escapes for what is no text and for control characters; a precision
/// limits the number of printed characters, as in `{value:.64}`: the text ends before an escape that does not fit.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Value(Vec<u8>);

impl Value {
    pub(super) const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, taken.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The value as text.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it is not UTF-8.
    pub fn as_str(&self) -> Result<&str, Error> {
        core::str::from_utf8(&self.0).map_err(|_| ErrorKind::InvalidValue.into())
    }

    /// The value as an integer, as toolstacks and drivers write them: in decimal, with a minus sign before a negative one, or
    /// in hexadecimal after `0x`. Blanks around it and one NUL behind it, which some tools leave, are no part of it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidValue`] if it is something else, or no number of this type.
    pub fn number<T: TryFrom<i128>>(&self) -> Result<T, Error> {
        let text = self.0.strip_suffix(&[0]).unwrap_or(&self.0).trim_ascii();
        let (negative, digits) = text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits));
        let hexadecimal = digits.strip_prefix(b"0x").or_else(|| digits.strip_prefix(b"0X"));
        let (digits, radix) = hexadecimal.map_or((digits, 10), |digits| (digits, 16));
        // So that no further sign is taken.
        let digits =
            core::str::from_utf8(digits).ok().filter(|digits| digits.starts_with(|c: char| c.is_ascii_hexdigit()));
        let number =
            digits.and_then(|digits| i128::from_str_radix(digits, radix).ok()).ok_or(ErrorKind::InvalidValue)?;
        T::try_from(if negative { -number } else { number }).map_err(|_| ErrorKind::InvalidValue.into())
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<[u8]> for Value {
    fn eq(&self, other: &[u8]) -> bool {
        self.0 == other
    }
}

impl PartialEq<str> for Value {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = f.precision().unwrap_or(usize::MAX);
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                let escape = c.is_control().then(|| c.escape_default());
                let Some(rest) = left.checked_sub(escape.as_ref().map_or(1, ExactSizeIterator::len)) else {
                    return Ok(());
                };
                left = rest;
                match escape {
                    Some(escape) => write!(f, "{escape}")?,
                    None => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                // Four characters: `\xff`.
                let Some(rest) = left.checked_sub(4) else { return Ok(()) };
                left = rest;
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    fn value(bytes: impl AsRef<[u8]>) -> Value {
        Value(bytes.as_ref().to_vec())
    }

    #[test]
    fn numbers_are_read_as_toolstacks_write_them() {
        for (text, number) in
            [("0", 0), ("7", 7), ("65536", 65536), ("0x1F", 31), ("0Xff", 255), (" 12\n", 12), ("12\0", 12), ("007", 7)]
        {
            assert_eq!(value(text).number::<u32>(), Ok(number), "{text:?}");
        }
        assert_eq!(value("-12").number::<i64>(), Ok(-12));
        assert_eq!(value("18446744073709551615").number::<u64>(), Ok(u64::MAX));
        for text in
            ["", " ", "-", "+1", "--1", "-+1", "0x", "0x-1", "0x+1", "1.5", "1 2", "x", "1\0\0", "ff", "\u{661}"]
        {
            assert_eq!(value(text).number::<i64>(), Err(ErrorKind::InvalidValue.into()), "{text:?}");
        }
        assert_eq!(value("256").number::<u8>(), Err(ErrorKind::InvalidValue.into()));
        assert_eq!(value("-1").number::<u32>(), Err(ErrorKind::InvalidValue.into()));
        assert_eq!(value("9".repeat(4000)).number::<u64>(), Err(ErrorKind::InvalidValue.into()));
        assert_eq!(value([0xff]).number::<u8>(), Err(ErrorKind::InvalidValue.into()));
    }

    #[test]
    fn text_is_shown_and_the_rest_escaped() {
        assert_eq!(value("grüße").to_string(), "grüße");
        assert_eq!(value(b"a\0\x1b\xff!").to_string(), r"a\u{0}\u{1b}\xff!");
        assert_eq!(std::format!("{:.3} {:.0}", value("aübc"), value("x")), "aüb ");
        assert_eq!(value([0xff]).as_str(), Err(ErrorKind::InvalidValue.into()));
        assert_eq!(value("name"), "name");
    }

    #[test]
    fn precision_limits_printed_characters() {
        for (bytes, expected) in [
            (b"\x1b".repeat(100), r"\u{1b}".repeat(10)),
            (b"\xff".repeat(100), r"\xff".repeat(16)),
            (b"\n".repeat(100), r"\n".repeat(32)),
            (b"a\xff".repeat(100), r"a\xff".repeat(12) + "a"),
            ("ü".repeat(100).into_bytes(), "ü".repeat(64)),
        ] {
            assert_eq!(std::format!("{:.64}", value(bytes)), expected);
        }
        // No escape is cut, and nothing follows one that does not fit.
        assert_eq!(std::format!("{:.3}", value(b"a\xffbc")), "a");
        assert_eq!(std::format!("{:.5}", value(b"a\xff\xffbc")), r"a\xff");
        assert_eq!(std::format!("{:.5}", value(b"\x1bbc")), "");
    }
}
