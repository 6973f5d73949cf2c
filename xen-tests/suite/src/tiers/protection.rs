//! What protects a unikernel, seen from inside: the guest `protection`, and what its outside has to say to that.

use anyhow::{Result, ensure};

use super::case::{Case, Stage, Where};
use super::verdict::all_ok;
use cargo_xen::build::Flavour;
use cargo_xen::lab::domain::Outcome;
use cargo_xen::lab::qemu::Cpu;

const CASES: [&str; 9] = [
    "protection.self_check",
    "protection.cr4",
    "protection.change",
    "protection.reserved",
    "protection.canary",
    "protection.stack",
    "protection.random",
    "protection.getrandom",
    "protection.interrupts",
];

/// All of them.
pub fn cases(cases: &mut Vec<Case>) {
    let place = Where { processors: true, ..Where::VERSIONS };
    // The main stack has 64 KiB where there are less than 4 MiB.
    for (memory, stack_kib) in [(3, "64"), (16, "256"), (512, "256")] {
        cases.push(
            Case::new(format!("protection::{memory}"), "protection", |outcome| all_ok(outcome, &CASES))
                .memory(memory)
                .cmdline(stack_kib)
                .on(place),
        );
    }
    cases.push(
        Case::new("protection::plain", "protection", |outcome| all_ok(outcome, &CASES))
            .flavour(Flavour::Plain)
            .cmdline("256")
            .on(Where::PROCESSORS),
    );
    let twice =
        Case::new("protection::canary_differs", "protection", |_| Ok(())).cmdline("256 domu.log=debug").on(place);
    cases.push(twice.steps(canary_differs));
}

/// Two boots of one image have two canaries, and the log says where they came from if that is worth a word.
fn canary_differs(stage: &mut Stage) -> Result<()> {
    let rich = stage.session.cpu() == Cpu::Rich;
    let mut canaries = Vec::new();
    for _ in 0..2 {
        let outcome = stage.run()?;
        let mixed = outcome.text().contains("the stack protector's canary is mixed from the time stamp counter");
        ensure!(mixed != rich, "the log does not say where the canary is from, or says it wrongly");
        canaries.push(canary(&outcome));
    }
    ensure!(canaries[0].is_some(), "the guest did not tell its canary");
    ensure!(canaries[0] != canaries[1], "two boots have the same canary: {canaries:?}");
    Ok(())
}

/// The one of the last boot: the log goes on from one to the next.
fn canary(outcome: &Outcome) -> Option<String> {
    outcome.text().lines().rev().find_map(|line| line.strip_prefix("@canary ").map(str::to_owned))
}
