//! The tests of what a release promises: its oldest Rust version, its package, and its documentation.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Suite;
use super::host::{FEATURES, checked};
use crate::readme;
use cargo_xen::cargo;
use cargo_xen::cargo::TARGET;
use cargo_xen::paths;
use cargo_xen::process::output_of;
use cargo_xen::project::Project;
use cargo_xen::setup;

/// `rust-version` of the workspace.
const MSRV: &str = env!("CARGO_PKG_RUST_VERSION");

/// Runs the tests that are asked for.
pub fn run(suite: &mut Suite) {
    msrv(suite);
    package(suite);
    documentation(suite);
}

/// The feature whose dependency needs a newer Rust than `rust-version` states.
const NEWER: &str = "smoltcp";

/// Checks the library with the toolchain that `rust-version` states: without features, with each alone, with the default
/// ones, with all but [`NEWER`].
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
    let features = match all_but_newer() {
        Ok(features) => features,
        Err(error) => return suite.report.failed("host::msrv", std::time::Duration::ZERO, &error, ""),
    };
    for (name, target) in runs {
        // cargo-hack runs cargo without `--package`, which takes the default member.
        let hack = ["hack", "check", "--each-feature", "--exclude-all-features", "--exclude-features", NEWER];
        let all = ["check", "--features", &*features];
        for (name, command) in [(name, hack.as_slice()), (&*format!("{name}_with_all_features"), all.as_slice())] {
            let mut arguments = [&[&*toolchain], command, &["--package", "domu", "--lib", "--locked"]].concat();
            arguments.extend(["--target-dir", &*directory]);
            arguments.extend(target.iter().flat_map(|target| ["--target", *target]));
            checked(suite, name, &arguments, &[("PATH", &path.to_string_lossy())]);
        }
    }
}

/// The features of the library but [`NEWER`], as cargo takes them.
fn all_but_newer() -> Result<String> {
    let project = Project::find(&paths::workspace())?;
    let domu = project.packages.iter().find(|package| package.name == "domu").context("no package domu")?;
    let features = domu.features.iter().filter(|name| *name != NEWER);
    Ok(features.cloned().collect::<Vec<_>>().join(","))
}

/// Files that a user of the published crate needs.
const PACKAGED: [&str; 9] = [
    "Cargo.toml",
    "README.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "linker/domu.ld",
    "boot/entry.S",
    "boot/symbols.S",
    "boot/trap.S",
    "targets/x86_64-domu-none.json",
];

/// Packages the crate, which builds what the package holds, for the host and as part of a unikernel.
fn package(suite: &mut Suite) {
    let directory = paths::target().join("package-of-tests");
    let directory = directory.to_string_lossy();
    for (name, target) in [("host::package", None), ("host::package_of_unikernels", Some(TARGET))] {
        let mut arguments = vec!["package", "--package", "domu", "--allow-dirty", "--target-dir", &*directory];
        arguments.extend(target.iter().flat_map(|target| ["--target", *target]));
        checked(suite, name, &arguments, &[]);
    }
    suite.test("host::package_is_complete", || {
        let files = packaged()?;
        let missing: Vec<&str> = PACKAGED.into_iter().filter(|file| !files.iter().any(|found| found == file)).collect();
        ensure!(missing.is_empty(), "the package lacks {}: see `include` in Cargo.toml", missing.join(", "));
        let surplus = files.iter().find(|file| file.starts_with("xen-tests") || file.starts_with("fuzz"));
        ensure!(surplus.is_none(), "the package holds {surplus:?}: see `include` in Cargo.toml");
        Ok(())
    });
}

/// The files of the package.
fn packaged() -> Result<Vec<String>> {
    let mut command = cargo::command(&paths::workspace());
    let list = output_of(command.args(["package", "--list", "--package", "domu", "--allow-dirty"]))?;
    Ok(String::from_utf8_lossy(&list).lines().map(String::from).collect())
}

/// Flags of rustdoc's under which a warning fails.
const DENIED: (&str, &str) = ("RUSTDOCFLAGS", "-Dwarnings");

/// Builds the documentation as docs.rs does, and follows the README's links into it.
fn documentation(suite: &mut Suite) {
    let arguments = [["doc", "--no-deps", "--target", TARGET].as_slice(), &FEATURES].concat();
    checked(suite, "host::documentation_of_unikernels", &arguments, &[DENIED]);
    suite.test("host::readme_links", readme_links);
    // A nightly compiler's own documentation run takes a minute.
    let name = "host::documentation_on_docs_rs";
    if (suite.selection.all || !suite.selection.filter.is_empty()) && suite.wants(name) {
        if !setup::nightly() {
            return suite.report.skipped(name, "no nightly toolchain here (`rustup toolchain install nightly`)");
        }
        let directory = paths::target().join("docs-rs");
        let directory = directory.to_string_lossy();
        let command = ["+nightly", "doc", "--no-deps", "--target-dir", &directory];
        let arguments = [command.as_slice(), &FEATURES];
        checked(suite, name, &arguments.concat(), &[("RUSTDOCFLAGS", "-Dwarnings --cfg docsrs")]);
    }
}

/// Addresses of the documentation of the default target, of that of the host, and of the package's files.
const PAGES: &str = "https://docs.rs/domu/latest/domu/";
const HOST_PAGES: &str = "https://docs.rs/domu/latest/x86_64-unknown-linux-gnu/domu/";
const SOURCES: &str = "https://docs.rs/crate/domu/latest/source/";

/// Each link of the README leads somewhere, on a Git host and on docs.rs.
fn readme_links() -> Result<()> {
    let workspace = paths::workspace();
    for target in [&[] as &[&str], &["--target", TARGET]] {
        let mut command = cargo::command(&workspace);
        output_of(command.args(["doc", "--no-deps"]).args(FEATURES).args(target).env(DENIED.0, DENIED.1))?;
    }
    let page = |folder: PathBuf| fs::read_to_string(&folder).with_context(|| format!("reading {}", folder.display()));
    let docs = paths::target().join(TARGET).join("doc/domu");
    let host_docs = paths::target().join("doc/domu");
    let text = page(workspace.join("README.md"))?;
    let undefined = readme::undefined(&text);
    ensure!(undefined.is_empty(), "README.md: without an address at its end: {}", undefined.join(", "));
    let (front, files) = (page(docs.join("index.html"))?, packaged()?);
    for link in readme::links(&text) {
        let holds = match (link.strip_prefix(PAGES), link.strip_prefix(HOST_PAGES), link.strip_prefix('#')) {
            (Some(path), _, _) => leads_somewhere(&docs, path),
            (_, Some(path), _) => leads_somewhere(&host_docs, path),
            (_, _, Some(heading)) => front.contains(&format!("id=\"{heading}\"")),
            _ if link.starts_with("https://docs.rs/domu") => false,
            _ if link.starts_with("https://") => true,
            // A file: docs.rs shows it among the sources, to which the crate's documentation redirects the link.
            _ => {
                workspace.join(&link).is_file()
                    && files.contains(&link)
                    && front.contains(&format!("href=\"{SOURCES}{link}\""))
                    && !front.contains(&format!("href=\"{link}\""))
            }
        };
        ensure!(holds, "README.md: the link {link} leads nowhere");
    }
    Ok(())
}

/// Returns true if rustdoc has written a page, with the item that the fragment names.
fn leads_somewhere(docs: &Path, path: &str) -> bool {
    let (file, item) = path.split_once('#').unwrap_or((path, ""));
    fs::read_to_string(docs.join(file)).is_ok_and(|page| item.is_empty() || page.contains(&format!("id=\"{item}\"")))
}
