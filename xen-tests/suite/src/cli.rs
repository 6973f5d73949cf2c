//! The commands of the clone, beside those that every project has.

use std::path::PathBuf;

use cargo_xen::cli::{AFTER_HELP, Common};
use clap::{Args, Parser, Subcommand};

use crate::fuzz;

/// Builds unikernels, and shows that they work on real Xen in an emulated machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xen", bin_name = "cargo xen", after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Show the output of Xen and dom0 too.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot examples/hello under Xen and show its console.
    Demo,
    /// Run all tests: host, smoke, domU.
    Test(Selection),
    /// Run the tests as the first domain on Xen, and without Xen.
    Smoke(Selection),
    /// Run the tests in domains that dom0 starts.
    Domu(Selection),
    #[command(flatten)]
    Common(Common),
    /// Measure what hello and single operations cost, in instructions.
    Bench,
    /// Compare the sizes in the README with those of a build.
    Sizes,
    /// Run the fuzz targets under libFuzzer.
    Fuzz(FuzzArgs),
}

/// Which tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Selection {
    /// Part of the test's name.
    #[arg(default_value = "", hide_default_value = true)]
    pub filter: String,
    /// On every version of Xen, and whole.
    #[arg(long)]
    pub all: bool,
}

/// The kinds of tests, cheapest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// On this machine, without Xen.
    Host,
    /// As the first domain on Xen, without a toolstack; and on QEMU without Xen.
    Smoke,
    /// As a guest, made by `xl`.
    Domu,
}

/// Options of `fuzz`.
#[derive(Debug, Args)]
pub struct FuzzArgs {
    /// Part of the names of the targets.
    #[arg(default_value = "", hide_default_value = true)]
    pub filter: String,
    /// How many inputs each target is given.
    #[arg(long, default_value_t = fuzz::CASES)]
    pub cases: u64,
    /// The seed that gives the same run again.
    #[arg(long)]
    pub seed: Option<u32>,
    /// This input alone, such as that of a failure.
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let words = std::iter::once("cargo-xen").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn tests_are_selected() {
        let Command::Test(selection) = parsed("test --all console").unwrap() else { panic!("not the tests") };
        assert_eq!(selection, Selection { filter: "console".into(), all: true });
        let Command::Smoke(selection) = parsed("smoke").unwrap() else { panic!("not the smoke tests") };
        assert_eq!(selection, Selection::default());
    }

    #[test]
    fn options_of_fuzz_have_defaults() {
        let Command::Fuzz(fuzz) = parsed("fuzz wire").unwrap() else { panic!("not the fuzz targets") };
        assert_eq!((&*fuzz.filter, fuzz.cases, fuzz.seed, fuzz.input), ("wire", fuzz::CASES, None, None));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("demo now", "'now'"),
            ("demo --gdb", "--gdb"),
            ("build hello --memory 3", "--memory"),
            ("run a --cases 3", "--cases"),
            ("fuzz --cases few", "few"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(word), "`{line}` gave: {error}");
        }
    }
}
