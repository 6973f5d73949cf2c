//! Keys of `xl sysrq`.

use std::future::pending;

use domu::lifecycle::{self, Reason};
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{End, Store};
use domu::time;

use super::{LONG, SECOND, ended, guest, lines};

const SYSRQ: &str = "/local/domain/7/control/sysrq";

#[test]
fn keys_that_nobody_wants_are_logged_and_acknowledged() {
    for store in [Store::new(), Store::oxenstored()] {
        let report = guest(&store).run(async |_| {
            time::sleep(SECOND).await;
            for key in ["h", "h", "b\0", "\x1b", "\n"] {
                store.write(SYSRQ, key);
                time::sleep(SECOND).await;
                assert_eq!(store.read(SYSRQ).as_deref(), Some(&b""[..]), "{key:?}");
            }
            assert_eq!(lifecycle::stat().sysrq, 5);
            time::sleep(LONG).await;
        });
        ended(&report, Reason::Poweroff, false);
        assert_eq!(lines(&report, "sysrq: 'h'"), 2, "{}", report.console_text());
        assert_eq!(lines(&report, "sysrq: 'b'"), 1, "{}", report.console_text());
        assert_eq!(lines(&report, r"sysrq: '\x1b'"), 1, "{}", report.console_text());
        assert_eq!(lines(&report, r"sysrq: '\n'"), 1, "{}", report.console_text());
    }
}

#[test]
fn the_application_gets_the_keys_while_it_holds_the_stream() {
    let store = Store::new();
    let report = guest(&store).run(async |domain| -> domu::Result {
        let mut keys = domain.sysrq();
        time::sleep(SECOND).await;
        for key in *b"abc" {
            store.write(SYSRQ, [key]);
            assert_eq!(keys.next().await?, key);
            assert_eq!(time::timeout(SECOND, keys.next()).await, Err(time::Elapsed));
        }
        store.write(SYSRQ, "d");
        drop(keys);
        time::sleep(LONG).await;
        assert_eq!(lifecycle::stat().sysrq, 4);
        Ok(())
    });
    ended(&report, Reason::Poweroff, false);
    assert_eq!((lines(&report, "sysrq: 'd'"), lines(&report, "sysrq:")), (1, 1), "{}", report.console_text());
}

#[test]
fn a_key_that_is_asked_for_is_no_shutdown() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        store.write(SYSRQ, "poweroff");
        time::sleep(LONG).await;
    });
    ended(&report, Reason::Poweroff, false);
    assert_eq!(lines(&report, "sysrq: 'p'"), 1);
}

/// What it owes is nothing that could wake main.
#[test]
fn a_server_that_dies_while_a_key_is_acknowledged_hides_no_deadlock() {
    let store = Store::new();
    let report = guest(&store).run(async |_| {
        time::sleep(SECOND).await;
        let mut dead = false;
        store.tamper(move |_, message| {
            let before = dead;
            dead |= message.header.ty == MessageType::TRANSACTION_START;
            if before { Vec::new() } else { Vec::from([message]) }
        });
        store.write(SYSRQ, "h");
        time::sleep(10 * SECOND).await;
        assert_eq!(lifecycle::stat().sysrq, 1);
        pending::<()>().await;
    });
    assert_eq!(report.end, End::Shutdown(Reason::Crash));
    assert!(report.debug_text().contains("nothing is left that could wake it"), "{}", report.debug_text());
    assert_eq!(lines(&report, "is not acknowledged: no answer"), 1, "{}", report.console_text());
}
