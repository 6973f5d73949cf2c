//! The console on the simulated Xen: every byte arrives once, whatever the backend does, and nobody waits who need not.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use domu::console::{Error as ConsoleError, MAX_LINE};
use domu::executor::{activity, after_turn, spawn, yield_now};
use domu::lifecycle::{self, Reason};
use domu::sim::{Backend, End, Guest, Report, Saved, Store, outside};
use domu::time::{Elapsed, sleep, timeout};
use domu::{Error, eventchn, xenstore};

const MS: Duration = Duration::from_millis(1);

const SIZES: [usize; 7] = [1, 2047, 2048, 2049, 4096, 65_536, 1 << 20];

/// Bytes that differ from their neighbours at every distance that a ring could confuse.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| if i % 61 == 60 { b'\n' } else { b'!' + (i % 89) as u8 }).collect()
}

fn write(guest: Guest, bytes: Vec<u8>) -> (Report, Result<(), ConsoleError>) {
    let result = Rc::new(Cell::new(Ok(())));
    let outcome = result.clone();
    let report = guest.run(async move |domain| outcome.set(domain.console().write_all(&bytes).await));
    (report, result.get())
}

fn sends(report: &Report) -> usize {
    report.calls(domu::sim::abi::xen::Hypercall::EventChannel, 4)
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
fn a_backend_that_stops_keeps_only_the_writer_waiting() {
    for read in [1, 3000, 0, 2047, 2048].into_iter().take(if cfg!(miri) { 1 } else { 5 }) {
        let report = Guest::new().backend(Backend::StopsAfter(read)).run(async move |domain| {
            let written = Rc::new(Cell::new(false));
            let flag = Rc::clone(&written);
            spawn(async move {
                let _ = domain.console().write_all(&pattern(10_000)).await;
                flag.set(true);
            })
            .detach();
            for _ in 0..100 {
                sleep(MS).await;
            }
            assert!(!written.get());
            assert_eq!(domain.console().try_write(b"x"), Ok(0));
            assert_eq!(domain.console().flush().await, Err(ConsoleError::Stalled));
        });
        // The backend got what it read, in order, and the domain ended all the same, soon.
        assert!(report.console == pattern(10_000)[..read as usize]);
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
        assert!((4_000_000_000..7_000_000_000).contains(&report.elapsed_ns), "{} ns", report.elapsed_ns);
    }
}

/// A line of the log that is some hundred bytes long.
const LONG: &str =
    "a line that says what happened, to whom, where, when, and what is to be expected of it, at some length";

/// Logs so many lines, numbered.
fn log_lines(count: usize) {
    (0..count).for_each(|line| log::info!("line {line:05} {LONG}"));
}

/// More than ring and backlog have room for.
const MANY: usize = if cfg!(miri) { 160 } else { 1000 };

#[test]
fn a_dead_backend_keeps_nobody_and_loses_whole_lines() {
    let report = Guest::new().backend(Backend::StopsAfter(0)).run(async |domain| {
        log_lines(MANY);
        let dropped = domain.log_lines_dropped();
        assert!((MANY as u64 * 3 / 10..MANY as u64 * 7 / 10).contains(&dropped), "{dropped}");
        sleep(MS).await;
        assert_eq!(domain.log_lines_dropped(), dropped);
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
    // The wait at the end.
    assert!(report.elapsed_ns < 5_000_000_000, "{} ns", report.elapsed_ns);
    assert_eq!(report.debug_text(), "", "a full console is no emergency");
}

#[test]
fn lines_that_do_not_fit_into_the_ring_follow_as_it_is_read() {
    let count = if cfg!(miri) { 40 } else { 500 };
    let report = Guest::new().backend(Backend::Trickles(700)).run(async move |domain| {
        log_lines(count);
        assert_eq!(domain.log_lines_dropped(), 0);
        domain.console().flush().await.unwrap();
        domain.console().write_all(b"the end").await.unwrap();
    });
    let text = report.console_text();
    let mut lines = text.split("\r\n");
    for line in 0..count {
        assert_eq!(lines.next(), Some(format!("INFO  console: line {line:05} {LONG}").as_str()));
    }
    assert_eq!(lines.next(), Some("the end"));
}

#[test]
fn no_line_is_cut_and_no_small_write() {
    let report = Guest::new().backend(Backend::Trickles(333)).run(async |domain| {
        let console = domain.console();
        let large = spawn(async move { console.write_all(&[b'.'; 6000]).await });
        let small = spawn(async move {
            for _ in 0..5 {
                console.write_all(&[b'#'; 100]).await?;
            }
            Ok::<(), ConsoleError>(())
        });
        for _ in 0..10 {
            log::info!("whole");
            sleep(MS / 2).await;
        }
        large.await.unwrap();
        small.await.unwrap();
    });
    let text = report.console_text();
    assert_eq!(text.matches("INFO  console: whole\r\n").count(), 10, "{text}");
    assert_eq!(text.matches(&"#".repeat(100)).count(), 5, "{text}");
    assert_eq!(text.matches('.').count(), 6000);
}

#[test]
fn a_write_is_never_of_nothing_and_a_small_one_never_in_pieces() {
    // The backend makes room for a byte or two at a time, and lines of the log wait for the same room.
    for step in [1, 2, 99] {
        let report = Guest::new()
            .backend(Backend::Trickles(step))
            .run(async |domain| {
                let console = domain.console();
                log::info!("{}", "x".repeat(2000));
                for _ in 0..if cfg!(miri) { 1 } else { 30 } {
                    log::info!("line");
                    assert_eq!(console.write(b"small").await, Ok(5));
                }
            })
            .powered_off();
        assert_eq!(report.console_text().matches("line\r\nsmall").count(), if cfg!(miri) { 1 } else { 30 });
        if cfg!(miri) {
            break;
        }
    }
}

#[test]
fn what_a_hook_logs_leaves_before_the_domain_sleeps() {
    let report = Guest::new().backend(Backend::Wakes(2)).run(async |domain| {
        let mut times = 0;
        domu::executor::after_turn(move || {
            times += 1;
            if times == 2 {
                log_lines(30);
            }
        });
        sleep(1000 * MS).await;
        assert_eq!(domain.console().try_write(&[b'.'; 1024]), Ok(1024), "there is room again");
    });
    assert!(report.console_text().contains("line 00029"), "{}", report.console_text());
}

#[test]
fn a_flush_waits_for_what_was_written_before_and_no_longer() {
    let report = Guest::new().backend(Backend::Trickles(100)).run(async |domain| {
        let console = domain.console();
        spawn(async move {
            loop {
                let _ = console.write_all(&[b'.'; 500]).await;
            }
        })
        .detach();
        console.write_all(b"the end").await.unwrap();
        yield_now().await;
        assert_eq!(console.flush().await, Ok(()));
    });
    assert!(report.elapsed_ns < 1_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
fn formatting_a_domain_while_it_writes_does_not_hang_it() {
    use core::fmt::Write;
    let report = Guest::new().run(async |domain| {
        let (mut console, other) = (domain.console(), domain.console());
        write!(console, "{other:?} {domain:?}").unwrap();
        log::info!("{domain:?}");
    });
    assert!(report.console_text().starts_with("Console { .. } Domain { id: "), "{}", report.console_text());
}

#[test]
fn a_write_that_is_given_up_has_written_nothing() {
    let report = Guest::new().backend(Backend::Wakes(50)).run(async |domain| {
        let console = domain.console();
        console.write_all(&[b'a'; 2000]).await.unwrap();
        assert_eq!(timeout(MS, console.write(&[b'b'; 100])).await, Err(Elapsed));
        // There is room for this one.
        assert_eq!(console.write(&[b'c'; 48]).await, Ok(48));
        assert_eq!(console.write(&[b'd'; 1]).await, Ok(1));
        assert_eq!(console.write(b"").await, Ok(0));
    });
    assert_eq!(report.console_text(), format!("{}{}d", "a".repeat(2000), "c".repeat(48)));
}

#[test]
fn an_event_storm_without_progress_keeps_nobody() {
    let report = Guest::new().backend(Backend::Storms).run(async |domain| {
        let (console, limit) = (domain.console(), if cfg!(miri) { 2 * MS } else { 20 * MS });
        assert_eq!(timeout(limit, console.write_all(&pattern(5000))).await, Err(Elapsed));
        assert_eq!(timeout(limit, console.read(&mut [0; 8])).await, Err(Elapsed));
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
    assert!(report.elapsed_ns < 6_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
fn a_backend_slower_than_its_limit_is_given_up() {
    // A byte for each wait is progress without end: 2000 bytes would take eight minutes.
    let report = Guest::new().backend(Backend::Crawls).run(async |domain| {
        domain.console().write_all(&pattern(2000)).await.unwrap();
        assert_eq!(domain.console().flush().await, Err(ConsoleError::Stalled));
        log_lines(10);
    });
    let read = report.console.len();
    // Four seconds for the flush, and what is left for the end.
    assert!((4_000_000_000..8_000_000_000).contains(&report.elapsed_ns), "{} ns", report.elapsed_ns);
    assert!(report.console == pattern(2000)[..read]);
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
    for (number, lie) in lies.into_iter().enumerate().take(if cfg!(miri) { 2 } else { 5 }) {
        let report = Guest::new().console_index(5000).backend(Backend::Lies(1000, lie)).run(async move |domain| {
            let console = domain.console();
            // A task that waits for input learns it too.
            let reading = spawn(async move { console.read(&mut [0; 8]).await });
            yield_now().await;
            assert_eq!(console.write_all(&pattern(5000)).await, Err(ConsoleError::Corrupt), "{number}");
            assert_eq!(reading.await, Err(ConsoleError::Corrupt));
            assert_eq!(console.write(b"x").await, Err(ConsoleError::Corrupt));
            assert_eq!(console.flush().await, Err(ConsoleError::Corrupt));
            log::info!("this line is lost, and nothing else is");
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{number}: {}", report.debug_text());
        assert_eq!(report.debug_text(), "domu: console closed: its backend shows an impossible index\n");
        assert!(report.elapsed_ns < 1_000_000_000);
    }
}

#[test]
fn lies_about_input_close_the_console_too() {
    for lie in [1028, 1 << 31, u32::MAX, 2].into_iter().take(if cfg!(miri) { 1 } else { 4 }) {
        Guest::new()
            .after(MS, |outside| outside.type_in("abcdef"))
            .after(2 * MS, move |outside| outside.lie_about_input(lie))
            .run(async |domain| {
                let console = domain.console();
                assert_eq!(console.read(&mut [0; 3]).await, Ok(3));
                sleep(3 * MS).await;
                assert_eq!(console.read(&mut [0; 8]).await, Err(ConsoleError::Corrupt));
                assert_eq!(console.write(b"x").await, Err(ConsoleError::Corrupt));
            })
            .powered_off();
    }
}

#[test]
fn a_backend_that_comes_back_is_told_what_was_lost() {
    let report = Guest::new().backend(Backend::Wakes(20)).run(async |domain| {
        log_lines(MANY);
        while domain.console().flush().await.is_err() {}
        log::info!("the end");
    });
    let text = report.console_text();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert!(text.ends_with("\r\nINFO  console: the end\r\n"), "{text}");
    let arrived = lines.iter().filter(|line| line.starts_with("INFO  console: line ") && line.ends_with(LONG)).count();
    let notice = lines.iter().find_map(|line| line.strip_prefix("WARN  domu: ")).expect("a notice of lost lines");
    let lost: usize = notice.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    assert_eq!(arrived + lost, MANY);
    assert_eq!(lines.len(), arrived + 2, "nothing but whole lines, the notice and the end");
}

#[test]
fn an_end_tells_what_was_lost() {
    let report = Guest::new().backend(Backend::Trickles(100)).run(async |_| log_lines(MANY));
    assert!(report.console_text().ends_with(" log lines were dropped\r\n"), "{}", report.console_text());
}

#[test]
fn log_lines_end_in_crlf_and_raw_output_does_not() {
    let report = Guest::new().run(async |domain| -> domu::Result {
        log::warn!("two\nlines\r\nand three");
        domain.console().write_all(b"raw\n").await?;
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
fn one_notification_for_a_turn_while_the_backend_is_busy() {
    let report = Guest::new().backend(Backend::Wakes(1)).run(async |domain| {
        for _ in 0..20 {
            log::info!("a line");
            domain.console().write_all(b"and more").await.unwrap();
        }
        yield_now().await;
        yield_now().await;
    });
    // Of the first line at once, of the rest together.
    assert_eq!(sends(&report), 2);
}

#[test]
fn a_port_that_refuses_is_survived() {
    let guest = Guest::new().backend(Backend::StopsAfter(0)).fault(|call, op| {
        (call == domu::sim::abi::xen::Hypercall::EventChannel && op == 4)
            .then_some(domu::sim::abi::errno::Errno::EINVAL)
    });
    let report = guest.run(async |domain| {
        assert_eq!(timeout(MS, domain.console().write_all(&pattern(3000))).await, Err(Elapsed));
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}

#[test]
fn a_wait_that_is_refused_is_bounded_by_the_clock() {
    // It spins until then: Miri some thousand times, and not a million.
    let look = if cfg!(miri) { MS } else { MS / 1000 };
    let guest = Guest::new().clock_look(look).backend(Backend::StopsAfter(0)).fault(|call, op| {
        (call == domu::sim::abi::xen::Hypercall::Sched && op == 3).then_some(domu::sim::abi::errno::Errno::ENOSYS)
    });
    let (report, result) = write(guest, pattern(2000));
    assert_eq!(result, Ok(()));
    assert!(report.elapsed_ns < 6_000_000_000, "{} ns", report.elapsed_ns);
}

#[test]
fn input_arrives_byte_for_byte_and_the_backend_learns_of_room() {
    let size = if cfg!(miri) { 1500 } else { 100_000 };
    for index in [0, u32::MAX / 3 - 500] {
        let received = Rc::new(RefCell::new(Vec::<u8>::new()));
        let into = Rc::clone(&received);
        let report = Guest::new()
            .console_index(index)
            .after(MS, move |outside| outside.type_in(pattern(size)))
            .run(async move |domain| {
                let mut bytes = [0; 600];
                while into.borrow().len() < size {
                    let count = domain.console().read(&mut bytes).await.unwrap();
                    into.borrow_mut().extend(&bytes[..count]);
                }
                assert_eq!(domain.console().read(&mut []).await, Ok(0));
            })
            .powered_off();
        assert!(*received.borrow() == pattern(size));
        // Not one for each read: one for a turn.
        assert!(sends(&report) <= size / 600 + 2, "{}", sends(&report));
    }
}

#[test]
fn a_read_that_is_given_up_has_taken_nothing() {
    Guest::new().after(5 * MS, |outside| outside.type_in("typed late")).run(async |domain| {
        let console = domain.console();
        assert_eq!(timeout(MS, console.read(&mut [0; 8])).await, Err(Elapsed));
        let mut bytes = [0; 20];
        assert_eq!(console.read(&mut bytes).await, Ok(10));
        assert_eq!(&bytes[..10], b"typed late");
    });
}

#[test]
fn waiting_for_input_costs_nothing() {
    let report = Guest::new()
        .after(1000 * MS, |outside| outside.type_in("x"))
        .run(async |domain| {
            assert_eq!(domain.console().read(&mut [0; 8]).await, Ok(1));
        })
        .powered_off();
    // One to wait for the byte.
    assert_eq!(report.halts, 1);
}

#[test]
fn lines_end_as_terminals_and_files_end_them() {
    let long = "y".repeat(MAX_LINE);
    let input = ["one\ntwo\rthree\r\n\nfive\r\r\n", &long, "\n", &long, &long, "z\rafter\n"].concat();
    let expected = ["one", "two", "three", "", "five", "", &long, "?", "after"].map(str::to_owned);
    for piece in [1, 7, input.len()].into_iter().skip(if cfg!(miri) { 2 } else { 0 }) {
        let mut guest = Guest::new();
        for (number, bytes) in input.as_bytes().chunks(piece).enumerate() {
            let bytes = bytes.to_vec();
            guest = guest.after(MS + number as u32 * Duration::from_micros(10), move |outside| outside.type_in(&bytes));
        }
        let expected = expected.clone();
        guest
            .run(async move |domain| {
                let mut lines = domain.console().lines();
                for expected in &expected {
                    match lines.next().await {
                        Ok(line) => assert_eq!(String::from_utf8_lossy(line), *expected),
                        Err(error) => assert_eq!((error, expected.as_str()), (ConsoleError::LineTooLong, "?")),
                    }
                }
                assert_eq!(timeout(MS, lines.next()).await, Err(Elapsed));
            })
            .powered_off();
    }
}

#[test]
fn without_a_console() {
    for guest in
        [Guest::new().backend(Backend::Absent), Guest::new().console_param(0), Guest::new().console_param(u64::MAX)]
    {
        let report = guest.run(async |domain| -> domu::Result {
            log::info!("nobody hears");
            let console = domain.console();
            assert_eq!(console.write(b"x").await, Err(ConsoleError::Absent));
            assert_eq!(console.read(&mut [0]).await, Err(ConsoleError::Absent));
            assert!(!console.is_connected());
            console.flush().await?;
            Ok(())
        });
        // Main failed by its own choice: the message is on the emergency output.
        assert_eq!(report.end, End::Shutdown(Reason::Crash));
        assert_eq!(report.debug_text(), "domu: main failed: console: the domain has no console\n");
        assert!(report.console.is_empty());
    }
    assert_eq!(Error::from(ConsoleError::Absent).to_string(), "console: the domain has no console");
}

#[test]
fn a_ring_that_is_impossible_from_the_start_is_not_used() {
    for ahead in [1, 5, 1 << 31, u32::MAX - 2048] {
        let report = Guest::new().console_consumer_ahead(ahead).run(async |domain| {
            assert_eq!(domain.console().write(b"hello").await, Err(ConsoleError::Absent));
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
        assert_eq!(report.debug_text(), "domu: console closed: its backend shows an impossible index\n");
    }
}

#[test]
fn writing_and_logging_while_a_line_is_formatted() {
    struct Chatty(domu::console::Console);
    impl core::fmt::Display for Chatty {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            self.0.try_write(b"raw\n").map_err(|_| core::fmt::Error)?;
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

#[cfg(feature = "embedded-io-async")]
#[test]
fn the_traits_of_embedded_io_reach_the_console() {
    use embedded_io_async::{Read, Write};

    async fn echo<S: Read + Write>(stream: &mut S, bytes: &mut [u8]) -> Result<(), S::Error> {
        let count = stream.read(bytes).await?;
        stream.write_all(&bytes[..count]).await?;
        stream.flush().await
    }
    let report = Guest::new()
        .after(MS, |outside| outside.type_in("through the traits"))
        .run(async |domain| echo(&mut domain.console(), &mut [0; 64]).await);
    assert_eq!((report.end, report.console_text().as_str()), (End::Shutdown(Reason::Poweroff), "through the traits"));
}

/// The console's port, and xenstore's.
const CONSOLE: u32 = 2;
const XENSTORE: u32 = 1;

#[test]
fn a_backend_that_is_always_ready_keeps_nobody_from_running() {
    /// Does something so often that others must have had their turns.
    async fn do_often(done: Rc<Cell<u32>>, mut act: impl AsyncFnMut()) {
        while done.get() < 10_000 {
            act().await;
            done.set(done.get() + 1);
        }
        panic!("nobody else has run");
    }
    for reads in [true, false] {
        let report = Guest::new().run(async move |domain| {
            let (console, done) = (domain.console(), Rc::new(Cell::new(0)));
            let mut busy = Box::pin(do_often(done.clone(), async move || {
                if reads {
                    // Its backend is quicker than the domain.
                    outside(|outside| outside.type_in(b"x"));
                    assert_eq!(console.read(&mut [0; 8]).await, Ok(1));
                } else {
                    assert_eq!(console.write(b"x").await, Ok(1));
                }
            }));
            let busy = spawn(async move { busy.as_mut().await });
            for _ in 0..3 {
                let before = done.get();
                yield_now().await;
                yield_now().await;
                assert!((1..=3 * 64).contains(&(done.get() - before)), "{} in two turns", done.get() - before);
            }
            sleep(Duration::from_micros(10)).await;
            drop(busy);
        });
        report.powered_off();
    }
}

#[test]
fn who_waits_for_nothing_finds_what_is_there_in_the_next_turn() {
    let report = Guest::new().run(async |domain| {
        for round in 0..3 {
            let mut finds = 0;
            loop {
                outside(|outside| outside.type_in(b"x"));
                match timeout(Duration::ZERO, domain.console().read(&mut [0; 8])).await {
                    Ok(read) => assert!(read.is_ok()),
                    Err(Elapsed) => break,
                }
                finds += 1;
            }
            assert_eq!(finds, 64, "in round {round}");
            yield_now().await;
        }
    });
    report.powered_off();
}

#[test]
fn events_that_bring_nothing_cost_a_turn_in_a_millisecond() {
    const TIME: Duration = Duration::from_millis(if cfg!(miri) { 20 } else { 200 });
    // For a reader; for lines of the log, with a ring that is full.
    for reads in [true, false] {
        let report = Guest::new().backend(Backend::Idle).run(async move |domain| {
            let reader = spawn(async move { domain.console().read(&mut [0; 8]).await });
            if !reads {
                drop(reader);
                for _ in 0..30 {
                    log::info!("{:0100}", 0);
                }
            }
            yield_now().await;
            // Each event that is delivered brings a turn, and that the next event.
            after_turn(|| outside(|outside| outside.notify(CONSOLE)));
            outside(|outside| outside.notify(CONSOLE));
            sleep(TIME).await;
            let millis = TIME.as_millis() as u64;
            let before = activity();
            sleep(TIME).await;
            let after = activity();
            let (turns, halts) = (after.turns - before.turns, after.halts - before.halts);
            assert!(
                halts >= millis / 2 && turns <= 4 * millis,
                "{reads}: {turns} turns and {halts} halts in {millis} ms"
            );
        });
        report.powered_off();
    }
}

#[test]
fn a_port_that_is_none_or_another_is_not_taken_for_the_consoles() {
    // Xenstore's; none; and one that is the application's by the time the console needs it.
    for port in [XENSTORE, 9, 4].into_iter().skip(if cfg!(miri) { 2 } else { 0 }) {
        let guest = Guest::new().backend(Backend::Idle).xenstore(&Store::new()).console_port_param(port);
        let guest = guest.saves(|| Saved::Cancelled(MS));
        let report = guest.run(async move |domain| -> domu::Result {
            let own = eventchn::bind_ipi()?;
            assert_eq!(own.number(), 4);
            let waiting = spawn(async move { own.after(0).await.map(|_| own) });
            let nodes = domain.xenstore();
            // What is said to be both's is the console's.
            let is_there = port != XENSTORE;
            let expected = if is_there { Ok(()) } else { Err(xenstore::ErrorKind::Absent) };
            assert_eq!(nodes.write("data/first", "1").await.map_err(|error| error.kind()), expected);
            yield_now().await;
            let console = domain.console();
            let refused = eventchn::ErrorKind::NoPeer;
            let read = timeout(MS, console.read(&mut [0])).await;
            match read {
                Ok(Err(ConsoleError::Port(error))) if is_there => assert_eq!(error, refused),
                read => assert!(!is_there && read == Err(Elapsed), "{read:?}"),
            }
            for _ in 0..30 {
                log::info!("{:0100}", 0);
            }
            yield_now().await;
            // Who waited is still woken.
            outside(|outside| outside.notify(4));
            let own = waiting.await?;
            own.notify()?;
            assert_eq!(own.after(1).await, Ok(2));
            if is_there {
                // A suspend that comes to nothing polls what is the console's port for a backend that does not read.
                own.notify()?;
                lifecycle::suspend().await?;
                assert!(own.after(2).await? > 2);
                nodes.write("data/second", "2").await?;
            }
            Ok(())
        });
        report.powered_off();
    }
}
