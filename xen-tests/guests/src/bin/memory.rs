//! Uses all RAM that boot left, and looks at the page tables in force.
//!
//! * `memory.every_page`: allocates until nothing is left, writes to each page and then reads all of them back. A page
//!   that the domain does not have would end it without a verdict, one given out twice would hold the other's word.
//! * `memory.amount`: that was most of what the domain has; the command line gives its MiB.
//! * `memory.protection`: no leaf is writable and executable, code is not writable, constants are neither.
//! * `memory.null_page`, `memory.stack_guard`: these pages are absent.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use core::ptr;

use domu::Domain;
use domu_guests::{AllMemory, verdict};

domu::main!(main);

async fn main(domain: Domain) -> domu::Result {
    every_page(&domain);
    protection(&domain);
    Ok(())
}

fn every_page(domain: &Domain) {
    let all = AllMemory::take();
    let (result, total) = (all.verify(), all.total);
    drop(all);
    verdict(domain, "memory.every_page", result);
    let expected: usize = core::str::from_utf8(domain.command_line()).ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    // Image, stack, tables and the allocator's own words: less than a MiB, and a sixteenth of what there is.
    let least = (expected << 20).saturating_sub((expected << 16) + (1 << 20));
    let amount = match expected {
        0 => Err(format!("the command line names no MiB, and there are {total} bytes")),
        _ if total < least => Err(format!("{total} bytes of {expected} MiB")),
        _ => Ok(()),
    };
    verdict(domain, "memory.amount", amount);
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const HUGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The leaf for an address, if it is mapped.
fn leaf(address: u64) -> Option<u64> {
    let mut table = root();
    for shift in [39, 30, 21, 12] {
        let entry = entry(table, (address >> shift) as usize % 512);
        if entry & PRESENT == 0 {
            return None;
        }
        if shift == 12 || entry & HUGE != 0 {
            return Some(entry);
        }
        table = entry & ADDRESS;
    }
    None
}

fn root() -> u64 {
    let root: u64;
    // SAFETY: reading CR3 in ring 0 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) root, options(nomem, nostack, preserves_flags)) };
    root & ADDRESS
}

fn entry(table: u64, index: usize) -> u64 {
    // SAFETY: the tables in force lie in RAM that is mapped at its own address, and nothing changes them.
    unsafe { ptr::with_exposed_provenance::<u64>(table as usize).add(index).read_volatile() }
}

/// Visits all leaves; returns the first that is writable and executable, and the number of leaves.
fn find_writable_code(table: u64, level: u32) -> (Option<u64>, usize) {
    let mut leaves = 0;
    for index in 0..512 {
        let entry = entry(table, index);
        if entry & PRESENT == 0 {
            continue;
        }
        if level == 1 || entry & HUGE != 0 {
            leaves += 1;
            if entry & WRITABLE != 0 && entry & NO_EXECUTE == 0 {
                return (Some(entry), leaves);
            }
        } else {
            let (found, below) = find_writable_code(entry & ADDRESS, level - 1);
            leaves += below;
            if found.is_some() {
                return (found, leaves);
            }
        }
    }
    (None, leaves)
}

static CONSTANT: [u8; 64] = [7; 64];

fn protection(domain: &Domain) {
    let local = 0_u8;
    let code = leaf((main as fn(Domain) -> _ as usize) as u64);
    let constant = leaf(CONSTANT.as_ptr().addr() as u64);
    let stack = leaf((&raw const local).addr() as u64);
    let result = match find_writable_code(root(), 4) {
        (Some(entry), _) => Err(format!("writable and executable: {entry:#x}")),
        (None, leaves) if leaves < 3 => Err(format!("only {leaves} leaves")),
        _ => match (code, constant, stack) {
            (Some(code), Some(constant), Some(stack))
                if code & WRITABLE == 0
                    && code & NO_EXECUTE == 0
                    && constant & WRITABLE == 0
                    && constant & NO_EXECUTE != 0
                    && stack & WRITABLE != 0
                    && stack & NO_EXECUTE != 0 =>
            {
                Ok(())
            }
            leaves => return verdict(domain, "memory.protection", Err(format!("{leaves:x?}"))),
        },
    };
    verdict(domain, "memory.protection", result);
    unsafe extern "C" {
        safe static domu_stack_guard: u8;
    }
    for (case, address) in
        [("memory.null_page", 0), ("memory.stack_guard", (&raw const domu_stack_guard).addr() as u64)]
    {
        let result = leaf(address).map_or(Ok(()), |entry| Err(format!("mapped: {entry:#x}")));
        verdict(domain, case, result);
    }
}
