//! The last lines of a domain on its console: after a crash, when the heap may be what is broken, or locked.

use core::fmt;

use super::Output;
use crate::state::State;

/// Writes lines, each ended with CR LF, past the log and its level and without the heap. What the console does not take
/// is left to the emergency output.
pub(crate) fn write(state: &State, text: fmt::Arguments<'_>) {
    let Some(mut output) = state.console.try_lock() else { return };
    // There the emergency output has said it.
    if matches!(*output, Output::Hypervisor) {
        return;
    }
    let mut lines = Lines { state, output: &mut output, staged: heapless::Vec::new() };
    let missing = state.log.take_missing();
    // Formatting fails where the console does, or an argument's own code: what came before is still written.
    let _ = match missing {
        0 => Ok(()),
        _ => fmt::write(&mut lines, format_args!("\nWARN  domu: {missing} log lines were dropped\n")),
    }
    .and_then(|()| fmt::write(&mut lines, format_args!("{text}\n")));
    let _ = lines.put();
}

/// Text on its way, in pieces that are not worth a notification each.
struct Lines<'a> {
    state: &'a State,
    output: &'a mut Output,
    staged: heapless::Vec<u8, 512>,
}

impl Lines<'_> {
    fn put(&mut self) -> fmt::Result {
        let result = self.output.write(&self.state.info, &self.staged).map_err(|_| fmt::Error);
        self.staged.clear();
        result
    }
}

impl fmt::Write for Lines<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.staged.capacity() - self.staged.len() < 2 {
                self.put()?;
            }
            // Cannot fail: there was room for two.
            if byte == b'\n' && self.staged.last() != Some(&b'\r') {
                let _ = self.staged.push(b'\r');
            }
            let _ = self.staged.push(byte);
        }
        Ok(())
    }
}
