//! Rate limit for log lines that a peer, the store or the toolstack can cause.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::local::Instance;
use crate::time::{self, Instant, TokenBucket};

/// Lines that pass at once.
const BURST: u32 = 10;
/// Time for one more, so that 10 lines pass in 5 s, as with Linux's `DEFAULT_RATELIMIT`.
const INTERVAL: Duration = Duration::from_millis(500);

/// Rate limit for the log lines of one source, for [`log_limited!`]. It costs nothing while no line is written.
#[derive(Debug)]
pub(crate) struct RateLimit {
    bucket: TokenBucket,
    /// Lines suppressed since the last one that passed.
    suppressed: AtomicU64,
}

impl RateLimit {
    pub(crate) const fn new() -> Self {
        Self { bucket: TokenBucket::new(BURST, INTERVAL), suppressed: AtomicU64::new(0) }
    }

    /// Lets a line pass, or counts it as suppressed. Returns how many were suppressed before it.
    pub(crate) fn admit(&self, state: Instance) -> Option<Suppressed> {
        self.admit_at(time::now_in(state))
    }

    fn admit_at(&self, now: Instant) -> Option<Suppressed> {
        if self.bucket.take(now).is_err() {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Suppressed(self.suppressed.swap(0, Ordering::Relaxed)))
    }
}

/// Lines suppressed before one that passes. Displayed it is the end of that line, and empty if there were none.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, " ({} similar lines suppressed)", self.0) }
    }
}

/// Rate limits of a domain, by the source of the lines: a flood of one kind hides no line of another.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Connections to xenstored.
    pub(crate) xenstore: RateLimit,
    /// Nodes of `control/` that cannot be read or acknowledged.
    pub(crate) control: RateLimit,
    /// Requests in `control/shutdown`.
    pub(crate) requests: RateLimit,
    /// Keys in `control/sysrq`.
    pub(crate) sysrq: RateLimit,
    /// Errors of the backend of `getrandom`.
    #[cfg(feature = "getrandom")]
    pub(crate) random: RateLimit,
    /// Suspends: a limit that a restore would exceed, and resumes.
    pub(crate) suspend: RateLimit,
    /// The memory target.
    pub(crate) memory_target: RateLimit,
}

impl Limits {
    pub(crate) const fn new() -> Self {
        Self {
            xenstore: RateLimit::new(),
            control: RateLimit::new(),
            requests: RateLimit::new(),
            sysrq: RateLimit::new(),
            #[cfg(feature = "getrandom")]
            random: RateLimit::new(),
            suspend: RateLimit::new(),
            memory_target: RateLimit::new(),
        }
    }
}

/// Logs a line unless its [`RateLimit`] is exhausted: then its arguments are not formatted. The line tells how many were
/// suppressed before it.
macro_rules! log_limited {
    ($limit:ident of $state:expr, $level:ident, $format:literal $($arguments:tt)*) => {
        if log::log_enabled!(log::Level::$level)
            && let Some(suppressed) = $crate::console::log::LOG.of($state).limits.$limit.admit($state)
        {
            log::log!(log::Level::$level, "{}{suppressed}", format_args!($format $($arguments)*));
        }
    };
}
pub(crate) use log_limited;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::string::ToString;

    use super::*;
    use crate::sim::Guest;

    #[test]
    fn next_line_that_passes_reports_those_suppressed() {
        let limit = RateLimit::new();
        let now = Instant::from_nanos(5);
        for _ in 0..BURST {
            assert_eq!(limit.admit_at(now).unwrap().to_string(), "");
        }
        for _ in 0..1000 {
            assert_eq!(limit.admit_at(now), None);
        }
        assert_eq!(limit.admit_at(now + INTERVAL).unwrap().to_string(), " (1000 similar lines suppressed)");
        assert_eq!(limit.admit_at(now + INTERVAL), None);
        assert_eq!(limit.admit_at(now + 3 * INTERVAL), Some(Suppressed(1)));
        assert_eq!(limit.admit_at(now + 3 * INTERVAL), Some(Suppressed(0)));
    }

    struct Counted<'a>(&'a Cell<u32>);

    impl fmt::Display for Counted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.set(self.0.get() + 1);
            f.write_str("formatted")
        }
    }

    #[test]
    fn suppressed_lines_are_not_formatted() {
        for (level, lines) in [("warn", BURST), ("error", 0)] {
            let report = Guest::new().command_line(std::format!("domu.log={level}")).run(async |domain| {
                let (state, count) = (domain.0, Cell::new(0));
                for _ in 0..100 {
                    log_limited!(xenstore of state, Warn, "a line: {}", Counted(&count));
                }
                assert_eq!(count.get(), lines);
                // Lines below the log level are not counted as suppressed.
                log_limited!(sysrq of state, Warn, "another source");
                time::sleep(INTERVAL).await;
                log_limited!(xenstore of state, Warn, "{}", 1);
            });
            let text = report.console_text();
            let expected = usize::from(lines > 0);
            assert_eq!(text.matches("a line: formatted").count(), lines as usize, "{text}");
            assert_eq!(text.matches("another source\r\n").count(), expected, "{text}");
            assert_eq!(text.matches("1 (90 similar lines suppressed)\r\n").count(), expected, "{text}");
        }
    }
}
