//! What crates of the embassy project need below them, so that they work here unchanged.
//!
//! Each part is a feature of this crate, off by default:
//!
//! | feature | for | what it brings |
//! |---|---|---|
//! | `critical-section` | `critical-section`, and with it `embassy-sync`'s `CriticalSectionRawMutex` | the one implementation that a program has |
//! | `embassy-time` | `embassy-time` | its driver: ticks are nanoseconds of [`time::now`](crate::time::now) |
//! | `embassy-executor` | `embassy-executor` 0.10 | `run`, which runs its tasks in a task of [`executor`](crate::executor) |
//!
//! ```toml
//! [dependencies]
//! domu = { path = "../domu", features = ["critical-section", "embassy-time", "embassy-executor"] }
//! embassy-executor = { version = "0.10", default-features = false } # without a `platform-` feature
//! embassy-sync = { version = "0.8", default-features = false }
//! embassy-time = { version = "0.5", default-features = false }      # without a `tick-hz-` or `generic-queue-` feature
//! ```
//!
//! Futures of `embassy-sync` and `embassy-time` need no executor of embassy's: they are awaited in main and in tasks of
//! [`executor::spawn`](crate::executor::spawn) as well. `examples/embassy.rs` uses all of them.
//!
//! # Critical sections
//!
//! Interrupts are off in this platform wherever Rust runs, as [`executor`](crate::executor) tells. A critical section saves
//! the interrupt flag, clears it and restores it all the same, which costs a few cycles and no exit. On the host, where
//! simulated domains run on several threads, it is a lock, which all domains of the process share.
//!
//! # Timers
//!
//! A `Timer` of embassy does not tell when it is dropped. What it leaves behind is one entry for each waker, whose task is
//! woken for nothing at the latest when the earliest of its deadlines comes: `with_timeout` in a loop does not pile up
//! entries. Until then, the domain counts as waiting for a moment: that nothing else could wake main is told only after it,
//! and what has been a task keeps its memory. When there are many such entries, more than 64 and than twice those in use, all
//! are woken and forgotten, and those in use come back: so a server may have a task for each connection. [`time::sleep`](crate::time::sleep) and
//! [`time::timeout`](crate::time::timeout) leave nothing behind.
//!
//! Outside of a domain the time is zero, and nobody is woken.

#[cfg(all(feature = "critical-section", target_os = "none"))]
mod critical_section;
#[cfg(feature = "embassy-executor")]
mod executor;
#[cfg(feature = "embassy-time")]
mod time;

/// The version that [`run`] takes a `Spawner` of.
#[cfg(feature = "embassy-executor")]
pub use embassy_executor;
#[cfg(feature = "embassy-executor")]
pub use executor::run;
