//! Following the memory target that the toolstack sets.

use core::convert::Infallible;
use core::time::Duration;

use crate::console::rate_limit::log_limited;
use crate::domain::Domain;
use crate::local::Instance;
use crate::memory::balloon::{absent, aim};
use crate::time;
use crate::xenstore::{Error, ErrorKind, Watch};

const PATH: &str = "memory/target";
/// Pause after each adjustment: the rate limit of a target that changes all the time.
const PAUSE: Duration = Duration::from_millis(100);
/// Interval of further attempts while a target is not reached.
const RETRY: Duration = Duration::from_secs(10);

/// Follows the memory target of the toolstack, which `xl mem-set` changes, until xenstore fails for good.
///
/// Watches `memory/target` (in KiB) and calls [`aim`] for each new value, ten times a second at most. A target that is not
/// reached, as the heap has no more free pages or Xen no more memory, is tried again every ten seconds. A resume
/// does not end it.
///
/// `least` is the RAM that the program needs, in bytes: a lower target counts as this one. Memory that is given away is missing
/// from the heap, so choose it above the program's peak. A target below it, an unreachable target and a value that is no number
/// are warned of in the log: 10 lines at once and two in a second at most. Further attempts at the same target log nothing.
///
/// A domain that holds more than its target can be saved, but not restored: see [`lifecycle::suspend`](crate::lifecycle::suspend()).
///
/// ```no_run
/// use domu::lifecycle;
///
/// # async fn example(domain: domu::Domain) {
/// domu::executor::spawn(async move {
///     let Err(error) = lifecycle::follow_memory_target(domain, 8 << 20).await;
///     log::warn!("memory target not followed: {error}");
/// })
/// .detach();
/// # }
/// ```
///
/// # Errors
///
/// Those of [`Xenstore::watch`](crate::xenstore::Xenstore::watch) and [`Watch::next`](crate::xenstore::Watch::next).
///
/// # Cancel safety
///
/// Dropping the future ends the watch. The domain keeps the size that it has.
#[doc(alias("memory/target", "mem-set"))]
pub async fn follow_memory_target(domain: Domain, least: u64) -> Result<Infallible, Error> {
    let store = domain.xenstore();
    let mut watch = store.watch(PATH).await?;
    let mut is_reached = true;
    loop {
        // A further attempt is not told.
        let is_told = wait(&mut watch, is_reached).await?;
        is_reached = match store.read(PATH).await.and_then(|value| value.number()) {
            Ok(target) => approach(domain.0, target, least.div_ceil(1024), is_told),
            // The watch has an event in the new domain.
            Err(error) if error == ErrorKind::Interrupted => true,
            Err(error) => {
                log_limited!(memory_target of domain.0, Warn, "{PATH}: {error}");
                true
            }
        };
        time::sleep(PAUSE).await;
    }
}

/// Waits for a change of the target, or, if it is not reached, for the next attempt; returns true for a change.
async fn wait(watch: &mut Watch, is_reached: bool) -> Result<bool, Error> {
    let event = watch.next();
    if is_reached {
        return event.await.map(|_| true);
    }
    time::timeout(RETRY, event).await.map_or(Ok(false), |event| event.map(|_| true))
}

/// Gives or takes memory, in KiB; returns true if no further attempt is needed.
fn approach(state: Instance, target: u64, least: u64, is_told: bool) -> bool {
    let goal = target.max(least);
    if target < least && is_told {
        log_limited!(memory_target of state, Warn, "memory target {target} KiB is below the least of {least} KiB");
    }
    match aim(goal) {
        Ok(now) if now.abs_diff(goal) < 4 => true,
        Ok(now) => {
            if is_told {
                log_limited!(memory_target of state, Warn, "memory target {goal} KiB not reached: {now} KiB");
            }
            // The memory map has no more.
            now < goal && absent() == 0
        }
        Err(error) => {
            if is_told {
                log_limited!(memory_target of state, Warn, "memory target {goal} KiB not reached: {error}");
            }
            false
        }
    }
}
