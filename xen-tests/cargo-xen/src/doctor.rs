//! `cargo xen doctor`: what is missing on this machine, and how to get it.

use std::io::Write;

use anyhow::{Context, Result};

use crate::{paths, process, setup};

/// Free space that a prepared system and a build take, in MiB.
const SPACE: u64 = 2048;

/// A thing that is needed: its name, whether it is there, and how to get it.
struct Need {
    name: String,
    is_met: bool,
    remedy: String,
}

/// Prints a line for each need; the exit code is 1 if one is not met.
///
/// # Errors
///
/// Standard output is closed.
pub fn run() -> Result<u8> {
    let needs = needs();
    let mut out = std::io::stdout().lock();
    for need in &needs {
        let line = match need.is_met {
            true => format!("ok       {}", need.name),
            false => format!("missing  {}: {}", need.name, need.remedy),
        };
        writeln!(out, "{line}").context("writing to standard output")?;
    }
    Ok(u8::from(needs.iter().any(|need| !need.is_met)))
}

fn needs() -> Vec<Need> {
    let program = |program: &str, remedy: &str| Need {
        name: program.to_owned(),
        is_met: process::exists(program),
        remedy: remedy.to_owned(),
    };
    let mut needs = vec![
        program("rustc", "install Rust from https://rustup.rs"),
        program("cargo", "install Rust from https://rustup.rs"),
        program("rustup", "install Rust from https://rustup.rs"),
        program("qemu-system-x86_64", "run `sudo apt-get install qemu-system-x86`"),
        program("apt-get", "prepared systems are made of Debian's packages: use Debian, Ubuntu or a container of one"),
    ];
    for (name, is_met, remedy) in setup::rust_parts() {
        needs.push(Need { name: name.into(), is_met, remedy: format!("run `{remedy}`, or let `cargo xen` do it") });
    }
    for version in &setup::VERSIONS {
        let is_met = setup::is_prepared(version);
        let remedy = "run `cargo xen setup`, or let the first use fetch it".to_owned();
        needs.push(Need { name: format!("Xen {} with a dom0", version.xen), is_met, remedy });
    }
    if let Ok(cache) = paths::cache() {
        let free = free_mib(&cache);
        let name = format!("{SPACE} MiB of space for {}", cache.display());
        let remedy = format!("{} MiB are free: make room, or set DOMU_CACHE", free.unwrap_or(0));
        needs.push(Need { name, is_met: free.is_some_and(|free| free >= SPACE), remedy });
    }
    needs
}

/// Free space where a folder is, or will be.
fn free_mib(folder: &std::path::Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let path = std::ffi::CString::new(there.as_os_str().as_encoded_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in a NUL, and statvfs fills in the structure, which has room for it.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded, so the structure is filled in.
    let stat = unsafe { stat.assume_init() };
    Some((stat.f_bavail * stat.f_frsize) >> 20)
}
