//! The structure of the crate: layers, no cycles of imports, and a description of both that names what exists.
//!
//! docs/architecture.md has the list of layers, and walks through the code by file and function.

mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use graph::{Graph, cycles};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn architecture() -> String {
    let path = root().join("docs/architecture.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The top-level module that a file belongs to.
fn top(file: &str) -> String {
    file.split('/').next().unwrap_or(file).trim_end_matches(".rs").to_owned()
}

/// The layer of each top-level module, as docs/architecture.md lists them: the lowest is the last line of its block.
fn layers() -> BTreeMap<String, usize> {
    let text = architecture();
    let block = text.split("```text layers\n").nth(1).and_then(|rest| rest.split("```").next());
    let lines: Vec<&str> = block.expect("docs/architecture.md has a block of layers").lines().collect();
    let mut layers = BTreeMap::new();
    for (layer, line) in lines.iter().rev().enumerate() {
        for module in line.split_whitespace() {
            assert!(layers.insert(module.to_owned(), layer).is_none(), "{module} stands in two layers");
        }
    }
    layers
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn imports_point_to_lower_layers() {
    let (graph, layers) = (Graph::read(&root().join("src")), layers());
    let present: BTreeSet<String> = graph.edges.keys().map(|file| top(file)).filter(|module| module != "sim").collect();
    let listed: BTreeSet<String> = layers.keys().cloned().collect();
    assert_eq!(present, listed, "docs/architecture.md lists the top-level modules of src");
    let mut upward = vec![];
    for (from, to) in &graph.edges {
        for other in to {
            let modules = (top(from), top(other));
            // The simulated Xen sees all, as the real one does, and is below all: it is the other side of the seam.
            if modules.0 == "sim" || modules.1 == "sim" || modules.0 == modules.1 {
                continue;
            }
            if layers[&modules.0] <= layers[&modules.1] {
                upward.push(format!("{from} -> {other}"));
            }
        }
    }
    assert!(upward.is_empty(), "imports that do not point to a lower layer: {upward:#?}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn files_of_a_module_form_no_cycle_of_more_than_two() {
    let graph = Graph::read(&root().join("src"));
    let modules: BTreeSet<String> = graph.edges.keys().map(|file| top(file)).filter(|module| module != "sim").collect();
    for module in modules {
        // A folder's mod.rs declares and re-exports its files: that is no dependency between them.
        let inner = |file: &str| top(file) == module && !file.ends_with("/mod.rs");
        let edges: BTreeMap<String, BTreeSet<String>> = graph
            .edges
            .iter()
            .filter(|(from, _)| inner(from))
            .map(|(from, to)| (from.clone(), to.iter().filter(|to| inner(to)).cloned().collect()))
            .collect();
        for cycle in cycles(&edges) {
            assert!(cycle.len() <= 2, "{module}: {cycle:#?}");
        }
    }
}

/// The graph is read from the sources: an edge of each kind is found, and code of tests gives none.
#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn graph_of_the_sources_has_known_edges() {
    let graph = Graph::read(&root().join("src"));
    let has = |from: &str, to: &str| graph.edges[from].contains(to);
    assert!(has("gnttab/share.rs", "memory/pages/mod.rs"), "a name that a mod.rs re-exports leads to its file");
    assert!(has("eventchn/timer.rs", "time/mod.rs"), "a name that a mod.rs declares leads to it");
    assert!(has("time/mod.rs", "local/mod.rs"), "a macro's path counts");
    assert!(has("xenstore/nodes.rs", "xenstore/wire.rs"), "a path behind an imported module counts");
    assert!(!has("time/clock.rs", "sim/mod.rs"), "code of tests does not count");
}

/// Each `file.rs::function` that docs/architecture.md names exists.
#[test]
#[cfg_attr(miri, ignore = "Miri has no file system")]
fn architecture_names_what_exists() {
    let text = architecture();
    let mut named = 0;
    for word in text.split('`').skip(1).step_by(2) {
        let Some((file, function)) = word.split_once(".rs::") else {
            if Path::new(word).extension().is_some_and(|ending| ending == "rs") {
                assert!(root().join("src").join(word).exists(), "there is no src/{word}");
            }
            continue;
        };
        let path = root().join("src").join(format!("{file}.rs"));
        let source = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{word}: {}: {error}", path.display()));
        let declared = [format!("fn {function}("), format!("fn {function}<"), format!("static {function}:")];
        assert!(declared.iter().any(|declared| source.contains(declared)), "{word} is not declared there");
        named += 1;
    }
    assert!(named >= 40, "the walks name files and functions: {named}");
}
