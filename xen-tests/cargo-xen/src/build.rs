//! Builds unikernels, the same way wherever the tree lies.
//!
//! *Hardened* is the way to ship: `core` and `alloc` are built along, so that every function, those
//! of the standard library too, has its stack canary. It needs flags that stable Rust reserves,
//! hence `RUSTC_BOOTSTRAP`, as Linux does it. *Plain* is what a user gets from a stock toolchain.
//! *Float* is hardened, for a target of our own on which floating point uses SSE registers: the usual
//! target passes floats in software's way, and features cannot be added to it.
//! All say nothing in the image about where it was built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::{self, TARGET};
use crate::process::{self, output_of};
use crate::project::{Program, Project};
use crate::say;
use crate::setup;

/// The name of the target with floating point. It ends in `-none` because `compiler_builtins` brings `memcpy` and its kind
/// only where the name says that there is no system to have them.
const FLOAT_TARGET: &str = "x86_64-domu-none";

/// Its specification, through a link into `targets`: a package of this crate has a copy.
pub const FLOAT_SPECIFICATION: &str = include_str!("x86_64-domu-none.json");

/// What cargo must be told to take a target from a file.
pub const FLOAT_OPTION: &str = "-Zjson-target-spec";

/// What is built along for a hardened image.
pub const BUILD_STD: &str = "-Zbuild-std=core,alloc";

/// The compiler flags of a hardened image, beside those in `.cargo/config.toml`.
const HARDENED: [&str; 1] = ["-Zstack-protector=strong"];

/// Options for cargo to take flags from a profile. They are added to the flags of the crate's own configuration,
/// wherever that has them.
const PROFILE_OPTION: &str = "-Zprofile-rustflags";

/// Variables and types for a debugger.
const DEBUGGED: &str = r#"profile.release.debug="full""#;

/// How an image is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// With canaries everywhere.
    Hardened,
    /// With the toolchain's own `core`.
    Plain,
    /// As hardened, with variables and types for a debugger in the ELF.
    Debugged,
    /// Hardened, for the target with floating point.
    Float,
}

impl Flavour {
    /// Its name, which is also that of its folder below `target`.
    pub fn name(self) -> &'static str {
        match self {
            Flavour::Hardened => "hardened",
            Flavour::Plain => "plain",
            Flavour::Debugged => "debugged",
            Flavour::Float => "float",
        }
    }

    /// All of them.
    pub const ALL: [Flavour; 4] = [Flavour::Hardened, Flavour::Plain, Flavour::Debugged, Flavour::Float];

    /// Whether `core` is built along, with canaries.
    fn is_hardened(self) -> bool {
        self != Flavour::Plain
    }

    /// The value of Cargo's `--target`. A specification is written below a folder of build results first.
    fn target(self, results: &Path) -> Result<PathBuf> {
        if self != Flavour::Float {
            return Ok(PathBuf::from(TARGET));
        }
        let path = results.join("xen").join(format!("{FLOAT_TARGET}.json"));
        if fs::read_to_string(&path).is_ok_and(|text| text == FLOAT_SPECIFICATION) {
            return Ok(path);
        }
        let folder = path.parent().unwrap_or(results);
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::write(&path, FLOAT_SPECIFICATION).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// A unikernel that has been built.
#[derive(Clone, Debug)]
pub struct Image {
    /// With symbols, for debuggers.
    pub elf: PathBuf,
    /// What boots.
    pub stripped: PathBuf,
    /// Size of the latter in bytes.
    pub size: u64,
}

impl Image {
    /// The bytes that boot.
    pub fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.stripped).with_context(|| format!("reading {}", self.stripped.display()))
    }
}

/// Builds unikernels of a workspace by name; gives them in the order asked for.
pub fn named(workspace: &Path, names: &[&str], flavour: Flavour) -> Result<Vec<Image>> {
    named_in(&workspace.join("target"), workspace, names, flavour)
}

/// As [`named`], in a folder where others do not build: what they ask for may need other features, and an image of the same
/// name is replaced then.
pub fn named_in(folder: &Path, workspace: &Path, names: &[&str], flavour: Flavour) -> Result<Vec<Image>> {
    named_with(folder, workspace, names, flavour, &[])
}

/// As [`named_in`], with more of Cargo's options.
pub fn named_with(
    folder: &Path,
    workspace: &Path,
    names: &[&str],
    flavour: Flavour,
    options: &[&str],
) -> Result<Vec<Image>> {
    setup::rust(flavour.is_hardened())?;
    let project = Project::find(workspace)?;
    let programs = names.iter().map(|name| project.program(name)).collect::<Result<Vec<Program>>>()?;
    let target_dir = folder.join(flavour.name());
    let mut command = cargo::command(workspace);
    command.args(["build", "--release"]);
    if workspace.join("Cargo.lock").is_file() {
        command.arg("--locked");
    }
    let target = flavour.target(folder)?;
    command.arg("--target").arg(&target).arg("--target-dir").arg(&target_dir);
    programs.iter().for_each(|program| select(&mut command, program));
    command.args(options);
    let mut flags = remapped(workspace)?;
    if flavour == Flavour::Debugged {
        command.args(["--config", DEBUGGED]);
    }
    if flavour.is_hardened() {
        flags.extend(HARDENED.map(String::from));
        command.env("RUSTC_BOOTSTRAP", "1").arg(BUILD_STD);
    }
    if flavour == Flavour::Float {
        command.arg(FLOAT_OPTION);
    }
    let flags: Vec<Value> = flags.into_iter().map(Value::String).collect();
    // A JSON array of strings is a TOML array of strings; cargo joins it with that of the file.
    command.arg("--config");
    let target = target.file_stem().unwrap_or_default().to_string_lossy();
    command.arg(format!("target.{target}.rustflags={}", Value::Array(flags)));
    say!("building {} ({})", names.join(", "), flavour.name());
    let built = executables(&mut command)?;
    names
        .iter()
        .map(|name| match built.iter().find(|(built, _)| built == name) {
            Some((_, elf)) => strip(elf),
            None => bail!("cargo built no executable for {name}"),
        })
        .collect()
}

/// Builds the tests of a crate by its own configuration: name and ELF of each, in alphabetical order.
pub fn tests(folder: &Path, flavour: Flavour) -> Result<Vec<(String, PathBuf)>> {
    setup::rust(flavour.is_hardened())?;
    let mut command = cargo::command(folder);
    command.args(["build", "--release", "--tests"]);
    harden(&mut command, flavour);
    say!("building the tests in {} ({})", folder.display(), flavour.name());
    let mut built = executables_of(&mut command, |kind| kind == "test")?;
    built.sort();
    Ok(built)
}

/// Adds what makes a build hardened, if it is to be.
fn harden(command: &mut Command, flavour: Flavour) {
    if flavour.is_hardened() {
        command.env("RUSTC_BOOTSTRAP", "1").args([BUILD_STD, PROFILE_OPTION, "--config"]);
        command.arg(format!("profile.release.rustflags={}", Value::from(HARDENED.to_vec())));
    }
}

/// Builds the only program of a crate by the crate's own configuration of Cargo.
pub fn folder(folder: &Path, flavour: Flavour) -> Result<Image> {
    folder_to(folder, None, flavour)
}

/// As [`folder`], with the results somewhere else.
pub fn folder_to(folder: &Path, results: Option<&Path>, flavour: Flavour) -> Result<Image> {
    let project = Project::find(folder)?;
    own_way(&project, folder, &project.default_program()?, results, flavour)
}

/// Builds a program by the configuration of Cargo that holds in a folder. Flags of a hardened build are added to those of the
/// configuration, wherever that has them.
pub fn own_way(
    project: &Project,
    folder: &Path,
    program: &Program,
    results: Option<&Path>,
    flavour: Flavour,
) -> Result<Image> {
    setup::rust(flavour.is_hardened())?;
    let mut command = cargo::command(folder);
    command.args(["build", "--release"]);
    select(&mut command, program);
    if let Some(results) = results {
        command.arg("--target-dir").arg(results);
    }
    if flavour == Flavour::Float {
        command.arg(FLOAT_OPTION).arg("--target").arg(flavour.target(&project.target)?);
    } else if !cargo::has_target(folder) {
        command.args(["--target", TARGET]);
    }
    if flavour == Flavour::Debugged {
        command.args(["--config", DEBUGGED]);
    }
    harden(&mut command, flavour);
    say!("building {} ({})", program.name, flavour.name());
    match executables(&mut command)?.as_slice() {
        [(_, elf)] => strip(elf),
        built => bail!("cargo built {} executables for {} instead of one", built.len(), program.name),
    }
}

/// Adds the options that build one program, with the features that it needs.
fn select(command: &mut Command, program: &Program) {
    command.args(program.selection());
    for feature in &program.features {
        command.arg("--features").arg(format!("{}/{feature}", program.package));
    }
}

/// Makes an image from an executable: a copy without symbols beside it.
pub fn strip(elf: &Path) -> Result<Image> {
    let mut name = elf.file_name().unwrap_or_default().to_os_string();
    name.push(".stripped");
    strip_to(elf, &elf.with_file_name(name))
}

/// As [`strip`], with the copy somewhere else.
pub fn strip_to(elf: &Path, stripped: &Path) -> Result<Image> {
    let sysroot = setup::sysroot()?;
    // The compiler ships its own, which needs no package; the host's folder is the only one with it.
    let own = fs::read_dir(sysroot.join("lib/rustlib"))
        .context("listing the toolchain's folder")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin/rust-objcopy")))
        .find(|path| path.is_file());
    let mut command = match own {
        Some(own) => {
            let mut command = process::command(own);
            command.env("LD_LIBRARY_PATH", sysroot.join("lib")).arg("--strip-all");
            command.arg(elf).arg(stripped);
            command
        }
        None => {
            let mut command = process::command("strip");
            command.arg("-o").arg(stripped).arg(elf);
            command
        }
    };
    output_of(&mut command)
        .context("stripping needs rust-objcopy (part of the toolchain) or strip (package binutils)")?;
    let size = fs::metadata(stripped).with_context(|| format!("reading {}", stripped.display()))?.len();
    Ok(Image { elf: elf.to_path_buf(), stripped: stripped.to_path_buf(), size })
}

/// The flags that keep the folders of this machine out of the image.
fn remapped(workspace: &Path) -> Result<Vec<String>> {
    let folders = renamed(workspace)?.into_iter();
    Ok(folders.map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display())).collect())
}

/// The folders that sources come from, and what an image calls them.
pub fn renamed(workspace: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
    };
    let mut folders = vec![(workspace.to_path_buf(), "domu"), (setup::sysroot()?.join("lib/rustlib/src/rust"), "rust")];
    // One folder for each registry, called after its host.
    for kind in ["registry/src", "git/checkouts"] {
        if let Ok(entries) = fs::read_dir(home.join(kind)) {
            let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
            folders.extend(paths.map(|path| (path, "crates")));
        }
    }
    folders.sort();
    Ok(folders)
}

/// Runs cargo and gives the executables that it reports, by target name.
pub fn executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    executables_of(command, |_| true)
}

/// As [`executables`], of targets of some kinds: `bin`, `example`, `test`.
fn executables_of(command: &mut Command, is_wanted: fn(&str) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{}`", process::shown(command)))?;
    if !output.status.success() {
        bail!("cargo build failed ({}), as its messages above tell", output.status);
    }
    Ok(executables_in(&String::from_utf8_lossy(&output.stdout), is_wanted))
}

fn executables_in(messages: &str, is_wanted: fn(&str) -> bool) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            let path = message.get("executable")?.as_str()?;
            let target = message.get("target")?;
            let name = target.get("name")?.as_str()?;
            let kinds = target.get("kind").and_then(Value::as_array);
            if kinds.is_some_and(|kinds| !kinds.iter().any(|kind| kind.as_str().is_some_and(is_wanted))) {
                return None;
            }
            Some((name.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"log"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"hello","kind":["bin"]},"executable":"/a/\"b\"/hello"}
{"reason":"compiler-artifact","target":{"name":"basic","kind":["test"]},"executable":"/a/basic"}
not json
{"reason":"build-finished","success":true}"#;
        let hello = (String::from("hello"), PathBuf::from("/a/\"b\"/hello"));
        let basic = (String::from("basic"), PathBuf::from("/a/basic"));
        assert_eq!(executables_in(messages, |_| true), [hello, basic.clone()]);
        assert_eq!(executables_in(messages, |kind| kind == "test"), [basic]);
    }
}
