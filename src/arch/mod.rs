//! x86-64: what the program asks of the CPU, with two faces.
//!
//! In a unikernel these functions execute instructions; elsewhere the simulated machine of [`crate::sim`] answers
//! them. Together with the hypercall itself this is the only seam between the crate and what it runs on.

#[cfg(target_os = "none")]
mod bare;
mod cpu;
#[cfg(target_os = "none")]
pub(crate) mod descriptors;
#[cfg(target_os = "none")]
mod linked;
pub(crate) mod serial;
#[cfg(any(target_os = "none", test))]
pub(crate) mod trap;

#[cfg(target_os = "none")]
pub(crate) use bare::*;
pub(crate) use cpu::{ControlRegisters, Cpu};
#[cfg(target_os = "none")]
pub(crate) use linked::{Constructor, linked};

#[cfg(not(target_os = "none"))]
pub(crate) use crate::sim::machine::*;

/// The vector by which pending events interrupt a halt: the first behind those of exceptions.
pub(crate) const CALLBACK_VECTOR: u8 = 32;

/// The port that Xen and QEMU print bytes from: visible with `guest_loglvl=all`, and with QEMU's `isa-debugcon`.
pub(crate) const DEBUG_PORT: u16 = 0xe9;
