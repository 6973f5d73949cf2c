//! The line over which the tool tells dom0 what to do: the machine's second serial port.
//!
//! A request is a line, `NUMBER LENGTH COMMAND`, and that many bytes of input for the shell command, which may be
//! anything. The answer is a line `=NUMBER STATUS LENGTH` and that many bytes of output. The other end is `dom0/agent.sh`: a loop
//! of busybox's shell, so that all that runs in dom0 is what the suite ships.
//!
//! An empty line is no request: it is a knock. The emulator loses an interrupt of the timer's once in some fifty saves of a domain.
//! Then Xen, idle on its one processor, sleeps on until there is another, and says that its "platform timer appears to have
//! unexpectedly wrapped". A byte on the line is one.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::say;

/// What the agent says once, when dom0 is up.
const READY: &[u8] = b"domu-agent ready\n";

/// After how long without an answer there is a knock.
const KNOCK: Duration = Duration::from_secs(15);

/// The answer to a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The command's exit status.
    pub status: u32,
    /// What it wrote, to stdout and stderr.
    pub output: Vec<u8>,
}

impl Reply {
    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// Our end of the line.
pub struct Control {
    line: UnixStream,
    received: Vec<u8>,
    last: u32,
}

/// Why nothing came.
#[derive(Debug, PartialEq, Eq)]
pub enum Silence {
    /// The time has passed.
    TooLong,
    /// The machine has gone.
    Closed,
}

impl Control {
    /// Takes the line over.
    pub fn new(line: UnixStream) -> Result<Control> {
        line.set_read_timeout(Some(Duration::from_millis(20))).context("setting up the control line")?;
        line.set_write_timeout(Some(Duration::from_secs(20))).context("setting up the control line")?;
        Ok(Control { line, received: Vec::new(), last: 0 })
    }

    /// Whether dom0 has said that it is up; waits for at most `limit`.
    pub fn ready_within(&mut self, limit: Duration) -> Result<Result<(), Silence>> {
        self.receive(limit, |received| {
            let at = received.windows(READY.len()).position(|window| window == READY)?;
            received.drain(..at + READY.len());
            Some(())
        })
    }

    /// Has dom0 run a command line with this input.
    pub fn run(&mut self, command: &str, input: &[u8], limit: Duration) -> Result<Result<Reply, Silence>> {
        if command.contains('\n') {
            bail!("a command for dom0 must be one line: {command:?}");
        }
        self.last += 1;
        let number = self.last;
        self.line
            .write_all(&[format!("{number} {} {command}\n", input.len()).as_bytes(), input].concat())
            .with_context(|| format!("telling dom0 to run `{command}`"))?;
        self.receive(limit, |received| take_reply(received, number))
    }

    /// Reads until `take` finds what it looks for.
    fn receive<T>(
        &mut self,
        limit: Duration,
        mut take: impl FnMut(&mut Vec<u8>) -> Option<T>,
    ) -> Result<Result<T, Silence>> {
        let start = Instant::now();
        let mut knocked = start;
        let mut buffer = [0; 65536];
        loop {
            if let Some(found) = take(&mut self.received) {
                return Ok(Ok(found));
            }
            match self.line.read(&mut buffer) {
                Ok(0) => return Ok(Err(Silence::Closed)),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(Err(Silence::Closed));
                }
                Err(error) => return Err(error).context("reading what dom0 answers"),
            }
            if knocked.elapsed() > KNOCK {
                say!("no answer of dom0's for {} s", start.elapsed().as_secs());
                // If it does not get there, nor will an answer.
                let _ = self.line.write_all(b"\n");
                knocked = Instant::now();
            }
            if start.elapsed() > limit {
                return Ok(Err(Silence::TooLong));
            }
        }
    }
}

/// Takes the answer with this number out of what has been received, when all of it is there.
/// What stands before it, an answer that nobody waits for any more, goes too.
fn take_reply(received: &mut Vec<u8>, number: u32) -> Option<Reply> {
    loop {
        let end = received.iter().position(|byte| *byte == b'\n')?;
        let Some((answered, status, length)) = header(&received[..end]) else {
            received.drain(..=end);
            continue;
        };
        let all = end + 1 + length;
        if received.len() < all {
            return None;
        }
        let output = received[end + 1..all].to_vec();
        received.drain(..all);
        if answered == number {
            return Some(Reply { status, output });
        }
    }
}

/// Parses `=NUMBER STATUS LENGTH`.
fn header(line: &[u8]) -> Option<(u32, u32, usize)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix('=')?;
    let mut fields = line.split(' ');
    let parsed = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    fields.next().is_none().then_some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once_it_is_whole() {
        let mut received = b"=1 0 5\nhel".to_vec();
        assert_eq!(take_reply(&mut received, 1), None);
        received.extend_from_slice(b"lo=2");
        assert_eq!(take_reply(&mut received, 1), Some(Reply { status: 0, output: b"hello".to_vec() }));
        assert_eq!(received, b"=2");
    }

    #[test]
    fn output_may_look_like_an_answer() {
        let mut received = b"=7 3 8\n=7 0 1\nx".to_vec();
        let reply = take_reply(&mut received, 7);
        assert_eq!(reply, Some(Reply { status: 3, output: b"=7 0 1\nx".to_vec() }));
        assert!(received.is_empty());
    }

    #[test]
    fn noise_and_late_answers_are_passed_over() {
        let mut received = b"noise\n=1 0 2\nab=2 1 0\n".to_vec();
        assert_eq!(take_reply(&mut received, 2), Some(Reply { status: 1, output: Vec::new() }));
    }

    #[test]
    fn a_bad_header_is_no_answer() {
        for line in ["", "=", "=1", "=1 0", "=1 0 x", "=1 0 2 3", "=-1 0 0", "1 0 0"] {
            assert_eq!(header(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(header(b"=12 3 45"), Some((12, 3, 45)));
    }

    #[test]
    fn silence_has_an_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        let answer = control.run("true", b"", Duration::from_millis(50)).unwrap();
        assert_eq!(answer, Err(Silence::TooLong));
    }

    #[test]
    fn a_machine_that_goes_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours).unwrap();
        drop(theirs);
        assert_eq!(control.ready_within(Duration::from_secs(5)).unwrap(), Err(Silence::Closed));
    }
}
