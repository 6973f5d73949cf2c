//! The library behind `cargo xen`: unikernels from source to image, the emulated machine with Xen and dom0, and guests in it.
//!
//! - [`setup`]: what must be on the machine first, and how it gets there
//! - [`build`]: unikernels from source to image
//! - [`lab`]: the emulated machine, Xen, dom0, and guests in it
//! - [`symbols`]: what a crash report means
//! - [`run`]: one unikernel with its console attached

pub mod say;

pub mod build;
pub mod cargo;
pub mod cli;
pub mod commands;
pub mod cpio;
pub mod doctor;
pub mod lab;
pub mod new;
pub mod paths;
pub mod process;
pub mod project;
pub mod run;
pub mod settings;
pub mod setup;
pub mod symbols;
pub mod tests;
pub mod turn;
