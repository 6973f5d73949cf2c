//! The ring's page, and a server that misbehaves.

use crate::sim::xenstored::tests::*;

#[test]
fn the_server_reads_no_further_while_twenty_replies_wait() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/platform/long", "x".repeat(1000));
    // The first reply fills the ring.
    for _ in 0..22 {
        client.send(Ty::READ, 0, b"platform/long\0");
    }
    assert_eq!(client.word(REQ_PROD).wrapping_sub(client.word(REQ_CONS)), 30);
    assert_eq!(store.log().len(), 21);
    let replies: Vec<u32> = client.messages().iter().map(|message| message.header.req_id).collect();
    assert_eq!(replies, (1..=22).collect::<Vec<_>>());
}

#[test]
fn indices_may_stand_anywhere() {
    for index in [1, u32::MAX - 20, u32::MAX / 3 - 5, 1 << 31] {
        let mut client = Client::at(&Store::new(), 7, index);
        assert_eq!(client.word(REQ_CONS), index);
        for _ in 0..100 {
            assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
        }
    }
}

#[test]
fn who_sends_the_impossible_is_served_no_more() {
    for offered in [0, FEATURE_ERROR] {
        let store = Store::new().features(offered);
        let mut client = Client::new(&store);
        assert_eq!((client.word(SERVER_FEATURES), client.word(ERROR)), (offered, 0));
        let mut header = [0; 16];
        header[12..].copy_from_slice(&4097_u32.to_le_bytes());
        client.put(&header);
        assert_eq!(store.error(7), Some(ERROR_PROTOCOL));
        assert_eq!(client.word(ERROR), if offered == 0 { 0 } else { ERROR_PROTOCOL });
        client.send(Ty::READ, 0, b"name\0");
        assert!(client.messages().is_empty());
        for offset in [REQ_PROD, RSP_CONS] {
            let mut client = Client::new(&store);
            client.page.u32(offset).store(1025, Ordering::Release);
            client.notify();
            assert_eq!(store.error(7), Some(ERROR_RING_INDEX));
        }
    }
}

#[test]
fn a_connection_begins_anew_where_that_is_offered() {
    let store = Store::oxenstored();
    let mut client = Client::at(&store, 7, 77);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
    client.start().unwrap();
    client.messages();
    // Half a request, and an index that cannot be.
    client.put(&[2, 0, 0, 0, 1]);
    client.page.u32(RSP_CONS).store(1 << 20, Ordering::Release);
    client.notify();
    assert_eq!(store.error(7), Some(ERROR_RING_INDEX));
    client.page.u32(CONNECTION).store(RECONNECT, Ordering::Release);
    client.notify();
    let words = [CONNECTION, REQ_PROD, REQ_CONS, RSP_PROD, RSP_CONS, ERROR].map(|offset| client.word(offset));
    assert_eq!(words, [0; 6]);
    assert!(store.watches(7).is_empty() && store.transactions(7) == 0 && store.error(7).is_none());
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
    drop(client);
    // Elsewhere the word is nobody's.
    let mut client = Client::new(&Store::new());
    client.page.u32(CONNECTION).store(RECONNECT, Ordering::Release);
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
    assert_eq!(client.word(CONNECTION), RECONNECT);
}

#[test]
fn a_connection_may_be_made_after_the_domain() {
    let mut client = Client::new(&Store::new().connects_after(Duration::from_micros(5)));
    assert_eq!(client.word(CONNECTION), RECONNECT);
    client.wait(4_999);
    assert_eq!((client.word(CONNECTION), client.raised), (RECONNECT, 0));
    client.wait(5_000);
    assert_eq!((client.word(CONNECTION), client.raised), (CONNECTED, 1));
    assert_eq!(client.ask(Ty::READ, "name\0"), text("guest7"));
}

#[test]
fn a_server_may_be_late_slow_and_silent() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.delay(Duration::from_nanos(50));
    client.send(Ty::READ, 0, b"name\0");
    client.wait(49);
    assert!(client.messages().is_empty() && client.raised == 0);
    client.wait(50);
    assert_eq!(client.messages().len(), 1);
    store.behave();
    store.pace(1);
    let raised = client.raised;
    client.send(Ty::READ, 0, b"name\0");
    client.wait(1_000_000);
    // 21 bytes there and 22 back, of which the first goes in the turn of the last of those.
    assert_eq!(client.raised - raised, 21 + 22 - 1);
    assert_eq!(client.messages().len(), 1);
    store.behave();
    store.stop();
    client.send(Ty::READ, 0, b"name\0");
    client.wait(1_000_000_000);
    assert!(client.messages().is_empty());
    store.behave();
    client.wait(1_000_000_000);
    assert_eq!(client.messages().len(), 1);
}

#[test]
fn a_server_may_say_anything() {
    let store = Store::new();
    let mut client = Client::new(&store);
    // Another number, a length that is none, nothing at all, and twice what was held back.
    let (mut count, mut kept) = (0, None);
    store.tamper(move |domain, mut message| {
        assert_eq!(domain, 7);
        count += 1;
        match count {
            1 => message.header.req_id = 99,
            2 => message.header.len = 2,
            3 => return vec![],
            4 => {
                kept = Some(message);
                return vec![];
            }
            _ => return [message].into_iter().chain(kept.clone()).chain(kept.take()).collect(),
        }
        vec![message]
    });
    let ids: Vec<u32> = (0..5).map(|_| client.send(Ty::READ, 0, b"domid\0")).collect();
    client.take();
    let bytes = core::mem::take(&mut client.received);
    // All replies are 17 bytes; the second claims 18, and so on.
    assert_eq!(bytes.len(), 5 * 17);
    assert_eq!((bytes[4], bytes[17 + 12]), (99, 2));
    let numbers: Vec<u32> = bytes[34..].chunks(17).map(|message| u32::from(message[4])).collect();
    assert_eq!(numbers, [ids[4], ids[3], ids[3]]);
    store.behave();
    store.refuse(|ty, payload| (ty == Ty::READ && payload == b"name\0").then_some("EWEIRD"));
    assert_eq!(client.ask(Ty::READ, "name\0"), error("EWEIRD"));
    assert_eq!(client.ask(Ty::READ, "domid\0"), text("7"));
    // The end of a transaction that is refused is its end all the same.
    let id = client.start().unwrap();
    store.refuse(|ty, _| (ty == Ty::TRANSACTION_END).then_some("EAGAIN"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("EAGAIN"));
    assert_eq!(store.transactions(7), 0);
    // Messages that nobody asked for, and words of the page.
    store.send(7, &Message::event("data", "unknown"));
    store.set_word(7, RSP_PROD, 5000);
    let raised = client.raised;
    client.wait(0);
    assert_eq!((client.word(RSP_PROD), client.raised), (5000, raised + 1));
}
