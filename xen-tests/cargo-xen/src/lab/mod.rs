//! The machine under test: QEMU, and in it Xen with a Linux dom0 in which guests are started.
//!
//! QEMU emulates all of it (no KVM), so the same commands work on any machine that runs Linux.

pub mod control;
pub mod dom0;
pub mod domain;
pub mod input;
pub mod pair;
pub mod qemu;
pub mod smoke;
