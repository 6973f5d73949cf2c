//! Protection and random numbers on the simulated Xen: what a main function sees of them, on CPUs of all kinds.
//!
//! The simulated machine looks at the page tables on its own whenever they come into force or change.

use domu::memory::{self, StackUsage};
use domu::random::{self, Error};
use domu::sim::{Guest, Random, Report};
use domu::{Cost, Domain};

/// Runs a guest whose main gives a value.
fn run<T>(guest: Guest, main: impl FnOnce(Domain) -> T) -> (T, Report) {
    let (report, found) = guest.look(main);
    let report = report.powered_off();
    (found.expect("main has run"), report)
}

#[test]
fn a_small_domain_has_a_small_stack() {
    for (mib, size) in [(2, 64 << 10), (3, 64 << 10), (4, 26 * 4096), (16, 26 * 4096)] {
        let (usage, report) = run(Guest::new().memory_mib(mib, mib), |_| memory::stack());
        let StackUsage { size: found, deepest, .. } = usage;
        // Nothing runs on the simulated stack.
        assert_eq!((found, deepest), (size, 0), "{mib} MiB");
        // The rest is the heap's.
        assert_eq!(report.heap.iter().any(|range| range.contains(&0x120)), size == 64 << 10, "{mib} MiB");
    }
}

fn cost(guest: Guest) -> Cost {
    run(guest, |domain| domain.cost()).0
}

#[test]
#[cfg_attr(miri, ignore = "64 GiB in pages of 2 MiB take minutes; the same code runs in the other tests")]
fn mapping_costs_what_the_tables_take() {
    let bytes = |guest: Guest| cost(guest).page_table_bytes;
    let (small, large) = (bytes(Guest::new()), bytes(Guest::new().memory_mib(64 << 10, 64 << 10)));
    // With pages of 1 GiB the size of RAM does not matter: the tables for what lies below 4 GiB, and one for above.
    assert_eq!(small, 7 * 4096, "PML4, PDPT, two page directories, three page tables");
    assert!(large <= small + 4096, "{small} bytes for 16 MiB, {large} for 64 GiB");
    // Without, a table for each of them.
    let poor = bytes(Guest::new().memory_mib(64 << 10, 64 << 10).poor_cpu());
    assert!((poor - small).div_ceil(4096).abs_diff(64) < 4, "{poor} bytes for 64 GiB without large pages");
}

#[test]
fn the_self_check_can_be_repeated() {
    let (checked, _) = run(Guest::new(), |_| (memory::self_check().unwrap(), memory::self_check().unwrap()));
    assert_eq!(checked.0, checked.1);
    assert_eq!(checked.0.table_bytes, 7 * 4096);
    assert!(checked.0.pages > 512);
    // Outside of a domain there is nothing to check.
    assert_eq!(memory::self_check().unwrap().pages, 0);
}

#[test]
fn boot_is_priced() {
    let found = cost(Guest::new());
    // Two parameters of the console and two of xenstore, the reservation, shared_info.
    assert_eq!(found.hypercalls, 6);
    assert!(found.tsc_ticks > 0);
}

fn numbers(guest: Guest) -> Result<(u64, u64), Error> {
    run(guest, |_| Ok((random::u64()?, random::u64()?))).0
}

#[test]
fn random_numbers_come_from_the_cpu_or_not_at_all() {
    for guest in [Guest::new(), Guest::new().poor_cpu()] {
        let (one, other) = numbers(guest).unwrap();
        assert_ne!(one, other);
    }
    assert_eq!(numbers(Guest::new().random(Random::Absent)), Err(Error::Unsupported));
    assert_eq!(run(Guest::new().random(Random::Absent), |_| random::fill(&mut [0; 3])).0, Err(Error::Unsupported));
}

#[test]
#[cfg_attr(miri, ignore = "a boot for each generator; none of it touches memory in a way of its own")]
fn a_generator_that_runs_dry_is_waited_for_and_a_broken_one_is_not_believed() {
    // RDSEED may be empty for a while, RDRAND, which then helps out, not ten times in a row.
    assert!(numbers(Guest::new().random(Random::Dry(1_009))).is_ok());
    assert_eq!(numbers(Guest::new().random(Random::Dry(1_010))), Err(Error::Broken));
    assert!(numbers(Guest::new().random(Random::Dry(9)).poor_cpu()).is_ok());
    assert_eq!(numbers(Guest::new().random(Random::Dry(10)).poor_cpu()), Err(Error::Broken));
    for value in [0, u64::MAX, 42] {
        assert_eq!(numbers(Guest::new().random(Random::Stuck(value))), Err(Error::Broken));
        assert_eq!(numbers(Guest::new().random(Random::Stuck(value)).poor_cpu()), Err(Error::Broken));
    }
}

#[test]
#[cfg_attr(miri, ignore = "a boot for each length; one is filled in the unikernel's own test")]
fn buffers_of_any_length_are_filled() {
    for length in [0, 1, 7, 8, 9, 16, 31] {
        let (bytes, _) = run(Guest::new(), move |_| {
            let mut buffer = [0; 31];
            random::fill(&mut buffer[..length]).unwrap();
            buffer
        });
        assert!(bytes[length..].iter().all(|byte| *byte == 0));
        assert!(bytes[..length].iter().all(|byte| *byte != 0), "{bytes:x?}");
    }
}

#[test]
fn the_log_says_where_the_canary_is_from_unless_it_is_random() {
    let says = |guest: Guest| {
        run(guest.command_line("domu.log=debug"), |_| ())
            .1
            .console_text()
            .contains("canary is mixed from the time stamp counter")
    };
    assert!(!says(Guest::new()));
    assert!(says(Guest::new().random(Random::Absent)));
}
