//! The tests without a toolstack: as the first domain of Xen, and without Xen.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::crash::{self, CRASHES, Crash};
use super::{Suite, events, share, xenstore};
use cargo_xen::build::Flavour;
use cargo_xen::lab::domain::Reason;
use cargo_xen::lab::qemu::{Cpu, telling_lines};
use cargo_xen::lab::smoke::{self, Ended};
use cargo_xen::setup::{self, VERSIONS, Version};
use cargo_xen::symbols;

/// How long one may take: a boot is about a second.
const LIMIT: Duration = Duration::from_secs(40);

/// Crashes that are looked at on each version of Xen, on the rich processor and in the plain build: one of each kind of exception,
/// of report and of check. How the processor finds the others does not depend on those.
const ELSEWHERE: [&str; 8] =
    ["divide", "double_fault", "execute_data", "heap_overrun", "overflow", "panic", "smash", "write_code"];

/// The guest of the tests without Xen.
const HELLO: &str = "hello";

struct Test {
    name: String,
    guest: &'static str,
    cmdline: &'static str,
    flavour: Flavour,
    usual: Usual,
    /// How long it may take.
    limit: Duration,
    judge: Judge,
}

/// Where a test runs without `--all`, which runs each everywhere: on every version of Xen and on both processors, on the main
/// version and the poor processor, or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usual {
    All,
    Main,
    None,
}

enum Judge {
    Ended(fn(&Ended) -> Result<()>),
    Crash(&'static Crash),
}

/// All of them.
fn tests() -> Vec<Test> {
    let test = |name: &str, guest, cmdline, usual, judge| Test {
        name: name.into(),
        guest,
        cmdline,
        flavour: Flavour::Hardened,
        usual,
        limit: LIMIT,
        judge: Judge::Ended(judge),
    };
    let mut tests = vec![
        test("hello", "hello", "", Usual::All, says_hello),
        test("ends_ok", "ends", "ok", Usual::Main, poweroff),
        test("ends_err", "ends", "err", Usual::Main, error),
        test("ends_panic", "ends", "panic", Usual::All, panics),
        test("ends_nested", "ends", "nested", Usual::Main, crash),
        test("ends_reboot", "ends", "reboot", Usual::Main, reboot),
        test("events", "events", events::FIFO, Usual::All, events::judge_fifo),
        test("events_two_level", "events", events::TWO_LEVEL, Usual::Main, events::judge_two_level),
        Test {
            limit: Duration::from_secs(300),
            ..test("events_million", "events", events::MILLION, Usual::None, events::judge_fifo)
        },
        test("embassy", "embassy", "", Usual::Main, reads_all),
        test("grants", "grants", "", Usual::All, share::judge_grants),
        test("xenstore_absent", "xenstore_client", "absent", Usual::Main, xenstore::judge_absent),
    ];
    for (flavour, name) in [(Flavour::Hardened, "crash"), (Flavour::Plain, "crash_plain")] {
        let hardened = flavour == Flavour::Hardened;
        tests.extend(CRASHES.iter().filter(|crash| hardened || crash.in_plain_build()).map(|crash| Test {
            name: format!("{name}_{}", crash.how),
            guest: crash::GUEST,
            cmdline: crash.how,
            flavour,
            usual: match (hardened, ELSEWHERE.contains(&crash.how)) {
                (true, true) => Usual::All,
                (true, false) | (false, true) => Usual::Main,
                (false, false) => Usual::None,
            },
            limit: LIMIT,
            judge: Judge::Crash(crash),
        }));
    }
    tests
}

/// Runs what is asked for of them.
pub fn run(suite: &mut Suite) -> Result<()> {
    let tests = tests();
    let mut wanted = Vec::new();
    for version in &VERSIONS {
        let main = version == setup::MAIN;
        for cpu in [Cpu::Poor, Cpu::Rich] {
            for test in &tests {
                let usual = match (main, cpu) {
                    (true, Cpu::Poor) => test.usual != Usual::None,
                    (true, Cpu::Rich) | (false, Cpu::Poor) => test.usual == Usual::All,
                    (false, Cpu::Rich) => false,
                };
                if (usual || suite.selection.all) && suite.wants(&name(version, cpu, test)) {
                    wanted.push((version, cpu, test));
                }
            }
        }
    }
    let flavours = [Flavour::Hardened, Flavour::Plain];
    let without: Vec<Flavour> = flavours.into_iter().filter(|flavour| suite.wants(&name_without(*flavour))).collect();
    suite.build(wanted.iter().map(|(_, _, test)| (test.guest, test.flavour)));
    suite.build(without.iter().map(|flavour| (HELLO, *flavour)));
    for (version, cpu, test) in wanted {
        with_xen(suite, version, cpu, test);
    }
    for flavour in without {
        without_xen(suite, flavour);
    }
    Ok(())
}

fn name(version: &Version, cpu: Cpu, test: &Test) -> String {
    let rich = if cpu == Cpu::Rich { "-rich" } else { "" };
    format!("{}{rich}::smoke::{}", version.xen, test.name)
}

fn name_without(flavour: Flavour) -> String {
    format!("no_xen::hello_{}", flavour.name())
}

/// The names of these tests, without the machine that they run on.
#[cfg(test)]
pub fn names() -> Vec<String> {
    let with = tests().into_iter().map(|test| format!("smoke::{}", test.name));
    with.chain([name_without(Flavour::Hardened), name_without(Flavour::Plain)]).collect()
}

fn with_xen(suite: &mut Suite, version: &'static Version, cpu: Cpu, test: &Test) {
    let name = name(version, cpu, test);
    let logs = suite.logs.join(name.replace("::", "-"));
    let Some(image) = suite.image(test.guest, test.flavour).cloned() else {
        return suite.report.skipped(&name, "its guest could not be built");
    };
    suite.test(&name, || {
        setup::qemu()?;
        let root = setup::root(version)?;
        let ended = smoke::as_first_domain(&root, &image, cpu, test.cmdline, test.limit, &logs)?;
        let judged = match test.judge {
            Judge::Ended(judge) => judge(&ended),
            Judge::Crash(crash) => crash.judge_smoke(&ended, &image),
        };
        judged.with_context(|| {
            format!(
                "the serial line ends with:\n{}\n{}all of it is in {}",
                telling_lines(&ended.serial, 20),
                symbols::report(&image.elf, &[&ended.serial]),
                logs.display()
            )
        })
    });
}

fn without_xen(suite: &mut Suite, flavour: Flavour) {
    let name = name_without(flavour);
    let logs = suite.logs.join(name.replace("::", "-"));
    let Some(image) = suite.image(HELLO, flavour).cloned() else {
        return suite.report.skipped(&name, "its guest could not be built");
    };
    suite.test(&name, || {
        setup::qemu()?;
        let ended = smoke::without_xen(&image, Cpu::Poor, None, "", LIMIT, &logs)?;
        for (port, said) in [("serial port", &ended.serial), ("debug port", &ended.debug_port)] {
            let lines = said.lines().filter(|line| line.contains("not running on Xen")).count();
            ensure!(lines == 1, "the {port} has {lines} lines instead of one that say what is wrong: {said:?}");
        }
        ensure!(!ended.ended, "it made the machine reset instead of stopping");
        Ok(())
    });
}

fn ended(ended: &Ended, expected: Reason) -> Result<()> {
    match ended.reason {
        Some(reason) if reason == expected => Ok(()),
        Some(reason) => bail!("the domain ended with {reason} instead of {expected}"),
        None => bail!("Xen says nothing about an end of the domain (expected: {expected})"),
    }
}

fn says_hello(outcome: &Ended) -> Result<()> {
    let lines = outcome.serial.lines().filter(|line| line.contains("hello from domain 0")).count();
    ensure!(lines == 1, "there are {lines} lines with \"hello from domain 0\" instead of one");
    ended(outcome, Reason::Poweroff)
}

/// The example with embassy's crates: what was sent arrives in order, and then a timeout comes.
fn reads_all(outcome: &Ended) -> Result<()> {
    const LINES: [&str; 4] = ["reading 1,", "reading 2,", "reading 3,", "no reading for five periods"];
    let said: Vec<_> = outcome.serial.lines().filter(|line| line.contains(" embassy: ")).collect();
    let in_order = said.len() == LINES.len() && said.iter().zip(LINES).all(|(said, line)| said.contains(line));
    ensure!(in_order, "it does not say {LINES:?}, but {said:?}");
    ended(outcome, Reason::Poweroff)
}

fn says(outcome: &Ended, text: &str) -> Result<()> {
    ensure!(outcome.serial.contains(text), "the serial line lacks {text:?}");
    ended(outcome, Reason::Crash)
}

fn error(outcome: &Ended) -> Result<()> {
    says(outcome, "the reason is printed")
}

fn panics(outcome: &Ended) -> Result<()> {
    says(outcome, "panicked")
}

fn poweroff(outcome: &Ended) -> Result<()> {
    ended(outcome, Reason::Poweroff)
}

fn crash(outcome: &Ended) -> Result<()> {
    ended(outcome, Reason::Crash)
}

fn reboot(outcome: &Ended) -> Result<()> {
    ended(outcome, Reason::Reboot)
}
