//! Cargo as the tool calls it: without the environment of a cargo that started the tool.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process;

/// The target of a unikernel.
pub const TARGET: &str = "x86_64-unknown-none";

/// A cargo that knows nothing of the one that runs this tool.
pub fn command(folder: &Path) -> Command {
    let mut command = process::command("cargo");
    clean_environment(&mut command);
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Whether Cargo's configuration in a folder names a target (`build.target`).
pub fn has_target(folder: &Path) -> bool {
    let mut command = command(folder);
    // The command is unstable, but its exit code is not: it fails if there is no such value.
    command.env("RUSTC_BOOTSTRAP", "1").args(["-Zunstable-options", "config", "get", "build.target"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Takes the outer cargo's variables out of a command's environment: neither `cargo +nightly xen`
/// nor flags meant for the host may change how a unikernel is built.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if !passes(&name) {
            command.env_remove(name);
        }
    }
}

/// Whether a variable is about the machine (where things are, how to reach the network).
fn passes(name: &OsStr) -> bool {
    const KEPT: [&str; 5] =
        ["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_DIST_SERVER", "RUSTUP_UPDATE_ROOT", "RUSTUP_AUTO_INSTALL"];
    const KEPT_GROUPS: [&str; 5] = ["CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_SOURCE_", "CARGO_TERM_"];
    let name = name.to_string_lossy();
    KEPT.contains(&&*name)
        || KEPT_GROUPS.iter().any(|group| name.starts_with(group))
        || !(name.starts_with("CARGO") || name.starts_with("RUST"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_about_the_machine_reaches_the_inner_cargo() {
        for name in ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "RUSTUP_HOME"] {
            assert!(passes(OsStr::new(name)), "{name}");
        }
        for name in ["RUSTFLAGS", "CARGO", "CARGO_MANIFEST_DIR", "RUSTUP_TOOLCHAIN", "RUSTC_BOOTSTRAP"] {
            assert!(!passes(OsStr::new(name)), "{name}");
        }
    }
}
