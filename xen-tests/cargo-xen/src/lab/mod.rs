//! The machine under test: QEMU, and in it Xen with a Linux dom0 in which guests are started.
//!
//! QEMU emulates all of it (no KVM), so the same commands work on any machine that runs Linux.
//!
//! | task | function |
//! |---|---|
//! | start Xen and dom0 | [`dom0::Session::boot`]; dropping the session ends the machine |
//! | give dom0 files | an [`Archive`](crate::cpio::Archive) for the boot, later [`dom0::Session::put`] |
//! | run a command in dom0 | [`dom0::Session::run`], [`dom0::Session::must`], [`dom0::Session::run_with_input`] |
//! | configure a guest | [`domain::Config`] over a text for `xl`, and [`domain::add`] |
//! | run one guest to its end | [`domain::run`]; with input [`domain::run_attached`] |
//! | run guests at once | `xl create` by [`dom0::Session::must`], then [`domain::follow`] or [`domain::follow_both`] |
//! | connect two guests | [`pair`] |
//! | run an image without dom0, or without Xen | [`smoke`] |
//!
//! Two guests one after the other in one dom0:
//!
//! ```no_run
//! use std::path::Path;
//! use std::time::Duration;
//!
//! use cargo_xen::build::{Flavour, folder};
//! use cargo_xen::cpio::Archive;
//! use cargo_xen::lab::dom0::{Lab, Session};
//! use cargo_xen::lab::domain::{self, Config, Watch};
//! use cargo_xen::run::BASE_CONFIG;
//! use cargo_xen::setup;
//!
//! # fn main() -> anyhow::Result<()> {
//! let image = folder(Path::new("my-unikernel"), Flavour::Hardened)?;
//! let mut files = Archive::default();
//! files.file("guests/kernel", 0o644, &image.read()?);
//! for (name, line) in [("one", "first=1"), ("two", "")] {
//!     let config = Config { base: BASE_CONFIG.into(), cmdline: Some(line.into()), ..Config::default() };
//!     domain::add(&mut files, name, "kernel", &config);
//! }
//! let mut session = Session::boot(&Lab::new(setup::MAIN), files, Path::new("logs"))?;
//! for name in ["one", "two"] {
//!     let watch = Watch { limit: Duration::from_secs(60), most: 1 << 20, on_console: &mut |_| {} };
//!     let outcome = domain::run(&mut session, name, watch)?;
//!     println!("{name}: {:?}\n{}", outcome.reason, outcome.text());
//!     domain::destroy(&mut session, name)?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod control;
pub mod dom0;
pub mod domain;
pub mod input;
pub mod pair;
pub mod qemu;
pub mod smoke;
