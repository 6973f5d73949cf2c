//! The turn of an invocation: one at a time uses the emulated machine or changes the cache.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use crate::{paths, say};

/// Held by the invocation that uses the emulated machine or changes the cache.
static TURN: Mutex<Option<File>> = Mutex::new(None);

/// Waits until no other invocation uses the machine or the cache, and keeps others off until this
/// one ends: two emulated machines at once make each several times slower.
pub fn take() -> Result<()> {
    // Two locks of one process would wait for each other.
    let mut turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if turn.is_some() {
        return Ok(());
    }
    let cache = paths::cache()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let path = cache.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    // SAFETY: flock takes a descriptor that `file` keeps open, and no pointer.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        say!("another `cargo xen` is running: waiting for it to end ({})", path.display());
        // SAFETY: as above.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(io::Error::last_os_error()).context("waiting for another `cargo xen`");
        }
    }
    *turn = Some(file);
    Ok(())
}
