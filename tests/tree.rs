//! Rules about the tree that a compiler does not check: state is domain-local, and files say what they are for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// All files with an ending, below a folder of the workspace.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true if !path.ends_with("target") => folders.push(path),
                false if path.extension().is_some_and(|found| found == ending) => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} files in {folder}");
    found
}

/// A type that changes behind a shared reference, by the name that a declaration shows.
const CHANGING: [&str; 10] =
    ["Atomic", "Cell", "Mutex", "RwLock", "Once", "Lazy", "Lock", "Vec", "LastWords", "Observers"];

/// Statics that change, with the reason why each is no domain-local.
const ALLOWED: [(&str, &str); 15] = [
    ("src/memory/heap/global.rs", "HEAP"),      // an attribute wants a static
    ("src/memory/heap/global.rs", "BROKEN"),    // and what it leads to is found broken before there is a state too
    ("src/console/emergency.rs", "LAST_WORDS"), // a symbol that debuggers look for
    ("src/crash/handlers.rs", "DEPTH"),         // counts crashes, when the state may be what failed
    ("src/hypercall/raw.rs", "CALLS"),          // counts hypercalls, before there is a state too
    ("src/embassy/executor.rs", "HOOKS"),       // found from wherever a task is woken, which may be no domain
    ("src/sync/lock.rs", "HELD"),               // counts held locks, before there is a domain too
    ("src/sync/lock.rs", "HELD_HERE"),          // the host: the same for a thread of a unit test
    ("src/local/unikernel.rs", "BOOTED"),       // what makes a domain current
    ("src/local/host.rs", "CURRENT"),           // the host: the domain that this thread runs
    ("src/local/host.rs", "ALL"),               // the host: keeps all slots reachable for leak checkers
    ("src/local/host.rs", "NEXT"),              // the host: numbers the slots
    ("src/sim/machine/memory.rs", "KEPT"),      // the host: the same for memory
    ("src/sim/machine/mod.rs", "MACHINE"),      // the host: the machine of this thread
    ("src/sim/access/mod.rs", "OBSERVERS"),     // the host: peers that act before accesses to shared memory
];

#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn state_is_domain_local() {
    let mut seen = BTreeSet::new();
    for path in files("src", "rs") {
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().to_owned();
        let mut in_macro = false;
        for line in fs::read_to_string(&path).unwrap().lines() {
            // The macros of `local` declare what may change.
            in_macro = line != "}" && (in_macro || ["domain_local! {", "vcpu_local! {"].contains(&line));
            if in_macro {
                continue;
            }
            let line = line.trim();
            // A declaration of what assembly defines has no value.
            assert!(!(line.contains("static mut ") && line.contains('=')), "{name}: {line}");
            let is_public = line.starts_with("pub");
            let Some(declaration) = line.strip_prefix("static ").or_else(|| {
                line.split_once(" static ")
                    .filter(|(before, _)| is_public && !before.contains("//"))
                    .map(|(_, rest)| rest)
            }) else {
                continue;
            };
            let (symbol, kind) = declaration.split_once(':').expect("a static has a type");
            if CHANGING.iter().any(|changing| kind.contains(changing)) {
                let known = ALLOWED.iter().find(|allowed| **allowed == (name.as_str(), symbol));
                assert!(known.is_some(), "{name}: {symbol} changes, and is no domain-local");
                seen.insert((name.clone(), symbol.to_owned()));
            }
        }
    }
    assert_eq!(seen.len(), ALLOWED.len(), "an allowed static is gone: {seen:?}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "tests", "examples", "xen-tests", "fuzz"] {
        for path in files(folder, "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let first = text.lines().next().unwrap_or_default();
            let ok = first.starts_with("//! ") || first.contains("include_str!");
            assert!(ok, "{} opens with {first:?}", path.display());
            assert!(text.lines().count() <= 1000, "{} is too long", path.display());
        }
    }
}
