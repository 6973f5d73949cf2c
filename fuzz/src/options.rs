//! The command line's words, by themselves.

use domu::options::Words;

const fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Words lie in the line in order, with separators alone between them; what a word means is no longer than it; a value is what
/// follows its key.
pub fn options(bytes: &[u8]) {
    let mut rest = bytes;
    for word in Words::new(bytes) {
        let raw = word.raw();
        assert!(!raw.is_empty() && !is_separator(raw[0]));
        let skipped = raw.as_ptr().addr() - rest.as_ptr().addr();
        assert!(rest[..skipped].iter().all(|&byte| is_separator(byte)));
        rest = &rest[skipped + raw.len()..];
        assert!(rest.first().is_none_or(|&byte| is_separator(byte)));
        let meant: Vec<u8> = word.bytes().collect();
        assert!(meant.len() <= raw.len());
        for key in ["domu.log", "domu.fifo", ""] {
            let prefix = [key.as_bytes(), b"="].concat();
            let value = word.value_of(key).map(Iterator::collect::<Vec<u8>>);
            assert_eq!(value.as_deref(), meant.strip_prefix(&prefix[..]));
        }
    }
    assert!(rest.iter().all(|&byte| is_separator(byte)));
}
