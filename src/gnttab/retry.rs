//! Patience with pages that are not there: Xen has them brought back while the domain waits.

use core::time::Duration;

use crate::time;

/// Waits that become longer: 1 ms at first, and a second in all.
pub(super) struct Retry(u32);

/// How often one tries again.
pub(super) const RETRIES: u32 = 10;

impl Retry {
    pub(super) const fn new() -> Self {
        Self(0)
    }

    /// Waits before another attempt. False if there have been enough: counted, so that no clock has a part in it.
    pub(super) async fn wait(&mut self) -> bool {
        if self.0 == RETRIES {
            return false;
        }
        time::sleep(Duration::from_millis(1 << self.0)).await;
        self.0 += 1;
        true
    }
}
