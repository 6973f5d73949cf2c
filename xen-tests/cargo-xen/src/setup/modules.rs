//! The kernel modules of dom0, in an order in which they can be loaded.
//!
//! The packages lack the index that depmod would make at installation, and the module loader of
//! busybox wants it: so what a module needs is read from the module itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

/// What dom0 needs: Xen's devices first, then the back ends of block and network devices.
const WANTED: [&str; 11] = [
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-privcmd",
    "xenfs",
    "llc",
    "stp",
    "bridge",
    "xen-netback",
    "xen-blkback",
    "loop",
];

/// A module, decompressed.
pub struct Module {
    /// Its name with dashes, as its file has it.
    pub name: String,
    /// The file's content.
    pub bytes: Vec<u8>,
}

/// Reads the wanted modules and what they need from below `folder`, in loading order.
pub fn collect(folder: &Path, decompress: impl Fn(&Path) -> Result<Vec<u8>>) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(folder, &mut files)?;
    let mut modules = Vec::new();
    for name in WANTED {
        add(name, &files, &decompress, &mut modules)?;
    }
    Ok(modules)
}

fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(name.replace('_', "-"), path);
        }
    }
    Ok(())
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    decompress: &impl Fn(&Path) -> Result<Vec<u8>>,
    modules: &mut Vec<Module>,
) -> Result<()> {
    let name = name.replace('_', "-");
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(&name) else {
        bail!("the kernel package holds no module {name}");
    };
    let bytes = if path.extension().is_some_and(|extension| extension == "ko") {
        fs::read(path).with_context(|| format!("reading {}", path.display()))?
    } else {
        decompress(path)?
    };
    for needed in needs(&bytes).with_context(|| format!("reading {}", path.display()))? {
        add(&needed, files, decompress, modules)?;
    }
    modules.push(Module { name, bytes });
    Ok(())
}

fn needs(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("the module is no ELF file")?;
    let Some(section) = file.section_by_name(".modinfo") else {
        bail!("the module says nothing about itself");
    };
    Ok(depends(section.data().context("its .modinfo lies outside the file")?))
}

/// The value of `depends=` among NUL-terminated strings.
fn depends(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| entry.strip_prefix(b"depends="))
        .flat_map(|names| names.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn needs_are_read_from_the_module() {
        assert_eq!(depends(b"license=GPL\0depends=stp,llc\0name=bridge\0"), ["stp", "llc"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
        assert!(depends(b"").is_empty());
    }
}
