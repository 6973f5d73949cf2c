//! The imports of `src` as a graph of files, read from the parsed sources.
//!
//! An edge goes from a file to the file that declares what it names. A name that a `mod.rs` re-exports leads to the file behind it.
//! Code under `#[cfg(test)]` or `cfg(fuzzing)`, documentation, and the simulated Xen's own files are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree};

/// The path of a module below the crate, such as `["eventchn", "port"]`.
pub type Module = Vec<String>;

/// A module's file, and what other code can reach through it.
struct Source {
    file: String,
    syntax: syn::File,
    /// Names that a `use` brings into the module, with the paths they stand for.
    imports: BTreeMap<String, Module>,
}

/// The modules of the crate, and the edges between their files.
pub struct Graph {
    sources: BTreeMap<Module, Source>,
    /// From a file to the files that it names something of.
    pub edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Reads all files below a folder that has a `lib.rs`.
    pub fn read(folder: &Path) -> Self {
        let mut sources = BTreeMap::new();
        load(&folder.join("lib.rs"), folder, vec![], &mut sources);
        let mut graph = Self { sources, edges: BTreeMap::new() };
        let modules: Vec<Module> = graph.sources.keys().cloned().collect();
        for module in modules {
            let source = &graph.sources[&module];
            let mut paths = Paths { module: module.clone(), found: vec![] };
            paths.visit_file(&source.syntax);
            let file = source.file.clone();
            let named: BTreeSet<String> = paths
                .found
                .into_iter()
                .filter_map(|path| graph.declared_in(path))
                .filter(|other| *other != file)
                .collect();
            graph.edges.insert(file, named);
        }
        graph
    }

    /// The file that declares what an absolute path names: behind re-exports, and none for what is not of this crate.
    fn declared_in(&self, mut path: Module) -> Option<String> {
        // A chain of re-exports is short; a circle of them would not compile.
        for _ in 0..16 {
            let depth = (0..=path.len()).rev().find(|&depth| self.sources.contains_key(&path[..depth]))?;
            let source = &self.sources[&path[..depth]];
            let Some(name) = path.get(depth) else { return Some(source.file.clone()) };
            match source.imports.get(name) {
                Some(target) => path = target.iter().chain(&path[depth + 1..]).cloned().collect(),
                None => return Some(source.file.clone()),
            }
        }
        None
    }
}

/// Reads a file and the modules that it declares.
fn load(file: &Path, root: &Path, module: Module, sources: &mut BTreeMap<Module, Source>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let syntax = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let child = |item: &Item| if let Item::Mod(inner) = item { Some(inner.ident.to_string()) } else { None };
    let children: BTreeSet<String> = syntax.items.iter().filter_map(child).collect();
    let mut imports = BTreeMap::new();
    for item in &syntax.items {
        match item {
            Item::Mod(inner) if inner.content.is_none() && !is_exempt(&inner.attrs) => {
                let name = inner.ident.to_string();
                let below = module.iter().cloned().chain([name.clone()]).collect();
                load(&file_of(file, &name), root, below, sources);
            }
            Item::Use(item) if !is_exempt(&item.attrs) => {
                for (name, mut path) in names(&item.tree, vec![]) {
                    if children.contains(&path[0]) {
                        path.insert(0, "self".into());
                    }
                    if let Some(path) = absolute(&module, &path) {
                        imports.insert(name, path);
                    }
                }
            }
            _ => {}
        }
    }
    let file = file.strip_prefix(root).expect("files lie below the root").to_string_lossy().into_owned();
    sources.insert(module, Source { file, syntax, imports });
}

/// Where the module of a name lies that a file declares.
fn file_of(declaring: &Path, name: &str) -> PathBuf {
    let stem = declaring.file_stem().expect("a source has a name");
    let folder = declaring.parent().expect("a source lies in a folder");
    let folder = match stem.to_str() {
        Some("lib" | "mod") => folder.to_path_buf(),
        _ => folder.join(stem),
    };
    let file = folder.join(format!("{name}.rs"));
    if file.exists() { file } else { folder.join(name).join("mod.rs") }
}

/// Whether an item is left out of the graph.
fn is_exempt(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition = list.tokens.to_string().replace(' ', "");
        list.path.is_ident("cfg")
            && matches!(condition.as_str(), "test" | "fuzzing" | "any(test,fuzzing)" | "all(test,miri)")
    })
}

/// The names that a `use` introduces, each with the path that it stands for.
fn names(tree: &UseTree, mut before: Module) -> Vec<(String, Module)> {
    match tree {
        UseTree::Path(path) => {
            before.push(path.ident.to_string());
            names(&path.tree, before)
        }
        UseTree::Name(name) if name.ident == "self" => {
            before.last().cloned().map(|name| (name, before)).into_iter().collect()
        }
        UseTree::Name(name) => {
            let name = name.ident.to_string();
            before.push(name.clone());
            vec![(name, before)]
        }
        UseTree::Rename(rename) => {
            if rename.ident != "self" {
                before.push(rename.ident.to_string());
            }
            vec![(rename.rename.to_string(), before)]
        }
        // What a glob brings is not known by name: the path itself is the edge.
        UseTree::Glob(_) => vec![("*".into(), before)],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| names(tree, before.clone())).collect(),
    }
}

/// A path from the crate's root, if it begins with `crate`, `super` or `self`.
fn absolute(module: &[String], path: &[String]) -> Option<Module> {
    let mut base = match path.first()?.as_str() {
        "crate" => vec![],
        "self" => module.to_vec(),
        "super" => module[..module.len().checked_sub(1)?].to_vec(),
        _ => return None,
    };
    let mut rest = &path[1..];
    while rest.first().is_some_and(|step| step == "super") {
        base.pop()?;
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// Collects the paths that a file names.
struct Paths {
    module: Module,
    found: Vec<Module>,
}

impl Paths {
    fn add(&mut self, path: &[String]) {
        self.found.extend(absolute(&self.module, path));
    }

    /// Paths in a macro's input, which is not parsed. A single word, such as that of `pub(crate)`, is none.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = vec![];
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons += 1;
                    continue;
                }
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => path.push(ident.to_string()),
                TokenTree::Ident(ident) => {
                    self.add_longer(&core::mem::take(&mut path));
                    path.push(ident.to_string());
                }
                other => {
                    self.add_longer(&core::mem::take(&mut path));
                    if let TokenTree::Group(group) = other {
                        self.scan(group.stream());
                    }
                }
            }
            colons = 0;
        }
        self.add_longer(&path);
    }

    fn add_longer(&mut self, path: &[String]) {
        if path.len() > 1 {
            self.add(path);
        }
    }
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_exempt(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_exempt(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // An inline module's `super` is this one.
        if module.content.is_some() {
            self.module.push(module.ident.to_string());
            visit::visit_item_mod(self, module);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for (_, path) in names(&item.tree, vec![]) {
            self.add(&path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}

/// The strongly connected components of more than one node.
pub fn cycles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reachable = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(node) = next.pop() {
            for other in edges.get(&node).into_iter().flatten() {
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|node| (node, reachable(node))).collect();
    let mut found: Vec<BTreeSet<String>> = vec![];
    for (node, reached) in &all {
        if found.iter().any(|cycle| cycle.contains(*node)) {
            continue;
        }
        let cycle: BTreeSet<String> =
            reached.iter().filter(|other| all.get(other).is_some_and(|back| back.contains(*node))).cloned().collect();
        if cycle.len() > 1 {
            found.push(cycle);
        }
    }
    found
}
