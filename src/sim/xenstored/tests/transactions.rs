//! Transactions, their conflicts, and quotas.

use crate::sim::xenstored::tests::*;

#[test]
fn a_transaction_is_seen_when_it_is_committed() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
    client.events();
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::WRITE, "data/x/y\x001"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.ask_in(id, Ty::DIRECTORY, "data\0"), text("x|"));
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), error("ENOENT"));
    assert!(client.events().is_empty());
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.events(), ["data/x/y t"]);
    // It is gone, as is one that was dropped.
    assert_eq!(client.ask_in(id, Ty::READ, "data\0"), error("ENOENT"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x/y\0"), error("ENOENT"));
    assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "F\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y\0"), text("1"));
    assert_eq!(client.ask(Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
    assert!(client.events().is_empty());
}

#[test]
fn a_transaction_in_conflict_is_to_be_done_again() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/data/x", "0");
    let cases: [(&[u8], &str); 4] =
        [(b"data/x\0", "/data/x"), (b"data/y\0", "/data/y"), (b"data\0", "/data/z"), (b"data/x\0", "/data")];
    for (number, (read, written)) in cases.into_iter().enumerate() {
        let id = client.start().unwrap();
        let _ = client.ask_in(id, Ty::READ, read);
        assert_eq!(client.ask_in(id, Ty::WRITE, format!("drivers/d\0{number}")), ok());
        store.write(&format!("/local/domain/7{written}"), "1");
        // The last one has seen the node below only.
        let expected = if number < 3 { error("EAGAIN") } else { ok() };
        assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), expected, "{number}");
        assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "T\0"), error("ENOENT"));
        let value = store.read("/local/domain/7/drivers/d");
        assert_eq!(value.is_some(), number == 3);
    }
    // What it has read it reads again, whatever others do.
    let id = client.start().unwrap();
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), text("1"));
    store.write("/local/domain/7/data/x", "2");
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), text("1"));
    assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
    assert_eq!(client.ask_in(id, Ty::READ, "data/x\0"), error("ENOENT"));
}

#[test]
fn quotas_are_refused_in_the_words_of_each_server() {
    for (store, watches, names) in [
        (Store::new(), 128, ["E2BIG", "ENOSPC", "ENOSPC", "ENOSPC"]),
        (Store::oxenstored(), 100, ["EQUOTA", "EQUOTA", "E2BIG", "EQUOTA"]),
    ] {
        let mut client = Client::new(&store);
        (0..watches).for_each(|number| assert_eq!(client.ask(Ty::WATCH, format!("data\0{number}\0")), ok()));
        assert_eq!(client.ask(Ty::WATCH, "data\0more\0"), error(names[0]));
        assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
        let ids: Vec<u32> = (0..10).map(|_| client.start().unwrap()).collect();
        assert_eq!(client.start(), Err(names[1].to_string()));
        assert_eq!(client.ask_in(ids[0], Ty::TRANSACTION_START, "\0"), error("EBUSY"));
        assert_eq!(client.ask_in(ids[3], Ty::TRANSACTION_END, "F\0"), ok());
        assert_eq!(client.start().map(|_| ()), Ok(()));
        // A message as long as can be is refused for what it holds.
        let mut longest = b"data/x\0".to_vec();
        longest.resize(4096, b'v');
        assert_eq!(client.ask(Ty::WRITE, &longest), error(names[2]));
        longest.truncate(2007);
        assert_eq!(client.ask(Ty::WRITE, &longest), ok());
        // A directory of the guest's is a node, too, in one of them.
        let mut count = 0;
        let refused = loop {
            match client.ask(Ty::MKDIR, format!("data/d{}/n{count}\0", count / 100)) {
                Ok(_) => count += 1,
                Err(name) => break name,
            }
        };
        assert_eq!(refused, names[3]);
        // The thirteen of the toolstack's, one value, and ten directories count.
        assert_eq!(count, 1000 - 13 - 1 - 10);
    }
}

#[test]
fn a_transaction_is_not_of_any_size() {
    // One server counts the nodes that it has seen, with those above that were looked at; the other, its requests.
    for (store, requests, name) in [(Store::new(), 1023, "ENOSPC"), (Store::oxenstored(), 1024, "EQUOTA")] {
        let mut client = Client::new(&store);
        let id = client.start().unwrap();
        for number in 0..requests {
            assert_eq!(client.ask_in(id, Ty::READ, format!("data/n{number}\0")), error("ENOENT"));
        }
        assert_eq!(client.ask_in(id, Ty::READ, "data/more\0"), error(name));
        assert_eq!(client.ask_in(id, Ty::TRANSACTION_END, "F\0"), ok());
    }
}
