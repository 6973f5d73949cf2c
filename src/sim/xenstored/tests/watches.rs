//! Watches, and who hears of what when.

use crate::sim::xenstored::tests::*;

#[test]
fn a_watch_fires_at_once_and_then_for_what_is_below() {
    let store = Store::new();
    let mut client = Client::new(&store);
    let id = client.send(Ty::WATCH, 0, b"data\0rel\0");
    let messages = client.messages();
    assert_eq!((messages[0].header.ty, messages[0].header.req_id), (Ty::WATCH, id));
    assert_eq!(Client::event(&messages[1]), "data rel");
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/7/data/x\0abs\0"), ok());
    assert_eq!(client.events(), ["/local/domain/7/data/x abs"]);
    assert_eq!(client.ask(Ty::WATCH, "data/none\0none\0"), ok());
    assert_eq!(client.events(), ["data/none none"]);
    store.write("/local/domain/7/data/x/y", "1");
    client.wait(0);
    assert_eq!(client.events(), ["data/x/y rel", "/local/domain/7/data/x/y abs"]);
    // A change of permissions is one; what only begins alike is not below.
    store.set_permissions("/local/domain/7/data/x", &["n7"]);
    store.write("/local/domain/7/data/xx", "");
    client.wait(0);
    assert_eq!(client.events(), ["data/x rel", "/local/domain/7/data/x abs", "data/xx rel"]);
    assert_eq!(client.ask(Ty::MKDIR, "data/x\0"), ok());
    assert!(client.events().is_empty());
    // Each of a pair of path and token is one; a token may be any text, or none.
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/7/data\0rel\0"), error("EEXIST"));
    assert_eq!(client.ask(Ty::WATCH, "data\0\0"), ok());
    assert_eq!(client.events(), ["data "]);
    assert_eq!(store.watches(7).len(), 4);
    assert_eq!(client.ask(Ty::UNWATCH, "data\0rel\0"), ok());
    assert_eq!(client.ask(Ty::UNWATCH, "data\0rel\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::RESET_WATCHES, "\0"), ok());
    store.write("/local/domain/7/data/x", "");
    client.wait(0);
    assert!(client.events().is_empty() && store.watches(7).is_empty());
}

#[test]
fn a_watch_below_what_is_removed_is_told_its_own_path() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/7/data/a/b/c", "");
    for watch in ["data/a/b/c", "data", "data/a/b/none"] {
        assert_eq!(client.ask(Ty::WATCH, format!("{watch}\0t\0")), ok());
    }
    client.events();
    store.remove("/local/domain/7/data/a");
    client.wait(0);
    assert_eq!(client.events(), ["data/a t", "data/a/b/c t"]);
}

#[test]
fn events_are_for_who_may_read() {
    let store = Store::new();
    let (mut client, mut other) = (Client::new(&store), Client::at(&store, 8, 0));
    assert_eq!(other.ask(Ty::WATCH, "/local/domain/7/data\0t\0"), ok());
    assert_eq!(other.ask(Ty::WATCH, "@releaseDomain\0t\0"), ok());
    assert_eq!(other.events(), ["/local/domain/7/data t", "@releaseDomain t"]);
    assert_eq!(client.ask(Ty::WRITE, "data/secret\0"), ok());
    assert_eq!(client.ask(Ty::WRITE, "data/open\0"), ok());
    store.fire("@releaseDomain");
    other.wait(0);
    assert!(other.events().is_empty());
    assert_eq!(client.ask(Ty::SET_PERMS, "data/open\0r7\0"), ok());
    store.set_permissions("@releaseDomain", &["r0"]);
    store.fire("@introduceDomain");
    drop(client);
    other.wait(0);
    assert_eq!(other.events(), ["/local/domain/7/data/open t", "@releaseDomain t", "@releaseDomain t"]);
}

#[test]
fn a_watch_has_a_depth_where_that_is_offered() {
    let mut client = Client::new(&Store::new());
    assert_eq!(client.ask(Ty::WATCH, "data\0t\x001\0"), error("EINVAL"));
    drop(client);
    let store = Store::new().features(FEATURE_WATCH_DEPTH);
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WATCH, "data\0t\x001\0"), ok());
    client.events();
    store.write("/local/domain/7/data/a", "");
    store.write("/local/domain/7/data/a/b", "");
    client.wait(0);
    assert_eq!(client.events(), ["data/a t"]);
}

#[test]
fn each_server_has_its_order_of_events_and_replies() {
    for (store, events_first) in [(Store::new(), true), (Store::oxenstored(), false)] {
        let mut client = Client::new(&store);
        assert_eq!(client.ask(Ty::WATCH, "data\0t\0"), ok());
        client.messages();
        client.send(Ty::WRITE, 0, b"data/x\0");
        let types: Vec<Ty> = client.messages().iter().map(|message| message.header.ty).collect();
        let expected = if events_first { [Ty::WATCH_EVENT, Ty::WRITE] } else { [Ty::WRITE, Ty::WATCH_EVENT] };
        assert_eq!(types, expected);
    }
}

#[test]
fn dom0_reacts_as_a_back_end_does() {
    let store = Store::new();
    let mut client = Client::new(&store);
    store.write("/local/domain/0/backend/vif/7/0/state", "2");
    store.set_permissions("/local/domain/0/backend/vif/7/0/state", &["n0", "r7"]);
    store.react("/local/domain/7/data/state", |dom0, path| {
        let state = dom0.read(path).unwrap_or_default();
        if state == b"3" {
            dom0.write("/local/domain/0/backend/vif/7/0/state", "4");
        }
    });
    assert_eq!(client.ask(Ty::WATCH, "/local/domain/0/backend/vif/7/0/state\0t\0"), ok());
    client.events();
    assert_eq!(client.ask(Ty::WRITE, "data/state\x003"), ok());
    assert_eq!(client.events(), ["/local/domain/0/backend/vif/7/0/state t"]);
    assert_eq!(client.ask(Ty::READ, "/local/domain/0/backend/vif/7/0/state\0"), text("4"));
}
