//! `cargo xen fuzz`: the targets of `fuzz` under libFuzzer, guided by coverage, with address checks.
//!
//! Nothing has to be installed for it: libFuzzer comes with a crate, as C++ source, and the instrumentation with the nightly
//! compiler. Every run starts from the inputs in `fuzz/corpus`, so that a seed gives the same run again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use cargo_xen::build;
use cargo_xen::cargo;
use cargo_xen::lab::qemu::last_lines;
use cargo_xen::paths;
use cargo_xen::process::Background;
use cargo_xen::say;
use cargo_xen::say::grouped;
use cargo_xen::setup;

use crate::cli::FuzzArgs;

/// Cases of each target, unless told otherwise.
pub const CASES: u64 = 1_000_000;
/// Cases of each among all other tests.
pub const CASES_OF_TESTS: u64 = 20_000;

/// Bytes of an input: enough for a few hundred steps. Longer ones take their time, and find no more.
const LENGTH: u32 = 512;
/// What one input may take, far more than any does: it is a hang.
const LIMIT_OF_INPUT: Duration = Duration::from_secs(20);
/// MiB that a run may take: one that takes more keeps what it should free.
const MEMORY: u32 = 1024;
/// What all inputs of a target may take. A case takes a millisecond on a busy machine.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// The target that the program is built for: named, so that the flags are not for build scripts too.
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Coverage as libFuzzer reads it, and checked addresses.
const FLAGS: &str = "--cfg=fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";

/// The memory of a domain lives as long as it runs, and is then freed whole: what was freed need not be kept apart.
const CHECKS: &str = "detect_leaks=0:quarantine_size_mb=0:thread_local_quarantine_size_kb=0:\
                      detect_stack_use_after_return=0:malloc_context_size=0";

/// The folder of the targets.
pub fn folder() -> PathBuf {
    paths::workspace().join("fuzz")
}

/// The targets, by the folders of their inputs; a test there holds these against the functions.
pub fn targets() -> Result<Vec<String>> {
    let folder = folder().join("corpus");
    let entries = fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    Ok(names)
}

/// Why it cannot be done here; nothing if it can.
pub fn missing() -> Option<&'static str> {
    if !setup::nightly() {
        return Some("no nightly toolchain here (`rustup toolchain install nightly`)");
    }
    (!setup::cxx()).then_some("no C++ compiler here (Debian package g++)")
}

/// The program with all targets.
pub struct Program(PathBuf);

/// Builds it.
pub fn build() -> Result<Program> {
    say!("building the fuzz targets, with libFuzzer");
    let mut command = cargo::command(&folder());
    command.args(["+nightly", "build", "--release", "--locked", "--features", "libfuzzer", "--target", HOST]);
    command.arg("--target-dir").arg(paths::target().join("fuzz")).env("RUSTFLAGS", FLAGS);
    match build::executables(&mut command)?.as_slice() {
        [(_, path)] => Ok(Program(path.clone())),
        several => bail!("cargo built {} programs instead of one", several.len()),
    }
}

impl Program {
    /// The command for a target, up to libFuzzer's own options.
    fn command(&self, target: &str) -> Command {
        let mut command = cargo_xen::process::command(&self.0);
        command.env("DOMU_FUZZ", target).env("ASAN_OPTIONS", CHECKS).env("RUST_BACKTRACE", "1").current_dir(folder());
        command.arg(format!("-timeout={}", LIMIT_OF_INPUT.as_secs())).arg(format!("-rss_limit_mb={MEMORY}"));
        command
    }

    /// Runs a target, and tells in a few words what came of it.
    pub fn run(&self, target: &str, cases: u64, seed: u32, logs: &Path) -> Result<String> {
        let found = logs.join(target);
        fs::create_dir_all(&found).with_context(|| format!("creating {}", found.display()))?;
        let mut command = self.command(target);
        command.arg(format!("-runs={cases}")).arg(format!("-seed={seed}")).arg(format!("-max_len={LENGTH}"));
        command.args(["-print_final_stats=1", "-verbosity=0"]).arg(format!("-artifact_prefix={}/", logs.display()));
        command.arg(&found).arg(Path::new("corpus").join(target));
        let log = logs.join(format!("{target}.log"));
        let start = Instant::now();
        let (status, output) = Background::start(&mut command, LIMIT, &log)?.finish()?;
        let inputs = fs::read_dir(&found).map_or(0, Iterator::count);
        if !status.success() {
            let again = match input_of(&output) {
                Some(input) => format!("again: cargo xen fuzz {target} --input {input}"),
                None => format!("again: cargo xen fuzz {target} --cases {cases} --seed {seed}"),
            };
            bail!("{status}, seed {seed}; {again}\n{}", last_lines(&output, 60));
        }
        let Some(done) = executed(&output) else { bail!("it does not say how many cases it ran: {}", log.display()) };
        if done < cases {
            bail!("it ran {done} cases instead of {cases}: {}", log.display());
        }
        // What was found on the way is for this run only.
        let _ = fs::remove_dir_all(&found);
        let seconds = start.elapsed().as_secs();
        Ok(format!("{} cases clean in {seconds} s, {inputs} inputs of interest, seed {seed}", grouped(done)))
    }
}

/// The file in which libFuzzer has put an input that fails.
fn input_of(output: &str) -> Option<&str> {
    output.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.trim())
}

/// How many cases libFuzzer says that it ran.
fn executed(output: &str) -> Option<u64> {
    output.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

/// A seed of the moment.
pub fn any_seed() -> u32 {
    // Zero would have libFuzzer choose.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.subsec_nanos().max(1))
}

/// `cargo xen fuzz`: gives the exit code.
pub fn run(wanted: &FuzzArgs) -> Result<u8> {
    if let Some(why) = missing() {
        bail!("{why}");
    }
    let targets: Vec<String> = targets()?.into_iter().filter(|name| name.contains(&wanted.filter)).collect();
    if targets.is_empty() {
        bail!("there is no target `{}`; there are {}", wanted.filter, self::targets()?.join(", "));
    }
    let program = build()?;
    if let Some(input) = &wanted.input {
        let [target] = targets.as_slice() else { bail!("an input of which target? {}", targets.join(", ")) };
        let input = fs::canonicalize(input).with_context(|| format!("finding {}", input.display()))?;
        let status = program.command(target).arg(input).status().context("starting the targets")?;
        return Ok(u8::from(!status.success()));
    }
    let logs = paths::new_logs("fuzz")?;
    let mut failed = false;
    for target in &targets {
        match program.run(target, wanted.cases, wanted.seed.unwrap_or_else(any_seed), &logs) {
            Ok(told) => println!("fuzz {target} ... ok: {told}"),
            Err(error) => {
                println!("fuzz {target} ... FAILED: {error:#}");
                failed = true;
            }
        }
    }
    Ok(u8::from(failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let output = "Done\nstat::number_of_executed_units: 20000\nstat::average_exec_per_sec:     20000\n";
        assert_eq!((executed(output), input_of(output)), (Some(20_000), None));
        let output = "SUMMARY: libFuzzer: deadly signal\nartifact_prefix='/a/'; Test unit written to /a/crash-12\n";
        assert_eq!((executed(output), input_of(output)), (None, Some("/a/crash-12")));
    }

    #[test]
    fn there_are_targets() {
        assert!(targets().unwrap().iter().any(|target| target == "console"));
    }
}
