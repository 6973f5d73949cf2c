//! The last lines of a domain on its console: after a crash, when the heap may be what is broken, or locked.

use core::fmt;

use super::{Output, crlf};
use crate::state::State;

/// Writes lines, each ended with CR LF, past the log and its level and without the heap. What the console does not take
/// is left to the emergency output.
pub(crate) fn write(state: &State, text: fmt::Arguments<'_>) {
    let mut lines = Lines { state, staged: heapless::Vec::new(), last: 0 };
    let missing = state.log.take_missing();
    // Formatting fails where the console does, or an argument's own code: what came before is still written.
    let _ = match missing {
        0 => Ok(()),
        _ => fmt::write(&mut lines, format_args!("\nWARN  domu: {missing} log lines were dropped\n")),
    }
    .and_then(|()| fmt::write(&mut lines, format_args!("{text}\n")));
    let _ = lines.put();
}

/// Text on its way, in pieces that are not worth a notification each. The console is taken for each piece, and not while
/// the text is formatted: that may be code of the application's, which may use the console itself.
struct Lines<'a> {
    state: &'a State,
    staged: heapless::Vec<u8, 512>,
    /// The last byte.
    last: u8,
}

impl Lines<'_> {
    fn put(&mut self) -> fmt::Result {
        // What was interrupted while it used the console leaves it locked.
        let mut output = self.state.console.try_lock().ok_or(fmt::Error)?;
        let result = match &mut *output {
            // There the emergency output has said it.
            Output::Hypervisor => Ok(()),
            output => output.write(&self.state.info, &self.staged).map_err(|_| fmt::Error),
        };
        self.staged.clear();
        result
    }
}

impl fmt::Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut last = self.last;
        crlf(text, &mut last, |piece| {
            for chunk in piece.chunks(64) {
                if self.staged.capacity() - self.staged.len() < chunk.len() {
                    self.put()?;
                }
                // Cannot fail: there is room.
                let _ = self.staged.extend_from_slice(chunk);
            }
            Ok(())
        })?;
        self.last = last;
        Ok(())
    }
}
