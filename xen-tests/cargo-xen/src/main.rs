//! `cargo xen`, installed.

use std::process::ExitCode;

fn main() -> ExitCode {
    cargo_xen::cli::main()
}
