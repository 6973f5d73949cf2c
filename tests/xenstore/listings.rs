//! Directory listings in parts, of servers that never come to an end.

use std::cell::Cell;
use std::rc::Rc;

use domu::executor::{spawn, yield_now};
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{Message, Store};
use domu::xenstore::{ErrorKind, MAX_LISTING};
use domu::{time, xenbus};

use super::{MS, count, run};

/// A server that gives every listing in parts: `part` makes the payload of each from its number, which counts from one.
fn server(mut part: impl FnMut(usize) -> Vec<u8> + Send + 'static) -> Store {
    let server = Store::new();
    let mut number = 0;
    server.refuse(|ty, _| match ty {
        MessageType::DIRECTORY => Some("E2BIG"),
        // Answered below.
        MessageType::DIRECTORY_PART => Some("EIO"),
        _ => None,
    });
    server.tamper(move |_, message| {
        if message.header.ty == MessageType::ERROR && message.payload == b"EIO\0" {
            number += 1;
            let payload = part(number);
            return vec![Message::new(MessageType::DIRECTORY_PART, message.header.req_id, 0, payload)];
        }
        vec![message]
    });
    server
}

/// A part of a generation, with the same name so often.
fn part(generation: usize, name: &str, count: usize) -> Vec<u8> {
    let mut payload = format!("{generation}\0").into_bytes();
    payload.extend(format!("{name}\0").into_bytes().repeat(count));
    payload
}

/// Lists a directory of the server's, beside another task. Returns the number of names or the error, and the requests that
/// it took.
fn list(server: &Store) -> (Result<usize, ErrorKind>, usize) {
    let result = Cell::new(Ok(0));
    run(server, async |domain| {
        let turns = Rc::new(Cell::new(0_usize));
        let other = Rc::clone(&turns);
        let task = spawn(async move {
            loop {
                other.set(other.get() + 1);
                yield_now().await;
            }
        });
        result.set(domain.xenstore().directory("data").await.map(|names| names.len()).map_err(|error| error.kind()));
        let requests = count(server, MessageType::DIRECTORY_PART);
        assert!(turns.get() >= requests, "another task had {} turns in {requests} requests", turns.get());
        drop(task);
        // The connection is as good as before.
        domain.xenstore().read("name").await?;
        Ok(())
    });
    (result.get(), count(server, MessageType::DIRECTORY_PART))
}

#[test]
fn endless_listing_is_an_error() {
    // 2,045 names of two bytes each.
    let parts = MAX_LISTING / 4090 + 1;
    assert_eq!(list(&server(|_| part(1, "a", 2045))), (Err(ErrorKind::ListingTooLong), parts));
}

#[test]
fn listing_at_the_limit_is_whole() {
    let server = server(|number| {
        let mut payload = part(1, "a", 1024);
        payload.extend((number == MAX_LISTING / 2048).then_some(0));
        payload
    });
    assert_eq!(list(&server), (Ok(MAX_LISTING / 2), MAX_LISTING / 2048));
}

#[test]
fn listing_in_tiny_parts_is_an_error() {
    assert_eq!(list(&server(|_| part(1, "a", 1))), (Err(ErrorKind::ListingTooLong), 256));
}

#[test]
fn listing_of_changing_generation_is_an_error() {
    // At once, and after a while: 16 attempts.
    assert_eq!(list(&server(|number| part(number, "a", 100))), (Err(ErrorKind::Conflict), 16 * 2));
    assert_eq!(list(&server(|number| part(number / 50, "a", 100))).0, Err(ErrorKind::Conflict));
    let late = list(&server(|number| part(number / 250, "a", 1)));
    assert_eq!(late.0, Err(ErrorKind::Conflict));
    assert!(late.1 <= 16 * 256, "{} requests", late.1);
}

#[test]
fn listing_of_malformed_parts_is_an_error() {
    for payload in [&b"1\0"[..], b"1", b"", b"1\0a", b"1\0a\0\0b\0", b"1\0a/b\0", b"1\0\xff\0", b"x\0a\0"] {
        let (result, requests) = list(&server(|_| payload.to_vec()));
        assert_eq!((result, requests), (Err(ErrorKind::Malformed), 1), "{}", payload.escape_ascii());
        // The same in the middle of a listing.
        let (result, requests) = list(&server(|number| if number < 5 { part(1, "a", 9) } else { payload.to_vec() }));
        assert_eq!((result, requests), (Err(ErrorKind::Malformed), 5), "{}", payload.escape_ascii());
    }
}

#[test]
fn listing_without_an_answer_can_be_timed_out() {
    let server = server(|_| part(1, "a", 1));
    server.delay(MS);
    run(&server, async |domain| {
        let store = domain.xenstore();
        assert_eq!(time::timeout(20 * MS, store.directory("data")).await.map(|_| ()), Err(time::Elapsed));
        Ok(())
    });
    assert!(count(&server, MessageType::DIRECTORY_PART) <= 21);
}

#[test]
fn devices_beyond_the_limit_are_an_error() {
    let path = |index| format!("/local/domain/7/device/vif/{index}");
    let server = Store::new();
    run(&server, async |domain| {
        server.dom0(|dom0| (0..xenbus::MAX_DEVICES).for_each(|index| dom0.write(&path(index), "")));
        assert_eq!(xenbus::frontends(&domain.xenstore(), "vif").await?.len(), xenbus::MAX_DEVICES);
        server.write(&path(xenbus::MAX_DEVICES), "");
        assert_eq!(xenbus::frontends(&domain.xenstore(), "vif").await.unwrap_err(), xenbus::ErrorKind::TooManyDevices);
        // So are as many domains, and fewer devices whose paths have more than 256 KiB in all.
        server.dom0(|dom0| {
            for index in 0..=xenbus::MAX_DEVICES {
                dom0.write(&format!("/local/domain/7/backend/vif/{index}/0"), "");
            }
            for index in 0..200 {
                dom0.write(&format!("/local/domain/7/backend/long/{}/{index:01500}", index / 100), "");
            }
        });
        assert_eq!(xenbus::backends(&domain.xenstore(), "vif").await.unwrap_err(), xenbus::ErrorKind::TooManyDevices);
        assert_eq!(xenbus::backends(&domain.xenstore(), "long").await.unwrap_err(), xenbus::ErrorKind::TooManyDevices);
        Ok(())
    });
}
