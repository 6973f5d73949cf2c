//! The command line: words, and the options of this crate among them.
//!
//! The application gets the command line as it is, byte for byte. To read options from it, the crate, and the
//! application if it likes, splits it into words:
//!
//! * Words are separated by spaces, tabs and line ends.
//! * A double quote begins or ends a quoted part, in which separators are ordinary; it may stand anywhere in a word:
//!   `a="b c"` is one word, `a=b c`.
//! * A backslash, in a quoted part or outside, makes the next byte ordinary; at the end of the line it stands for
//!   itself. A single quote is always ordinary, and a quoted part that is not closed ends with the line.
//!
//! Words that begin with `domu.` are this crate's:
//!
//! | option | meaning |
//! |---|---|
//! | `domu.log=off\|error\|warn\|info\|debug\|trace` | what the log shows; `info` unless given |
//! | `domu.fifo=on\|off` | whether event channels use Xen's FIFO interface where it has one; `on` unless given |
//! | `domu.suspend-over-limit=on\|off` | whether the domain is suspended although it holds more memory than its limit, so that it cannot be restored: see [`lifecycle::allow_suspend_over_limit`](crate::lifecycle::allow_suspend_over_limit); `on` unless given |
//! | `domu.test=NAME`, `domu.test-nonce=WORD` | the test that a binary of the crate `domu-test` runs; no effect in other programs |
//!
//! The last one wins. An option that is not known, or a value that is not, is warned of in the log and has no effect.

use log::LevelFilter;

/// The words of a command line. Quotes and backslashes are still in them: see [`Word`].
#[derive(Clone, Debug)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// Splits a command line, by the rules of [this module](self).
    #[must_use]
    pub const fn new(line: &'a [u8]) -> Self {
        Self(line)
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let start = self.0.iter().position(|byte| !is_separator(*byte))?;
        let rest = &self.0[start..];
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.iter().position(|&byte| {
            let ends = !quoted && !escaped && is_separator(byte);
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = !quoted,
                _ => {}
            }
            ends
        });
        let (word, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.0 = rest;
        Some(Word(word))
    }
}

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// One word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a>(&'a [u8]);

impl<'a> Word<'a> {
    /// The word as it stands, with its quotes and backslashes.
    #[must_use]
    pub const fn raw(&self) -> &'a [u8] {
        self.0
    }

    /// The bytes that the word means: quotes removed, backslashes resolved.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + Clone + use<'a> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            while let [b'"', after @ ..] = rest {
                rest = after;
            }
            let (byte, after) = match *rest {
                [b'\\', byte, ref after @ ..] => (byte, after),
                [byte, ref after @ ..] => (byte, after),
                [] => return None,
            };
            rest = after;
            Some(byte)
        })
    }

    /// If the word means `key=value`: the bytes of the value.
    #[must_use]
    pub fn value_of(&self, key: &str) -> Option<impl Iterator<Item = u8> + Clone + use<'a>> {
        let mut bytes = self.bytes();
        let matches = key.bytes().chain([b'=']).all(|expected| bytes.next() == Some(expected));
        matches.then_some(bytes)
    }

    /// Whether the word is meant for this crate.
    fn is_ours(&self) -> bool {
        let mut bytes = self.bytes();
        b"domu.".iter().all(|&expected| bytes.next() == Some(expected))
    }
}

/// This crate's options.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) log_level: LevelFilter,
    pub(crate) fifo: bool,
    pub(crate) suspend_over_limit: bool,
}

impl Options {
    /// Reads them, and hands what is not understood to `unknown`.
    pub(crate) fn parse<'a>(line: &'a [u8], mut unknown: impl FnMut(Word<'a>)) -> Self {
        let mut options = Self { log_level: LevelFilter::Info, fifo: true, suspend_over_limit: true };
        for word in Words::new(line).filter(Word::is_ours) {
            if let Some(level) = word.value_of("domu.log").and_then(level) {
                options.log_level = level;
            } else if let Some(on) = word.value_of("domu.fifo").and_then(switch) {
                options.fifo = on;
            } else if let Some(on) = word.value_of("domu.suspend-over-limit").and_then(switch) {
                options.suspend_over_limit = on;
            } else if word.value_of("domu.test").is_none() && word.value_of("domu.test-nonce").is_none() {
                unknown(word);
            }
        }
        options
    }
}

fn level(value: impl Iterator<Item = u8> + Clone) -> Option<LevelFilter> {
    LevelFilter::iter().find(|level| level.as_str().bytes().map(|byte| byte.to_ascii_lowercase()).eq(value.clone()))
}

fn switch(value: impl Iterator<Item = u8> + Clone) -> Option<bool> {
    [("on", true), ("off", false)].into_iter().find(|(name, _)| name.bytes().eq(value.clone())).map(|(_, on)| on)
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        Words::new(line.as_bytes()).map(|word| String::from_utf8(word.bytes().collect()).unwrap()).collect()
    }

    #[test]
    fn quoting_rules() {
        assert_eq!(words(""), [""; 0]);
        assert_eq!(words("  a\tb \r\n c  "), ["a", "b", "c"]);
        assert_eq!(words(r#"a="b c" d"#), ["a=b c", "d"]);
        assert_eq!(words(r#""" x"#), ["", "x"]);
        assert_eq!(words(r#"a\ b \"c "d\"e""#), ["a b", "\"c", "d\"e"]);
        assert_eq!(words(r"it's \\ end\"), ["it's", r"\", r"end\"]);
        assert_eq!(words(r#"open "to the end"#), ["open", "to the end"]);
        assert_eq!(words("grüße=ö"), ["grüße=ö"]);
    }

    #[test]
    fn values() {
        let word = Words::new(br#"key="a b""#).next().unwrap();
        assert_eq!(word.raw(), br#"key="a b""#);
        assert!(word.value_of("key").unwrap().eq(*b"a b"));
        assert!(word.value_of("ke").is_none() && word.value_of("key2").is_none());
        // The value outlives the word that says it.
        let found = Words::new(b"a key=b").find_map(|word| word.value_of("key"));
        assert!(found.unwrap().eq(*b"b"));
    }

    fn parse(line: &str) -> (Options, Vec<String>) {
        let mut unknown = Vec::new();
        let options = Options::parse(line.as_bytes(), |w| unknown.push(String::from_utf8_lossy(w.raw()).into()));
        (options, unknown)
    }

    #[test]
    fn options_of_the_crate() {
        assert_eq!(parse("").0.log_level, LevelFilter::Info);
        assert_eq!(parse("log=trace domus=1 x").0.log_level, LevelFilter::Info);
        assert_eq!(parse("a domu.log=debug b").0.log_level, LevelFilter::Debug);
        assert_eq!(parse("domu.log=debug domu.log=off").0.log_level, LevelFilter::Off);
        assert_eq!(parse(r#"domu."log=warn""#).0.log_level, LevelFilter::Warn);
        // Inside somebody's quoted value it is not ours.
        assert_eq!(parse(r#"x="domu.log=off""#), (parse("").0, Vec::new()));
        assert!(parse("domu.fifo=off domu.fifo=on").0.fifo && !parse("domu.fifo=off").0.fifo);
        assert!(parse("").0.suspend_over_limit && !parse("domu.suspend-over-limit=off").0.suspend_over_limit);
        assert_eq!(parse("domu.test=a domu.test-nonce=b"), (parse("").0, Vec::new()));
        assert_eq!(parse("domu.fifo=never"), (parse("").0, std::vec!["domu.fifo=never".into()]));
        let (options, unknown) = parse("domu.log=loud domu.heap=1 domu.log domu. domu.log=error");
        assert_eq!(options.log_level, LevelFilter::Error);
        assert_eq!(unknown, ["domu.log=loud", "domu.heap=1", "domu.log", "domu."]);
    }

    proptest! {
        #![proptest_config(crate::sim::proptest_config())]

        /// Quoting a word, whatever it is, gives the word back.
        #[test]
        fn quoted_words_survive(list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..6)) {
            let mut line = Vec::new();
            for word in &list {
                line.extend(b" \"");
                for &byte in word {
                    if byte == b'"' || byte == b'\\' {
                        line.push(b'\\');
                    }
                    line.push(byte);
                }
                line.push(b'"');
            }
            let parsed: Vec<Vec<u8>> = Words::new(&line).map(|word| word.bytes().collect()).collect();
            prop_assert_eq!(parsed, list);
        }

        /// No input makes it fail, and the words lie in the line in order.
        #[test]
        fn any_line_is_split(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let total: usize = Words::new(&line).map(|word| { assert!(!word.raw().is_empty()); word.raw().len() }).sum();
            prop_assert!(total <= line.len());
            let _ = parse(&String::from_utf8_lossy(&line));
        }
    }
}
