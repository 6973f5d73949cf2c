//! The console on the simulated Xen: every byte arrives once, whatever the backend does, and nothing waits for ever.

use domu::Error;
use domu::console::Error as ConsoleError;
use domu::lifecycle::Reason;
use domu::sim::{Backend, End, Guest, Report};

const SIZES: [usize; 7] = [1, 2047, 2048, 2049, 4096, 65_536, 1 << 20];

/// Bytes that differ from their neighbours at every distance that a ring could confuse.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| if i % 61 == 60 { b'\n' } else { b'!' + (i % 89) as u8 }).collect()
}

fn write(guest: Guest, bytes: Vec<u8>) -> (Report, Result<(), ConsoleError>) {
    let result = std::rc::Rc::new(std::cell::Cell::new(Ok(())));
    let outcome = result.clone();
    let report = guest.run(async move |domain| outcome.set(domain.console().write(&bytes)));
    (report, result.get())
}

fn sends(report: &Report) -> usize {
    report.hypercalls.iter().filter(|call| **call == (domu::abi::xen::Hypercall::EventChannel, 4)).count()
}

#[test]
fn every_size_arrives_byte_for_byte() {
    for size in SIZES {
        if cfg!(miri) && size != 2049 {
            continue;
        }
        for index in [0, u32::MAX - 1000] {
            let (report, result) = write(Guest::new().console_index(index), pattern(size));
            assert_eq!(result, Ok(()));
            assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
            assert!(report.console == pattern(size), "{size} bytes from index {index}");
        }
    }
}

#[test]
fn line_feeds_at_every_boundary_arrive_untouched() {
    let boundaries = if cfg!(miri) { 2047..2048 } else { 2000..2100 };
    for at in boundaries {
        let mut bytes = vec![b'x'; 4200];
        bytes[at] = b'\n';
        bytes[at + 2048] = b'\n';
        let (report, _) = write(Guest::new(), bytes.clone());
        assert!(report.console == bytes, "line feeds at {at}");
    }
}

#[test]
fn a_backend_that_reads_a_byte_at_a_time_gets_them_all() {
    let size = if cfg!(miri) { 2100 } else { 65_536 };
    for step in if cfg!(miri) { 300..301 } else { 1..8 } {
        let (report, result) = write(Guest::new().backend(Backend::Trickles(step)), pattern(size));
        assert_eq!(result, Ok(()));
        assert!(report.console == pattern(size), "{step} at a time");
    }
}

#[test]
fn a_backend_that_stops_costs_a_bounded_wait_and_an_exact_count() {
    for read in [1, 3000, 0, 2047, 2048].into_iter().take(if cfg!(miri) { 2 } else { 5 }) {
        let (report, result) = write(Guest::new().backend(Backend::StopsAfter(read)), pattern(10_000));
        // The ring took what was read and then its own size.
        assert_eq!(result, Err(ConsoleError::Stalled { written: read as usize + 2048 }));
        assert!(report.console == pattern(10_000)[..read as usize]);
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
        // Once for the write; the end knows already that nobody reads.
        assert!((2_000_000_000..5_000_000_000).contains(&report.elapsed_ns), "{} ns", report.elapsed_ns);
    }
}

#[test]
fn a_dead_backend_costs_its_wait_once() {
    let report = Guest::new().backend(Backend::StopsAfter(0)).run(async |domain| {
        const LINES: u64 = if cfg!(miri) { 100 } else { 1000 };
        for _ in 0..LINES {
            log::info!("a line that nobody reads, as long as log lines are");
        }
        assert!(domain.log_lines_dropped() > LINES - 60);
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
    assert!(report.elapsed_ns < 5_000_000_000, "{} ns", report.elapsed_ns);
    assert_eq!(report.debug_text(), "", "a full console is no emergency");
}

#[test]
#[cfg_attr(miri, ignore = "thousands of waits or lines; the same code runs in the other tests")]
fn an_event_storm_without_progress_ends_in_time() {
    let (report, result) = write(Guest::new().backend(Backend::Storms), pattern(5000));
    assert_eq!(result, Err(ConsoleError::Stalled { written: 2048 }));
    assert!(report.elapsed_ns < 6_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
#[cfg_attr(miri, ignore = "thousands of waits or lines; the same code runs in the other tests")]
fn a_backend_slower_than_its_limit_is_given_up() {
    // A byte for each wait is progress without end: 5000 bytes would take a quarter of an hour and more.
    let (report, result) = write(Guest::new().backend(Backend::Crawls), pattern(5000));
    let read = report.console.len();
    assert!(matches!(result, Err(ConsoleError::Stalled { written }) if written <= read + 2048), "{result:?}");
    assert!((2_000_000_000..4_000_000_000).contains(&report.elapsed_ns), "{} ns", report.elapsed_ns);
    assert!(report.console == pattern(5000)[..read]);
}

#[test]
fn lies_close_the_console_and_not_the_domain() {
    let lies: [fn(u32, u32) -> u32; 5] = [
        |produced, _| produced.wrapping_add(1),
        // Behind what was there before the first byte.
        |_, consumed| consumed.wrapping_sub(1001),
        |produced, _| produced.wrapping_add(1 << 31),
        |_, _| 0,
        |_, _| u32::MAX,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let report = Guest::new().console_index(5000).backend(Backend::Lies(1000, lie)).run(async move |domain| {
            let console = domain.console();
            assert_eq!(console.write(&pattern(5000)), Err(ConsoleError::Corrupt { written: 2048 }), "{number}");
            assert_eq!(console.write(b"x"), Err(ConsoleError::Corrupt { written: 0 }));
            assert_eq!(console.flush(), Err(ConsoleError::Corrupt { written: 0 }));
            log::info!("this line is lost, and nothing else is");
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{number}: {}", report.debug_text());
        assert_eq!(report.debug_text(), "domu: console closed: its backend shows an impossible index\n");
        assert!(report.elapsed_ns < 1_000_000_000);
    }
}

#[test]
fn a_backend_that_comes_back_is_told_what_was_lost() {
    let report = Guest::new().backend(Backend::Wakes(200)).run(async |domain| {
        for line in 0..100 {
            log::info!("line {line}");
        }
        while domain.console().flush().is_err() {}
        log::info!("the end");
    });
    let text = report.console_text();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert!(text.ends_with("\r\nINFO  console: the end\r\n"), "{text}");
    let arrived = lines.iter().filter(|line| line.starts_with("INFO  console: line ") && line.len() > 20).count();
    let notice = lines.iter().find_map(|line| line.strip_prefix("WARN  domu: ")).expect("a notice of lost lines");
    let lost: usize = notice.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    // The line that was cut where the ring ended counts as lost.
    assert!((100 - arrived..=101 - arrived).contains(&lost), "{arrived} arrived, {lost} lost:\n{text}");
}

#[test]
fn log_lines_end_in_crlf_and_raw_output_does_not() {
    let report = Guest::new().run(async |domain| -> domu::Result {
        log::warn!("two\nlines\r\nand three");
        domain.console().write(b"raw\n")?;
        Ok(())
    });
    assert_eq!(report.console_text(), "WARN  console: two\r\nlines\r\nand three\r\nraw\n");
}

#[test]
fn one_notification_for_a_line_or_a_write() {
    for (report, expected) in [
        (Guest::new().run(async |_| log::info!("one line")), 1),
        (write(Guest::new(), pattern(2048)).0, 1),
        (write(Guest::new(), pattern(4096)).0, 2),
        (Guest::new().run(async |_| {}), 0),
    ] {
        assert_eq!(sends(&report), expected);
    }
}

#[test]
fn a_port_that_refuses_is_survived() {
    let guest = Guest::new()
        .backend(Backend::StopsAfter(0))
        .fault(|call, _| (call == domu::abi::xen::Hypercall::EventChannel).then_some(domu::abi::errno::Errno::EINVAL));
    let (report, result) = write(guest, pattern(3000));
    assert_eq!(result, Err(ConsoleError::Stalled { written: 2048 }));
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}

#[test]
#[cfg_attr(miri, ignore = "spins until the clock ends it, some million steps")]
fn a_wait_that_is_refused_is_bounded_by_the_clock() {
    let guest = Guest::new().backend(Backend::StopsAfter(0)).fault(|call, op| {
        (call == domu::abi::xen::Hypercall::Sched && op == 3).then_some(domu::abi::errno::Errno::ENOSYS)
    });
    let (report, result) = write(guest, pattern(3000));
    assert_eq!(result, Err(ConsoleError::Stalled { written: 2048 }));
    assert!(report.elapsed_ns < 6_000_000_000);
}

#[test]
fn without_a_console() {
    for guest in
        [Guest::new().backend(Backend::Absent), Guest::new().console_param(0), Guest::new().console_param(u64::MAX)]
    {
        let report = guest.run(async |domain| -> domu::Result {
            log::info!("nobody hears");
            assert_eq!(domain.console().write(b"x"), Err(ConsoleError::Absent));
            domain.console().flush()?;
            Ok(())
        });
        // Main failed by its own choice: the message is on the emergency output.
        assert_eq!(report.end, End::Shutdown(Reason::Crash));
        assert_eq!(report.debug_text(), "domu: main failed: the domain has no console\n");
        assert!(report.console.is_empty());
    }
    assert_eq!(Error::from(ConsoleError::Absent).to_string(), "the domain has no console");
}

#[test]
fn a_ring_that_is_impossible_from_the_start_is_not_used() {
    for ahead in [1, 5, 1 << 31, u32::MAX - 2048] {
        let report = Guest::new().console_consumer_ahead(ahead).run(async |domain| {
            assert_eq!(domain.console().write(b"hello"), Err(ConsoleError::Absent));
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
        assert_eq!(report.debug_text(), "domu: console closed: its backend shows an impossible index\n");
    }
}

#[test]
#[cfg_attr(miri, ignore = "thousands of waits or lines; the same code runs in the other tests")]
fn a_log_line_waits_no_longer_than_the_backend_has_credit() {
    // Each byte that is read buys a millisecond, not another two seconds, however a line is put together.
    let report = Guest::new().backend(Backend::Crawls).run(async |domain| {
        for _ in 0..40 {
            log::info!("{:?}", [1_u8; 100]);
        }
        for _ in 0..100 {
            let _ = domain.console().write(b"x");
        }
    });
    assert!(report.elapsed_ns < 4_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
#[cfg_attr(miri, ignore = "thousands of waits or lines; the same code runs in the other tests")]
fn lines_that_are_lost_are_lost_whole_and_counted_for_good() {
    let report = Guest::new().backend(Backend::StopsAfter(5000)).run(async |domain| {
        let before = domain.log_lines_dropped();
        for line in 0..300 {
            log::info!("line {line:04}");
        }
        assert!(domain.log_lines_dropped() > before + 50);
        assert_eq!(domain.log_lines_dropped(), domain.log_lines_dropped());
    });
    for line in report.console_text().split_inclusive("\r\n") {
        let whole = line.len() == "INFO  console: line 0000\r\n".len() && line.ends_with("\r\n");
        assert!(whole || report.console_text().ends_with(line), "{line:?}");
    }
}

#[test]
fn writing_and_logging_while_a_line_is_formatted() {
    struct Chatty(domu::console::Console);
    impl core::fmt::Display for Chatty {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            self.0.write(b"raw\n").map_err(|_| core::fmt::Error)?;
            log::info!("nested");
            f.write_str("outer")
        }
    }
    let report = Guest::new().run(async |domain| log::info!("{}", Chatty(domain.console())));
    assert_eq!(report.console_text(), "raw\nINFO  console: nested\r\nINFO  console: outer\r\n");
}

#[test]
fn the_initial_domain_logs_to_the_hypervisor() {
    let report = Guest::new().initial_domain().start_info_version(0).run(async |_| log::info!("from dom0"));
    assert_eq!(String::from_utf8(report.hypervisor).unwrap(), "INFO  console: from dom0\r\n");
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}
