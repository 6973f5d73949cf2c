//! The log sink: `log` records as lines on the console.
//!
//! A record is formatted first and written then, in one piece: no code of the application runs while the console is in
//! use, and nobody waits. A line ends in CR LF, as a terminal wants it. A line that the console has no room for is dropped
//! whole and counted, and the next one that gets through is preceded by the count.

use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use super::crlf;
use super::rate_limit::Limits;
use crate::console::CONSOLE;
use crate::local::domain_local;
use crate::local::{self, Instance};

domain_local! {
    /// The state of the log.
    pub(crate) static LOG: LogState;
}

struct Sink;

/// What the sink keeps for a domain.
#[derive(Debug)]
pub(crate) struct LogState {
    level: LevelFilter,
    /// Lines that were lost, ever.
    dropped: AtomicU64,
    /// How many of them the console has been told of.
    told: AtomicU64,
    /// Rate limits for lines that others can cause.
    pub(crate) limits: Limits,
}

impl LogState {
    pub(crate) const fn new(level: LevelFilter) -> Self {
        Self { level, dropped: AtomicU64::new(0), told: AtomicU64::new(0), limits: Limits::new() }
    }

    /// How many lines were lost and not told of; from now on they count as told.
    pub(super) fn take_missing(&self) -> u64 {
        let dropped = self.dropped();
        dropped - self.told.swap(dropped, Ordering::Relaxed)
    }

    /// How many lines were lost, ever.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Makes this sink the one of the `log` crate. The level of the domain is kept apart, since on the host several
/// domains share the crate's own.
pub(crate) fn install(level: LevelFilter) {
    // Fails if another logger was installed, which only the host can do; that one then wins.
    let _ = log::set_logger(&Sink);
    if log::max_level() < level {
        log::set_max_level(level);
    }
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        local::current().is_some_and(|state| metadata.level() <= LOG.of(state).level)
    }

    fn log(&self, record: &Record<'_>) {
        let Some(state) = local::current().filter(|_| self.enabled(record.metadata())) else { return };
        write_line(state, format_args!("{:<5} {}: {}", record.level().as_str(), record.target(), record.args()));
    }

    /// Tells the backend of all lines now, and does not wait: [`Console::flush`](super::Console::flush) does.
    fn flush(&self) {
        if let Some(state) = local::current() {
            CONSOLE.of(state).settle(state);
        }
    }
}

/// Writes a line to the console, or counts it as dropped.
fn write_line(state: Instance, text: fmt::Arguments<'_>) {
    let log = &LOG.of(state);
    let mut line = Line::default();
    // Formatting fails if an argument's own code does: what came before is still written. Or for want of memory.
    let _ = line.write_fmt(text);
    let _ = line.write_str("\n");
    let dropped = log.dropped();
    let missing = dropped - log.told.load(Ordering::Relaxed);
    if missing > 0 {
        let mut notice = Line::default();
        let _ = writeln!(notice, "WARN  domu: {missing} log lines were dropped");
        let _ = notice.put(&line.bytes);
        notice.cut |= line.cut;
        line = notice;
    }
    if !line.cut && CONSOLE.of(state).with(|device| device.take_whole(&line.bytes)) == Ok(true) {
        log.told.store(dropped, Ordering::Relaxed);
    } else {
        log.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// The bytes of a line.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    /// There was no memory for all of it.
    cut: bool,
}

impl Line {
    fn put(&mut self, bytes: &[u8]) -> fmt::Result {
        self.cut |= self.bytes.try_reserve(bytes.len()).is_err();
        if self.cut {
            return Err(fmt::Error);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut last = self.bytes.last().copied().unwrap_or_default();
        crlf(text, &mut last, |piece| self.put(piece))
    }
}
