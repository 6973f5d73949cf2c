//! Crashes that explain themselves: panics, exceptions of the CPU, and smashed stacks.
//!
//! Each ends the domain with the crash reason, after one report: what happened, for an exception the registers and what
//! lies at the address of a page fault, the chain of callers, and the image's build id, by which tools find its symbols
//! (`cargo xen run` does). It goes to the emergency output first and to the console then, past the log and its level.
//! It uses neither the heap nor a lock that is held. A failure inside of a report is told in one line, and one inside of
//! that ends the domain at once.

mod backtrace;
#[cfg(target_os = "none")]
mod handlers;
mod report;
