//! The configuration of a simulated domain, by device.

use core::time::Duration;
use std::boxed::Box;
use std::vec::Vec;

use super::events::Action;
use super::grants::GrantFault;
use super::memory::xl_map;
use super::{BACKED, START_NS};
use crate::XenVersion;
use crate::abi::start_info::StartInfo;
use crate::arch::Cpu;
use crate::sim::backends::console::Backend;
use crate::sim::toolstack::saved::Save;
use crate::sim::{Fault, Random, Store};

/// Changes the start info before the domain sees it.
pub(in crate::sim) type Change = Box<dyn Fn(&mut StartInfo) + Send>;

/// The memory map, and the memory behind it.
pub(in crate::sim) struct MemoryConfig {
    /// Address, size and type of each entry.
    pub(in crate::sim) map: Vec<(u64, u64, u32)>,
    /// Pages that the domain has, if it is not all RAM of the map.
    pub(in crate::sim) reservation: Option<u64>,
    /// Pages that it may have.
    pub(in crate::sim) maximum: Option<u64>,
    /// The host has no large pages.
    pub(in crate::sim) fragmented: bool,
    /// Bytes of RAM that have something behind them, from address 0.
    pub(in crate::sim) backed: u64,
    /// Extents that Xen handles in one call.
    pub(in crate::sim) extents: u64,
    /// The page tables of boot are not looked at.
    #[cfg(fuzzing)]
    pub(in crate::sim) trusted: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            map: xl_map(16),
            reservation: None,
            maximum: None,
            fragmented: false,
            backed: BACKED,
            extents: u64::MAX,
            #[cfg(fuzzing)]
            trusted: false,
        }
    }
}

/// What the domain builder loads beside the image.
pub(in crate::sim) struct LoaderConfig {
    /// The version of the start info.
    pub(in crate::sim) version: u32,
    /// The start info has its magic number.
    pub(in crate::sim) magic: bool,
    pub(in crate::sim) command_line: Option<Vec<u8>>,
    /// Data and command line of each module.
    pub(in crate::sim) modules: Vec<(Vec<u8>, Vec<u8>)>,
    pub(in crate::sim) change: Option<Change>,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self { version: 1, magic: true, command_line: None, modules: Vec::new(), change: None }
    }
}

/// The hypervisor.
pub(in crate::sim) struct XenConfig {
    /// Its version, if there is one.
    pub(in crate::sim) version: Option<XenVersion>,
    pub(in crate::sim) cpuid_base: u32,
    /// Decides about hypercalls.
    pub(in crate::sim) fault: Option<Fault>,
}

impl Default for XenConfig {
    fn default() -> Self {
        Self {
            version: Some(XenVersion { major: 4, minor: 17 }),
            cpuid_base: crate::abi::cpuid::BASE_FIRST,
            fault: None,
        }
    }
}

/// The virtual CPU and its clock.
pub(in crate::sim) struct CpuConfig {
    pub(in crate::sim) random: Random,
    /// It has all features that the crate knows.
    pub(in crate::sim) rich: bool,
    /// Nanoseconds that a look at the time stamp counter takes.
    pub(in crate::sim) look_ns: u64,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self { random: Random::Works, rich: true, look_ns: 1_000 }
    }
}

impl CpuConfig {
    /// The leaves of CPUID.
    pub(in crate::sim) fn cpuid(&self) -> Cpu {
        const RDRAND: u32 = 1 << 30;
        let all = if self.rich { u32::MAX } else { 0 };
        let absent = matches!(self.random, Random::Absent);
        Cpu {
            leaf1_ecx: if absent { !RDRAND } else { u32::MAX },
            leaf1_edx: u32::MAX,
            leaf7_ebx: if absent { 0 } else { all },
            leaf7_ecx: all,
            extended_edx: if self.rich { u32::MAX } else { 1 << 29 | 1 << 20 },
            random_canary: u32::from(!absent),
            ..Cpu::default()
        }
    }
}

/// The console, and the HVM parameters that name it.
pub(in crate::sim) struct ConsoleConfig {
    pub(in crate::sim) backend: Backend,
    /// The frame that the parameter names, if not the one of the rings.
    pub(in crate::sim) frame: Option<u64>,
    /// The port that the parameter names, if not the backend's.
    pub(in crate::sim) port: Option<u32>,
    /// The indices that the rings begin with.
    pub(in crate::sim) index: u32,
    /// How far the consumer's index is ahead of the producer's then.
    pub(in crate::sim) consumer_ahead: u32,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { backend: Backend::Drains, frame: None, port: None, index: 0, consumer_ahead: 0 }
    }
}

/// Event channels.
pub(in crate::sim) struct EventsConfig {
    /// Ports are below this number.
    pub(in crate::sim) port_limit: u32,
    /// Xen has the FIFO interface.
    pub(in crate::sim) fifo: bool,
    /// Ports of other domains that may be bound.
    pub(in crate::sim) offered: Vec<(u16, u32)>,
    /// What happens around the domain, and when.
    pub(in crate::sim) actions: Vec<(u64, Action)>,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self { port_limit: 1024, fifo: true, offered: Vec::new(), actions: Vec::new() }
    }
}

impl EventsConfig {
    /// Adds something that happens so long after the domain's start.
    pub(in crate::sim) fn after(&mut self, delay: Duration, action: Action) {
        self.actions.push((START_NS + delay.as_nanos() as u64, action));
    }
}

/// The grant table.
pub(in crate::sim) struct GrantsConfig {
    /// Pages that it may have.
    pub(in crate::sim) frames: u32,
    /// Gives single operations a status.
    pub(in crate::sim) fault: Option<GrantFault>,
}

impl Default for GrantsConfig {
    fn default() -> Self {
        Self { frames: 64, fault: None }
    }
}

/// Xenstore.
pub(in crate::sim) struct XenstoreConfig {
    pub(in crate::sim) store: Option<Store>,
    /// The indices that the rings begin with.
    pub(in crate::sim) index: u32,
}

impl Default for XenstoreConfig {
    fn default() -> Self {
        Self { store: Some(Store::new()), index: 0 }
    }
}

/// The toolstack.
#[derive(Default)]
pub(in crate::sim) struct ToolstackConfig {
    /// The domain obeys it beside main.
    pub(in crate::sim) obedient: bool,
    /// What becomes of a domain that suspends itself.
    pub(in crate::sim) save: Option<Save>,
}
