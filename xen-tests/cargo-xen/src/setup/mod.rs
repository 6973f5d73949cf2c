//! What has to be on the machine before anything can run, and how it gets there.
//!
//! Everything calls this implicitly and only for what it needs; `cargo xen setup` calls it for all.
//! Nothing is installed without need: Rust's parts through rustup, QEMU through apt when root, and
//! the hypervisors with their dom0 into a cache of our own.

mod apt;
mod image;
mod modules;
mod root;
mod rust;

use anyhow::{Result, bail};

pub use root::Root;
pub use rust::{cargo_hack, compiler, host, miri, nightly, sysroot, toolchain};

use crate::process;
use crate::say;

/// A version of Xen, and the Debian suite that ships it together with a fitting dom0.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As in the names of its packages.
    pub xen: &'static str,
    /// The suite's code name.
    pub suite: &'static str,
    /// Whether it can do without the processor's nested page tables, as debugging wants it.
    pub shadow_paging: bool,
}

/// All versions under test, oldest first.
pub static VERSIONS: [Version; 3] = [
    Version { xen: "4.14", suite: "bullseye", shadow_paging: true },
    Version { xen: "4.17", suite: "bookworm", shadow_paging: true },
    Version { xen: "4.20", suite: "trixie", shadow_paging: false },
];

/// The version that everything uses unless told otherwise, and on which every test runs.
pub static MAIN: &Version = &VERSIONS[1];

/// Finds a version by its number.
pub fn version(number: &str) -> Result<&'static Version> {
    match VERSIONS.iter().find(|version| version.xen == number) {
        Some(version) => Ok(version),
        None => {
            let known: Vec<&str> = VERSIONS.iter().map(|version| version.xen).collect();
            bail!("no Xen {number} here; there are {}", known.join(", "))
        }
    }
}

/// Makes sure that unikernels can be built.
pub fn rust(hardened: bool) -> Result<()> {
    rust::ensure(hardened)
}

/// Makes sure that QEMU is there.
pub fn qemu() -> Result<()> {
    const PROGRAM: &str = "qemu-system-x86_64";
    if process::exists(PROGRAM) {
        return Ok(());
    }
    if !process::exists("apt-get") {
        bail!("{PROGRAM} is missing: install QEMU (version 7 or later) with its x86 system emulator");
    }
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{PROGRAM} is missing: run `sudo apt-get install qemu-system-x86`");
    }
    say!("installing QEMU (Debian package qemu-system-x86)");
    apt::install_on_this_machine("qemu-system-x86")?;
    if !process::exists(PROGRAM) {
        bail!("qemu-system-x86 is installed, but {PROGRAM} is not found");
    }
    Ok(())
}

/// Whether there is a compiler for C++, in which libFuzzer is written.
pub fn cxx() -> bool {
    std::env::var_os("CXX").is_some() || ["c++", "g++", "clang++"].into_iter().any(process::exists)
}

/// Makes sure that a version of Xen with its dom0 is in the cache.
pub fn root(version: &'static Version) -> Result<Root> {
    root::ensure(version)
}

/// Parts of the Rust toolchain: name, whether it is there, and the command that adds it.
pub fn rust_parts() -> Vec<(&'static str, bool, &'static str)> {
    rust::parts()
}

/// Whether a version of Xen with its dom0 is in the cache.
pub fn is_prepared(version: &Version) -> bool {
    root::folder(version).is_ok_and(|folder| folder.is_dir())
}

/// `cargo xen setup`: all of it.
pub fn everything() -> Result<()> {
    rust(true)?;
    say!("Rust: target and sources are there");
    qemu()?;
    say!("QEMU: there");
    for version in &VERSIONS {
        let root = root(version)?;
        say!("Xen {}: {}", version.xen, root.folder().display());
    }
    Ok(())
}
