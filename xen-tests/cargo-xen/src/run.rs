//! The commands that are about one unikernel: build and run.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build::{self, Flavour, Image};
use crate::cargo;
use crate::cpio::Archive;
use crate::lab::dom0::{Lab, Session, Xenstored};
use crate::lab::domain::{self, Config, Followed, Outcome, Watch};
use crate::lab::input;
use crate::lab::pair;
use crate::lab::qemu::Cpu;
use crate::lab::smoke;
use crate::paths;
use crate::process;
use crate::project::Project;
use crate::say;
use crate::say::grouped;
use crate::settings::Settings;
use crate::setup::{self, Version};
use crate::symbols;

/// The limit passed before the domain ended.
const TOO_LONG: u8 = 103;
/// The domain is gone and nobody knows why.
const VANISHED: u8 = 104;

/// The examples that are two domains with a device between them.
const PAIRS: [&str; 1] = ["ping"];

/// What `run` is asked for.
#[derive(Debug, PartialEq)]
pub struct Run {
    /// NAME, ELF or DIR.
    pub what: OsString,
    /// The version of Xen, if not that of the settings.
    pub version: Option<&'static Version>,
    /// MiB.
    pub memory: Option<u32>,
    /// MiB.
    pub maxmem: Option<u32>,
    /// The command line.
    pub cmdline: Option<String>,
    /// A file.
    pub ramdisk: Option<PathBuf>,
    /// Which xenstored.
    pub xenstored: Xenstored,
    /// Which processor, if not that of the settings.
    pub cpu: Option<Cpu>,
    /// How it is built if it has to be, and not as the settings say.
    pub flavour: Option<Flavour>,
    /// Under QEMU alone.
    pub without_xen: bool,
    /// With a debugger.
    pub gdb: bool,
    /// How long it may run.
    pub limit: Duration,
}

/// `cargo xen build`: an operand as [`Run::what`], absent for the current folder, and how it is built if not as the settings
/// say.
///
/// # Errors
///
/// There is no such unikernel, or it does not build.
pub fn build(operand: Option<&OsStr>, flavour: Option<Flavour>) -> Result<()> {
    let path = Path::new(operand.unwrap_or(OsStr::new(".")));
    if path.is_file() {
        bail!("{} is a file: build takes the name of a unikernel, or a folder", path.display());
    }
    let image = image(path.as_os_str(), flavour)?.image;
    println!("{}: {} bytes, stripped", domain_name(&image), grouped(image.size));
    println!("{}", image.stripped.display());
    Ok(())
}

/// `cargo xen run`.
pub fn run(wanted: &Run) -> Result<u8> {
    let Found { image, base, settings } = image(&wanted.what, wanted.flavour)?;
    start(wanted, &image, base, &settings)
}

/// Runs an ELF that Cargo has built, with its console on the terminal. The arguments, if any, are its command line.
pub fn elf(elf: &Path, folder: &Path, settings: &Settings, arguments: &[String]) -> Result<u8> {
    let image = build::strip(elf)?;
    let base = own_config(folder, &image)?;
    let wanted = Run {
        what: elf.into(),
        version: None,
        memory: None,
        maxmem: None,
        cmdline: (!arguments.is_empty()).then(|| arguments.join(" ")),
        ramdisk: None,
        xenstored: Xenstored::C,
        cpu: None,
        flavour: None,
        without_xen: false,
        gdb: false,
        limit: Duration::MAX,
    };
    start(&wanted, &image, base, settings)
}

/// Runs an image; what `wanted` does not say is in the settings, and then in the `.xl` file.
fn start(wanted: &Run, image: &Image, own_config: Option<String>, settings: &Settings) -> Result<u8> {
    settings.without_devices()?;
    let version = wanted.version.unwrap_or(settings.xen);
    let cpu = wanted.cpu.unwrap_or(settings.machine);
    let memory = wanted.memory.or(settings.memory);
    let logs = paths::new_logs("run")?;
    if wanted.without_xen {
        return without_xen(wanted, cpu, image, &logs);
    }
    let name = domain_name(image);
    let is_pair = PAIRS.iter().any(|pair| wanted.what == *pair);
    let base = match own_config {
        Some(base) => base,
        None => base_config(&paths::workspace(), &name)?,
    };
    let config = Config {
        base,
        memory,
        maxmem: wanted.maxmem.or(settings.maxmem),
        cmdline: wanted.cmdline.clone().or_else(|| settings.cmdline.clone()),
        ramdisk: wanted.ramdisk.as_ref().map(|_| "ramdisk".into()),
        more: [
            Settings { machine: cpu, ..settings.clone() }.lines(),
            if wanted.gdb { readable_for_gdb(version) } else { Vec::new() },
        ]
        .concat(),
    };
    let mut archive = Archive::default();
    archive.file(&format!("guests/{name}"), 0o644, &image.read()?);
    if let Some(path) = &wanted.ramdisk {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        archive.file("guests/ramdisk", 0o644, &bytes);
    }
    domain::add(&mut archive, &name, &name, &config);
    let lab = Lab {
        cpu,
        xenstored: wanted.xenstored,
        memory_mb: machine_memory(memory.unwrap_or(16)),
        gdb: wanted.gdb,
        ..Lab::new(version)
    };
    if wanted.gdb && is_pair {
        bail!("--gdb is for one domain");
    }
    let mut session = Session::boot(&lab, archive, &logs)?;
    if is_pair {
        return pair(&mut session, &name, wanted, image, &logs);
    }
    say!("xl create {name}.xl");
    let watch = Watch { limit: wanted.limit, most: usize::MAX, on_console: &mut |bytes| show(bytes) };
    let gdb = session.gdb().map(|socket| gdb_command(image, socket, &logs)).transpose()?;
    let outcome = domain::run_attached(&mut session, &name, watch, input::stdin(), || {
        gdb.as_deref().map_or(Ok(()), wait_for_gdb)
    })?;
    Ok(verdict(&outcome, image, &logs, wanted.limit))
}

/// Runs two domains with a device between them, of the class that is called as they are, until both have ended.
fn pair(session: &mut Session, name: &str, wanted: &Run, image: &Image, logs: &Path) -> Result<u8> {
    let mark = session.serial().length();
    let start = Instant::now();
    let [first, second] = pair::start_ends(session, name, name)?;
    for (peer, end) in [(&first, "front"), (&second, "back")] {
        say!("xl create {}.xl: domain {}, with the {end} end of a device of class {name}", peer.name, peer.number);
    }
    let (mut ours, mut theirs) = (Lines::of(&first.name), Lines::of(&second.name));
    let (mut show_ours, mut show_theirs) = (|bytes: &[u8]| ours.show(bytes), |bytes: &[u8]| theirs.show(bytes));
    let watch = |on_console| Watch { limit: wanted.limit, most: usize::MAX, on_console };
    let both = [
        Followed::new(&first.name, start, mark, watch(&mut show_ours)),
        Followed::new(&second.name, start, mark, watch(&mut show_theirs)),
    ];
    let outcomes = domain::follow_both(session, both)?;
    [ours, theirs].into_iter().for_each(Lines::finish);
    let verdicts = outcomes.map(|outcome| verdict(&outcome, image, logs, wanted.limit));
    Ok(verdicts.into_iter().find(|verdict| *verdict != 0).unwrap_or(0))
}

/// The console of one of several domains: shown line by line, behind the domain's name.
struct Lines {
    name: String,
    line: Vec<u8>,
}

impl Lines {
    fn of(name: &str) -> Lines {
        Lines { name: name.into(), line: Vec::new() }
    }

    /// Shows the lines that are whole.
    fn show(&mut self, bytes: &[u8]) {
        show(&self.take(bytes));
    }

    /// Shows what no end of a line came for.
    fn finish(mut self) {
        if !self.line.is_empty() {
            self.show(b"\n");
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.ends_with(b"\n") {
                lines.extend_from_slice(format!("{} | ", self.name).as_bytes());
                lines.append(&mut self.line);
            }
        }
        lines
    }
}

/// A guest of a test's own: its name, its image's bytes, and its configuration.
pub struct Guest {
    /// The domain's name.
    pub name: String,
    /// The bytes of the ELF.
    pub image: Vec<u8>,
    /// The configuration of `xl`.
    pub base: String,
}

/// Runs guests one after the other on one machine.
pub fn each(guests: &[Guest], cpu: Cpu, limit: Duration, logs: &Path) -> Result<Vec<Outcome>> {
    let mut archive = Archive::default();
    for Guest { name, image, base } in guests {
        archive.file(&format!("guests/{name}"), 0o644, image);
        domain::add(
            &mut archive,
            name,
            name,
            &Config { base: base.clone(), more: cpu.guest_lines(), ..Config::default() },
        );
    }
    let mut session = Session::boot(&Lab { cpu, ..Lab::new(setup::MAIN) }, archive, logs)?;
    let run = |guest: &Guest| {
        domain::run(&mut session, &guest.name, Watch { limit, most: usize::MAX, on_console: &mut |_| {} })
    };
    guests.iter().map(run).collect()
}

/// The configuration of a domain that has none of its own.
pub const BASE_CONFIG: &str = "type = \"pvh\"\nmemory = 16\nvcpus = 1\ncmdline = \"\"\n";

/// The configuration that an example or a guest of the clone starts from: its own beside its source, or that of all.
pub fn base_config(workspace: &Path, name: &str) -> Result<String> {
    let path = workspace.join("examples").join(format!("{name}.xl"));
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BASE_CONFIG.to_owned()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// The memory of a machine for a guest of this size.
pub fn machine_memory(guest_mb: u32) -> u32 {
    // dom0's 768 MiB, Xen's own, and what is left of a usual machine for usual guests.
    if guest_mb <= 1024 { 2048 } else { guest_mb + 2048 }
}

/// What is run: the image, and for a folder its `.xl` file and its settings.
struct Found {
    image: Image,
    base: Option<String>,
    settings: Settings,
}

impl Found {
    fn alone(image: Image) -> Self {
        Self { image, base: None, settings: Settings::default() }
    }
}

/// The `.xl` file of a project for its image, if there is one.
fn own_config(folder: &Path, image: &Image) -> Result<Option<String>> {
    let path = folder.join(format!("{}.xl", domain_name(image)));
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Finds out whether a name, an ELF or a folder is meant, and builds it unless it is an ELF.
fn image(what: &OsStr, flavour: Option<Flavour>) -> Result<Found> {
    let path = Path::new(what);
    if path.is_file() {
        let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        // `cargo xen build` leaves an ELF with symbols beside the stripped one.
        let whole = path.with_extension("");
        let is_copy = path.extension().is_some_and(|ending| ending == "stripped") && whole.is_file();
        let elf = if is_copy { whole } else { path.to_path_buf() };
        return Ok(Found::alone(Image { elf, stripped: path.to_path_buf(), size }));
    }
    let (folder, name) = match what.to_str() {
        _ if path.is_dir() => (path.to_path_buf(), None),
        Some(name) if !name.contains('/') => (PathBuf::from("."), Some(name)),
        _ => bail!("there is no file or folder {}", path.display()),
    };
    let project = Project::find(&folder)?;
    let program = name.map_or_else(|| project.default_program(), |name| project.program(name))?;
    let package = project.packages.iter().find(|package| package.name == program.package);
    let settings = match package {
        Some(package) => Settings::read(&package.settings).with_context(|| format!("package {}", package.name))?,
        None => Settings::default(),
    };
    let by_settings = if settings.hardened { Flavour::Hardened } else { Flavour::Plain };
    let flavour = flavour.unwrap_or(by_settings);
    let image = if name.is_none() || cargo::has_target(&folder) {
        build::own_way(&project, &folder, &program, None, flavour)?
    } else {
        // A project whose configuration names no target is built for the usual one, in a folder for each flavour.
        let mut images = build::named(&project.root, &[&program.name], flavour)?;
        images.pop().with_context(|| format!("building {} gave no image", program.name))?
    };
    let mut base = None;
    for folder in &program.folders {
        base = base.map_or_else(|| own_config(folder, &image), |found| Ok(Some(found)))?;
    }
    Ok(Found { image, base, settings })
}

/// A name for the domain, of characters that neither `xl` nor a shell takes for something else.
fn domain_name(image: &Image) -> String {
    let stem = image.elf.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    let name = name.trim_start_matches('-');
    if name.is_empty() { "guest".into() } else { name.into() }
}

fn without_xen(wanted: &Run, cpu: Cpu, image: &Image, logs: &Path) -> Result<u8> {
    setup::qemu()?;
    let cmdline = wanted.cmdline.as_deref().unwrap_or_default();
    say!("starting it under QEMU without Xen");
    let ended = smoke::without_xen(image, cpu, wanted.memory, cmdline, wanted.limit, logs)?;
    show(ended.serial.as_bytes());
    say!("debug port: {}", ended.debug_port.trim_end());
    Ok(0)
}

/// The lines of a configuration with which gdb can read the domain's memory. QEMU does not follow
/// nested page tables for it. Without them, the processor uses tables of Xen's making, which lead to
/// the domain's memory in one step.
fn readable_for_gdb(version: &Version) -> Vec<String> {
    if !version.shadow_paging {
        say!("Xen {} has no shadow paging: gdb will stop at breakpoints, but see no stack and no data", version.xen);
        return Vec::new();
    }
    vec!["hap = 0".into()]
}

/// Writes down for gdb where the machine and the sources are; gives the command that attaches it.
fn gdb_command(image: &Image, socket: &Path, logs: &Path) -> Result<String> {
    let script = logs.join("attach.gdb");
    let folders = build::renamed(&paths::workspace())?;
    fs::write(&script, gdb_script(&folders, socket)).with_context(|| format!("writing {}", script.display()))?;
    let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
    Ok(format!("gdb {} -x {}", quoted(&image.elf), quoted(&script)))
}

fn gdb_script(folders: &[(PathBuf, &str)], socket: &Path) -> String {
    // Code is the same in the ELF, which is there while the machine is elsewhere, in Xen or in dom0.
    let mut script = String::from("set trust-readonly-sections on\n");
    for (folder, name) in folders {
        script.push_str(&format!("set substitute-path {name} \"{}\"\n", folder.display()));
    }
    script.push_str(&format!("target remote {}\n", socket.display()));
    script
}

/// Tells how to attach gdb, and waits until the user says that it is.
fn wait_for_gdb(gdb: &str) -> Result<()> {
    say!("the domain is paused; attach now with\n\n    {gdb}\n");
    if !process::exists("gdb") {
        say!("(gdb is not on this machine: it is in a package of that name)");
    }
    say!("set breakpoints, `continue`, and press Enter here to start the domain");
    // At the end of the input nobody is there to press anything.
    std::io::stdin().read_line(&mut String::new()).context("waiting for Enter")?;
    Ok(())
}

/// Writes the bytes of a console to stdout at once.
pub fn show(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    // Nobody listening is no reason to stop: the logs have it too.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// The symbolised report of a crash; empty for any other end.
pub fn crash_report(outcome: &Outcome, image: &Image) -> String {
    match outcome.reason {
        Some(domain::Reason::Crash) => symbols::report(&image.elf, &[&outcome.text(), &outcome.own_lines()]),
        _ => String::new(),
    }
}

fn verdict(outcome: &Outcome, image: &Image, logs: &Path, limit: Duration) -> u8 {
    match outcome.reason {
        Some(reason) => {
            say!("domain {} ended: {reason}", outcome.domain);
            if reason == domain::Reason::Crash {
                let last: String = outcome.own_lines().lines().map(|line| format!("  {line}\n")).collect();
                say!(
                    "on the hypervisor's log:\n{last}{}the logs are in {}",
                    crash_report(outcome, image),
                    logs.display()
                );
            }
            reason as u8
        }
        None if outcome.took > limit => {
            say!("the domain was still running after {} s", limit.as_secs());
            say!("the logs are in {}", logs.display());
            TOO_LONG
        }
        None => {
            say!("the domain vanished; the logs are in {}", logs.display());
            VANISHED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_behind_their_domains_name() {
        let mut lines = Lines::of("a");
        assert_eq!(lines.take(b"one\ntw"), b"a | one\n");
        assert_eq!(lines.take(b"o"), b"");
        assert_eq!(lines.take(b"\n\nthree"), b"a | two\na | \n");
        assert_eq!(lines.line, b"three");
    }

    #[test]
    fn gdb_is_told_where_everything_is() {
        let script = gdb_script(&[(PathBuf::from("/a b"), "domu"), (PathBuf::from("/r"), "rust")], Path::new("/l/gdb"));
        let expected = "set trust-readonly-sections on\n\
            set substitute-path domu \"/a b\"\n\
            set substitute-path rust \"/r\"\n\
            target remote /l/gdb\n";
        assert_eq!(script, expected);
    }

    #[test]
    fn operand_that_is_nothing_is_named() {
        let error = |operand: &str| image(OsStr::new(operand), None).map(|_| ()).unwrap_err().to_string();
        assert_eq!(error("no/such"), "there is no file or folder no/such");
        assert!(error("no-such").starts_with("no unikernel `no-such` in "), "{}", error("no-such"));
        assert!(error("/proc").starts_with("no Cargo.toml in /proc"), "{}", error("/proc"));
    }
}
