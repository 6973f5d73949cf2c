//! A toolstack that takes its request back, at any moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use domu::lifecycle::Reason;
use domu::sim::Store;

use super::{LONG, MS, SECOND, SHUTDOWN, asked, elapsed, waits};

/// Takes the request back as libxl does: if it is still there. The server is slow, so that this falls between any two of
/// its answers. Either the domain has it, or the toolstack.
#[test]
fn a_request_is_obeyed_or_taken_back_and_never_both() {
    let mut obeyed = 0;
    for server in [Store::new as fn() -> Store, Store::oxenstored] {
        for tenths in 0..120 {
            let store = server();
            store.delay(2 * MS);
            let (dom0, withdrawn) = (store.clone(), Arc::new(AtomicBool::new(false)));
            let taken_back = Arc::clone(&withdrawn);
            let report = asked(&store, "reboot")
                .after(SECOND + tenths * MS / 10, move |_| {
                    dom0.dom0(|dom0| {
                        if dom0.read(SHUTDOWN).as_deref() == Some(b"reboot") {
                            dom0.write(SHUTDOWN, "");
                            taken_back.store(true, Ordering::SeqCst);
                        }
                    });
                })
                .run(waits);
            let has_obeyed = elapsed(&report) < LONG;
            let expected = if has_obeyed { Reason::Reboot } else { Reason::Poweroff };
            super::ended(&report, expected, has_obeyed);
            assert_ne!(has_obeyed, withdrawn.load(Ordering::SeqCst), "after {tenths} tenths of a millisecond");
            assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
            obeyed += u32::from(has_obeyed);
        }
    }
    assert!((20..220).contains(&obeyed), "both are seen: {obeyed}");
}
