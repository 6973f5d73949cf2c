//! Scheduling and the end of a domain (`sched.h`).

use core::fmt;

/// `SCHEDOP_shutdown`.
#[doc(alias = "SCHEDOP_shutdown")]
pub const SHUTDOWN: u64 = 2;
/// `SCHEDOP_poll`.
#[doc(alias = "SCHEDOP_poll")]
pub const POLL: u64 = 3;

/// `SCHEDOP_watchdog`.
#[doc(alias = "SCHEDOP_watchdog")]
pub const WATCHDOG: u64 = 6;

/// The reason of a [`SHUTDOWN`] that is no end: the domain is to be saved or moved.
#[doc(alias = "SHUTDOWN_suspend")]
pub const SUSPEND: u32 = 2;

/// Why a domain ends, as its toolstack is told (`SHUTDOWN_*`).
#[doc(alias = "SHUTDOWN_")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
#[repr(u32)]
pub enum Reason {
    /// It is done; `xl` acts by `on_poweroff`.
    #[doc(alias = "SHUTDOWN_poweroff")]
    Poweroff = 0,
    /// It wants to be started again; `xl` acts by `on_reboot`.
    #[doc(alias = "SHUTDOWN_reboot")]
    Reboot = 1,
    /// It failed; `xl` acts by `on_crash`.
    #[doc(alias = "SHUTDOWN_crash")]
    Crash = 3,
    /// It did not feed its watchdog; `xl` acts by `on_watchdog`.
    #[doc(alias = "SHUTDOWN_watchdog")]
    Watchdog = 4,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Crash => "crash",
            Self::Watchdog => "watchdog",
        })
    }
}

/// `struct sched_shutdown`.
#[doc(alias = "sched_shutdown")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Shutdown {
    /// A [`Reason`], or [`SUSPEND`].
    pub reason: u32,
}

/// `struct sched_poll`.
#[doc(alias = "sched_poll")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Poll {
    /// Array of ports.
    pub ports: *const u32,
    /// Entries of that array, at most 128.
    pub nr_ports: u32,
    /// Absolute system time in nanoseconds at which to give up; 0 is never.
    pub timeout: u64,
}

/// `struct sched_watchdog`.
#[doc(alias = "sched_watchdog")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Watchdog {
    /// Which one; 0 starts another.
    pub id: u32,
    /// Seconds until it ends the domain; 0 stops it.
    pub timeout: u32,
}

const _: () = assert!(size_of::<Watchdog>() == 8);
const _: () = assert!(size_of::<Shutdown>() == 4);
const _: () = assert!(size_of::<Poll>() == 24);
