//! Servers that answer with what makes no sense, or not at all.

use std::time::Duration;

use domu::executor::{activity, after_turn, spawn, yield_now};
use domu::sim::abi::xs_wire::{
    ERROR, ERROR_COMM, FEATURE_ERROR, FEATURE_RECONNECTION, MessageType, REQ_CONS, RSP_PROD,
};
use domu::sim::{Message, Store, outside};
use domu::time;
use domu::xenstore::{Code, ErrorKind};

use super::{ME, MS, count, run};

/// The server's port.
const PORT: u32 = 1;

/// Shows an index that cannot be.
pub fn break_connection(server: &Store) {
    server.set_word(ME, RSP_PROD, 0x7fff_0000);
}

#[test]
fn a_reply_that_makes_no_sense_fails_its_request_alone() {
    // The predecessor's client died of any of them.
    type Lie = fn(Message) -> Message;
    let lies: [(Lie, ErrorKind); 5] = [
        (
            |message| Message {
                header: domu::sim::abi::xs_wire::Header { ty: MessageType::WRITE, ..message.header },
                ..message
            },
            ErrorKind::Malformed,
        ),
        (
            |message| Message {
                header: domu::sim::abi::xs_wire::Header { ty: MessageType(999), ..message.header },
                ..message
            },
            ErrorKind::Malformed,
        ),
        (|message| Message::new(MessageType::ERROR, message.header.req_id, 0, "EDOOFUS\0"), ErrorKind::Malformed),
        (|message| Message::new(MessageType::ERROR, message.header.req_id, 0, vec![0xff; 4096]), ErrorKind::Malformed),
        (|message| Message::new(MessageType::ERROR, message.header.req_id, 0, ""), ErrorKind::Malformed),
    ];
    for (lie, expected) in lies {
        let server = Store::new();
        run(&server, async |domain| {
            let store = domain.xenstore();
            server.tamper(move |_, message| {
                vec![if message.header.ty == MessageType::READ && message.payload == b"wrong" {
                    lie(message)
                } else {
                    message
                }]
            });
            server.write("/local/domain/7/data/wrong", "wrong");
            let other = spawn(async move { domain.xenstore().read("name").await });
            match store.read("data/wrong").await.unwrap_err().kind() {
                ErrorKind::Refused(Code::Unknown(code)) => assert!(code.as_str().len() <= 23),
                error => assert_eq!(error, expected),
            }
            other.await?;
            store.read("name").await?;
            Ok(())
        });
    }
}

#[test]
fn listings_permissions_and_numbers_that_make_no_sense_are_errors() {
    for payload in [&b"no end"[..], b"\0", b"a\0\0", b"a/b\0", b"\xff\0", b"x 7\0", b"T"] {
        let server = Store::new();
        run(&server, async |domain| {
            let store = domain.xenstore();
            server.tamper(move |_, mut message| {
                message.payload = payload.to_vec();
                message.header.len = payload.len() as u32;
                vec![message]
            });
            assert_eq!(store.directory("data").await.unwrap_err(), ErrorKind::Malformed, "{}", payload.escape_ascii());
            assert_eq!(store.permissions("data").await.map_err(|error| error.kind()), Err(ErrorKind::Malformed));
            assert_eq!(store.begin().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Malformed));
            assert_eq!(store.home_of(domain.id()).await.map_err(|error| error.kind()), Err(ErrorKind::Malformed));
            assert_eq!(store.is_introduced(domain.id()).await.map_err(|error| error.kind()), Err(ErrorKind::Malformed));
            server.behave();
            store.begin().await?.commit().await?;
            Ok(())
        });
    }
}

#[test]
fn replies_that_nobody_asked_for_are_ignored() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        store.read("name").await?;
        for id in [0, 1000, u32::MAX] {
            server.send(ME, &Message::new(MessageType::READ, id, 0, "surprise"));
            server.send(ME, &Message::new(MessageType(12345), id, 9, vec![7; 4096]));
            server.send(ME, &Message::new(MessageType::ERROR, id, 0, "EIO\0"));
        }
        server.tamper(|_, message| vec![message.clone(), message]);
        for _ in 0..30 {
            assert_eq!(store.read("domid").await?.number(), Ok(ME));
        }
        Ok(())
    });
}

#[test]
fn two_transactions_of_one_number_are_not_two() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        server.tamper(|_, mut message| {
            if message.header.ty == MessageType::TRANSACTION_START {
                message.payload = b"5\0".to_vec();
                message.header.len = 2;
            }
            vec![message]
        });
        let one = store.begin().await?;
        assert_eq!(store.begin().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Malformed));
        drop(one);
        Ok(())
    });
}

#[test]
fn a_transactions_number_that_is_given_again_ends_no_other() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        server.tamper(|_, message| {
            let begins = message.header.ty == MessageType::TRANSACTION_START;
            vec![if begins { Message::new(message.header.ty, message.header.req_id, 0, "5\0") } else { message }]
        });
        // The end of the first and the beginning of the second are answered in one turn.
        let one = store.begin().await?;
        let end = spawn(one.commit());
        let other = store.clone();
        let two = spawn(async move { other.begin().await });
        assert_eq!(end.await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        // Its end is asked for once, and was not by the first.
        assert_eq!(count(&server, MessageType::TRANSACTION_END), 1);
        assert_eq!(two.await?.abort().await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        time::sleep(MS).await;
        assert_eq!(count(&server, MessageType::TRANSACTION_END), 2);
        Ok(())
    });
}

/// Ways to break a connection.
fn breakers() -> [fn(&Store); 5] {
    [
        break_connection,
        |server| server.set_word(ME, RSP_PROD, u32::MAX),
        |server| server.set_word(ME, REQ_CONS, 0x4000_0000),
        |server| server.set_word(ME, ERROR, ERROR_COMM),
        |server| {
            let mut message = Message::new(MessageType::READ, 1, 0, "x");
            message.header.len = 4097;
            server.send(ME, &message);
        },
    ]
}

#[test]
fn an_impossible_stream_ends_the_connection_with_an_error_for_all() {
    for breaker in breakers() {
        let server = Store::new().features(FEATURE_ERROR);
        run(&server, async |domain| {
            let store = domain.xenstore();
            let mut watch = store.watch("data/w").await?;
            watch.next().await?;
            server.tamper(|_, _| Vec::new());
            let tasks: Vec<_> = (0..40)
                .map(|_| {
                    let store = domain.xenstore();
                    spawn(async move { store.read("name").await })
                })
                .collect();
            time::sleep(MS).await;
            breaker(&server);
            for task in tasks {
                assert_eq!(task.await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
            }
            assert_eq!(watch.next().await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
            assert_eq!(watch.next().await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
            assert_eq!(store.read("name").await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
            assert_eq!(store.watch("name").await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Broken));
            Ok(())
        });
    }
}

#[test]
fn where_the_server_offers_it_the_connection_begins_anew_with_all_watches() {
    for (index, breaker) in breakers().into_iter().enumerate() {
        for rounds in [1, 5] {
            let server = Store::oxenstored().features(FEATURE_ERROR | FEATURE_RECONNECTION);
            run(&server, async |domain| {
                let store = domain.xenstore();
                let mut one = store.watch("data/one").await?;
                let mut other = store.watch("data/other").await?;
                for round in 0..rounds {
                    one.next().await?;
                    other.next().await?;
                    breaker(&server);
                    // What was asked for by then fails, and what comes later does not.
                    let _ = store.read("name").await;
                    assert_eq!(
                        store.read("domid").await.map(|value| value.number()),
                        Ok(Ok(ME)),
                        "{index}, round {round}"
                    );
                    assert_eq!(server.watches(ME).len(), 2);
                    assert_eq!(one.next().await?, "data/one");
                    assert_eq!(other.next().await?, "data/other");
                    server.write("/local/domain/7/data/one/x", "");
                    assert_eq!(one.next().await?, "data/one/x");
                    server.write("/local/domain/7/data/one/y", "");
                    server.write("/local/domain/7/data/other/y", "");
                }
                Ok(())
            });
        }
    }
}

#[test]
fn features_that_nobody_knows_are_not_used() {
    let server = Store::new().features(0xffff_fff4);
    run(&server, async |domain| {
        let store = domain.xenstore();
        store.write("data/x", "1").await?;
        // There is no offer to begin anew, and no word of an error.
        server.set_word(ME, ERROR, ERROR_COMM);
        assert_eq!(store.read("data/x").await?, "1");
        break_connection(&server);
        assert_eq!(store.read("data/x").await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        assert_eq!(store.read("data/x").await.map_err(|error| error.kind()), Err(ErrorKind::Broken));
        Ok(())
    });
}

/// Its server's events, without anything in the ring.
#[test]
fn events_that_bring_nothing_cost_a_turn_in_a_millisecond_here_too() {
    const TIME: Duration = Duration::from_millis(if cfg!(miri) { 20 } else { 200 });
    run(&Store::new(), async move |domain| {
        let mut watch = domain.xenstore().watch("data").await?;
        let _ = watch.next().await?;
        let waiting = spawn(async move { watch.next().await });
        yield_now().await;
        // Each event that is delivered brings a turn, and that the next event.
        after_turn(|| outside(|outside| outside.notify(PORT)));
        time::sleep(TIME).await;
        let before = activity();
        time::sleep(TIME).await;
        let (turns, halts) = (activity().turns - before.turns, activity().halts - before.halts);
        let millis = TIME.as_millis() as u64;
        assert!(halts >= millis / 2 && turns <= 4 * millis, "{turns} turns and {halts} halts in {millis} ms");
        // What does come, comes.
        domain.xenstore().write("data/there", "1").await?;
        assert!(waiting.await.is_ok());
        Ok(())
    });
}
