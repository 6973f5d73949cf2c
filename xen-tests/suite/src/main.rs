//! `cargo xen`: builds unikernels and shows that they work on real Xen.
//!
//! On a machine without Xen: QEMU emulates a computer on which Xen runs, with a Linux dom0 from
//! Debian's packages, and `xl` there starts the unikernel as a guest. CONTRIBUTING.md says how this
//! is used; `cli::HELP` is the reference.
//!
//! - `cli`: the command line
//! - `tiers`: the tests
//! - `sizes`, `readme`, `fuzz`: what else is done in a clone
//!
//! The tool itself is the library `cargo_xen`, which users have.

mod cli;
mod fuzz;
mod pattern;
mod readme;
mod sizes;
mod tiers;

use std::process::ExitCode;

use anyhow::Result;
use cargo_xen::{run, say, setup};

use cli::Action;

/// Something failed on the way, and has been said.
const FAILED: u8 = 100;
/// The command line makes no sense.
const USAGE: u8 = 102;

fn main() -> ExitCode {
    let (action, verbose) = match cli::parse(std::env::args_os().skip(1)) {
        Ok(parsed) => parsed,
        Err(error) => {
            say!("{error:#}\n`cargo xen help` tells what there is");
            return ExitCode::from(USAGE);
        }
    };
    if verbose {
        say::set_verbose();
    }
    match perform(action) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn perform(action: Action) -> Result<u8> {
    match action {
        Action::Help => {
            print!("{}", cli::HELP);
            Ok(0)
        }
        Action::Setup => setup::everything().map(|()| 0),
        Action::Build(wanted) => run::build(&wanted).map(|()| 0),
        Action::Run(wanted) => run::run(&wanted),
        Action::Demo => run::demo(),
        Action::Test(selection) => tiers::run(&selection),
        Action::Bench => xen_bench::run().map(|()| 0),
        Action::Sizes => sizes::run().map(|()| 0),
        Action::Fuzz(wanted) => fuzz::run(&wanted),
    }
}
