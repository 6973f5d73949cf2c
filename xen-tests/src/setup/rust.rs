//! The parts of a Rust toolchain that a unikernel is built with.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::build::{TARGET, cargo_environment};
use crate::process::{self, output_of};
use crate::say;

/// What is missing is added by one at a time.
static ADDING: Mutex<()> = Mutex::new(());

/// The folder of the toolchain that builds unikernels (not of the one that built this tool).
pub fn sysroot() -> Result<PathBuf> {
    let mut command = process::command("rustc");
    cargo_environment(&mut command);
    command.args(["--print", "sysroot"]).current_dir(crate::paths::workspace());
    let output = output_of(&mut command).context("asking rustc for its folder")?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output).trim()))
}

/// Adds the target, and for hardened builds the sources of `core`, when they are missing.
pub fn ensure(hardened: bool) -> Result<()> {
    let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let sysroot = sysroot()?;
    let rustlib = sysroot.join("lib/rustlib");
    part(&rustlib.join(TARGET).join("lib"), &["target", "add", TARGET], "the target x86_64-unknown-none")?;
    if hardened {
        part(
            &rustlib.join("src/rust/library/core"),
            &["component", "add", "rust-src"],
            "Rust's own sources (rust-src)",
        )?;
    }
    Ok(())
}

/// Runs a program of the toolchain's; whether it succeeds.
fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = process::command(program);
    cargo_environment(&mut command);
    output_of(command.args(arguments).current_dir(crate::paths::workspace())).is_ok()
}

/// Whether there is a nightly toolchain, for what stable Rust does not have.
pub fn nightly() -> bool {
    runs("rustc", &["+nightly", "--version"])
}

/// Whether there is Miri, which comes with nightly toolchains only; it is added to one that lacks it.
pub fn miri() -> bool {
    let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let there = || runs("cargo", &["+nightly", "miri", "--version"]);
    if there() {
        return true;
    }
    if !nightly() {
        return false;
    }
    let how = ["component", "add", "--toolchain", "nightly", "miri", "rust-src"];
    say!("adding Miri: rustup {}", how.join(" "));
    runs("rustup", &how) && there()
}

fn part(evidence: &Path, rustup: &[&str], name: &str) -> Result<()> {
    if evidence.is_dir() {
        return Ok(());
    }
    let how = format!("rustup {}", rustup.join(" "));
    if !process::exists("rustup") {
        bail!("the Rust toolchain lacks {name}, and there is no rustup to run `{how}`");
    }
    say!("adding {name}: {how}");
    let mut command = process::command("rustup");
    cargo_environment(&mut command);
    let status = command
        .args(rustup)
        .current_dir(crate::paths::workspace())
        .status()
        .with_context(|| format!("starting `{how}`"))?;
    if !status.success() || !evidence.is_dir() {
        bail!("`{how}` did not add {name}");
    }
    Ok(())
}
