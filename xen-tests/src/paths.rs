//! Where things are: the workspace, the cache that outlives it, the logs of this run.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

/// The root of the workspace that this tool was built from.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder of build results.
pub fn target() -> PathBuf {
    workspace().join("target")
}

/// The folder where downloaded and prepared systems are kept from run to run.
pub fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DOMU_CACHE") {
        return Ok(PathBuf::from(folder));
    }
    if let Some(folder) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(folder).join("domu"));
    }
    match std::env::var_os("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".cache").join("domu")),
        None => bail!("neither DOMU_CACHE nor HOME is set: no place for the cache"),
    }
}

/// How many runs' logs are kept.
const KEPT_RUNS: usize = 20;

/// Makes the folder for the logs of this run, and removes those of runs long ago.
pub fn new_logs(what: &str) -> Result<PathBuf> {
    let all = target().join("xen");
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let folder = all.join(format!("{seconds}-{}-{what}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut runs: Vec<PathBuf> = std::fs::read_dir(&all)
        .with_context(|| format!("listing {}", all.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    runs.sort();
    for old in runs.iter().rev().skip(KEPT_RUNS) {
        // Old logs that cannot be removed disturb nothing.
        let _ = std::fs::remove_dir_all(old);
    }
    Ok(folder)
}
