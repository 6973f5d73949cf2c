//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use lexopt::prelude::*;

use crate::fuzz::{self, Wanted};
use cargo_xen::build::Flavour;
use cargo_xen::lab::dom0::Xenstored;
use cargo_xen::lab::qemu::Cpu;
use cargo_xen::run::{Build, Run};
use cargo_xen::setup::{self, Version};

/// What `cargo xen help` prints.
pub const HELP: &str = "\
cargo xen: build unikernels and run them on real Xen, in an emulated machine

    cargo xen demo                    boot examples/hello under Xen and show what it says
    cargo xen test [FILTER] [--all]   all tests: host, smoke, domU; --all: on every Xen
    cargo xen smoke|domu [FILTER]     the tests of one tier
    cargo xen run NAME|ELF|DIR        a unikernel with its console attached
    cargo xen build NAME              build one; the last line is the path of the ELF
    cargo xen bench                   what hello costs, in instructions
    cargo xen sizes                   the sizes in the README, beside those of a build
    cargo xen fuzz [TARGET]           the fuzz targets under libFuzzer, a million cases each
    cargo xen setup                   fetch what is missing, for all versions of Xen
    cargo xen help                    this text

NAME is an example (examples/NAME.rs) or a test guest (xen-tests/guests/src/bin/NAME.rs); DIR is the
folder of a crate of yours, built there by its own configuration, hardened unless --plain, and started
with its NAME.xl if there is one; ELF is a file; `ping` is two domains. FILTER is part
of a test's name. What `run` reads goes to the guest's console, byte for byte, at a few KiB a second.

options of run
    --xen 4.14|4.17|4.20     the version of Xen (4.17)
    --memory MB              the domain's memory (16)
    --maxmem MB              what its memory map shows, where that is more
    --cmdline TEXT           its command line
    --ramdisk FILE           its module
    --xenstored c|ocaml      which xenstored dom0 runs (c)
    --cpu poor|rich          the processor: an old one, or all that can be emulated (poor)
    --no-xen                 start it under QEMU alone, as something that is not Xen would
    --gdb                    hold it until gdb is attached, as told; no limit unless one is given
    --limit SECONDS          how long it may run (300)
    --plain                  (also of build) built with the toolchain's own core, not hardened
    --float                  (also of build) hardened, for the target with floating point in SSE registers

options of fuzz
    --cases N                how many inputs each target is given (1000000)
    --seed S                 gives the same run again
    --input FILE             this input alone, such as that of a failure

options of all
    -v, --verbose            show the output of Xen and dom0 too

exit codes
    run    why the domain ended, as Xen numbers it: 0 poweroff, 1 reboot, 2 suspend, 3 crash,
           4 watchdog, 5 soft reset (--no-xen: 0, it was stopped or stopped itself)
    test, smoke, domu, demo, fuzz    0: all passed; 1: not
    all    100 something failed on the way, as said; 101 a bug in this tool; 102 wrong usage;
           103 the limit passed before the domain ended; 104 the domain vanished

environment
    DOMU_CACHE     where prepared systems are kept (default: ~/.cache/domu)
    DOMU_MIRROR    the Debian mirror to take them from (default: the one that apt uses here)
    DOMU_KEYRING   the keyring that its signatures are verified with
";

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Print the help.
    Help,
    /// Fetch what is missing.
    Setup,
    /// Show that it works.
    Demo,
    /// Run tests.
    Test(Selection),
    /// Run one unikernel.
    Run(Box<Run>),
    /// Build one.
    Build(Build),
    /// Measure.
    Bench,
    /// Compare the sizes in the README with a build.
    Sizes,
    /// Run fuzz targets.
    Fuzz(Wanted),
}

/// Which tests.
#[derive(Debug, Default, PartialEq)]
pub struct Selection {
    /// Part of the name.
    pub filter: String,
    /// One tier only.
    pub tier: Option<Tier>,
    /// On every version of Xen, and whole.
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

/// Options as they come, before it is clear whose they are.
#[derive(Default)]
struct Given {
    operand: Option<OsString>,
    names: Vec<&'static str>,
    version: Option<&'static Version>,
    memory: Option<u32>,
    maxmem: Option<u32>,
    cmdline: Option<String>,
    ramdisk: Option<PathBuf>,
    xenstored: Option<Xenstored>,
    cpu: Option<Cpu>,
    limit: Option<Duration>,
    cases: Option<u64>,
    seed: Option<u32>,
    input: Option<PathBuf>,
}

impl Given {
    fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    fn flavour(&self) -> Result<Flavour> {
        match (self.has("plain"), self.has("float")) {
            (false, false) => Ok(Flavour::Hardened),
            (true, false) => Ok(Flavour::Plain),
            (false, true) => Ok(Flavour::Float),
            (true, true) => bail!("--plain and --float exclude each other"),
        }
    }
}

/// Parses the arguments; the flag says whether to be verbose.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Action, bool)> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut command = None;
    let mut given = Given::default();
    let mut verbose = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('v') | Long("verbose") => verbose = true,
            Short('h') | Long("help") => return Ok((Action::Help, verbose)),
            Value(value) if command.is_none() => command = Some(value),
            Value(value) if given.operand.is_none() => given.operand = Some(value),
            Long(name) => {
                let name = name.to_owned();
                option(&mut given, &name, &mut parser)?;
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    let Some(command) = command else {
        return Ok((Action::Help, verbose));
    };
    let command = command.to_string_lossy().into_owned();
    Ok((action(&command, given)?, verbose))
}

fn option(given: &mut Given, name: &str, parser: &mut lexopt::Parser) -> Result<()> {
    const NAMES: [&str; 16] = [
        "all",
        "plain",
        "float",
        "no-xen",
        "gdb",
        "xen",
        "memory",
        "maxmem",
        "cmdline",
        "ramdisk",
        "xenstored",
        "cpu",
        "limit",
        "cases",
        "seed",
        "input",
    ];
    let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
        bail!("there is no option --{name}");
    };
    match name {
        "all" | "plain" | "float" | "no-xen" | "gdb" => {}
        "xen" => given.version = Some(setup::version(&parser.value()?.string()?)?),
        "memory" => given.memory = Some(parser.value()?.parse()?),
        "maxmem" => given.maxmem = Some(parser.value()?.parse()?),
        "cmdline" => given.cmdline = Some(parser.value()?.string()?),
        "ramdisk" => given.ramdisk = Some(parser.value()?.into()),
        "xenstored" => {
            given.xenstored = Some(one_of(parser, &[("c", Xenstored::C), ("ocaml", Xenstored::Ocaml)])?);
        }
        "cpu" => given.cpu = Some(one_of(parser, &[("poor", Cpu::Poor), ("rich", Cpu::Rich)])?),
        "cases" => given.cases = Some(parser.value()?.parse()?),
        "seed" => given.seed = Some(parser.value()?.parse()?),
        "input" => given.input = Some(parser.value()?.into()),
        "limit" => given.limit = Some(Duration::from_secs(parser.value()?.parse()?)),
        _ => bail!("there is no option --{name}"),
    }
    given.names.push(name);
    Ok(())
}

fn one_of<T: Copy>(parser: &mut lexopt::Parser, values: &[(&str, T)]) -> Result<T> {
    let given = parser.value()?.string()?;
    let found = values.iter().find(|(name, _)| *name == given);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
        anyhow!("`{given}` is not one of {}", names.join(", "))
    })
}

fn action(command: &str, given: Given) -> Result<Action> {
    let (allowed, operand): (&[&str], bool) = match command {
        "test" | "smoke" | "domu" => (&["all"], true),
        "run" => (
            &[
                "xen",
                "memory",
                "maxmem",
                "cmdline",
                "ramdisk",
                "xenstored",
                "cpu",
                "plain",
                "float",
                "limit",
                "no-xen",
                "gdb",
            ],
            true,
        ),
        "build" => (&["plain", "float"], true),
        "fuzz" => (&["cases", "seed", "input"], true),
        "help" | "setup" | "demo" | "bench" | "sizes" => (&[], false),
        _ => bail!("there is no command `{command}`"),
    };
    if let Some(name) = given.names.iter().find(|name| !allowed.contains(*name)) {
        bail!("`{command}` has no option --{name}");
    }
    if let (false, Some(operand)) = (operand, &given.operand) {
        bail!("`{command}` takes nothing more, but there is {operand:?}");
    }
    Ok(match command {
        "setup" => Action::Setup,
        "demo" => Action::Demo,
        "bench" => Action::Bench,
        "sizes" => Action::Sizes,
        "test" | "smoke" | "domu" => Action::Test(Selection {
            all: given.has("all"),
            filter: given.operand.unwrap_or_default().to_string_lossy().into_owned(),
            tier: match command {
                "smoke" => Some(Tier::Smoke),
                "domu" => Some(Tier::Domu),
                _ => None,
            },
        }),
        "build" => match &given.operand {
            Some(name) => Action::Build(Build { name: name.to_string_lossy().into_owned(), flavour: given.flavour()? }),
            None => bail!("build what? `cargo xen build NAME`"),
        },
        "run" => Action::Run(Box::new(run(given)?)),
        "fuzz" => Action::Fuzz(Wanted {
            filter: given.operand.unwrap_or_default().to_string_lossy().into_owned(),
            cases: given.cases.unwrap_or(fuzz::CASES),
            seed: given.seed,
            input: given.input,
        }),
        _ => Action::Help,
    })
}

fn run(given: Given) -> Result<Run> {
    let (without_xen, gdb) = (given.has("no-xen"), given.has("gdb"));
    let flavour = match given.flavour()? {
        Flavour::Hardened if gdb => Flavour::Debugged,
        flavour => flavour,
    };
    let Some(what) = given.operand else {
        bail!("run what? `cargo xen run NAME|ELF|DIR`");
    };
    if gdb && without_xen {
        bail!("--gdb is for guests on Xen; without it, `qemu-system-x86_64 -kernel ELF -s -S` needs no help");
    }
    // Who looks for a mistake takes the time that it takes.
    let limit = given.limit.unwrap_or(if gdb { Duration::MAX } else { Duration::from_secs(300) });
    Ok(Run {
        what,
        version: given.version.unwrap_or(setup::MAIN),
        memory: given.memory,
        maxmem: given.maxmem,
        cmdline: given.cmdline,
        ramdisk: given.ramdisk,
        xenstored: given.xenstored.unwrap_or(Xenstored::C),
        cpu: given.cpu.unwrap_or(Cpu::Poor),
        flavour,
        without_xen,
        gdb,
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action> {
        parse(line.split_whitespace().map(OsString::from)).map(|(action, _)| action)
    }

    #[test]
    fn without_a_command_it_helps() {
        assert_eq!(parsed("").unwrap(), Action::Help);
        assert_eq!(parsed("help").unwrap(), Action::Help);
        assert_eq!(parsed("run --help").unwrap(), Action::Help);
    }

    #[test]
    fn tests_are_selected() {
        let all = Selection { filter: "console".into(), tier: None, all: true };
        assert_eq!(parsed("test --all console").unwrap(), Action::Test(all));
        let smoke = Selection { tier: Some(Tier::Smoke), ..Selection::default() };
        assert_eq!(parsed("smoke").unwrap(), Action::Test(smoke));
    }

    #[test]
    fn run_takes_its_options_in_any_order() {
        let line = "run --xen 4.20 hello --memory=64 --maxmem 256 --xenstored ocaml --cpu rich --plain";
        let Action::Run(run) = parsed(line).unwrap() else { panic!("not a run") };
        assert_eq!(run.what, "hello");
        assert_eq!(run.version.xen, "4.20");
        assert_eq!((run.memory, run.maxmem), (Some(64), Some(256)));
        assert_eq!((run.xenstored, run.cpu), (Xenstored::Ocaml, Cpu::Rich));
        assert!(run.flavour == Flavour::Plain && !run.without_xen);
    }

    #[test]
    fn a_debugger_takes_its_time() {
        let limit = |line| match parsed(line).unwrap() {
            Action::Run(run) => (run.gdb, run.limit.as_secs()),
            _ => panic!("not a run"),
        };
        assert_eq!(limit("run hello"), (false, 300));
        assert_eq!(limit("run --gdb hello"), (true, u64::MAX));
        assert_eq!(limit("run --gdb hello --limit 20"), (true, 20));
    }

    #[test]
    fn mistakes_are_named() {
        for (line, word) in [
            ("fly", "fly"),
            ("run", "run what"),
            ("run a b", "b"),
            ("run a --xen 3.0", "3.0"),
            ("run a --memory lots", "lots"),
            ("run a --wings", "wings"),
            ("demo now", "now"),
            ("build hello --memory 3", "memory"),
            ("build hello --plain --float", "exclude"),
            ("run a --cpu old", "old"),
            ("run a --gdb --no-xen", "--gdb"),
            ("demo --gdb", "gdb"),
            ("run a --cases 3", "cases"),
            ("fuzz --cases few", "few"),
        ] {
            let error = format!("{:#}", parsed(line).unwrap_err());
            assert!(error.contains(word), "`{line}` gave: {error}");
        }
    }

    #[test]
    fn verbosity_stands_anywhere() {
        let (_, verbose) = parse(["demo", "-v"].map(OsString::from)).unwrap();
        assert!(verbose);
    }
}
