//! Where things are: the workspace, the cache that outlives it, the logs of this run.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::project::Project;

/// The project of the current folder, looked up once.
fn project() -> Option<&'static Project> {
    static PROJECT: OnceLock<Option<Project>> = OnceLock::new();
    PROJECT.get_or_init(|| Project::find(&std::env::current_dir().ok()?).ok()).as_ref()
}

/// The root of the workspace of the current folder; outside of a project the folder itself.
pub fn workspace() -> PathBuf {
    project().map_or_else(|| PathBuf::from("."), |project| project.root.clone())
}

/// The folder of build results; outside of a project one in the temporary folder, for logs.
pub fn target() -> PathBuf {
    project().map_or_else(|| std::env::temp_dir().join("cargo-xen"), |project| project.target.clone())
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
