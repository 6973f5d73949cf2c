//! Fetches Debian packages through apt without touching the machine's own package state.
//!
//! A private apt state (sources, lists, status, cache) names one suite; apt then resolves, verifies
//! and downloads as always. The status file is empty, so that the closure of the libraries comes
//! along. Signatures are verified against Debian's archive keyring. Which mirror is used follows the
//! machine's own configuration, so that what its owner arranged (a proxy, a mirror nearby) holds.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Version;
use crate::process::{self, Owned, output_of};
use crate::say;

/// Where Debian and its derivatives install the archive keyring.
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// What a machine without apt, or without a Debian mirror, is told.
const BY_HAND: &str = "\
Set DOMU_MIRROR to the address of a Debian mirror (its folder that holds `dists` and `pool`), on a
machine with apt-get, dpkg-deb and Debian's archive keyring (package debian-archive-keyring; another
place for it is named by DOMU_KEYRING). Or copy the cache folder (DOMU_CACHE) of a machine where
`cargo xen setup` has run.";

/// Downloads the packages and all that they depend on; gives the files.
pub fn download(version: &Version, packages: &[String], work: &Path) -> Result<Vec<PathBuf>> {
    for tool in ["apt-get", "dpkg-deb"] {
        if !process::exists(tool) {
            bail!("{tool} is not on this machine.\n{BY_HAND}");
        }
    }
    let keyring = keyring()?;
    let state = State::new(work)?;
    let mirror = mirror(&state)?;
    say!("Xen {}: fetching Debian {} packages from {mirror}", version.xen, version.suite);
    let source = format!("deb [signed-by={}] {mirror} {} main\n", keyring.display(), version.suite);
    let sources = work.join("sources.list");
    fs::write(&sources, source).with_context(|| format!("writing {}", sources.display()))?;
    let only = [option("Dir::Etc::sourcelist", &sources), OsString::from("-oDir::Etc::sourceparts=/dev/null")];
    state.apt_get(&only, &["update".into()], "reading the list of packages")?;
    let mut install: Vec<OsString> = ["install", "--yes", "--download-only"].map(Into::into).into();
    install.extend(packages.iter().map(Into::into));
    state.apt_get(&only, &install, "fetching packages")?;
    let archives = work.join("cache/archives");
    let mut files: Vec<PathBuf> = fs::read_dir(&archives)
        .with_context(|| format!("listing {}", archives.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    files.sort();
    Ok(files)
}

/// Installs a package on the machine itself; root only.
pub fn install_on_this_machine(package: &str) -> Result<()> {
    for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends", package]] {
        let mut command = process::command("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        let name = process::shown(&command);
        let status = command.status().with_context(|| format!("starting `{name}`"))?;
        // A repository of the machine's that is out of reach need not matter: the install decides.
        if !status.success() && arguments[0] == "install" {
            bail!("`{name}` failed ({status})");
        }
    }
    Ok(())
}

fn keyring() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DOMU_KEYRING") {
        return Ok(PathBuf::from(path));
    }
    match KEYRINGS.iter().map(Path::new).find(|path| path.is_file()) {
        Some(path) => Ok(path.to_path_buf()),
        None => bail!("Debian's archive keyring is not on this machine.\n{BY_HAND}"),
    }
}

/// The mirror that the machine's own apt uses for Debian.
fn mirror(state: &State) -> Result<String> {
    if let Ok(mirror) = std::env::var("DOMU_MIRROR") {
        return Ok(mirror);
    }
    if let Some(mirror) = mirror_of_targets(&[])? {
        return Ok(mirror);
    }
    // The machine's lists are empty (an image fresh from a container registry): read them, privately.
    state.apt_get(&[], &["update".into()], "reading the machine's own package sources")?;
    match mirror_of_targets(&state.options())? {
        Some(mirror) => Ok(mirror),
        None => bail!("this machine's apt configuration names no Debian mirror.\n{BY_HAND}"),
    }
}

fn mirror_of_targets(options: &[OsString]) -> Result<Option<String>> {
    let mut command = process::command("apt-get");
    command.args(options).args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    let output = output_of(&mut command).context("asking apt for the machine's package sources")?;
    Ok(debian_mirror(&String::from_utf8_lossy(&output)))
}

/// The main archive, not those of security updates or backports, which have other labels.
fn debian_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let (origin, rest) = line.split_once('|')?;
        let (label, address) = rest.split_once('|')?;
        (origin == "Debian" && label == "Debian").then(|| address.trim_end_matches('/').to_owned())
    })
}

fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from(format!("-o{name}="));
    option.push(value);
    option
}

/// The private apt state in a folder.
struct State<'a> {
    work: &'a Path,
}

impl<'a> State<'a> {
    fn new(work: &'a Path) -> Result<State<'a>> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = work.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let status = work.join("status");
        fs::write(&status, "").with_context(|| format!("writing {}", status.display()))?;
        Ok(State { work })
    }

    fn options(&self) -> Vec<OsString> {
        let mut options = vec![
            option("Dir::State::Lists", &self.work.join("lists")),
            option("Dir::State::status", &self.work.join("status")),
            option("Dir::Cache", &self.work.join("cache")),
        ];
        let fixed = [
            "-oDir::Cache::archives=archives",
            "-oDir::Etc::preferences=/dev/null",
            "-oDir::Etc::preferencesparts=/dev/null",
            "-oAPT::Architecture=amd64",
            "-oAPT::Architectures=amd64",
            "-oAPT::Install-Recommends=false",
            "-oAPT::Get::AllowUnauthenticated=false",
            "-oAcquire::AllowInsecureRepositories=false",
            "-oAcquire::Languages=none",
            "-oAcquire::Retries=3",
            // The cache may lie where the user that apt downloads as cannot write.
            "-oAPT::Sandbox::User=root",
            // The locks are those of the machine's own state, which this does not touch.
            "-oDebug::NoLocking=1",
        ];
        options.extend(fixed.map(OsString::from));
        options
    }

    /// Runs apt-get, counting what it fetches for the user, everything it says in a log.
    fn apt_get(&self, more: &[OsString], arguments: &[OsString], what: &str) -> Result<()> {
        let log = self.work.join("apt.log");
        let mut log_file = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let errors = log_file.try_clone().context("sharing the log of apt")?;
        let mut command = process::command("apt-get");
        command.args(self.options()).args(more).args(arguments);
        let child = command
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("starting apt-get")?;
        let mut child = Owned(child);
        let mut shown = Instant::now();
        if let Some(output) = child.0.stdout.take() {
            for line in BufReader::new(output).lines() {
                let line = line.context("reading what apt-get says")?;
                writeln!(log_file, "{line}").with_context(|| format!("writing {}", log.display()))?;
                if line.starts_with("Need to get") {
                    say!("  {}", line.replace(" of archives.", ""));
                } else if line.starts_with("Get:") && shown.elapsed() > Duration::from_secs(2) {
                    shown = Instant::now();
                    say!("  {what}: {}", line.trim());
                }
            }
        }
        let status = child.0.wait().context("waiting for apt-get")?;
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            bail!("{what} failed ({status}); apt-get says (all of it in {}):\n{last}", log.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_that_of_the_main_archive() {
        let targets = "Debian|Debian-Security|http://mirror.invalid/debian-security/\n\
                       Other|Other|http://other.invalid/\n\
                       Debian|Debian|http://mirror.invalid/debian/\n";
        assert_eq!(debian_mirror(targets).as_deref(), Some("http://mirror.invalid/debian"));
        assert_eq!(debian_mirror("Ubuntu|Ubuntu|http://mirror.invalid/ubuntu/\n"), None);
        assert_eq!(debian_mirror(""), None);
    }
}
