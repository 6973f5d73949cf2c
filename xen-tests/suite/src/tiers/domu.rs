//! Runs the tests of guests made by `xl`, machine by machine.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Suite;
use super::case::{Case, Stage};
use super::table;
use cargo_xen::cpio::Archive;
use cargo_xen::lab::dom0::{Lab, Session, Xenstored};
use cargo_xen::lab::domain::{self, Config};
use cargo_xen::lab::qemu::{Cpu, last_lines, telling_lines};
use cargo_xen::paths;
use cargo_xen::run::{base_config, machine_memory};
use cargo_xen::say;
use cargo_xen::setup::{self, VERSIONS};
use cargo_xen::symbols;

/// Every machine that a test may run on: the main version first, where most is to be learnt.
fn machines() -> Vec<Lab> {
    let mut versions: Vec<_> = VERSIONS.iter().collect();
    versions.sort_by_key(|version| *version != setup::MAIN);
    let mut machines = Vec::new();
    for version in versions {
        for (xenstored, cpu) in [(Xenstored::C, Cpu::Poor), (Xenstored::Ocaml, Cpu::Poor), (Xenstored::C, Cpu::Rich)] {
            machines.push(Lab { xenstored, cpu, ..Lab::new(version) });
        }
    }
    machines
}

/// The name of a machine, which stands before those of its tests.
fn name_of(lab: &Lab) -> String {
    let mut name = String::from(lab.version.xen);
    if lab.xenstored == Xenstored::Ocaml {
        name.push_str("-ocaml");
    }
    if lab.cpu == Cpu::Rich {
        name.push_str("-rich");
    }
    name
}

/// Runs what is asked for of them.
pub fn run(suite: &mut Suite) -> Result<()> {
    let cases = table::cases();
    let all = suite.selection.all;
    let mut groups: Vec<(Lab, Vec<&Case>)> = Vec::new();
    for lab in machines() {
        let main = lab.version == setup::MAIN;
        let machine = name_of(&lab);
        let wanted: Vec<&Case> = cases
            .iter()
            .filter(|case| match all {
                true => case.place.includes_with_all(lab.xenstored, lab.cpu),
                false => case.place.includes(main, lab.xenstored, lab.cpu),
            })
            .filter(|case| suite.wants(&format!("{machine}::{}", case.name)))
            .collect();
        if !wanted.is_empty() {
            groups.push((lab, wanted));
        }
    }
    let needed = groups.iter().flat_map(|(_, cases)| cases.iter().map(|case| (case.guest, case.flavour)));
    suite.build(needed);
    for (lab, cases) in groups {
        run_group(suite, lab, &cases)?;
    }
    Ok(())
}

fn run_group(suite: &mut Suite, mut lab: Lab, cases: &[&Case]) -> Result<()> {
    let machine = name_of(&lab);
    let full_name = |case: &Case| format!("{machine}::{}", case.name);
    let mut left: Vec<&Case> = Vec::new();
    let available = available_memory_mb();
    for case in cases {
        let needs = machine_memory(case.config.memory.unwrap_or(0));
        if suite.image(case.guest, case.flavour).is_none() {
            suite.report.skipped(&full_name(case), "its guest could not be built");
        } else if available.is_some_and(|available| available < needs) {
            suite.report.skipped(&full_name(case), &format!("this machine has no {needs} MiB to spare"));
        } else {
            lab.memory_mb = lab.memory_mb.max(needs);
            left.push(case);
        }
    }
    let mut boots = 0;
    while !left.is_empty() {
        boots += 1;
        let logs = suite.logs.join(format!("{machine}-{boots}"));
        let archive = archive(suite, &left, lab.cpu)?;
        let mut session = match Session::boot(&lab, archive, &logs) {
            Ok(session) => session,
            Err(error) => {
                let names: Vec<String> = left.iter().map(|case| full_name(case)).collect();
                suite.all_failed(&names, &error.context("no machine to run it on"));
                return Ok(());
            }
        };
        // After a test that takes dom0 down with it, the next ones get a new one.
        while !left.is_empty() {
            let case = left.remove(0);
            if !run_case(suite, &mut session, case, &full_name(case)) {
                break;
            }
        }
    }
    Ok(())
}

/// Runs one test; says whether dom0 is fit for another.
fn run_case(suite: &mut Suite, session: &mut Session, case: &Case, name: &str) -> bool {
    let start = Instant::now();
    let mark = session.serial().length();
    let mut stage = Stage { session, domain: case.domain(), limit: case.limit, last: None };
    let result = (case.steps)(&mut stage);
    let took = start.elapsed();
    match result {
        Ok(()) => {
            suite.report.passed(name, took);
            true
        }
        Err(error) => {
            let last = stage.last.take();
            let hypervisor = session.serial().since(mark);
            let console = last.map(|outcome| outcome.text()).unwrap_or_default();
            let mut evidence = evidence(session, &case.domain(), &console, &hypervisor);
            if let Some(image) = suite.image(case.guest, case.flavour) {
                evidence.push_str(&symbols::report(&image.elf, &[&console, &hypervisor]));
            }
            suite.report.failed(name, took, &error, &evidence);
            clean_up(session, &case.domain()).is_ok()
        }
    }
}

/// What a failure is looked into with.
fn evidence(session: &mut Session, domain: &str, console: &str, hypervisor: &str) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "its console ends with:\n{}", last_lines(console, 20));
    let _ = writeln!(text, "the hypervisor's log ends with:\n{}", telling_lines(hypervisor, 12));
    let _ = writeln!(text, "all of it is in {} ({domain}.console, serial.log)", session.logs().display());
    text
}

/// Leaves dom0 as a test expects it.
fn clean_up(session: &mut Session, domain: &str) -> Result<()> {
    let limit = Duration::from_secs(30);
    session
        .run("kill -CONT $(cat /run/xenconsoled.pid)", limit)
        .and_then(|_| session.run(&format!("xl destroy {domain}"), limit))
        .map(|_| ())
        .inspect_err(|error| say!("dom0 has gone too: {error:#}"))
}

/// The files of these tests for dom0.
fn archive(suite: &Suite, cases: &[&Case], cpu: Cpu) -> Result<Archive> {
    let mut archive = Archive::default();
    let mut kernels = BTreeSet::new();
    for case in cases {
        let kernel = case.kernel();
        let image = suite.image(case.guest, case.flavour).with_context(|| format!("{kernel} has not been built"))?;
        if kernels.insert(kernel.clone()) {
            archive.file(&format!("guests/{kernel}"), 0o644, &image.read()?);
        }
        let base = base_config(&paths::workspace(), case.guest)?;
        let mut config = Config { base, ..case.config.clone() };
        config.more.extend(cpu.guest_lines());
        domain::add(&mut archive, &case.domain(), &case.kernel(), &config);
        for (name, content) in &case.files {
            archive.file(&format!("guests/{name}"), 0o644, content);
        }
    }
    Ok(archive)
}

/// What this machine could give to an emulated one.
fn available_memory_mb() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}
