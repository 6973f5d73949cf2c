//! The last lines of a domain on its console: after a crash, when the heap may be what is broken, or locked.

use core::fmt;

use super::attachment::Device;
use super::crlf;
use crate::console::CONSOLE;
use crate::console::log::LOG;
use crate::local::Instance;
use crate::shared::INFO;

/// Writes lines, each ended with CR LF, past the log and its level and without the heap. What the console does not take
/// is left to the emergency output.
pub(crate) fn write(state: Instance, text: fmt::Arguments<'_>) {
    write_missing(state);
    put(state, format_args!("{text}\n"));
}

/// Tells of log lines that were lost and not told of yet.
pub(crate) fn write_missing(state: Instance) {
    match LOG.of(state).take_missing() {
        0 => {}
        missing => put(state, format_args!("WARN  domu: {missing} log lines were dropped\n")),
    }
}

fn put(state: Instance, text: fmt::Arguments<'_>) {
    let mut lines = Lines { state, staged: heapless::Vec::new(), last: 0 };
    // Formatting fails where the console does, or an argument's own code: what came before is still written.
    let _ = fmt::write(&mut lines, text);
    let _ = lines.put();
}

/// Text on its way, in pieces that are not worth a notification each. The console is taken for each piece, and not while
/// the text is formatted: that may be code of the application's, which may use the console itself.
struct Lines {
    state: Instance,
    staged: heapless::Vec<u8, 512>,
    /// The last byte.
    last: u8,
}

impl Lines {
    fn put(&mut self) -> fmt::Result {
        let result = CONSOLE.of(self.state).try_with(|device| match device {
            Device::Ring(ring) => ring.write_waiting(INFO.of(self.state), &self.staged),
            // On the hypervisor's console the emergency output has said it.
            Device::Hypervisor | Device::Absent => Ok(()),
        });
        self.staged.clear();
        result.map_err(|_| fmt::Error)
    }
}

impl fmt::Write for Lines {
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
