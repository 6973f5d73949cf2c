//! The first root of dom0: only what is needed of the unpacked packages, as one archive.
//!
//! Small matters: the archive is copied into the emulated machine at every boot.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{DT_NEEDED, FileHeader64};
use object::read::elf::{Dyn, FileHeader};

use super::modules::Module;
use crate::cpio::Archive;

/// Programs that stand in every suite; `xen-V` is the folder of the version.
const PROGRAMS: [&str; 6] = ["xl", "xenstored", "oxenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper"];

/// Programs of the version's folder that are taken along when the suite has them.
const MORE_PROGRAMS: [&str; 4] = ["xenctx", "xen-hvmctx", "xenconsole", "xentop"];

/// xenstore's tools are one program under several names.
const XENSTORE_TOOLS: [&str; 8] = [
    "xenstore-chmod",
    "xenstore-exists",
    "xenstore-list",
    "xenstore-ls",
    "xenstore-read",
    "xenstore-rm",
    "xenstore-watch",
    "xenstore-write",
];

const FOLDERS: [&str; 22] = [
    "dev",
    "etc",
    "etc/xen",
    "etc/xen/scripts",
    "guests",
    "lib64",
    "modules",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/lib",
    "usr/lib/x86_64-linux-gnu",
    "usr/sbin",
    "var",
    "var/lib",
    "var/lib/xen",
    "var/log",
    "var/log/xen",
];

const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Makes the archive from an unpacked root.
pub fn make(root: &Path, xen: &str, modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in FOLDERS {
        archive.directory(folder);
    }
    for (link, target) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("var/run", "/run")] {
        archive.link(link, target);
    }
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("usr/bin/busybox", 0o755, &read(&root.join("bin/busybox"))?);
    archive.link("usr/bin/sh", "busybox");

    let own = format!("usr/lib/xen-{xen}/bin");
    archive.directory(&format!("usr/lib/xen-{xen}"));
    archive.directory(&own);
    let mut libraries = BTreeSet::from([String::from(LOADER), String::from("libgcc_s.so.1")]);
    let mut programs: Vec<(String, PathBuf)> = Vec::new();
    for name in PROGRAMS {
        programs.push((format!("{own}/{name}"), root.join(&own).join(name)));
    }
    for name in MORE_PROGRAMS {
        let path = root.join(&own).join(name);
        if path.is_file() {
            programs.push((format!("{own}/{name}"), path));
        }
    }
    programs.push(("usr/bin/xenstore".into(), root.join("usr/bin/xenstore")));
    for (name, path) in &programs {
        let bytes = read(path)?;
        libraries.extend(needed(&bytes).with_context(|| format!("reading {}", path.display()))?);
        archive.file(name, 0o755, &bytes);
    }
    for name in XENSTORE_TOOLS {
        archive.link(&format!("usr/bin/{name}"), "xenstore");
    }
    libraries.extend(plugins(&mut archive, root, xen)?);
    add_libraries(&mut archive, root, libraries)?;

    archive.file("etc/xen/oxenstored.conf", 0o644, &read(&root.join("etc/xen/oxenstored.conf"))?);
    archive.file("etc/xen/xl.conf", 0o644, b"");
    let mut order = String::new();
    for module in modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
        order.push_str(&module.name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// Adds the parts that newer versions of oxenstored load while they run; gives what those need.
fn plugins(archive: &mut Archive, root: &Path, xen: &str) -> Result<BTreeSet<String>> {
    let mut libraries = BTreeSet::new();
    let mut folder = format!("usr/lib/xen-{xen}");
    for part in ["ocaml", "xsd_glue", "xenctrl_plugin"] {
        folder = format!("{folder}/{part}");
        if !root.join(&folder).is_dir() {
            return Ok(libraries);
        }
        archive.directory(&folder);
    }
    let from = root.join(&folder);
    let entries = fs::read_dir(&from).with_context(|| format!("listing {}", from.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", from.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = read(&path)?;
        libraries.extend(needed(&bytes).with_context(|| format!("reading {}", path.display()))?);
        archive.file(&format!("{folder}/{name}"), 0o755, &bytes);
    }
    Ok(libraries)
}

/// Adds the libraries, and those that they need, until nothing is missing.
fn add_libraries(archive: &mut Archive, root: &Path, wanted: BTreeSet<String>) -> Result<()> {
    let mut missing: Vec<String> = wanted.into_iter().collect();
    let mut done = BTreeSet::new();
    while let Some(name) = missing.pop() {
        if !done.insert(name.clone()) {
            continue;
        }
        let path = [LIBRARIES, "usr/lib/x86_64-linux-gnu"]
            .iter()
            .map(|folder| root.join(folder).join(&name))
            .find(|path| path.is_file());
        let Some(path) = path else {
            bail!("the packages hold no {name}, which dom0's tools need");
        };
        let bytes = read(&path)?;
        missing.extend(needed(&bytes).with_context(|| format!("reading {}", path.display()))?);
        archive.file(&format!("usr/lib/x86_64-linux-gnu/{name}"), 0o755, &bytes);
    }
    archive.link(&format!("lib64/{LOADER}"), &format!("/usr/lib/x86_64-linux-gnu/{LOADER}"));
    Ok(())
}

/// The shared libraries that a program or library asks for.
fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<LittleEndian>::parse(bytes).context("this is no 64-bit ELF file")?;
    let endian = header.endian().context("the file's byte order")?;
    let sections = header.sections(endian, bytes).context("the file's sections")?;
    let Some((entries, link)) = sections.dynamic(endian, bytes).context("the dynamic section")? else {
        return Ok(Vec::new());
    };
    let strings = sections.strings(endian, bytes, link).context("the dynamic strings")?;
    let mut names = Vec::new();
    for entry in entries {
        if entry.tag32(endian) == Some(DT_NEEDED) {
            let name = entry.string(endian, strings).context("the name of a library")?;
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Makes a file executable by everyone.
pub fn make_executable(path: &Path) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", path.display()))
}
