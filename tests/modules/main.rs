//! The structure of the crate: layers, and no cycles of imports.

mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use graph::{Graph, cycles};

fn source() -> Graph {
    Graph::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// The top-level module that a file belongs to.
fn top(file: &str) -> String {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned()
}

#[test]
fn print() {
    let graph = source();
    let mut tops: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (from, to) in &graph.edges {
        for other in to {
            if top(from) != top(other) && top(from) != "sim" {
                tops.entry(top(from)).or_default().entry(top(other)).or_default().insert(from.clone());
            }
        }
    }
    for (from, to) in &tops {
        println!("{from}:");
        for (other, files) in to {
            println!("    {other}: {files:?}");
        }
    }
    let edges: BTreeMap<String, BTreeSet<String>> =
        tops.iter().map(|(from, to)| (from.clone(), to.keys().cloned().collect())).collect();
    println!("cycles {:#?}", cycles(&edges));
    let names: BTreeSet<String> = graph.edges.keys().map(|file| top(file)).collect();
    for name in names {
        let inner: BTreeMap<String, BTreeSet<String>> = graph
            .edges
            .iter()
            .filter(|(from, _)| top(from) == name && !from.ends_with("mod.rs"))
            .map(|(from, to)| {
                (from.clone(), to.iter().filter(|to| top(to) == name && !to.ends_with("mod.rs")).cloned().collect())
            })
            .collect();
        let found = cycles(&inner);
        if !found.is_empty() {
            println!("{name}: {found:#?}");
        }
    }
}
