//! The log sink: `log` records as lines on the console.
//!
//! A line ends in CR LF, as a terminal wants it; this is the only place that translates. A line that cannot be written
//! is dropped and counted, and the next one that gets through is preceded by the count.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

use super::{Error, Output};
use crate::shared::SharedInfo;
use crate::state::{self, State};

struct Sink;

/// What the sink keeps for a domain.
#[derive(Debug)]
pub(crate) struct LogState {
    level: LevelFilter,
    dropped: AtomicU64,
    /// The last line was cut before its end.
    torn: AtomicBool,
}

impl LogState {
    pub(crate) const fn new(level: LevelFilter) -> Self {
        Self { level, dropped: AtomicU64::new(0), torn: AtomicBool::new(false) }
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

/// How many lines were dropped so far because the console did not take them.
pub(crate) fn dropped(state: &State) -> u64 {
    state.log.dropped.load(Ordering::Relaxed)
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        state::get().is_some_and(|state| metadata.level() <= state.log.level)
    }

    fn log(&self, record: &Record<'_>) {
        let Some(state) = state::get().filter(|_| self.enabled(record.metadata())) else { return };
        // Only an argument whose formatting logs in turn finds the console taken; its own line is dropped.
        let Some(mut output) = state.console.try_lock() else {
            state.log.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut line = Line::new(&mut output, &state.info);
        let missing = state.log.dropped.load(Ordering::Relaxed);
        let result = line
            .begin(state)
            .and_then(|()| writeln!(line, "{:<5} {}: {}", record.level().as_str(), record.target(), record.args()));
        match result {
            Ok(()) => state.log.dropped.store(0, Ordering::Relaxed),
            Err(fmt::Error) => {
                state.log.torn.fetch_or(line.started, Ordering::Relaxed);
                state.log.dropped.store(missing + 1, Ordering::Relaxed);
            }
        }
        output.notify();
    }

    fn flush(&self) {
        if let Some(state) = state::get()
            && let Some(mut output) = state.console.try_lock()
        {
            let _ = output.flush(&state.info);
        }
    }
}

/// Text on its way to the console, LF becoming CR LF.
pub(crate) struct Line<'a> {
    output: &'a mut Output,
    info: &'a SharedInfo,
    /// Something of the current line is in the ring.
    started: bool,
}

impl<'a> Line<'a> {
    pub(crate) const fn new(output: &'a mut Output, info: &'a SharedInfo) -> Self {
        Self { output, info, started: false }
    }

    /// Ends a line that was cut, and tells how many are missing.
    pub(crate) fn begin(&mut self, state: &State) -> fmt::Result {
        if state.log.torn.load(Ordering::Relaxed) {
            self.write_str("\n")?;
            state.log.torn.store(false, Ordering::Relaxed);
        }
        match state.log.dropped.load(Ordering::Relaxed) {
            0 => Ok(()),
            missing => writeln!(self, "WARN  domu: {missing} log lines were dropped"),
        }
    }
}

impl fmt::Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive('\n') {
            let (body, end) = piece.strip_suffix('\n').map_or((piece, ""), |body| (body, "\r\n"));
            for part in [body, end].into_iter().filter(|part| !part.is_empty()) {
                match self.output.put(self.info, part.as_bytes()) {
                    Ok(()) => self.started = end.is_empty(),
                    Err(Error::Stalled { written } | Error::Corrupt { written }) => {
                        self.started |= written > 0;
                        return Err(fmt::Error);
                    }
                    Err(Error::Absent) => return Err(fmt::Error),
                }
            }
        }
        Ok(())
    }
}
