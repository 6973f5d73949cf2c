//! Receivers that are dropped at any step of receiving and acknowledging a request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use domu::executor::yield_now;
use domu::lifecycle::{self, Reason, ShutdownRequest};
use domu::sim::{End, Guest, Store};
use domu::time;

use super::{LONG, MS, SECOND, SHUTDOWN, elapsed, ended, guest, lines};

const SYSRQ: &str = "/local/domain/7/control/sysrq";
/// More turns of the main loop than receiving a request takes.
const MOST: usize = 200;

/// Polls a future in each turn, `polls` times, and drops it then, unless it is ready earlier.
async fn polled<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        // Each look at the clock takes some time, in which the server works.
        let _ = time::now();
        let output = future.as_mut().poll(context).map(Some);
        context.waker().wake_by_ref();
        output
    })
    .await
}

/// Runs a test for each number of polls, until the future was ready before it was dropped; says how many there were.
fn at_each_poll(mut test: impl FnMut(usize) -> bool) {
    let steps = (0..MOST).take_while(|&polls| !test(polls)).count();
    assert!((5..MOST).contains(&steps), "{steps} steps");
}

fn servers() -> [Store; 2] {
    [Store::new(), Store::oxenstored()]
}

#[test]
fn dropped_next_loses_no_request() {
    let mut acknowledged = 0;
    for server in 0..2 {
        at_each_poll(|polls| {
            let store = &servers()[server];
            let (mut was_ready, mut early) = (false, false);
            let report = Guest::new().xenstore(store).run(async |domain| -> domu::Result {
                let mut stream = domain.shutdown_requests();
                assert_eq!(time::timeout(SECOND, stream.next()).await, Err(time::Elapsed));
                store.write(SHUTDOWN, "suspend");
                let mut received: Vec<_> = polled(polls, stream.next()).await.transpose()?.into_iter().collect();
                was_ready = !received.is_empty();
                // The toolstack asks again as soon as it may.
                early = store.read(SHUTDOWN).as_deref() == Some(b"");
                if !early {
                    time::sleep(SECOND).await;
                    received.extend(time::timeout(SECOND, stream.next()).await.ok().transpose()?);
                    assert_eq!(received, [ShutdownRequest::Suspend], "dropped after {polls} polls");
                }
                assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
                store.write(SHUTDOWN, "poweroff");
                while let Ok(request) = time::timeout(SECOND, stream.next()).await {
                    received.push(request?);
                }
                let expected = [ShutdownRequest::Suspend, ShutdownRequest::Poweroff];
                assert_eq!(received, expected, "dropped after {polls} polls, early: {early}");
                assert_eq!((lifecycle::stat().requests, store.transactions(7)), (2, 0));
                Ok(())
            });
            report.powered_off();
            acknowledged += u32::from(early && !was_ready);
            was_ready
        });
    }
    assert!(acknowledged > 0, "some were dropped between the acknowledgement and its reply");
}

#[test]
fn dropped_next_loses_no_key() {
    for server in 0..2 {
        at_each_poll(|polls| {
            let store = &servers()[server];
            let mut was_ready = false;
            let report = Guest::new().xenstore(store).run(async |domain| -> domu::Result {
                let mut stream = domain.sysrq();
                assert_eq!(time::timeout(SECOND, stream.next()).await, Err(time::Elapsed));
                store.write(SYSRQ, "a");
                let mut received: Vec<u8> = polled(polls, stream.next()).await.transpose()?.into_iter().collect();
                was_ready = !received.is_empty();
                let is_acknowledged = store.read(SYSRQ).as_deref() == Some(b"");
                // The toolstack overwrites a key that was not acknowledged.
                store.write(SYSRQ, "b");
                while let Ok(key) = time::timeout(SECOND, stream.next()).await {
                    received.push(key?);
                }
                let expected: &[u8] = if is_acknowledged { b"ab" } else { b"b" };
                assert_eq!(received, expected, "dropped after {polls} polls");
                assert_eq!(store.read(SYSRQ).as_deref(), Some(&b""[..]));
                Ok(())
            });
            report.powered_off();
            was_ready
        });
    }
}

#[test]
fn dropped_stream_leaves_its_request_to_default() {
    for server in 0..2 {
        at_each_poll(|polls| {
            let store = &servers()[server];
            let mut was_ready = false;
            let report = guest(store).run(async |domain| {
                let mut stream = domain.shutdown_requests();
                let _ = time::timeout(SECOND, stream.next()).await;
                store.write(SHUTDOWN, "reboot");
                was_ready = polled(polls, stream.next()).await.is_some();
                drop(stream);
                time::sleep(LONG).await;
            });
            let reason = if was_ready { Reason::Poweroff } else { Reason::Reboot };
            ended(&report, reason, !was_ready);
            assert!(was_ready || elapsed(&report) < SECOND + SECOND / 2, "{polls}: {:?}", elapsed(&report));
            was_ready
        });
    }
}

#[test]
fn dropped_stream_leaves_its_key_to_the_log() {
    at_each_poll(|polls| {
        let store = Store::new();
        let mut was_ready = false;
        let report = guest(&store).run(async |domain| {
            let mut stream = domain.sysrq();
            let _ = time::timeout(SECOND, stream.next()).await;
            store.write(SYSRQ, "h");
            was_ready = polled(polls, stream.next()).await.is_some();
            drop(stream);
            time::sleep(SECOND).await;
            assert_eq!(lifecycle::stat().sysrq, 1);
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
        assert_eq!(lines(&report, "sysrq: 'h'"), usize::from(!was_ready), "{polls}: {}", report.console_text());
        was_ready
    });
}

#[test]
fn dropped_stream_leaves_its_request_to_another() {
    at_each_poll(|polls| {
        let store = Store::new();
        let mut was_ready = false;
        let report = guest(&store).run(async |domain| {
            let (mut stream, mut other) = (domain.shutdown_requests(), domain.shutdown_requests());
            let _ = time::timeout(SECOND, stream.next()).await;
            let other = domu::executor::spawn(async move { time::timeout(LONG, other.next()).await });
            time::sleep(SECOND).await;
            store.write(SHUTDOWN, "reboot");
            was_ready = polled(polls, stream.next()).await.is_some();
            drop(stream);
            time::sleep(SECOND).await;
            // One of the two has it.
            assert_eq!(other.is_finished(), !was_ready, "dropped after {polls} polls");
            assert_eq!(lifecycle::stat().requests, 1);
        });
        assert_eq!(report.end, End::Shutdown(Reason::Poweroff), "{}", report.debug_text());
        // Either may be the first in the turn of the last poll.
        was_ready || polls + 1 == MOST / 4
    });
}

#[test]
fn request_taken_back_after_a_drop_is_not_received() {
    let mut taken_back = 0;
    at_each_poll(|polls| {
        let store = Store::new();
        let mut was_ready = false;
        let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
            let mut stream = domain.shutdown_requests();
            let _ = time::timeout(SECOND, stream.next()).await;
            store.write(SHUTDOWN, "reboot");
            let mut received: Vec<_> = polled(polls, stream.next()).await.transpose()?.into_iter().collect();
            was_ready = !received.is_empty();
            let is_there = store.read(SHUTDOWN).as_deref() == Some(b"reboot");
            if is_there {
                store.write(SHUTDOWN, "poweroff");
                taken_back += 1;
            }
            while let Ok(request) = time::timeout(SECOND, stream.next()).await {
                received.push(request?);
            }
            let expected = if is_there { ShutdownRequest::Poweroff } else { ShutdownRequest::Reboot };
            assert_eq!(received, [expected], "dropped after {polls} polls");
            Ok(())
        });
        report.powered_off();
        was_ready
    });
    assert!(taken_back > 0);
}

/// The store lets nothing be written, so the request stays in its node.
#[test]
fn request_left_in_the_node_is_received_once() {
    for (refused, error) in [("EACCES", "permission denied"), ("", "no answer")] {
        let store = Store::new();
        let report = guest(&store).run(async |domain| -> domu::Result {
            let (mut stream, mut other) = (domain.shutdown_requests(), domain.shutdown_requests());
            let _ = time::timeout(SECOND, stream.next()).await;
            let _ = time::timeout(SECOND, other.next()).await;
            match refused {
                "" => store.tamper(|_, message| {
                    let is_start = message.header.ty == domu::sim::abi::xs_wire::MessageType::TRANSACTION_START;
                    if is_start { Vec::new() } else { Vec::from([message]) }
                }),
                error => store.refuse(move |ty, _| {
                    (ty == domu::sim::abi::xs_wire::MessageType::TRANSACTION_END).then_some(error)
                }),
            }
            store.write(SHUTDOWN, "reboot");
            assert_eq!(stream.next().await?, ShutdownRequest::Reboot);
            assert_eq!(time::timeout(SECOND, stream.next()).await, Err(time::Elapsed));
            assert_eq!(time::timeout(SECOND, other.next()).await, Err(time::Elapsed));
            drop((stream, other));
            time::sleep(LONG).await;
            assert_eq!(lifecycle::stat().requests, 1);
            Ok(())
        });
        ended(&report, Reason::Poweroff, false);
        assert_eq!(lines(&report, error), 1, "{}", report.console_text());
    }
}

/// Each event of the watch has the acknowledgement tried once more.
#[test]
fn request_left_in_the_node_is_acknowledged_later() {
    use domu::sim::abi::xs_wire::MessageType;
    let store = Store::new();
    let report = Guest::new().xenstore(&store).run(async |domain| -> domu::Result {
        let mut stream = domain.shutdown_requests();
        let _ = time::timeout(SECOND, stream.next()).await;
        store.refuse(|ty, _| (ty == MessageType::TRANSACTION_END).then_some("EIO"));
        store.write(SHUTDOWN, "poweroff");
        assert_eq!(stream.next().await?, ShutdownRequest::Poweroff);
        let begun = || store.log().iter().filter(|(_, ty, _)| *ty == MessageType::TRANSACTION_START).count();
        for attempts in 2..12 {
            store.write(SHUTDOWN, "poweroff");
            assert_eq!(time::timeout(LONG, stream.next()).await, Err(time::Elapsed));
            assert_eq!(begun(), attempts);
        }
        store.behave();
        store.write(SHUTDOWN, "poweroff");
        assert_eq!(time::timeout(SECOND, stream.next()).await, Err(time::Elapsed), "it was received before");
        assert_eq!(store.read(SHUTDOWN).as_deref(), Some(&b""[..]));
        store.write(SHUTDOWN, "poweroff");
        assert_eq!(time::timeout(SECOND, stream.next()).await, Ok(Ok(ShutdownRequest::Poweroff)));
        assert_eq!((lifecycle::stat().requests, store.transactions(7)), (2, 0));
        Ok(())
    });
    let report = report.powered_off();
    assert_eq!(lines(&report, "is not acknowledged"), 1, "{}", report.console_text());
}

/// A stream that is made while the default handler acknowledges a request gets it.
#[test]
fn stream_made_during_acknowledgement_gets_request() {
    let mut both = [0; 2];
    for turns in 0..MOST / 4 {
        let store = Store::new();
        let mut received = false;
        let report = guest(&store).run(async |domain| {
            time::sleep(SECOND).await;
            store.write(SHUTDOWN, "reboot");
            for _ in 0..turns {
                let _ = time::now();
                yield_now().await;
            }
            let mut stream = domain.shutdown_requests();
            received = time::timeout(SECOND, stream.next()).await.is_ok();
            time::sleep(LONG).await;
        });
        let reason = if received { Reason::Poweroff } else { Reason::Reboot };
        ended(&report, reason, !received);
        both[usize::from(received)] += 1;
    }
    assert!(both[0] > 0 && both[1] > 5, "{both:?}");
}

/// A slow server: the future is dropped between any two of its answers.
#[test]
fn dropped_next_loses_no_request_of_a_slow_server() {
    for tenths in 1..60 {
        let store = Store::new();
        let report = guest(&store).run(async |domain| {
            let mut stream = domain.shutdown_requests();
            let _ = time::timeout(SECOND, stream.next()).await;
            store.delay(MS);
            store.write(SHUTDOWN, "reboot");
            let received = time::timeout(tenths * MS / 10, stream.next()).await;
            drop(stream);
            if received.is_ok() {
                domu::lifecycle::finish(Reason::Reboot).await;
            }
            time::sleep(LONG).await;
        });
        ended(&report, Reason::Reboot, true);
        assert!(elapsed(&report) < 2 * SECOND, "{tenths}: {:?}", elapsed(&report));
    }
}
