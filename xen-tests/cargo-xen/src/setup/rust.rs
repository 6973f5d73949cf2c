//! The parts of a Rust toolchain that a unikernel is built with.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use crate::cargo::{TARGET, clean_environment};
use crate::process::{self, output_of};
use crate::say;

/// The version of `cargo-hack` that is built where it is missing.
const CARGO_HACK: &str = "0.6.46";

/// What is missing is added by one at a time.
static ADDING: Mutex<()> = Mutex::new(());

/// The folder of the toolchain that builds unikernels (not of the one that built this tool).
pub fn sysroot() -> Result<PathBuf> {
    let mut command = process::command("rustc");
    clean_environment(&mut command);
    command.args(["--print", "sysroot"]).current_dir(crate::paths::workspace());
    let output = output_of(&mut command).context("asking rustc for its folder")?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output).trim()))
}

/// The target of this machine, as `rustc` names it.
pub fn host() -> Result<String> {
    let mut command = process::command("rustc");
    clean_environment(&mut command);
    let output =
        output_of(command.arg("-vV").current_dir(crate::paths::workspace())).context("asking rustc for its host")?;
    let text = String::from_utf8_lossy(&output);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    Ok(host.to_owned())
}

/// The parts that [`ensure`] adds.
pub fn parts() -> Vec<(&'static str, bool, &'static str)> {
    let rustlib = sysroot().map(|sysroot| sysroot.join("lib/rustlib"));
    let has = |part: &str| rustlib.as_ref().is_ok_and(|rustlib| rustlib.join(part).is_dir());
    vec![
        ("target x86_64-unknown-none", has("x86_64-unknown-none/lib"), "rustup target add x86_64-unknown-none"),
        ("Rust's own sources, for hardened builds", has("src/rust/library/core"), "rustup component add rust-src"),
    ]
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
    clean_environment(&mut command);
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

/// The compiler that builds unikernels, as it names itself: `rustc 1.95.0 (59807616e 2026-04-14)`.
pub fn compiler() -> Result<String> {
    let mut command = process::command("rustc");
    clean_environment(&mut command);
    let output = output_of(command.arg("--version").current_dir(crate::paths::workspace()))?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// The toolchain of a Rust version (`1.88`), with the unikernels' target. Installs what is missing; the error says how to
/// do it by hand.
pub fn toolchain(version: &str) -> Result<String> {
    let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let full = if version.matches('.').count() == 1 { format!("{version}.0") } else { version.to_owned() };
    let names = [version, &full];
    let present = names.into_iter().find(|name| runs("rustc", &[&format!("+{name}"), "--version"]));
    let name = present.unwrap_or(&full);
    let install = ["toolchain", "install", name, "--profile", "minimal", "--target", TARGET];
    if has_target(name) {
        return Ok(name.to_owned());
    }
    say!("installing Rust {name}: rustup {}", install.join(" "));
    if runs("rustup", &install) && has_target(name) {
        return Ok(name.to_owned());
    }
    bail!("no toolchain {name} here, and `rustup {}` failed", install.join(" "))
}

/// Returns true if a toolchain has the unikernels' target installed.
fn has_target(toolchain: &str) -> bool {
    let mut command = process::command("rustc");
    clean_environment(&mut command);
    command.args([&format!("+{toolchain}"), "--target", TARGET, "--print", "target-libdir"]);
    let output = output_of(command.current_dir(crate::paths::workspace()));
    output.is_ok_and(|path| Path::new(String::from_utf8_lossy(&path).trim()).is_dir())
}

/// The folder of `cargo-hack`, to be put before `PATH`; empty if it is on that already. Builds it once, into the cache.
pub fn cargo_hack() -> Result<PathBuf> {
    if process::exists("cargo-hack") || runs("cargo", &["hack", "--version"]) {
        return Ok(PathBuf::new());
    }
    let _adding = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = crate::paths::cache()?.join("cargo-hack");
    let folder = root.join("bin");
    if !folder.join("cargo-hack").is_file() {
        say!("building cargo-hack {CARGO_HACK} once, into {}", root.display());
        let install = ["install", "cargo-hack", "--version", CARGO_HACK, "--locked", "--root", &root.to_string_lossy()];
        if !runs("cargo", &install) {
            bail!("no cargo-hack here, and `cargo {}` failed", install.join(" "));
        }
    }
    Ok(folder)
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
    clean_environment(&mut command);
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
