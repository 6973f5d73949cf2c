//! What happens by itself.

use std::future::pending;

use domu::executor;
use domu::lifecycle::{self, Reason};
use domu::sim::abi::errno::Errno;
use domu::sim::abi::xen::Hypercall;
use domu::sim::abi::xs_wire::{MessageType, RSP_PROD};
use domu::sim::{End, Guest, Store};
use domu::time;

use super::{LONG, MS, SECOND, SHUTDOWN, asked, elapsed, ended, guest, lines, waits};

const FEATURES: [&str; 3] = [
    "/local/domain/7/control/feature-poweroff",
    "/local/domain/7/control/feature-reboot",
    "/local/domain/7/control/feature-suspend",
];

#[test]
fn each_word_for_an_end_ends_the_domain_with_its_reason_and_is_acknowledged() {
    for (word, reason) in [
        ("poweroff", Reason::Poweroff),
        ("halt", Reason::Poweroff),
        ("reboot", Reason::Reboot),
        ("crash", Reason::Crash),
        ("poweroff\0", Reason::Poweroff),
        (" reboot\n", Reason::Reboot),
    ] {
        for store in [Store::new(), Store::oxenstored()] {
            let report = asked(&store, word).run(waits);
            ended(&report, reason, true);
            assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]), "{word}");
            assert!(elapsed(&report) < SECOND + SECOND, "{word}: {:?}", elapsed(&report));
        }
    }
}

#[test]
fn a_word_from_before_the_domain_looks_is_obeyed() {
    // It is there when the first watch is made.
    let store = Store::new();
    let report = guest(&store).after(MS / 1000, {
        let store = store.clone();
        move |_| store.write(SHUTDOWN, "reboot")
    });
    ended(&report.run(waits), Reason::Reboot, true);
}

#[test]
fn what_can_be_asked_for_is_advertised_where_the_store_lets_it() {
    let store = Store::new();
    guest(&store).run(async |_| time::sleep(SECOND).await);
    assert_eq!(
        FEATURES.map(|feature| store.read(feature)),
        [const { Some([b'1']) }; 3].map(|value| value.map(Vec::from))
    );
    assert_eq!(store.watches(7), [], "the domain is gone");
}

/// A host that balances memory takes a domain for one to be balanced if it writes below `memory`.
#[test]
fn of_its_home_a_domain_writes_what_is_for_its_end_alone() {
    let store = Store::new();
    ended(&asked(&store, "poweroff").run(waits), Reason::Poweroff, true);
    let changing = [MessageType::WRITE, MessageType::MKDIR, MessageType::RM, MessageType::SET_PERMS];
    let log = store.log();
    let changed: Vec<_> = log.iter().filter(|(_, ty, _)| changing.contains(ty)).map(|(_, _, path)| path).collect();
    assert!(changed.len() >= 4, "features, a port, and the answer to a request");
    let is_for_it = |path: &[u8]| path.starts_with(b"control/") || path.starts_with(b"device/suspend/event-channel\0");
    assert!(changed.iter().all(|path| is_for_it(path)), "{changed:?}");
    assert!(!store.list("/local/domain/7/memory").iter().any(|name| name == "meminfo"));
}

#[test]
fn a_store_that_refuses_to_be_written_to_keeps_no_domain_alive() {
    for store in [Store::new(), Store::oxenstored()] {
        let dom0 = store.clone();
        let report = asked(&store, "poweroff")
            .after(MS / 1000, move |_| {
                for node in FEATURES.into_iter().chain([SHUTDOWN]) {
                    dom0.set_permissions(node, &["n0", "r7"]);
                }
            })
            .run(waits);
        ended(&report, Reason::Poweroff, true);
        assert_eq!(
            lines(&report, "is not acknowledged: xenstore: cannot write control/shutdown: permission denied"),
            1,
            "{}",
            report.console_text()
        );
        assert_eq!(lines(&report, "feature"), 0, "that is nobody's business: {}", report.console_text());
        assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b"poweroff"[..]));
        assert_eq!(FEATURES.map(|feature| store.read(feature)), [const { Some(Vec::new()) }; 3]);
    }
}

#[test]
fn words_that_nobody_knows_are_told_and_left() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        for (count, word) in
            [&b"s3"[..], b"poweroffs", b"POWEROFF", b"\xff\0\x1b[2J", &[b'x'; 2000]].into_iter().enumerate()
        {
            store.write(SHUTDOWN, word);
            time::sleep(SECOND).await;
            assert_eq!(lifecycle::stat().unknown, count as u64 + 1);
            assert_eq!(store.read(SHUTDOWN).as_deref(), Some(word));
        }
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Poweroff, false);
    assert_eq!(lines(&report, "unknown shutdown request"), 5, "{}", report.console_text());
    assert!(!report.console_text().contains('\x1b'), "escapes do not reach the terminal");
}

#[test]
fn empty_words_and_events_without_one_do_nothing() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        for _ in 0..10 {
            store.write(SHUTDOWN, "");
            store.write(SHUTDOWN, "\0");
            store.remove(SHUTDOWN);
            time::sleep(MS).await;
        }
        assert_eq!(lifecycle::stat(), lifecycle::Stat::default());
        let begun = store.log().iter().filter(|(_, ty, _)| *ty == MessageType::TRANSACTION_START).count();
        assert_eq!(begun, 0, "nothing is to be acknowledged");
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Poweroff, false);
}

#[test]
fn conflicts_with_the_toolstack_are_done_again_and_the_request_is_obeyed_once() {
    for fails in [1, 5, 20] {
        let store = Store::new();
        let mut left = fails;
        store.refuse(move |ty, _| {
            let refused = ty == MessageType::TRANSACTION_END && left > 0;
            left -= u32::from(refused);
            refused.then_some("EAGAIN")
        });
        let report = asked(&store, "reboot").run(waits);
        ended(&report, Reason::Reboot, true);
        assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
        assert_eq!(lines(&report, "not acknowledged"), 0, "{}", report.console_text());
    }
}

#[test]
fn a_request_that_cannot_be_acknowledged_is_obeyed_within_a_bound() {
    for error in ["EAGAIN", "ENOSPC", "EIO", "EROFS"] {
        let store = Store::new();
        store.refuse(move |ty, _| (ty == MessageType::TRANSACTION_END).then_some(error));
        let report = asked(&store, "poweroff").run(waits);
        ended(&report, Reason::Poweroff, true);
        assert!(elapsed(&report) < 4 * SECOND, "{error}: {:?}", elapsed(&report));
        assert_eq!(lines(&report, "is not acknowledged"), 1, "{error}: {}", report.console_text());
    }
    // A server that dies in the middle of it.
    let store = Store::new();
    store.tamper(
        |_, message| {
            if message.header.ty == MessageType::TRANSACTION_START { Vec::new() } else { Vec::from([message]) }
        },
    );
    let report = asked(&store, "poweroff").run(waits);
    ended(&report, Reason::Poweroff, true);
    assert!(elapsed(&report) < 4 * SECOND, "{:?}", elapsed(&report));
    assert_eq!(lines(&report, "is not acknowledged: no answer"), 1, "{}", report.console_text());
}

#[test]
fn a_bad_answer_does_not_lose_a_request() {
    let store = Store::new();
    let mut bad = 2;
    let report = asked(&store, "poweroff")
        .after(SECOND / 2, {
            let store = store.clone();
            move |_| {
                store.refuse(move |ty, _| {
                    let refused = ty == MessageType::READ && bad > 0;
                    bad -= i32::from(refused);
                    refused.then_some("EIO")
                });
            }
        })
        .run(waits);
    ended(&report, Reason::Poweroff, true);
}

#[test]
fn requests_that_can_never_be_read_are_given_up_until_the_next_event() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        store.refuse(|ty, _| (ty == MessageType::READ).then_some("EIO"));
        store.write(SHUTDOWN, "poweroff");
        time::sleep(SECOND).await;
        let reads = || store.log().iter().filter(|(_, ty, _)| *ty == MessageType::READ).count();
        let before = reads();
        time::sleep(LONG / 2).await;
        assert_eq!(reads(), before, "there is no asking for ever");
        store.behave();
        store.write(SHUTDOWN, "poweroff");
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Poweroff, true);
    assert_eq!(lines(&report, "cannot read control/shutdown"), 1, "{}", report.console_text());
}

#[test]
fn a_connection_that_breaks_and_begins_anew_brings_requests_still() {
    let store = Store::oxenstored();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        store.set_word(7, RSP_PROD, 12345);
        time::sleep(SECOND).await;
        store.write(SHUTDOWN, "reboot");
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Reboot, true);
}

#[test]
fn a_connection_that_is_broken_for_good_is_told_once_and_the_domain_runs_on() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        store.set_word(7, RSP_PROD, 12345);
        time::sleep(SECOND).await;
        let halts = executor::activity().halts;
        time::sleep(LONG).await;
        assert_eq!(executor::activity().halts, halts + 1);
    });
    ended(&report, Reason::Poweroff, false);
    assert_eq!(lines(&report, "cannot receive shutdown requests"), 1, "{}", report.console_text());
}

#[test]
fn what_was_left_for_the_end_is_done_before_a_requested_end_and_has_a_bound() {
    let store = Store::new();
    let report = asked(&store, "reboot").run(async |_| {
        executor::at_exit(async {
            time::sleep(SECOND).await;
            log::info!("said farewell");
        });
        waits_for_ever().await;
    });
    ended(&report, Reason::Reboot, true);
    assert_eq!(lines(&report, "said farewell"), 1, "{}", report.console_text());
    assert!(elapsed(&report) > 2 * SECOND);

    let store = Store::new();
    let report = asked(&store, "reboot").run(async |_| {
        executor::at_exit(pending());
        waits_for_ever().await;
    });
    ended(&report, Reason::Reboot, true);
    assert!((10 * SECOND..13 * SECOND).contains(&elapsed(&report)), "{:?}", elapsed(&report));
}

async fn waits_for_ever() {
    time::sleep(10 * LONG).await;
}

#[test]
fn a_crash_that_is_asked_for_has_a_message_and_leaves_nothing_to_be_done_first() {
    let store = Store::new();
    let report = asked(&store, "crash").run(async |_| {
        executor::at_exit(async { log::info!("said farewell") });
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Crash, true);
    assert!(report.debug_text().contains("the toolstack asked for a crash"));
    assert_eq!(lines(&report, "the toolstack asked for a crash"), 1);
    assert_eq!(lines(&report, "said farewell"), 0);
}

#[test]
fn an_idle_domain_is_not_woken() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        let before = executor::activity();
        time::sleep(LONG).await;
        assert_eq!(executor::activity().halts - before.halts, 1);
    });
    ended(&report, Reason::Poweroff, false);
}

#[test]
fn a_main_that_does_not_wait_pays_nothing() {
    let run = |guest: Guest| {
        let report = guest.run(async |_| log::info!("hello"));
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
        report.hypercalls
    };
    assert_eq!(run(Guest::new().obedient()), run(Guest::new()));
}

#[test]
fn obeying_costs_a_waiting_main_a_port_and_three_notifications_once() {
    let run = |guest: Guest| {
        let report = guest.run(async |_| time::sleep(SECOND).await);
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
        (report.hypercalls.len(), report.halts)
    };
    let (plain, halts) = run(Guest::new());
    let (obedient, more_halts) = run(Guest::new().obedient());
    // The port is looked at before it is taken.
    assert_eq!((obedient - plain, more_halts - halts), (1 + 1 + 3, 0), "the simulated server answers at once");
}

#[test]
fn without_xenstore_nothing_of_it_runs() {
    let run = |guest: Guest| {
        let report = guest.run(async |_| {
            time::sleep(SECOND).await;
            assert_eq!(executor::activity().halts, 1);
        });
        ended(&report, Reason::Poweroff, true);
        (report.hypercalls, report.debug, report.console)
    };
    for guest in [|| Guest::new().without_xenstore(), || Guest::new().initial_domain()] {
        assert_eq!(run(guest().obedient()), run(guest()));
    }
}

#[test]
fn a_main_that_nothing_can_wake_is_told_so_as_before() {
    let dead = Store::new();
    dead.stop();
    for store in [Store::new(), Store::oxenstored(), dead, Store::new().connects_after(LONG)] {
        let report = guest(&store).run(async |_| pending::<()>().await);
        assert_eq!(report.end, End::Shutdown(Reason::Crash));
        assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
    }
    // Nor does it count that there was a request once, which nobody knows.
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        store.write(SHUTDOWN, "s5");
        time::sleep(SECOND).await;
        pending::<()>().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
}

#[test]
fn a_dead_store_keeps_no_main_from_working_and_ending() {
    let store = Store::new();
    store.stop();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        let halts = executor::activity().halts;
        time::sleep(SECOND).await;
        assert_eq!(executor::activity().halts, halts + 1);
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
    assert_eq!(elapsed(&report).as_secs(), 2);
}

#[test]
fn a_store_that_cannot_be_notified_keeps_no_main_from_working() {
    const SEND: u64 = 4;
    let report = Guest::new()
        .obedient()
        .fault(|call, operation| (call == Hypercall::EventChannel && operation == SEND).then_some(Errno::EINVAL))
        .run(async |_| time::sleep(SECOND).await);
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}
