//! Tests of a unikernel, each in a domain of its own: on real Xen, by `cargo xen test`, and on the simulated Xen, by
//! `cargo xen test --host`.
//!
//! A test file, with `harness = false` in `Cargo.toml`:
//!
//! ```
//! #![cfg_attr(target_os = "none", no_std, no_main)]
//!
//! use domu_test::Domain;
//!
//! domu_test::harness!();
//!
//! #[domu_test::test]
//! async fn domain_has_an_id(domain: Domain) {
//!     assert_ne!(domain.id().0, 0);
//! }
//!
//! #[domu_test::test]
//! #[should_panic(expected = "no such disk")]
//! async fn missing_disk_is_reported(_: Domain) {
//!     panic!("no such disk");
//! }
//! ```
//!
//! # Protocol
//!
//! The binary lists its tests in the section `.domu_tests`: a line of UTF-8 for each, with the fields path, time-out in seconds,
//! reason to ignore it and expected text of a panic, separated by tabs. The last two are `-` if absent, and else `+` and the text,
//! escaped as in Rust.
//!
//! The command line selects one by `domu.test=NAME`, the path without the name of the crate, and has a random word in
//! `domu.test-nonce=WORD`. The domain prints `domu-test WORD started` before the test, and `domu-test WORD passed` or
//! `domu-test WORD failed: REASON` after it. So neither an early power-off nor a text that the test prints can pass for a success.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(not(target_os = "none"))]
extern crate std;

mod guest;
#[cfg(not(target_os = "none"))]
mod host;
mod registry;

pub use domu::Domain;
pub use domu_test_macros::test;

pub use registry::Outcome;

/// Makes the binary run its tests: in a unikernel the one that the command line names, on the host all that the arguments select.
#[macro_export]
macro_rules! harness {
    () => {
        #[cfg(target_os = "none")]
        $crate::__private::domu::main!($crate::__private::main);

        #[cfg(not(target_os = "none"))]
        fn main() -> ::std::process::ExitCode {
            $crate::__private::main()
        }
    };
}

/// What the macros of this crate use.
#[doc(hidden)]
pub mod __private {
    #[cfg(target_os = "none")]
    pub use crate::guest::main;
    #[cfg(not(target_os = "none"))]
    pub use crate::host::main;
    pub use crate::registry::{TESTS, Test, run};
    pub use {domu, linkme};
}
