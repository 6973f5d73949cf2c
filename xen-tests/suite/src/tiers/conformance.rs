//! The tables of conformance and of trust name tests that exist.

use std::fs;
use std::path::{Path, PathBuf};

use super::{smoke, table, tree};
use cargo_xen::paths;

use crate::fuzz;

/// All Rust sources below a folder of the workspace, as one text.
fn sources(folder: &str) -> String {
    let mut text = String::new();
    let mut folders: Vec<PathBuf> = vec![paths::workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    text
}

/// Whether a function of this name is a test.
fn is_test(source: &str, name: &str) -> bool {
    source.match_indices(&format!("fn {name}(")).any(|(place, _)| {
        let before = &source[..place];
        let attributes = &before[before.rfind("\n\n").unwrap_or(0)..];
        attributes.contains("#[test]")
    })
}

/// Names as they stand in the table: without the machine that a test runs on.
fn tests_on_xen() -> Vec<String> {
    let guests = table::cases().into_iter().map(|case| case.name);
    let smoke = smoke::names();
    let trees = tree::NAMES.map(String::from);
    guests.chain(smoke).chain(trees).collect()
}

/// Looks for each test that the tables of a document name, and returns how many these are.
fn check(document: &str) -> usize {
    let path: &Path = &paths::workspace().join(document);
    let table = fs::read_to_string(path).unwrap();
    let host =
        ["src", "tests", "xen-tests/bench/src", "xen-tests/cargo-xen/src", "xen-tests/suite/src"].map(sources).concat();
    let (xen, fuzz) = (tests_on_xen(), fuzz::targets().unwrap());
    let mut named = 0;
    for (number, line) in table.lines().enumerate().filter(|(_, line)| line.starts_with('|')) {
        for code in line.split('`').skip(1).step_by(2) {
            let at = format!("{document}:{}: `{code}`", number + 1);
            match code.split_once(' ') {
                Some(("host", test)) => assert!(is_test(&host, test), "{at}: no such test"),
                Some(("xen", test)) => assert!(xen.iter().any(|name| name == test), "{at}: no such test"),
                Some(("fuzz", test)) => assert!(fuzz.iter().any(|name| name == test), "{at}: no such target"),
                _ => continue,
            }
            named += 1;
        }
    }
    named
}

#[test]
fn each_test_that_is_named_exists() {
    for (document, least) in [("docs/conformance.md", 80), ("docs/trust.md", 35)] {
        let named = check(document);
        assert!(named >= least, "{document} names {named} tests");
    }
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    assert!(is_test("\n\n#[test]\nfn a_name() {", "a_name"));
    assert!(!is_test("\n\n#[test]\nfn a_name() {", "another"));
    assert!(!is_test("\n\n#[test]\nfn other() {}\n\nfn a_name() {", "a_name"));
}
