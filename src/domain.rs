//! The domain that the program is: what boot found out, as the application sees it.

use core::fmt;

use crate::abi::xen::DomainId;
use crate::arch;
use crate::console::Console;
use crate::console::log::LOG;
use crate::hypercall::XEN;
use crate::hypercall::{self, XenVersion};
use crate::local::Instance;
use crate::local::domain_local;
use crate::memory::TABLES;
use crate::options::Words;
use crate::xenstore::Xenstore;

domain_local! {
    /// What the loader passed to the domain.
    pub(crate) static GIVEN: Given;
}

/// Bytes of the command line, and of each module's, that are taken. A longer one is cut, with a warning in the log.
pub const MAX_COMMAND_LINE: usize = 8191;

/// A file that the toolstack loaded beside the image: `xl` passes `ramdisk` as the first.
#[doc(alias("hvm_modlist_entry", "ramdisk", "initrd"))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Module {
    pub(crate) data: &'static [u8],
    pub(crate) command_line: &'static [u8],
}

impl Module {
    /// The content. It stays where the toolstack put it, and is never reused.
    ///
    /// Its length is what the toolstack says: that of Xen 4.14 rounds it up to whole pages, and fills with zeroes.
    #[must_use]
    pub const fn data(&self) -> &'static [u8] {
        self.data
    }

    /// The module's own command line; `xl` gives it none.
    #[must_use]
    pub const fn command_line(&self) -> &'static [u8] {
        self.command_line
    }
}

/// What a domain has cost so far, as [`Domain::cost`] tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Cost {
    /// Ticks of the time stamp counter since the entry point. Time in which Xen ran others counts too.
    pub tsc_ticks: u64,
    /// Hypercalls.
    pub hypercalls: u64,
    /// What the page tables take, in bytes.
    pub page_table_bytes: u64,
}

/// What the loader passed.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) command_line: &'static [u8],
    pub(crate) modules: heapless::Vec<Module, MAX_MODULES>,
}

/// Modules that are kept; `xl` passes one, its `ramdisk`.
pub(crate) const MAX_MODULES: usize = 16;

/// This domain: what main is given, and how everything that belongs to the domain is reached.
#[derive(Clone, Copy)]
pub struct Domain(pub(crate) Instance);

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain").field("id", &self.id()).field("xen", &self.xen_version()).finish_non_exhaustive()
    }
}

impl Domain {
    /// The domain's number. It changes when the domain is restored or migrated.
    ///
    /// It is never [`DomainId::SELF`]: where CPUID does not have the number, boot learns it from an event channel.
    #[must_use]
    pub fn id(&self) -> DomainId {
        hypercall::domain(self.0)
    }

    /// The version of Xen below.
    #[must_use]
    pub fn xen_version(&self) -> XenVersion {
        XEN.of(self.0).lock().version
    }

    /// The command line, byte for byte as the toolstack gave it, up to [`MAX_COMMAND_LINE`] bytes.
    ///
    /// This crate's options are still in it: see [`options`](crate::options).
    #[must_use]
    pub fn command_line(&self) -> &'static [u8] {
        GIVEN.of(self.0).command_line
    }

    /// The words of the command line, by the rules of [`options`](crate::options).
    #[must_use]
    pub fn words(&self) -> Words<'static> {
        Words::new(GIVEN.of(self.0).command_line)
    }

    /// The modules that the toolstack loaded.
    #[must_use]
    pub fn modules(&self) -> &'static [Module] {
        &GIVEN.of(self.0).modules
    }

    /// The console.
    #[must_use]
    pub const fn console(&self) -> Console {
        Console::new(self.0)
    }

    /// Xenstore. In a domain that has none, each operation on it is an error.
    #[must_use]
    pub const fn xenstore(&self) -> Xenstore {
        Xenstore::new(self.0)
    }

    /// What the domain has cost since its entry point: called first in main, it tells the cost of booting.
    #[must_use]
    pub fn cost(&self) -> Cost {
        Cost {
            tsc_ticks: arch::read_tsc().wrapping_sub(arch::cpu().entry_tsc),
            hypercalls: hypercall::count(),
            page_table_bytes: TABLES.of(self.0).lock().bytes(),
        }
    }

    /// How many log lines the console has failed to take, ever.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u64 {
        LOG.of(self.0).dropped()
    }
}
