//! The balloon on the simulated Xen, which looks at every frame: given twice, or filled in where nothing was taken, fails
//! the test, and what is out reads as ones.

use std::sync::{Arc, Mutex};

use domu::memory::{self, Error, Pages, balloon};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Guest, Report};

const MIB: u64 = 1 << 20;
const POPULATE: (Hypercall, u64) = (Hypercall::Memory, 6);
const DECREASE: (Hypercall, u64) = (Hypercall::Memory, 1);

/// Runs a guest whose main gives a value.
fn run<T>(guest: Guest, main: impl FnOnce() -> T) -> (T, Report) {
    let (report, found) = guest.look(|_| main());
    let report = report.powered_off();
    (found.expect("main has run"), report)
}

fn frames(ranges: &[std::ops::Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

fn guest(mib: u64) -> Guest {
    Guest::new().memory_mib(mib, mib).backed_mib(mib)
}

/// How often a hypercall was made.
fn count(report: &Report, call: (Hypercall, u64)) -> usize {
    report.calls(call.0, call.1)
}

#[test]
fn what_is_given_comes_back() {
    let before = frames(&run(guest(32), || ()).1.heap);
    let ((), report) = run(guest(32), || {
        assert_eq!((balloon::given(), balloon::absent()), (0, 0));
        assert_eq!(balloon::give(16 * MIB), Ok(16 * MIB));
        assert_eq!((balloon::given(), balloon::absent()), (16 * MIB, 16 * MIB));
        // By parts, from the end of the block: the heap has each at once.
        for part in [4096, 4095, 3 * MIB, 5 * MIB + 4096 * 3 + 1] {
            let before = balloon::given();
            assert_eq!(balloon::take_back(part), Ok(part / 4096 * 4096));
            assert_eq!(balloon::given(), before - part / 4096 * 4096);
        }
        assert_eq!(balloon::take_back(u64::MAX), Ok(8 * MIB - 4 * 4096));
        assert_eq!((balloon::take_back(4096), balloon::given()), (Ok(0), 0));
    });
    assert_eq!((frames(&report.heap), frames(&report.given_back)), (before, 0));
    // 8 extents of 2 MiB in one call; a few for the odd parts.
    assert_eq!(count(&report, DECREASE), 1);
    assert!(count(&report, POPULATE) < 30, "{}", count(&report, POPULATE));
}

#[test]
#[cfg_attr(miri, ignore = "minutes; the same code runs in the other tests")]
fn the_last_page_can_be_given_and_comes_back() {
    for mib in [3, 17] {
        let before = frames(&run(guest(mib), || ()).1.heap);
        let (given, report) = run(guest(mib), move || {
            let given = balloon::give(u64::MAX).unwrap();
            assert_eq!(balloon::give(4096), Err(Error::OutOfMemory));
            assert_eq!(Pages::new(1).unwrap_err(), Error::OutOfMemory);
            assert_eq!(balloon::take_back(8192), Ok(8192));
            assert!(Pages::new(2).is_ok() || Pages::new(1).is_ok());
            memory::trim();
            assert_eq!(balloon::take_back(given), Ok(given - 8192));
            given
        });
        assert_eq!((given >> 12, frames(&report.heap)), (before, before), "{mib} MiB");
        assert_eq!(frames(&report.given_back), 0);
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes; the same code runs in the other tests")]
fn a_thousand_cycles_lose_no_page() {
    const CYCLES: u64 = 1000;
    let before = frames(&run(guest(12), || ()).1.heap);
    let ((), report) = run(guest(12), || {
        for cycle in 0..CYCLES {
            // Of all sizes, next to pages that are in use.
            let (bytes, back) = ((cycle * 7919 % 2000 + 1) * 4096, (cycle * 104_729 % 2500) * 4096);
            let pages = Pages::new(1 + cycle as usize % 9).unwrap();
            assert_eq!(balloon::give(bytes), Ok(bytes));
            assert_eq!(balloon::take_back(back), Ok(back.min(bytes)));
            assert!(pages.bytes().iter().all(|byte| *byte == 0));
            let left = balloon::given();
            assert_eq!(balloon::take_back(left), Ok(left));
        }
        memory::trim();
    });
    assert_eq!((frames(&report.heap), frames(&report.given_back)), (before, 0));
}

/// Xen does a few extents in each call, or none in some, or has no large ones: every frame is accounted for.
#[test]
#[cfg_attr(miri, ignore = "minutes; the same code runs in the other tests")]
fn whatever_xen_does_of_it_no_frame_is_lost() {
    let before = frames(&run(guest(12), || ()).1.heap);
    for (extents, refused, fragmented) in [(1, 0, true), (3, 0, false), (7, 3, true), (5, 4, false), (1000, 2, true)] {
        let calls = Arc::new(Mutex::new((0_u32, true)));
        let switch = Arc::clone(&calls);
        let fault = move |call, operation| {
            let (calls, on) = &mut *calls.lock().unwrap();
            let counts = (call, operation) == DECREASE || (call, operation) == POPULATE;
            *calls += u32::from(counts);
            (*on && counts && refused > 0 && calls.is_multiple_of(refused)).then_some(Errno::ENOMEM)
        };
        let mut guest = guest(12).extents_taken(extents).fault(fault);
        if fragmented {
            guest = guest.fragmented_host();
        }
        let ((), report) = run(guest, move || {
            let mut out = 0;
            for step in 0..60 {
                let bytes = (step * 37 % 1200 + 1) * 4096;
                let result = if step % 3 == 2 { balloon::take_back(bytes) } else { balloon::give(bytes) };
                match result {
                    Ok(done) if step % 3 == 2 => out -= done,
                    Ok(done) => out += done,
                    Err(error) => assert!(matches!(error, Error::Refused | Error::OutOfMemory), "{error}"),
                }
                assert_eq!(balloon::given(), out);
            }
            // In the end Xen does all.
            switch.lock().unwrap().1 = false;
            assert_eq!((balloon::take_back(u64::MAX), balloon::given()), (Ok(out), 0));
        });
        assert_eq!((frames(&report.heap), frames(&report.given_back)), (before, 0), "{extents} {refused}");
    }
}

#[test]
fn refusals_are_errors_and_change_nothing() {
    let before = frames(&run(guest(8), || ()).1.heap);
    let refuse = |which| move |call, operation| ((call, operation) == which).then_some(Errno::EPERM);
    let ((), report) = run(guest(8).fault(refuse(DECREASE)), || {
        assert_eq!((balloon::give(MIB), balloon::given()), (Err(Error::Refused), 0));
        assert_eq!(balloon::give(4095), Ok(0));
    });
    assert_eq!(frames(&report.heap), before);
    let ((), report) = run(guest(8).fault(refuse(POPULATE)), || {
        assert_eq!(balloon::give(4 * MIB), Ok(4 * MIB));
        assert_eq!((balloon::take_back(MIB), balloon::given()), (Err(Error::Refused), 4 * MIB));
    });
    assert_eq!((frames(&report.heap), frames(&report.given_back)), (before - 1024, 1024));
    // Outside of a domain there is nothing.
    assert_eq!((balloon::give(MIB), balloon::given(), balloon::absent()), (Err(Error::OutOfMemory), 0, 0));
}

#[test]
#[cfg_attr(miri, ignore = "minutes; the same code runs in the other tests")]
fn a_domain_can_become_larger_than_it_was_at_boot() {
    let sized = |maximum| Guest::new().memory_mib(8, 16).backed_mib(16).maximum(maximum);
    let before = frames(&run(sized(5000), || ()).1.heap);
    let ((), report) = run(sized(5000), || {
        assert_eq!((balloon::limit(), balloon::given()), (Ok(5000 * 4096), 0));
        let absent = balloon::absent();
        // Boot gives a little more than it has to.
        assert!((8 * MIB..8 * MIB + (1 << 18)).contains(&absent), "{absent}");
        assert!(Pages::new(2048).is_err());
        assert_eq!(balloon::take_back(4096 * 3), Ok(4096 * 3));
        assert_eq!(balloon::take_back(u64::MAX), Ok(absent - 4096 * 3));
        assert_eq!(balloon::absent(), 0);
        memory::self_check().unwrap();
        // It is RAM as any other, to be used, given and taken back.
        let all = balloon::give(u64::MAX).unwrap();
        assert_eq!(balloon::take_back(u64::MAX), Ok(all));
    });
    let grown = frames(&report.heap);
    assert!(grown > before + 2048 && report.given_back.is_empty(), "{grown}");
    // As far as it is allowed to.
    let ((), report) = run(sized(8 * 256 + 16 + 100), || {
        let absent = balloon::absent();
        let more = balloon::take_back(MIB).unwrap();
        assert!((100 << 12..150 << 12).contains(&more), "{more}");
        assert_eq!((balloon::absent(), balloon::take_back(MIB)), (absent - more, Err(Error::Refused)));
    });
    assert!(frames(&report.heap) < before + 150);
}

#[test]
fn a_target_is_followed() {
    run(Guest::new().memory_mib(8, 16).backed_mib(16).maximum(16 * 256 + 16), || {
        for kib in [8192, 16384, 9000, 16384, 8192, 8192, 8000] {
            assert_eq!(balloon::aim(kib), Ok(kib), "{kib}");
        }
        assert_eq!(balloon::aim(u64::MAX), Ok(16384), "all that the memory map has");
    });
    // What Xen does not allow is an error if it allows nothing, and else as near as can be.
    run(Guest::new().memory_mib(8, 16).backed_mib(16), || {
        let near = balloon::aim(16384).unwrap();
        assert!((8192..8192 + 1024).contains(&near), "{near}");
        assert_eq!(balloon::aim(16384), Err(Error::Refused));
    });
}
