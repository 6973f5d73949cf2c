//! What goes into a guest's console: the tool's own input, piece by piece through dom0.
//!
//! The console is a terminal in dom0, which xenconsoled has made raw: all bytes pass. It takes no more than the guest
//! reads, so dom0's agent hands a piece on beside its other work, and refuses the next one until the last is through.

use std::io::{Read, Stdin};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use anyhow::Result;

use super::dom0::{COMMAND_LIMIT, Session};

/// Bytes in a piece at most. What comes over the control line while nobody reads there is safe up to 64 KiB.
const PIECE: usize = 4096;

/// The tool's own input.
pub fn stdin() -> Stdin {
    // SAFETY: ignoring a signal runs no code of ours. In the background of a terminal, reading from that then fails
    // instead of stopping the tool.
    unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
    std::io::stdin()
}

/// The input of a guest that runs.
pub struct Input {
    tty: String,
    /// `None`: the input has ended.
    pieces: Option<Receiver<Vec<u8>>>,
    refused: Option<Vec<u8>>,
}

impl Input {
    /// What is read from somewhere from now on goes to the console of the domain with this name.
    pub fn new(session: &mut Session, name: &str, mut source: impl Read + Send + 'static) -> Result<Input> {
        let tty = session.must(&format!("console_of {name}"), COMMAND_LIMIT)?;
        let (sender, pieces) = sync_channel(1);
        std::thread::spawn(move || {
            let mut buffer = [0; PIECE];
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Input { tty: tty.trim().to_owned(), pieces: Some(pieces), refused: None })
    }

    /// Hands on a piece if there is one within `limit`.
    pub fn hand_on(&mut self, session: &mut Session, limit: Duration) -> Result<()> {
        // A guest that never reads must not have a piece sent again and again.
        if self.refused.is_some() && session.run("test ! -e /run/fed", COMMAND_LIMIT)?.status != 0 {
            std::thread::sleep(limit);
            return Ok(());
        }
        let Some(piece) = self.next(limit) else { return Ok(()) };
        let reply = session.run_with_input(&format!("feed {}", self.tty), &piece, COMMAND_LIMIT)?;
        match reply.status {
            0 => {}
            1 => self.refused = Some(piece),
            // There is no console any more, and soon no domain.
            _ => self.pieces = None,
        }
        Ok(())
    }

    fn next(&mut self, limit: Duration) -> Option<Vec<u8>> {
        if self.refused.is_some() {
            return self.refused.take();
        }
        let next = match &self.pieces {
            Some(pieces) => pieces.recv_timeout(limit),
            None => {
                std::thread::sleep(limit);
                return None;
            }
        };
        if next == Err(RecvTimeoutError::Disconnected) {
            self.pieces = None;
        }
        next.ok()
    }
}
