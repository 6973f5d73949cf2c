//! The application decides.

use domu::executor::spawn;
use domu::lifecycle::{self, Reason, ShutdownRequest};
use domu::sim::{End, Guest, Store};
use domu::time;
use domu::xenstore::ErrorKind;

use super::{LONG, MS, SECOND, SHUTDOWN, elapsed, ended, guest};

#[test]
fn the_application_gets_each_request_once_and_the_domain_runs_on() {
    for (store, obedient) in [(Store::new(), true), (Store::oxenstored(), true), (Store::new(), false)] {
        let domain = if obedient { guest(&store) } else { Guest::new().xenstore(&store) };
        let report = domain.run(async |domain| -> domu::Result {
            let mut requests = domain.shutdown_requests();
            time::sleep(SECOND).await;
            for (word, expected, reason, left) in [
                ("poweroff", ShutdownRequest::Poweroff, Some(Reason::Poweroff), ""),
                ("reboot", ShutdownRequest::Reboot, Some(Reason::Reboot), ""),
                ("halt", ShutdownRequest::Halt, Some(Reason::Poweroff), ""),
                ("crash", ShutdownRequest::Crash, Some(Reason::Crash), ""),
                ("suspend", ShutdownRequest::Suspend, None, ""),
                ("poweroff", ShutdownRequest::Poweroff, Some(Reason::Poweroff), ""),
            ] {
                store.write(SHUTDOWN, word);
                let request = requests.next().await?;
                assert_eq!((request.reason(), request), (reason, expected));
                assert_eq!(store.read(SHUTDOWN).as_deref(), Some(left.as_bytes()), "{word}");
                assert_eq!(time::timeout(SECOND, requests.next()).await, Err(time::Elapsed), "{word} comes once");
            }
            store.write(SHUTDOWN, "s4");
            let ShutdownRequest::Unknown(word) = requests.next().await? else { panic!("nobody knows s4") };
            assert_eq!(word, "s4");
            time::sleep(LONG).await;
            assert_eq!(lifecycle::stat().requests, 7);
            Ok(())
        });
        ended(&report, Reason::Poweroff, false);
    }
}

#[test]
fn without_the_stream_the_domain_obeys_again() {
    // A request that came while the stream was held, and was not fetched; and one that comes later.
    for while_held in [true, false] {
        let store = Store::new();
        let report = guest(&store).run(async |domain| {
            let requests = domain.shutdown_requests();
            let other = domain.shutdown_requests();
            time::sleep(SECOND).await;
            if while_held {
                store.write(SHUTDOWN, "reboot");
            }
            time::sleep(SECOND).await;
            drop(requests);
            time::sleep(SECOND).await;
            drop(other);
            time::sleep(SECOND).await;
            store.write(SHUTDOWN, "reboot");
            time::sleep(LONG).await;
        });
        ended(&report, Reason::Reboot, true);
        let seconds = if while_held { 3 } else { 4 };
        assert_eq!(elapsed(&report).as_secs(), seconds);
    }
}

#[test]
fn a_main_that_waits_for_requests_alone_waits_for_something() {
    let store = Store::new();
    let dom0 = store.clone();
    let report = guest(&store).after(LONG / 2, move |_| dom0.write(SHUTDOWN, "reboot")).run(
        async |domain| -> domu::Result<Reason> {
            let request = domain.shutdown_requests().next().await?;
            Ok(request.reason().unwrap_or(Reason::Crash))
        },
    );
    ended(&report, Reason::Reboot, true);
}

/// The future is dropped at any moment: before the event, between it and the word, while that is acknowledged.
#[test]
fn no_request_is_lost_by_dropping_the_wait_for_it() {
    for tenths in 1..60 {
        let store = Store::new();
        let report = guest(&store).run(async |domain| -> domu::Result {
            let mut requests = domain.shutdown_requests();
            assert_eq!(time::timeout(SECOND, requests.next()).await, Err(time::Elapsed));
            store.delay(MS);
            store.write(SHUTDOWN, "reboot");
            let short = time::timeout(tenths * MS / 10, requests.next()).await;
            let request = match short {
                Ok(request) => request?,
                Err(time::Elapsed) => time::timeout(SECOND, requests.next()).await.expect("it is not lost")?,
            };
            assert_eq!(request, ShutdownRequest::Reboot);
            assert_eq!(time::timeout(SECOND, requests.next()).await, Err(time::Elapsed), "nor does it come twice");
            assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
            Ok(())
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{tenths}: {}", report.debug_text());
        assert_eq!(store.transactions(7), 0);
    }
}

#[test]
fn of_two_streams_one_gets_a_request() {
    let store = Store::new();
    guest(&store).run(async |domain| {
        let (mut one, mut other) = (domain.shutdown_requests(), domain.shutdown_requests());
        let one = spawn(async move { time::timeout(2 * SECOND, one.next()).await.is_ok() });
        let other = spawn(async move { time::timeout(2 * SECOND, other.next()).await.is_ok() });
        time::sleep(SECOND).await;
        store.write(SHUTDOWN, "reboot");
        assert_eq!(u32::from(one.await) + u32::from(other.await), 1);
        assert_eq!(lifecycle::stat().requests, 1);
    });
}

#[test]
fn streams_leave_no_watch_behind() {
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        for _ in 0..1000 {
            let (mut requests, mut keys) = (domain.shutdown_requests(), domain.sysrq());
            let _ = time::timeout(MS, requests.next()).await;
            let _ = time::timeout(MS, keys.next()).await;
        }
        domain.xenstore().read("name").await?;
        assert_eq!(store.watches(7), []);
        Ok(())
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
}

#[test]
fn without_a_store_the_stream_is_an_error_each_time() {
    let report = Guest::new().without_xenstore().obedient().run(async |domain| {
        let (mut requests, mut keys) = (domain.shutdown_requests(), domain.sysrq());
        for _ in 0..3 {
            assert_eq!(requests.next().await.map_err(|error| error.kind()), Err(ErrorKind::Absent));
            assert_eq!(keys.next().await.map_err(|error| error.kind()), Err(ErrorKind::Absent));
        }
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff));
}

#[test]
fn a_broken_store_is_an_error_of_the_stream() {
    let store = Store::new();
    let report = guest(&store).run(async |domain| {
        let mut requests = domain.shutdown_requests();
        let _ = time::timeout(SECOND, requests.next()).await;
        store.set_word(7, domu::sim::abi::xs_wire::RSP_PROD, 12345);
        for _ in 0..3 {
            assert_eq!(requests.next().await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        }
    });
    assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
}
