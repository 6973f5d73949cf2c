//! The commands that every project has, and their options. The suite of the clone adds its own.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::build::Flavour;
use crate::commands::{RunnerArgs, TestArgs};
use crate::lab::dom0::Xenstored;
use crate::lab::qemu::Cpu;
use crate::new::NewArgs;
use crate::run::Run;
use crate::setup::{self, Version};
use crate::{commands, doctor, new, run, say};

/// Exit code: something failed on the way, and has been said.
pub const FAILED: u8 = 100;
/// Exit code: wrong usage.
pub const USAGE: u8 = 102;

/// What stands below the help.
pub const AFTER_HELP: &str = "\
Exit codes:
  run, runner   why the domain ended, as Xen numbers it: 0 poweroff, 1 reboot, 2 suspend, 3 crash, 4 watchdog, 5 soft reset
  test          0: all passed; 1: not
  all           100 something failed on the way, as said; 101 a bug in this tool; 102 wrong usage;
                103 the time-out passed before the domain ended; 104 the domain vanished

Environment:
  DOMU_CACHE     where prepared systems are kept (default: ~/.cache/domu)
  DOMU_MIRROR    the Debian mirror to take them from (default: the one that apt uses here)
  DOMU_KEYRING   the keyring that its signatures are verified with

Settings of a project are in its Cargo.toml, in [package.metadata.xen]: xen, memory, maxmem, vcpus, cmdline, machine, hardened, net,
disk.";

/// Builds unikernels, and runs and tests them on real Xen in an emulated machine.
#[derive(Debug, Parser)]
#[command(name = "cargo xen", bin_name = "cargo xen", after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Show the output of Xen and dom0 too.
    #[arg(short, long, global = true)]
    verbose: bool,
}

/// The commands of the installed tool.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Common(Common),
    /// Run the project's tests: on the host, then in domains on Xen.
    Test(TestArgs),
}

/// The commands that the clone's tool has too.
#[derive(Debug, Subcommand)]
pub enum Common {
    /// Run a unikernel, with its console on the terminal.
    Run(Box<RunArgs>),
    /// Build a unikernel; the last line is the path of the ELF.
    Build(BuildArgs),
    /// Make a project that builds, runs and tests at once.
    New(NewArgs),
    /// Run an ELF that Cargo built: for `runner` in `.cargo/config.toml`.
    #[command(hide = true)]
    Runner(RunnerArgs),
    /// Fetch what is missing, for all versions of Xen.
    Setup,
    /// Tell what is missing on this machine, and how to get it.
    Doctor,
}

/// How a unikernel is built.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct FlavourArgs {
    /// Build with the toolchain's own core, not hardened.
    #[arg(long, conflicts_with = "float")]
    pub plain: bool,
    /// Build hardened, for the target with floating point in SSE registers.
    #[arg(long)]
    pub float: bool,
}

impl FlavourArgs {
    /// What was asked for.
    pub fn flavour(self) -> Option<Flavour> {
        match (self.plain, self.float) {
            (true, _) => Some(Flavour::Plain),
            (_, true) => Some(Flavour::Float),
            _ => None,
        }
    }
}

/// Options of `build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// A binary or example of the project, or the folder of a crate [default: the current folder].
    pub what: Option<OsString>,
    /// How it is built.
    #[command(flatten)]
    pub flavour: FlavourArgs,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A binary or example of the project, an ELF file, or the folder of a crate [default: the current folder].
    pub what: Option<OsString>,
    /// The version of Xen: 4.14, 4.17 or 4.20 [default: 4.17].
    #[arg(long, value_parser = setup::version)]
    pub xen: Option<&'static Version>,
    /// The domain's memory in MiB [default: 16].
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    pub memory: Option<u32>,
    /// What the memory map shows in MiB, where that is more.
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(1..))]
    pub maxmem: Option<u32>,
    /// The command line.
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// A file that is the domain's module.
    #[arg(long, value_name = "FILE")]
    pub ramdisk: Option<PathBuf>,
    /// The xenstored that dom0 runs [default: c].
    #[arg(long, value_enum)]
    pub xenstored: Option<XenstoredArg>,
    /// The processor: an old one, or all that can be emulated [default: poor].
    #[arg(long, visible_alias = "cpu", value_enum)]
    pub machine: Option<MachineArg>,
    /// How it is built.
    #[command(flatten)]
    pub flavour: FlavourArgs,
    /// Seconds that the domain may run [default: 300; no limit with --gdb].
    #[arg(long, value_name = "SECONDS")]
    pub limit: Option<u64>,
    /// Start it under QEMU alone, as something that is not Xen would.
    #[arg(long, conflicts_with = "gdb")]
    pub no_xen: bool,
    /// Hold the domain until gdb is attached, as told.
    #[arg(long)]
    pub gdb: bool,
}

/// `--xenstored`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XenstoredArg {
    /// The one written in C.
    C,
    /// oxenstored.
    Ocaml,
}

/// `--machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MachineArg {
    /// An old processor.
    Poor,
    /// All that can be emulated.
    Rich,
}

impl MachineArg {
    /// The processor.
    pub const fn cpu(self) -> Cpu {
        match self {
            Self::Poor => Cpu::Poor,
            Self::Rich => Cpu::Rich,
        }
    }
}

impl RunArgs {
    /// What [`run::run`] takes.
    pub fn wanted(self) -> Run {
        let flavour = match self.flavour.flavour() {
            None if self.gdb => Some(Flavour::Debugged),
            flavour => flavour,
        };
        // Who looks for a mistake takes the time that it takes.
        let no_limit = if self.gdb { Duration::MAX } else { Duration::from_secs(300) };
        Run {
            what: self.what.unwrap_or_else(|| ".".into()),
            version: self.xen,
            memory: self.memory,
            maxmem: self.maxmem,
            cmdline: self.cmdline,
            ramdisk: self.ramdisk,
            xenstored: match self.xenstored {
                None | Some(XenstoredArg::C) => Xenstored::C,
                Some(XenstoredArg::Ocaml) => Xenstored::Ocaml,
            },
            cpu: self.machine.map(MachineArg::cpu),
            flavour,
            without_xen: self.no_xen,
            gdb: self.gdb,
            limit: self.limit.map_or(no_limit, Duration::from_secs),
        }
    }
}

/// The arguments of a program, without the word `xen` that Cargo puts in front.
pub fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_some_and(|word| word == "xen") {
        arguments.remove(1);
    }
    arguments
}

/// Parses arguments. A mistake is told in one sentence; the error is the exit code.
///
/// # Errors
///
/// [`USAGE`]; zero if help was asked for.
pub fn parse<T: Parser>(arguments: Vec<OsString>) -> Result<T, u8> {
    T::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has gone needs no help.
            let _ = std::io::stdout().write_all(error.to_string().as_bytes());
            0
        }
        _ => {
            say!("error: {} (see `cargo xen help`)", sentence(&error.to_string()));
            USAGE
        }
    })
}

/// The first paragraph of an error of the parser, on one line: usage and tips follow it.
pub fn sentence(error: &str) -> String {
    let paragraph = error.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let text = words.join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

/// The exit code of a result, which is said if it is an error.
pub fn exit(result: Result<u8>) -> ExitCode {
    ExitCode::from(result.unwrap_or_else(|error| {
        say!("error: {error:#}");
        FAILED
    }))
}

/// Exit code: a bug in this tool.
const BUG: i32 = 101;

/// Lets a panic end the process with its exit code where the profile aborts, which would leave a signal instead.
fn exit_by_code_on_panic() {
    if cfg!(panic = "abort") {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            report(info);
            std::process::exit(BUG);
        }));
    }
}

/// The installed tool.
pub fn main() -> ExitCode {
    exit_by_code_on_panic();
    let cli: Cli = match parse(arguments()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    if cli.verbose {
        say::set_verbose();
    }
    exit(match cli.command {
        Command::Common(common) => common.perform(),
        Command::Test(arguments) => commands::test(arguments),
    })
}

impl Common {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Those of the command.
    pub fn perform(self) -> Result<u8> {
        match self {
            Self::Run(arguments) => run::run(&arguments.wanted()),
            Self::Build(arguments) => run::build(arguments.what.as_deref(), arguments.flavour.flavour()).map(|()| 0),
            Self::New(arguments) => new::new(&arguments).map(|()| 0),
            Self::Runner(arguments) => commands::runner(&arguments).context("cargo-xen runner"),
            Self::Setup => setup::everything().map(|()| 0),
            Self::Doctor => doctor::run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let words = std::iter::once("cargo-xen").chain(line.split_whitespace()).map(OsString::from);
        Cli::try_parse_from(words).map_err(|error| sentence(&error.to_string()))
    }

    fn run_of(line: &str) -> Run {
        match parsed(line).unwrap().command {
            Command::Common(Common::Run(arguments)) => arguments.wanted(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_of_run_stand_anywhere() {
        let run = run_of("run --xen 4.20 hello --memory=64 -v --maxmem 256 --xenstored ocaml --cpu rich --plain");
        assert_eq!((run.what.to_str(), run.version.map(|version| version.xen)), (Some("hello"), Some("4.20")));
        assert_eq!((run.memory, run.maxmem), (Some(64), Some(256)));
        assert_eq!((run.xenstored, run.cpu, run.flavour), (Xenstored::Ocaml, Some(Cpu::Rich), Some(Flavour::Plain)));
    }

    #[test]
    fn debugger_has_no_limit() {
        let limit = |line| (run_of(line).gdb, run_of(line).limit.as_secs());
        assert_eq!(limit("run hello"), (false, 300));
        assert_eq!(limit("run --gdb hello"), (true, u64::MAX));
        assert_eq!(limit("run --gdb hello --limit 20"), (true, 20));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("fly", "fly"),
            ("run a b", "'b'"),
            ("run a --xen 3.0", "no Xen 3.0 here; there are 4.14, 4.17, 4.20"),
            ("run a --memory lots", "lots"),
            ("run a --memory 0", "0 is not in"),
            ("run a --wings", "--wings"),
            ("run a --plain --float", "--float"),
            ("run a --machine old", "poor, rich"),
            ("run a --gdb --no-xen", "--gdb"),
            ("test --xen 4.17,5", "no Xen 5 here"),
            ("new", "required arguments were not provided: <NAME>"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(word) && !error.contains('\n'), "`{line}` gave: {error}");
        }
    }

    #[test]
    fn runner_passes_arguments_on() {
        let Command::Common(Common::Runner(runner)) = parsed("runner a.elf --list --format terse").unwrap().command
        else {
            panic!("not the runner");
        };
        assert_eq!(runner.arguments, ["--list", "--format", "terse"]);
    }
}
