//! [CONTRIBUTING.md]: https://docs.rs/crate/domu/latest/source/CONTRIBUTING.md
//! [CHANGES.md]: https://docs.rs/crate/domu/latest/source/CHANGES.md
//! [SECURITY.md]: https://docs.rs/crate/domu/latest/source/SECURITY.md
//! [docs/durability.md]: https://docs.rs/crate/domu/latest/source/docs/durability.md
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

#[cfg(feature = "net")]
pub mod net;

#[cfg(feature = "block")]
pub mod block;

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
///
/// # Allocator
///
/// The macro declares the crate's heap, which the feature `allocator` brings, as the program's `#[global_allocator]`. A program with an
/// allocator of its own names the function that takes RAM for it, an `unsafe fn(start: *mut u8, size: usize)`:
///
/// ```ignore
/// // SAFETY: `claim` adds the memory to the allocator, and may be called for any memory that nothing else uses.
/// domu::main!(main, claim_memory = unsafe claim);
/// ```
///
/// Boot calls it for each piece of RAM, before anything is allocated; the memory is page-aligned and stays the allocator's.
/// Statistics of the heap, hardening and exhaustion are the program's then. With the default features off, `talc` is not compiled.
#[doc(alias = "block_on")]
#[macro_export]
macro_rules! main {
    ($main:path) => {
        $crate::__heap!();
        $crate::__main!($main);
    };
    ($main:path, claim_memory = unsafe $claim:path) => {
        /// # Safety
        ///
        /// Nothing else uses the memory, then or later.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        unsafe extern "Rust" fn __domu_claim_memory(start: *mut u8, size: usize) {
            // SAFETY: boot calls this once for each piece of RAM that nothing uses.
            unsafe { $claim(start, size) }
        }
        $crate::__main!($main);
    };
    ($main:path, claim_memory = $claim:path) => {
        ::core::compile_error!("write `claim_memory = unsafe path`: boot calls an unsafe function");
    };
}

/// Makes this crate's heap the allocator of the program.
#[cfg(feature = "allocator")]
#[doc(hidden)]
#[macro_export]
macro_rules! __heap {
    () => {
        #[cfg(target_os = "none")]
        #[global_allocator]
        static __DOMU_HEAP: $crate::__private::Allocator = $crate::__private::Allocator;

        /// # Safety
        ///
        /// Nothing else uses the memory, then or later.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        unsafe extern "Rust" fn __domu_claim_memory(start: *mut u8, size: usize) {
            // SAFETY: boot calls this once for each piece of RAM that nothing uses.
            unsafe { $crate::__private::claim_memory(start, size) }
        }
    };
}

/// Without the feature the program has to bring an allocator.
#[cfg(not(feature = "allocator"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __heap {
    () => {
        #[cfg(target_os = "none")]
        ::core::compile_error!(
            "domu has no heap without its feature `allocator`: enable it, or name your allocator's function with \
             `domu::main!(main, claim_memory = unsafe path)`"
        );
    };
}

/// The entry of the program.
#[doc(hidden)]
#[macro_export]
macro_rules! __main {
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
    #[cfg(all(target_os = "none", feature = "allocator"))]
    pub use crate::memory::heap::global::{Allocator, claim as claim_memory};

    /// Runs main, with the toolstack obeyed beside it, and ends the domain as it says.
    pub fn run<O: crate::lifecycle::Outcome>(main: impl Future<Output = O>) -> ! {
        if cfg!(feature = "shutdown") {
            crate::lifecycle::obey();
        }
        crate::boot::run(main)
    }
}
