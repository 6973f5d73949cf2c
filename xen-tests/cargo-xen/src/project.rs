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
    /// Its targets, as `cargo metadata` lists them.
    targets: Vec<Value>,
}

impl Project {
    /// The project of a folder, which may lie anywhere in it.
    ///
    /// # Errors
    ///
    /// There is no `Cargo.toml` in the folder or above, or Cargo cannot read it.
    pub fn find(folder: &Path) -> Result<Self> {
        if !folder.ancestors().any(|folder| folder.join("Cargo.toml").is_file()) {
            bail!(
                "no Cargo.toml in {} or above it: run this in a project, or make one by `cargo xen new NAME`",
                folder.display()
            );
        }
        let mut command = cargo::command(folder);
        let output =
            command.args(["metadata", "--no-deps", "--format-version", "1"]).output().context("starting cargo")?;
        if !output.status.success() {
            bail!(
                "cargo cannot read the project in {}:\n{}",
                folder.display(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("reading what `cargo metadata` says")?;
        Self::read(&metadata, folder).context("`cargo metadata` names no workspace")
    }

    /// What the metadata says of a folder.
    fn read(metadata: &Value, folder: &Path) -> Option<Self> {
        let path = |value: &Value| Some(PathBuf::from(value.as_str()?));
        let packages = metadata["packages"].as_array()?.iter().filter_map(|package| {
            let manifest = path(&package["manifest_path"])?;
            Some(Package {
                name: package["name"].as_str()?.to_owned(),
                folder: manifest.parent()?.to_path_buf(),
                settings: package["metadata"]["xen"].clone(),
                targets: package["targets"].as_array()?.clone(),
            })
        });
        let packages: Vec<Package> = packages.collect();
        let root = path(&metadata["workspace_root"])?;
        // The innermost package around the folder; at the root of a workspace of one package, that one.
        let around = packages.iter().filter(|package| folder.starts_with(&package.folder));
        let innermost = around.max_by_key(|package| package.folder.components().count()).cloned();
        let package = innermost.or_else(|| packages.first().filter(|_| packages.len() == 1).cloned());
        Some(Self { root, target: path(&metadata["target_directory"])?, package })
    }
}

impl Package {
    /// Names of the package's targets of a kind, `bin` or `test`, in the manifest's order.
    pub fn targets(&self, kind: &str) -> impl Iterator<Item = &str> {
        let is_kind =
            move |target: &&Value| target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|k| k == kind));
        self.targets.iter().filter(is_kind).filter_map(|target| target["name"].as_str())
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
                  "targets": [{ "name": "outer", "kind": ["bin"] }, { "name": "basic", "kind": ["test"] }] },
                { "name": "inner", "manifest_path": "/w/inner/Cargo.toml", "metadata": null, "targets": [] },
            ],
        })
    }

    #[test]
    fn innermost_package_is_found() {
        let name = |folder: &str| Project::read(&metadata(), Path::new(folder)).unwrap().package.unwrap().name;
        assert_eq!(name("/w"), "outer");
        assert_eq!(name("/w/src"), "outer");
        assert_eq!(name("/w/inner/src"), "inner");
    }

    #[test]
    fn targets_and_settings_are_read() {
        let package = Project::read(&metadata(), Path::new("/w")).unwrap().package.unwrap();
        assert_eq!(package.settings["memory"], 32);
        assert_eq!(package.targets("test").collect::<Vec<_>>(), ["basic"]);
        assert_eq!(package.targets("bin").collect::<Vec<_>>(), ["outer"]);
    }

    #[test]
    fn folder_without_a_project_is_named() {
        let error = Project::find(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.starts_with("no Cargo.toml in /proc or above it"), "{error}");
    }
}
