//! The tests about trees of source: an image does not depend on its folder, and a newcomer's crate
//! made by following the README builds and runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SectionFlags, SectionKind, SegmentFlags, elf};

use super::{Suite, float, protector};
use crate::readme;
use crate::sizes;
use cargo_xen::build::{self, Flavour};
use cargo_xen::cargo;
use cargo_xen::lab::domain::Reason;
use cargo_xen::lab::qemu::Cpu;
use cargo_xen::lab::smoke;
use cargo_xen::new::{self, NewArgs};
use cargo_xen::paths;
use cargo_xen::process::output_of;
use cargo_xen::run;
use cargo_xen::say;
use cargo_xen::say::grouped;
use cargo_xen::settings::Settings;
use cargo_xen::setup;
use cargo_xen::tests::Plan;
use libtest_mimic::Arguments;

/// Runs what is asked for of those that need no machine.
pub fn run(suite: &mut Suite) {
    suite.test("build::reproducible", reproducible);
    suite.test("build::release_profile", same_profile);
    sizes_of_images(suite);
    suite.test("build::missing_relocation_flag", || {
        refused("-Clink-arg=-Tdomu.ld", "build with -Crelocation-model=static")
    });
    suite.test("build::missing_linker_script", missing_linker_script);
    suite.test("build::stack_too_small", || {
        refused(&format!("{FLAGS} -Clink-arg=--defsym=domu_stack_size=32768"), "domu_stack_size must be")
    });
    suite.test("build::stack_size", stack_size);
    suite.test("build::float_target", float::specification);
    // It builds and disassembles all there is, which takes minutes.
    if suite.selection.all || !suite.selection.filter.is_empty() {
        suite.test("build::stack_protector", protector::run);
    }
}

/// The sizes in the README match a build with the compiler that it names.
fn sizes_of_images(suite: &mut Suite) {
    let name = "build::sizes";
    if suite.wants(name)
        && let Ok(Some(why)) = sizes::other_compiler()
    {
        return suite.report.skipped(name, &why);
    }
    suite.test(name, sizes::check);
}

/// Runs what is asked for of those that start a domain.
pub fn domains(suite: &mut Suite) {
    let logs = suite.logs.join("first-steps");
    suite.test("build::first_steps", || first_steps(&logs));
    let logs = suite.logs.join("own-allocator");
    suite.test("build::own_allocator", || own_allocator(&logs));
    let logs = suite.logs.join("unnamed-sections");
    suite.test("build::unnamed_sections", || unnamed_sections(&logs));
    suite.test("build::new_project", new_project);
}

/// A new project's tests pass on the host and on Xen, a failing test fails there, and a domain that powers off early does too.
fn new_project() -> Result<()> {
    const FAILING: &str = "\n#[domu_test::test]\nasync fn panics(_: Domain) {\n    panic!(\"with a place\");\n}\n\n\
        #[domu_test::test]\nasync fn ends_early(_: Domain) {\n    \
        domu::lifecycle::finish(domu::lifecycle::Reason::Poweroff).await;\n}\n";
    let outside = Outside::new("new-project")?;
    let folder = outside.0.join("a-project");
    let domu = Some(paths::workspace().to_string_lossy().into_owned());
    new::new(&NewArgs { name: folder.clone(), domu, float: false })?;
    pin_versions(&folder)?;
    let mut command = cargo::command(&folder);
    output_of(command.args(["test", "--target", &setup::host()?, "--lib", "--test", "on_xen"]))?;
    let tests = folder.join("tests/on_xen.rs");
    let text = fs::read_to_string(&tests).with_context(|| format!("reading {}", tests.display()))?;
    fs::write(&tests, text + FAILING).with_context(|| format!("writing {}", tests.display()))?;
    let built = build::tests(&folder, Flavour::Hardened)?;
    let [(_, elf)] = built.as_slice() else { bail!("{} test binaries", built.len()) };
    let junit = outside.0.join("results.xml");
    let plan = Plan {
        elf: elf.clone(),
        settings: Settings::default(),
        versions: vec![setup::MAIN],
        junit: Some(junit.clone()),
    };
    let arguments = Arguments { quiet: true, ..Arguments::default() };
    let code = cargo_xen::tests::run(&plan, &arguments)?;
    let results = fs::read_to_string(&junit).with_context(|| format!("reading {}", junit.display()))?;
    ensure!(code == 1 && results.contains("tests=\"5\""), "exit code {code}, and results\n{results}");
    ensure!(results.matches("<failure").count() == 2, "not two failures:\n{results}");
    let place = "domu: panicked at tests/on_xen.rs:";
    ensure!(results.contains(place), "the panic is reported without its place:\n{results}");
    ensure!(
        results.contains("before the test&apos;s result") || results.contains("before the test's result"),
        "{results}"
    );
    Ok(())
}

/// What a link needs: with other flags beside them, or without one of them.
const FLAGS: &str = "-Clink-arg=-Tdomu.ld -Crelocation-model=static";

/// Links hello with flags of the test's choice.
fn link(flags: &str) -> Result<Output> {
    let mut command = cargo::command(&paths::workspace());
    command.args(["build", "--quiet", "--release", "--package", "domu", "--example", "hello"]);
    command.args(["--target", "x86_64-unknown-none", "--target-dir"]).arg(flags_target());
    command.env("RUSTFLAGS", flags).output().context("starting cargo")
}

fn flags_target() -> PathBuf {
    paths::target().join("flags")
}

/// A link with these flags fails, and says so in these words.
fn refused(flags: &str, words: &str) -> Result<()> {
    let output = link(flags)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "a link with only {flags:?} went through");
    ensure!(said.contains(words), "it does not say {words:?}, but:\n{said}");
    Ok(())
}

/// A link without the script has one error, an undefined symbol whose name says what is missing, whether or not the rest of
/// the flags is there.
fn missing_linker_script() -> Result<()> {
    for flags in ["-Crelocation-model=static", ""] {
        refused(flags, "undefined symbol: domu_needs_the_link_argument_Tdomu_ld")?;
        let output = link(flags)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let errors = said.matches("lld: error:").count();
        ensure!(errors == 1, "{errors} errors instead of one with {flags:?}:\n{said}");
    }
    Ok(())
}

/// The size that a user asks for is the size that the stack has.
fn stack_size() -> Result<()> {
    const SIZE: u64 = 192 << 10;
    let output = link(&format!("{FLAGS} -Clink-arg=--defsym=domu_stack_size={SIZE}"))?;
    ensure!(output.status.success(), "the link failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let path = flags_target().join("x86_64-unknown-none/release/examples/hello");
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("reading {} as ELF", path.display()))?;
    let symbol = |name| file.symbol_by_name(name).map(|symbol| symbol.address()).with_context(|| format!("no {name}"));
    let size = symbol("domu_stack_top")? - symbol("domu_stack_bottom")?;
    ensure!(size == SIZE, "the stack has {size} bytes instead of {SIZE}");
    Ok(())
}

/// A folder outside the workspace that goes when this is dropped.
struct Outside(PathBuf);

impl Outside {
    fn new(name: &str) -> Result<Outside> {
        let path = std::env::temp_dir().join(format!("domu-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Outside(path))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // What is left lies in a folder for what may be left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn reproducible() -> Result<()> {
    let workspace = paths::workspace();
    let elsewhere = Outside::new("a-folder-with-another-name")?;
    copy(&workspace, &elsewhere.0)?;
    let here = build::named_in(&paths::target().join("beside"), &workspace, &["hello"], Flavour::Hardened)?;
    let there = build::named(&elsewhere.0, &["hello"], Flavour::Hardened)?;
    let (Some(here), Some(there)) = (here.first(), there.first()) else {
        bail!("building hello gave nothing");
    };
    let (one, other) = (here.read()?, there.read()?);
    ensure!(one.len() == other.len(), "the images have {} and {} bytes", one.len(), other.len());
    if let Some(at) = one.iter().zip(&other).position(|(one, other)| one != other) {
        let text = String::from_utf8_lossy(&one[at.saturating_sub(40)..(at + 40).min(one.len())]);
        bail!("the images differ from byte {at} on, near {text:?}");
    }
    let text = workspace.to_string_lossy();
    let names_folder = one.windows(text.len()).any(|window| window == text.as_bytes());
    ensure!(!names_folder, "the image names the folder that it was built in");
    say!("two hardened builds of hello, {} bytes, are the same", grouped(here.size));
    Ok(())
}

/// Copies the sources: what is in the workspace but for build results, logs and history.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("listing {}", from.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", from.display()))?.path();
        let name = path.file_name().unwrap_or_default();
        if name == "target" || name == ".git" {
            continue;
        }
        let target = to.join(name);
        if path.is_dir() {
            fs::create_dir_all(&target).with_context(|| format!("creating {}", target.display()))?;
            copy(&path, &target)?;
        } else if path.is_file() {
            fs::copy(&path, &target).with_context(|| format!("copying {}", path.display()))?;
        }
    }
    Ok(())
}

/// The README's files, and the folder that they were written to, where the crate comes from here.
fn written_from_the_readme(name: &str) -> Result<(Outside, Vec<(String, String)>)> {
    let workspace = paths::workspace();
    let path = workspace.join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let files = readme::files(&text).context("reading the files in README.md")?;
    for needed in ["Cargo.toml", ".cargo/config.toml", "src/main.rs"] {
        let found = files.iter().any(|(path, _)| path == needed);
        ensure!(found, "README.md shows no file {needed} (a fence after `<!-- file: {needed} -->`)");
    }
    let outside = Outside::new(name)?;
    pin_versions(&outside.0)?;
    for (path, content) in &files {
        let content = match path.as_str() {
            "Cargo.toml" => readme::with_path(content, &workspace.to_string_lossy())?,
            _ => content.clone(),
        };
        let path = outside.0.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok((outside, files))
}

/// A first program: what it needs beside the README's manifest and flags.
const CRATES: &str = r#"getrandom = { version = "0.4", default-features = false }
serde_json = { version = "1", default-features = false, features = ["alloc"] }"#;
const FLAG: &str = r#"    "--cfg=getrandom_backend=\"custom\"","#;

/// Does what the README says: its four files, and then a program with crates of its own, each plain and hardened.
fn first_steps(logs: &Path) -> Result<()> {
    let (outside, files) = written_from_the_readme("first-steps")?;
    let base = files.iter().find(|(path, _)| path.ends_with(".xl")).map(|(_, content)| content.clone());
    let base = base.context("README.md shows no configuration for `xl`")?;
    let mut guests = built_both_ways(&outside.0, "readme", &base)?;
    let change = |path: &str, from: &str, to: &str| -> Result<()> {
        let path = outside.0.join(path);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(text.contains(from), "{} has no {from:?}", path.display());
        fs::write(&path, text.replacen(from, to, 1)).with_context(|| format!("writing {}", path.display()))
    };
    change("Cargo.toml", " }", ", features = [\"getrandom\"] }")?;
    change("Cargo.toml", "[profile.dev]", &format!("{CRATES}\n\n[profile.dev]"))?;
    change(".cargo/config.toml", "\n]", &format!("\n{FLAG}\n]"))?;
    fs::write(outside.0.join("src/main.rs"), include_str!("../../first-steps/main.rs"))
        .context("writing src/main.rs")?;
    pin_versions(&outside.0)?;
    guests.extend(built_both_ways(&outside.0, "client", &base)?);
    // The processor has RDRAND.
    let outcomes = run::each(&guests, Cpu::Rich, Duration::from_secs(60), logs)?;
    for (guest, outcome) in guests.iter().zip(outcomes) {
        let words = if guest.name.starts_with("readme") { "argument: an" } else { "xenstore has {" };
        let (name, text) = (&guest.name, outcome.text());
        ensure!(text.contains(words), "{name} does not say {words:?}; its console:\n{text}");
        ensure!(
            outcome.reason == Some(Reason::Poweroff),
            "{name} ended with {:?}; its console:\n{text}",
            outcome.reason
        );
    }
    Ok(())
}

/// Gives a crate this workspace's lock file, of which cargo drops what the crate does not use: no version is looked up, and a
/// new release of a dependency changes no test.
fn pin_versions(folder: &Path) -> Result<()> {
    let lock = paths::workspace().join("Cargo.lock");
    fs::copy(lock, folder.join("Cargo.lock")).map(drop).context("copying Cargo.lock")
}

/// Builds a crate plain and hardened, of which one has canaries.
fn built_both_ways(folder: &Path, name: &str, base: &str) -> Result<Vec<run::Guest>> {
    let mut guests = Vec::new();
    for flavour in [Flavour::Plain, Flavour::Hardened] {
        let results = paths::target().join("first-steps").join(flavour.name());
        let image = build::folder_to(folder, Some(&results), flavour)?;
        let protected = protector::protected(&image)?;
        ensure!(
            (protected > 0) == (flavour == Flavour::Hardened),
            "the {} build of {name} has {protected} functions with a canary",
            flavour.name()
        );
        say!("{name}, {}: {} bytes, {protected} functions with a canary", flavour.name(), grouped(image.size));
        let name = format!("{name}-{}", flavour.name());
        guests.push(run::Guest { name, image: image.read()?, base: base.to_owned() });
    }
    Ok(guests)
}

/// The README gives users the profile that the examples are built with.
fn same_profile() -> Result<()> {
    let read =
        |path: &str| fs::read_to_string(paths::workspace().join(path)).with_context(|| format!("reading {path}"));
    let files = readme::files(&read("README.md")?)?;
    let manifest = files.iter().find(|(path, _)| path == "Cargo.toml").map(|(_, content)| &**content);
    let (theirs, ours) = (profile(manifest.unwrap_or_default()), profile(&read("Cargo.toml")?));
    ensure!(theirs == ours, "the release profile in README.md is {theirs:?}, and that of this workspace {ours:?}");
    ensure!(!ours.is_empty(), "no release profile in Cargo.toml");
    Ok(())
}

/// The lines of a manifest's release profile, in order.
fn profile(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().skip_while(|line| *line != "[profile.release]").skip(1);
    let mut lines: Vec<String> = lines.take_while(|line| line.contains('=')).map(String::from).collect();
    lines.sort();
    lines
}

/// What an allocator of one's own is made of.
const ALLOCATOR: &str = r#"spin = { version = "0.12", default-features = false, features = ["lock_api", "mutex", "spin_mutex"] }
talc = { version = "=5.1.1", default-features = false }"#;

/// The same with a program that brings its own allocator, straight under Xen.
fn own_allocator(logs: &Path) -> Result<()> {
    let (outside, _) = written_from_the_readme("own-allocator")?;
    let manifest = outside.0.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let line = text.lines().find(|line| line.starts_with("domu = ")).context("no dependency on domu")?;
    let without = text.replace(line, &format!("{}\n{ALLOCATOR}", line.replace(" }", ", default-features = false }")));
    fs::write(&manifest, &without).with_context(|| format!("writing {}", manifest.display()))?;
    let main = include_str!("../../own-allocator/main.rs");
    fs::write(outside.0.join("src/main.rs"), main).context("writing src/main.rs")?;
    let image = build::folder(&outside.0, Flavour::Plain)?;
    let tree = output_of(cargo::command(&outside.0).args(["tree", "--edges", "normal", "--package", "domu"]))?;
    ensure!(!String::from_utf8_lossy(&tree).contains("talc"), "domu depends on talc without its heap");
    let root = setup::root(setup::MAIN)?;
    let run = |image: &build::Image, logs: &Path| -> Result<()> {
        let ended = smoke::as_first_domain(&root, image, Cpu::Poor, "", Duration::from_secs(60), logs)?;
        ensure!(ended.serial.contains("zeroed pages of an allocator of its own"), "it does not say what it has");
        ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
        Ok(())
    };
    run(&image, logs)?;
    // Another crate of the program may turn the feature on: nothing changes.
    fs::write(&manifest, text.replace(line, &format!("{line}\n{ALLOCATOR}")))
        .with_context(|| format!("writing {}", manifest.display()))?;
    let image = build::folder(&outside.0, Flavour::Plain)?;
    run(&image, &logs.join("feature-on"))?;
    // Without an allocator the build fails with one sentence.
    fs::write(&manifest, without).with_context(|| format!("writing {}", manifest.display()))?;
    let main = main.replace(", claim_memory = unsafe claim", "");
    fs::write(outside.0.join("src/main.rs"), main).context("writing src/main.rs")?;
    let output = cargo::command(&outside.0).args(["build", "--release"]).output();
    let said = String::from_utf8_lossy(&output.context("starting cargo")?.stderr).into_owned();
    ensure!(said.contains("domu has no heap without its feature `allocator`"), "the heap is not named:\n{said}");
    Ok(())
}

/// Links that the script refuses: a feature of `sections/main.rs`, and what the error says.
const REFUSED_SECTIONS: [(&str, &str); 3] = [
    ("writable-code", "a section is writable and executable: -Clink-arg=-Map=FILE lists it"),
    ("thread-local", "thread-local sections must be named .tdata or .tbss"),
    ("zero-constants", "-Clink-arg=--orphan-handling=error names it"),
];

/// Sections that the script does not name get into the segment of their protection, and those without bytes are cleared.
fn unnamed_sections(logs: &Path) -> Result<()> {
    let (outside, _) = written_from_the_readme("sections")?;
    let manifest = outside.0.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| format!("reading {}", manifest.display()))?;
    let line = text.lines().find(|line| line.starts_with("domu = ")).context("no dependency on domu")?;
    let mut text = text.replace(line, &format!("{line}\nlinkme = \"0.3\""));
    text.push_str("\n[features]\n");
    REFUSED_SECTIONS.iter().for_each(|(feature, _)| text.push_str(&format!("{feature} = []\n")));
    fs::write(&manifest, text).with_context(|| format!("writing {}", manifest.display()))?;
    let main = include_str!("../../sections/main.rs");
    fs::write(outside.0.join("src/main.rs"), main).context("writing src/main.rs")?;
    let image = build::folder(&outside.0, Flavour::Plain)?;
    let bytes = fs::read(&image.elf).with_context(|| format!("reading {}", image.elf.display()))?;
    sections_are_placed(&object::File::parse(&*bytes)?)?;
    for (feature, words) in REFUSED_SECTIONS {
        let mut command = cargo::command(&outside.0);
        let output = command.args(["build", "--release", "--features", feature]).output().context("starting cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "a link with {feature} went through");
        ensure!(said.contains(words), "it does not say {words:?}, but:\n{said}");
    }
    let root = setup::root(setup::MAIN)?;
    let ended = smoke::as_first_domain(&root, &image, Cpu::Poor, "", Duration::from_secs(60), logs)?;
    ensure!(ended.serial.contains("all sections are in their place"), "a section has other contents than it ought to");
    ensure!(ended.reason == Some(Reason::Poweroff), "it ended with {:?}", ended.reason);
    Ok(())
}

/// The segments hold what their access suits, all of it below the end of the image, and what boot clears is what has no
/// bytes in the file.
fn sections_are_placed(file: &object::File<'_>) -> Result<()> {
    let symbol = |name| file.symbol_by_name(name).map(|symbol| symbol.address()).with_context(|| format!("no {name}"));
    let (cleared, image_end) = (symbol("domu_bss_start")?..symbol("domu_bss_end")?, symbol("domu_image_end")?);
    let mut found = 0;
    for symbol in file.symbols() {
        let wanted = match symbol.name()?.split_once('_') {
            Some(("rx", _)) => elf::PF_R | elf::PF_X,
            Some(("ro", _)) => elf::PF_R,
            Some(("rw", _)) => elf::PF_R | elf::PF_W,
            _ => continue,
        };
        let at = symbol.address();
        let inside = |start: u64, size| (start..start + size).contains(&at);
        let segment = file.segments().find(|segment| inside(segment.address(), segment.size()));
        let flags = segment.map(|segment| segment.flags());
        ensure!(
            matches!(flags, Some(SegmentFlags::Elf { p_flags }) if p_flags == wanted),
            "{} lies in a segment with {flags:?}, not {wanted}",
            symbol.name()?
        );
        found += 1;
    }
    ensure!(found == 11, "{found} of 11 symbols are in the image");
    for section in file.sections() {
        let SectionFlags::Elf { sh_flags } = section.flags() else { continue };
        let (name, start, end) = (section.name()?, section.address(), section.address() + section.size());
        if sh_flags & u64::from(elf::SHF_ALLOC) == 0 || start == end {
            continue;
        }
        ensure!(end <= image_end, "{name} ends at {end:#x}, behind the image");
        let empty = section.kind() == SectionKind::UninitializedData && ![".stack", ".boot_tables"].contains(&name);
        let is_cleared = cleared.contains(&start) && end <= cleared.end;
        ensure!(is_cleared == empty, "{name} at {start:#x} is {}cleared at boot", if is_cleared { "" } else { "not " });
    }
    Ok(())
}

/// The names of these tests.
#[cfg(test)]
pub const NAMES: [&str; 13] = [
    "build::reproducible",
    "build::first_steps",
    "build::release_profile",
    "build::sizes",
    "build::own_allocator",
    "build::unnamed_sections",
    "build::new_project",
    "build::missing_relocation_flag",
    "build::missing_linker_script",
    "build::stack_too_small",
    "build::stack_size",
    "build::float_target",
    "build::stack_protector",
];
