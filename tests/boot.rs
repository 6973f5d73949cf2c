//! Boot and the ends of a domain on the simulated Xen.

use std::sync::{Arc, Mutex};

use domu::lifecycle::{self, Reason};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::xen::Hypercall;
use domu::sim::{Backend, End, Guest, Report};
use domu::{DomainId, MAX_COMMAND_LINE, XenVersion};
use proptest::prelude::*;

const POWEROFF: End = End::Shutdown(Reason::Poweroff);
const CRASH: End = End::Shutdown(Reason::Crash);

#[test]
fn both_versions_of_the_start_info() {
    for version in [0, 1] {
        let (report, id) = Guest::new().start_info_version(version).look(|domain| domain.id());
        assert_eq!((report.end, id), (POWEROFF, Some(DomainId(7))), "version {version}");
        let asked = report.hypercalls.contains(&(Hypercall::Memory, 9));
        assert_eq!(asked, version == 0, "Xen is asked for the map only where the start info has none");
        assert_eq!(report.debug_text(), "", "a boot that goes well is silent");
    }
}

#[test]
fn a_good_boot_makes_the_hypercalls_it_needs_and_no_other() {
    let (report, _) = Guest::new().look(|_| ());
    let calls: Vec<_> = report.hypercalls.iter().map(|&(call, operation)| (call as u32, operation)).collect();
    // Reservation, two parameters each for the console and xenstore, shared information; then the end, with nothing to flush.
    assert_eq!(calls, [(12, 3), (34, 1), (34, 1), (34, 1), (34, 1), (12, 7), (29, 2)]);
}

#[test]
fn xen_is_found_where_viridian_leaves_push_it() {
    let (report, version) = Guest::new().cpuid_base(0x4000_0100).look(|domain| domain.xen_version());
    assert_eq!((report.end, version), (POWEROFF, Some(XenVersion { major: 4, minor: 17 })));
}

#[test]
fn domain_id_without_cpuid_leaf_comes_from_a_port() {
    let (report, id) = Guest::new().domain(None).look(|domain| domain.id());
    assert_eq!((report.end, id), (POWEROFF, Some(DomainId(7))));
    let events = report.hypercalls.iter().filter(|(call, _)| *call == Hypercall::EventChannel);
    assert_eq!(events.map(|(_, operation)| *operation).collect::<Vec<_>>(), [6, 5, 3], "allocate, status, close");
}

#[test]
fn without_xen_it_says_so_once_on_both_ports_and_stops() {
    let (report, seen) = Guest::new().xen(None).look(|_| ());
    assert_eq!((report.end, seen), (End::Stopped, None));
    let debug = report.debug_text();
    assert!(debug.starts_with("domu: not running on Xen: "), "{debug}");
    assert_eq!((debug.matches('\n').count(), debug.ends_with('\n')), (1, true));
    assert_eq!(report.serial, report.debug);
    assert!(report.hypercalls.is_empty());
}

#[test]
fn an_old_xen_is_refused_with_both_versions() {
    let (report, _) = Guest::new().xen(Some(XenVersion { major: 4, minor: 9 })).look(|_| ());
    assert_eq!(report.end, CRASH);
    assert_eq!(report.debug_text(), "domu: Xen 4.9 is too old: 4.10 or later is needed\n");
    assert_eq!(Guest::new().xen(Some(XenVersion::OLDEST)).look(|_| ()).0.end, POWEROFF);
}

#[test]
fn every_failure_of_boot_has_a_message_and_crashes() {
    let refuse = |call, operation| move |c: Hypercall, o: u64| ((c, o) == (call, operation)).then_some(Errno::ENOMEM);
    for (guest, message) in [
        (Guest::new().without_start_info(), "no start info: not booted by the PVH protocol"),
        (Guest::new().start_info_version(0).fault(refuse(Hypercall::Memory, 9)), "Xen refused the memory map: ENOMEM"),
        (Guest::new().memory_map(&[(0, 1 << 24, 2)]), "the memory map names no RAM"),
        (Guest::new().memory_map(&[(0, u64::MAX, 1)]), "the memory map leaves no hole for shared pages"),
        (
            Guest::new().memory_map(&[(0, 0x1000, 1), (0x10_0000, 0x4_0000, 1)]),
            "too little memory: the image leaves no room to start",
        ),
        (Guest::new().fault(refuse(Hypercall::Memory, 7)), "Xen refused the page of shared information: ENOMEM"),
        (
            Guest::new().domain(None).fault(refuse(Hypercall::EventChannel, 6)),
            "cannot learn the domain id: no CPUID leaf has it, and no event channel: ENOMEM",
        ),
    ] {
        let (report, seen) = guest.look(|_| ());
        assert_eq!((report.end, seen), (CRASH, None), "{message}");
        assert_eq!(report.debug_text(), format!("domu: {message}\n"));
    }
}

#[test]
fn a_console_in_what_the_loader_left_is_none() {
    let line = b"word \xff\xff\xff\xff";
    let guest = || Guest::new().command_line(line).module([0xff; 8192], "its line");
    // The map, the list of modules and the command line.
    let places = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&places);
    guest()
        .start_info(move |info| {
            into.lock().unwrap().extend([info.memmap_paddr, info.modlist_paddr, info.cmdline_paddr]);
        })
        .look(|_| ());
    let places = places.lock().unwrap().clone();
    assert_eq!(places.len(), 3);
    for place in places {
        let (report, seen) = guest().console_param(place >> 12).look(|domain| {
            (domain.console().is_connected(), domain.command_line() == line, domain.modules()[0].data() == [0xff; 8192])
        });
        assert_eq!((report.end, seen), (POWEROFF, Some((false, true, true))), "{place:#x}");
    }
}

#[test]
fn refused_parameters_mean_no_console() {
    let guest = Guest::new().fault(|call, _| (call == Hypercall::Hvm).then_some(Errno::EPERM));
    assert_eq!(guest.look(|_| ()).0.end, POWEROFF);
}

#[test]
fn the_command_line_arrives_byte_for_byte() {
    for line in ["", "x", "a  b\t\"c d\" domu.log=warn 'e", "grüße \u{1f980}", "\\", "trailing "] {
        let (report, seen) = Guest::new().command_line(line).look(|domain| domain.command_line());
        assert_eq!((report.end, seen), (POWEROFF, Some(line.as_bytes())));
    }
    assert_eq!(Guest::new().look(|domain| domain.command_line()).1, Some(&b""[..]));
    let bytes: Vec<u8> = (1..=255).collect();
    assert_eq!(Guest::new().command_line(&bytes).look(|domain| domain.command_line()).1, Some(&bytes[..]));
}

#[test]
fn a_command_line_over_the_limit_is_cut_with_a_warning() {
    let lengths = [(MAX_COMMAND_LINE + 1, true), (MAX_COMMAND_LINE, false), (20_000, true)];
    for (length, warned) in lengths.into_iter().take(if cfg!(miri) { 1 } else { 3 }) {
        let line: Vec<u8> = (0..length).map(|i| b'a' + (i % 26) as u8).collect();
        let (report, seen) = Guest::new().command_line(&line).look(|domain| domain.command_line());
        assert!(seen == Some(&line[..length.min(MAX_COMMAND_LINE)]));
        let expected =
            format!("WARN  domu::boot: the command line is truncated: it has more than {MAX_COMMAND_LINE} bytes\r\n");
        assert_eq!(report.console_text(), if warned { expected } else { String::new() });
    }
}

#[test]
fn options_set_the_log_and_stay_in_the_command_line() {
    for (line, shown) in [
        ("", "ERROR WARN INFO "),
        ("x domu.log=error y", "ERROR "),
        ("domu.log=trace", "ERROR WARN INFO DEBUG TRACE "),
        ("domu.log=off", ""),
    ] {
        let (report, seen) = Guest::new().command_line(line).look(|domain| {
            for level in log::Level::iter() {
                log::log!(target: "test", level, "x");
            }
            domain.command_line()
        });
        assert_eq!(seen, Some(line.as_bytes()));
        let text = report.console_text();
        let levels: String = text
            .lines()
            .filter(|line| line.contains(" test: "))
            .filter_map(|line| line.split(' ').next())
            .map(|level| format!("{level} "))
            .collect();
        assert_eq!(levels, shown, "{line}");
    }
    let (report, _) = Guest::new().command_line("domu.log=loud domu.colour=red").look(|_| ());
    assert_eq!(
        report.console_text(),
        "WARN  domu::boot: not an option of domu, or not a value of it: domu.log=loud\r\n\
         WARN  domu::boot: not an option of domu, or not a value of it: domu.colour=red\r\n"
    );
}

#[test]
fn modules_are_readable() {
    let big: Vec<u8> = (0..if cfg!(miri) { 5_000 } else { 100_000_u32 }).map(|i| (i * 7) as u8).collect();
    let guest = Guest::new().module(&big, "first of two").module(b"", "");
    let (report, modules) = guest.look(|domain| domain.modules());
    let modules = modules.expect("main ran");
    assert_eq!(report.end, POWEROFF);
    assert_eq!(modules.len(), 2);
    assert!(modules[0].data() == big);
    assert_eq!(modules[0].command_line(), b"first of two");
    assert_eq!((modules[1].data(), modules[1].command_line()), (&b""[..], &b""[..]));
}

#[test]
fn ram_above_the_reservation_is_given_back_untouched() {
    let sizes = [(2, 4), (64, 256), (4, 4096), (3000, 6144)];
    for (memory, maxmem) in sizes.into_iter().take(if cfg!(miri) { 1 } else { 4 }) {
        let (report, _) = Guest::new().memory_mib(memory, maxmem).look(|_| ());
        assert_eq!(report.end, POWEROFF);
        let surplus = (maxmem - memory) * 256;
        let given: u64 = report.given_back.iter().map(|range| range.end - range.start).sum();
        // Frames that the domain lacks. The simulated toolstack has filled 16 of the 17 frames outside of RAM.
        assert_eq!(given, surplus + 1, "{memory}/{maxmem}");
        assert!(report.given_back.iter().all(|range| range.start >= 0x140), "the image stays");
        let told = report.console_text();
        assert!(told.contains(&format!("{} KiB were given back to Xen", given * 4)), "{told}");
        let calls = report.calls(Hypercall::Memory, 1);
        assert!(calls as u64 <= 4 + given / 512 / 128 + 3, "{calls} hypercalls for {given} frames");
    }
    for memory in [2, 16, 6144] {
        assert!(Guest::new().memory_mib(memory, memory).look(|_| ()).0.given_back.is_empty());
    }
}

/// What a map shows beyond what there is is left out, and is no work for a boot.
#[test]
fn a_map_with_any_amount_of_ram_boots() {
    const START: u64 = 4 << 30;
    for end in [START + (80 << 30), 1 << 46, (1 << 52) - 4096] {
        let map = [(0, 16 << 20, 1), (START, end - START, 1)];
        let (report, _) = Guest::new().backed_mib(16).memory_map(&map).reservation(16 << 8).look(|_| ());
        assert_eq!(report.end, POWEROFF, "{}", report.debug_text());
        let calls = report.calls(Hypercall::Memory, 1);
        assert!(calls < 600, "{calls} hypercalls");
    }
}

#[test]
fn a_return_that_xen_takes_in_parts_is_continued_and_what_it_came_to_is_told() {
    let given = |report: &Report| report.given_back.iter().map(|range| range.end - range.start).sum::<u64>();
    let parts = Guest::new().memory_mib(64, 256).extents_taken(3).look(|_| ()).0;
    assert_eq!(given(&parts), given(&Guest::new().memory_mib(64, 256).look(|_| ()).0));
    // The fourth call is refused, and all that are smaller.
    let mut calls = 0;
    let refuse = move |call, operation| {
        calls += i32::from((call, operation) == (Hypercall::Memory, 1));
        ((call, operation) == (Hypercall::Memory, 1) && calls > 3).then_some(Errno::EPERM)
    };
    let report = Guest::new().memory_mib(64, 256).extents_taken(20).fault(refuse).look(|_| ()).0;
    // A single frame up to the first extent of 2 MiB, then twenty extents a call.
    assert_eq!((report.end, given(&report)), (POWEROFF, 1 + 2 * 20 * 512));
    assert!(report.console_text().contains(&format!("; {} KiB were given back", given(&report) * 4)));
}

#[test]
fn the_heap_gets_nearly_all_ram() {
    for mib in [2, 16, 6144] {
        let (report, _) = Guest::new().memory_mib(mib, mib).look(|_| ());
        let heap: u64 = report.heap.iter().map(|range| range.end - range.start).sum();
        // The image, a page or two of the loader's, and some page tables.
        assert!(mib * 256 - heap < 64 + 8 + 16, "{heap} of {} frames", mib * 256);
    }
}

#[test]
fn pieces_outside_of_ram_are_left_out_with_a_warning() {
    let line = "the command line does not lie in RAM";
    let list = "the list of modules does not lie in RAM";
    type Change = fn(&mut domu::sim::abi::start_info::StartInfo);
    let wrong: [(Change, &str); 6] = [
        (|info| info.cmdline_paddr = 0xf000_0000, line),
        (|info| info.cmdline_paddr = u64::MAX - 3, line),
        (|info| info.cmdline_paddr = 5 << 30, line),
        (|info| info.modlist_paddr = 0xfee0_0000, list),
        (|info| info.modlist_paddr = 0, list),
        (|info| info.modlist_paddr = 0xffff_ffff_ffff_fff0, list),
    ];
    for (change, warning) in wrong {
        let guest = Guest::new().command_line("a line").module(b"data", "").start_info(change);
        let (report, seen) = guest.look(|domain| (domain.command_line().len(), domain.modules().len()));
        assert_eq!((report.end, report.debug_text().as_str()), (POWEROFF, ""));
        assert!(report.console_text().contains(warning), "{}", report.console_text());
        assert_eq!(seen, Some(if warning == line { (0, 1) } else { (6, 0) }));
    }
}

#[test]
fn a_refused_return_is_survived_and_told() {
    let guest = Guest::new()
        .memory_mib(64, 256)
        .fault(|call, operation| ((call, operation) == (Hypercall::Memory, 1)).then_some(Errno::EPERM));
    let (report, _) = guest.look(|_| ());
    assert_eq!(report.end, POWEROFF);
    assert!(report.console_text().contains("; 0 KiB were given back"), "{}", report.console_text());
}

#[test]
fn the_ends_and_their_reasons() {
    let ok = Guest::new().run(async |_| -> domu::Result { Ok(()) });
    assert_eq!((ok.end, ok.debug_text().as_str()), (POWEROFF, ""));
    let reboot = Guest::new().run(async |_| -> domu::Result {
        log::info!("again");
        lifecycle::end(Reason::Reboot)
    });
    assert_eq!((reboot.end, reboot.console_text().as_str()), (End::Shutdown(Reason::Reboot), "INFO  boot: again\r\n"));
    let error = Guest::new().run(async |_| -> Result<(), &str> { Err("no luck") });
    assert_eq!(error.end, CRASH);
    assert_eq!(error.console_text(), "domu: main failed: no luck\r\n");
    assert_eq!(error.debug_text(), "domu: main failed: no luck\n");
    let panic = Guest::new().run(async |_| -> domu::Result { panic!("out of {}", "order") });
    assert_eq!(panic.end, CRASH);
    assert_eq!(panic.console_text(), "domu: panicked: out of order\r\n");
    assert_eq!(panic.debug_text(), "domu: panicked: out of order\n");
    let waits = Guest::new().run(async |_| core::future::pending::<()>().await);
    assert_eq!(waits.end, CRASH);
    assert!(waits.console_text().contains("nothing is left that could wake it"));
}

#[test]
fn a_crash_is_told_even_when_the_console_is_dead() {
    const LONG: usize = if cfg!(miri) { 700 } else { 3000 };
    let backends = [Backend::StopsAfter(0), Backend::Absent, Backend::Storms];
    for backend in backends.into_iter().take(if cfg!(miri) { 2 } else { 3 }) {
        let report = Guest::new().backend(backend).run(async |domain| -> Result<(), String> {
            let _ = domain.console().try_write(&[b'x'; 4000]);
            Err("x".repeat(LONG))
        });
        assert_eq!(report.end, CRASH);
        assert_eq!(report.debug_text(), format!("domu: main failed: {}\n", "x".repeat(LONG)));
        assert!(report.elapsed_ns < 6_000_000_000, "{backend:?}: {} ns", report.elapsed_ns);
    }
}

#[test]
fn a_panic_inside_of_a_log_line_is_told_on_both_outputs() {
    struct Bomb;
    impl core::fmt::Display for Bomb {
        fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            panic!("inside of a log line")
        }
    }
    let report = Guest::new().run(async |_| log::info!("before {Bomb}"));
    assert_eq!(report.end, CRASH);
    assert_eq!(report.debug_text(), "domu: panicked: inside of a log line\n");
    assert_eq!(report.console_text(), "domu: panicked: inside of a log line\r\n");
}

#[test]
fn error_of_main_is_printed_with_its_causes() {
    let report = Guest::new().run(async |_| -> domu::Result {
        let port = domu::eventchn::bind_virq(1)?;
        // Of a virtual interrupt, which has no other end.
        port.notify()?;
        Ok(())
    });
    assert_eq!(report.end, CRASH);
    let expected = "domu: main failed: event channel: port 4: refused by Xen: EINVAL\n";
    assert_eq!(report.debug_text(), expected);
}

#[test]
fn an_error_that_logs_while_it_is_formatted_does_not_hang_the_domain() {
    struct Talkative(domu::Domain);
    impl core::fmt::Display for Talkative {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            log::warn!("from inside");
            self.0.console().try_write(b"raw from inside\n").map_err(|_| core::fmt::Error)?;
            f.write_str("the reason")
        }
    }
    let report = Guest::new().run(async |domain| Err::<(), _>(Talkative(domain)));
    assert_eq!(report.end, CRASH);
    assert_eq!(report.debug_text(), "domu: main failed: the reason\n");
    let text = report.console_text();
    assert!(text.contains("from inside\r\n") && text.ends_with("domu: main failed: the reason\r\n"), "{text:?}");
}

#[test]
fn what_was_written_before_the_end_is_flushed() {
    let report = Guest::new().backend(Backend::Trickles(100)).run(async |domain| {
        domain.console().write_all(&[b'y'; 2048]).await.unwrap();
    });
    assert_eq!((report.end, report.console.len()), (POWEROFF, 2048));
}

#[test]
fn a_message_longer_than_the_emergency_burst_is_whole() {
    let long = "0123456789".repeat(200);
    let expected = format!("domu: main failed: {long}\n");
    let report = Guest::new().run(async move |_| -> Result<(), String> { Err(long) });
    assert_eq!(report.debug_text(), expected);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 150,
        ..ProptestConfig::default()
    })]

    /// Whatever the toolstack says of memory, the domain runs or says why not. It never panics, never touches what is
    /// not RAM, and never places what Xen shares over something: the simulated machine fails the test for either.
    #[test]
    #[cfg_attr(miri, ignore = "minutes for a case; the same code runs in the other tests")]
    fn any_memory_map_boots_or_is_refused(
        low in 0x16_0000_u64..0x30_0000,
        entries in proptest::collection::vec(
            (prop_oneof![0x30_0000_u64..1 << 33, any::<u64>()], prop_oneof![0_u64..1 << 30, any::<u64>()], 1_u32..8),
            0..150),
        reservation in prop_oneof![0_u64..2000, any::<u64>()],
        version in 0_u32..2,
        line in proptest::collection::vec(1_u8.., 0..300),
    ) {
        let mut map = entries;
        // The loader's own pieces lie in RAM that exists.
        map.insert(map.len() / 2, (0, low, 1));
        map.truncate(128);
        let guest = Guest::new().memory_map(&map).reservation(reservation).start_info_version(version);
        let (report, seen) = guest.command_line(&line).look(|domain| domain.command_line());
        let debug = report.debug_text();
        match seen {
            Some(seen) => prop_assert_eq!((seen, report.end, debug.as_str()), (&line[..], POWEROFF, "")),
            None => {
                prop_assert_eq!(report.end, CRASH);
                prop_assert!(debug.starts_with("domu: ") && !debug.contains("panicked"), "{}", debug);
            }
        }
    }
}
