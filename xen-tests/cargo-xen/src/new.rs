//! `cargo xen new`: a project that builds, runs and tests at once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::FLOAT_SPECIFICATION;
use crate::{cargo, say};

/// Options of `new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// The folder to make; its last part is the name of the package.
    pub name: PathBuf,
    /// Where domu is: a clone's folder, a Git address, or a version [default: the enclosing clone, else this tool's version].
    #[arg(long, value_name = "PATH|GIT-URL|VERSION")]
    pub domu: Option<String>,
    /// Compute with floating point in SSE registers.
    #[arg(long)]
    pub float: bool,
}

/// Files of a project, but for those that depend on the target: path and template.
const FILES: [(&str, &str); 5] = [
    ("Cargo.toml", include_str!("../templates/Cargo.toml")),
    ("src/lib.rs", include_str!("../templates/src/lib.rs")),
    ("src/main.rs", include_str!("../templates/src/main.rs")),
    ("tests/on_xen.rs", include_str!("../templates/tests/on_xen.rs")),
    (".github/workflows/ci.yml", include_str!("../templates/ci.yml")),
];

/// Where a project gets domu from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Folder(PathBuf),
    Git(String),
    Version(String),
}

impl Source {
    /// What `--domu` says.
    fn asked(text: &str) -> Result<Self> {
        if text.contains("://") || text.starts_with("git@") {
            return Ok(Self::Git(text.into()));
        }
        let folder = Path::new(text);
        if folder.join("Cargo.toml").is_file() {
            let folder = fs::canonicalize(folder).with_context(|| format!("finding {text}"))?;
            if !is_clone(&folder) {
                bail!("{} is no clone of domu", folder.display());
            }
            return Ok(Self::Folder(folder));
        }
        if text.chars().next().is_some_and(|c| c.is_ascii_digit()) && !text.contains('/') {
            return Ok(Self::Version(text.into()));
        }
        bail!("--domu {text}: neither a clone's folder, nor a Git address, nor a version")
    }

    /// The enclosing clone, else the version of this tool.
    fn default_at(folder: &Path) -> Self {
        match folder.ancestors().find(|folder| is_clone(folder)) {
            Some(clone) => Self::Folder(clone.to_path_buf()),
            None => Self::Version(env!("CARGO_PKG_VERSION").into()),
        }
    }

    /// The dependency on one of the crates, as TOML.
    fn dependency(&self, folder: &str) -> String {
        match self {
            Self::Folder(clone) => {
                let path = if folder.is_empty() { clone.clone() } else { clone.join(folder) };
                format!("{{ path = {:?} }}", path.display().to_string())
            }
            Self::Git(address) => format!("{{ git = {address:?} }}"),
            Self::Version(version) => format!("{version:?}"),
        }
    }

    /// The command that installs this tool, for a CI job.
    fn install(&self) -> String {
        match self {
            Self::Folder(clone) => format!("cargo install --locked --path {}/xen-tests/cargo-xen", clone.display()),
            Self::Git(address) => format!("cargo install --locked --git {address} cargo-xen"),
            Self::Version(version) => format!("cargo install --locked cargo-xen@{version}"),
        }
    }
}

/// Whether a folder is a clone of domu.
fn is_clone(folder: &Path) -> bool {
    folder.join("linker/domu.ld").is_file() && folder.join("xen-tests/domu-test/Cargo.toml").is_file()
}

/// Makes the project.
///
/// # Errors
///
/// The name is none that Cargo takes, the folder exists, or it cannot be written.
pub fn new(arguments: &NewArgs) -> Result<()> {
    let folder = std::path::absolute(&arguments.name).context("the current folder")?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    check(&name)?;
    if folder.exists() {
        bail!("{} exists already", folder.display());
    }
    let source = match &arguments.domu {
        Some(text) => Source::asked(text)?,
        None => Source::default_at(&folder),
    };
    for (path, text) in files(&name, &source, arguments.float) {
        write(&folder.join(path), &text)?;
    }
    say!("made {}; in there: `cargo run`, `cargo xen test`", folder.display());
    Ok(())
}

/// The files of a project: path and text.
fn files(name: &str, source: &Source, float: bool) -> Vec<(String, String)> {
    let target = if float { "x86_64-domu-none" } else { cargo::TARGET };
    let fill = |template: &str| {
        template
            .replace("{name}", name)
            .replace("{crate}", &name.replace('-', "_"))
            .replace("{target}", target)
            .replace("{domu}", &source.dependency(""))
            .replace("{domu-test}", &source.dependency("xen-tests/domu-test"))
            .replace("{install}", &source.install())
    };
    let mut files: Vec<(String, String)> = FILES.iter().map(|(path, text)| ((*path).to_owned(), fill(text))).collect();
    let config =
        if float { include_str!("../templates/config-float.toml") } else { include_str!("../templates/config.toml") };
    files.push((".cargo/config.toml".into(), fill(config)));
    files.push((format!("{name}.xl"), fill(include_str!("../templates/xl"))));
    files.push((".gitignore".into(), "/target\n".into()));
    if float {
        files.push(("x86_64-domu-none.json".into(), FLOAT_SPECIFICATION.into()));
    }
    files
}

/// Whether Cargo takes the name for a package.
fn check(name: &str) -> Result<()> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.chars().all(is_name) {
        bail!("`{name}` is no name for a package: lower-case letters, digits, `-` and `_`, and a letter first");
    }
    if ["test", "core", "std", "alloc", "domu", "domu-test", "log"].contains(&name) {
        bail!("`{name}` is the name of a crate that the project uses: take another one");
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(check("my-unikernel2").is_ok());
        for name in ["", "2a", "My", "a b", "a/b", "ü", "domu", "core"] {
            assert!(check(name).is_err(), "{name}");
        }
    }

    #[test]
    fn source_is_recognised() {
        assert_eq!(Source::asked("https://a.example/b").unwrap(), Source::Git("https://a.example/b".into()));
        assert_eq!(Source::asked("0.2").unwrap(), Source::Version("0.2".into()));
        let clone = fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).unwrap();
        assert_eq!(Source::asked(clone.to_str().unwrap()).unwrap(), Source::Folder(clone.clone()));
        assert_eq!(Source::default_at(&clone.join("a/b")), Source::Folder(clone));
        assert_eq!(Source::default_at(Path::new("/nowhere/b")), Source::Version(env!("CARGO_PKG_VERSION").into()));
        let error = Source::asked("/nowhere").unwrap_err().to_string();
        assert!(error.contains("neither a clone's folder"), "{error}");
    }

    #[test]
    fn no_placeholder_is_left() {
        for source in [Source::Folder("/a".into()), Source::Git("https://a".into()), Source::Version("1".into())] {
            for float in [false, true] {
                for (path, text) in files("a-b", &source, float) {
                    let left = ["{name}", "{crate}", "{domu", "{target}", "{install}"]
                        .into_iter()
                        .find(|hole| text.contains(hole));
                    assert_eq!(left, None, "{path}");
                }
            }
        }
    }
}
