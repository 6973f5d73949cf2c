//! [CONTRIBUTING.md]: https://docs.rs/crate/domu/latest/source/CONTRIBUTING.md
//! [CHANGES.md]: https://docs.rs/crate/domu/latest/source/CHANGES.md
//! [SECURITY.md]: https://docs.rs/crate/domu/latest/source/SECURITY.md
//! [docs/trust.md]: https://docs.rs/crate/domu/latest/source/docs/trust.md
//! [docs/conformance.md]: https://docs.rs/crate/domu/latest/source/docs/conformance.md
//! [`targets/x86_64-domu-none.json`]: https://docs.rs/crate/domu/latest/source/targets/x86_64-domu-none.json
// Files that the README links to, which docs.rs shows among the sources: the first definition of a link counts.
#![doc = ""]
#![doc = include_str!("../README.md")]
#![no_std]
#![warn(missing_debug_implementations)]
// On docs.rs each item shows the feature that it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
#[cfg(not(target_os = "none"))]
extern crate std;

// The simulated Xen alone uses what a unikernel does not, and shows all of it to tests.
#[cfg_attr(target_os = "none", allow(dead_code, unused_imports))]
mod abi;
mod causes;
mod hypercall;
mod local;

mod arch;

pub mod memory;
pub mod shared;

pub mod eventchn;
pub mod executor;
pub mod time;

mod sync;

pub mod gnttab;

pub mod console;
pub mod xenstore;

pub mod xenbus;

#[cfg(any(target_os = "none", test))]
mod crash;
#[cfg(feature = "getrandom")]
mod getrandom_backend;
pub mod lifecycle;
pub mod random;

pub mod embassy;

mod boot;
mod domain;
pub mod options;

#[cfg(not(target_os = "none"))]
pub mod sim;

mod error;

pub use abi::errno::Errno;
pub use abi::xen::DomainId;
pub use domain::{Cost, Domain, MAX_COMMAND_LINE, Module};
pub use error::{Error, Result};
pub use hypercall::XenVersion;

/// Makes an `async fn` the main function of a unikernel.
///
/// The function takes the [`Domain`] and returns nothing or a `Result` whose error can be displayed, such as
/// [`domu::Result`](Result): `Ok` powers the domain off; `Err` is printed, and then the domain ends with the crash
/// reason, as it does after a panic.
///
/// On the host, where tests and documentation are built, the same program runs on the simulated Xen.
///
/// ```
/// # #![no_main]
/// domu::main!(main);
///
/// async fn main(domain: domu::Domain) -> domu::Result {
///     log::info!("hello from domain {}", domain.id());
///     Ok(())
/// }
/// ```
#[doc(alias = "block_on")]
#[macro_export]
macro_rules! main {
    ($main:path) => {
        #[cfg(target_os = "none")]
        #[unsafe(export_name = "__domu_main")]
        extern "Rust" fn __domu_main(domain: $crate::Domain) -> ! {
            $crate::__private::run($main(domain))
        }

        #[cfg(not(target_os = "none"))]
        #[unsafe(export_name = "main")]
        extern "C" fn __domu_host_main(_: i32, _: *const *const u8) -> i32 {
            $crate::sim::run_program(|domain| $crate::__private::run($main(domain)))
        }
    };
}

/// What the macros of this crate call.
#[doc(hidden)]
pub mod __private {
    /// Runs main, with the toolstack obeyed beside it, and ends the domain as it says.
    pub fn run<O: crate::lifecycle::Outcome>(main: impl Future<Output = O>) -> ! {
        if cfg!(feature = "shutdown") {
            crate::lifecycle::obey();
        }
        crate::boot::run(main)
    }
}
