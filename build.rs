//! Puts the linker script where the linker of the final binary finds it, so that `-Tdomu.ld` is all a user writes.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=linker/domu.ld");
    if env::var("CARGO_CFG_TARGET_OS")? == "none" {
        let directory = PathBuf::from(env::var("OUT_DIR")?);
        fs::copy("linker/domu.ld", directory.join("domu.ld"))?;
        println!("cargo::rustc-link-search=native={}", directory.display());
    }
    Ok(())
}
