//! The project that the tool is called in, as `cargo metadata` describes it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;

/// A Cargo project: a workspace, and the package that is meant in it.
#[derive(Clone, Debug)]
pub struct Project {
    /// The root of the workspace.
    pub root: PathBuf,
    /// Where Cargo puts what it builds.
    pub target: PathBuf,
    /// The packages of the workspace.
    pub packages: Vec<Package>,
    /// The package of the folder; absent in a workspace without one there.
    pub package: Option<Package>,
}

/// A package.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The folder of its manifest.
    pub folder: PathBuf,
    /// `[package.metadata.xen]`; null if absent.
    pub settings: Value,
    /// Its features.
    pub features: Vec<String>,
    /// Its targets, as `cargo metadata` lists them.
    targets: Vec<Value>,
    /// The binary that `default-run` names.
    default_run: Option<String>,
    /// Whether it is `domu`, or depends on it.
    has_unikernels: bool,
}

/// A binary or an example that is a unikernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The name of its package.
    pub package: String,
    /// Whether it is an example.
    pub is_example: bool,
    /// The features that it needs.
    pub features: Vec<String>,
    /// Folders that may hold its configuration for `xl`: that of its source, and that of its package.
    pub folders: [PathBuf; 2],
}

impl Program {
    /// The options by which Cargo builds it alone.
    pub fn selection(&self) -> [&str; 4] {
        ["--package", &self.package, if self.is_example { "--example" } else { "--bin" }, &self.name]
    }
}

/// The metadata of Cargo for a folder.
fn metadata(folder: &Path) -> Result<Value> {
    if !folder.is_dir() {
        bail!("{} is no folder", folder.display());
    }
    if !folder.ancestors().any(|folder| folder.join("Cargo.toml").is_file()) {
        bail!(
            "no Cargo.toml in {} or above it: run this in a project, or make one by `cargo xen new NAME`",
            folder.display()
        );
    }
    let mut command = cargo::command(folder);
    let output = command.args(["metadata", "--no-deps", "--format-version", "1"]).output().context("starting cargo")?;
    if !output.status.success() {
        bail!(
            "cargo cannot read the project in {}:\n{}",
            folder.display(),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    serde_json::from_slice(&output.stdout).context("reading the output of `cargo metadata`")
}

impl Project {
    /// The project of a folder, which may lie anywhere in it.
    ///
    /// # Errors
    ///
    /// There is no such folder, no `Cargo.toml` in it or above, or Cargo cannot read it.
    pub fn find(folder: &Path) -> Result<Self> {
        let folder = std::path::absolute(folder).with_context(|| format!("finding {}", folder.display()))?;
        let metadata = metadata(&folder)?;
        // The packages have the names of links resolved.
        let folder = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
        Self::read(&metadata, &folder).context("`cargo metadata` names no workspace")
    }

    /// What the metadata says of a folder.
    fn read(metadata: &Value, folder: &Path) -> Option<Self> {
        let path = |value: &Value| Some(PathBuf::from(value.as_str()?));
        let packages = metadata["packages"].as_array()?.iter().filter_map(|package| {
            let manifest = path(&package["manifest_path"])?;
            let name = package["name"].as_str()?;
            let mut dependencies = package["dependencies"].as_array().into_iter().flatten();
            Some(Package {
                name: name.to_owned(),
                folder: manifest.parent()?.to_path_buf(),
                settings: package["metadata"]["xen"].clone(),
                features: package["features"].as_object().into_iter().flat_map(|map| map.keys().cloned()).collect(),
                targets: package["targets"].as_array()?.clone(),
                default_run: package["default_run"].as_str().map(String::from),
                has_unikernels: name == "domu" || dependencies.any(|dependency| dependency["name"] == "domu"),
            })
        });
        let packages: Vec<Package> = packages.collect();
        let root = path(&metadata["workspace_root"])?;
        // The innermost package around the folder; at the root of a workspace of one package, that one.
        let around = packages.iter().filter(|package| {
            let resolved = package.folder.canonicalize();
            folder.starts_with(resolved.as_ref().unwrap_or(&package.folder))
        });
        let innermost = around.max_by_key(|package| package.folder.components().count()).cloned();
        let package = innermost.or_else(|| packages.first().filter(|_| packages.len() == 1).cloned());
        Some(Self { root, target: path(&metadata["target_directory"])?, packages, package })
    }

    /// All unikernels of the workspace.
    pub fn programs(&self) -> Vec<Program> {
        self.packages.iter().filter(|package| package.has_unikernels).flat_map(Package::programs).collect()
    }

    /// The unikernel of a name.
    ///
    /// # Errors
    ///
    /// There is none, or several packages have one of this name.
    pub fn program(&self, name: &str) -> Result<Program> {
        let all = self.programs();
        let mut found = all.iter().filter(|program| program.name == name);
        match (found.next(), found.next()) {
            (Some(program), None) => Ok(program.clone()),
            (Some(one), Some(other)) => {
                bail!("two unikernels are named `{name}`, in {} and {}: rename one", one.package, other.package)
            }
            (None, _) => bail!("no unikernel `{name}` in {}; {}", self.root.display(), listed(&all)),
        }
    }

    /// The unikernel of the package of the folder: its only binary, or that of `default-run`.
    ///
    /// # Errors
    ///
    /// There are none or several.
    pub fn default_program(&self) -> Result<Program> {
        let all = match &self.package {
            Some(package) => package.programs(),
            None => self.programs(),
        };
        let binaries: Vec<&Program> = all.iter().filter(|program| !program.is_example).collect();
        let chosen = self.package.as_ref().and_then(|package| package.default_run.as_ref());
        let whose = match &self.package {
            Some(package) => format!("package {}", package.name),
            None => format!("the workspace {}", self.root.display()),
        };
        match binaries.as_slice() {
            [program] => Ok((*program).clone()),
            [] => bail!("{whose} has no binary; {}", listed(&all)),
            several => match several.iter().find(|program| Some(&program.name) == chosen) {
                Some(program) => Ok((*program).clone()),
                None => bail!("{whose} has several binaries; {}", listed(&all)),
            },
        }
    }
}

/// The unikernels that a user can name instead.
fn listed(programs: &[Program]) -> String {
    let mut names: Vec<&str> = programs.iter().map(|program| &*program.name).collect();
    names.sort_unstable();
    if names.is_empty() {
        "it needs one that depends on domu".into()
    } else {
        format!("name one of {}", names.join(", "))
    }
}

impl Package {
    /// Names of the package's targets of a kind, `bin` or `test`, in the manifest's order.
    pub fn targets(&self, kind: &str) -> impl Iterator<Item = &str> {
        self.of_kind(kind).filter_map(|target| target["name"].as_str())
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let is_kind =
            move |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
        self.targets.iter().filter(is_kind)
    }

    /// Its binaries and examples.
    fn programs(&self) -> Vec<Program> {
        let of = |is_example: bool, kind: &'static str| {
            self.of_kind(kind).filter_map(move |target| {
                let source = Path::new(target["src_path"].as_str().unwrap_or_default());
                let features = target["required-features"].as_array().into_iter().flatten();
                Some(Program {
                    name: target["name"].as_str()?.to_owned(),
                    package: self.name.clone(),
                    is_example,
                    features: features.filter_map(|feature| Some(feature.as_str()?.to_owned())).collect(),
                    folders: [source.parent().unwrap_or(&self.folder).to_path_buf(), self.folder.clone()],
                })
            })
        };
        of(false, "bin").chain(of(true, "example")).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn metadata() -> Value {
        json!({
            "workspace_root": "/w", "target_directory": "/w/target",
            "packages": [
                { "name": "outer", "manifest_path": "/w/Cargo.toml", "metadata": { "xen": { "memory": 32 } },
                  "dependencies": [{ "name": "domu" }],
                  "targets": [{ "name": "outer", "kind": ["bin"], "src_path": "/w/src/main.rs" },
                              { "name": "basic", "kind": ["test"] },
                              { "name": "basic", "kind": ["example"], "src_path": "/w/examples/basic.rs",
                                "required-features": ["a", "b"] }] },
                { "name": "inner", "manifest_path": "/w/inner/Cargo.toml", "metadata": null,
                  "dependencies": [{ "name": "domu" }], "default_run": "two",
                  "targets": [{ "name": "one", "kind": ["bin"] }, { "name": "two", "kind": ["bin"] }] },
                { "name": "host", "manifest_path": "/w/host/Cargo.toml", "dependencies": [{ "name": "log" }],
                  "targets": [{ "name": "host", "kind": ["bin"] }] },
            ],
        })
    }

    fn project(folder: &str) -> Project {
        Project::read(&metadata(), Path::new(folder)).unwrap()
    }

    #[test]
    fn innermost_package_is_found() {
        let name = |folder: &str| project(folder).package.unwrap().name;
        assert_eq!(name("/w"), "outer");
        assert_eq!(name("/w/src"), "outer");
        assert_eq!(name("/w/inner/src"), "inner");
    }

    #[test]
    fn targets_and_settings_are_read() {
        let package = project("/w").package.unwrap();
        assert_eq!(package.settings["memory"], 32);
        assert_eq!(package.targets("test").collect::<Vec<_>>(), ["basic"]);
        assert_eq!(package.targets("bin").collect::<Vec<_>>(), ["outer"]);
    }

    #[test]
    fn program_is_a_binary_or_an_example() {
        let project = project("/w");
        let basic = project.program("basic").unwrap();
        assert_eq!(basic.selection(), ["--package", "outer", "--example", "basic"]);
        assert_eq!(basic.features, ["a", "b"]);
        assert_eq!(basic.folders, [PathBuf::from("/w/examples"), PathBuf::from("/w")]);
        assert_eq!(project.program("one").unwrap().selection(), ["--package", "inner", "--bin", "one"]);
    }

    #[test]
    fn name_of_two_programs_is_an_error() {
        let mut metadata = metadata();
        metadata["packages"][1]["targets"][0]["name"] = "outer".into();
        let error = Project::read(&metadata, Path::new("/w")).unwrap().program("outer").unwrap_err();
        assert_eq!(error.to_string(), "two unikernels are named `outer`, in outer and inner: rename one");
    }

    #[test]
    fn program_without_domu_is_none() {
        let error = project("/w").program("host").unwrap_err().to_string();
        assert_eq!(error, "no unikernel `host` in /w; name one of basic, one, outer, two");
    }

    #[test]
    fn default_program_is_the_only_binary_or_default_run() {
        assert_eq!(project("/w").default_program().unwrap().name, "outer");
        assert_eq!(project("/w/inner").default_program().unwrap().name, "two");
        let host = project("/w/host").default_program().unwrap();
        assert_eq!(host.name, "host", "a folder that is named need not depend on domu directly");
    }

    #[test]
    fn several_binaries_are_named() {
        let mut metadata = metadata();
        metadata["packages"][1]["default_run"] = Value::Null;
        let error = Project::read(&metadata, Path::new("/w/inner")).unwrap().default_program().unwrap_err();
        assert_eq!(error.to_string(), "package inner has several binaries; name one of one, two");
    }

    #[test]
    fn folder_without_a_project_is_named() {
        let error = Project::find(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.starts_with("no Cargo.toml in /proc or above it"), "{error}");
        let error = Project::find(Path::new("/no/such/folder")).unwrap_err().to_string();
        assert_eq!(error, "/no/such/folder is no folder");
    }
}
