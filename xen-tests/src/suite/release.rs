//! The tests of what a release promises: its oldest Rust version.

use super::Suite;
use super::host::checked;
use crate::build::TARGET;
use crate::paths;
use crate::setup;

/// `rust-version` of the workspace.
const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");

/// Runs the tests that are asked for.
pub fn run(suite: &mut Suite) {
    msrv(suite);
}

/// Checks the library with the toolchain that `rust-version` states: without features, with each alone, with the default
/// ones, with all.
fn msrv(suite: &mut Suite) {
    let mut runs = vec![("host::msrv", None), ("host::msrv_of_unikernels", Some(TARGET))];
    runs.retain(|(name, _)| suite.wants(name));
    if runs.is_empty() {
        return;
    }
    let tools = setup::toolchain(MSRV).and_then(|toolchain| Ok((toolchain, setup::cargo_hack()?)));
    let (toolchain, folder) = match tools {
        Ok(tools) => tools,
        Err(error) => return runs.iter().for_each(|(name, _)| suite.report.skipped(name, &format!("{error:#}"))),
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain((!folder.as_os_str().is_empty()).then_some(folder));
    let path = std::env::join_paths(folders).unwrap_or(path);
    let (toolchain, directory) = (format!("+{toolchain}"), paths::target().join("msrv"));
    let directory = directory.to_string_lossy();
    for (name, target) in runs {
        let mut arguments = vec![&*toolchain, "hack", "check", "--each-feature", "--package", "domu", "--locked"];
        arguments.extend(["--target-dir", &*directory]);
        arguments.extend(target.iter().flat_map(|target| ["--target", *target]));
        checked(suite, name, &arguments, &[("PATH", &path.to_string_lossy())]);
    }
}
