//! A version of Xen with its dom0, made ready in the cache.
//!
//! What is kept: the hypervisor and the kernel as QEMU wants them, and dom0's first root. It is made
//! in a folder of its own that is renamed at the end, so that a half-made one is never used; what
//! has been downloaded survives an interruption.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Version, apt, image, modules};
use crate::process::{self, output_of};
use crate::say;
use crate::turn;

/// Raised whenever what is made changes: the cache is then made anew.
const RECIPE: u32 = 1;

/// A prepared system.
#[derive(Clone, Debug)]
pub struct Root {
    folder: PathBuf,
}

impl Root {
    /// Where it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The hypervisor, decompressed.
    pub fn xen(&self) -> PathBuf {
        self.folder.join("xen")
    }

    /// dom0's kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// dom0's first root, to which a run adds its own.
    pub fn base(&self) -> PathBuf {
        self.folder.join("base.cpio")
    }
}

/// Where a version's prepared system is, or will be.
pub fn folder(version: &Version) -> Result<PathBuf> {
    Ok(crate::paths::cache()?.join(format!("xen-{}-r{RECIPE}", version.xen)))
}

/// Gives the prepared system, making it when it is not there.
pub fn ensure(version: &'static Version) -> Result<Root> {
    turn::take()?;
    let cache = crate::paths::cache()?;
    let folder = folder(version)?;
    if !folder.is_dir() {
        say!("Xen {}: preparing it once, in {}", version.xen, cache.display());
        make(version, &cache, &folder).with_context(|| format!("preparing Xen {}", version.xen))?;
        say!("Xen {}: ready", version.xen);
    }
    Ok(Root { folder })
}

fn make(version: &Version, cache: &Path, folder: &Path) -> Result<()> {
    let xen = version.xen;
    let work = cache.join(format!("work-{}", version.suite));
    let packages = [
        format!("xen-hypervisor-{xen}-amd64"),
        format!("xen-utils-{xen}"),
        "xen-utils-common".into(),
        "xenstore-utils".into(),
        "busybox-static".into(),
        "iproute2".into(),
        "libgcc-s1".into(),
        "linux-image-amd64".into(),
    ];
    let files = apt::download(version, &packages, &work)?;
    say!("  unpacking {} packages", files.len());
    let root = work.join("root");
    unpack(&files, &root)?;

    let done = work.join("done");
    clear(&done)?;
    create(&done)?;
    let boot = root.join("boot");
    let busybox = root.join("bin/busybox");
    image::make_executable(&busybox)?;
    let hypervisor = boot.join(format!("xen-{xen}-amd64.gz"));
    let hypervisor = decompress(&busybox, "gunzip", &hypervisor)?;
    write(&done.join("xen"), &hypervisor)?;
    let (kernel, release) = kernel(&boot)?;
    fs::copy(&kernel, done.join("vmlinuz")).with_context(|| format!("copying {}", kernel.display()))?;
    let folder_of_modules = root.join("lib/modules").join(&release);
    let modules = modules::collect(&folder_of_modules, |path| decompress(&busybox, "unxz", path))?;
    write(&done.join("base.cpio"), &image::make(&root, xen, &modules)?)?;
    write(&done.join("packages"), names(&files).as_bytes())?;
    fs::rename(&done, folder).with_context(|| format!("moving it to {}", folder.display()))?;
    clear(&work)?;
    remove_older(cache, xen, folder)
}

/// Unpacks the packages over each other, as one merged tree.
fn unpack(files: &[PathBuf], root: &Path) -> Result<()> {
    clear(root)?;
    // Newer suites have only /usr, older ones both: with these links one tree serves all.
    for name in ["bin", "sbin", "lib", "lib64"] {
        create(&root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))
            .with_context(|| format!("linking {name} in {}", root.display()))?;
    }
    for file in files {
        output_of(process::command("dpkg-deb").arg("--extract").arg(file).arg(root))?;
    }
    Ok(())
}

/// The kernel, and its release as the folder of its modules is called.
fn kernel(boot: &Path) -> Result<(PathBuf, String)> {
    for entry in fs::read_dir(boot).with_context(|| format!("listing {}", boot.display()))? {
        let path = entry.with_context(|| format!("listing {}", boot.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            return Ok((path, release.to_owned()));
        }
    }
    bail!("the packages hold no kernel in {}", boot.display())
}

/// Runs one of busybox's decompressors: the suite brings its own, the machine needs none.
fn decompress(busybox: &Path, applet: &str, file: &Path) -> Result<Vec<u8>> {
    output_of(process::command(busybox).arg(applet).arg("-c").arg(file))
}

/// The packages by name and version, kept beside what was made of them.
fn names(files: &[PathBuf]) -> String {
    let mut text = String::new();
    for file in files {
        text.push_str(&file.file_stem().unwrap_or_default().to_string_lossy());
        text.push('\n');
    }
    text
}

fn remove_older(cache: &Path, xen: &str, current: &Path) -> Result<()> {
    let prefix = format!("xen-{xen}-r");
    for entry in fs::read_dir(cache).with_context(|| format!("listing {}", cache.display()))? {
        let path = entry.with_context(|| format!("listing {}", cache.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && path != current {
            clear(&path)?;
        }
    }
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}

fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
