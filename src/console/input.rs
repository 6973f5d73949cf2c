//! Input in lines.

use alloc::vec::Vec;

use super::{Console, Error};

/// Bytes of a line of input, without its end.
pub const MAX_LINE: usize = 4096;

/// The lines of the console's input, as [`Console::lines`] gives them.
#[derive(Debug)]
pub struct Lines {
    console: Console,
    /// Input that was taken. The line that was given out last lies before `next`.
    bytes: Vec<u8>,
    next: usize,
    /// The last line ended in CR: a LF that follows belongs to it.
    after_return: bool,
    /// What comes up to the next end is the rest of a line that was too long.
    dropping: bool,
}

impl Lines {
    pub(super) const fn new(console: Console) -> Self {
        Self { console, bytes: Vec::new(), next: 0, after_return: false, dropping: false }
    }

    /// Waits for a whole line and gives it without its end, which is LF, CR (as terminals send) or both.
    ///
    /// # Errors
    ///
    /// [`Error::LineTooLong`] for a line of more than [`MAX_LINE`] bytes, which is dropped, and those of
    /// [`Console::read`]. After any of them the next line may be waited for.
    ///
    /// # Cancel safety
    ///
    /// What has come of a line when the future is dropped is kept for the next call.
    pub async fn next(&mut self) -> Result<&[u8], Error> {
        self.bytes.drain(..self.next);
        self.next = 0;
        let mut looked = 0;
        let end = loop {
            if let Some(&first) = self.bytes.first()
                && core::mem::take(&mut self.after_return)
                && first == b'\n'
            {
                self.bytes.remove(0);
            }
            if let Some(end) = self.bytes[looked..].iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
                break looked + end;
            }
            if self.bytes.len() > MAX_LINE {
                self.dropping = true;
                self.bytes.clear();
            }
            looked = self.bytes.len();
            let mut more = [0; 256];
            // Before anything is taken that there would be no place for.
            self.bytes.try_reserve(more.len()).map_err(|_| Error::OutOfMemory)?;
            let count = self.console.read(&mut more).await?;
            self.bytes.extend_from_slice(&more[..count]);
        };
        self.after_return = self.bytes[end] == b'\r';
        self.next = end + 1;
        if core::mem::take(&mut self.dropping) || end > MAX_LINE {
            Err(Error::LineTooLong)
        } else {
            Ok(&self.bytes[..end])
        }
    }
}
