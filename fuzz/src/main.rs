//! The targets under libFuzzer: the variable `DOMU_FUZZ` says which one. `cargo xen fuzz` builds and runs this.

#![no_main]

use std::sync::LazyLock;

use domu_fuzz::{Target, find, run};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("DOMU_FUZZ").unwrap_or_default();
    find(&name).unwrap_or_else(|| panic!("DOMU_FUZZ={name} is no target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(*TARGET, bytes));
