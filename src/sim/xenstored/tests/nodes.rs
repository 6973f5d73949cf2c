//! Values, directories and permissions.

use crate::sim::xenstored::tests::*;

#[test]
fn a_value_is_bytes_and_its_node_is_made_with_those_above() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::READ, "domid\0"), text("7"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/7/name\0"), text("guest7"));
    assert_eq!(client.ask(Ty::WRITE, "data/a/b/c\0x\0y"), ok());
    assert_eq!(client.ask(Ty::READ, "data/a/b/c\0"), text("x|y"));
    assert_eq!(client.ask(Ty::READ, "data/a/b\0"), text(""));
    assert_eq!(client.ask(Ty::WRITE, "data/a/b/c\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/a/b/c\0"), text(""));
    assert_eq!(client.ask(Ty::READ, "data/none\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::DIRECTORY, "data/a\0"), text("b|"));
    assert_eq!(client.ask(Ty::DIRECTORY, "data/a/b/c\0"), text(""));
    assert_eq!(store.read("/local/domain/7/data/a/b/c"), Some(vec![]));
}

#[test]
fn a_node_is_made_once_and_goes_with_what_is_below() {
    let store = Store::new();
    let mut client = Client::new(&store);
    assert_eq!(client.ask(Ty::WRITE, "data/x\0value"), ok());
    assert_eq!(client.ask(Ty::MKDIR, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x\0"), text("value"));
    assert_eq!(client.ask(Ty::MKDIR, "data/x/y/z\0"), ok());
    assert_eq!(client.ask(Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::READ, "data/x/y/z\0"), error("ENOENT"));
    // What is not there is removed, unless it could not be there.
    assert_eq!(client.ask(Ty::RM, "data/x\0"), ok());
    assert_eq!(client.ask(Ty::RM, "data/x/y\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::RM, "/\0"), error("EINVAL"));
    assert_eq!(store.list("/local/domain/7/data"), [""; 0]);
}

#[test]
fn paths_and_payloads_are_checked() {
    let mut client = Client::new(&Store::new());
    for path in ["", "data/", "data//x", "/local/", "data/ü", "data/a b", "data/a.b"] {
        assert_eq!(client.ask(Ty::READ, format!("{path}\0")), error("EINVAL"), "{path}");
    }
    for payload in [&b""[..], b"data", b"data\0x", b"data\0\0", b"\xff\0"] {
        assert_eq!(client.ask(Ty::READ, payload), error("EINVAL"), "{payload:?}");
    }
    let long = |length: usize| format!("data/{}\0", "x".repeat(length - 5));
    assert_eq!(client.ask(Ty::READ, long(2048)), error("ENOENT"));
    assert_eq!(client.ask(Ty::READ, long(2049)), error("EINVAL"));
    assert_eq!(client.ask(Ty::READ, format!("/{}\0", "x".repeat(3072))), error("EINVAL"));
    let mut other = Client::new(&Store::oxenstored());
    assert_eq!(other.ask(Ty::READ, long(1024)), error("ENOENT"));
    assert_eq!(other.ask(Ty::READ, long(1025)), error("EINVAL"));
    assert_eq!(client.ask(Ty(20), "\0"), error("ENOSYS"));
    assert_eq!(client.ask(Ty(99), ""), error("ENOSYS"));
}

#[test]
fn permissions_say_who_may_what() {
    let store = Store::new();
    let (mut client, mut other) = (Client::new(&store), Client::at(&store, 8, 0));
    // The toolstack's nodes are to be read, others' are not even known.
    assert_eq!(client.ask(Ty::WRITE, "domid\x008"), error("EACCES"));
    assert_eq!(client.ask(Ty::WRITE, "new\x008"), error("EACCES"));
    assert_eq!(client.ask(Ty::READ, "none\0"), error("ENOENT"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/8/name\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::READ, "/local/domain/8/none\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::DIRECTORY, "/local/domain\0"), error("EACCES"));
    assert_eq!(client.ask(Ty::GET_PERMS, "domid\0"), text("n0|r7|"));
    // What a guest makes is its own, and it says who else may use it.
    assert_eq!(client.ask(Ty::WRITE, "data/x\0mine"), ok());
    assert_eq!(client.ask(Ty::GET_PERMS, "data/x\0"), text("n7|"));
    let path = "/local/domain/7/data/x\0";
    assert_eq!(other.ask(Ty::READ, path), error("EACCES"));
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r8\0"), ok());
    assert_eq!(other.ask(Ty::READ, path), text("mine"));
    assert_eq!(other.ask(Ty::WRITE, format!("{path}ours")), error("EACCES"));
    assert_eq!(other.ask(Ty::SET_PERMS, format!("{path}n8\0")), error("EACCES"));
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0b7\0"), ok());
    assert_eq!(other.ask(Ty::WRITE, format!("{path}ours")), ok());
    assert_eq!(store.permissions("/local/domain/7/data/x"), Some(vec!["b7".to_string()]));
    store.set_permissions("/local/domain/7/data/x", &["n7", "w8"]);
    assert_eq!(other.ask(Ty::READ, path), error("EACCES"));
    assert_eq!(other.ask(Ty::WRITE, format!("{path}again")), ok());
    // A guest cannot give a node away, and must say something that makes sense.
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n8\0"), error("EPERM"));
    for permission in ["x7", "r", "r-1", "r65536", ""] {
        assert_eq!(client.ask(Ty::SET_PERMS, format!("data/x\0{permission}\0")), error("EINVAL"), "{permission}");
    }
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r1\0r2\0r3\0r4\0"), ok());
    assert_eq!(client.ask(Ty::SET_PERMS, "data/x\0n7\0r1\0r2\0r3\0r4\0r5\0"), error("ENOSPC"));
}

#[test]
fn what_is_dom0s_is_refused() {
    let mut client = Client::new(&Store::new());
    for ty in [Ty::CONTROL, Ty::INTRODUCE, Ty::RELEASE, Ty::RESUME, Ty::SET_TARGET] {
        assert_eq!(client.ask(ty, "8\x001\x001\0"), error("EACCES"), "{ty}");
    }
    assert_eq!(client.ask(Ty::GET_DOMAIN_PATH, "8\0"), text("/local/domain/8|"));
    assert_eq!(client.ask(Ty::GET_DOMAIN_PATH, "x\0"), error("EINVAL"));
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "7\0"), text("T|"));
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "8\0"), text("F|"));
    assert_eq!(client.ask(Ty::SET_FEATURE, "7\x001\0"), error("ENOSYS"));
    let mut client = Client::new(&Store::oxenstored());
    assert_eq!(client.ask(Ty::IS_DOMAIN_INTRODUCED, "7\0"), error("EACCES"));
}

#[test]
fn a_large_directory_comes_in_parts() {
    let store = Store::new();
    let mut client = Client::new(&store);
    let names: Vec<String> = (0..5000).map(|number| format!("{number:060}")).collect();
    store.dom0(|dom0| names.iter().for_each(|name| dom0.write(&format!("/local/domain/7/device/{name}"), "")));
    store.remove("/local/domain/7/device/suspend");
    assert_eq!(client.ask(Ty::DIRECTORY, "device\0"), error("E2BIG"));
    let (mut listed, mut generations) = (String::new(), Vec::new());
    loop {
        let part = client.ask(Ty::DIRECTORY_PART, format!("device\0{}\0", listed.len())).unwrap();
        assert!(part.len() <= 4096);
        let (generation, rest) = part.split_once('|').unwrap();
        generations.push(generation.to_string());
        listed.push_str(rest);
        if listed.ends_with("||") {
            break;
        }
    }
    assert!(generations.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(listed.trim_end_matches('|').split('|').collect::<Vec<_>>(), names);
    // Behind the end there is the end; a change shows in the generation.
    let end = client.ask(Ty::DIRECTORY_PART, "device\x00999999\0").unwrap();
    assert_eq!(end, format!("{}||", generations[0]));
    store.write("/local/domain/7/device/more", "");
    assert_ne!(client.ask(Ty::DIRECTORY_PART, "device\x00999999\0").unwrap(), end);
    let mut client = Client::new(&Store::oxenstored());
    assert_eq!(client.ask(Ty::DIRECTORY_PART, "device\x000\0"), error("ENOSYS"));
}

#[test]
fn a_directory_of_4096_bytes_is_one_message() {
    let store = Store::new();
    let mut client = Client::new(&store);
    (0..64).for_each(|number| store.write(&format!("/local/domain/7/platform/x/{number:063}"), ""));
    assert_eq!(client.ask(Ty::DIRECTORY, "platform/x\0").unwrap().len(), 4096);
    store.write("/local/domain/7/platform/x/y", "");
    assert_eq!(client.ask(Ty::DIRECTORY, "platform/x\0"), error("E2BIG"));
}
