//! The commands `build`, `test` and `runner` of a project.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use libtest_mimic::Arguments;

use crate::build::{self, Flavour};
use crate::project::{Package, Project};
use crate::settings::Settings;
use crate::setup::Version;
use crate::tests::{self, Plan};
use crate::{cargo, run, say, setup};

/// Options of `runner`.
#[derive(Debug, Args)]
pub struct RunnerArgs {
    /// The ELF.
    pub elf: PathBuf,
    /// Those of libtest, for a test binary; else the domain's command line.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Options of `test`.
#[derive(Debug, Args)]
pub struct TestArgs {
    /// Part of the names of the tests to run.
    pub filter: Option<String>,
    /// Run on the host only, on the simulated Xen.
    #[arg(long)]
    pub host: bool,
    /// The versions of Xen to run on, such as 4.14,4.17,4.20.
    #[arg(long, value_delimiter = ',', value_parser = setup::version)]
    pub xen: Vec<&'static Version>,
    /// Build with the toolchain's own core, not hardened.
    #[arg(long)]
    pub plain: bool,
    /// Write the results of the tests on Xen as JUnit XML.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Arguments of libtest, behind `--`.
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// The package of the current folder, and its settings.
fn package() -> Result<(Package, Settings)> {
    let folder = std::env::current_dir().context("the current folder")?;
    let project = Project::find(&folder)?;
    let Some(package) = project.package else {
        bail!("{} is a workspace of several packages: change to the folder of one", project.root.display());
    };
    let settings = Settings::read(&package.settings).with_context(|| format!("package {}", package.name))?;
    Ok((package, settings))
}

/// How a project is built: as asked for, or by its settings.
fn flavour(asked: Option<Flavour>, settings: &Settings) -> Flavour {
    asked.unwrap_or(if settings.hardened { Flavour::Hardened } else { Flavour::Plain })
}

/// `cargo xen runner`: Cargo has built the ELF, and sets the folder of its package.
///
/// # Errors
///
/// The ELF or the settings cannot be read; a machine does not boot.
pub fn runner(arguments: &RunnerArgs) -> Result<u8> {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let settings = match Project::find(&std::path::absolute(&folder).context("the current folder")?)?.package {
        Some(package) => Settings::read(&package.settings).with_context(|| format!("package {}", package.name))?,
        None => Settings::default(),
    };
    if tests::list(&arguments.elf)?.is_none() {
        say!("plain build: `cargo xen run` builds hardened");
        return run::elf(&arguments.elf, &folder, &settings, &arguments.arguments);
    }
    let words = std::iter::once(arguments.elf.display().to_string()).chain(arguments.arguments.iter().cloned());
    let versions = vec![settings.xen];
    tests::run(&Plan { elf: arguments.elf.clone(), settings, versions, junit: None }, &Arguments::from_iter(words))
}

/// `cargo xen test`.
///
/// # Errors
///
/// There is no project or no test here, or it does not build.
pub fn test(arguments: TestArgs) -> Result<u8> {
    let (package, mut settings) = package()?;
    let names: Vec<String> = package.targets("test").map(String::from).collect();
    if names.is_empty() {
        bail!("package {} has no test: `cargo xen new` makes a project with one", package.name);
    }
    settings.hardened &= !arguments.plain;
    let libtest: Vec<String> = arguments.filter.into_iter().chain(arguments.arguments).collect();
    let on_host = host(&package, &libtest)?;
    if arguments.host || on_host != 0 {
        return Ok(on_host);
    }
    let versions = if arguments.xen.is_empty() { vec![settings.xen] } else { arguments.xen };
    let mut code = 0;
    let built = build::tests(&package.folder, flavour(None, &settings))?;
    if built.is_empty() {
        bail!("building the tests of {} gave no test of the crate domu-test", package.name);
    }
    for (number, (name, elf)) in built.iter().enumerate() {
        if tests::list(elf)?.is_none() {
            say!("{name} has no tests of the crate domu-test: not run on Xen");
            continue;
        }
        let junit =
            arguments.junit.as_deref().map(|path| if number == 0 { path.to_owned() } else { numbered(path, number) });
        let plan = Plan { elf: elf.clone(), settings: settings.clone(), versions: versions.clone(), junit };
        let words = std::iter::once(name.clone()).chain(libtest.iter().cloned());
        code |= tests::run(&plan, &Arguments::from_iter(words))?;
    }
    Ok(code)
}

/// The file of another binary's results: `a.xml`, `a-1.xml`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_os_string();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The tests on the host, on the simulated Xen.
fn host(package: &Package, libtest: &[String]) -> Result<u8> {
    let target = setup::host()?;
    let mut command = cargo::command(&package.folder);
    command.args(["test", "--quiet", "--target", &target, "--tests"]);
    if package.targets("lib").next().is_some() {
        command.arg("--lib");
    }
    command.arg("--").args(libtest.iter().map(OsString::from));
    say!("tests on the host, on the simulated Xen");
    let status = command.status().context("starting cargo")?;
    Ok(if status.success() { 0 } else { 1 })
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn results_of_each_binary_have_a_file() {
        assert_eq!(numbered(Path::new("/a/b.xml"), 2), Path::new("/a/b-2.xml"));
        assert_eq!(numbered(Path::new("b"), 1), Path::new("b-1"));
    }
}
