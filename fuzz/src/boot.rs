//! What the toolstack passes: start info, memory map, command line, modules, the reservation, and what CPU and Xen there are.

use std::cell::RefCell;
use std::rc::Rc;

use domu::lifecycle::Reason;
use domu::sim::abi::start_info::Sif;
use domu::sim::{Backend, End, Guest, Random};
use domu::{MAX_COMMAND_LINE, XenVersion};

use crate::guest;
use crate::input::Input;

/// RAM that has something behind it on the simulated machine: what boot reads must lie there.
const RAM: u64 = 6 << 20;

/// An address of a piece: none, in RAM or around its end, or beyond what the boot tables map.
fn address(input: &Input) -> u64 {
    match input.u8() % 6 {
        0 => 0,
        1 | 2 => input.u64() % RAM,
        3 => RAM - u64::from(input.u8()),
        4 => (4 << 30) - 1 + u64::from(input.u8()),
        _ => u64::MAX - u64::from(input.u16()),
    }
}

/// A memory map with RAM at the start, where the image lies, and anything above what boot reads.
fn map(input: &Input) -> Vec<(u64, u64, u32)> {
    let mut map = Vec::new();
    for _ in 0..input.u8() % 140 {
        if input.is_over() {
            break;
        }
        let start = input.number();
        let start = if start < RAM { start + RAM } else { start };
        map.push((start, input.number(), u32::from(input.u8() % 8)));
    }
    let low = RAM - input.number() % (1 << 20);
    map.insert(map.len() / 2, (0, low, 1));
    map
}

/// Any domain boots, or says why not; it gets the command line that it was given.
pub fn boot(bytes: &[u8]) {
    let input = Input::new(bytes);
    let shape = input.u8();
    let mut setup = Guest::new().backed_mib(RAM >> 20).start_info_version(u32::from(shape & 1));
    // Either the map is anything, or what else the start info names, and the CPU: tables, which the machine must have something
    // behind, lie in the lowest RAM unless they are many, or pieces of anything are in their way.
    let any_map = shape & 8 != 0;
    if any_map {
        setup = setup.memory_map(&map(&input));
    } else {
        setup = setup.memory_mib(RAM >> 20, RAM >> 20);
        if shape & 2 != 0 {
            setup = setup.poor_cpu();
        }
    }
    if shape & 4 != 0 {
        setup = setup.reservation(input.number());
    }
    let line: Vec<u8> = input.bytes(MAX_COMMAND_LINE + 9).into_iter().map(|byte| byte.max(1)).collect();
    let list = input.bytes(32 * 20);
    setup = setup.command_line(&line).module(&list, input.bytes(40));
    setup = match input.u8() {
        0..8 => setup.backend(Backend::Absent),
        8..16 => setup.initial_domain(),
        // A frame of RAM, or none that there can be: behind a hole the machine has nothing that reads as ones.
        16..32 if input.flag() => setup.console_param(input.u64() % (RAM >> 12)),
        16..32 => setup.console_param(1 << 40 | input.u64()),
        32..48 => setup.console_consumer_ahead(input.u16().into()),
        48..56 => setup.random(Random::Absent),
        56..64 => setup.random(Random::Stuck(input.u64())),
        64..72 => setup.xen(Some(XenVersion { major: input.u16(), minor: input.u16() })),
        72..80 => setup.domain(None),
        80..84 => setup.without_start_info(),
        _ => setup,
    };
    let changes = input.u8();
    if !any_map {
        let (entries, count) = (input.number() as u32, input.number() as u32);
        let (memmap, modules, text) = (address(&input), address(&input), address(&input));
        let flags = input.u32();
        setup = setup.start_info(move |info| {
            if changes & 2 != 0 {
                info.flags = Sif::from_bits_retain(flags);
            }
            // The list of modules is the module: anything.
            if changes & 4 != 0 {
                info.modlist_paddr = info.cmdline_paddr + (line.len() as u64 + 1).next_multiple_of(4096);
            }
            if changes & 8 != 0 {
                info.nr_modules = count;
            }
            if changes & 16 != 0 {
                info.modlist_paddr = modules;
            }
            if changes & 32 != 0 {
                info.cmdline_paddr = text;
            }
            // The map itself stays: the machine holds what the domain does against it.
            if changes & 64 != 0 && (memmap == 0 || memmap >= 4 << 30) {
                info.memmap_paddr = memmap;
            }
            if changes & 128 != 0 && entries > 128 {
                info.memmap_entries = entries;
            }
        });
    }
    let seen = Rc::new(RefCell::new(None));
    let slot = Rc::clone(&seen);
    let report = guest(setup, async move |domain| {
        let modules: usize =
            domain.modules().iter().map(|module| module.data().len() + module.command_line().len()).sum();
        *slot.borrow_mut() = Some((domain.command_line().to_vec(), domain.words().count(), modules));
    });
    if seen.borrow().is_none() {
        // An initial domain speaks through the hypervisor.
        let said = [report.hypervisor.clone(), report.debug.clone()].concat();
        let told = said.starts_with(b"domu: ") && report.end == End::Shutdown(Reason::Crash);
        assert!(told, "{:?}: {}", report.end, String::from_utf8_lossy(&said));
    }
}
