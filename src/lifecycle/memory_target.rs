//! Following the memory target that the toolstack sets.

use core::fmt;
use core::time::Duration;

use crate::domain::Domain;
use crate::memory::balloon::{absent, aim};
use crate::time::{self, Instant};
use crate::xenstore::{Error, ErrorKind, Watch};

const PATH: &str = "memory/target";
/// Pause after each adjustment: the rate limit of a target that changes all the time.
const PAUSE: Duration = Duration::from_millis(100);
/// Interval of further attempts while a target is not reached.
const RETRY: Duration = Duration::from_secs(10);
/// Interval of warnings.
const QUIET: Duration = Duration::from_secs(60);

/// Follows the memory target of the toolstack, which `xl mem-set` changes, until xenstore fails for good; returns that error.
///
/// Watches `memory/target` (in KiB) and calls [`aim`] for each new value, ten times a second at most. A target that is not
/// reached, as the heap has no more free pages or Xen no more memory, is tried again every ten seconds. A resume
/// does not end it.
///
/// `least_kib` is the RAM that the program needs, in KiB: a lower target counts as this one. Memory that is given away is missing
/// from the heap, so choose it above the program's peak. A target below it, an unreachable target and a value that is no number
/// are warned of in the log, once a minute at most.
///
/// A domain that holds more than its target can be saved, but not restored: see [`lifecycle::suspend`](crate::lifecycle::suspend()).
///
/// ```no_run
/// use domu::lifecycle;
///
/// # async fn example(domain: domu::Domain) {
/// domu::executor::spawn(async move {
///     let error = lifecycle::follow_memory_target(domain, 8 << 10).await;
///     log::warn!("memory target not followed: {error}");
/// })
/// .detach();
/// # }
/// ```
///
/// # Cancel safety
///
/// Dropping the future ends the watch. The domain keeps the size that it has.
#[doc(alias("memory/target", "mem-set"))]
pub async fn follow_memory_target(domain: Domain, least_kib: u64) -> Error {
    let store = domain.xenstore();
    let mut watch = match store.watch(PATH).await {
        Ok(watch) => watch,
        Err(error) => return error,
    };
    let (mut log, mut is_reached) = (Log::default(), true);
    loop {
        if let Err(error) = wait(&mut watch, is_reached).await {
            return error;
        }
        is_reached = match store.read(PATH).await.and_then(|value| value.number()) {
            Ok(target) => approach(target, least_kib, &mut log),
            // The watch has an event in the new domain.
            Err(error) if error == ErrorKind::Interrupted => true,
            Err(error) => {
                log.warn(format_args!("{PATH}: {error}"));
                true
            }
        };
        time::sleep(PAUSE).await;
    }
}

async fn wait(watch: &mut Watch, is_reached: bool) -> Result<(), Error> {
    let event = watch.next();
    if is_reached {
        return event.await.map(|_| ());
    }
    time::timeout(RETRY, event).await.map_or(Ok(()), |event| event.map(|_| ()))
}

/// Gives or takes memory; says whether no further attempt is needed.
fn approach(target: u64, least: u64, log: &mut Log) -> bool {
    let goal = target.max(least);
    if target < least {
        log.warn(format_args!("memory target {target} KiB is below the least of {least} KiB"));
    }
    match aim(goal) {
        Ok(now) if now.abs_diff(goal) < 4 => true,
        Ok(now) => {
            log.warn(format_args!("memory target {goal} KiB not reached: {now} KiB"));
            // The memory map has no more.
            now < goal && absent() == 0
        }
        Err(error) => {
            log.warn(format_args!("memory target {goal} KiB not reached: {error}"));
            false
        }
    }
}

/// Rate limit of the warnings.
#[derive(Default)]
struct Log {
    last: Option<Instant>,
    suppressed: u64,
}

impl Log {
    fn warn(&mut self, message: fmt::Arguments<'_>) {
        if self.last.is_some_and(|last| last.elapsed() < QUIET) {
            self.suppressed += 1;
            return;
        }
        self.last = Some(time::now());
        match core::mem::take(&mut self.suppressed) {
            0 => log::warn!("{message}"),
            suppressed => log::warn!("{message} ({suppressed} warnings suppressed)"),
        }
    }
}
