//! The structure of the tool: no cycles of imports, neither between its modules nor between the files of one.

#[path = "../../../tests/modules/graph.rs"]
mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use graph::{Graph, cycles};

/// The graph of the files of the tool's library.
fn tool() -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).expect("the suite lies in a folder");
    Graph::read(&root.join("cargo-xen/src"))
}

/// The top-level module that a file belongs to.
fn top(file: &str) -> String {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned()
}

#[test]
fn modules_form_no_cycle() {
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, to) in tool().edges {
        // The root declares the modules, and imports nothing.
        let others = to.iter().map(|other| top(other)).filter(|other| *other != top(&from) && *other != "lib");
        edges.entry(top(&from)).or_default().extend(others);
    }
    assert!(edges["run"].contains("lab") && edges["lab"].contains("setup"), "the graph lacks edges: {edges:#?}");
    assert_eq!(cycles(&edges), Vec::<BTreeSet<String>>::new());
}

#[test]
fn files_of_a_module_form_no_cycle() {
    // The mod.rs of a folder declares its files, and has what they share.
    let inner = |file: &str| !file.ends_with("mod.rs") && file != "lib.rs";
    let edges: BTreeMap<String, BTreeSet<String>> = tool()
        .edges
        .into_iter()
        .filter(|(from, _)| inner(from))
        .map(|(from, to)| (from, to.into_iter().filter(|file| inner(file)).collect()))
        .collect();
    assert!(edges["lab/dom0.rs"].contains("lab/qemu.rs"), "the graph lacks edges: {edges:#?}");
    assert_eq!(cycles(&edges), Vec::<BTreeSet<String>>::new());
}
