//! `cargo xen`: builds unikernels and shows that they work on real Xen.
//!
//! On a machine without Xen: QEMU emulates a computer on which Xen runs, with a Linux dom0 from
//! Debian's packages, and `xl` there starts the unikernel as a guest. CONTRIBUTING.md says how this
//! is used; `cargo xen help` is the reference.
//!
//! - `cli`: the command line
//! - `tiers`: the tests
//! - `demo`, `sizes`, `readme`, `fuzz`: the other commands of a clone
//!
//! The tool itself is the library `cargo_xen`, which users have.

mod cli;
mod demo;
mod fuzz;
mod pattern;
mod readme;
mod sizes;
mod tiers;

use std::process::ExitCode;

use anyhow::Result;
use cargo_xen::{cli as common, say};

use cli::{Cli, Command, Tier};

fn main() -> ExitCode {
    let cli: Cli = match common::parse(common::arguments()) {
        Ok(cli) => cli,
        Err(code) => return ExitCode::from(code),
    };
    if cli.verbose {
        say::set_verbose();
    }
    common::exit(perform(cli.command))
}

fn perform(command: Command) -> Result<u8> {
    match command {
        Command::Demo => demo::run(),
        Command::Test(selection) => tiers::run(&selection, None),
        Command::Smoke(selection) => tiers::run(&selection, Some(Tier::Smoke)),
        Command::Domu(selection) => tiers::run(&selection, Some(Tier::Domu)),
        Command::Common(common) => common.perform(),
        Command::Bench => xen_bench::run().map(|()| 0),
        Command::Sizes => sizes::run().map(|()| 0),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
    }
}
