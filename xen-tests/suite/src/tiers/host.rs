//! The tests that need no emulated machine: cargo's own, lints, format, documentation, Miri.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::Suite;
use super::float::FLOAT_TARGET;
use crate::fuzz;
use cargo_xen::build::{BUILD_STD, FLOAT_OPTION};
use cargo_xen::cargo;
use cargo_xen::cargo::TARGET;
use cargo_xen::lab::qemu::last_lines;
use cargo_xen::paths;
use cargo_xen::process::{self, Background};
use cargo_xen::say;
use cargo_xen::setup;

/// The library with all that it can have.
pub const FEATURES: [&str; 3] = ["--package", "domu", "--all-features"];

/// All packages but the guests, which are unikernels.
const HOST_PACKAGES: [&str; 3] = ["--workspace", "--exclude", "domu-guests"];

/// How long one of cargo's runs may take, building included.
const LIMIT: Duration = Duration::from_secs(1800);
/// Miri interprets, and beside it the emulated machines want the processors: with `--all` it runs for long.
const MIRI_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Runs the tests that are asked for.
pub fn tests(suite: &mut Suite) {
    cargo_test(suite, "host::cargo_test", &[HOST_PACKAGES.as_slice(), &["--no-fail-fast"]].concat());
    // With features there are more tests; the others hold as well, which need not be shown each time.
    let few =
        ["--lib", "--test", "embassy", "--test", "console", "--test", "net", "--test", "stacks", "--test", "block"];
    let few = if suite.selection.all { &[] } else { few.as_slice() };
    let arguments = [FEATURES.as_slice(), &["--no-fail-fast"], few].concat();
    cargo_test(suite, "host::cargo_test_of_features", &arguments);
    if suite.selection.all {
        // Those that are ignored for the time that they take. Unoptimised they would take the longer.
        let long = [
            "--package",
            "domu",
            "--features",
            "block,net",
            "--release",
            "--lib",
            "--tests",
            "--no-fail-fast",
            "--",
            "--ignored",
        ];
        cargo_test(suite, "host::cargo_test_of_what_takes_long", &long);
    }
}

/// Looks at the sources: format, lints, documentation.
pub fn sources(suite: &mut Suite) {
    checked(suite, "host::format", &["fmt", "--all", "--check"], &[]);
    let clippy = [["clippy"].as_slice(), &HOST_PACKAGES, &["--all-targets", "--", "-Dwarnings"]].concat();
    checked(suite, "host::clippy", &clippy, &[]);
    let arguments = [
        ["clippy", "--release", "--target", TARGET].as_slice(),
        &["--package", "domu", "--lib", "--examples", "--package", "domu-guests", "--bins"],
        &["--", "-Dwarnings"],
    ];
    checked(suite, "host::clippy_of_unikernels", &arguments.concat(), &[]);
    let arguments = [["clippy", "--all-targets"].as_slice(), &FEATURES, &["--", "-Dwarnings"]];
    checked(suite, "host::clippy_of_features", &arguments.concat(), &[]);
    let arguments = [
        ["clippy", "--release", "--target", TARGET, "--lib", "--examples"].as_slice(),
        &FEATURES,
        &["--", "-Dwarnings"],
    ];
    checked(suite, "host::clippy_of_features_in_unikernels", &arguments.concat(), &[]);
    clippy_of_float(suite);
    let denied = [("RUSTDOCFLAGS", "-Dwarnings")];
    checked(suite, "host::documentation", &[["doc", "--no-deps"].as_slice(), &HOST_PACKAGES].concat(), &denied);
    checked(suite, "host::documentation_of_features", &[["doc", "--no-deps"].as_slice(), &FEATURES].concat(), &denied);
}

/// What is only compiled for the target with floating point. Its `core` is built along.
fn clippy_of_float(suite: &mut Suite) {
    let directory = paths::target().join("float");
    let arguments = [
        ["clippy", "--release", "--target", FLOAT_TARGET, FLOAT_OPTION, BUILD_STD].as_slice(),
        &["--target-dir", &directory.to_string_lossy(), "--package", "domu-guests", "--bin", "float"],
        &["--", "-Dwarnings"],
    ];
    checked(suite, "host::clippy_of_float", &arguments.concat(), &[("RUSTC_BOOTSTRAP", "1")]);
}

/// A run of cargo that has only to succeed.
pub fn checked(suite: &mut Suite, name: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    checked_in(suite, &paths::workspace(), name, arguments, environment);
}

/// As [`checked`], in a folder.
fn checked_in(suite: &mut Suite, folder: &Path, name: &str, arguments: &[&str], environment: &[(&str, &str)]) {
    let log = suite.logs.join(format!("{}.log", name.replace("::", "-")));
    suite.test(name, || {
        if arguments.contains(&"--target") {
            setup::rust(arguments.contains(&BUILD_STD))?;
        }
        say!("cargo {}", arguments.join(" "));
        let mut command = cargo::command(folder);
        command.args(arguments).envs(environment.iter().copied());
        let (status, output) = Background::start(&mut command, LIMIT, &log)?.finish()?;
        if !status.success() {
            bail!("cargo {} failed:\n{}", arguments.join(" "), last_lines(&output, 40));
        }
        Ok(())
    });
}

fn cargo_test(suite: &mut Suite, name: &str, arguments: &[&str]) {
    if suite.wants(name) {
        say!("cargo test {}", arguments.join(" "));
        let mut command = cargo::command(&paths::workspace());
        command.arg("test").args(arguments);
        counted(suite, name, &mut command, LIMIT);
    }
}

/// The fuzz targets: each with its inputs and a thousand that are made up; with `--all` also under libFuzzer, with as many
/// as `cargo xen fuzz` gives them. Their crate is a workspace of its own, with its own lints.
pub fn fuzz(suite: &mut Suite) {
    let folder = fuzz::folder();
    checked_in(suite, &folder, "host::fuzz_format", &["fmt", "--check"], &[]);
    let arguments = ["clippy", "--all-targets", "--locked", "--", "-Dwarnings"];
    checked_in(suite, &folder, "host::fuzz_clippy", &arguments, &[]);
    let name = "host::fuzz";
    if suite.wants(name) {
        say!("cargo test, in fuzz");
        let mut command = cargo::command(&folder);
        command.args(["test", "--locked", "--no-fail-fast"]);
        counted(suite, name, &mut command, LIMIT);
    }
    if suite.selection.all {
        under_libfuzzer(suite);
    }
}

fn under_libfuzzer(suite: &mut Suite) {
    let targets =
        fuzz::targets().unwrap_or_default().into_iter().map(|target| (format!("host::fuzz::{target}"), target));
    let wanted: Vec<(String, String)> = targets.filter(|(name, _)| suite.wants(name)).collect();
    let names: Vec<String> = wanted.iter().map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return;
    }
    if let Some(why) = fuzz::missing() {
        return names.iter().for_each(|name| suite.report.skipped(name, why));
    }
    match fuzz::build() {
        Ok(program) => {
            let logs = suite.logs.clone();
            for (name, target) in wanted {
                suite.test(&name, || {
                    program.run(&target, fuzz::CASES_OF_TESTS, fuzz::any_seed(), &logs).map(|told| say!("{told}"))
                });
            }
        }
        Err(error) => suite.all_failed(&names, &error),
    }
}

/// Runs the crate's tests under Miri, the interpreter that finds undefined behaviour: the library's own and those of
/// accesses in different sizes, which only Miri can fail; with `--all` those of whole modules, of features, and with several
/// schedules what depends on the order of two threads' accesses. Those take an hour on one processor.
pub fn miri(suite: &mut Suite) {
    let (few, many) = (["--lib", "--test", "mixed_sizes", "--no-fail-fast"], ["--lib", "--tests", "--no-fail-fast"]);
    let of_features = ["--all-features", "--test", "embassy", "--test", "console", "--no-fail-fast"];
    let of_schedules = ["--test", "ring_races", "--", "our_ends_on_two_threads"];
    let mut runs = vec![("host::miri", if suite.selection.all { many.as_slice() } else { few.as_slice() }, "")];
    if suite.selection.all {
        // An executor of embassy's is never freed.
        runs.push(("host::miri_of_features", &of_features, "-Zmiri-ignore-leaks"));
        runs.push(("host::miri_of_schedules", &of_schedules, "-Zmiri-many-seeds=0..16"));
    }
    runs.retain(|(name, ..)| suite.wants(name));
    let installed = runs.is_empty() || setup::miri();
    for (name, arguments, flags) in runs {
        if !installed {
            let how = "rustup toolchain install nightly --component miri,rust-src";
            suite.report.skipped(name, &format!("no nightly toolchain with Miri here (`{how}`)"));
            continue;
        }
        say!("cargo +nightly miri test {}, while other tests run", arguments.join(" "));
        let mut command = cargo::command(&paths::workspace());
        // Its builds are of no use to others, nor others' to it.
        command
            .args(["+nightly", "miri", "test", "--package", "domu", "--target-dir"])
            .arg(paths::target().join("miri"));
        counted(suite, name, command.args(arguments).env("MIRIFLAGS", flags), MIRI_LIMIT);
    }
}

/// Runs test programs, whose tests are counted as well as the run itself.
fn counted(suite: &mut Suite, name: &str, command: &mut Command, limit: Duration) {
    let log = suite.logs.join(format!("{}.log", name.replace("::", "-")));
    let start = Instant::now();
    let (status, output) = match Background::start(command, limit, &log).and_then(Background::finish) {
        Ok(result) => result,
        Err(error) => return suite.report.failed(name, start.elapsed(), &error, ""),
    };
    let Counts { passed, failed, ignored } = counts(&output);
    suite.report.add(passed, failed, ignored);
    println!("     {name}: {passed} passed, {failed} failed, {ignored} ignored");
    if status.success() {
        suite.report.passed(name, start.elapsed());
    } else {
        let command = process::shown(command);
        let error = anyhow!("`{command}` failed ({status}); its output is in {}", log.display());
        suite.report.failed(name, start.elapsed(), &error, &last_lines(&output, 60));
    }
}

#[derive(Debug, Default, PartialEq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Adds up the lines `test result: ok. 5 passed; 0 failed; 1 ignored; ...`.
fn counts(output: &str) -> Counts {
    let mut counts = Counts::default();
    for line in output.lines() {
        let Some((_, result)) = line.split_once("test result: ") else { continue };
        let Some((_, numbers)) = result.split_once(". ") else { continue };
        for part in numbers.split(';') {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => counts.passed += number,
                Some("failed") => counts.failed += number,
                Some("ignored") => counts.ignored += number,
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let output = "\
running 5 tests
test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s

test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s
";
        assert_eq!(counts(output), Counts { passed: 7, failed: 3, ignored: 1 });
        assert_eq!(counts("error: could not compile"), Counts::default());
    }
}
