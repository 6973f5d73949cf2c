//! Tests in domains of their own on real Xen, as the crate `domu-test` makes them.
//!
//! Its documentation has the protocol between a test binary and this module.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use object::{Object, ObjectSection};

use crate::build::{self, Image};
use crate::cpio::Archive;
use crate::lab::dom0::{Lab, Session};
use crate::lab::domain::{self, Config, Outcome, Reason, Watch};
use crate::run;
use crate::settings::Settings;
use crate::setup::Version;
use crate::{paths, symbols};

/// The section that lists the tests.
const SECTION: &str = ".domu_tests";

/// A test, as the binary lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The path without the name of the crate.
    pub name: String,
    /// How long the test may run.
    pub timeout: Duration,
    /// Whether it runs only if asked for.
    pub is_ignored: bool,
    /// The escaped text of the panic that makes it pass.
    pub should_panic: Option<String>,
}

/// The tests of a binary; `None` if it is not a test binary.
///
/// # Errors
///
/// The file cannot be read, is no ELF, or lists its tests in another form.
pub fn list(elf: &Path) -> Result<Option<Vec<Listed>>> {
    let bytes = fs::read(elf).with_context(|| format!("reading {}", elf.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is not an ELF file", elf.display()))?;
    let Some(section) = file.section_by_name(SECTION) else { return Ok(None) };
    let data = section.data().with_context(|| format!("reading section {SECTION} of {}", elf.display()))?;
    let text = std::str::from_utf8(data).with_context(|| format!("section {SECTION} is not UTF-8"))?;
    let mut tests = text.lines().map(read).collect::<Result<Vec<_>>>()?;
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Some(tests))
}

/// A line of the section.
fn read(line: &str) -> Result<Listed> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [path, timeout, ignored, should_panic] = fields[..] else {
        bail!("section {SECTION} has a line that this cargo-xen does not know (another version of domu-test?): {line}");
    };
    Ok(Listed {
        name: path.split_once("::").map_or(path, |(_, name)| name).to_owned(),
        timeout: Duration::from_secs(timeout.parse().with_context(|| format!("time-out of {path}"))?),
        is_ignored: ignored.starts_with('+'),
        should_panic: should_panic.strip_prefix('+').map(String::from),
    })
}

/// What is run, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The test binary, with symbols.
    pub elf: PathBuf,
    /// Of the project.
    pub settings: Settings,
    /// On each of these.
    pub versions: Vec<&'static Version>,
    /// A file for the results as JUnit XML.
    pub junit: Option<PathBuf>,
}

/// A test that has run.
struct Done {
    name: String,
    version: &'static str,
    took: Duration,
    failure: Option<String>,
}

/// What the trials of one version of Xen share.
struct Machine {
    version: &'static Version,
    plan: Plan,
    image: Image,
    tests: Vec<Listed>,
    logs: PathBuf,
    /// Booted by the first trial, and again after dom0 has died.
    session: Mutex<Option<Session>>,
    done: Arc<Mutex<Vec<Done>>>,
}

/// Runs the tests that libtest's arguments select, and returns the exit code. Nothing boots for `--list`.
///
/// # Errors
///
/// The binary cannot be read, or the results not be written.
pub fn run(plan: &Plan, arguments: &Arguments) -> Result<u8> {
    let Some(tests) = list(&plan.elf)? else {
        bail!("{} has no tests of the crate domu-test", plan.elf.display());
    };
    if !arguments.list {
        plan.settings.without_devices()?;
    }
    let image = build::strip(&plan.elf)?;
    let logs = paths::new_logs("test")?;
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut trials = Vec::new();
    for &version in &plan.versions {
        let machine = Arc::new(Machine {
            version,
            plan: plan.clone(),
            image: image.clone(),
            tests: tests.clone(),
            logs: logs.join(version.xen),
            session: Mutex::new(None),
            done: done.clone(),
        });
        for (number, test) in tests.iter().enumerate() {
            let machine = machine.clone();
            let trial = Trial::test(&*test.name, move || machine.attempt(number)).with_ignored_flag(test.is_ignored);
            // Names are those of the list, so that editors and nextest find them.
            trials.push(if plan.versions.len() > 1 { trial.with_kind(format!("Xen {}", version.xen)) } else { trial });
        }
    }
    // One machine, and one domain at a time: two cores are what most have.
    let arguments = Arguments { test_threads: Some(1), ..arguments.clone() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let done = done.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &plan.junit {
        fs::write(path, junit(&done)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(u8::from(conclusion.has_failed()))
}

impl Machine {
    /// Runs a test.
    fn attempt(&self, number: usize) -> Result<(), Failed> {
        let test = &self.tests[number];
        let start = Instant::now();
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let result = match self.run(&mut session, number) {
            Ok(failure) => failure,
            Err(error) => {
                // The next test gets a new machine.
                *session = None;
                Some(format!("dom0 or the machine failed: {error:#}"))
            }
        };
        let failure = result.map(|reason| format!("{reason}\nthe logs are in {}", self.logs.display()));
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, version) = (test.name.clone(), self.version.xen);
        done.push(Done { name, version, took: start.elapsed(), failure: failure.clone() });
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Runs a test in a new domain, and returns why it failed.
    fn run(&self, session: &mut Option<Session>, number: usize) -> Result<Option<String>> {
        let test = &self.tests[number];
        if session.is_none() {
            *session = Some(self.boot()?);
        }
        let session = session.as_mut().context("no machine")?;
        let (domain, nonce) = (domain_name(number), nonce()?);
        let line = format!("domu.test={} domu.test-nonce={nonce} {}", test.name, self.cmdline());
        let config = self.config(line.trim_end()).text(&domain, "tests");
        session.put(&domain::config_of(&domain), config.as_bytes())?;
        let watch = Watch { limit: test.timeout, most: usize::MAX, on_console: &mut |_| {} };
        let outcome = domain::run(session, &domain, watch)?;
        domain::destroy(session, &domain)?;
        Ok(failure(test, &nonce, &outcome).map(|reason| {
            let report = symbols::report(&self.image.elf, &[&outcome.text(), &outcome.own_lines()]);
            format!("{reason}\n\nconsole:\n{}{report}", outcome.text())
        }))
    }

    fn boot(&self) -> Result<Session> {
        fs::create_dir_all(&self.logs).with_context(|| format!("creating {}", self.logs.display()))?;
        let mut archive = Archive::default();
        archive.file("guests/tests", 0o644, &self.image.read()?);
        let memory_mb = run::machine_memory(self.plan.settings.memory.unwrap_or(16));
        let lab = Lab { cpu: self.plan.settings.machine, memory_mb, ..Lab::new(self.version) };
        Session::boot(&lab, archive, &self.logs)
    }

    fn cmdline(&self) -> &str {
        self.plan.settings.cmdline.as_deref().unwrap_or_default()
    }

    fn config(&self, cmdline: &str) -> Config {
        let settings = &self.plan.settings;
        Config {
            base: run::BASE_CONFIG.to_owned(),
            memory: settings.memory,
            maxmem: settings.maxmem,
            cmdline: Some(cmdline.to_owned()),
            more: settings.lines(),
            ..Config::default()
        }
    }
}

fn domain_name(number: usize) -> String {
    format!("test-{number}")
}

/// A word that no test can know.
fn nonce() -> Result<String> {
    let mut bytes = [0; 8];
    let mut file = fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut bytes).context("reading /dev/urandom")?;
    let mut text = String::new();
    bytes.iter().try_for_each(|byte| write!(text, "{byte:02x}")).context("formatting")?;
    Ok(text)
}

/// Why a test failed; `None` if it passed.
fn failure(test: &Listed, nonce: &str, outcome: &Outcome) -> Option<String> {
    let text = outcome.text();
    let start = format!("domu-test {nonce} ");
    let end = text.lines().filter_map(|line| line.strip_prefix(&*start)).next_back();
    let panic = || {
        let lines = text.lines().chain(outcome.hypervisor.lines());
        lines.filter(|line| line.contains("domu: panic")).map(String::from).next().unwrap_or_default()
    };
    match (end, outcome.reason, &test.should_panic) {
        (_, None, _) if outcome.took >= test.timeout => Some(format!("timed out after {} s", test.timeout.as_secs())),
        (_, None, _) => Some("the domain vanished".to_owned()),
        (Some("passed"), Some(Reason::Poweroff), None) => None,
        (Some("passed"), Some(reason), None) => Some(format!("passed, but the domain ended with {reason}")),
        (Some("passed"), _, Some(_)) => Some("did not panic as expected".to_owned()),
        (Some(end), _, _) if end.starts_with("failed: ") => Some(end.to_owned()),
        (Some("started"), Some(Reason::Crash), Some(expected)) => {
            let said: String = (text.clone() + &outcome.own_lines()).escape_default().collect();
            (!said.contains(&**expected)).then(|| format!("{}\nexpected the text \"{expected}\"", panic()))
        }
        (Some("started"), Some(Reason::Crash), None) => Some(format!("crashed: {}", panic())),
        (_, Some(reason), _) => Some(format!("the domain ended before the test's result, with {reason}")),
    }
}

/// The results as JUnit XML, of which CI systems make tables.
fn junit(done: &[Done]) -> Result<Vec<u8>> {
    use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
    let mut report = Report::new("cargo xen test");
    let mut versions: Vec<&str> = done.iter().map(|done| done.version).collect();
    versions.sort_unstable();
    versions.dedup();
    for version in versions {
        let mut suite = TestSuite::new(format!("Xen {version}"));
        for test in done.iter().filter(|done| done.version == version) {
            let mut status = TestCaseStatus::success();
            if let Some(failure) = &test.failure {
                status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(failure.lines().next().unwrap_or_default()).set_description(&**failure);
            }
            let mut case = TestCase::new(&*test.name, status);
            case.set_time(test.took);
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    let mut bytes = Vec::new();
    report.serialize(&mut bytes).context("writing JUnit XML")?;
    bytes.flush().context("writing JUnit XML")?;
    Ok(bytes)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn listed(should_panic: Option<&str>) -> Listed {
        let should_panic = should_panic.map(String::from);
        Listed { name: "a".into(), timeout: Duration::from_secs(5), is_ignored: false, should_panic }
    }

    fn outcome(console: &str, reason: Option<Reason>, seconds: u64) -> Outcome {
        let took = Duration::from_secs(seconds);
        Outcome { domain: 1, console: console.into(), reason, hypervisor: String::new(), took }
    }

    #[test]
    fn lines_of_the_section_are_read() {
        let test = read("basic::inner::a\t60\t+later\t+x\\ty").unwrap();
        assert_eq!((&*test.name, test.timeout.as_secs(), test.is_ignored), ("inner::a", 60, true));
        assert_eq!(test.should_panic.as_deref(), Some("x\\ty"));
        assert_eq!(read("basic::a\t5\t-\t-").unwrap().should_panic, None);
        assert!(read("basic::a\t5").unwrap_err().to_string().contains("another version of domu-test"));
    }

    #[test]
    fn only_the_nonce_makes_a_pass() {
        let started = "domu-test 77 started\r\n";
        let passed = format!("{started}x\r\ndomu-test 77 passed\r\n");
        let judge = |panic, text: &str, reason, seconds| failure(&listed(panic), "77", &outcome(text, reason, seconds));
        assert_eq!(judge(None, &passed, Some(Reason::Poweroff), 1), None);
        // An early power-off, another's words, another end, no end.
        assert!(judge(None, started, Some(Reason::Poweroff), 1).unwrap().contains("before the test's result"));
        assert!(judge(None, "domu-test 78 passed\r\n", Some(Reason::Poweroff), 1).unwrap().contains("before"));
        assert!(judge(None, &passed, Some(Reason::Crash), 1).unwrap().contains("passed, but"));
        assert_eq!(judge(None, started, None, 6).unwrap(), "timed out after 5 s");
        assert_eq!(judge(None, started, None, 1).unwrap(), "the domain vanished");
        assert!(judge(None, "domu-test 77 failed: no\r\n", Some(Reason::Poweroff), 1).unwrap().contains("failed: no"));
    }

    #[test]
    fn expected_panic_needs_its_text() {
        let text = "domu-test 77 started\r\ndomu: panicked at src/a.rs:1: no \"disk\"\r\n";
        let judge = |expected| failure(&listed(Some(expected)), "77", &outcome(text, Some(Reason::Crash), 1));
        assert_eq!(judge("no \\\"disk\\\""), None);
        assert_eq!(judge(""), None);
        assert!(judge("a net").unwrap().contains("expected the text \"a net\""));
        let passed = outcome("domu-test 77 passed\r\n", Some(Reason::Poweroff), 1);
        assert!(failure(&listed(Some("")), "77", &passed).unwrap().contains("did not panic"));
    }

    #[test]
    fn results_become_junit() {
        let done = |failure: Option<&str>| Done {
            name: "a".into(),
            version: "4.17",
            took: Duration::from_millis(1500),
            failure: failure.map(String::from),
        };
        let xml = String::from_utf8(junit(&[done(None), done(Some("broken\nmore"))]).unwrap()).unwrap();
        assert!(
            xml.contains("tests=\"2\"") && xml.contains("failures=\"1\"") && xml.contains("message=\"broken\""),
            "{xml}"
        );
    }
}
