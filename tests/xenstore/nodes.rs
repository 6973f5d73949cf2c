//! What can be done with nodes and domains.

use domu::DomainId;
use domu::sim::abi::xs_wire::MessageType;
use domu::sim::{Guest, Store};
use domu::xenstore::{Access, ErrorKind, Operation, Permission};

use super::{ME, count, notifications, run, run_guest, sorted};

#[test]
fn failed_request_names_path_and_operation() {
    run(&Store::new(), async |domain| {
        let store = domain.xenstore();
        let error = store.read("data/absent").await.unwrap_err();
        assert_eq!(error.to_string(), "xenstore: cannot read data/absent: no such node");
        assert_eq!((error.operation(), error.path()), (Some(Operation::Read), Some("data/absent")));
        let error = store.write("/local/domain/0/x", "1").await.unwrap_err();
        assert_eq!(error.to_string(), "xenstore: cannot write /local/domain/0/x: permission denied");
        let error = store.watch("a//b").await.map(drop).unwrap_err();
        assert_eq!(error.to_string(), "xenstore: cannot watch a//b: invalid path");
        let transaction = store.begin().await?;
        let error = transaction.read("data/absent").await.unwrap_err();
        assert_eq!((error.operation(), error.path()), (Some(Operation::Read), Some("data/absent")));
        store.write("data/other", "1").await?;
        Ok(())
    });
}

#[test]
fn a_name_is_read_as_the_readme_shows() {
    let server = Store::new();
    run(&server, async |domain| {
        server.write("/local/domain/7/name", "paul");
        let name = domain.xenstore().read("name").await?;
        assert_eq!(format!("{name}"), "paul");
        assert_eq!(domain.xenstore().read("/local/domain/7/name").await?, name);
        Ok(())
    });
}

#[test]
fn who_never_asks_pays_nothing() {
    let report = run(&Store::new(), async |_| Ok(()));
    assert_eq!(notifications(&report), 0);
    let asked = run(&Store::new(), async |domain| domain.xenstore().read("name").await.map(|_| ()).map_err(Into::into));
    assert!(notifications(&asked) > 0);
}

#[test]
fn a_domain_without_xenstore_is_told_so_by_each_operation() {
    for guest in [Guest::new().without_xenstore(), Guest::new().initial_domain()] {
        run_guest(guest, async |domain| {
            let store = domain.xenstore();
            assert_eq!(store.read("name").await.unwrap_err(), ErrorKind::Absent);
            assert_eq!(store.write("name", "x").await.unwrap_err(), ErrorKind::Absent);
            assert_eq!(store.directory("/").await.unwrap_err(), ErrorKind::Absent);
            assert_eq!(store.begin().await.unwrap_err(), ErrorKind::Absent);
            assert_eq!(store.watch("name").await.unwrap_err(), ErrorKind::Absent);
            assert_eq!(store.home_of(DomainId(7)).await.unwrap_err(), ErrorKind::Absent);
            let done = store.transaction(async |nodes| nodes.mkdir("data").await).await;
            assert_eq!(done.unwrap_err(), ErrorKind::Absent);
            Ok(())
        });
    }
}

#[test]
fn nodes_are_made_listed_and_removed_with_any_value() {
    for (server, index) in [(Store::new(), 0), (Store::oxenstored(), u32::MAX - 700)] {
        run_guest(Guest::new().xenstore(&server).xenstore_index(index), async |domain| {
            let store = domain.xenstore();
            let bytes: Vec<u8> = (0..=255).collect();
            for value in [&b""[..], b"x", &bytes, &[7; 1900]] {
                store.write("data/value", value).await?;
                assert_eq!(&*store.read("data/value").await?, value);
                assert_eq!(server.read("/local/domain/7/data/value").unwrap(), value);
            }
            store.mkdir("data/a/b").await?;
            store.mkdir("data/a/b").await?;
            store.write("data/a/c", "").await?;
            assert_eq!(sorted(&store.directory("data/a").await?), ["b", "c"]);
            assert!(store.directory("data/a/b").await?.is_empty());
            store.remove("data/a").await?;
            assert_eq!(store.read("data/a/b").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
            assert_eq!(store.directory("data/a").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
            Ok(())
        });
    }
}

#[test]
fn permissions_are_set_and_read() {
    let server = Store::new();
    run(&server, async |domain| {
        let store = domain.xenstore();
        store.mkdir("data/p").await?;
        let entries = [(ME, Access::None), (0, Access::Both), (3, Access::Read), (4, Access::Write)]
            .map(|(domain, access)| Permission { domain: DomainId(domain), access });
        store.set_permissions("data/p", &entries).await?;
        assert_eq!(store.permissions("data/p").await?, entries);
        assert_eq!(server.permissions("/local/domain/7/data/p").unwrap(), ["n7", "b0", "r3", "w4"]);
        assert_eq!(store.permissions("data/absent").await.map_err(|error| error.kind()), Err(ErrorKind::NotFound));
        Ok(())
    });
}

#[test]
fn domains_are_asked_about_and_a_guest_is_refused_what_it_may_not() {
    run(&Store::new(), async |domain| {
        let store = domain.xenstore();
        assert_eq!(store.home_of(domain.id()).await?, "/local/domain/7");
        assert!(store.is_introduced(domain.id()).await.unwrap_or_else(|error| error == ErrorKind::Denied));
        assert_eq!(
            store.request(MessageType::INTRODUCE, &[b"9", b"1", b"1"]).await.map_err(|error| error.kind()),
            Err(ErrorKind::Denied)
        );
        let refused = store.request(MessageType::WATCH, &[b"a", b"b"]).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Refused(_)), "{refused}");
        assert_eq!(
            store.request(MessageType::READ, &[b"na\0me"]).await.map_err(|error| error.kind()),
            Err(ErrorKind::InvalidValue)
        );
        assert_eq!(store.write("/local/domain/0/x", "").await.map_err(|error| error.kind()), Err(ErrorKind::Denied));
        Ok(())
    });
}

#[test]
#[cfg_attr(miri, ignore = "minutes, of which the server takes most")]
fn a_payload_of_4096_bytes_is_sent_and_one_of_4097_is_not() {
    for server in [Store::new(), Store::oxenstored()] {
        run(&server, async |domain| {
            let store = domain.xenstore();
            let fits = vec![b'v'; 4096 - "data/x".len() - 1];
            assert_eq!(
                store.write("data/x", &fits).await.map_err(|error| error.kind()),
                Err(ErrorKind::Quota),
                "a node has 2048"
            );
            let beyond = vec![b'v'; 4096 - "data/x".len()];
            assert_eq!(store.write("data/x", &beyond).await.map_err(|error| error.kind()), Err(ErrorKind::TooLong));
            assert_eq!(
                store.write("data/x", vec![0; 1 << 20]).await.map_err(|error| error.kind()),
                Err(ErrorKind::TooLong)
            );
            assert_eq!(store.read("no//path").await.map_err(|error| error.kind()), Err(ErrorKind::InvalidPath));
            assert_eq!(store.read("a".repeat(2049)).await.map_err(|error| error.kind()), Err(ErrorKind::InvalidPath));
            let many = [Permission { domain: DomainId(65535), access: Access::Both }; 600];
            assert_eq!(
                store.set_permissions("data/x", &many).await.map_err(|error| error.kind()),
                Err(ErrorKind::TooLong)
            );
            Ok(())
        });
        assert_eq!(server.log().len(), 1, "what cannot be is not sent");
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes, of which the server takes most")]
fn a_directory_beyond_a_message_comes_whole_or_is_an_error_of_its_own() {
    let count = 4000;
    let fill = |store: &Store| {
        store.dom0(|dom0| (0..count).for_each(|i| dom0.write(&format!("/local/domain/7/data/big/{i:060}"), "")));
    };
    let expected: Vec<String> = (0..count).map(|i| format!("{i:060}")).collect();
    let server = Store::new();
    run(&server, async |domain| {
        fill(&server);
        assert_eq!(sorted(&domain.xenstore().directory("data/big").await?), expected);
        Ok(())
    });
    let server = Store::oxenstored();
    run(&server, async |domain| {
        fill(&server);
        assert_eq!(domain.xenstore().directory("data/big").await.map_err(|error| error.kind()), Err(ErrorKind::TooBig));
        Ok(())
    });
}

#[test]
#[cfg_attr(miri, ignore = "minutes, of which the server takes most")]
fn a_directory_that_changes_between_its_parts_is_listed_anew() {
    let server = Store::new();
    let changes = std::cell::Cell::new(0);
    let fill = |server: &Store| {
        server.dom0(|dom0| (0..200).for_each(|i| dom0.write(&format!("/local/domain/7/data/big/{i:060}"), "")));
    };
    run(&server, async |domain| {
        fill(&server);
        let store = domain.xenstore();
        let listing = domu::executor::spawn(async move { store.directory("data/big").await });
        // Dom0 adds a node whenever a part has been asked for, a few times.
        while !listing.is_finished() {
            if count(&server, MessageType::DIRECTORY_PART) > changes.get() && changes.get() < 5 {
                changes.set(changes.get() + 1);
                server.write(&format!("/local/domain/7/data/big/new{}", changes.get()), "");
            }
            domu::executor::yield_now().await;
        }
        let names = listing.await?;
        assert!(names.len() > 200 && names.contains("new5"), "{}", names.len());
        Ok(())
    });
    // And one that changes each time is given up.
    let server = Store::new();
    let mut generation = 0;
    server.tamper(move |_, mut message| {
        if message.header.ty == MessageType::DIRECTORY_PART {
            let end = message.payload.iter().position(|&byte| byte == 0).unwrap();
            let rest = message.payload.split_off(end);
            generation += 1;
            message.payload = generation.to_string().into_bytes();
            message.payload.extend(rest);
            message.header.len = message.payload.len() as u32;
        }
        vec![message]
    });
    run(&server, async |domain| {
        fill(&server);
        assert_eq!(
            domain.xenstore().directory("data/big").await.map_err(|error| error.kind()),
            Err(ErrorKind::Conflict)
        );
        Ok(())
    });
}
