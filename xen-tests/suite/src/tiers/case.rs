//! What a test of a guest is, and what a test can do with its guest.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use cargo_xen::build::Flavour;
use cargo_xen::lab::dom0::{Session, Xenstored};
use cargo_xen::lab::domain::{self, COMMAND_LIMIT, Config, Followed, Outcome, Reason, Watch};
use cargo_xen::lab::pair::{self, Peer, Plan};
use cargo_xen::lab::qemu::Cpu;

/// The machines that a test runs on by default; with `--all` every test runs on all of them, but for those that take minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where {
    /// The main version of Xen, C xenstored, the poor processor.
    pub main: bool,
    /// Every version of Xen, not only the main one.
    pub versions: bool,
    /// On the main version, oxenstored too; on the others that is left to `--all`.
    pub xenstoreds: bool,
    /// On the main version, the rich processor too.
    pub processors: bool,
}

impl Where {
    /// None: a test that takes minutes. With `--all` it runs on every version, with C xenstored and the poor processor; with
    /// either xenstored, if that is said.
    pub const NOWHERE: Where = Where { main: false, versions: false, xenstoreds: false, processors: false };
    /// The main version of Xen, C xenstored, the poor processor.
    pub const MAIN: Where = Where { main: true, ..Where::NOWHERE };
    /// That on every version.
    pub const VERSIONS: Where = Where { versions: true, ..Where::MAIN };
    /// That on the rich processor too.
    pub const PROCESSORS: Where = Where { processors: true, ..Where::MAIN };

    /// Whether a machine is among those of `--all`.
    pub fn includes_with_all(self, xenstored: Xenstored, cpu: Cpu) -> bool {
        self.main || cpu == Cpu::Poor && (xenstored == Xenstored::C || self.xenstoreds)
    }

    /// Whether a machine is among them.
    pub fn includes(self, main: bool, xenstored: Xenstored, cpu: Cpu) -> bool {
        match (main, xenstored, cpu) {
            (true, Xenstored::C, Cpu::Poor) => self.main,
            (true, Xenstored::Ocaml, Cpu::Poor) => self.main && self.xenstoreds,
            (true, Xenstored::C, Cpu::Rich) => self.processors,
            (false, Xenstored::C, Cpu::Poor) => self.versions,
            _ => false,
        }
    }
}

/// How much of a console is fetched from dom0; what is longer is compared there.
const FETCHED: usize = 20_000;

/// The steps of a test: it passes when they succeed.
pub type Steps = Box<dyn Fn(&mut Stage) -> Result<()>>;

/// A test of one guest.
pub struct Case {
    /// Its name, without the machine's.
    pub name: String,
    /// The unikernel.
    pub guest: &'static str,
    /// How that is built.
    pub flavour: Flavour,
    /// The domain.
    pub config: Config,
    /// More files for dom0's folder of guests.
    pub files: Vec<(String, Vec<u8>)>,
    /// How long the domain may run.
    pub limit: Duration,
    /// Which machines.
    pub place: Where,
    /// What is done and expected.
    pub steps: Steps,
}

impl Case {
    /// A test with the usual settings: the outcome of one run is judged.
    pub fn new(name: impl Into<String>, guest: &'static str, judge: impl Fn(&Outcome) -> Result<()> + 'static) -> Case {
        Case {
            name: name.into(),
            guest,
            flavour: Flavour::Hardened,
            config: Config::default(),
            files: Vec::new(),
            limit: Duration::from_secs(60),
            place: Where::MAIN,
            steps: Box::new(move |stage| judge(&stage.run()?)),
        }
    }

    /// With memory in MiB.
    pub fn memory(mut self, memory: u32) -> Case {
        self.config.memory = Some(memory);
        self
    }

    /// With a memory map that shows more than there is.
    pub fn maxmem(mut self, maxmem: u32) -> Case {
        self.config.maxmem = Some(maxmem);
        self
    }

    /// With a command line.
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Case {
        self.config.cmdline = Some(cmdline.into());
        self
    }

    /// With another line in its configuration.
    pub fn line(mut self, line: &str) -> Case {
        self.config.more.push(line.into());
        self
    }

    /// With a module.
    pub fn ramdisk(mut self, name: &str, content: Vec<u8>) -> Case {
        self.config.ramdisk = Some(name.into());
        self.file(name, content)
    }

    /// With a file in dom0.
    pub fn file(mut self, name: &str, content: Vec<u8>) -> Case {
        self.files.push((name.into(), content));
        self
    }

    /// With another limit.
    pub fn seconds(mut self, limit: u64) -> Case {
        self.limit = Duration::from_secs(limit);
        self
    }

    /// On these machines.
    pub fn on(mut self, place: Where) -> Case {
        self.place = place;
        self
    }

    /// Built this way.
    pub fn flavour(mut self, flavour: Flavour) -> Case {
        self.flavour = flavour;
        self
    }

    /// With steps of its own.
    pub fn steps(mut self, steps: impl Fn(&mut Stage) -> Result<()> + 'static) -> Case {
        self.steps = Box::new(steps);
        self
    }

    /// The name of its domain, of its configuration and of its logs.
    pub fn domain(&self) -> String {
        self.name.replace("::", "-")
    }

    /// The name of its image in dom0.
    pub fn kernel(&self) -> String {
        format!("{}.{}", self.guest, self.flavour.name())
    }
}

/// A test while it runs.
pub struct Stage<'a> {
    /// Xen and dom0.
    pub session: &'a mut Session,
    /// The domain's name.
    pub domain: String,
    /// How long it may run.
    pub limit: Duration,
    /// What became of it, for a report.
    pub last: Option<Outcome>,
}

impl Stage<'_> {
    /// Starts the domain, waits for its end, destroys it.
    pub fn run(&mut self) -> Result<Outcome> {
        let outcome = self.run_and_keep()?;
        self.destroy()?;
        Ok(outcome)
    }

    /// Starts the domain, waits for its end, leaves it there.
    pub fn run_and_keep(&mut self) -> Result<Outcome> {
        let watch = Watch { limit: self.limit, most: FETCHED, on_console: &mut |_| {} };
        let outcome = domain::run(self.session, &self.domain, watch)?;
        self.keep(outcome)
    }

    /// Starts the domain held, has `before` do something, and lets it run to its end.
    pub fn run_after(&mut self, before: impl FnOnce(&mut Stage) -> Result<()>) -> Result<Outcome> {
        self.follow_after("xl create -p", |stage| {
            before(stage)?;
            stage.dom0(&format!("xl unpause {}", stage.domain)).map(drop)
        })
    }

    /// Starts the domain, has `meanwhile` do something, and follows it to its end.
    pub fn run_with(&mut self, meanwhile: impl FnOnce(&mut Stage) -> Result<()>) -> Result<Outcome> {
        self.follow_after("xl create", meanwhile)
    }

    fn follow_after(&mut self, create: &str, steps: impl FnOnce(&mut Stage) -> Result<()>) -> Result<Outcome> {
        let mark = self.session.serial().length();
        let (start, domain) = (Instant::now(), self.domain.clone());
        self.dom0(&format!("{create} {}", domain::config_of(&domain)))?;
        steps(self)?;
        let watch = Watch { limit: self.limit, most: FETCHED, on_console: &mut |_| {} };
        let outcome = domain::follow(self.session, &domain, start, mark, watch)?;
        self.keep(outcome)
    }

    /// Starts two domains that are given each other, both from the test's configuration and with these words on their command
    /// lines, has `meanwhile` do something, follows both to their ends, and destroys them.
    pub fn run_pair(
        &mut self,
        words: &str,
        meanwhile: impl FnOnce(&mut Stage, &[Peer; 2]) -> Result<()>,
    ) -> Result<[Outcome; 2]> {
        let start = |session: &mut Session, name: &str| {
            let plan = Plan::new(session, name, words)?;
            let offer = plan.start_first(session)?;
            plan.start_second(session, &offer)?;
            Ok(plan.peers().clone())
        };
        self.run_both(start, meanwhile)
    }

    /// The same with two domains that are the front end and the back end of a device of this class.
    pub fn run_ends(
        &mut self,
        class: &str,
        meanwhile: impl FnOnce(&mut Stage, &[Peer; 2]) -> Result<()>,
    ) -> Result<[Outcome; 2]> {
        self.run_both(|session, name| pair::start_ends(session, name, class), meanwhile)
    }

    fn run_both(
        &mut self,
        start: impl FnOnce(&mut Session, &str) -> Result<[Peer; 2]>,
        meanwhile: impl FnOnce(&mut Stage, &[Peer; 2]) -> Result<()>,
    ) -> Result<[Outcome; 2]> {
        let result = self.follow_pair(start, meanwhile);
        let [first, second] = pair::names(&self.domain);
        // One may be gone, and what went wrong before is what is to be told.
        self.session.run(&format!("xl destroy {first}; xl destroy {second}"), COMMAND_LIMIT)?;
        result
    }

    fn follow_pair(
        &mut self,
        start_both: impl FnOnce(&mut Session, &str) -> Result<[Peer; 2]>,
        meanwhile: impl FnOnce(&mut Stage, &[Peer; 2]) -> Result<()>,
    ) -> Result<[Outcome; 2]> {
        let mark = self.session.serial().length();
        let start = Instant::now();
        let peers = start_both(self.session, &self.domain)?;
        let done = meanwhile(self, &peers);
        let (mut ignore, mut ignore_too) = (|_: &[u8]| {}, |_: &[u8]| {});
        let [first, second] = &peers;
        // Both are followed at once: what failed meanwhile is not to be waited for.
        let limit = if done.is_ok() { self.limit } else { Duration::ZERO };
        let watch = Watch { limit, most: FETCHED, on_console: &mut ignore };
        let first = Followed::new(&first.name, start, mark, watch);
        let watch = Watch { limit, most: FETCHED, on_console: &mut ignore_too };
        let second = Followed::new(&second.name, start, mark, watch);
        let both = domain::follow_both(self.session, [first, second])?;
        let console = both.iter().flat_map(|outcome| [outcome.text(), "\n".into()]).collect::<String>().into_bytes();
        self.last = Some(Outcome { console, ..both[1].clone() });
        done.map(|()| both)
    }

    fn keep(&mut self, outcome: Outcome) -> Result<Outcome> {
        self.last = Some(outcome.clone());
        Ok(outcome)
    }

    /// Reads the console anew, after whatever has been done since; waits for there to be something,
    /// and for that to be all.
    pub fn console(&mut self) -> Result<Vec<u8>> {
        let command = format!("head -c {FETCHED} {}", self.log());
        let start = Instant::now();
        let mut console = Vec::new();
        loop {
            let now = self.session.run(&command, COMMAND_LIMIT)?.output;
            let grown = now.len() > console.len();
            console = now;
            if !grown && (!console.is_empty() || start.elapsed() > Duration::from_secs(10)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(400));
        }
        if let Some(last) = &mut self.last {
            last.console.clone_from(&console);
        }
        Ok(console)
    }

    /// Destroys the domain.
    pub fn destroy(&mut self) -> Result<()> {
        domain::destroy(self.session, &self.domain)
    }

    /// Has dom0 run a command line, which must succeed.
    pub fn dom0(&mut self, command: &str) -> Result<String> {
        self.session.must(command, COMMAND_LIMIT)
    }

    /// Waits until a domain has said a word, for as long as it runs and may.
    pub fn until_said(&mut self, domain: &str, word: &str) -> Result<()> {
        let start = Instant::now();
        // It waits for some seconds each time.
        while self.session.run(&format!("until_said {domain} {word}"), COMMAND_LIMIT)?.status != 0 {
            let list = self.session.run(&format!("xl list {domain}"), COMMAND_LIMIT)?.text();
            let state = list.lines().nth(1).and_then(|line| line.split_whitespace().nth(4));
            let runs = state.is_some_and(|state| !state.contains(['s', 'c']));
            ensure!(
                runs && start.elapsed() < self.limit,
                "{domain} does not say {word}; its console ends with:\n{}",
                self.dom0(&format!("tail -n 5 {}", domain::log_of(domain)))?
            );
        }
        Ok(())
    }

    /// The file in dom0 that holds the domain's console.
    pub fn log(&self) -> String {
        domain::log_of(&self.domain)
    }
}

/// The domain must have ended for this reason.
pub fn ended(outcome: &Outcome, expected: Reason) -> Result<()> {
    match outcome.reason {
        Some(reason) if reason == expected => Ok(()),
        Some(reason) => bail!("the domain ended with {reason} instead of {expected}"),
        None => bail!("the domain did not end within its limit (expected: {expected})"),
    }
}
